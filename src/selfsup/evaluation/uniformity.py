"""uniformity: how evenly the features cover the sphere; no labels are needed.

    ln E exp( −2 ‖x − y‖² )

The mean runs over all pairs of two different records; x and y are their features with length 1 (Wang and Isola 2020,
section 4.1, with t = 2). Lower is more even: 0 is a collapsed model, which has one feature for all (chance), and
`ideal` among the details is the figure of points spread evenly over the sphere of that width.

Each distinct record counts once. The interval resamples records to first order: the mean of a pair's kernel moves by
twice what the records' own means of it move by (Hájek's projection of a U-statistic).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from selfsup.evaluation.base import Measurement, Resampling, Score
from selfsup.evaluation.features import open_vectors
from selfsup.inference.geometry import Floats, normalised, similarities
from selfsup.inference.items import Vectors

SHARPNESS = 2.0  # t


def uniformity(features: Vectors) -> float:
    """Uniformity of two or more features (n, d)."""
    return math.log(kernel_means(features).mean())


def kernel_means(features: Vectors) -> Floats:
    """The mean of each record's kernel exp(−2 ‖x − y‖²) with all others, (n,)."""
    points = normalised(features)
    means: list[Tensor] = []
    done = 0
    for block in similarities(points, points):
        kernels = torch.exp(2 * SHARPNESS * (block.double() - 1))  # ‖x − y‖² = 2 − 2 x·y
        kernels.diagonal(done).zero_()  # each record with itself
        means.append(kernels.sum(1) / (len(points) - 1))
        done += len(block)
    return torch.cat(means).numpy()


def resampling(means: Floats) -> Resampling:
    """The bootstrap of the logarithm of the mean of kernel means (n,)."""
    centre = float(means.mean())
    return Resampling.of_mean(means).mapped(lambda mean: math.log(centre) + 2 * (mean / centre - 1))


def ideal(width: int) -> float:
    """The uniformity of points spread evenly over the sphere in `width` dimensions.

    E exp(κ x·y) over the sphere is ₀F₁(; d/2; κ²/4), and exp(−2 ‖x − y‖²) = exp(κ x·y − κ) with κ = 4.
    """
    from scipy.special import hyp0f1

    concentration = 2 * SHARPNESS
    return float(np.log(hyp0f1(width / 2, concentration**2 / 4))) - concentration


def measure(measurement: Measurement) -> Score:
    features, name = open_vectors(measurement)
    means = kernel_means(features)
    return Score.of(
        resampling(means),
        measurement.seed,
        value=math.log(means.mean()),
        unit="(lower is more even)",
        n=len(features),
        chance=0.0,
        data=name,
        details={"ideal": ideal(features.shape[1]), "width": features.shape[1]},
    )
