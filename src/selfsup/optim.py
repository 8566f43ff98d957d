"""Muon for the hidden matrices, AdamW for everything else, and the schedule of their learning rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from selfsup.config import OptimConfig
from selfsup.errors import UserError
from selfsup.objectives.base import Objective
from selfsup.saving import AVERAGE
from selfsup.sharding import own, placed, spread, total_norm

# The quintic of Jordan et al. (2024, "Muon: An optimizer for hidden layers in neural networks"), whose slope at
# zero is as steep as convergence into [0.7, 1.2] allows.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each (n, rows, columns), by Newton-Schulz iteration in `dtype`.

    Cheapest where there are no more rows than columns.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


@dataclass(eq=False)
class Method(ABC):
    """An optimizer of some of the parameters: its peak learning rate, and what it remembers of each of them.

    Of parameters that processes hold by rows it remembers rows, and moves those of its process.

    It does without torch.optim.Optimizer, whose first instance imports torch's compiler, which takes a second.
    """

    parameters: list[nn.Parameter]
    lr: float
    weight_decay: float
    state: dict[nn.Parameter, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def step(self, multiplier: float) -> None:
        """Update every parameter that has a gradient, at `multiplier` times the peak learning rate."""
        moving = [parameter for parameter in self.parameters if parameter.grad is not None]
        for parameter in moving:
            if parameter not in self.state:
                self.state[parameter] = self.fresh(parameter)
        if moving:
            with torch.no_grad():
                self.update(moving, self.lr * multiplier)

    @abstractmethod
    def fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is remembered before the first update."""

    @abstractmethod
    def update(self, parameters: list[nn.Parameter], lr: float) -> None:
        """One update of parameters that have a gradient."""

    def recall(self, parameters: list[nn.Parameter], key: str) -> list[Tensor]:
        return [own(self.state[parameter][key]) for parameter in parameters]


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of those that have one, as far as this process holds them."""
    return [own(parameter.grad) for parameter in parameters if parameter.grad is not None]


@dataclass(eq=False)
class Muon(Method):
    """Momentum, orthogonalized (Jordan et al. 2024), with all matrices of one shape in one batch.

    The update has the root mean square of an AdamW update, 0.2·√max(rows, columns) times an orthogonal matrix
    (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4), so one learning rate suits every shape.
    Convolutions are taken as (out, in·height·width), tall matrices as their transposes, and of matrices that are
    `stacks` of maps each map by itself.
    """

    momentum: float
    dtype: torch.dtype = torch.bfloat16
    stacks: Mapping[nn.Parameter, int] = field(default_factory=dict)

    def fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(parameter)}

    def update(self, parameters: list[nn.Parameter], lr: float) -> None:
        weights, gradients = list(map(own, parameters)), gradients_of(parameters)
        buffers = self.recall(parameters, "momentum")
        torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, buffers, self.momentum)  # Nesterov
        torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        shapes = [self._shape(parameter) for parameter in parameters]
        costs = [p.numel() * min(shape) for p, shape in zip(parameters, shapes, strict=True)]
        updates = spread(parameters, [direction.to(self.dtype) for direction in ahead], self._orthogonal, costs)
        for longest in sorted({max(shape) for shape in shapes}):
            like = [number for number, shape in enumerate(shapes) if max(shape) == longest]
            targets, turned = [weights[n] for n in like], [updates[n].to(weights[n].dtype) for n in like]
            torch._foreach_add_(targets, turned, alpha=-lr * 0.2 * longest**0.5)

    def _shape(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Rows and columns of each map that a parameter holds."""
        return len(parameter) // self.stacks.get(parameter, 1), math.prod(parameter.shape[1:])

    def _orthogonal(self, parameters: list[nn.Parameter], directions: list[Tensor]) -> list[Tensor]:
        """The (semi-)orthogonal matrix nearest to each direction, map by map."""
        updates = [torch.empty_like(direction) for direction in directions]
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parameter, update, direction in zip(parameters, updates, directions, strict=True):
            maps = self.stacks.get(parameter, 1)
            for target, part in zip(update.chunk(maps), direction.chunk(maps), strict=True):
                matrix = part.flatten(1)
                wide = matrix.mT if len(matrix) > matrix.shape[1] else matrix
                alike.setdefault(tuple(wide.shape), []).append((target, wide))
        for pairs in alike.values():
            targets, matrices = zip(*pairs, strict=True)
            turned = orthogonalize(torch.stack(matrices), self.dtype)
            for target, update in zip(targets, turned.unbind(), strict=True):
                target.copy_(_as(target, update))
        return updates


def _as(target: Tensor, update: Tensor) -> Tensor:
    """A wide matrix in the shape of what it is an update of, however that lies in memory."""
    return (update if len(update) == len(target) else update.mT).reshape(target.shape)


@dataclass(eq=False)
class AdamW(Method):
    """Loshchilov & Hutter 2019, algorithm 2, by torch's fused kernel."""

    betas: tuple[float, float]
    eps: float

    def fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def update(self, parameters: list[nn.Parameter], lr: float) -> None:
        adamw(
            list(map(own, parameters)),
            gradients_of(parameters),
            self.recall(parameters, "exp_avg"),
            self.recall(parameters, "exp_avg_sq"),
            [],
            self.recall(parameters, "step"),
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )


def _parts(
    objective: Objective,
    parameters: list[nn.Parameter],
    config: OptimConfig,
    rate: float,
    decays: bool,
    dtype: torch.dtype,
) -> list[Method]:
    """The optimizers of parameters whose learning rates have one factor, those that have any to move."""
    listed = {id(parameter) for parameter in objective.vectors()}
    hidden = [p for p in parameters if p.ndim >= 2 and id(p) not in listed]
    tables = [p for p in parameters if p.ndim >= 2 and id(p) in listed]
    vectors = [p for p in parameters if p.ndim < 2]
    lr, adamw_lr = rate * (config.lr or 0.0), rate * (config.adamw_lr or 0.0)
    decay, moments = (config.weight_decay or 0.0) * decays, (config.betas, config.eps)
    parts: list[Method] = [
        Muon(hidden, lr, decay, config.momentum, dtype, objective.stacks())
        if config.matrices == "muon"
        else AdamW(hidden, lr, decay, *moments),
        AdamW(tables, adamw_lr, decay, *moments),
        AdamW(vectors, adamw_lr, 0.0, *moments),
    ]
    return [part for part in parts if part.parameters]


class Optimizer:
    """All optimizers of one objective, under one schedule, with a state that is a flat dictionary of tensors.

    With `l2_sp` = β the parameters that were started from weights w₀, as they are when this is built, are pulled there
    where others decay to zero: w ← w − lr · β (w − w₀), the step against β/2 · ‖w − w₀‖² (Li et al. 2018, "Explicit
    inductive bias for transfer learning with convolutional networks", equation 2). As the weight decay, it is decoupled
    from the gradient: moments do not see it.

    With `average` = s it keeps an average of the weights over about the last share s of all updates, however many there
    will be: after update t it moves by min(1, 1 / (s t)) of its way to the weights, so that their part in it grows as a
    power of their time (Karras et al. 2023, "Analyzing and Improving the Training Dynamics of Diffusion Models",
    section 3.1).

    Args:
        started: the parameters that were started from weights.
        factors: of the learning rates of some of them, beside those of the objective.
    """

    def __init__(
        self,
        objective: Objective,
        config: OptimConfig,
        dtype: torch.dtype = torch.bfloat16,
        started: Iterable[nn.Parameter] = (),
        factors: Mapping[nn.Parameter, float] = MappingProxyType({}),
    ) -> None:
        if config.lr is None or config.adamw_lr is None or config.weight_decay is None:
            raise ValueError("learning rates and weight decay must be settled before the optimizer is built")
        self.names = {p: name for name, p in objective.named_parameters() if p.requires_grad}
        if not self.names:
            raise UserError(f"{type(objective).__name__} has no parameter that can be trained; register its modules.")
        self.l2_sp = config.l2_sp or 0.0
        pulled = [parameter for parameter in started if self.l2_sp and parameter.requires_grad]
        self.starts = {parameter: parameter.detach().clone() for parameter in pulled}
        rates = {id(parameter): rate for parameter, rate in objective.rates().items()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in self.names:
            rate = rates.get(id(parameter), 1.0) * factors.get(parameter, 1.0)
            place = rate, parameter not in self.starts
            groups.setdefault(place, []).append(parameter)
        self.parts = [
            part
            for rate, decays in sorted(groups, reverse=True)
            for part in _parts(objective, groups[rate, decays], config, rate, decays, dtype)
        ]
        self.owners = {self.names[parameter]: (part, parameter) for part in self.parts for parameter in part.parameters}
        self.multiplier = 1.0
        self.share = config.average
        self.averages = {parameter: parameter.detach().clone() for parameter in self.names} if self.share else {}

    @property
    def lr(self) -> float:
        """The latest learning rate of the first part (the hidden matrices, where there are any)."""
        return self.parts[0].lr * self.multiplier

    def step(self, multiplier: float) -> None:
        """One update at `multiplier` times the peak learning rates; the gradients are emptied after it."""
        self.multiplier = multiplier
        for part in self.parts:
            self._pull(part, multiplier)
            part.step(multiplier)
        self.clear()

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the weights after update number `step`, counted from 1, into their average, where one is kept."""
        if self.averages:
            averages, weights = list(map(own, self.averages.values())), list(map(own, self.averages))
            torch._foreach_lerp_(averages, weights, min(1.0, 1 / (self.share * step)))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In the block, the weights are their averages, where these are kept."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weights, average in ((own(parameter), own(average)) for parameter, average in self.averages.items()):
            before = weights.clone()
            weights.copy_(average)
            average.copy_(before)

    def keep_averages(self) -> None:
        """Let the weights be their averages from now on, of which none are kept any more."""
        self._exchange()
        self.averages = {}

    @torch.no_grad()
    def _pull(self, part: Method, multiplier: float) -> None:
        """What is moved goes back a little of its way from the start."""
        moving = [p for p in part.parameters if p in self.starts and p.grad is not None]
        if moving:
            share = min(1.0, part.lr * multiplier * self.l2_sp)
            torch._foreach_lerp_(list(map(own, moving)), [own(self.starts[p]) for p in moving], share)

    def clear(self) -> None:
        for parameter in self.names:
            parameter.grad = None

    def clip(self, largest: float) -> float:
        """Scale the gradients so that their joint norm is at most `largest`; the norm before is returned.

        Where it is no number, the gradients stay as they are, so that the one to blame can be found.
        """
        norm = float(total_norm(parameter.grad for parameter in self.names if parameter.grad is not None))
        if largest < norm < math.inf:
            torch._foreach_mul_(gradients_of(self.names), largest / norm)
        return norm

    def state(self) -> dict[str, Tensor]:
        """{parameter.key: tensor} of every optimizer, and of the averages."""
        moments = {
            f"{self.names[parameter]}.{key}": value
            for part in self.parts
            for parameter, state in part.state.items()
            for key, value in state.items()
        }
        return moments | {f"{self.names[parameter]}.{AVERAGE}": average for parameter, average in self.averages.items()}

    def misfit(self, tensors: Mapping[str, Tensor]) -> str | None:
        """What keeps whole tensors from being a state of these optimizers; None where nothing does."""
        for name, places in _by_parameter(tensors).items():
            if name not in self.owners:
                return f"{name} is no parameter of the model"
            part, parameter = self.owners[name]
            state = {key: tensors[place] for key, place in places.items()}
            expected = part.fresh(parameter) if state.keys() - {AVERAGE} else {}  # one that rests has no moments yet
            expected |= {AVERAGE: parameter.detach()} if self.averages else {}
            if problem := misshapen(state, expected):
                return f"{name}.{problem}"
        return None

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, in whole tensors."""
        for name, places in _by_parameter(tensors).items():
            part, parameter = self.owners[name]
            fresh = part.fresh(parameter)
            if AVERAGE in places:
                self.averages[parameter] = placed(tensors[places.pop(AVERAGE)], parameter.detach())
            if places:
                part.state[parameter] = {key: placed(tensors[place], fresh[key]) for key, place in places.items()}


def _by_parameter(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """{parameter: {key: parameter.key}} of each parameter.key."""
    found: dict[str, dict[str, str]] = {}
    for path in names:
        name, _, key = path.rpartition(".")
        found.setdefault(name, {})[key] = path
    return found


def misshapen(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """How tensors differ from expected ones in names, shapes or types; None where they do not."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is unknown"
        if (tensors[name].shape, tensors[name].dtype) != (expected[name].shape, expected[name].dtype):
            return f"{name} has another shape or type"
    return None


@dataclass(frozen=True)
class Decay:
    """From step `start` to step `end` the learning rate falls in a straight line to zero."""

    start: int
    end: int


@dataclass
class Schedule:
    """Warm-up, stable, decay (Hu et al. 2024, "MiniCPM"), as a pure function of the step.

    Where a budget of time ends the run, the decay is decided while the run goes on, and decided anew when the
    machine turns out slower or faster; each decision takes over from the value at its start.
    """

    warmup: int
    decays: list[Decay] = field(default_factory=list)

    @property
    def start(self) -> int | None:
        """The first step of the decay, where it is decided."""
        return self.decays[0].start if self.decays else None

    @property
    def end(self) -> int | None:
        """The step after the last one, where it is decided."""
        return self.decays[-1].end if self.decays else None

    def begun(self, step: int) -> list[Decay]:
        """What was decided when update number `step` was made."""
        return [decay for decay in self.decays if decay.start <= step]

    def multiplier(self, step: int) -> float:
        """The factor of the peak learning rate in update number `step`, counted from 0."""
        begun = self.begun(step)
        moments = [*(decay.start for decay in begun), step]
        factor = min(1.0, (step + 1) / (self.warmup + 1))
        for decay, reached in zip(begun, moments[1:], strict=True):
            factor *= max(0, decay.end - reached) / (decay.end - decay.start)
        return factor
