"""How far vectors are from an isotropic Gaussian, as random directions see it: what keeps them apart without a teacher
or negatives. A distribution is that Gaussian where each of its projections is one (Cramér and Wold 1936).

Each function takes vectors (n, views, d), of which every view is a sample by itself, and directions (d, m) of length
1, and gives what each direction says, in the mean over the views: (m,), with gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

KNOTS, FARTHEST = 17, 3.0  # values of t, evenly from 0, and their last: those of the authors' package
TINY = 1e-6  # of a deviation that something is divided by


def sigreg(vectors: Tensor, directions: Tensor) -> Tensor:
    """SIGReg: n ∫ |1/n Σ_i exp(i t x_i) − exp(−t²/2)|² exp(−t²/2) dt over −3 ≤ t ≤ 3, of the projections x_i, by the
    trapezoidal rule (Epps and Pulley 1983; Balestriero and LeCun 2025, "LeJEPA", arXiv:2511.08544).

    What is integrated is even, and 0 at t = 0, so only t > 0 are computed. Of a Gaussian sample it is 1.05 in the mean,
    whatever its size; of n vectors at 0 it is .4 n.
    """
    t = torch.linspace(0, FARTHEST, KNOTS, dtype=vectors.dtype, device=vectors.device)[1:]
    normal = torch.exp(-t.square() / 2)  # both its characteristic function and the weight
    weights = 2 * FARTHEST / (KNOTS - 1) * normal
    weights[-1] /= 2
    angles = (vectors @ directions)[..., None] * t
    apart = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return len(vectors) * (apart @ weights).mean(0)


def visreg(vectors: Tensor, directions: Tensor) -> Tensor:
    """VISReg: mean_j μ_j² + mean_j (1 − σ_j)² of the numbers j of the vectors; and of these brought to mean 0 and
    deviation 1, the squared distance of each projection's ordered values from the quantiles of a Gaussian, in the mean:
    sliced Wasserstein (Wu et al. 2026, "VISReg", arXiv:2606.02572, and its authors' code).

    No gradient goes through the deviations that are divided by: scale has a term of its own, whose gradient stays where
    all vectors are one, and there SIGReg's vanishes.
    """
    count, means = len(vectors), vectors.mean(0)
    centred = vectors - means
    deviations: Tensor = centred.norm(dim=0) / count**0.5 + TINY
    seen = (centred / deviations.detach()) @ directions
    shares = torch.arange(1, count + 1, dtype=vectors.dtype, device=vectors.device) / (count + 1)
    shape: Tensor = (seen.sort(0).values - torch.special.ndtri(shares)[:, None, None]).square().mean((0, 1))
    return shape + (means.square().mean() + (1 - deviations).square().mean())


REGULARIZERS = {"sigreg": sigreg, "visreg": visreg}


def of_one_place(regularizer: str, records: int) -> float:
    """What a regularizer says of so many records that are all put at 0."""
    vectors, direction = torch.zeros(records, 1, 1, dtype=torch.double), torch.ones(1, 1, dtype=torch.double)
    return float(REGULARIZERS[regularizer](vectors, direction))
