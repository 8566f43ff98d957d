"""Before and after: what a model gained over another one on new data, and what it lost on old data.

Both are measured by one protocol on the same records. The interval of a difference resamples both together wherever
their figures are made of the same units (records, or runs of the same bytes, whatever the tokens), so that what is hard
for both does not widen it; else each is resampled by itself, which the answer says. A difference whose interval holds
zero is unclear.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from selfsup.errors import UserError
from selfsup.evaluation import PROTOCOLS, measure, require_fitting, require_known
from selfsup.evaluation.base import CONFIDENCE, Measurement, Score
from selfsup.evaluation.language import held_out_documents
from selfsup.files import expanded
from selfsup.inference.opening import load
from selfsup.plots import new_figure, write_figure
from selfsup.report import Text, printable
from selfsup.run import Run

if TYPE_CHECKING:
    from rich.console import Console

PER_TOKEN = ("perplexity", "pseudo-perplexity")  # figures that only models of one tokenizer share
STYLES = {"gained": "green", "lost": "red"}
COLOURS, OTHERWISE = {"gained": "#009E73", "lost": "#D55E00"}, "#777777"  # which any colour vision tells apart


@dataclass(frozen=True)
class Gain:
    """What one source says.

    Attributes:
        new: whether it is of the new data, or of those that are not to be forgotten.
        difference: after minus before, with its interval.
        paired: whether that resamples both models together.
        verdict: gained, lost or unclear; of a figure of which neither more nor less is better: changed or unclear.
    """

    source: str
    new: bool
    before: Score
    after: Score
    difference: float
    interval: tuple[float, float]
    paired: bool
    verdict: str

    @classmethod
    def of(cls, source: str, new: bool, before: Score, after: Score) -> Gain:
        """Raises ValueError where a score has no resampling."""
        if before.resampling is None or after.resampling is None:
            raise ValueError("a score that was read from a file cannot be resampled")
        interval, paired = after.resampling.difference(before.resampling, before.seed)
        difference = after.value - before.value
        return cls(
            source, new, before, after, difference, interval, paired, verdict(before.protocol, difference, interval)
        )

    def to_json(self) -> dict[str, Any]:
        scores = {"before": self.before.to_json(), "after": self.after.to_json()}
        return vars(self) | scores | {"interval": list(self.interval)}


def verdict(protocol: str, difference: float, interval: tuple[float, float]) -> str:
    """What a difference means by a protocol."""
    low, high = interval
    if low <= 0 <= high or not np.isfinite(interval).all():
        return "unclear"
    better = PROTOCOLS[protocol].better
    if better is None:
        return "changed"
    return "gained" if (difference > 0) == (better == "higher") else "lost"


@dataclass(frozen=True)
class Gains:
    """Two models by one protocol, source by source.

    Attributes:
        models: how they are called, before and after.
        notes: what to bear in mind.
    """

    protocol: str
    models: tuple[str, str]
    gains: list[Gain]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Of one that was made of measurements."""
        sources = [gain.to_json() for gain in self.gains]
        return {"protocol": self.protocol, "models": list(self.models), "sources": sources, "notes": self.notes}

    def print(self, console: Console) -> None:
        """A table, a source a line, then what to bear in mind."""
        console.print(Text.assemble((self.protocol, "bold"), f", {self.gains[0].before.unit}"))
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("source", overflow="fold")
        for title in (*self.models, f"difference, {CONFIDENCE} % interval", ""):
            table.add_column(Text(title), justify="right", overflow="fold")
        for gain in self.gains:
            table.add_row(*_cells(gain))
        console.print(table)
        for note in (*self._measured(), *self.notes):
            console.print(Text(note), soft_wrap=True)

    def _measured(self) -> list[str]:
        """How, in what precision, and on how much of each source."""
        first = self.gains[0].before
        precisions = dict.fromkeys(score.precision for gain in self.gains for score in (gain.before, gain.after))
        told = [f"{', '.join(precisions)}; seed {first.seed}"]
        for gain in self.gains:
            for name, model in zip(self.models, (gain.before, gain.after), strict=True):
                told += [f"{gain.source}, {name}: {row}: {what}" for row, what in model.left_out.rows().items()]
            if gain.before.records is not None:
                told.append(
                    f"{gain.source}: a sample of {gain.before.records:,} of {gain.before.records_in_all:,} records"
                )
        return told

    def plot(self, path: str | Path) -> None:
        """Draw each difference with its interval into a new picture; raises UserError as `write_figure` does."""
        figure = new_figure(8, 1.2 + 0.45 * len(self.gains))
        axes = figure.subplots()
        for place, gain in enumerate(self.gains):
            colour = COLOURS.get(gain.verdict, OTHERWISE)
            axes.plot(gain.interval, [place, place], color=colour, linewidth=2)
            axes.plot(gain.difference, place, "o", color=colour)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(self.gains)), [printable(gain.source) for gain in self.gains], parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel(f"{self.protocol}: after minus before, with intervals of {CONFIDENCE} %")
        axes.spines[["top", "right"]].set_visible(False)
        write_figure(figure, path)


def _cells(gain: Gain) -> list[Text]:
    low, high = gain.interval
    name = os.path.basename(gain.source) if os.path.exists(gain.source) else gain.source
    difference = f"{gain.difference:+.4f} ({low:+.4f} to {high:+.4f})"
    told = (name or gain.source, f"{gain.before.value:.4f}", f"{gain.after.value:.4f}", difference)
    return [*map(Text, told), Text(gain.verdict, STYLES.get(gain.verdict, "dim"))]


def gains(
    before: str | Path, after: str | Path, protocol: str, new: object, old: Sequence[object], **how: Any
) -> Gains:
    """Measure two models by one protocol.

    Args:
        before, after: runs, or model directories.
        new: what was trained for; None is the held-out part of the run of one of them, the latter first.
        old: what is not to be forgotten.
        how: fields of `Measurement` behind its data.

    Raises:
        UserError: as `selfsup.evaluate` does; the protocol is not defined for both, or does not compare them.
    """
    require_known(protocol)
    places = [expanded(before), expanded(after)]
    models: list[Any] = [load(place) for place in places]
    for place, model in zip(places, models, strict=True):
        require_fitting(place, model, protocol)
    if protocol in PER_TOKEN and len({model.tokenizer.fingerprint for model in models}) > 1:
        raise UserError(
            f"{before} and {after} have different tokenizers, and {protocol} is a figure per token, so it does not "
            "compare them; use --protocol bits-per-byte where both are decoders."
        )
    sources = [_new(places, new), *((None, source) for source in old)]
    found = []
    for number, (name, source) in enumerate(sources):
        scores = [
            measure(Measurement(place, model, source, **how), protocol)
            for place, model in zip(places, models, strict=True)
        ]
        found.append(Gain.of(name or scores[0].data, number == 0, *scores))
    return Gains(protocol, _names(places), found, _notes(places, new, found))


def _new(places: Sequence[Path], new: object) -> tuple[str | None, object]:
    """The new data, with a name where it has none of its own."""
    if new is not None:
        return None, new
    run = next((place for place in reversed(places) if Run(place).exists), None)
    if run is None:
        raise UserError("Neither is a run, which would hold data out; name data to measure both on with --data.")
    return f"the held-out part of {run}", held_out_documents(run)


def _names(places: Sequence[Path]) -> tuple[str, str]:
    """Each directory by its last part where those differ, else as it was given."""
    first, second = (place.resolve().name for place in places)
    return (first, second) if first != second else (str(places[0]), str(places[1]))


def _notes(places: Sequence[Path], new: object, found: Sequence[Gain]) -> list[str]:
    notes = [
        f"{gain.source}: the figures are made of different units, so each model was resampled by itself."
        for gain in found
        if not gain.paired
    ]
    if not isinstance(new, str | Path):
        return notes
    source = str(expanded(new).absolute())
    return notes + [
        f"{place} was trained on {new} itself, so that a gain there is memory in part; leave out --data to measure "
        "what the run held out."
        for place in places
        if Run(place).exists and Run(place).settings()["data.source"] == source
    ]
