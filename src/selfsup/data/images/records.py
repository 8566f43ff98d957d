"""Images as training data: which are held out, and how batches of them are read."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.images.collection import Images, Indices, Unreadable
from selfsup.data.images.decoding import Pixels
from selfsup.data.images.stores import SHARE
from selfsup.data.split import hold_out
from selfsup.errors import UserError
from selfsup.machine import free_memory

FEW = 8  # images that a thread decodes at a time: for each one the threads would wait for each other


def split_images(images: Images, share: float) -> tuple[Indices, Indices]:
    """Indices of the training and of the held-out images, by the hash of their content: duplicates fall on one side.
    The share that is held out is from 0 (none) to below 1. Raises UserError: no such share, or all images are one."""
    if not 0 <= share < 1:
        raise UserError(f"The held-out share must be at least 0 and below 1, not {share:g}.")
    if share and len(images) - images.duplicates == 1:
        raise UserError(f"{images.name} holds one image only, so none can be held out: give more.")
    chosen = hold_out(images.hashes, share)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


class ImageRecords:
    """Images as records, each reduced to what its `least` short side needs. An image that turns out to be unreadable
    gives way to the next readable one of the indices."""

    def __init__(self, images: Images, indices: Indices, least: int) -> None:
        self._images, self._indices, self._least = images, indices, least
        stack = images.stack
        whole = stack is not None and min(stack.shape[1:3]) < 2 * least
        self._stack = stack if whole else None
        self._room = free_memory(torch.device("cpu")) // SHARE
        self._kept: dict[int, Pixels] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._indices)

    def place(self, record: int) -> str:
        """Where a record's image stands: see `Images.place`."""
        return self._images.place(int(self._indices[record]))

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Tensor]:
        """Records by index (n,): `pixels`, uint8 (n, 3, H, W), padded with zeros at the bottom and on the right, and
        `sizes`, int64 (n, 2), the height and width of each without its padding. Raises UserError: more images than may
        be cannot be read."""
        return self.found(indices)[1]

    def found(self, indices: npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.integer[Any]], dict[str, Tensor]]:
        """What `read` returns, behind the records that it is of, (n,): other ones where images gave way."""
        if self._stack is not None:
            pixels = torch.from_numpy(self._stack[self._indices[indices]]).permute(0, 3, 1, 2)
            return indices, {"pixels": pixels, "sizes": torch.tensor(pixels.shape[2:]).expand(len(pixels), 2)}
        parts = (indices[start : start + FEW].tolist() for start in range(0, len(indices), FEW))
        read = _threads().map(lambda part: [self._readable(index) for index in part], parts)
        records, images = zip(*chain.from_iterable(read), strict=True)
        sizes = torch.tensor([image.shape[:2] for image in images])
        padded = np.empty((len(images), *sizes.amax(0).tolist(), 3), np.uint8)
        for row, image in zip(padded, images, strict=True):
            height, width, _ = image.shape
            row[:height, :width], row[height:], row[:height, width:] = image, 0, 0
        return np.array(records), {"pixels": torch.from_numpy(padded).permute(0, 3, 1, 2), "sizes": sizes}

    def _readable(self, first: int) -> tuple[int, Pixels]:
        """The first record that can be read, and its image."""
        for step in range(len(self)):
            record = (first + step) % len(self)
            with suppress(Unreadable):
                return record, self._pixels(int(self._indices[record]))
        raise UserError(f"None of the images of {self._images.name} can be read: repair them.")

    def _pixels(self, index: int) -> Pixels:
        """An image, which stays in memory while there is room."""
        if (kept := self._kept.get(index)) is not None:
            return kept
        pixels = self._images.pixels(index, self._least)
        with self._lock:
            if pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._kept[index] = pixels
        return pixels


@cache
def _threads() -> ThreadPoolExecutor:
    """What decodes batches, shared by all readers: no more than cores, since they compete with the step."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")
