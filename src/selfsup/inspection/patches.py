"""Objectives that fill in patches of an image: which stay visible, and what a run makes of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfsup.inference.reconstruction import fill_in
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import Gallery, Group, Points, Section, Table, Tile, mean
from selfsup.inspection.figures import by_record, means, trained
from selfsup.inspection.images import HEIGHT, Look, Seen, look_at
from selfsup.inspection.pictures import FIRST, Pixels, patched
from selfsup.objectives.base import Task
from selfsup.views.drawn import levels

MOST = 5  # images that are drawn
TERM = "mse"


@dataclass(frozen=True)
class Filled:
    """What a run makes of the hidden patches of an image.

    Attributes:
        pixels: with them filled in.
        smooth: with them in the mean colour of what is visible around them, without any model.
        loss: the objective's, of this image alone.
    """

    pixels: Pixels
    smooth: Pixels
    loss: float


def inspect_patches(request: Request) -> Inspection:
    """Of an objective whose task holds `pixels` (B, 3, S, S), places of `visible` (B, K) and `hidden` (B, M) patches,
    and whose outputs are the `values` of the hidden ones (B, M, 3 · patch²)."""
    look = look_at(request, MOST)
    task, patch = look.objective.hide(look.batch), look.recipe.settings["model.patch"]
    side = look.view.size // patch
    hidden = torch.zeros(len(look.batch), side * side, dtype=torch.bool).scatter_(1, task["hidden"], True)
    masks = hidden.view(-1, side, side).numpy()
    views = look.seen(task["pixels"], look.view, 0)
    filled = [] if look.run is None else _filled(look, task, patch)
    knowing_nothing = {"values": torch.zeros(task["targets"].shape)}  # but the mean of each patch
    chance = means(look.objective, knowing_nothing, task)[TERM]
    values: dict[str, Any] = look.values([[seen] for seen in views])
    for number, image in enumerate(values["images"]):
        image["hidden"] = np.flatnonzero(masks[number]).tolist()
        image |= {"loss": filled[number].loss} if filled else {}
    return look.inspection(
        _sections(look, views, masks, filled, chance),
        values | {"view": asdict(look.view), "patch": patch, "chance": chance, "grid": [side, side]},
        facts=[*look.facts(), f"patches of {patch} by {patch} pixels"],
    )


@torch.inference_mode()
def _filled(look: Look, task: Task, patch: int) -> list[Filled]:
    objective = trained(look.objective, str(look.run))
    outputs = objective.predict(task)
    losses = by_record(objective, outputs, task, TERM)
    values = outputs["values"].float()
    pictures = [
        levels(fill_in(task["pixels"], task["visible"], task["hidden"], each, patch))
        for each in (values, torch.zeros_like(values))
    ]
    return [Filled(*each) for each in zip(*pictures, losses, strict=True)]


def _sections(
    look: Look, views: list[Seen], masks: npt.NDArray[np.bool_], filled: list[Filled], chance: float
) -> list[Section]:
    least, most = look.view.scale
    hidden, every = int(masks[0].sum()), masks[0].size
    points = {
        "Shown": f"of a crop ({least:.0%} to {most:.0%} of an image, mirrored half of the time) {every - hidden} of "
        f"{every} patches, drawn at random. The encoder sees nothing else.",
        "Hidden": f"the other {hidden} patches ({hidden / every:.0%}): so many that neighbours alone do not tell.",
        "Predicted": "the pixels of every hidden patch, relative to its own mean and contrast, by a light decoder that "
        "is dropped after training.",
        "Learned": "how what is seen goes on: shapes, textures, objects.",
    }
    hint = (
        "First the image with its crop drawn in; then the crop, and what of it is shown. These are the very crops and "
        "patches of the first epoch."
    )
    if filled:
        hint += (
            " “Filled in” is what the run predicts; a hidden patch's mean and contrast, which it does not predict, are "
            "taken from visible patches around it. “Without a model” is that mean alone: what is gained over it was "
            "learned."
        )
    groups = [_group(look, image, views[image], masks[image], filled) for image in look.shown]
    return [
        Section("the task", [Points({**points, **look.recipe.words})]),
        Section("images and what is hidden of them", [Gallery(groups)], hint),
        *_measured(look, filled, chance),
    ]


def _group(
    look: Look, image: int, seen: Seen, hidden: npt.NDArray[np.bool_], filled: Sequence[Filled]
) -> Group:
    tiles = [
        look.original(image, [seen.box(FIRST)]),
        seen.tile(look.images[image], "crop", FIRST),
        Tile(patched(seen.pixels, hidden), "shown", f"{hidden.mean():.0%} hidden", HEIGHT),
    ]
    for made in filled[image : image + 1]:
        tiles.append(Tile(made.pixels, "filled in", f"loss {made.loss:.3f}", HEIGHT))
        tiles.append(Tile(made.smooth, "without a model", "the brightness around", HEIGHT))
    return Group(look.names[image], [tiles])


def _measured(look: Look, filled: list[Filled], chance: float) -> list[Section]:
    if not filled:
        return []
    row = [f"loss (chance {chance:.3f})", f"{mean([each.loss for each in filled]):.3f}"]
    hint = (
        "Mean squared error of the hidden patches, each brought to mean 0 and variance 1; chance is what nothing but "
        "their means would give."
    )
    return [Section("how well it is filled in", [Table(["", str(look.run)], [row])], hint)]
