"""What a person sees while something runs: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0


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
        self.console = Console(file=to or sys.stderr, quiet=not speaks, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._counted: tuple[float, int] | None = None  # when `counting` began, and at what

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

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
        self._counted = None
        if not self.console.is_terminal or self.console.quiet:
            self._last_line = time.monotonic()
            yield
            return
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task(what, total=1.0, text="")
            try:
                yield
            finally:
                self._bar, self._task = None, None

    def advance(self, share: float, text: str) -> None:
        """Move the bar to a share of the whole; elsewhere a line now and then."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(share, 1.0), text=text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{min(share, 1.0):4.0%}  {text}")

    def reading(self, done: int, total: int | None) -> None:
        """Progress of preparing data, in bytes."""
        of = f" of {amount(total, 'B')}" if total else ""
        self.advance(done / total if total else 0.0, f"{amount(done, 'B')}{of}")

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
            pace = f", {amount(rate)}/s" + ("" if self._bar else f", {duration((total - done) / rate)} left")
        self.advance(done / total if total else 0.0, f"{done:,} of {total:,}{pace}")


def to_stdout() -> Console:
    """The console for results, as opposed to progress."""
    return Console(file=sys.stdout, highlight=False)
