"""An inspection of images as one picture, drawn by Pillow."""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from PIL import Image, ImageDraw

from selfsup.inspection import blocks
from selfsup.inspection.blocks import OUT, OWN, Block, Document, Picture, Section, sentence
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
    drawable,
    flowed,
    font,
    png,
    ramp,
    resized,
    stacked,
    written,
)

WIDTH, MARGIN = 940, 28  # of a sheet
WHOLE = 440  # side of a matrix without margins, in pixels of a page
LETTER, LENGTH = 12, 110  # of texts above the columns of a matrix: their size and room
EDGE = 3  # of a frame
NARROWEST = 96  # that what is said beneath a tile may be


def sheet(document: Document) -> bytes:
    """One picture with all of it, as PNG."""
    width, edge = WIDTH * DENSITY, MARGIN * DENSITY
    facts = f"{sentence(document.summary)} {document.limits}"
    parts = [
        written(document.heading, 24, INK, width),
        written(sentence(document.idea), 15, INK, width),
        written(facts, 13, FAINT, width),
        *(part for section in document.sections for part in _section(section, width)),
    ]
    column = stacked(parts, width, 6 * DENSITY)
    whole = blank(width + 2 * edge, column.height + 2 * edge)
    whole.paste(column, (edge, edge))
    return png(whole)


def _section(section: Section, width: int) -> list[Image.Image]:
    title = written(section.title[:1].upper() + section.title[1:], 18, INK, width)
    hint = [written(section.said, 13, FAINT, width)] if section.said else []
    drawn = flowed([draw(block, width) for block in section.blocks], width, 2 * GAP * DENSITY)
    return [blank(width, GAP), title, *hint, drawn]


@singledispatch
def draw(block: Block, width: int) -> Image.Image:
    """A block, at most so many pixels wide; inspections with pictures have no others than these."""
    raise TypeError(type(block).__name__)


@draw.register
def _points(block: blocks.Points, width: int) -> Image.Image:
    indent = round(max(map(font(15).getlength, block.points))) + 16 * DENSITY
    rows = []
    for term, said in block.points.items():
        text = written(said, 15, INK, width - indent)
        row = blank(width, text.height)
        row.paste(written(term, 15, FIRST, indent), (0, 0))
        row.paste(text, (indent, 0))
        rows.append(row)
    return stacked(rows, width, 4 * DENSITY)


@draw.register
def _table(block: blocks.Table, width: int) -> Image.Image:
    face, step = font(14), 22 * DENSITY
    lines = [[drawable(cell) for cell in row] for row in (block.names, *block.rows)]
    widths = [max(map(face.getlength, column)) + 24 * DENSITY for column in zip(*lines, strict=True)]
    drawn = blank(width, step * len(lines))
    draw = ImageDraw.Draw(drawn)
    for number, row in enumerate(lines):
        for place, cell in enumerate(row):
            left = sum(widths[: place + 1]) if place else 0
            colour, anchor = INK if number else FAINT, "ra" if place else "la"
            draw.text((left, number * step), cell, colour, face, anchor)
    return drawn


# -- galleries --


@draw.register
def _gallery(block: blocks.Gallery, width: int) -> Image.Image:
    return flowed([_group(group, width) for group in block.groups], width, 2 * GAP * DENSITY)


def _group(group: blocks.Group, width: int) -> Image.Image:
    gap = GAP * DENSITY
    painted = [flowed([_tile(tile) for tile in row], width, gap) for row in group.rows]
    wide = max(row.width for row in painted)
    name = [written(group.name, 13, FAINT, wide)] if group.name else []
    return stacked([*name, stacked(painted, wide, gap)], wide, 2 * DENSITY)


def _tile(tile: blocks.Tile) -> Image.Image:
    picture, edge = resized(tile.pixels, tile.height), EDGE * DENSITY
    framed = Image.new("RGB", (picture.width + 2 * edge, picture.height + 2 * edge), tile.colour or PAPER)
    framed.paste(picture, (edge, edge))
    width = max(framed.width, NARROWEST * DENSITY)
    tokens = " ".join(token.text.replace(" ", "·") for token in tile.tokens)
    said = [(tile.name, 13, tile.colour or INK), (tokens, 12, INK), (tile.facts, 12, FAINT)]
    texts = [written(text, size, colour, width) for text, size, colour in said if text]
    return stacked([framed, *texts], width, 2 * DENSITY)


# -- matrices --


@draw.register
def _matrix(block: blocks.Matrix, width: int) -> Image.Image:
    picture = matrix_picture(block, width)
    caption = written(block.caption, 13, FAINT, picture.width)
    return stacked([caption, picture], picture.width, 4 * DENSITY)


def matrix_picture(block: blocks.Matrix, width: int) -> Image.Image:
    """A matrix, at most so many pixels wide."""
    return _with_margins(block, width) if block.rows else _close(block)


def _shares(block: blocks.Matrix) -> np.ndarray:
    low, high = block.range
    shares: np.ndarray = (np.array(block.values) - low) / max(high - low, 1e-9)
    return shares


def _close(block: blocks.Matrix) -> Image.Image:
    """Cells without space between them; those that belong together are of another colour, as strong as theirs."""
    shares, roles = _shares(block), np.array([list(row) for row in block.roles])
    colours = np.where((roles == OWN)[..., None], ramp(shares, (PAPER, FIRST)), ramp(shares, (GROUND, SECOND)))
    side = max(1, WHOLE * DENSITY // len(shares))
    picture = Image.fromarray(colours.repeat(side, 0).repeat(side, 1))
    draw = ImageDraw.Draw(picture)
    for row, column in np.argwhere(roles == OUT).tolist():
        left, top = column * side, row * side
        _cell(draw, (left, top, left + side - 1, top + side - 1), (0, 0, 0), OUT)
    return picture


def _with_margins(block: blocks.Matrix, width: int) -> Image.Image:
    side = min(block.cell * DENSITY, width // (len(block.columns) + 1))
    heads = [_head(column, side) for column in block.columns]
    above = max(head.height for head in heads) + 2 * DENSITY
    picture = blank(side * (len(block.columns) + 1), above + side * len(block.rows))
    for place, head in enumerate(heads, 1):
        picture.paste(head, (place * side + DENSITY, above - DENSITY - head.height))
    for place, name in enumerate(block.rows):
        picture.paste(_beside(name, side), (DENSITY, above + place * side + DENSITY))
    colours = ramp(_shares(block), (GROUND, SECOND)).tolist()
    draw = ImageDraw.Draw(picture)
    for row, roles in enumerate(block.roles):
        for column, role in enumerate(roles):
            left, top = (column + 1) * side + DENSITY, above + row * side + DENSITY
            inner = (left, top, left + side - 2 * DENSITY - 1, top + side - 2 * DENSITY - 1)
            _cell(draw, inner, tuple(colours[row][column]), role)
    return picture


def _thumbnail(pixels: Pixels, side: int) -> Image.Image:
    inner = side - 2 * DENSITY
    return Image.fromarray(pixels).resize((inner, inner), Image.Resampling.BILINEAR)


def _beside(name: Picture, side: int) -> Image.Image:
    """What stands before a row."""
    if not isinstance(name, str):
        return _thumbnail(name, side)
    box = blank(side - 2 * DENSITY, side - 2 * DENSITY)
    ImageDraw.Draw(box).text((box.width / 2, box.height / 2), drawable(name), FAINT, font(LETTER), anchor="mm")
    return box


def _head(name: Picture, side: int) -> Image.Image:
    """What stands above a column: a text that is wider than it stands upright, cut to its space."""
    face = font(min(LETTER, side // DENSITY - 2))
    if not isinstance(name, str) or face.getlength(drawable(name)) < side - 2 * DENSITY:
        return _beside(name, side)
    strip = blank(LENGTH * DENSITY, side - 2 * DENSITY)
    ImageDraw.Draw(strip).text((0, strip.height / 2), drawable(name), INK, face, anchor="lm")
    return strip.rotate(90, expand=True)


def _cell(draw: ImageDraw.ImageDraw, inner: tuple[int, int, int, int], colour: tuple[int, ...], role: str) -> None:
    if role == OUT:
        draw.rectangle(inner, fill=PAPER)
        draw.line(inner, fill=FAINT, width=DENSITY)
        return
    draw.rectangle(inner, fill=colour)
    if role == OWN:
        draw.rectangle(inner, outline=FIRST, width=2 * DENSITY)
