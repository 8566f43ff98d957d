"""Objectives of a student and a teacher: global and local crops, hidden patches, and how far both agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfsup.inspection.alike import Alike, alike, roles
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Gallery, Group, Section, Table, Tile, section, task
from selfsup.inspection.figures import trained
from selfsup.inspection.images import HEIGHT, Look, Seen, look_at
from selfsup.inspection.pictures import FIRST, HIDDEN, OTHER, SECOND, patched, ramp
from selfsup.objectives.base import Outputs, Task
from selfsup.objectives.dino import DINO
from selfsup.objectives.multi_crop import GLOBALS, Crops

MOST = 3  # images that are drawn
COLOURS = (FIRST, SECOND, OTHER)  # of both global crops, and of local ones
TINY = 1e-9
NO_PATCHES = np.zeros((GLOBALS, 0, 0), bool)  # masks of an image from whose crops nothing is hidden
MEANING = {OWN: "another crop of the same image", ALIEN: "a crop of another image", OUT: "the crop itself"}

Masks = npt.NDArray[np.bool_]  # of each image and global crop, which patches are hidden, (B, 2, rows, columns)


@dataclass(frozen=True)
class Agreement:
    """How far the student of a run says of parts of an image what its teacher says.

    Attributes:
        crops: what the teacher says of each global crop (rows) and the student of each crop (columns), the crops of an
            image beside each other.
        patches: of each image and global crop (B, 2, rows, columns): cosine of what the student says of each hidden
            patch and the teacher, which sees it; nan where a patch is not hidden.
        others: cosine of what the student says of a hidden patch and the teacher of another one, in the mean.
    """

    crops: Alike
    patches: npt.NDArray[np.float64]
    others: float


def inspect_crops(request: Request) -> Inspection:
    """Crops, hidden patches and objective are those of the training."""
    look = look_at(request, MOST)
    objective = look.objective
    assert isinstance(objective, DINO)
    made, crops = objective.hide(look.batch), objective.crops
    views = rendered(look, crops, made)
    side = crops.first.size // look.recipe.settings["model.patch"] if "hidden" in made.tensors else 0
    masks = made["hidden"].view(-1, GLOBALS, side, side).numpy() if side else np.stack([NO_PATCHES] * len(views))
    agreement = None if look.run is None else _agreement(look, made, masks, GLOBALS + crops.count)
    prototypes = len(objective.student.head.prototypes)
    groups = [Group(look.names[image], drawn(look, views[image], image, masks[image])) for image in look.shown]
    sections = [_task(look, objective, masks.size > 0, prototypes), section("crops", "shown", Gallery(groups))]
    values = look.values(views) | {"crops": asdict(crops), "prototypes": prototypes}
    for image, hidden in zip(values["images"], masks.astype(int).tolist() if side else (), strict=False):
        image["hidden"] = hidden
    if agreement is not None:
        sections += _agreed(look, views, masks, agreement)
        values["agreement"] = asdict(agreement) | {"patches": _finite(agreement.patches)}
    return look.inspection(sections, values)


def _task(look: Look, objective: DINO, hides: bool, prototypes: int) -> Section:
    figures: dict[str, Any] = {
        "blocks": ", and blocks of patches in half of the global crops" * hides,
        "patches": ", and of each hidden patch" * hides,
    }
    figures |= scales(objective.crops) | {"prototypes": prototypes}
    return task("crops", look.recipe.words, **figures)


# -- crops, of a teacher or without one --


def rendered(look: Look, crops: Crops, made: Task) -> list[list[Seen]]:
    """The crops of each image, the global ones first."""
    pixels = [*made["globals"].unbind(1), *(made["locals"].unbind(1) if crops.count else ())]
    kinds = [crops.first, crops.second, *[crops.local] * crops.count]
    seen = [look.seen(*each, number) for number, each in enumerate(zip(pixels, kinds, strict=True))]
    return [list(each) for each in zip(*seen, strict=True)]


def scales(crops: Crops) -> dict[str, Any]:
    """What parts of an image they show, as the words of a task name it."""
    (least, most), (low, high) = crops.first.scale, crops.local.scale
    local = f", and {crops.count} local crops of {low:.0%} to {high:.0%} of it" if crops.count else ""
    return {"least": least, "most": most, "local": local}


def drawn(look: Look, views: list[Seen], image: int, masks: Masks) -> list[list[Tile]]:
    """An image with its global crops (2, of whose patches `masks` (2, rows, columns) says which are hidden), and below
    with its local ones."""
    pixels, first = look.images[image], []
    boxes = [seen.box(COLOURS[min(n, GLOBALS)], str(n + 1)) for n, seen in enumerate(views)]
    for n, seen in enumerate(views[:GLOBALS]):
        first.append(seen.tile(pixels, f"crop {n + 1}", COLOURS[n]))
        if masks[n].any():
            said = "for the student", f"{masks[n].mean():.0%} of its patches hidden"
            first.append(Tile(patched(seen.pixels, masks[n]), *said, HEIGHT, COLOURS[n]))
    rows = [[look.original(image, boxes[:GLOBALS], "global crops"), *first]]
    if views[GLOBALS:]:
        height = round(HEIGHT * len(views[-1].pixels) / len(views[0].pixels))
        local = [seen.tile(pixels, f"crop {n}", OTHER, height) for n, seen in enumerate(views[GLOBALS:], GLOBALS + 1)]
        rows.append([look.original(image, boxes[GLOBALS:], "local crops"), *local])
    return rows


# -- what a run makes of it --


@torch.inference_mode()
def _agreement(look: Look, made: Task, masks: Masks, crops: int) -> Agreement:
    objective = trained(look.objective, str(look.run))
    outputs = objective.predict(made)
    teacher = outputs["teacher"].flatten(0, 1)
    student = torch.cat((outputs["globals"], outputs["locals"]), 1).flatten(0, 1)
    found = alike(str(look.run), objective, made, outputs, _roles(len(masks), crops), teacher, student)
    return Agreement(found, *_patches(outputs, torch.from_numpy(masks)))


def _roles(images: int, crops: int) -> list[str]:
    """What each crop, as the student sees it, is to each global crop of the teacher."""
    image, whole = np.arange(images * crops) // crops, np.arange(images * crops) % crops < GLOBALS
    same, itself = image[:, None] == image, np.eye(images * crops, dtype=bool)
    return roles((same & ~itself)[whole], itself[whole])


def _patches(outputs: Outputs, masks: torch.Tensor) -> tuple[npt.NDArray[np.float64], float]:
    """The cosines of hidden patches, and those of different ones in the mean: see `Agreement`."""
    if not masks.any():
        return np.full(masks.shape, np.nan), 0.0
    said, seen = (outputs[name].float().view(*masks.shape, -1) for name in ("patches", "teacher_patches"))
    own = (said * seen).sum(-1).double().masked_fill(~masks, torch.nan)
    every = said[masks] @ seen[masks].T
    return own.numpy(), (every.sum() - every.trace()).item() / max(1, len(every) * (len(every) - 1))


def _agreed(look: Look, views: list[list[Seen]], masks: Masks, agreement: Agreement) -> list[Section]:
    shown = [(f"crop {n} of {look.names[i]}", n, seen.pixels) for i in look.shown for n, seen in enumerate(views[i], 1)]
    whole = [each for each in shown if each[1] <= GLOBALS]
    said = [name for name, *_ in whole], [name for name, *_ in shown]
    pixels = [picture for *_, picture in whole], [picture for *_, picture in shown]
    rows = {"another crop of the same image": agreement.crops.mean(OWN)}
    rows["a crop of another image"] = agreement.crops.mean(ALIEN)
    groups = []
    if masks.any():
        rows["a hidden patch"] = float(np.nanmean(agreement.patches))
        rows["a hidden patch, and the teacher of another"] = agreement.others
        tiles = {image: _guessed(views[image], masks[image], image, agreement) for image in look.shown}
        groups = [Group(look.names[image], [row]) for image, row in tiles.items() if row]
    table = Table(["", str(look.run)], [[name, f"{figure:.3f}"] for name, figure in rows.items()])
    return [
        section("crops", "alike", agreement.crops.matrix(*pixels, said=said, meaning=MEANING)),
        *([section("crops", "guessed", Gallery(groups), others=agreement.others)] if groups else []),
        section("crops", "figures", table),
    ]


def _guessed(views: list[Seen], masks: Masks, image: int, agreement: Agreement) -> list[Tile]:
    tiles = []
    for n in np.flatnonzero(masks.any((1, 2))).tolist():
        cosines = agreement.patches[image, n]
        shares = (np.nan_to_num(cosines) - agreement.others) / max(1 - agreement.others, TINY)
        pixels = patched(views[n].pixels, masks[n], ramp(shares, (HIDDEN, FIRST)))
        facts = f"cosine {np.nanmean(cosines):.2f} in the mean"
        tiles.append(Tile(pixels, f"crop {n + 1}", facts, HEIGHT, COLOURS[n]))
    return tiles


def _finite(cosines: npt.NDArray[np.float64]) -> Any:
    """As lists; None stands for what is no number."""
    return np.where(np.isnan(cosines), np.array(None), cosines).tolist()
