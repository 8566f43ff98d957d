"""A corpus that is prepared once, and trainings on it: they are those on the texts themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_WORDS, Answer

import selfsup
from selfsup.errors import UserError
from selfsup.report import Reporter

Command = Callable[..., Answer]
TRAINING = {key: value for key, value in TINY.items() if key != "tokenizer"}


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small corpus, prepared for an objective."""
    place = tmp_path_factory.mktemp("prepared")

    def make(objective: str) -> Path:
        selfsup.prepare(objective, data=corpus, out=place / objective, tokenizer="characters", workers=1)
        return place / objective

    return make


def losses(run: selfsup.Run) -> list[Any]:
    return [line["loss"] for line in run.metrics()]


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm"])
def test_a_training_is_that_on_the_texts(
    objective: str, corpus: Path, prepared: Callable[[str], Path], tmp_path: Path
) -> None:
    silent = Reporter(False)
    run = selfsup.train(objective, data=prepared(objective), out=tmp_path / "a", reporter=silent, **TRAINING)
    plain = selfsup.train(objective, data=corpus, out=tmp_path / "b", reporter=silent, **TINY)
    assert losses(run) == losses(plain)
    assert (run.model_directory / "model.safetensors").read_bytes() == (
        plain.model_directory / "model.safetensors"
    ).read_bytes()
    settings = run.settings()
    assert settings["data.validation"] == 0.1
    assert settings["data.tokenizer"] == f"{prepared(objective)}/tokenizer"
    again = selfsup.train(resume=run.directory, steps=14, reporter=silent)
    assert again.summary["steps"] == 14


def test_a_run_is_measured_on_what_it_held_out(prepared: Callable[[str], Path], tmp_path: Path) -> None:
    run = selfsup.train(
        "causal-lm", data=prepared("causal-lm"), out=tmp_path / "a", reporter=Reporter(False), **TRAINING
    )
    assert selfsup.evaluate(run, protocol="perplexity").value > 1


def test_by_the_command(corpus: Path, tmp_path: Path, selfsup_command: Command) -> None:
    out = tmp_path / "tokens"
    words = ["prepare", "causal-lm", "--data", corpus, "--out", out, "--tokenizer", "characters", "--workers", "1"]
    told = json.loads(selfsup_command(*words, "--json").out)
    assert told["documents"] == 192
    assert told["shards"] == 2
    again = selfsup_command(*words)
    assert again.code == 0
    assert "192" in again.out
    assert "selfsup train causal-lm --data" in again.out
    trained = [word for word in TINY_WORDS if not word.startswith("tokenizer=")]
    answer = selfsup_command("train", "causal-lm", "--data", out, "--out", tmp_path / "run", *trained)
    assert answer.code == 0, answer
    assert "blocks of 4 MiB" in answer.error


@pytest.mark.parametrize(
    ("objective", "other", "said"),
    [
        ("masked-lm", {}, "prepared for causal-lm, which masked-lm cannot train on"),
        ("simcse", {}, "prepared for causal-lm, which simcse cannot train on"),
        ("causal-lm", {"tokenizer": "words"}, "has a tokenizer of its own"),
        ("causal-lm", {"data.vocabulary": 300}, "data.vocabulary was decided when"),
        ("causal-lm", {"data.validation": 0.2}, "data.validation was decided when"),
        ("causal-lm", {"column": "text"}, "data.column was decided when"),
    ],
)
def test_what_does_not_fit(
    objective: str, other: dict[str, Any], said: str, prepared: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        selfsup.train(
            objective, data=prepared("causal-lm"), out=tmp_path / "a", reporter=Reporter(False), **TRAINING | other
        )
    assert not (tmp_path / "a").exists()


def test_weights_bring_their_tokenizer(corpus: Path, prepared: Callable[[str], Path], tmp_path: Path) -> None:
    silent = Reporter(False)
    first = selfsup.train("causal-lm", data=prepared("causal-lm"), out=tmp_path / "a", reporter=silent, **TRAINING)
    more = {"init": first.directory, "steps": 2, "batch": 4, "data.window": 16}
    on = selfsup.train("causal-lm", data=prepared("causal-lm"), out=tmp_path / "b", reporter=silent, **more)
    assert on.summary["steps"] == 2
    words = selfsup.train(
        "causal-lm", data=corpus, out=tmp_path / "c", reporter=silent, **TINY | {"tokenizer": "words"}
    )
    with pytest.raises(UserError, match="prepare the texts with that tokenizer"):
        selfsup.train(
            "causal-lm",
            data=prepared("causal-lm"),
            out=tmp_path / "d",
            reporter=silent,
            **more | {"init": words.directory},
        )


def test_it_is_replayed_too(corpus: Path, prepared: Callable[[str], Path], tmp_path: Path) -> None:
    place = prepared("causal-lm")
    given = {**TRAINING, "data.replay": f"{place}:0.25"}
    run = selfsup.train("causal-lm", data=place, out=tmp_path / "a", reporter=Reporter(False), **given)
    assert run.summary["steps"] == 12


@pytest.mark.parametrize(
    ("objective", "given", "said"),
    [
        ("simclr", {}, "does not train on a prepared corpus; these do: causal-lm, masked-lm"),
        ("causal-lm", {"model.layers": 2}, "model.layers .* is decided when a corpus is trained on"),
        ("causal-lm", {"steps": 2}, "train.steps"),
        ("causal-lm", {"duplicates": "some"}, "duplicates is 'some'"),
        ("causal-lm", {"workers": 0}, "workers is 0"),
    ],
)
def test_what_is_no_preparation(objective: str, given: dict[str, Any], said: str, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        selfsup.prepare(objective, data=corpus, out=tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()
