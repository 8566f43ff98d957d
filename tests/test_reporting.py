"""Reports: what they hold of a run, of several, of damaged ones; bounds; when a training writes its own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, TINY_PAIRS, TINY_VISION, Answer, tree
from hypothesis import given
from hypothesis import strategies as st

import selfsup
from selfsup import reporting
from selfsup.errors import UserError
from selfsup.report import Reporter
from selfsup.reporting import LARGEST, Reports, page_of, report_of, write_report
from selfsup.run import Run

TEXTS = [f"The {animal} is on the {place}." for animal in ("cat", "dog", "hen") for place in ("mat", "bed", "sofa")] * 4
QUIET: dict[str, Any] = {"reporter": Reporter(False)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return selfsup.train("causal-lm", data=TEXTS, out=tmp_path_factory.mktemp("reports") / "run", **TINY, **QUIET)


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(run.directory, tmp_path / "copy"))


@pytest.fixture(scope="module")
def seeing(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return selfsup.train("mae", data=drawings, out=tmp_path_factory.mktemp("mae") / "run", **TINY_VISION, **QUIET)


def of(run: Run) -> dict[str, Any]:
    (told,) = report_of([run])["runs"]
    return told  # type: ignore[no-any-return]


def data_of(page: str) -> dict[str, Any]:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)  # type: ignore[no-any-return]


def test_a_training_leaves_its_report(run: Run) -> None:
    page = (run.directory / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert data_of(page) == report_of([run])


def test_a_report_holds_what_the_run_left(run: Run) -> None:
    told = of(run)
    assert told["problems"] == []
    for name in ("loss", "steps", "chance", "wall_seconds", "peak_memory"):
        assert told["figures"][name] == run.summary[name]
    lines = run.metrics()
    for part in ("train", "validation"):
        own, curve = [line for line in lines if line["split"] == part], told["curves"][part]
        assert curve["lines"] == len(own)
        assert curve["step"] == [line["step"] for line in own]
        assert curve["loss"] == pytest.approx([line["loss"] for line in own], rel=1e-5)
    assert told["curves"]["per_step"] == 4 * 16
    texts = [path.read_text(encoding="utf-8") for path in sorted(run.samples.iterdir())]
    assert [(each["step"], each["text"]) for each in told["samples"]] == list(zip((4, 8, 12), texts, strict=True))
    assert ["model.width", 32, "python"] in [list(row) for row in told["config"]]
    assert told["card"].startswith("---\n")
    assert told["findings"] == selfsup.doctor(run).to_json()
    assert told["plan"]["steps"].startswith("12 (python): ")


def test_curves_keep_their_spikes_and_their_end() -> None:
    lines = [{"step": n, "time": 1.0 * n, "split": "train", "loss": 1.0, "lr": 0.1} for n in range(1, 10_001)]
    lines[6543] |= {"loss": 9.0}
    lines[77] |= {"loss": None}
    curves = reporting._curves(lines, None, 900)["train"]
    assert curves["lines"] == 10_000
    assert len(curves["step"]) <= 900
    assert (curves["step"][-1], max(filter(None, curves["loss"]))) == (10_000, 9.0)
    assert curves["loss"][curves["step"].index(6544)] == 9.0


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=60).map(sorted), st.integers(1, 30))
def test_looks_are_spread_evenly_and_the_last_one_stays(steps: list[int], most: int) -> None:
    kept = reporting._spread(steps, most)
    assert kept == sorted(set(kept))
    assert len(kept) == min(most, len(steps))
    assert kept[-1:] == steps[-1:]
    assert set(kept) <= set(steps)


def test_pictures_of_looks_are_what_the_network_makes_of_held_out_images(seeing: Run) -> None:
    told = of(seeing)
    assert [each["step"] for each in told["samples"]] == [4, 8, 12]
    seen, filled = told["samples"][-1]["sections"]
    (gallery,) = seen["blocks"]
    assert [tile["name"] for tile in gallery["groups"][0]["rows"][0]] == ["image", "features", "attention"]
    assert [tile["name"] for tile in filled["blocks"][0]["groups"][0]["rows"][0]] == ["image", "shown", "filled in"]
    first = told["samples"][0]["sections"]
    images = [[group["rows"][0][0]["pixels"] for group in each[0]["blocks"][0]["groups"]] for each in (first, [seen])]
    assert images[0] == images[1]  # of every look the same


@pytest.mark.long
def test_pairs_are_shown_as_a_matrix(captioned: Path, tmp_path: Path) -> None:
    given = {**TINY_PAIRS, "data": captioned}
    run = selfsup.train(given.pop("objective"), out=tmp_path / "run", **given, **QUIET)
    _, alike = of(run)["samples"][-1]["sections"]
    (matrix,) = alike["blocks"]
    assert matrix["kind"] == "matrix"
    assert [row[number] for number, row in enumerate(matrix["roles"])] == ["+"] * len(matrix["values"])
    assert matrix["columns"][0].startswith("1 ")


def test_several_runs_beside_each_other(run: Run, copy: Run) -> None:
    settings = copy.settings()
    settings.change("optim.lr", 0.5, "test")
    copy.write_settings(settings)
    report = report_of([run, copy])
    assert [each["name"] for each in report["runs"]] == ["run", "copy"]
    (difference,) = report["differences"]
    assert (difference["key"], difference["values"][1]) == ("optim.lr", 0.5)
    with pytest.raises(UserError, match="given twice"):
        report_of([run, run.directory])
    with pytest.raises(UserError, match="one run or more"):
        report_of([])


DAMAGES = {
    "metrics.jsonl": b'{"step": 1}\n',
    "summary.json": b"[]",
    "environment.json": b"{",
    "config.yaml": b"objective: [",
    "samples/step-000000004.txt": b"\xff\x1b[2J",
    "samples/step-000000008.json": b"{",
    "inspection.json": b"nonsense",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_of_a_damaged_run_there_is_what_is_left_and_what_is_missing_is_said(copy: Run, name: str) -> None:
    (copy.directory / name).write_bytes(DAMAGES[name])
    told = of(copy)
    page_of(report_of([copy]))
    if not name.endswith(".txt"):
        assert told["problems"]
    assert told["samples"]


def test_lines_of_metrics_that_are_whole_are_drawn(copy: Run) -> None:
    before = of(copy)["curves"]["train"]["lines"]
    with (copy.directory / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": "x"}\n')
    told = of(copy)
    assert told["curves"]["train"]["lines"] == before
    assert any("metrics.jsonl is damaged" in problem for problem in told["problems"])


def test_a_page_stays_below_two_megabytes(copy: Run) -> None:
    section = {
        "title": "t",
        "hint": "",
        "note": "",
        "blocks": [{"kind": "table", "names": ["x" * 300_000], "rows": []}],
    }
    for step in range(100, 140):
        (copy.samples / f"step-{step:09d}.json").write_text(json.dumps([section]), encoding="utf-8")
        (copy.samples / f"step-{step:09d}.txt").write_text("é" * 100_000, encoding="utf-8")
    (copy.directory / "inspection.json").write_text(json.dumps({"x": "y" * 3_000_000}), encoding="utf-8")
    report = report_of([copy])
    assert len(page_of(report).encode()) < LARGEST
    (told,) = report["runs"]
    assert sum(bool(each["sections"]) for each in told["samples"]) == 2
    assert told["samples"][-1]["step"] == 139
    assert "Pictures of 2 looks are shown" in "".join(told["problems"])
    told["inspection"] = {"x": "y" * 3_000_000}
    page = page_of(report)
    assert len(page.encode()) < LARGEST
    assert "larger than 2 MB" in page


def test_markup_in_data_stays_text(copy: Run) -> None:
    hostile = "</script><img src=x onerror=alert(1)>\u202e"
    copy.write_sample(12, hostile)
    page = page_of(report_of([copy]))
    assert "<img" not in page
    assert data_of(page)["runs"][0]["samples"][-1]["text"] == hostile


def test_the_command(run: Run, tmp_path: Path, selfsup_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer: Answer = selfsup_command("report", run.directory)
    assert (answer.code, answer.out.strip()) == (0, "report: report.html")
    assert data_of((tmp_path / "report.html").read_text(encoding="utf-8"))["runs"][0]["name"] == "run"
    again: Answer = selfsup_command("report", run.directory, "--out", "report.html")
    assert again.code == 2
    told: Answer = selfsup_command("report", run.directory, "--json")
    assert json.loads(told.out)["kind"] == "report"


def test_a_report_asked_for_shows_the_first_batch(captioned: Path, seeing: Run, tmp_path: Path) -> None:
    content = write_report([seeing.directory]).content["runs"][0]
    assert content["inspection"]["objective"] == "mae"
    assert not (seeing.directory / "inspection.json").exists()  # it only reads


def test_a_long_training_leaves_the_inspection_of_its_first_batch(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "INSPECTED", 0.0)
    told: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: told.append(text))
    for objective, data, tiny in (("causal-lm", TEXTS, TINY), ("simclr", drawings, TINY_VISION)):
        run = selfsup.train(objective, data=data, out=tmp_path / objective, **{**tiny, "steps": 4}, **QUIET)
        assert of(run)["inspection"]["objective"] == objective
    assert not [line for line in told if "could not" in line]


def test_what_fails_in_a_report_ends_no_training(run: Run, copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    reports = Reports(None, copy, told.append)  # type: ignore[arg-type]
    before = tree(copy.directory)
    monkeypatch.setattr(reporting, "report_of", lambda runs: 1 / 0)
    reports.write(0.0)
    reports.write(0.0)
    assert told == ["The report could not be written (ZeroDivisionError: division by zero)."]
    assert tree(copy.directory) == before


def test_reports_at_looks_take_a_hundredth_of_the_time(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    reports = Reports(None, copy, written.append)  # type: ignore[arg-type]
    monkeypatch.setattr(reports, "_write", lambda: written.append("page"))
    reports.at_look(1.0)
    reports.seconds = 0.2
    reports.at_look(19.0)
    assert written == ["page"]
    reports.at_look(21.0)
    assert written == ["page", "page"]


def test_protocols_have_their_intervals(tmp_path: Path) -> None:
    given = {**TINY, "steps": 4, "evaluate.protocols": ["perplexity"]}
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    run = selfsup.train("causal-lm", data=tmp_path / "texts.txt", out=tmp_path / "run", **given, **QUIET)
    (score,) = of(run)["scores"]
    low, high = score["interval"]
    assert low <= score["value"] <= high
    assert (score["protocol"], score["value"]) == ("perplexity", run.summary["perplexity"])
