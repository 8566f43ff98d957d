"""alpha-req: how fast the variance of the features falls off over their main directions; no labels are needed.

    λ_k ∝ k^−α

λ are the eigenvalues of the covariance of the features (n, d), largest first; α is the slope of a straight line
through (ln k, −ln λ_k), by least squares with weights 1/k, over ranks k = 6 … 50 (fewer where fewer eigenvalues
are above zero). Agrawal et al. 2022, "α-ReQ"; the fit is that of Stringer et al. 2019, which they use,
with the ranks of their scripts. Representations that generalise had α near 1 in the paper: a larger α
means that few directions carry all, an α towards 0 that noise is carried along with the rest.

There is no chance: a model that knows nothing may have any α. Each distinct record counts once. The interval
resamples records; see `selfsup.evaluation.spectrum`.
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

FIRST, LAST = 6, 50  # ranks that the line goes through
# What rounding in single precision leaves along an empty direction, of the largest eigenvalue.
NOTHING = 1e-12


def alpha_req(features: Vectors) -> float:
    """α of features (n, d); NaN where less than two of the ranks that it is fitted to have any variance."""
    return slope(Spectrum.of(features, centred=True).values)


def slope(values: Floats) -> float:
    """α of eigenvalues (d,), largest first."""
    positive = values[values > NOTHING * values[0]][FIRST - 1 : LAST]
    if len(positive) < 2:
        return math.nan
    ranks = np.arange(FIRST, FIRST + len(positive))
    x, y, weights = np.log(ranks), -np.log(positive), 1.0 / ranks
    x = x - np.average(x, weights=weights)
    return float((weights * x * y).sum() / (weights * x * x).sum())


def measure(measurement: Measurement) -> Score:
    """Raises UserError where the features have too few directions, or too few records show them."""
    features, name = open_vectors(measurement)
    spectrum = Spectrum.of(features, centred=True)
    value = slope(spectrum.values)
    if math.isnan(value):
        raise UserError(
            f"{len(features)} records of {name} have features along less than {FIRST + 1} directions, and alpha-req "
            f"is fitted from the {FIRST}th on; give more records, or use --protocol rankme."
        )
    return Score.of(
        spectrum.resampling(features, slope),
        measurement.seed,
        value=value,
        unit="(exponent of the spectrum)",
        n=len(features),
        chance=None,
        data=name,
        details={"ranks": [FIRST, min(LAST, *features.shape)], "width": features.shape[1]},
    )
