"""What the data layer hands to the spine: records, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


class Records(Protocol):
    """A map-style collection of training records."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The records at `indices` (n,) as tensors whose first dimension is n."""
        ...


@runtime_checkable
class InBlocks(Protocol):
    """Records that lie in blocks, of which whole ones are best read one behind the other."""

    @property
    def block(self) -> int:
        """Records in a block; the last one may have fewer."""
        ...


@runtime_checkable
class CutAnew(Protocol):
    """Records that are others in each pass over them."""

    def read_in(self, epochs: np.ndarray, indices: np.ndarray) -> dict[str, Tensor]:
        """The records at `indices` (n,) as they are in the passes `epochs` (n,)."""
        ...


class Subset:
    """Some of another collection's records."""

    def __init__(self, records: Records, indices: np.ndarray) -> None:
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        return self.records.read(self.indices[indices])


def read_in(records: Records, epochs: np.ndarray, indices: np.ndarray) -> dict[str, Tensor]:
    """Records as they are in the passes that they are read in; most are the same in all."""
    return records.read_in(epochs, indices) if isinstance(records, CutAnew) else records.read(indices)


@dataclass(frozen=True)
class Batch:
    """Records, and the place that every random draw about them is seeded from."""

    data: dict[str, Tensor]  # whose first dimension is the record
    seed: int  # the run's; another one while evaluating, so that evaluation has one fixed task
    epochs: np.ndarray  # (records,) the pass over the data that each record is read in
    records: np.ndarray  # (records,) the index of each record in its source
    before: dict[str, Tensor] | None = None  # `data` as it was read, where that has gone to a device

    @property
    def host(self) -> dict[str, Tensor]:
        """The data where the host looks at it without waiting for a device."""
        return self.data if self.before is None else self.before

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device."""
        data = {name: tensor.to(device, non_blocking=True) for name, tensor in self.data.items()}
        return replace(self, data=data, before=self.host)
