// A place to drop images on, or to choose them by keyboard.

import { h } from "selfsup/dom.js";

const LARGEST = 20e6; // bytes of a file

/** An element that calls onImages with data URLs of the images that were dropped, pasted or chosen. */
export function dropZone(context, { label, many = false, onImages }) {
  const input = h("input", { type: "file", accept: "image/*", multiple: many, onchange: context.doing(() => take(input.files)) });
  const seen = h("span", { class: "thumbs" });
  const zone = h("label", { class: "drop" }, label, input, seen);

  async function take(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/")).slice(0, many ? 16 : 1);
    if (!pictures.length) throw new Error("That is no image; drop a PNG, a JPEG or their like.");
    const large = pictures.find((file) => file.size > LARGEST);
    if (large) throw new Error(`${large.name} has more than 20 MB; send a smaller one.`);
    const urls = await Promise.all(pictures.map(dataUrl));
    seen.replaceChildren(...urls.map((src, number) => h("img", { src, alt: pictures[number].name })));
    onImages(urls);
  }

  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    context.doing(() => take(event.dataTransfer.files))(event);
  });
  zone.addEventListener("paste", (event) => context.doing(() => take(event.clipboardData.files))(event));
  return zone;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}
