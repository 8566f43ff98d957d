"""What a masked autoencoder fills in where most of an image is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.models.dinov3 import read_vision
from selfsup.models.pixel_decoder import assembled, patches, read_decoder, select
from selfsup.views import MEAN, STD, centred
from selfsup.views.masking import random_patches

Picture = npt.NDArray[np.uint8]
GREY = 0.5  # of hidden patches, between black and white
NEARNESS = 4.0  # the power of the distance with which what is visible counts less


@torch.inference_mode()
def reconstruct(directory: Path, pixels: Picture, seed: int = 0) -> tuple[Picture, Picture]:
    """An image (H, W, 3) with its hidden patches in grey, and with what the model fills in there: (S, S, 3) each.

    It is brought to the size S that the model was trained on, and as large a share of it is hidden as in training; which
    patches is a function of the seed. No hidden pixel plays a part in what is filled in: brightness and contrast of a
    hidden patch, which the target of training leaves out, are those of the visible patches around it.

    Raises:
        UserError: the directory holds no masked autoencoder, or a damaged one.
    """
    decoder, encoder = read_decoder(directory), read_vision(directory).eval()
    patch, side = decoder.config.patch, encoder.config.size // decoder.config.patch
    sizes = torch.tensor([pixels.shape[:2]])
    image = centred(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], sizes, encoder.config.size)
    first = np.zeros(1, np.int64)
    visible, hidden = random_patches(seed, first, first, side**2, decoder.config.hidden)
    states = encoder(image, visible=visible)[:, -visible.shape[1] :]
    values = decoder(states, visible, hidden, (side, side))
    shown = select(patches(image, patch), visible)
    moments = torch.stack((shown.mean(-1), shown.std(-1, correction=0)), -1)
    mean, deviation = spread(moments, visible, hidden, side).split(1, -1)
    filled = values * deviation + mean
    grey = (GREY - torch.tensor(MEAN)) / torch.tensor(STD)
    blank = grey.repeat_interleave(patch**2).expand_as(filled)
    return tuple(_picture(shown, visible, rest, hidden, patch, side) for rest in (blank, filled))


def spread(values: Tensor, visible: Tensor, hidden: Tensor, columns: int) -> Tensor:
    """Values (B, K, D) of visible patches (B, K) of a grid carried over to hidden ones (B, M): (B, M, D).

    Each is a mean of all visible ones, weighed by their distance to the power of −4 (Shepard 1968, "A two-dimensional
    interpolation function for irregularly-spaced data", section 2).
    """
    known, asked = (torch.stack((p // columns, p % columns), -1).to(values) for p in (visible, hidden))
    weights = torch.cdist(asked, known).pow(-NEARNESS)
    return weights / weights.sum(-1, keepdim=True) @ values


def _picture(shown: Tensor, visible: Tensor, rest: Tensor, hidden: Tensor, patch: int, side: int) -> Picture:
    """One image (S, S, 3) of 8 bits, of visible and of hidden patches."""
    places = torch.cat((visible, hidden), 1).argsort(1)
    image = assembled(select(torch.cat((shown, rest), 1), places), patch, (side, side))[0]
    levels = image.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)
    return levels.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
