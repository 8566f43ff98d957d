// The map of a library: its vectors in two dimensions, to pan, zoom, point at, encircle and colour.

import { h, number } from "selfsup/dom.js";
import { Chart } from "selfsup/studio/chart.js";
import { drawItem, libraries, libraryChoice, nothing } from "selfsup/studio/search.js";

const CLASSES = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#edc948", "#76b7b2", "#ff9da7", "#86bc5b", "#d37295"];
const OTHERS = "#8d939c";
const RAMP = ["#3b4cc0", "#2a9d8f", "#e9c46a", "#e76f51"]; // from low to high
const MISSING = 255;
const LISTED = 100; // of what is selected
const KEYS = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };

export async function draw(context, { query }) {
  const all = await libraries(context);
  if (!all.length) return nothing("Map");
  const body = h("div", {});
  const library = libraryChoice(all, query.get("library"), context.doing(open));

  async function open() {
    const name = library.querySelector("select").value;
    body.replaceChildren(h("p", { class: "quiet" }, "The map is being laid out …"));
    try {
      const map = await context.api(`/api/map?library=${encodeURIComponent(name)}`);
      body.replaceChildren(...drawMap(context, name, map));
    } catch (error) {
      body.replaceChildren();
      throw error;
    }
  }

  context.doing(open)();
  return h("section", { class: "map" }, h("h1", {}, "Map"), library, body);
}

/** The bytes of a base64 text. */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function drawMap(context, name, map) {
  const canvas = h("canvas", { tabindex: "0", role: "img", "aria-describedby": "map-said map-keys", class: "points" });
  const card = h("div", { class: "card", hidden: true, role: "status" });
  const legend = h("div", { class: "legend" });
  const said = h("p", { class: "quiet", id: "map-said", "aria-live": "polite" });
  const chosen = h("ol", { class: "chosen", "aria-label": "What is selected" });
  const column = h("select", { name: "column", onchange: context.doing(colour) }, h("option", { value: "" }, "none"));
  column.append(...map.columns.map((each) => h("option", { value: each }, each)));
  const items = new Map(); // what was pointed at before
  let pointed = -1;
  const chart = new Chart(canvas, new Float32Array(bytesOf(map.points).buffer), { onHover: point, onSelect: context.doing(select), onView: tell });
  canvas.setAttribute("aria-label", `A map of ${number(map.count)} records by ${map.method}`);
  context.signal.addEventListener("abort", () => chart.close());

  const lasso = h("button", { type: "button", "aria-pressed": "false", onclick: toggle }, "Lasso");
  const button = (label, action) => h("button", { type: "button", onclick: action }, label);
  const tools = h("div", { class: "tools" },
    h("label", {}, "Colour by", column), button("+", () => chart.zoom(1.5)), button("−", () => chart.zoom(1 / 1.5)), button("Whole map", () => chart.whole()),
    lasso, button("Select what is in view", () => chart.select(chart.inView())), button("Select nothing", () => chart.select([])),
  );
  const exports = h("div", { class: "tools", hidden: true }, button("Ids as JSON", context.doing(() => save("json"))), button("Ids as CSV", context.doing(() => save("csv"))));
  const keys = h("p", { class: "quiet", id: "map-keys" }, "Drag or arrow keys move, the wheel or + and − zoom, 0 shows the whole map; Shift and drag, or Lasso, encircles; Escape selects nothing.");

  function toggle() {
    chart.lassoing = !chart.lassoing;
    lasso.setAttribute("aria-pressed", String(chart.lassoing));
  }

  canvas.addEventListener("keydown", (event) => {
    const { key } = event;
    if (KEYS[key]) chart.pan(...KEYS[key]);
    else if (key === "+" || key === "=") chart.zoom(1.25);
    else if (key === "-") chart.zoom(0.8);
    else if (key === "0") chart.whole();
    else if (key === "Escape") chart.select([]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  function tell() {
    const of = map.count < map.records ? `, drawn from ${number(map.records)}` : "";
    const selected = chart.selected.length ? `; ${number(chart.selected.length)} selected` : "";
    said.textContent = `${number(map.count)} records${of}, by ${map.method}; ${number(chart.inView().length)} in view${selected}.`;
  }

  /** Show what a point is; none where it is below 0. */
  function point(row) {
    pointed = row;
    if (row < 0) card.hidden = true;
    else setTimeout(context.doing(() => pointed === row && look(row)), items.has(row) ? 0 : 50);
  }

  async function look(row) {
    if (!items.has(row)) items.set(row, await context.api(`/api/map/item?library=${encodeURIComponent(name)}&row=${row}`));
    if (pointed !== row) return;
    card.replaceChildren(drawItem(items.get(row)));
    card.hidden = false;
  }

  async function idsOf(rows) {
    return (await context.api("/api/map/ids", { body: { library: name, rows } })).ids;
  }

  /** List the first of what is selected; the focus shows each on the map. */
  async function select(rows) {
    tell();
    exports.hidden = !rows.length;
    const listed = rows.slice(0, LISTED);
    const ids = listed.length ? await idsOf(listed) : [];
    if (rows !== chart.selected) return; // something else was selected meanwhile
    const buttons = ids.map((id, place) => h("li", {}, h("button", { type: "button", class: "small", onfocus: () => show(listed[place]), onclick: () => show(listed[place]) }, id)));
    const rest = rows.length > LISTED ? [h("li", { class: "quiet" }, `and ${number(rows.length - LISTED)} more, in the download`)] : [];
    chosen.replaceChildren(...buttons, ...rest);
  }

  function show(row) {
    chart.point(row);
    point(row);
  }

  async function save(kind) {
    const ids = await idsOf([...chart.selected]);
    const lines = ["id", ...ids].map((id) => (/[",\r\n]/.test(id) ? `"${id.replaceAll('"', '""')}"` : id));
    const content = kind === "json" ? JSON.stringify({ library: name, ids }, null, 1) : `${lines.join("\n")}\n`;
    const href = URL.createObjectURL(new Blob([content], { type: kind === "json" ? "application/json" : "text/csv" }));
    h("a", { href, download: `selected.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10_000);
  }

  async function colour() {
    const chosenColumn = column.value;
    if (!chosenColumn) {
      chart.colour(null, []);
      return legend.replaceChildren();
    }
    const path = `/api/map/column?library=${encodeURIComponent(name)}&column=${encodeURIComponent(chosenColumn)}`;
    const values = await context.api(path);
    if (chosenColumn !== column.value) return undefined;
    const numbers = values.kind === "number";
    chart.colour(bytesOf(values.codes), Array.from({ length: 256 }, (_, code) => (numbers ? ramp(code / (MISSING - 1)) : CLASSES[code] ?? OTHERS)).with(MISSING, OTHERS));
    return legend.replaceChildren(...(numbers ? scale(values) : classes(values)));
  }

  return [tools, legend, h("div", { class: "stage" }, canvas, card), said, exports, chosen, keys];
}

/** What the colours of classes stand for, with how many have each. */
function classes({ legend, others, missing }) {
  const rows = legend.map(([label, many], place) => entry(CLASSES[place], label || "(empty)", many));
  if (others[0]) rows.push(entry(OTHERS, `${number(others[0])} other values`, others[1]));
  return missing ? [...rows, entry(OTHERS, "no value", missing)] : rows;
}

function entry(colour, label, many) {
  const swatch = h("i", { class: "swatch", style: { background: colour }, "aria-hidden": "true" });
  return h("span", { class: "entry" }, swatch, `${label} `, h("small", {}, number(many)));
}

function scale({ low, high, missing }) {
  const bar = h("i", { class: "ramp", style: { background: `linear-gradient(to right, ${RAMP.join(", ")})` }, "aria-hidden": "true" });
  return [h("span", { class: "entry" }, `${number(low)} `, bar, ` ${number(high)}`), ...(missing ? [entry(OTHERS, "no value", missing)] : [])];
}

/** The colour of a share from 0 to 1. */
function ramp(share) {
  const place = Math.min(share, 0.9999) * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(place)], RAMP[Math.floor(place) + 1]];
  const part = (from) => Math.round(parseInt(low.slice(from, from + 2), 16) * (1 - (place % 1)) + parseInt(high.slice(from, from + 2), 16) * (place % 1));
  return `#${[1, 3, 5].map((from) => part(from).toString(16).padStart(2, "0")).join("")}`;
}
