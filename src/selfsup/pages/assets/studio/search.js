// Search in a library: by words, sentences or an image; pictures come as pictures, passages with their place.

import { h } from "selfsup/dom.js";
import { dropZone } from "selfsup/studio/dropping.js";

/** The libraries that can be used; those that cannot are complained of. */
export async function libraries(context) {
  const { libraries: all } = await context.api("/api/libraries");
  const broken = all.find(({ problem }) => problem);
  if (broken) context.complain(broken.problem);
  return all.filter(({ problem }) => !problem);
}

/** A choice of libraries; `name` is the one that is chosen at first. */
export function libraryChoice(all, name, onchange) {
  const options = all.map((each) =>
    h("option", { value: each.name, selected: each.name === name }, `${each.name} (${each.records.toLocaleString("en")})`),
  );
  return h("label", {}, "Library", h("select", { name: "library", onchange }, ...options));
}

/** What stands in the place of a page where there is no library. */
export function nothing(title) {
  const how = "There is no library in the folders of this studio. Make one: selfsup index RUN --data … --out NAME.lance";
  return h("section", {}, h("h1", {}, title), h("p", { class: "quiet" }, how));
}

/** A record: its picture or text, where it stands, and its other columns. */
export function drawItem(item, words = "") {
  const values = Object.entries({ ...placeOf(item), ...item.values }).filter(([, value]) => value !== null && value !== "");
  const facts = values.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]);
  const shown = item.picture ? picture(item) : h("p", { class: "passage" }, ...marked(item.text || "(no picture here)", words));
  return h("div", { class: "item" }, shown, h("p", { class: "source", title: item.source }, ending(item.source)), h("dl", {}, ...facts));
}

function picture({ source }) {
  return h("img", { src: `/api/picture?source=${encodeURIComponent(source)}`, alt: ending(source), loading: "lazy" });
}

function placeOf({ document, start, end }) {
  return document == null ? {} : { document: ending(document), characters: `${start} to ${end}` };
}

/** The end of a place, where the file and the record stand. */
export function ending(source) {
  return source.length > 60 ? `…${source.slice(-59)}` : source;
}

/** A text with the words of a query marked. */
function marked(text, query) {
  const words = [...query.matchAll(/[\p{L}\p{N}]+/gu)].map(([word]) => word);
  if (!words.length) return [text];
  const parts = text.split(new RegExp(`(?<![\\p{L}\\p{N}])(${words.join("|")})(?![\\p{L}\\p{N}])`, "giu"));
  return parts.map((part, number) => (number % 2 ? h("mark", {}, part) : part));
}

/** Hits, best first. */
export function drawHits(hits, words = "") {
  if (!hits.length) return h("p", { class: "quiet" }, "Nothing found.");
  const pictures = hits.every(({ picture: has }) => has);
  const items = hits.map((hit) => h("li", { class: "hit" }, h("span", { class: "score" }, scored(hit)), drawItem(hit, words)));
  return h("ol", { class: pictures ? "hits pictures" : "hits" }, ...items);
}

function scored({ score, ranks }) {
  if (!ranks) return score.toFixed(3);
  return Object.entries(ranks).map(([name, rank]) => `${name} ${rank ?? "–"}`).join(", ");
}

/** A form that asks a library, and what it finds. `fixed` leaves the choice of the library to whoever calls. */
export function searcher(context, all, name) {
  let image = null;
  const library = libraryChoice(all, name, arrange);
  const words = h("input", { name: "query", type: "search", maxlength: 4000, placeholder: "Words or a sentence" });
  const dropped = dropZone(context, { label: "or drop an image, or choose one", onImages: ([url]) => (image = url) && find() });
  const hybrid = h("input", { name: "hybrid", type: "checkbox" });
  const hybridField = h("label", { class: "check" }, hybrid, "look for the words themselves too");
  const where = h("input", { name: "where", maxlength: 2000, placeholder: "none", spellcheck: false });
  const columns = h("p", { class: "quiet columns" });
  const top = h("input", { name: "top", type: "number", min: 1, max: 200, value: 20, required: true });
  const found = h("div", { class: "found", "aria-live": "polite" });
  const button = h("button", { type: "submit" }, "Search");

  function arrange() {
    const chosen = all.find((each) => each.name === library.querySelector("select").value);
    hybridField.hidden = !chosen.hybrid;
    const names = Object.entries(chosen.columns).map(([column, kind]) =>
      h("button", { type: "button", class: "small", title: kind, onclick: () => insert(column, kind) }, column),
    );
    columns.replaceChildren("Columns: ", ...names);
  }

  function insert(column, kind) {
    const example = kind === "string" ? `${column} LIKE '%%'` : `${column} > 0`;
    where.value = where.value ? `${where.value} AND ${example}` : example;
    where.focus();
  }

  async function find(event) {
    event?.preventDefault();
    if (event) image = words.value.trim() ? null : image; // words that are typed count more than an image from before
    const asked = image ? { image } : { query: words.value, hybrid: hybrid.checked && !hybridField.hidden };
    const body = { library: library.querySelector("select").value, top: Number(top.value), where: where.value || null, ...asked };
    button.disabled = true;
    found.setAttribute("aria-busy", "true");
    try {
      const { hits } = await context.api("/api/search", { body });
      found.replaceChildren(drawHits(hits, image ? "" : words.value));
    } catch (error) {
      found.replaceChildren();
      throw error;
    } finally {
      button.disabled = false;
      found.removeAttribute("aria-busy");
    }
  }

  words.addEventListener("input", () => (image = null));
  arrange();
  const filter = h("details", {}, h("summary", {}, "Filter"), h("label", {}, "Condition in SQL", where), columns);
  const fields = [library, h("label", { class: "long" }, "Look for", words), dropped, hybridField, h("label", {}, "Hits", top), filter];
  const form = h("form", { class: "form", onsubmit: context.doing(find) }, ...fields, button);
  return h("div", {}, form, found);
}

export async function draw(context, { query }) {
  const all = await libraries(context);
  if (!all.length) return nothing("Search");
  return h("section", {}, h("h1", {}, "Search"), searcher(context, all, query.get("library")));
}
