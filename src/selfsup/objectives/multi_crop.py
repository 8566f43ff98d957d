"""What objectives of crops share: two global crops of an image and several small local ones (Caron et al. 2021, "DINO",
section 3.1), and what recipes decide about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from selfsup.config import Count, Section, Settings, Whole
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.objectives.image_networks import ROUND, ROUND_FROM, ImageNetwork
from selfsup.views import View, dino_global, dino_local, dino_second, render, render_several

GLOBALS = 2
LOCAL_SHARE = 0.45  # of the side of a global crop: 96 of 224 pixels, 16 of 32
LOCAL_CROPS = 6
SMALL = 64  # pixels, below which crops are larger parts of an image: the smallest would show next to nothing
SCALES = {True: ((0.4, 1.0), (0.2, 0.6)), False: ((0.32, 1.0), (0.05, 0.32))}  # of global and local crops


class CropSettings(Section):
    local_crops: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="small crops of each image, beside its two global ones"
    )
    local_size: Count | None = Field(None, description="their side in pixels")


@dataclass(frozen=True)
class Crops:
    """What is rendered of an image: two global crops, and `count` local ones."""

    first: View
    second: View
    local: View
    count: int

    def made(self, batch: Batch) -> dict[str, Callable[[], Tensor]]:
        """What makes `globals` (B, 2, 3, S, S) and, where there are some, `locals` (B, count, 3, s, s) of a batch."""
        made: dict[str, Callable[[], Tensor]] = {"globals": partial(self._globals, batch)}
        if self.count:
            made["locals"] = partial(self._locals, batch)
        return made

    def _globals(self, batch: Batch) -> Tensor:
        pixels, sizes = batch.data["pixels"], batch.data["sizes"]
        place, views = (batch.seed, batch.epochs, batch.records), (self.first, self.second)
        crops = [render(pixels, sizes, view, *place, number) for number, view in enumerate(views)]
        return torch.stack(crops, 1)

    def _locals(self, batch: Batch) -> Tensor:
        pixels, sizes = batch.data["pixels"], batch.data["sizes"]
        place, numbers = (batch.seed, batch.epochs, batch.records), range(GLOBALS, GLOBALS + self.count)
        return render_several(pixels, sizes, self.local, *place, numbers)


def settle_crops(settings: Settings, section: str) -> None:
    """How many local crops and how large, by the size of the images, in the section of an objective.

    Raises:
        UserError: the size that is given is no multiple of the patches.
    """
    size, patch = settings["data.size"], settings["model.patch"] or 1
    step = ROUND if patch == 1 and size >= ROUND_FROM else patch
    settings.settle(f"{section}.local_size", max(1, round(LOCAL_SHARE * size / step)) * step, "image size")
    settings.settle(f"{section}.local_crops", LOCAL_CROPS, "recipe")
    if settings[f"{section}.local_size"] % patch:
        raise UserError(
            f"{section}.local_size {settings[f'{section}.local_size']} is no multiple of model.patch {patch}; give one "
            "that is."
        )


def require_crops(settings: Settings, section: str, network: ImageNetwork) -> None:
    """Raise a UserError where a network does not take local crops of the size that is settled."""
    if settings[f"{section}.local_crops"]:
        whole = f"give {section}.local_size={settings['data.size']} or {section}.local_crops=0"
        network.require_side(settings[f"{section}.local_size"], f"the size of the local crops; {whole}")


def local_share(settings: Settings, section: str) -> float:
    """What the local crops of an image are worth, in images of full size."""
    share = (settings[f"{section}.local_size"] or 0) / settings["data.size"]
    return float((settings[f"{section}.local_crops"] or 0) * share**2)


def build_crops(settings: Settings, section: str, seen: Callable[[View], View]) -> Crops:
    """The crops that are settled; `seen` makes of a view what the network sees."""
    size = settings["data.size"]
    whole, part = SCALES[size < SMALL]
    return Crops(
        seen(dino_global(size, whole)),
        seen(dino_second(size, whole)),
        seen(dino_local(settings[f"{section}.local_size"], part)),
        settings[f"{section}.local_crops"],
    )


def told_crops(settings: Settings, section: str) -> str:
    """What the plan says of the crops."""
    size, local, count = (settings[key] for key in ("data.size", f"{section}.local_size", f"{section}.local_crops"))
    why = {name: settings.origin(f"{section}.{name}") for name in ("local_size", "local_crops")}
    return f"2 of {size} × {size}, {count} ({why['local_crops']}) of {local} × {local} pixels ({why['local_size']})"
