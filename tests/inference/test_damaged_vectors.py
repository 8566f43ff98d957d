"""Damaged embeddings, libraries and probes are noticed, full disks and other processes lose nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from conftest import Answer, tree
from tiny_encoder import WIDTH, WORDS, save_tiny

import selfsup
from selfsup.errors import UserError
from selfsup.evaluation.probe import Probe, claimed
from selfsup.inference import embed as module
from selfsup.inference.library import KEY, Library
from selfsup.inference.recorded import RECORD

Command = Callable[..., Answer]
BATCH = 8
ROWS = [
    {"id": str(i), "text": f"the {WORDS[i % len(WORDS)]} {WORDS[i * 7 % len(WORDS)]} {i}", "label": "ab"[i % 2]}
    for i in range(30)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("encoder") / "model")


def refused(work: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def faults(content: bytes, count: int) -> list[bytes]:
    """The content cut, emptied, and with a bit flipped in places all over it."""
    places = np.linspace(0, len(content) - 1, count).astype(int).tolist()
    flipped = [content[:p] + bytes([content[p] ^ (1 << p % 8)]) + content[p + 1 :] for p in places]
    return [b"", content[: len(content) // 2], content[:-1], *flipped]


# -- a half-finished embedding -------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def half(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an embedding of which two chunks of four are done, and the whole one."""
    place = tmp_path_factory.mktemp("half")
    write = module._write_chunk

    def dying(work: Path, number: int, *rest: Any) -> Path:
        if number == 2:
            raise Killed
        return write(work, number, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, "_write_chunk", dying)
        selfsup.embed(model, ROWS, place / "x.parquet", batch=BATCH)
    selfsup.embed(model, ROWS, place / "whole.parquet", batch=BATCH)
    return place


def test_a_damaged_chunk_is_made_anew(
    model: Path, half: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (chunk,) = (half / "x.parquet.partial").glob("000000001.*")
    for number, content in enumerate(faults(chunk.read_bytes(), 12)):
        place = Path(shutil.copytree(half, tmp_path / str(number)))
        (place / "x.parquet.partial" / chunk.name).write_bytes(content)
        selfsup.embed(model, ROWS, place / "x.parquet", batch=BATCH)
        assert (place / "x.parquet").read_bytes() == (half / "whole.parquet").read_bytes()
        assert not (place / "x.parquet.partial").exists()
    assert caplog.text.count("is damaged; it is made anew") == 15


@pytest.mark.parametrize("plan", ["", "{", "[]", "{}", "7", '"x"', "[" * 3000, '{"batch": 8}', b"\xff", None])
def test_a_damaged_plan(plan: str | bytes | None, model: Path, half: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(half, tmp_path / "half"))
    file = place / "x.parquet.partial" / "plan.json"
    file.unlink()
    if plan is not None:
        file.write_bytes(plan if isinstance(plan, bytes) else plan.encode())
    before = tree(place)
    refused(lambda: selfsup.embed(model, ROWS, place / "x.parquet", batch=BATCH), "plan.json", "--out")
    assert {name: before[name] for name in before if not name.endswith(".lock")} == {
        name: content for name, content in tree(place).items() if not name.endswith(".lock")
    }


def test_a_plan_of_which_bits_are_flipped(model: Path, half: Path, tmp_path: Path) -> None:
    """It is refused, or what differs is no more than a name, which is given again."""
    plan = (half / "x.parquet.partial" / "plan.json").read_bytes()
    for number, content in enumerate(faults(plan, 25)):
        place = Path(shutil.copytree(half, tmp_path / str(number)))
        (place / "x.parquet.partial" / "plan.json").write_bytes(content)
        try:
            selfsup.embed(model, ROWS, place / "x.parquet", batch=BATCH)
        except UserError:
            continue
        assert (place / "x.parquet").read_bytes() == (half / "whole.parquet").read_bytes()


# -- a library -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "x.lance"
    selfsup.index(model, ROWS[:20], path, id_column="id")
    selfsup.index(model, ROWS, path, id_column="id")
    selfsup.delete(path, ["3"])
    return path


def test_damaged_files_of_a_library(model: Path, library: Path, tmp_path: Path) -> None:
    """It is refused, or gives what it gave: a file may be of no use any more."""
    good = selfsup.search(library, "the storm", top=40)
    noticed = 0
    for file in sorted(path for path in library.rglob("*") if path.is_file() and path.stat().st_size):
        for content in faults(file.read_bytes(), 2):
            copy = Path(shutil.copytree(library, tmp_path / "y.lance"))
            (copy / file.relative_to(library)).write_bytes(content)
            try:
                assert selfsup.search(copy, "the storm", top=40) == good
                assert selfsup.index(model, ROWS, copy, id_column="id").added == 1
            except UserError as error:
                assert "\n" not in str(error)
                noticed += 1
            shutil.rmtree(copy)
    assert noticed > 30


def test_files_of_a_library_that_are_gone(model: Path, library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "y.lance"))
    (copy / RECORD).unlink()
    assert selfsup.search(copy, "the storm", top=40) == selfsup.search(library, "the storm", top=40)
    shutil.rmtree(copy / "data")
    refused(lambda: selfsup.search(copy, "the storm", top=40), "y.lance cannot be used")
    refused(lambda: selfsup.index(model, ROWS, copy, id_column="id"), "y.lance cannot be used")
    refused(lambda: selfsup.delete(copy, ["5"]), "y.lance cannot be used")
    shutil.rmtree(copy / "_versions")
    refused(lambda: selfsup.search(copy, "the storm", top=40), "no library")
    refused(lambda: selfsup.index(model, ROWS, copy), "is no library")


@pytest.mark.parametrize(
    "description",
    ["{", "[]", "7", "{}", "DROP", {"model": 7}, {"model_fingerprint": None}, {"pooling": []}, {"index": "x"},
     {"dimension": "x"}, {"dimension": 7}, {"dimension": 2**40}],
)  # fmt: skip
def test_other_metadata(description: Any, library: Path, tmp_path: Path, model: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "y.lance"))
    opened = Library.open(copy)
    text = json.dumps(opened.description | description) if isinstance(description, dict) else description
    opened._table.update_field_metadata({"path": "vector", "metadata": {KEY: text}})
    for work in (
        lambda: selfsup.search(copy, "the storm"),
        lambda: selfsup.index(model, ROWS, copy, id_column="id"),
        lambda: selfsup.delete(copy, ["5"]),
    ):
        refused(work, "was not made by selfsup index")


def test_tables_of_other_programs(library: Path, tmp_path: Path, model: Path) -> None:
    columns = Library.open(library)._table.search().limit(5).to_arrow()
    database = lancedb.connect(tmp_path)
    width = pa.list_(pa.float32(), WIDTH + 1)
    wide = pa.array([[0.0] * (WIDTH + 1)] * 5, width)
    field = pa.field("vector", width, metadata=columns.schema.field("vector").metadata)
    at = columns.schema.get_field_index("vector")
    tables = {
        "other": pa.table({"x": [1, 2]}),
        "wide": columns.set_column(at, field, wide),
        "numbers": columns.set_column(0, pa.field("id", pa.int64()), pa.array(range(5))),
        "less": columns.drop_columns(["values_hash"]),
    }
    for name, table in tables.items():
        database.create_table(name, table)
        path = tmp_path / f"{name}.lance"
        refused(lambda path=path: selfsup.search(path, "the storm"), "was not made by selfsup index")
        refused(lambda path=path: selfsup.index(model, ROWS, path), "was not made by selfsup index")


def test_two_processes_and_a_new_library(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.lance"
    described = selfsup.inference.opening.open_embedder(model).description()
    with Library.held(path, described):
        refused(lambda: selfsup.index(model, ROWS, path), "another process")
        refused(lambda: selfsup.delete(path, ["5"]), "another process")
    assert selfsup.index(model, ROWS, path).added == 30


def test_a_full_disk(model: Path, tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    """What was there stays, and the same call goes on where there is room."""
    place = small_disk(130_000)
    assert selfsup.index(model, ROWS, place / "x.lance", id_column="id", passages="none").records == 30
    good = selfsup.search(place / "x.lance", "the storm", top=5)
    more = [{"id": f"n{i}", "text": f"the sea {i} " * 10} for i in range(300)]
    refused(lambda: selfsup.index(model, more, place / "x.lance", id_column="id", batch=300), "no space left")
    assert selfsup.search(place / "x.lance", "the storm", top=5) == good
    with pytest.raises(OSError, match="No space left"):
        selfsup.embed(model, more, place / "x.parquet", batch=50)
    assert not (place / "x.parquet").exists()
    moved = Path(shutil.copytree(place / "x.lance", tmp_path / "x.lance"))
    assert selfsup.index(model, more, moved, id_column="id").records == 330


# -- a probe -------------------------------------------------------------------------------------------------


def test_damaged_files_of_a_probe(model: Path, tmp_path: Path) -> None:
    """They are refused, but for bits that mean nothing, such as those that name the header's format."""
    fitted = Probe.fit(model, ROWS)
    fitted.save(tmp_path / "probe")
    accepted = 0
    for file in sorted((tmp_path / "probe").iterdir()):
        whole = file.read_bytes()
        for content in faults(whole, 25):
            file.write_bytes(content)
            try:
                read = Probe.load(tmp_path / "probe")
            except UserError as error:
                assert "is damaged" in str(error)
                continue
            accepted += 1
            assert read.to_json() == fitted.to_json()
            np.testing.assert_array_equal(read.classifier.weight, fitted.classifier.weight)
        file.write_bytes(whole)
    assert accepted < 4
    description = tmp_path / "probe" / "probe.json"
    for other in ("[]", "{}", "7", "[" * 3000, json.dumps(json.loads(description.read_text()) | {"classes": "ab"})):
        description.write_text(other)
        refused(lambda: Probe.load(tmp_path / "probe"), "is damaged")


def test_a_probe_that_another_process_makes(model: Path, tmp_path: Path, selfsup_command: Command) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ("probe", model, "--data", data, "--out", tmp_path / "probe")
    with claimed(tmp_path / "probe"):
        answer = selfsup_command(*words)
        assert (answer.code, answer.out) == (2, "")
        assert "another process" in answer.error
    assert selfsup_command(*words).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe", "rows.jsonl"]


def test_a_place_that_was_taken_while_a_probe_was_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = Probe.fit(model, ROWS)
    to_json = Probe.to_json

    def slowly(self: Probe) -> dict[str, Any]:
        (tmp_path / "probe").mkdir()
        (tmp_path / "probe" / "mine.txt").write_text("mine")
        return to_json(self)

    monkeypatch.setattr(Probe, "to_json", slowly)
    refused(lambda: fitted.save(tmp_path / "probe"), "exists already")
    assert list(tree(tmp_path / "probe")) == ["mine.txt"]
