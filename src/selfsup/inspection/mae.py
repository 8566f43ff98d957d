"""MAE, seen: images, the patches that stay visible, and what a run fills in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from selfsup.inference.reconstruction import fill_in
from selfsup.inspection.base import Request
from selfsup.inspection.blocks import Figures, Gallery, Points, Section, Tile
from selfsup.inspection.pictures import FIRST, Pixels, patched
from selfsup.inspection.vision import HEIGHT, Seen, VisionInspection, box, described, look_at, mean, trained
from selfsup.objectives.base import Task
from selfsup.objectives.mae import MAE
from selfsup.run import Run
from selfsup.views import View
from selfsup.views.drawn import levels


@dataclass(frozen=True)
class Filled:
    """What a run makes of the hidden patches of an image.

    Attributes:
        pixels: with them filled in.
        smooth: with them in the mean colour of what is visible around them, without any model.
        loss: mean squared error of the normalised pixels.
    """

    pixels: Pixels
    smooth: Pixels
    loss: float


@dataclass(frozen=True, kw_only=True)
class MAEInspection(VisionInspection):
    """The first n images.

    Attributes:
        view: what the crop is drawn from.
        patch: side of a patch in pixels.
        views: one of each image.
        hidden: of each view, which patches are hidden, (rows, columns).
        filled: by a run, where one was given; else empty.
        chance: the loss of who knows nothing but the mean of each patch.
    """

    objective: ClassVar[str] = "mae"
    idea: ClassVar[str] = (
        "most patches of an image are hidden, and their pixels are predicted from the few others"
    )

    most: ClassVar[int] = 5

    view: View
    patch: int
    views: list[Seen]
    hidden: list[npt.NDArray[np.bool_]]
    filled: list[Filled]
    chance: float

    def summary(self) -> str:
        return f"{super().summary()}, patches of {self.patch} by {self.patch} pixels"

    def to_json(self) -> dict[str, Any]:
        losses = dict(enumerate(filled.loss for filled in self.filled))
        return {
            **super().to_json(),
            "view": asdict(self.view),
            "patch": self.patch,
            "chance": self.chance,
            "grid": self.hidden[0].shape,
            "images": [
                {
                    **self.described(image),
                    "view": described(self.views[image]),
                    "hidden": np.flatnonzero(self.hidden[image]).tolist(),
                    "loss": losses.get(image),
                }
                for image in range(len(self.images))
            ],
        }

    def sections(self) -> list[Section]:
        least, most = self.view.scale
        hidden, all_ = int(self.hidden[0].sum()), self.hidden[0].size
        task = Points(
            {
                "Shown": f"of a crop ({least:.0%} to {most:.0%} of an image, mirrored half of the time) "
                f"{all_ - hidden} of {all_} patches, drawn at random. The encoder sees nothing else.",
                "Hidden": f"the other {hidden} patches ({hidden / all_:.0%}): so many that neighbours alone do not "
                "tell.",
                "Predicted": "the pixels of every hidden patch, relative to its own mean and contrast, by a light "
                "decoder that is dropped after training.",
                "Learned": "how what is seen goes on: shapes, textures, objects.",
            }
        )
        filled = (
            " “Filled in” is what the run predicts; a hidden patch's mean and contrast, which it does not predict, are "
            "taken from visible patches around it. “Without a model” is that mean alone: what is gained over it was "
            "learned."
        )
        return [
            Section("the task", "", task),
            Section(
                "images and what is hidden of them",
                "First the image with its crop drawn in; then the crop, and what of it is shown. These are the very "
                f"crops and patches of the first epoch.{filled if self.filled else ''}",
                Gallery([(self.names[image], [self._row(image)]) for image in self.shown]),
            ),
            *self._figures(),
        ]

    def _row(self, image: int) -> list[Tile]:
        seen, hidden = self.views[image], self.hidden[image]
        tiles = [
            self.original(image, [box(seen, FIRST, "")]),
            Tile(seen.pixels, "crop", self.facts(image, seen), HEIGHT, FIRST),
            Tile(patched(seen.pixels, hidden), "shown", f"{hidden.mean():.0%} hidden", HEIGHT),
        ]
        if self.filled:
            filled = self.filled[image]
            tiles.append(Tile(filled.pixels, "filled in", f"loss {filled.loss:.3f}", HEIGHT))
            tiles.append(Tile(filled.smooth, "without a model", "the brightness around", HEIGHT))
        return tiles

    def _figures(self) -> list[Section]:
        if not self.filled:
            return []
        loss = mean([filled.loss for filled in self.filled])
        hint = (
            "Mean squared error of the hidden patches, each brought to mean 0 and variance 1; chance is what nothing "
            "but their means would give."
        )
        return [
            Section(
                "how well it is filled in",
                hint,
                Figures(["", str(self.run)], [[f"loss (chance {self.chance:.3f})", f"{loss:.3f}"]]),
            )
        ]


def inspect_mae(request: Request) -> MAEInspection:
    """Crops, hidden patches and objective are those of the training."""
    look = look_at(request, "mae", MAEInspection.most)
    objective = look.recipe.build()
    assert isinstance(objective, MAE)
    task = objective.hide(look.batch)
    side = objective.view.size // objective.decoder.config.patch
    hidden = torch.zeros(len(look.batch), side * side, dtype=torch.bool).scatter_(1, task["hidden"], True)
    filled = []
    if request.run is not None:
        filled = _filled(trained(Run(request.run), objective), task)
    return MAEInspection(
        **look.shared(request.run),
        view=objective.view,
        patch=objective.decoder.config.patch,
        views=look.seen(task["pixels"], objective.view, 0),
        hidden=list(hidden.view(-1, side, side).numpy()),
        filled=filled,
        chance=task["targets"].square().mean().item(),
    )


@torch.inference_mode()
def _filled(objective: MAE, task: Task) -> list[Filled]:
    values = objective.predict(task)["values"].float()
    losses = (values - task["targets"]).square().mean((1, 2)).tolist()
    pictures = [
        levels(fill_in(task["pixels"], task["visible"], task["hidden"], each, objective.decoder.config.patch))
        for each in (values, torch.zeros_like(values))
    ]
    return [Filled(*each) for each in zip(*pictures, losses, strict=True)]
