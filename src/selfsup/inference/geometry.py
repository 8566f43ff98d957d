"""Features as directions: lengths taken away, and similarities a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.inference.items import Vectors

Floats = npt.NDArray[np.float64]

CELLS = 1 << 24  # similarities in memory at once


def normalised(features: Vectors) -> Tensor:
    """Features (n, d) with length 1, fp32; a feature of zeros stays as it is."""
    return F.normalize(torch.from_numpy(np.ascontiguousarray(features, np.float32)))


def similarities(queries: Tensor, points: Tensor) -> Iterator[Tensor]:
    """Scalar products of queries (n, d) with points (m, d): blocks (rows, m) that follow each other."""
    for block in torch.split(queries, max(1, CELLS // len(points))):
        yield block @ points.T


def squared_distances(first: Vectors, second: Vectors) -> Floats:
    """‖x − y‖² of each pair of normalised features, (n,)."""
    return torch.square(normalised(first).double() - normalised(second).double()).sum(1).numpy()
