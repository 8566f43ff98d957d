"""Muon for the hidden matrices, AdamW for everything else, and the schedule of their learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from selfsup.config import OptimConfig
from selfsup.errors import UserError
from selfsup.objectives.base import Objective

# The quintic of Jordan et al. (2024, "Muon: An optimizer for hidden layers in neural networks"), whose slope at
# zero is as steep as convergence into [0.7, 1.2] allows.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices: Tensor, steps: int = NEWTON_SCHULZ_STEPS) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each (n, rows, columns), by Newton-Schulz iteration in bf16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024), with all matrices of one shape in one batch.

    The update has the root mean square of an AdamW update, 0.2·√max(rows, columns) times an orthogonal matrix
    (Liu et al. 2025, "Muon is Scalable for LLM Training", eq. 4), so one learning rate suits every shape.
    Convolutions are taken as (out, in·height·width).
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(tuple(parameter.shape), []).append(parameter)
            for parameters in shapes.values():
                self._update(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _update(
        self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov
        matrices = torch.stack(list(ahead)).flatten(2)
        scale = 0.2 * max(matrices.shape[1:]) ** 0.5
        updates = orthogonalize(matrices).to(parameters[0].dtype).view(-1, *parameters[0].shape)
        torch._foreach_mul_(list[Tensor](parameters), 1 - lr * weight_decay)
        torch._foreach_add_(list[Tensor](parameters), list(updates.unbind()), alpha=-lr * scale)


class Optimizer:
    """All optimizers of one objective, under one schedule, with a state that is a flat dictionary of tensors."""

    def __init__(self, objective: Objective, config: OptimConfig) -> None:
        if config.lr is None or config.adamw_lr is None or config.weight_decay is None:
            raise ValueError("learning rates and weight decay must be settled before the optimizer is built")
        self.names = {
            parameter: name for name, parameter in objective.named_parameters() if parameter.requires_grad
        }
        if not self.names:
            raise UserError(
                f"{type(objective).__name__} has no parameter that can be trained; register its modules."
            )
        vectors = {id(parameter) for parameter in objective.vectors()}
        matrices = [p for p in self.names if p.ndim >= 2 and id(p) not in vectors]
        hidden = {id(parameter) for parameter in matrices}
        rest = [p for p in self.names if id(p) not in hidden]
        self.parts = [
            part
            for part in (self._hidden(matrices, config), _adamw(rest, config, config.adamw_lr))
            if part is not None
        ]
        for part in self.parts:
            for group in part.param_groups:
                group["peak"] = group["lr"]

    @staticmethod
    def _hidden(matrices: list[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer | None:
        lr = cast(float, config.lr)
        if config.matrices == "adamw":
            return _adamw(matrices, config, lr)
        return Muon(matrices, lr, config.momentum, cast(float, config.weight_decay)) if matrices else None

    @property
    def lr(self) -> float:
        """The learning rate of the first group (the hidden matrices, where there are any)."""
        return float(self.parts[0].param_groups[0]["lr"])

    def step(self, multiplier: float) -> None:
        """One update at `multiplier` times the peak learning rates; the gradients are emptied after it."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * multiplier
            part.step()
        self.clear()

    def clear(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def clip(self, largest: float) -> Tensor:
        """Scale the gradients so that their joint norm is at most `largest`; the norm before is returned.

        Where it is no number, the gradients stay as they are, so that the one to blame can be found.
        """
        norm = nn.utils.get_total_norm(p.grad for p in self.names if p.grad is not None)
        nn.utils.clip_grads_with_norm_(self.names, largest, norm.nan_to_num(posinf=0.0))
        return norm

    def state(self) -> dict[str, Tensor]:
        """{parameter.key: tensor} of every optimizer."""
        return {
            f"{self.names[cast(nn.Parameter, parameter)]}.{key}": value
            for part in self.parts
            for parameter, state in part.state.items()
            for key, value in state.items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        owners = {id(p): part for part in self.parts for group in part.param_groups for p in group["params"]}
        for path, tensor in tensors.items():
            name, _, key = path.rpartition(".")
            parameter = parameters[name]
            owners[id(parameter)].state[parameter][key] = tensor.to(parameter.device)


def _adamw(parameters: list[nn.Parameter], config: OptimConfig, lr: float) -> torch.optim.AdamW | None:
    """AdamW, without weight decay for vectors (norms, biases, gains)."""
    if not parameters:
        return None
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)


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
    def end(self) -> int | None:
        """The step after the last one, where it is decided."""
        return self.decays[-1].end if self.decays else None

    def end_by(self, step: int) -> int | None:
        """The step after the last one, as it was decided when update number `step` was made."""
        begun = [decay for decay in self.decays if decay.start <= step]
        return begun[-1].end if begun else None

    def multiplier(self, step: int) -> float:
        """The factor of the peak learning rate in update number `step`, counted from 0."""
        begun = [decay for decay in self.decays if decay.start <= step]
        moments = [*(decay.start for decay in begun), step]
        factor = min(1.0, (step + 1) / (self.warmup + 1))
        for decay, reached in zip(begun, moments[1:], strict=True):
            factor *= max(0, decay.end - reached) / (decay.end - decay.start)
        return factor
