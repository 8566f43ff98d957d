"""Damaged files of a run: whoever reads them says one sentence, exit code 2, and touches nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Answer, Train, tree

from selfsup import files
from selfsup.errors import UserError
from selfsup.run import Run

Command = Callable[..., Answer]
LOOK = {"step": 4, "time": 1.0, "split": "validation", "loss": 2.0}
STEP = {"step": 4, "time": 1.0, "split": "train", "loss": 2.0, "grad_norm": 1.0}
GARBAGE = [b"", b"{", b"[]", b"7", b"null", b'"text"', b'{"a": "\xff"}', b"\0" * 9, b"[" * 100_000, None]
WRONG: dict[str, list[Any]] = {
    "environment.json": [
        {"plan": []}, {"plan": {}}, {"plan": {"steps": "12"}}, {"plan": {"steps": 12, "settings": {"train": 3}}},
        {"plan": {"steps": 12, "settings": {"train": {"budget": "x"}}}}, {"sources": ["a"]}, {"sources": {"a": 1}},
        {"counts": {"documents": "many"}}, {"data": 3}, {"plan": {"steps": 10**400}},
    ],
    "summary.json": [
        {}, {"loss": 2.0}, {"steps": "12"}, {"steps": True}, {"steps": -1}, {"steps": 12, "loss": "low"},
        {"steps": 12, "best": []}, {"steps": 12, "wall_seconds": {}}, {"steps": 12, "skipped_steps": None},
    ],
    "metrics.jsonl": [
        {}, {**LOOK, "step": None}, {**LOOK, "step": -1}, {**LOOK, "split": "test"}, {**LOOK, "loss": "low"},
        {**STEP, "grad_norm": []}, {k: v for k, v in STEP.items() if k != "grad_norm"}, {**STEP, "tokens": "many"},
        {**LOOK, "time": None}, {**LOOK, "loss": 10**400},
    ],
    "journal.jsonl": [
        {}, {"start": 3}, {"start": 3, "end": 3}, {"start": "3", "end": 9}, {"extended_from": None}, {"look": -1},
    ],
}  # fmt: skip
READERS = {
    "environment.json": ("doctor", "compare", "resume", "extend"),
    "summary.json": ("doctor", "compare", "resume"),
    "metrics.jsonl": ("doctor", "compare", "extend"),
    "journal.jsonl": ("extend",),
    "config.yaml": ("doctor", "compare", "resume", "inspect"),
}
WORDS: dict[str, Callable[[Path], list[object]]] = {
    "doctor": lambda run: ["doctor", run],
    "compare": lambda run: ["compare", run, run.parent / "other"],
    "resume": lambda run: ["train", "--resume", run],
    "extend": lambda run: ["train", "--resume", run, "--steps", 20],
    "inspect": lambda run: ["inspect", "--run", run, "--text", "The cat"],
}


@pytest.fixture
def place(finished: Run, tmp_path: Path) -> Path:
    shutil.copytree(finished.directory, tmp_path / "other")
    return Path(shutil.copytree(finished.directory, tmp_path / "run"))


def spoil(path: Path, content: bytes | None) -> None:
    """Put something else into the place of a file; None stands for a directory."""
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)


def contents(name: str) -> list[bytes | None]:
    if name == "config.yaml":
        return [content for content in GARBAGE if content is not None]  # a directory there is no run
    lines = name.endswith("jsonl")
    garbage = [content + b"\n" if lines and content is not None else content for content in GARBAGE]
    return garbage + [json.dumps(value).encode() + b"\n" * lines for value in WRONG[name]]


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_holds_something_else_is_named(name: str, place: Path, selfsup_command: Command) -> None:
    for content in contents(name):
        spoil(place / name, content)
        before = tree(place)
        for reader in READERS[name]:
            answer = selfsup_command(*WORDS[reader](place))
            assert answer.code == 2, (reader, content, answer)
            (line,) = answer.error.splitlines()
            assert line.startswith("selfsup: "), line
            assert name in line, line
        assert tree(place) == before
        if content is None:
            (place / name).rmdir()


@pytest.mark.parametrize("name", ["environment.json", "summary.json", "metrics.jsonl"])
def test_a_pipe_is_not_waited_for(name: str, place: Path) -> None:
    (place / name).unlink()
    os.mkfifo(place / name)
    run = Run(place)
    reader = {"environment.json": run.environment, "summary.json": lambda: run.summary}.get(name, run.metrics)
    with pytest.raises(UserError, match=f"{name}: it is no regular file"):
        reader()


def test_the_same_from_python(place: Path) -> None:
    run = Run(place)
    readers: list[tuple[str, Callable[[], object]]] = [
        ("environment.json", run.environment),
        ("environment.json", run.settings),
        ("summary.json", lambda: run.summary),
        ("metrics.jsonl", run.metrics),
        ("journal.jsonl", run.journal),
        ("config.yaml", run.config),
        ("config.yaml", run.settings),
    ]
    for name, read in readers:
        whole = (place / name).read_bytes() if (place / name).exists() else b""
        for content in (b"[]\n", b"\xff\n"):
            spoil(place / name, content)
            with pytest.raises(UserError, match=name):
                read()
        spoil(place / name, whole)


def test_a_plan_that_is_gone_is_missed_by_a_resume(place: Path, selfsup_command: Command) -> None:
    content = json.loads((place / "environment.json").read_text())
    del content["plan"]
    (place / "environment.json").write_text(json.dumps(content))
    answer = selfsup_command("train", "--resume", place, "--steps", 20)
    assert answer.code == 2
    assert "holds no plan" in answer.error
    assert selfsup_command("doctor", place).code == 0


def test_a_setting_that_is_gone_is_missed(place: Path, selfsup_command: Command) -> None:
    text = (place / "config.yaml").read_text()
    for key, instead in (
        *((key, "") for key in ("batch", "lr", "validation", "width")),
        *((key, f"  {key}: null\n") for key in ("micro_batch", "weight_decay")),
    ):
        changed = re.sub(rf"^  {key}:.*\n", instead, text, count=1, flags=re.MULTILINE)
        assert changed != text
        (place / "config.yaml").write_text(changed)
        answer = selfsup_command("train", "--resume", place, "--steps", 20)
        assert answer.code == 2
        assert f".{key}, which the run was planned with" in answer.error


# -- checkpoints ---------------------------------------------------------------------------------------------


def sealed(directory: Path) -> None:
    """Make the manifest of a checkpoint hold again."""
    (directory / "manifest.json").unlink()
    files.write_manifest(directory)


def drop_a_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(iter(tensors)))


def add_a_weight(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.strange"] = torch.zeros(3)


def reshape_a_weight(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].reshape(-1)[:-1].clone()


def retype_a_weight(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].double()


STATES = ["[]", "3", "null", "{}", "{", '{"skipped": 0}',
          '{"skipped": "0", "skipped_in_a_row": 0, "best": null, "elapsed": 1.0}',
          '{"skipped": 0, "skipped_in_a_row": 0, "best": 3, "elapsed": 1.0}']  # fmt: skip
CHANGES: list[Any] = [drop_a_weight, add_a_weight, reshape_a_weight, retype_a_weight]


@pytest.mark.parametrize("change", [*STATES, *((file, c) for file in ("model", "optimizer") for c in CHANGES)])
def test_a_checkpoint_that_does_not_fit_is_passed_over_whatever_its_checksums_say(
    change: Any, finished: Run, place: Path, resume: Train, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(place)
    (place / "summary.json").unlink()
    newest = max(run.checkpoints().steps())
    checkpoint = run.checkpoints_directory / f"step-{newest:09d}"
    if isinstance(change, str):
        (checkpoint / "state.json").write_text(change)
    else:
        file = checkpoint / f"{change[0]}.safetensors"
        tensors = safetensors.torch.load_file(file)
        change[1](tensors)
        safetensors.torch.save_file(tensors, file)
    sealed(checkpoint)
    resume(place)
    assert f"step-{newest:09d} is damaged" in caplog.text
    assert tree(run.model_directory) == tree(finished.model_directory)


def test_where_none_fits_nothing_is_touched(place: Path, selfsup_command: Command) -> None:
    run = Run(place)
    (place / "summary.json").unlink()
    for step in run.checkpoints().steps():
        (run.checkpoints_directory / f"step-{step:09d}" / "state.json").write_text("[]")
        sealed(run.checkpoints_directory / f"step-{step:09d}")
    before = tree(place)
    answer = selfsup_command("train", "--resume", place)
    assert answer.code == 2
    assert answer.error.splitlines()[-1].startswith("selfsup: All checkpoints in")
    assert tree(place) == before
