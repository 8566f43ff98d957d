"""Batches of the endless sequence of records, read ahead by threads, in an order that no thread can change."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from selfsup.data.mixture import drawn, looked_at
from selfsup.data.records import Batch, Records, read_in

AHEAD = 2  # micro-batches in preparation per thread


def split(start: int, stop: int, rank: int, size: int) -> range:
    """The part of [start, stop) that belongs to one of `size` processes: contiguous, and within one as long."""
    length = stop - start
    return range(start + length * rank // size, start + length * (rank + 1) // size)


@dataclass(eq=False)
class Loader:
    """The micro-batches of each step, from a given step on."""

    records: Records
    seed: int
    batch: int  # records per step, over all processes
    micro_batch: int  # records per micro-batch, in one process
    workers: int  # threads that read; 0 reads when asked
    rank: int = 0
    size: int = 1

    def places(self, step: int) -> list[range]:
        """The positions of each micro-batch of a step."""
        mine = split(step * self.batch, (step + 1) * self.batch, self.rank, self.size)
        return [
            range(start, min(start + self.micro_batch, mine.stop))
            for start in range(mine.start, mine.stop, self.micro_batch)
        ]

    def read(self, place: range) -> Batch:
        epochs, indices = drawn(self.records, self.seed, place.start, place.stop)
        return Batch(read_in(self.records, epochs, indices), self.seed, epochs, indices)

    def steps(self, first: int) -> Generator[list[Batch]]:
        """The micro-batches of step `first`, `first` + 1, … without end; close the iterator to end its threads."""
        if self.workers == 0:
            while True:
                yield [self.read(place) for place in self.places(first)]
                first += 1
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as threads:
            queue: deque[list[Future[Batch]]] = deque()
            ahead = max(1, AHEAD * self.workers // max(1, len(self.places(first))))  # steps
            try:
                while True:
                    while len(queue) <= ahead:
                        step = first + len(queue)
                        queue.append([threads.submit(self.read, place) for place in self.places(step)])
                    yield [future.result() for future in queue.popleft()]
                    first += 1
            finally:
                threads.shutdown(cancel_futures=True)


def in_order(records: Records, count: int, seed: int, batch: int, rank: int = 0, size: int = 1) -> Iterator[Batch]:
    """`count` records spread evenly over all of them, in order: what an evaluation reads; of a mixture each collection
    has its share of them, in batches of its own. The batches are dealt to the processes in turn, so their content does
    not depend on the number of processes."""
    batches = (
        (part, chosen[start : start + batch])
        for _, part, number in looked_at(records, count)
        for chosen in [np.arange(number, dtype=np.int64) * len(part) // number]
        for start in range(0, number, batch)
    )
    for part, indices in islice(batches, rank, None, size):
        yield Batch(part.read(indices), seed, np.zeros(len(indices), dtype=np.int64), indices)
