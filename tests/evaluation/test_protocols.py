"""The protocols of encoders on data: what is read, how it is split, what a score says, what is refused."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from word_vectors import WordVectors, save_tiny_encoder

from selfsup.errors import UserError
from selfsup.evaluation import PROTOCOLS, SUPERVISED, TEXT_ENCODERS, evaluate
from selfsup.evaluation.alignment import alignment
from selfsup.evaluation.alpha_req import alpha_req
from selfsup.evaluation.base import Score
from selfsup.evaluation.features import in_test, numbered
from selfsup.evaluation.knn import knn
from selfsup.evaluation.rankme import rankme
from selfsup.evaluation.uniformity import uniformity

Records = list[dict[str, Any]]
GOOD, BAD, OTHER = (
    ["bright", "warm", "kind", "brave"],
    ["dull", "cold", "cruel", "weak"],
    ["film", "plot", "play", "cast", "tale"],
)


def review(number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    label = int(random.random() < 0.6)
    words = [*random.choice(GOOD if label else BAD, 2), *random.choice(OTHER, 3), *random.choice(GOOD + BAD, 2)]
    return {"text": f"{' '.join(words)} {number % 97}", "label": label, "id": number}


def pair(number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    words = [f"word{i}" for i in random.choice(200, 10, replace=False)]
    shared = int(random.integers(0, 6))
    other = words[:shared] + [f"other{i}" for i in random.choice(200, 5 - shared, replace=False)]
    return {"sentence1": " ".join(words[:5]), "sentence2": " ".join(other), "score": float(shared)}


def judged(count: int) -> dict[str, Records]:
    """Queries whose own document shares words with them, and others' likewise."""
    pairs = [pair(number) for number in range(count)]
    return {
        "corpus": [{"_id": f"d{n}", "title": "", "text": pair["sentence1"]} for n, pair in enumerate(pairs)],
        "queries": [{"_id": f"q{n}", "text": f"{pair['sentence2']} {n}"} for n, pair in enumerate(pairs)],
        "qrels": [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(count)],
    }


REVIEWS: Records = [review(number) for number in range(300)]
PAIRS: Records = [pair(number) for number in range(120)]
TEXTS = [record["text"] for record in REVIEWS]
FITTING: dict[str, Any] = {name: REVIEWS if name in SUPERVISED else PAIRS for name in TEXT_ENCODERS} | {
    "pseudo-perplexity": [{"text": "a masked word"}, {"text": "two words"}] * 20,
    "retrieval": judged(120),
}


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> WordVectors:
    """What every directory holds in these tests."""
    model = WordVectors()
    monkeypatch.setattr(import_module("selfsup.evaluation"), "load", lambda directory: model)
    return model


def run(protocol: str, data: object, **given: Any) -> Score:
    return evaluate("run", data=data, protocol=protocol, **given)


def parts(records: Records) -> tuple[Records, Records]:
    tested = [in_test(record["text"].encode()) for record in records]
    bank = [record for record, test in zip(records, tested, strict=True) if not test]
    return bank, [record for record, test in zip(records, tested, strict=True) if test]


def labels_of(records: Records) -> Any:
    return np.array([record["label"] for record in records])


# -- what every score says -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", TEXT_ENCODERS)
def test_json(protocol: str) -> None:
    score = run(protocol, FITTING[protocol], seed=3)
    content = json.loads(json.dumps(score.to_json()))
    low, high = content["interval"]
    assert low < content["value"] < high
    assert (content["protocol"], content["seed"]) == (protocol, 3)
    assert content["details"]
    assert score == run(protocol, FITTING[protocol], seed=3)


@pytest.mark.parametrize("protocol", TEXT_ENCODERS)
def test_progress_reaches_the_end(protocol: str, model: WordVectors) -> None:
    seen: list[tuple[int, int | None]] = []
    run(protocol, FITTING[protocol], progress=lambda done, total: seen.append((done, total)))
    count = model.embedded or len(FITTING[protocol])
    assert seen[-1] == (count, count)


def test_interval_is_a_function_of_the_seed() -> None:
    assert run("sts", PAIRS, seed=1).interval == run("sts", PAIRS, seed=1).interval
    assert run("sts", PAIRS, seed=1).interval != run("sts", PAIRS, seed=2).interval


def test_a_text_is_embedded_once(model: WordVectors) -> None:
    run("sts", PAIRS + PAIRS)
    assert model.embedded == len({record[name] for record in PAIRS for name in ("sentence1", "sentence2")})


# -- against the definition ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "neighbours", "temperature"), [("knn-20", 20, 0.07), ("knn-200", 200, 0.1)])
def test_knn(protocol: str, neighbours: int, temperature: float, model: WordVectors) -> None:
    bank, test = parts(REVIEWS)
    features = [model.embed([record["text"] for record in part]) for part in (bank, test)]
    answers = knn(features[0], labels_of(bank), features[1], neighbours, temperature)
    score = run(protocol, REVIEWS)
    assert score.value == pytest.approx(100 * (answers == labels_of(test)).mean())
    assert score.value > score.chance > 50
    assert (score.n, score.details["bank"]) == (len(test), len(bank))


def test_linear(model: WordVectors) -> None:
    bank, test = parts(REVIEWS)
    features = [model.embed([record["text"] for record in part]) for part in (bank, test)]
    score = run("linear", REVIEWS)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=score.details["C"], max_iter=1000))
    reference.fit(features[0], labels_of(bank))
    assert score.value == pytest.approx(100 * reference.score(features[1], labels_of(test)), abs=100 / len(test))
    assert score.value > score.chance


def test_chance_is_that_of_the_commonest_class_of_the_bank() -> None:
    bank = [{"text": f"bank {i}", "label": "often" if i % 3 else "seldom"} for i in range(30)]
    test = [{"text": f"test {i}", "label": "seldom" if i % 4 else "often"} for i in range(40)]
    score = run("knn-20", bank, test=test)
    assert (score.chance, score.details["majority"]) == (25.0, "often")
    assert (score.n, score.details["bank"], score.details["classes"]) == (40, 30, 2)


def test_records_of_a_class_that_the_bank_lacks_are_wrong() -> None:
    test = [*REVIEWS[:10], *({"text": text, "label": 7} for text in TEXTS[:30])]
    assert run("knn-20", REVIEWS, test=test).value <= 25
    assert run("linear", REVIEWS, test=test).value <= 25


def test_sts(model: WordVectors) -> None:
    first, second = (model.embed([record[name] for record in PAIRS]) for name in ("sentence1", "sentence2"))
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    cosine = cosine.round(6)  # two sentences of the same words have the similarity 1
    scores = [record["score"] for record in PAIRS]
    score = run("sts", PAIRS)
    assert score.value == pytest.approx(100 * spearmanr(cosine, scores).statistic, abs=1e-3)
    assert score.details["pearson"] == pytest.approx(100 * pearsonr(cosine, scores).statistic, abs=1e-3)
    assert (score.n, score.chance) == (len(PAIRS), 0)


def test_alignment_is_over_the_pairs_that_mean_the_same(model: WordVectors) -> None:
    alike = [record for record in PAIRS if record["score"] >= 4]
    first, second = (model.embed([record[name] for record in alike]) for name in ("sentence1", "sentence2"))
    score = run("alignment", PAIRS)
    assert score.value == pytest.approx(alignment(first, second))
    assert (score.n, score.details["threshold"]) == (len(alike), 4)
    assert score.chance is not None
    assert score.value < score.chance


@pytest.mark.parametrize(
    ("protocol", "function"), [("rankme", rankme), ("alpha-req", alpha_req), ("uniformity", uniformity)]
)
def test_label_free_protocols_take_distinct_texts(
    protocol: str, function: Callable[..., float], model: WordVectors
) -> None:
    score = run(protocol, TEXTS + TEXTS[:50])
    assert score.value == pytest.approx(function(model.embed(list(dict.fromkeys(TEXTS)))), rel=1e-5)
    assert score.n == len(set(TEXTS))
    both = list(dict.fromkeys(record[name] for record in PAIRS for name in ("sentence1", "sentence2")))
    assert run(protocol, PAIRS).value == pytest.approx(function(model.embed(both)), rel=1e-5)
    assert run(protocol, PAIRS, column="sentence2").n == len({record["sentence2"] for record in PAIRS})


def test_pseudo_perplexity() -> None:
    texts = ["one two three", "four", "a bee"]
    losses = [math.log(1 + len(word)) for text in texts for word in text.split()]
    score = run("pseudo-perplexity", texts)
    assert score.value == pytest.approx(math.exp(np.mean(losses)))
    assert (score.n, score.chance, score.details["texts"]) == (6, 512, 3)


# -- how data is read and split ------------------------------------------------------------------------------


def test_a_fifth_is_tested_by_the_hash_of_the_text() -> None:
    assert sum(in_test(f"text {i}".encode()) for i in range(5000)) == pytest.approx(1000, abs=90)
    bank, test = parts(REVIEWS)
    assert not {record["text"] for record in bank} & {record["text"] for record in test}
    shuffled = [REVIEWS[i] for i in np.random.default_rng(0).permutation(len(REVIEWS))]
    assert run("knn-20", shuffled).value == pytest.approx(run("knn-20", REVIEWS).value)


@pytest.mark.parametrize("name", ["label", "Labels", "class", "category", "target"])
def test_usual_names_of_labels(name: str) -> None:
    renamed = [{"text": record["text"], "n": 0, name: record["label"]} for record in REVIEWS]
    assert run("knn-20", renamed).value == run("knn-20", REVIEWS).value


def test_label_and_column_by_name() -> None:
    renamed = [
        {"title": "x" * 99, "blurb": r["text"], "label": 1, "verdict": ["no", "yes"][r["label"]]} for r in REVIEWS
    ]
    score = run("knn-20", renamed, label="verdict", column="blurb")
    assert (score.value, score.details["majority"]) == (run("knn-20", REVIEWS).value, "yes")


def write(path: Path, records: Records) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(records[0]))
                writer.writeheader()
                writer.writerows(records)
        case _:
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    reviews, pairs = write(tmp_path / f"r{kind}", REVIEWS), write(tmp_path / f"p{kind}", PAIRS)
    assert run("linear", reviews).value == run("linear", REVIEWS).value
    assert run("sts", pairs).value == run("sts", PAIRS).value
    assert run("sts", pairs).data == str(pairs)


def test_columns_of_pairs_by_kind() -> None:
    renamed = [{"a": r["sentence1"], "rating": r["score"], "b": r["sentence2"]} for r in PAIRS]
    assert run("sts", renamed).value == run("sts", PAIRS).value
    beside = [record | {"genre": "news", "year": 2012} for record in PAIRS]
    assert run("sts", beside).value == run("sts", PAIRS).value


def test_records_that_cannot_be_read_are_named_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    data = write(tmp_path / "r.jsonl", [*REVIEWS, {"text": "no label"}])
    score = run("knn-20", data)
    assert score.value == run("knn-20", REVIEWS).value
    assert score.left_out.skipped == 1
    assert "line 301" in score.left_out.skipped_names[0]
    assert "301" not in caplog.text


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("place", [0, 150])
def test_missing_values_are_left_out(place: int, kind: str, tmp_path: Path) -> None:
    """Of scores, sentences and classes; they do not change what the columns are taken for."""
    names = ("sentence1", "sentence2", "score")
    bare = [{name: None if name == missing else PAIRS[0][name] for name in names} for missing in names]
    pairs = [{name: record[name] for name in names} for record in PAIRS]
    rated = write(tmp_path / f"p{kind}", [*pairs[:place], *bare, *pairs[place:]])
    score = run("sts", rated)
    assert (score.value, score.left_out.skipped) == (run("sts", PAIRS).value, 3)
    bare = [REVIEWS[0] | {"text": "none at all", "label": None}]
    labelled = [*REVIEWS[:place], *bare, *REVIEWS[place:]]
    score = run("knn-20", write(tmp_path / f"r{kind}", labelled))
    assert (score.value, score.left_out.skipped) == (run("knn-20", REVIEWS).value, 1)


@given(st.lists(st.one_of(st.integers(-9, 9), st.text("ab", max_size=3)), min_size=1))
def test_classes_are_numbered_in_a_fixed_order(labels: list[int | str]) -> None:
    classes, numbers = numbered(labels)
    assert [classes[number] for number in numbers] == labels
    assert classes == numbered(labels[::-1])[0]


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "data", "given", "message"),
    [
        ("bits-per-byte", TEXTS, {}, "holds a text encoder, .* not defined; .*sts, .*linear, knn-20"),
        ("knn-2", TEXTS, {}, "did you mean 'knn-20'"),
        ("sts", None, {}, "--data"),
        ("linear", None, {}, "--data"),
        ("rankme", None, {}, "--data"),
        ("pseudo-perplexity", None, {}, "--data"),
        ("rankme", REVIEWS, {"label": "label"}, "no use for --label"),
        ("linear", TEXTS, {}, "no column of classes .*--label"),
        ("linear", REVIEWS, {"label": "verdict"}, "no column 'verdict'"),
        ("linear", [{"text": f"t {i}", "label": i / 7} for i in range(1, 30)], {}, "is 0.14.*--label"),
        ("linear", [{"text": f"t {i}", "label": 1} for i in range(30)], {}, "one class only"),
        ("linear", REVIEWS[:1], {}, "too small to be split"),
        ("knn-20", REVIEWS, {"test": [{"text": "a", "label": "good"}]}, "has no class of"),
        ("knn-20", REVIEWS, {"test": "missing.csv"}, "missing.csv"),
        ("sts", REVIEWS, {}, "sentence1, sentence2 and score"),
        ("sts", [record | {"score": 3} for record in PAIRS], {}, "the same score"),
        ("sts", [record | {"score": "high"} for record in PAIRS], {}, "'high'"),
        ("sts", [record | {"sentence2": None} for record in PAIRS], {}, "sentence2"),
        ("sts", [*PAIRS * 9, PAIRS[0] | {"score": "high"}], {"failures": 0}, "'high'"),
        ("linear", [record | {"label": ""} for record in REVIEWS], {}, "the label is empty"),
        ("rankme", ["one text", "one text"], {}, "one distinct text"),
        ("alpha-req", TEXTS[:5], {}, "--protocol rankme"),
    ],
)
def test_what_cannot_be_measured_is_refused(protocol: str, data: object, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(protocol, data, **given)


@pytest.mark.parametrize("protocol", [name for name in TEXT_ENCODERS if name != "pseudo-perplexity"])
def test_features_that_are_not_finite_are_refused(protocol: str, model: WordVectors) -> None:
    model.network.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="diverged"):
        run(protocol, FITTING[protocol])


def test_a_collapsed_model_has_the_figures_of_chance(model: WordVectors) -> None:
    model.network.weight.data.fill_(1.0)
    for protocol in ("sts", "rankme", "uniformity", "linear"):
        score = run(protocol, FITTING[protocol])
        assert score.value == pytest.approx(score.chance, abs=1e-3), protocol
    assert run("alignment", PAIRS).value == pytest.approx(0, abs=1e-9)


def test_protocols_are_named_in_the_help() -> None:
    from typer.testing import CliRunner

    from selfsup.cli import app

    text = "".join(CliRunner().invoke(app, ["evaluate", "--help"], terminal_width=400).output.split())
    assert all(name in text for name in PROTOCOLS)


@pytest.mark.parametrize("protocol", TEXT_ENCODERS)
def test_a_model_directory(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real encoder; untrained, it guesses tokens about alike."""
    monkeypatch.undo()
    data = FITTING[protocol]
    records = [record for part in data.values() for record in part] if isinstance(data, dict) else data
    texts = [value for record in records for value in record.values() if isinstance(value, str)]
    score = evaluate(save_tiny_encoder(tmp_path / "model", texts), data=data, protocol=protocol)
    assert score.interval[0] <= score.value <= score.interval[1]
    if protocol == "pseudo-perplexity":
        assert score.value == pytest.approx(score.chance, rel=0.2)
