"""At which rank what is relevant to a query stands among candidates, and the figures that are made of such ranks.

    rank = 1 + what is nearer to the query by more than `TOLERANCE`
             + what is as near, within it, and comes earlier

What comes earlier among candidates that are as near is decided by `drawn_order`, a hash of their ids: neither rounding
nor the order in which anything is read or kept in memory decides, and a model that gives everything one vector is no
better than chance. The figures are those of trec_eval, of the whole ranking where they name no rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.evaluation.base import Score
from selfsup.inference.geometry import CELLS, Floats

Indices = npt.NDArray[np.int64]

TOLERANCE = 1e-5  # of cosine similarities: more than fp32 and the company in a batch make of equal ones
NONE = (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))  # queries and candidates apart
AT, FAR = 10, 100  # the ranks that figures look to


def before(similarity: Tensor, own: Tensor, places: Tensor, place: Tensor) -> Tensor:
    """Which candidates come before one's own, bool, of the same shape as their similarities (…, m).

    Args:
        own, place: the similarity of one's own, and where it comes among those that are as near, (…, 1).
        places: where each candidate does, (m,).
    """
    return (similarity > own + TOLERANCE) | ((places < place) & (similarity >= own - TOLERANCE))


def drawn_order(ids: Iterable[str]) -> Tensor:
    """Where candidates come among those that are as near: a number for each, int64 (n,), the BLAKE2b hash of its id."""
    hashes = (hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest() for key in ids)
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in hashes], dtype=torch.int64)


@dataclass(frozen=True)
class Relevance:
    """What is relevant to each query: numbers of the queries from 0, (pairs,), in their order and each at least once,
    and how much, (pairs,), above 0."""

    queries: Indices
    gains: Floats

    @cached_property
    def owned(self) -> Indices:
        """How many relevant ones each query has, (queries,)."""
        return np.bincount(self.queries)

    def summed(self, values: Floats) -> Floats:
        """The sum over the pairs of each query, (queries,), of values (pairs,)."""
        return np.bincount(self.queries, values, len(self.owned)).astype(np.float64)

    def counted(self, order: Indices) -> Indices:
        """The number of each pair, (pairs,), among those of its query, from 1, in an order that sorts by queries."""
        first = np.cumsum(self.owned) - self.owned
        numbers = np.empty_like(self.queries)
        numbers[order] = np.arange(len(order)) - first[self.queries[order]] + 1
        return numbers


class Ranks:
    """The ranks of what is relevant, counted while candidates come by in any order.

    Args:
        queries: unit vectors (queries, d); relevance: of what.
        similarity: of each relevant one with its query, (pairs,); order: `drawn_order` of it, (pairs,).
    """

    def __init__(self, queries: Tensor, relevance: Relevance, similarity: Tensor, order: Tensor) -> None:
        self._vectors, self._similarity, self._order = queries, similarity[:, None], order[:, None]
        self._queries = torch.from_numpy(relevance.queries).to(queries.device)
        self._ends = np.cumsum(relevance.owned)
        self._ranks = torch.ones_like(self._queries)

    def count(self, candidates: Tensor, order: Tensor, barred: tuple[Tensor, Tensor]) -> None:
        """Add what comes before the relevant ones, of candidates: unit vectors (m, d) with their `drawn_order` (m,).

        `barred` are the numbers of queries and of candidates that do not meet, (k,) each.
        """
        rows = max(1, CELLS // max(1, len(candidates)))
        for start in range(0, len(self._vectors), rows):
            stop = min(start + rows, len(self._vectors))
            tile = _tile(self._vectors, start, stop, candidates, barred)
            first, last = int(self._ends[start - 1]) if start else 0, int(self._ends[stop - 1])
            for pairs in torch.split(torch.arange(first, last, device=tile.device), rows):
                own = tile[self._queries[pairs] - start]
                self._ranks[pairs] += before(own, self._similarity[pairs], order, self._order[pairs]).sum(1)

    def __call__(self) -> Indices:
        """The ranks, (pairs,), among all that was counted."""
        return self._ranks.cpu().numpy()


class Nearest:
    """The candidates nearest to each query, at most so many, kept while they come by.

    Attributes:
        numbers: of the candidates, (queries, kept), the nearest first; −1 where none is.
    """

    def __init__(self, queries: Tensor, count: int) -> None:
        self._vectors, self._count = queries, count
        self.numbers = torch.full((len(queries), count), -1, device=queries.device)
        self._similarity = queries.new_full((len(queries), count), -torch.inf)

    def add(self, candidates: Tensor, first: int, barred: tuple[Tensor, Tensor]) -> None:
        """Look at candidates: unit vectors (m, d), which are numbered from `first` on; see `Ranks.count`."""
        numbers = torch.arange(first, first + len(candidates), device=candidates.device)
        places = torch.arange(len(self._vectors), device=candidates.device)
        for rows in torch.split(places, max(1, CELLS // len(candidates))):
            tile = _tile(self._vectors, int(rows[0]), int(rows[-1]) + 1, candidates, barred)
            both = torch.cat((self._similarity[rows], tile), 1)
            these = torch.cat((self.numbers[rows], numbers.expand(len(rows), -1)), 1)
            self._similarity[rows], kept = both.topk(self._count)
            self.numbers[rows] = these.gather(1, kept).masked_fill(self._similarity[rows].isneginf(), -1)


def _tile(queries: Tensor, start: int, stop: int, candidates: Tensor, barred: tuple[Tensor, Tensor]) -> Tensor:
    """The similarities of some of the queries to candidates, −∞ where they do not meet."""
    tile = queries[start:stop] @ candidates.T
    within = (barred[0] >= start) & (barred[0] < stop)
    tile[barred[0][within] - start, barred[1][within]] = -torch.inf
    return tile


# -- figures, each (queries,) --------------------------------------------------------------------------------


def ndcg(relevance: Relevance, ranks: Indices, at: int = AT) -> Floats:
    """DCG over that of the best order: Σ gain / log₂(1 + rank) over ranks up to `at` (Järvelin and Kekäläinen 2002,
    with the discount of Burges et al. 2005; the gain is the score itself, as in trec_eval's ndcg_cut)."""
    best = relevance.counted(np.lexsort((-relevance.gains, relevance.queries)))
    return _dcg(relevance, ranks, at) / _dcg(relevance, best, at)


def _dcg(relevance: Relevance, ranks: Indices, at: int) -> Floats:
    return relevance.summed(np.where(ranks <= at, relevance.gains / np.log2(1 + ranks), 0.0))


def recall(relevance: Relevance, ranks: Indices, at: int) -> Floats:
    """The share of the relevant ones whose rank is up to `at`."""
    return relevance.summed((ranks <= at).astype(np.float64)) / relevance.owned


def reciprocal_rank(relevance: Relevance, ranks: Indices, at: int = AT) -> Floats:
    """1 / the rank of the first relevant one, 0 where that is beyond `at`."""
    first = np.full(len(relevance.owned), np.iinfo(np.int64).max)
    np.minimum.at(first, relevance.queries, ranks)
    return np.where(first <= at, 1 / first, 0.0)


def average_precision(relevance: Relevance, ranks: Indices) -> Floats:
    """The mean, over the relevant ones, of the share of relevant ones among all up to their rank."""
    found = relevance.counted(np.lexsort((ranks, relevance.queries)))
    return relevance.summed(found / ranks) / relevance.owned


def chance(relevance: Relevance, candidates: int, at: int = AT) -> float:
    """The mean nDCG of a random order of the candidates: each relevant one is as likely at any rank."""
    discounts = float((1 / np.log2(1 + np.arange(1, min(at, candidates) + 1))).sum())
    best = relevance.counted(np.lexsort((-relevance.gains, relevance.queries)))
    expected = relevance.summed(relevance.gains) * discounts / candidates
    return float((expected / _dcg(relevance, best, at)).mean())


def scored(
    relevance: Relevance, ranks: Indices, seed: int, candidates: int, *, data: str, details: dict[str, Any]
) -> Score:
    """The nDCG@10 of ranks (pairs,) among so many candidates, the mean over queries, with the other figures."""
    others = {
        f"recall@{AT}": recall(relevance, ranks, AT),
        f"recall@{FAR}": recall(relevance, ranks, FAR),
        f"mrr@{AT}": reciprocal_rank(relevance, ranks),
        "map": average_precision(relevance, ranks),
    }
    return Score.of_mean(
        ndcg(relevance, ranks),
        seed,
        unit=f"nDCG@{AT}",
        chance=chance(relevance, candidates),
        data=data,
        details={name: float(values.mean()) for name, values in others.items()} | details,
    )
