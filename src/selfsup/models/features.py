"""What the vector of a text or image is: its last hidden states, pooled, then mapped. Saved with each model.

DIR/features.json          the pooling, and whether a map follows it; of texts what is put before them (`prompts`,
                           `default_prompt`); the numbers of a vector that are kept (`kept`), where not all are, and the
                           `dimensions` that it was trained to be cut to, where it was
DIR/features.safetensors   the map: `weight` (dimension, width) and, where it has one, `bias` (dimension,)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.models.directories import broken, damaged, read_json, read_safetensors, whole, write_json
from selfsup.models.huggingface import write_weights
from selfsup.models.packing import POOLINGS, Pooling

FEATURES, MAP = "features.json", "features.safetensors"
QUERY, DOCUMENT = "query", "document"  # the prompts of what is looked for, and of what is looked through
NAMES = {QUERY: (QUERY,), DOCUMENT: (DOCUMENT, "passage", "corpus")}  # what either is called, likeliest first


@dataclass(frozen=True, eq=False)
class Features:
    """How hidden states become one vector: pooled, then mapped by weight · x + bias where these are given.

    Pooling "mean" is over all tokens of a text or the patches of an image, "cls" its first or its class token, "last"
    the last token of a text, "attention" what a vision transformer with a query for it makes of all.

    Attributes:
        prompts: by name, what is put before a text, as in sentence-transformers: `query` before what is looked for,
            `document` before what is looked through, others for other ends.
        default_prompt: the name of the one that is put before a text of which nothing else is said.
        dimensions: numbers that a vector was trained to be cut to, those behind them left out (Kusupati et al. 2022,
            "Matryoshka Representation Learning").
        kept: the numbers of a vector that are kept, the first ones; None for all.
    """

    pooling: Pooling = "mean"
    weight: Tensor | None = None
    bias: Tensor | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dimensions: tuple[int, ...] = ()
    kept: int | None = None

    def map(self, pooled: Tensor) -> Tensor:
        """The vectors (n, dimension) of what was pooled to (n, width)."""
        if self.weight is None:
            return pooled[:, : self.kept]
        bias = None if self.bias is None else self.bias.to(pooled)
        return F.linear(pooled, self.weight.to(pooled), bias)[:, : self.kept]

    def dimension(self, width: int) -> int:
        """Numbers in the vector of what has hidden states of a width."""
        made = width if self.weight is None else len(self.weight)
        return made if self.kept is None else min(made, self.kept)

    def prompt(self, name: str | None) -> str:
        """What is put before a text: the prompt of a name or, without one, the default one, if any.

        A model that has none for queries, or for documents, puts its default one before these. Raises UserError where
        there is no prompt of another name.
        """
        known = dict.fromkeys([*self.prompts, *NAMES])
        if name is not None and name not in known:
            raise UserError(f"The model has no prompt {name!r}; it knows {', '.join(known)}.")
        names = () if name is None else NAMES.get(name, (name,))
        found = next((own for own in names if own in self.prompts), self.default_prompt)
        return "" if found is None else self.prompts[found]

    @property
    def bare(self) -> Features:
        """The pooling and the map alone."""
        return Features(self.pooling, self.weight, self.bias)

    def prompted_as(self, other: Features) -> Features:
        """The same with the prompts of another definition."""
        return replace(self, prompts=other.prompts, default_prompt=other.default_prompt)

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
        if self.prompts or self.kept is not None:  # else as it was when there were none
            more = (sorted(self.prompts.items()), self.default_prompt, self.kept)
            digest.update(repr(more).encode(errors="surrogatepass"))
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Features):
            return NotImplemented
        return (self.fingerprint, self.dimensions) == (other.fingerprint, other.dimensions)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def write(self, directory: Path) -> None:
        """Put the definition into a directory that exists."""
        more = {
            "prompts": dict(self.prompts),
            "default_prompt": self.default_prompt,
            "dimensions": list(self.dimensions),
            "kept": self.kept,
        }
        told = {key: value for key, value in more.items() if value}
        write_json(directory / FEATURES, {"pooling": self.pooling, "mapped": self.weight is not None, **told})
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
    weight, bias = read_map(directory / MAP) if saved.get("mapped") else (None, None)
    dimensions = saved.get("dimensions", [])
    if not isinstance(dimensions, list) or not all(map(whole, dimensions)):
        raise broken(directory / FEATURES, "dimensions", dimensions)
    prompts, default = read_prompts(saved, "default_prompt", directory / FEATURES)
    kept = read_kept(saved, "kept", directory / FEATURES)
    return Features(pooling, weight, bias, prompts, default, tuple(dimensions), kept)


def read_prompts(saved: Mapping[str, Any], default: str, path: Path) -> tuple[dict[str, str], str | None]:
    """The prompts that a file says, and which of them is the default one by the key `default`; without one, empty
    prompts are none. Raises UserError where it says what is none."""
    prompts, name = saved.get("prompts") or {}, saved.get(default)
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise broken(path, "prompts", prompts)
    if name is not None and not (isinstance(name, str) and isinstance(prompts.get(name), str)):
        raise UserError(f"{path} names the default prompt {name!r}, which is not among its prompts; correct it.")
    return {key: text for key, text in prompts.items() if text or (text is not None and name is not None)}, name


def read_kept(saved: Mapping[str, Any], key: str, path: Path) -> int | None:
    """How many numbers of a vector are kept, as a file says by a key; raises UserError where that is no number."""
    kept: int | None = saved.get(key)
    if kept is not None and not whole(kept):
        raise broken(path, key, kept)
    return kept


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
