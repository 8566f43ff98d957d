"""How images are prepared for a network, in training and in use: each model brings its own way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

Colour: TypeAlias = tuple[float, float, float]

MEAN: Colour = (0.485, 0.456, 0.406)  # of ImageNet, as pretrained networks have them
STD: Colour = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From a whole image to what a network sees: resized, the middle of it cropped, and normalised.

    Attributes:
        size: height and width of what is seen, in pixels.
        resized: of an image before its middle is cropped: its short side, or both sides where it becomes `square`.
        bicubic: resized by Pillow's bicubic filter, else by its bilinear one.
        mean, std: of each channel, of values from 0 to 1.
    """

    size: int
    resized: int
    square: bool = False
    bicubic: bool = False
    mean: Colour = MEAN
    std: Colour = STD

    @classmethod
    def plain(cls, size: int) -> Preprocessing:
        """That of networks which start anew here."""
        return cls(size, size)

    def at(self, size: int) -> Preprocessing:
        """The same for what is seen at another size."""
        return replace(self, size=size, resized=round(self.resized * size / self.size))

    @property
    def words(self) -> str:
        """How it is done, for people."""
        sides = "both sides are" if self.square else "the short side is"
        filtered = "bicubic" if self.bicubic else "bilinear"
        kept = "" if self.square and self.resized == self.size else f", the middle of {self.size} is kept"
        return f"{sides} resized to {self.resized} pixels ({filtered}){kept}"
