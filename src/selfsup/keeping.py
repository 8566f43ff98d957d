"""`selfsup.checkpoint`: the checkpoints of a run as a user handles them: listed, verified, kept, written as a model."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from selfsup.budget import Clock
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.files import expanded, require_free
from selfsup.objectives import recipe_of
from selfsup.optim import misshapen
from selfsup.report import Progress, Reporter, amount
from selfsup.run import Run
from selfsup.saving import KEPT, Checkpoints
from selfsup.sharding import load
from selfsup.trainer import Team, find_schedule
from selfsup.training import open_again


@dataclass(frozen=True)
class Listed:
    """A checkpoint.

    Attributes:
        saved: when, in the time of this machine.
        bytes: of all of its files.
        processes: how many wrote it, each what it held.
        problem: what is wrong with it; None where every file has the size and content that it was written with.
        stays: why it is not removed when newer ones come.
    """

    step: int
    saved: str
    bytes: int
    processes: int
    problem: str | None
    stays: list[str]


@dataclass(frozen=True)
class Listing:
    """The checkpoints of a run, oldest first, and the model directory that one was written to."""

    run: Path
    checkpoints: list[Listed]
    exported: Path | None = None

    def to_json(self) -> dict[str, Any]:
        exported = None if self.exported is None else str(self.exported)
        return {"run": str(self.run), "checkpoints": [asdict(each) for each in self.checkpoints], "exported": exported}

    def print(self, console: Console) -> None:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("step", "saved", "size", "written by", "is", "stays"):
            table.add_column(title, justify="right" if title in ("step", "size") else "left")
        for each in self.checkpoints:
            by = "1 process" if each.processes == 1 else f"{each.processes} processes"
            state = "whole" if each.problem is None else "damaged"
            size = amount(each.bytes, "B")
            table.add_row(f"{each.step:,}", each.saved, size, by, state, ", ".join(each.stays))
        console.print(table if self.checkpoints else f"{self.run} holds no checkpoint.", soft_wrap=True)
        for each in self.checkpoints:
            if each.problem is not None:
                console.print(f"Step {each.step:,}: {each.problem}.", soft_wrap=True)
        if self.exported is not None:
            console.print(f"The model lies in {self.exported}.", soft_wrap=True)


def checkpoint(
    run: str | Path | Run,
    *,
    keep: Sequence[int] = (),
    release: Sequence[int] = (),
    export: int | None = None,
    out: str | Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Listing:
    """List and verify the checkpoints of a run, finished or not, by reading all of their files.

    Args:
        keep: steps whose checkpoints are never removed from now on.
        release: steps for which that is no longer so.
        export: the step whose checkpoint is written as a model directory, as the end of the run writes its model. The
            data of the run is opened for it.
        out: where to, which must not exist.
        progress: receives how many checkpoints are read, and all of them.

    Raises:
        UserError: no run, no such checkpoint, a damaged one, `export` without `out` or the other way round.
    """
    opened = run if isinstance(run, Run) else Run.open(run)
    checkpoints = opened.checkpoints()
    for step in (*keep, *release, *(() if export is None else (export,))):
        _require(checkpoints, step)
    if (export is None) != (out is None):
        raise UserError("A step is exported to a directory: give both, --export STEP and --out DIR.")
    if out is not None:
        require_free(out)
    for step in keep:
        (checkpoints.place(step) / KEPT).touch()
    for step in release:
        (checkpoints.place(step) / KEPT).unlink(missing_ok=True)
    listed = _listed(opened, checkpoints, progress)
    if export is None or out is None:
        return Listing(opened.directory, listed)
    if problem := next(each.problem for each in listed if each.step == export):
        raise UserError(
            f"The checkpoint of step {export:,} of {opened.directory} is damaged ({problem}); take another."
        )
    return Listing(opened.directory, listed, _export(opened, checkpoints, export, expanded(out)))


def _require(checkpoints: Checkpoints, step: int) -> None:
    """Raise a UserError where there is no checkpoint of a step."""
    steps = checkpoints.steps()
    if step not in steps:
        there = f"there are those of {', '.join(f'{each:,}' for each in steps)}" if steps else "there is none at all"
        raise UserError(f"{checkpoints.directory} holds no checkpoint of step {step:,}; {there}.")


def _listed(run: Run, checkpoints: Checkpoints, progress: Progress) -> list[Listed]:
    steps = checkpoints.steps()
    problems: dict[int, str | None] = {}
    for done, step in enumerate(steps):
        progress(done, len(steps))
        problems[step] = checkpoints.problem(step)
    whole = [step for step in steps if problems[step] is None]
    known = checkpoints.load(whole[-1]).state if whole else {}
    best = run.summary.get("best") or known.get("best")  # the end of a run looks once more
    marks = {"best": best and best["step"], "before the decay": find_schedule(run.settings(), run).start}
    return [
        _described(checkpoints, step, problems[step], [why for why, marked in marks.items() if marked == step])
        for step in steps
    ]


def _described(checkpoints: Checkpoints, step: int, problem: str | None, marks: list[str]) -> Listed:
    place = checkpoints.place(step)
    files = [path for path in place.iterdir() if path.is_file()]
    kept = ["kept"] if (place / KEPT).exists() else []
    written = max((path.stat().st_mtime for path in files if path.name != KEPT), default=0.0)
    saved = datetime.datetime.fromtimestamp(written).isoformat(" ", "seconds")
    parts = sum(path.name.startswith("model-") for path in files)
    return Listed(step, saved, sum(path.stat().st_size for path in files), max(1, parts), problem, kept + marks)


def _export(run: Run, checkpoints: Checkpoints, step: int, out: Path) -> Path:
    """Write the model of a step as the end of a run does."""
    settings = run.settings()
    recipe = recipe_of(settings)(settings)
    team = Team(Processes.alone(), Reporter(False), Clock())
    machine = open_again(run, run.environment(), recipe, team)
    objective = recipe.begin().to(machine.device)
    expected = objective.state_dict()
    tensors = checkpoints.load(step).used(expected)
    if problem := misshapen(tensors, expected):
        raise UserError(f"The checkpoint of step {step:,} of {run.directory} is none of this run ({problem}).")
    load(objective, tensors)
    looks = [line for line in run.metrics() if (line["step"], line["split"]) == (step, "validation")]
    units = step * settings["train.batch"] * recipe.units_per_record
    summary = {"objective": settings["objective"], **(looks or [{}])[-1], "steps": step, recipe.unit: units}
    with recipe.adaptation.merged(objective):
        recipe.measure_statistics(objective)
        recipe.save(objective, out, summary)
    return out
