// A training from the page: a form made of the configuration's schema, the plan, and the trainings that were started.

import { h } from "selfsup/dom.js";
import { place } from "selfsup/studio/words.js";

// What everyone sets stands open; all else lies folded by section.
const FIRST = ["data.source", "data.column", "model.preset", "model.init", "train.budget", "train.steps", "distill.teacher"];
const PLACES = /(source|init|teacher|evaluate\.data|files)$/; // settings that name what lies in the folders
const SECONDS = 1.5; // between two looks at the trainings

export async function draw(context) {
  const { objectives } = await context.api("/api/objectives");
  const names = [...objectives.map(({ name }) => name), "distill"];
  const kind = h("select", { onchange: context.doing(ask) }, ...names.map((name) => h("option", { value: name }, name)));
  const runName = h("input", { name: "name", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,79}", placeholder: "my-run" });
  const idea = h("p", { class: "note" });
  const fields = h("div", { class: "fields" });
  const planned = h("div", { "aria-live": "polite" });
  const plan = h("button", { type: "submit" }, "Show the plan");
  const begin = h("button", { type: "button", hidden: true, onclick: context.doing(start) }, "Start this training");
  const trainings = h("div", { class: "trainings" });
  const form = h("form", { class: "form", onsubmit: context.doing(look), oninput: forget });
  form.append(h("label", {}, "Objective", kind), h("label", {}, "Name of the run", runName), fields, plan);
  let inputs = [];

  async function ask() {
    const { schema, names: keys, idea: said, places } = await context.api(`/api/start/form?objective=${kind.value}`);
    idea.textContent = said;
    inputs = keys.map((key) => ({ key, ...fieldOf(key, settingOf(schema, key)) }));
    const list = h("datalist", { id: "places" }, ...places.map((value) => h("option", { value })));
    const first = inputs.filter(({ key }) => FIRST.includes(key)).map(({ label }) => label);
    const groups = new Map();
    inputs.filter(({ key }) => !FIRST.includes(key)).forEach(({ key, label }) => {
      const section = key.split(".")[0];
      groups.set(section, [...(groups.get(section) ?? []), label]);
    });
    const folded = [...groups].map(([section, labels]) => h("details", {}, h("summary", {}, section), h("div", { class: "fields" }, ...labels)));
    fields.replaceChildren(list, ...first, ...folded);
    forget();
  }

  function wanted() {
    const values = inputs.map(({ key, read }) => [key, read()]).filter(([, value]) => value !== null);
    return { objective: kind.value, values: Object.fromEntries(values) };
  }

  function forget() {
    begin.hidden = true;
    planned.replaceChildren();
  }

  async function look(event) {
    event.preventDefault();
    plan.disabled = true;
    planned.replaceChildren(h("p", { class: "note" }, "A few steps are being timed …"));
    try {
      const { rows } = await context.api("/api/start/plan", { body: wanted() });
      planned.replaceChildren(h("h2", {}, "The plan"), h("dl", {}, ...Object.entries(rows).flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)])));
      begin.hidden = false;
      begin.focus();
    } catch (error) {
      forget();
      throw error;
    } finally {
      plan.disabled = false;
    }
  }

  async function start() {
    if (!runName.reportValidity()) return;
    await context.api("/api/start/train", { body: { ...wanted(), name: runName.value } });
    forget();
    await follow();
  }

  async function follow() {
    const answer = await context.api("/api/start/trainings");
    trainings.replaceChildren(...answer.trainings.map((training) => rowOf(context, training)));
  }

  await ask();
  await follow();
  context.every(SECONDS, follow);
  return h("section", {}, h("h1", {}, "Start a training"), idea, form, planned, begin, trainings);
}

function rowOf(context, { name, code, said, made }) {
  const stop = h("button", { type: "button", onclick: context.doing(() => context.api("/api/start/stop", { body: { name } })) }, "Stop it");
  const state = code === null ? "running" : code === 0 ? "finished" : code === 130 ? "stopped" : `failed (${code})`;
  const head = h("div", { class: "head" }, made ? h("a", { href: place(name) }, name) : h("b", {}, name), h("span", { class: `state ${state}` }, state), code === null ? stop : "");
  return h("article", {}, head, h("pre", {}, said.trim()));
}

/** What the schema says of a setting: its own words, and those of the kind of value that it has. */
function settingOf(schema, key) {
  let found = schema;
  for (const part of key.split(".")) found = resolved(schema, resolved(schema, found).properties[part]);
  const kind = (found.anyOf ?? [found]).map((one) => resolved(schema, one)).find(({ type }) => type !== "null");
  return { ...kind, ...found };
}

function resolved(schema, part) {
  return part.$ref ? { ...schema.$defs[part.$ref.split("/").at(-1)], ...part, $ref: undefined } : part;
}

/** A labelled input for a setting, and what reads it: null where it is left as it is. */
function fieldOf(key, { type, enum: choices, description, default: usual }) {
  const options = choices ?? (type === "boolean" ? ["true", "false"] : null);
  const shown = usual == null || usual.length === 0 ? "chosen for you" : String(usual);
  const input = options
    ? h("select", { name: key }, h("option", { value: "" }, shown), ...options.map((value) => h("option", { value }, value)))
    : h("input", { name: key, placeholder: shown, autocomplete: "off", ...(PLACES.test(key) && { list: "places" }) });
  const label = h("label", {}, key, description ? h("span", { class: "note" }, ` ${description}`) : "", input);
  const many = (text) => text.split(",").map((part) => part.trim());
  return { label, read: () => (input.value === "" ? null : type === "array" ? many(input.value) : input.value) };
}
