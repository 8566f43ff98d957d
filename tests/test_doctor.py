"""The doctor: each check on runs with and without the ailment, and on real trainings driven into one."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PAIRS, Answer, Train
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import selfsup
from selfsup.checks import SEVERITIES, Check, Finding, History, NotMade, Symptom, problem
from selfsup.config import Settings
from selfsup.data.records import Batch
from selfsup.diagnosis import Monitor, doctor, examine, history_of
from selfsup.diagnosis.common import CHECKS, preceding_medians
from selfsup.errors import UserError
from selfsup.objectives import RECIPES, find_recipe
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.causal_lm import CausalLMRecipe
from selfsup.objectives.checks.contrastive import alike_pairs, dropout_off, small_batch
from selfsup.objectives.checks.distillation import DISTILLATION
from selfsup.objectives.checks.gaussian import one_place
from selfsup.objectives.checks.pairs import FLAT, PAIRS, SHARPEST
from selfsup.objectives.checks.rebuilding import unused_vector
from selfsup.objectives.checks.teachers import cut_texts, teacher_outdone
from selfsup.objectives.clip import LARGEST_SCALE, CLIPRecipe
from selfsup.report import Reporter
from selfsup.run import Run

EVERY_CHECK: tuple[Check, ...] = (
    *(*CHECKS, dropout_off, small_batch, alike_pairs, *DISTILLATION, *PAIRS),
    *(cut_texts, one_place, teacher_outdone, unused_vector),
)
STEPS, EVERY, CHANCE = 200, 20, 4.0
PROTOTYPES = 1024
LN_K = math.log(PROTOTYPES)
# Of all objectives at once, so that one history can be ill in every way.
SECTIONS = {name: section for recipe in RECIPES for name, section in find_recipe(recipe).sections().items()}
DOCS = Path(__file__).parents[1] / "docs" / "doctor.md"


def sound(seed: int = 0) -> History:
    """A run that learns: 200 steps of half a second, a look at 100 records every 20, everything logged."""
    draws = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        level = 1.5 + (CHANCE - 1.5) * math.exp(-step / 30)
        common = {"step": step, "time": step / 2}
        lines.append(
            common
            | {
                "split": "train",
                "loss": level + 0.08 * draws.normal(),
                "grad_norm": 0.5 * math.exp(0.3 * draws.normal()),
                "sentences_per_second": 5000 * (1 + 0.05 * draws.normal()),
                "waiting": 0.02 * draws.random(),
                "waiting_collectives": 0.1 * draws.random(),
                "waiting_checkpoints": 0.02 * draws.random(),
                "dino": (0.85 + 0.15 * math.exp(-step / 30) + 0.003 * draws.normal()) * LN_K,
                "teacher_entropy": (0.8 + 0.01 * draws.normal()) * LN_K,
                "prototypes_used": 0.7 + 0.02 * draws.normal(),
                "sigreg": 25.7 * math.exp(-step / 10) + 1.5 + 0.3 * draws.normal(),
                "softmax": level + 0.08 * draws.normal(),
                "temperature": 0.07 + 0.0001 * step,
                "modality_gap": 0.6 + 0.7 * math.exp(-step / 40) + 0.02 * draws.normal(),
                "grad_norm_image": 0.5 * math.exp(0.3 * draws.normal()),
                "grad_norm_text": 0.3 * math.exp(0.3 * draws.normal()),
            }
        )
        if step % EVERY == 0:
            lines.append(
                common
                | {"split": "validation", "records": 100, "loss": level + 0.1 + 0.005 * draws.normal()}
                | {"feature_std": 0.4, "rankme": 30.0, "uniformity": -0.6}
                | {"cross_entropy": 3.0, "teacher_cross_entropy": 2.5, "swapped": 3.5}
            )
    values = {"optim.lr": 0.01, "optim.adamw_lr": 0.003, "optim.warmup": 4, "evaluate.every": EVERY}
    values |= {"dino.prototypes": PROTOTYPES, "dino.teacher_temperature": (0.04, 0.07)}
    values |= {"checkpoint.every": EVERY}
    values |= {"train.steps": STEPS, "train.batch": 64, "model.width": 64, "model.dropout": 0.1, "simcse.deletion": 0.0}
    values |= {"data.window": 64, "lejepa.weight": 0.05}
    environment = {
        "plan": {"chance": CHANCE, "steps": STEPS},
        "counts": {"documents": 1000, "duplicates": 30, "captions": 2000, "duplicate_captions": 100}
        | {"pairs": 1000, "alike_pairs": 100}
        | {"texts": 1000, "cut": 50},
    }
    return History(Path("runs/x"), Settings(("test", values), sections=SECTIONS), environment, lines)


def altered(
    history: History, split: str, change: Callable[[dict[str, Any]], dict[str, Any]], after: int = 0
) -> History:
    """With the lines of a split behind a step changed."""
    lines = [
        {**line, **change(dict(line))} if line["split"] == split and line["step"] > after else line
        for line in history.lines
    ]
    return replace(history, lines=lines)


def train(change: Callable[[dict[str, Any]], dict[str, Any]], after: int = 0) -> History:
    return altered(sound(), "train", change, after)


def looks(change: Callable[[dict[str, Any]], dict[str, Any]], after: int = 0) -> History:
    return altered(sound(), "validation", change, after)


def from_weights(loss: float) -> History:
    """One whose held-out loss is 3.0 at every look, and this before the first step."""
    history = looks(lambda line: {"loss": 3.0})
    first = next(line for line in history.lines if line["split"] == "validation")
    return replace(history, lines=[{**first, "step": 0, "time": 0.0, "loss": loss}, *history.lines])


def setting(key: str, value: Any) -> History:
    history = sound()
    history.settings.change(key, value, "test")
    return history


def counted(duplicates: int, what: str = "duplicates") -> History:
    history = sound()
    counts = {**history.environment["counts"], what: duplicates}
    return replace(history, environment={**history.environment, "counts": counts})


def at(step: int, figure: str, value: float | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: {figure: value} if line["step"] == step else {}


@dataclass(frozen=True)
class Ailment:
    """A run with it, one with as much of it as a sound run may have, and what is found."""

    ill: Callable[[], History]
    well: Callable[[], History]
    severity: str
    step: int
    value: float
    remedy: str


AILMENTS = {
    "beside-chance": Ailment(
        lambda: train(lambda line: {"loss": 3.95}),
        lambda: train(lambda line: {"loss": 3.85}),
        "problem",
        200,
        3.95 / 4,
        "optim.lr",
    ),
    "diverging": Ailment(
        lambda: train(lambda line: {"loss": line["loss"] + 0.02 * (line["step"] - 150)}, after=150),
        lambda: train(lambda line: {"loss": line["loss"] + 0.01 * (line["step"] - 150)}, after=150),
        "problem",
        200,
        0.36,
        "optim.lr=0.0033 optim.adamw_lr=0.001",
    ),
    "collapse": Ailment(
        lambda: looks(lambda line: {"feature_std": 0.03}, after=100),
        lambda: looks(lambda line: {"feature_std": 0.07, "uniformity": -0.019}, after=100),
        "problem",
        200,
        0.03,
        "--batch",
    ),
    "low-rank": Ailment(
        lambda: looks(lambda line: {"rankme": 3.0}, after=100),
        lambda: looks(lambda line: {"rankme": 4.0}, after=100),
        "warning",
        200,
        3.0,
        "optim.lr",
    ),
    "clumps": Ailment(
        lambda: looks(lambda line: {"feature_std": 0.8, "uniformity": -1.0}, after=100),
        lambda: looks(lambda line: {"feature_std": 0.8, "uniformity": -1.3}, after=100),
        "warning",
        200,
        1 / 2.56,
        "selfsup inspect",
    ),
    "skipped-steps": Ailment(lambda: train(at(50, "grad_norm", None)), sound, "warning", 50, 1.0, "--precision fp32"),
    "validation-rising": Ailment(
        lambda: looks(lambda line: {"loss": line["loss"] + 0.01 * (line["step"] - 120)}, after=120),
        lambda: looks(lambda line: {"loss": line["loss"] + 0.02}, after=120),
        "warning",
        200,
        0.25,
        "--steps 120",
    ),
    "below-start": Ailment(
        lambda: from_weights(2.8), lambda: from_weights(2.995), "warning", 200, 3.0 / 2.8, "optim.wise_ft=true"
    ),
    "above-start": Ailment(
        lambda: train(at(6, "loss", 5.0)), lambda: train(at(6, "loss", 4.1)), "warning", 6, 1.25, "optim.lr"
    ),
    "loss-spikes": Ailment(
        lambda: train(at(140, "loss", 3.0)), lambda: train(at(140, "loss", 2.0)), "warning", 140, 0.60, "optim.lr"
    ),
    "gradient-spikes": Ailment(
        lambda: train(at(140, "grad_norm", 8.0)),
        lambda: train(at(140, "grad_norm", 3.0)),
        "warning",
        140,
        17.0,
        "records",
    ),
    "duplicates": Ailment(lambda: counted(400), lambda: counted(80), "warning", 0, 0.4, "data.source"),
    "loader": Ailment(
        lambda: train(lambda line: {"waiting": 0.4}, after=190),
        lambda: train(lambda line: {"waiting": 0.4}, after=196),
        "warning",
        200,
        0.4,
        "data.workers=2",
    ),
    "exchange": Ailment(
        lambda: train(lambda line: {"waiting_collectives": 0.6}, after=190),
        lambda: train(lambda line: {"waiting_collectives": 0.6}, after=196),
        "warning",
        200,
        0.6,
        "--batch 128",
    ),
    "checkpoints": Ailment(
        lambda: train(lambda line: {"waiting_checkpoints": 0.12}),
        lambda: train(lambda line: {"waiting_checkpoints": 0.04}),
        "warning",
        200,
        0.12,
        "checkpoint.every=60",
    ),
    "throughput": Ailment(
        lambda: train(lambda line: {"sentences_per_second": 2000.0}, after=150),
        lambda: train(lambda line: {"sentences_per_second": 3000.0}, after=150),
        "warning",
        200,
        0.4,
        "--resume runs/x",
    ),
    "dropout-off": Ailment(
        lambda: setting("model.dropout", 0.0),
        lambda: setting("model.dropout", 0.05),
        "problem",
        0,
        0.0,
        "model.dropout=0.1",
    ),
    "small-batch": Ailment(
        lambda: setting("train.batch", 16), lambda: setting("train.batch", 32), "warning", 0, 16.0, "--batch 128"
    ),
    "unused-vector": Ailment(
        lambda: looks(lambda line: {"swapped": 1.001 * line["cross_entropy"]}),
        lambda: looks(lambda line: {"swapped": 1.02 * line["cross_entropy"]}),
        "problem",
        200,
        0.001,
        "--steps 800",
    ),
    "uniform-teacher": Ailment(
        lambda: train(lambda line: {"teacher_entropy": 0.99 * LN_K}),
        lambda: train(lambda line: {"teacher_entropy": 0.96 * LN_K}),
        "problem",
        200,
        0.99,
        "dino.teacher_temperature=[0.04,0.04]",
    ),
    "few-prototypes": Ailment(
        lambda: train(lambda line: {"prototypes_used": 1 / 128}),
        lambda: train(lambda line: {"prototypes_used": 0.1}),
        "problem",
        200,
        1 / 128,
        "optim.lr=0.0033 optim.adamw_lr=0.001",
    ),
    "loss-at-ln-k": Ailment(
        lambda: train(lambda line: {"dino": 0.995 * LN_K}),
        lambda: train(lambda line: {"dino": 0.98 * LN_K}),
        "problem",
        200,
        0.995,
        "dino.teacher_temperature=[0.04,0.04]",
    ),
    "loss-at-ln-b": Ailment(
        lambda: train(lambda line: {"softmax": 3.98}),
        lambda: train(lambda line: {"softmax": 3.85}),
        "problem",
        200,
        0.995,
        "selfsup inspect clip --run runs/x",
    ),
    "one-place": Ailment(
        lambda: train(lambda line: {"sigreg": 25.0}),
        lambda: train(lambda line: {"sigreg": 12.0}),
        "problem",
        200,
        0.97,
        "lejepa.weight=0.2",
    ),
    "temperature-bound": Ailment(
        lambda: train(lambda line: {"temperature": 0.01}, after=150),
        lambda: train(lambda line: {"temperature": 0.012}, after=150),
        "warning",
        200,
        0.01,
        "clip.hidden_tokens=0.3",
    ),
    "modality-gap": Ailment(
        lambda: train(lambda line: {"modality_gap": 1.3}, after=150),
        lambda: train(lambda line: {"modality_gap": 1.2}, after=150),
        "warning",
        200,
        1.3,
        "optim.lr=0.0033 optim.adamw_lr=0.001",
    ),
    "duplicate-captions": Ailment(
        lambda: counted(1500, "duplicate_captions"),
        lambda: counted(500, "duplicate_captions"),
        "warning",
        0,
        0.75,
        "clip.captions",
    ),
    "alike-pairs": Ailment(
        lambda: counted(600, "alike_pairs"), lambda: counted(250, "alike_pairs"), "warning", 0, 0.6, "pairs.query"
    ),
    "cut-texts": Ailment(lambda: counted(200, "cut"), lambda: counted(90, "cut"), "warning", 0, 0.2, "data.window=128"),
    "teacher-outdone": Ailment(
        lambda: looks(lambda line: {"teacher_cross_entropy": 4.0}),
        lambda: looks(lambda line: {"teacher_cross_entropy": 3.02}),
        "warning",
        200,
        0.75,
        "distill.hard=0.5",
    ),
    "vanishing-tower": Ailment(
        lambda: train(lambda line: {"grad_norm_text": 0.001 * line["grad_norm_image"]}, after=150),
        lambda: train(lambda line: {"grad_norm_text": 0.05 * line["grad_norm_image"]}, after=150),
        "warning",
        200,
        0.001,
        "selfsup inspect clip --run runs/x",
    ),
}


def found(history: History) -> list[Finding]:
    return examine(history, EVERY_CHECK)[0]


# -- each check ----------------------------------------------------------------------------------------------


def test_every_check_has_an_ailment_here_and_a_row_in_the_docs() -> None:
    names = [check.name for check in EVERY_CHECK]
    assert set(names) == AILMENTS.keys()
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == set(names)


@given(st.integers(0, 10**6))
def test_a_sound_run_has_nothing(seed: int) -> None:
    assert examine(sound(seed), EVERY_CHECK) == ([], {})


@pytest.mark.parametrize("check", AILMENTS)
def test_ailment_is_found_and_nothing_else(check: str) -> None:
    ailment = AILMENTS[check]
    (finding,) = found(ailment.ill())
    assert (finding.check, finding.severity, finding.step) == (check, ailment.severity, ailment.step)
    assert finding.value == pytest.approx(ailment.value, rel=0.25)
    assert ailment.remedy in finding.remedy
    assert finding.seen
    assert finding.why
    assert "\n" not in finding.line()


@pytest.mark.parametrize("check", AILMENTS)
def test_as_much_of_it_as_a_sound_run_has_is_no_finding(check: str) -> None:
    assert found(AILMENTS[check].well()) == []


@pytest.mark.parametrize("check", EVERY_CHECK, ids=lambda check: check.measure.__name__)
def test_check_without_its_data_is_not_made(check: Check) -> None:
    bare = History(Path("runs/x"), Settings(("test", {}), sections=SECTIONS), {}, [])
    assert check is small_batch or examine(bare, [check]) == ([], {check.name: _lack(check, bare)})


def _lack(check: Check, history: History) -> str:
    with pytest.raises(NotMade) as lack:
        check(history)
    return str(lack.value)


def test_a_loss_far_above_chance_asks_for_lower_rates() -> None:
    finding = found(train(lambda line: {"loss": 9.0}, after=1))[0]
    assert (finding.check, finding.severity) == ("beside-chance", "problem")
    assert "worse than" in finding.seen
    assert "--config runs/x/config.yaml --out NEW optim.lr=0.0033 optim.adamw_lr=0.001" in finding.remedy


@pytest.mark.parametrize(("step", "made"), [(49, False), (50, True)])
def test_chance_is_judged_after_a_while(step: int, made: bool) -> None:
    _, lacking = examine(sound().until(step), CHECKS)
    assert ("beside-chance" not in lacking) == made


def test_chance_is_judged_after_a_share_of_a_long_run() -> None:
    assert "beside-chance" in examine(setting("train.steps", 2000), CHECKS)[1]


def test_collapse_is_named_within_the_first_tenth() -> None:
    """Of the two ways to be told so, the one that needs no patience, and the remedies that suit the settings."""
    ill = train(lambda line: {"teacher_entropy": 0.999 * LN_K, "dino": LN_K})
    assert [finding.check for finding in found(ill.until(STEPS // 10))] == ["uniform-teacher"]
    assert {finding.check for finding in found(ill)} == {"uniform-teacher", "loss-at-ln-k"}
    sharp = replace(ill, settings=setting("dino.teacher_temperature", (0.04, 0.04)).settings)
    assert all("optim.lr=0.0033" in finding.remedy for finding in found(sharp))
    few = train(lambda line: {"prototypes_used": 1 / 128})
    few = replace(few, settings=setting("dino.targets", "centring").settings)
    assert "dino.targets=sinkhorn" in found(few)[0].remedy


def test_captions_found_by_chance_are_named_for_what_they_are() -> None:
    """Towers that came down to chance want shorter steps, ones that stay above it longer ones; SimCLR is set aside."""
    fallen = train(lambda line: {"softmax": 5.0 if line["step"] < 4 else 4.0})
    still = train(lambda line: {"softmax": 5.0 + 0.01 * (line["step"] % 3)})
    for history, advice in ((fallen, "optim.lr=0.0033 optim.adamw_lr=0.001"), (still, "raise the learning rates")):
        (finding,) = found(history)
        assert finding.check == "loss-at-ln-b"
        assert advice in finding.remedy
        assert found(history.until(49)) == []
    beside = train(lambda line: {"softmax": 3.0})
    beside.settings.change("clip.simclr", 0.25, "test")  # 4 - ln 127 / 4 = 2.79 is chance for the captions
    (finding,) = found(beside)
    assert finding.value == pytest.approx(3.0 / (CHANCE - 0.25 * math.log(127)))


def test_both_bounds_of_the_temperature() -> None:
    assert pytest.approx(1 / LARGEST_SCALE) == SHARPEST
    (finding,) = found(train(lambda line: {"temperature": FLAT}, after=150))
    assert (finding.check, finding.severity) == ("temperature-bound", "problem")
    assert "optim.lr=0.0033" in finding.remedy
    assert found(train(lambda line: {"temperature": 0.9 * FLAT}, after=150)) == []
    started = train(lambda line: {"temperature": 0.01}, after=150)
    for key in ("model.init", "text.init"):  # of a model of two towers, which may have had it so
        started.settings.change(key, "siglip", "test")
    assert "temperature-bound" not in {finding.check for finding in found(started)}


def test_a_gap_is_not_judged_as_a_run_begins() -> None:
    wide = train(lambda line: {"modality_gap": 1.4 if line["step"] < 90 else 0.5})
    assert found(wide.until(80)) == found(wide) == []
    assert "modality-gap" in examine(wide.until(99), PAIRS)[1]


@pytest.mark.parametrize(("weak", "other"), [("image", "text"), ("text", "image")])
def test_a_tower_that_is_kept_as_it_is_may_be_without_gradient(weak: str, other: str) -> None:
    history = train(lambda line: {f"grad_norm_{weak}": 1e-9})
    (finding,) = found(history)
    assert f"the {weak} tower learns next to nothing" in finding.seen
    history.settings.change("clip.freeze", other, "test")
    assert [each.check for each in found(history)] == ["vanishing-tower"]
    history.settings.change("clip.freeze", weak, "test")
    assert found(history) == []


def test_a_loss_that_begins_above_chance_is_no_high_learning_rate() -> None:
    """Untrained towers are sure of what they say, and wrong; batches of them differ by more."""
    draws = np.random.default_rng(0)
    still = train(lambda line: {"loss": 5.2 + 0.2 * draws.normal()})
    findings = {finding.check: finding for finding in found(still)}
    assert findings.keys() == {"beside-chance"}
    assert "worse than" in findings["beside-chance"].seen
    assert "too high" not in findings["beside-chance"].remedy
    rising = altered(still, "train", at(6, "loss", 8.0))
    assert "above-start" in {finding.check for finding in found(rising)}


def test_features_in_a_small_shared_space_have_that_many_directions() -> None:
    history = looks(lambda line: {"rankme": 3.0}, after=100)
    assert [finding.check for finding in found(history)] == ["low-rank"]
    assert found(replace(history, environment={**history.environment, "counts": {"dimensions": 16}})) == []


def test_a_teacher_is_not_judged_by_its_first_steps() -> None:
    ill = train(lambda line: {"teacher_entropy": 0.999 * LN_K, "dino": LN_K})
    assert found(ill.until(9)) == []
    long = replace(ill, environment={**ill.environment, "plan": {"chance": CHANCE, "steps": 10 * STEPS}})
    long.settings.change("train.steps", 10 * STEPS, "test")
    assert found(long.until(99)) == []
    assert len(found(long.until(100))) == 2


def test_many_skipped_steps_are_a_problem_and_the_summary_counts_too() -> None:
    (finding,) = found(train(lambda line: {"loss": None, "grad_norm": None}, after=190))
    assert (finding.severity, finding.value, finding.step) == ("problem", 10, 200)
    (finding,) = found(replace(sound(), summary={"steps": STEPS, "skipped_steps": 1}))
    assert (finding.check, finding.severity, finding.value) == ("skipped-steps", "warning", 1)


def test_one_worse_look_is_not_a_rise_and_neither_is_a_look_at_other_records() -> None:
    assert found(looks(lambda line: {"loss": line["loss"] + 0.5}, after=180)) == []
    assert found(looks(lambda line: {"loss": 2.5, "records": 400}, after=140)) == []


def test_a_spike_of_a_noisy_loss_is_no_finding() -> None:
    """Steps on few predictions jump by themselves."""
    draws = np.random.default_rng(0)
    noisy = train(lambda line: {"loss": min(CHANCE, line["loss"] + 0.5 * draws.normal())}, after=20)
    assert found(altered(noisy, "train", at(140, "loss", 3.5))) == []


def solved(line: dict[str, Any]) -> dict[str, Any]:
    """A contrastive loss that is solved: near zero, with gradients of any length."""
    draws = np.random.default_rng(line["step"])
    return {"loss": 0.002 * math.exp(draws.normal()), "grad_norm": 0.02 * math.exp(1.1 * draws.normal())}


def test_a_solved_contrastive_loss_is_no_finding() -> None:
    history = train(solved)
    norms = history.curve("grad_norm").values
    assert (norms[10:] > 10 * preceding_medians(norms, 10)).any()
    assert found(history) == []


def test_a_loss_that_rises_from_its_first_step_diverges() -> None:
    rising = train(lambda line: {"loss": min(0.02 * line["step"], 3.0) if line["step"] > 1 else 0.01})
    (finding,) = found(rising)
    assert (finding.check, finding.step) == ("diverging", 200)
    assert "after 0.010 at step 1" in finding.seen


def test_features_of_few_records_have_no_rank_to_judge() -> None:
    history = looks(lambda line: {"records": 50, "rankme": 2.0})
    assert found(history) == []
    assert "low-rank" in examine(history, CHECKS)[1]


def test_pace_of_a_short_run_is_not_judged() -> None:
    history = AILMENTS["throughput"].ill()
    lines = [{**line, "time": line["step"] / 10} for line in history.lines]
    assert "throughput" in examine(replace(history, lines=lines), CHECKS)[1]


def test_without_chance_the_first_loss_is_what_a_run_began_with() -> None:
    history = replace(AILMENTS["loss-spikes"].ill(), environment={})
    assert [finding.check for finding in found(history)] == ["loss-spikes"]
    assert found(replace(sound(), environment={})) == []


def test_the_worst_comes_first() -> None:
    history = counted(400)
    history = altered(history, "train", lambda line: {"loss": 3.99})
    history.settings.change("model.dropout", 0.0, "test")
    severities = [finding.severity for finding in found(history)]
    assert severities == sorted(severities, key=SEVERITIES.index)
    assert [finding.check for finding in found(history)] == ["beside-chance", "dropout-off", "duplicates"]


def test_views_that_deletion_tells_apart_need_no_dropout() -> None:
    history = setting("model.dropout", 0.0)
    history.settings.change("simcse.deletion", 0.5, "test")
    assert found(history) == []


# -- while it trains -----------------------------------------------------------------------------------------


def told(history: History, steps: list[int], monitor: Monitor | None = None) -> list[tuple[int, Finding]]:
    """What a monitor tells at each of some steps."""
    monitor = monitor or watch(history)
    return [(step, finding) for step in steps for finding in monitor.look(history.until(step).lines, step)]


def watch(history: History) -> Monitor:
    return Monitor(history.directory, history.settings, history.environment, [dropout_off])


def ailing() -> History:
    """Rising validation from step 120 on, features that collapse and recover, and no dropout."""
    history = AILMENTS["validation-rising"].ill()
    history = altered(history, "validation", lambda line: {"feature_std": 0.01} if 50 < line["step"] < 90 else {})
    history.settings.change("model.dropout", 0.0, "test")
    return history


LOOKS = list(range(EVERY, STEPS + 1, EVERY))


def test_each_finding_is_told_once_and_as_soon_as_it_is_there() -> None:
    said = [(step, finding.check) for step, finding in told(ailing(), LOOKS)]
    assert said == [(20, "dropout-off"), (60, "collapse"), (180, "validation-rising")]


@given(st.sampled_from([0, *LOOKS]))
def test_a_resumed_training_goes_on_telling_where_it_stopped(stop: int) -> None:
    history = ailing()
    before = told(history, [step for step in LOOKS if step <= stop])
    after = told(history, [step for step in LOOKS if step > stop])
    assert before + after == told(history, LOOKS)


def test_looks_lie_ever_further_apart() -> None:
    monitor = watch(sound())
    due = [step // EVERY for step in range(40 * EVERY) if monitor.due(step)]
    assert due == [*range(1, 17), *range(18, 33, 2), 36]
    number = sum(monitor.due(step) for step in range(EVERY, 10000 * EVERY, EVERY))
    assert number < 8 * math.log2(10000)


def test_a_look_sees_nothing_of_the_future() -> None:
    history = ailing()
    monitor = watch(history)
    assert [finding.check for finding in monitor.look(history.lines, EVERY)] == ["dropout-off"]


# -- real runs -----------------------------------------------------------------------------------------------

REAL = {"steps": 150, "optim.warmup": 3, "evaluate.every": 15, "checkpoint.every": 150, "batch": 8}


SENTENCES = {**REAL, "batch": 32, "data.window": 32}


OF_THE_CLOCK = {"loader", "throughput", "exchange", "checkpoints"}


def findings_in(run: Run) -> list[Finding]:
    """Those of a run but for what the machine decides by what else it does."""
    return [finding for finding in doctor(run).findings if finding.check not in OF_THE_CLOCK]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm", "simcse", "tsdae"])
def test_trainings_that_go_well_have_nothing(train: Train, tmp_path: Path, objective: str, seed: int) -> None:
    settings = SENTENCES if objective in ("simcse", "tsdae") else REAL
    run = train(tmp_path / "run", objective, seed=seed, **settings)
    diagnosis = doctor(run)
    assert findings_in(run) == []
    assert {"beside-chance", "validation-rising", "loss-spikes", "gradient-spikes"} <= set(diagnosis.made)


def test_training_with_far_too_high_a_learning_rate(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **REAL, optim={"lr": 20, "adamw_lr": 20})
    checks = [finding.check for finding in findings_in(run)]
    assert "beside-chance" in checks or "above-start" in checks
    first = [finding.check for _, finding in told(history_of(run), [15])]
    assert [check for check in first if check not in OF_THE_CLOCK] == ["above-start"]


def test_training_with_far_too_low_a_learning_rate(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **REAL, optim={"lr": 1e-7, "adamw_lr": 1e-7})
    assert [finding.check for finding in findings_in(run)] == ["beside-chance"]


PICTURES = {"steps": 150, "optim.warmup": 3, "evaluate.every": 15, "checkpoint.every": 150, "batch": 16}
COLLAPSES = {
    "uniform-teacher": {"dino.teacher_temperature": [1.0, 1.0]},
    "few-prototypes": {
        "dino.targets": "centring",
        "dino.teacher_temperature": [0.02, 0.02],
        "optim": {"lr": 0.2, "adamw_lr": 0.1},
    },
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_teacher_that_is_well_has_nothing(train_vision: Train, tmp_path: Path, seed: int) -> None:
    run = train_vision(tmp_path / "run", "dino", seed=seed, **PICTURES)
    diagnosis = doctor(run)
    assert findings_in(run) == []
    assert {"uniform-teacher", "few-prototypes", "loss-at-ln-k", "collapse"} <= set(diagnosis.made)


@pytest.mark.parametrize("check", COLLAPSES)
def test_a_teacher_driven_into_collapse(train_vision: Train, tmp_path: Path, check: str) -> None:
    """It is named, with its remedy, within the first tenth of the run."""
    run = train_vision(tmp_path / "run", "dino", **PICTURES, **COLLAPSES[check])
    history = history_of(run)
    monitor = Monitor(history.directory, history.settings, history.environment, DISTILLATION)
    first = told(history, [PICTURES["steps"] // 10], monitor)
    assert [finding.check for _, finding in first if finding.severity == "problem"] == [check]
    assert "dino." in next(finding.remedy for _, finding in first if finding.check == check)


CAPTIONED = {"steps": 150, "optim.warmup": 3, "evaluate.every": 15, "checkpoint.every": 150, "batch": 32}


def train_pairs(out: Path, data: Path, **given: Any) -> Run:
    settings = {**TINY_PAIRS, **CAPTIONED, "data": data, "reporter": Reporter(False), **given}
    return selfsup.train(settings.pop("objective"), out=out, **settings)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_towers_that_are_well_have_nothing_of_their_own(captioned: Path, tmp_path: Path, loss: str) -> None:
    """What these drawings are called cannot be seen, so their names are learnt by heart."""
    diagnosis = doctor(train_pairs(tmp_path / "run", captioned, **{"clip.loss": loss}))
    assert {finding.check for finding in diagnosis.findings} <= {"validation-rising", *OF_THE_CLOCK}
    assert {check.name for check in PAIRS} <= set(diagnosis.made)


def test_towers_driven_into_collapse(captioned: Path, tmp_path: Path) -> None:
    run = train_pairs(tmp_path / "run", captioned, optim={"lr": 3.0, "adamw_lr": 1.0})
    history = history_of(run)
    half = {finding.check: finding for finding in found(history.until(75))}
    for check in ("loss-at-ln-b", "temperature-bound"):
        assert half[check].severity == "problem"
        assert "optim.lr=1 optim.adamw_lr=0.33" in half[check].remedy
    assert "temperature-bound" in {finding.check for finding in findings_in(run)}
    monitor = Monitor(history.directory, history.settings, history.environment, CLIPRecipe.checks)
    assert "temperature-bound" in {finding.check for _, finding in told(history, [15], monitor)}


def test_towers_that_do_not_move(captioned: Path, tmp_path: Path) -> None:
    findings = doctor(train_pairs(tmp_path / "run", captioned, optim={"lr": 1e-7, "adamw_lr": 1e-7})).findings
    assert {"beside-chance", "loss-at-ln-b"} <= {finding.check for finding in findings}
    assert "above-start" not in {finding.check for finding in findings}
    assert not any("optim.lr=3.3e-08" in finding.remedy for finding in findings)


def test_training_of_sentences_without_dropout_in_small_batches(train: Train, tmp_path: Path) -> None:
    given = {**SENTENCES, "batch": 8, "model": {**TINY["model"], "dropout": 0.0}}
    run = train(tmp_path / "run", "simcse", **given, **{"simcse.deletion": 0.0})
    assert [finding.check for finding in findings_in(run)] == ["dropout-off", "small-batch"]


def test_training_that_learns_its_data_by_heart(train: Train, tmp_path: Path) -> None:
    letters = random.Random(0)
    noise = ["".join(letters.choices("abcdefgh", k=40)) for _ in range(24)]
    run = train(tmp_path / "run", data=noise, **REAL, optim={"lr": 0.03, "adamw_lr": 0.03})
    findings = {finding.check: finding for finding in findings_in(run)}
    assert findings.keys() == {"validation-rising"}
    losses = {line["step"]: line["loss"] for line in run.metrics() if line["split"] == "validation"}
    lowest = min(losses, key=losses.__getitem__)
    assert f"--steps {lowest}" in findings["validation-rising"].remedy


def test_run_that_is_not_finished(finished: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.directory, tmp_path / "run"))
    (run.directory / "summary.json").unlink()
    diagnosis = doctor(run.directory)
    assert (diagnosis.finished, diagnosis.step) == (False, finished.summary["steps"])
    (run.directory / "metrics.jsonl").unlink()
    assert doctor(run.directory).findings == []


def test_objective_from_python_is_looked_at_in_general(finished: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.directory, tmp_path / "run"))
    settings = run.settings()
    settings.change("objective", "python:mine.Own", "python")
    run.write_settings(settings)
    diagnosis = doctor(run.directory)
    assert {*diagnosis.made, *diagnosis.not_made} == {*(check.name for check in CHECKS), "what python:mine.Own adds"}


@problem(seen="it never sleeps, {hours} h", why="all must", remedy="rest: {train} --steps 1")
def never_sleeps(history: History) -> Symptom | None:
    """For every run."""
    return Symptom(1, 0, figures={"hours": 24})


class Sleepless(CausalLMRecipe):
    """A recipe from Python, with a check of its own."""

    checks = (never_sleeps,)


class Line(Objective):
    """An objective from Python, with the same check."""

    checks = (never_sleeps,)

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(()))

    def hide(self, batch: Batch) -> Task:
        return Task(batch.data, {"error": torch.tensor(len(batch.data["x"]))})

    def predict(self, task: Task) -> Outputs:
        return {"y": self.slope * task["x"]}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, torch.Tensor]:
        return {"error": (outputs["y"] - 2 * task["x"]).square().sum()}


class Numbers:
    """Records x of 1."""

    def __len__(self) -> int:
        return 64

    def read(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(len(indices))}


OWN = {"recipe": (Sleepless, {}), "objective": (Line, {"data": Numbers()})}


@pytest.mark.parametrize("kind", OWN)
def test_checks_of_a_class_from_python_are_made_in_training_and_after_it(
    train: Train, tmp_path: Path, kind: str
) -> None:
    objective, given = OWN[kind]
    said = io.StringIO()
    reporter = Reporter(to=said)
    if kind == "recipe":
        run = train(tmp_path / "run", objective, reporter=reporter, **given)
    else:
        run = selfsup.train(objective, out=tmp_path / "run", reporter=reporter, steps=6, batch=8, **given)
    again = f"selfsup train --config {run.config_file} --out NEW --steps 1"
    assert said.getvalue().count(f"doctor: problem: it never sleeps, 24 h; rest: {again}") == 1
    for diagnosis in (doctor(run), doctor(run.directory)):
        assert "never-sleeps" in {finding.check for finding in diagnosis.findings}
        assert not any("adds" in lack for lack in diagnosis.not_made)


@pytest.mark.parametrize("checks", [(lambda history: None,), 3])
def test_what_is_no_check_is_refused(train: Train, tmp_path: Path, checks: Any) -> None:
    recipe = type("Odd", (CausalLMRecipe,), {"checks": checks})
    with pytest.raises(UserError, match="The checks of an objective are a tuple"):
        train(tmp_path / "run", recipe)


# -- what people see -----------------------------------------------------------------------------------------


def ill_run(finished: Run, place: Path) -> Run:
    run = Run(shutil.copytree(finished.directory, place))
    run.write_environment({**run.environment(), "counts": {"documents": 100, "duplicates": 50}})
    return run


def test_print(finished: Run, tmp_path: Path) -> None:
    file = io.StringIO()
    doctor(ill_run(finished, tmp_path / "ill")).print(Console(file=file, width=80))
    text = " ".join(file.getvalue().split())  # the path of the run may break a line anywhere
    for part in ("finished after step 12", "warning duplicates", "50 of 100", "Remedy: ", "0.5, threshold 0.1"):
        assert part in text
    assert "nothing found: skipped-steps" in text
    assert "collapse: no validation line holds feature_std" in text


def test_command(finished: Run, tmp_path: Path, selfsup_command: Callable[..., Answer]) -> None:
    run = ill_run(finished, tmp_path / "ill")
    answer = selfsup_command("doctor", run.directory)
    assert (answer.code, answer.error) == (0, "")
    assert "duplicates" in answer.out
    answer = selfsup_command("doctor", run.directory, "--json")
    content = json.loads(answer.out)
    assert content == selfsup.doctor(run.directory).to_json()
    assert content.keys() == {"run", "step", "finished", "findings", "made", "not_made"}
    (finding,) = content["findings"]
    assert finding.keys() == {*Finding.__dataclass_fields__}
    assert "duplicates" in content["made"]


def test_command_without_a_run(tmp_path: Path, selfsup_command: Callable[..., Answer]) -> None:
    answer = selfsup_command("doctor", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "holds no run" in answer.error
