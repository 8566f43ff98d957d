"""Blocks that the networks share: matrices, tables, normalisation.

Parameters are filled with NaN when a module is built, so that one that was neither initialised nor loaded
shows in the first loss. No module holds a buffer: everything but parameters is recomputed from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.kernels import affine, rms_norm


def _quick_gelu(x: Tensor) -> Tensor:
    """GELU, nearly (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


_tanh_gelu = partial(F.gelu, approximate="tanh")
# By the names that configurations of other libraries have for them.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class TensorModule(nn.Module):
    """A module that makes one tensor."""

    __call__: Callable[..., Tensor]


def unset(*shape: int) -> nn.Parameter:
    """A parameter that neither `fill` nor loading has given numbers yet."""
    return nn.Parameter(torch.full(shape, torch.nan))


class Unset(nn.Module):
    """A module of torch's without the values that torch would draw."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, torch.nan)


class Linear(Unset, nn.Linear):
    """A matrix, weight (outputs, inputs), and a bias (outputs,) where one is asked for."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)


def through(x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """What each map makes of x, in the dtype of x: see `affine`."""
    return affine(x, *((part.weight, part.bias) for part in maps))


class Embedding(Unset, nn.Embedding):
    """A table of vectors; weight (vocabulary, width)."""


class Stacked(Linear):
    """Several maps of one input, one above the other in a single matrix; weight (parts · outputs, inputs), bias
    (parts · outputs,) where one is asked for."""

    def __init__(self, inputs: int, outputs: int, parts: int, bias: bool = False) -> None:
        super().__init__(inputs, parts * outputs, bias)
        self.parts, self.biased = parts, bias

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """One result per map, (…, outputs) each."""
        biases = self.bias.chunk(self.parts) if self.biased else [None] * self.parts
        return affine(x, *zip(self.weight.chunk(self.parts), biases, strict=True))


class LayerNorm(TensorModule):
    """weight · (x − mean) / sqrt(variance + eps) + bias over the last dimension (Ba et al. 2016, equation 4).

    Without a bias by default. The statistics are fp32 (or that of x, if wider) whatever `dtype`, which is that of the
    result.
    """

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = unset(width)
        self.bias = unset(width) if bias else None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(dtype)


class RMSNorm(TensorModule):
    """`kernels.rms_norm` with its gain: its weight, and what is added to all of that."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = unset(width)

    @property
    def gain(self) -> Tensor:
        return self.weight + self.offset if self.offset else self.weight

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return rms_norm(x, self.gain, self.eps, dtype)


@torch.no_grad()
def fill(
    module: nn.Module, generator: torch.Generator, constants: Mapping[str, float], deviations: Mapping[str, float]
) -> None:
    """Give the parameters of a module fresh values, a pure function of the generator's state.

    Matrices are normal with deviation 1/sqrt(inputs): unit in, unit out. Biases are zero, other vectors, which are
    gains, one. By the ends of their names, others have constants, or are normal with other deviations.
    """
    values = {"bias": 0.0, **constants}
    for name, parameter in module.named_parameters():
        value = next((value for end, value in values.items() if name.endswith(end)), None)
        deviation = next((d for end, d in deviations.items() if name.endswith(end)), None)
        if value is not None:
            parameter.fill_(value)
        elif deviation is None and parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, deviation or parameter[0].numel() ** -0.5, generator=generator)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which matrices are multiplied: autocast's where that is on, else the weights' own."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype
