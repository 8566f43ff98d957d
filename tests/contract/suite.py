"""The contract that every objective keeps, as functions over a `Case`.

A case says how to build an objective in fp64 and which records it learns from; everything else (micro-batches,
gradient caching, processes, resuming) must follow from hide, predict and score. `test_contract.py` compares what
these functions give; `worker.py` calls the same ones in processes that torchrun started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selfsup.config import OptimConfig
from selfsup.data.loader import Loader, in_order
from selfsup.data.records import Batch, Records
from selfsup.data.sampler import draw
from selfsup.distributed import Processes
from selfsup.objectives.base import Objective, Task
from selfsup.optim import Decay, Optimizer, Schedule
from selfsup.saving import Checkpoint, Checkpoints
from selfsup.seeding import seeded
from selfsup.sharding import load, shard, whole, whole_state
from selfsup.step import evaluate, gradients

Held = Callable[[Objective], Objective]

RECORDS = 24
SEED = 3
STEPS = 20
LR = 0.1


@dataclass(frozen=True)
class Case:
    """One objective as the contract meets it.

    Attributes:
        records: 24 small ones; where they can ask for different numbers of predictions, the last asks for fewer.
        build: a fresh objective in fp64 from a seed, without dropout, with a gradient in every parameter.
        chance: for each term, what one prediction of this task costs where all outputs are zero.
        with_dropout: the same objective with dropout in its network, where it can have some.
        random: whether hide draws (noise, masks, crops).
        still: weights that it has no use for.
    """

    name: str
    records: Callable[[], Records]
    build: Callable[[int], Objective]
    chance: Callable[[Task], Mapping[str, float]]
    with_dropout: Callable[[int], Objective] | None = None
    random: bool = True
    still: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """How the records of a step are cut."""

    batch: int
    micro_batch: int

    def loader(self, case: Case, processes: Processes, workers: int = 0) -> Loader:
        return Loader(case.records(), SEED, self.batch, self.micro_batch, workers, processes.rank, processes.size)


# -- what must be equal, however the records are cut ---------------------------------------------------------


def batches_of_step(case: Case, split: Split, processes: Processes) -> list[Batch]:
    """The micro-batches of the first step that holds the last record."""
    _, records = draw(SEED, 0, RECORDS, RECORDS)
    step = int(np.flatnonzero(records == RECORDS - 1)[0]) // split.batch
    return next(split.loader(case, processes).steps(step))


def one_step(case: Case, split: Split, processes: Processes, objective: Objective | None = None) -> dict:
    """Gradients and figures of one step, by name."""
    objective = objective or case.build(SEED)
    figures = gradients(objective.train(), batches_of_step(case, split, processes), processes)
    return trained_gradients(objective) | figures


def trained_gradients(objective: Objective) -> dict:
    """By name, of what is trained: not of a teacher."""
    return {name: whole(p.grad) for name, p in objective.named_parameters() if p.requires_grad}


def sharded(objective: Objective) -> Objective:
    """The same objective, each process with its rows of it."""
    shard(objective, torch.device("cpu"), lambda block: None)
    return objective


def descend(
    case: Case, split: Split, processes: Processes, held: Held = lambda objective: objective
) -> dict[str, Tensor]:
    """The weights after 20 steps of plain gradient descent."""
    objective = held(case.build(SEED).train())
    optimizer = torch.optim.SGD(objective.parameters(), LR)
    with closing(split.loader(case, processes).steps(0)) as batches:
        for step in range(STEPS):
            optimizer.zero_grad()
            gradients(objective, next(batches), processes)
            optimizer.step()
            objective.after_step(step, STEPS)
    return whole_state(objective)


def held_out(case: Case, processes: Processes, batch: int = 5) -> dict[str, Tensor]:
    """What an evaluation of all records says."""
    batches = in_order(case.records(), RECORDS, SEED, batch, processes.rank, processes.size)
    figures = evaluate(case.build(SEED).eval(), batches, processes)
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}


def plain_gradients(objective: Objective, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The same as `one_step` by one graph over all records: no cache, no accumulation, no processes."""
    tasks = [objective.hide(batch) for batch in batches]
    outputs = []
    for batch, task in zip(batches, tasks, strict=True):
        with seeded(batch.seed, "dropout", int(batch.epochs[0]), int(batch.records[0])):
            outputs.append(objective.predict(task))
    joined = {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
    whole = Task(
        {name: torch.cat([task[name] for task in tasks]) for name in tasks[0].tensors},
        {term: torch.stack([task.counts[term] for task in tasks]).sum() for term in tasks[0].counts},
    )
    sums = objective.score(joined, whole, Processes.alone())
    figures = {term: value / whole.counts[term] for term, value in sums.items()}
    loss = sum(objective.weights.get(term, 1.0) * value for term, value in figures.items())
    loss.backward()
    detached = {name: value.detach() for name, value in {"loss": loss, **figures}.items()}
    return trained_gradients(objective) | detached


# -- killed and resumed --------------------------------------------------------------------------------------


def train(
    case: Case,
    directory: Path,
    processes: Processes,
    split: Split,
    workers: int = 0,
    save_after: int | None = None,
    build_seed: int = SEED,
    held: Held | None = None,
    dtype: torch.dtype = torch.bfloat16,
    drops: bool = True,
) -> dict[str, Tensor]:
    """Train with the real optimizers (and dropout) from the newest checkpoint on, if there is one.

    With `save_after`, a checkpoint is written after that many steps and the training goes no further: all that a
    process which is killed there leaves behind.

    Args:
        held: how the processes hold the objective, if not each all of it.
        dtype: that Muon iterates in.
        drops: whether there is dropout, which depends on the micro-batches.

    Returns:
        The weights and the state of the optimizers.
    """
    build = (case.with_dropout or case.build) if drops else case.build
    objective = build(build_seed).train()
    objective = objective if held is None else held(objective)
    optimizer = Optimizer(objective, OptimConfig(lr=0.02, adamw_lr=0.01, weight_decay=0.1), dtype)
    schedule = Schedule(warmup=3, decays=[Decay(12, STEPS)])
    checkpoints = Checkpoints(directory, processes=None if held is None else processes)
    first = 0
    newest = checkpoints.newest()
    if newest is not None:
        load(objective, newest.tensors["model"])
        optimizer.load_state(newest.tensors["optimizer"])
        first = newest.step
    with closing(split.loader(case, processes, workers).steps(first)) as batches:
        for step in range(first, save_after or STEPS):
            gradients(objective, next(batches), processes)
            optimizer.clip(1.0)
            optimizer.step(schedule.multiplier(step))
            objective.after_step(step, STEPS)
    tensors = {"model": objective.state_dict(), "optimizer": optimizer.state()}
    if save_after is not None and (processes.leads or held is not None):
        checkpoints.save(Checkpoint(save_after, tensors, {}))
        checkpoints.wait()
    checkpoints.close()
    processes.wait()
    return {f"{part}.{name}": whole(value) for part, values in tensors.items() for name, value in values.items()}


# -- hide and predict ----------------------------------------------------------------------------------------


def batch_of(case: Case, records: Sequence[int], epoch: int = 0, seed: int = SEED) -> Batch:
    """Some records, read in a given pass over the data."""
    indices = np.array(records, dtype=np.int64)
    return Batch(case.records().read(indices), seed, np.full(len(indices), epoch), indices)


def tasks_by_record(objective: Objective, batches: Sequence[Batch]) -> dict[int, dict[str, Tensor]]:
    """What hide makes of each record."""
    tasks: dict[int, dict[str, Tensor]] = {}
    for batch in batches:
        task = objective.hide(batch)
        for row, record in enumerate(batch.records):
            tasks[int(record)] = {name: tensor[row] for name, tensor in task.tensors.items()}
    return tasks


def total_counts(objective: Objective, batches: Sequence[Batch]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for batch in batches:
        for term, count in objective.hide(batch).counts.items():
            totals[term] = totals.get(term, 0) + int(count)
    return totals


def assert_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float = 0.0) -> None:
    """Every tensor of both, to a tolerance relative to the largest entry of the right one; 0 means every bit."""
    assert left.keys() == right.keys()
    for name in left:
        scale = float(right[name].abs().max()) if right[name].is_floating_point() else 0.0
        torch.testing.assert_close(
            left[name], right[name], rtol=0, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
