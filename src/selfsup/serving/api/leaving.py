"""Clients that leave before they have their answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


class Left(Exception):
    """The client has gone; nobody reads an answer."""


async def unless_left(request: Request, answer: Coroutine[Any, Any, T], leave: Callable[[], object]) -> T:
    """What answers a request, unless its client goes before; then Left is raised. `leave` is called where the answer is
    not whole at the end."""
    making, watching = asyncio.create_task(answer), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({making, watching}, return_when=asyncio.FIRST_COMPLETED)
        if making.done():
            return await making
        raise Left
    finally:
        if not making.done() or making.cancelled() or making.exception() is not None:
            leave()
        for task in (making, watching):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
