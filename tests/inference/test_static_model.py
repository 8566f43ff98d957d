"""Tables of token vectors in use: the same numbers as stock sentence-transformers, whoever made the directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_tables
import torch
from sentence_transformers import SentenceTransformer

import selfsup
from selfsup.errors import UserError
from selfsup.inference import static as module
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.models.features import Features
from selfsup.models.kinds import described, reads

TEXTS = ["The cat sat by the sea .", "", "fox", "the  hen\tran on hill 3", "unheard of", "dog " * 40, "The cat ran"]
MADE: dict[str, Any] = {
    "public": tiny_tables.public,
    "at the root": lambda directory: tiny_tables.public(directory, ""),
    "cut": lambda directory: tiny_tables.public(directory, longest=5),
    "model2vec": tiny_tables.model2vec,
    "plain model2vec": lambda directory: tiny_tables.model2vec(directory, mapped=False),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("tables")
    return {name: make(place / name) for name, make in MADE.items()}


def theirs(directory: Path, normalized: bool = False) -> np.ndarray:
    opened = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    return opened.encode(TEXTS, show_progress_bar=False, normalize_embeddings=normalized)


def normal(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("name", MADE)
def test_vectors_are_those_of_sentence_transformers(name: str, directories: dict[str, Path], tmp_path: Path) -> None:
    """As they are opened, and as they are exported; model2vec's are normalised there."""
    model = load_as(directories[name], EncoderModel)
    found, expected = model.embed(TEXTS), theirs(directories[name])
    assert found.dtype == np.float32
    made = normal(found) if "model2vec" in name else found
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert model.truncated == (3 if name == "cut" else 0)
    exported = selfsup.export(directories[name], out=tmp_path / "out")
    assert exported.max_difference is not None
    assert exported.max_difference < 1e-6
    np.testing.assert_allclose(theirs(tmp_path / "out"), expected, atol=1e-6)
    again = load_as(tmp_path / "out", EncoderModel)
    np.testing.assert_array_equal(again.embed(TEXTS), found)


def test_a_map_follows_the_table(directories: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(directories["at the root"], tmp_path / "model")
    Features("mean", torch.randn(3, tiny_tables.WIDTH), torch.randn(3)).write(directory)
    exported = selfsup.export(directory, out=tmp_path / "out")
    assert exported.max_difference is not None
    assert exported.max_difference < 1e-5
    (tmp_path / "out" / "features.json").unlink()
    again = load_as(tmp_path / "out", EncoderModel)
    np.testing.assert_array_equal(again.embed(TEXTS), load_as(directory, EncoderModel).embed(TEXTS))
    np.testing.assert_allclose(theirs(tmp_path / "out"), again.embed(TEXTS), atol=1e-5)


def test_vectors_do_not_depend_on_company(directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_as(directories["cut"], EncoderModel)
    together = model.embed(TEXTS)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    np.testing.assert_array_equal(model.embed(TEXTS[::-1])[::-1], together)
    assert model.truncated == 3
    assert model.embed([]).shape == (0, tiny_tables.WIDTH)


def test_what_a_directory_holds(directories: dict[str, Path]) -> None:
    for directory in directories.values():
        assert described(directory) == "a table of token vectors"
        assert reads(directory)
    model = load_as(directories["public"], EncoderModel)
    assert model.precision == "fp32"
    with pytest.raises(UserError, match="holds a table of token vectors, into which one cannot look"):
        _ = model.native
    with pytest.raises(UserError, match="which transformers does not know"):
        selfsup.export(directories["model2vec"], out=directories["public"] / "out", to="transformers")


def test_embedded_indexed_searched(directories: dict[str, Path], tmp_path: Path) -> None:
    selfsup.embed(directories["public"], TEXTS, tmp_path / "vectors.parquet")
    rows = pq.read_table(tmp_path / "vectors.parquet")
    there = [text for text in TEXTS if text]
    assert rows["text"].to_pylist() == there
    model = load_as(directories["public"], EncoderModel)
    np.testing.assert_array_equal(np.array(rows["vector"].to_pylist(), np.float32), model.embed(there))
    selfsup.index(directories["public"], there, tmp_path / "library.lance")
    hits = selfsup.search(tmp_path / "library.lance", "fox", top=1)
    assert hits[0].text == "fox"


def test_long_texts_stay_whole_unless_they_are_to_be_cut(directories: dict[str, Path], tmp_path: Path) -> None:
    long = "dog " * 400
    assert selfsup.embed(directories["public"], [long], tmp_path / "whole.parquet").records == 1
    assert selfsup.embed(directories["public"], [long], tmp_path / "cut.parquet", passages=50).records >= 8


# -- refused -------------------------------------------------------------------------------------------------


def test_a_tokenizer_of_another_table(directories: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(directories["public"], tmp_path / "model")
    path = directory / "0_StaticEmbedding" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["whale"] = 26
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="has 27 tokens and the encoder 26"):
        selfsup.load(directory)


@pytest.mark.parametrize("place", ["../elsewhere", "/etc", "\x00"])
def test_tables_that_lie_elsewhere(place: str, directories: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(directories["public"], tmp_path / "model")
    steps = json.loads((directory / "modules.json").read_text())
    (directory / "modules.json").write_text(json.dumps([steps[0] | {"path": place}]))
    with pytest.raises(UserError, match="leads out of"):
        selfsup.load(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_links_out_of_the_directory(name: str, directories: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(directories["public"], tmp_path / "model")
    path = directory / "0_StaticEmbedding" / name
    path.rename(tmp_path / name)
    path.symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="leads out of"):
        selfsup.load(directory)


def test_steps_of_classes_of_their_own(directories: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(directories["public"], tmp_path / "model")
    steps = json.loads((directory / "modules.json").read_text())
    (directory / "modules.json").write_text(json.dumps([steps[0] | {"type": "custom.StaticEmbedding"}]))
    with pytest.raises(UserError, match="whose code is not run"):
        selfsup.load(directory)
