"""rankme: over how many directions the features spread, on the scale of a rank; no labels are needed.

    exp( − Σ_k p_k ln p_k ),  p_k = σ_k / Σ_j σ_j

σ are the singular values of the matrix of features (n, d), which are neither centred nor normalised (Garrido et al.
2023, "RankMe"). The paper adds 10⁻⁷ to p so that no logarithm of zero is taken; here 0 ln 0 = 0.
It lies between 1, where all features are multiples of one vector (chance: what a collapsed model has), and
min(n, d). A run can be compared with another one of the same data, width and number of records; a higher rank
went along with better linear probes in the paper, over models trained by joint embedding.

Each distinct record counts once. The interval resamples records; see `selfsup.evaluation.spectrum`.
"""

from __future__ import annotations

import math

import numpy as np

from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Score
from selfsup.evaluation.features import open_vectors
from selfsup.evaluation.spectrum import Spectrum
from selfsup.inference.geometry import Floats
from selfsup.inference.items import Vectors


def rankme(features: Vectors) -> float:
    """RankMe of features (n, d); NaN where all of them are zero."""
    return effective_rank(Spectrum.of(features, centred=False).values)


def effective_rank(values: Floats) -> float:
    """exp of the entropy of the normalised singular values, whose squares are the eigenvalues (d,)."""
    singular = np.sqrt(values[values > 0])
    if not len(singular):
        return math.nan
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def measure(measurement: Measurement) -> Score:
    features, name = open_vectors(measurement)
    spectrum = Spectrum.of(features, centred=False)
    value = effective_rank(spectrum.values)
    if math.isnan(value):
        raise UserError(f"{measurement.directory} gives features of zeros, which have no rank; train it first.")
    return Score.of(
        spectrum.resampling(features, effective_rank),
        measurement.seed,
        value=value,
        unit=f"of {min(features.shape):,} directions",
        n=len(features),
        chance=1.0,
        data=name,
        details={"width": features.shape[1]},
    )
