"""Objectives that fill in patches of an image: which stay visible, and what a run makes of the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from selfsup.inference.reconstruction import fill_in
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import Gallery, Group, Section, Table, Tile, mean, section, task
from selfsup.inspection.figures import by_record, means, trained
from selfsup.inspection.images import HEIGHT, Look, Seen, look_at
from selfsup.inspection.pictures import FIRST, Pixels, patched
from selfsup.objectives.base import Task
from selfsup.views.drawn import levels

MOST = 5  # images that are drawn
TERM = "mse"


@dataclass(frozen=True)
class Filled:
    """What a run makes of an image: with its hidden patches filled in, and in the mean colour of what is visible around
    them, without any model; the objective's loss of this image alone."""

    pixels: Pixels
    smooth: Pixels
    loss: float


def inspect_patches(request: Request) -> Inspection:
    """Of an objective whose task holds `pixels` (B, 3, S, S), places of `visible` (B, K) and `hidden` (B, M) patches,
    and whose outputs are the `values` of the hidden ones (B, M, 3 · patch²)."""
    look = look_at(request, MOST)
    made, patch = look.objective.hide(look.batch), look.recipe.settings["model.patch"]
    side = look.view.size // patch
    hidden = torch.zeros(len(look.batch), side * side, dtype=torch.bool).scatter_(1, made["hidden"], True)
    masks, views = hidden.view(-1, side, side).numpy(), look.seen(made["pixels"], look.view, 0)
    filled = [] if look.run is None else _filled(look, made, patch)
    knowing_nothing = {"values": torch.zeros(made["targets"].shape)}  # but the mean of each patch
    chance = means(look.objective, knowing_nothing, made)[TERM]
    values = look.values([[seen] for seen in views])
    for number, image in enumerate(values["images"]):
        image["hidden"] = np.flatnonzero(masks[number]).tolist()
        image |= {"loss": filled[number].loss} if filled else {}
    values |= {"view": asdict(look.view), "patch": patch, "chance": chance, "grid": [side, side]}
    facts = [*look.facts(), f"patches of {patch} by {patch} pixels"]
    return look.inspection(_sections(look, views, masks, filled, chance), values, facts=facts)


@torch.inference_mode()
def _filled(look: Look, made: Task, patch: int) -> list[Filled]:
    objective = trained(look.objective, str(look.run))
    outputs = objective.predict(made)
    losses, values = by_record(objective, outputs, made, TERM), outputs["values"].float()
    pictures = [
        levels(fill_in(made["pixels"], made["visible"], made["hidden"], each, patch), look.view)
        for each in (values, torch.zeros_like(values))
    ]
    return [Filled(*each) for each in zip(*pictures, losses, strict=True)]


def _sections(
    look: Look, views: list[Seen], masks: npt.NDArray[np.bool_], filled: list[Filled], chance: float
) -> list[Section]:
    least, most = look.view.scale
    hidden, every = int(masks[0].sum()), masks[0].size
    counts = {"visible": every - hidden, "hidden": hidden, "every": every, "share": hidden / every}
    gallery = Gallery([_group(look, image, views[image], masks[image], filled) for image in look.shown])
    sections = [
        task("patches", look.recipe.words, least=least, most=most, **counts),
        section("patches", "filled" if filled else "shown", gallery),
    ]
    if not filled:
        return sections
    row = [f"loss (chance {chance:.3f})", f"{mean([each.loss for each in filled]):.3f}"]
    return [*sections, section("patches", "figures", Table(["", str(look.run)], [row]))]


def _group(look: Look, image: int, seen: Seen, hidden: npt.NDArray[np.bool_], filled: list[Filled]) -> Group:
    tiles = [
        look.original(image, [seen.box(FIRST)]),
        seen.tile(look.images[image], "crop", FIRST),
        Tile(patched(seen.pixels, hidden), "shown", f"{hidden.mean():.0%} hidden", HEIGHT),
    ]
    for made in filled[image : image + 1]:
        tiles.append(Tile(made.pixels, "filled in", f"loss {made.loss:.3f}", HEIGHT))
        tiles.append(Tile(made.smooth, "without a model", "the brightness around", HEIGHT))
    return Group(look.names[image], [tiles])
