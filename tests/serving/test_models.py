"""What a server keeps open: opened once, anew when its files change, one thing after the other, left by who leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfsup.errors import UserError
from selfsup.serving.models import Kept


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    places = [tmp_path / name for name in "abc"]
    for place in places:
        place.mkdir()
        (place / "file").write_text(place.name)
    return places


def test_what_two_ask_for_at_once_is_opened_once(places: list[Path]) -> None:
    opened: list[str] = []

    def open_(place: Path) -> str:
        opened.append(place.name)
        return place.name

    async def ask() -> list[str]:
        kept = Kept(open_, most=2)
        first = await asyncio.gather(*(kept.ask(places[0], str.upper) for _ in range(5)))
        for number in (1, 0, 2, 0, 1):  # the second gives way to the third, since the first was used behind it
            await kept.ask(places[number], str.upper)
        return first

    assert asyncio.run(ask()) == ["A"] * 5
    assert opened == ["a", "b", "c", "b"]


def test_files_that_change_are_opened_anew(places: list[Path]) -> None:
    async def ask() -> list[str]:
        kept = Kept(lambda place: (place / "file").read_text())
        before = await kept.ask(places[0], str)
        (places[0] / "file").write_text("changed")
        return [before, await kept.ask(places[0], str)]

    assert asyncio.run(ask()) == ["a", "changed"]


def test_all_work_on_one_runs_in_one_thread(places: list[Path]) -> None:
    async def ask() -> set[str]:
        kept = Kept(lambda place: place)
        names = await asyncio.gather(
            *(kept.ask(places[0], lambda _: threading.current_thread().name) for _ in range(9))
        )
        return set(names)

    assert len(asyncio.run(ask())) == 1


def test_streams_end_where_nobody_waits(places: list[Path]) -> None:
    made: list[str] = []
    ended = threading.Event()

    def count(name: str) -> Iterator[str]:
        try:
            for number in range(1000):
                made.append(f"{name}{number}")
                yield made[-1]
        finally:
            ended.set()

    async def first_three(kept: Kept[Path], name: str) -> list[str]:
        pieces: list[str] = []
        async for piece in kept.stream(places[0], lambda _: count(name)):
            pieces.append(piece)
            if len(pieces) == 3:
                return pieces
        return pieces

    async def ask() -> list[list[str]]:
        kept: Kept[Path] = Kept(lambda place: place)
        return await asyncio.gather(first_three(kept, "x"), first_three(kept, "y"))

    assert asyncio.run(ask()) == [["x0", "x1", "x2"], ["y0", "y1", "y2"]]
    assert len(made) == 6
    assert ended.wait(10)


def test_what_cannot_be_opened_is_told(places: list[Path]) -> None:
    def refuse(place: Path) -> None:
        raise UserError("No.")

    with pytest.raises(UserError, match="No"):
        asyncio.run(Kept(refuse).ask(places[0], str))
