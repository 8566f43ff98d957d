"""What a protocol is asked, what it answers, and how sure the answer is."""

from __future__ import annotations

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


def ratio_interval(
    numerators: npt.NDArray[np.float64], denominators: npt.NDArray[np.float64], seed: int
) -> tuple[float, float]:
    """The percentile bootstrap interval of Σ numerators / Σ denominators (Efron 1979), over units drawn together.

    Args:
        numerators, denominators: (units,) the two sums of each unit, such as a window.
        seed: the interval is a pure function of the sums and of this.
    """
    random = np.random.default_rng(derive(seed, "bootstrap"))
    units = len(numerators)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = random.integers(units, size=units)
        total = denominators[drawn].sum()
        if total > 0:  # a resample of a few units may hold nothing to divide by, and then says nothing
            ratios.append(numerators[drawn].sum() / total)
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)
