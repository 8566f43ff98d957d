"""The machine at hand: device, precision, memory, and the rate of its matrix products."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch

from selfsup.errors import UserError

# Rows and columns of the products whose rate is measured; seconds that one takes at most, and between two of them.
SIZES = {"cpu": (512, 1024, 2048), "accelerator": (8192,)}
LONGEST, PAUSE = 0.02, 0.01


@dataclass(frozen=True)
class Machine:
    """Where a run computes: the device, the precision (`bf16`: weights fp32, matrix products bf16; or `fp32`), and the
    rate of matrix products in that precision, FLOP/s."""

    device: torch.device
    precision: str
    flops: float

    @property
    def dtype(self) -> torch.dtype:
        """That of matrix products."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[object]]:
        if self.precision == "fp32":
            return nullcontext
        return lambda: torch.autocast(self.device.type, torch.bfloat16)


def find_device(name: str) -> torch.device:
    """The device of a name (`auto`: an accelerator where there is one); raises a UserError where there is none."""
    if name == "auto":
        if torch.cuda.is_available():
            return own_of(torch.device("cuda", 0))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, ImportError):
        raise UserError(
            f"There is no device '{name}' here; use auto, cpu, or an accelerator this torch sees."
        ) from None
    return own_of(device)


def own_of(device: torch.device) -> torch.device:
    """Of several processes on a machine each has an accelerator to itself, whichever the first one was given."""
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def find_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return "bf16" if native else "fp32"
    return "fp32"


def synchronise(device: torch.device) -> None:
    """Wait for an accelerator's queue, so that a clock reads what was done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, precision: str, seconds: float = 0.5) -> float:
    """The rate of square matrix products in FLOP/s: the best of those that fit in `seconds`.

    On a CPU they are short, with pauses between them: a process that comes back from a pause is given a core at once,
    and keeps it for some milliseconds, whoever else wants it. So load does not lower the best of them. Larger ones are
    tried while they stay short, since they reach more where cores are fast.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    sizes, best = SIZES["cpu" if device.type == "cpu" else "accelerator"], 0.0
    for size in sizes:
        a, b, product = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        taken = shortest(partial(torch.mm, a, b, out=product), device, seconds / len(sizes))
        best = max(best, 2 * size**3 / taken)
        if 8 * taken > LONGEST:
            break
    return best


def shortest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of some work, of as often as it fits in `seconds`; done once before."""
    work()
    best, stop = float("inf"), time.perf_counter() + seconds
    while True:
        time.sleep(PAUSE)
        for _ in range(2):  # a pause leaves the caches to others
            synchronise(device)
            start = time.perf_counter()
            work()
            synchronise(device)
            best = min(best, time.perf_counter() - start)
        if time.perf_counter() > stop:
            return best


def free_memory(device: torch.device) -> int:
    """Bytes that a run may still take on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def all_memory(device: torch.device) -> int:
    """Bytes that the device has, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: the resident size of this process, or what was allocated on an accelerator."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if (peak := getattr(psutil.Process().memory_info(), "peak_wset", None)) is not None:  # on Windows alone
        return int(peak)
    import resource  # there everywhere but on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe(machine: Machine) -> dict[str, Any]:
    """What a figure needs beside it: processor, memory, versions, command."""
    from selfsup import __version__

    return {
        "device": str(machine.device),
        "accelerator": torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else None,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "precision": machine.precision,
        "matrix_flops": round(machine.flops),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "selfsup": __version__,
        "command": sys.argv,
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
