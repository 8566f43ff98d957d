"""Objectives of a teacher of images: what both are shown, and how far the student says what the teacher says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from selfsup.inspection.alike import Alike, alike, roles, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OWN, Gallery, Group, Section, section, task
from selfsup.inspection.figures import networks
from selfsup.inspection.images import Look, Seen, look_at
from selfsup.inspection.pictures import FIRST, SECOND
from selfsup.objectives.base import Objective, Task
from selfsup.objectives.distill_images import ImageDistillation, shown

MOST = 6  # images that are drawn
MEANING = {OWN: "the same image", ALIEN: "another image"}


def inspect_taught(request: Request) -> Inspection:
    """Views and objective are those of the training."""
    look = look_at(request, MOST)
    objective = look.objective
    assert isinstance(objective, ImageDistillation)
    made = objective.hide(look.batch)
    pair = [look.seen(shown(look.batch, view), view, 0) for view in (objective.view, objective.taught)]
    views = [list(each) for each in zip(*pair, strict=True)]
    least, most = objective.view.scale
    asked = " and of each of its patches" if objective.patch_map is not None else ""
    sections = [
        task("taught", look.recipe.words, least=least, most=most, asked=asked),
        section("taught", "shown", Gallery([_group(look, image, *views[image]) for image in look.shown])),
    ]
    found = []
    if look.run is not None:
        found = [_compare(name, each, made) for name, each in networks(objective, look.run)]
        sections += _alike(look, found, views)
    values = {"view": asdict(objective.view), "networks": [asdict(network) for network in found]}
    return look.inspection(sections, look.values(views) | values)


def _group(look: Look, image: int, own: Seen, taught: Seen) -> Group:
    original, pixels = look.original(image, [own.box(FIRST)]), look.images[image]
    student, teacher = (f"the {who}, {len(seen.pixels)} px" for who, seen in (("student", own), ("teacher", taught)))
    return Group(
        look.names[image], [[original, own.tile(pixels, student, FIRST), taught.tile(pixels, teacher, SECOND)]]
    )


@torch.inference_mode()
def _compare(name: str, objective: Objective, made: Task) -> Alike:
    """What the teacher says of each image (rows), and the student of each (columns)."""
    outputs, count = objective.predict(made), len(made["pixels"])
    found = roles(np.eye(count, dtype=bool), np.zeros((count, count), bool))
    return alike(name, objective, made, outputs, found, outputs["taught"], outputs["vectors"])


def _alike(look: Look, found: list[Alike], views: list[list[Seen]]) -> list[Section]:
    chance = look.recipe.chance(len(look.batch))
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine of both on the same image": lambda each: f"{each.mean(OWN):.3f}",
        "on two different images": lambda each: f"{each.mean(ALIEN):.3f}",
        "nearer on the same than on any other": lambda each: f"{each.found():.0%}",
        f"loss (chance {chance:.3f})": lambda each: f"{each.loss:.3f}",
    }
    taught, own = ([views[image][who].pixels for image in look.shown] for who in (1, 0))
    said = list(look.names)
    matrices = [each.matrix(taught, own, said=(said, said), meaning=MEANING) for each in found]
    return [section("taught", "alike", *matrices), section("taught", "figures", table(found, rows))]
