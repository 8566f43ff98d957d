"""Runs side by side: figures, differences, notes, the chart in the terminal and the one in a file."""

from __future__ import annotations

import io
import itertools
import json
import math
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import Trained, widest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import selfsup
from selfsup.comparison import MARKS, Comparison, chart, compare
from selfsup.errors import UserError
from selfsup.report import Reporter
from selfsup.run import Run

TEXTS = [f"The {animal} is on the {place}." for animal in ("cat", "dog", "hen") for place in ("mat", "bed", "sofa")] * 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two runs on the same data that differ in width and length."""
    place = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(place / "cache"))
        patch.setattr(import_module("selfsup.planning"), "CALIBRATION_SECONDS", 0.05)
        return [
            selfsup.train(
                "causal-lm",
                data=TEXTS,
                model={"layers": 1, "width": width, "heads": 1},
                out=place / name,
                steps=steps,
                batch=4,
                tokenizer="characters",
                reporter=Reporter(False),
            )
            for name, width, steps in (("narrow", 16, 20), ("wide", 32, 30))
        ]


@pytest.fixture
def other(runs: list[Run], tmp_path: Path) -> Run:
    """A copy of the second run, to be altered."""
    return Run(shutil.copytree(runs[1].directory, tmp_path / "other"))


def printed(comparison: Comparison, width: int = 100) -> str:
    file = io.StringIO()
    comparison.print(Console(file=file, width=width))
    return file.getvalue()


def directories(*runs: Run) -> list[Path]:
    return [run.directory for run in runs]


def test_figures_are_those_of_the_summaries(runs: list[Run]) -> None:
    comparison = compare([str(runs[0].directory), runs[1].directory])
    for figures, run in zip(comparison.runs, runs, strict=True):
        for name in ("loss", "bits_per_byte", "steps", "parameters", "wall_seconds", "chance"):
            assert getattr(figures, name) == run.summary[name], name
        assert (figures.unit, figures.amount) == ("tokens", run.summary["tokens"])
        assert figures.best == run.summary["best"]["loss"]
        assert figures.finished
    assert [run.name for run in comparison.runs] == ["narrow", "wide"]
    assert (comparison.measure, comparison.notes) == ("loss", [])


def test_curves_hold_every_line_of_the_metrics(runs: list[Run]) -> None:
    for figures, run in zip(compare(directories(*runs)).runs, runs, strict=True):
        for split, points in (("train", figures.train), ("validation", figures.validation)):
            lines = [line for line in run.metrics() if line["split"] == split]
            assert [(p.step, p.time, p.loss) for p in points] == [(x["step"], x["time"], x["loss"]) for x in lines]
        assert figures.validation[-1].amount == figures.amount


def test_only_what_differs_is_told_with_its_origin(runs: list[Run]) -> None:
    comparison = compare(directories(*runs))
    settings = [run.settings() for run in runs]
    told = {difference.key: difference for difference in comparison.differences}
    assert {"model.width", "train.steps"} <= told.keys()
    assert not told.keys() & {"out", "model.layers", "data.tokenizer", "optim.momentum"}
    assert (told["model.width"].values, told["model.width"].origins) == ([16, 32], ["python", "python"])
    for key, difference in told.items():
        assert difference.values == [one[key] for one in settings]
        assert difference.values[0] != difference.values[1]


def test_json_holds_all(runs: list[Run]) -> None:
    content = json.loads(json.dumps(compare(directories(*runs)).to_json()))
    assert content.keys() == {"runs", "differences", "measure", "notes"}
    assert content["runs"][1]["validation"][-1].keys() == {"step", "time", "amount", "loss", "bits_per_byte"}


def test_print(runs: list[Run]) -> None:
    text = printed(compare(directories(*runs)))
    for figure in ("narrow", "wide", f"{runs[0].summary['loss']:.4f}", "model.width", "train.steps", *MARKS[:2]):
        assert figure in text
    assert widest(text) <= 100


def test_unfinished_run_is_compared_and_named(runs: list[Run], other: Run) -> None:
    (other.directory / "summary.json").unlink()
    kept = [line for line in other.metrics() if line["step"] <= 15]
    (other.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    comparison = compare(directories(runs[0], other))
    latest = [line for line in kept if line["split"] == "validation"][-1]
    figures = comparison.runs[1]
    assert (figures.finished, figures.steps, figures.loss) == (False, 15, latest["loss"])
    assert figures.wall_seconds == kept[-1]["time"]
    assert "other is not finished" in printed(comparison)


def test_run_that_has_logged_nothing_yet(runs: list[Run], other: Run, tmp_path: Path) -> None:
    for name in ("summary.json", "metrics.jsonl"):
        (other.directory / name).unlink()
    comparison = compare(directories(runs[0], other))
    assert comparison.runs[1].loss is None
    assert "–" in printed(comparison)
    comparison.plot(tmp_path / "curves.png")


def test_losses_that_are_no_numbers(runs: list[Run], other: Run, tmp_path: Path) -> None:
    lines = other.metrics()
    for line, loss in zip(lines[::2], itertools.cycle((math.nan, math.inf, None))):
        line["loss"] = loss
    (other.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other.write_summary({**other.summary, "loss": math.nan, "bits_per_byte": math.inf})
    comparison = compare(directories(runs[0], other))
    figures = comparison.runs[1]
    assert (figures.loss, figures.bits_per_byte) == (None, None)
    assert all(math.isfinite(point.loss) for point in (*figures.train, *figures.validation))
    assert figures.train
    assert "–" in printed(comparison)
    comparison.plot(tmp_path / "curves.png")


UNITS = {"simclr": "images", "dino": "images", "mae": "images", "masked-lm": "tokens", "simcse": "sentences"}


@pytest.mark.parametrize(("objective", "unit"), UNITS.items())
def test_runs_of_every_objective(objective: str, unit: str, trained: Trained, tmp_path: Path) -> None:
    run = trained(objective)
    again = Run(shutil.copytree(run.directory, tmp_path / "again"))
    comparison = compare(directories(run, again))
    for figures in comparison.runs:
        assert (figures.objective, figures.unit, figures.amount) == (objective, unit, run.summary[unit])
        assert figures.validation[-1].amount == figures.amount
    text = printed(comparison)
    assert f"{unit} per second" in text
    assert ("tokens" in text) == (unit == "tokens")
    assert "bits per byte" not in text
    assert comparison.notes == comparison.notes[: int(objective == "dino")]
    json.dumps(comparison.to_json())
    comparison.plot(tmp_path / "curves.png")


def test_the_loss_of_a_teacher_is_doubted(trained: Trained, tmp_path: Path) -> None:
    run = trained("dino")
    again = Run(shutil.copytree(run.directory, tmp_path / "again"))
    assert "own teacher" in compare(directories(run, again)).notes[0]


def test_settings_of_an_objective_are_told_where_they_differ(trained: Trained, tmp_path: Path) -> None:
    run = trained("dino")
    again = Run(shutil.copytree(run.directory, tmp_path / "again"))
    settings = again.settings()
    settings.change("dino.koleo", 0.5, "test")
    again.write_settings(settings)
    told = {each.key: each.values for each in compare(directories(run, again)).differences}
    assert told == {"dino.koleo": [0.1, 0.5]}
    other = compare(directories(run, trained("mae")))
    assert {each.key: each.values[1] for each in other.differences}["dino.koleo"] is None


def test_losses_with_another_chance_are_told(trained: Trained, tmp_path: Path) -> None:
    run = trained("simclr")
    again = Run(shutil.copytree(run.directory, tmp_path / "again"))
    again.write_summary({**again.summary, "chance": 7.0})
    assert "in again: set each loss beside its own chance" in compare(directories(run, again)).notes[0]


def test_objectives_that_differ(trained: Trained, runs: list[Run], tmp_path: Path) -> None:
    comparison = compare([*(trained(objective).directory for objective in UNITS), runs[0].directory])
    assert comparison.notes[0].startswith("The objectives differ (causal-lm, dino, mae, masked-lm, simclr")
    assert "evaluate" in comparison.notes[0]
    text = printed(comparison, width=160)
    for unit in ("images", "sentences", "tokens"):
        assert f"{unit} per second" in text
    comparison.plot(tmp_path / "curves.png")


def alter_data(run: Run) -> None:
    run.write_environment({**run.environment(), "data": "another"})


def test_other_data_with_the_same_tokenizer(runs: list[Run], other: Run) -> None:
    alter_data(other)
    comparison = compare(directories(runs[0], other))
    assert comparison.measure == "loss"
    assert "data" in comparison.notes[0]


def test_other_tokenizer_is_compared_by_bits_per_byte(runs: list[Run], other: Run) -> None:
    alter_data(other)
    (other.model_directory / "tokenizer.json").write_text("{}")
    comparison = compare(directories(runs[0], other))
    assert comparison.measure == "bits_per_byte"
    assert "bits per byte" in comparison.notes[-1]
    assert "bits per byte over time" in printed(comparison)


def test_other_tokenizer_that_loses_bytes_compares_by_nothing(runs: list[Run], other: Run) -> None:
    alter_data(other)
    shutil.rmtree(other.model_directory)
    lines = [{k: v for k, v in line.items() if k != "bits_per_byte"} for line in other.metrics()]
    (other.directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    other.write_summary({k: v for k, v in other.summary.items() if k != "bits_per_byte"})
    assert "no figure here compares" in compare(directories(runs[0], other)).notes[-1]


def test_equal_names_are_told_by_their_directories(runs: list[Run], tmp_path: Path) -> None:
    same = shutil.copytree(runs[0].directory, tmp_path / "narrow")
    names = [run.name for run in compare([runs[0].directory, same]).runs]
    assert names == [str(runs[0].directory), str(same)]


def test_what_cannot_be_compared_is_refused(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two runs or more"):
        compare([runs[0].directory])
    with pytest.raises(UserError, match="given twice"):
        compare([runs[0].directory, runs[0].directory / ".." / "narrow"])
    with pytest.raises(UserError, match="holds no run"):
        compare([runs[0].directory, tmp_path])


@pytest.mark.parametrize(("name", "start"), [("curves.png", b"\x89PNG"), ("curves.svg", b"<?xml")])
def test_plot(runs: list[Run], tmp_path: Path, name: str, start: bytes) -> None:
    compare(directories(*runs)).plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_plot_that_cannot_be_drawn(runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare(directories(*runs))
    with pytest.raises(UserError, match=r"\.png"):
        comparison.plot(tmp_path / "curves.bmpp")
    with pytest.raises(UserError, match="another name"):
        comparison.plot(tmp_path / "nowhere" / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"selfsup\[plots\]"):
        comparison.plot(tmp_path / "curves.png")


curve = st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 20)), max_size=12, unique_by=lambda point: point[0]).map(
    sorted
)


@given(st.lists(curve, min_size=1, max_size=4), st.integers(40, 160))
def test_chart_fits_and_shows_the_last_curve(curves: list[list[tuple[float, float]]], width: int) -> None:
    text = chart(curves, width, height=10).plain
    assert widest(text) <= width
    assert (MARKS[len(curves) - 1] in text) == bool(curves[-1])
