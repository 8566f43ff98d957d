"""DINO, seen: images, their global and local crops, the hidden patches, and how far student and teacher agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from selfsup.inspection.base import Request
from selfsup.inspection.pictures import (
    ALIEN,
    FIRST,
    GROUND,
    HIDDEN,
    OTHER,
    OUT,
    OWN,
    SECOND,
    Box,
    Figures,
    Gallery,
    Matrix,
    Pixels,
    Points,
    Section,
    Tile,
    between,
    patched,
)
from selfsup.inspection.vision import HEIGHT, Seen, VisionInspection, box, described, look_at, trained
from selfsup.objectives.base import Outputs
from selfsup.objectives.dino import DINO, GLOBALS, Crops
from selfsup.run import Run

IMAGES = 3
COLOURS = (FIRST, SECOND)


@dataclass(frozen=True)
class Agreement:
    """How far the student of a run, of parts of an image, says what its teacher says.

    Attributes:
        crops: cosine of what the teacher says of each global crop (rows) and the student of each crop (columns), all
            crops of an image beside each other.
        patches: of each image and global crop, for each patch: cosine of what the student says of a hidden one and the
            teacher, which sees it; nan where it is not hidden.
        others: cosine of hidden patches with what the teacher says of other hidden ones, in the mean.
    """

    crops: list[list[float]]
    patches: list[list[list[float]]]
    others: float


@dataclass(frozen=True, kw_only=True)
class DINOInspection(VisionInspection):
    """The first n images.

    Attributes:
        crops: how many of which kind.
        grid: rows and columns of patches of a global crop; (0, 0) for a network without patches.
        views: of each image, the global crops first.
        hidden: of each image and global crop, whether each patch is hidden.
        agreement: where a run was given.
    """

    objective: ClassVar[str] = "dino"
    idea: ClassVar[str] = (
        "a student that sees a part of an image says what its teacher says of another part, and of patches that it "
        "cannot see"
    )

    crops: Crops
    grid: tuple[int, int]
    views: list[list[Seen]]
    hidden: list[list[list[bool]]]
    agreement: Agreement | None

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "crops": asdict(self.crops),
            "grid": self.grid,
            "images": [
                {
                    **self.described(image),
                    "views": [described(seen) for seen in self.views[image]],
                    "hidden": [[n for n, is_ in enumerate(crop) if is_] for crop in self.hidden[image]],
                }
                for image in range(len(self.images))
            ],
            "roles": self.roles(),
            "agreement": self._agreement_json(),
        }

    def roles(self) -> list[str]:
        """What each crop, as the student sees it, is to each global crop of the teacher."""
        places = [(image, crop) for image in range(len(self.images)) for crop in range(len(self.views[image]))]
        return [
            "".join(OUT if (i, c) == (image, crop) else OWN if i == image else ALIEN for i, c in places)
            for image, crop in places
            if crop < GLOBALS
        ]

    def sections(self) -> list[Section]:
        parts = [
            Section("the task", "", Points(self._points())),
            Section(
                "images and their crops",
                "On the left an image with its crops drawn in, 1 and 2 the global ones. The teacher is given the global "
                "crops whole; the student all crops, with grey patches hidden from it. These are the very crops of the "
                "first epoch.",
                Gallery([(self.names[image], self._line(image)) for image in range(len(self.images))]),
            ),
        ]
        if self.agreement is None:
            return parts
        matrix = Section(
            "what student and teacher say of an image",
            "In rows what the teacher says of each global crop, in columns what the student says of every crop. Framed "
            "are crops of the same image, which training makes agree; a crop is not compared with itself.",
            self._matrix(self.agreement),
        )
        return [*parts, matrix, *self._guesses(self.agreement), self._figures(self.agreement)]

    def _points(self) -> dict[str, str]:
        crops = self.crops
        (least, most), (low, high) = crops.first.scale, crops.local.scale
        local = f", and {crops.count} local crops of {low:.0%} to {high:.0%} of it" if crops.count else ""
        masked = self.grid != (0, 0)
        return {
            "Shown": f"to the teacher, two global crops of {least:.0%} to {most:.0%} of an image; to the student, the "
            f"same two{local}.",
            "Hidden": "from the student, what lies outside a crop"
            + (", and blocks of patches in half of the global crops." if masked else "."),
            "Predicted": "what the teacher says of the other global crop"
            + (", and of each hidden patch." if masked else "."),
            "Learned": "what a part tells of the whole. The teacher is the student's own moving average: nobody else "
            "knows better.",
        }

    # -- crops --

    def _line(self, image: int) -> list[Tile]:
        tiles = [self.original(image, self._boxes(image))]
        for number, seen in enumerate(self.views[image]):
            tiles += self._crop(image, number, seen)
        return tiles

    def _boxes(self, image: int) -> list[Box]:
        """Local ones first, so that the others lie above them."""
        boxes = [box(seen, _colour(n), str(n + 1)) for n, seen in enumerate(self.views[image])]
        return [*boxes[GLOBALS:], *boxes[:GLOBALS]]

    def _crop(self, image: int, number: int, seen: Seen) -> list[Tile]:
        if number >= GLOBALS:
            height = round(HEIGHT * self.crops.local.size / self.crops.first.size)
            return [Tile(seen.pixels, f"{number + 1}", self.facts(image, seen), height, OTHER)]
        whole = Tile(seen.pixels, f"{number + 1} whole", self.facts(image, seen), HEIGHT, COLOURS[number])
        hidden = np.array(self.hidden[image][number], bool).reshape(self.grid)
        if not hidden.any():
            return [whole]
        share = f"{hidden.mean():.0%} of the patches hidden"
        return [whole, Tile(patched(seen.pixels, hidden), f"{number + 1} for the student", share, HEIGHT, COLOURS[number])]

    # -- what a run makes of it --

    def _matrix(self, agreement: Agreement) -> Matrix:
        crops = [seen.pixels for views in self.views for seen in views]
        teachers = [seen.pixels for views in self.views for seen in views[:GLOBALS]]
        return Matrix(str(self.run), teachers, crops, agreement.crops, self.roles())

    def _guesses(self, agreement: Agreement) -> list[Section]:
        lines = [(self.names[image], self._guessed(image, agreement)) for image in range(len(self.images))]
        shown = [line for line in lines if line[1]]
        hint = (
            "The redder a hidden patch, the better the student says what the teacher, which sees it, says of it. "
            f"With another hidden patch the cosine is {agreement.others:.2f} in the mean."
        )
        return [Section("what the student says of patches that it cannot see", hint, Gallery(shown))] if shown else []

    def _guessed(self, image: int, agreement: Agreement) -> list[Tile]:
        tiles = []
        for number, seen in enumerate(self.views[image][:GLOBALS]):
            cosines = np.array(agreement.patches[image][number]).reshape(self.grid)
            if np.isnan(cosines).all():
                continue
            facts = f"cosine {np.nanmean(cosines):.2f} in the mean"
            pixels = patched(seen.pixels, ~np.isnan(cosines), _heat(cosines))
            tiles.append(Tile(pixels, f"{number + 1} for the student", facts, HEIGHT, COLOURS[number]))
        return tiles

    def _figures(self, agreement: Agreement) -> Section:
        rows = [
            ["with another crop of the same image", f"{self._mean(agreement, OWN):.3f}"],
            ["with a crop of another image", f"{self._mean(agreement, ALIEN):.3f}"],
        ]
        hidden = [cosine for image in agreement.patches for crop in image for cosine in crop if cosine == cosine]
        if hidden:
            rows += [
                ["of a hidden patch, with the teacher's of the same", f"{sum(hidden) / len(hidden):.3f}"],
                ["of a hidden patch, with the teacher's of another", f"{agreement.others:.3f}"],
            ]
        hint = "Cosine of what the student says and what the teacher says, in the mean: the vectors that meet the prototypes."
        return Section("how far they agree", hint, Figures(["", str(self.run)], rows))

    def _mean(self, agreement: Agreement, role: str) -> float:
        rows = zip(self.roles(), agreement.crops, strict=True)
        cosines = [cosine for roles, row in rows for is_, cosine in zip(roles, row, strict=True) if is_ == role]
        return sum(cosines) / max(1, len(cosines))

    def _agreement_json(self) -> dict[str, Any] | None:
        if self.agreement is None:
            return None
        patches = [
            [[None if cosine != cosine else cosine for cosine in crop] for crop in image]
            for image in self.agreement.patches
        ]
        return {**asdict(self.agreement), "patches": patches}


def _colour(number: int) -> str:
    return COLOURS[number] if number < GLOBALS else OTHER


def _heat(cosines: npt.NDArray[np.float64]) -> Pixels:
    """A colour for each patch, (rows, columns, 3)."""
    colours = [between(GROUND, FIRST, cosine) for cosine in np.nan_to_num(cosines).flat]
    return np.array(colours, np.uint8).reshape(*cosines.shape, 3)


def inspect_dino(request: Request) -> DINOInspection:
    """Crops, hidden patches and objective are those of the training."""
    look = look_at(request, "dino", IMAGES)
    objective = look.recipe.build()
    assert isinstance(objective, DINO)
    task = objective.hide(look.batch)
    crops = objective.crops
    pixels = [*task["globals"].unbind(1), *(task["locals"].unbind(1) if crops.count else ())]
    kinds = [crops.first, crops.second, *[crops.local] * crops.count]
    seen = [look.seen(*each, number) for number, each in enumerate(zip(pixels, kinds, strict=True))]
    hidden = task.tensors.get("hidden")
    agreement = None
    if request.run is not None:
        with torch.inference_mode():
            agreement = _agreement(trained(Run(request.run), objective).predict(task), hidden)
    side = crops.first.size // (look.recipe.settings["model.patch"] or 1)
    return DINOInspection(
        **look.shared(request.run),
        crops=crops,
        grid=(0, 0) if hidden is None else (side, side),
        views=[list(each) for each in zip(*seen, strict=True)],
        hidden=[[[]] * GLOBALS] * len(look.batch) if hidden is None else hidden.tolist(),
        agreement=agreement,
    )


def _agreement(outputs: Outputs, hidden: torch.Tensor | None) -> Agreement:
    teacher = outputs["teacher"].float().flatten(0, 1)
    student = torch.cat((outputs["globals"], outputs["locals"]), 1).float().flatten(0, 1)
    if hidden is None:
        return Agreement((teacher @ student.T).tolist(), [[[]] * GLOBALS] * len(outputs["teacher"]), 0.0)
    said, seen = (outputs[name].float() for name in ("patches", "teacher_patches"))
    own = (said * seen).sum(-1).view_as(hidden).masked_fill(~hidden, torch.nan)
    said, seen = (F.normalize(each[hidden.flatten(1)], dim=-1) for each in (said, seen))
    alike = said @ seen.T
    count = max(1, len(alike) * (len(alike) - 1))
    others = (alike.sum() - alike.trace()).item() / count
    return Agreement((teacher @ student.T).tolist(), own.tolist(), others)
