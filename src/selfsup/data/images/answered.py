"""What a teacher says of images that are always shown the same way: asked once, and kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.cache import kept
from selfsup.data.images.collection import Indices
from selfsup.data.images.records import ImageRecords
from selfsup.errors import UserError

FORMAT = 1  # of a cache entry; a change makes new entries
ASKED = 64  # images at a time
# What is kept of each image, by its name in a batch: its vector, and those of its patches, which are many, in half
# precision: that is a thousandth of a number.
KEPT: dict[str, npt.DTypeLike] = {"vectors": np.float32, "patches": np.float16}

Teacher = Callable[[dict[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class AnsweredImages:
    """Images as records, each with what a teacher says of it.

    Attributes:
        records: the images themselves.
        indices: (records,) which of all images each is.
        answers: by their names in a batch, of all images: (images, …), memory-mapped.
    """

    records: ImageRecords
    indices: Indices
    answers: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.records)

    def place(self, record: int) -> str:
        """Where a record's image stands."""
        return self.records.place(record)

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Tensor]:
        """As `ImageRecords.read`, with `vectors` (n, d) and `patches` (n, P, d') in fp32."""
        found, images = self.records.found(indices)
        rows = self.indices[found]
        return images | {name: torch.from_numpy(part[rows].astype(np.float32)) for name, part in self.answers.items()}


def ask(images: ImageRecords, teacher: Teacher, identity: Iterable[object]) -> dict[str, npt.NDArray[Any]]:
    """What a teacher says of each of some images, by the names of `KEPT`.

    Args:
        teacher: of the images of a batch, (n, …) each, in the order of these names.
        identity: changes with anything that may change what it says.

    Raises:
        UserError: it says a number that is not finite; the cache cannot be written.
    """
    key = hashlib.blake2b(repr((FORMAT, *identity)).encode(), digest_size=16).hexdigest()
    entry = kept("image-answers", key, lambda place: _build(place, images, teacher))
    return {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in KEPT}


def _build(directory: Path, images: ImageRecords, teacher: Teacher) -> None:
    """Write an entry: a file of each name."""
    files: dict[str, npt.NDArray[Any]] = {}
    for start in range(0, len(images), ASKED):
        places = np.arange(start, min(start + ASKED, len(images)))
        for (name, dtype), answers in zip(KEPT.items(), teacher(images.read(places)), strict=True):
            with np.errstate(over="ignore"):
                said = answers.cpu().numpy().astype(dtype)
            if not np.isfinite(said).all():
                raise UserError("The teacher says numbers that are not finite, or too large; give another one.")
            if name not in files:
                shape = (len(images), *said.shape[1:])
                files[name] = np.lib.format.open_memmap(directory / f"{name}.npy", "w+", dtype, shape)
            files[name][places] = said
    for file in files.values():
        file.flush()  # type: ignore[attr-defined]
