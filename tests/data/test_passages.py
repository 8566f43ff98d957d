"""Passages: every token of a stream in one record, framed as the tokenizer frames a text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.data.passages import Passages
from selfsup.data.text import prepare_text
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import KINDS
from selfsup.errors import UserError

TOKENIZER = train_tokenizer("characters", ["abcdefghij"], family="encoder")
PAD, START, END = TOKENIZER.pad, TOKENIZER.start, TOKENIZER.end
FIRST = TOKENIZER.encode("a")[0]

DOCUMENTS = st.lists(st.lists(st.integers(FIRST, TOKENIZER.vocabulary - 1), max_size=9), min_size=1, max_size=8)


def stream_of(documents):
    return np.array([token for text in documents for token in (START, *text, END)], np.uint16)


def read(stream, window):
    records = Passages(stream, window, TOKENIZER)
    return records.read(np.arange(len(records)))["tokens"].numpy()


@given(documents=DOCUMENTS, window=st.integers(3, 20))
@settings(deadline=None)
def test_every_token_is_in_one_record_but_for_the_last_overlap(documents, window):
    stream = stream_of(documents)
    if len(stream) < window - 2:
        return
    rows = read(stream, window)
    content = window - 2
    count = -(-len(stream) // content)
    assert rows.shape == (count, window)
    assert rows.dtype == np.int64
    inside = rows[:, 1:-1]
    again = count * content - len(stream)  # tokens that the last record has in common with the one before it
    assert 0 <= again < content
    assert [*inside[:-1].flatten(), *inside[-1, again:]] == stream.tolist()
    assert inside[-1].tolist() == stream[len(stream) - content :].tolist()


@given(documents=DOCUMENTS, window=st.integers(3, 20))
@settings(deadline=None)
def test_a_record_is_framed_as_a_text_is(documents, window):
    """It opens with a start token and closes with an end token; padding stands where it would be a second one."""
    stream = stream_of(documents)
    if len(stream) < window - 2:
        return
    for row in read(stream, window).tolist():
        passage = row[1:-1]
        assert row[0] == (PAD if passage[0] == START else START)
        assert row[-1] == (PAD if passage[-1] == END else END)
        shown = [token for token in row if token != PAD]
        assert shown[0] == START
        assert shown[-1] == END
        assert PAD not in passage


def test_records_by_hand():
    a, b, c, d = TOKENIZER.encode("abcd").tolist()
    stream = stream_of([[a, b], [c], [d, d, d]])
    assert stream.tolist() == [START, a, b, END, START, c, END, START, d, d, d, END]
    assert read(stream, 6).tolist() == [
        [PAD, START, a, b, END, PAD],
        [PAD, START, c, END, START, END],
        [START, d, d, d, END, PAD],
    ]
    assert read(stream, 7).tolist() == [
        [PAD, START, a, b, END, START, END],
        [START, c, END, START, d, d, END],
        [PAD, START, d, d, d, END, PAD],  # two of them for the second time
    ]
    assert read(stream, 14).tolist() == [[PAD, *stream, PAD]]


def test_records_are_read_in_any_order():
    stream = stream_of([list(range(FIRST, FIRST + 10))] * 5)
    records = Passages(stream, 8, TOKENIZER)
    whole = read(stream, 8)
    wanted = np.array([3, 0, len(records) - 1, 3])
    assert np.array_equal(records.read(wanted)["tokens"].numpy(), whole[wanted])


@pytest.mark.parametrize(("length", "window"), [(4, 7), (4, 100), (9, 2), (9, 1)])
def test_too_little_text_is_refused(length, window):
    with pytest.raises(UserError, match=f"{length} tokens, too few for one window of {window}"):
        Passages(np.full(length, FIRST, np.uint16), window, TOKENIZER)
    assert len(Passages(np.full(4, FIRST, np.uint16), 6, TOKENIZER)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_streams_of_an_encoder_against_a_plain_loop(tmp_path, kind):
    """Each document between a start and an end token, in both parts."""
    source = [f"The cat sat on the mat for the {n}th time." for n in range(60)]
    corpus = prepare_text(source, kind, validation=0.2, cache=tmp_path, family="encoder")
    tokenizer = corpus.tokenizer
    assert tokenizer.mask is not None
    parts = []
    for stream in (corpus.train, corpus.validation):
        starts = np.flatnonzero(stream == tokenizer.start)
        assert starts[0] == 0
        texts = [part.tolist() for part in np.split(np.asarray(stream), starts[1:])]
        assert all(text[0] == tokenizer.start and text[-1] == tokenizer.end for text in texts)
        parts.append([text[1:-1] for text in texts])
    plain = [tokenizer.encode(text).tolist() for text in source]
    assert sorted(parts[0] + parts[1]) == sorted(plain)
    assert [text for text in plain if text in parts[0]] == parts[0]
    facts = corpus.facts
    assert (facts.training_tokens, facts.validation_tokens) == (len(corpus.train), len(corpus.validation))
    assert facts.training_lossless == (kind in ("bpe", "characters"))


def test_a_single_document_trains_with_its_head(tmp_path):
    """Its training stream is open, and the validation stream begins with the last training token."""
    text = "abcdefghij" * 20
    corpus = prepare_text([text], TOKENIZER, validation=0.25, cache=tmp_path, family="encoder")
    assert corpus.train.tolist() == [START, *TOKENIZER.encode(text[:150])]
    assert corpus.validation.tolist() == [*TOKENIZER.encode(text[149:]), END]


def test_families_have_caches_of_their_own(tmp_path):
    source = [f"text number {n}" for n in range(30)]
    decoder = prepare_text(source, "characters", cache=tmp_path)
    encoder = prepare_text(source, "characters", cache=tmp_path, family="encoder")
    assert decoder.fingerprint != encoder.fingerprint
    assert (decoder.tokenizer.mask, encoder.tokenizer.mask) == (None, 4)
    assert prepare_text(source, "characters", cache=tmp_path).fingerprint == decoder.fingerprint
