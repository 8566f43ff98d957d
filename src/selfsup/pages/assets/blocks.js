// An inspection: each kind of block (see selfsup/inspection/blocks.py) drawn from its JSON.

import { fill, h, svg, table } from "selfsup/dom.js";
import { heat } from "selfsup/charts.js";

const MARKERS = ["<start>", "<end>", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]; // which stand for no text
const POSITIONS = 512; // that are shown at most
const LABELLED = 48; // positions up to which the rows of a mask have names
const CELL = 14, LETTER = 5.2; // width and height of a cell, and width of a letter, in the drawing of a mask
const MARKED = 900, MARGIN = 52; // width of a row of marks, and before it
const BAR = 13; // height of the largest number of a vector
const NARROWEST = 96; // that what is said beneath a picture may be
const OWN = "+", OUT = "="; // cells of a matrix that belong together, and that say nothing
const NEAR = 40; // tokens that are read out at most

const DRAW = { points, table: figures, tokens, window: wholeWindow, predictions, sight, marks, bars, gallery, matrix };

/** A block, by its kind. */
export function drawBlock(block) {
  return DRAW[block.kind](block);
}

/** Sections of blocks: a title, a hint, and what is in them; positions of a window are read out where pointed at. */
export function drawSections(sections, level = "h2") {
  const drawn = sections.map(each => [
    h(level, {}, capital(each.title)),
    (each.hint || each.note) && h("p", { class: "hint" }, `${each.hint} ${each.note}`.trim()),
    h("div", { class: "blocks" }, each.blocks.map(drawBlock)),
  ]);
  const whole = h("div", {}, drawn);
  if (whole.querySelector(".window .position")) readOut(whole);
  return whole;
}

/** The whole of an inspection, as a page. */
export function drawDocument(json) {
  return h("div", {},
    h("h1", {}, json.heading),
    h("p", {}, `${sentence(json.idea)} Nobody labels anything: the data itself holds both the question and the answer.`),
    h("p", { class: "quiet" }, `${sentence(json.facts.join(", "))} ${json.limits}`),
    drawSections(json.sections));
}

export const draw = drawDocument;

const capital = text => text.slice(0, 1).toUpperCase() + text.slice(1);
const sentence = text => `${capital(text)}.`;
const percent = share => `${Math.round(100 * share)}%`;
const shareOf = (loss, chance) => loss === undefined || loss === null ? undefined : chance ? Math.min(1, loss / chance) : 0;

function points(block) {
  return h("dl", {}, Object.entries(block.points).map(([term, said]) => [h("dt", {}, term), h("dd", {}, said)]));
}

function figures(block) {
  return table(block.names, block.rows);
}

// -- tokens --

/** A token; spaces are faint dots, markers in italics. */
function chip(token, more = "") {
  const heat = token.heat ?? undefined, marker = MARKERS.includes(token.text);
  const parts = token.text.split(" ").flatMap((part, place) => place ? [h("s", { "aria-label": "space" }, "·"), part] : [part]);
  return h("span", { class: ["chip", more, token.role, heat !== undefined && "hot", marker && "marker"],
    style: { "--heat": heat?.toFixed(3) } }, token.text ? parts : "\u00a0");
}

const chips = (all, more) => all.map(token => chip(token, more));

/** What the colours of losses mean, where there are any. */
function scale(chance) {
  return chance === undefined || chance === null ? null : h("p", { class: "legend" }, h("span", {}, "0 nats"), h("i", { class: "scale" }),
    h("span", {}, `${chance.toFixed(2)} nats, chance: the colour of a target is its loss`));
}

function firstOf(shown, count) {
  return shown < count && h("p", { class: "hint" }, `The page shows the first ${shown} of ${count.toLocaleString("en")}.`);
}

function tokens(block) {
  if (block.lines.length === 1) {
    const all = block.lines[0].tokens;
    return h("div", {}, scale(block.chance), firstOf(POSITIONS, all.length),
      h("p", { class: "strip" }, chips(all.slice(0, POSITIONS))));
  }
  return h("ol", { class: "list lines", tabindex: 0 }, block.lines.map(line => h("li", {}, h("span", { class: "number" }, line.label),
    chips(line.tokens), line.note && h("span", { class: "same" }, line.note))));
}

function wholeWindow(block) {
  const count = block.inputs.length, legend = Object.entries(block.legend ?? {});
  return h("div", {},
    legend.length > 0 && h("p", { class: "legend" }, legend.map(([role, said]) => [h("i", { class: ["role", role] }), h("span", {}, said)])),
    scale(block.chance), firstOf(POSITIONS, count),
    h("div", { class: "window" }, block.inputs.slice(0, POSITIONS).map((_, t) => position(block, t))));
}

function position(block, t) {
  const opens = t > 0 && block.documents[t] !== block.documents[t - 1], target = block.targets[t];
  const heat = shareOf(block.losses?.[t], block.chance);
  return h("button", { type: "button", class: ["position", opens && "opens"], dataset: { position: t, note: block.notes[t] || null } },
    chip({ text: block.inputs[t], role: block.roles[t] }, "input"),
    target !== null && target !== undefined && chip({ text: target, heat }, "target"));
}

function predictions(block) {
  const shown = block.predictions.filter(each => each.position < POSITIONS);
  return h("ol", { class: "list", tabindex: 0 }, shown.map(each => {
    const heat = shareOf(each.loss, block.chance);
    const guesses = (each.guesses ?? []).map(guess => [
      chip({ text: guess.token, role: guess.token === each.target ? "right" : "" }, "guess"), h("small", {}, percent(guess.probability))]);
    return h("li", { dataset: { position: each.position } },
      h("span", { class: "given" }, each.more && h("span", { class: "same" }, "…"), chips(each.given, "input")),
      h("span", { class: "predict" }, "predict ", chip({ text: each.target, heat }, "target")),
      heat !== undefined && h("span", { class: "loss" }, h("i", { style: { "--heat": heat.toFixed(3) } }), each.loss.toFixed(2)),
      guesses.length > 0 && h("span", { class: "guesses" }, guesses));
  }));
}

/** Read out what a position is predicted from when it is pointed at, clicked or has the focus; Escape ends it. */
function readOut(whole) {
  const positions = [...whole.querySelectorAll(".window .position")];
  const told = h("div", {}), frame = h("div", { class: "reading", "aria-live": "polite", hidden: true }, told);
  whole.append(frame);
  let pinned = null;

  function sees(number) {
    const runs = whole.querySelector(`.sight [data-position="${number}"]`)?.dataset.sees ?? "";
    return runs.split(" ").filter(Boolean).map(run => run.split("-").map(Number))
      .flatMap(([first, last]) => positions.slice(first, last + 1));
  }

  function near(seen, position) {
    const place = seen.indexOf(position), first = Math.max(0, Math.min(place - NEAR / 2, seen.length - NEAR));
    const shown = seen.slice(first, first + NEAR).map(each => each.querySelector(".input").cloneNode(true));
    return [first > 0 && "… ", shown, first + NEAR < seen.length && " …"];
  }

  function look(number) {
    whole.querySelectorAll(".now, .sees").forEach(each => each.classList.remove("now", "sees"));
    const position = positions[number];
    whole.classList.toggle("looking", position !== undefined);
    frame.hidden = position === undefined;
    if (!position) return;
    whole.querySelectorAll(`[data-position="${number}"]`).forEach(each => each.classList.add("now"));
    const seen = sees(number), target = position.querySelector(".target");
    seen.forEach(each => each.classList.add("sees"));
    fill(told, "given ", near(seen, position), target && [" predict ", target.cloneNode(true)], " ", position.dataset.note ?? "");
  }

  const numberAt = event => {
    const found = event.target.closest?.("[data-position]");
    return found && whole.contains(found) ? Number(found.dataset.position) : null;
  };
  whole.addEventListener("pointerover", event => event.pointerType === "mouse" && look(numberAt(event) ?? pinned));
  whole.addEventListener("pointerleave", () => look(pinned));
  whole.addEventListener("focusin", event => look(numberAt(event) ?? pinned));
  whole.addEventListener("focusout", () => look(pinned));
  whole.addEventListener("click", event => {
    const number = numberAt(event);
    pinned = number === pinned ? null : number;
    look(pinned);
  });
  whole.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], at = positions.indexOf(document.activeElement);
    if (event.key === "Escape") look(pinned = null);
    if (step && at >= 0) positions[Math.max(0, Math.min(positions.length - 1, at + step))].focus();
  });
}

// -- masks, marks and bars --

/** Each run of equal numbers but 0 in a row: what it is, and its first and last place. */
function runs(row) {
  const found = [];
  row.forEach((what, place) => {
    const last = found.at(-1);
    if (what && last?.[0] === what && last[2] === place - 1) last[2] = place;
    else if (what) found.push([what, place, place]);
  });
  return found;
}

/** Row t is filled where position t sees; a run of cells is one rectangle. */
function sight(block) {
  const shown = Math.min(block.names.length, POSITIONS), side = shown * CELL;
  const names = block.names.slice(0, shown).map(short);
  const margin = shown <= LABELLED ? 8 + Math.round(LETTER * Math.max(...names.map(name => name.length))) : 0;
  const width = margin + side, far = (t, other) => block.reach !== undefined && Math.abs(t - other) > block.reach;
  const rows = names.map((name, t) => {
    const mask = block.mask[t].slice(0, shown), y = t * CELL;
    const cells = runs(mask.map((bit, other) => bit ? 1 + far(t, other) : 0));
    return svg("g", { dataset: { position: t, sees: runs(mask).map(([, first, last]) => `${first}-${last}`).join(" ") } },
      svg("rect", { class: "row", x: 0, y, width, height: CELL }),
      margin > 0 && svg("text", { x: margin - 6, y: y + CELL * 0.72 }, name),
      cells.map(([what, first, last]) => svg("rect",
        { class: what === 2 && "far", x: margin + first * CELL, y, width: (last - first + 1) * CELL, height: CELL })));
  });
  const ticks = shown <= 4 * LABELLED ? [...Array(shown + 1).keys()].map(t => t * CELL) : []; // more would be all there is to see
  const grid = ticks.map(tick => `M${margin + tick} 0V${side}M${margin} ${tick}H${width}`).join("");
  return svg("svg", { class: "sight", viewBox: `0 0 ${width} ${side}`, style: { "max-width": `${Math.min(620, 2 * width)}px` },
    role: "img", "aria-label": "rows: positions, columns: what they see" },
  svg("rect", { class: "ground", x: margin, y: 0, width: side, height: side }), rows, svg("path", { class: "grid", d: grid }));
}

function short(token) {
  const dotted = token.replaceAll(" ", "·");
  return dotted.length <= 12 ? dotted : `${dotted.slice(0, 11)}…`;
}

/** A row of cells for each, as wide as the page where they are many. */
function marks(block) {
  const rows = Object.entries(block.rows), shown = Math.min(POSITIONS, ...rows.map(([, letters]) => letters.length));
  const cell = Math.max(2, Math.min(CELL, Math.floor(MARKED / shown))), step = CELL + 4;
  const width = MARGIN + shown * cell, height = rows.length * step;
  const drawn = rows.map(([name, letters], number) => [
    svg("text", { x: 0, y: number * step + CELL * 0.72 }, name),
    svg("rect", { class: "shown", x: MARGIN, y: number * step, width: width - MARGIN, height: CELL }),
    [...letters.slice(0, shown)].map((letter, t) => block.roles[letter] && svg("rect", { class: block.roles[letter],
      x: MARGIN + t * cell, y: number * step, width: cell - Math.floor(cell / 8), height: CELL })),
  ]);
  return h("div", { class: "wide" }, svg("svg", { class: "marks", viewBox: `0 0 ${width} ${height}`, width, role: "img",
    "aria-label": "columns: positions" }, drawn));
}

/** What is above 0 upwards, what is below it downwards, on one scale. */
function bars(block) {
  const rows = Object.entries(block.rows), most = Math.max(...rows.flatMap(([, row]) => row.map(Math.abs))) || 1;
  const drawn = rows.map(([name, row]) => [h("span", {}, name),
    svg("svg", { viewBox: `0 0 ${10 * row.length} 28`, role: "img", "aria-label": "numbers of a vector" }, row.map((value, place) => {
      const high = BAR * value / most;
      return svg("rect", { class: high > 0 ? "up" : "down", x: 10 * place, y: 14 - Math.max(0, high), width: 8, height: Math.abs(high) });
    }))]);
  return h("div", { class: "bars" }, h("p", {}, `${block.title}: ${block.said}`), drawn);
}

// -- pictures --

function gallery(block) {
  return h("div", { class: "gallery" }, block.groups.map(group => h("section", {}, group.name && h("h3", {}, group.name),
    group.rows.map(row => h("div", { class: "tiles" }, row.map(tile))))));
}

/** A picture is as high as it says; its width and that of what is said beneath it follow when it is there. */
function tile(each) {
  const caption = h("figcaption", {}, h("b", {}, each.name), each.tokens?.length > 0 && [h("br"), chips(each.tokens)],
    each.facts && [h("br"), each.facts]);
  const image = h("img", { src: each.pixels, alt: each.name, height: each.height, onload: () => {
    const width = Math.max(1, Math.round(each.height * image.naturalWidth / image.naturalHeight));
    image.width = width;
    caption.style.maxWidth = `${Math.max(width, NARROWEST)}px`;
  } });
  caption.style.maxWidth = `${Math.max(each.height, NARROWEST)}px`;
  return h("figure", { class: "tile", style: { "--frame": each.colour } }, image, caption);
}

/** Cells as strong as their values, read where they are pointed at; with names in the margin, or close together. */
function matrix(block) {
  const { values, roles, said = [[], []], meaning = {} } = block;
  const kept = values.flatMap((row, r) => row.filter((_, c) => roles[r][c] !== OUT));
  const limits = block.limits ?? kept.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const readout = h("p", { "aria-live": "polite" }, "Point at a cell to read it.");
  const onread = (r, c) => {
    const names = [said[0][r] ?? r + 1, said[1][c] ?? c + 1], what = meaning[roles[r][c]];
    fill(readout, `${names.join(" and ")}: ${values[r][c].toFixed(3)}${what ? `, ${what}` : ""}`);
  };
  const cells = block.rows.length ? grid(block, limits, onread) : heat(values, { limits, role: (r, c) => roles[r][c], onread });
  const caption = `${block.name}, from ${limits[0].toFixed(2)} (pale) to ${limits[1].toFixed(2)} (full)`;
  return h("figure", { class: "matrix" }, h("figcaption", {}, caption), cells, readout);
}

function grid(block, [low, high], onread) {
  const margin = (name, upright) => name.startsWith("data:image/") ? h("img", { src: name, alt: "" })
    : h("span", { class: ["name", upright && name.length > 3 && "upright"] }, name);
  const cell = (value, r, c) => {
    const kind = block.roles[r][c], share = Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
    return h("div", { class: ["cell", kind === OWN && "own", kind === OUT && "out"], style: { "--share": share.toFixed(3) },
      onpointerenter: () => onread(r, c), onclick: () => onread(r, c) });
  };
  const head = [h("span", { class: "name" }), block.columns.map(name => margin(name, true))];
  const rows = block.values.map((row, r) => [margin(block.rows[r]), row.map((value, c) => cell(value, r, c))]);
  return h("div", { class: "cells", style: { "grid-template-columns": `repeat(${block.columns.length + 1}, minmax(0, ${block.cell}px))` } },
    head, rows);
}
