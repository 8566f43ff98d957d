"""Two towers that share a space: vectors of images and of texts, which can be compared with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from selfsup.data.images.sources import holds_images
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.items import Item, Progress, Vectors
from selfsup.inference.pictures import Picture, Pictures
from selfsup.inference.texts import Text, Texts
from selfsup.inference.vision import ImageModel
from selfsup.models.clip import Similarity, read_clip


class PairModel:
    """A tower of images, one of texts, and how their vectors are compared.

    Attributes:
        truncated: texts of the last `embed` that were longer than the window and lost their end.
        unread: the numbers of its images that cannot be read.
    """

    kind: ClassVar[str] = "an image-text model"
    embeds: ClassVar[tuple[type[Item], ...]] = (Picture, Text)

    def __init__(self, image: ImageModel, text: EncoderModel, similarity: Similarity) -> None:
        self.image = image
        self.text = text
        self.similarity = similarity
        self.truncated = 0
        self.unread: list[int] = []

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu") -> PairModel:
        """From a directory of `selfsup.models.clip.save_clip`; raises UserError where it cannot be opened."""
        saved = read_clip(expanded(directory))
        image, text = ImageModel.load(saved.image, device), EncoderModel.load(saved.text, device)
        for tower in (image, text):
            if tower.dimension != saved.dimension:
                raise UserError(
                    f"{directory} shares a space of {saved.dimension} dimensions, and {tower.kind} in it gives "
                    f"{tower.dimension}; get a whole copy of the model"
                )
        return cls(image, text, saved.similarity)

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.image.dimension

    @property
    def pooling(self) -> str:
        return f"{self.image.pooling} of images, {self.text.pooling} of texts"

    @property
    def device(self) -> torch.device:
        return self.image.device

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with anything that may change a vector."""
        both = self.image.fingerprint + self.text.fingerprint
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    def to(self, device: torch.device) -> Self:
        """Move it to where it is to compute."""
        self.image.to(device)
        self.text.to(device)
        return self

    def read(
        self,
        source: object,
        column: str | None = None,
        *,
        label: str | None = None,
        failures: float = 0.01,
        progress: Progress | None = None,
    ) -> Pictures | Texts:
        """The images of a source that holds any (`selfsup.data.images.sources.holds_images`), else its texts."""
        if isinstance(source, Pictures) or holds_images(source, column):
            return self.image.read(source, column, label=label, failures=failures, progress=progress)
        return self.text.read(source, column, label=label, failures=failures, progress=progress)

    def embed(
        self,
        contents: Sequence[Any],
        precision: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Vectors:
        """The vector of each image or text, (n, dimension), not normalised; NaN for an image that cannot be read.

        Args:
            contents: strings are texts; anything else is an image, see `ImageModel.embed`.
            precision: see `ImageModel.embed`; of texts, `auto` is bf16 where the hardware multiplies it natively.
            progress: called with what is done, and all of it; images come first.
        """
        worded = np.array([isinstance(content, str) for content in contents], bool)
        vectors = np.empty((len(contents), self.dimension), np.float32)
        self.truncated, self.unread = 0, []
        done = 0
        for tower, chosen in ((self.image, ~worded), (self.text, worded)):
            places = np.flatnonzero(chosen).tolist()
            if not places:
                continue
            within = None if progress is None else _within(progress, done, len(contents))
            vectors[places] = tower.embed([contents[place] for place in places], precision, within)
            self.truncated += tower.truncated
            self.unread += [places[number] for number in tower.unread]
            done += len(places)
        return vectors


def _within(progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int, int], None]:
    """Progress of one tower, as progress of both."""
    return lambda count, _: progress(done + count, total)
