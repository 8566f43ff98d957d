"""What a masked autoencoder fills in where most of an image is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.inference.pictures import Pixels
from selfsup.models.pixel_decoder import assembled, patches, read_decoder, select
from selfsup.models.vision_layouts import read_vision
from selfsup.views import centred, random_patches
from selfsup.views.drawn import levels

NEARNESS = 4.0  # the power of the distance with which what is visible counts less


@dataclass(frozen=True)
class Reconstruction:
    """An image at the size that the model was trained on, (S, S, 3) each."""

    image: Pixels  # all of it
    hidden: npt.NDArray[np.bool_]  # which patches are hidden, (rows, columns)
    filled: Pixels  # with what the model predicts in hidden patches
    smooth: Pixels  # with the brightness of what is visible around them instead, which takes no model


@torch.inference_mode()
def reconstruct(directory: Path, pixels: Pixels, seed: int = 0) -> Reconstruction:
    """What a model makes of an image (H, W, 3), of which as large a share is hidden as in training: patches chosen by
    the seed. Raises UserError where the directory holds no masked autoencoder, or a damaged one."""
    decoder, saved = read_decoder(directory), read_vision(directory)
    encoder, seen = saved.model().eval(), saved.preprocessing
    size, patch = seen.size, decoder.config.patch
    side, place = size // patch, np.zeros(1, np.int64)
    image = centred(torch.tensor(pixels).permute(2, 0, 1)[None], torch.tensor([pixels.shape[:2]]), seen)
    visible, hidden = random_patches(seed, place, place, side**2, decoder.config.hidden)
    states = encoder(image, visible=visible)[:, encoder.config.prefix :]
    values = decoder(states, visible, hidden, (side, side))
    mask = np.zeros(side**2, np.bool_)
    mask[hidden[0]] = True
    filled, smooth = (fill_in(image, visible, hidden, each, patch) for each in (values, torch.zeros_like(values)))
    whole, filled, smooth = (levels(each, seen)[0] for each in (image, filled, smooth))
    return Reconstruction(whole, mask.reshape(side, side), filled, smooth)


def fill_in(pixels: Tensor, visible: Tensor, hidden: Tensor, values: Tensor, patch: int) -> Tensor:
    """Images (B, 3, S, S) with predicted values (B, M, 3 · patch²) in their hidden patches (B, M).

    No hidden pixel plays a part: mean and contrast of a hidden patch, which the target of training leaves out, are
    those of the visible patches (B, K) around it.
    """
    side = pixels.shape[-1] // patch
    shown = select(patches(pixels, patch), visible)
    moments = torch.stack((shown.mean(-1), shown.std(-1, correction=0)), -1)
    mean, deviation = spread(moments, visible, hidden, side).chunk(2, -1)
    places = torch.cat((visible, hidden), 1).argsort(1)
    return assembled(select(torch.cat((shown, values * deviation + mean), 1), places), patch, (side, side))


def spread(values: Tensor, visible: Tensor, hidden: Tensor, columns: int) -> Tensor:
    """Values (B, K, D) of visible patches (B, K) of a grid carried over to hidden ones (B, M): (B, M, D).

    Each is a mean of all visible ones, weighed by their distance to the power of −4 (Shepard 1968, "A two-dimensional
    interpolation function for irregularly-spaced data", section 2).
    """
    known, asked = (torch.stack((p // columns, p % columns), -1).to(values) for p in (visible, hidden))
    weights = torch.cdist(asked, known).pow(-NEARNESS)
    return weights / weights.sum(-1, keepdim=True) @ values
