"""sts: how well the similarity of two sentences' features follows the similarity that people gave them.

Spearman's rank correlation, times 100, of the cosine similarity of the two sentences' features with the scores, over
all pairs; ranks that tie share their mean rank (semantic textual similarity: Agirre et al. 2012; Cer et al. 2017;
Reimers et al. 2016 on why the rank correlation). Pearson's correlation is among the details.

Chance is 0. A model that gives all pairs the same similarity tells nothing of them and has a correlation of 0, too.
The interval resamples pairs.
"""

from __future__ import annotations

import numpy as np

from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Resampling, Score
from selfsup.evaluation.features import open_pairs
from selfsup.inference.geometry import Floats, squared_distances
from selfsup.inference.items import Vectors


def sts(first: Vectors, second: Vectors, scores: Floats) -> float:
    """Spearman's correlation in percent, of pairs of features (n, d) with scores (n,)."""
    return 100 * spearman(cosines(first, second), scores)


def cosines(first: Vectors, second: Vectors) -> Floats:
    """Cosine similarity of each pair, (n,)."""
    # As 1 − ½ ‖x − y‖², so that pairs of one and the same feature have exactly the same similarity, and tie.
    return 1 - squared_distances(first, second) / 2


def pearson(x: Floats, y: Floats) -> float:
    """Pearson's correlation of x and y (n,); 0 where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's correlation of x and y (n,); 0 where one of them is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def measure(measurement: Measurement) -> Score:
    first, second, scores, name = open_pairs(measurement)
    if np.ptp(scores) == 0:
        raise UserError(f"{name} holds no scores to be followed; give pairs of sentences with a column of scores.")
    cosine = cosines(first, second)
    return Score.of(
        Resampling(len(cosine), lambda drawn: 100 * spearman(cosine[drawn], scores[drawn])),
        measurement.seed,
        value=100 * spearman(cosine, scores),
        unit="% Spearman",
        n=len(cosine),
        chance=0.0,
        data=name,
        details={"pearson": 100 * pearson(cosine, scores)},
    )
