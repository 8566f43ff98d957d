"""What a person sees: words that a terminal cannot obey, and while something runs a bar with rate and time left.

All text reaches a terminal through here. What comes from data, names or models may hold anything, so control
characters are shown as escapes, and square brackets are no markup.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

import rich.text
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0
Progress = Callable[[int, int | None], None]  # what is told of long work: done, and in all where that is known

# What a terminal obeys in place of showing it: the controls of ASCII and of Latin-1 (but new lines and tabs), those
# that turn the direction of writing, line and paragraph separators, invisible marks and tags, and half characters.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff\ud800-\udfff]"
)
# Where an output's encoding lacks our own signs; any other character is shown as an escape there.
PLAIN = dict(zip("█·│┤└─–“”", '#.||`--""', strict=True)) | {"→": "->", "…": "..."}


def printable(text: str) -> str:
    r"""A text whose controls are escapes, such as `\x1b` or `\u202e`; its lines and tabs stay."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, end: str = "\n") -> None:
    """Print a result as a person reads it."""
    print(printable(text), end=end, flush=True)


def json_line(value: object, narrow: bool = False) -> str:
    """A result as a program reads it: every character exactly, but none that a terminal obeys; ASCII where narrow."""
    line = json.dumps(value, ensure_ascii=narrow)
    return CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], line)


def leads() -> bool:
    """Whether this process speaks to the user: of several that torchrun started, the first one."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: object) -> None:
    """Print a result for a program, on one line."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(json_line(value, narrow=not encoding.lower().startswith("utf")))


if TYPE_CHECKING:
    from rich.text import Text as Text
else:

    class Text(rich.text.Text):
        """rich's, for what comes from data: its controls are escapes."""

        def __init__(self, text="", *styles, **more):
            super().__init__(printable(text), *styles, **more)

        def append(self, text, *style, **more):
            return super().append(printable(text) if isinstance(text, str) else text, *style, **more)


class Screen(Console):
    """rich's console without markup, and with controls as escapes."""

    def __init__(self, file: IO[str], quiet: bool = False) -> None:
        super().__init__(file=file, quiet=quiet, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **more: Any) -> Text:
        return super().render_str(printable(text), **more)


class Lines(logging.Formatter):
    """What is logged, as a person reads it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def prepare_streams() -> None:
    """Make the standard streams of a command ready for any text: closed ones are empty, no encoding is too narrow."""
    codecs.register_error("plain", _plain)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that an encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


def finish_output() -> None:
    """Hand over what is still to be printed; where that fails, Python is not to try it again when it ends."""
    with suppress(ValueError):  # closed
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def amount(value: float, unit: str = "") -> str:
    """1.23 k, 4.56 M, 7.89 G, with the unit behind."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


class Reporter:
    """Everything that a training says; silent in every process but the leading one."""

    def __init__(self, speaks: bool = True, to: IO[str] | None = None) -> None:
        self.console = Screen(to or sys.stderr, quiet=not speaks)
        self._bar: Bars | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._counted: tuple[float, int] | None = None  # when `counting` began, and at what
        self._figure = ""  # that is told beside the count
        self._untold = True  # how long it takes

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def table(self, rows: Mapping[str, str]) -> None:
        """Facts, one a line: what and its value."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print(table)

    @contextmanager
    def bar(self, what: str) -> Iterator[None]:
        """A bar for the block, which `advance` moves; on a terminal only."""
        self._counted, self._figure, self._untold = None, "", True
        if not self.console.is_terminal or self.console.quiet:
            self._last_line = time.monotonic()
            yield
            return
        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task(what, total=1.0, text="")
            try:
                yield
            finally:
                self._bar, self._task = None, None

    def advance(self, share: float, text: str) -> None:
        """Move the bar to a share of the whole; elsewhere a line now and then."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(share, 1.0), text=printable(text))
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{min(share, 1.0):4.0%}  {text}")

    def reading(self, done: int, total: int | None) -> None:
        """Progress of preparing data, in bytes."""
        share, of = (done / total, f" of {amount(total, 'B')}") if total else (0.0, "")
        self.advance(share, f"{amount(done, 'B')}{of}")

    def running(self, figure: str) -> None:
        """What comes out so far, to be told with the next count."""
        self._figure = f"{figure}, "

    def counting(self, done: int, total: int | None) -> None:
        """Progress of anything that is counted, with its rate since the first count towards this total."""
        now = time.monotonic()
        if total is None:
            self.advance(0.0, f"{done:,}")
            return
        if self._counted is None:
            self._counted = (now, done)
        since, before = self._counted
        pace = ""
        if done > before and now > since:
            rate = (done - before) / (now - since)
            left = (total - done) / rate
            pace = f", {amount(rate)}/s" + ("" if self._bar else f", {duration(left)} left")
            if self._untold and left > SECONDS_BETWEEN_LINES:
                self._last_line = -math.inf  # what takes long says so at once
            self._untold = False
        self.advance(done / total if total else 0.0, f"{self._figure}{done:,} of {total:,}{pace}")


def to_stdout() -> Console:
    """The console for results, as opposed to progress."""
    return Screen(sys.stdout)
