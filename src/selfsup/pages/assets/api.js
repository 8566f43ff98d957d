// The page of `selfsup serve`: what its routes take and answer, as /openapi.json says, and a place to ask them.

import { fill, h, table } from "selfsup/dom.js";

const EXAMPLES = {
  "/v1/completions": { prompt: "Once upon a time", max_tokens: 32 },
  "/v1/embeddings": { input: ["a text", "another one"] },
  "/v1/fill": { text: "The [MASK] sat by the fire.", top: 3 },
  "/v1/zero-shot": { images: ["data:image/png;base64,…"], labels: ["a cat", "a dog"] },
  "/v1/search": { query: "words to look for", top: 3 },
};

/** @returns {Promise<Element>} */
export async function draw() {
  const answer = await fetch("/openapi.json");
  const described = await answer.json();
  if (!answer.ok) return h("p", { class: "failure", role: "alert" }, described.error.message);
  const routes = Object.entries(described.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => drawRoute(described, path, method, operation)));
  return h("div", {},
    h("h1", {}, described.info.title),
    h("p", {}, "Clients of OpenAI's reach it at ", h("code", {}, `${location.origin}/v1`), "; programs read ",
      h("a", { href: "/openapi.json" }, "/openapi.json"), "."),
    routes);
}

function drawRoute(described, path, method, operation) {
  const asked = resolved(described, operation.requestBody?.content["application/json"].schema);
  return h("section", {},
    h("h2", {}, `${method.toUpperCase()} ${path}`),
    h("p", {}, operation.description ?? operation.summary),
    asked && fields(described, asked),
    path.includes("{") ? null : trial(path, method, asked && (EXAMPLES[path] ?? {})));
}

function fields(described, schema) {
  const rows = Object.entries(schema.properties).map(([name, field]) => [
    h("code", {}, name), kind(described, field), (schema.required ?? []).includes(name) ? "has to be given" :
      JSON.stringify(field.default ?? null), field.description ?? ""]);
  return table(["field", "type", "without it", "what it is"], rows, { class: "words" });
}

function kind(described, field) {
  const schema = resolved(described, field);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(each => kind(described, each)))].join(" or ");
  if (schema.enum) return schema.enum.join(" or ");
  if (schema.const !== undefined) return String(schema.const);
  return schema.type === "array" ? `list of ${kind(described, schema.items)}` : schema.type;
}

function resolved(described, schema) {
  return schema?.$ref ? described.components.schemas[schema.$ref.split("/").at(-1)] : schema;
}

/** A request that can be written and sent, and what came of it, as it comes. */
function trial(path, method, example) {
  const body = example && h("textarea", { rows: 5, spellcheck: "false", style: { width: "100%" }, "aria-label": `body for ${path}` },
    JSON.stringify(example, null, 2));
  const shown = h("pre", { "aria-live": "polite" });
  async function send() {
    fill(shown, "…");
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(path, example ? { method: method.toUpperCase(), headers, body: body.value } : {});
    fill(shown, `${answer.status} ${answer.statusText}\n`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) shown.append(part.value);
  }
  return h("details", {}, h("summary", {}, "Try it"), body,
    h("p", {}, h("button", { type: "button", onclick: send }, "Send")), shown);
}
