"""Pictures to look at: on a page, embedded; on one sheet, drawn by Pillow; in a terminal, what is said beneath them."""

from __future__ import annotations

import base64
import io
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont
from rich.console import Group, RenderableType
from rich.text import Text

from selfsup.inspection.base import Inspection, Part, table_part
from selfsup.inspection.page import sentence

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)

DENSITY = 2  # pixels drawn for each that the page counts
WIDTH = 940  # of a sheet
MARGIN, GAP = 28, 12
CELL = 34  # of a matrix
PAPER, INK, FAINT, GROUND = "#fbfaf8", "#1f2328", "#6b7079", "#f0eee9"
FIRST, SECOND, OTHER = "#e8590c", "#2f6fde", "#0f9d76"  # colours of frames
RAMP = (
    "#0d0a1f",
    "#5b1a63",
    "#b8324f",
    "#ef7d29",
    "#fbd87a",
    "#fffbe6",
)  # from little to much, ever brighter
LETTERS = "“”‘’…±°·"  # beyond ASCII, of Pillow's font
HIDDEN = (178, 174, 168)  # of a patch that is not shown

PICTURE_STYLE = """\
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .7rem 0 0; max-width: 52rem; }
dt { color: var(--hot); font-weight: 600; }
dd { margin: 0; }
.gallery { display: flex; flex-wrap: wrap; gap: 1.4rem 2.2rem; margin-top: .9rem; }
.tiles + .tiles { margin-top: .6rem; }
section { max-width: 100%; }
h3 { font-size: .875rem; font-weight: normal; color: var(--faint); margin: 0 0 .3rem; width: 0; min-width: 100%;
  overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-start; }
figure { margin: 0; }
figure img { display: block; border: 3px solid var(--frame, transparent); border-radius: .3rem; max-width: 100%;
  image-rendering: pixelated; }
figcaption { font-size: .8rem; line-height: 1.35; color: var(--faint); margin-top: .25rem; }
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
        """For a sheet of so many pixels."""
        ...


@dataclass(frozen=True)
class Box:
    """A part of a picture, in its pixels, with a name that is drawn into its corner."""

    top: float
    left: float
    height: float
    width: float
    colour: str
    name: str


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

    @property
    def width(self) -> int:
        return max(1, round(float(self.height * self.pixels.shape[1] / self.pixels.shape[0])))


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
        groups = (f"<section><h3>{escape(name)}</h3>{_rows(rows)}</section>" for name, rows in self.groups)
        return f'<div class="gallery">{"".join(groups)}</div>'

    def paint(self, width: int) -> Image.Image:
        return flowed([_group(name, rows, width) for name, rows in self.groups], width, 2 * GAP * DENSITY)


OWN, ALIEN, OUT = "+", "-", "="  # a cell that belongs together, one that does not, and one that says nothing


@dataclass(frozen=True)
class Matrix:
    """How alike each picture of a column is to each of a row: the stronger a cell, the nearer its value is to 1.

    Attributes:
        name: of what says so.
        rows, columns: pictures, drawn in the margins.
        values: row by row; what is below 0 is drawn as 0.
        roles: row by row: OWN cells are framed, OUT cells crossed out.
    """

    name: str
    rows: Sequence[Pixels]
    columns: Sequence[Pixels]
    values: Sequence[Sequence[float]]
    roles: Sequence[str]

    def screen(self, width: int) -> RenderableType:
        lines = [Text(f"{self.name}: in hundredths", "italic")]
        for values, roles in zip(self.values, self.roles, strict=True):
            cells = (_number(value, role) for value, role in zip(values, roles, strict=True))
            lines.append(Text.assemble(*cells, no_wrap=True, overflow="ellipsis"))
        return Text("\n").join(lines)

    def html(self) -> str:
        picture = self._drawn(WIDTH * DENSITY)
        side, uri = picture.width // DENSITY, data_uri(np.asarray(picture))
        return (
            f'<figure><figcaption>{escape(self.name)}</figcaption><img src="{uri}" width="{side}" '
            f'alt="how alike: {escape(self.name)}"></figure>'
        )

    def paint(self, width: int) -> Image.Image:
        picture = self._drawn(width)
        return stacked([written(self.name, 13, FAINT, picture.width), picture], picture.width, 4 * DENSITY)

    def _drawn(self, width: int) -> Image.Image:
        cell = min(CELL * DENSITY, width // (len(self.columns) + 1))
        picture = blank(cell * (len(self.columns) + 1), cell * (len(self.rows) + 1))
        for place, pixels in enumerate(self.columns, 1):
            picture.paste(_thumbnail(pixels, cell), (place * cell + DENSITY, DENSITY))
        draw = ImageDraw.Draw(picture)
        for row, (pixels, values, roles) in enumerate(
            zip(self.rows, self.values, self.roles, strict=True), 1
        ):
            picture.paste(_thumbnail(pixels, cell), (DENSITY, row * cell + DENSITY))
            for column, (value, role) in enumerate(zip(values, roles, strict=True), 1):
                left, top, side = column * cell + DENSITY, row * cell + DENSITY, cell - 2 * DENSITY - 1
                _cell(draw, (left, top, left + side, top + side), value, role)
        return picture


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


def _number(value: float, role: str) -> tuple[str, str]:
    style = {OWN: "bold green", OUT: "dim"}.get(role, "")
    return ("   ·" if role == OUT else f"{round(100 * value):>4}", style)


def _thumbnail(pixels: Pixels, cell: int) -> Image.Image:
    side = cell - 2 * DENSITY
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)


def _cell(draw: ImageDraw.ImageDraw, inner: tuple[int, int, int, int], value: float, role: str) -> None:
    if role == OUT:
        draw.rectangle(inner, fill=GROUND)
        draw.line(inner, fill=FAINT, width=DENSITY)
        return
    draw.rectangle(inner, fill=between(GROUND, SECOND, value))
    if role == OWN:
        draw.rectangle(inner, outline=FIRST, width=2 * DENSITY)


def ramp(shares: npt.NDArray[np.floating]) -> Pixels:
    """Shares (rows, columns) from 0 to 1 as colours from black over red to a bright yellow, (rows, columns, 3)."""
    stops = np.linspace(0, 1, len(RAMP))
    colours = np.array([ImageColor.getrgb(colour) for colour in RAMP])
    return np.stack([np.interp(shares, stops, channel) for channel in colours.T], -1).round().astype(np.uint8)


def between(low: str, high: str, share: float) -> tuple[int, int, int]:
    """A colour on the way from one to another; a share beyond 0 or 1 is the end."""
    ends = (ImageColor.getrgb(low), ImageColor.getrgb(high))
    red, green, blue = (round(a + (b - a) * min(1.0, max(0.0, share))) for a, b in zip(*ends, strict=True))
    return red, green, blue


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
                right = sum(widths[: place + 1])
                at = (right, number * step) if place else (0, number * step)
                draw.text(at, cell, INK if number else FAINT, face, anchor="ra" if place else "la")
        return sheet


@dataclass(frozen=True)
class Points:
    """Terms and a sentence on each."""

    points: dict[str, str]

    def screen(self, width: int) -> RenderableType:
        return Text("\n").join(
            Text.assemble((f"{term}: ", "bold"), said) for term, said in self.points.items()
        )

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
class Section:
    """A block under a title, and a hint on how it is read."""

    title: str
    hint: str
    block: Block


class PictureInspection(Inspection):
    """What an objective makes of images: a page, or one sheet."""

    style: ClassVar[str] = PICTURE_STYLE

    @property
    def heading(self) -> str:
        return f"What the data teaches: {self.objective}"

    @abstractmethod
    def sections(self) -> list[Section]:
        """What there is to look at, in reading order."""

    def parts(self) -> list[Part]:
        return [Part(each.title, each.hint, each.block.screen, each.block.html) for each in self.sections()]

    def to_png(self) -> bytes:
        """One sheet with all of it."""
        width = WIDTH * DENSITY
        parts = [
            written(self.heading, 24, INK, width),
            written(sentence(self.idea), 15, INK, width),
            written(f"{sentence(self.summary())} {self.limits()}", 13, FAINT, width),
        ]
        for each in self.sections():
            title = written(each.title[:1].upper() + each.title[1:], 18, INK, width)
            hint = [written(each.hint, 13, FAINT, width)] if each.hint else []
            parts += [blank(width, GAP), title, *hint, each.block.paint(width)]
        column = stacked(parts, width, 6 * DENSITY)
        edge = MARGIN * DENSITY
        sheet = blank(width + 2 * edge, column.height + 2 * edge)
        sheet.paste(column, (edge, edge))
        return png(sheet)


# -- tiles --


def outlined(pixels: Pixels, height: int, boxes: Sequence[Box]) -> Pixels:
    """A picture at the size it is shown in, with boxes drawn into it."""
    picture = resized(pixels, height)
    scale = picture.height / pixels.shape[0]
    draw = ImageDraw.Draw(picture)
    for box in boxes:
        left, top = box.left * scale, box.top * scale
        corner = (left + box.width * scale - 1, top + box.height * scale - 1)
        draw.rectangle((left, top, *corner), outline=PAPER, width=3 * DENSITY)
        draw.rectangle((left, top, *corner), outline=box.colour, width=2 * DENSITY)
    for box in filter(lambda box: box.name, boxes):  # names lie above all lines
        _tag(draw, box.left * scale, box.top * scale, box)
    return np.asarray(picture)


def patched(
    pixels: Pixels, hidden: npt.NDArray[np.bool_], colours: Pixels | tuple[int, int, int] = HIDDEN
) -> Pixels:
    """A picture whose hidden patches (rows, columns) are of one colour, or each of its own (rows, columns, 3)."""
    rows, columns = hidden.shape
    high, wide = pixels.shape[0] // rows, pixels.shape[1] // columns
    where = hidden.repeat(high, 0).repeat(wide, 1)[..., None]
    cover = np.broadcast_to(np.asarray(colours, np.uint8), (*hidden.shape, 3)).repeat(high, 0).repeat(wide, 1)
    return np.where(where, cover, pixels)


def _tag(draw: ImageDraw.ImageDraw, left: float, top: float, box: Box) -> None:
    face = font(11)
    width, height = face.getlength(box.name) + 6 * DENSITY, 14 * DENSITY
    draw.rectangle((left, top, left + width, top + height), fill=box.colour)
    draw.text((left + width / 2, top + height / 2), box.name, "#ffffff", face, anchor="mm")


def resized(pixels: Pixels, height: int) -> Image.Image:
    """At the height that a page gives it; pixels of small pictures stay squares."""
    picture = Image.fromarray(pixels)
    target = height * DENSITY
    width = max(1, round(target * picture.width / picture.height))
    method = Image.Resampling.NEAREST if target >= picture.height else Image.Resampling.LANCZOS
    return picture.resize((width, target), method)


def data_uri(pixels: Pixels) -> str:
    """A picture as PNG, for a page that needs nothing beside itself."""
    return f"data:image/png;base64,{base64.b64encode(png(Image.fromarray(pixels))).decode('ascii')}"


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _rows(rows: Sequence[Sequence[Tile]]) -> str:
    return "".join(f'<div class="tiles">{"".join(map(_figure, row))}</div>' for row in rows)


def _group(name: str, rows: Sequence[Sequence[Tile]], width: int) -> Image.Image:
    painted = [flowed([_painted(tile) for tile in row], width, GAP * DENSITY) for row in rows]
    wide = max(row.width for row in painted)
    return stacked([written(name, 13, FAINT, wide), *painted], wide, 2 * DENSITY)


def _figure(tile: Tile) -> str:
    large = tile.pixels.shape[0] > tile.height * DENSITY
    pixels = np.asarray(resized(tile.pixels, tile.height)) if large else tile.pixels
    frame = f' style="--frame:{tile.colour}"' if tile.colour else ""
    facts = f"<br>{escape(tile.facts)}" if tile.facts else ""
    return (
        f'<figure{frame}><img src="{data_uri(pixels)}" alt="{escape(tile.name)}" width="{tile.width}" '
        f'height="{tile.height}"><figcaption style="max-width:{max(tile.width, 96)}px"><b>{escape(tile.name)}</b>'
        f"{facts}</figcaption></figure>"
    )


def _painted(tile: Tile) -> Image.Image:
    picture = resized(tile.pixels, tile.height)
    edge = 3 * DENSITY
    framed = Image.new("RGB", (picture.width + 2 * edge, picture.height + 2 * edge), tile.colour or PAPER)
    framed.paste(picture, (edge, edge))
    width = max(framed.width, 96 * DENSITY)
    said = [written(tile.name, 13, tile.colour or INK, width)]
    said += [written(tile.facts, 12, FAINT, width)] if tile.facts else []
    return stacked([framed, *said], width, 2 * DENSITY)


# -- a sheet --


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, of so many pixels of a page."""
    face = ImageFont.load_default(size * DENSITY)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAPER)


def drawable(text: str) -> str:
    """A text in letters that Pillow's font has: others lose their marks, or become question marks."""
    plain = unicodedata.normalize("NFKD", text.replace("×", "x"))
    kept = (letter for letter in plain if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() or letter in LETTERS else "?" for letter in kept)


def written(text: str, size: int, colour: str, width: int) -> Image.Image:
    """A text in lines that fit a width."""
    face, step = font(size), round(size * 1.4) * DENSITY
    lines = [""]
    for word in drawable(text).split():
        longer = f"{lines[-1]} {word}".lstrip()
        if face.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    sheet = blank(width, step * len(lines))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((0, number * step), line, colour, face)
    return sheet


def stacked(parts: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    """One below the other."""
    sheet = blank(width, sum(part.height for part in parts) + gap * max(0, len(parts) - 1))
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + gap
    return sheet


def flowed(parts: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    """In rows of at most a width, as words stand in lines; no wider than it needs to be."""
    rows: list[list[Image.Image]] = [[]]
    for part in parts:
        if rows[-1] and _extent([*rows[-1], part], gap) > width:
            rows.append([])
        rows[-1].append(part)
    sheets = [_row(row, gap) for row in rows]
    return stacked(sheets, max(sheet.width for sheet in sheets), gap)


def _extent(parts: Sequence[Image.Image], gap: int) -> int:
    return sum(part.width + gap for part in parts) - gap


def _row(parts: Sequence[Image.Image], gap: int) -> Image.Image:
    sheet = blank(_extent(parts, gap), max(part.height for part in parts))
    left = 0
    for part in parts:
        sheet.paste(part, (left, 0))
        left += part.width + gap
    return sheet
