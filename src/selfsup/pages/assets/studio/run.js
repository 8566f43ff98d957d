// One run: its curves as they grow, and its report.

import { lineChart } from "selfsup/charts.js";
import { duration, fill, h, number } from "selfsup/dom.js";
import { drawReport } from "selfsup/report.js";
import { state } from "selfsup/studio/words.js";

const SECONDS = 0.2; // between two drawings of the curves, at least
const MOST = 2000; // points of a curve, of which every other one goes when there are twice as many

export async function draw(context, { rest: name }) {
  const query = `name=${encodeURIComponent(name)}`;
  const seen = await context.api(`/api/run?${query}`);
  const figures = h("div", { class: "figures" });
  const chart = lineChart({ title: "Loss", x: "step", series: seriesOf(seen) });
  const live = h("div", { class: "live" }, figures, chart);
  const report = h("div", { class: "whole", "aria-busy": "true" }, h("p", { class: "note" }, "The report is being made …"));
  let waiting = 0;

  function show() {
    waiting = 0;
    live.hidden = seen.state !== "running"; // the report has all of it
    chart.redraw(seriesOf(seen));
    fill(figures, factsOf(seen).map(([term, value]) => h("div", { class: "card" }, h("span", {}, term), h("b", {}, value))));
  }

  function soon() {
    waiting ||= setTimeout(show, SECONDS * 1000);
  }

  async function redraw() {
    if (report.contains(document.activeElement) && seen.state === "running") return; // it is being read
    const made = await context.api(`/api/run/report?run=${encodeURIComponent(name)}`);
    report.replaceChildren(drawReport(made));
    report.removeAttribute("aria-busy");
  }

  function take(line) {
    const curve = seen.curves[line.split];
    if (!curve || !Number.isFinite(line.loss)) return;
    curve.push([line.step, line.loss]);
    if (curve.length > 2 * MOST) seen.curves[line.split] = curve.filter((_, number) => number % 2 === 0);
    if (line.split === "train") Object.assign(seen, { last: line, step: line.step, training_loss: line.loss, seconds: line.time });
    else seen.loss = line.loss;
  }

  context.events(`/api/run/events?${query}&position=${seen.position}`, async (message) => {
    if (message.again) seen.curves = { train: [], validation: [] }; // it went back to an earlier step
    if ("finished" in message) seen.state = message.finished ? "finished" : "running";
    if (message.lines) seen.state = "running";
    message.lines?.forEach(take);
    soon();
    if (message.finished || message.lines?.some((line) => line.split !== "train")) await redraw();
  });
  show();
  redraw().catch((error) => context.signal.aborted || report.replaceChildren(h("p", {}, error.message)));
  return h("section", {}, h("h1", {}, name), live, report);
}

/** The curves, and what knowing nothing costs as a line from the first step to the last. */
function seriesOf({ curves: { train, validation }, chance }) {
  const level = chance == null || !train.length ? [] : [[train[0][0], chance], [train.at(-1)[0], chance]];
  return [
    { name: "training", points: train, faint: true },
    { name: "held out", points: validation },
    { name: "chance", points: level, dashed: true },
  ];
}

function factsOf(seen) {
  const left = seen.state === "running" && seen.step ? (seen.seconds / seen.step) * (seen.steps - seen.step) : null;
  const pace = Object.entries(seen.last ?? {}).find(([key]) => key.endsWith("_per_second"));
  const facts = [
    ["state", state(seen)],
    ["step", `${number(seen.step)} of ${number(seen.steps)}`],
    ["held-out loss", number(seen.loss)],
    ["training loss", number(seen.training_loss)],
    ["time", duration(seen.seconds)],
  ];
  if (left > 0) facts.push(["left, about", duration(left)]);
  if (pace) facts.push([pace[0].replaceAll("_", " "), number(Math.round(pace[1]))]);
  return facts;
}
