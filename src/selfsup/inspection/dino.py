"""DINO, seen: images, their global and local crops, the hidden patches, and how far student and teacher agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from selfsup.inspection.base import Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Figures, Gallery, Matrix, Points, Section, Tile
from selfsup.inspection.pictures import FIRST, HIDDEN, OTHER, SECOND, patched, ramp
from selfsup.inspection.vision import HEIGHT, Seen, VisionInspection, box, described, look_at, mean, trained
from selfsup.objectives.base import Outputs
from selfsup.objectives.dino import DINO, GLOBALS, Crops
from selfsup.run import Run

COLOURS = (FIRST, SECOND)  # of the global crops
TINY = 1e-9

Mask = npt.NDArray[np.bool_]  # (rows, columns) of patches


@dataclass(frozen=True)
class Agreement:
    """How far the student of a run says of parts of an image what its teacher says.

    Attributes:
        crops: cosine of what the teacher says of each global crop (rows) and the student of each crop (columns), the
            crops of an image beside each other.
        patches: of each image and global crop (rows, columns): cosine of what the student says of each hidden patch and
            the teacher, which sees it; nan where a patch is not hidden.
        others: cosine of what the student says of a hidden patch and the teacher of another one, in the mean.
    """

    crops: list[list[float]]
    patches: list[list[npt.NDArray[np.float64]]]
    others: float


@dataclass(frozen=True, kw_only=True)
class DINOInspection(VisionInspection):
    """The first n images.

    Attributes:
        crops: how many of which kind.
        prototypes: how many student and teacher compare an image with.
        views: of each image, the global crops first.
        hidden: of each image and global crop, which patches are hidden; empty where the task hides none.
        agreement: where a run was given.
    """

    objective: ClassVar[str] = "dino"
    idea: ClassVar[str] = (
        "a student that sees a part of an image says what its teacher says of another part, and of patches that the "
        "student cannot see"
    )
    most: ClassVar[int] = 3

    crops: Crops
    prototypes: int
    views: list[list[Seen]]
    hidden: list[list[Mask]]
    agreement: Agreement | None

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "crops": asdict(self.crops),
            "prototypes": self.prototypes,
            "images": [
                {
                    **self.described(image),
                    "views": [described(seen) for seen in views],
                    "hidden": [mask.astype(int).tolist() for mask in hidden],
                }
                for image, (views, hidden) in enumerate(zip(self.views, self.hidden, strict=True))
            ],
            "roles": self.roles(),
            "agreement": self.agreement and _plain(self.agreement),
        }

    def roles(self) -> list[str]:
        """What each crop, as the student sees it, is to each global crop of the teacher."""
        crops = range(len(self.views[0]))
        places = [(image, crop) for image in range(len(self.images)) for crop in crops]
        return [
            "".join(OUT if there == here else OWN if there[0] == here[0] else ALIEN for there in places)
            for here in places
            if here[1] < GLOBALS
        ]

    def sections(self) -> list[Section]:
        return [
            Section("the task", "", Points(self._points())),
            Section(
                "images and their crops",
                "Above, an image with its two global crops drawn in: the teacher is given them whole, the student with "
                "grey patches hidden from it. Below, with its local crops, which the student alone is given. These are "
                "the very crops and patches of the first epoch.",
                Gallery([(self.names[image], self._rows(image)) for image in self.shown]),
            ),
            *([] if self.agreement is None else self._agreed(self.agreement)),
        ]

    def _points(self) -> dict[str, str]:
        crops = self.crops
        (least, most), (low, high) = crops.first.scale, crops.local.scale
        local = f", and {crops.count} local crops of {low:.0%} to {high:.0%} of it" if crops.count else ""
        blocks, patches = ("", "")
        if any(self.hidden):
            blocks, patches = (
                ", and blocks of patches in half of the global crops",
                ", and of each hidden patch",
            )
        return {
            "Shown": f"to the teacher, two global crops of {least:.0%} to {most:.0%} of an image; to the student, the "
            f"same two{local}.",
            "Hidden": f"from the student, what lies outside a crop{blocks}.",
            "Predicted": f"what the teacher says of the other global crop{patches}: which of {self.prototypes:,} kinds "
            "(prototypes) it takes it for. What they stand for is learned too.",
            "Learned": "what a part tells of the whole. The teacher is a moving average of the student itself: nobody "
            "tells it what is right.",
        }

    # -- crops --

    def _rows(self, image: int) -> list[list[Tile]]:
        views = self.views[image]
        boxes = [box(seen, _colour(number), str(number + 1)) for number, seen in enumerate(views)]
        whole = self.original(image, boxes[:GLOBALS], "global crops")
        first = [tile for number in range(GLOBALS) for tile in self._global(image, number)]
        if len(views) == GLOBALS:
            return [[whole, *first]]
        height = round(HEIGHT * self.crops.local.size / self.crops.first.size)
        local = [
            Tile(seen.pixels, f"crop {number}", self.facts(image, seen), height, OTHER)
            for number, seen in enumerate(views[GLOBALS:], GLOBALS + 1)
        ]
        return [[whole, *first], [self.original(image, boxes[GLOBALS:], "local crops"), *local]]

    def _global(self, image: int, number: int) -> list[Tile]:
        seen, name, colour = self.views[image][number], f"crop {number + 1}", COLOURS[number]
        tiles = [Tile(seen.pixels, name, self.facts(image, seen), HEIGHT, colour)]
        hidden = self.hidden[image][number] if self.hidden[image] else np.zeros((1, 1), np.bool_)
        if hidden.any():
            share = f"{hidden.mean():.0%} of its patches hidden"
            tiles.append(Tile(patched(seen.pixels, hidden), "for the student", share, HEIGHT, colour))
        return tiles

    # -- what a run makes of it --

    def _agreed(self, agreement: Agreement) -> list[Section]:
        matrix = Section(
            "what student and teacher say of an image",
            "In rows what the teacher says of each global crop, in columns what the student says of every crop; the "
            "stronger a cell, the more alike. Framed are crops of the same image, which training makes agree; a crop "
            "is not compared with itself.",
            self._matrix(agreement),
        )
        groups = [(self.names[image], [self._guessed(image, agreement)]) for image in self.shown]
        guesses = Section(
            "what the student says of patches that it cannot see",
            "The student, from which a patch is hidden, beside the teacher, which sees it. Orange: both say the same; "
            "grey: no more alike than of two different patches, where the cosine is "
            f"{agreement.others:.2f} in the mean.",
            Gallery([(name, rows) for name, rows in groups if rows[0]]),
        )
        figures = Section(
            "how far they agree",
            "Cosine of what the student and what the teacher says, where it meets the prototypes, in the mean.",
            Figures(["", str(self.run)], self._figures(agreement)),
        )
        return [matrix, guesses, figures] if any(rows[0] for _, rows in groups) else [matrix, figures]

    def _matrix(self, agreement: Agreement) -> Matrix:
        students = [seen.pixels for image in self.shown for seen in self.views[image]]
        teachers = [seen.pixels for image in self.shown for seen in self.views[image][:GLOBALS]]
        values = [row[: len(students)] for row in agreement.crops[: len(teachers)]]
        roles = [row[: len(students)] for row in self.roles()[: len(teachers)]]
        return Matrix(str(self.run), teachers, students, values, roles)

    def _guessed(self, image: int, agreement: Agreement) -> list[Tile]:
        tiles = []
        for number, cosines in enumerate(agreement.patches[image]):
            hidden, seen = self.hidden[image][number], self.views[image][number]
            if hidden.any():
                facts = f"cosine {np.nanmean(cosines):.2f} in the mean"
                shares = (np.nan_to_num(cosines) - agreement.others) / max(1 - agreement.others, TINY)
                pixels = patched(seen.pixels, hidden, ramp(shares, (HIDDEN, FIRST)))
                tiles.append(Tile(pixels, f"crop {number + 1}", facts, HEIGHT, COLOURS[number]))
        return tiles

    def _figures(self, agreement: Agreement) -> list[list[str]]:
        crops = zip("".join(self.roles()), np.ravel(agreement.crops), strict=True)
        cosines = [(role, float(cosine)) for role, cosine in crops]
        rows = [
            [name, f"{mean([cosine for is_, cosine in cosines if is_ == role]):.3f}"]
            for name, role in (("another crop of the same image", OWN), ("a crop of another image", ALIEN))
        ]
        if not any(mask.any() for masks in self.hidden for mask in masks):
            return rows
        own = np.nanmean(np.stack([np.stack(patches) for patches in agreement.patches]))
        return [
            *rows,
            ["a hidden patch", f"{own:.3f}"],
            ["a hidden patch, and the teacher of another", f"{agreement.others:.3f}"],
        ]


def _colour(number: int) -> str:
    return COLOURS[number] if number < GLOBALS else OTHER


def _plain(agreement: Agreement) -> dict[str, Any]:
    """As JSON can hold it."""
    patches = [
        [[None if np.isnan(cosine) else float(cosine) for cosine in crop.flat] for crop in crops]
        for crops in agreement.patches
    ]
    return {"crops": agreement.crops, "patches": patches, "others": agreement.others}


def inspect_dino(request: Request) -> DINOInspection:
    """Crops, hidden patches and objective are those of the training."""
    look = look_at(request, "dino", DINOInspection.most)
    objective = look.recipe.build()
    assert isinstance(objective, DINO)
    task, crops = objective.hide(look.batch), objective.crops
    pixels = [*task["globals"].unbind(1), *(task["locals"].unbind(1) if crops.count else ())]
    kinds = [crops.first, crops.second, *[crops.local] * crops.count]
    seen = [look.seen(*each, number) for number, each in enumerate(zip(pixels, kinds, strict=True))]
    hidden: list[list[Mask]] = [[] for _ in range(len(look.batch))]
    if "hidden" in task.tensors:
        side = crops.first.size // look.recipe.settings["model.patch"]
        hidden = [list(masks) for masks in task["hidden"].view(-1, GLOBALS, side, side).numpy()]
    agreement = None
    if request.run is not None:
        with torch.inference_mode():
            agreement = _agreement(trained(Run(request.run), objective).predict(task), hidden)
    return DINOInspection(
        **look.shared(request.run),
        crops=crops,
        prototypes=len(objective.student.head.prototypes),
        views=[list(each) for each in zip(*seen, strict=True)],
        hidden=hidden,
        agreement=agreement,
    )


def _agreement(outputs: Outputs, hidden: list[list[Mask]]) -> Agreement:
    teacher = outputs["teacher"].float().flatten(0, 1)
    student = torch.cat((outputs["globals"], outputs["locals"]), 1).float().flatten(0, 1)
    crops = (teacher @ student.T).tolist()
    if not any(hidden):
        return Agreement(crops, [[] for _ in hidden], 0.0)
    masks = torch.from_numpy(np.stack(hidden))
    said, seen = (outputs[name].float().view(*masks.shape, -1) for name in ("patches", "teacher_patches"))
    own = (said * seen).sum(-1).double().masked_fill(~masks, torch.nan)
    alike = said[masks] @ seen[masks].T
    others = (alike.sum() - alike.trace()).item() / max(1, len(alike) * (len(alike) - 1))
    return Agreement(crops, [list(each) for each in own.numpy()], others)
