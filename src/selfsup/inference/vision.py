"""A network that sees, and what a vector of it is: vectors of images."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor

from selfsup.data.images import Unreadable
from selfsup.data.images.decoding import BadImage, decode
from selfsup.errors import UserError
from selfsup.inference.base import EmbeddingModel, OneNetwork, Reading
from selfsup.inference.items import Vectors, silent
from selfsup.inference.pictures import Picture, Pictures, Pixels, Stored, Viewed, open_pictures
from selfsup.machine import Machine, find_precision
from selfsup.models.backbones import AnyBackbone, open_backbone
from selfsup.models.features import Features
from selfsup.report import Progress
from selfsup.views import Preprocessing, centred

PIXELS, IMAGES = 1 << 22, 512  # at most, that are embedded at once
READERS = 8  # threads, at most, that decode images
AHEAD = 2  # batches that are decoded before their turn
TOLERANCE = 0.02  # what bf16 may move vectors by, as a share of how far they lie from their centre


class ImageModel(OneNetwork[AnyBackbone], EmbeddingModel):
    """A network, how images are prepared for it, and what its vector of one is.

    Attributes:
        directory: that it was opened from, where it was.
    """

    directory: Path | None = None

    kind = "an image encoder"
    embeds = (Picture,)

    def __init__(self, backbone: AnyBackbone, features: Features, preprocessing: Preprocessing) -> None:
        super().__init__(backbone, features)
        self.preprocessing = preprocessing

    @classmethod
    def _open(cls, directory: Path) -> Self:
        opened = open_backbone(directory)
        model = cls(opened.backbone, opened.features, opened.preprocessing)
        model.features.require_width(model.width, directory)
        model.directory = directory
        return model

    @property
    def backbone(self) -> AnyBackbone:
        return self.network

    @property
    def size(self) -> int:
        """Height and width of what it sees, in pixels."""
        return self.preprocessing.size

    @property
    def width(self) -> int:
        return self.network.dimension

    @property
    def reading(self) -> tuple[object, ...]:
        how = self.preprocessing
        plain = replace(how, resized=how.size, square=False, bicubic=False)
        return how.size, how.mean, how.std, *([] if how == plain else [how])

    def read(self, source: object, column: str | None = None, **how: Unpack[Reading]) -> Pictures:
        return open_pictures(source, self.size, column, **how)

    @torch.inference_mode()
    def embed(
        self, images: Sequence[Any], precision: str = "auto", progress: Progress = silent, prompt: str | None = None
    ) -> Vectors:
        """The vector of each image, (n, dimension), not normalised; NaN for one that cannot be read.

        Args:
            images: pixels (H, W, 3) uint8, PIL images, or images of a source, decoded when their turn comes.
            precision: `fp32`, `bf16`, or `auto`: bf16 where the hardware multiplies it natively and the vectors stay
                close. That is tried on the first of several batches: its vectors in bf16 must on average be no
                farther from those in fp32 than `TOLERANCE` times the mean distance of these from their centre.
            prompt: of texts, and so nothing here.
        """
        vectors = np.full((len(images), self.dimension), np.nan, np.float32)
        self.unread = []
        done = 0
        progress(0, len(images))
        for pixels in self._read(images):
            readable = [place for place, one in enumerate(pixels) if one is not None]
            self.unread += [done + place for place, one in enumerate(pixels) if one is None]
            shown = self._shown([one for one in pixels if one is not None])
            if precision == "auto":
                precision = "fp32" if len(pixels) == len(images) else self._close_precision(shown)
            if readable:
                vectors[done + np.array(readable)] = self._vectors(shown, precision).cpu().numpy()
            done += len(pixels)
            progress(done, len(images))
        self.precision = find_precision(precision, self.device)
        return vectors

    def _read(self, images: Sequence[Any]) -> Iterator[list[Pixels | None]]:
        """The pixels of batches of images, decoded by several threads ahead of their turn; None cannot be read."""
        step = max(1, min(IMAGES, PIXELS // self.size**2))
        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
            batches = (
                [pool.submit(_pixels, image, self.preprocessing.resized) for image in images[start : start + step]]
                for start in range(0, len(images), step)
            )
            waiting = deque(itertools.islice(batches, AHEAD))
            while waiting:
                yield [future.result() for future in waiting.popleft()]
                waiting.extend(itertools.islice(batches, 1))

    def _shown(self, pixels: Sequence[Pixels]) -> Tensor:
        """Images as the network sees them, (n, 3, size, size); those of one shape are prepared together."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(pixels):
            shapes.setdefault(one.shape, []).append(place)
        shown = torch.empty(len(pixels), 3, self.size, self.size, device=self.device)
        for shape, places in shapes.items():
            stacked = torch.from_numpy(np.stack([pixels[place] for place in places])).to(self.device)
            sizes = torch.tensor([shape[:2]], device=self.device).expand(len(places), 2)
            shown[places] = centred(stacked.permute(0, 3, 1, 2), sizes, self.preprocessing)
        return shown

    def _vectors(self, shown: Tensor, precision: str) -> Tensor:
        with Machine(self.device, precision, 0.0).autocast():
            found = self.network.embed(shown, self.features.pooling)
        return self.features.map(found)

    def _close_precision(self, shown: Tensor) -> str:
        """bf16 where it is native and its vectors of these images are close to those in fp32; else fp32."""
        if find_precision("auto", self.device) == "fp32":
            return "fp32"
        exact, rough = (self._vectors(shown, precision) for precision in ("fp32", "bf16"))
        spread = (exact - exact.mean(0)).norm(dim=1).mean()
        return "bf16" if float((rough - exact).norm(dim=1).mean()) <= TOLERANCE * float(spread) else "fp32"


def _pixels(image: Any, least: int) -> Pixels | None:
    """The pixels of an image, decoded where it is not yet; None where it cannot be read."""
    if not isinstance(image, Stored | Viewed):
        try:
            return decode(image, least)
        except BadImage as error:
            raise UserError(
                f"An image cannot be read ({error}); give uint8 arrays (height, width, 3) or PIL images."
            ) from None
    try:
        return image.pixels(least)
    except Unreadable:
        return None
