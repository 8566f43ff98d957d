// Try a model: what it can be asked depends on what it is.

import { drawBlock, drawSections } from "selfsup/blocks.js";
import { h, table, tabs } from "selfsup/dom.js";
import { dropZone } from "selfsup/studio/dropping.js";
import { libraries, searcher } from "selfsup/studio/search.js";

const WAYS = {
  write: { title: "Write", draw: drawWrite },
  fill: { title: "Fill", draw: drawFill },
  similarity: { title: "Similarity", draw: drawSimilarity },
  labels: { title: "Labels", draw: drawLabels },
  see: { title: "What it sees", draw: drawSee },
  nearest: { title: "Nearest", draw: drawNearest },
};

export async function draw(context, { rest }) {
  const { runs } = await context.api("/api/runs");
  const names = runs.map(({ name }) => name);
  if (rest && !names.includes(rest)) names.push(rest);
  const name = rest || names[0];
  const options = names.map((each) => h("option", { value: each, selected: each === name }, each));
  const choice = h("select", { name: "model", onchange: () => (location.hash = `#/try/${choice.value}`) }, ...options);
  const body = h("div", {});
  const page = h("section", { class: "try" }, h("h1", {}, "Try"), h("label", {}, "Run", choice), body);
  if (!name) body.append(h("p", { class: "quiet" }, "There is no run yet; start one, and try it when it has written a model."));
  else await context.doing(async () => body.replaceChildren(...drawModel(context, await context.api(`/api/try?model=${encodeURIComponent(name)}`))))();
  return page;
}

/** What can be asked of a model; where that is more than one thing, beside each other. */
function drawModel(context, model) {
  const choices = model.ways.map((way) => [WAYS[way].title, () => WAYS[way].draw(context, model)]);
  return [h("p", { class: "quiet" }, `${model.name} holds ${model.kind}.`), tabs(choices, "What to try")];
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const visible = (token) => token.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "(nothing)";

/** Terms with bars as long as their share; `shown` says it in words. */
function drawShares(pairs, shown = percent) {
  const rows = pairs.map(([name, share]) => [name, shown(share), h("i", { class: "bar", style: { "--share": String(Math.max(0, share)) } })]);
  return table(["", "", ""], rows, { class: "shares" });
}

/** A form whose answer stands beneath it; `ask` gives what is drawn. */
function asking(context, fields, label, ask) {
  const button = h("button", { type: "submit" }, label);
  const answer = h("div", { class: "answer", "aria-live": "polite" });

  async function send(event) {
    event?.preventDefault();
    button.disabled = true;
    answer.replaceChildren(h("p", { class: "quiet" }, "The model is at work …"));
    try {
      answer.replaceChildren(await ask());
    } catch (error) {
      answer.replaceChildren();
      throw error;
    } finally {
      button.disabled = false;
    }
  }

  const form = h("form", { class: "form", onsubmit: context.doing(send) }, ...fields, button);
  return { element: h("div", {}, form, answer), send: context.doing(send) };
}

// -- write ---------------------------------------------------------------------------------------------------

function drawWrite(context, { name }) {
  const number = (key, title, given) => h("label", {}, title, h("input", { name: key, type: "number", ...given }));
  const prompt = h("textarea", { name: "prompt", rows: 3, maxlength: 4000, placeholder: "How the text begins; it may be empty" });
  const settings = [
    number("temperature", "Temperature", { min: 0, max: 100, step: "any", value: 1, required: true }),
    number("top_k", "Top k", { min: 1, placeholder: "all" }),
    number("top_p", "Top p", { min: 0.0001, max: 1, step: "any", placeholder: "all" }),
    number("seed", "Seed", { min: 0, value: 0, required: true }),
    number("tokens", "Tokens", { min: 1, max: 2000, value: 200, required: true }),
  ];
  const button = h("button", { type: "submit" }, "Write");
  const stop = h("button", { type: "button", hidden: true, dataset: { stop: "" }, onclick: () => finish("Stopped.") }, "Stop");
  const text = h("p", { class: "written", role: "log", "aria-label": "The text" });
  const card = h("div", { class: "card", role: "status", hidden: true });
  const state = h("p", { class: "quiet", role: "status" });
  const form = h("form", { class: "form", onsubmit: context.doing(write) }, h("label", { class: "long" }, "Prompt", prompt), ...settings, button, stop);
  let close = () => {};

  function finish(said) {
    close();
    stop.hidden = true;
    button.disabled = false;
    state.textContent = said;
  }

  function write(event) {
    event.preventDefault();
    const given = [...new FormData(form)].filter(([, value]) => value !== "");
    const written = { text: "", spans: [], from: performance.now() };
    card.hidden = true;
    button.disabled = true;
    stop.hidden = false;
    state.textContent = "Writing …";
    text.replaceChildren(h("span", { class: "prompt" }, prompt.value));
    close = context.events(`/api/try/write?${new URLSearchParams([["model", name], ...given])}`, (piece) => {
      if (piece.error) {
        finish("");
        throw new Error(piece.error);
      }
      take(written, piece);
      if (piece.ending) {
        const seconds = (performance.now() - written.from) / 1000;
        finish(`${written.spans.length} tokens in ${seconds.toFixed(1)} s; ${piece.ending === "stop" ? "the model ended the text" : "as many as were asked for"}.`);
      }
    });
  }

  /** A span for each token, as far as its text is known: to where the next one begins. */
  function take(written, piece) {
    written.text += piece.text;
    const first = Math.max(0, written.spans.length - 1);
    written.spans.push(...piece.tokens.map((token) => ({ token, element: text.appendChild(spanOf(token)) })));
    const letters = [...written.text]; // places count whole characters
    for (let place = first; place < written.spans.length; place += 1) {
      const end = written.spans[place + 1]?.token.place ?? letters.length;
      written.spans[place].element.textContent = letters.slice(written.spans[place].token.place, end).join("");
    }
  }

  function spanOf(token) {
    const look = () => show(token);
    const style = { "--surprise": String(1 - token.probability) };
    return h("span", { class: "token", tabindex: "0", style, onmouseenter: look, onfocus: look, onclick: look });
  }

  function show(token) {
    const others = token.others.map(([other, share]) => [visible(other), share]);
    card.replaceChildren(h("p", {}, h("strong", {}, visible(token.token)), ` had ${percent(token.probability)}; the likeliest were`), drawShares(others));
    card.hidden = false;
  }

  return h("div", { class: "writing" }, form, state, h("div", { class: "beside" }, text, card));
}

// -- fill, similarity, labels --------------------------------------------------------------------------------

function drawFill(context, { name, mask }) {
  const text = h("textarea", { name: "text", rows: 3, maxlength: 20000, required: true, placeholder: `A text with ${mask} where a word is hidden` });
  const put = h("button", { type: "button", onclick: () => (text.setRangeText(mask, text.selectionStart, text.selectionEnd, "end"), text.focus()) }, `Put ${mask}`);
  const { element } = asking(context, [h("label", { class: "long" }, "Text", text), put], "Fill", async () => {
    const { places } = await context.api("/api/try/fill", { body: { model: name, text: text.value } });
    const tables = places.map((guesses, number) =>
      h("div", {}, h("h3", {}, `Place ${number + 1}`), drawShares(guesses.map(({ token, probability }) => [token, probability]))),
    );
    return h("div", { class: "places" }, ...tables);
  });
  return element;
}

const lines = (field) => field.value.split("\n").map((line) => line.trim()).filter(Boolean);

function drawSimilarity(context, { name }) {
  const texts = h("textarea", { name: "texts", rows: 6, required: true, placeholder: "A sentence on each line, two or more" });
  const { element } = asking(context, [h("label", { class: "long" }, "Sentences", texts)], "Compare", async () => {
    const block = await context.api("/api/try/similarity", { body: { model: name, texts: lines(texts) } });
    return h("div", {}, drawBlock(block), h("ol", {}, block.said[0].map((text) => h("li", {}, text))));
  });
  return element;
}

function drawLabels(context, { name, images }) {
  let image = null;
  const text = h("textarea", { name: "text", rows: 2, maxlength: 20000, placeholder: "A text to be described" });
  const labels = h("textarea", { name: "labels", rows: 4, required: true, placeholder: "A label on each line" });
  const template = h("input", { name: "template", value: "{}", maxlength: 1000 });
  const dropped = dropZone(context, { label: "Drop an image here, or choose one", onImages: ([url]) => (image = url) && labels.value && asked.send() });
  text.addEventListener("input", () => (image = null));
  const fields = [h("label", { class: "long" }, "Labels", labels), h("label", {}, "Template", template), h("label", { class: "long" }, "Text", text)];
  const asked = asking(context, images ? [...fields, dropped] : fields, "Describe", async () => {
    const item = image ? { image } : { text: text.value };
    const { measure, scores } = await context.api("/api/try/labels", { body: { model: name, labels: lines(labels), template: template.value, ...item } });
    const shown = measure === "probability" ? percent : (value) => value.toFixed(3);
    return h("div", {}, h("p", { class: "quiet" }, measure), drawShares(scores, shown));
  });
  return asked.element;
}

// -- images --------------------------------------------------------------------------------------------------

function drawSee(context, { name }) {
  let image = null;
  const size = h("input", { name: "size", type: "number", min: 16, max: 1024, placeholder: "twice the training's" });
  const dropped = dropZone(context, { label: "Drop an image here, or choose one", onImages: ([url]) => (image = url) && asked.send() });
  const asked = asking(context, [dropped, h("label", {}, "Short side in pixels", size)], "Look", async () => {
    if (!image) throw new Error("Drop an image first.");
    const body = { model: name, image, ...(size.value ? { size: Number(size.value) } : {}) };
    const { facts, sections } = await context.api("/api/try/see", { body });
    return h("div", {}, h("p", { class: "quiet" }, facts.join(", ")), drawSections(sections, "h3"));
  });
  return asked.element;
}

/** In the libraries that this model made. */
function drawNearest(context, { name, fingerprint }) {
  const body = h("div", {});
  context.doing(async () => {
    const own = (await libraries(context)).filter((library) => library.fingerprint === fingerprint);
    const none = `No library in the folders was made by this model. Make one: selfsup index ${name} --data … --out NAME.lance`;
    body.replaceChildren(own.length ? searcher(context, own) : h("p", { class: "quiet" }, none));
  })();
  return body;
}
