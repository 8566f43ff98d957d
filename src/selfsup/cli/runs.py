"""Commands of a training: make it, plan it, look at its data and at itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from selfsup.cli.options import (
    Captions,
    Column,
    Device,
    Failures,
    Label,
    Precision,
    Records,
    Seed,
    SeveralValues,
    Source,
    Templates,
    Window,
    Words,
    command,
    free_name,
)
from selfsup.config import SHORT
from selfsup.report import say

ConfigFile = Annotated[Path | None, typer.Option(help="a YAML file, such as a run's config.yaml")]


def _of_this_process() -> Mapping[str, Any]:
    from selfsup.budget import Clock

    return {"origin": "command line", "clock": Clock.of_process()}


@command(
    "selfsup.training",
    flags=tuple(SHORT),
    always=_of_this_process,
    to_json=lambda run, given: run.summary,
    several=True,
)
def train(
    run: Any,
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="the run directory")] = None,
    config: ConfigFile = None,
    resume: Annotated[Path | None, typer.Option(help="a run to go on with, or to extend")] = None,
    **settings: Any,
) -> None:
    """Train a model. Without arguments: causal-lm on the bundled Shakespeare, for two minutes."""
    from selfsup.objectives import recipe_of
    from selfsup.reporting import REPORT

    summary, resolved = run.summary, run.settings()
    recipe = recipe_of(resolved)(resolved)
    samples = sorted(run.samples.glob("*.txt"))
    if samples:
        say(f"\n{recipe.sample_title}:\n\n{samples[-1].read_text(encoding='utf-8').strip()}\n")
    if summary.get("loss") is not None:
        bits = f", {summary['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in summary else ""
        chance = "" if summary["chance"] is None else f" (chance {summary['chance']:.3f})"
        say(f"Validation loss {summary['loss']:.3f}{chance}{bits}.")
    if recipe.next_command is not None:
        say(f"Try: {recipe.next_command.format(run=os.path.relpath(run.directory))}")
    if (page := run.directory / REPORT).exists():
        say(f"report: {os.path.relpath(page)}")


@command(
    "selfsup.training",
    flags=tuple(SHORT),
    always=lambda: {"origin": "command line"},
    to_json=lambda planned, given: planned[0].to_json(),
)
def plan(
    planned: Any,
    words: Words = None,
    config: ConfigFile = None,
    gpus: Annotated[str | None, typer.Option(help="plan on paper for other machines, such as 256:h100")] = None,
    tokens: Annotated[str | None, typer.Option(help="on paper: tokens, or images, to train on, such as 140B")] = None,
    price: Annotated[float | None, typer.Option(help="on paper: of a GPU hour")] = None,
    utilisation: Annotated[float | None, typer.Option(help="on paper: share of the GPUs' published rate")] = None,
    **settings: Any,
) -> None:
    """Say what a training would be: sizes, arithmetic, memory, time. Trains nothing, writes no run."""
    from selfsup.report import Reporter

    made, resolved = planned
    Reporter(to=sys.stdout).table(made.rows(resolved))


@command("selfsup.preparing", bar="Preparing", flags=("data", "column", "tokenizer", "seed"))
def prepare(
    prepared: Any,
    out: Annotated[Path, typer.Option(help="the directory of the corpus")],
    words: Words = None,
    workers: Annotated[
        int | None, typer.Option(help="processes on this machine; as many as it has cores without", min=1)
    ] = None,
    duplicates: Annotated[
        str,
        typer.Option(help="keep them; exact: of equal documents the first one stays; near: also of nearly equal ones"),
    ] = "keep",
    **settings: Any,
) -> None:
    """Encode texts into shards, once, for trainings on data of any size. The same command on other machines that see
    the directory helps; after a stop it goes on."""
    from selfsup.report import Reporter

    Reporter(to=sys.stdout).table(prepared.rows())
    say(f"Try: selfsup train {prepared.objective} --data {os.path.relpath(prepared.directory)}")


@command("selfsup.adapting", always=lambda: {"clock": _of_this_process()["clock"]})
def adapt(
    adapted: Any,
    model: Annotated[Path, typer.Argument(help="a run, or model directory, of any kind")],
    data: Source,
    budget: Annotated[str, typer.Option(help="wall time of all of it, such as 30m")] = "30m",
    out: Annotated[Path | None, typer.Option(help="where all that it makes goes")] = None,
    column: Column = None,
    failures: Failures = 0.01,
    device: Device = "auto",
    precision: Precision = "auto",
    seed: Seed = 0,
) -> None:
    """Make a model better for some data: try what may help, go on with what did, and judge it on data set aside. Or say
    that it did not get better. The same command goes on after a stop."""
    from selfsup.report import to_stdout

    adapted.print(to_stdout())


@command("selfsup.inspection", bar="Reading", flags=("data", "column", "tokenizer", "teacher"))
def inspect(
    inspection: Any,
    words: Words = None,
    text: Annotated[str | None, typer.Option(help="the text to look at")] = None,
    run: Annotated[Path | None, typer.Option(help="a run: its tokenizer, and what it makes of the task")] = None,
    window: Annotated[int | None, typer.Option(help="tokens to show")] = None,
    html: Annotated[Path | None, typer.Option(help="write the page here")] = None,
    png: Annotated[Path | None, typer.Option(help="of images: write it as one picture here")] = None,
    **settings: Any,
) -> None:
    """Show the supervision that the data makes: what is shown, what is hidden, who sees what."""
    from selfsup.report import to_stdout

    places = [place for place in (html, png) if place is not None]
    if inspection.pictured and not places:
        places = [free_name(f"inspect-{inspection.objective}", ".html")]
        inspection.write(places[0])
    inspection.print(to_stdout())
    if inspection.pictured:
        say(f"\nThe pictures are in {' and '.join(map(str, places))}.")


@command("selfsup.comparison", bar="Measuring", running=True, cls=SeveralValues)
def compare(
    comparison: Any,
    runs: Annotated[list[Path], typer.Argument(help="two or more run directories; by a protocol two models")],
    plot: Annotated[Path | None, typer.Option(help="draw curves, or differences, into this .png or .svg")] = None,
    protocol: Annotated[str | None, typer.Option(help="measure two models by it, see evaluate: before, after")] = None,
    data: Annotated[str | None, typer.Option(help="what the second is for; by default what a run held out")] = None,
    also: Annotated[list[str] | None, typer.Option(help="older data, of which nothing is to be lost")] = None,
    column: Column = None,
    label: Label = None,
    templates: Templates = None,
    captions: Captions = None,
    failures: Failures = 1.0,
    device: Device = "auto",
    precision: Precision = "auto",
    records: Records = None,
    window: Window = None,
    seed: Seed = 0,
) -> None:
    """Set runs side by side: curves, final figures, and where their configurations differ. By a protocol: what a model
    gained over another one on new data, and what it lost on older data."""
    from selfsup.report import to_stdout

    comparison.print(to_stdout())


@command("selfsup.reporting", name="report")
def write_report(
    report: Any,
    runs: Annotated[list[Path], typer.Argument(help="one run directory or more, finished or not")],
    out: Annotated[Path | None, typer.Option(help="the page to write; with --json none need be")] = None,
) -> None:
    """Put all that runs have to show on one page: figures, curves, samples over time, findings, what the data teaches,
    configuration, model card; of several runs, side by side."""
    page = report.page
    if page is None:
        page = free_name("report", ".html")
        report.write(page)
    say(f"report: {page}")


@command("selfsup.keeping", bar="Verifying")
def checkpoint(
    listing: Any,
    run: Annotated[Path, typer.Argument(help="a run, finished or not")],
    keep: Annotated[
        list[int] | None, typer.Option(help="never remove the checkpoint of this step", metavar="STEP")
    ] = None,
    release: Annotated[list[int] | None, typer.Option(help="from now on it may be", metavar="STEP")] = None,
    export: Annotated[
        int | None, typer.Option(help="write the checkpoint of this step as a model directory", metavar="STEP")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where to")] = None,
) -> None:
    """List and verify the checkpoints of a run; keep some of them, or write one as a model directory."""
    from selfsup.report import to_stdout

    listing.print(to_stdout())


@command("selfsup.rates", name="machine")
def measure_machine(
    rates: Any,
    directory: Annotated[Path | None, typer.Argument(help="one whose disk is measured too")] = None,
    device: Device = "auto",
    keep: Annotated[bool, typer.Option("--keep", help="measure anew, and keep, the rate that plans use")] = False,
) -> None:
    """Measure this machine: matrix products, memory, exchange between processes that torchrun started, a disk."""
    from selfsup.report import Reporter

    Reporter(to=sys.stdout).table(rates.rows())


@command("selfsup.diagnosis")
def doctor(diagnosis: Any, run: Annotated[Path, typer.Argument(help="a run, finished or not")]) -> None:
    """Say what is wrong with a run, and what helps."""
    from selfsup.report import to_stdout

    diagnosis.print(to_stdout())
