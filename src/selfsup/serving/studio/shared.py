"""What the pages of a studio share: its folders, one place for heavy work, streams of events."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from anyio import to_thread
from starlette.responses import StreamingResponse

from selfsup.errors import UserError
from selfsup.run_files import RUN_CONFIG
from selfsup.serving.guard import Folders
from selfsup.serving.studio.processes import Trainings

RUN_FILES = ("environment.json", "summary.json", "metrics.jsonl", "journal.jsonl")  # that are read of a run
HEARTBEAT = 15.0  # seconds after which a silent stream shows that it is alive
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Studio:
    """A studio.

    Attributes:
        folders: those given at the start; the first one is where runs lie.
        ending: whether the server is about to stop, so that streams end.
        trainings: those that were started here.
    """

    folders: Folders
    ending: Callable[[], bool] = lambda: False
    trainings: Trainings = field(default_factory=Trainings)
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def root(self) -> Path:
        """The folder of the runs."""
        return self.folders.places[0]

    def run(self, name: str) -> Path:
        """The directory of a run by its name on the pages, its path below `root`; raises a UserError where there is
        none, or it lies elsewhere."""
        place = Folders([self.root]).inside(name)
        if not os.path.isfile(place / RUN_CONFIG):  # (Path.is_file raises where a name is too long)
            raise UserError(f"{name:.200} is no run below {self.root}; choose one of the list.")
        for file in map(place.joinpath, RUN_FILES):
            if os.path.lexists(file) and not file.is_file():  # a pipe would be waited for without end
                raise UserError(f"{file} is no regular file, so this run is not read.")
        return place

    async def heavy(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What `work` returns, made in a thread of its own while no other heavy work is done."""
        async with self._busy:
            return await to_thread.run_sync(partial(work, *args, **named))

    def farewell(self) -> str:
        """What is said at the end."""
        going_on = self.trainings.running()
        return "The studio has ended." + (f" Still training: {', '.join(going_on)}." if going_on else "")


def events(messages: AsyncIterator[Any]) -> StreamingResponse:
    """Messages as server-sent events, JSON each; None is only a sign of life. A message with `position` can be gone on
    from: the browser sends it back (Last-Event-ID) when it connects anew."""

    async def lines() -> AsyncIterator[str]:
        async for message in messages:
            if message is None:
                yield ": alive\n\n"
                continue
            mark = f"id: {message['position']}\n" if "position" in message else ""
            yield f"{mark}data: {json.dumps(message, ensure_ascii=False)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def looked(look: Callable[[], list[Any]], ending: Callable[[], bool], seconds: float) -> AsyncIterator[Any]:
    """What `look` finds new, asked again and again in a thread, until the server ends; None now and then."""
    silent = 0.0
    while not ending():
        found = await to_thread.run_sync(look)
        for message in found:
            yield message
        silent = 0.0 if found else silent + seconds
        if silent >= HEARTBEAT:
            silent = 0.0
            yield None
        await asyncio.sleep(seconds)
