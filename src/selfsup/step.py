"""The gradient of one step, whatever the objective: micro-batches, gradient caching, processes.

    loss = Σ_terms  weight × (Σ over all records of all processes) / (count over all records of all processes)

A separable objective is predicted, scored and differentiated one micro-batch at a time. A batch-coupled one in
more than one micro-batch goes through gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch
Size under Memory Limited Setup"): outputs of all micro-batches without a graph, one score on all of them, then
each micro-batch predicted again and differentiated with the cached gradient of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.objectives.base import Objective, Outputs, Task, add_counts, join_tensors
from selfsup.seeding import seeded

Autocast = Callable[[], AbstractContextManager[object]]


def gradients(
    objective: Objective, batches: Sequence[Batch], processes: Processes, autocast: Autocast = nullcontext
) -> dict[str, Tensor]:
    """Accumulate into `.grad` the gradient of the loss over `batches` of every process.

    Args:
        objective: in training mode; its gradients are expected to be empty.
        batches: the micro-batches of this process.
        autocast: the context of mixed precision; scores run outside it, in the precision of the outputs.

    Returns:
        {term: its mean over all records of all processes} and `loss`, their weighted sum; scalars, detached.
    """
    tasks = [objective.hide(batch) for batch in batches]
    counts = global_counts(tasks, processes)
    if objective.separable or len(tasks) == 1:
        sums = add_counts(
            _one_by_one(objective, batch, task, counts, processes, autocast)
            for batch, task in zip(batches, tasks, strict=True)
        )
    else:
        sums = _cached(objective, batches, tasks, counts, processes, autocast)
    processes.sum_gradients(objective.parameters())
    return means(objective, sums, counts, processes)


def global_counts(tasks: Sequence[Task], processes: Processes) -> dict[str, Tensor]:
    """The count of each term over all micro-batches and processes; at least 1, so that nothing hidden costs 0."""
    counts = add_counts(task.counts for task in tasks)
    return {term: processes.sum(count).clamp(min=1) for term, count in counts.items()}


def means(
    objective: Objective, sums: dict[str, Tensor], counts: dict[str, Tensor], processes: Processes
) -> dict[str, Tensor]:
    figures = {term: processes.sum(sums[term].detach()) / counts[term] for term in sums}
    return {"loss": _weigh(objective, figures), **figures}


def predict(objective: Objective, batch: Batch, task: Task, autocast: Autocast) -> Outputs:
    """Outputs of one micro-batch; dropout in the network is seeded from the micro-batch's first record."""
    task = Task(dict(task.tensors), task.counts)  # what is deferred is made here, once and in full precision
    with seeded(batch.seed, "dropout", int(batch.epochs[0]), int(batch.records[0])), autocast():
        return objective.predict(task)


def _weigh(objective: Objective, terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([objective.weights.get(term, 1.0) * value for term, value in terms.items()]).sum()


def _one_by_one(
    objective: Objective,
    batch: Batch,
    task: Task,
    counts: dict[str, Tensor],
    processes: Processes,
    autocast: Autocast,
) -> dict[str, Tensor]:
    outputs = predict(objective, batch, task, autocast)
    sums = objective.score(outputs, task, processes)
    _weigh(objective, {term: value / counts[term] for term, value in sums.items()}).backward()  # type: ignore[no-untyped-call]
    return {term: value.detach() for term, value in sums.items()}


def _cached(
    objective: Objective,
    batches: Sequence[Batch],
    tasks: Sequence[Task],
    counts: dict[str, Tensor],
    processes: Processes,
    autocast: Autocast,
) -> dict[str, Tensor]:
    with torch.no_grad(), still_statistics(objective):
        parts = [
            predict(objective, batch, task, autocast) for batch, task in zip(batches, tasks, strict=True)
        ]
    joined = {name: tensor.requires_grad_() for name, tensor in join_tensors(parts).items()}
    sums = objective.score(joined, Task.join(tasks), processes)
    _weigh(objective, {term: value / counts[term] for term, value in sums.items()}).backward()  # type: ignore[no-untyped-call]
    start = 0
    rooms = _rooms(objective)
    for batch, task in zip(batches, tasks, strict=True):
        outputs = predict(objective, batch, task, autocast)
        stop = start + len(batch)
        used = [name for name in outputs if joined[name].grad is not None and outputs[name].requires_grad]
        slices = [joined[name].grad[start:stop] for name in used]  # type: ignore[index]
        torch.autograd.backward([outputs[name] for name in used], slices)
        _move_into(rooms)
        start = stop
    return {term: value.detach() for term, value in sums.items()}


def _rooms(objective: Objective) -> dict[nn.Parameter, Tensor]:
    """Memory for gradients, taken before that of activations. Gradients that stayed where the first backward pass makes
    them, among activations that go, would leave those of the next micro-batches too little in one piece."""
    return {p: torch.empty_like(p) for p in objective.parameters() if p.requires_grad}


@torch.no_grad()
def _move_into(rooms: dict[nn.Parameter, Tensor]) -> None:
    for parameter, room in rooms.items():
        if parameter.grad is not None and parameter.grad is not room:
            parameter.grad = room.copy_(parameter.grad)


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running averages of batch normalisation as they are: what is predicted twice is to count once."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def evaluate(
    objective: Objective, batches: Iterable[Batch], processes: Processes, autocast: Autocast = nullcontext
) -> dict[str, float]:
    """The mean of each term over the batches of all processes, and `loss`, their weighted sum.

    Each batch is scored by itself, so that where records meet in the score the result does not depend on the
    number of processes.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for batch in batches:
        task = objective.hide(batch)
        scores = objective.score(predict(objective, batch, task, autocast), task, Processes.alone())
        for term, value in scores.items():
            sums[term] = sums.get(term, 0.0) + float(value)
            counts[term] = counts.get(term, 0.0) + float(task.counts[term])
    parts = processes.collect((sums, counts))
    terms = sorted({term for part, _ in parts for term in part})
    figures = {
        term: sum(part.get(term, 0.0) for part, _ in parts)
        / max(1.0, sum(part.get(term, 0.0) for _, part in parts))
        for term in terms
    }
    return {
        "loss": sum(objective.weights.get(term, 1.0) * value for term, value in figures.items()),
        **figures,
    }
