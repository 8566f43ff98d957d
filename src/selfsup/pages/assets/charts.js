// Drawings of numbers: curves, small curves without axes, and matrices.

import { fill, h, number, svg } from "selfsup/dom.js";

const MARGIN = { top: 8, right: 10, bottom: 24, left: 54 };
const COLOURS = 6; // --c0 to --c5 in style.css

/** The variable of a colour by its number. */
export const colour = place => `var(--c${place % COLOURS})`;

/**
 * Curves over one axis. Pointing, or the arrow keys, read the values; names in the legend hide and show their curve.
 * @param {Object} options
 * @param {string} options.title
 * @param {string} options.x what is counted, such as "step"
 * @param {{name: string, points: number[][], dashed?: boolean, faint?: boolean, colour?: number}[]} options.series
 *   points are [x, y], from left to right; a `y` of null is a gap
 * @param {(value: number) => string} [options.formatX]
 * @param {(value: number) => string} [options.formatY]
 * @param {number} [options.height] in pixels
 * @param {boolean} [options.zero] whether the axis begins at 0
 * @returns {HTMLElement} with `redraw(series)`, which takes new points in place of those it shows
 */
export function lineChart(options) {
  return new LineChart(options).element;
}

class LineChart {
  constructor({ title, x, y = "", series, formatX = number, formatY = number, height = 210, zero = false }) {
    Object.assign(this, { x, series, formatX, formatY, height, zero, hidden: new Set(), width: 0, at: null });
    this.drawing = svg("svg", {
      class: "plot", tabindex: 0, role: "img", "aria-label": `${title}${y && `, ${y}`} over ${x}; arrow keys read it`, height,
      onpointermove: event => this.read(this.valueAt(event)), onpointerleave: () => this.read(null),
      onkeydown: event => this.walk(event), // what was read stays: a legend that moved would lose the click that it gets
    });
    this.legend = h("div", { class: "legend", "aria-live": "polite" });
    const caption = h("figcaption", {}, h("b", {}, title), y && ` ${y}`);
    this.element = h("figure", { class: "chart" }, caption, this.drawing, this.legend);
    this.element.redraw = replaced => { this.series = replaced; this.draw(); };
    new ResizeObserver(([entry]) => {
      const width = Math.round(entry.contentRect.width);
      if (width && width !== this.width) { this.width = width; this.draw(); }
    }).observe(this.element);
  }

  get shown() {
    return this.series.filter(each => !this.hidden.has(each.name));
  }

  draw() {
    if (!this.width) return;
    const points = this.shown.flatMap(each => each.points).filter(([, y]) => Number.isFinite(y));
    const right = this.width - MARGIN.right, bottom = this.height - MARGIN.bottom;
    this.across = scale(extent(points.map(([x]) => x)), MARGIN.left, right);
    const [low, high] = extent(points.map(([, y]) => y));
    const room = (high - low || Math.abs(high) || 1) * 0.05;
    this.up = scale([this.zero ? Math.min(0, low) : low - room, high + room], bottom, MARGIN.top);
    this.cursor = svg("g", { class: "cursor" });
    this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.drawing.setAttribute("width", this.width);
    this.where = h("span", { class: "where" });
    this.told = this.series.map(() => h("b", {}));
    fill(this.legend, this.series.map((each, place) => this.entry(each, place)), this.where);
    fill(this.drawing, this.axes(right, bottom), this.series.map((each, place) => this.line(each, place)), this.cursor);
    this.read(this.at);
  }

  axes(right, bottom) {
    const y = ticks(this.up.domain, Math.max(2, Math.floor((bottom - MARGIN.top) / 40)));
    const x = ticks(this.across.domain, Math.max(2, Math.floor((right - MARGIN.left) / 90)));
    return svg("g", { class: "axes" },
      y.map(value => [
        svg("path", { d: `M${MARGIN.left} ${this.up(value)}H${right}` }),
        svg("text", { x: MARGIN.left - 7, y: this.up(value) + 4, "text-anchor": "end" }, this.formatY(value)),
      ]),
      x.map((value, place) => svg("text", { x: this.across(value), y: bottom + 17, "text-anchor": anchor(place, x) },
        this.formatX(value))),
    );
  }

  line(each, place) {
    if (this.hidden.has(each.name)) return null;
    const shape = { class: ["line", each.dashed && "dashed", each.faint && "faint"], style: { stroke: this.colour(each, place) } };
    const whole = each.points.filter(([, y]) => Number.isFinite(y));
    if (whole.length === 1) {
      return svg("circle", { cx: this.across(whole[0][0]), cy: this.up(whole[0][1]), r: 3, style: { fill: shape.style.stroke } });
    }
    return svg("path", { ...shape, d: path(thinned(each.points, this.across), this.across, this.up) });
  }

  colour(each, place) {
    return colour(each.colour ?? place);
  }

  valueAt(event) {
    const box = this.drawing.getBoundingClientRect();
    return this.across?.invert((event.clientX - box.left) * this.width / box.width);
  }

  /** To the next or former point by the arrow keys. */
  walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const places = [...new Set(this.shown.flatMap(each => each.points.map(([x]) => x)))].sort((a, b) => a - b);
    if (!step || !places.length) return;
    event.preventDefault();
    const now = this.at === null ? -step : places.indexOf(nearest(places.map(x => [x]), this.at)[0]);
    this.read(places[Math.max(0, Math.min(places.length - 1, now + step))] ?? null);
  }

  /** Tell what the curves are at a place of the axis; nothing where it is null. */
  read(at) {
    this.at = at ?? null;
    const found = this.series.map(each => this.at === null || this.hidden.has(each.name) ? null : nearest(each.points, this.at));
    const places = found.filter(Boolean).map(([x]) => x);
    const x = places.length ? nearest(places.map(each => [each]), this.at)[0] : null;
    if (!this.cursor) return;
    fill(this.where, x === null ? this.x : `${this.x} ${this.formatX(x)}`);
    found.forEach((point, place) => fill(this.told[place], point && this.formatY(point[1])));
    fill(this.cursor, x !== null && svg("path", { d: `M${this.across(x)} ${MARGIN.top}V${this.height - MARGIN.bottom}` }),
      found.map((point, place) => point && Number.isFinite(point[1]) && svg("circle",
        { cx: this.across(point[0]), cy: this.up(point[1]), r: 3.5, style: { fill: this.colour(this.series[place], place) } })));
  }

  entry(each, place) {
    const mark = h("i", { class: [each.dashed && "dashed", each.faint && "faint"], style: { "--colour": this.colour(each, place) } });
    const toggle = () => {
      this.hidden.delete(each.name) || this.hidden.add(each.name);
      this.draw();
      this.legend.querySelectorAll("button")[place].focus();
    };
    return h("button", { type: "button", "aria-pressed": String(!this.hidden.has(each.name)), onclick: toggle }, mark,
      each.name, this.told[place]);
  }
}

function anchor(place, all) {
  return place === all.length - 1 && all.length > 1 ? "end" : "middle";
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : [0, 1];
}

function scale([low, high], from, to) {
  const span = high - low || 1;
  const place = value => Number((from + (value - low) / span * (to - from)).toFixed(1));
  return Object.assign(place, { domain: [low, high], invert: at => low + (at - from) / (to - from) * span });
}

/** Round numbers within a domain, about so many. */
function ticks([low, high], count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find(each => each * power >= rough) ?? 10);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n += 1) found.push(Number((n * step).toPrecision(12)));
  return found;
}

/** Of the points that fall into one column of pixels the lowest and the highest, so that no spike is lost. */
function thinned(points, across) {
  const columns = new Map();
  for (const point of points) {
    const column = Math.round(across(point[0])), known = columns.get(column);
    if (!known) columns.set(column, [point, point]);
    else if (!(point[1] >= known[0][1])) known[0] = point;
    else if (!(point[1] <= known[1][1])) known[1] = point;
  }
  return [...columns.values()].flatMap(([low, high]) => low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]);
}

function path(points, across, up) {
  let drawn = "", down = false;
  for (const [x, y] of points) {
    if (Number.isFinite(y)) drawn += `${down ? "L" : "M"}${across(x)} ${up(y)}`;
    down = Number.isFinite(y);
  }
  return drawn;
}

/** The point whose x is nearest, by halving; null where there is none. */
function nearest(points, at) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < at) low = middle + 1; else high = middle;
  }
  const before = points[low - 1];
  return before && at - before[0] < points[low][0] - at ? before : points[low] ?? null;
}

/** A small curve without axes; points are [x, y]. */
export function sparkline(points, { width = 110, height = 26, label = "curve" } = {}) {
  const whole = points.filter(([, y]) => Number.isFinite(y));
  const across = scale(extent(whole.map(([x]) => x)), 1, width - 1), up = scale(extent(whole.map(([, y]) => y)), height - 2, 2);
  return svg("svg", { class: "sparkline", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label },
    whole.length > 1 && svg("path", { class: "line", d: path(thinned(whole, across), across, up) }));
}

/**
 * A matrix as cells without space between them, the stronger the more; a cell that is pointed at is told to `onread`.
 * @param {number[][]} values
 * @param {Object} [options]
 * @param {number[]} [options.limits] drawn as nothing and in full
 * @param {(row: number, column: number) => string} [options.role] "+" for a cell of the other colour, "=" for none
 * @param {(row: number, column: number) => void} [options.onread]
 */
export function heat(values, { limits = extent(values.flat()), role = () => "-", onread = () => {} } = {}) {
  const rows = values.length, columns = values[0]?.length ?? 0, [low, high] = limits;
  const canvas = h("canvas", { class: "heat", width: columns, height: rows, tabindex: 0, role: "img",
    "aria-label": `${rows} by ${columns} numbers` });
  const context = canvas.getContext("2d"), image = context.createImageData(Math.max(1, columns), Math.max(1, rows));
  values.forEach((row, r) => row.forEach((value, c) => {
    const kind = role(r, c), share = Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
    const shade = kind === "+" ? [232, 89, 12] : kind === "=" ? [128, 128, 128] : [47, 111, 222];
    image.data.set([...shade, kind === "=" ? 40 : Math.round(255 * share)], 4 * (r * columns + c));
  }));
  context.putImageData(image, 0, 0);
  let [row, column] = [0, 0];
  const read = (r, c) => { if (values[r]?.[c] !== undefined) { [row, column] = [r, c]; onread(r, c); } };
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect();
    read(Math.floor((event.clientY - box.top) / box.height * rows), Math.floor((event.clientX - box.left) / box.width * columns));
  });
  canvas.addEventListener("keydown", event => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    read(row + down, column + right);
  });
  return canvas;
}
