"""What a protocol is asked, what it answers, and how sure the answer is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selfsup.seeding import derive

if TYPE_CHECKING:
    from rich.console import Console

RESAMPLES = 1000
CONFIDENCE = 95  # percent

Progress = Callable[[int, int | None], None]
Features = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]  # numbers of classes, from 0
Drawn = npt.NDArray[np.int64]  # numbers of the units in a resample


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        model: a run directory, or a model directory in Hugging Face's layout.
        data: a source; None is the run's own held-out part.
        column: the column of the data that holds the text; found by itself where it is None.
        seed: of the resamples.
        progress: called with the predictions scored so far, and all of them.
    """

    model: Path
    data: object
    column: str | None
    device: str
    seed: int
    progress: Progress | None


@dataclass(frozen=True)
class Score:
    """A figure, and what it takes to judge it.

    Attributes:
        protocol: name of the definition that it follows.
        n: predictions that it is made of.
        interval: where the figure lies with a confidence of 95 %, by `RESAMPLES` bootstrap resamples.
        chance: the value of a model that knows nothing.
        seed: of the resamples.
        data: name of what was measured on.
    """

    protocol: str
    value: float
    unit: str
    n: int
    interval: tuple[float, float]
    chance: float
    seed: int
    data: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"interval": list(self.interval)}

    def print(self, console: Console) -> None:
        """Two lines: the figure with its interval, and what it was measured on."""
        low, high = self.interval
        console.print(
            f"[bold]{self.protocol} {self.value:.4f}[/bold] {self.unit}, "
            f"{CONFIDENCE} % between {low:.4f} and {high:.4f}, chance {self.chance:.4f}"
        )
        console.print(
            f"{self.n:,} predictions on {self.data}; interval from {RESAMPLES:,} resamples, seed {self.seed}",
            markup=False,
        )


def bootstrap(units: int, statistic: Callable[[Drawn], float], seed: int) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic (Efron 1979), a pure function of it and the seed.

    Args:
        units: how many things are drawn from, such as records.
        statistic: its value for units drawn with replacement, given by their numbers (units,); NaN where such a
            sample says nothing.
    """
    random = np.random.default_rng(derive(seed, "bootstrap"))
    values = [statistic(random.integers(units, size=units)) for _ in range(RESAMPLES)]
    tail = (100 - CONFIDENCE) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def ratio_interval(numerators: Floats, denominators: Floats, seed: int) -> tuple[float, float]:
    """The bootstrap interval of Σ numerators / Σ denominators, over units drawn together.

    Args:
        numerators, denominators: (units,) the two sums of each unit, such as a window.
    """

    def ratio(drawn: Drawn) -> float:
        total = denominators[drawn].sum()
        # A resample of a few units may hold nothing to divide by.
        return float(numerators[drawn].sum() / total) if total > 0 else math.nan

    return bootstrap(len(numerators), ratio, seed)


def mean_interval(values: Floats, seed: int) -> tuple[float, float]:
    """The bootstrap interval of a mean over units (n,)."""
    return ratio_interval(values, np.ones(len(values)), seed)
