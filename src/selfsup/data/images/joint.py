"""Several collections of images as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from selfsup.data.images.captions import Captions
from selfsup.data.images.collection import Images
from selfsup.data.images.decoding import Pixels
from selfsup.data.tally import Skipped, joint_skipped


class JointImages(Images):
    """Collections whose images are numbered one collection behind the other; see `Images`. Classes of one name are one
    class. There are captions where all have them."""

    def __init__(self, name: str, every: Sequence[Images]) -> None:
        self.name, self.every = name, every
        self.starts = np.cumsum([0, *map(len, every)])
        self.sizes = np.concatenate([images.sizes for images in every])
        self.hashes = np.concatenate([images.hashes for images in every])
        named = [images.classes if images.labels is not None else () for images in every]
        self.classes = tuple(dict.fromkeys(name for names in named for name in names))
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = [
            np.full(len(images), -1, np.int64)
            if images.labels is None
            else np.array([*(numbers[name] for name in names), -1])[images.labels]
            for images, names in zip(every, named, strict=True)
        ]
        self.labels = np.concatenate(labels) if self.classes else None
        captions = [images.captions for images in every if images.captions is not None]
        self.captions = Captions.joined(captions) if len(captions) == len(every) else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def skipped(self) -> Skipped:
        return joint_skipped([images.skipped for images in self.every])

    @cached_property
    def stack(self) -> Pixels | None:
        stacks = [stack for images in self.every if (stack := images.stack) is not None]
        alike = len(stacks) == len(self.every) and len({stack.shape[1:] for stack in stacks}) == 1
        return np.concatenate(stacks) if alike else None

    def pixels(self, index: int, least: int | None = None) -> Pixels:
        images, own = self._own(index)
        return images.pixels(own, least)

    def place(self, index: int) -> str:
        images, own = self._own(index)
        return images.place(own)

    @property
    def notes(self) -> dict[str, str]:
        """Nothing but what is left out: each source is read in its own way."""
        left_out = "; ".join(self.skipped.left_out)
        return {"left out": left_out} if left_out else {}

    def _own(self, index: int) -> tuple[Images, int]:
        which = int(np.searchsorted(self.starts, index, "right")) - 1
        return self.every[which], index - int(self.starts[which])
