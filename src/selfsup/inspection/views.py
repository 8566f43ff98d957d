"""Objectives of two views of an image: the views, and how well a network tells which two belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch

from selfsup.inspection.alike import Alike, alike, roles, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Gallery, Group, Section, section, task
from selfsup.inspection.figures import networks
from selfsup.inspection.images import Look, Seen, look_at
from selfsup.inspection.pictures import FIRST, SECOND
from selfsup.objectives.base import Objective, Task

MOST = 6  # images that are drawn
COLOURS = (FIRST, SECOND)
MEANING = {OWN: "its partner", ALIEN: "a view of another image", OUT: "the view itself"}


def inspect_views(request: Request) -> Inspection:
    """Of an objective whose task holds `views` (B, 2, 3, S, S), drawn from its `view`, and whose outputs are the
    vectors of `first` and `second`."""
    look = look_at(request, MOST)
    made = look.objective.hide(look.batch)
    pair = [look.seen(made["views"][:, number], look.view, number) for number in range(2)]
    views = list(zip(*pair, strict=True))
    least, most = look.view.scale
    sections = [
        task("views", look.recipe.words, least=least, most=most),
        section("views", "shown", Gallery([_group(look, image, views[image]) for image in look.shown])),
    ]
    found = []
    if look.run is not None:
        found = [_compare(name, each, made) for name, each in networks(look.objective, look.run)]
        sections += _alike(look, found, views)
    values = {"view": asdict(look.view), "networks": [asdict(network) for network in found]}
    return look.inspection(sections, look.values(views) | values)


def _group(look: Look, image: int, pair: Sequence[Seen]) -> Group:
    numbered = [(str(n), seen, COLOURS[n - 1]) for n, seen in enumerate(pair, 1)]
    original = look.original(image, [seen.box(colour, n) for n, seen, colour in numbered])
    tiles = [seen.tile(look.images[image], f"view {n}", colour) for n, seen, colour in numbered]
    return Group(look.names[image], [[original, *tiles]])


@torch.inference_mode()
def _compare(name: str, objective: Objective, made: Task) -> Alike:
    """All views, in the order of their images."""
    outputs = objective.predict(made)
    both = torch.stack((outputs["first"], outputs["second"]), 1).flatten(0, 1)
    image, itself = np.arange(len(both)) // 2, np.eye(len(both), dtype=bool)
    found = roles((image[:, None] == image) & ~itself, itself)
    return alike(name, objective, made, outputs, found, both, both)


def _alike(look: Look, found: list[Alike], views: Sequence[Sequence[Seen]]) -> list[Section]:
    chance = look.recipe.chance(len(look.batch))
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine with its partner": lambda each: f"{each.mean(OWN):.3f}",
        "with a view of another image": lambda each: f"{each.mean(ALIEN):.3f}",
        "nearer to it than to any other": lambda each: f"{each.found():.0%}",
        f"loss{'' if chance is None else f' (chance {chance:.3f})'}": lambda each: f"{each.loss:.3f}",
    }
    pictures = [seen.pixels for image in look.shown for seen in views[image]]
    said = [f"view {number} of {name}" for name in look.names for number in (1, 2)]
    matrices = [each.matrix(pictures, pictures, said=(said, said), meaning=MEANING) for each in found]
    others = 2 * len(look.batch) - 1
    return [section("views", "alike", *matrices), section("views", "figures", table(found, rows), others=others)]
