"""`--init`: weights and tokenizer of a run or a directory are kept, heads where they match, and the plan says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import TINY, Answer, Train
from safetensors.torch import load_file, save_file

import selfsup
from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.models.encoder_layouts import read_encoder
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.training import Plan

NEW = {name: value for name, value in TINY.items() if name not in ("tokenizer", "model")}
STILL = {"steps": 1, "optim.lr": 1e-30, "optim.adamw_lr": 1e-30, "optim.weight_decay": 0.0}


@pytest.fixture(scope="module")
def bert(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With a head that is not tied to its embeddings, so that there is something to lose."""
    return train(tmp_path_factory.mktemp("bert") / "run", objective="masked-lm", **{"model.tied": False})


@pytest.fixture(scope="module")
def emb(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without a head."""
    return train(tmp_path_factory.mktemp("emb") / "run", objective="simcse", **{"model.tied": False})


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ModernBERT that transformers made: tied, with a bias in its decoder, and more rows than its tokenizer has."""
    directory = tmp_path_factory.mktemp("stock")
    tokenizer = train_tokenizer("bpe", ["The cat sat by the hill."], 270, family="encoder")
    tokenizer.save(directory)
    config = transformers.ModernBertConfig(
        vocab_size=280,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        mlp_dropout=0.2,
        pad_token_id=tokenizer.pad,
        bos_token_id=tokenizer.start,
        eos_token_id=tokenizer.end,
        cls_token_id=tokenizer.start,
        sep_token_id=tokenizer.end,
    )
    torch.manual_seed(0)
    model = transformers.ModernBertForMaskedLM(config)
    torch.nn.init.normal_(model.decoder.bias)
    model.save_pretrained(directory)
    return directory


def go_on(objective: str, init: Path, out: Path, corpus: Path, **given: Any) -> Run:
    values = {**NEW, "data": corpus, "init": str(init), "reporter": Reporter(False), **given}
    return selfsup.train(objective, out=out, **values)


def plan(objective: str, init: Path | str, corpus: Path, **given: Any) -> Plan:
    return selfsup.plan(objective, **{"data": corpus, "init": str(init), **NEW, **given})[0]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def facts_of(run: Run) -> dict[str, str]:
    facts: dict[str, str] = run.environment()["plan"]["facts"]
    return facts


# -- what is kept --------------------------------------------------------------------------------------------


def test_from_masked_lm_to_simcse_encoder_and_head_are_kept(bert: Run, corpus: Path, tmp_path: Path) -> None:
    run = go_on("simcse", bert.directory, tmp_path / "run", corpus, **STILL)
    before, after = weights(bert.model_directory), weights(run.model_directory)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.equal(before[name]), name
    assert facts_of(run)["start"] == f"encoder and tokenizer of {bert.directory}; its head stays as it is"
    assert run.settings()["model.dropout"] == 0.1


def test_from_masked_lm_to_masked_lm_the_head_is_kept(bert: Run, corpus: Path, tmp_path: Path) -> None:
    run = go_on("masked-lm", bert.directory, tmp_path / "run", corpus, **STILL)
    before, after = weights(bert.model_directory), weights(run.model_directory)
    assert before.keys() == after.keys()
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert facts_of(run)["start"] == f"encoder, head and tokenizer of {bert.directory}"
    first = next(line["loss"] for line in run.metrics() if line["split"] == "train")
    assert first < 1.15 * bert.summary["loss"]  # it goes on where that one ended, not at chance


def test_from_simcse_back_to_masked_lm_there_is_a_fresh_head(emb: Run, corpus: Path, tmp_path: Path) -> None:
    run = go_on("masked-lm", emb.directory, tmp_path / "run", corpus, **STILL)
    before, after = weights(emb.model_directory), weights(run.model_directory)
    assert all(after[f"model.{name}"].equal(tensor) for name, tensor in before.items())
    assert facts_of(run)["start"] == f"encoder and tokenizer of {emb.directory}"
    assert after["decoder.weight"].abs().max() < 1e-20
    assert run.settings()["model.dropout"] == 0.0


@pytest.mark.parametrize("objective", ["masked-lm", "simcse"])
def test_the_tokenizer_and_the_shape_are_kept(objective: str, bert: Run, corpus: Path, tmp_path: Path) -> None:
    run = go_on(objective, bert.model_directory, tmp_path / "run", corpus, steps=2)
    old, new = (load_tokenizer(one.model_directory, "encoder") for one in (bert, run))
    assert old.fingerprint == new.fingerprint
    settings = run.settings()
    shape = {name: settings[f"model.{name}"] for name in ("layers", "width", "heads", "mlp", "tied")}
    assert shape == {"layers": 1, "width": 32, "heads": 1, "mlp": 64, "tied": False}
    assert {settings.origin(f"model.{name}") for name in shape} == {"init"}
    assert settings.origin("data.tokenizer") == "init"
    card = (run.model_directory / "README.md").read_text()
    assert f"trained from {bert.model_directory.name}" in card


def test_a_window_that_grew_is_the_models(bert: Run, corpus: Path, tmp_path: Path) -> None:
    """And one that was longer before stays: nobody has to encode shorter texts than the model was trained on."""
    longer = go_on("simcse", bert.directory, tmp_path / "longer", corpus, **{"data.window": 40, "steps": 2})
    assert read_encoder(longer.model_directory).config.window == 40
    shorter = go_on("masked-lm", longer.directory, tmp_path / "shorter", corpus, **{"data.window": 8, "steps": 2})
    assert read_encoder(shorter.model_directory).config.window == 40


@pytest.mark.parametrize("objective", ["masked-lm", "simcse"])
def test_a_modernbert_that_transformers_made(objective: str, stock: Path, corpus: Path, tmp_path: Path) -> None:
    run = go_on(objective, stock, tmp_path / "run", corpus, **STILL)
    before, after = weights(stock), weights(run.model_directory)
    assert before.keys() == after.keys()
    trained = "encoder, head and tokenizer" if objective == "masked-lm" else "encoder and tokenizer"
    still = "" if objective == "masked-lm" else "; its head stays as it is"
    assert facts_of(run)["start"] == f"{trained} of {stock}{still}"
    assert (
        transformers.AutoConfig.from_pretrained(run.model_directory).mlp_dropout == 0.2
    )  # theirs, for whoever trains it
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert run.settings()["model.dropout"] == (0.0 if objective == "masked-lm" else 0.1)  # the recipe's, not theirs
    assert run.summary["max_difference"] < 1e-4


def test_a_classifiers_head_is_no_head_of_masked_lm(stock: Path, corpus: Path, tmp_path: Path) -> None:
    model = transformers.ModernBertForSequenceClassification.from_pretrained(stock)
    model.save_pretrained(tmp_path / "classifier")
    shutil.copy(stock / "tokenizer.json", tmp_path / "classifier")
    made = plan("masked-lm", tmp_path / "classifier", corpus)
    assert made.facts["start"] == f"encoder and tokenizer of {tmp_path / 'classifier'}"


def test_training_goes_on_and_is_resumed_from_anywhere(
    bert: Run, corpus: Path, tmp_path: Path, resume: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the path was given relative to another directory."""
    monkeypatch.chdir(bert.directory.parent)
    whole = go_on("simcse", Path(bert.directory.name), tmp_path / "whole", corpus)
    assert whole.settings()["model.init"] == str(bert.directory)

    class Crash(Exception):
        pass

    class Crashing(Reporter):
        def say(self, text: str) -> None:
            if text.startswith("step 8 "):
                raise Crash

    with pytest.raises(Crash):
        go_on("simcse", Path(bert.directory.name), tmp_path / "cut", corpus, reporter=Crashing(False))
    monkeypatch.chdir(tmp_path)
    resume(tmp_path / "cut")
    one, other = (weights(tmp_path / name / "model") for name in ("whole", "cut"))
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model.width": 64}, "has width 32, so model.width is not 64; leave it out"),
        ({"model.layers": 2}, "has layers 1, so model.layers is not 2"),
        ({"model.heads": 2}, "has heads 1, so model.heads is not 2"),
        ({"model.mlp": 96}, "has mlp 64, so model.mlp is not 96"),
        ({"model.tied": True}, "has tied False, so model.tied is not True"),
        ({"model": "3m"}, "brings its own shape, so leave model.preset out"),
        ({"tokenizer": "bpe"}, "brings its own tokenizer, so data.tokenizer cannot be 'bpe'"),
        ({"tokenizer": "words"}, "brings its own tokenizer"),
        ({"data.vocabulary": 300}, "this one brings its own: leave the size out"),
    ],
)
@pytest.mark.parametrize("objective", ["masked-lm", "simcse"])
def test_what_conflicts_is_refused(
    objective: str, given: dict[str, Any], message: str, bert: Run, corpus: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan(objective, bert.directory, corpus, **given)
    assert len(str(caught.value).splitlines()) == 1


def test_what_agrees_is_no_conflict(bert: Run, corpus: Path) -> None:
    same = {"model.width": 32, "model.layers": 1, "tokenizer": str(bert.model_directory)}
    assert "start" in plan("simcse", bert.directory, corpus, **same).facts


def test_what_cannot_be_started_from_is_refused(bert: Run, finished: Run, corpus: Path, tmp_path: Path) -> None:
    for place, message in (
        (tmp_path / "nowhere", "There is no .*nowhere; give the directory"),
        (tmp_path, "neither a run nor a model directory"),
        (corpus, "is neither a run nor a model directory"),
        (finished.directory, "a decoder of type 'qwen3', and simcse starts from a run that trained an encoder"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            plan("simcse", place, corpus)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["head.dense.weight", "decoder.weight", "model.final_norm.weight"])
@pytest.mark.parametrize("absent", [False, True])
def test_weights_that_do_not_fit_are_refused(name: str, absent: bool, bert: Run, corpus: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert.model_directory, tmp_path / "copy"))
    broken = weights(copy)
    broken[name] = broken[name][:-1].clone()
    if absent:
        del broken[name]
    save_file(broken, copy / "model.safetensors")
    with pytest.raises(UserError, match=f"does not fit its config.json: {name.removeprefix('model.')}|{name}"):
        plan("masked-lm", copy, corpus)


def test_a_tokenizer_of_another_model_is_refused(bert: Run, corpus: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert.model_directory, tmp_path / "copy"))
    train_tokenizer("characters", ["".join(map(chr, range(300, 400)))], family="encoder").save(copy)
    with pytest.raises(UserError, match="has 105 tokens and its model 32: get a whole copy"):
        plan("masked-lm", copy, corpus)


def test_the_command_line_says_what_is_kept(
    bert: Run, corpus: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]
) -> None:
    words = [f"{name}={value}" for name, value in NEW.items() if "." in name]
    lengths = ["--steps", "2", "--batch", "4", "--precision", "fp32"]
    out = tmp_path / "run"
    answer = selfsup_command(
        "train", "simcse", "--data", corpus, "--init", bert.directory, "--out", out, *lengths, *words
    )
    assert answer.code == 0, answer
    said = " ".join(answer.error.replace("│", " ").split())
    assert "its head stays as it is" in said
    assert json.loads((out / "summary.json").read_text())["steps"] == 2


# -- protocols during training -------------------------------------------------------------------------------


def test_protocols_are_measured_at_each_look(train: Train, tmp_path: Path) -> None:
    """One that asks for the head among them; the figures of the last look are those of the saved model."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"The cat sat by hill {n}."}) + "\n" for n in range(6)))
    measured = {"evaluate.protocols": ("rankme", "pseudo-perplexity"), "evaluate.data": str(texts)}
    run = train(tmp_path / "run", objective="masked-lm", **measured)
    looks = [line for line in run.metrics() if line["split"] == "validation"]
    assert looks
    for protocol in measured["evaluate.protocols"]:
        assert all(protocol in line for line in looks)
        score = selfsup.evaluate(run, data=str(texts), precision="fp32", protocol=protocol)
        assert looks[-1][protocol] == pytest.approx(score.value, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluate.protocols": ("rankmee",), "evaluate.data": "x.jsonl"}, "did you mean 'rankme'"),
        ({"evaluate.protocols": ("sts",)}, "evaluate.data"),
    ],
)
def test_protocols_that_cannot_be_measured_are_refused_at_once(
    train: Train, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(tmp_path / "run", objective="masked-lm", **settings)
    assert not (tmp_path / "run").exists()
