"""Ids that are looked up by words against those of whole texts."""

from __future__ import annotations

import foreign
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from selfsup.data import words as module
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import MARKS, TextTokenizer
from selfsup.data.words import WordIds
from selfsup.errors import UserError

TEXT = "The old man sat by the sea and smoked; naïve 日本の傘, l'été! [SEP] ##ing 42 % "
ODD = "\t\n\r\x00\x0b\x1c\x85\u00a0\u0301\u0307\u200b\u2028\u3000\ufffdİßΣςé日傘가﷐"
TOKENIZERS = {kind: train_tokenizer(kind, [TEXT * 9], 300, family="encoder") for kind in ("wordpiece", "words", "bpe")}


def theirs(**settings: bool) -> TextTokenizer:
    tokenizer = Tokenizer.from_str(foreign.wordpiece_tokenizer().backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.BertNormalizer(**settings)
    return TextTokenizer(tokenizer, MARKS["encoder"])


TOKENIZERS |= {"of others": theirs(), "with case and accents": theirs(lowercase=False, strip_accents=False)}
PIECES = st.one_of(st.sampled_from([" ", "  ", *TEXT.split(), *foreign.WORDS, *ODD]), st.text(max_size=3))


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.lists(st.lists(PIECES, max_size=8).map("".join), min_size=1, max_size=4))
@settings(deadline=None)
def test_ids_are_those_of_whole_texts(kind: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]
    texts = [text.encode(errors="replace").decode() for text in texts]
    expected = tokenizer.encode_batch(texts)
    memory = WordIds(tokenizer)
    for _ in range(2):  # learnt, then looked up
        ids, sizes = memory.encode(texts)
        assert sizes.tolist() == [len(row) for row in expected]
        np.testing.assert_array_equal(ids, np.concatenate(expected))
        assert ids.dtype == tokenizer.dtype


def test_which_tokenizers_go_by_words() -> None:
    assert [kind for kind, tokenizer in TOKENIZERS.items() if not tokenizer.apart] == ["bpe"]
    added = Tokenizer.from_str(foreign.wordpiece_tokenizer().backend_tokenizer.to_str())
    added.add_tokens([AddedToken("old man")])
    assert not TextTokenizer(added, MARKS["encoder"]).apart


def test_words_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    memory, tokenizer = WordIds(TOKENIZERS["words"]), TOKENIZERS["words"]
    for text in ("The old man", "sat by the sea", "", "The old man", "x" * 40, "sea"):
        ids, _ = memory.encode([text])
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert memory._known.numbers.keys() == {"sea"}


def test_what_is_no_text_is_said() -> None:
    for wrong in (3, "\ud800"):
        with pytest.raises(UserError, match="A text"):
            WordIds(TOKENIZERS["words"]).encode(["sea", wrong])  # type: ignore[list-item]
