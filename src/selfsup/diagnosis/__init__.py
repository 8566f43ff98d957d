"""The doctor: what a run's own figures say of its health, each finding with its remedy, without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.checks import SEVERITIES, Check, Finding, History, Line, NotMade
from selfsup.config import shown
from selfsup.diagnosis.common import CHECKS
from selfsup.errors import UserError
from selfsup.objectives import declared, find_declared
from selfsup.run import Run

if TYPE_CHECKING:
    from rich.console import Console

    from selfsup.config import Settings

DIGITS = 4  # significant binary digits of the numbers of the looks that a monitor takes: all of the first 16
COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Diagnosis:
    """What was found, and what was looked for.

    Attributes:
        run: its directory.
        step: how far it has come.
        finished: whether it has ended.
        findings: the worst first.
        made: names of the checks that were made.
        not_made: names of those that were not, and what they lacked.
    """

    run: str
    step: int
    finished: bool
    findings: list[Finding]
    made: list[str]
    not_made: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def print(self, console: Console) -> None:
        """Each finding with its threshold and remedy, then what was looked for without finding anything."""
        from selfsup.report import Text

        state = "finished after" if self.finished else "at"
        console.print(Text.assemble((self.run, "bold"), f", {state} step {self.step:,}"))
        for finding in self.findings:
            console.print()
            _print_finding(finding, console)
        found = {finding.check for finding in self.findings}
        sound = [check for check in self.made if check not in found]
        if sound:
            console.print(f"\nChecked, nothing found: {', '.join(sound)}.")
        if self.not_made:
            console.print("\nNot checked:", style="dim")
        for check, lack in self.not_made.items():
            console.print(Text(f"  {check}: {lack}", "dim"))


def _print_finding(finding: Finding, console: Console) -> None:
    """Long lines are left to the terminal, so that commands can be copied."""
    from selfsup.report import Text

    head = Text.assemble((finding.severity, f"bold {COLOURS[finding.severity]}"), "  ", (finding.check, "bold"))
    reason = f"{finding.value:.4g}, threshold {finding.threshold:.4g}: {finding.why}"
    rest = (Text(f"  {finding.seen}"), Text(f"  {reason}", "dim"), Text(f"  Remedy: {finding.remedy}"))
    for text in (head, *rest):
        console.print(text, soft_wrap=True)


def doctor(run: str | Path | Run) -> Diagnosis:
    """Look at a run, finished or not, for what its configuration, its data and its metrics say is wrong.

    Raises:
        UserError: the directory holds no run, or its files are damaged.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    history = history_of(opened)
    objective = history.settings["objective"]
    checks = all_checks(declared(objective, history.settings.values()).checks)
    findings, not_made = examine(history, checks)
    made = [name for name in dict.fromkeys(check.name for check in checks) if name not in not_made]
    if find_declared(objective) is None:
        not_made[f"what {objective} adds"] = "no such objective is loaded; selfsup.doctor knows it beside its class"
    return Diagnosis(str(opened.directory), history.step, bool(history.summary), findings, made, not_made)


diagnose = doctor  # its former name


def history_of(run: Run) -> History:
    """All that is known of a run now."""
    return History(run.directory, run.settings(), run.environment(), run.metrics(), run.summary)


def all_checks(own: Sequence[Check]) -> tuple[Check, ...]:
    """Those of every run and those that an objective adds.

    Raises:
        UserError: something else stands among the latter.
    """
    if not isinstance(own, Sequence) or not all(isinstance(check, Check) for check in own):
        raise UserError(
            f"The checks of an objective are a tuple of what @selfsup.checks.problem and @selfsup.checks.warning make, "
            f"not {shown(own)}."
        )
    return (*CHECKS, *own)


def examine(history: History, checks: Sequence[Check]) -> tuple[list[Finding], dict[str, str]]:
    """The findings, the worst first, and the checks that could not be made, each with what it lacked."""
    findings, not_made = [], {}
    for check in checks:
        try:
            finding = check(history)
        except NotMade as lack:
            not_made[check.name] = str(lack)
            continue
        if finding is not None:
            findings.append(finding)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)), not_made


class Monitor:
    """Watches a training: tells each finding once, as soon as a look shows it.

    What it tells is a function of the metrics alone. A run that is resumed has none of it told again: the looks
    that were due before are gone through in silence first.

    Args:
        checks: those that the objective adds to the general ones.
    """

    def __init__(
        self, directory: Path, settings: Settings, environment: Mapping[str, Any], checks: Sequence[Check] = ()
    ) -> None:
        self.history = History(directory, settings, environment, [])
        self.checks = all_checks(checks)
        self.told: set[str] = set()
        self.looked = 0
        self.every: int = settings["evaluate.every"]

    def due(self, step: int) -> bool:
        """Whether it is time to look: at first with every look at the validation part, then ever more rarely.

        All metrics are read each time, so the looks lie ever further apart, a sixteenth to an eighth of the way so far.
        """
        number, rest = divmod(step, self.every)
        spacing = 1 << max(0, number.bit_length() - DIGITS)
        return rest == 0 and number > 0 and number % spacing == 0

    def look(self, lines: Sequence[Line], step: int) -> list[Finding]:
        """What is found at a step and was not found before.

        Args:
            lines: the metrics of the run so far.
        """
        first = (self.looked // self.every + 1) * self.every
        for earlier in filter(self.due, range(first, step, self.every)):
            self._find(lines, earlier)
        self.looked = step
        return self._find(lines, step)

    def _find(self, lines: Sequence[Line], step: int) -> list[Finding]:
        history = replace(self.history, lines=lines).until(step)
        findings = [found for found in examine(history, self.checks)[0] if found.check not in self.told]
        self.told |= {finding.check for finding in findings}
        return findings
