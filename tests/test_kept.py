"""The model that is kept: that of the look with the lowest held-out loss, where the end's is higher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PAIRS, Train, Trained
from safetensors.torch import load_file
from test_resume import timeless
from test_training import Points, Regression, Stop, Worsens, crash_after, equal, fit, resumed, weights

import selfsup
from selfsup.objectives.custom import CustomRecipe
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.seeding import derive
from selfsup.trainer import Trainer

EVERY = 5
LOOKS = {"evaluate.every": EVERY, "evaluate.records": 6, "evaluate.final_records": 10**9, "train.log_every": 1}
BEST = 20  # whose weights do best: from there on they drift away


@pytest.fixture(scope="module")
def told() -> StringIO:
    return StringIO()


@pytest.fixture(scope="module")
def worsened(told: StringIO, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose weights are best in the middle; checkpoints are due at its end alone."""
    settings = {**LOOKS, "checkpoint.every": 60, "checkpoint.keep": 1, "reporter": Reporter(to=told)}
    return fit(tmp_path_factory.mktemp("worsened") / "run", Worsens, **settings)


def lines(run: Run, split: str) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["split"] == split]


def held_out_loss(weights: dict[str, torch.Tensor]) -> float:
    """Of a line through all points that are held out, by numpy."""
    points = Points()
    held_out = [i for i in range(len(points)) if derive(0, "validation", i) < 0.1 * 2**63]
    x, y = points.x[held_out].double().numpy(), points.y[held_out].double().numpy()
    made = x @ weights["model.weight"].double().numpy().T + weights["model.bias"].double().numpy()
    return float(np.square(made - y).mean())


def test_the_model_is_that_of_the_best_look(worsened: Run) -> None:
    looks = {line["step"]: line["loss"] for line in lines(worsened, "validation")}
    assert min(looks, key=lambda step: looks[step]) == BEST
    assert equal(weights(worsened), worsened.checkpoints().load(BEST).tensors["model"])
    assert not equal(weights(worsened), worsened.checkpoints().load(60).tensors["model"])


def test_what_is_told_of_it_is_of_those_weights(worsened: Run, told: StringIO) -> None:
    kept, looks = worsened.summary["kept"], {line["step"]: line["loss"] for line in lines(worsened, "validation")}
    assert kept == {"step": BEST, "loss": looks[BEST], "end_loss": looks[60]}
    assert worsened.summary["best"] == {"step": BEST, "loss": looks[BEST]}
    assert worsened.summary["loss"] == pytest.approx(held_out_loss(weights(worsened)), rel=1e-5)
    (last,) = lines(worsened, "kept")
    assert (last["step"], last["of"], last["loss"]) == (60, BEST, worsened.summary["loss"])
    assert last == worsened.metrics()[-1]
    assert [entry for entry in worsened.journal() if "kept" in entry] == [{"kept": kept}]
    sentence = f"The held-out loss was lowest at step 20 ({kept['loss']:.4f}; {kept['end_loss']:.4f} at the end)"
    assert f"{sentence}: its weights are kept." in told.getvalue().replace("\n", " ")


def test_like_is_compared_with_like(worsened: Run) -> None:
    """The end is looked at by as many records as all other looks, the weights that are kept by all."""
    assert {line["records"] for line in lines(worsened, "validation")} == {6}
    (last,) = lines(worsened, "kept")
    assert last["records"] == worsened.summary["validation_records"] > 6


def test_an_end_that_is_best_is_kept_and_nothing_is_said(tmp_path: Path) -> None:
    log = StringIO()
    run = fit(tmp_path / "run", **LOOKS, reporter=Reporter(to=log))
    assert equal(weights(run), run.checkpoints().load(60).tensors["model"])
    assert run.summary["kept"] is None
    assert run.summary["best"]["step"] == 60
    assert not lines(run, "kept")
    assert "weights are kept" not in log.getvalue()
    assert all("kept" not in entry for entry in run.journal())


class Incomparable(Worsens):
    losses_compare = False


def test_where_losses_do_not_compare_the_end_is_kept(tmp_path: Path) -> None:
    log = StringIO()
    run = fit(tmp_path / "run", Incomparable, **LOOKS, reporter=Reporter(to=log))
    assert equal(weights(run), run.checkpoints().load(60).tensors["model"])
    assert run.summary["kept"] is None
    assert "weights are kept" not in log.getvalue()


# -- killed, damaged, extended -------------------------------------------------------------------------------


def crash(self: object, *_: object) -> None:
    raise Stop


@pytest.mark.parametrize("at", [12, 22, 48, "the model", "the summary"])
def test_killed_anywhere_it_keeps_the_same(
    at: int | str, worsened: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if isinstance(at, int):
            patch.setattr(Regression, "after_step", crash_after(at))
        else:
            patch.setattr(*((CustomRecipe, "save") if at == "the model" else (Run, "write_summary")), crash)
        with pytest.raises(Stop):
            fit(tmp_path / "cut", Worsens, **LOOKS, **{"checkpoint.every": 60, "checkpoint.keep": 1})
    again = resumed(tmp_path / "cut", Worsens, data=Points())
    assert equal(weights(again), weights(worsened))
    assert timeless(again) == timeless(worsened)
    assert again.checkpoints().steps() == worsened.checkpoints().steps()
    for name in ("kept", "best", "loss"):
        assert again.summary[name] == worsened.summary[name]
    assert sum("kept" in entry for entry in again.journal()) == 1


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_without_its_checkpoint_the_end_is_kept_and_that_is_said(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Regression, "after_step", crash_after(48))
        with pytest.raises(Stop):
            fit(tmp_path / "run", Worsens, **LOOKS)
    place = Run(tmp_path / "run").checkpoints_directory / f"step-{BEST:09d}"
    if harm == "gone":
        shutil.rmtree(place)
    else:
        (place / "model.safetensors").write_bytes(b"half")
    log = StringIO()
    run = selfsup.train(Worsens, resume=tmp_path / "run", data=Points(), reporter=Reporter(to=log))
    assert f"lowest at step {BEST}, whose checkpoint is damaged" in log.getvalue().replace("\n", " ")
    assert equal(weights(run), run.checkpoints().load(60).tensors["model"])
    assert run.summary["kept"] is None


class Bumpy(Regression):
    """Worse for a while from step 24 on; in a run of a hundred steps also from step 32 on, and for good."""

    def after_step(self, step: int, steps: int) -> None:
        if 24 <= step < 30 or (steps == 100 and step >= 32):
            with torch.no_grad():
                self.model.weight += 0.3
        super().after_step(step, steps)


def test_an_extended_run_keeps_what_one_of_that_length_would(tmp_path: Path) -> None:
    """It goes on from before the decay, and the best look up to there is still there."""
    how = {"evaluate.every": 10, "checkpoint.every": 100, "checkpoint.keep": 1, "optim.lr": 0.1, "optim.adamw_lr": 0.1}
    how |= {"optim.warmup": 2, "optim.weight_decay": 0.0, "train.log_every": 1, "evaluate.records": 10**9}
    short = fit(tmp_path / "run", Bumpy, **how)
    run = resumed(short.directory, Bumpy, data=Points(), steps=100)
    straight = fit(tmp_path / "straight", Bumpy, steps=100, **how)
    assert straight.summary["kept"]["step"] == 20
    assert run.summary["kept"] == straight.summary["kept"]
    assert equal(weights(run), weights(straight))
    assert timeless(run) == timeless(straight)


def test_a_run_that_kept_an_earlier_look_is_extended_from_before_its_decay(worsened: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(worsened.directory, tmp_path / "run"))
    resumed(run.directory, Worsens, data=Points(), steps=80)
    straight = fit(tmp_path / "straight", Worsens, steps=80, **LOOKS, **{"checkpoint.every": 60, "checkpoint.keep": 1})
    trained = [[line for line in timeless(each) if line["split"] == "train"] for each in (run, straight)]
    assert trained[0] == trained[1]
    assert equal(weights(run), weights(straight))
    assert (run.directory / "earlier" / "step-000000060" / "model").is_dir()


# -- recipes -------------------------------------------------------------------------------------------------


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses are one higher from step 8 on, but for weights that are kept."""
    measured: Callable[..., dict[str, float]] = Trainer._losses

    def losses(self: Trainer, source: Any, records: int) -> dict[str, float]:
        figures = measured(self, source, records)
        return figures | {"loss": figures["loss"] + 1} if self.step >= 8 and self.kept is None else figures

    monkeypatch.setattr(Trainer, "_losses", losses)


def assert_keeps(run: Run, step: int) -> None:
    """The loss of what was kept is that of its look: the same weights, by the same records."""
    assert run.summary["kept"]["step"] == step
    looks = {line["step"]: line["loss"] for line in lines(run, "validation")}
    assert run.summary["loss"] == pytest.approx(looks[step], rel=1e-6)


def from_run(start: Run, **given: Any) -> dict[str, Any]:
    """The smallest settings for a model that brings its shape and tokenizer."""
    shared = {name: value for name, value in TINY.items() if name not in ("model", "tokenizer")}
    return {"objective": "causal-lm", "init": start.directory, "reporter": Reporter(False), **shared, **given}


def test_the_card_says_whose_weights_they_are(rising: None, train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    assert_keeps(run, 4)
    expected = run.checkpoints().load(4).tensors["model"]
    found = load_file(run.model_directory / "model.safetensors")
    assert all(torch.equal(tensor, expected[f"model.{name}"]) for name, tensor in found.items())
    card = (run.model_directory / "README.md").read_text()
    assert "on the held-out part; the weights are those of step 4, where it was lowest" in card


def test_adapters_and_towers_are_kept_whole(
    rising: None, train_vision: Train, trained: Trained, corpus: Path, captioned: Path, tmp_path: Path
) -> None:
    how = from_run(trained("causal-lm"), data=corpus, out=tmp_path / "adapter")
    adapter = selfsup.train(**how, **{"model.lora": 2})
    assert_keeps(adapter, 4)
    assert json.loads((adapter.adapter_directory / "adapter_config.json").read_text())["r"] == 2
    before = load_file(trained("causal-lm").model_directory / "model.safetensors")
    after = load_file(adapter.model_directory / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in after)
    assert_keeps(train_vision(tmp_path / "towers", **TINY_PAIRS, data=captioned), 4)


def test_an_average_is_one_with_what_is_kept(
    rising: None, trained: Trained, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the kept weights and nothing of the start: the loss is that of the look they are from."""
    monkeypatch.setattr("selfsup.trainer.choose", lambda tried: tried[-1])
    how = from_run(trained("causal-lm"), data=corpus, out=tmp_path / "run")
    assert_keeps(selfsup.train(**how, **{"optim.wise_ft": True}), 4)
