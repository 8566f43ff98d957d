"""An inspection as one self-contained page: what `pages` draws of its JSON, as light as what is to be seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np

from selfsup.inspection import blocks
from selfsup.inspection.blocks import Block, Document, Picture, Section, Tile, as_json
from selfsup.inspection.pictures import DENSITY, Pixels, resized
from selfsup.pages import self_contained
from selfsup.run import finite

POSITIONS = 512  # of a window that a page shows at most, as in blocks.js
DIGITS = 4  # of what a cell of a matrix says


def page(document: Document) -> str:
    """The page as HTML."""
    return self_contained(f"{document.objective}: what the data teaches", "blocks.js", drawn(document))


def drawn(document: Document) -> Mapping[str, Any]:
    """What a page draws of an inspection, as JSON; figures that only programs read are no part of it."""
    lighter: Mapping[str, Any] = finite(replace(document, sections=_lighter(document.sections), values={}).to_json())
    return lighter


def drawn_sections(sections: list[Section]) -> list[Mapping[str, Any]]:
    """The same of sections alone."""
    return [finite(as_json(section)) for section in _lighter(sections)]


def _lighter(sections: list[Section]) -> list[Section]:
    return [replace(section, blocks=[lighter(block) for block in section.blocks]) for section in sections]


@singledispatch
def lighter(block: Block) -> Block:
    """A block without what a page would not show: positions beyond the first ones, pixels beyond those of a screen."""
    return block


@lighter.register
def _sight(block: blocks.Sight) -> Block:
    return replace(block, mask=[row[:POSITIONS] for row in block.mask[:POSITIONS]])


@lighter.register
def _gallery(block: blocks.Gallery) -> Block:
    return replace(
        block, groups=[replace(each, rows=[[_tile(t) for t in row] for row in each.rows]) for each in block.groups]
    )


def _tile(tile: Tile) -> Tile:
    return replace(tile, pixels=_fitted(tile.pixels, tile.height))


@lighter.register
def _matrix(block: blocks.Matrix) -> Block:
    values = [[round(value, DIGITS) for value in row] for row in block.values]
    rows, columns = ([_margin(each, block.cell) for each in names] for names in (block.rows, block.columns))
    return replace(block, values=values, rows=rows, columns=columns)


def _margin(name: Picture, cell: int) -> Picture:
    return name if isinstance(name, str) else _fitted(name, cell)


def _fitted(pixels: Pixels, height: int) -> Pixels:
    """At most as large as it is shown."""
    return np.asarray(resized(pixels, height)) if pixels.shape[0] > height * DENSITY else pixels
