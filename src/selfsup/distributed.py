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
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from selfsup.accounting import COLLECTIVES
from selfsup.errors import Elsewhere, Interrupted, OfOneProcess, UserError
from selfsup.stopping import let_be_ended

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

POLL = 0.05  # seconds
SKEW = 10.0  # seconds, within which all processes that wait for one lose their patience
LAUNCHED = "selfsup-"  # how the name of a group of processes begins that this program has started
LEADS_BY = 0.5  # seconds, within which the leading process has met with the same as another one
_groups = itertools.count()  # a store outlives a group, so each counts under a name of its own


class Lost(Exception):
    """A collective failed, since another process has gone, or has not come for very long (`late`)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.late = "timed out" in message.lower() or "timeout" in message.lower()


@contextmanager
def together() -> Iterator[None]:
    """A collective runs in the block; raises Lost where it fails."""
    try:
        with COLLECTIVES.running():
            yield
    except RuntimeError as error:
        raise Lost(str(error).partition("\n")[0]) from error


@contextmanager
def meeting() -> Iterator[None]:
    """What runs in the block meets with the other processes by itself, now and then; raises Lost where that fails."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            raise Lost(str(error).partition("\n")[0]) from error
        raise


def patience() -> float:
    """Seconds that a collective waits for a process; raises a UserError where the environment says none."""
    given = os.environ.get("SELFSUP_TIMEOUT", "600")
    if not re.fullmatch(r"\d+(\.\d+)?", given) or not float(given):
        raise UserError(f"SELFSUP_TIMEOUT is {given!r:.80}; give it in seconds.")
    return float(given)


def launched_here() -> bool:
    """Whether selfsup itself has started the processes, and sees how each of them ends."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(LAUNCHED)


def launch() -> str | None:
    """What a launcher's start is told from all others by, however often it starts its processes; None without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name != "none":  # torchrun's word where it is given no --rdzv-id
        return name
    parent = psutil.Process(os.getppid())
    return f"{platform.node()} {parent.pid} {parent.create_time():.0f}"


def restarts() -> bool:
    """Whether a launcher starts the processes again when one of them has ended."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether processes hold a tensor by rows: see `selfsup.sharding`. (Where nothing is sharded, the type of what
    would be is not imported: that takes a second.)"""
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


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
    def counts(self) -> bool:
        """Whether the processes also meet by counting, which those of a program's own group do not."""
        return self._store is not None

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
        """Add up the gradients of all processes, in one message per type; those of rows have been."""
        if not self.active:
            return
        trained = [p for p in parameters if p.requires_grad and not is_sharded(p)]
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
                self._meet(beat)

    def _meet(self, beat: Callable[[], None]) -> None:
        self._met += 1
        self.arrive(place := f"place {self._met}")
        self.await_all(place, beat)

    def arrive(self, place: str) -> None:
        """Count as one that has come to a place, which has a name of its own."""
        assert self._store is not None
        self._store.add(place, 1)

    def await_all(self, place: str, beat: Callable[[], None]) -> None:
        """As `wait`, of those who have come to a place; a thread may do so while the process trains."""
        assert self._store is not None
        while self._store.add(place, 0) < self.size:
            if self._store.add("failed", 0):
                raise Lost("it said so")
            beat()
            time.sleep(POLL)

    def explain(self, error: BaseException) -> BaseException:
        """What a process that failed raises: one of all says why, the leading one if it met with the same."""
        lost, late = isinstance(error, Lost), isinstance(error, Lost) and error.late
        if not isinstance(error, Interrupted | KeyboardInterrupt):
            let_be_ended()
        try:
            speaks = self._is_first_to_fail(lost)
            missing = self._missing(speaks) if late else []
        except RuntimeError:  # the store went with its process
            speaks, missing = False, []
        if isinstance(error, Interrupted | KeyboardInterrupt):  # which all of them are, together
            return error
        if not speaks or (lost and not late and launched_here()):  # where it is seen which one has ended, and how
            time.sleep(2 * LEADS_BY)  # the first one is to have spoken when torchrun ends all of them with it
            return Elsewhere("Another process of this training failed, and says why.")
        if missing:
            who, other = " and ".join(missing), "them" if len(missing) > 1 else "it"
            return OfOneProcess(
                f"{who} did not come to where the other processes waited for {other} for {patience():g} s: hung, or "
                "its machine is gone; go on with --resume RUN."
            )
        if lost:
            return OfOneProcess(
                f"{self.name} lost another process of this training, which ended without a word or hangs ({error}): "
                "the system may have killed it for its memory; go on with --resume RUN."
            )
        if isinstance(error, UserError) and not self.leads:
            return OfOneProcess(f"{self.name}: {error}")
        return error

    def _missing(self, speaks: bool) -> list[str]:
        """The names of those who have not lost their patience too when all who wait must have."""
        assert self._store is not None
        self._store.set(f"patience of {self.rank} lost", "")
        until, others = time.monotonic() + SKEW, set(range(self.size)) - {self.rank}
        while others and time.monotonic() < until:
            others = {rank for rank in others if not self._store.check([f"patience of {rank} lost"])}
            time.sleep(POLL)
        return [self._store.get(f"name of {rank}").decode() for rank in sorted(others)] if speaks else []

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
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # whose store may have been that of an earlier one
    store = PrefixStore(f"selfsup {start} {size} {next(_groups)}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    group = PrefixStore("group", store)
    dist.init_process_group(backend, timeout=timedelta(seconds=patience()), store=group, rank=rank, world_size=size)
    processes = Processes(store)
    store.set(f"name of {rank}", processes.name)
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
