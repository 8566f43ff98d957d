"""What a server keeps open: models, libraries and the like, within a bound, each in a thread of its own.

All that is computed with one of them runs in its thread, one thing after the other. What is computed piece by piece
takes turns there, and ends where nobody waits for the next piece any more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from selfsup.inference.base import Model
from selfsup.inference.opening import load
from selfsup.machine import find_device

MOST = 4  # that are open at once
END = object()

M = TypeVar("M")
T = TypeVar("T")


class Held(Generic[M]):
    """Something that is open, and its thread, which ends when nobody holds it any more."""

    def __init__(self, opened: M) -> None:
        self.opened = opened
        self._thread = ThreadPoolExecutor(1)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """What `work` returns, in the thread, behind all that was asked before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


class Kept(Generic[M]):
    """What was opened, by its directory; what was used longest ago gives way to what is new. It is opened anew where
    the files of the directory have changed.

    Args:
        open_: opens what a directory holds; a UserError of it is told to whoever asked.
        most: how many are open at once.
    """

    def __init__(self, open_: Callable[[Path], M], most: int = MOST) -> None:
        self._open, self._most = open_, most
        self._held: OrderedDict[Path, tuple[object, Held[M]]] = OrderedDict()
        self._opening = ThreadPoolExecutor(1)  # so that what two ask for at once is opened once

    async def ask(self, directory: Path, work: Callable[[M], T]) -> T:
        """What `work` makes of what a directory holds."""
        held = await self._find(directory)
        return await held.run(work, held.opened)

    async def stream(self, directory: Path, work: Callable[[M], Iterator[T]]) -> AsyncIterator[T]:
        """The same, piece by piece."""
        held = await self._find(directory)
        pieces = await held.run(work, held.opened)
        while (piece := await held.run(next, pieces, END)) is not END:
            yield piece

    async def _find(self, directory: Path) -> Held[M]:
        return await asyncio.get_running_loop().run_in_executor(self._opening, self._opened, directory)

    def _opened(self, directory: Path) -> Held[M]:
        state = _state(directory)
        known, held = self._held.pop(directory, (None, None))
        if held is None or known != state:
            held = Held(self._open(directory))
        self._held[directory] = (state, held)
        while len(self._held) > self._most:
            self._held.popitem(last=False)
        return held


def _state(directory: Path) -> object:
    """What changes with the files of a directory."""
    files = ((path, path.stat()) for path in sorted(directory.rglob("*")) if path.is_file())
    return [(path, status.st_size, status.st_mtime_ns) for path, status in files]


def open_model(directory: Path) -> Model:
    """The model of a directory, where it computes fastest."""
    model = load(directory)
    model.to(find_device("auto"))
    return model
