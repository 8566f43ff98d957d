"""Encoders of other people's classes, started from with --init: opened, trained, and back in their class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import torch
import transformers
from conftest import Train
from safetensors.torch import load_file
from torch import Tensor

import selfsup
from selfsup.models.encoder_layouts import SavedEncoder, read_encoder

EXACT = 1e-5  # of the largest number
TEXTS = ["the cat ran by the sea", "on day 3 the fox sat by the hill .", "hen"]
TOKENS = torch.randint(5, 20, (2, 20), generator=torch.Generator().manual_seed(0))
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
STEPS = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
NAMES = list(tiny_encoders.CLASSES)
Go = Callable[..., selfsup.Run]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("encoders")
    return {name: tiny_encoders.save(name, place / name) for name in NAMES}


@pytest.fixture(scope="module")
def go(train: Train, directories: dict[str, Path]) -> Go:
    """`go(out, objective, name or directory, …)`: ten steps from there."""

    def begin(out: Path, objective: str, place: str | Path, **given: Any) -> selfsup.Run:
        place = directories[place] if isinstance(place, str) else place
        own = {"tokenizer": str(place), "optim.lr": 1e-3, "optim.adamw_lr": 1e-3, "steps": 10}
        return train(out, objective, init=str(place), model="auto", **(own | given))

    return begin


@pytest.fixture(scope="module")
def run(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], selfsup.Run]:
    """The run of an objective from a class, trained once."""
    runs: dict[tuple[str, str], selfsup.Run] = {}

    def find(objective: str, name: str) -> selfsup.Run:
        if (objective, name) not in runs:
            runs[objective, name] = go(tmp_path_factory.mktemp("runs") / "run", objective, name)
        return runs[objective, name]

    return find


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@torch.no_grad()
def theirs(directory: Path, kind: str) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Hidden states and logits of tokens by a class of transformers, and what it says of the weights it found."""
    model, report = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True)
    made = model.eval()(TOKENS, output_hidden_states=True)
    logits = made.get("prediction_logits", made.get("logits")) if kind.endswith(("MaskedLM", "PreTraining")) else None
    return made.hidden_states[-1], logits, report


@torch.no_grad()
def assert_parity(saved: SavedEncoder, hidden: Tensor, logits: Tensor | None) -> None:
    assert_close(saved.encoder().eval()(TOKENS), hidden)
    if logits is not None:
        masked = saved.masked().eval()
        everywhere = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
        assert_close(masked(TOKENS, everywhere) @ masked.output_weight.T, logits)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1
    assert float((found - expected).abs().max() / expected.abs().max()) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_opened_with_its_numbers(name: str, directories: dict[str, Path]) -> None:
    saved, kind = read_encoder(directories[name]), tiny_encoders.CLASSES[name][0]
    hidden, logits, _ = theirs(directories[name], kind)
    assert_parity(saved, hidden, logits)
    assert bool(saved.head) == (logits is not None)
    assert saved.config.window == (24 if name == "sentences" else 64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", ["masked-lm", "simcse"])
def test_what_is_trained_goes_back_into_its_class(
    objective: str, name: str, directories: dict[str, Path], run: Callable[[str, str], selfsup.Run]
) -> None:
    """With its head, or a fresh one; what no encoder here has is as it was."""
    origin, kind = directories[name], tiny_encoders.CLASSES[name][0]
    made = run(objective, name).model_directory
    fills = kind.endswith(("MaskedLM", "PreTraining"))
    if objective == "masked-lm" and not fills:
        kind = "BertForMaskedLM"
    hidden, logits, report = theirs(made, kind)
    assert not report["missing_keys"]
    assert_parity(read_encoder(made), hidden, logits)
    before, after = weights(origin), weights(made)
    spare = {n for n in before if any(part in n for part in ("pooler", "classifier", "seq_relationship"))}
    kept = {n: next(m for m in (n, f"bert.{n}") if m in after) for n in spare}
    assert all(before[n].equal(after[m]) for n, m in kept.items())
    assert set(report["unexpected_keys"]) <= (set(kept.values()) if objective == "masked-lm" else set())
    moved = [
        n for n, m in ((n, f"bert.{n}" if f"bert.{n}" in after else n) for n in before) if not before[n].equal(after[m])
    ]
    assert len(moved) > 20
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == [kind]
    said = json.loads((origin / "config.json").read_text())
    assert config | {"architectures": None} == said | {"architectures": None, "torch_dtype": "float32"}
    for file in TOKENIZER:
        assert (made / file).read_bytes() == (origin / file).read_bytes(), file
