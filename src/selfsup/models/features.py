"""What the vector of a text or image is: its last hidden states, pooled, then mapped. Saved with each model.

DIR/features.json          the pooling, and whether a map follows it
DIR/features.safetensors   the map: `weight` (dimension, width) and, where it has one, `bias` (dimension,)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.models.directories import damaged, read_json, read_safetensors, write_json
from selfsup.models.huggingface import write_weights
from selfsup.models.packing import POOLINGS, Pooling

FEATURES, MAP = "features.json", "features.safetensors"


@dataclass(frozen=True, eq=False)
class Features:
    """How hidden states become one vector: pooled, then mapped by weight · x + bias where these are given.

    Pooling "mean" is over all tokens of a text or the patches of an image, "cls" its first or its class token, "last"
    the last token of a text, "attention" what a vision transformer with a query for it makes of all.
    """

    pooling: Pooling = "mean"
    weight: Tensor | None = None
    bias: Tensor | None = None

    def map(self, pooled: Tensor) -> Tensor:
        """The vectors (n, dimension) of what was pooled to (n, width)."""
        if self.weight is None:
            return pooled
        bias = None if self.bias is None else self.bias.to(pooled)
        return F.linear(pooled, self.weight.to(pooled), bias)

    def dimension(self, width: int) -> int:
        """Numbers in the vector of what has hidden states of a width."""
        return width if self.weight is None else len(self.weight)

    def require_width(self, width: int, directory: Path) -> None:
        """Raise a UserError where a directory's map is of hidden states of another width than its network's."""
        if self.weight is not None and self.weight.shape[1] != width:
            inputs = self.weight.shape[1]
            raise damaged(f"{directory / MAP} maps {inputs} numbers and the network gives {width}")

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with anything that may change a vector."""
        digest = hashlib.blake2b(self.pooling.encode(), digest_size=16)
        for tensor in (self.weight, self.bias):
            digest.update(b"-" if tensor is None else tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Features) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def write(self, directory: Path) -> None:
        """Put the definition into a directory that exists."""
        write_json(directory / FEATURES, {"pooling": self.pooling, "mapped": self.weight is not None})
        if self.weight is not None:
            write_map(directory / MAP, self.weight, self.bias)


def fingerprint(module: nn.Module, features: Features) -> str:
    """32 hex digits of a network's weights and of what it takes as a vector."""
    digest = hashlib.blake2b(features.fingerprint.encode(), digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_own(directory: Path, poolings: Sequence[Pooling] = POOLINGS) -> Features:
    """The definition that `Features.write` left in a directory; raises UserError where it is damaged, or pools in none
    of these ways."""
    saved = read_json(directory / FEATURES)
    pooling: Any = saved.get("pooling")
    if pooling not in poolings:
        raise UserError(f"{directory / FEATURES} has pooling {pooling!r}; it is one of {', '.join(poolings)}")
    return Features(pooling, *read_map(directory / MAP)) if saved.get("mapped") else Features(pooling)


def write_map(path: Path, weight: Tensor, bias: Tensor | None, prefix: str = "") -> None:
    """A linear map in a file: weight (dimension, width) and, where there is one, bias (dimension,)."""
    given = {"weight": weight} | ({} if bias is None else {"bias": bias})
    write_weights(path, {prefix + name: tensor for name, tensor in given.items()})


def read_map(path: Path, prefix: str = "") -> tuple[Tensor, Tensor | None]:
    """What `write_map` left, by names with that prefix; raises UserError where the file holds anything else."""
    tensors = read_safetensors(path)
    weight, bias = tensors.pop(f"{prefix}weight", torch.empty(0)), tensors.pop(f"{prefix}bias", None)
    if tensors or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise damaged(f"{path} holds no weight (dimension, width) with its bias")
    return weight, bias


def whitening(vectors: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Weight (d, d) and bias (d,) of the map after which vectors (n, d) have mean 0 and, nearly, covariance 1 / d.

    (Su et al. 2021, "Whitening Sentence Representations for Better Semantics and Faster Retrieval", equation 5; of the
    maps that do so, the symmetric one, which moves vectors least.) Directions that all texts share, such as that of
    their most frequent words, then weigh no more than any other. The covariance is shrunk towards a multiple of 1 as
    far as the number of vectors demands (Ledoit and Wolf 2004).
    """
    from sklearn.covariance import ledoit_wolf

    mean = vectors.mean(0, dtype=np.float64)
    covariance, _ = ledoit_wolf(vectors - mean, assume_centered=True)
    values, directions = np.linalg.eigh(covariance)
    values = np.maximum(values, max(SMALLEST * values[-1], ROUNDING * np.square(vectors).mean(), TINY))
    weight = (directions * (values * len(mean)) ** -0.5) @ directions.T
    return torch.from_numpy(weight).float(), torch.from_numpy(-weight @ mean).float()


SMALLEST = 1e-3  # of the largest variance: what varies less is no more than noise
TINY = 1e-30  # for vectors of zeros
ROUNDING = 1e-12  # of the mean square: what varies less is rounding in fp32, as in features that collapsed
