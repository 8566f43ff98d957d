"""Prepared text: streams against a plain loop, the split, the cache and its accidents, windows."""

import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfsup.data import text as module
from selfsup.data import tokenizers
from selfsup.data.sources import open_text
from selfsup.data.text import Ring, Windows, encode_documents, prepare_text
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import KINDS
from selfsup.errors import UserError

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "slept", "under", "old", "größere"]


def documents(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 30))) + f" {n}.\n" for n in range(count)]


def fraction(document):
    return int(hashlib.blake2b(document.encode(), digest_size=8).hexdigest(), 16) / 2**64


def plain_stream(tokenizer, part):
    """The definition, document by document."""
    stream = [tokenizer.end]
    for document in part:
        stream += [*tokenizer.encode(document).tolist(), tokenizer.end]
    return stream


@pytest.fixture
def prepare(tmp_path):
    def prepared(source, tokenizer="characters", **options):
        return prepare_text(source, tokenizer, **{"cache": tmp_path / "cache"} | options)

    return prepared


def entries(tmp_path):
    return sorted((tmp_path / "cache" / "text").glob("*"))


# -- streams and the split --


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("small", [False, True])
def test_streams_against_a_plain_loop(prepare, monkeypatch, kind, small):
    if small:  # so that documents come in pieces and pieces in batches
        monkeypatch.setattr(tokenizers, "PIECE", 20)
        monkeypatch.setattr(module, "BATCH", 100)
    source = documents(200)
    corpus = prepare(source, kind, validation=0.2)
    train = [document for document in source if fraction(document) >= 0.2]
    validation = [document for document in source if fraction(document) < 0.2]
    assert corpus.train.tolist() == plain_stream(corpus.tokenizer, train)
    assert corpus.validation.tolist() == plain_stream(corpus.tokenizer, validation)
    assert corpus.tokenizer.fingerprint == train_tokenizer(kind, train).fingerprint
    facts = corpus.facts
    assert (facts.documents, facts.training_documents, facts.validation_documents) == (200, len(train), len(validation))
    assert (facts.training_tokens, facts.validation_tokens) == (len(corpus.train), len(corpus.validation))
    assert facts.characters == sum(map(len, source))
    assert facts.training_bytes == sum(len(document.encode()) for document in train)
    assert facts.bytes == facts.training_bytes + facts.validation_bytes
    assert facts.vocabulary == corpus.tokenizer.vocabulary
    assert facts.training_lossless == (kind in ("bpe", "characters"))
    assert facts.truncated == 0
    assert facts.bytes_per_token == facts.bytes / (len(corpus.train) + len(corpus.validation))


def test_the_split_is_by_content(prepare):
    source = documents(100)
    smaller, larger = prepare(source), prepare([*documents(50, seed=1), *source[::-1], *source])
    held_out = set(smaller.tokenizer.decode(smaller.validation).splitlines())
    assert held_out == {document.strip() for document in source if fraction(document) < 0.1}
    assert held_out < set(larger.tokenizer.decode(larger.validation).splitlines())
    assert larger.facts.duplicates == 100
    train = set(larger.tokenizer.decode(larger.train).splitlines())
    assert not train & set(larger.tokenizer.decode(larger.validation).splitlines())


@given(source=st.lists(st.sampled_from(documents(12)), min_size=2), validation=st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_are_never_empty_and_never_overlap(prepare, source, validation):
    corpus = prepare(source, "bpe", vocabulary=257, validation=validation)
    parts = [set(corpus.tokenizer.decode(part).splitlines()) for part in (corpus.train, corpus.validation)]
    if len(set(source)) > 1:
        assert parts[0]
        assert parts[1]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == {document.strip() for document in source}


def test_a_side_that_would_be_empty_gets_the_nearest_document(prepare):
    source = sorted(documents(5), key=fraction)
    corpus = prepare([*source, source[0]], validation=1e-9)
    assert corpus.validation.tolist() == plain_stream(corpus.tokenizer, [source[0]] * 2)
    corpus = prepare(source, validation=1 - 1e-9)
    assert corpus.train.tolist() == plain_stream(corpus.tokenizer, source[-1:])


@pytest.mark.parametrize("copies", [1, 3])
def test_a_single_document_is_cut(prepare, copies):
    document = "".join(documents(40))
    corpus = prepare([document] * copies, validation=0.25)
    place = int(len(document) * 0.75)
    head, tail = (corpus.tokenizer.encode(part).tolist() for part in (document[:place], document[place:]))
    assert corpus.train.tolist() == [0, *head] * copies
    assert corpus.validation.tolist() == [head[-1], *tail, 0]
    assert corpus.facts.duplicates == copies - 1
    assert corpus.facts.training_lossless
    assert corpus.facts.validation_bytes == len(document[place:].encode())


def test_no_validation_part(prepare):
    for source in (documents(5), documents(1)):
        corpus = prepare(source, validation=0)
        assert corpus.train.tolist() == plain_stream(corpus.tokenizer, source)
        assert corpus.validation is None
        assert corpus.facts.validation_tokens == 0
    with pytest.raises(UserError, match="validation share"):
        prepare(documents(5), validation=1)


def test_what_is_lost_is_counted(prepare, tmp_path):
    source = [*documents(30), "   ", ""]
    train = "".join(d for d in source if fraction(d) >= 0.1)
    held_out = next(f"{WORDS[n]} \u2603" for n in range(len(WORDS)) if fraction(f"{WORDS[n]} \u2603") < 0.1)
    corpus = prepare([*source, held_out])
    assert "\u2603" not in train
    facts = corpus.facts
    assert (facts.empty, facts.documents, facts.unknown_tokens) == (2, 31, 1)
    assert (facts.training_lossless, facts.validation_lossless) == (True, False)
    path = tmp_path / "a.jsonl"
    path.write_text("{\n" + "".join(json.dumps({"text": d}) + "\n" for d in source))
    for _ in range(2):
        skipped = prepare(path, failures=0.1).facts.skipped
        assert (skipped.count, skipped.seen) == (1, 33)
        assert "line 1" in skipped.names[0]


def test_given_tokenizer(prepare, tmp_path):
    given = train_tokenizer("bpe", documents(10), 300)
    given.save(tmp_path / "given")
    source = documents(20, seed=3)
    corpora = [prepare(source, given), prepare(source, tmp_path / "given"), prepare(source, str(tmp_path / "given"))]
    assert len(entries(tmp_path)) == 1
    for corpus in corpora:
        assert corpus.tokenizer.fingerprint == given.fingerprint
    with pytest.raises(UserError, match="leave the size out"):
        prepare(source, given, vocabulary=300)
    with pytest.raises(UserError, match="did you mean"):
        prepare(source, "bpee")


def test_large_vocabularies_take_32_bits(prepare):
    source = ["".join(map(chr, range(0x20000, 0x20000 + 65_600))), "abc"]
    corpus = prepare(source, validation=0)
    assert corpus.train.dtype == np.uint32
    assert corpus.train.tolist() == plain_stream(corpus.tokenizer, source)


def test_whole_source_for_evaluation(prepare):
    source = documents(20)
    tokenizer = prepare(source, "bpe").tokenizer
    encoded = encode_documents([*source, " "], tokenizer)
    assert encoded.tokens.tolist() == plain_stream(tokenizer, source)
    assert encoded.tokens.dtype == tokenizer.dtype
    assert encoded.bytes == sum(len(document.encode()) for document in source)
    assert (encoded.documents, encoded.empty, encoded.lossless) == (20, 1, True)
    words = encode_documents(["the \u2603"], prepare(source, "words").tokenizer)
    assert (words.unknown_tokens, words.lossless) == (1, False)


def test_progress(prepare):
    calls = []
    source = documents(50)
    total = sum(len(document.encode()) for document in source)
    prepare(source, progress=lambda done, of: calls.append((done, of)))
    assert calls[-1] == (total, total)
    assert (total, None) in calls
    calls.clear()
    prepare(source, progress=lambda done, of: calls.append((done, of)))
    assert not calls


# -- the cache --


def test_second_start_opens_what_the_first_left(prepare, monkeypatch):
    source = documents(50)
    first = prepare(source, "bpe")

    def fail(*_):
        raise AssertionError("built again")

    monkeypatch.setattr(module, "_build", fail)
    again = prepare(source, "bpe")
    assert isinstance(again.train, np.memmap)
    assert not again.train.flags.writeable
    assert np.array_equal(again.train, first.train)
    assert np.array_equal(again.validation, first.validation)
    assert again.facts == first.facts
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_every_choice_has_its_own_entry(prepare, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": d, "other": "x" + d}) + "\n" for d in documents(30)))
    source = tmp_path / "a.jsonl"
    choices = [{}, {"validation": 0.3}, {"tokenizer": "words"}, {"vocabulary": 20}]
    for choice in choices:
        prepare(source, **choice)
    for column in ("other", None):
        prepare(open_text(source, column))
    assert len(entries(tmp_path)) == len(choices) + 1


def test_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "environment"))
    prepare_text(documents(5), "characters")
    assert list((tmp_path / "environment" / "text").iterdir())
    monkeypatch.delenv("SELFSUP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_text(documents(5), "characters")
    assert list((tmp_path / ".cache" / "selfsup" / "text").iterdir())


def test_an_error_half_way_leaves_nothing_in_use(prepare, tmp_path):
    def fail(done, total):
        if total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(documents(20), progress=fail)
    assert entries(tmp_path) == []
    assert prepare(documents(20)).facts.documents == 20


def test_a_kill_half_way_leaves_nothing_in_use(prepare, tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_text import documents
from selfsup.data.text import prepare_text
def kill(done, total):
    if total:
        os.kill(os.getpid(), signal.SIGKILL)
prepare_text(documents(20), "characters", cache={str(tmp_path / "cache")!r}, progress=kill)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = entries(tmp_path)
    assert [path.name[0] for path in left] == ["."]
    corpus = prepare(documents(20))
    assert [path.name[0] != "." for path in entries(tmp_path)] == [True]  # what the killed process left is gone
    assert corpus.train.tolist() == prepare_text(documents(20), "characters", cache=tmp_path / "new").train.tolist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "train.bin").write_bytes((entry / "train.bin").read_bytes()[:-1]),
        lambda entry: (entry / "train.bin").write_bytes(bytes((entry / "train.bin").stat().st_size)),
        lambda entry: (entry / "validation.bin").write_bytes(b"\xff" * (entry / "validation.bin").stat().st_size),
        lambda entry: (entry / "validation.bin").unlink(),
        lambda entry: (entry / "tokenizer" / "tokenizer.json").write_text(
            (entry / "tokenizer" / "tokenizer.json").read_text().replace('"a"', '"A"')
        ),
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{}"),
        lambda entry: (shutil.rmtree(entry), entry.write_text("a file")),
        lambda entry: (entry / "tokenizer" / "tokenizer.json").write_text("{}"),
        lambda entry: (entry / "facts.json").unlink(),
        lambda entry: (entry / "facts.json").write_text((entry / "facts.json").read_text()[:50]),
        lambda entry: (entry / "facts.json").write_text("[]"),
    ],
)
def test_a_damaged_entry_is_built_again(prepare, tmp_path, caplog, damage):
    source = documents(20)
    expected = prepare(source).train.tolist()
    (entry,) = entries(tmp_path)
    assert not caplog.records
    damage(entry)
    assert prepare(source).train.tolist() == expected
    assert "damaged" in caplog.text
    caplog.clear()
    assert prepare(source).train.tolist() == expected
    assert not caplog.records


def test_a_cache_that_cannot_be_written(prepare, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache.*SELFSUP_CACHE"):
        prepare(documents(5), cache=tmp_path / "file" / "cache")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_stream", full)
    with pytest.raises(UserError, match=r"no space left.*SELFSUP_CACHE") as caught:
        prepare(documents(5))
    assert str(tmp_path / "cache") in str(caught.value)
    assert entries(tmp_path) == []


def test_a_source_that_changes_while_it_is_read(prepare):
    class Growing:
        name = "growing"
        passes = 0

        def documents(self):
            self.passes += 1
            yield from documents(5 + self.passes)

        def fingerprint(self):
            return "growing"

    with pytest.raises(UserError, match="changed while it was read"):
        prepare(Growing())

    class Shrinking(Growing):
        def documents(self):
            self.passes += 1
            yield from documents(9 - self.passes)

    with pytest.raises(UserError, match="changed while it was read"):
        prepare(Shrinking())


# -- windows --


@given(targets=st.integers(1, 200), window=st.integers(1, 60))
@settings(deadline=None)
def test_every_target_counts_exactly_once(targets, window):
    tokens = np.arange(targets + 1, dtype=np.uint16)
    if targets < window:
        with pytest.raises(UserError, match=f"{targets + 1} tokens.*at most {targets}"):
            Windows(tokens, window, end=0)
        return
    windows = Windows(tokens, window, end=0)
    assert len(windows) == -(-targets // window)
    batch = windows.read(np.arange(len(windows)))
    assert batch["tokens"].shape == (len(windows), window + 1)
    counted = []
    for row, first in zip(batch["tokens"].tolist(), batch["first"].tolist(), strict=True):
        assert row == list(range(row[0], row[0] + window + 1))
        counted += row[1 + first :]
    assert counted == list(range(1, targets + 1))
    assert not batch["first"][:-1].any()


def test_windows_in_any_order(prepare):
    corpus = prepare(documents(30))
    windows = Windows(corpus.train, 64, corpus.tokenizer.end)
    indices = np.array([len(windows) - 1, 0, 3, 3])
    batch = windows.read(indices)
    assert {name: tensor.dtype for name, tensor in batch.items()} == {"tokens": torch.int64, "first": torch.int64}
    for place, index in enumerate(indices):
        start = min(index * 64, len(corpus.train) - 65)
        assert batch["tokens"][place].tolist() == corpus.train[start : start + 65].tolist()
    assert batch["first"].tolist() == [index * 64 - min(index * 64, len(corpus.train) - 65) for index in indices]


def test_too_short_a_text():
    with pytest.raises(UserError, match="give more text"):
        Windows(np.zeros(1, np.uint16), 8, end=0)


@given(targets=st.integers(8, 120), window=st.integers(1, 8), closed=st.booleans(), epoch=st.integers(0, 5))
@settings(deadline=None)
def test_every_target_of_a_ring_counts_once_in_each_pass(targets, window, closed, epoch):
    """Behind each token stands the next one, behind the last the first; what opens and closes a stream stands once."""
    tokens = np.arange(targets + 1, dtype=np.uint16)
    if closed:
        tokens[-1] = 0
    ring = tokens[:-1] if closed else tokens
    expected = sorted(zip(ring.tolist(), [*ring[1:].tolist(), 0], strict=True))
    windows = Ring(tokens, window, end=0, seed=3)
    indices = np.arange(len(windows))
    batch = windows.read_in(np.full(len(windows), epoch), indices)
    counted = []
    for row, first in zip(batch["tokens"].tolist(), batch["first"].tolist(), strict=True):
        counted += list(pairwise(row))[first:]
    assert sorted(counted) == expected
    assert len(windows) == -(-len(ring) // window)


def test_a_ring_is_cut_elsewhere_in_each_pass_but_the_first(prepare):
    corpus = prepare(documents(30))
    ring = Ring(corpus.train, 64, corpus.tokenizer.end, seed=0)
    plain = Windows(corpus.train, 64, corpus.tokenizer.end)
    indices = np.array([2, 0, 1, 2])
    for name, tensor in plain.read(indices).items():
        assert tensor.equal(ring.read(indices)[name])
    passes = [ring.read_in(np.full(4, epoch), indices)["tokens"] for epoch in range(4)]
    assert all(not one.equal(other) for one, other in combinations(passes, 2))
    together = ring.read_in(np.array([3, 0, 2, 1]), indices)["tokens"]
    assert together.tolist() == [passes[epoch][row].tolist() for row, epoch in enumerate((3, 0, 2, 1))]
    other = Ring(corpus.train, 64, corpus.tokenizer.end, seed=1)
    assert not other.read_in(np.full(4, 1), indices)["tokens"].equal(passes[1])
