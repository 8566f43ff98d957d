"""What a run will be: said before its first step, and then true."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY, Answer, Train, steps_take, tree

import selfsup
from selfsup import planning
from selfsup.budget import Clock
from selfsup.config import Settings
from selfsup.objectives import find_recipe
from selfsup.objectives.checks.contrastive import FEWEST_RECORDS, small_batch
from selfsup.objectives.recipe import Effort
from selfsup.rates import KeptRate
from selfsup.report import Reporter
from selfsup.run import Run

SMALL = [
    "model.layers=1",
    "model.width=32",
    "model.heads=1",
    "data.window=16",
    "--batch",
    "4",
    "--tokenizer",
    "characters",
]
FIELDS = {
    *("facts", "parameters", "steps", "records", "flops", "step_seconds", "seconds", "peak_memory"),
    *("matrix_flops", "chance", "settings", "sources"),
}


# -- `selfsup plan` ------------------------------------------------------------------------------------------


@pytest.fixture
def answer(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selfsup_command: Callable[..., Answer]
) -> Answer:
    monkeypatch.chdir(tmp_path)
    return selfsup_command("plan", "causal-lm", "--data", corpus, *SMALL, "--steps", "50", "--json")


def test_a_plan_writes_nothing_and_is_one_json_object(answer: Answer, tmp_path: Path) -> None:
    assert answer.code == 0
    assert tree(tmp_path) == {}
    assert answer.error == ""
    plan = json.loads(answer.out)
    assert plan.keys() == FIELDS
    assert plan["steps"] == 50
    assert plan["records"] == 200
    low, high = plan["seconds"]
    assert 0 < low < high
    assert plan["chance"] == pytest.approx(math.log(int(plan["facts"]["tokens"].rpartition(" ")[2])))
    assert plan["settings"]["train"]["steps"] == 50
    assert plan["sources"]["train.steps"] == "command line"
    assert plan["settings"]["model"]["mlp"] is not None


def test_a_training_is_what_its_plan_said(
    answer: Answer, corpus: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]
) -> None:
    selfsup_command("train", "causal-lm", "--data", corpus, *SMALL, "--steps", "50", "--out", tmp_path / "run")
    run = Run(tmp_path / "run")
    said, planned = json.loads(answer.out), run.environment()["plan"]
    for key in ("facts", "parameters", "steps", "records", "flops", "chance"):
        assert said[key] == planned[key]
    assert run.summary["parameters"] == said["parameters"]
    assert run.summary["steps"] == said["steps"]
    assert run.summary["tokens"] == said["records"] * 16
    different = {"out"}
    assert {k: v for k, v in said["settings"].items() if k not in different} == {
        k: v for k, v in planned["settings"].items() if k not in different
    }


def test_the_plan_is_said_before_the_first_step(train: Train, tmp_path: Path) -> None:
    log = StringIO()
    train(tmp_path / "run", reporter=Reporter(to=log))
    text = log.getvalue()
    for word in ("documents", "parameters", "steps", "records", "FLOPs", "memory", "time", "held out"):
        assert word in text
    assert text.index("parameters") < text.index("step 4 ") < text.index("Done in")


def test_every_choice_has_an_origin(corpus: Path) -> None:
    plan, settings = selfsup.plan("causal-lm", data=corpus, steps=30)
    assert plan.sources == settings.sources
    for key in ("model.layers", "model.width", "data.window", "train.batch", "optim.lr", "train.precision"):
        assert settings.origin(key) not in ("default", "python"), key
    assert settings.origin("train.steps") == "python"


def test_without_a_length_there_is_a_budget_of_two_minutes(corpus: Path) -> None:
    plan, settings = selfsup.plan("causal-lm", data=corpus, model=TINY["model"], batch=4, **{"data.window": 16})
    assert (settings["train.budget"], settings.origin("train.budget")) == (120, "default")
    assert settings["train.steps"] is None
    low, high = plan.seconds
    assert low <= 120 <= high
    assert plan.steps * plan.step_seconds == pytest.approx(120, rel=0.1)


def test_a_larger_effort_takes_a_larger_model(documents: list[str]) -> None:
    def parameters(steps: int) -> int:
        plan, _ = selfsup.plan("causal-lm", data=documents, steps=steps, tokenizer="characters", batch=1)
        return plan.parameters

    assert parameters(20) < parameters(2000)


def test_the_micro_batch_fits_the_memory(documents: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def micro_batch(free: int) -> int:
        monkeypatch.setattr(planning, "free_memory", lambda device: free)
        given: dict[str, Any] = {**TINY, "batch": 64, "steps": 5}
        _, settings = selfsup.plan("causal-lm", data=documents, **given)
        assert settings.origin("train.micro_batch") == "memory"
        return int(settings["train.micro_batch"])

    assert micro_batch(2**40) == 64
    sizes = [micro_batch(free) for free in (2**24, 2**22, 2**20, 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 1


def test_sentences_that_fill_rows_of_others_have_their_memory_too(
    documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two short ones and a third may lie in the same row, which then costs no more than before."""
    short = [" ".join(document.split()[: 3 + number % 5]) for number, document in enumerate(documents)]

    def micro_batch(free: int) -> int:
        monkeypatch.setattr(planning, "free_memory", lambda device: free)
        given: dict[str, Any] = {**TINY, "batch": 64, "steps": 5}
        _, settings = selfsup.plan("simcse", data=short, **given)
        return int(settings["train.micro_batch"])

    assert micro_batch(2**40) == 64
    assert micro_batch(2**19) < 64


def test_a_budget_that_leaves_no_time_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(selfsup.UserError, match="leaves no time"):
        train(tmp_path / "run", budget=0.05)
    assert not (tmp_path / "run").exists()


def test_intervals_follow_the_length() -> None:
    settings = Settings(("test", {"train.batch": 8, "train.micro_batch": 2, "optim.lr": 0.01}))
    recipe = SimpleNamespace(settings=settings, validation=range(1000))
    planning._settle_intervals(recipe, 5000)  # type: ignore[arg-type]
    assert settings["optim.weight_decay"] == pytest.approx(planning.FORGOTTEN / (0.01 * 5000))
    assert settings["optim.warmup"] == 100
    assert settings["train.log_every"] == 25
    assert settings["evaluate.every"] == settings["checkpoint.every"] == 500
    assert settings["evaluate.final_records"] == 1000
    for looked, share in (("records", planning.LOOKS_SHARE / 10), ("final_records", planning.FINAL_SHARE)):
        assert settings[f"evaluate.{looked}"] * planning.FORWARD_SHARE <= share * 5000 * 8
    assert settings["evaluate.batch"] == 2 * planning.EVALUATION_BATCHES


@pytest.mark.parametrize(("budget", "looks"), [("9s", 1), ("45s", 4), ("1h", 10)])
def test_a_short_budget_is_not_spent_on_looks(budget: str, looks: int) -> None:
    settings = Settings(("test", {"train.batch": 8, "train.micro_batch": 2, "optim.lr": 0.01, "budget": budget}))
    recipe = SimpleNamespace(settings=settings, validation=range(1000))
    planning._settle_intervals(recipe, 400)  # type: ignore[arg-type]
    assert 400 // settings["evaluate.every"] == looks


# -- load ----------------------------------------------------------------------------------------------------

# Times of a step and seconds before the plan is made: at rest, busy, starved, and behind a long preparation.
LOADS = ((0.05, 1.0), (0.4, 1.0), (3.0, 8.0), (0.05, 20.0))
FOLLOW_FROM_TIME = {"length of the run", "held-out part and time"}
SIZED: dict[str, dict[str, Any]] = {
    "causal-lm": {"tokenizer": "characters"},
    "masked-lm": {"tokenizer": "characters"},
    "simclr": {},
    "dino": {},
}


@pytest.mark.parametrize("objective", SIZED)
def test_load_changes_no_size(objective: str, corpus: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "kept_rate", lambda *_: KeptRate(3e10, "once"))
    monkeypatch.setattr(planning, "_fitting_micro_batch", lambda *_: 8)
    data = corpus if objective.endswith("lm") else drawings

    def sizes(step: float, before: float) -> dict[str, Any]:
        monkeypatch.setattr(planning, "_time_step", lambda *_: step)
        monkeypatch.setattr(Clock.__init__, "__defaults__", (before, lambda: 0.0))
        _, settings = selfsup.plan(objective, data=data, budget=60, **SIZED[objective])
        follows = {key for key in settings.names() if settings.origin(key) in FOLLOW_FROM_TIME}
        return {key: settings[key] for key in set(settings.names()) - follows}

    first, *others = (sizes(*load) for load in LOADS)
    assert all(other == first for other in others)
    assert {"train.batch", "model.width", "optim.lr"} <= first.keys()


@pytest.mark.parametrize("objective", ["simclr", "vicreg", "clip"])
def test_no_batch_is_smaller_than_the_doctor_allows(objective: str, captioned: Path) -> None:
    """However little there is to spend."""
    kind = find_recipe(objective)
    assert small_batch in kind.checks
    recipe = kind(kind.resolve(("test", {"objective": objective, "data": str(captioned)})))
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(flops=1.0))
    assert recipe.settings["train.batch"] == FEWEST_RECORDS


@pytest.mark.parametrize(
    ("step_seconds", "said"), [(0.11, None), (0.3, None), (2.0, "busy"), (0.05, "selfsup machine --keep")]
)
def test_steps_that_do_not_suit_the_kept_rate_are_told_of(step_seconds: float, said: str | None) -> None:
    """Each has 100 GFLOP, and the machine 1 TFLOP/s."""
    settings = {"train": {"batch": 8, "micro_batch": 8}}
    given: dict[str, Any] = {"facts": {}, "parameters": 1, "records": 80, "seconds": (1.0, 2.0), "peak_memory": 1}
    plan = planning.Plan(
        **given,
        steps=10,
        flops=1e12,
        step_seconds=step_seconds,
        matrix_flops=1e12,
        chance=None,
        settings=settings,
        sources={},
    )
    assert plan.reached == pytest.approx(0.1 / step_seconds)
    assert said is None if not plan.apart() else said in plan.apart()["pace"]


# -- the same, measured --------------------------------------------------------------------------------------


@pytest.mark.parametrize("drift", [0.7, 1.0, 1.8])
@pytest.mark.parametrize("length", [{"steps": 40}, {"budget": 55}])
def test_the_time_of_a_run_lies_in_the_interval_that_was_said(
    length: dict[str, float], drift: float, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its steps turn out to take less or more than they took when they were timed."""
    monkeypatch.setattr(planning, "_time_step", lambda *_: 0.7)
    steps_take(0.7 * drift, monkeypatch.setattr)
    run = train(tmp_path / "run", **length)
    low, high = run.environment()["plan"]["seconds"]
    assert low <= run.summary["wall_seconds"] <= high


@pytest.fixture(scope="module")
def measured(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, float]]:
    """Two trainings in processes of their own, beside each other: by steps and by budget, and how long each took."""
    lengths = {"steps": ["--steps", "400"], "budget": ["--budget", "15s"]}
    directory = tmp_path_factory.mktemp("measured")
    begun, processes = time.monotonic(), {}
    for name, length in lengths.items():
        words = ["train", "causal-lm", "--data", str(corpus), "--out", str(directory / name), *SMALL, *length]
        processes[name] = subprocess.Popen([sys.executable, "-m", "selfsup", *words], stderr=subprocess.PIPE)
    found = {}
    for name, process in processes.items():
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        found[name] = (Run(directory / name), time.monotonic() - begun)
    return found


@pytest.mark.long
@pytest.mark.parametrize("length", ["steps", "budget"])
def test_the_time_that_was_said_is_near_that_of_the_wall(length: str, measured: dict[str, tuple[Run, float]]) -> None:
    """Three times beyond what was said is allowed: what else the machine does may change at any moment."""
    run, _ = measured[length]
    low, high = run.environment()["plan"]["seconds"]
    assert low / 3 <= run.summary["wall_seconds"] <= 3 * high


@pytest.mark.long
@pytest.mark.parametrize("length", ["steps", "budget"])
def test_the_memory_of_a_run_is_within_a_quarter_of_what_was_said(
    length: str, measured: dict[str, tuple[Run, float]]
) -> None:
    run, _ = measured[length]
    said = run.environment()["plan"]["peak_memory"]
    assert 0.8 <= run.summary["peak_memory"] / said <= 1.25


@pytest.mark.long
def test_a_budget_ends_on_time_with_a_schedule_that_has_decayed(measured: dict[str, tuple[Run, float]]) -> None:
    run, seconds = measured["budget"]
    assert run.summary["wall_seconds"] <= seconds < 3 * 15
    *decisions, last = run.journal()
    assert last == {"compared": False}
    journal = [entry for entry in decisions if "look" not in entry]
    assert journal
    assert all(entry.keys() == {"start", "end"} for entry in journal)
    assert journal[-1]["end"] == run.summary["steps"]
    rates = {line["step"]: line["lr"] for line in run.metrics() if line["split"] == "train"}
    peak = run.settings()["optim.lr"]
    assert max(rates.values()) == peak
    assert rates[max(rates)] < peak
    decayed = [rate for step, rate in sorted(rates.items()) if step > journal[0]["start"]]
    assert decayed == sorted(decayed, reverse=True)
    assert journal[0]["start"] in run.checkpoints().steps()  # from where it can be extended
