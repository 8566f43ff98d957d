"""Objectives of one network that sees crops: how near each is put to where the global crops of its image are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from selfsup.inspection.alike import Alike, alike, roles, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OWN, Gallery, Group, Section, section, task
from selfsup.inspection.crops import NO_PATCHES, drawn, rendered, scales
from selfsup.inspection.figures import networks
from selfsup.inspection.images import Look, Seen, look_at
from selfsup.objectives.base import Objective, Task
from selfsup.objectives.lejepa import LeJEPA
from selfsup.objectives.multi_crop import GLOBALS

MOST = 3  # images that are drawn
MEANING = {OWN: "the image that it is a crop of", ALIEN: "another image"}


def inspect_parts(request: Request) -> Inspection:
    """The crops are those of the training."""
    look = look_at(request, MOST)
    objective = look.objective
    assert isinstance(objective, LeJEPA)
    made = objective.hide(look.batch)
    views = rendered(look, objective.crops, made)
    groups = [Group(look.names[image], drawn(look, views[image], image, NO_PATCHES)) for image in look.shown]
    sections = [task("parts", look.recipe.words, **scales(objective.crops)), section("parts", "shown", Gallery(groups))]
    found = []
    if look.run is not None:
        found = [_compare(name, each, made) for name, each in networks(objective, look.run)]
        sections += _alike(look, found, views)
    values = {"crops": asdict(objective.crops), "networks": [asdict(network) for network in found]}
    return look.inspection(sections, look.values(views) | values)


@torch.inference_mode()
def _compare(name: str, objective: Objective, made: Task) -> Alike:
    """In rows all crops, in the order of their images; in columns the means of the images' global crops."""
    outputs = objective.predict(made)
    vectors = outputs["vectors"]
    images, crops = vectors.shape[:2]
    own = np.arange(images * crops)[:, None] // crops == np.arange(images)
    found = roles(own, np.zeros_like(own))
    return alike(name, objective, made, outputs, found, vectors.flatten(0, 1), vectors[:, :GLOBALS].mean(1))


def _alike(look: Look, found: list[Alike], views: list[list[Seen]]) -> list[Section]:
    chance = look.recipe.chance(len(look.batch))
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine with its own image": lambda each: f"{each.mean(OWN):.3f}",
        "with another image": lambda each: f"{each.mean(ALIEN):.3f}",
        "nearer to its own than to any other": lambda each: f"{each.found():.0%}",
        **{term: lambda each, term=term: f"{each.figures[term]:.3f}" for term in found[0].figures},  # type: ignore[misc]
        f"loss (chance {chance:.3f})": lambda each: f"{each.loss:.3f}",
    }
    crops = [seen.pixels for image in look.shown for seen in views[image]]
    said = [f"crop {number} of {name}" for name in look.names for number in range(1, len(views[0]) + 1)], look.names
    pictures = crops, [look.images[image] for image in look.shown]
    matrices = [each.matrix(*pictures, said=said, meaning=MEANING) for each in found]
    return [section("parts", "alike", *matrices), section("parts", "figures", table(found, rows))]
