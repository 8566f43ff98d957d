// The page of `selfsup serve`: what its routes take, as /openapi.json says, and a place to ask them.
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
  const { info, paths, components } = await (await fetch("/openapi.json")).json();
  const meant = schema => schema?.$ref ? components.schemas[schema.$ref.split("/").at(-1)] : schema;
  return h("div", {}, h("h1", {}, info.title), h("p", {}, "For programs: ", h("a", { href: "/openapi.json" }, "/openapi.json")),
    Object.entries(paths).flatMap(([path, operations]) => Object.entries(operations).map(([method, operation]) => {
      const asked = meant(operation.requestBody?.content["application/json"].schema);
      return h("section", {}, h("h2", {}, `${method.toUpperCase()} ${path}`), h("p", {}, operation.description),
        asked && fields(asked, meant), !path.includes("{") && trial(path, method, EXAMPLES[path]));
    })));
}

function fields({ properties, required = [] }, meant) {
  const rows = Object.entries(properties).map(([name, field]) => [h("code", {}, name), kind(field, meant),
    required.includes(name) ? "has to be given" : JSON.stringify(field.default ?? null), field.description]);
  return table(["field", "type", "without it", "what it is"], rows, { class: "words" });
}

function kind(field, meant) {
  const schema = meant(field);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(each => kind(each, meant)))].join(" or ");
  return schema.enum?.join(" or ") ?? (schema.type === "array" ? `list of ${kind(schema.items, meant)}` : schema.type);
}

/** A request that can be written and sent, and what comes of it, as it comes. */
function trial(path, method, example) {
  const body = example && h("textarea", { rows: 5, style: { width: "100%" }, "aria-label": path }, JSON.stringify(example, null, 2));
  const shown = h("pre", { "aria-live": "polite" });
  async function send() {
    const answer = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: body?.value });
    fill(shown, `${answer.status} ${answer.statusText}\n`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) shown.append(part.value);
  }
  return h("details", {}, h("summary", {}, "Try it"), body, h("p", {}, h("button", { onclick: send }, "Send")), shown);
}
