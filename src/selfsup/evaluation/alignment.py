"""alignment: how close the features lie of two sentences that mean the same, or of two views of one image.

    E ‖x − y‖²

The mean runs over positive pairs; x and y are their features with length 1 (Wang and Isola 2020, section 4.1, with
α = 2). Positive are the pairs of sentences that people scored at four fifths of the scale or more, its top being
the highest score that occurs: 4 of 5 in STS-B (Gao et al. 2021, "SimCSE", take those above 4). Of images, two views of
each are a positive pair, drawn as SimCLR draws them (`selfsup.views.simclr_view`), by the seed. Lower is closer:
0 is reached where both of a pair have one feature, by a collapsed model too, so read it beside uniformity. Chance,
for pairs that are positive by accident, is the same mean over all pairs of two, one from each side.

The interval resamples pairs.
"""

from __future__ import annotations

import numpy as np

from selfsup.evaluation.base import Measurement, Score
from selfsup.evaluation.features import open_pairs
from selfsup.inference.geometry import normalised, squared_distances
from selfsup.inference.items import Vectors

POSITIVE = 0.8  # of the highest score


def alignment(first: Vectors, second: Vectors) -> float:
    """Alignment of positive pairs: two features (n, d), row by row."""
    return float(squared_distances(first, second).mean())


def unrelated(first: Vectors, second: Vectors) -> float:
    """The mean of ‖x − y‖² over every x of the first and every y of the second side."""
    # E ‖x − y‖² = E ‖x‖² + E ‖y‖² − 2 E x · E y
    x, y = (normalised(side).double().numpy() for side in (first, second))
    return float(np.square(x).sum(1).mean() + np.square(y).sum(1).mean() - 2 * x.mean(0) @ y.mean(0))


def measure(measurement: Measurement) -> Score:
    first, second, scores, name = open_pairs(measurement)
    threshold = POSITIVE * scores.max()
    positive = scores >= threshold
    return Score.of_mean(
        squared_distances(first[positive], second[positive]),
        measurement.seed,
        unit="(lower is closer)",
        chance=unrelated(first, second),
        data=name,
        details={"pairs": len(scores), "threshold": threshold},
    )
