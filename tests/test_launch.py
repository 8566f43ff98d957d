"""The command starts itself anew once, with what a process reads only when it starts."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from selfsup import cli, launch


class Replaced(Exception):
    """What execve does, as far as the process that calls it can tell: it does not return."""


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
