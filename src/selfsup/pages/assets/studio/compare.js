// Runs side by side: the report of several.

import { h } from "selfsup/dom.js";
import { drawReport } from "selfsup/report.js";

export async function draw(context, { query }) {
  const names = query.getAll("run");
  const { runs } = await context.api("/api/runs");
  const boxes = runs.map(({ name, objective }) => {
    const box = h("input", { type: "checkbox", name: "run", value: name, checked: names.includes(name) });
    return h("label", {}, box, ` ${name} `, h("span", { class: "note" }, objective ?? ""));
  });
  const form = h("form", { onsubmit: choose }, h("fieldset", { class: "choices" }, h("legend", {}, "Runs"), ...boxes));
  form.append(h("button", { type: "submit" }, "Compare"));
  const section = h("section", {}, h("h1", {}, "Compare"));
  if (names.length < 2) section.append(h("p", {}, "Choose two runs or more."), form);
  else {
    const asked = names.map((name) => `run=${encodeURIComponent(name)}`).join("&");
    section.append(h("details", {}, h("summary", {}, "Choose other runs"), form));
    section.append(drawReport(await context.api(`/api/run/report?${asked}`)));
  }
  return section;
}

function choose(event) {
  event.preventDefault();
  const names = new FormData(event.target).getAll("run");
  location.hash = `#/compare?${names.map((name) => `run=${encodeURIComponent(name)}`).join("&")}`;
}
