// Elements. Whatever comes from data becomes a text node or an attribute here, never markup.

const SVG = "http://www.w3.org/2000/svg";

// What a reader would not see, or would see in another order than it is: controls, directions, invisible marks.
const CONTROLS = new RegExp(
  "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]"
  + "|[\\u{e0000}-\\u{e0fff}]|\\p{Surrogate}", "gu");

/** A text whose controls are escapes, such as `\x1b`; its lines and tabs stay. */
export function printable(text) {
  return String(text).replace(CONTROLS, found => {
    const code = found.codePointAt(0).toString(16);
    if (code.length > 4) return "\\U" + code.padStart(8, "0");
    return code.length <= 2 ? "\\x" + code.padStart(2, "0") : "\\u" + code.padStart(4, "0");
  });
}

/**
 * An element of HTML.
 * @param {string} tag
 * @param {Object} [properties] attributes; `class` may be a list with gaps; `style` is an object of CSS properties,
 *   `dataset` one of data attributes; `onclick` and its like are listeners; null, undefined and false are left out.
 * @param {...(Node|string|number|Array|null|undefined|false)} children
 */
export function h(tag, properties, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** An element of SVG, likewise. */
export function svg(tag, properties, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") setAll(value, (key, each) => element.style.setProperty(key, each));
    else if (name === "dataset") setAll(value, (key, each) => { element.dataset[key] = each; });
    else if (name === "class") element.setAttribute("class", [value].flat().filter(Boolean).join(" "));
    else element.setAttribute(name, value === true ? "" : printable(value));
  }
  element.append(...nodes(children));
  return element;
}

function setAll(values, set) {
  for (const [key, value] of Object.entries(values)) {
    if (value !== null && value !== undefined) set(key, value);
  }
}

function nodes(children) {
  return children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false)
    .map(child => child instanceof Node ? child : document.createTextNode(printable(child)));
}

/** Put these children in place of those that an element has. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** Buttons of which one is pressed, and what it stands for is shown beneath: [[label, () => Element], …]. */
export function tabs(choices, label) {
  const shown = h("div", { class: "tabbed" });
  const buttons = choices.map(([name, draw]) => h("button", { type: "button", onclick: () => choose(name, draw) }, name));
  function choose(name, draw) {
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", choices[place][0] === name));
    fill(shown, draw());
  }
  choose(...choices[0]);
  return h("div", {}, h("div", { class: "switch", role: "group", "aria-label": label }, buttons), shown);
}

/** A table; cells are texts or nodes, and those behind the first column are numbers, set to the right. */
export function table(names, rows, more) {
  const head = h("thead", {}, h("tr", {}, names.map(name => h("th", {}, name))));
  const body = h("tbody", {}, rows.map(row => h("tr", {}, row.map(cell => h("td", {}, cell)))));
  return h("div", { class: "wide" }, h("table", more, head, body));
}

/** 1234567.8 → "1,234,567.8"; small ones keep what counts of them; null is a dash. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number" || !Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e9)) return value.toExponential(Math.min(2, digits));
  return value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, Math.trunc(Math.abs(value)).toString().length) });
}

/** 1234567 → "1.23 M", with a unit behind. */
export function amount(value, unit = "") {
  const scale = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([factor]) => value >= factor);
  const [factor, prefix] = scale ?? [1, ""];
  return `${Number((value / factor).toPrecision(3))} ${prefix}${unit}`.trimEnd();
}

/** 42 s, 3 min 20 s, 2 h 05 min. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const whole = Math.round(seconds), two = value => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
}
