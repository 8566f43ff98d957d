"""What came of an adaptation, in words, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from selfsup.evaluation.base import CONFIDENCE, Score
from selfsup.evaluation.gains import STYLES, Gain, Gains
from selfsup.report import Text, duration

if TYPE_CHECKING:
    from rich.console import Console

CHOOSING, JUDGING = "what is held out to choose by", "what is held out to judge by"


@dataclass(frozen=True)
class Tried:
    """A candidate, and what came of a short trial.

    Attributes:
        unfit: why it was not tried; None where it was.
        gain: over the start, on the texts to choose by; None where it was not tried.
        steps, seconds: of its training.
    """

    name: str
    why: str
    unfit: str | None = None
    gain: Gain | None = None
    steps: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"gain": None if self.gain is None else self.gain.to_json()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Tried:
        gain = saved["gain"]
        return cls(**{**saved, "gain": None if gain is None else gain_from_json(gain)})


def gain_from_json(saved: Mapping[str, Any]) -> Gain:
    """What `Gain.to_json` gave."""
    scores = {name: Score.from_json(saved[name]) for name in ("before", "after")}
    low, high = saved["interval"]
    return Gain(**{**saved, **scores, "interval": (low, high)})


@dataclass(frozen=True)
class Adapted:
    """What an adaptation made, or that it made nothing better.

    Attributes:
        directory: of all that it left.
        start: the directory of the model that it began with.
        facts: what the model and the data are.
        protocol: by which models were measured.
        tried: the candidates, in the order of the table.
        chosen: the one that was gone on with; None where none did well enough.
        gain: of what came of that, over the start, on texts that chose nothing; None where nothing was gone on with.
        best: the model to use: the directory of a run, or the start.
        seconds, budget: that it took, and that it had.
    """

    directory: Path
    start: str
    facts: Mapping[str, str]
    protocol: str
    tried: list[Tried]
    chosen: str | None
    gain: Gain | None
    best: str
    seconds: float
    budget: float

    @property
    def better(self) -> bool:
        """Whether a model came of it that gained, beyond its interval."""
        return self.gain is not None and self.gain.verdict == "gained"

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {
            "directory": str(self.directory),
            "facts": dict(self.facts),
            "better": self.better,
            "tried": [each.to_json() for each in self.tried],
            "gain": None if self.gain is None else self.gain.to_json(),
        }

    @classmethod
    def from_json(cls, directory: Path, saved: Mapping[str, Any]) -> Adapted:
        own = {name: value for name, value in saved.items() if name != "better"}
        gain = None if own["gain"] is None else gain_from_json(own["gain"])
        tried = [Tried.from_json(each) for each in own["tried"]]
        return cls(**{**own, "directory": directory, "tried": tried, "gain": gain})

    def print(self, console: Console) -> None:
        """What it was about, what was tried, and what came of it."""
        for name, fact in self.facts.items():
            console.print(Text.assemble((f"{name}  ", "bold"), fact), soft_wrap=True)
        console.print()
        console.print(self._table())
        console.print()
        for line in self.lines():
            console.print(Text(line), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("candidate")
        for title in ("steps", "time", self.protocol, f"difference, {CONFIDENCE} % interval", ""):
            table.add_column(title, justify="right")
        for each in self.tried:
            table.add_row(*_cells(each))
        return table

    def lines(self) -> Iterator[str]:
        """What came of it, in sentences."""
        for each in self.tried:
            yield f"{each.name}: {each.why}" + ("" if each.unfit is None else f"; not tried, for {each.unfit}") + "."
        if all(each.gain is None for each in self.tried):
            yield "Nothing could be tried."
        elif self.gain is None:
            yield "It did not get better: no trial gained anything, so nothing was gone on with."
        else:
            yield f"Gone on with: {self.chosen}. {told(self.gain)}"
            if not self.better:
                yield "It did not get better beyond what chance may do."
        yield f"{duration(self.seconds)} of {duration(self.budget)}. Use: {self.best}"

    def gains(self) -> Gains:
        """Of the trials, and of what came of the chosen one, as gains of sources."""
        found = [_named(each.name, each.gain) for each in self.tried if each.gain is not None]
        last = [] if self.gain is None else [_named(f"{self.chosen}, in the end", self.gain)]
        return Gains(self.protocol, ("start", "adapted"), found + last, [])


def told(gain: Gain) -> str:
    """A gain as a sentence."""
    low, high = gain.interval
    return (
        f"On {JUDGING}: {gain.before.value:.4g} before, {gain.after.value:.4g} after ({gain.before.unit}), "
        f"{gain.difference:+.4g} with a {CONFIDENCE} % interval of {low:+.4g} to {high:+.4g}: {gain.verdict}."
    )


def _named(name: str, gain: Gain) -> Gain:
    return Gain(**{**vars(gain), "source": name})


def _cells(tried: Tried) -> list[Text]:
    if tried.gain is None:
        return [Text(tried.name), *map(Text, ("", "", "", "")), Text("not tried", "dim")]
    (low, high), gain = tried.gain.interval, tried.gain
    difference = f"{gain.difference:+.4f} ({low:+.4f} to {high:+.4f})"
    told = (tried.name, f"{tried.steps:,}", duration(tried.seconds), f"{gain.after.value:.4f}", difference)
    return [*map(Text, told), Text(gain.verdict, STYLES.get(gain.verdict, "dim"))]
