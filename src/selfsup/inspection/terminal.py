"""An inspection in a terminal: each kind of block in so many columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import singledispatch

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid

from selfsup.inspection import blocks
from selfsup.inspection.blocks import OUT, OWN, Block, Document, Token, mean, of_role, share_of
from selfsup.report import Text

BAR = 20  # columns of a loss at chance
SCREEN = 32  # positions that are shown at most
TOKENS = 64  # of a text that runs on
LABEL = 14  # columns of a token in the margin
SPARKS = "▁▂▃▄▅▆▇█"
FAR, NEAR, BLIND = "▒▒", "██", "· "  # where only the layers that see far do, all do, and none does
STYLES = {
    "mask": "bold magenta",
    "random": "bold red",
    "kept": "bold green",
    "first": "blue",
    "second": "dark_orange",
    "neither": "dim strike",
    "gone": "reverse yellow",
    "": "",
}


def show(document: Document, console: Console) -> None:
    """Print every section."""
    console.print(Text.assemble((document.objective, "bold"), f": {document.idea}"))
    for said in filter(None, (document.summary, document.limits)):
        console.print(Text(said, "dim"))
    for section in document.sections:
        console.print()
        console.print(Text(section.title, "bold"))
        if section.note:
            console.print(Text(section.note, "dim"))
        for block in section.blocks:
            console.print(draw(block, console.width))


@singledispatch
def draw(block: Block, width: int) -> RenderableType:
    """A block in so many columns."""
    raise TypeError(type(block).__name__)


def _lines(lines: Iterable[Text]) -> Text:
    return Text("\n").join(lines)


def _cut(made: RenderableType, shown: int, count: int, what: str = "positions") -> RenderableType:
    """With how much is left out."""
    if shown >= count:
        return made
    return Group(made, Text(f"Shown are the first {shown} {what} of {count:,}; page and JSON hold all.", "dim"))


def _shortened(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


@draw.register
def _points(block: blocks.Points, width: int) -> RenderableType:
    return _lines(Text.assemble((f"{term}: ", "bold"), said) for term, said in block.points.items())


@draw.register
def _table(block: blocks.Table, width: int) -> RenderableType:
    table = _grid()
    for number, name in enumerate(block.names):
        table.add_column(name, justify="right" if number else "left")
    for row in block.rows:
        table.add_row(*map(Text, row))
    return table


def _grid() -> Grid:
    return Grid(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")


# -- tokens --


def visible(token: str) -> str:
    """A token with its spaces as dots."""
    return token.replace(" ", "·")


def colour(heat: float | None) -> str:
    """Of what was surprising: green, yellow or red."""
    return "" if heat is None else ("green", "yellow", "red")[max(0, min(2, int(3 * heat)))]


def _token(token: Token) -> Text:
    return Text(visible(token.text), colour(token.heat) or STYLES[token.role])


def _row(tokens: Iterable[Token]) -> Text:
    return Text(" │ ", "dim").join(map(_token, tokens))


@draw.register
def _tokens(block: blocks.Tokens, width: int) -> RenderableType:
    if len(block.lines) == 1:
        (line,) = block.lines
        return _cut(_row(line.tokens[:TOKENS]), TOKENS, len(line.tokens), "tokens")
    lines = (
        Text.assemble((f"{each.label:>3} ", "dim"), _row(each.tokens), (each.note, "yellow")) for each in block.lines
    )
    return _lines(_shortened(line, width) for line in lines)


@draw.register
def _window(block: blocks.Window, width: int) -> RenderableType:
    """As a table where every position has a target, else as a text that runs on."""
    if None in block.targets:
        return _running(block)
    shown, table = _fitting(width, len(block.inputs)), _grid()
    table.add_column("position", justify="right")
    for name in ("input", "target"):
        table.add_column(name)
    if block.losses:
        table.add_column("loss", justify="right")
        table.add_column(f"as a share of chance ({block.chance:.2f})")
    for t in range(shown):
        tokens = (Text(visible(token or "")) for token in (block.inputs[t], block.targets[t]))
        table.add_row(Text(str(t + 1), "dim"), *tokens, *_loss(block, t))
    return _cut(table, shown, len(block.inputs))


def _loss(block: blocks.Window, t: int) -> list[Text]:
    loss, heat = block.losses[t] if block.losses else None, block.heat(t)
    if loss is None or heat is None:
        return []
    return [Text(f"{loss:.2f}"), Text("█" * math.ceil(BAR * heat), colour(heat))]


def _running(block: blocks.Window) -> RenderableType:
    roles = Text(", ", "dim").join(Text(role, STYLES[role]) for role in block.legend)
    pieces = []
    for shown, target, role in list(zip(block.inputs, block.targets, block.roles, strict=True))[:TOKENS]:
        arrow = "" if target is None else "?" if shown == target else f"→{visible(target)}"
        pieces.append(Text(f"{visible(shown)}{arrow}", STYLES[role]))
    text = _cut(Text(" │ ", "dim").join(pieces), TOKENS, len(block.inputs), "tokens")
    return Group(Text.assemble(("what is shown → what is to be predicted; ", "dim"), roles), text)


def _fitting(width: int, count: int) -> int:
    """The positions that fit beside a margin, two columns each."""
    return min(SCREEN, count, max(1, (width - LABEL - 4) // 2))


@draw.register
def _predictions(block: blocks.Predictions, width: int) -> RenderableType:
    shown = [each for each in block.predictions[:SCREEN] if each.position < TOKENS]
    lines = _lines(_prediction(each, block.chance, width) for each in shown)
    return _cut(lines, len(shown), len(block.predictions), "predictions")


def _prediction(each: blocks.Prediction, chance: float | None, width: int) -> Text:
    """A hidden token by itself; a next one with those before it that fit."""
    behind = Text.assemble((" predict ", "dim"), (visible(each.target), "bold"))
    if each.loss is not None:
        behind.append(f"  {each.loss:.2f}", colour(share_of(each.loss, chance)))
    elif each.done:
        behind.append(f"  ({each.done})", "dim")
    for guess in each.guesses or ():
        behind.append("  ").append(visible(guess.token), "bold underline" * (guess.token == each.target))
        behind.append(f" {guess.probability:.0%}", "dim")
    if each.done:
        (hidden,) = (token for token in each.given if token.role)
        return _shortened(Text.assemble((f"{each.position + 1:>4} ", "dim"), _token(hidden), behind), width)
    given, more, room = list(each.given), each.more, width - len("given  …") - behind.cell_len
    while len(given) > 1 and sum(cell_len(token.text) + 1 for token in given) > room:
        more, given = True, given[1:]
    shown = Text(" ").join([*([Text("…", "dim")] if more else []), *map(_token, given)])
    return _shortened(Text.assemble(("given ", "dim"), shown, behind), width)


@draw.register
def _sight(block: blocks.Sight, width: int) -> RenderableType:
    """Positions from the first on where each sees what is before it; else all over the window, evenly spaced."""
    count = len(block.names)
    shown = min(_fitting(width, count), (width - LABEL - 2 - len(str(max(10, count)))) // 2)
    positions = list(range(shown)) if block.reach is None else [t * count // shown for t in range(shown)]
    digits = len(str(max(10, positions[-1] + 1)))
    lines = [Text(" " * (LABEL + digits + 2) + _ruler(positions), "dim")]
    for t in positions:
        line = _shortened(Text(visible(block.names[t])), LABEL)
        line.pad_left(LABEL - line.cell_len)
        line.append(f" {t + 1:>{digits}} ", "dim")
        for other in positions:
            seen = FAR if block.far(t, other) else NEAR if block.mask[t][other] else BLIND
            line.append(seen, "dim" if seen == BLIND else "cyan")
        lines.append(line)
    if shown == count:
        return _lines(lines)
    which = f"the first {shown}" if block.reach is None else f"{shown} of {count:,} positions, evenly spaced"
    return Group(_lines(lines), Text(f"Shown are {which}; no more fit here (page and JSON hold all).", "dim"))


def _ruler(positions: list[int]) -> str:
    """The numbers of columns two characters wide, where there is room for them."""
    text = ""
    for column, t in enumerate(positions):
        if len(text) <= 2 * column:
            text = text.ljust(2 * column) + f"{t + 1} "
    return text


@draw.register
def _marks(block: blocks.Marks, width: int) -> RenderableType:
    room = max(map(len, block.rows)) + 2
    shown, lines = min(TOKENS, width - room), []
    for name, marks in block.rows.items():
        cells = ((mark, STYLES[block.roles[mark]] if mark in block.roles else "dim") for mark in marks[:shown])
        lines.append(Text.assemble((name.ljust(room), "dim"), *cells))
    return _cut(_lines(lines), shown, max(map(len, block.rows.values())))


@draw.register
def _bars(block: blocks.Bars, width: int) -> RenderableType:
    most = max(abs(number) for row in block.rows.values() for number in row) or 1.0
    lines = [_shortened(Text(block.title, "italic"), width)]
    for name, numbers in block.rows.items():
        places = (round((number / most + 1) / 2 * (len(SPARKS) - 1)) for number in numbers)
        lines.append(Text.assemble((f"  {name} ", "dim"), ("".join(SPARKS[place] for place in places), "cyan")))
    return _lines([*lines, Text(f"  {block.said}", "dim")])


# -- pictures --


@draw.register
def _gallery(block: blocks.Gallery, width: int) -> RenderableType:
    said = []
    for group in block.groups:
        said += [Text(group.name, "italic")] if group.name else []
        for tile in (tile for row in group.rows for tile in row):
            said.append(Text.assemble((f"  {tile.name}: ", "bold"), (tile.facts, "dim")))
            said += [_shortened(Text.assemble("    ", _row(tile.tokens)), width)] if tile.tokens else []
    return _lines(said)


@draw.register
def _matrix(block: blocks.Matrix, width: int) -> RenderableType:
    if not block.rows:
        every = mean([value for row in block.values for value in row])
        own = mean(of_role(OWN, block.roles, block.values))
        return Text(f"{block.name}: {own:.2f} on the diagonal, {every:.2f} everywhere, in the mean")
    shown = min(len(block.columns), max(1, (width - 4) // 4))
    lines = [Text(f"{block.name}, in hundredths", "italic")]
    lines.append(Text("    " + "".join(f"{number:>4}" for number in range(1, shown + 1)), "dim"))
    for number, row in enumerate(zip(block.values, block.roles, strict=True), 1):
        cells = (_number(*cell) for cell in list(zip(*row, strict=True))[:shown])
        lines.append(Text.assemble((f"{number:>3} ", "dim"), *cells))
    return _cut(_lines(lines), shown, len(block.columns), "columns")


def _number(value: float, role: str) -> tuple[str, str]:
    style = {OWN: "bold green", OUT: "dim"}.get(role, "")
    return ("   ·" if role == OUT else f"{round(100 * value):>4}"), style
