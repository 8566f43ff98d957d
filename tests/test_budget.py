"""The clock of a run on a budget, in a simulated time: whatever the machine does, the run ends when it was asked to."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import Train, steps_take, tree
from test_training import Points, Regression, fit, training_lines
from tiny_clip import save_tiny_clip

import selfsup
from selfsup import budget, planning
from selfsup.budget import Clock
from selfsup.data.records import Batch
from selfsup.models.parity import uncompared
from selfsup.objectives.base import Objective, Task
from selfsup.objectives.custom import CustomRecipe
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.saving import Checkpoints

ASKED = 60.0
STARTUP, STEP, LOOK, EMBEDDING, WRITING = 2.0, 0.25, 0.01, 0.002, 0.4  # seconds, of records or each
WHITENED = 600  # records
Load = Callable[[float], float]


class Wall:
    """A clock that stands still but for what is spent, times the load of that moment."""

    def __init__(self, load: Load) -> None:
        self.now, self.load = 0.0, load

    def spend(self, seconds: float) -> None:
        while seconds > 0:
            part = min(seconds, 0.05)
            self.now += part * self.load(self.now)
            seconds -= part


class Slow(Regression):
    """What each of its tasks takes is simulated."""

    wall: ClassVar[Wall]

    def hide(self, batch: Batch) -> Task:
        self.wall.spend(STEP if self.training else LOOK * len(batch))
        return super().hide(batch)


def busy_from(share: float, factor: float) -> Load:
    return lambda now: factor if now >= share * ASKED else 1.0


def uneven(now: float) -> float:
    """Each moment by itself one to three times as slow."""
    return 1 + 2 * float(np.random.default_rng(int(now * 10)).random())


LOADS: dict[str, tuple[Load, float, tuple[float, float]]] = {
    "quiet": (lambda _: 1.0, WRITING, (0.9, 1.03)),
    "a slow disk": (lambda _: 1.0, 5.0, (0.85, 1.05)),
    "uneven": (uneven, WRITING, (0.85, 1.05)),
    "twice as slow from half": (busy_from(0.5, 2), WRITING, (0.85, 1.2)),
    "both cores busy from half": (busy_from(0.5, 8), WRITING, (0.8, 1.2)),
    "both cores busy near the end": (busy_from(0.9, 5), WRITING, (0.85, 1.2)),
    "busy from the last look": (busy_from(0.93, 4), WRITING, (0.85, 1.2)),
    "busy until half": (lambda now: 4.0 if now < ASKED / 2 else 1.0, WRITING, (0.8, 1.1)),
    "hiccups": (lambda now: 20.0 if now % 10 < 0.2 else 1.0, WRITING, (0.8, 1.05)),
}


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Run, float]]:
    """A run on a budget in simulated time, and the seconds that it took."""

    def run(out: Path, load: Load = lambda _: 1.0, writing: float = WRITING, **given: Any) -> tuple[Run, float]:
        wall = Wall(load)
        wall.spend(STARTUP)
        written: list[float] = []

        Slow.wall = wall

        def save_checkpoint(self: Checkpoints, *_: Any) -> None:
            written.append(writing * load(wall.now))
            whole_save(self, *_)

        def save(self: CustomRecipe, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
            wall.spend(WHITENED * EMBEDDING + budget.SAVES * writing)
            whole_model(self, objective, directory, summary)

        whole_save, whole_model = Checkpoints.save, CustomRecipe.save
        with monkeypatch.context() as patch:
            patch.setattr(planning, "_time_step", lambda *_: STEP)  # in real time it would say how busy this machine is
            patch.setattr(Checkpoints, "save", save_checkpoint)
            seconds = property(lambda _: written[-1] if written else None, lambda *_: None)
            patch.setattr(Checkpoints, "seconds", seconds, raising=False)
            patch.setattr(CustomRecipe, "save", save)
            patch.setattr(CustomRecipe, "whitening_records", property(lambda _: WHITENED))
            patch.setattr(CustomRecipe, "whitened", lambda _, __, records: wall.spend(records * EMBEDDING))
            clock = Clock(wall.now, lambda: wall.now)
            intervals = {
                "train.log_every": 1,
                "optim.warmup": 5,
                "evaluate.every": 40,
                "evaluate.records": 24,
                "evaluate.final_records": 240,
            }
            given = {"budget": ASKED, "steps": None, "data": Points(3000), "clock": clock} | intervals | given
            return fit(out, Slow, **given), wall.now

    return run


@pytest.mark.parametrize("load", LOADS)
def test_a_budget_is_kept(load: str, simulate: Callable[..., tuple[Run, float]], tmp_path: Path) -> None:
    factor, writing, (low, high) = LOADS[load]
    run, seconds = simulate(tmp_path / "run", factor, writing)
    assert low <= seconds / ASKED <= high
    assert run.summary["wall_seconds"] == pytest.approx(seconds, abs=0.001)
    decays = [entry for entry in run.journal() if "start" in entry]
    assert decays[-1]["end"] == run.summary["steps"]
    assert len(decays) < 100
    rates = [line["lr"] for line in training_lines(run)]
    assert rates[-1] < 0.5 * max(rates)


# -- what is cut short ---------------------------------------------------------------------------------------


def crash(self: CustomRecipe, *_: Any) -> None:
    raise KeyError("crash")


def test_an_end_that_was_cut_short_is_repeated_as_it_was_decided(
    simulate: Callable[..., tuple[Run, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was busy then and is not any more; the look is as short as it was going to be."""
    load, writing, _ = LOADS["both cores busy from half"]
    with monkeypatch.context() as patch:
        patch.setattr(CustomRecipe, "save", crash)
        with pytest.raises(KeyError, match="crash"):
            simulate(tmp_path / "cut", load, writing)
    cut = Run(tmp_path / "cut")
    journal, look = cut.journal(), decided(cut, "look")
    assert look < 240
    run = selfsup.train(Slow, resume=tmp_path / "cut", data=Points(3000), reporter=Reporter(False))
    assert run.journal() == journal
    assert run.summary["validation_records"] == look
    assert run.metrics()[-1]["records"] == look


def decided(run: Run, what: str) -> int:
    (entry,) = [entry[what] for entry in run.journal() if what in entry]
    return int(entry)


def test_a_short_budget_leaves_the_comparison_to_the_export(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_take(0.05, monkeypatch.setattr)
    run = train(tmp_path / "run", budget=5)
    assert not decided(run, "compared")
    assert run.summary["max_difference"] is None
    assert_unchecked_until_exported(run.model_directory, tmp_path / "exported")


@pytest.mark.parametrize("layout", ["image", "text", "masked-lm"])
def test_what_was_saved_without_a_comparison_is_compared_when_it_is_exported(
    layout: str, train: Train, tmp_path: Path
) -> None:
    with uncompared():
        if layout == "masked-lm":
            model = train(tmp_path / "run", layout, steps=2).model_directory
        else:
            model = save_tiny_clip(tmp_path / "clip") / layout
    assert_unchecked_until_exported(model, tmp_path / "exported")


def assert_unchecked_until_exported(model: Path, out: Path) -> None:
    card = (model / "README.md").read_text()
    assert "unchecked when it was written (`selfsup export` to transformers checks it)" in card
    difference = selfsup.export(model, out=out, to="transformers").max_difference
    assert difference is not None
    assert difference < 1e-4
    exported = (out / "README.md").read_text()
    assert f"max |Δ| = {difference:.2e} against stock transformers, in fp32" in exported
    assert "unchecked" not in exported
    assert (model / "README.md").read_text() == card
    again = selfsup.export(out, out=out.with_name("again"), to="transformers")
    assert again.max_difference is None  # the card says how exact it is
    assert tree(again.directory) == tree(out)


def test_a_longer_budget_pays_for_the_comparison(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "UNHURRIED", 1.0)
    monkeypatch.setattr(budget, "LATE", 100.0)
    steps_take(0.05, monkeypatch.setattr)
    run = train(tmp_path / "run", budget=5)
    assert run.summary["max_difference"] < 1e-4
    assert all("compared" not in entry for entry in run.journal())
    assert "unchecked" not in (run.model_directory / "README.md").read_text()


def test_the_clock_of_a_command_counts_from_its_start() -> None:
    begun, words = time.monotonic(), "from selfsup.budget import Clock; print(Clock.of_process().elapsed())"
    script = f"import time; time.sleep(0.5); {words}"
    said = float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)
    assert 0.49 <= said <= time.monotonic() - begun + 0.05


def test_a_run_that_starts_late_makes_a_few_steps_all_the_same(tmp_path: Path) -> None:
    """What starting a command takes is no reason to refuse its budget."""
    run = fit(tmp_path / "run", budget=5.0, steps=None, clock=Clock(9.0))
    assert run.summary["steps"] == budget.FEWEST_STEPS
    assert run.summary["wall_seconds"] > 9
