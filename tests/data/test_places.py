"""Corpora that lie elsewhere: read as those on the disk, kept within a bound, tried again, and never believed."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from selfsup.data import places as module
from selfsup.data.corpora import Choices, open_prepared
from selfsup.data.places import Remote, make_room
from selfsup.data.preparing import prepare_corpus
from selfsup.data.shards import PIECE, digest
from selfsup.errors import UserError

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "slept"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three pieces to train on, in two shards, and one that is held out."""
    place = tmp_path_factory.mktemp("local")
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfsup.data.preparing.SMALLEST", 1)
        for number, count in enumerate((1600, 600)):
            with (place / f"{number}.jsonl").open("w") as file:
                for words in random.choice(WORDS, (count, 120)):
                    file.write(json.dumps({"text": " ".join(words)}) + "\n")
        choices = Choices(
            objective="causal-lm", family="decoder", source=str(place / "*.jsonl"), column=None, split=None,
            tokenizer="characters", vocabulary=None, validation=0.1, failures=0.0, seed=0, duplicates="keep",
        )  # fmt: skip
        prepare_corpus(choices, place / "corpus", 1, lambda done, total: None)
    return place / "corpus"


@pytest.fixture
def remote(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same in an object store, with a cache of its own and no patience."""
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PAUSE", 0.0)
    store = fsspec.filesystem("memory")
    store.put(f"{local}/", "/bucket/tokens/", recursive=True)
    yield "memory://bucket/tokens"
    store.rm("/bucket", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the store."""
    told: list[str] = []
    own = Remote._asked

    def ask(self: Remote, name: str, start: int, stop: int) -> bytes:
        told.append(name)
        return own(self, name, start, stop)

    monkeypatch.setattr(Remote, "_asked", ask)
    return told


def failing(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, bytes], bytes]) -> None:
    own = Remote._asked
    monkeypatch.setattr(Remote, "_asked", lambda self, name, start, stop: change(name, own(self, name, start, stop)))


def pieces(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "pieces").rglob("*") if path.is_file() and path.name[0] != "."]


def test_it_is_read_as_on_the_disk(local: Path, remote: str, tmp_path: Path, asked: list[str]) -> None:
    plain, found = open_prepared(local), open_prepared(f"{remote}/")
    assert found.manifest == plain.manifest
    assert found.corpus.fingerprint == plain.corpus.fingerprint
    assert len(asked) == 3  # the manifest and two files of the tokenizer
    assert np.array_equal(np.asarray(found.corpus.train), np.asarray(plain.corpus.train))
    assert np.array_equal(np.asarray(found.corpus.validation), np.asarray(plain.corpus.validation))
    count = sum(len(shard.checksums) for shard in (*plain.manifest.train, *plain.manifest.validation))
    assert len(asked) == 3 + count
    assert {path.name for path in pieces(tmp_path)} == {digest(path.read_bytes()) for path in pieces(tmp_path)}
    assert np.array_equal(np.asarray(open_prepared(remote).corpus.train), np.asarray(plain.corpus.train))
    assert len(asked) == 3 + count + 3  # the pieces are kept


def test_a_piece_that_was_kept_badly_is_fetched_anew(remote: str, tmp_path: Path, asked: list[str]) -> None:
    tokens = np.asarray(open_prepared(remote).corpus.train)
    for path in pieces(tmp_path):
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    asked.clear()
    assert np.array_equal(np.asarray(open_prepared(remote).corpus.train), tokens)
    assert len(asked) > 3


@pytest.mark.parametrize("how", ["raises", "half", "wrong"])
def test_it_is_tried_again(local: Path, remote: str, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    times: dict[str, int] = {}

    def change(name: str, data: bytes) -> bytes:
        times[name] = times.get(name, 0) + 1
        if times[name] >= 3 or (how != "raises" and not name.endswith(".bin")):
            return data
        if how == "raises":
            raise RuntimeError("the network is away")  # whatever class a library has
        return data[: len(data) // 2] if how == "half" else bytes(len(data))

    failing(monkeypatch, change)
    found = open_prepared(remote)
    assert np.array_equal(np.asarray(found.corpus.train), np.asarray(open_prepared(local).corpus.train))


def test_one_that_stays_away_is_named(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(name: str, data: bytes) -> bytes:
        if name == "train/00001.bin":
            raise ConnectionResetError("reset by the other side")
        return data

    failing(monkeypatch, change)
    with pytest.raises(UserError, match=r"memory://bucket/tokens/train/00001\.bin, bytes 0 to .*tried 5 times, reset"):
        np.asarray(open_prepared(remote, failures=0.1).corpus.train)
    train = open_prepared(remote, failures=0.5).corpus.train
    assert len(np.asarray(train)) == len(train)


def test_a_store_that_never_answers(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    release = threading.Event()
    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "cat_file", lambda *given, **named: release.wait(30) and b"")
    with pytest.raises(UserError, match=r"tried 2 times, no answer in 0\.01 seconds"):
        open_prepared(remote)
    release.set()


def test_there_is_none(remote: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"memory://bucket/nothing holds no selfsup-corpus\.json"):
        open_prepared("memory://bucket/nothing")
    with pytest.raises(UserError, match="pip install 'selfsup\\[remote\\]'"):
        open_prepared("nowhere://bucket/tokens")
    assert not (tmp_path / "cache").exists()


def test_several_threads_fetch_a_piece_once(remote: str, asked: list[str]) -> None:
    shard = open_prepared(remote).manifest.train[0]
    place = Remote(remote)
    asked.clear()
    found: list[np.ndarray] = []

    def read() -> None:
        found.append(place.piece(shard.name, 0, PIECE, shard.checksums[0]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [shard.name]
    assert all(np.array_equal(piece, found[0]) for piece in found)


def test_the_oldest_pieces_make_room(tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / f"{number % 3:02x}" / f"{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number))
    (tmp_path / "00" / ".lock").touch()
    os.utime(tmp_path / "00" / "0", (9999, 9999))  # used again
    make_room(tmp_path, 350)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"0", "8", "9", ".lock"}


def test_what_is_kept_is_bounded(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", 0)
    monkeypatch.setenv(module.CACHE_BYTES, str(2 * PIECE))
    np.asarray(open_prepared(remote).corpus.train)
    assert 0 < sum(path.stat().st_size for path in pieces(tmp_path)) <= 2 * PIECE
    monkeypatch.setenv(module.CACHE_BYTES, "4GB")
    with pytest.raises(UserError, match="SELFSUP_CACHE_BYTES is '4GB'; give a number of bytes"):
        open_prepared(remote)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as object stores do; every third request fails."""

    count = 0

    def do_GET(self) -> None:
        type(self).count += 1
        if self.count % 3 == 0:
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, last = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *given: Any) -> None:
        pass


def test_over_http(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PAUSE", 0.0)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *given: Ranges(*given, directory=str(local.parent))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        found = open_prepared(f"http://127.0.0.1:{server.server_port}/{local.name}")
        assert np.array_equal(np.asarray(found.corpus.train), np.asarray(open_prepared(local).corpus.train))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert Ranges.count > 5
