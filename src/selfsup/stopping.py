"""Ctrl-C, SIGTERM and SIGHUP: a command ends in order whenever they come, and a training saves first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 130  # the exit code
stopped: list[int] = []  # the signals that asked this process to stop


def signals() -> list[int]:
    """Those that ask to stop; a hang-up that is ignored, as under nohup, stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    return [int(number) for number in numbers]


def stop(number: int, frame: FrameType | None) -> None:
    """End what runs by a KeyboardInterrupt; what swallows it (some imports do) finds it noted in `stopped`."""
    stopped.append(number)
    raise KeyboardInterrupt


def stop_by_signals() -> None:
    """Let all of them do what Ctrl-C does."""
    for number in signals():
        signal.signal(number, stop)


def let_be_ended() -> None:
    """From now on SIGTERM says nothing new: whoever started several processes ends all of them when one has failed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collects them, so that a training stops between two steps; a second Ctrl-C stops at once."""
    received = list(stopped)

    def receive(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            stop(number, frame)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, receive) for number in signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
