"""A window of tokens, which the inspections of all objectives of text share: what is shown, and who sees whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from html import escape
from itertools import groupby
from typing import Any, ClassVar

from selfsup.errors import UserError
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.tokens import TOKEN_STYLE, chip, visible
from selfsup.report import Text

WINDOW = 256  # tokens, where neither the user nor a run says how many

SCREEN = 32  # positions whose mask a terminal shows at most
LABEL = 14  # columns of a token in the margin

POSITIONS = 512  # that a page shows at most
LABELLED = 48  # positions up to which the rows of the mask have names
CELL, LETTER = 14, 5.2  # width and height of a cell, and width of a letter, in the mask's drawing

STYLE = """\
.legend { display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: center; color: var(--faint);
  font-size: .875rem; }
.legend .scale { width: 7rem; height: .7rem; border-radius: .35rem;
  background: linear-gradient(90deg, var(--chip), var(--hot)); }
.target { background: color-mix(in oklab, var(--hot) calc(var(--heat, 0) * 100%), var(--chip)); }
.target[style], .target.marker[style] { color: var(--ink); }
.window { display: flex; flex-wrap: wrap; gap: .55rem .3rem; margin-top: .7rem; }
.position { all: unset; box-sizing: border-box; display: grid; gap: .3rem; align-content: start; cursor: pointer;
  padding: .2rem; border-radius: .5rem; max-width: 100%; overflow: hidden; }
.position:focus-visible { outline: 2px solid var(--seen); }
.position.opens { border-left: 2px solid var(--line); border-radius: 0 .5rem .5rem 0; padding-left: .5rem; }
.looking .position:not(.sees) .input { opacity: .3; }
.looking .position:not(.now) .target { opacity: .3; }
.position.now .target { outline: 2px solid var(--wanted); outline-offset: -2px; }
.sight .ground { fill: var(--ground); }
.sight g rect { fill: var(--seen); opacity: .75; }
.sight g .row { fill: transparent; opacity: 1; }
.sight .lines { stroke: var(--paper); stroke-width: 1.2; pointer-events: none; }
.sight text { text-anchor: end; }
.sight g { cursor: pointer; }
.looking .sight g:not(.now) rect:not(.row) { opacity: .3; }
.sight g.now text { fill: var(--ink); font-weight: 700; }
.sight g.now rect:not(.row) { opacity: 1; }
li.now { background: var(--ground); }
.given, .predict { display: flex; flex-wrap: wrap; gap: .2rem; align-items: center; }
.predict { color: var(--faint); font-size: .875rem; gap: .6rem; }
.predict .chip { color: var(--ink); font-weight: 600; }
.more { color: var(--faint); }
#readout { position: fixed; inset: auto 0 0; padding: .7rem 1rem; display: none;
  background: var(--paper); border-top: 1px solid var(--line); max-height: 40vh; overflow: auto; }
.looking #readout { display: block; }
#readout div { max-width: 60rem; margin: 0 auto;
  display: flex; flex-wrap: wrap; gap: .25rem .35rem; align-items: center; }
#readout .target { outline: 2px solid var(--wanted); outline-offset: -2px; font-weight: 600; }
"""

SCRIPT = """\
const positions = [...document.querySelectorAll(".window .position")];
const readout = document.createElement("div");
const frame = document.createElement("div");
frame.id = "readout";
frame.setAttribute("aria-live", "polite");
frame.append(readout);
document.body.append(frame);
let pinned = null;

function sees(position) {
  return position.dataset.sees.split(" ").filter(Boolean).map(run => run.split("-").map(Number))
    .flatMap(([first, last]) => positions.slice(first, last + 1));
}

function near(seen, position) {
  const place = seen.indexOf(position), first = Math.max(0, Math.min(place - 20, seen.length - 40));
  const shown = seen.slice(first, first + 40).map(element => element.querySelector(".input").cloneNode(true));
  return [...(first ? ["… "] : []), ...shown, ...(first + 40 < seen.length ? [" …"] : [])];
}

function look(number) {
  document.querySelectorAll(".now, .sees").forEach(element => element.classList.remove("now", "sees"));
  document.body.classList.toggle("looking", number !== null);
  if (number === null) return;
  document.querySelectorAll('[data-position="' + number + '"]').forEach(element => element.classList.add("now"));
  const position = positions[number], seen = sees(position);
  seen.forEach(element => element.classList.add("sees"));
  const target = position.querySelector(".target");
  const wanted = target ? [" predict ", target.cloneNode(true)] : [];
  readout.replaceChildren("given ", ...near(seen, position), ...wanted, " ", position.dataset.note ?? "");
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
"""


@dataclass(frozen=True, kw_only=True)
class WindowInspection(Inspection):
    """One window of text as an objective makes it; T positions.

    Attributes:
        tokens: the text, as the tokenizer cuts it.
        inputs: what is shown at each position.
        mask: row t says with 0 and 1 which of the T positions position t sees.
        documents: number of the document that each position belongs to.
        source: name of what the window was taken from.
        length: positions of all of the source's tokens; the window shows the first T.
        chance: nats of a model that knows nothing, where a run was given.
    """

    style: ClassVar[str] = TOKEN_STYLE + STYLE
    script: ClassVar[str] = SCRIPT

    tokens: list[str]
    inputs: list[str]
    mask: list[list[int]]
    documents: list[int]
    source: str
    length: int
    chance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it; what only a run tells is there only where there is one."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        told = {name: value for name, value in content.items() if value is not None}
        return {"objective": self.objective, "idea": self.idea, **told}

    def facts(self) -> list[str]:
        """What is known of the window."""
        count, documents = len(self.inputs), len({number for number in self.documents if number >= 0})
        of = f" of {self.length:,}" if count < self.length else ""
        several = [f"{documents} documents"] if documents > 1 else []
        return [self.source, f"{count:,}{of} positions", *several]

    def mean_loss(self, losses: list[float]) -> str:
        return f"mean loss {sum(losses) / len(losses):.3f} nats (chance {self.chance:.3f})"

    def share_of_chance(self, loss: float) -> float:
        """How surprising a target was, from 0 to 1."""
        return min(1.0, loss / self.chance) if self.chance else 0.0

    def shown(self, width: int | None = None) -> int:
        """The positions that a terminal of so many columns shows; those of a page, without."""
        most = POSITIONS if width is None else min(SCREEN, (width - LABEL - 4) // 2)
        return min(len(self.inputs), most)

    def limits(self, width: int | None = None) -> str:
        shown = self.shown(width)
        if shown == len(self.inputs):
            return ""
        if width is None:
            return f"The page shows the first {shown:,}."
        return f"Shown are the first {shown}; no more fit here (page and JSON hold all)."

    # -- in a terminal --

    def looked_at(self, width: int) -> list[int]:
        """The positions whose sight a terminal shows."""
        return list(range(self.shown(width)))

    def sight(self, t: int, other: int) -> str:
        """A block of two columns where position t sees another one."""
        return "██" if self.mask[t][other] else "· "

    def who_sees_what(self, width: int) -> Text:
        """Row t has a block for each position that position t sees."""
        positions = self.looked_at(width)
        digits = len(str(max(10, positions[-1] + 1)))
        lines = [Text(" " * (LABEL + digits + 2) + _ruler(positions), "dim")]
        for t in positions:
            line = Text(visible(self.inputs[t]))
            line.truncate(LABEL, overflow="ellipsis")
            line.pad_left(LABEL - line.cell_len)
            line.append(f" {t + 1:>{digits}} ", "dim")
            for other in positions:
                block = self.sight(t, other)
                line.append(block, "dim" if block == "· " else "cyan")
            lines.append(line)
        return Text("\n").join(lines)

    # -- on a page --

    def column(self, t: int, target: str = "", note: str = "", role: str = "") -> str:
        """A position to point at: what is shown above what is to be predicted (a chip, or nothing).

        Args:
            note: what is said of it when it is pointed at.
            role: class of what is shown.
        """
        sees = " ".join(f"{start}-{stop}" for start, stop in runs(self.mask[t]))
        opens = " opens" if t and self.documents[t] != self.documents[t - 1] else ""
        said = f' data-note="{escape(note)}"' if note else ""
        return (
            f'<button class="position{opens}" data-position="{t}" data-sees="{sees}"{said}>'
            f"{chip(f'input {role}'.rstrip(), self.inputs[t])}{target}</button>"
        )

    def scale(self) -> str:
        """What the colours of losses mean, where there are any."""
        if self.chance is None:
            return ""
        return (
            '<p class="legend"><span>0 nats</span><i class="scale"></i>'
            f"<span>{self.chance:.2f} nats, chance: the colour of a target is its loss</span></p>"
        )

    def strokes(self, t: int, shown: int) -> Iterator[tuple[int, int, str]]:
        """What position t sees of the first `shown`: first and last position of each run, and its attributes."""
        return ((start, stop, "") for start, stop in runs(self.mask[t][:shown]))

    def drawing(self) -> str:
        """The mask: row t is filled where position t sees; a run of cells is one rectangle."""
        shown = self.shown()
        names = [_short(token) for token in self.inputs[:shown]]
        margin = 8 + round(LETTER * max(map(len, names))) if shown <= LABELLED else 0
        side = shown * CELL
        parts = [f'<rect class="ground" x="{margin}" width="{side}" height="{side}"/>']
        for t in range(shown):
            y = t * CELL
            cells = "".join(
                f'<rect{role} x="{margin + start * CELL}" y="{y}" width="{(stop - start + 1) * CELL}" height="{CELL}"/>'
                for start, stop, role in self.strokes(t, shown)
            )
            name = (
                f'<text x="{margin - 6}" y="{y + CELL * 0.72:.1f}">{escape(names[t])}</text>'
                if margin
                else ""
            )
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
            f'<svg class="sight" {size} role="img" aria-label="rows: positions, columns: what they see">'
            f"{''.join(parts)}</svg>"
        )


def fitting_window(request: Request, trained: int | None) -> int:
    """Positions to look at, at most; `trained` is the window of the run, where there is one.

    Raises:
        UserError: more are asked for than the run was trained on.
    """
    window, most = request.window, trained or WINDOW
    if window is None:
        return most
    if trained is not None and window > trained:
        raise UserError(
            f"{request.run} was trained on windows of {most} tokens; ask for a window of at most {most}, not {window}."
        )
    return window


def _ruler(positions: list[int]) -> str:
    """The numbers of columns two characters wide, where there is room for them."""
    text = ""
    for column, t in enumerate(positions):
        if len(text) <= 2 * column:
            text = text.ljust(2 * column) + f"{t + 1} "
    return text


def _short(token: str) -> str:
    token = visible(token)
    return token if len(token) <= 12 else token[:11] + "…"


def runs(row: list[int]) -> Iterator[tuple[int, int]]:
    """First and last column of each run of ones."""
    for seen, run in groupby(range(len(row)), lambda column: row[column]):
        columns = list(run)
        if seen:
            yield columns[0], columns[-1]
