// What an objective makes of a sentence or of images: what is hidden, and with a run what it guesses.

import { drawDocument } from "selfsup/blocks.js";
import { h } from "selfsup/dom.js";
import { dropZone } from "selfsup/studio/dropping.js";

export async function draw(context, { query }) {
  const [{ objectives }, { runs }] = await Promise.all([context.api("/api/objectives"), context.api("/api/runs")]);
  let images = [];
  const kind = h("select", { name: "objective", onchange: arrange }, ...objectives.map(({ name }) => h("option", { value: name }, name)));
  const run = h("select", { name: "run", onchange: follow }, h("option", { value: "" }, "none, as a training begins"));
  run.append(...runs.map(({ name }) => h("option", { value: name, selected: name === query.get("run") }, name)));
  const text = h("textarea", { name: "text", rows: 3, maxlength: 20000, placeholder: "A sentence; without one, what a training begins with" });
  const seed = h("input", { name: "seed", type: "number", min: 0, value: 0 });
  const dropped = dropZone(context, { label: "Drop images here, or choose them", many: true, onImages: (urls) => (images = urls) });
  const idea = h("p", { class: "note" });
  const textField = h("label", {}, "Text", text);
  const answer = h("div", { class: "answer", "aria-live": "polite" });
  const button = h("button", { type: "submit" }, "Show");
  const fields = [h("label", {}, "Objective", kind), h("label", {}, "Run", run), h("label", {}, "Seed", seed), textField, dropped];
  const form = h("form", { class: "form", onsubmit: context.doing(show) }, ...fields, button);

  function chosen() {
    return objectives.find(({ name }) => name === kind.value);
  }

  function arrange() {
    textField.hidden = chosen().images;
    dropped.hidden = !chosen().images;
    idea.textContent = chosen().idea;
  }

  function follow() {
    const row = runs.find(({ name }) => name === run.value);
    if (objectives.some(({ name }) => name === row?.objective)) kind.value = row.objective;
    arrange();
  }

  async function show(event) {
    event.preventDefault();
    button.disabled = true;
    answer.replaceChildren(h("p", { class: "note" }, "Looking …"));
    const body = { objective: kind.value, seed: Number(seed.value) };
    if (run.value) body.run = run.value;
    if (chosen().images && images.length) body.images = images;
    if (!chosen().images && text.value) body.text = text.value;
    try {
      answer.replaceChildren(drawDocument(await context.api("/api/inspect", { body })));
    } catch (error) {
      answer.replaceChildren();
      throw error;
    } finally {
      button.disabled = false;
    }
  }

  follow();
  return h("section", {}, h("h1", {}, "Inspect"), idea, form, answer);
}
