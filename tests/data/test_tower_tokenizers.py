"""Tokenizers of texts beside images: what stands around a text is what their files put there, and nothing is added."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from tiny_towers import LONG, SHORT, WINDOW, clip_tokenizer, gemma_tokenizer, siglip_tokenizer

from selfsup.data.tokenizer_loading import load_tokenizer

TEXTS = [SHORT, LONG, "", "É 42% #1!  of\n\tthe ☂", "THE   CAT"]
MAKERS = {
    "clip": clip_tokenizer,
    "siglip": siglip_tokenizer,
    "gemma": gemma_tokenizer,
    "gemma padding before": partial(gemma_tokenizer, side=None),
    "siglip2": partial(gemma_tokenizer, lowering=True),
    "siglip2 padding before": partial(gemma_tokenizer, lowering=True, side="left"),
}


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


def test_a_class_that_reads_lower_case_does_so_whatever_its_file_says(tmp_path: Path) -> None:
    import transformers

    gemma_tokenizer(lowering=True).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    plain = content["normalizer"]["normalizers"][1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"normalizer": plain}))
    tokenizer = load_tokenizer(tmp_path, "tower")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("THE Cat")["input_ids"]
    assert tokenizer.frame(tokenizer.encode("THE Cat")).tolist() == theirs


def test_its_files_go_back_byte_for_byte(directory: Path, tmp_path: Path) -> None:
    load_tokenizer(directory, "tower").save(tmp_path, WINDOW, fills=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in directory.iterdir())
    for path in directory.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
