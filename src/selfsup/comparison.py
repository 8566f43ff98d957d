"""Runs side by side: final figures, where their configurations differ, and how their losses fell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from inspect import signature
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.table import Table

from selfsup.arguments import checked
from selfsup.checks import PACE
from selfsup.errors import UserError
from selfsup.evaluation.base import unsaid
from selfsup.evaluation.gains import Gains, gains
from selfsup.files import checksum, require_free
from selfsup.inference.items import silent
from selfsup.objectives import declared
from selfsup.plots import new_figure, write_figure
from selfsup.report import Progress, Text, duration, printable
from selfsup.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

# Okabe and Ito's colours, which people with any colour vision tell apart, and what comes near them in a terminal.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("blue", "red", "green", "magenta", "yellow", "cyan")
MARKS = "●▲■◆✚★"
UNKNOWN = "–"
CHART_HEIGHT = 14  # lines
TIMES = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
AMOUNTS = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1.0, ""))
OF_SOURCE = "loss/"  # what the loss of a source of a mixture is called, before its name
OWN = ("out",)  # keys that name a run rather than say what it does
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A line of metrics: what a run had spent, and what it had reached."""

    step: int
    time: float  # seconds
    amount: int  # of the run's unit
    loss: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class RunFigures:
    """One run. A figure that is not known is None; those of a run that is not finished are the latest ones.

    Attributes:
        unit: what it went through, such as tokens, sentences or images; `amount` of it, `per_second` in the median.
        sources: the loss on the held-out part of each source of a mixture, by name.
        train, validation: its curves, from the first step to the last, without what is no finite number.
    """

    name: str
    objective: str
    unit: str | None
    finished: bool
    loss: float | None
    bits_per_byte: float | None
    best: float | None
    steps: int
    amount: int | None
    parameters: int | None
    wall_seconds: float | None
    per_second: float | None
    chance: float | None
    sources: dict[str, float]
    train: list[Point] = field(repr=False)
    validation: list[Point] = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """A key of the resolved configuration that the runs do not share: value and origin of each run."""

    key: str
    values: list[Any]
    origins: list[str]


@dataclass(frozen=True)
class Comparison:
    """Two runs or more.

    Attributes:
        measure: the figure that the curves are compared by, `loss` or `bits_per_byte`.
        notes: what to bear in mind.
    """

    runs: list[RunFigures]
    differences: list[Difference]
    measure: str
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def print(self, console: Console) -> None:
        """Figures, differences and a chart of the validation curves, for a terminal."""
        for title, block in (
            ("figures", self._figures()),
            ("differences", self._differences() if self.differences else "The configurations are the same."),
            (f"validation, {self._measured} over time", self._chart(console.width)),
        ):
            console.print(title, style="bold")
            console.print(block)
            console.print()
        for note in self.notes:
            console.print(Text(f"Note: {note}"))

    @property
    def _measured(self) -> str:
        """What the curves show: the unit of the measure, where all losses are of one kind."""
        if self.measure == "bits_per_byte":
            return "bits per byte"
        return shared([declared(run.objective).loss_unit for run in self.runs]) or "loss"

    def _figures(self) -> Table:
        table = _table("", self.runs)
        for title, figure in FIGURES.items():
            cells = [figure(run) for run in self.runs]
            if set(cells) != {UNKNOWN}:
                table.add_row(title, *cells)
        for name in dict.fromkeys(name for run in self.runs for name in run.sources):
            table.add_row(Text(f"loss on {name}"), *(_number(run.sources.get(name)) for run in self.runs))
        for unit in dict.fromkeys(run.unit for run in self.runs if run.unit is not None):
            amounts = [run.amount if run.unit == unit else None for run in self.runs]
            paces = [run.per_second if run.unit == unit else None for run in self.runs]
            table.add_row(unit, *(_number(amount, 0) for amount in amounts))
            table.add_row(f"{unit} per second", *(_number(pace, 0) for pace in paces))
        return table

    def _differences(self) -> Table:
        table = _table("key", self.runs)
        for difference in self.differences:
            cells = zip(difference.values, difference.origins, strict=True)
            table.add_row(difference.key, *(Text.assemble(_value(v), (f"  {o}", "dim")) for v, o in cells))
        return table

    def _chart(self, width: int) -> Text:
        curves = [[(point.time, y) for point, y in self._curve(run.validation)] for run in self.runs]
        return chart(curves, width, CHART_HEIGHT)

    def _curve(self, points: list[Point]) -> list[tuple[Point, float]]:
        """The points where the measure is known, with it."""
        values = [(point, getattr(point, self.measure)) for point in points]
        return [(point, value) for point, value in values if value is not None]

    def plot(self, path: str | Path) -> None:
        """Draw the curves, train faint and validation bold, over wall time and over what the runs went through.

        Args:
            path: where to, a name that is free; the ending chooses the format, such as .png or .svg.

        Raises:
            UserError: matplotlib is not installed, does not know the format, or the file cannot be written.
        """
        figure = new_figure(11, 4.5)
        over_time, over_amount = figure.subplots(1, 2, sharey=True)
        self._draw(over_time, "time", "")
        unit = shared([run.unit for run in self.runs])
        self._draw(over_amount, "amount" if unit else "step", unit or "steps")
        over_time.set_ylabel(self._measured if self._measured == "loss" else f"loss ({self._measured})")
        legend = over_amount.legend(frameon=False, title="validation bold, training faint")
        for line, run in zip(legend.get_texts(), self.runs, strict=True):  # a name is no formula and no directive
            line.set(text=printable(run.name), parse_math=False)
        write_figure(figure, path)

    def _draw(self, axes: Axes, against: str, unit: str) -> None:
        """One panel. Its height is that of the validation curves: a training curve falls into it from chance."""
        parts = [(self._curve(run.train), self._curve(run.validation)) for run in self.runs]
        everything = [point for train, validation in parts for point, _ in (*train, *validation)]
        largest = max((getattr(point, against) for point in everything), default=1.0)
        scale, label = _axis(largest, *((TIMES, "wall time") if against == "time" else (AMOUNTS, unit)))
        for number, (train, validation) in enumerate(parts):
            colour = COLOURS[number % len(COLOURS)]
            for curve, style in (
                (train, {"alpha": 0.3, "linewidth": 1}),
                (validation, {"linewidth": 2.2, "marker": "o", "markersize": 3.5, "label": str(number)}),
            ):
                places = [getattr(point, against) / scale for point, _ in curve]
                axes.plot(places, [y for _, y in curve], color=colour, **style)
        bounds = [y for _, validation in parts for _, y in validation]
        if bounds:
            margin = 0.05 * (max(bounds) - min(bounds)) or 0.05
            axes.set_ylim(min(bounds) - 2 * margin, max(bounds) + margin)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)


@checked
def compare(
    runs: Sequence[str | Path],
    plot: str | Path | None = None,
    *,
    protocol: str | None = None,
    data: object = None,
    also: Sequence[object] = (),
    column: str | None = None,
    label: str | None = None,
    templates: Sequence[str] | None = None,
    captions: Sequence[str] = (),
    failures: float = 1.0,
    device: str = "auto",
    precision: str = "auto",
    records: int | None = None,
    window: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    running: Callable[[str], None] | None = None,
) -> Comparison | Gains:
    """Set two runs or more side by side; or, by a protocol, two models, before and after.

    Args:
        plot: where to draw the curves, or the differences.
        protocol: what both are measured by, runs or model directories.
        data: for a protocol, what the second was trained for; by default what the run of one of them held out.
        also: further data, of which nothing is to be lost.

    The others are those of `selfsup.evaluate`.

    Raises:
        UserError: less than two are given, one of them twice, or a directory holds no run; more than two for a
            protocol, or what it refuses; data without a protocol.
    """
    require_free(plot)
    how: dict[str, Any] = {
        "column": column, "label": label, "templates": templates, "captions": captions, "failures": failures,
        "device": device, "precision": precision, "records": records, "window": window,
        "seed": seed,
    }  # fmt: skip
    if protocol is None:
        _require_nothing({"data": data, "also": also, **how})
        return _of_runs(runs, plot)
    how |= {"progress": progress or silent, "running": running or unsaid}
    return _by_protocol(runs, plot, protocol, data, also, how)


def _require_nothing(given: Mapping[str, Any]) -> None:
    """Raise a UserError where something is said of a measurement, and not by what."""
    defaults = signature(compare).parameters
    for name, value in given.items():
        plain = isinstance(value, str | int | float | list | tuple)
        if value is not defaults[name].default and not (plain and value in (defaults[name].default, [])):
            raise UserError(f"--{name} is for models that are measured; say by what with --protocol.")


def _by_protocol(
    runs: Sequence[str | Path],
    plot: str | Path | None,
    protocol: str,
    data: object,
    also: Sequence[object],
    how: Mapping[str, Any],
) -> Gains:
    if len(runs) != 2:
        raise UserError(f"By a protocol two models are compared, before and after, not {len(runs)}; give two.")
    found = gains(runs[0], runs[1], protocol, data, also, **how)
    if plot is not None:
        found.plot(plot)
    return found


def _of_runs(runs: Sequence[str | Path], plot: str | Path | None) -> Comparison:
    if len(runs) < 2:
        raise UserError("A comparison takes two runs or more; give their directories.")
    opened = [Run.open(directory) for directory in runs]
    places = [run.directory.resolve() for run in opened]
    if len(set(places)) < len(places):
        raise UserError("A run is given twice; give each directory once.")
    figures = [figures_of(run, name, run.metrics()) for run, name in zip(opened, names_of(opened), strict=True)]
    measure, notes = _judge(opened, figures)
    comparison = Comparison(figures, _differences_of(opened), measure, notes)
    if plot is not None:
        comparison.plot(plot)
    return comparison


def names_of(runs: list[Run]) -> list[str]:
    """Each directory by its last part where those differ, else as it was given."""
    short = [run.directory.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.directory) for run in runs]


def figures_of(run: Run, name: str, lines: list[dict[str, Any]]) -> RunFigures:
    """The figures of a run and its curves, from its metrics."""
    summary = run.summary
    train = [line for line in lines if line["split"] == "train"]
    unit = _unit(train)
    per_step: float = 0.0 if unit is None else (train[-1].get(unit) or 0.0) / train[-1]["step"]
    curves = {
        split: [_point(line, per_step) for line in lines if line["split"] == split and _known(line["loss"])]
        for split in ("train", "validation")
    }
    validation = curves["validation"]
    latest = validation[-1] if validation else None
    last: dict[str, Any] = lines[-1] if lines else {"step": 0, "time": None}
    steps: int = summary.get("steps", last["step"])
    rates = [line[f"{unit}{PACE}"] for line in train if line.get(f"{unit}{PACE}") is not None]
    return RunFigures(
        name=name,
        objective=run.settings()["objective"],
        unit=unit,
        finished=bool(summary),
        loss=_known(summary.get("loss", latest and latest.loss)),
        bits_per_byte=_known(summary.get("bits_per_byte", latest and latest.bits_per_byte)),
        best=min((point.loss for point in validation), default=None),
        steps=steps,
        amount=None if unit is None else summary.get(unit, round(steps * per_step)),
        parameters=(run.environment().get("plan") or {}).get("parameters"),
        wall_seconds=summary.get("wall_seconds", last["time"]),
        per_second=median(rates) if rates else None,
        sources=_by_source(summary or next((line for line in reversed(lines) if line["split"] == "validation"), {})),
        chance=summary.get("chance", (run.environment().get("plan") or {}).get("chance")),
        **curves,
    )


def _by_source(figures: Mapping[str, Any]) -> dict[str, float]:
    """Of the figures of a look, the loss of each source of a mixture."""
    of_sources = {key.removeprefix(OF_SOURCE): value for key, value in figures.items() if key.startswith(OF_SOURCE)}
    return {name: value for name, value in of_sources.items() if _known(value) is not None}


def _unit(train: list[dict[str, Any]]) -> str | None:
    """What train lines count; None where there are none."""
    paces = [key for line in train for key in line if key.endswith(PACE)]
    return paces[0].removesuffix(PACE) if paces else None


def _known(value: float | None) -> float | None:
    """A figure, unless it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _point(line: dict[str, Any], per_step: float) -> Point:
    return Point(
        line["step"], line["time"], round(line["step"] * per_step), line["loss"], _known(line.get("bits_per_byte"))
    )


def _differences_of(runs: list[Run]) -> list[Difference]:
    settings = [run.settings() for run in runs]
    names = [set(one.names()) for one in settings]
    differences = []
    for key in dict.fromkeys(key for one in settings for key in one.names() if key not in OWN):
        values = [one[key] if key in known else None for one, known in zip(settings, names, strict=True)]
        if any(a != b for a, b in pairwise(values)):
            differences.append(Difference(key, values, [one.origin(key) for one in settings]))
    return differences


def _judge(runs: list[Run], figures: list[RunFigures]) -> tuple[str, list[str]]:
    """What the runs can be compared by, and what to bear in mind about it."""
    notes = [
        f"{run.name} is not finished; its figures are those of step {run.steps:,}."
        for run in figures
        if not run.finished
    ]
    objective = shared([run.objective for run in figures])
    if objective is None:
        names = ", ".join(sorted({run.objective for run in figures}))
        notes.append(
            f"The objectives differ ({names}), so neither losses nor curves compare the runs; measure their models by "
            "one protocol: selfsup evaluate RUN --protocol NAME --data SOURCE."
        )
        return "loss", notes
    notes += _cautions(objective, figures)
    if _same({run.environment().get("data") for run in runs}):  # text, split and tokenizer
        return "loss", notes
    notes.append("The data, its split or its tokens differ, so a lower figure may come from easier data.")
    if declared(objective).loss_unit is None or _same({_tokenizer(run) for run in runs}):
        return "loss", notes
    if all(run.bits_per_byte is not None for run in figures):
        notes.append("The tokenizers are not known to be the same: go by bits per byte, not by the loss per token.")
        return "bits_per_byte", notes
    notes.append(
        "The tokenizers are not known to be the same, and not all keep every byte: no figure here compares the runs."
    )
    return "loss", notes


def _cautions(objective: str, figures: list[RunFigures]) -> list[str]:
    """Why the losses of runs of one objective may not say which is better."""
    notes = []
    if not declared(objective).losses_compare:
        notes.append(
            f"The loss of {objective} is measured against what a run makes itself, its own teacher, so a lower one is "
            "no better model; measure the features: selfsup evaluate RUN --protocol knn-20 --data SOURCE."
        )
    chances = [run.chance for run in figures]
    if None not in chances and shared(chances) is None:
        costs = ", ".join(f"{run.chance:.4g} in {run.name}" for run in figures)
        notes.append(f"Knowing nothing costs {costs}: set each loss beside its own chance.")
    return notes


def shared(values: Sequence[T]) -> T | None:
    """What all values are; None where they differ."""
    return values[0] if all(value == values[0] for value in values) else None


def _same(marks: set[str | None]) -> bool:
    return len(marks) == 1 and None not in marks


def _tokenizer(run: Run) -> str | None:
    """What a run's tokenizer is told by; None before its model is written."""
    file = run.model_directory / "tokenizer.json"
    return checksum(file) if file.is_file() else None


# -- how it looks --------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 4) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


FIGURES: dict[str, Callable[[RunFigures], str]] = {
    "loss": lambda run: _number(run.loss),
    "bits per byte": lambda run: _number(run.bits_per_byte),
    "best loss": lambda run: _number(run.best),
    "chance": lambda run: _number(run.chance),
    "steps": lambda run: f"{run.steps:,}" + ("" if run.finished else " so far"),
    "parameters": lambda run: UNKNOWN if run.parameters is None else f"{run.parameters:,}",
    "wall time": lambda run: UNKNOWN if run.wall_seconds is None else duration(run.wall_seconds),
}


def _table(corner: str, runs: list[RunFigures]) -> Table:
    """A table with a column for each run, under the mark and colour that the chart gives it."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(corner, style="dim", header_style="dim")
    for number, run in enumerate(runs):
        table.add_column(Text(f"{_mark(number)} {run.name}", _style(number)), overflow="fold")
    return table


def _mark(number: int) -> str:
    return MARKS[number % len(MARKS)]


def _style(number: int) -> str:
    return STYLES[number % len(STYLES)]


def _value(value: Any) -> str:
    return UNKNOWN if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def chart(curves: list[list[tuple[float, float]]], width: int, height: int) -> Text:
    """Curves of (seconds, value) as characters, one mark each, interpolated over the columns of `width`."""
    points = [point for curve in curves for point in curve]
    if not points:
        return Text("nothing was measured on a held-out part")
    low, high = min(y for _, y in points), max(y for _, y in points)
    end = max(x for x, _ in points) or 1.0
    margin = max(len(f"{low:.3f}"), len(f"{high:.3f}")) + 2
    columns = max(20, width - margin - 1)
    grid = [[(" ", "")] * columns for _ in range(height)]
    for number, curve in enumerate(curves):
        for column, y in _in_columns(curve, end, columns).items():
            row = round((high - y) / ((high - low) or 1.0) * (height - 1))
            grid[row][column] = (_mark(number), _style(number))
    lines = []
    for row, cells in enumerate(grid):
        value = high - (high - low) * row / (height - 1)
        label = f"{value:.3f} ┤" if row % 4 == 0 or row == height - 1 else "│"
        lines.append(Text.assemble((label.rjust(margin), "dim"), *cells))
    lines.append(Text(" " * (margin - 1) + "└" + "─" * columns, "dim"))
    lines.append(Text(" " * margin + "0 s" + duration(end).rjust(columns - 3), "dim"))
    return Text("\n").join(lines)


def _in_columns(curve: list[tuple[float, float]], end: float, columns: int) -> dict[int, float]:
    """The value of a curve at each column from its first point to its last, straight between two points."""
    if not curve:
        return {}
    places = [x / end * (columns - 1) for x, _ in curve]
    values = [y for _, y in curve]
    between = range(math.ceil(places[0]), math.floor(places[-1]) + 1)
    straight = np.interp(between, places, values).tolist()
    return dict(zip(between, straight, strict=True)) | dict(zip(map(round, places), values, strict=True))


def _axis(largest: float, scales: Sequence[tuple[float, str]], what: str) -> tuple[float, str]:
    """What an axis is divided by, and its label: the first scale of which there are more than two."""
    scale, name = next((each for each in scales if largest > 2 * each[0]), scales[-1])
    return scale, f"{what} ({name})" if name else what
