// Many points on a canvas. They are put into its pixels one by one, which is as fast with a GPU as without.

const NEAR = 12; // pixels within which a point is pointed at
const PLAIN = "#3f78c9"; // of points without a column
const DIM = 0.3; // what is left of the colour of what is not selected, while something is
const MARGIN = 0.94; // of the canvas, for the whole map

/** Points (x, y from -1 to 1) to look at; onHover(row or -1), onSelect(rows), onView() say what happens. */
export class Chart {
  constructor(canvas, points, { onHover, onSelect, onView }) {
    Object.assign(this, { canvas, points, onHover, onSelect, onView });
    this.count = points.length / 2;
    this.selected = [];
    this.lassoing = false;
    this.pointed = -1;
    this.path = null; // what is being encircled, in pixels of the page
    this.context = canvas.getContext("2d", { alpha: false });
    this.leaving = new AbortController();
    this.colour(null, []);
    this.listen();
    this.whole();
  }

  close() {
    this.leaving.abort();
    this.sized.disconnect();
  }

  /** Everything; `scale` is pixels of the page for a unit, (x, y) what stands in the middle. */
  whole() {
    this.view = { x: 0, y: 0, zoom: 1 };
    this.change();
  }

  get scale() {
    return (MARGIN * this.view.zoom * Math.min(this.canvas.clientWidth, this.canvas.clientHeight)) / 2;
  }

  /** By shares of the canvas. */
  pan(right, down) {
    this.view.x -= (right * this.canvas.clientWidth) / this.scale;
    this.view.y -= (down * this.canvas.clientHeight) / this.scale;
    this.change();
  }

  /** Around a place in pixels of the page; without one around the middle. */
  zoom(factor, left = this.canvas.clientWidth / 2, top = this.canvas.clientHeight / 2) {
    const [x, y] = this.at(left, top);
    this.view.zoom = Math.min(2000, Math.max(0.5, this.view.zoom * factor));
    const [movedX, movedY] = this.at(left, top);
    this.view.x += x - movedX;
    this.view.y += y - movedY;
    this.change();
  }

  /** What stands at a place of the canvas. */
  at(left, top) {
    return [this.view.x + (left - this.canvas.clientWidth / 2) / this.scale, this.view.y + (top - this.canvas.clientHeight / 2) / this.scale];
  }

  /** Where a point stands on the canvas. */
  placeOf(row) {
    return [(this.points[2 * row] - this.view.x) * this.scale + this.canvas.clientWidth / 2, (this.points[2 * row + 1] - this.view.y) * this.scale + this.canvas.clientHeight / 2];
  }

  change() {
    this.redraw();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.onView(), 150);
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => this.paint());
  }

  /** Colours by codes; without them all points look alike. */
  colour(codes, colours) {
    this.codes = codes ?? new Uint8Array(this.count);
    this.colours = Uint32Array.from(codes ? colours : [PLAIN], packed);
    this.redraw();
  }

  /** The rows of the points in a box of the map for which a test of (x, y) holds. */
  within(left, top, right, bottom, test = () => true) {
    const rows = [];
    for (let row = 0; row < this.count; row += 1) {
      const x = this.points[2 * row];
      const y = this.points[2 * row + 1];
      if (x >= left && x <= right && y >= top && y <= bottom && test(x, y)) rows.push(row);
    }
    return rows;
  }

  inView() {
    return this.within(...this.at(0, 0), ...this.at(this.canvas.clientWidth, this.canvas.clientHeight));
  }

  nearest(left, top) {
    const [x, y] = this.at(left, top);
    const reach = NEAR / this.scale;
    const far = (row) => (this.points[2 * row] - x) ** 2 + (this.points[2 * row + 1] - y) ** 2;
    return this.within(x - reach, y - reach, x + reach, y + reach).reduce((best, row) => (best < 0 || far(row) < far(best) ? row : best), -1);
  }

  point(row) {
    if (row === this.pointed) return;
    this.pointed = row;
    this.redraw();
  }

  select(rows) {
    this.selected = rows;
    this.redraw();
    this.onSelect(rows);
  }

  encircled(path) {
    const ring = path.map(([left, top]) => this.at(left, top));
    const xs = ring.map(([x]) => x);
    const ys = ring.map(([, y]) => y);
    return this.within(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (x, y) => isInside(ring, x, y));
  }

  listen() {
    const { canvas, leaving: { signal } } = this;
    const on = (name, action) => canvas.addEventListener(name, action, { signal, passive: false });
    let held = null; // where the pointer was, while it drags
    on("pointerdown", ({ button, pointerId, offsetX, offsetY, shiftKey }) => {
      if (button) return;
      canvas.setPointerCapture(pointerId);
      held = [offsetX, offsetY];
      this.path = this.lassoing || shiftKey ? [held] : null;
    });
    on("pointermove", ({ offsetX, offsetY }) => {
      if (!held) {
        this.point(this.nearest(offsetX, offsetY));
        this.onHover(this.pointed);
      } else if (this.path) {
        this.path.push([offsetX, offsetY]);
        this.redraw();
      } else {
        this.pan((offsetX - held[0]) / canvas.clientWidth, (offsetY - held[1]) / canvas.clientHeight);
        held = [offsetX, offsetY];
      }
    });
    on("pointerup", () => {
      if (this.path) this.select(this.encircled(this.path));
      held = this.path = null;
    });
    on("pointerleave", () => !held && (this.point(-1), this.onHover(-1)));
    on("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    });
    this.sized = new ResizeObserver(() => this.change());
    this.sized.observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw(), { signal });
  }

  paint() {
    this.waiting = null;
    const { canvas, context } = this;
    const dense = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * dense), Math.round(canvas.clientHeight * dense)];
    if (!width || !height) return; // it is not on the page yet, or hidden
    if (this.image?.width !== width || this.image?.height !== height) {
      Object.assign(canvas, { width, height });
      this.image = context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    const paper = packed(getComputedStyle(canvas).backgroundColor);
    this.pixels.fill(paper);
    const radius = dense * Math.min(7, (this.count > 20_000 ? 1.3 : this.count > 2000 ? 2 : 3.5) * this.view.zoom ** 0.3);
    const faint = this.selected.length ? this.colours.map((colour) => mixed(paper, colour, 256 * DIM)) : this.colours;
    this.put(dense, radius, faint, null);
    if (this.selected.length) this.put(dense, radius + dense, this.colours, this.selected);
    context.putImageData(this.image, 0, 0);
    this.drawOver(dense, radius);
  }

  /** Put a dot for each point, or for some. */
  put(dense, radius, colours, rows) {
    const { points, codes, pixels, image: { width, height } } = this;
    const scale = this.scale * dense;
    const [left, top] = [width / 2 - this.view.x * scale, height / 2 - this.view.y * scale];
    const [columns, lines, shares] = dot(radius);
    const reach = Math.ceil(radius) + 1;
    const many = rows ? rows.length : this.count;
    for (let place = 0; place < many; place += 1) {
      const row = rows ? rows[place] : place;
      const x = Math.round(points[2 * row] * scale + left);
      const y = Math.round(points[2 * row + 1] * scale + top);
      if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
      const colour = colours[codes[row]];
      for (let part = 0; part < shares.length; part += 1) {
        const pixel = (y + lines[part]) * width + x + columns[part];
        pixels[pixel] = shares[part] === 256 ? colour : mixed(pixels[pixel], colour, shares[part]);
      }
    }
  }

  /** What is pointed at, and what is being encircled. */
  drawOver(dense, radius) {
    const { context } = this;
    context.strokeStyle = getComputedStyle(this.canvas).color;
    context.lineWidth = 1.5 * dense;
    context.beginPath();
    if (this.pointed >= 0) {
      const [left, top] = this.placeOf(this.pointed);
      context.arc(left * dense, top * dense, radius + 4 * dense, 0, 2 * Math.PI);
    }
    this.path?.forEach(([left, top], place) => (place ? context.lineTo(left * dense, top * dense) : context.moveTo(left * dense, top * dense)));
    context.stroke();
  }
}

/** The pixels of a disc around its middle: columns, lines, and how much of each it covers, of 256. */
function dot(radius) {
  const reach = Math.ceil(radius);
  const parts = [];
  for (let y = -reach; y <= reach; y += 1) {
    for (let x = -reach; x <= reach; x += 1) {
      const share = Math.round(256 * Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y))));
      if (share > 8) parts.push([x, y, share]);
    }
  }
  return [0, 1, 2].map((which) => Int32Array.from(parts, (part) => part[which]));
}

/** `#rrggbb` or `rgb(r, g, b)` as a pixel. */
function packed(colour) {
  const [red, green, blue] = colour.startsWith("#") ? [1, 3, 5].map((from) => parseInt(colour.slice(from, from + 2), 16)) : colour.match(/[\d.]+/g).map(Number);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** A pixel with a share of another one, of 256. */
function mixed(below, above, share) {
  const outer = ((above & 0xff00ff) * share + (below & 0xff00ff) * (256 - share)) / 256;
  const inner = ((above & 0xff00) * share + (below & 0xff00) * (256 - share)) / 256;
  return (0xff000000 | (outer & 0xff00ff) | (inner & 0xff00)) >>> 0;
}

/** Whether a place lies in a polygon, by how often a line from there crosses it. */
function isInside(ring, x, y) {
  let inside = false;
  for (let place = 0, before = ring.length - 1; place < ring.length; before = place, place += 1) {
    const [ax, ay] = ring[place];
    const [bx, by] = ring[before];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}
