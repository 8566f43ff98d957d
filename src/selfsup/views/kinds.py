"""The kinds of views that objectives are trained on, with the papers' parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfsup.views.preprocessing import MEAN, STD, Colour, Preprocessing

SMALL = 64  # px: below, views are not blurred and keep more of their colours, as recipes for CIFAR do


@dataclass(frozen=True)
class View:
    """One kind of rendering; the operations are applied in the order in which they stand here.

    Attributes:
        size: height and width of the view in pixels.
        scale: least and largest share of the image's area that the crop covers.
        ratio: least and largest width : height of the crop.
        flip: probability that it is mirrored.
        jitter: probability that its colours are jittered, in a random order of the four operations: brightness,
            contrast and saturation by a factor of 1 ± their strength, hue by ± its strength of the colour circle.
        grey: probability that it becomes grey.
        blur: probability that it is blurred, by a Gaussian whose deviation in pixels is drawn from `sigma`.
        solarize: probability that values above a half are inverted.
        bicubic, mean, std: how crops are resized, and values normalised: see `Preprocessing`.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    bicubic: bool = False
    mean: Colour = MEAN
    std: Colour = STD

    def prepared(self, preprocessing: Preprocessing) -> View:
        """The same for a network that brings a way of its own in which images are prepared."""
        how = preprocessing
        return replace(self, bicubic=how.bicubic, mean=how.mean, std=how.std)


def simclr_view(size: int, scale: tuple[float, float] = (0.08, 1.0)) -> View:
    """SimCLR (Chen et al. 2020, appendix A); of small images as on CIFAR-10 (appendix B.9): half the strength of
    colours, no blur."""
    small = size < SMALL
    strength = 0.5 if small else 1.0
    return View(
        size,
        scale,
        jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grey=0.2,
        blur=0.0 if small else 0.5,
    )


def _dino(size: int, scale: tuple[float, float], blur: float, solarize: float = 0.0) -> View:
    """Colours of BYOL (Grill et al. 2020, appendix B), which DINO takes over."""
    return View(
        size,
        scale,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        grey=0.2,
        blur=0.0 if size < SMALL else blur,
        solarize=solarize,
    )


def dino_global(size: int, scale: tuple[float, float] = (0.32, 1.0)) -> View:
    """The first global crop of DINO (Caron et al. 2021), always blurred unless it is small.

    The scales of global and local crops, (s, 1) and (.05, s), are those of the best s in the paper's appendix.
    """
    return _dino(size, scale, blur=1.0)


def dino_second(size: int, scale: tuple[float, float] = (0.32, 1.0)) -> View:
    """The second global crop of DINO, rarely blurred, sometimes solarized."""
    return _dino(size, scale, blur=0.1, solarize=0.2)


def dino_local(size: int, scale: tuple[float, float] = (0.05, 0.32)) -> View:
    """A local crop of DINO: a small part of the image."""
    return _dino(size, scale, blur=0.5)


def mae_view(size: int) -> View:
    """MAE (He et al. 2022, appendix A.1): crop and flip only."""
    return View(size, (0.2, 1.0))
