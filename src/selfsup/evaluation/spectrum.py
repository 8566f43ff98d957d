"""What the protocols of the spectrum share: how much of the features lies along each of their main directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from selfsup.evaluation.base import Resample, Resampling
from selfsup.inference.geometry import Floats
from selfsup.inference.items import Vectors

ROWS = 4096  # in double precision at a time


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues (d,) of the second moments of features, largest first, and their directions (d, d), columns.

    `centre` (d,) is what was subtracted from the features.
    """

    values: Floats
    directions: Floats
    centre: Floats

    @classmethod
    def of(cls, features: Vectors, centred: bool) -> Spectrum:
        """Of features (n, d): of their covariance where `centred`, else of their plain second moments."""
        rows, width = features.shape
        centre = features.mean(0, dtype=np.float64) if centred else np.zeros(width)
        moments = np.zeros((width, width))
        for block in _blocks(features):
            shifted = block - centre
            moments += shifted.T @ shifted
        values, directions = np.linalg.eigh(moments / rows)
        return cls(np.maximum(values[::-1], 0.0), directions[:, ::-1], centre)

    def resampling(self, features: Vectors, statistic: Callable[[Floats], float]) -> Resampling:
        """The bootstrap of a function of the eigenvalues, over the records of `features` (n, d).

        The directions stay those of all records, and what each resample has along them takes the place of its
        eigenvalues. That is exact to first order in the resampling, and it keeps out what a bootstrap of a rank
        adds by itself: a resample holds only 63 % of the records, so its own rank is too low.
        """
        rows = len(features)
        along = np.concatenate([np.square((block - self.centre) @ self.directions) for block in _blocks(features)])

        def resampled(drawn: Resample) -> float:
            times = np.bincount(drawn, minlength=rows)
            return statistic(np.sort(times @ along / rows)[::-1])

        return Resampling(rows, resampled)


def _blocks(features: Vectors) -> Iterator[Floats]:
    for start in range(0, len(features), ROWS):
        yield features[start : start + ROWS].astype(np.float64)
