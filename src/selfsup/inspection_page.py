"""An inspection as one self-contained page: no script or style from elsewhere, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selfsup.inspection import Inspection

POSITIONS = 512  # that a page shows at most
LABELLED = 48  # positions up to which the rows of the mask have names
CONTEXT = 12  # tokens of what is given that a line of the list shows
CELL, LETTER = 14, 5.2  # width and height of a cell, and width of a letter, in the mask's drawing


def page(inspection: Inspection) -> str:
    """The page as HTML; whatever comes from the data is escaped."""
    shown = min(len(inspection.targets), POSITIONS)
    cut = f" The page shows the first {shown:,}." if shown < len(inspection.targets) else ""
    return PAGE.substitute(
        objective=escape(inspection.objective),
        idea=escape(_sentence(inspection.idea)),
        summary=escape(_sentence(inspection.summary()) + cut),
        legend=_legend(inspection),
        columns="".join(_column(inspection, t) for t in range(shown)),
        mask=_mask(inspection, shown),
        predictions="".join(_prediction(inspection, t) for t in range(shown)),
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _legend(inspection: Inspection) -> str:
    if inspection.losses is None:
        return ""
    return (
        '<p class="legend">Targets are coloured by their loss: <span>0 nats</span><i></i>'
        f"<span>{inspection.chance:.2f} nats, chance</span></p>"
    )


def _column(inspection: Inspection, t: int) -> str:
    """One position: its input above its target."""
    sees = " ".join(f"{start}-{stop}" for start, stop in _runs(inspection.mask[t]))
    start = " opens" if t and inspection.documents[t] != inspection.documents[t - 1] else ""
    return (
        f'<button class="position{start}" data-position="{t}" data-sees="{sees}"{_loss_note(inspection, t)}>'
        f"{_chip('input', inspection.inputs[t])}{_chip('target', inspection.targets[t], inspection.heat(t))}</button>"
    )


def _loss_note(inspection: Inspection, t: int) -> str:
    return "" if inspection.losses is None else f' data-loss="{inspection.losses[t]:.3f}"'


def _chip(role: str, token: str, heat: float = 0.0) -> str:
    marker = " marker" if token in ("<start>", "<end>") else ""
    style = f' style="--heat:{heat:.3f}"' if heat else ""
    return f'<span class="chip {role}{marker}"{style}>{_shown(token)}</span>'


def _shown(token: str) -> str:
    """A token with its spaces as faint dots."""
    return escape(token).replace(" ", '<s aria-label="space">·</s>') or "&nbsp;"


def _prediction(inspection: Inspection, t: int) -> str:
    given = inspection.given(t)
    earlier = '<span class="more">…</span>' if len(given) > CONTEXT else ""
    loss = ""
    if inspection.losses is not None:
        nats, share = inspection.losses[t], inspection.heat(t)
        loss = f'<span class="loss"><i style="--heat:{share:.3f}"></i>{nats:.2f}</span>'
    return (
        f'<li data-position="{t}"><span class="given">{earlier}'
        f"{''.join(_chip('input', token) for token in given[-CONTEXT:])}</span>"
        f'<span class="predict">predict {_chip("target", inspection.targets[t], inspection.heat(t))}</span>{loss}</li>'
    )


def _mask(inspection: Inspection, shown: int) -> str:
    """The mask as a drawing: row t is filled where position t sees; a run of cells is one rectangle."""
    names = [_short(token) for token in inspection.inputs[:shown]]
    margin = 8 + round(LETTER * max(map(len, names))) if shown <= LABELLED else 0
    side = shown * CELL
    parts = [f'<rect class="ground" x="{margin}" width="{side}" height="{side}"/>']
    for t in range(shown):
        y = t * CELL
        cells = "".join(
            f'<rect x="{margin + start * CELL}" y="{y}" width="{(stop - start + 1) * CELL}" height="{CELL}"/>'
            for start, stop in _runs(inspection.mask[t][:shown])
        )
        name = f'<text x="{margin - 6}" y="{y + CELL * 0.72:.1f}">{escape(names[t])}</text>' if margin else ""
        row = f'<rect class="row" y="{y}" width="{margin + side}" height="{CELL}"/>'
        parts.append(f'<g data-position="{t}">{row}{name}{cells}</g>')
    if shown <= 4 * LABELLED:  # beyond that, lines would be all there is to see
        lines = "".join(
            f"M{margin + i * CELL} 0V{side}M{margin} {i * CELL}H{margin + side}" for i in range(shown + 1)
        )
        parts.append(f'<path class="lines" d="{lines}"/>')
    width = margin + side
    size = f'viewBox="0 0 {width} {side}" style="max-width:{min(620, width * 2)}px"'
    return (
        f'<svg {size} role="img" aria-label="rows: positions, columns: what they see">{"".join(parts)}</svg>'
    )


def _short(token: str) -> str:
    token = token.replace(" ", "·")
    return token if len(token) <= 12 else token[:11] + "…"


def _runs(row: list[int]) -> Iterator[tuple[int, int]]:
    """First and last column of each run of ones."""
    for seen, run in groupby(range(len(row)), lambda column: row[column]):
        columns = list(run)
        if seen:
            yield columns[0], columns[-1]


PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$objective: what the data teaches</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --ink: #1f2328; --faint: #6b7079; --line: #e3e0da; --chip: #efece6;
  --seen: #2f6fde; --on-seen: #fff; --wanted: #1f2328; --hot: #e8590c; --ground: #f0eee9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e6e4df; --faint: #989da6; --line: #2c3036; --chip: #24282d;
    --seen: #5b93f5; --on-seen: #0d1117; --wanted: #e6e4df; --hot: #ff7b32; --ground: #1d2024;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 6rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1rem; margin: 2.2rem 0 .3rem; }
p { margin: .25rem 0; max-width: 44rem; }
.quiet, .legend, .hint { color: var(--faint); font-size: .875rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: center; }
.legend i { width: 7rem; height: .7rem; border-radius: .35rem;
  background: linear-gradient(90deg, var(--chip), var(--hot)); }
.chip { display: block; padding: .12rem .45rem; border-radius: .35rem; background: var(--chip); white-space: pre;
  font: .9rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; text-align: center; }
.chip s { text-decoration: none; opacity: .45; }
.chip.marker { font-style: italic; color: var(--faint); }
.target { background: color-mix(in oklab, var(--hot) calc(var(--heat, 0) * 100%), var(--chip)); }
.target[style], .target.marker[style] { color: var(--ink); }
#window { display: flex; flex-wrap: wrap; gap: .55rem .3rem; margin-top: .7rem; }
.position { all: unset; box-sizing: border-box; display: grid; gap: .3rem; cursor: pointer; padding: .2rem;
  border-radius: .5rem; max-width: 100%; overflow: hidden; }
.position:focus-visible { outline: 2px solid var(--seen); }
.position.opens { border-left: 2px solid var(--line); border-radius: 0 .5rem .5rem 0; padding-left: .5rem; }
.looking .position:not(.sees) .input { opacity: .3; }
.looking .position:not(.now) .target { opacity: .3; }
.position.sees .input { background: var(--seen); color: var(--on-seen); }
.position.now .target { outline: 2px solid var(--wanted); }
svg { display: block; width: 100%; height: auto; margin-top: .7rem; }
svg rect { shape-rendering: crispEdges; }
svg .ground { fill: var(--ground); }
svg g rect { fill: var(--seen); opacity: .75; }
svg g .row { fill: transparent; opacity: 1; }
svg .lines { stroke: var(--paper); stroke-width: 1.2; pointer-events: none; }
svg text { fill: var(--faint); text-anchor: end; font: 8.5px ui-monospace, Menlo, Consolas, monospace; }
svg g { cursor: pointer; }
.looking svg g:not(.now) rect:not(.row) { opacity: .3; }
svg g.now text { fill: var(--ink); font-weight: 700; }
svg g.now rect:not(.row) { opacity: 1; }
ol { list-style: none; margin: .7rem 0 0; padding: 0; max-height: 32rem; overflow: auto; border: 1px solid var(--line);
  border-radius: .6rem; }
li { display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: center; padding: .3rem .6rem; }
li + li { border-top: 1px solid var(--line); }
li.now { background: var(--ground); }
.given, .predict { display: flex; flex-wrap: wrap; gap: .2rem; align-items: center; }
.predict { color: var(--faint); font-size: .875rem; gap: .6rem; }
.predict .chip { color: var(--ink); font-weight: 600; }
.loss { margin-left: auto; display: inline-grid; grid-template-columns: 5rem 2.6rem; gap: .4rem; align-items: center;
  text-align: right; font-variant-numeric: tabular-nums; }
.loss i { height: .55rem; border-radius: .3rem;
  background: linear-gradient(90deg, var(--hot) calc(var(--heat) * 100%), var(--chip) 0); }
.more { color: var(--faint); }
#readout { position: fixed; inset: auto 0 0; padding: .7rem 1rem; display: none;
  background: var(--paper); border-top: 1px solid var(--line); max-height: 40vh; overflow: auto; }
.looking #readout { display: block; }
#readout div { max-width: 60rem; margin: 0 auto;
  display: flex; flex-wrap: wrap; gap: .25rem .35rem; align-items: center; }
#readout .input { background: var(--seen); color: var(--on-seen); }
#readout .target { outline: 2px solid var(--wanted); font-weight: 600; }
</style>
<h1>What the data teaches: $objective</h1>
<p>$idea Nobody labels anything: the text itself holds both the question and the answer.</p>
<p class="quiet">$summary</p>

<h2>Inputs and targets</h2>
<p class="hint">Above, what is shown; below, what is to be predicted there. Point at a position, or tap it, to see what
it sees.</p>
$legend
<div id="window">$columns</div>

<h2>Who sees whom</h2>
<p class="hint">Each row is a position; it is filled where that position sees an input.</p>
$mask

<h2>What is predicted from what</h2>
<ol>$predictions</ol>

<div id="readout" aria-live="polite"><div></div></div>
<script>
const positions = [...document.querySelectorAll("#window .position")];
const readout = document.querySelector("#readout div");
let pinned = null;

function sees(position) {
  return position.dataset.sees.split(" ").filter(Boolean).map(run => run.split("-").map(Number))
    .flatMap(([first, last]) => positions.slice(first, last + 1));
}

function look(number) {
  document.querySelectorAll(".now, .sees").forEach(element => element.classList.remove("now", "sees"));
  document.body.classList.toggle("looking", number !== null);
  if (number === null) return;
  document.querySelectorAll('[data-position="' + number + '"]').forEach(element => element.classList.add("now"));
  const position = positions[number], seen = sees(position);
  seen.forEach(element => element.classList.add("sees"));
  const shown = seen.slice(-40).map(element => element.querySelector(".input").cloneNode(true));
  const more = seen.length > shown.length ? ["… "] : [];
  const loss = "loss" in position.dataset ? [" at a loss of " + position.dataset.loss + " nats"] : [];
  const target = position.querySelector(".target").cloneNode(true);
  readout.replaceChildren("given ", ...more, ...shown, " predict ", target, ...loss);
}

function numberAt(event) {
  const element = event.target.closest("[data-position]");
  return element ? Number(element.dataset.position) : null;
}

document.addEventListener("pointerover", event => event.pointerType === "mouse" && look(numberAt(event) ?? pinned));
document.addEventListener("focusin", event => look(numberAt(event) ?? pinned));
document.addEventListener("click", event => {
  const number = numberAt(event);
  pinned = number === pinned ? null : number;
  look(pinned);
});
</script>
</html>
""")
