"""`selfsup.train` from Python: own objectives, models and sources, steps without a finite loss, schedules."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Train, steps_take
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import selfsup
from selfsup.config import Settings
from selfsup.data.records import Batch
from selfsup.errors import Interrupted
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.training import _expected

# -- an objective of one's own -------------------------------------------------------------------------------


class Points:
    """Records x with y = 2 x₀ − 3 x₁; those in `spoilt` have y = NaN."""

    def __init__(self, count: int = 200, spoilt: tuple[int, ...] = ()) -> None:
        self.x = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
        self.y = self.x @ torch.tensor([[2.0], [-3.0]])
        self.y[list(spoilt)] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"x": self.x[indices], "y": self.y[indices]}


class Regression(Objective):
    """Predict y of each record; `heard` keeps what `after_step` was told."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model or nn.Linear(2, 1)
        self.heard: list[tuple[int, int]] = []

    def hide(self, batch: Batch) -> Task:
        return Task(batch.data, {"squared_error": torch.tensor(len(batch))})

    def predict(self, task: Task) -> Outputs:
        return {"y": self.model(task["x"])}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        return {"squared_error": (outputs["y"] - task["y"]).square().sum()}

    def after_step(self, step: int, steps: int) -> None:
        self.heard.append((step, steps))


class Stop(Exception):
    """Ends a training as a crash would."""


def fit(out: Path, objective: Any = Regression, **given: Any) -> Run:
    settings = {"data": Points(), "steps": 60, "batch": 8, "reporter": Reporter(False), "precision": "fp32"}
    return selfsup.train(objective, out=out, **settings | given)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def resumed(out: Path, objective: Any = Regression, **given: Any) -> Run:
    return selfsup.train(objective, resume=out, reporter=Reporter(False), **given)


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.model_directory / "model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def training_lines(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["split"] == "train"]


def crash_after(step: int) -> Callable[[Regression, int, int], None]:
    """An `after_step` that ends the training as a crash would."""

    def after_step(self: Regression, done: int, steps: int) -> None:
        if done + 1 == step:
            raise Stop

    return after_step


def test_an_objective_of_ones_own_learns(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", steps=300, **{"optim.lr": 0.2, "optim.weight_decay": 0})
    assert run.summary["loss"] < 0.01
    assert run.summary["squared_error"] == run.summary["loss"]
    found = weights(run)["model.weight"]
    torch.testing.assert_close(found, torch.tensor([[2.0, -3.0]]), atol=0.05, rtol=0)


def test_a_network_of_ones_own_learns_and_is_the_one_that_was_given(tmp_path: Path) -> None:
    model = network()
    run = fit(tmp_path / "run", model=model, steps=300, **{"optim.lr": 0.1, "optim.adamw_lr": 0.03})
    assert run.summary["loss"] < training_lines(run)[0]["loss"] / 20
    assert equal(weights(run), {f"model.{name}": tensor for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("given", [{}, {"model": network}])
def test_an_objective_of_ones_own_is_resumed_to_the_same_bits(
    given: dict[str, Callable[[], nn.Module]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"checkpoint.every": 7, "train.log_every": 1}
    whole = fit(tmp_path / "whole", **{k: v() for k, v in given.items()}, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Regression, "after_step", crash_after(40))
        with pytest.raises(Stop):
            fit(tmp_path / "cut", **{k: v() for k, v in given.items()}, **settings)
    assert not Run(tmp_path / "cut").summary
    again = resumed(tmp_path / "cut", data=Points(), **{k: v() for k, v in given.items()})
    assert equal(weights(again), weights(whole))
    kept = ("step", "loss", "squared_error", "lr", "grad_norm", "tokens")
    lines = [[{k: line[k] for k in kept} for line in training_lines(run)] for run in (whole, again)]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == list(range(1, 61))


class Worsens(Regression):
    """Its weights drift away from step 20 on; what `Regression.after_step` does comes after that."""

    def after_step(self, step: int, steps: int) -> None:
        if step >= 20:
            with torch.no_grad():
                self.model.weight += 0.5
        super().after_step(step, steps)


def test_the_best_checkpoint_is_kept_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"checkpoint.every": 5, "evaluate.every": 5, "checkpoint.keep": 1}
    whole = fit(tmp_path / "whole", Worsens, **settings)
    assert whole.summary["best"]["step"] == 20
    assert whole.checkpoints().steps() == [20, 30, 60]  # the best, the one before the decay, the newest
    with monkeypatch.context() as patch:
        patch.setattr(Regression, "after_step", crash_after(48))
        with pytest.raises(Stop):
            fit(tmp_path / "cut", Worsens, **settings)
    again = resumed(tmp_path / "cut", Worsens, data=Points())
    assert again.summary["best"] == whole.summary["best"]
    assert again.checkpoints().steps() == [20, 30, 60]
    assert equal(weights(again), weights(whole))


def test_a_resumed_run_of_ones_own_must_have_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Regression, "after_step", crash_after(40))
        with pytest.raises(Stop):
            fit(tmp_path / "run")
    with pytest.raises(selfsup.UserError, match="has changed since"):
        resumed(tmp_path / "run", data=Points(count=201))
    with pytest.raises(selfsup.UserError, match="go on from Python"):
        resumed(tmp_path / "run", None, data=Points())


def test_records_must_be_readable(tmp_path: Path) -> None:
    for data in (None, ["text"], 5):
        with pytest.raises(selfsup.UserError, match="needs records"):
            fit(tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_an_objective_without_parameters_is_refused(tmp_path: Path) -> None:
    class Nothing(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.model.requires_grad_(False)

    with pytest.raises(selfsup.UserError, match="no parameter that can be trained"):
        fit(tmp_path / "run", Nothing)
    assert not (tmp_path / "run").exists()


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    model[1].weight = model[0].weight
    found = weights(fit(tmp_path / "run", model=model, steps=20))
    assert torch.equal(found["model.0.weight"], found["model.1.weight"])


def test_files_of_a_run_hold_json_even_where_a_figure_is_unknown(tmp_path: Path) -> None:
    """The chance of an objective of one's own is not known."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    run = fit(tmp_path / "run", steps=3)
    for name in ("summary.json", "environment.json"):
        json.loads((run.directory / name).read_text(), parse_constant=refuse)
    for line in (run.directory / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


# -- a model of one's own for causal LM ----------------------------------------------------------------------


class Recurrent(nn.Module):
    """A GRU that offers what causal LM asks of a model: hidden states, and the matrix that makes them logits."""

    def __init__(self, vocabulary: int, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.cells = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary, bias=False)

    @property
    def output_weight(self) -> Tensor:
        return self.head.weight

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.cells(self.embedding(tokens))[0]
        return hidden


@pytest.fixture
def recurrent(finished: Run) -> Callable[[], nn.Module]:
    vocabulary = json.loads((finished.model_directory / "config.json").read_text())["vocab_size"]

    def build() -> nn.Module:
        torch.manual_seed(1)
        return Recurrent(vocabulary)

    return build


def test_causal_lm_trains_a_model_of_ones_own(
    recurrent: Callable[[], nn.Module], train: Train, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recurrent()
    whole = train(tmp_path / "whole", model=model, steps=40)
    assert whole.summary["loss"] < 0.9 * whole.summary["chance"]
    assert equal(weights(whole), model.state_dict())
    assert (whole.model_directory / "tokenizer.json").is_file()

    monkeypatch.setattr(Recurrent, "forward", stopping(Recurrent.forward, after=45))
    with pytest.raises(Stop):
        train(tmp_path / "cut", model=recurrent(), steps=40)
    monkeypatch.undo()
    assert 0 < max(Run(tmp_path / "cut").checkpoints().steps()) < 40
    assert equal(weights(resume(tmp_path / "cut", model=recurrent())), weights(whole))


def stopping(forward: Callable[..., Tensor], after: int) -> Callable[..., Tensor]:
    calls = {"made": 0}

    def counted(self: nn.Module, *arguments: Any) -> Tensor:
        calls["made"] += 1
        if calls["made"] > after:
            raise Stop
        return forward(self, *arguments)

    return counted


def test_a_model_of_ones_own_must_be_given_again(
    recurrent: Callable[[], nn.Module], train: Train, resume: Train, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", model=recurrent(), steps=4)
    with pytest.raises(selfsup.UserError) as caught:
        resume(run.directory, steps=8)
    assert "Recurrent" in str(caught.value)
    assert run.summary["steps"] == 4


# -- a source of one's own -----------------------------------------------------------------------------------


class Shouted:
    """A source of a user's own."""

    name = "shouted documents"

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def documents(self) -> Iterator[str]:
        return (text.upper() for text in self.texts)

    def fingerprint(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def test_the_same_documents_give_the_same_model_whatever_they_come_in(
    documents: list[str], finished: Run, train: Train, tmp_path: Path
) -> None:
    import datasets

    for name, data in {"list": documents, "set": datasets.Dataset.from_dict({"text": documents})}.items():
        assert equal(weights(train(tmp_path / name, data=data)), weights(finished))


def test_a_source_of_ones_own_is_trained_on_and_resumed(
    documents: list[str], train: Train, resume: Train, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole", data=Shouted(documents), steps=16)
    vocabulary = json.loads((whole.model_directory / "tokenizer.json").read_text())["model"]["vocab"]
    assert "A" in vocabulary
    assert "a" not in vocabulary
    run = train(tmp_path / "run", data=Shouted(documents), steps=12)
    resume(run.directory, data=Shouted(documents), steps=16)
    assert equal(weights(run), weights(whole))
    with pytest.raises(selfsup.UserError, match="has changed since"):
        resume(run.directory, data=Shouted(documents[1:]), steps=20)
    with pytest.raises(selfsup.UserError, match="came from Python"):
        resume(run.directory, steps=20)
    assert run.summary["steps"] == 16


# -- steps without a finite loss -----------------------------------------------------------------------------


def spoilt_batches(run: Run) -> set[int]:
    """The steps (from 1) whose line of metrics has no loss."""
    return {line["step"] for line in training_lines(run) if line["loss"] is None}


def test_a_step_with_a_nan_loss_is_skipped_counted_and_named(tmp_path: Path) -> None:
    log = StringIO()
    run = fit(
        tmp_path / "run",
        data=Points(spoilt=(17,)),
        reporter=Reporter(to=log),
        **{"train.log_every": 1, "checkpoint.every": 1, "checkpoint.keep": 60, "data.validation": 0},
    )
    skipped = spoilt_batches(run)
    assert len(skipped) == run.summary["skipped_steps"] == 2  # 200 records, 60 steps of 8: 2.4 passes
    checkpoints = run.checkpoints()
    for step in skipped:
        assert f"Step {step} skipped: loss, squared_error is not finite" in log.getvalue()
        before, after = checkpoints.load(step - 1), checkpoints.load(step)
        assert all(equal(before.tensors[part], after.tensors[part]) for part in ("model", "optimizer"))
    assert all(math.isfinite(value) for tensor in weights(run).values() for value in tensor.flatten().tolist())


class BadGradient(Regression):
    """One of two parameters gets a NaN gradient in step 5, from a loss that is finite."""

    def __init__(self) -> None:
        super().__init__()
        self.innocent = nn.Parameter(torch.ones(1))
        self.culprit = nn.Parameter(torch.ones(1))
        self.step = 0

    def after_step(self, step: int, steps: int) -> None:
        self.step = step + 1

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        sums = super().score(outputs, task, collectives)
        spoil = (self.culprit - 1).square().sum().sqrt() if self.step == 5 else self.culprit.sum()
        return {"squared_error": sums["squared_error"] + 0 * self.innocent.sum() + spoil * 0}


def test_the_parameter_with_a_bad_gradient_is_named(tmp_path: Path) -> None:
    """√ at zero: the loss is finite, its gradient is not."""
    log = StringIO()
    run = None
    with pytest.raises(selfsup.UserError, match="10 steps in a row"):
        run = fit(tmp_path / "run", BadGradient, reporter=Reporter(to=log))
    assert run is None
    assert "Step 6 skipped: the gradient of culprit is not finite." in log.getvalue()


def test_ten_steps_in_a_row_end_the_run_and_keep_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Breaks(BadGradient):
        def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
            factor = math.nan if self.step >= 20 else 1.0
            return {"squared_error": (outputs["y"] - task["y"]).square().sum() * factor}

    with pytest.raises(selfsup.UserError) as caught:
        fit(tmp_path / "run", Breaks, **{"checkpoint.every": 8, "train.log_every": 1})
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "10 steps in a row up to step 30" in message
    assert "squared_error" in message or "loss" in message
    assert "optim.lr" in message
    run = Run(tmp_path / "run")
    newest = run.checkpoints().newest()
    assert newest is not None
    assert str(newest.step) in message
    assert all(bool(torch.isfinite(tensor).all()) for tensor in newest.tensors["model"].values())
    assert not run.summary
    assert not run.model_directory.exists()


def test_skips_in_a_row_are_counted_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(Regression):
        def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
            return {"squared_error": (outputs["y"] - task["y"]).square().sum() * math.nan}

    class Crashing(Reporter):
        def say(self, text: str) -> None:
            if text.startswith("Step 7 skipped"):
                raise Stop

    with pytest.raises(Stop):
        fit(tmp_path / "run", Breaks, reporter=Crashing(False), **{"checkpoint.every": 2})
    with pytest.raises(selfsup.UserError, match="10 steps in a row up to step 10 "):
        resumed(tmp_path / "run", Breaks, data=Points())


def test_a_model_that_diverges_ends_with_the_diagnosis(train: Train, tmp_path: Path) -> None:
    """Weights that overflow must not break the look at the validation part, nor the sample."""
    with pytest.raises(selfsup.UserError, match="10 steps in a row"):
        train(tmp_path / "run", steps=30, **{"optim.lr": 1e38, "optim.adamw_lr": 1e38, "optim.warmup": 0})


def test_a_run_that_ends_without_a_finite_loss_says_so(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=4, **{"optim.lr": 1e38, "optim.adamw_lr": 1e38, "optim.warmup": 0})
    assert run.summary["loss"] is None
    assert run.summary["skipped_steps"] == 3


# -- the schedule and the budget -----------------------------------------------------------------------------


def test_the_learning_rate_warms_up_stays_and_decays_to_zero(finished: Run) -> None:
    rates = [line["lr"] for line in training_lines(finished)]
    peak = finished.settings()["optim.lr"]
    expected = [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert rates == pytest.approx([peak * share for share in expected])


def test_a_decay_over_the_whole_run_still_warms_up(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", steps=10, **{"optim.warmup": 1, "optim.decay": 1.0})
    rates = [line["lr"] / run.settings()["optim.lr"] for line in training_lines(run)]
    assert rates == pytest.approx([0.5, *(1 - step / 10 for step in range(1, 10))])


def test_epochs_are_resolved_to_steps(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", epochs=0.1, steps=None)
    settings = run.settings()
    windows = int(run.environment()["plan"]["facts"]["windows"].split()[0].replace(",", ""))
    assert run.summary["steps"] == settings["train.steps"] == round(0.1 * windows / 4)
    assert settings["train.epochs"] is None
    assert "0.1 epochs" in settings.origin("train.steps")


def test_what_follows_a_step_hears_the_same_length_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a budget the length is decided while the run goes on; a resumed run must not know it earlier."""
    heard: list[list[tuple[int, int]]] = [[], []]

    def listen(which: int) -> Callable[[Regression, int, int], None]:
        def after_step(self: Regression, step: int, steps: int) -> None:
            heard[which].append((step, steps))
            if which == 0 and len(Run(tmp_path / "run").journal()) and step > 20 + first_decision():
                raise Stop

        return after_step

    def first_decision() -> int:
        return int(Run(tmp_path / "run").journal()[0]["start"])

    steps_take(0.02, monkeypatch.setattr)
    with monkeypatch.context() as patch:
        patch.setattr(Regression, "after_step", listen(0))
        with pytest.raises(Stop):
            settings = {"checkpoint.every": 1000000, "train.log_every": 1}
            fit(tmp_path / "run", budget=4, steps=None, **settings)
    decided = first_decision()
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():  # as if the crash had come before it was written
        if int(checkpoint.name[5:]) >= decided:
            shutil.rmtree(checkpoint)
    monkeypatch.setattr(Regression, "after_step", listen(1))
    resumed(tmp_path / "run", data=Points())
    again = dict(heard[1])
    logged = heard[0][:-1]  # the last one crashed before anyone else heard of it
    common = [(step, steps) for step, steps in logged if step in again]
    assert len(common) > decided
    assert all(again[step] == steps for step, steps in common)


# -- interruptions -------------------------------------------------------------------------------------------


def test_training_in_a_thread_of_ones_own_works(tmp_path: Path) -> None:
    """Signals belong to the main thread; elsewhere a training must do without."""

    found: list[Run] = []
    thread = threading.Thread(target=lambda: found.append(fit(tmp_path / "run", steps=3)))
    thread.start()
    thread.join()
    assert found[0].summary["steps"] == 3


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(tmp_path / "run", steps=3)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_this_very_step_and_says_how_to_go_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def after_step(self: Regression, step: int, steps: int) -> None:
        if step == 32:
            os.kill(os.getpid(), getattr(signal, name))

    settings = {"checkpoint.every": 20, "train.log_every": 1}
    whole = fit(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Regression, "after_step", after_step)
        with pytest.raises(Interrupted, match=f"step 33.*selfsup train --resume {tmp_path / 'cut'}"):
            fit(tmp_path / "cut", **settings)
    assert max(Run(tmp_path / "cut").checkpoints().steps()) == 33
    assert equal(weights(resumed(tmp_path / "cut", data=Points())), weights(whole))


def test_settings_are_not_shared_between_trainings(finished: Run) -> None:
    assert finished.settings()["model.layers"] == TINY["model"]["layers"] == 1


@given(steps=st.integers(1, 10**7), budget=st.floats(0.1, 1e6))
def test_a_resumed_run_expects_what_was_planned(steps: int, budget: float) -> None:
    """To the step, since schedules follow it; another budget buys as many more as it is longer."""
    plan = {"steps": steps, "settings": {"train": {"budget": budget}}}
    assert _expected(Settings(("test", {"budget": budget})), plan) == steps
    assert _expected(Settings(("test", {"budget": 2 * budget})), plan) == 2 * steps
    assert _expected(Settings(("test", {"steps": 7})), plan) == steps
