// All runs below the folder, as they are now.

import { sparkline } from "selfsup/charts.js";
import { amount, duration, fill, h, number, printable } from "selfsup/dom.js";
import { ago, place, state } from "selfsup/studio/words.js";

// A column: what it is called, what it is sorted by (the larger first), and what it shows.
const COLUMNS = [
  { name: "run", by: (row) => row.name },
  { name: "objective", by: (row) => row.objective ?? "", show: (row) => row.objective ?? "–" },
  { name: "state", by: (row) => row.state, show: (row) => state(row) },
  { name: "loss", by: (row) => row.loss ?? row.training_loss, show: (row) => number(row.loss ?? row.training_loss) },
  { name: "chance", by: (row) => row.chance, show: (row) => number(row.chance) },
  { name: "curve", by: null, show: (row) => (row.points.length > 1 ? sparkline(row.points) : "") },
  { name: "steps", by: (row) => row.step, show: (row) => number(row.step) },
  { name: "parameters", by: (row) => row.parameters, show: (row) => (row.parameters ? amount(row.parameters) : "–") },
  { name: "time", by: (row) => row.seconds, show: (row) => duration(row.seconds) },
  { name: "changed", by: (row) => row.changed, show: (row) => ago(row.changed) },
];

const NUMBERS = ["loss", "chance", "steps", "parameters"]; // set to the right

export async function draw(context) {
  const { runs, root, left_out: leftOut } = await context.api("/api/runs");
  const rows = new Map(runs.map((row) => [row.name, row]));
  const drawn = new Map(); // by name: the row that was drawn, its cells and its element
  const chosen = new Set();
  const order = { column: COLUMNS.find(({ name }) => name === "changed"), down: true };

  const compare = h("a", { class: "button" }, "Compare");
  const body = h("tbody");
  const heads = COLUMNS.map((column) => headOf(column, () => sortBy(column)));
  const empty = h("p", {}, `There is no run below ${root} yet. `, h("a", { href: "#/start" }, "Start one"), ".");
  const table = h("table", { class: "runs" }, h("thead", {}, h("tr", {}, h("th", {}, ""), ...heads)), body);

  function sortBy(column) {
    order.down = order.column === column ? !order.down : true;
    order.column = column;
    arrange();
  }

  function choose(name, wanted) {
    wanted ? chosen.add(name) : chosen.delete(name);
    const query = [...chosen].map((run) => `run=${encodeURIComponent(run)}`).join("&");
    chosen.size < 2 ? compare.removeAttribute("href") : compare.setAttribute("href", `#/compare?${query}`);
  }

  function rowOf(row) {
    const known = drawn.get(row.name) ?? made(row);
    if (known.row !== row) {
      known.row = row;
      known.element.title = printable(row.problem || row.data || "");
      COLUMNS.forEach(({ show }, number) => number > 0 && fill(known.cells[number], show(row)));
    }
    return known.element;
  }

  /** A row whose box and link stay as its figures change, so that they keep the focus. */
  function made({ name }) {
    const onchange = (event) => choose(name, event.target.checked);
    const box = h("input", { type: "checkbox", "aria-label": `Compare ${name}`, onchange });
    const cells = COLUMNS.map((column) => h("td", { class: NUMBERS.includes(column.name) && "figure" }));
    fill(cells[0], h("a", { href: place(name) }, name));
    const known = { row: null, cells, element: h("tr", {}, h("td", {}, box), cells) };
    drawn.set(name, known);
    return known;
  }

  function arrange() {
    const value = order.column.by;
    const sorted = [...rows.values()].sort((a, b) => compared(value(a), value(b)) * (order.down ? -1 : 1));
    const elements = sorted.map(rowOf);
    if (elements.length !== body.children.length || elements.some((one, at) => one !== body.children[at])) {
      const focused = document.activeElement;
      fill(body, elements);
      if (body.contains(focused)) focused.focus({ preventScroll: true });
    }
    COLUMNS.forEach((column, number) => {
      const sign = column !== order.column ? "none" : order.down ? "descending" : "ascending";
      heads[number].setAttribute("aria-sort", sign);
    });
    empty.hidden = rows.size > 0;
    table.hidden = rows.size === 0;
  }

  choose("", false);
  arrange();
  context.events("/api/runs/events", (message) => {
    message.rows.forEach((row) => rows.set(row.name, row));
    message.gone.forEach((name) => [rows, drawn, chosen].forEach((known) => known.delete(name)));
    arrange();
  });
  const note = leftOut ? h("p", { class: "note" }, leftOut) : "";
  const title = h("div", { class: "head" }, h("h1", {}, "Runs"), h("span", { class: "note" }, root), compare);
  return h("section", {}, title, empty, h("div", { class: "wide" }, table), note);
}

function headOf(column, onclick) {
  const named = column.by === null ? column.name : h("button", { type: "button", onclick }, column.name);
  return h("th", { scope: "col", class: NUMBERS.includes(column.name) && "figure" }, named);
}

/** Less than 0 where a comes first; what is not known comes before all else. */
function compared(a, b) {
  if (typeof a === "string" && typeof b === "string") return a.localeCompare(b, "en", { numeric: true });
  return (a ?? -Infinity) - (b ?? -Infinity) || 0;
}
