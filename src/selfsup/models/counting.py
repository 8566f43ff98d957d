"""How large a network is and what it costs, counted on the network itself, built on the meta device: without memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

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
    return size_of(sketched(kind, config))


def size_of(module: nn.Module) -> int:
    """Parameters of a module; one that serves twice is counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


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


class Kept(NamedTuple):
    """Numbers that a layer keeps of a token until its gradient is made.

    Attributes:
        narrow: in the type of matrix products.
        wide: in fp32.
    """

    narrow: float
    wide: float

    def size(self, narrow: int) -> float:
        """Bytes, with so many for a number in the type of matrix products."""
        return narrow * self.narrow + 4 * self.wide


def kept_per_token(width: float, queries: float, keys: float, inner: float, turned: bool, gated: bool) -> Kept:
    """What a layer of a transformer with norms before its two parts keeps of a token.

    Of each norm its input, in fp32, and its result, which is the input of the maps behind it; queries and keys, before
    and behind their rotation where they are `turned`, values, and what attention makes of them, where they are turned
    also with its heads side by side; of the feed-forward, which is `inner` numbers wide, the inputs of its activation
    and of its last map, of one that is `gated` both factors and the activated one too. Scores of attention are not
    kept: they are made anew (Dao et al. 2022, "FlashAttention", section 3.1). Korthikanti et al.
    2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.1, count the same for a layer of
    GPT.
    """
    heads = (2 if turned else 1) * (2 * queries + keys) + keys
    return Kept(2 * width + heads + (4 if gated else 2) * inner, 2 * width)


@dataclass(frozen=True)
class Stack:
    """Layers of one shape that the tokens of a record pass through.

    Attributes:
        block: parameters of a layer.
        tokens: of a record.
        kept: of a token, in a layer.
    """

    layers: int
    width: int
    block: int
    tokens: float
    kept: Kept


@dataclass(frozen=True)
class Sketch:
    """What the memory of a training follows from.

    Attributes:
        parameters: that are trained.
        hidden: of them, those of the hidden matrices, which have an optimizer of their own.
        vocabulary, width: of the output matrix, where there is one; without it 0.
        predicted: tokens of a record that go through that matrix.
    """

    parameters: int
    hidden: int
    stacks: tuple[Stack, ...]
    vocabulary: int = 0
    width: int = 0
    predicted: float = 0.0
