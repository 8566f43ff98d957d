"""Processes that train one model together: who am I, and what the others hold.

Started by torchrun, every process takes its share of the records of each step; sums and gradients are added over
processes, so the number of processes changes nothing but rounding. Alone, all of this is the identity.

Processes meet in two ways: in collectives, which fail when one takes very long, and by counting in the store that
torchrun keeps, which waits for as long as it takes. A process that fails says so there, so that one sentence is
written and the others end without one.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from selfsup.errors import Elsewhere, Interrupted, OfOneProcess, UserError

POLL = 0.05  # seconds
LEADS_BY = 0.5  # seconds, within which the leading process has met with the same as another one
_groups = itertools.count()  # a store outlives a group, so each counts under a name of its own


class Lost(Exception):
    """A collective failed, since another process has gone."""


@contextmanager
def together() -> Iterator[None]:
    """A collective runs in the block; raises Lost where it fails."""
    try:
        yield
    except RuntimeError as error:
        raise Lost(str(error).partition("\n")[0]) from error


def _add_up(tensor: Tensor) -> Tensor:
    """The tensor, which now holds the sum over all processes."""
    with together():
        dist.all_reduce(tensor)
    return tensor


class Processes:
    """The group of processes of one training; implements the collectives that a score may use."""

    def __init__(self, store: Store | None = None) -> None:
        self.active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.active else 0
        self.size = dist.get_world_size() if self.active else 1
        self._store, self._met = store, 0

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

    @property
    def prepares(self) -> bool:
        """Whether this process prepares what the others of its machine then find: the first one there."""
        return not self.active or int(os.environ.get("LOCAL_RANK", self.rank)) == 0

    @property
    def name(self) -> str:
        return f"Process {self.rank} of {self.size} ({platform.node()})"

    def gather(self, tensor: Tensor) -> Tensor:
        return _Gather.apply(tensor) if self.active else tensor  # type: ignore[no-untyped-call]

    def sum(self, tensor: Tensor) -> Tensor:
        return _add_up(tensor.detach().clone()) if self.active else tensor.detach()

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
            flat = _add_up(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def share(self, value: Any) -> Any:
        """The leading process's value (JSON-like), on every process."""
        if not self.active:
            return value
        box = [value]
        with together():
            dist.broadcast_object_list(box)
        return box[0]

    def share_tensors(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """The leading process's tensors by name, on every process; the others give None."""
        shapes = self.share({name: (t.shape, t.dtype) for name, t in tensors.items()} if tensors else None)
        shared = {
            name: torch.empty(shape, dtype=dtype) if tensors is None else tensors[name]
            for name, (shape, dtype) in (shapes or {}).items()
        }
        for tensor in shared.values() if self.active else ():
            with together():
                dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0)
        return shared

    def collect(self, value: Any) -> list[Any]:
        """The value (JSON-like) of every process, in rank order, on every process."""
        if not self.active:
            return [value]
        values: list[Any] = [None] * self.size
        with together():
            dist.all_gather_object(values, value)
        return values

    def wait(self, beat: Callable[[], None] = lambda: None) -> None:
        """Go on when all processes have come here, however long that takes; `beat` is called now and then meanwhile.

        Raises `Lost` where one of them has failed.
        """
        if not self.active:
            return
        with together():
            if self._store is None:  # a group of the caller's own
                dist.barrier()
            else:
                self._meet(self._store, beat)

    def _meet(self, store: Store, beat: Callable[[], None]) -> None:
        self._met += 1
        place = f"place {self._met}"
        store.add(place, 1)
        while store.add(place, 0) < self.size:
            if store.add("failed", 0):
                raise Lost("it said so")
            beat()
            time.sleep(POLL)

    def explain(self, error: BaseException) -> BaseException:
        """What a process that failed raises: one of all says why, the leading one if it met with the same."""
        lost = isinstance(error, Lost)
        try:
            speaks = self._is_first_to_fail(lost)
        except RuntimeError:  # the store went with its process
            speaks = False
        if isinstance(error, Interrupted | KeyboardInterrupt):  # which all of them are, together
            return error
        if not speaks:
            time.sleep(2 * LEADS_BY)  # the first one is to have spoken when torchrun ends all of them with it
            return Elsewhere("Another process of this training failed, and says why.")
        if lost:
            return OfOneProcess(
                f"{self.name} lost another process of this training, which ended without a word or hangs ({error}): "
                "the system may have killed it for its memory; go on with --resume RUN."
            )
        if isinstance(error, UserError) and not self.leads:
            return OfOneProcess(f"{self.name}: {error}")
        return error

    def _is_first_to_fail(self, lost: bool) -> bool:
        assert self._store is not None
        if self.leads and not lost:
            self._store.set("leader failed", "")
            self._store.add("failed", 1)
            return True
        first = self._store.add("failed", 1) == 1
        until = time.monotonic() + LEADS_BY
        while first and not lost and time.monotonic() < until:
            if self._store.check(["leader failed"]):
                return False
            time.sleep(POLL)
        return bool(first)


class _Gather(torch.autograd.Function):
    """All-gather whose backward adds up what every process's score says about my part."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
        with together():
            dist.all_gather(sizes, torch.tensor([len(tensor)]))
        context.counts = counts = [int(size) for size in sizes]
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        with together():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = _add_up(gradients[0].clone(memory_format=torch.contiguous_format))  # others may hold the same one
        return torch.split(total, context.counts)[dist.get_rank()]


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, and leave them at the end."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    store, rank, size = next(iter(rendezvous("env://")))
    store = PrefixStore(f"selfsup {next(_groups)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank, world_size=size)
    processes = Processes(store)
    try:
        yield processes
        with together():  # the store may go with the process that leaves first
            dist.barrier()
    except BaseException as error:
        explained = processes.explain(error)
        if explained is error:
            raise
        raise explained from error
    finally:
        dist.destroy_process_group()
