"""Which patches of an image are hidden: a pure function of (seed, epoch, record, view)."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.seeding import uniform

LEAST = 4  # patches in a block
ASPECT = 0.3  # blocks are from this to its inverse as high as they are wide


def random_patches(
    seed: int, epochs: np.ndarray, records: np.ndarray, patches: int, hidden: float
) -> tuple[Tensor, Tensor]:
    """Hide the share `hidden` of the patches of each image, each set of them as likely (He et al. 2022, section 3).

    Returns:
        visible (n, patches − m), hidden (n, m): int64 positions in ascending order, m = round(hidden · patches),
        but at least one patch is on either side.
    """
    most = min(max(round(hidden * patches), 1), patches - 1)
    order = np.argsort(uniform(seed, "patches", epochs, records, patches), 1)
    visible, concealed = (torch.from_numpy(np.sort(side, 1)) for side in (order[:, most:], order[:, :most]))
    return visible, concealed


def block_patches(
    seed: int,
    epochs: np.ndarray,
    records: np.ndarray,
    number: int,
    grid: tuple[int, int],
    share: tuple[float, float],
    chosen: float,
) -> Tensor:
    """Hide patches of some of the images block by block (Bao et al. 2022, algorithm 1), as iBOT (Zhou et al. 2022).

    Of a chosen image round(r · P) patches are hidden, r uniform in `share`, but at least one. Blocks of random area
    and aspect are laid at random places, over each other too, until so many are; the last one is cut short, row by row.

    Args:
        number: which view of the record it is.
        grid: rows and columns of patches.
        share: least and largest share of the patches that is hidden.
        chosen: probability that an image hides any.

    Returns:
        (n, P) bool, P = rows · columns in row-major order.
    """
    rows, columns = grid
    draws = uniform(seed, f"blocks {number}", epochs, records, 2)
    targets = np.rint((share[0] + (share[1] - share[0]) * draws[:, 1]) * rows * columns).astype(np.int64)
    left = np.where(draws[:, 0] < chosen, targets.clip(1, rows * columns), 0)
    mask = np.zeros((len(left), rows * columns), np.bool_)
    for turn in count():
        short = np.flatnonzero(left)
        if not len(short):
            break
        where = uniform(seed, f"blocks {number} {turn}", epochs[short], records[short], 4)
        new = _blocks(where, left[short], grid) & ~mask[short]
        new &= np.cumsum(new, 1) <= left[short, None]
        mask[short] |= new
        left[short] -= new.sum(1)
    return torch.from_numpy(mask)


def _blocks(
    draws: npt.NDArray[np.float64], left: npt.NDArray[np.int64], grid: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """One block for each image, (n, P), of LEAST to `left` patches or of LEAST where fewer are left."""
    rows, columns = grid
    area = LEAST + (left - LEAST).clip(0) * draws[:, 0]
    aspect = np.exp((2 * draws[:, 1] - 1) * math.log(ASPECT))
    height = np.rint(np.sqrt(area * aspect)).clip(1, rows)
    width = np.rint(np.sqrt(area / aspect)).clip(1, columns)
    top = np.floor(draws[:, 2] * (rows - height + 1))
    start = np.floor(draws[:, 3] * (columns - width + 1))
    row, column = np.arange(rows), np.arange(columns)
    high = (row >= top[:, None]) & (row < (top + height)[:, None])
    wide = (column >= start[:, None]) & (column < (start + width)[:, None])
    blocks: npt.NDArray[np.bool_] = high[:, :, None] & wide[:, None, :]
    return blocks.reshape(len(draws), -1)
