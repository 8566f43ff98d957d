"""The command starts itself anew once, with what a process reads only when it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_WORDS

from selfsup import cli, launch, stopping
from selfsup.stopping import interruptions, stop


class Replaced(Exception):
    """What execve does, as far as the process that calls it can tell: it does not return."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of this process are put back, and what a test sends it is forgotten."""
    before = {number: signal.getsignal(number) for number in stopping.signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
    stopping.stopped.clear()


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def execve(*arguments: Any) -> None:
        calls.append(arguments)
        raise Replaced

    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "utf8", "-m", "selfsup", "plan"])
    return calls


def test_what_is_missing_is_set_and_the_same_command_runs(
    replaced: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with pytest.raises(Replaced):
        launch.main()
    ((program, words, environment),) = replaced
    assert program == sys.executable
    assert words == [sys.executable, "-X", "utf8", "-m", "selfsup", "plan"]
    assert environment["GLIBC_TUNABLES"] == launch.ENVIRONMENT["GLIBC_TUNABLES"]
    assert environment["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_process_that_has_all_or_cannot_have_it_goes_on(
    platform: str, replaced: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launch.ENVIRONMENT.items():
        if platform == "linux":
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    ran: list[bool] = []
    monkeypatch.setattr(cli, "main", lambda: ran.append(True))
    launch.main()
    assert ran == [True]
    assert not replaced


# -- requests to stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_stopped_at_any_moment_ends_in_one_line(
    number: signal.Signals, corpus: Path, tmp_path: Path
) -> None:
    """While Python starts, while libraries are imported, while data are read, while the plan is made."""
    moments = [0.3, 0.9, 1.6, 2.5]
    outs = [tmp_path / str(moment) for moment in moments]
    words = [sys.executable, "-m", "selfsup", "train", "causal-lm", "--data", str(corpus), *TINY_WORDS, "steps=100000"]
    processes = [subprocess.Popen([*words, "--out", str(out)], stderr=subprocess.PIPE, text=True) for out in outs]
    began = time.monotonic()
    for moment, process in zip(moments, processes, strict=True):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        process.send_signal(number)
    for out, process in zip(outs, processes, strict=True):
        _, error = process.communicate(timeout=240)
        if process.returncode != 130:  # Python itself had not started yet
            assert "selfsup" not in error, error
            assert not out.exists()
            continue
        assert "Traceback" not in error
        last = error.splitlines()[-1]
        assert last.startswith("selfsup: Stopped")
        assert out.exists() == (f"--resume {out}" in last)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ImportError("half an import"), SystemExit(130)])
def test_whatever_a_request_to_stop_broke_ends_in_one_line(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        stopping.stopped.append(signal.SIGINT)
        raise error

    left: list[int] = []
    monkeypatch.setattr(launch, "_start_anew", lambda signals: None)
    monkeypatch.setattr(cli, "main", command)
    monkeypatch.setattr(os, "_exit", left.append)
    launch.main()
    assert left == [130]
    expected = "" if isinstance(error, SystemExit) else "selfsup: Stopped.\n"
    assert capsys.readouterr().err == expected


def test_an_error_that_nobody_foresaw_is_none_of_a_request_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(launch, "_start_anew", lambda signals: None)
    monkeypatch.setattr(cli, "main", command)
    with pytest.raises(ZeroDivisionError):
        launch.main()


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptions() as received:
        os.kill(os.getpid(), signal.SIGHUP)
    stopping.stop_by_signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert received == stopping.stopped == []


def test_a_request_that_an_import_swallowed_stops_the_training() -> None:
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)
    with interruptions() as received:
        assert received == [signal.SIGINT]
