"""SimCLR, seen: images, the two views of each, and how well a run tells which two belong together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.inspection.base import Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Beside, Figures, Gallery, Matrix, Points, Section, Tile
from selfsup.inspection.pictures import FIRST, SECOND
from selfsup.inspection.vision import HEIGHT, Seen, VisionInspection, box, described, look_at, mean, trained
from selfsup.objectives.base import Task
from selfsup.objectives.simclr import SimCLR
from selfsup.run import Run
from selfsup.views import View

COLOURS = (FIRST, SECOND)


@dataclass(frozen=True)
class Alike:
    """What a network makes of 2n views, in the order of their images.

    Attributes:
        name: of the network.
        similarity: cosine of each view with each, after the projection head.
        losses: nats of finding its other view, for each.
    """

    name: str
    similarity: list[list[float]]
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class SimCLRInspection(VisionInspection):
    """The first n images.

    Attributes:
        view: what views are drawn from.
        temperature: by which cosines are divided.
        views: two of each image.
        networks: before the training and after it, where a run was given.
    """

    objective: ClassVar[str] = "simclr"
    idea: ClassVar[str] = (
        "an image is rendered twice, and each rendering finds the other among those of other images"
    )

    most: ClassVar[int] = 6

    view: View
    temperature: float
    views: list[tuple[Seen, Seen]]
    networks: list[Alike]

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "view": asdict(self.view),
            "temperature": self.temperature,
            "images": [
                {**self.described(image), "views": [described(seen) for seen in pair]}
                for image, pair in enumerate(self.views)
            ],
            "roles": self.roles(),
            "networks": [asdict(network) for network in self.networks],
        }

    def roles(self) -> list[str]:
        """What each view is to each, in the order of their images."""
        count = 2 * len(self.views)
        return [
            "".join(
                OUT if here == there else OWN if here // 2 == there // 2 else ALIEN for there in range(count)
            )
            for here in range(count)
        ]

    def sections(self) -> list[Section]:
        least, most = self.view.scale
        task = Points(
            {
                "Shown": f"two views of each image: random crops of {least:.0%} to {most:.0%} of it, mirrored half of "
                "the time, with their colours changed.",
                "Hidden": "which two views come from the same image.",
                "Predicted": "for each view, which of all others is its partner. Those of all other images of the "
                "batch are what it could be mistaken for.",
                "Learned": "what crop and colour do not change: what the image is of.",
            }
        )
        parts = [
            Section("the task", "", task),
            Section(
                "images and their views",
                "First the image with both crops drawn in; beside it what the network is given. These are the "
                "very views of the first epoch.",
                Gallery([self._group(image) for image in self.shown]),
            ),
        ]
        if not self.networks:
            return parts
        hint = (
            "Every view in rows and columns; the stronger a cell, the more alike they are to the network. Framed is a "
            "view's partner, all else it must not be taken for."
        )
        matrices = Beside([self._matrix(network) for network in self.networks])
        figures = Section(
            "how well a view is found",
            f"Among the {2 * len(self.images) - 1} other views of these images; a training has more of them, and so a "
            "higher loss. Cosines are those that the training compares, after the projection head.",
            Figures(["", *(network.name for network in self.networks)], self._figures()),
        )
        return [*parts, Section("which two belong together", hint, matrices), figures]

    def _group(self, image: int) -> tuple[str, list[list[Tile]]]:
        pair = self.views[image]
        boxes = [
            box(seen, colour, str(n)) for n, (seen, colour) in enumerate(zip(pair, COLOURS, strict=True), 1)
        ]
        tiles = [
            Tile(seen.pixels, f"view {number}", self.facts(image, seen), HEIGHT, colour)
            for number, (seen, colour) in enumerate(zip(pair, COLOURS, strict=True), 1)
        ]
        return self.names[image], [[self.original(image, boxes), *tiles]]

    def _matrix(self, network: Alike) -> Matrix:
        pictures = [seen.pixels for image in self.shown for seen in self.views[image]]
        count = len(pictures)
        values = [row[:count] for row in network.similarity[:count]]
        roles = [row[:count] for row in self.roles()[:count]]
        return Matrix(network.name, pictures, pictures, values, roles)

    def _figures(self) -> list[list[str]]:
        rows: dict[str, Callable[[Alike], float]] = {
            "cosine with its partner": lambda network: mean(self._cosines(network, OWN)),
            "with a view of another image": lambda network: mean(self._cosines(network, ALIEN)),
        }
        table = [
            [name, *(f"{figure(network):.3f}" for network in self.networks)] for name, figure in rows.items()
        ]
        found = (f"{mean(self._found(network)):.0%}" for network in self.networks)
        losses = (f"{mean(network.losses):.3f}" for network in self.networks)
        chance = math.log(2 * len(self.views) - 1)
        return [*table, ["nearer to it than to any other", *found], [f"loss (chance {chance:.3f})", *losses]]

    def _cosines(self, network: Alike, role: str) -> list[float]:
        rows = zip(self.roles(), network.similarity, strict=True)
        return [cosine for roles, row in rows for is_, cosine in zip(roles, row, strict=True) if is_ == role]

    def _found(self, network: Alike) -> list[bool]:
        own, alien = self._cosines(network, OWN), self._cosines(network, ALIEN)
        each = len(alien) // len(own)
        return [cosine > max(alien[each * n : each * (n + 1)], default=-1.0) for n, cosine in enumerate(own)]


def inspect_simclr(request: Request) -> SimCLRInspection:
    """Views and objective are those of the training."""
    look = look_at(request, "simclr", SimCLRInspection.most)
    objective = look.recipe.build()
    assert isinstance(objective, SimCLR)
    task = objective.hide(look.batch)
    pairs = [look.seen(task["views"][:, number], objective.view, number) for number in range(2)]
    networks = []
    if request.run is not None:
        networks.append(_alike("before training", objective.eval(), task))
        networks.append(_alike(str(request.run), trained(Run(request.run), objective), task))
    return SimCLRInspection(
        **look.shared(request.run),
        view=objective.view,
        temperature=objective.temperature,
        views=list(zip(*pairs, strict=True)),
        networks=networks,
    )


@torch.inference_mode()
def _alike(name: str, objective: SimCLR, task: Task) -> Alike:
    outputs = objective.predict(task)
    z = F.normalize(torch.stack((outputs["first"], outputs["second"]), 1).flatten(0, 1).float(), dim=-1)
    similarity = z @ z.T
    return Alike(name, similarity.tolist(), _losses(similarity / objective.temperature).tolist())


def _losses(logits: Tensor) -> Tensor:
    """−log of the share of each row's partner among all others."""
    partners = torch.arange(len(logits)) ^ 1  # views of an image stand beside each other
    return F.cross_entropy(logits.fill_diagonal_(-torch.inf), partners, reduction="none")
