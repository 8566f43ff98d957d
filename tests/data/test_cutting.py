"""Passages of documents: they cover them, in order, fit the window, share what they may, and stand where they say."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from selfsup.data import cutting
from selfsup.data.cutting import Cutter
from selfsup.data.sentences import sentence_spans, split_sentences
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import MARKS, TextTokenizer
from selfsup.errors import UserError

TALE = "A storm rose at sea. The ship sank! Was it lost? An old man sat by the fire and smoked his pipe."
SCRIPTS = [
    "Ein Älpler sang.",
    "彼は言った。",
    "我来了！",
    "ภาษาไทยไม่มีช่องว่าง",
    "שלום לך.",
    "नमस्ते दुनिया।",
    "👩‍👩‍👧‍👦",
    "e\u0301\u0302o",
]


def unigram():
    """One that marks the beginning of words, as SentencePiece does."""
    pieces = [
        ("[UNK]", 0.0),
        ("▁", -3.0),
        *((f"▁{letter}", -4.0) for letter in "abst"),
        ("storm", -5.0),
        ("▁ship", -5.0),
    ]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.!"]
    found = Tokenizer(models.Unigram(pieces, unk_id=0))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    return TextTokenizer(found, MARKS["encoder"])


def trained(kind, size):
    return train_tokenizer(kind, [TALE] * 3, size=size, family="encoder")


TOKENIZERS = {
    "wordpiece": trained("wordpiece", 80),
    "bpe": trained("bpe", 300),
    "characters": trained("characters", 60),
    "words": trained("words", 60),
    "unigram": unigram(),
}
WORDS = TALE.split()
documents = st.lists(
    st.sampled_from([*WORDS, *SCRIPTS, "x" * 40, "storm" * 9, ".", "?!", "a.b", "Mr."])
    | st.text(max_size=8)
    | st.sampled_from([" ", " ", " ", "\n", "\n\n", "\t ", "\r\n", "\u2028", " " * 30]),
    max_size=60,
).map("".join)


def tokens(tokenizer, text):
    return len(tokenizer.encode(text))


def require_passages(tokenizer, cutter, text, spans):
    for start, end in spans:
        passage = text[start:end]
        assert passage.strip()
        assert tokens(tokenizer, passage) <= cutter.size or len(passage) == 1
    if spans == [(0, len(text))]:
        return
    assert [span for span in spans if text[slice(*span)] != text[slice(*span)].strip()] == []
    for (start, end), (next_start, next_end) in pairwise(spans):
        assert start < next_start
        assert end < next_end
    covered = {place for span in spans for place in range(*span)}
    assert [place for place, letter in enumerate(text) if not letter.isspace() and place not in covered] == []


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=documents, size=st.integers(1, 24), share=st.floats(0, 0.25))
@example(text="\n" * 300 + "A storm. " * 9, size=8, share=0.25)
@example(text="a" * 100, size=1, share=0)
@example(text="The ship sank! " + "storm" * 9, size=5, share=0.25)
def test_passages_cover_a_document_in_order_and_fit(name, text, size, share):
    cutter = Cutter(TOKENIZERS[name], size, int(share * size))
    (spans,) = cutter([text])
    if not text.strip():
        assert spans in ([], [(0, len(text))])
        return
    require_passages(TOKENIZERS[name], cutter, text, spans)
    if len(text) <= cutting.BRIEF * size:
        assert (spans == [(0, len(text))]) == (tokens(TOKENIZERS[name], text) <= size or len(text) == 1)


@given(texts=st.lists(documents, max_size=6))
def test_a_document_is_cut_alike_among_others(texts):
    cutter = Cutter(TOKENIZERS["wordpiece"], 10, 2)
    assert cutter(texts) == [cutter([text])[0] for text in texts]


@given(
    lengths=st.lists(st.integers(1, 11), min_size=2, max_size=40), size=st.integers(12, 30), share=st.floats(0, 0.25)
)
def test_whole_sentences_are_packed_as_by_a_plain_rule(lengths, size, share):
    """With a token for each word: every passage takes sentences while they fit, and begins with as many of the last
    ones as may be shared and leave room."""
    overlap = int(share * size)
    sentences = [" ".join(["Storm", *["sea"] * (n - 1)]) + "." for n in lengths]
    counts = [n + 1 for n in lengths]  # the full stop is one
    if sum(counts) <= size:
        return
    expected, first = [], 0
    while True:
        last = first
        while last < len(counts) and sum(counts[first : last + 1]) <= size:
            last += 1
        expected.append(" ".join(sentences[first:last]))
        if last == len(counts):
            break
        again = last
        while sum(counts[again - 1 : last]) <= overlap and sum(counts[again - 1 : last + 1]) <= size:
            again -= 1
        first = again
    text = " ".join(sentences)
    (spans,) = Cutter(TOKENIZERS["words"], size, overlap)([text])
    assert [text[slice(*span)] for span in spans] == expected


def test_what_has_no_sentences_is_cut_between_lines_words_and_tokens():
    words, characters = TOKENIZERS["words"], TOKENIZERS["characters"]

    def parts(tokenizer, size, text, overlap=0):
        return [text[slice(*span)] for span in Cutter(tokenizer, size, overlap)([text])[0]]

    verse = "the storm\nthe ship the sea\nthe fire\nthe man the pipe the fire"
    assert parts(words, 6, verse) == ["the storm\nthe ship the sea", "the fire", "the man the pipe the fire"]
    assert parts(words, 4, "a b c d e f g h i", 1) == ["a b c d", "d e f g", "g h i"]
    assert parts(characters, 4, "storms" * 2) == ["stor", "msst", "orms"]
    assert parts(characters, 4, "storms" * 2, 1) == ["stor", "rmss", "stor", "rms"]
    assert parts(characters, 3, "sto\u0301rm") == ["st", "o\u0301r", "m"]  # a mark stays with its letter


def test_a_long_sentence_does_not_part_the_ones_around_it():
    text = "The ship sank! " + "the sea " * 12 + "was lost. An old man sat."
    (spans,) = Cutter(TOKENIZERS["words"], 10, 0)([text])
    assert text[slice(*spans[0])].startswith("The ship sank! the sea")
    assert text[slice(*spans[-1])].endswith("An old man sat.")


def test_what_is_encoded_together_is_bounded(monkeypatch):
    """However long a document is, and without any white space."""
    monkeypatch.setattr(cutting, "TOGETHER", 1000)
    monkeypatch.setattr(cutting, "PIECE", 400)
    sizes = []

    class Spy(TextTokenizer):
        def __init__(self):
            vars(self).update(vars(TOKENIZERS["characters"]))

        def encode_batch(self, texts):
            sizes.append(sum(map(len, texts)))
            return super().encode_batch(texts)

    texts = ["storm" * 4000, "The ship sank! " * 2000, "a " * 20_000, "a\n" * 20_000, "A storm. " * 3 + "x" * 20_000]
    for text in texts:
        spans = Cutter(Spy(), 50, 10)([text])[0]
        assert len(spans) > len(text) / 100
    assert max(sizes) < 1000 + 2 * (400 + cutting.GAP * 100)


def test_wrong_numbers_are_refused():
    for size, overlap in ((0, 0), (10, 3), (10, -1)):
        with pytest.raises(UserError):
            Cutter(TOKENIZERS["words"], size, overlap)


# -- the spans of sentences --


def joined(document):
    """The rule of sentences on text whose white space was reduced before: what the spans are compared with."""
    for paragraph in re.split(r"\n\s*\n", document):
        text = " ".join(paragraph.split())
        if text:
            yield from split_sentences(text)


@given(documents)
@example("A cat.  \n Mr. \t Smith\u2028 sat.\x1c\x1d B. Then。 \n \n。x")
def test_sentences_are_where_they_are_said_to_be(text):
    spans = list(sentence_spans(text))
    assert [" ".join(text[slice(*span)].split()) for span in spans] == list(joined(text))
    assert all(text[slice(*span)].strip() == text[slice(*span)] != "" for span in spans)
    places = [0, *(place for span in spans for place in span), len(text)]
    assert places == sorted(places)
    assert "".join(text[a:b] for a, b in zip(places[::2], places[1::2], strict=True)).strip() == ""
