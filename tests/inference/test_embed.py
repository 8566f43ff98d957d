"""Embedding a source: the file, its metadata, and that no interruption at any moment changes a byte of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_encoder import WIDTH, WINDOW, WORDS, save_tiny

import selfsup
from selfsup.errors import UserError
from selfsup.inference import embed as module
from selfsup.inference import items
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.items import LeftOut
from selfsup.inference.texts import Text

embed = partial(selfsup.embed, passages="none")  # a row for each record; passages have tests of their own
RECORDS = 23
BATCH = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("encoder") / "model")


def text(number):
    random = np.random.default_rng(number)
    return " ".join(random.choice(WORDS, random.integers(1, 20)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    lines = [json.dumps({"key": f"k{i}", "content": text(i), "year": 1900 + i}) for i in range(RECORDS)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "embeddings.parquet"
    embed(model, data, out, batch=BATCH)
    return out


def refused(work, *words):
    with pytest.raises(UserError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def vectors(table):
    return np.array(table.column("vector").to_pylist(), np.float32)


# -- the file --


def test_the_file_holds_each_text_with_its_vector(model, data, whole):
    table = pq.read_table(whole)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    assert table.column_names == ["id", "text", "vector"]
    assert table.column("text").to_pylist() == [text(i) for i in range(RECORDS)]
    assert table.column("id").to_pylist() == [f"{data}, line {i + 1}" for i in range(RECORDS)]
    alone = np.concatenate([selfsup.load(model).embed([text(i)], precision="fp32") for i in range(RECORDS)])
    np.testing.assert_allclose(vectors(table), alone, atol=2e-2)  # the file may be made in bf16
    description = json.loads(table.schema.metadata[b"selfsup"])
    assert description["model"] == str(model)
    assert (description["pooling"], description["dimension"], description["records"]) == ("mean", WIDTH, RECORDS)
    assert len(description["model_fingerprint"]) == len(description["data_fingerprint"]) == 32
    truncated = sum(len(text(i).split()) > WINDOW - 2 for i in range(RECORDS))
    assert description["truncated"] == truncated > 0


def test_what_is_told(model, tmp_path):
    lines = ["{broken", *(json.dumps({"text": t}) for t in ("a", " ", "the " * 20)), *['{"text": "b"}'] * 200]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines))
    made = embed(model, source, tmp_path / "out.parquet")
    left_out = made.left_out
    assert (made.records, left_out.truncated, left_out.skipped, left_out.empty) == (202, 1, 1, 1)
    told = made.rows()
    assert list(told) == ["written", "column", "truncated", "skipped", "empty"]
    assert "202 vectors of 32 numbers" in told["written"]


def test_half_precision(model, data, whole, tmp_path):
    embed(model, data, tmp_path / "half.parquet", half=True)
    table = pq.read_table(tmp_path / "half.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float16(), WIDTH)
    np.testing.assert_allclose(vectors(table), vectors(pq.read_table(whole)), rtol=2e-2, atol=2e-2)


def test_vectors_that_half_precision_cannot_hold(model, tmp_path, monkeypatch):
    found = EncoderModel.embed
    monkeypatch.setattr(EncoderModel, "embed", lambda *a, **k: found(*a, **k) * 1e6)
    refused(lambda: embed(model, ["a"], tmp_path / "a.parquet", half=True), "--half")
    embed(model, ["a"], tmp_path / "b.parquet")
    monkeypatch.setattr(EncoderModel, "embed", lambda *a, **k: found(*a, **k) * np.nan)
    refused(lambda: embed(model, ["a"], tmp_path / "a.parquet"), "not finite")
    assert not (tmp_path / "a.parquet").exists()


def test_ids_of_a_column(model, data, tmp_path):
    embed(model, data, tmp_path / "a.parquet", id_column="key", column="content")
    assert pq.read_table(tmp_path / "a.parquet").column("id").to_pylist() == [f"k{i}" for i in range(RECORDS)]
    twice = [{"n": 1, "text": "a"}, {"n": 2, "text": "b"}, {"n": 1, "text": "c"}]
    refused(lambda: embed(model, twice, tmp_path / "b.parquet", id_column="n"), "'1' occurs twice", "record 3")
    refused(lambda: embed(model, data, tmp_path / "b.parquet", id_column="keys"), "keys")
    assert not (tmp_path / "b.parquet.partial").exists()


def test_ids_are_places_wherever_a_command_runs(model, tmp_path, monkeypatch):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "a.txt").write_text("a storm")

    def ids(source):
        out = tmp_path / "out.parquet"
        embed(model, source, out)
        found = pq.read_table(out).column("id").to_pylist()
        out.unlink()
        return found

    for folder in folders:
        monkeypatch.chdir(folder)
        assert ids("a.txt") == ids(".") == ids("../" + folder.name) == [str(folder / "a.txt")]
    assert ids(["a storm", "b"]) == ["document 1", "document 2"]


def test_chunks_are_bounded_by_their_characters():
    made = [Text(str(i), "x" * size, "", {}) for i, size in enumerate([3, 3, 3, 20, 3, 1])]
    sizes = [[len(item.text) for item in chunk] for chunk in items.chunks(iter(made), 3, 8)]
    assert sizes == [[3, 3], [3], [20], [3, 1]]
    assert [len(chunk) for chunk in items.chunks(iter(made[:3] * 2), 2, 8)] == [2, 2, 2]


# -- interruptions --


class Killed(BaseException):
    pass


def count_down(monkeypatch, events):
    """Die at the given moment, counted in calls of the model and in files renamed or removed."""
    left = [events]

    def watched(owner, name):
        original = getattr(owner, name)

        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    watched(EncoderModel, "embed")
    for name in ("replace", "rename", "unlink", "rmdir"):
        watched(Path, name)
    return left


def test_killed_at_every_moment(model, data, whole, tmp_path, monkeypatch):
    moments = 0
    for moment in range(1, 100):
        out = tmp_path / str(moment) / "embeddings.parquet"
        with monkeypatch.context() as patch:
            left = count_down(patch, moment)
            try:
                embed(model, data, out, batch=BATCH)
            except Killed:
                moments += 1
        if left[0] > 0:
            break
        if out.exists():
            refused(lambda out=out: embed(model, data, out, batch=BATCH), "exists already")
        else:
            calls = []
            with monkeypatch.context() as patch:
                patch.setattr(EncoderModel, "embed", spy(EncoderModel.embed, calls))
                embed(model, data, out, batch=BATCH)
            assert len(calls) <= 5
        assert out.read_bytes() == whole.read_bytes()
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        shutil.rmtree(out.parent)
    assert moments > 20


def finished(work):
    """The chunks there by number."""
    return {int(path.name[:9]): path for path in work.glob("[0-9]*.parquet")}


def spy(original, calls):
    def call(self, texts, **options):
        calls.append(len(texts))
        return original(self, texts, **options)

    return call


DYING = """
import os, signal, sys
from selfsup import cli
from selfsup.inference import embed
write, chunks = embed._write_chunk, []
def dying(work, number, *arguments):
    chunks.append(number)
    if len(chunks) == 3:
        (work / f".{number:09d}.0123.parquet.half").write_bytes(b"PAR1")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(work, number, *arguments)
embed._write_chunk = dying
cli.main()
"""


def test_a_process_that_is_killed_loses_one_chunk(model, data, whole, tmp_path):
    out = tmp_path / "embeddings.parquet"
    words = ["embed", str(model), "--data", str(data), "--out", str(out), "--batch", str(BATCH)]
    words += ["--passages", "none"]
    died = subprocess.run([sys.executable, "-c", DYING, *words], capture_output=True)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    assert sorted(finished(tmp_path / "embeddings.parquet.partial")) == [0, 1]
    seen = []
    embed(model, data, out, batch=BATCH, progress=lambda done, total: seen.append((done, total)))
    assert out.read_bytes() == whole.read_bytes()
    assert seen[0][0] == 2 * BATCH
    assert seen[-1] == (RECORDS, RECORDS)
    assert not (tmp_path / "embeddings.parquet.partial").exists()


def test_what_was_begun_otherwise_is_not_mixed(model, data, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        count_down(patch, 6)
        with pytest.raises(Killed):
            embed(model, data, out, batch=BATCH)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out.parquet.partial").iterdir()}
    assert 0 in finished(tmp_path / "out.parquet.partial")
    other = save_tiny(tmp_path / "other", seed=1)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(data.read_text().replace("content", "text"))
    for arguments, words in (
        ((other, data, out), {}),
        ((model, changed, out), {}),
        ((model, data, out), {"half": True}),
        ((model, data, out), {"id_column": "key"}),
    ):
        refused(lambda a=arguments, w=words: embed(*a, batch=BATCH, **w), "begun with another")
    refused(lambda: embed(model, data, out, batch=3), "another batch")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out.parquet.partial").iterdir()}


def test_two_processes_do_not_share_one_output(model, data, tmp_path):
    out = tmp_path / "out.parquet"
    with module._held(tmp_path / "out.parquet.partial", out):
        refused(lambda: embed(model, data, out), "another process")
    embed(model, data, out)


def test_nothing_is_overwritten(model, data, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    refused(lambda: embed(model, data, out), "exists already")
    work = tmp_path / "out.parquet.partial"
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    refused(lambda: embed(model, data, out), "exists already")
    out.unlink()
    refused(lambda: embed(model, data, out), "mine.txt")
    assert (work / "mine.txt").read_text() == "mine"


def test_a_users_file_among_the_chunks_stays(model, data, tmp_path, monkeypatch):
    """One that came there while they were made."""
    out, work = tmp_path / "out.parquet", tmp_path / "out.parquet.partial"
    join = module._join

    def interfere(*arguments):
        for name in ("mine.parquet", ".mine"):
            (work / name).write_text("mine")
        return join(*arguments)

    monkeypatch.setattr(module, "_join", interfere)
    embed(model, data, out)
    assert {path.name: path.read_text() for path in work.iterdir()} == {"mine.parquet": "mine", ".mine": "mine"}


def test_a_source_that_changes_meanwhile(model, tmp_path, monkeypatch):
    source = tmp_path / "a.txt"
    source.write_text("a storm")
    survey = module.survey

    def then_changed(*arguments):
        found = survey(*arguments)
        source.write_text(" ")
        (tmp_path / "b.txt").write_text("x")
        return found

    monkeypatch.setattr(module, "survey", then_changed)
    refused(lambda: embed(model, source, tmp_path / "out.parquet"), "holds no text")
    assert not (tmp_path / "out.parquet").exists()


# -- errors and the command --


def test_errors(model, data, finished, tmp_path):
    out = tmp_path / "out.parquet"
    refused(lambda: embed(tmp_path, data, out), "neither a run nor a model")
    refused(lambda: embed(finished.directory, data, out), "decoder")
    refused(lambda: embed(model, tmp_path / "nothing", out), "no file or folder")
    refused(lambda: embed(model, data, out, batch=0), "batch is 0")
    refused(lambda: embed(model, [" "], out), "holds no text")
    assert not list(tmp_path.iterdir())


def test_the_command(model, data, tmp_path, selfsup_command):
    out, whole = tmp_path / "out.parquet", ("--passages", "none")
    answer = selfsup_command("embed", model, "--data", data, "--out", out, "--id", "key", "--half", "--json", *whole)
    assert answer.code == 0, answer
    made = json.loads(answer.out)
    assert made == {
        "path": str(out),
        "records": RECORDS,
        "dimension": WIDTH,
        **LeftOut({"column": "'content' (not read: year)"}, made["truncated"]).to_json(),
    }
    again = selfsup_command("embed", model, "--data", data, "--out", out)
    assert again.code == 2
    assert again.error == f"selfsup: {out} exists already; give another --out.\n"
    told = selfsup_command("embed", model, "--data", data, "--out", tmp_path / "b.parquet", *whole)
    assert "23 vectors of 32 numbers" in " ".join(told.out.split())
