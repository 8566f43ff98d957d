"""retrieval of texts: against plain implementations, what is left out and counted, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beir_layout import write_beir, write_qrels
from test_protocols import judged
from word_vectors import WordVectors

from selfsup.errors import UserError
from selfsup.evaluation import evaluate, judged_retrieval
from selfsup.evaluation.base import Score

COUNT = 60
COLLECTION = judged(COUNT)


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> WordVectors:
    """What every directory holds in these tests."""
    model = WordVectors()
    monkeypatch.setattr("selfsup.evaluation.load", lambda directory: model)
    return model


def run(data: object, protocol: str = "retrieval", **given: Any) -> Score:
    return evaluate("run", data=data, protocol=protocol, **given)


def orders(model: WordVectors, collection: Mapping[str, Any]) -> list[list[str]]:
    """The ids of the documents for each query, the nearest first."""
    texts = [[f"{record.get('title', '')} {record['text']}" for record in collection["corpus"]]]
    texts.append([record["text"] for record in collection["queries"]])
    documents, queries = (model.embed(part) for part in texts)
    documents, queries = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (documents, queries))
    ids = [record["_id"] for record in collection["corpus"]]
    return [[ids[place] for place in np.argsort(-row, kind="stable")] for row in queries @ documents.T]


# -- retrieval -----------------------------------------------------------------------------------------------


def test_by_hand(model: WordVectors) -> None:
    ranks = [order.index(f"d{n}") + 1 for n, order in enumerate(orders(model, COLLECTION))]
    score = run(COLLECTION)
    found = np.array(ranks)
    assert score.value == pytest.approx(np.where(found <= 10, 1 / np.log2(1 + found), 0).mean())
    assert score.details["recall@10"] == pytest.approx((found <= 10).mean())
    assert score.details["recall@100"] == 1
    assert score.details["mrr@10"] == pytest.approx(np.where(found <= 10, 1 / found, 0).mean())
    assert score.details["map"] == pytest.approx((1 / found).mean())
    assert score.chance == pytest.approx((1 / np.log2(np.arange(2, 12))).sum() / COUNT)
    assert (score.n, score.details["documents"], score.unit) == (COUNT, COUNT, "nDCG@10")
    assert score.chance is not None
    assert score.chance < score.value


def test_the_figures_of_trec_eval(model: WordVectors) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    random = np.random.default_rng(0)
    gains = [
        (f"q{n}", f"d{random.integers(COUNT)}", int(random.integers(0, 4))) for n in range(COUNT) for _ in range(5)
    ]
    scores: dict[str, dict[str, int]] = {}
    for query, document, gain in gains:
        scores.setdefault(query, {})[document] = gain
    scores = {query: of for query, of in scores.items() if any(of.values())}
    named = ("query-id", "corpus-id", "score")
    qrels = [dict(zip(named, row, strict=True)) for row in gains if row[0] in scores]
    ranking = dict(zip((f"q{n}" for n in range(COUNT)), orders(model, COLLECTION), strict=True))
    run_ = {query: {key: float(-n) for n, key in enumerate(ranking[query])} for query in scores}
    wanted = {"ndcg_cut_10": "value", "recall_10": "recall@10", "map": "map"}
    expected = pytrec_eval.RelevanceEvaluator(scores, {"ndcg_cut.10", "recall.10", "map"}).evaluate(run_)
    score = run(COLLECTION | {"qrels": qrels})
    for name, ours in wanted.items():
        value = score.value if ours == "value" else score.details[ours]
        assert value == pytest.approx(np.mean([of[name] for of in expected.values()])), name


@pytest.mark.parametrize("chunk", [1, 7])
def test_documents_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are embedded at once, and in which order they come, changes nothing."""
    whole = run(COLLECTION)
    monkeypatch.setattr(judged_retrieval, "CHUNK", chunk)
    assert run(COLLECTION) == whole
    assert run(COLLECTION | {"corpus": COLLECTION["corpus"][::-1]}) == whole


def test_every_text_is_embedded_once(model: WordVectors) -> None:
    run(COLLECTION)
    assert model.embedded == 2 * COUNT


def test_what_is_left_out(tmp_path: Path) -> None:
    documents = [{"_id": f"d{n}", "title": "word1", "text": f"word{n}"} for n in range(8)]
    queries = [{"_id": f"q{n}", "text": f"word{n}"} for n in range(5)]
    judgements = [("q1", "d1", 1), ("q1", "away", 1), ("q2", "away", 1), ("q3", "d3", 0), ("gone", "d1", 1)]
    score = run(write_beir(tmp_path, documents, queries, judgements))
    assert score.n == 1
    assert score.details["recall@100"] == 1
    assert score.details["queries without a relevant document"] == "4 (q0, q2, q3, q4)"
    assert score.details["judged queries that are not there"] == "1 (gone)"
    assert score.details["judged documents that are not there"] == "1 (away)"
    assert score.left_out.reading == {"split": "test"}


def test_a_query_does_not_find_itself(model: WordVectors) -> None:
    """A document of the same id is left aside, unless it is an answer."""
    documents = [{"_id": name, "text": text} for name, text in (("a", "one two"), ("b", "one three"), ("c", "five"))]
    queries = [{"_id": "a", "text": "one two"}]
    data = {"corpus": documents, "queries": queries, "qrels": [{"query-id": "a", "corpus-id": "b", "score": 1}]}
    nearest = orders(model, data)[0]
    assert nearest[0] == "a"
    assert run(data).value == pytest.approx(1 / np.log2(1 + nearest[1:].index("b") + 1))
    own = [*data["qrels"], {"query-id": "a", "corpus-id": "a", "score": 0}]
    assert run(data | {"qrels": own}).value < run(data).value


def test_titles_are_read(model: WordVectors) -> None:
    whole = {
        "corpus": [{"_id": "a", "title": "the title", "text": "text"}, {"_id": "b", "title": None, "text": "else"}]
    }
    others = {"queries": [{"_id": "q", "text": "text"}], "qrels": [{"query-id": "q", "corpus-id": "a", "score": 1}]}
    seen: list[str] = []
    original = model.embed
    model.embed = lambda texts, *rest, **given: seen.extend(texts) or original(texts, *rest, **given)  # type: ignore
    run(whole | others)
    assert sorted(seen) == ["else", "text", "the title text"]


def test_a_model_that_knows_nothing_is_no_better_than_chance(model: WordVectors) -> None:
    model.network.weight.data.fill_(1.0)
    score = run(COLLECTION)
    assert score.chance is not None
    assert score.interval[0] < score.chance < score.interval[1]


def test_splits_and_refusals(tmp_path: Path) -> None:
    place = write_beir(tmp_path)
    write_qrels(place / "qrels" / "dev.tsv", [("q1", "d1", 1)])
    assert (run(str(place)).n, run(str(place), split="dev").n) == (2, 1)
    with pytest.raises(UserError, match=r"retrieval has no use for --captions; leave it out[.]"):
        run(str(place), captions=["caption"])
    with pytest.raises(UserError, match="sts has no use for --split; leave it out, or take retrieval"):
        run(str(place), "sts", split="dev")
    with pytest.raises(UserError, match="name a source with --data"):
        run(None)
    write_qrels(place / "qrels" / "test.tsv", [("q1", "elsewhere", 1)])
    with pytest.raises(UserError, match=r"None of the 2 queries of .* has a relevant document among its 2; check"):
        run(str(place))


class Backwards:
    """A cross-encoder that likes a document the more, the later its number."""

    truncated, precision = 1, "fp32"

    @classmethod
    def open(cls, path: object, device: str) -> Backwards:
        return cls()

    def logits(self, query: str, texts: list[str], precision: str) -> np.ndarray:
        numbers = [next(n for n, of in enumerate(COLLECTION["corpus"]) if of["text"] == text) for text in texts]
        return np.array(numbers, np.float32)


@pytest.mark.parametrize("count", [3, 20, 100])
def test_reranked_by_hand(count: int, model: WordVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_retrieval, "CrossEncoderModel", Backwards)
    monkeypatch.setattr(judged_retrieval, "CANDIDATES", count)
    monkeypatch.setattr(judged_retrieval, "CHUNK", 17)
    ranks = []
    for number, order in enumerate(orders(model, COLLECTION)):
        read = sorted(order[:count], key=lambda key: -int(key[1:]))
        ranks.append([*read, *order[count:]].index(f"d{number}") + 1)
    found = np.array(ranks)
    score = run(COLLECTION, rerank="anywhere")
    assert score.details["mrr@10"] == pytest.approx(np.where(found <= 10, 1 / found, 0).mean())
    assert score.details["map"] == pytest.approx((1 / found).mean())
    assert score.details["nDCG@10 of the vectors"] == pytest.approx(run(COLLECTION).value)
    assert score.left_out.truncated == COUNT
