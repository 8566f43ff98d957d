"""Ranks against a plain loop, and the figures made of them against their definitions and against trec_eval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.evaluation import ranking
from selfsup.evaluation.ranking import (
    TOLERANCE,
    Ranks,
    Relevance,
    average_precision,
    chance,
    drawn_order,
    ndcg,
    recall,
    reciprocal_rank,
)
from selfsup.inference.geometry import normalised

Scores = list[dict[int, int]]  # by query, of candidates by number


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, Any, Scores]:
    """Vectors of few distinct values, so that many are equal, and what is relevant."""
    queries, candidates = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    numbers = st.tuples(*[st.integers(-2, 2).map(float)] * 2, st.just(1.0))
    sides = [np.array(draw(st.lists(numbers, min_size=n, max_size=n))) for n in (queries, candidates)]
    gains = st.dictionaries(st.integers(0, candidates - 1), st.integers(1, 3), min_size=1)
    return sides[0], sides[1], draw(st.lists(gains, min_size=queries, max_size=queries))


def relevance_of(scores: Scores) -> tuple[Relevance, npt.NDArray[np.int64]]:
    """With the number of the candidate of each pair."""
    pairs = [(query, key, gain) for query, of in enumerate(scores) for key, gain in of.items()]
    queries, keys, gains = (np.array(of) for of in zip(*pairs, strict=True))
    return Relevance(queries, gains.astype(np.float64)), keys


def plain_rank(cosines: list[float], order: list[int], own: int) -> int:
    """By the words of the definition."""
    nearer = sum(value > cosines[own] + TOLERANCE for value in cosines)
    level = [number for number, value in enumerate(cosines) if abs(value - cosines[own]) <= TOLERANCE]
    return 1 + nearer + sum(order[number] < order[own] for number in level)


def ranked(queries: Any, candidates: Any, scores: Scores, barred: Any = (), parts: int = 1) -> list[int]:
    """The rank of each pair, of candidates that come in several parts."""
    relevance, keys = relevance_of(scores)
    x, y = normalised(queries), normalised(candidates)
    order = drawn_order(str(key) for key in range(len(candidates)))
    ranks = Ranks(x, relevance, (x[relevance.queries] * y[keys]).sum(1), order[keys])
    for part in np.array_split(np.arange(len(candidates)), parts):
        given = torch.tensor([pair for pair in barred if pair[1] in part], dtype=torch.int64).view(-1, 2)
        ranks.count(y[part], order[part], (given[:, 0], given[:, 1] - int(part[0]) if len(part) else given[:, 1]))
    return list(ranks())


@settings(deadline=None)
@given(cases(), st.integers(1, 3), st.sampled_from([1, 5, 1 << 24]))
def test_ranks_are_those_of_a_plain_loop(case: tuple[Any, Any, Scores], parts: int, cells: int) -> None:
    queries, candidates, scores = case
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, candidates))
    order = drawn_order(str(key) for key in range(len(candidates))).tolist()
    expected = [plain_rank([float(v) for v in x[q] @ y.T], order, key) for q, of in enumerate(scores) for key in of]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CELLS", cells)
        assert ranked(queries, candidates, scores, parts=parts) == expected


def test_what_is_barred_comes_before_nothing() -> None:
    candidates = np.array([[1.0, 0, 0], [1, 1, 0], [1, 0, 1]])
    queries, scores = np.array([[1.0, 0, 0], [1.0, 0, 0]]), [{1: 1, 2: 1}, {2: 1}]
    free = ranked(queries, candidates, scores)
    assert ranked(queries, candidates, scores, [(0, 0)], parts=2) == [free[0] - 1, free[1] - 1, free[2]]


def test_neither_order_nor_rounding_decides() -> None:
    """Equal candidates stand by their ids, in whatever order they come and whatever rounding makes of them."""
    random = np.random.default_rng(0)
    queries, candidate = random.normal(size=(4, 8)), random.normal(size=8)
    candidates = candidate + 1e-7 * random.normal(size=(20, 8))
    scores = [dict.fromkeys(range(20), 1) for _ in queries]
    found = ranked(queries, candidates, scores)
    assert sorted(found[:20]) == list(range(1, 21))
    assert found[:20] == found[20:40] == ranked(queries, candidates[::-1], scores)[:20]


# -- figures -------------------------------------------------------------------------------------------------


def figures(scores: Scores, ranks: list[int]) -> dict[str, npt.NDArray[np.float64]]:
    relevance, _ = relevance_of(scores)
    found = np.array(ranks)
    return {
        "ndcg_cut_10": ndcg(relevance, found),
        "ndcg_cut_2": ndcg(relevance, found, 2),
        "recall_10": recall(relevance, found, 10),
        "map": average_precision(relevance, found),
        "recip_rank": reciprocal_rank(relevance, found, 1000),
    }


def test_the_example_of_pytrec_eval() -> None:
    """That of its documentation: q1 finds its one document at rank 3, q2 its two at 2 and 3."""
    found = figures([{1: 1}, {1: 1, 2: 1}], [3, 3, 2])
    assert found["map"] == pytest.approx([1 / 3, 0.5833333333333333])
    assert found["ndcg_cut_10"] == pytest.approx([0.5, 0.6934264036172708])


def test_by_hand() -> None:
    """Gains 3, 2 and 1 at ranks 2, 11 and 1."""
    found = figures([{0: 3, 1: 2, 2: 1}], [2, 11, 1])
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert found["ndcg_cut_10"][0] == pytest.approx((1 + 3 / math.log2(3)) / best)
    assert found["ndcg_cut_2"][0] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 2 / math.log2(3)))
    assert found["recall_10"][0] == pytest.approx(2 / 3)
    assert found["map"][0] == pytest.approx((1 + 1 + 3 / 11) / 3)
    assert reciprocal_rank(*[Relevance(np.array([0]), np.array([1.0])), np.array([11])])[0] == 0


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Scores, list[list[int]]]:
    """What is relevant, and an order of the candidates for each query."""
    candidates, queries = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    gains = st.dictionaries(st.integers(0, candidates - 1), st.integers(1, 4), min_size=1)
    orders = st.permutations(range(candidates)).map(list)
    return draw(st.lists(gains, min_size=queries, max_size=queries)), [draw(orders) for _ in range(queries)]


@settings(deadline=None)
@given(rankings())
def test_the_figures_of_trec_eval(case: tuple[Scores, list[list[int]]]) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    scores, orders = case
    found = figures(scores, [orders[q].index(key) + 1 for q, of in enumerate(scores) for key in of])
    judged = {f"q{q}": {f"d{key}": gain for key, gain in of.items()} for q, of in enumerate(scores)}
    run = {f"q{q}": {f"d{key}": float(-place) for place, key in enumerate(order)} for q, order in enumerate(orders)}
    names = {"ndcg_cut.2,10", "recall.10", "map", "recip_rank"}
    expected = pytrec_eval.RelevanceEvaluator(judged, names).evaluate(run)
    for name, values in found.items():
        assert values == pytest.approx([expected[f"q{q}"][name] for q in range(len(scores))]), name


@settings(deadline=None)
@given(rankings())
def test_figures_lie_between_nothing_and_all(case: tuple[Scores, list[list[int]]]) -> None:
    scores, orders = case
    ranks = [orders[q].index(key) + 1 for q, of in enumerate(scores) for key in of]
    for name, values in figures(scores, ranks).items():
        assert (values >= 0).all(), name
        assert (values <= 1 + 1e-12).all(), name


def test_chance_is_the_mean_of_all_orders() -> None:
    scores = [{0: 3, 1: 1}, {2: 1}]
    relevance, keys = relevance_of(scores)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        orders = [random.permutation(15) for _ in scores]
        ranks = np.array([orders[q][key] + 1 for q, key in zip(relevance.queries, keys, strict=True)])
        drawn.append(ndcg(relevance, ranks).mean())
    assert chance(relevance, 15) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(len(drawn)))
    assert chance(Relevance(np.array([0]), np.array([1.0])), 1) == pytest.approx(1)
