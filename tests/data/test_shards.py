"""Streams in shards: read as the array that they are, piece by piece; what is lost is said, counted and bounded."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.data import shards as module
from selfsup.data.loader import Loader
from selfsup.data.passages import Passages
from selfsup.data.places import Folder
from selfsup.data.shards import PIECE, Shard, TokenShards, checksums_of
from selfsup.data.text import Windows
from selfsup.errors import UserError

VOCABULARY = 1000
LENGTHS = [600_000, 7, 1, 1_100_000]  # of 524,288 tokens in a piece


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Shard], np.ndarray]:
    place = tmp_path_factory.mktemp("shards")
    (place / "train").mkdir()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, sum(LENGTHS)).astype("<u2")
    found = []
    for number, part in enumerate(np.split(tokens, np.cumsum(LENGTHS)[:-1])):
        path = place / f"train/{number:05}.bin"
        path.write_bytes(part.tobytes())
        found.append(Shard(name=f"train/{path.name}", tokens=len(part), checksums=checksums_of(path)))
    return place, found, tokens


def opened(place: Path, found: list[Shard], failures: float = 0.0) -> TokenShards:
    return TokenShards(Folder(place), found, "uint16", VOCABULARY, failures)


BORDERS = [0, 524_287, 524_288, 599_999, 600_000, 600_006, 600_007, 600_008, sum(LENGTHS) - 40]


@settings(max_examples=40, deadline=None)
@given(
    starts=st.lists(st.integers(0, sum(LENGTHS) - 40) | st.sampled_from(BORDERS), min_size=1, max_size=5),
    length=st.integers(1, 40),
)
def test_runs_are_those_of_the_array(
    stored: tuple[Path, list[Shard], np.ndarray], starts: list[int], length: int
) -> None:
    place, found, tokens = stored
    runs = opened(place, found).runs(np.array(starts), length)
    assert runs.tolist() == [tokens[start : start + length].tolist() for start in starts]


def test_it_is_read_as_an_array_is(stored: tuple[Path, list[Shard], np.ndarray]) -> None:
    place, found, tokens = stored
    stream = opened(place, found)
    assert len(stream) == len(tokens)
    assert np.array_equal(np.asarray(stream), tokens)
    for piece in (slice(None, 10), slice(599_990, 600_020), slice(-3, None), slice(5, 5)):
        assert np.array_equal(stream[piece], tokens[piece])


@pytest.mark.parametrize("kind", ["windows", "passages"])
def test_records_are_those_of_the_array(stored: tuple[Path, list[Shard], np.ndarray], kind: str) -> None:
    place, found, tokens = stored
    stream = opened(place, found)
    if kind == "windows":
        records, plain = Windows(stream, 100, 0), Windows(tokens, 100, 0)
    else:
        from selfsup.data.tokenizer_training import train_tokenizer

        marks = train_tokenizer("words", ["a b c"], family="encoder")
        records, plain = Passages(stream, 102, marks), Passages(tokens, 102, marks)
    assert len(records) == len(plain)
    chosen = np.array([0, 5242, 5999, 6000, len(plain) - 1, 3])
    for name, tensor in plain.read(chosen).items():
        assert np.array_equal(records.read(chosen)[name], tensor)
    assert records.block == (1 << 22) // (100 * 2)
    assert plain.block == len(plain)


def test_any_number_of_ranks_and_threads_reads_the_same(
    stored: tuple[Path, list[Shard], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks so small that there are many windows of them."""
    monkeypatch.setattr(module, "BLOCK", 1 << 14)
    place, found, _ = stored

    def order(workers: int, ranks: int) -> list[int]:
        loaders = [Loader(Windows(opened(place, found), 100, 0), 1, 64, 16, workers, r, ranks) for r in range(ranks)]
        steps = [loader.steps(200) for loader in loaders]
        batches = [batch for _ in range(4) for own in steps for batch in next(own)]
        for own in steps:
            own.close()
        return [int(record) for batch in batches for record in batch.records]

    assert order(3, 2) == order(0, 1) == order(0, 4)


def test_few_pieces_are_in_memory(
    stored: tuple[Path, list[Shard], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_HAND", 2)
    place, found, tokens = stored
    stream = opened(place, found)
    assert np.array_equal(stream[:], tokens)
    assert stream._read.cache_info().currsize == 2


# -- what is lost --


@pytest.fixture
def damaged(stored: tuple[Path, list[Shard], np.ndarray], tmp_path: Path) -> tuple[Path, list[Shard], np.ndarray]:
    """The same with one bit of its first piece flipped."""
    place, found, tokens = stored
    (tmp_path / "train").mkdir()
    for shard in found:
        (tmp_path / shard.name).write_bytes((place / shard.name).read_bytes())
    data = bytearray((tmp_path / found[0].name).read_bytes())
    data[1000] ^= 1
    (tmp_path / found[0].name).write_bytes(data)
    return tmp_path, found, tokens


def test_a_damaged_piece_ends_it(damaged: tuple[Path, list[Shard], np.ndarray]) -> None:
    place, found, tokens = damaged
    stream = opened(place, found, failures=0.1)
    assert np.array_equal(stream[600_000:700_000], tokens[600_000:700_000])
    with pytest.raises(
        UserError, match=r"train/00000\.bin, bytes 0 to 1,048,576, cannot be read .*wrong content.*1 of 7"
    ):
        stream[:10]


def test_what_follows_stands_in_its_place(
    damaged: tuple[Path, list[Shard], np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    place, found, tokens = damaged
    stream = opened(place, found, failures=0.2)
    each = PIECE // 2
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(stream[:each], np.resize(tokens[each:600_000], each))
        stream[:10]
    assert np.array_equal(stream[each:], tokens[each:])
    assert [record.message.count("train/00000.bin") for record in caplog.records] == [1]


@pytest.mark.parametrize("what", ["shorter", "gone", "beyond the vocabulary"])
def test_other_damage(stored: tuple[Path, list[Shard], np.ndarray], tmp_path: Path, what: str) -> None:
    place, found, _ = stored
    vocabulary = VOCABULARY
    (tmp_path / "train").mkdir()
    for shard in found:
        (tmp_path / shard.name).write_bytes((place / shard.name).read_bytes())
    if what == "shorter":
        (tmp_path / found[3].name).write_bytes((place / found[3].name).read_bytes()[:-2])
    elif what == "gone":
        (tmp_path / found[3].name).unlink()
    else:
        vocabulary = 10
    stream = TokenShards(Folder(tmp_path), found, "uint16", vocabulary, 0.0)
    with pytest.raises(UserError, match="restore it, or prepare the corpus again"):
        stream[-10:]
