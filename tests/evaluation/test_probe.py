"""A probe: fitted, kept, applied to the model it belongs to, and refused to any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Answer, tree
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from word_vectors import WordVectors, save_tiny_encoder

from selfsup.errors import UserError
from selfsup.evaluation import evaluate
from selfsup.evaluation.probe import Probe
from selfsup.models.features import Features

Command = Callable[..., Answer]
TOPICS = {"sea": "ship wave salt gull mast", "city": "street tram shop noise square", "wood": "oak fern moss deer"}


def note(number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    topic = str(random.choice(list(TOPICS)))
    words = [*random.choice(TOPICS[topic].split(), 3), *random.choice(["a", "the", "one", "and"], 2)]
    return {"text": f"{' '.join(words)} {number % 89}", "label": topic}


NOTES = [note(number) for number in range(240)]
NEW = [note(number)["text"] for number in range(1000, 1030)]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, WordVectors]:
    """What the directories of these tests hold."""
    models = {"run": WordVectors(), "copy": WordVectors(), "other": WordVectors(seed=1), "pooled": WordVectors()}
    models["pooled"].features = Features("cls")
    for module, name in (("selfsup.evaluation.probe", "load_encoder"), ("selfsup.evaluation", "load")):
        monkeypatch.setattr(import_module(module), name, lambda directory: models[str(directory)])
    return models


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    Probe.fit("run", NOTES).save(tmp_path / "probe")
    return tmp_path / "probe"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in NOTES))
    return path


def test_it_is_the_logistic_regression_of_all_records(models: dict[str, WordVectors]) -> None:
    fitted = Probe.fit("run", NOTES)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.classifier.strength, max_iter=2000))
    reference.fit(models["run"].embed([note["text"] for note in NOTES]), [note["label"] for note in NOTES])
    expected = reference.predict_proba(models["run"].embed(NEW))
    answers = fitted.classify("run", NEW)
    assert [answer.label for answer in answers] == reference.predict(models["run"].embed(NEW)).tolist()
    assert [answer.probability for answer in answers] == pytest.approx(expected.max(1), abs=5e-3)
    assert (fitted.classes, fitted.records) == (("city", "sea", "wood"), len(NOTES))


def test_the_estimate_is_the_protocol_linear() -> None:
    fitted = Probe.fit("run", NOTES, seed=2)
    score = evaluate("run", data=NOTES, protocol="linear", seed=2)
    assert fitted.estimate == score
    assert fitted.estimate.value > 80 > fitted.estimate.chance


def test_what_is_kept_is_what_was_fitted(probe: Path) -> None:
    fitted, kept = Probe.fit("run", NOTES), Probe.load(probe)
    assert kept.to_json() == fitted.to_json()
    assert kept.classify("run", NEW) == fitted.classify("run", NEW)
    assert sorted(tree(probe)) == ["probe.json", "probe.safetensors"]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    numbered = [{"text": note["text"], "label": list(TOPICS).index(note["label"])} for note in NOTES]
    Probe.fit("run", numbered).save(tmp_path / "probe")
    answers = Probe.load(tmp_path / "probe").classify("run", NEW)
    assert {answer.label for answer in answers} == {0, 1, 2}


def test_the_same_model_elsewhere_is_the_same_model(probe: Path) -> None:
    assert Probe.load(probe).classify("copy", NEW) == Probe.load(probe).classify("run", NEW)


@pytest.mark.parametrize("other", ["other", "pooled"])
def test_another_model_is_refused(probe: Path, other: str) -> None:
    with pytest.raises(UserError, match=f"another model than {other}"):
        Probe.load(probe).classify(other, NEW)


def test_a_fingerprint_heeds_every_weight() -> None:
    model = WordVectors()
    before = model.fingerprint
    model.network.weight.data[-1, -1] += 1e-6
    assert model.fingerprint != before


def test_records_are_named_in_their_order(probe: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in ["an oak", "  ", "a ship"]))
    answers = Probe.load(probe).classify("run", path)
    assert [(a.record, a.text) for a in answers] == [(f"{path}, line 1", "an oak"), (f"{path}, line 3", "a ship")]


# -- on the command line -------------------------------------------------------------------------------------


def test_probe_and_classify(data: Path, tmp_path: Path, selfsup_command: Command) -> None:
    answer = selfsup_command("probe", "run", "--data", data, "--out", tmp_path / "p")
    assert answer.code == 0
    assert "linear" in answer.out
    assert "chance" in answer.out
    spoken = selfsup_command("classify", "run", "--probe", tmp_path / "p", "a ship", "an oak")
    assert [json.loads(line)["label"] for line in spoken.out.splitlines()] == ["sea", "wood"]
    assert list(json.loads(spoken.out.splitlines()[0])) == ["record", "text", "label", "probability"]
    written = selfsup_command(
        "classify", "run", "--probe", tmp_path / "p", "--data", data, "--out", tmp_path / "labels.jsonl"
    )
    assert written.out == ""
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [note["text"] for note in NOTES]
    assert np.mean([line["label"] == note["label"] for line, note in zip(lines, NOTES, strict=True)]) > 0.8


def test_json_of_a_probe(data: Path, tmp_path: Path, selfsup_command: Command) -> None:
    answer = selfsup_command("probe", "run", "--data", data, "--out", tmp_path / "p", "--json")
    content = json.loads(answer.out)
    assert content == json.loads((tmp_path / "p" / "probe.json").read_text())
    assert content["classes"] == ["city", "sea", "wood"]
    assert content["estimate"]["protocol"] == "linear"


def test_what_lies_there_already_is_left_alone(data: Path, probe: Path, selfsup_command: Command) -> None:
    before = tree(probe)
    answers = [
        selfsup_command("probe", "run", "--data", data, "--out", probe),
        selfsup_command("probe", "run", "--data", data, "--out", data),
        selfsup_command("classify", "run", "--probe", probe, "a ship", "--out", data),
    ]
    assert all(answer.code == 2 and "exists already" in answer.error for answer in answers)
    assert tree(probe) == before


@pytest.mark.parametrize("words", [[], ["a ship", "--data", "notes.jsonl"]])
def test_either_texts_or_data(words: list[str], probe: Path, selfsup_command: Command) -> None:
    answer = selfsup_command("classify", "run", "--probe", probe, *words)
    assert (answer.code, answer.out) == (2, "")
    assert "either by itself or with --data" in answer.error


def test_what_is_no_probe(tmp_path: Path, probe: Path) -> None:
    with pytest.raises(UserError, match="holds no probe"):
        Probe.load(tmp_path)
    weights = probe / "probe.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="is damaged"):
        Probe.load(probe)
    tensors = load_file_of(whole, weights)
    save_file(tensors | {"weight": tensors["weight"][:2]}, weights)
    with pytest.raises(UserError, match="do not belong to its classes"):
        Probe.load(probe)
    weights.unlink()
    with pytest.raises(UserError, match="is damaged"):
        Probe.load(probe)


def load_file_of(content: bytes, place: Path) -> dict[str, Any]:
    place.write_bytes(content)
    return load_file(place)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"classes": 3}'])
def test_a_broken_description(content: str, probe: Path) -> None:
    (probe / "probe.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        Probe.load(probe)


def test_a_language_model_is_refused(finished: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match="holds a decoder"):
        Probe.fit(finished.directory, data)


def test_a_model_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = save_tiny_encoder(tmp_path / "model", [note["text"] for note in NOTES])
    Probe.fit(model, NOTES).save(tmp_path / "probe")
    answers = Probe.load(tmp_path / "probe").classify(model, [note["text"] for note in NOTES])
    right = np.mean([answer.label == note["label"] for answer, note in zip(answers, NOTES, strict=True)])
    assert right > 0.6  # words tell the topic, and untrained features still tell the words
    other = save_tiny_encoder(tmp_path / "other", NEW)
    with pytest.raises(UserError, match="another model"):
        Probe.load(tmp_path / "probe").classify(other, NEW)
