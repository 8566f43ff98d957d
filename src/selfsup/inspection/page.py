"""An inspection as one self-contained page: no script or style from elsewhere, light and dark, readable on a phone.

Whatever comes from the data is escaped, and controls (such as those of direction) are shown as escapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import singledispatch
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template

from PIL import Image

from selfsup.inspection import blocks
from selfsup.inspection.blocks import Block, Document, Section, Token, sentence, share_of
from selfsup.inspection.pictures import DENSITY, data_uri, resized
from selfsup.inspection.sheet import NARROWEST, WIDTH, matrix_picture
from selfsup.report import printable

MARKERS = ("<start>", "<end>", "[CLS]", "[SEP]", "[MASK]", "[PAD]")  # which stand for no text
POSITIONS = 512  # that a page shows at most
LABELLED = 48  # positions up to which the rows of a mask have names
CELL, LETTER = 14, 5.2  # width and height of a cell, and width of a letter, in the drawing of a mask
MARKED = 900  # pixels for a row of marks


def page(document: Document) -> str:
    """The page as HTML."""
    facts = f"{sentence(document.summary)} {document.limits}"
    text = Template(_file("page.html")).substitute(
        objective=escape(document.objective),
        heading=escape(document.heading),
        idea=escape(sentence(document.idea)),
        summary=escape(facts.rstrip()),
        style=_file("page.css"),
        sections="\n".join(map(_section, document.sections)),
        script=_file("page.js"),
    )
    return printable(text)


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(section: Section) -> str:
    title = section.title[:1].upper() + section.title[1:]
    hint = f'<p class="hint">{escape(section.said)}</p>\n' if section.said else ""
    return f'<h2>{escape(title)}</h2>\n{hint}<div class="blocks">{"".join(map(draw, section.blocks))}</div>'


@singledispatch
def draw(block: Block) -> str:
    """A block as HTML."""
    raise TypeError(type(block).__name__)


@draw.register
def _points(block: blocks.Points) -> str:
    points = (f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in block.points.items())
    return f"<dl>{''.join(points)}</dl>"


@draw.register
def _table(block: blocks.Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in block.names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in block.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# -- tokens --


def _chip(token: Token, more: str = "") -> str:
    """A token; spaces are faint dots, markers in italics."""
    hot, style = ("", "") if token.heat is None else ("hot", f' style="--heat:{token.heat:.3f}"')
    classes = ("chip", more, token.role, hot, "marker" if token.text in MARKERS else "")
    text = escape(token.text).replace(" ", '<s aria-label="space">·</s>') or "&nbsp;"
    return f'<span class="{" ".join(filter(None, classes))}"{style}>{text}</span>'


def _chips(tokens: Iterable[Token], more: str = "") -> str:
    return "".join(_chip(token, more) for token in tokens)


def _scale(chance: float | None) -> str:
    """What the colours of losses mean, where there are any."""
    if chance is None:
        return ""
    return (
        '<p class="legend"><span>0 nats</span><i class="scale"></i>'
        f"<span>{chance:.2f} nats, chance: the colour of a target is its loss</span></p>"
    )


@draw.register
def _tokens(block: blocks.Tokens) -> str:
    if len(block.lines) == 1:
        chips = " ".join(map(_chip, block.lines[0].tokens[:POSITIONS]))
        return f'{_scale(block.chance)}<p class="strip">{chips}</p>'
    lines = (
        f'<li><span class="number">{escape(line.label)}</span>{_chips(line.tokens)}'
        f'<span class="same">{escape(line.note)}</span></li>'
        for line in block.lines
    )
    return f'<ol class="lines">{"".join(lines)}</ol>'


@draw.register
def _window(block: blocks.Window) -> str:
    roles = (f'<i class="{role}"></i><span>{escape(said)}</span>' for role, said in block.legend.items())
    legend = f'<p class="legend">{"".join(roles)}</p>' if block.legend else ""
    shown, count = min(len(block.inputs), POSITIONS), len(block.inputs)
    left_out = (
        "" if shown == count else f'<p class="hint">The page shows the first {shown:,} of {count:,}.</p>'
    )
    positions = "".join(_position(block, t) for t in range(shown))
    return f'{legend}{_scale(block.chance)}{left_out}<div class="window">{positions}</div>'


def _position(block: blocks.Window, t: int) -> str:
    target = block.targets[t]
    chip = "" if target is None else _chip(Token(target, heat=block.heat(t)), "target")
    opens = " opens" if t and block.documents[t] != block.documents[t - 1] else ""
    note = f' data-note="{escape(block.notes[t])}"' if block.notes[t] else ""
    shown = _chip(Token(block.inputs[t], block.roles[t]), "input")
    return f'<button class="position{opens}" data-position="{t}"{note}>{shown}{chip}</button>'


@draw.register
def _predictions(block: blocks.Predictions) -> str:
    shown = (each for each in block.predictions if each.position < POSITIONS)
    return f"<ol>{''.join(_prediction(each, block.chance) for each in shown)}</ol>"


def _prediction(each: blocks.Prediction, chance: float | None) -> str:
    heat = None if each.loss is None else share_of(each.loss, chance)
    more = '<span class="more">…</span>' * each.more
    guesses = "".join(_guess(guess, each.target) for guess in each.guesses or ())
    return (
        f'<li data-position="{each.position}"><span class="given">{more}{_chips(each.given, "input")}</span>'
        f'<span class="predict">predict {_chip(Token(each.target, heat=heat), "target")}</span>'
        f'{_bar(each.loss, heat)}<span class="guesses">{guesses}</span></li>'
    )


def _guess(guess: blocks.Guess, target: str) -> str:
    right = "right" if guess.token == target else ""
    return f"{_chip(Token(guess.token, right), 'guess')}<small>{guess.probability:.0%}</small>"


def _bar(loss: float | None, heat: float | None) -> str:
    """A loss as a bar and in nats."""
    if loss is None or heat is None:
        return ""
    return f'<span class="loss"><i style="--heat:{heat:.3f}"></i>{loss:.2f}</span>'


@draw.register
def _sight(block: blocks.Sight) -> str:
    """The mask: row t is filled where position t sees; a run of cells is one rectangle."""
    shown = min(len(block.names), POSITIONS)
    names = [_short(name) for name in block.names[:shown]]
    margin = 8 + round(LETTER * max(map(len, names))) if shown <= LABELLED else 0
    side, width = shown * CELL, margin + shown * CELL
    rows = "".join(_sight_row(block, t, shown, names[t], margin) for t in range(shown))
    ticks = (
        range(0, side + 1, CELL) if shown <= 4 * LABELLED else ()
    )  # beyond that, lines would be all there is to see
    lines = "".join(f"M{margin + tick} 0V{side}M{margin} {tick}H{width}" for tick in ticks)
    return (
        f'<svg class="sight" viewBox="0 0 {width} {side}" style="max-width:{min(620, width * 2)}px" role="img" '
        f'aria-label="rows: positions, columns: what they see">{_rect("ground", margin, 0, side, side)}{rows}'
        f'<path class="lines" d="{lines}"/></svg>'
    )


def _sight_row(block: blocks.Sight, t: int, shown: int, name: str, margin: int) -> str:
    y = t * CELL
    seen = [1 + block.far(t, other) if bit else 0 for other, bit in enumerate(block.mask[t][:shown])]
    cells = "".join(
        _rect("far" * (what - 1), margin + start * CELL, y, (stop - start + 1) * CELL, CELL)
        for what, start, stop in _runs(seen)
    )
    text = f'<text x="{margin - 6}" y="{y + CELL * 0.72:.1f}">{escape(name)}</text>' if margin else ""
    sees = " ".join(f"{start}-{stop}" for _, start, stop in _runs(block.mask[t]))
    row = _rect("row", 0, y, margin + shown * CELL, CELL)
    return f'<g data-position="{t}" data-sees="{sees}">{row}{text}{cells}</g>'


def _runs(row: list[int]) -> Iterator[tuple[int, int, int]]:
    """What stands in each run of equal numbers but 0, with its first and last place."""
    for what, run in groupby(range(len(row)), row.__getitem__):
        places = list(run)
        if what:
            yield what, places[0], places[-1]


def _short(token: str) -> str:
    token = token.replace(" ", "·")
    return token if len(token) <= 12 else token[:11] + "…"


@draw.register
def _marks(block: blocks.Marks) -> str:
    """A row of cells for each, as wide as the page where they are many."""
    shown, margin = min(POSITIONS, *map(len, block.rows.values()), POSITIONS), 52
    cell, parts = max(2, min(CELL, MARKED // shown)), []
    for number, (name, marks) in enumerate(block.rows.items()):
        y = number * (CELL + 4)
        parts.append(f'<text x="0" y="{y + CELL * 0.72:.1f}">{escape(name)}</text>')
        parts.append(_rect("shown", margin, y, shown * cell, CELL))
        places = ((t, block.roles[mark]) for t, mark in enumerate(marks[:shown]) if mark in block.roles)
        parts += [_rect(role, margin + t * cell, y, cell - cell // 8, CELL) for t, role in places]
    width, height = margin + shown * cell, len(block.rows) * (CELL + 4)
    return (
        f'<div class="wide"><svg class="marks" viewBox="0 0 {width} {height}" style="width:{width}px" role="img" '
        f'aria-label="columns: positions">{"".join(parts)}</svg></div>'
    )


def _rect(role: str, x: float, y: float, width: float, height: float) -> str:
    named = f' class="{role}"' if role else ""
    return f'<rect{named} x="{x:g}" y="{y:.4g}" width="{width:g}" height="{height:.4g}"/>'


@draw.register
def _bars(block: blocks.Bars) -> str:
    """What is above 0 upwards, what is below it downwards."""
    most = max(abs(number) for row in block.rows.values() for number in row) or 1.0
    rows = (f"<span>{escape(name)}</span>{_bar_row(row, most)}" for name, row in block.rows.items())
    return f'<div class="bars"><p>{escape(block.title)}: {escape(block.said)}</p>{"".join(rows)}</div>'


def _bar_row(numbers: list[float], most: float) -> str:
    heights = [13 * number / most for number in numbers]
    bars = (
        _rect("up" if high > 0 else "down", 10 * place, 14 - max(0.0, high), 8, abs(high))
        for place, high in enumerate(heights)
    )
    size = f'viewBox="0 0 {10 * len(numbers)} 28"'
    return f'<svg {size} role="img" aria-label="numbers of a vector">{"".join(bars)}</svg>'


# -- pictures --


@draw.register
def _gallery(block: blocks.Gallery) -> str:
    groups = (
        f"<section><h3>{escape(group.name)}</h3>{''.join(map(_tiles, group.rows))}</section>"
        for group in block.groups
    )
    return f'<div class="gallery">{"".join(groups)}</div>'


def _tiles(tiles: list[blocks.Tile]) -> str:
    return f'<div class="tiles">{"".join(map(_tile, tiles))}</div>'


def _tile(tile: blocks.Tile) -> str:
    picture = Image.fromarray(tile.pixels)
    if picture.height > tile.height * DENSITY:
        picture = resized(tile.pixels, tile.height)
    width = max(1, round(tile.height * picture.width / picture.height))
    frame = f' style="--frame:{tile.colour}"' if tile.colour else ""
    said = [f"<b>{escape(tile.name)}</b>", _chips(tile.tokens), escape(tile.facts)]
    return (
        f'<figure{frame}><img src="{data_uri(picture)}" alt="{escape(tile.name)}" width="{width}" '
        f'height="{tile.height}"><figcaption style="max-width:{max(width, NARROWEST)}px">'
        f"{'<br>'.join(filter(None, said))}</figcaption></figure>"
    )


@draw.register
def _matrix(block: blocks.Matrix) -> str:
    """A picture, whose cells are read where they are pointed at: see page.js."""
    drawn = matrix_picture(block, WIDTH * DENSITY)
    told = {
        "values": [[round(value, 3) for value in row] for row in block.values],
        "roles": block.roles,
        "said": block.said,
        "meaning": block.meaning,
        "place": [drawn.left / drawn.picture.width, drawn.top / drawn.picture.height],
    }
    return (
        f'<figure class="matrix" data-cells="{escape(json.dumps(told))}"><figcaption>{escape(block.caption)}'
        f'</figcaption><img src="{data_uri(drawn.picture)}" width="{drawn.picture.width // DENSITY}" '
        f'alt="{escape(block.name)}"><p class="readout" aria-live="polite">Point at a cell to read it.</p></figure>'
    )
