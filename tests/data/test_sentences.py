"""Sentences: where they end, where they come from, and how they are read."""

import json
import re
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.data.sentences import Sentences, open_sentences, split_sentences
from selfsup.data.sources import open_text
from selfsup.data.text import prepare_text
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError

# -- splitting --


@pytest.mark.parametrize(
    "sentences",
    [
        ["A cat sleeps.", "The dog barks!", "Does it?", "It does."],
        ["Mr. Smith met Dr. Jones, Mrs. Hill and Prof. Lee at St. Mary's.", "They slept."],
        ["J. R. R. Tolkien wrote it.", "É. Zola did not.", "А. С. Пушкин писал.", "Он жил."],
        ["See Fig. 3 in Vol. II, pp. 3-4.", "No. 5 is best, e.g. Rome, i.e. Italy, etc. and so on.", "Next."],
        ["Der Kaiser, d.h. Karl, z.B. in Nr. 3.", "Mme. Bovary pleurait.", "Sig. Rossi ride."],
        ['He said "Stop!" and left.', '"Stop!"', "She stopped.", "“Begin.”", "“Then (now) end,” he said."],
        ["One (two.)", "Three [four!]", "(Five.)", "«Six.»", "Seven."],
        ["No... maybe.", "Well…", "Then he came.", "What?!", "Nothing..."],
        ["It was 3.5 feet long.", "20 men came at 5 p.m. and left.", "Visit example.org today."],
        ["¿Qué es esto?", "¡Nada!", "—Vamos.", "‘Yes.’", "Ya."],
        ["It ended.'", "'Then?' she asked."],
        ["Äpfel sind rot.", "Ölbäume nicht.", "Ελλάδα ζει.", "Όχι."],
    ],
)
def test_where_sentences_end(sentences):
    assert list(split_sentences(" ".join(sentences))) == sentences
    assert list(split_sentences("\n".join(sentences))) == sentences
    assert list(split_sentences("  " + " \r\n ".join(sentences) + "\t\n")) == sentences
    assert list(split_sentences("\n\n".join(sentences))) == sentences


@pytest.mark.parametrize(
    "text",
    [
        "the bank of England vs. the bank of France",
        "wait... what",
        '"Oh." she said',
        "It costs 3.50 and 4.75",
        "He lives in the U.S. Army base",  # an initial ends none: the price of the rule
        "Hello.World",
        "...",
        "a single line without an end",
    ],
)
def test_where_no_sentence_ends(text):
    assert list(split_sentences(text)) == [text]


def test_full_width_marks_need_no_space():
    text = "我来了。你好吗？「好！」他说。走吧！！ 再见。"
    sentences = ["我来了。", "你好吗？", "「好！」", "他说。", "走吧！！", "再见。"]
    assert list(split_sentences(text)) == sentences
    assert list(split_sentences("彼は言った。It ended. Then。")) == ["彼は言った。", "It ended.", "Then。"]


def test_a_blank_line_ends_a_sentence():
    assert list(split_sentences("A title\n\nA text that\ngoes on\n \t \nand on")) == [
        "A title",
        "A text that goes on",
        "and on",
    ]
    assert list(split_sentences("A title\r\n\r\nand on")) == ["A title", "and on"]


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\n"])
def test_nothing_has_no_sentence(text):
    assert list(split_sentences(text)) == []


PIECES = ["a", "B", "7", ".", "!", "?", "…", "。", "？", '"', "”", "“", "'", ")", "(", "—", " ", "\n", "\n\n"]
PIECES += ["Mr", "e.g", "cat ", "The ", "É", "日", "  ", "\u00a0", "\u3000", "\r\n"]


@given(text=st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_splitting_loses_and_adds_nothing(text):
    sentences = list(split_sentences(text))
    assert "".join("".join(sentences).split()) == "".join(text.split())
    for sentence in sentences:
        assert sentence == " ".join(sentence.split())
        assert sentence
        assert list(split_sentences(sentence)) == [sentence]  # what is split is split


@given(text=st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@settings(max_examples=300, deadline=None)
def test_a_sentence_ends_with_a_mark_and_none_begins_small(text):
    for paragraph in re.split(r"\n\s*\n", text):
        sentences = list(split_sentences(paragraph))
        for sentence, following in pairwise(sentences):
            closed = sentence.rstrip("\"'”’»)]」』）")
            assert closed[-1] in ".!?…。！？"
            if closed[-1] not in "。！？":
                assert not re.match(r"[\"'“‘«(\[¿¡—–-]*[a-zé]", following)


def test_a_long_text_is_split_in_linear_time():
    text = "He came. " * 20_000 + "e.g. " * 20_000 + "!" * 20_000 + '"' * 20_000
    start = time.process_time()
    sentences = list(split_sentences(text))
    assert time.process_time() - start < 3  # it takes a tenth; going back within a run of marks took 8
    assert sentences[0] == "He came."
    assert len(sentences) == 20_000


# -- sources --


def test_each_line_of_a_text_file_is_a_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.\n\n  three  \n\nFour\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"text": "Five. Six!\nSeven"}) + "\n" + json.dumps({"text": " "}) + "\n"
    )
    assert list(open_sentences(tmp_path).documents()) == ["One. Two.", "three", "Four", "Five.", "Six!", "Seven"]
    assert list(open_sentences(tmp_path / "a.txt").documents()) == ["One. Two.", "three", "Four"]


def test_texts_from_python_are_split():
    assert list(open_sentences(["One. Two.", "Three"]).documents()) == ["One.", "Two.", "Three"]


def test_a_column_is_taken(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("id,body,title\n1,One. Two.,T\n2,Three.,U\n")
    assert list(open_sentences(path, "title").documents()) == ["T", "U"]
    assert list(open_sentences(path, "body").documents()) == ["One.", "Two.", "Three."]


def test_sentences_have_a_fingerprint_of_their_own(tmp_path):
    """The same file prepared for masked LM and for SimCSE is two corpora."""
    path = tmp_path / "data.txt"
    path.write_text("\n".join(f"A sentence, number {n}." for n in range(50)))
    assert open_sentences(path).fingerprint() != open_text(path).fingerprint()
    assert open_sentences(path).fingerprint() == open_sentences(path).fingerprint()
    corpus = prepare_text(open_sentences(path), "words", cache=tmp_path, family="encoder", validation=0.2)
    assert corpus.facts.documents == 50
    assert corpus.facts.training_documents == len(Sentences(corpus.train, 32, corpus.tokenizer))
    assert corpus.facts.validation_documents == len(Sentences(corpus.validation, 32, corpus.tokenizer))


# -- records --

TOKENIZER = train_tokenizer("characters", ["abcdefghij"], family="encoder")
PAD, START, END = TOKENIZER.pad, TOKENIZER.start, TOKENIZER.end
FIRST = TOKENIZER.encode("a")[0]
TOKEN = st.integers(FIRST, TOKENIZER.vocabulary - 1)
STREAM = st.lists(st.lists(TOKEN, max_size=12), min_size=1, max_size=12)


def records_of(sentences, window):
    stream = [token for text in sentences for token in (START, *text, END)]
    return Sentences(np.array(stream, np.uint16), window, TOKENIZER)


@given(sentences=STREAM, window=st.integers(3, 16), data=st.data())
@settings(deadline=None)
def test_a_record_is_a_sentence(sentences, window, data):
    """Against the definition: framed, cut to the window before its end token, padded to the window."""
    records = records_of(sentences, window)
    assert len(records) == len(sentences)
    indices = data.draw(st.lists(st.integers(0, len(sentences) - 1), min_size=1, max_size=20))
    read = records.read(np.array(indices))
    kept = [[START, *sentences[index][: window - 2], END] for index in indices]
    assert read["lengths"].tolist() == [len(text) for text in kept]
    assert read["tokens"].tolist() == [text + [PAD] * (window - len(text)) for text in kept]
    assert records.truncated == sum(len(text) > window - 2 for text in sentences)
    assert records.mean_length == pytest.approx(np.mean([min(len(t) + 2, window) for t in sentences]))
    keys = read["keys"].tolist()
    for one, key in zip(kept, keys, strict=True):
        for other, another in zip(kept, keys, strict=True):
            assert (one == other) == (key == another)


def test_keys_do_not_depend_on_place_or_window():
    a, b = TOKENIZER.encode("ab").tolist()
    first = records_of([[a, b], [b], [a, b]], 8).read(np.arange(3))["keys"].tolist()
    second = records_of([[b], [a, b]], 16).read(np.arange(2))["keys"].tolist()
    assert first == [second[1], second[0], second[1]]


def test_a_last_sentence_without_its_end_gets_one():
    """As the training part of a single document, which is cut."""
    a = int(FIRST)
    records = Sentences(np.array([START, a, END, START, a, a, a], np.uint16), 8, TOKENIZER)
    assert records.read(np.arange(2))["tokens"][:, :5].tolist() == [[START, a, END, PAD, PAD], [START, a, a, END, PAD]]


def test_no_sentence_is_refused():
    with pytest.raises(UserError, match="no sentence"):
        Sentences(np.array([FIRST, END], np.uint16), 8, TOKENIZER)
