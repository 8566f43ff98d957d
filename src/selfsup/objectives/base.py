"""What an objective is: a way to hide, a way to predict and a way to score.

    task    = objective.hide(batch)                       what is shown, what is hidden, where it was
    outputs = objective.predict(task)                     per record, so that it can run in micro-batches
    sums    = objective.score(outputs, task, collectives) {term: sum over the predictions of this process}

The loss of a term is its sum over all micro-batches and processes, divided by its count over all of them. The
count is known from the task alone (it says how much is hidden), so the spine can divide before the first
backward pass and a micro-batch needs no knowledge of the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from selfsup.checks import Check
from selfsup.data.records import Batch
from selfsup.models.transformer import Stacked


@dataclass(frozen=True)
class Task:
    """What is shown, what is hidden, where it was.

    Attributes:
        tensors: first dimension is the record, so that tasks can be joined and cut. Those that are large and cheap to
            make may be `Deferred`.
        counts: for each term of the score, the number of predictions it sums over (a scalar tensor).
    """

    tensors: Mapping[str, Tensor]
    counts: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @staticmethod
    def join(tasks: Sequence[Task]) -> Task:
        """The tasks of several micro-batches as one."""
        if len(tasks) == 1:
            return tasks[0]
        return Task(Joined([task.tensors for task in tasks]), add_counts(task.counts for task in tasks))


class Deferred(Mapping[str, Tensor]):
    """Tensors of a task, some of which are made whenever they are asked for, the same each time: while the other
    micro-batches of a large batch have their turn, they take no memory. Gradient caching so makes them twice."""

    def __init__(self, made: Mapping[str, Callable[[], Tensor]], kept: Mapping[str, Tensor]) -> None:
        self._made, self._kept = made, kept

    def __getitem__(self, name: str) -> Tensor:
        return self._made[name]() if name in self._made else self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return chain(self._made, self._kept)

    def __len__(self) -> int:
        return len(self._made) + len(self._kept)


class Joined(Mapping[str, Tensor]):
    """The tensors of several tasks as one; each is joined when it is asked for, since a score needs few of them."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([part[name] for part in self._parts])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts[0])

    def __len__(self) -> int:
        return len(self._parts[0])


Outputs = dict[str, Tensor]
Autocast = Callable[[], AbstractContextManager[object]]  # the context of mixed precision


class Collectives(Protocol):
    """What a score may ask of the other processes; one process alone answers with its own values."""

    rank: int
    size: int

    def gather(self, tensor: Tensor) -> Tensor:
        """(n, …) of every process, joined in rank order to (N, …); gradients flow back to their owners."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, without gradient."""
        ...


@runtime_checkable
class HasVectors(Protocol):
    """A network that says which of its parameters are lists of vectors."""

    def vectors(self) -> Iterable[nn.Parameter]: ...


class Objective(nn.Module, ABC):
    """The modules that an objective trains, and the three steps of its task.

    `separable` says that the score adds up over records, so that micro-batches may be scored one by one (causal
    LM, masked LM, MAE). A batch-coupled objective (SimCLR, CLIP: records meet in the score) is cut only through
    gradient caching, so that the split never changes what is computed.
    """

    separable: ClassVar[bool] = True
    weights: Mapping[str, float] = {}  # the factor of each term in the loss; 1 where it is not named
    checks: tuple[Check, ...] = ()  # of one from Python, as those of a recipe
    loss_unit: ClassVar[str | None] = None
    losses_compare: ClassVar[bool] = True  # as of a recipe: False where a loss is measured against what moves itself

    @abstractmethod
    def hide(self, batch: Batch) -> Task:
        """Make the task; every random draw is a function of (seed, epoch, record, view) of the batch."""

    @abstractmethod
    def predict(self, task: Task) -> Outputs:
        """The model's outputs, per record: no record may influence the output of another one."""

    @abstractmethod
    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        """The sum of each term over this process's predictions (a scalar tensor with gradient)."""

    def after_step(self, step: int, steps: int) -> None:
        """What follows an update: a teacher's moving average, a clamp."""

    def vectors(self) -> Iterable[nn.Parameter]:
        """Matrices that are lists of vectors rather than maps: they belong to AdamW, not to Muon."""
        parts = [module for module in self.modules() if not isinstance(module, Objective)]
        embeddings = [module for module in parts if isinstance(module, nn.Embedding)]
        lists = [parameter for module in embeddings for parameter in module.parameters()]
        return lists + [v for module in parts if isinstance(module, HasVectors) for v in module.vectors()]

    def rates(self) -> Mapping[nn.Parameter, float]:
        """Factors of the learning rates of parameters; 1 where one is not named."""
        return {}

    def gradient_groups(self) -> Mapping[str, nn.Module]:
        """Parts whose gradient has a figure of its own, by what it is called: `grad_norm_NAME`."""
        return {}

    def stacks(self) -> Mapping[nn.Parameter, int]:
        """Matrices that hold several maps, one above the other, and how many: Muon takes each map by itself."""
        stacked = [module for module in self.modules() if isinstance(module, Stacked)]
        return {matrix: module.parts for module in stacked for matrix in module.parameters()}


def join_tensors(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def add_counts(counts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for count in counts:
        for term, value in count.items():
            total[term] = total[term] + value if term in total else value
    return total
