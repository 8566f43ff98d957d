"""Objectives of two views of an image: the views, and how well a network tells which two belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from selfsup.inspection.alike import Alike, alike, figures
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import (
    ALIEN,
    OUT,
    OWN,
    Gallery,
    Group,
    Matrix,
    Points,
    Section,
    mean,
)
from selfsup.inspection.figures import networks as networks_of
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
    task = look.objective.hide(look.batch)
    pair = [look.seen(task["views"][:, number], look.view, number) for number in range(2)]
    views = list(zip(*pair, strict=True))
    sections, networks = _task(look, views), []
    if look.run is not None:
        networks = [
            _compare(name, objective, task) for name, objective in networks_of(look.objective, look.run)
        ]
        sections += _alike(look, networks, views)
    values = {"view": asdict(look.view), "networks": [asdict(network) for network in networks]}
    return look.inspection(sections, look.values(views) | values)


def _task(look: Look, views: Sequence[Sequence[Seen]]) -> list[Section]:
    least, most = look.view.scale
    points = {
        "Shown": f"two views of each image: random crops of {least:.0%} to {most:.0%} of it, mirrored half of the "
        "time, with their colours changed.",
        "Hidden": "which two views come from the same image.",
        "Predicted": "for each view, which of all others is its partner. Those of all other images of the batch are "
        "what it could be mistaken for.",
        "Learned": "what crop and colour do not change: what the image is of.",
    }
    hint = (
        "First the image with both crops drawn in; beside it what the network is given. These are the very views of "
        "the first epoch."
    )
    groups = [_group(look, image, views[image]) for image in look.shown]
    return [
        Section("the task", [Points({**points, **look.recipe.words})]),
        Section("images and their views", [Gallery(groups)], hint),
    ]


def _group(look: Look, image: int, pair: Sequence[Seen]) -> Group:
    numbered = [(str(n), seen, COLOURS[n - 1]) for n, seen in enumerate(pair, 1)]
    original = look.original(image, [seen.box(colour, n) for n, seen, colour in numbered])
    tiles = [seen.tile(look.images[image], f"view {n}", colour) for n, seen, colour in numbered]
    return Group(look.names[image], [[original, *tiles]])


# -- what networks make of it --


def roles(count: int) -> list[str]:
    """What each of so many views is to each, the two of an image beside each other."""
    views = range(count)
    return ["".join(OUT if a == b else OWN if a // 2 == b // 2 else ALIEN for b in views) for a in views]


def _compare(name: str, objective: Objective, task: Task) -> Alike:
    """All views, in the order of their images."""
    with torch.inference_mode():
        outputs = objective.predict(task)
        both = torch.stack((outputs["first"], outputs["second"]), 1).flatten(0, 1)
    return alike(name, objective, outputs, task, (both, both), roles(len(both)))


def _alike(look: Look, networks: list[Alike], views: Sequence[Sequence[Seen]]) -> list[Section]:
    count = 2 * len(look.batch)
    chance = look.recipe.chance_of(len(look.batch))
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine with its partner": lambda each: f"{mean(each.cosines(OWN)):.3f}",
        "with a view of another image": lambda each: f"{mean(each.cosines(ALIEN)):.3f}",
        "nearer to it than to any other": lambda each: f"{each.found():.0%}",
        f"loss{'' if chance is None else f' (chance {chance:.3f})'}": lambda each: f"{each.loss:.3f}",
    }
    return [
        Section(
            "which two belong together",
            [_matrix(look, network, views) for network in networks],
            "Every view in rows and columns; the stronger a cell, the more alike they are to the network. Framed is a "
            "view's partner, all else it must not be taken for.",
        ),
        Section(
            "how well a view is found",
            [figures(networks, rows)],
            f"Among the {count - 1} other views of these images; a training has more of them, and so a higher loss. "
            "Cosines are those that the training compares, after the projection head.",
        ),
    ]


def _matrix(look: Look, network: Alike, views: Sequence[Sequence[Seen]]) -> Matrix:
    pictures = [seen.pixels for image in look.shown for seen in views[image]]
    said = [f"view {number} of {name}" for name in look.names for number in (1, 2)][: len(pictures)]
    return Matrix(
        network.name,
        pictures,
        pictures,
        [row[: len(pictures)] for row in network.similarity[: len(pictures)]],
        [row[: len(pictures)] for row in network.roles[: len(pictures)]],
        said=(said, said),
        meaning=MEANING,
    )
