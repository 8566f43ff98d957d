"""Tokenizers of strangers: bounds, files of the wrong kind, and what the library underneath does not take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from selfsup.data import tokenizer_loading as loading
from selfsup.data import tokenizers as module
from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import Family
from selfsup.errors import UserError

SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def strange(directory: Path, vocabulary: dict[str, int] | None = None, **parts: Any) -> Path:
    """A tokenizer of words with more tokens, and other parts, than it should have."""
    train_tokenizer("words", ["a cat ran"] * 2).save(directory)
    file = directory / "tokenizer.json"
    structure = json.loads(file.read_text())
    structure["model"]["vocab"] |= vocabulary or {}
    file.write_text(json.dumps(structure | parts))
    return directory


@pytest.mark.parametrize("number", [loading.MOST_IDS, 10**9, 2**31, 2**32 - 1, 2**32, 10**30, -1])
@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_numbers_of_tokens_are_bounded(number: int, family: Family, tmp_path: Path) -> None:
    """Before a table by number is made: at 2³¹ that would take minutes and 8 GB."""
    with pytest.raises(UserError, match=r"has a token of number|is no tokenizer"):
        load_tokenizer(strange(tmp_path, {"dog": number}), family)


def test_the_highest_number_that_is_read(tmp_path: Path) -> None:
    found = load_tokenizer(strange(tmp_path, {"dog": loading.MOST_IDS - 1}))
    assert found.encode("a dog").tolist()[1] == loading.MOST_IDS - 1


def test_added_tokens_have_the_numbers_that_come_next(tmp_path: Path) -> None:
    """Whatever they say."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": 2**31, "content": "dog", **flags}]
    assert load_tokenizer(strange(tmp_path, added_tokens=added)).vocabulary < 20


def test_bytes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MOST", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        load_tokenizer(strange(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", *SIDE_FILES])
@pytest.mark.parametrize("content", [b"[]", b"3", b'"x"', b"null", b"{", b"\xff\xfe", b'{"a":' * 100_000])
def test_files_of_another_kind(name: str, content: bytes, tmp_path: Path) -> None:
    (strange(tmp_path) / name).write_bytes(content)
    with pytest.raises(UserError, match=r"is no tokenizer|is not JSON|is not a JSON object"):
        load_tokenizer(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="no regular file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", SIDE_FILES)
@pytest.mark.parametrize("token", [None, 3, [], {"content": 3}, "\ud800", "", "nowhere", {"content": ["a"]}])
def test_roles_that_no_token_plays(name: str, token: Any, tmp_path: Path) -> None:
    """The usual names serve."""
    strange(tmp_path)
    (tmp_path / name).write_text(json.dumps({"eos_token": token, "pad_token": token}))
    assert load_tokenizer(tmp_path).marks.end == module.END


def test_padding_to_any_length_is_left_out(tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "x"}
    assert len(load_tokenizer(strange(tmp_path, padding=padding)).encode("a cat")) == 2


@pytest.mark.parametrize("number", [-1, 2**40, 10**30, True, "0", [0], None])
def test_numbers_that_no_token_has(number: Any, tmp_path: Path) -> None:
    strange(tmp_path)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps({"bos_token_id": number, "eos_token_id": number}))
    assert load_tokenizer(tmp_path).marks.end == module.END


def test_what_it_cannot_encode_is_said(tmp_path: Path) -> None:
    """Words without a token for unknown ones."""
    Tokenizer(models.WordLevel({"a": 0, module.END: 1}, "[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"cannot encode a text \(.*Missing \[UNK\]"):
        load_tokenizer(tmp_path).encode("b")
    with pytest.raises(UserError, match="cannot encode a text"):
        load_tokenizer(tmp_path).encode_marked("b")


def test_tokens_that_are_no_bytes_are_plain_text(tmp_path: Path) -> None:
    """As the library decodes them."""
    tokenizer = Tokenizer(models.BPE({module.END: 0, "a": 1, "Ġa": 2, "中": 3}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path)
    assert found.tokens([1, 2, 3]) == ["a", " a", "中"]
    assert found.decode([3, 2]) == "中 a"
    sizes = found.token_bytes()
    assert sizes is not None
    assert sizes.tolist() == [0, 1, 2, 3]
    assert found.word_parts()[0].tolist() == [False, True, False, True]


def test_a_panic_of_the_library_is_a_refusal(tmp_path: Path) -> None:
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(UserError, match="is no tokenizer that the tokenizers library opens"):
        load_tokenizer(strange(tmp_path, normalizer=charsmap))
