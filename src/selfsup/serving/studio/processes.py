"""Trainings that were started from the page: each a process of its own that outlives the studio."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

from selfsup.errors import UserError
from selfsup.run_files import RUN_CONFIG

SAID = 4000  # bytes of what a training said last


@dataclass(frozen=True)
class Training:
    """A process, the run that it makes, and the file without a name that it speaks to."""

    directory: Path
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def to_json(self, name: str) -> dict[str, Any]:
        """How it is: `code` is None while it runs, `made` whether there is a run already."""
        made = (self.directory / RUN_CONFIG).is_file()
        return {"name": name, "code": self.process.poll(), "said": self.said(), "made": made}

    def said(self) -> str:
        """The end of what it said; the process goes on writing behind it."""
        size = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, size - SAID))
        return self.output.read().decode("utf-8", "replace")


class Trainings:
    """Those of this studio, by the names of their runs."""

    def __init__(self) -> None:
        self._started: dict[str, Training] = {}
        self._reading = Lock()

    def start(self, name: str, directory: Path, words: Sequence[str]) -> None:
        """Run `selfsup train` with such words, in a session of its own: a Ctrl-C for the studio is not for it.

        Raises a UserError where a training of that name is running.
        """
        if name in self.running():
            raise UserError(f"{name} is being trained already; stop it, or give the run another name.")
        command = [sys.executable, "-m", "selfsup", "train", *words, "--out", str(directory)]
        output = tempfile.TemporaryFile("a+b")  # noqa: SIM115  (written at its end, wherever it is read)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        self._started[name] = Training(directory, process, output)

    def stop(self, name: str) -> None:
        """Ask a training to save and stop, as Ctrl-C does; raises a UserError where none of that name runs."""
        if name not in self.running():
            raise UserError(f"{name:.200} is not being trained by this studio.")
        self._started[name].process.send_signal(signal.SIGINT)

    def running(self) -> list[str]:
        return [name for name, training in self._started.items() if training.process.poll() is None]

    def to_json(self) -> list[dict[str, Any]]:
        """All of them, the newest first."""
        with self._reading:
            return [training.to_json(name) for name, training in reversed(self._started.items())]
