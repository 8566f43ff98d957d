"""The command line: one command per public function, thin. What is heavy is imported when a command runs."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import NoReturn, cast

import typer

from selfsup.cli import runs, using, vectors
from selfsup.cli.options import app
from selfsup.errors import Elsewhere, Interrupted, OfOneProcess, UserError, require_text
from selfsup.report import Lines, finish_output, leads, prepare_streams, printable

__all__ = ["app", "main", "runs", "using", "vectors"]

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
        return (
            f"There is no space left on the device{where}; make room, then give the same command again, or go on with "
            "--resume RUN."
        )
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
    except UsageError as error:
        fail(f"{error.format_message().rstrip('.')}; see selfsup --help.", 2, leads())
    except UserError as error:
        fail(str(error), 2, leads() or isinstance(error, OfOneProcess))
    except Elsewhere:
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output wants no more of it
        raise SystemExit(1) from None
    except OSError as error:
        fail(describe(error), 2)
    except Interrupted as interruption:
        fail(str(interruption), 130, leads())
    if code == 130:  # typer's answer to Ctrl-C
        fail("Stopped.", 130, leads())
