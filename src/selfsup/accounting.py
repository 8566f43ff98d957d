"""Where the time of a training goes beside its arithmetic: shares, for each line of metrics and for the whole run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import Any

SHARES = ("utilisation", "waiting", "waiting_collectives", "waiting_checkpoints")


class Stopwatch:
    """Seconds that were spent in blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def taken(self) -> float:
        """The seconds so far; it begins anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


# Of this process in collectives, as the group of processes is one of the process. On an accelerator whose collectives
# wait in its own queue, that is what the host waits for.
COLLECTIVES = Stopwatch()


class Accounts:
    """The waits of a training since the last line of its metrics: for records, for other processes within steps, and
    for checkpoints to be copied."""

    def __init__(self) -> None:
        self.data, self.checkpoints = Stopwatch(), Stopwatch()
        self._collectives = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The gradient of a step is made in the block."""
        before = COLLECTIVES.seconds
        yield
        self._collectives += COLLECTIVES.seconds - before

    def shares(self, computing: float) -> dict[str, float]:
        """Of the time since this was asked last, of which steps took `computing` seconds; it begins anew."""
        data, checkpoints = self.data.taken(), self.checkpoints.taken()
        collectives, self._collectives = min(self._collectives, computing), 0.0
        whole = computing + data + checkpoints
        return {
            "waiting": round(data / whole, 4),
            "waiting_collectives": round(collectives / whole, 4),
            "waiting_checkpoints": round(checkpoints / whole, 4),
        }


def of_run(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The means of the shares in the lines of a run's training."""
    trained = [line for line in lines if line["split"] == "train"]
    found = {name: [line[name] for line in trained if name in line] for name in SHARES}
    return {name: round(fmean(values), 4) for name, values in found.items() if values}
