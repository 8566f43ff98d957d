"""Objectives of a student and a teacher: global and local crops, hidden patches, and how far both agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

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
    Table,
    Tile,
    finite,
    mean,
)
from selfsup.inspection.figures import trained
from selfsup.inspection.images import HEIGHT, Look, Seen, look_at
from selfsup.inspection.pictures import FIRST, HIDDEN, OTHER, SECOND, patched, ramp
from selfsup.objectives.base import Outputs, Task
from selfsup.objectives.dino import DINO, GLOBALS, Crops

MOST = 3  # images that are drawn
COLOURS = (FIRST, SECOND)  # of the global crops
TINY = 1e-9
MEANING = {OWN: "another crop of the same image", ALIEN: "a crop of another image", OUT: "the crop itself"}

Mask = npt.NDArray[np.bool_]  # (rows, columns) of patches


@dataclass(frozen=True)
class Agreement:
    """How far the student of a run says of parts of an image what its teacher says.

    Attributes:
        crops: cosine of what the teacher says of each global crop (rows) and the student of each crop (columns), the
            crops of an image beside each other.
        roles: row by row, what the crop of each column is to that of the row.
        patches: of each image and global crop (B, 2, rows, columns): cosine of what the student says of each hidden
            patch and the teacher, which sees it; nan where a patch is not hidden. None where the task hides none.
        others: cosine of what the student says of a hidden patch and the teacher of another one, in the mean.
    """

    crops: list[list[float]]
    roles: list[str]
    patches: npt.NDArray[np.float64] | None
    others: float

    def cosines(self, role: str) -> list[float]:
        pairs = zip("".join(self.roles), np.ravel(self.crops).tolist(), strict=True)
        return [cosine for is_, cosine in pairs if is_ == role]


@dataclass(frozen=True)
class Cropped:
    """What is drawn for the images, and what a run makes of it.

    Attributes:
        crops: how many of which kind.
        views: of each image, the global crops first.
        hidden: of each image and global crop, which patches are hidden, (B, 2, rows, columns); None where none are.
        agreement: where there is a run.
    """

    crops: Crops
    views: list[list[Seen]]
    hidden: npt.NDArray[np.bool_] | None
    agreement: Agreement | None

    def masks(self, image: int) -> list[tuple[int, Mask]]:
        """The global crops of an image that hide patches, and which."""
        if self.hidden is None:
            return []
        return [(number, mask) for number, mask in enumerate(self.hidden[image]) if mask.any()]


def inspect_crops(request: Request) -> Inspection:
    """Crops, hidden patches and objective are those of the training."""
    look = look_at(request, MOST)
    objective = look.objective
    assert isinstance(objective, DINO)
    task, crops = objective.hide(look.batch), objective.crops
    pixels = [*task["globals"].unbind(1), *(task["locals"].unbind(1) if crops.count else ())]
    kinds = [crops.first, crops.second, *[crops.local] * crops.count]
    seen = [look.seen(*each, number) for number, each in enumerate(zip(pixels, kinds, strict=True))]
    hidden = None
    if "hidden" in task.tensors:
        side = crops.first.size // look.recipe.settings["model.patch"]
        hidden = task["hidden"].view(-1, GLOBALS, side, side).numpy()
    agreement = None if look.run is None else _agreement(look, task, hidden, len(kinds))
    cropped = Cropped(crops, [list(each) for each in zip(*seen, strict=True)], hidden, agreement)
    prototypes = len(objective.student.head.prototypes)
    sections = [
        Section("the task", [Points({**_points(cropped, prototypes), **look.recipe.words})]),
        Section(
            "images and their crops",
            [Gallery([Group(look.names[image], _rows(look, cropped, image)) for image in look.shown])],
            "Above, an image with its two global crops drawn in: the teacher is given them whole, the student with "
            "grey patches hidden from it. Below, with its local crops, which the student alone is given. These are "
            "the very crops and patches of the first epoch.",
        ),
        *([] if agreement is None else _agreed(look, cropped, agreement)),
    ]
    return look.inspection(sections, _values(look, cropped, prototypes))


def _values(look: Look, cropped: Cropped, prototypes: int) -> dict[str, Any]:
    values, agreement = look.values(cropped.views), cropped.agreement
    for image, masks in zip(values["images"], () if cropped.hidden is None else cropped.hidden, strict=False):
        image["hidden"] = masks.astype(int).tolist()
    told = {} if agreement is None else {"agreement": asdict(agreement) | {"patches": _cosines(agreement)}}
    return values | {"crops": asdict(cropped.crops), "prototypes": prototypes, **told}


def _cosines(agreement: Agreement) -> Any:
    return None if agreement.patches is None else finite(agreement.patches)


def _points(cropped: Cropped, prototypes: int) -> dict[str, str]:
    crops, hides = cropped.crops, cropped.hidden is not None
    (least, most), (low, high) = crops.first.scale, crops.local.scale
    local = f", and {crops.count} local crops of {low:.0%} to {high:.0%} of it" if crops.count else ""
    blocks = ", and blocks of patches in half of the global crops" * hides
    return {
        "Shown": f"to the teacher, two global crops of {least:.0%} to {most:.0%} of an image; to the student, the "
        f"same two{local}.",
        "Hidden": f"from the student, what lies outside a crop{blocks}.",
        "Predicted": f"what the teacher says of the other global crop{', and of each hidden patch' * hides}: which of "
        f"{prototypes:,} kinds (prototypes) it takes it for. What they stand for is learned too.",
        "Learned": "what a part tells of the whole. The teacher is a moving average of the student itself: nobody "
        "tells it what is right.",
    }


# -- crops --


def _rows(look: Look, cropped: Cropped, image: int) -> list[list[Tile]]:
    views, pixels, crops = cropped.views[image], look.images[image], cropped.crops
    boxes = [
        seen.box((*COLOURS, OTHER)[min(number, GLOBALS)], str(number + 1))
        for number, seen in enumerate(views)
    ]
    masks, first = dict(cropped.masks(image)), []
    for number, seen in enumerate(views[:GLOBALS]):
        first.append(seen.tile(pixels, f"crop {number + 1}", COLOURS[number]))
        if number in masks:
            first.append(_for_student(seen, masks[number], COLOURS[number]))
    rows = [[look.original(image, boxes[:GLOBALS], "global crops"), *first]]
    if crops.count:
        height = round(HEIGHT * crops.local.size / crops.first.size)
        local = enumerate(views[GLOBALS:], GLOBALS + 1)
        tiles = [seen.tile(pixels, f"crop {number}", OTHER, height) for number, seen in local]
        rows.append([look.original(image, boxes[GLOBALS:], "local crops"), *tiles])
    return rows


def _for_student(seen: Seen, hidden: Mask, colour: str) -> Tile:
    share = f"{hidden.mean():.0%} of its patches hidden"
    return Tile(patched(seen.pixels, hidden), "for the student", share, HEIGHT, colour)


# -- what a run makes of it --


@torch.inference_mode()
def _agreement(look: Look, task: Task, hidden: npt.NDArray[np.bool_] | None, crops: int) -> Agreement:
    outputs = trained(look.objective, str(look.run)).predict(task)
    teacher = outputs["teacher"].float().flatten(0, 1)
    student = torch.cat((outputs["globals"], outputs["locals"]), 1).float().flatten(0, 1)
    cosines, kinds = (teacher @ student.T).tolist(), _roles(len(task["globals"]), crops)
    return Agreement(cosines, kinds, *_patches(outputs, hidden))


def _roles(images: int, crops: int) -> list[str]:
    """What each crop, as the student sees it, is to each global crop of the teacher."""
    places = [(image, crop) for image in range(images) for crop in range(crops)]
    return [
        "".join(OUT if there == here else OWN if there[0] == here[0] else ALIEN for there in places)
        for here in places
        if here[1] < GLOBALS
    ]


def _patches(
    outputs: Outputs, hidden: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.float64] | None, float]:
    """The cosines of hidden patches, and those of different ones in the mean: see `Agreement`."""
    if hidden is None:
        return None, 0.0
    masks = torch.from_numpy(hidden)
    said, seen = (outputs[name].float().view(*masks.shape, -1) for name in ("patches", "teacher_patches"))
    own = (said * seen).sum(-1).double().masked_fill(~masks, torch.nan)
    alike = said[masks] @ seen[masks].T
    others = (alike.sum() - alike.trace()).item() / max(1, len(alike) * (len(alike) - 1))
    return own.numpy(), others


def _agreed(look: Look, cropped: Cropped, agreement: Agreement) -> list[Section]:
    matrix = Section(
        "what student and teacher say of an image",
        [_matrix(look, cropped, agreement)],
        "In rows what the teacher says of each global crop, in columns what the student says of every crop; the "
        "stronger a cell, the more alike. Framed are crops of the same image, which training makes agree; a crop is "
        "not compared with itself.",
    )
    guessed = [
        Group(look.names[image], [tiles]) for image in look.shown if (tiles := _guessed(cropped, image))
    ]
    guesses = Section(
        "what the student says of patches that it cannot see",
        [Gallery(guessed)],
        "The student, from which a patch is hidden, beside the teacher, which sees it. Orange: both say the same; "
        "grey: no more alike than of two different patches, where the cosine is "
        f"{agreement.others:.2f} in the mean.",
    )
    figures = Section(
        "how far they agree",
        [Table(["", str(look.run)], _figures(agreement))],
        "Cosine of what the student and what the teacher says, where it meets the prototypes, in the mean.",
    )
    return [matrix, *([guesses] if guessed else []), figures]


def _matrix(look: Look, cropped: Cropped, agreement: Agreement) -> Matrix:
    shown = [(image, crop, seen) for image in look.shown for crop, seen in enumerate(cropped.views[image], 1)]
    whole = [each for each in shown if each[1] <= GLOBALS]
    said = [[f"crop {crop} of {look.names[image]}" for image, crop, _ in each] for each in (whole, shown)]
    return Matrix(
        str(look.run),
        [seen.pixels for _, _, seen in whole],
        [seen.pixels for _, _, seen in shown],
        [row[: len(shown)] for row in agreement.crops[: len(whole)]],
        [row[: len(shown)] for row in agreement.roles[: len(whole)]],
        said=(said[0], said[1]),
        meaning=MEANING,
    )


def _guessed(cropped: Cropped, image: int) -> list[Tile]:
    tiles, agreement = [], cropped.agreement
    assert agreement is not None
    for number, hidden in cropped.masks(image):
        cosines = np.asarray(agreement.patches)[image, number]
        shares = (np.nan_to_num(cosines) - agreement.others) / max(1 - agreement.others, TINY)
        pixels = patched(cropped.views[image][number].pixels, hidden, ramp(shares, (HIDDEN, FIRST)))
        facts = f"cosine {np.nanmean(cosines):.2f} in the mean"
        tiles.append(Tile(pixels, f"crop {number + 1}", facts, HEIGHT, COLOURS[number]))
    return tiles


def _figures(agreement: Agreement) -> list[list[str]]:
    rows = {
        "another crop of the same image": mean(agreement.cosines(OWN)),
        "a crop of another image": mean(agreement.cosines(ALIEN)),
    }
    if agreement.patches is not None and not np.isnan(agreement.patches).all():
        rows["a hidden patch"] = float(np.nanmean(agreement.patches))
        rows["a hidden patch, and the teacher of another"] = agreement.others
    return [[name, f"{figure:.3f}"] for name, figure in rows.items()]
