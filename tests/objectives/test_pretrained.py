"""Continued pretraining: networks that transformers opens, trained by the objectives here."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
import transformers
from conftest import Answer, Train, assert_alike, tree
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import selfsup
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.models.adapters import AdaptedDecoder

TEXTS = ["the cat ran by the sea", "on day 3 the fox sat by the hill .", "hen"]
STILL: dict[str, Any] = {"optim.lr": 1e-12, "optim.adamw_lr": 1e-12, "steps": 1}
MAKE = {"masked-lm": foreign.bert, "simcse": foreign.roberta, "causal-lm": foreign.gpt2}
AUTO = {"masked-lm": "AutoModelForMaskedLM", "simcse": "AutoModel", "causal-lm": "AutoModelForCausalLM"}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("foreign")
    return {objective: make(place / objective) for objective, make in MAKE.items()}


@pytest.fixture(scope="module")
def go(train: Train, directories: dict[str, Path]) -> Train:
    """`go(out, objective, …)`: a training of a second on the directory of that objective."""

    def begin(out: Path, objective: str, directory: Path | None = None, **given: Any) -> selfsup.Run:
        place = directory or directories[objective]
        own = {"tokenizer": str(place), "optim.lr": 1e-3, "optim.adamw_lr": 1e-3}
        return train(out, objective, model=f"hf:{place}", **(own | given))

    return begin


@pytest.fixture(scope="module")
def runs(go: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, selfsup.Run]:
    place = tmp_path_factory.mktemp("runs")
    return {objective: go(place / objective, objective) for objective in MAKE}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("objective", MAKE)
def test_what_is_left_opens_in_stock_transformers(
    objective: str, runs: dict[str, selfsup.Run], directories: dict[str, Path]
) -> None:
    made = runs[objective].model_directory
    network, report = getattr(transformers, AUTO[objective]).from_pretrained(made, output_loading_info=True)
    assert not any(report.values())
    before = getattr(transformers, AUTO[objective]).from_pretrained(directories[objective]).state_dict()
    after = network.state_dict()
    moved = [name for name in before if not before[name].equal(after[name])]
    assert len(moved) > 10
    saved = runs[objective].checkpoints().newest()
    assert saved is not None
    trained = {name.rpartition("network.")[2]: tensor for name, tensor in saved.tensors["model"].items()}
    for name, tensor in network.named_parameters():
        assert tensor.equal(trained[name]), name


@pytest.mark.parametrize("objective", MAKE)
def test_the_tokenizer_is_the_same(objective: str, runs: dict[str, selfsup.Run], directories: dict[str, Path]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(directories[objective])
    ours = transformers.AutoTokenizer.from_pretrained(runs[objective].model_directory)
    assert ours(TEXTS)["input_ids"] == theirs(TEXTS)["input_ids"]
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert type(ours) is type(theirs)


@pytest.mark.parametrize("objective", MAKE)
def test_training_begins_with_the_weights_that_are_there(
    objective: str, go: Train, directories: dict[str, Path], tmp_path: Path
) -> None:
    run = go(tmp_path / "run", objective, **STILL)
    before = getattr(transformers, AUTO[objective]).from_pretrained(directories[objective]).state_dict()
    after = weights(run.model_directory)
    for name in before.keys() & after.keys():
        if "pooler" not in name:  # which no directory has
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)


def test_simcse_leaves_the_pooler_as_it_is(go: Train, tmp_path: Path) -> None:
    """It makes no part of the vectors, so that not even the decay of weights may touch it."""
    place = foreign.bert(tmp_path / "bert", "BertModel")
    before, after = weights(place), weights(go(tmp_path / "run", "simcse", place).model_directory)
    assert {name for name in before if before[name].equal(after[name])} == {"pooler.dense.weight", "pooler.dense.bias"}


def test_it_learns(go: Train, tmp_path: Path) -> None:
    for objective in MAKE:
        run = go(tmp_path / objective, objective, steps=60, **{"evaluate.every": 60})
        losses = [line["loss"] for line in run.metrics() if line["split"] == "train"]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1, objective


def test_the_loss_of_a_decoder_is_that_of_transformers(
    go: Train, directories: dict[str, Path], documents: list[str], tmp_path: Path
) -> None:
    """Each document alone behind the end token, by transformers' own shifting and cross-entropy."""
    run = go(tmp_path / "run", "causal-lm", **STILL, **{"data.validation": 0.0})
    score = selfsup.evaluate(run, data=documents[:20], protocol="perplexity")
    network = transformers.AutoModelForCausalLM.from_pretrained(directories["causal-lm"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directories["causal-lm"])
    total, count = 0.0, 0
    for text in documents[:20]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        assert ids.shape[1] <= 64
        total += network(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    # Windows that begin inside a document lack its beginning, so the figures are near and not equal.
    assert math.isclose(math.log(score.value), total / count, abs_tol=0.05)


@pytest.mark.parametrize("objective", MAKE)
def test_resumed_it_gives_the_same_bits(
    objective: str, runs: dict[str, selfsup.Run], resume: Train, tmp_path: Path
) -> None:
    whole = runs[objective]
    half = selfsup.Run(shutil.copytree(whole.directory, tmp_path / "half"))
    shutil.rmtree(half.model_directory)
    (half.directory / "summary.json").unlink()
    for checkpoint in sorted(half.checkpoints_directory.glob("step-*"))[1:]:
        shutil.rmtree(checkpoint)
    assert half.checkpoints().steps()[-1] < 12
    resume(half.directory)
    assert tree(half.model_directory) == tree(whole.model_directory)


def test_the_plan_says_what_is_new_and_what_is_left_out(
    go: Train, directories: dict[str, Path], tmp_path: Path
) -> None:
    headless = foreign.bert(tmp_path / "bert", "BertModel")
    start = go(tmp_path / "run", "masked-lm", headless, steps=1).environment()["plan"]["facts"]["start"]
    assert "new: cls.predictions" in start
    assert "not kept: pooler" in start
    again = go(tmp_path / "again", "masked-lm", headless, steps=1)
    assert tree(again.model_directory) == tree(tmp_path / "run" / "model")
    facts = go(tmp_path / "local", "masked-lm", foreign.modernbert(tmp_path / "modern"), steps=1)
    assert "one document in each" in facts.environment()["plan"]["facts"]["rows"]


def test_it_is_trained_on_by_adamw_at_a_small_rate(go: Train, directories: dict[str, Path], tmp_path: Path) -> None:
    place = directories["causal-lm"]
    _, settings = selfsup.plan("causal-lm", data=["the cat sat . " * 400], model=f"hf:{place}", steps=10)
    assert settings["optim.matrices"] == "adamw"
    assert settings["optim.lr"] == settings["optim.adamw_lr"] == 2e-4  # of a narrow one
    assert settings["data.window"] <= 64
    chosen = {"optim.matrices": "muon", "optim.lr": 0.01}
    _, settings = selfsup.plan("causal-lm", data=["the cat sat . " * 400], model=f"hf:{place}", steps=10, **chosen)
    assert settings["optim.matrices"] == "muon"
    assert settings["optim.lr"] == 0.01


# -- using what is left --------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_encoder_gives_vectors(runs: dict[str, selfsup.Run], tmp_path: Path) -> None:
    for objective in ("masked-lm", "simcse"):
        run = runs[objective]
        model = selfsup.load(run.directory)
        assert isinstance(model, EncoderModel)
        network = transformers.AutoModel.from_pretrained(run.model_directory)
        tokenizer = transformers.AutoTokenizer.from_pretrained(run.model_directory)
        expected = [network(**tokenizer(text, return_tensors="pt"))[0][0].mean(0).numpy() for text in TEXTS]
        assert_alike(model.embed(TEXTS, precision="fp32"), expected)
        exported = selfsup.export(run, out=tmp_path / objective)
        assert exported.max_difference is not None
        assert exported.max_difference <= 1e-5
        theirs = SentenceTransformer(str(tmp_path / objective)).encode(TEXTS, show_progress_bar=False)
        assert_alike(theirs, expected)


@torch.no_grad()
def test_an_encoder_fills_places(runs: dict[str, selfsup.Run]) -> None:
    directory = runs["masked-lm"].model_directory
    fill = transformers.pipeline("fill-mask", str(directory))
    model = selfsup.load(directory)
    assert isinstance(model, EncoderModel)
    expected = fill("the cat [MASK] by the sea", top_k=3)
    found = model.fill("the cat [MASK] by the sea", 3)[0]
    assert [candidate.token for candidate in found] == [guess["token_str"] for guess in expected]
    np.testing.assert_allclose(
        [candidate.probability for candidate in found], [guess["score"] for guess in expected], atol=1e-5
    )
    encoder = selfsup.load(runs["simcse"].directory)
    assert isinstance(encoder, EncoderModel)
    with pytest.raises(UserError, match="no head"):
        encoder.fill("the cat <mask> by the sea")


def test_a_decoder_is_measured_and_writes(runs: dict[str, selfsup.Run]) -> None:
    run = runs["causal-lm"]
    model = selfsup.load(run.directory)
    assert isinstance(model, LanguageModel)
    assert isinstance(model.decoder, AdaptedDecoder)
    score = selfsup.evaluate(run, protocol="bits-per-byte")
    assert math.isclose(score.value, run.summary["bits_per_byte"], rel_tol=0.05)
    network = transformers.AutoModelForCausalLM.from_pretrained(run.model_directory)
    row = model.tokenizer.opened(model.tokenizer.encode("the cat"))
    tokens = torch.tensor([row])
    out = network.generate(tokens, max_new_tokens=20, do_sample=False)[0].tolist()
    written = model.tokenizer.decode([token for token in out[len(row) :] if token not in model.ends])
    assert model.generate("the cat", tokens=20, temperature=0) == written
    assert (run.directory / "samples").is_dir()
    expected = torch.nn.functional.cross_entropy(network(tokens).logits[0, :-1], tokens[0, 1:], reduction="none")
    torch.testing.assert_close(model.token_losses(row), expected.detach())


def test_looking_into_it_is_refused(documents: list[str], tmp_path: Path) -> None:
    place = foreign.electra(tmp_path / "electra")
    for objective in ("masked-lm", "simcse"):
        with pytest.raises(UserError, match="into which one cannot look"):
            selfsup.inspect(objective, run=place, data=documents)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "given", "message"),
    [
        ("masked-lm", {"model.layers": 3}, "no use for model.layers"),
        ("masked-lm", {"init": "elsewhere"}, "no use for model.init"),
        ("masked-lm", {"tokenizer": "bpe"}, "brings its own tokenizer"),
        ("masked-lm", {"data.window": 65}, "at most 64 tokens"),
        ("causal-lm", {"data.window": 65}, "at most 64 tokens"),
    ],
)
def test_settings_that_the_network_decides(
    objective: str, given: dict[str, Any], message: str, go: Train, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        go(tmp_path / "run", objective, **given)
    assert not (tmp_path / "run").exists()


def test_networks_that_do_not_fit_the_objective(directories: dict[str, Path], go: Train, tmp_path: Path) -> None:
    cases = {
        ("masked-lm", "causal-lm"): "transformers has no AutoModelForMaskedLM",
        ("causal-lm", "masked-lm"): "sees what comes after",
        ("simcse", "causal-lm"): "lacks special tokens",
    }
    for (objective, kind), message in cases.items():
        with pytest.raises(UserError, match=message):
            go(tmp_path / "run", objective, directories[kind])
    with pytest.raises(UserError, match=r"There is no directory|no directory here"):
        go(tmp_path / "run", "causal-lm", tmp_path / "nowhere")


def test_simcse_needs_dropout(directories: dict[str, Path], go: Train, tmp_path: Path) -> None:
    """What has no dropout layer would give the same view twice."""
    place = Path(shutil.copytree(directories["masked-lm"], tmp_path / "deberta"))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=40, pad_token_id=0, **foreign.SHAPE)
    transformers.LlamaModel(config).save_pretrained(place)
    with pytest.raises(UserError, match="has no dropout layer"):
        go(tmp_path / "run", "simcse", place)


def test_the_command(
    directories: dict[str, Path], corpus: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]
) -> None:
    model = f"model=hf:{directories['masked-lm']}"
    words = ("train", "masked-lm", "--data", corpus, "--out", tmp_path / "run", "--steps", 2, model)
    answer = selfsup_command(*words)
    assert answer.code == 0, answer
    assert "selfsup fill" in answer.out
    found = json.loads(selfsup_command("fill", tmp_path / "run", "the [MASK] sat", "--json").out)
    assert len(found["places"]) == 1
