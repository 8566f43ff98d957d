"""An inspection as one self-contained page: no script or style from elsewhere, light and dark, readable on a phone.

The page is made by Jinja of page.html, which says how each kind of block looks; what is here is where things lie in its
drawings. Whatever comes from the data is escaped, and controls (such as those of direction) are shown as escapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from selfsup.inspection import blocks
from selfsup.inspection.blocks import Document, Token, sentence, share_of
from selfsup.inspection.pictures import DENSITY, data_uri, resized
from selfsup.inspection.sheet import NARROWEST, WIDTH, matrix_picture
from selfsup.report import printable

MARKERS = ("<start>", "<end>", "[CLS]", "[SEP]", "[MASK]", "[PAD]")  # which stand for no text
POSITIONS = 512  # that a page shows at most
LABELLED = 48  # positions up to which the rows of a mask have names
CELL, LETTER = 14, 5.2  # width and height of a cell, and width of a letter, in the drawing of a mask
MARKED, MARGIN = 900, 52  # pixels for a row of marks, and before it
BAR = 13  # pixels of the largest number of a vector


def page(document: Document) -> str:
    """The page as HTML."""
    style, script = Markup(_file("page.css")), Markup(_file("page.js"))
    return printable(_template().render(document=document, style=style, script=script))


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals |= {
        "CELL": CELL,
        "MARKERS": MARKERS,
        "NARROWEST": NARROWEST,
        "POSITIONS": POSITIONS,
        "Token": Token,
        "bar_heights": bar_heights,
        "drawn_marks": drawn_marks,
        "drawn_matrix": drawn_matrix,
        "drawn_sight": drawn_sight,
        "drawn_tile": drawn_tile,
        "sentence": sentence,
        "share_of": share_of,
    }
    return environment.from_string(_file("page.html"))


def drawn_sight(block: blocks.Sight) -> dict[str, Any]:
    """Rows of cells, with names in the margin where there are few."""
    shown = min(len(block.names), POSITIONS)
    names = [_short(name) for name in block.names[:shown]]
    margin = 8 + round(LETTER * max(map(len, names))) if shown <= LABELLED else 0
    side, width, rows = shown * CELL, margin + shown * CELL, []
    for t, name in enumerate(names):
        seen = [1 + block.far(t, other) if bit else 0 for other, bit in enumerate(block.mask[t][:shown])]
        cells = [
            ("far" * (what - 1), margin + start * CELL, (stop - start + 1) * CELL) for what, start, stop in _runs(seen)
        ]
        sees = " ".join(f"{start}-{stop}" for _, start, stop in _runs(block.mask[t]))
        rows.append({"y": t * CELL, "name": name, "cells": cells, "sees": sees})
    ticks = range(0, side + 1, CELL) if shown <= 4 * LABELLED else ()  # more would be all there is to see
    lines = "".join(f"M{margin + tick} 0V{side}M{margin} {tick}H{width}" for tick in ticks)
    return {"width": width, "side": side, "margin": margin, "rows": rows, "lines": lines}


def _runs(row: list[int]) -> Iterator[tuple[int, int, int]]:
    """What stands in each run of equal numbers but 0, with its first and last place."""
    for what, run in groupby(range(len(row)), row.__getitem__):
        places = list(run)
        if what:
            yield what, places[0], places[-1]


def _short(token: str) -> str:
    token = token.replace(" ", "·")
    return token if len(token) <= 12 else token[:11] + "…"


def drawn_marks(block: blocks.Marks) -> dict[str, Any]:
    """Rows of cells, as wide as the page where they are many."""
    shown = min(POSITIONS, *map(len, block.rows.values()), POSITIONS)
    cell, step = max(2, min(CELL, MARKED // shown)), CELL + 4
    rows = []
    for number, (name, marks) in enumerate(block.rows.items()):
        places = ((t, block.roles[mark]) for t, mark in enumerate(marks[:shown]) if mark in block.roles)
        cells = [(role, MARGIN + t * cell) for t, role in places]
        rows.append({"y": number * step, "name": name, "cells": cells})
    width, height = MARGIN + shown * cell, len(rows) * step
    return {"width": width, "height": height, "margin": MARGIN, "cell": cell, "rows": rows}


def bar_heights(block: blocks.Bars) -> dict[str, list[float]]:
    """In pixels, on one scale."""
    most = max(abs(number) for row in block.rows.values() for number in row) or 1.0
    return {name: [BAR * number / most for number in row] for name, row in block.rows.items()}


def drawn_tile(tile: blocks.Tile) -> tuple[str, int]:
    """Its picture, and its width on the page."""
    picture = Image.fromarray(tile.pixels)
    if picture.height > tile.height * DENSITY:
        picture = resized(tile.pixels, tile.height)
    return data_uri(picture), max(1, round(tile.height * picture.width / picture.height))


def drawn_matrix(block: blocks.Matrix) -> tuple[str, int, str]:
    """Its picture, the width of that on the page, and what its cells say, as JSON."""
    drawn = matrix_picture(block, WIDTH * DENSITY)
    told = {
        "values": [[round(value, 3) for value in row] for row in block.values],
        "roles": block.roles,
        "said": block.said,
        "meaning": block.meaning,
        "place": [drawn.left / drawn.picture.width, drawn.top / drawn.picture.height],
    }
    return data_uri(drawn.picture), drawn.picture.width // DENSITY, json.dumps(told)
