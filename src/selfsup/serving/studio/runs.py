"""Runs, one run, runs side by side: read from their directories, which nothing here writes to or locks."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from pydantic import TypeAdapter
from starlette.responses import StreamingResponse

from selfsup import run_files
from selfsup.errors import UserError
from selfsup.files import LOCK
from selfsup.run_files import RUN_CONFIG, read_object
from selfsup.serving.studio.metrics import Followed, Thinned, looks, number
from selfsup.serving.studio.shared import Studio, events, looked

MOST_RUNS, DEEPEST = 2000, 6  # of a list
SPARKS, POINTS = 60, 1000  # of a curve in a list, and of one that fills a page
FRESH = 60.0  # seconds since the last line, within which a training that cannot be seen otherwise is held to be running
LIST_SECONDS, LINE_SECONDS = 1.0, 0.25  # between two looks at all runs, and at one
MOST_COMPARED = 12
MOST_BYTES = 1 << 24  # of a JSON file of a run
LOCKS = Path("/proc/locks")  # where Linux lists who holds what

Name = Annotated[str, Query(max_length=1000)]
Row = dict[str, Any]


def router(studio: Studio) -> APIRouter:
    """What the pages of runs ask for."""
    routes, folder = APIRouter(prefix="/api"), Folder(studio.root)
    Thread(target=folder.rows, daemon=True).start()  # so that it is read when a browser asks

    @routes.get("/runs")
    def runs() -> Row:
        return {"root": str(studio.root), "runs": folder.rows(), "left_out": folder.left_out}

    @routes.get("/runs/events")
    def all_events() -> StreamingResponse:
        known: dict[str, Row] = {}

        def changes() -> list[Row]:
            """Rows that differ from what was sent, and names of those that are gone."""
            rows = {row["name"]: row for row in folder.rows()}
            changed = [row for name, row in rows.items() if known.get(name) != row]
            gone = [name for name in known if name not in rows]
            known.clear()
            known.update(rows)
            return [{"rows": changed, "gone": gone}] if changed or gone else []

        return events(looked(changes, studio.ending, LIST_SECONDS))

    @routes.get("/run")
    def run(name: Name) -> Row:
        directory = studio.run(name)
        seen = Seen(directory, name, POINTS)
        seen.update()
        curves = {"train": seen.curve.points, "validation": _looks(directory)}
        return {**seen.row(locked_files()), "curves": curves, "last": seen.curve.last, "position": seen.curve.end}

    @routes.get("/run/events")
    def run_events(
        name: Name, position: Annotated[int, Query(ge=0)] = 0, last_event_id: Annotated[int | None, Header(ge=0)] = None
    ) -> StreamingResponse:
        return events(_follow(studio, studio.run(name), position if last_event_id is None else last_event_id))

    @routes.get("/run/report")
    async def report(run: Annotated[list[str], Query(min_length=1, max_length=MOST_COMPARED)]) -> Row:
        return await studio.heavy(_report, [studio.run(name) for name in dict.fromkeys(run)])

    return routes


def _report(directories: list[Path]) -> Row:
    from selfsup.reporting import report_of

    return report_of(directories)


def _looks(directory: Path) -> list[tuple[int, float]]:
    with suppress(OSError):
        return looks(directory / "metrics.jsonl")
    return []


def _follow(studio: Studio, directory: Path, position: int) -> AsyncIterator[Any]:
    """The lines of a run as they are written; `again` where it went back to an earlier step; `finished` at its end."""
    followed = Followed(directory / "metrics.jsonl", position)
    finished = (directory / "summary.json").exists()

    def look() -> list[Any]:
        nonlocal finished
        ended = (directory / "summary.json").exists()  # before the lines, of which the last ones come before it
        lines = followed.read()
        if lines is None:
            followed.position = 0
            return [{"again": True, "position": 0}]
        found: list[Any] = [{"lines": lines, "position": followed.position}] if lines else []
        if ended != finished:
            finished = ended
            found.append({"finished": ended})
        return found

    return looked(look, studio.ending, LINE_SECONDS)


class Folder:
    """The runs below a folder; what is known of them is kept, and only what changed is read again.

    Attributes:
        left_out: what is not listed, as a sentence; empty where all is.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.left_out = root, ""
        self._seen: dict[str, Seen] = {}
        self._reading = Lock()

    def rows(self) -> list[Row]:
        """A row for each run."""
        with self._reading:
            names = self._names()
            self._seen = {name: self._seen.get(name) or Seen(self.root / name, name, SPARKS) for name in names}
            locked = locked_files()
            for seen in self._seen.values():
                seen.update()
            return [seen.row(locked) for seen in self._seen.values()]

    def _names(self) -> list[str]:
        """Directories that hold a run, as paths below the root; links are not followed."""
        names: list[str] = []
        self.left_out = ""
        for place, depth in _directories(self.root):
            if (place / RUN_CONFIG).is_file():
                names.append(place.relative_to(self.root).as_posix())
            elif depth == DEEPEST:
                self.left_out = f"What lies more than {DEEPEST} folders deep is not listed."
            if len(names) == MOST_RUNS:
                self.left_out = f"Only the first {MOST_RUNS:,} runs are listed."
                break
        return names


def _directories(root: Path) -> Iterator[tuple[Path, int]]:
    """Folders that may hold runs and how deep they lie, none of those within a run."""
    waiting = [(root, 0)]
    while waiting:
        place, depth = waiting.pop()
        yield place, depth
        if depth == DEEPEST or (place / RUN_CONFIG).is_file():
            continue
        with suppress(OSError), os.scandir(place) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            waiting += [(place / name, depth + 1) for name in reversed(inner) if not name.startswith(".")]


@dataclass
class Kept:
    """The object of a JSON file, read again when the file has changed."""

    path: Path
    kind: TypeAdapter[Any]
    content: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    _mark: tuple[int, int, int] | None = None

    def update(self) -> None:
        try:
            status = os.stat(self.path)
        except OSError:
            self.content, self.problem, self._mark = {}, "", None
            return
        mark = (status.st_ino, status.st_size, status.st_mtime_ns)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
                raise UserError(f"{self.path} is no regular file of at most {MOST_BYTES:,} bytes; it is not read.")
            self.content, self.problem = read_object(self.path, self.kind), ""
        except UserError as error:
            self.content, self.problem = {}, str(error)


class Seen:
    """What is known of a run without opening it."""

    def __init__(self, directory: Path, name: str, points: int) -> None:
        self.directory, self.name = directory, name
        self.environment = Kept(directory / "environment.json", run_files.ENVIRONMENT)
        self.summary = Kept(directory / "summary.json", run_files.SUMMARY)
        self.curve = Thinned(directory / "metrics.jsonl", points)

    def update(self) -> None:
        self.environment.update()
        self.summary.update()
        self.curve.update()

    def row(self, locked: set[int]) -> Row:
        """Figures of the run, the latest ones where it is not finished; None where one is not known."""
        plan = _inner(self.environment.content, "plan")
        settings, summary, last = _inner(plan, "settings"), self.summary.content, self.curve.last
        return {
            "name": self.name,
            "objective": settings.get("objective"),
            "data": _inner(settings, "data").get("source"),
            "state": self._state(locked),
            "step": summary.get("steps", int(number(last, "step") or 0)),
            "steps": summary.get("steps", plan.get("steps")),
            "loss": summary.get("loss") if summary else number(self.curve.look, "loss"),
            "training_loss": number(last, "loss"),
            "chance": summary.get("chance", plan.get("chance")),
            "parameters": plan.get("parameters"),
            "seconds": summary.get("wall_seconds", number(last, "time")),
            "changed": self.curve.changed,
            "points": self.curve.points,
            "problem": self.environment.problem or self.summary.problem,
        }

    def _state(self, locked: set[int]) -> str:
        if self.summary.content:
            return "finished"
        with suppress(OSError):
            if os.stat(self.directory / LOCK).st_ino in locked:
                return "running"
        return "running" if time.time() - self.curve.changed < FRESH else "stopped"


def _inner(content: dict[str, Any], key: str) -> dict[str, Any]:
    """An object within another; an empty one where there is none."""
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def locked_files() -> set[int]:
    """Numbers (inodes) of the files that some process has locked, where the system lists them."""
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in LOCKS.read_text().splitlines()]
        return {int(words[5].rpartition(":")[2]) for words in lines if words[1] == "FLOCK"}
    return set()
