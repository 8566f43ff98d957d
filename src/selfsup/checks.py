"""What a check of a run is: a measure beside a threshold, and the words in which it is told.

    @warning(seen="…", why="…", remedy="…")
    def loader(history: History) -> Symptom | None: …

The function measures: it answers with a `Symptom`, with None where all is well, or raises `NotMade` where the run does
not hold what it looks at. The texts are data, filled in by `str.format` with `{value}`, `{threshold}`, `{step}` and the
figures of the symptom, with `{train}` (the command that trains the same anew) and with `{lower_rates}` (that command
with a third of the learning rates).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from selfsup.config import Settings

Values = npt.NDArray[np.float64]
Line = Mapping[str, Any]
Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")
PACE = "_per_second"  # ends the name of the pace of a train line
LINES = 10  # a log line is the loss of one step, so a level is read off the median of ten of them
TINY = 1e-12  # keeps a division from failing
# Even the frequencies of tokens, which the first steps learn, take a fifth off chance; dice stay within a percent.
BESIDE = 0.98  # of chance
PATIENCE = 0.2  # of the run
FEWEST_STEPS = 50  # before which nothing can be expected of any run
LOWER_RATES = "lower the learning rates: {lower_rates}"  # the usual remedy


class NotMade(Exception):
    """A check lacks what it would look at; the message says what."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run.

    Attributes:
        check: name of the check that found it.
        severity: `problem`: what the run makes is of no use; `warning`: it is worse than it could be, or takes
            longer; `note`: worth knowing.
        seen: what was seen, with its figures.
        step: where in the run.
        value: the figure that decided.
        threshold: the figure that it was held against.
        why: why that threshold.
        remedy: the setting or command that helps.
    """

    check: str
    severity: Severity
    seen: str
    step: int
    value: float
    threshold: float
    why: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """One line, for a training that goes on."""
        return f"doctor: {self.severity}: {self.seen}; {self.remedy}"


@dataclass(frozen=True)
class Symptom:
    """What a check measured.

    Attributes:
        value: the figure that decided.
        threshold: the figure that it was held against.
        step: where in the run; by default where it stands.
        figures: what else stands in the texts of the check, by name.
        remedy: the text of another remedy than the usual one.
    """

    value: float
    threshold: float
    step: int | None = None
    figures: Mapping[str, object] = field(default_factory=dict)
    remedy: str | None = None


Measure = Callable[["History"], Symptom | None]


@dataclass(frozen=True)
class Check:
    """Something that is looked for in runs. Several of one name are one check that is told in different words."""

    name: str
    severity: Severity
    seen: str
    why: str
    remedy: str
    measure: Measure

    def __call__(self, history: History) -> Finding | None:
        """What is found.

        Raises:
            NotMade: the run lacks what is looked at.
        """
        symptom = self.measure(history)
        if symptom is None:
            return None
        value, threshold = float(symptom.value), float(symptom.threshold)
        step = history.step if symptom.step is None else int(symptom.step)
        figures = {"value": value, "threshold": threshold, "step": step, **symptom.figures}
        figures |= {"train": history.anew, "lower_rates": history.lower_rates, "directory": history.directory}
        texts = (self.seen, self.why, symptom.remedy or self.remedy)
        seen, why, remedy = (text.format(**figures) for text in texts)
        return Finding(self.name, self.severity, seen, step, value, threshold, why, remedy)


def problem(seen: str, why: str, remedy: str = LOWER_RATES, name: str = "") -> Callable[[Measure], Check]:
    """Make a function that measures a `Check` with these words, named as it is: `loss_spikes` is `loss-spikes`."""
    return lambda measure: Check(name or measure.__name__.replace("_", "-"), "problem", seen, why, remedy, measure)


def warning(seen: str, why: str, remedy: str = LOWER_RATES, name: str = "") -> Callable[[Measure], Check]:
    """The same of what is less than a problem."""
    return lambda measure: replace(problem(seen, why, remedy, name)(measure), severity="warning")


@dataclass(frozen=True)
class Curve:
    """A figure over the run: its values and the steps they were logged at, both (n,)."""

    steps: npt.NDArray[np.int64]
    values: Values

    def __len__(self) -> int:
        return len(self.values)

    def after(self, step: int) -> Curve:
        """The part behind a step."""
        kept = self.steps > step
        return Curve(self.steps[kept], self.values[kept])

    def at_least(self, count: int) -> Curve:
        """The curve itself.

        Raises:
            NotMade: it has fewer values than that.
        """
        if len(self) < count:
            raise NotMade(f"{len(self)} lines to look at, and it takes {count}")
        return self

    @property
    def level(self) -> float:
        """Where the curve stands: the median of its last lines."""
        return float(np.median(self.values[-LINES:]))

    @property
    def latest(self) -> tuple[int, float]:
        """The last step and the value there."""
        return int(self.steps[-1]), float(self.values[-1])


@dataclass(frozen=True)
class History:
    """All that is known of a run at one moment. Whatever a check asks for and is not there raises `NotMade`.

    Attributes:
        directory: of the run.
        settings: the resolved configuration.
        environment: the content of environment.json.
        lines: the lines of metrics.jsonl up to that moment.
        summary: the content of summary.json; empty while the run goes on.
    """

    directory: Path
    settings: Settings
    environment: Mapping[str, Any]
    lines: Sequence[Line]
    summary: Mapping[str, Any] = field(default_factory=dict)

    def until(self, step: int) -> History:
        """As it was at a step, before the run had ended."""
        return replace(self, lines=[line for line in self.lines if line["step"] <= step], summary={})

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def _plan(self) -> Mapping[str, Any]:
        return self.environment.get("plan") or {}

    @property
    def steps(self) -> int:
        """The length of the run in steps; where a budget ends it, as it was planned."""
        known = self.summary.get("steps") or self.settings["train.steps"] or self._plan.get("steps")
        if not known:
            raise NotMade("the length of the run is not known")
        return int(known)

    def require_steps(self, steps: float, what: str) -> None:
        """Raise `NotMade` before so many steps, from which on something (`a loss`) can be judged."""
        if self.step < steps:
            raise NotMade(f"it takes {steps:,.0f} steps before {what} can be judged")

    @property
    def chance(self) -> float:
        """The loss of a model that knows nothing."""
        chance = self._plan.get("chance")
        if chance is None:
            raise NotMade("the loss of a model that knows nothing is not known")
        return float(chance)

    @property
    def start(self) -> float:
        """The loss that a run begins with: chance where it is known, else the first loss."""
        try:
            return self.chance
        except NotMade:
            return float(self.curve("loss").values[0])

    @property
    def unit(self) -> str:
        """What the pace is counted in, such as tokens."""
        paces = [key for line in self.lines for key in line if key.endswith(PACE)]
        if not paces:
            raise NotMade("no train line holds a pace")
        return paces[0].removesuffix(PACE)

    def curve(self, figure: str, split: str = "train") -> Curve:
        """A figure of the lines of one split, where it is a number."""
        found = [
            (line["step"], line[figure])
            for line in self.lines
            if line["split"] == split and line.get(figure) is not None
        ]
        if not found:
            raise NotMade(f"no {split} line holds {figure}")
        steps, values = zip(*found, strict=True)
        return Curve(np.array(steps, np.int64), np.array(values, np.float64))

    def level(self, figure: str) -> float:
        """Where a figure of the train lines stands, read off the last ten of them."""
        return self.curve(figure).at_least(LINES).level

    def setting(self, key: str) -> Any:
        """A resolved setting by its dotted key."""
        try:
            value = self.settings[key]
        except AttributeError:
            value = None
        if value is None:
            raise NotMade(f"{key} is not set")
        return value

    def count(self, what: str) -> int:
        """A count of the data, as the recipe noted it."""
        counts = self.environment.get("counts", {})
        if what not in counts:
            raise NotMade(f"the {what} were not counted")
        return int(counts[what])

    @property
    def anew(self) -> str:
        """The command that trains the same; other settings are to follow."""
        return f"selfsup train --config {self.directory / 'config.yaml'} --out NEW"

    @property
    def lower_rates(self) -> str:
        """The command that trains the same with a third of the learning rates, the usual next one to try."""
        rates = {key: self.settings[key] for key in ("optim.lr", "optim.adamw_lr")}
        return " ".join([self.anew, *(f"{key}={rate / 3:.2g}" for key, rate in rates.items() if rate)])
