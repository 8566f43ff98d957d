"""Two towers that share a space: vectors of images and of texts, which can be compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch

from selfsup.data.images.sources import holds_images
from selfsup.inference.base import EmbeddingModel, Reading, require_room
from selfsup.inference.encoder import EncoderModel, encoder_tokenizer
from selfsup.inference.items import Vectors, digest, shifted, silent
from selfsup.inference.pictures import Picture, Pictures
from selfsup.inference.texts import Text, Texts
from selfsup.inference.vision import ImageModel
from selfsup.models.clip import Similarity, read_clip
from selfsup.models.directories import damaged
from selfsup.models.kinds import IMAGE, TEXT, in_one
from selfsup.models.tower_layouts import read_towers
from selfsup.report import Progress


class PairModel(EmbeddingModel):
    """A tower of images, one of texts, and how their vectors are compared."""

    kind = "an image-text model"
    embeds = (Picture, Text)

    def __init__(self, image: ImageModel, text: EncoderModel, similarity: Similarity) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.similarity = similarity

    @classmethod
    def _open(cls, directory: Path) -> Self:
        """From a directory of `selfsup.models.clip.save_clip`, or of transformers' classes of two towers."""
        if in_one(directory):
            return cls._of_one(directory)
        space = read_clip(directory)
        image, text = ImageModel.load(directory / IMAGE), EncoderModel.load(directory / TEXT)
        for tower in (image, text):
            if tower.dimension != space.dimension:
                raise damaged(
                    f"{directory} shares a space of {space.dimension} dimensions, and {tower.kind} in it gives "
                    f"{tower.dimension}"
                )
        return cls(image, text, space)

    @classmethod
    def _of_one(cls, directory: Path) -> Self:
        saved = read_towers(directory)
        image = ImageModel(saved.image.model(), saved.image.features, saved.image.preprocessing)
        tokenizer = encoder_tokenizer(directory, saved.text.config)
        require_room(tokenizer, saved.text.config.vocabulary, directory, "text tower")
        saved.require_end(tokenizer, tokenizer.vocabulary)
        return cls(image, EncoderModel(saved.text.encoder(), tokenizer, saved.text.features), saved.similarity)

    @property
    def dimension(self) -> int:
        return self.image.dimension

    @property
    def dimensions(self) -> tuple[int, ...]:
        return tuple(sorted({*self.image.dimensions} & {*self.text.dimensions}))

    def cut(self, dimension: int) -> None:
        for tower in (self.image, self.text):
            tower.cut(dimension)

    def notes(self, prompt: str | None) -> dict[str, str]:
        return self.text.notes(prompt)

    @property
    def pooling(self) -> str:
        return f"{self.image.pooling} of images, {self.text.pooling} of texts"

    @property
    def device(self) -> torch.device:
        return self.image.device

    @property
    def fingerprint(self) -> str:
        return digest((self.image.fingerprint + self.text.fingerprint).encode())

    def to(self, device: torch.device) -> None:
        self.image.to(device)
        self.text.to(device)

    def read(self, source: object, column: str | None = None, **how: Unpack[Reading]) -> Pictures | Texts:
        """The images of a source that holds any (`selfsup.data.images.sources.holds_images`), else its texts."""
        if isinstance(source, Pictures) or holds_images(source, column):
            return self.image.read(source, column, **how)
        return self.text.read(source, column, **how)

    def embed(
        self, contents: Sequence[Any], precision: str = "auto", progress: Progress = silent, prompt: str | None = None
    ) -> Vectors:
        """The vector of each image or text, (n, dimension), not normalised; NaN for an image that cannot be read.

        Strings are texts; anything else is an image, see `ImageModel.embed`, and these come first.
        """
        worded = np.array([isinstance(content, str) for content in contents], bool)
        vectors = np.empty((len(contents), self.dimension), np.float32)
        self.truncated, self.unread, self.precision = 0, [], ""
        done = 0
        for tower, chosen in ((self.image, ~worded), (self.text, worded)):
            places = np.flatnonzero(chosen).tolist()
            if not places:
                continue
            within = shifted(progress, done, len(contents))
            vectors[places] = tower.embed([contents[place] for place in places], precision, within, prompt)
            self.truncated += tower.truncated
            self.precision = tower.precision if self.precision in ("", tower.precision) else "bf16 and fp32"
            self.unread += [places[number] for number in tower.unread]
            done += len(places)
        return vectors
