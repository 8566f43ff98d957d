"""structure: passages and what follows them, ranks against a plain count, what is refused."""

from __future__ import annotations

import itertools
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_vectors import WordVectors

from selfsup.errors import UserError
from selfsup.evaluation import evaluate
from selfsup.evaluation.base import Score
from selfsup.evaluation.ranking import drawn_order
from selfsup.evaluation.structure import PASSAGE, SHORTEST, passages

WORDS = [f"word{number}" for number in range(60)]


def document(number: int) -> str:
    """Of words of its own for the most, so that a passage tells which document follows."""
    random = np.random.default_rng(number)
    own = random.choice(WORDS, 6, replace=False)
    return " ".join([*random.choice(own, 12), *random.choice(WORDS, 4)])


DOCUMENTS = [document(number) for number in range(40)]


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> WordVectors:
    """What every directory holds in these tests."""
    model = WordVectors()
    monkeypatch.setattr(import_module("selfsup.evaluation"), "load", lambda directory: model)
    return model


def run(data: object, **given: Any) -> Score:
    return evaluate("run", data=data, protocol="structure", **given)


@given(st.text(st.sampled_from("ab \n"), max_size=200), st.integers(4, 60))
def test_passages_are_the_text_cut_at_white_space(text: str, longest: int) -> None:
    found = passages(text, longest)
    whole = " ".join(text.split())
    assert all(SHORTEST <= len(passage) <= longest for passage in found)
    place = 0
    for passage in found:  # in their order, each behind the one before it
        place = whole.index(passage, place) + len(passage)
    if len(whole) >= 2 * SHORTEST + 2 and longest >= 2 * SHORTEST and " " not in whole:
        assert "".join(found) == whole[: len("".join(found))]
        assert len(found) >= 2


def test_a_text_makes_two_passages_at_least() -> None:
    assert passages("one two three four five six") == ["one two three", "four five six"]
    assert passages("short text") == []
    long = passages("some words " * 200)
    assert all(PASSAGE - 10 < len(passage) <= PASSAGE for passage in long[:-1])


def test_ranks_are_those_of_a_plain_count(model: WordVectors) -> None:
    score = run(DOCUMENTS)
    pairs = [passages(text) for text in DOCUMENTS]
    first, second = (model.embed([pair[side] for pair in pairs]) for side in (0, 1))
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    similar, order = first @ second.T, drawn_order([pair[1] for pair in pairs]).tolist()
    ranks = [
        1
        + sum(
            similar[i, j] > similar[i, i] + 1e-5 or (order[j] < order[i] and similar[i, j] >= similar[i, i] - 1e-5)
            for j in range(len(pairs))
            if j != i
        )
        for i in range(len(pairs))
    ]
    assert score.value == pytest.approx(100 * np.mean([1 / rank for rank in ranks]))
    assert score.details["R@1"] == pytest.approx(100 * np.mean([rank == 1 for rank in ranks]))
    assert score.details["candidates"] == score.n == 40
    assert score.chance == pytest.approx(100 * np.mean([1 / rank for rank in range(1, 41)]))
    assert score.value > 3 * score.chance
    low, high = score.interval
    assert low < score.value < high


def test_a_passage_does_not_find_itself() -> None:
    """Of three passages of the same words, the middle one, which is looked for too, has but the last to find."""
    documents = [[f"word{8 * number + place}" for place in range(6)] for number in range(8)]
    turned = [[" ".join(words[by:] + words[:by]) for by in range(3)] for words in documents]
    rows = [{"query": one, "passage": other} for three in turned for one, other in itertools.pairwise(three)]
    score = run(rows)
    assert score.details["R@1"] > 50  # all middle ones, and those first ones to which chance gives the middle one
    assert score.details["candidates"] == 16
    assert run([*rows, {"query": "alone", "passage": "alone"}]).details == score.details


def test_columns_of_queries_and_passages_are_taken_for_what_belongs_together(model: WordVectors) -> None:
    rows = [
        {"query": text[:30], "passage": text[30:], "text": "the same text for every one of them"} for text in DOCUMENTS
    ]
    assert run(rows).n == 40
    with pytest.raises(UserError, match=r"0 passages that another one follows"):
        run([{"text": "short"}] * 3)
    halves = run(rows, column="text")  # of equal texts, which are one
    assert (halves.details["candidates"], halves.value) == (1, 100.0)


def test_so_many_as_are_asked_for_are_drawn_by_the_seed() -> None:
    few, again, other = (run(DOCUMENTS, records=10, seed=seed) for seed in (1, 1, 2))
    assert few == again != other
    assert (few.records, few.records_in_all, few.n) == (10, 40, 10)
