"""What a check sees of a run, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from selfsup.config import Settings
from selfsup.run import Run

Values = npt.NDArray[np.float64]
Line = Mapping[str, Any]
Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")


PACE = "_per_second"


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

    @classmethod
    def of(cls, run: Run) -> History:
        return cls(run.directory, run.settings(), run.environment(), run.metrics(), run.summary)

    def until(self, step: int) -> History:
        """As it was at a step, before the run had ended."""
        return replace(self, lines=[line for line in self.lines if line["step"] <= step], summary={})

    @property
    def step(self) -> int:
        """The last step that is known of."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def steps(self) -> int:
        """The length of the run in steps; where a budget ends it, as it was planned."""
        known = self.summary.get("steps") or self.settings["train.steps"]
        known = known or (self.environment.get("plan") or {}).get("steps")
        if not known:
            raise NotMade("the length of the run is not known")
        return int(known)

    @property
    def chance(self) -> float:
        """The loss of a model that knows nothing."""
        chance = (self.environment.get("plan") or {}).get("chance")
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

    def anew(self, *settings: str) -> str:
        """The command that trains the same with other settings."""
        return (
            f"selfsup train --config {self.directory / 'config.yaml'} --out NEW {' '.join(settings)}".strip()
        )

    def lower_rates(self) -> str:
        """The command that trains the same with a third of the learning rates, the usual next one to try."""
        rates = {key: self.settings[key] for key in ("optim.lr", "optim.adamw_lr")}
        return self.anew(*(f"{key}={rate / 3:.2g}" for key, rate in rates.items() if rate))


Check: TypeAlias = Callable[[History], Finding | None]


def name(check: Check) -> str:
    """`check_loss_spikes` is the check `loss-spikes`."""
    return check.__name__.removeprefix("check_").replace("_", "-")


def preceding_medians(values: Values, count: int) -> Values:
    """The median of the `count` values before each value, from the first one that has so many: (n − count,)."""
    return np.median(np.lib.stride_tricks.sliding_window_view(values, count)[:-1], axis=1)
