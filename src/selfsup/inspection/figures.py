"""Figures of an objective on a task, before a training and after it: its own score, never derived a second time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.objectives.base import Objective, Outputs, Task
from selfsup.run import Run


def networks(objective: Objective, run: str | Path | None) -> Iterator[tuple[str, Objective]]:
    """An objective as it starts, and then as it stands in a run, where there is one, each by name."""
    yield "before training", objective.eval()
    if run is not None:
        yield str(run), trained(objective, run)


def trained(objective: Objective, run: str | Path) -> Objective:
    """An objective with the weights of a run's newest checkpoint.

    Raises:
        UserError: there is none, or the weights that it starts from are others now.
    """
    checkpoint = Run(run).checkpoints().newest()
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint yet, so there is nothing it makes of the task; train it first.")
    start = objective.state_dict()
    model = checkpoint.model(start)
    if start.keys() - model.keys() and checkpoint.state.get("still"):
        raise UserError(f"The weights that {run} starts from have changed since it began; restore them to look at it.")
    objective.load_state_dict(checkpoint.used(start))
    return objective.eval()


@torch.inference_mode()
def means(objective: Objective, outputs: Outputs, task: Task) -> dict[str, float]:
    """Each term of the score, as the mean over what it counts."""
    sums = objective.score(outputs, task, Processes.alone())
    return {term: float(value) / max(1.0, float(task.counts[term])) for term, value in sums.items()}


def loss(objective: Objective, figures: dict[str, float]) -> float:
    """The weighted sum of the terms."""
    return sum(objective.weights.get(term, 1.0) * value for term, value in figures.items())


def by_record(objective: Objective, outputs: Outputs, task: Task, term: str) -> list[float]:
    """A term of the score of each record alone, of an objective whose score adds up over records."""
    records = len(next(iter(outputs.values())))
    each = float(task.counts[term]) / records

    def part(place: int) -> dict[str, float]:
        tensors = {name: tensor[place : place + 1] for name, tensor in task.tensors.items()}
        own = {name: tensor[place : place + 1] for name, tensor in outputs.items()}
        return means(objective, own, Task(tensors, dict.fromkeys(task.counts, torch.tensor(each))))

    return [part(place)[term] for place in range(records)]
