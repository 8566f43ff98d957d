"""Files and directories that exist wholly or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_WORDS, tree
from safetensors.torch import load_file
from torch import nn

from selfsup import files
from selfsup.errors import UserError
from selfsup.files import (
    LOCK,
    checksum,
    damage,
    expanded,
    held,
    new_file,
    save_tensors,
    separate,
    temporary_name,
    whole_directory,
    write_atomically,
    write_manifest,
)


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


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(OSError, match="no regular file"):
            write_atomically(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "pipe"]


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


def test_the_first_of_two_builders_stays_and_the_second_is_told(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(FileExistsError, match="target"), whole_directory(target) as late:
        (late / "file").write_text("late")
        with whole_directory(target) as early:
            (early / "file").write_text("early")
    assert (target / "file").read_text() == "early"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_never_replaces_another(tmp_path: Path) -> None:
    with new_file(tmp_path / "file") as temporary:
        temporary.write_text("first")
    with pytest.raises(UserError, match="file exists already"), new_file(tmp_path / "file"):
        pytest.fail("the block must not begin")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match="exists already"), new_file(tmp_path / "dangling"):
        pytest.fail("the block must not begin")
    with pytest.raises(UserError, match="late exists already"), new_file(tmp_path / "late") as temporary:
        temporary.write_text("mine")
        (tmp_path / "late").write_text("yours")
    assert tree(tmp_path) == {"file": b"first", "dangling": None, "late": b"yours"}


# -- what dead processes left --------------------------------------------------------------------------------


def test_what_a_dead_process_left_goes_and_nothing_else_does(tmp_path: Path, dead_name: Callable[[Path], Path]) -> None:
    machine, number, started = dead_name(tmp_path / "a").name.split("selfsup-")[1].split("-")[:3]
    living = temporary_name(tmp_path / "a")
    of_another_machine = f".a.selfsup-{int(machine, 16) ^ 1:08x}-{number}-{started}-0"
    kept = [
        living.name,
        of_another_machine,
        ".a.0123456789abcdef0123456789abcdef",
        f"a.selfsup-{machine}-{number}-{started}-0",
        f".a.selfsup-{machine}-{number}-{started}-0.txt",
    ]
    for name in kept:
        (tmp_path / name).write_text("stays")
    dead_name(tmp_path / "file").write_text("goes")
    dead_name(tmp_path / "directory").mkdir()
    (dead_name(tmp_path / "directory") / "inner").write_text("goes")
    reused = living.name.split("-")
    reused[-2] = str(int(reused[-2]) - 1000)  # of a process that had this one's number before
    (tmp_path / "-".join(reused)).write_text("goes")
    write_atomically(tmp_path / "written", "text")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "written"}


# -- manifests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"other", b"longer than that", None])
def test_a_file_that_changed_is_named(content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "file"
    file.write_bytes(b"right")
    write_manifest(tmp_path)
    assert damage(tmp_path) is None
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    problem = damage(tmp_path)
    assert problem is not None
    assert "file" in problem


def test_a_home_directory_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expanded("~/run") == Path("/home/ada/run") == expanded(Path("~/run"))
    assert expanded("~") == Path("/home/ada")
    for plain in ("run", "a/~/b", "~nobody-of-that-name/run", "~$draft.txt"):
        assert expanded(plain) == Path(plain)


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


# -- locks ---------------------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from selfsup.files import held
with held(Path(sys.argv[1]), "refused"):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_one_process_holds_a_directory_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        with pytest.raises(UserError, match="refused"), held(tmp_path, "refused"):
            pass
        other.kill()
    for _ in range(2):
        with held(tmp_path, "refused"), pytest.raises(UserError), held(tmp_path, "refused"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert (tmp_path / LOCK).stat().st_size == 0


# -- Windows -------------------------------------------------------------------------------------------------


def test_files_and_directories_are_kept_where_no_directory_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows a directory has no descriptor, and only a file that may be written is flushed."""
    open_any = os.open

    def open_as_windows(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        assert flags & (os.O_RDWR | os.O_WRONLY)
        return open_any(path, flags, *rest, **more)

    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "open", open_as_windows)
    write_atomically(tmp_path / "file", "content")
    with whole_directory(tmp_path / "directory") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("content")
    assert (tmp_path / "directory" / "inner" / "file").read_text() == "content"
    with held(tmp_path, "refused"), pytest.raises(UserError), held(tmp_path, "refused"):
        pass


# What Python has on other systems alone.
ELSEWHERE = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix")
NAMES = {
    "os": "fork forkpty getuid geteuid getgid getegid getpgid killpg setsid chown mkfifo mknod nice statvfs sysconf"
    " uname sched_getaffinity getloadavg O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC pread sendfile WNOHANG",
    "signal": "SIGHUP SIGKILL SIGALRM SIGPIPE SIGQUIT SIGUSR1 SIGCHLD alarm setitimer",
}
AS_ON_WINDOWS = """
import builtins, importlib, os, pkgutil, signal, sys, types
import psutil, torch
import selfsup, selfsup.files

hidden, names, words = eval(sys.argv[1]), eval(sys.argv[2]), sys.argv[3:]
real = builtins.__import__

def without(name, globals=None, *rest, **more):
    if name in hidden and (globals or {}).get("__name__", "").startswith("selfsup"):
        raise ImportError(name)
    return real(name, globals, *rest, **more)

class Os(types.ModuleType):
    def __init__(self, real, without):
        super().__init__(real.__name__)
        self.__dict__.update({name: value for name, value in vars(real).items() if name not in without})

builtins.__import__ = without
importlib.reload(selfsup.files)
modules = [found.name for found in pkgutil.walk_packages(selfsup.__path__, "selfsup.") if "__main__" not in found.name]
for name in modules:
    module = importlib.import_module(name)
    for each, gone in names.items():
        if getattr(module, each, None) is sys.modules[each]:
            setattr(module, each, Os(sys.modules[each], gone.split()))
selfsup.files.WINDOWS = True
psutil.Process.memory_info = lambda process: types.SimpleNamespace(rss=1, peak_wset=1)
sys.argv = ["selfsup", *words]
importlib.import_module("selfsup.cli").main()
"""


def test_all_modules_are_imported_and_a_model_is_trained_without_what_windows_lacks(
    corpus: Path, tmp_path: Path
) -> None:
    words = ["train", "causal-lm", "--data", str(corpus), "--out", str(tmp_path / "run"), *TINY_WORDS]
    command = [sys.executable, "-c", AS_ON_WINDOWS, repr(ELSEWHERE), repr(NAMES), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Validation loss" in done.stdout
