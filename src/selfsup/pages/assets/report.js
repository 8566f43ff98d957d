// A report: all that one run or several have to show, drawn from the JSON of `selfsup report --json`.

import { amount, duration, h, number, fill, table, tabs } from "selfsup/dom.js";
import { drawSections } from "selfsup/blocks.js";
import { lineChart } from "selfsup/charts.js";

const AXES = [["steps", "step"], ["time", "time"], ["amount", "amount"]];
const SEVERITIES = { problem: "Problem", warning: "Warning", note: "Note" };
// Figures of a line of metrics that have a chart of their own, and what it is called; others are listed below these.
const CHARTS = [
  ["loss", "Loss"], ["bits_per_byte", "Bits per byte"], ["lr", "Learning rate"], ["grad_norm", "Gradient norm"],
  ["feature_std", "Spread of features", "1 on a sphere, 0 collapsed"], ["rankme", "RankMe", "directions that features use"],
  ["uniformity", "Uniformity"], ["per_second", "Throughput"], ["utilisation", "Share of the machine's rate"],
];
const DRAWN = new Set([...CHARTS.map(([key]) => key), "step", "time", "lines", "start_loss"]);

/** @param {Object} json of `selfsup report --json` */
export function draw(json) {
  return drawReport(json);
}

export function drawReport(json) {
  return json.runs.length === 1 ? oneRun(json.runs[0]) : severalRuns(json);
}

function oneRun(run) {
  const parts = [
    ["Curves", () => curves([run])],
    ["Samples", () => samples(run)],
    ["Findings", () => findings(run)],
    ["Protocols", () => protocols(run)],
    ["First batch", () => inspection(run)],
    ["Plan", () => plan(run)],
    ["Configuration", () => configuration(run)],
    ["Model card", () => card(run)],
  ].map(([title, drawPart]) => [title, attempt(drawPart)]).filter(([, drawn]) => drawn);
  return h("article", { class: "report" },
    h("h1", {}, run.name), h("p", { class: "quiet" }, subtitle(run)), problems(run.problems), figures(run),
    contents(parts), parts.map(part));
}

/** What is drawn; of files that another version or a fault left otherwise than they should be, that it cannot be. */
function attempt(drawPart) {
  try {
    return drawPart();
  } catch (error) {
    return h("p", { class: "error" }, `This cannot be drawn: ${error.message}`);
  }
}

function part([title, drawn]) {
  return h("section", { id: anchor(title) }, h("h2", {}, title), drawn);
}

const anchor = title => title.toLowerCase().replaceAll(" ", "-");

/** Links within the page; a hash belongs to the router where there is one, so that they scroll and do not navigate. */
function contents(parts) {
  return h("nav", { class: "contents", "aria-label": "contents" }, parts.map(([title]) => h("a", { href: `#${anchor(title)}`,
    onclick: event => {
      event.preventDefault();
      event.target.closest(".report").querySelector(`#${anchor(title)}`).scrollIntoView();
    } }, title)));
}

function subtitle(run) {
  const { finished, steps } = run.figures, state = steps === undefined ? "" : finished ? "finished" : `going on, at step ${number(steps)}`;
  return [run.objective, run.idea, state].filter(Boolean).join(" · ");
}

function problems(all) {
  return all.length > 0 && h("ul", { class: "quiet problems" }, all.map(problem => h("li", {}, problem)));
}

// -- figures --

function figures(run) {
  const each = run.figures, unit = each.unit ?? "records";
  const all = [
    ["loss, held out", each.loss, number],
    ["chance", each.chance, number],
    ["bits per byte", each.bits_per_byte, number],
    ["best loss", each.best !== each.loss ? each.best : null, number],
    ["steps", each.steps, number],
    [unit, each.amount, value => amount(value)],
    [`${unit} per second`, each.per_second, value => amount(value)],
    ["parameters", each.parameters, value => amount(value)],
    ["wall time", each.wall_seconds, duration],
    ["memory at its peak", each.peak_memory, value => amount(value, "B")],
    ["steps skipped", each.skipped_steps || null, number],
  ].filter(([, value]) => value !== null && value !== undefined);
  return h("div", { class: "figures" }, all.map(([name, value, told]) => h("div", { class: "card" }, h("span", {}, name), h("b", {}, told(value)))));
}

// -- curves --

/** Charts of all runs over steps, time or what they went through, by a switch. */
function curves(runs) {
  const known = runs.filter(run => (run.curves.train.step ?? []).length || (run.curves.validation.step ?? []).length);
  if (!known.length) return h("p", { class: "quiet" }, "No step has been logged yet.");
  const unit = known[0].figures.unit, counted = known.every(run => run.curves.per_step && run.figures.unit === unit);
  const axes = AXES.filter(([, axis]) => axis !== "amount" || counted);
  return tabs(axes.map(([name, axis]) => [axis === "amount" ? unit : name, () => charts(known, axis, unit)]), "what curves are drawn over");
}

function charts(runs, axis, unit) {
  const shown = CHARTS.map(([key, title, told]) => chart(runs, axis, unit, key, title, told)).filter(Boolean);
  const others = [...new Set(runs.flatMap(run => [...Object.keys(run.curves.train), ...Object.keys(run.curves.validation)]))]
    .filter(key => !DRAWN.has(key) && !key.endsWith("_per_second") && !runs.some(run => run.figures.unit === key));
  const more = others.map(key => chart(runs, axis, unit, key, key.replaceAll("_", " "))).filter(Boolean);
  return h("div", {}, h("div", { class: "charts" }, shown),
    more.length > 0 && h("details", {}, h("summary", {}, `${more.length} more`), h("div", { class: "charts" }, more)));
}

function chart(runs, axis, unit, key, title, told = "") {
  const series = runs.flatMap((run, place) => seriesOf(run, axis, key, runs.length > 1 ? place : null));
  if (!series.some(each => each.points.filter(([, y]) => y !== null).length > 1)) return null;
  const drawn = lineChart({ title, x: axis === "amount" ? unit : axis, y: told, series, height: key === "loss" ? 300 : 190,
    formatX: axis === "time" ? duration : value => amount(value), zero: key === "per_second" });
  if (key === "loss") drawn.classList.add("first");
  return drawn;
}

/** Of a run: training faint beside the held-out part, which is bold, chance dashed. `place` colours it where there are several. */
function seriesOf(run, axis, key, place) {
  const name = part => place === null ? part : part === "held out" ? run.name : `${run.name}, ${part}`;
  const found = [], tinted = usual => place ?? usual;
  for (const [part, curve, faint, usual] of [["training", run.curves.train, true, 0], ["held out", run.curves.validation, false, 1]]) {
    const values = curve[key === "per_second" ? `${run.figures.unit}_per_second` : key];
    if (values?.some(value => value !== null)) {
      const beside = faint && run.curves.validation[key] !== undefined;
      found.push({ name: name(part), points: points(run, curve, axis, values), faint: beside, colour: tinted(usual) });
    }
  }
  const { chance } = run.figures, ends = found.flatMap(each => each.points.map(([x]) => x));
  if (key === "loss" && found.length && typeof chance === "number") {
    found.push({ name: name("chance"), dashed: true, colour: tinted(3), points: [[Math.min(...ends), chance], [Math.max(...ends), chance]] });
  }
  return found;
}

function points(run, curve, axis, values) {
  const along = axis === "amount" ? curve.step.map(step => step * run.curves.per_step) : curve[axis === "step" ? "step" : "time"];
  return values.map((value, place) => [along[place], value]);
}

// -- what it made on the way --

/** A sample per look, with a slider over time. */
function samples(run) {
  const all = run.samples;
  if (!all.length) return null;
  const slider = h("input", { type: "range", min: 0, max: all.length - 1, value: all.length - 1, "aria-label": "look", oninput: () => show() });
  const told = h("output", {}), shown = h("div", { class: "sample" });
  function show() {
    const sample = all[Number(slider.value)];
    fill(told, `step ${number(sample.step)}`);
    slider.setAttribute("aria-valuetext", `step ${sample.step}`);
    fill(shown, sample.text && h("pre", {}, sample.text),
      sample.sections.length > 0 && attempt(() => drawSections(sample.sections, "h3")));
  }
  show();
  return h("div", {}, h("p", { class: "quiet" }, `${run.sample_title}, at each look.`),
    all.length > 1 && h("div", { class: "player" }, slider, told), shown);
}

// -- what is wrong, and what it is worth --

function findings(run) {
  const found = run.findings;
  if (!found) return null;
  const missing = Object.entries(found.not_made);
  return h("div", {},
    found.findings.length ? found.findings.map(finding) : h("p", {}, `The doctor made ${found.made.length} checks and found nothing wrong.`),
    missing.length > 0 && h("details", {}, h("summary", {}, `${missing.length} checks could not be made`),
      h("ul", { class: "quiet" }, missing.map(([check, lack]) => h("li", {}, `${check}: ${lack}`)))));
}

function finding(each) {
  return h("div", { class: ["card finding", each.severity] },
    h("p", {}, h("b", {}, `${SEVERITIES[each.severity] ?? each.severity}: `), each.seen),
    h("p", { class: "quiet" }, `${number(each.value)}, threshold ${number(each.threshold)}: ${each.why}`),
    h("p", {}, `Remedy: ${each.remedy}`));
}

function protocols(run) {
  if (!run.scores.length) return null;
  const rows = run.scores.map(each => [`${each.protocol} on ${each.data}`, number(each.value),
    `${number(each.interval[0])} to ${number(each.interval[1])}`, number(each.chance), number(each.n), each.unit]);
  return table(["protocol", "value", "95 % interval", "chance", "of", "unit"], rows);
}

// -- what it was --

function inspection(run) {
  if (!run.inspection) return null;
  const { idea, facts, limits, sections } = run.inspection;
  return h("div", {}, h("p", {}, `${idea.slice(0, 1).toUpperCase()}${idea.slice(1)}.`),
    h("p", { class: "quiet" }, `${facts.join(", ")}. ${limits}`), drawSections(sections, "h3"));
}

function plan(run) {
  const rows = [...Object.entries(run.plan), ...Object.entries(run.machine)];
  return rows.length > 0 && table(["", "as it was planned, and where it ran"], rows, { class: "words" });
}

function configuration(run) {
  if (!run.config.length) return null;
  const rows = all => all.map(([key, value, origin]) => [key, value === null ? "–" : String(value), origin]);
  const own = run.config.filter(([, , origin]) => origin !== "default"), names = ["key", "value", "from"];
  return h("div", {}, table(names, rows(own), { class: "words" }), h("details", {}, h("summary", {}, "Everything, with defaults"),
    table(names, rows(run.config), { class: "words" })));
}

/** A model card: headings, lists, code and paragraphs of its Markdown, as text. */
function card(run) {
  if (!run.card) return null;
  const [, text = ""] = run.card.match(/^---\n[\s\S]*?\n---\n([\s\S]*)$/) ?? [null, run.card];
  return h("div", { class: "card" }, text.split(/(```[\s\S]*?```)/).flatMap(piece => piece.startsWith("```")
    ? [h("pre", {}, piece.replace(/^```\w*\n|\n?```$/g, ""))] : piece.split(/\n\n+/).filter(block => block.trim()).map(block => {
      if (block.trim().startsWith("#")) return h("h3", {}, block.trim().replace(/^#+\s*/, ""));
      if (block.trim().startsWith("- ")) return h("ul", {}, block.trim().split(/\n- /).map(item => h("li", {}, item.replace(/^- /, ""))));
      return h("p", {}, block.trim());
    })));
}

// -- several --

function severalRuns({ runs, differences, notes }) {
  const names = runs.map(run => run.name), figure = (title, told) => [title, ...runs.map(told)];
  const rows = [
    figure("objective", run => run.objective),
    figure("loss, held out", run => number(run.figures.loss)),
    figure("chance", run => number(run.figures.chance)),
    figure("bits per byte", run => number(run.figures.bits_per_byte)),
    figure("best loss", run => number(run.figures.best)),
    figure("steps", run => number(run.figures.steps)),
    figure("went through", run => run.figures.amount === null || run.figures.amount === undefined ? "–" : `${amount(run.figures.amount)} ${run.figures.unit ?? ""}`),
    figure("per second", run => run.figures.per_second ? amount(run.figures.per_second) : "–"),
    figure("parameters", run => run.figures.parameters ? amount(run.figures.parameters) : "–"),
    figure("wall time", run => duration(run.figures.wall_seconds)),
  ].filter(([, ...cells]) => cells.some(cell => cell !== "–"));
  const differing = differences.map(each => [each.key, ...each.values.map((value, place) => [
    value === null ? "–" : String(value), h("small", {}, ` ${each.origins[place] ?? ""}`)])]);
  return h("article", { class: "report" }, h("h1", {}, names.join(", ")), problems([...notes, ...runs.flatMap(run => run.problems)]),
    part(["Figures", table(["", ...names], rows)]),
    part(["Curves", curves(runs)]),
    part(["Differences", differing.length ? table(["key", ...names], differing, { class: "words" }) : h("p", {}, "The configurations are the same.")]),
    part(["Each run", tabs(runs.map(run => [run.name, () => oneRun(run)]), "run")]));
}
