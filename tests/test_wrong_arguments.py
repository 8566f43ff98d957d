"""Every parameter of every command with wrong values: one sentence, exit code 2, no traceback, nothing touched."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import TINY, TINY_WORDS, Answer, tree
from tiny_clip import save_tiny_clip
from tiny_encoder import save_tiny
from tiny_vision import save_photos, save_tiny_vision

import selfsup
from selfsup import cli
from selfsup.errors import UserError
from selfsup.evaluation.probe import Probe
from selfsup.run import Run

Command = Callable[..., Answer]
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
TINY_TRAINING = ["causal-lm", "--data", "c.jsonl", *(word for word in TINY_WORDS if word[:6] != "steps=")]
BASES = {  # a use of each command that works
    "train": [*TINY_TRAINING, "--out", "new", "--steps", "1"],
    "plan": [*TINY_TRAINING, "--steps", "1"],
    "prepare": ["causal-lm", "--data", "c.jsonl", "--out", "new", "--workers", "1"],
    "adapt": ["run", "--data", "c.jsonl", "--out", "new"],
    "inspect": ["causal-lm", "--text", "a b c d", "--tokenizer", "words"],
    "compare": ["run", "other"],
    "report": ["run", "--out", "new.html"],
    "doctor": ["run"],
    "checkpoint": ["run", "--export", "12", "--out", "new"],
    "generate": ["run", "The", "--tokens", "3"],
    "fill": ["encoder", "The [MASK]"],
    "show": ["seer", "--image", "photo.png", "--out", "new.png"],
    "evaluate": ["run", "--protocol", "perplexity"],
    "zero-shot": ["pairs", "photo.png", "--labels", "a", "b"],
    "probe": ["encoder", "--data", "c.jsonl", "--out", "new"],
    "classify": ["encoder", "a cat", "--probe", "probe"],
    "export": ["run", "--to", "transformers", "--out", "new"],
    "push": ["run", "--to", "me/model", "--dry-run"],
    "embed": ["encoder", "--data", "c.jsonl", "--out", "new.parquet"],
    "index": ["encoder", "--data", "c.jsonl", "--out", "new.lance"],
    "search": ["library.lance", "cat"],
    "delete": ["library.lance", "a"],
    "machine": ["folder"],
    "serve": ["run", "--port", "0"],
    "studio": ["folder", "--data", "nothing", "--port", "0", "--no-browser"],
}
LONG = "x" * 5000
NOT_THERE = ["missing", "", LONG, "\x1b[2J", "missing/below", "c.jsonl/below"]
NO_RUN = [*NOT_THERE, "folder", "c.jsonl", "binary", "library.lance", "endless", "pipe", "a text"]
NO_DATA = [*NOT_THERE, "empty.txt", "nothing", "binary", "endless", "none*.txt", "sample:tolstoy", "hub:"]
TAKEN = ["c.jsonl", "folder", "c.jsonl/below", LONG, "pipe"]  # never a device: a fault would replace it
NO_NAME = ["accuracy", "", LONG, "\x1b[2J", "../x"]
NO_NUMBER = ["-1", "nan", "1" + "0" * 30, "x", "", "1e400"]
WRONG = {  # by the name of a parameter: values that none of the commands takes
    "run": [*NO_RUN, "other-objective"],
    "model": NO_RUN,
    "models": [*NO_RUN, "a b=run", "=run"],
    "--library": [*NOT_THERE, "run", "c.jsonl", "folder", "endless"],
    "--host": ["nowhere.invalid", LONG, "\x1b[2J", "8.8.8.8", "1.2.3"],
    "--api-key": ["", " ", "\x1b[2J", "é"],
    "library": [*NOT_THERE, "run", "c.jsonl", "folder", "endless"],
    "runs": NO_RUN,
    "--resume": NO_RUN,
    "--run": NO_RUN,
    "--model": NO_RUN,
    "--teacher": NO_RUN,
    "--init": NO_RUN,
    "--rerank": NO_RUN,
    "--image-init": NO_RUN,
    "--text-init": ["run"],  # of another objective
    "--probe": [*NOT_THERE, "run", "c.jsonl", "endless"],
    "--data": NO_DATA,
    "--test": NO_DATA,
    "--also": NO_DATA,
    "images": [value for value in (*NO_DATA, "folder") if value],
    "--image": [value for value in (*NO_DATA, "folder") if value],
    "--config": [*NOT_THERE, "folder", "binary", "endless", "c.jsonl"],
    "--prompts": [*NOT_THERE, "folder", "binary", "endless", "empty.txt"],
    "--tokenizer": [*NO_NAME, "c.jsonl", "folder", "binary", "endless"],
    "--out": TAKEN,
    "--html": TAKEN,
    "--png": TAKEN,
    "--plot": [*TAKEN, "curves", "curves.bmpp"],
    "--protocol": NO_NAME,
    "--to": NO_NAME,
    "--quantize": NO_NAME,
    "--revision": ["", LONG, "\x1b[2J", "../x", "a b"],
    "--duplicates": NO_NAME,
    "--device": NO_NAME,
    "--precision": NO_NAME,
    "--label": ["nothing", LONG, "\x1b[2J"],
    "--column": ["nothing", LONG, "\x1b[2J"],
    "--id": ["nothing", LONG, "\x1b[2J"],
    "--where": ["nothing", "", LONG, "\x1b[2J", "1;"],
    "--templates": ["nothing", ""],
    "--captions": ["nothing", ""],
    "--split": NO_NAME,
    "ids": ["nothing", ""],
    "directory": ["missing", LONG, "\x1b[2J", "c.jsonl", "c.jsonl/below", "pipe", "endless"],
    "--stop": [""],
    "words": ["causal-ml", "fast", "c.jsonl", "seed=1", "=", "model.layers=[", "layers=1", LONG, "run"],
    "text": ["", "without a place"],
    "--budget": ["-1", "0", "nan", "x", "5 minutes", LONG],
    "--gpus": ["h10", "", LONG, "0:h100", "-1:h100", "x:h100", "8:", "8", "9999999:h100", "²:h100"],
}
NUMBERS = {"--steps", "--epochs", "--batch", "--seed", "--window", "--tokens", "--temperature", "--top-k", "--top-p"}
NUMBERS |= {"--price", "--utilisation"}
NUMBERS |= {"--min-p", "--repetition-penalty", "--top", "--size", "--failures", "--records"}
NUMBERS |= {"--overlap", "--passages", "--per-document", "--dimension", "--candidates", "--workers"}
NUMBERS |= {"--port", "--processes", "--keep", "--release", "--export"}
ANY = {"prompts", "given", "query", "--text", "--labels"}  # texts, of which none is wrong
LENGTHS = ("--steps", "--epochs", "--budget")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens


@pytest.fixture(scope="module")
def furnished(
    finished: Run, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes | None]]:
    """A directory with what the commands use, much that they cannot use, and what lies in it."""
    place = tmp_path_factory.mktemp("furnished")
    for name in ("run", "other"):
        shutil.copytree(finished.directory, place / name)
    texts = [{"text": f"{animal} number {n}", "class": animal} for animal in ("cat", "dog") for n in range(8)]
    (place / "c.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    save_tiny(place / "encoder")
    save_tiny_vision(place / "seer")
    save_tiny_clip(place / "pairs")
    save_photos(place / "photos", 2)
    shutil.copy(next((place / "photos").rglob("*.png")), place / "photo.png")
    selfsup.index(place / "encoder", place / "c.jsonl", place / "library.lance")
    Probe.fit(place / "encoder", place / "c.jsonl").save(place / "probe")
    (place / "binary").write_bytes(bytes(range(256)) * 9)
    (place / "empty.txt").touch()
    os.mkfifo(place / "pipe")
    (place / "endless").symlink_to("/dev/zero")
    (place / "nothing").mkdir()
    (place / "folder").mkdir()
    (place / "folder" / "thesis.tex").write_text("mine")
    return place, tree(place)


def without(words: list[str], option: str) -> list[str]:
    """A use of a command without one of its options, and without another length where that is one."""
    gone = {*LENGTHS} if option in LENGTHS else {option}
    kept = [word for at, word in enumerate(words) if word not in gone and words[at - 1] not in gone]
    return [word for word in kept if not (option == "--prompts" and word == "The")]


def uses(command: str) -> Iterator[tuple[str, str, list[str]]]:
    """(parameter, wrong value, words) of a command, for every parameter that it has.

    Of long lists of wrong values each command gets every other one: one command the even ones, the next the odd ones.
    """
    base, place = BASES[command], 0
    for parameter in COMMANDS[command].params:
        name = parameter.opts[0]
        is_option = name.startswith("--")
        if name in ANY or name == "--help" or getattr(parameter, "is_flag", False):
            place += not is_option
            continue
        values = NO_NUMBER if name in NUMBERS else WRONG[name]
        for value in values[list(BASES).index(command) % 2 :: 2] if values[2:] else values:
            if {(command, value), (command, name)} & FINE:
                continue
            shown = OTHER.get(command, "run") if value == "other-objective" else value
            words = [*without(base, name), name, shown] if is_option else [*base[:place], shown, *base[place + 1 :]]
            yield name, value, words
        place += not is_option


OTHER = {"fill": "run", "show": "encoder", "zero-shot": "seer", "generate": "encoder"}  # has another objective
FINE = {
    *((name, "seed=1") for name in ("train", "plan", "prepare", "inspect")),  # the objective is causal-lm without it
    *(("studio", folder) for folder in ("", "folder", "library.lance", "nothing")),  # it would serve them
    *((name, "other-objective") for name in ("doctor", "checkpoint", "evaluate", "export", "push")),  # of any
}


@pytest.mark.parametrize("command", BASES)
def test_wrong_values(
    command: str,
    furnished: tuple[Path, dict[str, bytes | None]],
    monkeypatch: pytest.MonkeyPatch,
    selfsup_command: Command,
) -> None:
    place, before = furnished
    monkeypatch.chdir(place)
    for name, value, words in uses(command):
        answer = selfsup_command(command, *words)
        said = f"{command} {name} {value[:40]!r}: {answer}"
        if name in NUMBERS and answer.code == 0:
            continue
        assert answer.code == 2, said
        assert answer.out == "", said
        *_, last = answer.error.splitlines()
        assert last.startswith("selfsup: "), said
        assert answer.error.count("selfsup: ") == 1, said
        assert "Traceback" not in answer.error, said
    for made in ("new", "new.html", "new.png", "new.parquet", "new.lance"):
        shutil.rmtree(place / made, ignore_errors=True)
        (place / made).unlink(missing_ok=True)
    now = {name: content for name, content in tree(place).items() if not name.startswith("runs")}
    assert now == before


def test_every_command_is_here() -> None:
    assert BASES.keys() == COMMANDS.keys()
    assert TINY


# -- the same from Python ------------------------------------------------------------------------------------

PYTHON: dict[str, dict[str, Any]] = {  # a use of functions that works, by the place where it is
    "embed": {"run": "encoder", "data": "c.jsonl", "out": "new.parquet"},
    "index": {"run": "encoder", "data": "c.jsonl", "out": "new.lance"},
    "evaluate": {"run": "encoder", "data": "c.jsonl", "protocol": "rankme"},
    "probe": {"run": "encoder", "data": "c.jsonl", "out": "new"},
    "classify": {"run": "encoder", "data": "c.jsonl", "probe": "probe"},
    "zero_shot": {"run": "pairs", "images": "photo.png", "labels": ["a", "b"]},
    "search": {"library": "library.lance", "query": "cat"},
    "fill": {"run": "encoder", "text": "The [MASK]"},
    "generate": {"run": "run", "prompts": "The"},
    "export": {"run": "run", "out": "new", "to": "transformers"},
    "push": {"run": "run", "to": "me/model", "dry_run": True},
    "show": {"run": "seer", "images": "photo.png"},
    "doctor": {"run": "run"},
    "checkpoint": {"run": "run"},
    "prepare": {"data": "c.jsonl", "out": "new"},
}
WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("run", "library", "probe", "out"), (3, b"run", ["run"])),
    **dict.fromkeys(("column", "id_column", "label", "protocol", "to", "device", "query", "text"), (3, b"x", ["x"])),
    **dict.fromkeys(("quantize", "revision"), (3, b"x", ["x"])),
    **dict.fromkeys(("batch", "top", "size", "workers"), (0, 2.5, "4", True)),
    "failures": (-0.1, 1.5, "0.5", True, None),
    "passages": (0, 2.5, "some", True, ["auto"]),
    "overlap": (-1, 0.5, True, "x"),
    "per_document": (0, 1.5, "1"),
    "seed": (0.5, "1", None),
}  # fmt: skip


@pytest.mark.parametrize("name", PYTHON)
def test_wrong_types_from_python(
    name: str, furnished: tuple[Path, dict[str, bytes | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, before = furnished
    monkeypatch.chdir(place)
    function = getattr(selfsup, name)
    for parameter in inspect.signature(function).parameters:
        for value in WRONG_TYPES.get(parameter, ()):
            with pytest.raises(UserError) as caught:
                function(**{**PYTHON[name], parameter: value})
            assert str(caught.value).count(".") >= 1, (name, parameter, value)
    assert {key: content for key, content in tree(place).items() if not key.startswith("runs")} == before


def test_a_run_stands_for_its_directory(furnished: tuple[Path, dict[str, bytes | None]]) -> None:
    place, _ = furnished
    assert len(selfsup.generate(Run(place / "run"), "The", tokens=2)) == 1
    assert selfsup.doctor(Run(place / "run")).run == str(place / "run")


def test_texts_by_themselves_have_no_column(
    furnished: tuple[Path, dict[str, bytes | None]], monkeypatch: pytest.MonkeyPatch, selfsup_command: Command
) -> None:
    monkeypatch.chdir(furnished[0])
    answer = selfsup_command("classify", "encoder", "a cat", "--probe", "probe", "--column", "text")
    assert (answer.code, answer.out) == (2, "")
    assert "have no columns" in answer.error
