"""metrics.jsonl while it grows: what is read thinly agrees with what is read whole, and every line comes once."""

from __future__ import annotations

import json
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from selfsup.serving.studio.metrics import BLOCK, CHUNK, Followed, Thinned, looks

Line = dict[str, Any]


def lines_of(number: int, every: int = 7) -> list[Line]:
    """Lines of so many steps, with a look now and then."""
    made: list[Line] = []
    for step in range(1, number + 1):
        made.append({"step": step, "time": step / 3, "split": "train", "loss": 9 / step, "grad_norm": 1.0})
        if step % every == 0:
            made.append({"step": step, "time": step / 3, "split": "validation", "loss": 10 / step})
    return made


def written(lines: list[Line]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@given(st.integers(0, 3000), st.integers(1, 60), st.lists(st.integers(0, 400_000), max_size=4))
def test_a_thin_curve_is_a_part_of_the_whole_one(number: int, most: int, cuts: list[int]) -> None:
    lines = lines_of(number)
    content = written(lines)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "metrics.jsonl"
        thin = Thinned(path, most)
        path.touch()
        for end in [*sorted(min(cut, len(content)) for cut in cuts), len(content)]:
            with path.open("ab") as file:
                file.write(content[path.stat().st_size : end])
            thin.update()
        train = [line for line in lines if line["split"] == "train"]
        whole = [(line["step"], line["loss"]) for line in train]
        assert set(thin.points) <= set(whole)
        assert thin.points == sorted(thin.points)
        assert len(thin.points) <= 2 * most + 1
        assert thin.points[-1:] == whole[-1:]
        assert thin.last == (train[-1] if train else None)
        assert thin.end == len(content)
        assert not thin.update()
        assert looks(path) == [(line["step"], line["loss"]) for line in lines if line["split"] == "validation"]


def test_a_thin_curve_is_spread_over_the_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(written(lines_of(10_000)))
    thin = Thinned(path, 60)
    thin.update()
    steps = [step for step, _ in thin.points]
    assert 30 <= len(steps) <= 121
    assert max(b - a for a, b in pairwise(steps)) < 300
    assert thin.look == {"step": 9996, "time": 3332.0, "split": "validation", "loss": 10 / 9996}


def test_a_file_that_takes_the_place_of_another_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(written(lines_of(500)))
    thin, followed = Thinned(path, 60), Followed(path, 0)
    thin.update()
    assert followed.read() == lines_of(500)
    other = tmp_path / "other"
    other.write_bytes(written(lines_of(20)))
    os.replace(other, path)
    assert thin.update()
    assert thin.points[-1] == (20, 9 / 20)
    assert followed.read() is None
    path.unlink()
    assert thin.update()
    assert thin.points == []


@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(1, 200))
def test_every_whole_line_comes_once_however_it_is_written(rubbish: list[bytes], piece: int) -> None:
    """With lines between them that are none."""
    expected, content = [], b""
    for number, junk in enumerate(rubbish):
        line = {"step": number + 1, "split": "train", "loss": 1.5}
        expected.append(line)
        content += written([line]) + b"!" + junk.replace(b"\n", b"") + b"\n"
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "metrics.jsonl"
        followed, found = Followed(path, 0), []
        for start in range(0, len(content), piece):
            with path.open("ab") as file:
                file.write(content[start : start + piece])
            found += followed.read() or []
        assert found == expected


def test_a_line_without_end_holds_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(written(lines_of(7)) + b"x" * (3 * CHUNK) + b"\n" + written(lines_of(7)))
    followed, found = Followed(path, 0), []
    for _ in range(8):
        found += followed.read() or []
    assert found == lines_of(7) * 2
    assert looks(path) == [(7, 10 / 7)] * 2
    thin = Thinned(path, 10)
    thin.update()
    assert thin.points[-1] == (7, 9 / 7)
    assert BLOCK < CHUNK


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless", "missing", "."):
        thin, followed = Thinned(tmp_path / name, 10), Followed(tmp_path / name, 0)
        assert not thin.update()
        assert followed.read() == []
