"""What a look of a training leaves to look at, beside what its recipe writes: fixed held-out images as the network sees
them, filled in where it fills in, and how alike it finds images and captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsup.data.loader import in_order
from selfsup.data.records import Batch
from selfsup.inference.reconstruction import fill_in
from selfsup.inference.vision import ImageModel
from selfsup.inspection.blocks import Block, Gallery, Group, Section, Tile, section
from selfsup.inspection.page import drawn_sections
from selfsup.inspection.pairs import CELL, MEANING, limits, towers
from selfsup.inspection.pictures import DENSITY, FIRST, Pixels, patched, ramp, resized
from selfsup.inspection.show import MOST_PATCHES, Insight, coloured, look_into
from selfsup.models.features import Features
from selfsup.models.vision import VisionTransformer
from selfsup.objectives.base import Objective
from selfsup.objectives.captions import drawn_captions
from selfsup.objectives.clip import CLIPRecipe
from selfsup.objectives.images import ImageRecipe, spread_evenly
from selfsup.objectives.recipe import Recipe
from selfsup.views import View
from selfsup.views.drawn import levels

IMAGES = 4  # that are looked at
PAIRS = 12  # that are compared
HEIGHT = 96  # at which images are shown, and kept, so that many looks fit into one page
SEED = 0  # one fixed task, the same for every look and run


@torch.inference_mode()
def seen_by(recipe: Recipe, objective: Objective) -> list[Mapping[str, Any]]:
    """Sections as a page draws them, made by an objective as it stands, which is in evaluation mode; [] where a look
    shows nothing but figures."""
    if not isinstance(recipe, ImageRecipe) or recipe.validation is None:
        return []
    sections = []
    network = recipe.encoder(objective)
    if isinstance(network, VisionTransformer):
        sections += _seen(recipe, network)
    if recipe.inspector == "patches":
        sections.append(_filled(recipe, objective))
    if isinstance(recipe, CLIPRecipe):
        sections.append(_alike(recipe, objective))
    return drawn_sections(sections)


def _seen(recipe: ImageRecipe, network: VisionTransformer) -> list[Section]:
    """What patches have in common, and where the network looks."""
    model = ImageModel(network, Features(recipe.pooling), recipe.network.preprocessing)
    patches = max(1, model.size // network.config.patch)
    insights = []
    for index in spread_evenly(recipe.parts()[1], IMAGES).tolist():
        pixels = recipe.images.pixels(index, model.size)
        high, wide = pixels.shape[:2]
        if patches**2 * max(high, wide) / min(high, wide) <= MOST_PATCHES:
            insights.append(look_into(model, Path(recipe.images.place(index)).name, pixels, patches))
    if not insights:
        return []
    colours, explained = coloured([insight.features for insight in insights])
    groups = [Group(each.name, [_tiles(each, colour)]) for each, colour in zip(insights, colours, strict=True)]
    return [section("samples", "seen", Gallery(groups), explained=explained)]


def _tiles(insight: Insight, colours: Pixels) -> list[Tile]:
    attention = insight.attention.mean(0)
    return [
        Tile(_small(insight.pixels), "image", "", HEIGHT),
        Tile(colours, "features", "", HEIGHT),
        Tile(ramp(attention / attention.max()), "attention", f"{attention.sum():.0%} on patches", HEIGHT),
    ]


def _small(pixels: Pixels) -> Pixels:
    return np.asarray(resized(pixels, HEIGHT // DENSITY)) if pixels.shape[0] > HEIGHT else pixels


def _held_out(recipe: ImageRecipe, objective: Objective, records: int) -> Batch:
    assert recipe.validation is not None
    batch = next(in_order(recipe.validation, min(records, len(recipe.validation)), SEED, records))
    return batch.to(next(objective.parameters()).device)


def _filled(recipe: ImageRecipe, objective: Objective) -> Section:
    """Hidden patches of fixed images, filled in."""
    batch, view, patch = _held_out(recipe, objective, IMAGES), objective.view, recipe.settings["model.patch"]
    assert isinstance(view, View)
    made = objective.hide(batch)
    values = objective.predict(made)["values"].float()
    pixels = fill_in(made["pixels"], made["visible"], made["hidden"], values, patch)
    side = view.size // patch
    hidden = torch.zeros(len(batch), side * side, dtype=torch.bool).scatter_(1, made["hidden"].cpu(), True)
    groups = []
    for whole, filled, mask in zip(levels(made["pixels"], view), levels(pixels, view), hidden, strict=True):
        shown = patched(whole, mask.view(side, side).numpy())
        names = (("image", whole, None), ("shown", shown, None), ("filled in", filled, FIRST))
        groups.append(Group("", [[Tile(_small(each), name, "", HEIGHT, colour) for name, each, colour in names]]))
    return section("samples", "filled", Gallery(groups))


def _alike(recipe: CLIPRecipe, objective: Objective) -> Section:
    """How alike both towers find held-out images and captions."""
    batch = _held_out(recipe, objective, PAIRS)
    network = towers("cosine", objective, objective.hide(batch))
    tokens, lengths, _ = drawn_captions(batch)
    texts = [recipe.text.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, lengths.tolist(), strict=True)]
    sizes = batch.data["sizes"].tolist()
    images = [
        p[:, :h, :w].permute(1, 2, 0).cpu().numpy() for p, (h, w) in zip(batch.data["pixels"], sizes, strict=True)
    ]
    names = [f"{number} {text}" for number, text in enumerate(texts, 1)]
    said = ([f"image {number}" for number in range(1, len(texts) + 1)], names)
    matrix: Block = network.matrix(images, names, limits=limits(network), cell=CELL, said=said, meaning=MEANING)
    return section("samples", "alike", matrix, found=network.found())
