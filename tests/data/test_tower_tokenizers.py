"""Tokenizers of texts beside images: what stands around a text is what their files put there, and nothing is added."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_towers import LONG, SHORT, WINDOW, clip_tokenizer, gemma_tokenizer, siglip_tokenizer

from selfsup.data.tokenizer_loading import load_tokenizer

TEXTS = [SHORT, LONG, "", "É 42% #1!  of\n\tthe ☂", "THE   CAT"]
MAKERS = {"clip": clip_tokenizer, "siglip": siglip_tokenizer, "gemma": gemma_tokenizer}


@pytest.fixture(scope="module", params=MAKERS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / request.param
    MAKERS[request.param]().save_pretrained(directory)
    return directory


def test_texts_are_what_the_directory_makes_of_them(directory: Path) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer = load_tokenizer(directory, "tower")
    rows = [tokenizer.frame(ids[: tokenizer.room(WINDOW)]) for ids in tokenizer.encode_batch(TEXTS)]
    assert [row.tolist() for row in rows] == theirs(TEXTS, truncation=True, max_length=WINDOW)["input_ids"]
    tokenizer.fixed = WINDOW
    padded = theirs(TEXTS, truncation=True, padding="max_length", max_length=WINDOW)["input_ids"]
    rows = [tokenizer.frame(ids[: tokenizer.room(WINDOW)]) for ids in tokenizer.encode_batch(TEXTS)]
    assert [row.tolist() for row in rows] == padded


def test_its_files_go_back_byte_for_byte(directory: Path, tmp_path: Path) -> None:
    load_tokenizer(directory, "tower").save(tmp_path, WINDOW, fills=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in directory.iterdir())
    for path in directory.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
