"""Commands of a training: make it, plan it, look at its data and at itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfsup.cli.options import (
    Batch,
    Budget,
    Column,
    ConfigFile,
    Data,
    Device,
    Epochs,
    ImageInit,
    Init,
    Json,
    Precision,
    Seed,
    Steps,
    TextInit,
    Tokenizer,
    Words,
    app,
    free_name,
    split_words,
)
from selfsup.files import require_free, write_new
from selfsup.report import leads, print_json, say

if TYPE_CHECKING:
    from selfsup.run import Run


@app.command()
def train(
    words: Words = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="the run directory")] = None,
    budget: Budget = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch: Batch = None,
    seed: Seed = None,
    tokenizer: Tokenizer = None,
    init: Init = None,
    image_init: ImageInit = None,
    text_init: TextInit = None,
    config: ConfigFile = None,
    resume: Annotated[Path | None, typer.Option(help="a run to go on with, or to extend")] = None,
    device: Device = None,
    precision: Precision = None,
    column: Column = None,
    as_json: Json = False,
) -> None:
    """Train a model. Without arguments: causal-lm on the bundled Shakespeare, for two minutes."""
    from selfsup.budget import Clock
    from selfsup.training import train as run_training

    objective, settings = split_words(
        words,
        budget,
        steps,
        epochs,
        batch,
        seed,
        tokenizer,
        init,
        image_init,
        text_init,
        device,
        precision,
        column,
    )
    place = settings.pop("out", None)
    run = run_training(
        objective,
        data=data,
        out=out or place,
        config=config,
        resume=resume,
        origin="command line",
        clock=Clock.of_process(),
        **settings,
    )
    if not leads():  # whose machine need not see the run
        return
    if as_json:
        print_json(run.summary)
    else:
        show_end(run)


@app.command()
def plan(
    words: Words = None,
    data: Data = None,
    budget: Budget = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch: Batch = None,
    seed: Seed = None,
    tokenizer: Tokenizer = None,
    init: Init = None,
    image_init: ImageInit = None,
    text_init: TextInit = None,
    config: ConfigFile = None,
    device: Device = None,
    precision: Precision = None,
    column: Column = None,
    as_json: Json = False,
) -> None:
    """Say what a training would be: sizes, arithmetic, memory, time. Trains nothing, writes no run."""
    from selfsup.report import Reporter
    from selfsup.training import plan as make

    objective, settings = split_words(
        words,
        budget,
        steps,
        epochs,
        batch,
        seed,
        tokenizer,
        init,
        image_init,
        text_init,
        device,
        precision,
        column,
    )
    made, resolved = make(objective, data=data, config=config, origin="command line", **settings)
    if as_json:
        print_json(made.to_json())
    else:
        Reporter(to=sys.stdout).table(made.rows(resolved))


@app.command()
def inspect(
    words: Words = None,
    text: Annotated[str | None, typer.Option(help="the text to look at")] = None,
    data: Data = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="bpe, wordpiece, characters, words, a run, or a path")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="a run: its tokenizer, and what it makes of the task")
    ] = None,
    window: Annotated[int | None, typer.Option(help="tokens to show")] = None,
    column: Column = None,
    html: Annotated[Path | None, typer.Option(help="write the page here")] = None,
    png: Annotated[Path | None, typer.Option(help="of images: write it as one picture here")] = None,
    as_json: Json = False,
) -> None:
    """Show the supervision that the data makes: what is shown, what is hidden, who sees what."""
    from selfsup.inspection import inspect as look
    from selfsup.report import Reporter, to_stdout

    objective, settings = split_words(words, column=column)
    require_free(html, png)
    reporter = Reporter()
    with reporter.bar("Reading"):
        inspection = look(
            objective,
            text=text,
            data=data,
            tokenizer=tokenizer,
            run=run,
            window=window,
            progress=reporter.counting,
            **settings,
        )
    if inspection.pictured and not (html or png or as_json):
        html = free_name(f"inspect-{inspection.objective}", ".html")
    if png is not None:
        write_new(png, inspection.to_png())
    if html is not None:
        write_new(html, inspection.to_html())
    if as_json:
        print_json(inspection.to_json())
        return
    inspection.print(to_stdout())
    if inspection.pictured:
        say(f"\nThe pictures are in {' and '.join(str(place) for place in (html, png) if place)}.")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="two or more run directories")],
    plot: Annotated[Path | None, typer.Option(help="draw the curves into this .png or .svg")] = None,
    as_json: Json = False,
) -> None:
    """Set runs side by side: curves, final figures, and where their configurations differ."""
    from selfsup.comparison import compare as set_side_by_side
    from selfsup.report import to_stdout

    require_free(plot)
    comparison = set_side_by_side(runs)
    if plot is not None:
        comparison.plot(plot)
    if as_json:
        print_json(comparison.to_json())
    else:
        comparison.print(to_stdout())


@app.command()
def doctor(
    run: Annotated[Path, typer.Argument(help="a run, finished or not")],
    as_json: Json = False,
) -> None:
    """Say what is wrong with a run, and what helps."""
    from selfsup.diagnosis import doctor as diagnose
    from selfsup.report import to_stdout

    diagnosis = diagnose(run)
    if as_json:
        print_json(diagnosis.to_json())
    else:
        diagnosis.print(to_stdout())


def show_end(run: Run) -> None:
    """What a finished run leaves to look at: its last sample, its figures, and what to do next."""
    from selfsup.objectives import find_recipe

    summary, settings = run.summary, run.settings()
    recipe = find_recipe(settings["objective"])(settings)
    samples = sorted(run.samples.glob("*.txt"))
    if samples:
        say(f"\n{recipe.sample_title}:\n\n{samples[-1].read_text(encoding='utf-8').strip()}\n")
    if summary.get("loss") is not None:
        bits = f", {summary['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in summary else ""
        chance = "" if summary["chance"] is None else f" (chance {summary['chance']:.3f})"
        say(f"Validation loss {summary['loss']:.3f}{chance}{bits}.")
    if recipe.next_command is not None:
        say(f"Try: {recipe.next_command.format(run=os.path.relpath(run.directory))}")
