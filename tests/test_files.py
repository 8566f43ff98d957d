"""Files and directories that exist wholly or not at all."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from selfsup.files import checksum, save_tensors, separate, whole_directory, write_atomically


def test_the_checksum_is_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert checksum(tmp_path / "a") == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, "néw\n")
    assert path.read_text(encoding="utf-8") == "néw\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_old_or_new(tmp_path: Path) -> None:
    path, seen, stop = tmp_path / "file", set[str](), threading.Event()
    write_atomically(path, "a" * 100_000)

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for letter in "bcdefgh":
        write_atomically(path, letter * 100_000)
    stop.set()
    reader.join()
    assert all(len(text) == 100_000 and len(set(text)) == 1 for text in seen)


def test_a_directory_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with whole_directory(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("content")
        assert not target.exists()
        assert temporary.parent == target.parent  # on one file system, or the rename would copy
    assert (target / "inner" / "file").read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_directory(tmp_path / "target") as temporary:
            (temporary / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_builders_stays(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with whole_directory(target) as late:
        (late / "file").write_text("late")
        with whole_directory(target) as early:
            (early / "file").write_text("early")
    assert (target / "file").read_text() == "early"
    assert list(tmp_path.iterdir()) == [target]


def test_tensors_keep_their_names_and_values(tmp_path: Path) -> None:
    tensors = {"a.b": torch.arange(6).view(2, 3), "c": torch.zeros(0)}
    save_tensors(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_shared_weights_are_saved_each(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    save_tensors(separate(module), tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["0.weight"], found["1.weight"])


def test_what_the_system_refuses_is_an_os_error(tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    with pytest.raises(FileNotFoundError):
        save_tensors({"a": torch.zeros(3)}, tmp_path / "missing" / "x.safetensors")
    disk = small_disk(64 * 1024)
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors({"a": torch.zeros(100_000)}, disk / "x.safetensors")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        write_atomically(disk / "file", "x" * 1_000_000)
    assert list(disk.iterdir()) == []
