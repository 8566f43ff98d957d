"""Decoders and encoders of texts as ONNX, by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from closeness import SHARE
from conftest import Train, assert_alike
from tiny_encoder import save_tiny

import selfsup
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.models.decoder import Decoder
from selfsup.models.features import Features
from selfsup.models.packing import Pooling

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

TEXTS = ["The cat ran.", "Day 3 by the sea, and by the hill, and by the sea.", "hen", ""]
GROUPED = {"model": {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1}, "data.window": 64}


def session_of(source: Path, path: Path) -> Any:
    exported = selfsup.export(source, out=path, to="onnx")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    return onnxruntime.InferenceSession(path)


# -- decoders ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(train: Train, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Whose queries share keys."""
    run = train(tmp_path_factory.mktemp("runs") / "clm", steps=20, **GROUPED)
    assert isinstance(run.model, LanguageModel)
    return run.model


@pytest.fixture(scope="module")
def session(decoder: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return session_of(Path(decoder.path), tmp_path_factory.mktemp("onnx") / "model.onnx")


def nothing(session: Any, batch: int) -> dict[str, np.ndarray]:
    """What is past before the first call, as the file itself says its shapes."""
    held = [given for given in session.get_inputs() if given.name.startswith("past_key_values.")]
    return {given.name: np.zeros((batch, given.shape[1], 0, given.shape[3]), np.float32) for given in held}


def greedy(session: Any, ids: list[int], count: int, ends: set[int]) -> list[int]:
    """Tokens that follow others, the likeliest each time, by the names that optimum gives what goes in and out."""
    past, fresh, written = nothing(session, 1), ids, list(ids)
    names = [made.name for made in session.get_outputs()]
    while len(written) < len(ids) + count:
        seen = len(written)
        given = {
            "input_ids": np.array([fresh]),
            "attention_mask": np.ones((1, seen), np.int64),
            "position_ids": np.arange(seen - len(fresh), seen)[None],
        }
        made = dict(zip(names, session.run(None, given | past), strict=True))
        token = int(made.pop("logits")[0, -1].argmax())
        if token in ends:
            break
        past = {name.replace("present", "past_key_values"): held for name, held in made.items()}
        written.append(token)
        fresh = [token]
    return written[len(ids) :]


@pytest.mark.parametrize("prompt", ["The cat", ""])
def test_onnxruntime_writes_what_generate_writes(prompt: str, session: Any, decoder: LanguageModel) -> None:
    tokens = decoder.tokenizer.opened(decoder.tokenizer.encode(prompt))
    written = greedy(session, tokens, 50, decoder.ends)
    assert decoder.tokenizer.decode(written) == decoder.generate(prompt, 50, temperature=0.0, precision="fp32")


def test_texts_of_different_lengths_are_padded_before_them(session: Any, decoder: LanguageModel) -> None:
    rows = [decoder.tokenizer.opened(decoder.tokenizer.encode(text)) for text in TEXTS]
    longest = max(map(len, rows))
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    given = {
        "input_ids": np.array([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
    }
    logits, *_ = session.run(None, given | nothing(session, len(rows)))
    assert isinstance(decoder.decoder, Decoder)
    for row, found in zip(rows, logits, strict=True):
        with torch.no_grad():
            assert_alike(found[-len(row) :], decoder.decoder.logits(torch.tensor([row]))[0].numpy())


def test_names_are_optimum_s(session: Any) -> None:
    past = [f"{n}.{part}" for n in range(2) for part in ("key", "value")]
    given, made = ([one.name for one in some] for some in (session.get_inputs(), session.get_outputs()))
    assert given == ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in past)]
    assert made == ["logits", *(f"present.{name}" for name in past)]


@pytest.mark.long
@pytest.mark.parametrize("made", [foreign.llama, foreign.mistral])
def test_decoders_of_other_layouts(made: Any, tmp_path: Path) -> None:
    """A Mistral's positions see the last three alone."""
    session_of(made(tmp_path / "model"), tmp_path / "model.onnx")


# -- encoders of texts ---------------------------------------------------------------------------------------


def encoder(directory: Path) -> EncoderModel:
    model = selfsup.load(directory)
    assert isinstance(model, EncoderModel)
    return model


@pytest.mark.parametrize(
    "pooling", ["mean", pytest.param("cls", marks=pytest.mark.long), pytest.param("last", marks=pytest.mark.long)]
)
def test_onnxruntime_gives_the_same_vectors(pooling: Pooling, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model")
    width = encoder(directory).width
    draws = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(width, width, generator=draws), torch.randn(width, generator=draws)
    for path in directory.glob("features.*"):
        path.unlink()
    Features(pooling, weight, bias, {"query": "find: "}).write(directory)
    model, session = encoder(directory), session_of(directory, tmp_path / "model.onnx")
    room = model.tokenizer.room(model.window)
    rows = [model.tokenizer.frame(ids[:room]) for ids in model.tokenizer.encode_batch(TEXTS)]
    longest = max(map(len, rows))
    ids = np.array([[*row, *[model.tokenizer.pad] * (longest - len(row))] for row in rows])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    states, vectors = session.run(
        ["last_hidden_state", "sentence_embedding"], {"input_ids": ids, "attention_mask": mask}
    )
    assert_alike(vectors, model.embed(TEXTS, "fp32"))
    for row, found in zip(rows, states, strict=True):
        with torch.no_grad():
            assert_alike(found[: len(row)], model.native(torch.from_numpy(row.astype(np.int64))[None])[0].numpy())
    said = json.loads(session.get_modelmeta().custom_metadata_map["features"])
    assert (said["pooling"], said["mapped"], said["prompts"]) == (pooling, True, {"query": "find: "})


@pytest.mark.long
@pytest.mark.parametrize("made", [foreign.bert, foreign.modernbert])
def test_encoders_of_other_layouts(made: Any, tmp_path: Path) -> None:
    """With learnt positions, and with layers that see two positions to either side."""
    session_of(made(tmp_path / "model"), tmp_path / "model.onnx")


def test_networks_of_others_are_refused(tmp_path: Path) -> None:
    for made in (foreign.electra, foreign.gpt2):
        directory = made(tmp_path / made.__name__)
        with pytest.raises(UserError, match="not written as ONNX here"):
            selfsup.export(directory, out=tmp_path / "model.onnx", to="onnx")
    assert not (tmp_path / "model.onnx").exists()
