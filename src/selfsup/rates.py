"""What this machine reaches: matrix products, memory, exchange between processes, a disk; and the rate that is kept."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from selfsup.arguments import PRECISIONS, checked
from selfsup.data.cache import forget, kept_file
from selfsup.distributed import Processes, process_group, together
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.machine import find_device, find_precision, free_memory, matrix_rate, processor, shortest, synchronise
from selfsup.report import amount

SECONDS = 0.5  # for each figure
COPIED = 1 << 28  # bytes, more than caches hold
EXCHANGED = 1 << 26  # bytes
WRITTEN = 1 << 28  # bytes
BLOCK = 1 << 24  # bytes, of one call

_log = logging.getLogger(__name__)


# -- the rate that is kept ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptRate:
    """The rate of matrix products, FLOP/s, that plans choose sizes by, and when it was measured."""

    flops: float
    measured: str


def kept_rate(device: torch.device, precision: str) -> KeptRate:
    """Measured once for a processor, its number of threads, a precision and a version of torch, and kept in the cache,
    so that the same command makes the same plan whatever else the machine does."""
    try:
        return KeptRate(**json.loads(_rate_file(device, precision).read_text(encoding="utf-8")))
    except UserError as error:
        _log.warning("The rate of this machine is measured each time, since it cannot be kept: %s", error)
        return _measured(device, precision)


def _rate_file(device: torch.device, precision: str) -> Path:
    threads = torch.get_num_threads() if device.type == "cpu" else None
    key = (device.type, device_name(device), threads, precision, torch.__version__)
    return kept_file("machine", "rate.json", key, lambda path: _write(path, _measured(device, precision)))


def _write(path: Path, rate: KeptRate) -> None:
    path.write_text(json.dumps(asdict(rate)), encoding="utf-8")


def _measured(device: torch.device, precision: str) -> KeptRate:
    return KeptRate(matrix_rate(device, precision), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))


def device_name(device: torch.device) -> str:
    """The name of the processor or accelerator behind a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


# -- what is reached now -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What was measured, per second.

    Attributes:
        planned: the precision that `auto` stands for here.
        kept: the rate of matrix products in that precision, which plans and metrics use.
        matrix_flops: of matrix products, by precision, FLOP/s.
        memory: bytes read and written by a copy.
        processes: that were started together.
        exchange: bytes that each process sends and receives while all add up a tensor; None where there is one.
        disk_write, disk_read: bytes; None where no directory was named.
    """

    device: str
    name: str
    threads: int
    planned: str
    kept: KeptRate
    matrix_flops: dict[str, float]
    memory: float
    free_memory: int
    processes: int
    exchange: float | None
    disk_write: float | None
    disk_read: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self) -> dict[str, str]:
        """What was measured, in words."""
        matrix = {f"matrix, {name}": amount(rate, "FLOP/s") for name, rate in self.matrix_flops.items()}
        alone = "one process: start several by torchrun to measure it"
        shared = f"{amount(self.exchange, 'B/s')} each way, {self.processes} processes" if self.exchange else alone
        disk = {"written": self.disk_write, "read": self.disk_read}
        return {
            "device": f"{self.device}, {self.name}" + (f", {self.threads} threads" if self.device == "cpu" else ""),
            **matrix,
            "plans use": f"{amount(self.kept.flops, 'FLOP/s')} in {self.planned}, measured {self.kept.measured}",
            "memory": f"{amount(self.memory, 'B/s')}, {amount(self.free_memory, 'B')} free",
            "exchange": shared,
            **{f"disk, {what}": amount(rate, "B/s") for what, rate in disk.items() if rate is not None},
        }


@checked
def measure_machine(directory: str | Path | None = None, *, device: str = "auto", keep: bool = False) -> Rates:
    """Measure what a training rests on: matrix products in each precision, a copy in memory, the exchange between
    processes (of those that torchrun started), and a disk.

    Args:
        directory: where a file of 256 MiB is written and read, and removed again.
        device: auto, cpu, cuda, cuda:1, mps.
        keep: measure the rate that plans use anew, and keep that from now on.

    Raises:
        UserError: there is no such device; the directory is none, or takes no file; nothing can be kept.
    """
    place = None if directory is None else expanded(directory)
    if place is not None and not os.path.isdir(place):
        raise UserError(f"{place} is no directory; name one whose disk is to be measured.")
    with process_group() as processes:
        found = find_device(device)
        planned = find_precision("auto", found)
        if keep and processes.leads:
            forget(_rate_file(found, planned).parent)
        kept = processes.share(kept_rate(found, planned) if processes.leads else None)
        matrix = {precision: matrix_rate(found, precision, SECONDS) for precision in PRECISIONS[1:]}
        written, read = (None, None) if place is None or not processes.leads else _disk(place)
        return Rates(
            device=str(found),
            name=device_name(found),
            threads=torch.get_num_threads(),
            planned=planned,
            kept=kept,
            matrix_flops=matrix,
            memory=_memory(found),
            free_memory=free_memory(found),
            processes=processes.size,
            exchange=_exchange(processes, found),
            disk_write=written,
            disk_read=read,
        )


def _memory(device: torch.device) -> float:
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / shortest(lambda: target.copy_(source), device, SECONDS)


def _exchange(processes: Processes, device: torch.device) -> float | None:
    """Of n processes each sends and receives 2 (n − 1) / n of a tensor that is added up in a ring. All make as many
    rounds as the first one finds time for."""
    if processes.size == 1:
        return None
    tensor = torch.zeros(EXCHANGED // 4, device=device)

    def seconds() -> float:
        synchronise(device)
        start = time.perf_counter()
        with together():
            dist.all_reduce(tensor)
        synchronise(device)
        return time.perf_counter() - start

    rounds = processes.share(max(1, int(SECONDS / seconds())))
    best, others = min(seconds() for _ in range(rounds)), (processes.size - 1) / processes.size
    return float(processes.share(2 * others * EXCHANGED / best))


def _disk(directory: Path) -> tuple[float, float]:
    """Bytes written, until the disk says that it has them, and read, which the system is asked to forget before."""
    block = os.urandom(BLOCK)  # zeros might be left out
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            start = time.perf_counter()
            for _ in range(WRITTEN // BLOCK):
                file.write(block)
            os.fsync(file.fileno())
            written = time.perf_counter() - start
            with suppress(AttributeError):  # where a system has no such call, what is read may come from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            start = time.perf_counter()
            while file.read(BLOCK):
                pass
            read = time.perf_counter() - start
    except OSError as error:
        raise UserError(
            f"{directory} takes no file of {amount(WRITTEN, 'B')} ({error.strerror or error}); name another one."
        ) from error
    return WRITTEN / written, WRITTEN / read
