"""Checkpoints: whole or passed over, kept or forgotten, and never unpickled."""

from __future__ import annotations

import errno
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import tree
from torch import Tensor

from selfsup import saving as module
from selfsup.errors import UserError
from selfsup.saving import Checkpoint, Checkpoints

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def made(step: int) -> Checkpoint:
    model = {"weight": torch.full((3, 4), float(step)), "bias": torch.arange(step)}
    optimizer = {"weight.momentum": torch.full((3, 4), -float(step)), "weight.step": torch.tensor(float(step))}
    return Checkpoint(step, {"model": model, "optimizer": optimizer}, {"elapsed": step / 7, "best": {"step": 1}})


def written(directory: Path, *steps: int, keep: int = 3, marked: tuple[int, ...] = ()) -> Checkpoints:
    checkpoints = Checkpoints(directory, keep)
    for step in steps:
        checkpoints.save(made(step), marked)
    checkpoints.wait()
    return checkpoints


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    return (
        one is not None
        and (one.step, one.state) == (other.step, other.state)
        and one.tensors.keys() == other.tensors.keys()
        and all(
            one.tensors[file].keys() == tensors.keys()
            and all(torch.equal(one.tensors[file][name], tensor) for name, tensor in tensors.items())
            for file, tensors in other.tensors.items()
        )
    )


def place(directory: Path, step: int) -> Path:
    return directory / f"step-{step:09d}"


# -- saving and loading --------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 3)
    assert same(checkpoints.newest(), made(3))
    assert same(Checkpoints(tmp_path).load(3), made(3))
    assert sorted(path.name for path in place(tmp_path, 3).iterdir()) == list(FILES)


def test_a_snapshot_is_taken_when_save_is_called(tmp_path: Path) -> None:
    tensor = torch.zeros(1000)
    state = {"elapsed": 1.0}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(1, {"model": {"a": tensor}}, state))
    tensor.fill_(9)
    checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None
    assert not found.tensors["model"]["a"].any()


def test_shared_and_strided_tensors_are_saved_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Checkpoint(1, {"model": {"a": whole, "b": whole, "c": whole.T}}, {}))
    checkpoints.wait()
    found = checkpoints.load(1).tensors["model"]
    assert torch.equal(found["a"], whole)
    assert torch.equal(found["b"], whole)
    assert torch.equal(found["c"], whole.T)


def test_before_bounds_the_step(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 2, 4, 6)
    assert [getattr(checkpoints.newest(before), "step", None) for before in (7, 6, 5, 4, 1)] == [6, 6, 4, 4, None]


def test_there_is_none_to_begin_with(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing").steps() == []
    assert Checkpoints(tmp_path / "missing").newest() is None


def test_a_save_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go = threading.Event()
    write = module.save_tensors

    def slow(tensors: dict[str, Tensor], path: Path) -> None:
        assert go.wait(10)
        write(tensors, path)

    monkeypatch.setattr(module, "save_tensors", slow)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(made(1))  # would never return if it waited
    assert checkpoints.steps() == []
    go.set()
    checkpoints.wait()
    assert checkpoints.steps() == [1]


# -- what is kept --------------------------------------------------------------------------------------------


def test_the_newest_and_the_marked_stay(tmp_path: Path) -> None:
    assert written(tmp_path / "a", *range(1, 9)).steps() == [6, 7, 8]
    assert written(tmp_path / "b", *range(1, 9), marked=(2, 5)).steps() == [2, 5, 6, 7, 8]
    assert written(tmp_path / "c", *range(1, 9), keep=1, marked=(8, 99)).steps() == [8]


def test_a_mark_that_is_taken_away_counts_no_longer(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, *range(1, 6), marked=(1,))
    assert checkpoints.steps() == [1, 3, 4, 5]
    checkpoints.save(made(6), marked=(3,))
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4, 5, 6]


def test_a_whole_checkpoint_is_not_written_again(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 4)
    before = (place(tmp_path, 4) / "model.safetensors").stat()
    checkpoints.save(made(4))
    checkpoints.wait()
    after = (place(tmp_path, 4) / "model.safetensors").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 4)
    (place(tmp_path, 4) / "model.safetensors").write_bytes(b"broken")
    checkpoints.save(made(4))
    checkpoints.wait()
    assert same(checkpoints.newest(), made(4))


# -- damage --------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_the_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 64
    path.write_bytes(content)


def put_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [truncate, empty, flip_a_byte, flip_the_last_byte, Path.unlink, put_a_directory]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(
    file: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = written(tmp_path, 2, 4, 6)
    damage(place(tmp_path, 6) / file)
    with caplog.at_level(logging.WARNING):
        assert same(checkpoints.newest(), made(4))
    (record,) = caplog.records
    assert "step-000000006" in record.getMessage()
    assert "damaged" in record.getMessage()
    flip_a_byte(place(tmp_path, 4) / "model.safetensors")
    assert same(checkpoints.newest(), made(2))
    shutil.rmtree(place(tmp_path, 2))
    assert checkpoints.newest() is None


@pytest.mark.parametrize(
    "manifest",
    [b"", b"null", b"[]", b"5", b"{}", b'{"a', b"\xff\xfe", b'{"state.json": 5}', b'{"state.json": {}}',
     b'{"state.json": {"size": "x", "checksum": null}}', b'{"../../x": {"size": 1, "checksum": "y"}}'],
)  # fmt: skip
def test_a_manifest_with_garbage_is_no_manifest(manifest: bytes, tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 2, 4)
    (place(tmp_path, 4) / "manifest.json").write_bytes(manifest)
    assert same(checkpoints.newest(), made(2))


def test_every_file_of_a_checkpoint_must_be_in_its_manifest(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 2, 4)
    path = place(tmp_path, 4) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["model.safetensors"]
    path.write_text(json.dumps(manifest))
    assert same(checkpoints.newest(), made(2))


def test_what_a_killed_process_left_does_no_harm(tmp_path: Path, dead_name: Callable[[Path], Path]) -> None:
    checkpoints = written(tmp_path, 2)
    leftover = dead_name(place(tmp_path, 4))
    shutil.copytree(place(tmp_path, 2), leftover)
    (leftover / "manifest.json").unlink()
    (leftover / ".tmpAbc").write_bytes(b"half")
    assert checkpoints.steps() == [2]
    assert same(checkpoints.newest(), made(2))
    checkpoints.save(made(4))
    checkpoints.wait()
    assert same(checkpoints.newest(), made(4))
    assert not leftover.exists()


def test_a_users_file_in_a_checkpoint_is_never_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither when the checkpoint is too old to stay, nor when it is damaged and written again."""
    checkpoints = written(tmp_path, 1)
    (place(tmp_path, 1) / "notes.txt").write_text("mine")
    checkpoints = written(tmp_path, 2, 3, 4, 5)
    assert (place(tmp_path, 1) / "notes.txt").read_text() == "mine"
    assert checkpoints.steps() == [1, 3, 4, 5]

    (place(tmp_path, 5) / "notes.txt").write_text("mine too")
    (place(tmp_path, 5) / "model.safetensors").unlink()
    assert same(written(tmp_path, 5).newest(), made(5))
    assert (tmp_path / "damaged-step-000000005-1" / "notes.txt").read_text() == "mine too"
    assert "damaged-step-000000005-1" in caplog.text


def test_a_users_file_in_the_place_of_a_checkpoint_is_moved_beside_it(tmp_path: Path) -> None:
    place(tmp_path, 3).write_text("mine")
    assert same(written(tmp_path, 3).newest(), made(3))
    assert (tmp_path / "damaged-step-000000003-1").read_text() == "mine"


def test_other_files_are_let_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-mine").mkdir()
    (tmp_path / "step-0000000001").mkdir()
    checkpoints = written(tmp_path, *range(1, 7))
    assert checkpoints.steps() == [4, 5, 6]
    assert {"notes.txt", "step-mine", "step-0000000001"} <= {path.name for path in tmp_path.iterdir()}


# -- a full disk ---------------------------------------------------------------------------------------------


def test_a_save_that_fails_is_said_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = written(tmp_path / "checkpoints", 2, 4)
    before = tree(tmp_path)
    write = module.save_tensors

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(tensors, path)

    monkeypatch.setattr(module, "save_tensors", full)
    checkpoints.save(made(6))
    with pytest.raises(UserError, match="No space left on device") as caught:
        checkpoints.save(made(8))
    assert len(str(caught.value).splitlines()) == 1
    assert f"--resume {tmp_path}" in str(caught.value)
    assert tree(tmp_path) == before
    monkeypatch.undo()
    checkpoints.save(made(8))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 8]


def test_a_full_disk_keeps_the_earlier_checkpoints(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(300 * 1024)
    checkpoints = Checkpoints(disk)
    tensors = {"model": {"weight": torch.randn(20_000)}}
    for step in (1, 2, 3):
        checkpoints.save(Checkpoint(step, tensors, {}))
    checkpoints.save(Checkpoint(4, tensors, {}))
    with pytest.raises(UserError, match="No space left on device"):
        checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]
    assert all(checkpoints.problem(step) is None for step in (1, 2, 3))
    assert sorted(path.name[:5] for path in disk.iterdir()) == ["step-"] * 3


# -- no pickle -----------------------------------------------------------------------------------------------


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    checkpoints = written(tmp_path, 2, 4)
    (place(tmp_path, 4) / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (place(tmp_path, 4) / "model.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert same(checkpoints.newest(), made(4))


def test_a_file_that_only_looks_like_safetensors_is_refused(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 2, 4)
    (place(tmp_path, 4) / "model.safetensors").write_bytes(pickle.dumps({"weight": 1}))
    assert same(checkpoints.newest(), made(2))
    safetensors.torch.load_file(place(tmp_path, 2) / "model.safetensors")
