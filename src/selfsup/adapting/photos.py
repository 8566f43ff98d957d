"""The images that a model is adapted to, and which of them are set aside: by the hash of their content, as every
training on them holds out the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfsup.adapting.texts import HELD_OUT
from selfsup.data.images import Images, open_images, split_images
from selfsup.data.pairs import captions_of
from selfsup.data.split import hold_out
from selfsup.inference.pictures import CaptionedPictures, Pictures
from selfsup.report import Progress


@dataclass(frozen=True)
class Photos:
    """What was found: the images, opened, with their captions where these are asked for; `how` they are read."""

    source: str
    images: Images
    captioned: bool
    how: dict[str, Any]

    @property
    def training(self) -> dict[str, Any]:
        """What a training is given of them."""
        return {"data": {"source": self.source, "validation": HELD_OUT, **self.how}}

    def part(self, name: str, model: Any) -> Pictures:
        """What a model is measured on, of one part, as it sees it."""
        _, held_out = split_images(self.images, HELD_OUT)
        judged = hold_out(self.images.hashes[held_out], HELD_OUT / 2)
        chosen = held_out[judged if name == "judge" else ~judged]
        if self.captioned:
            return CaptionedPictures(self.images, model.image.size, chosen)
        return Pictures(self.images, model.size, chosen)

    def told(self) -> dict[str, str]:
        """For the report."""
        captions = ", with captions" if self.captioned else ""
        return {
            "data": f"{self.source}: {len(self.images):,} images{captions}; {HELD_OUT:.0%} of them set aside, half to "
            "choose by, half to judge by",
            **self.images.notes,
        }


def open_photos(source: str, how: dict[str, Any], captioned: bool, progress: Progress) -> Photos:
    """Open a source of images. Raises UserError: what `open_images` raises; captions are asked for, and there are
    none."""
    captions = () if captioned else None
    images = open_images(source, split="training", progress=progress, captions=captions, **how)
    if captioned:
        captions_of(images)
    return Photos(source, images, captioned, how)
