"""How far features spread, without labels: what a training logs at each look."""

from __future__ import annotations

import numpy as np

from selfsup.evaluation.rankme import rankme
from selfsup.evaluation.uniformity import uniformity
from selfsup.inference.geometry import normalised
from selfsup.inference.items import Vectors


def spread(features: Vectors) -> dict[str, float]:
    """`feature_std`, `rankme` and `uniformity` of two or more features (n, d)."""
    return {"feature_std": deviation(features), "rankme": rankme(features), "uniformity": uniformity(features)}


def deviation(features: Vectors) -> float:
    """√d times the mean over dimensions of the standard deviation of features (n, d) with length 1.

    1 where they are spread over the sphere, 0 where they have collapsed to a point (Chen and He 2021, section 4.1).
    """
    directions = normalised(features).numpy()
    return float(directions.std(0).mean() * np.sqrt(directions.shape[1]))
