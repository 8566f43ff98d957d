"""Processes that train one model together: who am I, and what the others hold.

Started by torchrun, every process takes its share of the records of each step; sums and gradients are added over
processes, so the number of processes changes nothing but rounding. Alone, all of this is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Processes:
    """The group of processes of one training; implements the collectives that a score may use."""

    def __init__(self) -> None:
        self.active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.active else 0
        self.size = dist.get_world_size() if self.active else 1

    @classmethod
    def alone(cls) -> Processes:
        """This process by itself, for work that the others do not share."""
        alone = cls()
        alone.active, alone.rank, alone.size = False, 0, 1
        return alone

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> Tensor:
        return _Gather.apply(tensor) if self.active else tensor  # type: ignore[no-untyped-call]

    def sum(self, tensor: Tensor) -> Tensor:
        if not self.active:
            return tensor.detach()
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in one message per type."""
        if not self.active:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:  # a process whose records did not touch a parameter still takes part
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for dtype in dict.fromkeys(parameter.dtype for parameter in trained):  # in one order everywhere
            gradients = [p.grad for p in trained if p.dtype == dtype and p.grad is not None]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(
                gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))

    def share(self, value: Any) -> Any:
        """The leading process's value (JSON-like), on every process."""
        if not self.active:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """The value (JSON-like) of every process, in rank order, on every process."""
        if not self.active:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.active:
            dist.barrier()


class _Gather(torch.autograd.Function):
    """All-gather whose backward adds up what every process's score says about my part."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(tensor)]))
        counts = [int(size) for size in sizes]
        context.counts = counts
        longest = max(counts)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # others may hold the same tensor
        dist.all_reduce(total)
        return torch.split(total, context.counts)[dist.get_rank()]


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, and leave them at the end."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()
