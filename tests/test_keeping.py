"""`selfsup checkpoint`: listed, verified, kept, and written as a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer, Train
from safetensors.torch import load_file

import selfsup
from selfsup.errors import UserError
from selfsup.run import Run
from selfsup.saving import Checkpoint, Checkpoints

Command = Callable[..., Answer]


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(finished.directory, tmp_path / "run"))


def test_checkpoints_are_listed_and_verified(run: Run, selfsup_command: Command) -> None:
    steps = run.checkpoints().steps()
    damaged = run.checkpoints().place(steps[0]) / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    found = json.loads(selfsup_command("checkpoint", run.directory, "--json").out)
    assert [each["step"] for each in found["checkpoints"]] == steps
    problems = [each["problem"] for each in found["checkpoints"]]
    assert problems == ["model.safetensors has the wrong content", *[None] * (len(steps) - 1)]
    assert {each["processes"] for each in found["checkpoints"]} == {1}
    for each in found["checkpoints"]:
        place = run.checkpoints().place(each["step"])
        assert each["bytes"] == sum(path.stat().st_size for path in place.iterdir())
    best = run.summary["best"]["step"]
    assert [each["step"] for each in found["checkpoints"] if "best" in each["stays"]] == [best]
    shown = selfsup_command("checkpoint", run.directory).out
    assert f"Step {steps[0]:,}: model.safetensors has the wrong content." in shown
    assert "damaged" in shown
    assert f"{steps[-1]:,}" in shown


def test_what_is_kept_stays_until_it_is_released(run: Run) -> None:
    first, *_ = steps = run.checkpoints().steps()

    def listed() -> list[str]:
        return next(each.stays for each in selfsup.checkpoint(run).checkpoints if each.step == first)

    def save(step: int) -> list[int]:
        checkpoints = Checkpoints(run.checkpoints_directory, keep=1)
        checkpoints.save(Checkpoint(step, {"model": {}}, {"best": None}))
        checkpoints.wait()
        checkpoints.close()
        return checkpoints.steps()

    selfsup.checkpoint(run, keep=[first])
    assert "kept" in listed()
    assert save(100) == [first, 100]
    assert run.checkpoints().problem(first) is None
    selfsup.checkpoint(run, release=[first])
    assert "kept" not in listed()
    assert save(101) == [101]
    assert first in steps


def test_any_step_is_written_as_the_end_writes_its_model(run: Run, tmp_path: Path, selfsup_command: Command) -> None:
    *_, middle, last = run.checkpoints().steps()
    kept = run.summary["kept"]
    last = last if kept is None else int(kept["step"])
    answer = selfsup_command("checkpoint", run.directory, "--export", last, "--out", tmp_path / "last", "--json")
    assert json.loads(answer.out)["exported"] == str(tmp_path / "last")
    selfsup.checkpoint(run, export=middle, out=tmp_path / "middle")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "last" / name).read_bytes() == (run.model_directory / name).read_bytes()
    written = load_file(tmp_path / "middle" / "model.safetensors")
    trained = run.checkpoints().load(middle).used({})
    assert {f"model.{name}": tensor.tolist() for name, tensor in written.items()} == {
        name: tensor.tolist() for name, tensor in trained.items()
    }
    assert f"{middle:,} steps" in (tmp_path / "middle" / "README.md").read_text(encoding="utf-8")
    assert selfsup.load(tmp_path / "middle").generate("a", tokens=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": [7_000]}, "holds no checkpoint of step 7,000; there are those of"),
        ({"export": 12}, "give both, --export STEP and --out DIR"),
        ({"out": "there"}, "give both, --export STEP and --out DIR"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], said: str, run: Run) -> None:
    with pytest.raises(UserError, match=said):
        selfsup.checkpoint(run, **given)


def test_a_damaged_checkpoint_is_not_exported(run: Run, train: Train, tmp_path: Path) -> None:
    last = run.checkpoints().steps()[-1]
    (run.checkpoints().place(last) / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"is damaged \(state.json has the wrong size\); take another"):
        selfsup.checkpoint(run, export=last, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
