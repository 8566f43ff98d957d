"""What is put before texts, and vectors that are cut: public models are used as stock sentence-transformers does it,
and so is what is exported of them; embedded, indexed, searched and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_encoders
from closeness import assert_same_vectors
from conftest import Answer
from PIL import Image
from sentence_transformers import SentenceTransformer
from tiny_clip import save_tiny_clip

import selfsup
from selfsup.errors import UserError
from selfsup.evaluation.sts import sts
from selfsup.inference import encoder
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as

TEXTS = ["The cat ran.", "Day 3 by the sea, and by the hill, and by the sea.", "hen", ""]
WIDTH = 32
SETTINGS = "config_sentence_transformers.json"
QUERY, PASSAGE, OTHER = "the fox: ", "by the hill: ", "sea "
SAID: dict[str, dict[str, Any]] = {  # what public models say
    "nothing": {},
    "empty ones": {"prompts": {"query": "", "document": ""}},
    "of queries": {"prompts": {"query": QUERY}},
    "of queries and passages": {"prompts": {"query": QUERY, "passage": PASSAGE}},
    "of queries and documents": {"prompts": {"query": QUERY, "document": PASSAGE, "passage": OTHER}},
    "one for all": {"prompts": {"clustering": OTHER}, "default_prompt_name": "clustering"},
    "a default and bare documents": {"prompts": {"query": QUERY, "document": ""}, "default_prompt_name": "query"},
}


@pytest.fixture(autouse=True)
def in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "find_precision", lambda precision, device: "fp32")


def public(directory: Path, **said: Any) -> Path:
    """A sentence encoder of others that says this of its prompts and dimensions."""
    tiny_encoders.save("sentences", directory)
    (directory / SETTINGS).write_text(json.dumps({"similarity_fn_name": "cosine", **said}))
    return directory


def ours(directory: Path, prompt: str | None = None, texts: list[str] = TEXTS) -> np.ndarray:
    """Normalised vectors, as its last step makes them in sentence-transformers."""
    vectors = load_as(directory, EncoderModel).embed(texts, precision="fp32", prompt=prompt)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def theirs(directory: Path, **how: Any) -> np.ndarray:
    opened = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    return np.asarray(opened.encode(TEXTS, show_progress_bar=False, **how))


@pytest.mark.parametrize("name", SAID)
def test_a_public_model_is_used_with_its_prompts(name: str, tmp_path: Path) -> None:
    """As stock sentence-transformers does by the prompts' texts, and what is exported by its three ways to encode."""
    said = SAID[name]
    origin, prompts = public(tmp_path / "origin", **said), said.get("prompts", {})
    default = prompts.get(said.get("default_prompt_name"), "")
    queries, documents = prompts.get("query", default), prompts.get("document", prompts.get("passage", default))
    expected = {None: default, "query": queries, "document": documents}
    for prompt, text in expected.items():
        assert_same_vectors(theirs(origin, prompt=text), ours(origin, prompt))
    exported = selfsup.export(origin, out=tmp_path / "st").directory
    stock = SentenceTransformer(str(exported), device="cpu", local_files_only=True)
    assert load_as(exported, EncoderModel).fingerprint == load_as(origin, EncoderModel).fingerprint
    encoders = {None: stock.encode, "query": stock.encode_query, "document": stock.encode_document}
    for prompt, encode in encoders.items():
        assert_same_vectors(encode(TEXTS, show_progress_bar=False), ours(exported, prompt))
        assert_same_vectors(ours(origin, prompt), ours(exported, prompt))


def test_prompts_of_a_directory_from_before_they_were_read(tmp_path: Path) -> None:
    """Its features.json says none, and the files of sentence-transformers beside it do."""
    directory = public(tmp_path / "old", prompts={"query": QUERY})
    (directory / "features.json").write_text(json.dumps({"pooling": "cls", "mapped": False}))
    assert_same_vectors(theirs(directory, prompt=QUERY), ours(directory, "query"))


def test_a_model_that_pools_without_its_prompts_is_refused(tmp_path: Path) -> None:
    directory = public(tmp_path / "instructor", prompts={"query": QUERY})
    pooling = directory / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    with pytest.raises(UserError, match=r"pools without the tokens of its prompts \(include_prompt"):
        selfsup.load(directory)
    (directory / SETTINGS).write_text("{}")
    assert selfsup.load(directory).dimension == WIDTH


def test_a_prompt_counts_towards_the_window(tmp_path: Path) -> None:
    model = load_as(public(tmp_path / "origin", prompts={"query": QUERY * 8}), EncoderModel)
    model.embed(["hen", "the cat ran by the sea"], prompt="query")
    assert model.truncated == 2
    model.embed(["hen", "the cat ran by the sea"])
    assert model.truncated == 0


def test_what_is_indexed_and_what_is_looked_for_have_prompts_of_their_own(tmp_path: Path) -> None:
    model = public(tmp_path / "model", prompts={"query": QUERY, "document": PASSAGE})
    texts = [text for text in TEXTS if text]
    told = selfsup.index(model, texts, tmp_path / "texts.lance").rows()
    assert told["prompt"] == f"{PASSAGE!r} before each text"
    hits = {hit.text: hit.score for hit in selfsup.search(tmp_path / "texts.lance", "hen")}
    expected = ours(model, "document", texts) @ ours(model, "query", ["hen"])[0]
    np.testing.assert_allclose([hits[text] for text in texts], expected, atol=1e-5)
    assert abs(expected[2] - 1) > 1e-3  # which it is between a text and itself
    assert selfsup.embed(model, texts, tmp_path / "texts.parquet").rows()["prompt"] == told["prompt"]
    vectors = np.stack(pq.read_table(tmp_path / "texts.parquet").column("vector").to_pylist())
    np.testing.assert_allclose(vectors, load_as(model, EncoderModel).embed(texts, prompt="document"), atol=1e-5)
    (model / SETTINGS).write_text(json.dumps({"prompts": {"query": QUERY, "document": OTHER}}))
    with pytest.raises(UserError, match="was made by another model"):
        selfsup.search(tmp_path / "texts.lance", "hen")


# -- the first numbers of vectors ----------------------------------------------------------------------------


def matryoshka(directory: Path, *dimensions: int) -> Path:
    """The same model, saying to what it was trained to be cut."""
    public(directory)
    (directory / "features.json").write_text(json.dumps({"pooling": "cls", "mapped": False, "dimensions": dimensions}))
    return directory


def test_the_first_numbers_of_a_vector_by_every_command(
    selfsup_command: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Embedded, indexed, searched, exported: those that stock sentence-transformers gives by `truncate_dim`."""
    model = matryoshka(tmp_path / "model", 8, 16)
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS[:3]):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    data, cut = ["--data", tmp_path / "texts"], ["--dimension", "8"]
    whole = load_as(model, EncoderModel).embed(TEXTS[:3], precision="fp32")
    assert selfsup_command("embed", model, *data, "--out", tmp_path / "v.parquet", *cut).code == 0
    vectors = np.stack(pq.read_table(tmp_path / "v.parquet").column("vector").to_pylist())
    np.testing.assert_allclose(vectors, whole[:, :8], atol=1e-5)
    for more in (cut, [], cut):  # a library goes on with its own
        answer: Answer = selfsup_command("index", model, *data, "--out", tmp_path / "l.lance", *more, "--json")
        assert answer.code == 0
    assert json.loads(answer.out)["unchanged"] == 3
    answer = selfsup_command("search", tmp_path / "l.lance", "hen", "--json")
    scores = {hit["text"]: hit["score"] for hit in json.loads(answer.out)["hits"]}
    unit = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose([scores[text] for text in TEXTS[:3]], unit @ unit[2], atol=1e-5)
    assert selfsup_command("export", model, "--out", tmp_path / "st", *cut).code == 0
    full = theirs(public(tmp_path / "again"), truncate_dim=8)
    assert_same_vectors(theirs(tmp_path / "st"), full)
    assert_same_vectors(ours(tmp_path / "st"), full / np.linalg.norm(full, axis=1, keepdims=True))
    assert "8 numbers;" in (tmp_path / "st" / "README.md").read_text()
    assert "trained to be cut" not in caplog.text
    answer = selfsup_command("index", model, *data, "--out", tmp_path / "l.lance", "--dimension", "16")
    assert answer.code == 2
    assert "holds vectors of 8 numbers, so --dimension cannot be 16; leave it out" in answer.error


def test_dimensions_that_a_model_was_not_trained_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained, silent = matryoshka(tmp_path / "trained", 8, 16), public(tmp_path / "silent")
    with pytest.raises(UserError, match="was trained to be cut to 8, 16 numbers, so --dimension cannot be 9"):
        selfsup.embed(trained, TEXTS, tmp_path / "v.parquet", dimension=9)
    for model, dimension in ((trained, 33), (silent, 33), (silent, 0)):
        with pytest.raises(UserError, match=f"have 32 numbers, so --dimension cannot be {dimension}"):
            selfsup.embed(model, TEXTS, tmp_path / "v.parquet", dimension=dimension)
    assert not caplog.text
    assert selfsup.embed(silent, TEXTS, tmp_path / "v.parquet", dimension=9).dimension == 9
    assert "does not say that its vectors were trained to be cut; the first 9 of their 32 numbers" in caplog.text
    assert selfsup.embed(trained, TEXTS, tmp_path / "w.parquet", dimension=32).dimension == 32


def test_an_export_that_keeps_the_first_numbers_has_no_others(tmp_path: Path) -> None:
    short = selfsup.export(matryoshka(tmp_path / "model", 8, 16), out=tmp_path / "st", dimension=16).directory
    assert selfsup.load(short).dimension == 16
    shorter = selfsup.export(short, out=tmp_path / "again", dimension=8).directory
    assert_same_vectors(theirs(shorter), theirs(short)[:, :8])
    with pytest.raises(UserError, match="have 16 numbers, so --dimension cannot be 32"):
        selfsup.export(short, out=tmp_path / "long", dimension=32)
    (short / "features.json").unlink()  # as others write it
    assert_same_vectors(ours(short), theirs(short) / np.linalg.norm(theirs(short), axis=1, keepdims=True))


def test_measured_by_the_first_numbers(finished: selfsup.Run, tmp_path: Path) -> None:
    model = matryoshka(tmp_path / "model", 8)
    pairs = [
        {"sentence1": TEXTS[0], "sentence2": "hen", "score": 1.0},
        {"sentence1": "the fox sat", "sentence2": "the fox slept", "score": 4.0},
        {"sentence1": "the sea", "sentence2": "the dog by the hill", "score": 2.0},
        {"sentence1": "the sea", "sentence2": "by the sea", "score": 3.0},
    ]
    first, second = (ours(model, None, [str(pair[name]) for pair in pairs]) for name in ("sentence1", "sentence2"))
    scores = np.array([pair["score"] for pair in pairs])
    for dimension in (None, 8):
        found = selfsup.evaluate(model, data=pairs, protocol="sts", dimension=dimension, precision="fp32")
        assert found.value == pytest.approx(sts(first[:, :dimension], second[:, :dimension], scores))
        assert found.details.get("dimension") == dimension
    with pytest.raises(UserError, match="pseudo-perplexity has no use for --dimension"):
        selfsup.evaluate(model, data=TEXTS, protocol="pseudo-perplexity", dimension=8)
    with pytest.raises(UserError, match="holds a decoder, for which sts is not defined"):
        selfsup.evaluate(finished, data=pairs, protocol="sts", dimension=8)


def test_both_towers_are_cut(captioned: Path, tmp_path: Path) -> None:
    model = save_tiny_clip(tmp_path / "clip")
    whole = selfsup.load(model)
    selfsup.index(model, str(captioned), tmp_path / "photos.lance", dimension=4)
    hit = selfsup.search(tmp_path / "photos.lance", "a red thing", top=1)[0]
    with Image.open(hit.source) as picture:
        text, image = whole.embed(["a red thing"])[0, :4], whole.embed([picture])[0, :4]
    assert hit.score == pytest.approx(text @ image / np.linalg.norm(text) / np.linalg.norm(image), abs=1e-3)
    with pytest.raises(UserError, match="--dimension is for a text encoder"):
        selfsup.export(model, out=tmp_path / "st", dimension=4)
    with pytest.raises(UserError, match="--dimension is for --to sentence-transformers, not for onnx"):
        selfsup.export(model, out=tmp_path / "st", to="onnx", dimension=4)
