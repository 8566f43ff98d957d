"""Prepared corpora: the streams, split and facts of a training on the texts themselves, whoever made them, and however
often they were stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tree
from filelock import SoftFileLease

from selfsup.data import preparing as module
from selfsup.data.corpora import Choices, Prepared, open_prepared
from selfsup.data.discovery import CORPUS
from selfsup.data.preparing import Task, complete, prepare_corpus, units_of
from selfsup.data.sources import open_text
from selfsup.data.text import TextCorpus, prepare_text
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "slept", "under", "old", "größere"]
Prepare = Callable[..., Prepared]


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 30))) + f" {n}.\n" for n in range(count)]


def lines(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six files that are five units, with texts that occur twice, a blank and an unreadable one, and one file with
    nothing else."""
    monkeypatch.setattr(module, "SMALLEST", 3000)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        lines(folder / f"{number}.jsonl", texts(40, number))
    lines(folder / "3.jsonl", [" " * 4000])
    (folder / "4.txt").write_text("One text by itself.\n")
    lines(folder / "5.jsonl", [*texts(25, 1), *texts(25, 5)])
    with (folder / "5.jsonl").open("a") as file:
        file.write("{\n")
    return folder


def chosen(source: object, **other: Any) -> Choices:
    usual: dict[str, Any] = {
        "objective": "causal-lm",
        "family": "decoder",
        "column": None,
        "split": "training",
        "tokenizer": "bpe",
        "vocabulary": 400,
        "validation": 0.2,
        "failures": 0.05,
        "seed": 0,
        "duplicates": "keep",
    }
    return Choices(source=str(source), **usual | other)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    def make(source: object, out: str = "corpus", workers: int = 1, **other: Any) -> Prepared:
        return prepare_corpus(chosen(source, **other), tmp_path / out, workers, lambda done, total: None)

    return make


def of_texts(source: object, tmp_path: Path, **other: Any) -> TextCorpus:
    choices = chosen(source, **other)
    return prepare_text(
        open_text(source, failures=choices.failures),
        tokenizer=choices.tokenizer,
        vocabulary=choices.vocabulary,
        validation=choices.validation,
        cache=tmp_path / "cache",
        family=choices.family,
    )


def require_equal(found: TextCorpus, plain: TextCorpus) -> None:
    assert found.tokenizer.fingerprint == plain.tokenizer.fingerprint
    assert found.facts == plain.facts
    assert np.array_equal(np.asarray(found.train), plain.train)
    assert (found.validation is None) == (plain.validation is None)
    if plain.validation is not None:
        assert np.array_equal(np.asarray(found.validation), plain.validation)


# -- what it holds --


@pytest.mark.parametrize("family", ["decoder", "encoder"])
@pytest.mark.parametrize("kind", ["bpe", "characters", "words"])
def test_it_holds_what_the_texts_give(source: Path, prepared: Prepare, tmp_path: Path, family: str, kind: str) -> None:
    other = {"family": family, "tokenizer": kind}
    found = prepared(source, **other)
    require_equal(found.corpus, of_texts(source, tmp_path, **other))
    assert len(found.manifest.train) == 5 - 1  # the blank file gives nothing
    assert found.manifest.left_out == {"blank": 1, "unreadable": 1}
    assert not (tmp_path / "corpus" / "preparing").exists()
    assert not [path for path in (tmp_path / "corpus").rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.999])
def test_shares_that_leave_a_side_nearly_empty(source: Path, prepared: Prepare, tmp_path: Path, share: float) -> None:
    require_equal(prepared(source, validation=share).corpus, of_texts(source, tmp_path, validation=share))


@pytest.mark.parametrize("family", ["decoder", "encoder"])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_single_text(tmp_path: Path, prepared: Prepare, monkeypatch: Any, family: str, copies: int) -> None:
    """Its end is held out; of copies in several units once."""
    monkeypatch.setattr(module, "SMALLEST", 1)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(copies):
        (folder / f"{number}.txt").write_text(" ".join(texts(50)), encoding="utf-8")
    (folder / "9.txt").write_text(" ")
    found = prepared(folder, family=family)
    require_equal(found.corpus, of_texts(folder, tmp_path, family=family))
    assert len(found.manifest.validation) == 1


def test_a_tokenizer_that_is_given(source: Path, prepared: Prepare, tmp_path: Path) -> None:
    given = train_tokenizer("bpe", texts(50), 300)
    (tmp_path / "given").mkdir()
    given.save(tmp_path / "given")
    other = {"tokenizer": str(tmp_path / "given"), "vocabulary": None}
    require_equal(prepared(source, **other).corpus, of_texts(source, tmp_path, **other))


def test_equal_texts_are_removed(source: Path, prepared: Prepare, tmp_path: Path) -> None:
    found = prepared(source, duplicates="exact")
    once = list(dict.fromkeys(open_text(source, failures=0.05).documents()))
    plain = of_texts(once, tmp_path)
    assert found.manifest.removed == {"exact duplicates": 25}
    assert found.corpus.facts.documents == len(once)
    assert np.array_equal(np.asarray(found.corpus.train), plain.train)
    assert np.array_equal(np.asarray(found.corpus.validation), plain.validation)


def test_nearly_equal_texts_are_removed(tmp_path: Path, prepared: Prepare) -> None:
    pytest.importorskip("rensa")
    plain = [" ".join(f"w{word}" for word in row) for row in np.random.default_rng(0).integers(0, 999, (40, 90))]
    lines(tmp_path / "a.jsonl", [*plain, plain[3], f"{plain[5]} and", plain[7].upper()])
    found = prepared(tmp_path / "a.jsonl", duplicates="near")
    assert found.manifest.removed == {"exact duplicates": 1, "near duplicates": 2}
    assert found.corpus.facts.documents == 40


def test_a_large_text_lends_a_sample(source: Path, prepared: Prepare, tmp_path: Path, monkeypatch: Any) -> None:
    """A tokenizer learns from pieces that the seed draws, of the part that is trained on."""
    monkeypatch.setattr(module, "BPE_SAMPLE", 4000)
    seen: list[list[str]] = []

    def train(kind: Any, documents: Any, *rest: Any) -> Any:
        seen.append(list(documents))
        return train_tokenizer(kind, seen[-1], *rest)

    monkeypatch.setattr(module, "train_tokenizer", train)
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepared(source, out, seed=seed)
    first, again, other = seen
    assert first == again != other
    assert 2000 < sum(len(text.encode()) for text in first) < 6000
    held_out = prepared(source, "a").corpus.validation
    assert held_out is not None
    decoded = prepared(source, "a").corpus.tokenizer.decode(np.asarray(held_out))
    assert not [text for text in first if text in decoded]


def test_units_are_whole_files() -> None:
    assert units_of([]) == ()
    assert units_of([1]) == ((0, 1),)
    assert units_of([1 << 20, 5, 1 << 19, 1 << 19, 7]) == ((0, 1), (1, 4), (4, 5))
    assert len(units_of([1 << 20] * 640)) == 64
    assert len(units_of([1 << 26] * 640)) == 640


# -- who makes it --


def test_several_processes_make_the_same(source: Path, prepared: Prepare, tmp_path: Path) -> None:
    prepared(source, "one")
    prepared(source, "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("task", ["_scan", "_settle", "_encode", "_part", "_finish"])
def test_it_goes_on_where_it_was_stopped(
    source: Path, prepared: Prepare, tmp_path: Path, monkeypatch: Any, task: str
) -> None:
    prepared(source, "whole")
    done, own = [], getattr(module.Preparation, task)

    def stops(self: Any, *given: Any, **named: Any) -> Any:
        made = own(self, *given, **named) if task != "_finish" else None
        done.append(given[:1])
        if len(done) == 3 or task in ("_settle", "_finish"):
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch:
        patch.setattr(module.Preparation, task, stops)
        with pytest.raises(KeyboardInterrupt):
            prepared(source)
    with pytest.raises(UserError, match="not ready yet"):
        open_prepared(tmp_path / "corpus")
    redone: list[int] = []
    encode = module.Preparation._encode
    monkeypatch.setattr(module.Preparation, "_encode", lambda self, unit: (redone.append(unit), encode(self, unit))[1])
    prepared(source)
    assert tree(tmp_path / "corpus") == tree(tmp_path / "whole")
    assert len(redone) == {"_scan": 5, "_settle": 5, "_encode": 2, "_part": 4, "_finish": 0}[task]


def test_one_that_is_whole_is_opened(source: Path, prepared: Prepare, tmp_path: Path, monkeypatch: Any) -> None:
    first = prepared(source)
    before = tree(tmp_path / "corpus")
    monkeypatch.setattr(module, "_begin", lambda *given: pytest.fail("nothing is to be done"))
    assert prepared(source).manifest == first.manifest
    assert tree(tmp_path / "corpus") == before


def test_each_task_is_done_once(tmp_path: Path) -> None:
    done: list[int] = []

    def make(number: int) -> None:
        time.sleep(0.01)
        done.append(number)
        (tmp_path / f"{number}.done").touch()

    tasks = [Task(tmp_path / f"{number}.done", lambda number=number: make(number)) for number in range(12)]
    workers = [threading.Thread(target=complete, args=(tasks, lambda: False, lambda: None)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(done) == list(range(12))
    assert not list(tmp_path.glob("*.lease"))


def test_what_a_killed_process_held_is_taken(tmp_path: Path) -> None:
    place = str(tmp_path / "a.lease")
    code = f"from filelock import SoftFileLease as L; lease = L({place!r}, lease_duration=30.0); lease.acquire(); "
    command = [sys.executable, "-c", code + "print(1, flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        taken = threading.Event()
        task = Task(tmp_path / "a.done", lambda: ((tmp_path / "a.done").touch(), taken.set())[1])
        worker = threading.Thread(target=complete, args=([task], lambda: False, lambda: None))
        worker.start()
        assert not taken.wait(3 * module.PAUSE)  # while it lives
        holder.kill()
        holder.wait()
        worker.join(20)
    assert taken.is_set()


def test_a_lease_without_a_sign_of_life_runs_out(tmp_path: Path, monkeypatch: Any) -> None:
    """That of another machine, of which nobody can ask whether its process is there."""
    monkeypatch.setattr(module, "LEASE", 0.5)
    lease = SoftFileLease(tmp_path / "a.lease", lease_duration=0.5)
    monkeypatch.setattr(lease, "_start_heartbeat", lambda *given: None)
    lease.acquire()
    task = Task(tmp_path / "a.done", (tmp_path / "a.done").touch)
    complete([task], lambda: False, lambda: None)
    assert task.result.exists()


@pytest.mark.scale
def test_killed_at_any_moment(source: Path, prepared: Prepare, tmp_path: Path) -> None:
    prepared(source, "whole")
    words = ["prepare", "causal-lm", "--data", source, "--out", tmp_path / "corpus", "data.validation=0.2"]
    words += ["data.failures=0.05", "data.vocabulary=400", "--workers", "2"]
    script = "import selfsup.data.preparing as m; m.SMALLEST = 3000; from selfsup.cli import main; main()"
    for moment in range(40):
        with subprocess.Popen([sys.executable, "-c", script, *map(str, words)], start_new_session=True) as process:
            time.sleep(2 + 0.1 * moment)
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run([sys.executable, "-c", script, *map(str, words)], check=True)
    assert tree(tmp_path / "corpus") == tree(tmp_path / "whole")


# -- what is refused --


@pytest.mark.parametrize(
    "other", [{"validation": 0.3}, {"seed": 1}, {"duplicates": "exact"}, {"vocabulary": 500}, {"tokenizer": "words"}]
)
@pytest.mark.parametrize("begun", [True, False])
def test_other_choices_need_another_name(
    source: Path, prepared: Prepare, tmp_path: Path, monkeypatch: Any, other: dict[str, Any], begun: bool
) -> None:
    if begun:
        monkeypatch.setattr(module, "_make", lambda *given: None)
        with pytest.raises(UserError, match="not ready yet"):
            prepared(source)
    else:
        prepared(source)
    before = tree(tmp_path / "corpus")
    with pytest.raises(UserError, match=f"is prepared with {next(iter(other))} = .*give another --out"):
        prepared(source, **other)
    assert tree(tmp_path / "corpus") == before


def test_a_source_that_changed(source: Path, prepared: Prepare, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module.Preparation, "_settle", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepared(source)
    with (source / "0.jsonl").open("a") as file:
        file.write('{"text": "and one more"}\n')
    with pytest.raises(UserError, match=r"is not what it was when .* was begun"):
        prepared(source)


def test_texts_that_change_while_they_are_read(source: Path, prepared: Prepare, monkeypatch: Any) -> None:
    encode = module.Preparation._encode

    def changes(self: Any, unit: int) -> None:
        lines(source / "0.jsonl", texts(3))
        encode(self, unit)

    monkeypatch.setattr(module.Preparation, "_encode", changes)
    with pytest.raises(UserError, match="changed while it was read"):
        prepared(source)


def test_what_cannot_be_prepared(source: Path, prepared: Prepare, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"more than the share of 0\.001"):
        prepared(source, "a", failures=0.001)
    (tmp_path / "blank.txt").write_text("  \n")
    with pytest.raises(UserError, match="holds no text"):
        prepared(tmp_path / "blank.txt", "b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="exists already"):
        prepared(source, "mine")
    assert list(tree(tmp_path / "mine")) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("format",), "selfsup-corpus-2"),
        (("width",), "uint32"),
        (("train", 0, "tokens"), 10),
        (("train", 0, "tokens"), -1),
        (("train", 0, "name"), "../secrets/00000.bin"),
        (("train", 0, "checksums"), []),
        (("facts", "training_tokens"), 5),
        (("choices", "more"), 1),
        (("tokenizer", "tokenizer.json"), "0" * 32),
        (("tokenizer", "../x"), "0" * 32),
    ],
)
def test_a_manifest_that_lies(source: Path, prepared: Prepare, tmp_path: Path, where: Any, value: Any) -> None:
    prepared(source)
    path = tmp_path / "corpus" / CORPUS
    manifest = json.loads(path.read_text())
    inner = manifest
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"corpus cannot be read \(.*\); restore it from a copy"):
        open_prepared(tmp_path / "corpus")


def test_a_manifest_that_is_none(source: Path, prepared: Prepare, tmp_path: Path, monkeypatch: Any) -> None:
    prepared(source)
    path = tmp_path / "corpus" / CORPUS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        open_prepared(tmp_path / "corpus")
    path.write_bytes(whole)
    monkeypatch.setattr("selfsup.data.corpora.MOST_MANIFEST", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        open_prepared(tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus" / "tokenizer")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"tokenizer/tokenizer.json"):
        open_prepared(tmp_path / "corpus")


def test_its_card_is_no_text_to_train_on(source: Path, prepared: Prepare, tmp_path: Path) -> None:
    prepared(source)
    assert "| documents | 171 (" in (tmp_path / "corpus" / "README.md").read_text()
    with pytest.raises(UserError, match="prepared corpora, which train alone reads"):
        open_text(tmp_path / "corpus")
    (tmp_path / "more.txt").write_text("more")
    table = open_text(tmp_path)
    assert not [part for part in table.parts if "corpus" in part.name]
    assert any("prepared corpora" in told for told in table.left_out)
