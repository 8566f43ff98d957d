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
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from selfsup.checks import Check
from selfsup.config import Settings
from selfsup.data.records import Batch, Records
from selfsup.models.transformer import Stacked
from selfsup.models.vision import VisionTransformer


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


class Declared:
    """What is known of an objective by its class: of a recipe, or of an objective from Python that has none."""

    checks: tuple[Check, ...] = ()  # what the doctor looks for beside what it always does
    loss_unit: ClassVar[str | None] = None  # what the loss counts, where it depends on the tokens
    losses_compare: ClassVar[bool] = True  # whether the model of a run with a lower loss is better


class Objective(Declared, nn.Module, ABC):
    """The modules that an objective trains, and the three steps of its task.

    `separable` says that the score adds up over records, so that micro-batches may be scored one by one (causal
    LM, masked LM, MAE). A batch-coupled objective (SimCLR, CLIP: records meet in the score) is cut only through
    gradient caching, so that the split never changes what is computed.
    """

    separable: ClassVar[bool] = True
    weights: Mapping[str, float] = {}  # the factor of each term in the loss; 1 where it is not named

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
        embeddings = (module for module in self.modules() if isinstance(module, nn.Embedding))
        tokens = (module for module in self.modules() if isinstance(module, VisionTransformer))
        lists = [cast(nn.Parameter, module.weight) for module in embeddings]
        return lists + [vector for module in tokens for vector in module.vectors()]

    def rates(self) -> Mapping[nn.Parameter, float]:
        """Factors of the learning rates of parameters; 1 where one is not named."""
        return {}

    def watched(self) -> Mapping[str, nn.Module]:
        """Parts whose gradient is worth a figure of its own, by what it is called: `grad_norm_NAME`."""
        return {}

    def stacks(self) -> Mapping[nn.Parameter, int]:
        """Matrices that hold several maps, one above the other, and how many: Muon takes each map by itself."""
        stacked = (module for module in self.modules() if isinstance(module, Stacked))
        return {cast(nn.Parameter, module.weight): module.parts for module in stacked}


TOKENS_PER_STEP = 8192  # where only the number of steps is said
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Effort:
    """What a run may spend: passes, steps, or floating-point operations (the budget at a measured rate)."""

    steps: int | None = None
    epochs: float | None = None
    flops: float | None = None

    def parameters(self, tokens_per_parameter: float, tokens: int) -> float:
        """The model size whose training sees `tokens_per_parameter` tokens per parameter, of a corpus of `tokens`."""
        if self.flops is not None:
            return float((self.flops / (6 * tokens_per_parameter)) ** 0.5)
        seen = (self.epochs or 1.0) * tokens if self.steps is None else self.steps * TOKENS_PER_STEP
        return seen / tokens_per_parameter

    def tokens(self, parameters: float, tokens: int) -> float:
        """The tokens that a model of this size will see."""
        if self.flops is not None:
            return self.flops / (6 * parameters)
        return (self.epochs or 1.0) * tokens if self.steps is None else self.steps * TOKENS_PER_STEP

    @property
    def origin(self) -> str:
        return "data and " + ("steps" if self.steps else "epochs" if self.epochs else "budget")


class Recipe(Declared, ABC):
    """How an objective is put together: its data, its sizes, its modules, and what is left of it when it ends.

    Args:
        settings: gaps in them are filled by `settle`.
        source: a source from Python, where the configuration does not name one.
        module: a network from Python, in place of the objective's own.
    """

    train: Records
    validation: Records | None = None
    unit: ClassVar[str] = "tokens"  # what the pace of training is counted in
    example: ClassVar[str] = "sample:shakespeare"  # what is trained on where no data is named
    shows: ClassVar[str] = "What it makes"  # what a sample is
    useful: ClassVar[str | None] = None  # the command to try on a finished run, with {run} for it
    inspector: ClassVar[str] = "task"  # by which `selfsup.inspection` shows its task
    idea: ClassVar[str] = "a part of the data is hidden and predicted from the rest"
    words: ClassVar[
        Mapping[str, str]
    ] = {}  # what is Shown, Hidden, Predicted, Learned, in place of its inspector's
    compared: ClassVar[bool] = True  # whether what is saved is compared with another library
    adapted: ClassVar[type[Recipe] | None] = None  # the same for a network from Python, where there is one

    def __init__(
        self, settings: Settings, source: object | None = None, module: nn.Module | None = None
    ) -> None:
        self.settings, self.source, self.module = settings, source, module

    @abstractmethod
    def open(self, progress: Progress) -> None:
        """Open the data; what takes long reports (bytes done, bytes in all where known)."""

    @abstractmethod
    def settle(self, effort: Effort) -> None:
        """Fill the gaps of the settings that depend on data and effort; `train` and `validation` stand then."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Of the data as it is trained on; a run is resumed only where it is the same."""

    @abstractmethod
    def build(self) -> Objective:
        """The objective with fresh weights, a function of the seed alone."""

    @abstractmethod
    def flops_per_record(self) -> float:
        """Floating-point operations of forward and backward."""

    @property
    @abstractmethod
    def units_per_record(self) -> int:
        """Units in a record."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What the plan says of data and model."""

    @property
    @abstractmethod
    def chance(self) -> float | None:
        """The loss of a model that knows nothing, where that is known."""

    def chance_of(self, records: int) -> float | None:
        """The same for so many records in a batch, on which it depends where they meet in the score."""
        return self.chance

    def reading(self) -> dict[str, Any]:
        """How other data than the run's own is read for protocols: arguments of `selfsup.evaluation.base.Request`."""
        return {}

    @abstractmethod
    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """Write what a user keeps, in a layout that opens elsewhere."""

    @property
    def whitened(self) -> int:
        """Records of the training part that are embedded when a model is saved."""
        return 0

    def whiten(self, objective: Objective, records: int) -> object:
        """What a saved model needs of so many of those records; None where it needs nothing."""
        return None

    def figures(self, loss: float, part: str) -> dict[str, float]:
        """What a loss means in other units, on the part `train` or `validation`."""
        return {}

    def counts(self) -> dict[str, int]:
        """Figures of the data that the doctor looks at."""
        return {}

    def model(self, objective: Objective) -> Any:
        """The model as it stands and as a user would open it, for protocols; None where there is none to open."""
        return None

    def measurable(self, by_class: bool) -> bool:
        """Whether protocols can be measured on `examples`, opened: those that need classes, or all others."""
        return False

    def examples(self, by_class: bool, records: int) -> tuple[object, object]:
        """Data and test data of its own for a protocol: held-out records; to learn classes from, training records."""
        return None, None

    def features(self, objective: Objective, records: int) -> npt.NDArray[np.float32] | None:
        """Features of held-out records, (records, dim), which say whether they collapse; None where there are none."""
        return None

    def sample(self, objective: Objective) -> str | None:
        """Something to look at, made by the model as it stands."""
        return None


def join_tensors(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def add_counts(counts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for count in counts:
        for term, value in count.items():
            total[term] = total[term] + value if term in total else value
    return total
