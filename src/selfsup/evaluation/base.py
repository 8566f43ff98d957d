"""What is measured, what a protocol answers, and how sure the answer is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from selfsup.errors import UserError
from selfsup.inference.geometry import Floats
from selfsup.inference.items import Collection, Counted, Item, LeftOut, Vectors, distinct_items, silent
from selfsup.machine import Machine, find_device, find_precision
from selfsup.report import Progress
from selfsup.seeding import derive

if TYPE_CHECKING:
    from rich.console import Console

RESAMPLES = 1000
CONFIDENCE = 95  # percent
LATER = {"precision", "records", "records_in_all"}  # of a score, which those that were kept long ago do not say

Labels = npt.NDArray[np.int64]  # numbers of classes, from 0
Resample = npt.NDArray[np.int64]  # numbers of the units that were drawn
Chosen = npt.NDArray[np.bool_]  # which of all records, (n,)
Places = npt.NDArray[np.int64]  # numbers of records, in their order
Numbers = npt.NDArray[np.floating] | npt.NDArray[np.integer]
T = TypeVar("T")


def unsaid(figure: str) -> None:
    """A running figure that nobody looks at."""


@dataclass
class Measurement:
    """An opened model that is to be measured, and all that is read for it: sources are opened and embedded here.

    Attributes:
        directory: a run directory, or a model directory in Hugging Face's layout.
        model: what was opened there; a protocol is only asked about models that it is defined for.
        data, column, device, seed, progress, test, label, templates, captions, failures, precision, records, window,
            running, split, rerank: as `selfsup.evaluate` takes them.
        sources, truncated: what was opened so far, and how many texts of it were longer than the window.
        drawn: of each source that was sampled, the records that were drawn and those that there are.
        used: the precisions that were computed in.
        notes: what else is to be told.
    """

    directory: Path
    model: Any
    data: object
    column: str | None = None
    device: str = "auto"
    seed: int = 0
    progress: Progress = silent
    test: object = None
    label: str | None = None
    templates: Sequence[str] | None = None
    captions: Sequence[str] = ()
    failures: float = 1.0
    precision: str = "fp32"
    records: int | None = None
    window: int | None = None
    running: Callable[[str], None] = unsaid
    split: str | None = None
    rerank: str | Path | None = None
    sources: list[Counted] = field(default_factory=list)
    truncated: int = 0
    drawn: list[tuple[int, int]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    notes: dict[str, str] = field(default_factory=dict)

    def need_data(self) -> object:
        """The data; raises UserError where none is named."""
        if self.data is None:
            raise UserError("This protocol needs records to measure on; name a source with --data.")
        return self.data

    def open(self, source: object = None) -> Collection:
        """A source, or else the data, as the model reads it."""
        how = {"label": self.label, "failures": self.failures, "progress": self.progress}
        source = self.need_data() if source is None else source
        collection: Collection = self.model.read(source, self.column, **how)
        self.sources.append(collection)
        return collection

    def chosen(self, count: int) -> Places:
        """Which of so many records are measured on: all, or as many as were asked for, drawn by the seed alone."""
        if self.records is None or self.records >= count:
            return np.arange(count)
        self.drawn.append((self.records, count))
        draws = np.random.default_rng(derive(self.seed, "records"))
        return np.sort(draws.choice(count, self.records, replace=False))

    def sampled(self, records: Sequence[T]) -> list[T]:
        """Those of records that are measured on."""
        return [records[place] for place in self.chosen(len(records))]

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the precision that is asked for, of a network that is no `EmbeddingModel`."""
        device = find_device(self.device)
        precision = find_precision(self.precision, device)
        self.used.add(precision)
        return Machine(device, precision, 0.0).autocast()

    def embed(
        self, items: Sequence[Item], prompt: str | None = None, progress: Progress | None = None
    ) -> tuple[Chosen, Vectors]:
        """Which of the items (n,) can be read, and the model's vectors (m, dimension) of these.

        Texts stand behind the prompt that is named, see `selfsup.models.features.Features.prompt`. What occurs twice is
        embedded once. Raises UserError where a vector is not finite.

        Args:
            progress: called in place of the measurement's own.
        """
        distinct = distinct_items(items)
        self.model.to(find_device(self.device))
        progress = progress or self.progress
        read, vectors = self.model.embed_items(list(distinct.values()), self.precision, progress, prompt)
        self.truncated += self.model.truncated
        self.used.add(self.model.precision)
        self.notes |= self.model.notes(prompt)
        places = {identity: place for place, identity in enumerate(itertools.compress(distinct, read))}
        found = [places.get(item.identity) for item in items]
        return np.array([place is not None for place in found]), vectors[[p for p in found if p is not None]]

    def described(self, score: Score, protocol: str) -> Score:
        """A figure of this measurement with how it was measured."""
        drawn, there = (sum(counts) for counts in zip(*self.drawn, strict=True)) if self.drawn else (None, None)
        return replace(
            score,
            protocol=protocol,
            seed=self.seed,
            precision=" and ".join(sorted(self.used)),
            records=drawn,
            records_in_all=there,
            left_out=self.left_out(),
        )

    def left_out(self) -> LeftOut:
        """What of the sources is not, or not wholly, in the figure."""
        return LeftOut.of(self.sources, self.truncated).beside(self.notes)


@dataclass(frozen=True)
class Resampling:
    """What the bootstrap of a figure draws, and the figure of what was drawn.

    Attributes:
        units: how many things are drawn from, such as records.
        statistic: the figure of units drawn with replacement, given by their numbers (units,); NaN where such a sample
            says nothing.
        of: says which units these are: equal where those of two models are the same ones in the same order.
    """

    units: int
    statistic: Callable[[Resample], float]
    of: Hashable = None

    @classmethod
    def of_mean(cls, values: Numbers) -> Resampling:
        """Of the mean of values (units,)."""
        return cls.of_ratio(values, np.ones(len(values)))

    @classmethod
    def of_ratio(cls, numerators: Numbers, denominators: Numbers, of: Hashable = None) -> Resampling:
        """Of Σ numerators / Σ denominators, (units,) each: the two sums of each unit, such as a run of tokens, are
        drawn together."""

        def ratio(drawn: Resample) -> float:
            total = denominators[drawn].sum()
            # A resample of a few units may hold nothing to divide by.
            return float(numerators[drawn].sum() / total) if total > 0 else math.nan

        return cls(len(numerators), ratio, of)

    def mapped(self, function: Callable[[float], float]) -> Resampling:
        """Of a function of the figure."""
        return Resampling(self.units, lambda drawn: function(self.statistic(drawn)), self.of)

    def interval(self, seed: int) -> tuple[float, float]:
        """Where the figure lies, see `bootstrap`."""
        return bootstrap(self.units, self.statistic, seed)

    def difference(self, other: Resampling, seed: int) -> tuple[tuple[float, float], bool]:
        """Where the figure minus another one lies, and whether both were drawn together: where their units are the
        same."""
        if (self.units, self.of) == (other.units, other.of):
            return bootstrap(self.units, lambda drawn: self.statistic(drawn) - other.statistic(drawn), seed), True
        alone = (resampled(x.units, x.statistic, derive(seed, "bootstrap", n)) for n, x in enumerate((self, other)))
        return interval_of(next(alone) - next(alone)), False


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure, and what it takes to judge it."""

    protocol: str = ""  # name of the definition that it follows; `measure` fills it in, and the seed
    value: float
    unit: str
    n: int  # predictions, records or pairs that it is made of
    interval: tuple[float, float]  # where it lies with a confidence of 95 %, by `RESAMPLES` bootstrap resamples
    chance: float | None  # the value of a model that knows nothing, where the protocol has one
    seed: int = 0  # of the resamples
    data: str  # name of what was measured on
    details: dict[str, Any] = field(default_factory=dict)  # figures of this protocol alone, see its module
    left_out: LeftOut = field(default_factory=LeftOut)  # what of the data it is not made of, or not wholly
    precision: str = "fp32"  # of the arithmetic
    records: int | None = None  # that were drawn by the seed; None where all were measured on
    records_in_all: int | None = None  # that they were drawn from
    resampling: Resampling | None = field(default=None, repr=False, compare=False)  # behind the interval; not kept

    @classmethod
    def of(cls, resampling: Resampling, seed: int, **other: Any) -> Score:
        """A figure with the interval of its resampling."""
        return cls(interval=resampling.interval(seed), resampling=resampling, **other)

    @classmethod
    def of_mean(cls, values: Floats, seed: int, **other: Any) -> Score:
        """The mean of values (n,), with its interval."""
        return cls.of(Resampling.of_mean(values), seed, value=float(values.mean()), n=len(values), **other)

    def to_json(self) -> dict[str, Any]:
        figures = asdict(replace(self, resampling=None)) | {"interval": list(self.interval)}
        del figures["left_out"], figures["resampling"]
        return figures | self.left_out.to_json()

    @classmethod
    def from_json(cls, figures: dict[str, Any]) -> Score:
        """What `to_json` gave; raises KeyError, TypeError or ValueError where it is something else."""
        low, high = figures["interval"]
        left_out = {f.name: figures[f.name] for f in fields(LeftOut) if f.name in figures}
        asked = {f.name for f in fields(cls)} - {"left_out", "resampling"} - (LATER - figures.keys())
        own = {name: figures[name] for name in asked}
        names = tuple(left_out.pop("skipped_names", ()))
        return cls(**own | {"interval": (low, high), "left_out": LeftOut(**left_out, skipped_names=names)})

    def print(self, console: Console) -> None:
        """The figure with its interval, what it was measured on, and the details."""
        from selfsup.report import Text

        low, high = self.interval
        chance = "" if self.chance is None else f", chance {self.chance:.4f}"
        sure = f" {self.unit}, {CONFIDENCE} % between {low:.4f} and {high:.4f}{chance}"
        lines = [
            f"{self.n:,} predictions on {self.data}{self._drawn}; {self.precision}; "
            f"interval from {RESAMPLES:,} resamples, seed {self.seed}",
            *(f"{name}: {told}" for name, told in self.left_out.rows().items()),
        ]
        if self.details:
            lines.append("; ".join(f"{name} {_shown(value)}" for name, value in self.details.items()))
        figure = Text.assemble((f"{self.protocol} {self.value:.4f}", "bold"), sure)
        for line in (figure, *map(Text, lines)):
            console.print(line, soft_wrap=True)

    @property
    def _drawn(self) -> str:
        if self.records is None:
            return ""
        return f", a sample of {self.records:,} of {self.records_in_all:,} records"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def bootstrap(units: int, statistic: Callable[[Resample], float], seed: int) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic (Efron 1979), a pure function of it and the seed.

    Args:
        units: how many things are drawn from, such as records.
        statistic: its value for units drawn with replacement, given by their numbers (units,); NaN where such a
            sample says nothing.
    """
    return interval_of(resampled(units, statistic, derive(seed, "bootstrap")))


def resampled(units: int, statistic: Callable[[Resample], float], seed: int) -> Floats:
    """The values of a statistic for `RESAMPLES` samples, see `bootstrap`."""
    random = np.random.default_rng(seed)
    return np.array([statistic(random.integers(units, size=units)) for _ in range(RESAMPLES)])


def interval_of(values: Floats) -> tuple[float, float]:
    """Between which of resampled values the middle ones lie."""
    tail = (100 - CONFIDENCE) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)
