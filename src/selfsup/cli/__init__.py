"""The command line: one command per public function, thin. What is heavy is imported when a command runs."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import NoReturn, cast

import typer

from selfsup.cli import runs, serving, using, vectors
from selfsup.cli.options import app
from selfsup.errors import Elsewhere, Interrupted, OfOneProcess, UserError, require_text
from selfsup.report import Lines, finish_output, leads, prepare_streams, printable
from selfsup.stopping import STOPPED, stopped

__all__ = ["app", "main", "runs", "serving", "using", "vectors"]

# What typer raises for words that it does not understand.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


def fail(message: str, code: int, speaks: bool = True) -> NoReturn:
    if speaks:
        print(f"selfsup: {printable(' '.join(message.splitlines()))}", file=sys.stderr)
    raise SystemExit(code)


def describe(error: OSError) -> str:
    """What the system refused, and where."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"There is no space left on the device{where}; make room, then give the same command again."
    return f"{error.strerror or error}{where}; check the path and its permissions."


def main() -> None:
    """Run a command; an error that the user can put right is one sentence and exit code 2."""
    prepare_streams()
    handler = logging.StreamHandler()
    handler.setFormatter(Lines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    if not leads():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        try:
            for word in sys.argv[1:]:
                require_text(word, "A word of the command")
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        finally:
            finish_output()
    except BaseException as error:
        _end(error)
    if code == STOPPED:  # typer's answer to Ctrl-C
        fail("Stopped.", STOPPED, leads())


def _end(error: BaseException) -> NoReturn:
    """Say in one sentence what ended a command and leave; what nobody foresaw is raised again."""
    try:
        raise error
    except Interrupted as interruption:
        fail(str(interruption), STOPPED, leads())
    except BaseException:
        if stopped or isinstance(error, KeyboardInterrupt):  # whatever that broke, such as an import
            fail("Stopped.", STOPPED, leads())
        _explain(error)


def _explain(error: BaseException) -> NoReturn:
    """The same of what was no request to stop."""
    try:
        raise error
    except UsageError as usage:
        fail(f"{usage.format_message().rstrip('.')}; see selfsup --help.", 2, leads())
    except UserError as user:
        fail(str(user), 2, leads() or isinstance(user, OfOneProcess))
    except Elsewhere:
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output wants no more of it
        raise SystemExit(1) from None
    except OSError as system:
        fail(describe(system), 2)
