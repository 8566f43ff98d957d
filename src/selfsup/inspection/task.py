"""Any objective, seen without knowing it: what its task holds, and the terms of its score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from selfsup.errors import UserError
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import Points, Section, Table, section
from selfsup.inspection.figures import loss, means, networks
from selfsup.inspection.opening import composed, first_batch
from selfsup.objectives.base import Objective, Task
from selfsup.objectives.recipe import Effort, Recipe

RECORDS = 24  # that are looked at


def inspect_task(request: Request) -> Inspection:
    """The first records that a training takes, as they are hidden, and what is scored."""
    recipe = _opened(request)
    batch, objective = first_batch(recipe, RECORDS), recipe.begin()
    task = objective.hide(batch)
    measured = {name: _measure(each, task) for name, each in networks(objective, request.run)}
    chance = recipe.chance(len(batch))
    sections = [
        section("task", "read", _tensors(batch.data)),
        section("task", "made", _tensors(task.tensors)),
        section("task", "terms", _terms(objective, task, measured, chance)),
    ]
    if recipe.words:
        sections.insert(0, Section("the task", [Points(dict(recipe.words))]))
    facts = [
        f"the {len(batch)} of {len(recipe.train):,} records that training takes first",
        f"seed {batch.seed}, epoch 0",
    ]
    values = {"length": len(recipe.train), "seed": batch.seed, "chance": chance, "figures": measured}
    return Inspection.of(request.objective, recipe.idea, facts, sections, values)


def _opened(request: Request) -> Recipe:
    """The recipe, settled; an objective from Python is put together as in its training."""
    if request.text is not None or request.window is not None:
        raise UserError(f"--text and --window say nothing to {request.objective}; give --data.")
    recipe = composed(request)
    recipe.open(request.progress)
    recipe.settle(Effort())
    return recipe


@torch.inference_mode()
def _measure(objective: Objective, task: Task) -> dict[str, float]:
    """Each term of the score in the mean, and the loss."""
    figures = means(objective, objective.predict(task), task)
    return figures | {"loss": loss(objective, figures)}


def _tensors(tensors: Mapping[str, torch.Tensor]) -> Table:
    """By name: what they hold, and of which shape, the record first."""
    rows = []
    for name, tensor in tensors.items():
        shape = " × ".join(map(str, tensor.shape))
        values = np.asarray(tensor.float())
        span = f"{values.min():.4g} to {values.max():.4g}" if values.size else "–"
        rows.append([name, shape, str(tensor.dtype).removeprefix("torch."), span])
    return Table(["", "shape", "type", "values"], rows)


def _terms(objective: Objective, task: Task, measured: dict[str, dict[str, float]], chance: float | None) -> Table:
    rows = []
    for term in next(iter(measured.values())):
        count = f"{int(task.counts[term]):,}" if term in task.counts else ""
        weight = f"{objective.weights.get(term, 1.0):g}" if term in task.counts else ""
        means = [f"{figures[term]:.4f}" for figures in measured.values()]
        rows.append([term, count, weight, *means, f"{chance:.4f}" if term == "loss" and chance else "–"])
    return Table(["", "predictions", "weight", *measured, "chance"], rows)
