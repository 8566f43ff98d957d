"""The gradient of one step, whatever the objective: micro-batches, gradient caching, processes.

    loss = Σ_terms  weight × (Σ over all records of all processes) / (count over all records of all processes)

A separable objective is predicted, scored and differentiated one micro-batch at a time. A batch-coupled one in
more than one micro-batch goes through gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch
Size under Memory Limited Setup"): outputs of all micro-batches without a graph, one score on all of them, then
each micro-batch predicted again and differentiated with the cached gradient of its outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.distributed import Processes, meeting
from selfsup.objectives.base import Autocast, Objective, Outputs, Task, add_counts, join_tensors
from selfsup.seeding import seeded


@meeting()
def gradients(
    objective: Objective, batches: Sequence[Batch], processes: Processes, autocast: Autocast = nullcontext
) -> dict[str, Tensor]:
    """Accumulate into `.grad`, which is empty, the gradient of the loss over the micro-batches of every process.

    Scores run outside the context of mixed precision (`autocast`), in the precision of the outputs. Returns {term: its
    mean over all records of all processes} and `loss`, their weighted sum; scalars, detached.
    """
    tasks = [objective.hide(batch) for batch in batches]
    own = add_counts(task.counts for task in tasks)
    counts = {term: processes.sum(count).clamp(min=1) for term, count in own.items()}  # nothing hidden costs 0

    def differentiate(outputs: Outputs, task: Task) -> dict[str, Tensor]:
        sums = objective.score(outputs, task, processes)
        torch.autograd.backward(_weigh(objective, {term: sums[term] / counts[term] for term in sums}))
        return {term: value.detach() for term, value in sums.items()}

    if objective.separable or len(tasks) == 1:
        pairs = zip(batches, tasks, strict=True)
        sums = add_counts(differentiate(predict(objective, *pair, autocast), pair[1]) for pair in pairs)
    else:
        sums = _cached(objective, batches, tasks, autocast, differentiate)
    processes.sum_gradients(objective.parameters())
    figures = {term: processes.sum(value) / counts[term] for term, value in sums.items()}
    return {"loss": _weigh(objective, figures), **figures}


def predict(objective: Objective, batch: Batch, task: Task, autocast: Autocast) -> Outputs:
    """Outputs of one micro-batch; dropout in the network is seeded from the micro-batch's first record."""
    task = Task(dict(task.tensors), task.counts)  # what is deferred is made here, once and in full precision
    with seeded(batch.seed, "dropout", int(batch.epochs[0]), int(batch.records[0])), autocast():
        return objective.predict(task)


def _weigh(objective: Objective, terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([objective.weights.get(term, 1.0) * value for term, value in terms.items()]).sum()


def _cached(
    objective: Objective,
    batches: Sequence[Batch],
    tasks: Sequence[Task],
    autocast: Autocast,
    differentiate: Callable[[Outputs, Task], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The sums of all micro-batches scored together; each is differentiated by itself."""
    pairs = list(zip(batches, tasks, strict=True))
    with torch.no_grad(), still_statistics(objective):
        parts = [predict(objective, *pair, autocast) for pair in pairs]
    joined = {name: tensor.requires_grad_() for name, tensor in join_tensors(parts).items()}
    sums = differentiate(joined, Task.join(tasks))
    cached = {name: tensor.grad for name, tensor in joined.items() if tensor.grad is not None}
    start = 0
    rooms = _rooms(objective)
    for batch, task in pairs:
        outputs, stop = predict(objective, batch, task, autocast), start + len(batch)
        used = [name for name in cached if outputs[name].requires_grad]
        torch.autograd.backward([outputs[name] for name in used], [cached[name][start:stop] for name in used])
        _move_into(rooms)
        start = stop
    return sums


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
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    for batch in batches:
        task = objective.hide(batch)
        scores = objective.score(predict(objective, batch, task, autocast), task, Processes.alone())
        for term, value in scores.items():
            sums[term] += float(value)
            counts[term] += float(task.counts[term])
    parts = processes.collect((sums, counts))
    figures = {}
    for term in sorted({term for sums, _ in parts for term in sums}):
        total, count = (sum(part[which].get(term, 0.0) for part in parts) for which in (0, 1))
        figures[term] = total / max(1.0, count)
    loss = sum(objective.weights.get(term, 1.0) * value for term, value in figures.items())
    return {"loss": loss, **figures}
