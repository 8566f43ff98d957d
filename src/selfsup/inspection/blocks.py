"""What an inspection of images is made of: galleries, matrices, figures, sentences; for terminal, page and sheet."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Group, RenderableType

from selfsup.inspection.base import Inspection, Part, table_part
from selfsup.inspection.page import sentence
from selfsup.inspection.pictures import (
    DENSITY,
    FAINT,
    FIRST,
    GAP,
    GROUND,
    INK,
    PAPER,
    SECOND,
    Pixels,
    blank,
    data_uri,
    drawable,
    flowed,
    font,
    png,
    ramp,
    resized,
    stacked,
    written,
)
from selfsup.report import Text

WIDTH, MARGIN = 940, 28  # of a sheet
CELL = 34  # of a matrix
LETTER, LENGTH = 12, 110  # of texts above its columns: their size and room
EDGE = 3  # of a frame
NARROWEST = 96  # that what is said beneath a tile may be
OWN, ALIEN, OUT = "+", "-", "="  # a cell that belongs together, one that does not, and one that says nothing

STYLE = """\
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .7rem 0 0; max-width: 52rem; }
dt { color: var(--hot); font-weight: 600; }
dd { margin: 0; }
.gallery { display: flex; flex-wrap: wrap; gap: 1.4rem 2.2rem; margin-top: .9rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
.tiles + .tiles { margin-top: .6rem; }
section { max-width: 100%; }
h3 { font-size: .875rem; font-weight: normal; color: var(--faint); margin: 0 0 .3rem; width: 0; min-width: 100%;
  overflow-wrap: anywhere; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: .3rem; }
.tiles img { border: 3px solid var(--frame, transparent); image-rendering: pixelated; box-sizing: content-box; }
figcaption { font-size: .8rem; line-height: 1.35; color: var(--faint); margin: .25rem 0; }
figcaption b { color: var(--frame, var(--ink)); font-weight: 600; }
"""


class Block(Protocol):
    """Something to look at, in three forms."""

    def screen(self, width: int) -> RenderableType:
        """For a terminal of so many columns."""
        ...

    def html(self) -> str:
        """For a page."""
        ...

    def paint(self, width: int) -> Image.Image:
        """For a sheet, at most so many pixels wide."""
        ...


@dataclass(frozen=True)
class Section:
    """A block under a title, and a hint on how it is read."""

    title: str
    hint: str
    block: Block


class PictureInspection(Inspection):
    """An inspection whose parts are blocks: a page, or one sheet."""

    style: ClassVar[str] = STYLE
    pictured: ClassVar[bool] = True

    @property
    def heading(self) -> str:
        return f"What the data teaches: {self.objective}"

    @abstractmethod
    def sections(self) -> list[Section]:
        """What there is to look at, in reading order."""

    def parts(self) -> list[Part]:
        return [Part(each.title, each.hint, each.block.screen, each.block.html) for each in self.sections()]

    def to_png(self) -> bytes:
        """One sheet with all of it, drawn by Pillow."""
        width, edge = WIDTH * DENSITY, MARGIN * DENSITY
        facts = f"{sentence(self.summary())} {self.limits()}"
        parts = [
            written(self.heading, 24, INK, width),
            written(sentence(self.idea), 15, INK, width),
            written(facts, 13, FAINT, width),
        ]
        for each in self.sections():
            title = written(each.title[:1].upper() + each.title[1:], 18, INK, width)
            hint = [written(each.hint, 13, FAINT, width)] if each.hint else []
            parts += [blank(width, GAP), title, *hint, each.block.paint(width)]
        column = stacked(parts, width, 6 * DENSITY)
        sheet = blank(width + 2 * edge, column.height + 2 * edge)
        sheet.paste(column, (edge, edge))
        return png(sheet)


@dataclass(frozen=True)
class Points:
    """Terms and a sentence on each."""

    points: dict[str, str]

    def screen(self, width: int) -> RenderableType:
        lines = (Text.assemble((f"{term}: ", "bold"), said) for term, said in self.points.items())
        return Text("\n").join(lines)

    def html(self) -> str:
        points = (f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in self.points.items())
        return f"<dl>{''.join(points)}</dl>"

    def paint(self, width: int) -> Image.Image:
        indent = round(max(map(font(15).getlength, self.points))) + 16 * DENSITY
        rows = []
        for term, said in self.points.items():
            text = written(said, 15, INK, width - indent)
            row = blank(width, text.height)
            row.paste(written(term, 15, FIRST, indent), (0, 0))
            row.paste(text, (indent, 0))
            rows.append(row)
        return stacked(rows, width, 4 * DENSITY)


@dataclass(frozen=True)
class Figures:
    """Figures in rows and columns, under names; the first column says what they are of."""

    names: list[str]
    rows: list[list[str]]

    def screen(self, width: int) -> RenderableType:
        return table_part("", "", self.names, self.rows).screen(width)

    def html(self) -> str:
        return table_part("", "", self.names, self.rows).html()

    def paint(self, width: int) -> Image.Image:
        face, step = font(14), 22 * DENSITY
        columns = list(zip(self.names, *self.rows, strict=True))
        widths = [max(map(face.getlength, column)) + 24 * DENSITY for column in columns]
        sheet = blank(width, step * (len(self.rows) + 1))
        draw = ImageDraw.Draw(sheet)
        for number, row in enumerate([self.names, *self.rows]):
            for place, cell in enumerate(row):
                left = sum(widths[: place + 1]) if place else 0
                colour, anchor = INK if number else FAINT, "ra" if place else "la"
                draw.text((left, number * step), cell, colour, face, anchor)
        return sheet


# -- galleries --


@dataclass(frozen=True)
class Tile:
    """A picture and what is said beneath it.

    Attributes:
        pixels: (H, W, 3).
        name: what it is, in a word or two.
        facts: on it; may be empty.
        height: at which it is shown, in pixels of a page.
        colour: of its frame.
    """

    pixels: Pixels
    name: str
    facts: str
    height: int
    colour: str | None = None

    def html(self) -> str:
        picture = Image.fromarray(self.pixels)
        if picture.height > self.height * DENSITY:
            picture = resized(self.pixels, self.height)
        width = max(1, round(self.height * picture.width / picture.height))
        frame = f' style="--frame:{self.colour}"' if self.colour else ""
        facts = f"<br>{escape(self.facts)}" if self.facts else ""
        return (
            f'<figure{frame}><img src="{data_uri(picture)}" alt="{escape(self.name)}" width="{width}" '
            f'height="{self.height}"><figcaption style="max-width:{max(width, NARROWEST)}px">'
            f"<b>{escape(self.name)}</b>{facts}</figcaption></figure>"
        )

    def paint(self) -> Image.Image:
        picture, edge = resized(self.pixels, self.height), EDGE * DENSITY
        framed = Image.new("RGB", (picture.width + 2 * edge, picture.height + 2 * edge), self.colour or PAPER)
        framed.paste(picture, (edge, edge))
        width = max(framed.width, NARROWEST * DENSITY)
        said = [written(self.name, 13, self.colour or INK, width)]
        said += [written(self.facts, 12, FAINT, width)] if self.facts else []
        return stacked([framed, *said], width, 2 * DENSITY)


@dataclass(frozen=True)
class Gallery:
    """Rows of tiles, some under one name."""

    groups: Sequence[tuple[str, Sequence[Sequence[Tile]]]]

    def screen(self, width: int) -> RenderableType:
        said = []
        for name, rows in self.groups:
            said.append(Text(name, "italic"))
            tiles = (tile for row in rows for tile in row)
            said += [Text.assemble((f"  {tile.name}: ", "bold"), (tile.facts, "dim")) for tile in tiles]
        return Text("\n").join(said)

    def html(self) -> str:
        groups = (
            f"<section><h3>{escape(name)}</h3>{''.join(map(_row, rows))}</section>"
            for name, rows in self.groups
        )
        return f'<div class="gallery">{"".join(groups)}</div>'

    def paint(self, width: int) -> Image.Image:
        return flowed([_group(name, rows, width) for name, rows in self.groups], width, 2 * GAP * DENSITY)


def _row(tiles: Sequence[Tile]) -> str:
    return f'<div class="tiles">{"".join(tile.html() for tile in tiles)}</div>'


def _group(name: str, rows: Sequence[Sequence[Tile]], width: int) -> Image.Image:
    gap = GAP * DENSITY
    painted = [flowed([tile.paint() for tile in row], width, gap) for row in rows]
    wide = max(row.width for row in painted)
    return stacked([written(name, 13, FAINT, wide), stacked(painted, wide, gap)], wide, 2 * DENSITY)


# -- matrices --


@dataclass(frozen=True)
class Matrix:
    """How alike each picture of a row is to each picture or text of a column: the stronger a cell, the more.

    Attributes:
        name: of what says so.
        rows, columns: pictures, drawn in the margins; texts of columns stand upright, cut to their space.
        values: row by row; the least is drawn as nothing, the largest at full strength.
        roles: row by row: OWN cells are framed, OUT cells crossed out.
        cell: side of one, in pixels of a page, where there is room.
        limits: what is drawn as nothing and at full strength; by default the least and the largest value.
    """

    name: str
    rows: Sequence[Pixels]
    columns: Sequence[Pixels | str]
    values: Sequence[Sequence[float]]
    roles: Sequence[str]
    cell: int = CELL
    limits: tuple[float, float] | None = None

    def screen(self, width: int) -> RenderableType:
        lines = [Text(f"{self.name}, in hundredths", "italic")]
        for values, roles in zip(self.values, self.roles, strict=True):
            cells = (_number(value, role) for value, role in zip(values, roles, strict=True))
            lines.append(Text.assemble(*cells))
            lines[-1].truncate(width, overflow="ellipsis")
        return Text("\n").join(lines)

    def html(self) -> str:
        picture = self._drawn(WIDTH * DENSITY)
        return (
            f'<figure><figcaption>{escape(self._caption())}</figcaption><img src="{data_uri(picture)}" '
            f'width="{picture.width // DENSITY}" alt="{escape(self.name)}"></figure>'
        )

    def paint(self, width: int) -> Image.Image:
        picture = self._drawn(width)
        caption = written(self._caption(), 13, FAINT, picture.width)
        return stacked([caption, picture], picture.width, 4 * DENSITY)

    def _range(self) -> tuple[float, float]:
        if self.limits is not None:
            return self.limits
        kept = [
            v for values, roles in self._pairs() for v, role in zip(values, roles, strict=True) if role != OUT
        ]
        return min(kept, default=0.0), max(kept, default=1.0)

    def _caption(self) -> str:
        return scale_caption(self.name, self._range())

    def _pairs(self) -> list[tuple[Sequence[float], str]]:
        return list(zip(self.values, self.roles, strict=True))

    def _drawn(self, width: int) -> Image.Image:
        side = min(self.cell * DENSITY, width // (len(self.columns) + 1))
        heads = [_head(column, side) for column in self.columns]
        above = max(head.height for head in heads)
        picture = blank(side * (len(self.columns) + 1), above + 2 * DENSITY + side * len(self.rows))
        for place, head in enumerate(heads, 1):
            picture.paste(head, (place * side + DENSITY, DENSITY + above - head.height))
        above += 2 * DENSITY
        for place, pixels in enumerate(self.rows):
            picture.paste(_thumbnail(pixels, side), (DENSITY, above + place * side + DENSITY))
        low, high = self._range()
        shares = (np.array(self.values) - low) / max(high - low, 1e-9)
        colours = ramp(shares, (GROUND, SECOND)).tolist()
        draw = ImageDraw.Draw(picture)
        for row, roles in enumerate(self.roles):
            for column, role in enumerate(roles):
                left, top = (column + 1) * side + DENSITY, above + row * side + DENSITY
                inner = (left, top, left + side - 2 * DENSITY - 1, top + side - 2 * DENSITY - 1)
                _cell(draw, inner, tuple(colours[row][column]), role)
        return picture


def scale_caption(name: str, limits: tuple[float, float]) -> str:
    """Of a matrix: what is drawn as nothing and at full strength."""
    return f"{name}, from {limits[0]:.2f} (pale) to {limits[1]:.2f} (full)"


def _number(value: float, role: str) -> tuple[str, str]:
    style = {OWN: "bold green", OUT: "dim"}.get(role, "")
    return ("   ·" if role == OUT else f"{round(100 * value):>4}", style)


def _thumbnail(pixels: Pixels, side: int) -> Image.Image:
    inner = side - 2 * DENSITY
    return Image.fromarray(pixels).resize((inner, inner), Image.Resampling.BILINEAR)


def _head(column: Pixels | str, side: int) -> Image.Image:
    if not isinstance(column, str):
        return _thumbnail(column, side)
    size = min(LETTER, side // DENSITY - 2)
    strip = blank(LENGTH * DENSITY, side - 2 * DENSITY)
    place = (0, strip.height / 2)
    ImageDraw.Draw(strip).text(place, drawable(column), INK, font(size), anchor="lm")
    return strip.rotate(90, expand=True)


def _cell(
    draw: ImageDraw.ImageDraw, inner: tuple[int, int, int, int], colour: tuple[int, ...], role: str
) -> None:
    if role == OUT:
        draw.rectangle(inner, fill=PAPER)
        draw.line(inner, fill=FAINT, width=DENSITY)
        return
    draw.rectangle(inner, fill=colour)
    if role == OWN:
        draw.rectangle(inner, outline=FIRST, width=2 * DENSITY)


@dataclass(frozen=True)
class Beside:
    """Blocks beside each other, where there is room."""

    blocks: Sequence[Block]

    def screen(self, width: int) -> RenderableType:
        return Group(*(block.screen(width) for block in self.blocks))

    def html(self) -> str:
        return f'<div class="gallery">{"".join(block.html() for block in self.blocks)}</div>'

    def paint(self, width: int) -> Image.Image:
        return flowed([block.paint(width) for block in self.blocks], width, 2 * GAP * DENSITY)
