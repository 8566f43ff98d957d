"""How large a network is and what it costs, counted on the network itself, built on the meta device: without memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn

C = TypeVar("C", bound=Hashable)
M = TypeVar("M", bound=nn.Module)


def sketched(kind: Callable[[C], M], config: C) -> M:
    """A network of a config without numbers in it; kept, so it is not to be changed."""
    network: M = _sketched(kind, config)
    return network


@lru_cache(maxsize=16)
def _sketched(kind: Callable[[Any], Any], config: Hashable) -> Any:
    with torch.device("meta"):
        return kind(config)


def parameter_count(kind: Callable[[C], nn.Module], config: C) -> int:
    """Parameters of the network that `kind` makes of a config; one that serves twice is counted once."""
    return sum(parameter.numel() for parameter in sketched(kind, config).parameters())


def matrix_parameters(module: nn.Module) -> int:
    """Parameters of the maps in a module, which multiply what passes; an embedding is looked up, and no map."""
    parts = (part for part in module.modules() if not isinstance(part, nn.Embedding))
    own = (parameter for part in parts for parameter in part.parameters(recurse=False))
    return sum(parameter.numel() for parameter in own if parameter.ndim > 1)


def flops_per_token(maps: float, layers: int, width: int, seen: float) -> float:
    """Floating-point operations of forward and backward per token.

    6 per parameter of the `maps` that it meets, and 12 · layers · width · seen for the two products of attention:
    `width` numbers, of all heads, with `seen` tokens, those included that a causal mask hides (Kaplan et al. 2020,
    table 1, times three; PaLM, arXiv:2204.02311, appendix B).
    """
    return 6 * maps + 12 * layers * width * seen
