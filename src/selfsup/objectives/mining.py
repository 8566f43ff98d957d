"""Hard negatives: for each query the passages that the model, as it stands, puts nearest to it without being right.

They are looked for anew as the model learns (Xiong et al. 2021, "Approximate Nearest Neighbor Negative Contrastive
Learning for Dense Text Retrieval"), here exactly, among all passages. One that is nearly as near as the query's own may
be as right as that, so what is nearer than a share of it is passed over (Moreira et al. 2024, "NV-Retriever: Improving
text embedding models with effective hard-negative mining", section 3.2, TopK-PercPos).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.loader import split
from selfsup.data.pair_records import TextPairs
from selfsup.inference import geometry
from selfsup.objectives.base import Collectives
from selfsup.report import Progress
from selfsup.seeding import uniform

BLOCK = 64  # texts that are embedded at once
READ = 4096  # pairs that are read at once
LABELS = ("query_keys", "passage_keys", "places")  # of pairs, by which texts are alike

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """Which passages are no negatives of a query: those that have its label.

    Attributes:
        queries: the label of each query, (n,).
        labels, passages: labels of passages, and the numbers of these, (k,) each; a passage may have several.
    """

    queries: Numbers
    labels: Numbers
    passages: Numbers

    def sorted(self) -> Column:
        """The same, with labels in their order, as `alike` needs it."""
        order = np.argsort(self.labels, kind="stable")
        return Column(self.queries, self.labels[order], self.passages[order])

    def alike(self, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """The pairs of a query among those from `start` to `stop`, counted from there, and a passage with its label."""
        own = self.queries[start:stop]
        first, last = (np.searchsorted(self.labels, own, side) for side in ("left", "right"))
        counts = last - first
        rows = np.repeat(np.arange(len(own)), counts)
        within = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
        return rows, self.passages[first[rows] + within]


@dataclass(frozen=True)
class Mined:
    """What was found: the numbers of passages, int64 (n, count), nearest first and -1 where there are no more; how many
    were passed over; the mean similarity of those that were found, and of the queries' own."""

    passages: Tensor
    passed_over: int
    found: float
    own: float


def mine(
    queries: Tensor,
    passages: Tensor,
    own: Tensor,
    columns: Sequence[Column],
    count: int,
    hardest: float,
    collectives: Collectives,
    progress: Progress,
) -> Mined:
    """The `count` nearest passages of each query that are not alike to its own, and no nearer than `hardest` of it.

    A process has a share of the queries. Blocks of similarities, `geometry.CELLS` at once, are the same for any number
    of processes, so what is found is, too.

    Args:
        queries, passages: (n, d) and (m, d) with length 1, the same on every process; m is `count` or more.
        own: the number of each query's own passage, (n,).
        columns: by whose labels passages are alike to a query's own, which itself is among these.
        hardest: a share; where the own passage has a similarity s, others are to have less than s − (1 − hardest) |s|.
        progress: called with the queries done, and those of this process.
    """
    rows, columns = max(1, geometry.CELLS // len(passages)), [column.sorted() for column in columns]
    share = split(0, -(-len(queries) // rows), collectives.rank, collectives.size)
    start, stop = share.start * rows, min(share.stop * rows, len(queries))
    found, totals, done = [own.new_empty(0, count)], np.zeros(4), start
    for block in geometry.similarities(queries[start:stop], passages):
        true = block.gather(1, own[done : done + len(block), None])
        for column in columns:
            places = (torch.from_numpy(each).to(block.device) for each in column.alike(done, done + len(block)))
            block[tuple(places)] = -torch.inf
        near = block >= true - (1 - hardest) * true.abs()
        values, chosen = block.masked_fill_(near, -torch.inf).topk(count)
        there = values > -torch.inf
        found.append(chosen.masked_fill(~there, -1))
        totals += [float(each.sum()) for each in (near, values[there], there, true)]
        done += len(block)
        progress(done - start, stop - start)
    passed, similar, many, true = collectives.sum(torch.from_numpy(totals)).tolist()
    return Mined(collectives.gather(torch.cat(found)), int(passed), similar / max(1.0, many), true / len(queries))


class Miner:
    """What looks for negatives of pairs among the passages of all of them, equal ones taken once.

    What the objective takes for no negative is none here: a passage of the same query or place, or equal to the query.

    Attributes:
        firsts: of each distinct passage the first pair that it belongs to, (m,).
        which: the number of each pair's passage among these, (n,).
    """

    def __init__(self, pairs: TextPairs) -> None:
        blocks = [np.arange(start, min(start + READ, len(pairs))) for start in range(0, len(pairs), READ)]
        read = [[pairs.read(block)[name].numpy() for name in LABELS] for block in blocks]
        queries, passages, places = (np.concatenate(parts) for parts in zip(*read, strict=True))
        _, self.firsts, self.which = np.unique(passages, return_index=True, return_inverse=True)
        texts = Column(
            queries,
            np.concatenate([queries, passages[self.firsts]]),
            np.concatenate([self.which, np.arange(len(self.firsts))]),
        )
        self.columns = [texts, *(Column(column, column, self.which) for column in places.T)]

    def drawn(self, count: int, seed: int) -> Tensor:
        """Pairs whose passages stand in for negatives before any were looked for, int32 (n, count), by the seed."""
        numbers = np.arange(len(self.which))
        draws = uniform(seed, "negatives", np.zeros_like(numbers), numbers, count)
        return torch.from_numpy(self.firsts[(draws * len(self.firsts)).astype(np.int64)].astype(np.int32))

    def pairs_of(self, mined: Mined, before: Tensor) -> Tensor:
        """Pairs whose passages are the negatives that were found, int32 (n, count); where there are no more, those of
        before stay."""
        found = mined.passages.cpu()
        pairs = torch.from_numpy(self.firsts)[found.clamp(min=0)].to(before.dtype)
        return torch.where(found < 0, before, pairs)

    def look(
        self,
        embed: Callable[[int, Numbers], Tensor],
        count: int,
        hardest: float,
        collectives: Collectives,
        progress: Progress,
    ) -> Mined:
        """The negatives of each pair, by the numbers of distinct passages: see `mine`.

        Args:
            embed: the vectors with length 1 of the queries (0) or passages (1) of pairs by number, at most `BLOCK`.
            progress: called with the texts embedded and the queries looked for so far, about, and all of them.
        """
        pairs, distinct = len(self.which), len(self.firsts)

        def told(before: int) -> Progress:
            total = 2 * pairs + distinct
            return lambda done, _: progress(min(before + done * collectives.size, total), total)

        queries = _embedded(partial(embed, 0), np.arange(pairs), collectives, told(0))
        passages = _embedded(partial(embed, 1), self.firsts, collectives, told(pairs))
        own = torch.from_numpy(self.which).to(queries.device)
        return mine(queries, passages, own, self.columns, count, hardest, collectives, told(pairs + distinct))


def _embedded(
    embed: Callable[[Numbers], Tensor], numbers: Numbers, collectives: Collectives, progress: Progress
) -> Tensor:
    """The vectors of some pairs, of which each process makes its share: in blocks that are the same for any number of
    processes."""
    share = split(0, -(-len(numbers) // BLOCK), collectives.rank, collectives.size)
    own = numbers[share.start * BLOCK : share.stop * BLOCK]
    parts = [embed(numbers[:1])[:0]]  # where its share is none
    for start in range(0, len(own), BLOCK):
        parts.append(embed(own[start : start + BLOCK]))
        progress(min(start + BLOCK, len(own)), None)
    return collectives.gather(torch.cat(parts))
