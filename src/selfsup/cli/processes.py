"""One command in several processes of this machine, which start, speak, stop and fail as one."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import psutil

from selfsup.errors import UserError
from selfsup.stopping import STOPPED

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

OPTION = "--processes"
GRACE = 60  # seconds that processes have to save and stop


def run_in_processes(number: int, words: Sequence[str]) -> None:
    """Run a command, which `words` give, in so many processes, by torch's own launcher, and end as they do.

    Raises:
        UserError: another launcher has started this process, or the system has killed one of those started here.
        SystemExit: one of them failed or was asked to stop, and has said so; with its exit code.
    """
    if "RANK" in os.environ:
        raise UserError(f"{OPTION} starts processes, and a launcher has started this one already; leave {OPTION} out.")
    from torch import get_num_threads
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from selfsup.distributed import LAUNCHED

    logging.disable()  # what the launcher logs of its processes' ends is said by these, or here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, get_num_threads() // number)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=f"{LAUNCHED}{uuid.uuid4()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "selfsup", *without(OPTION, words))
        except ChildFailedError as error:
            raise _told(error.failures, number) from None
        except SignalException as stop:
            _pass_on(signal.Signals(stop.sigval))
            raise SystemExit(STOPPED) from None


def without(option: str, words: Sequence[str]) -> list[str]:
    """The words of a command but an option and its value."""
    kept = [word for word in words if not word.startswith(f"{option}=")]
    while option in kept:
        place = kept.index(option)
        del kept[place : place + 2]
    return kept


def _told(failures: Mapping[int, ProcessFailure], number: int) -> UserError | SystemExit:
    """What so many processes end with: the exit code of the first one that failed, or what the system did to it. (Those
    behind it were ended for it.)"""
    rank, first = next(iter(failures.items()))
    if first.exitcode > 0:
        return SystemExit(first.exitcode)
    return UserError(
        f"Process {rank} of {number} was ended by {signal.Signals(-first.exitcode).name}, as the system does when "
        "memory runs out; what was saved is whole, go on with --resume RUN."
    )


def _pass_on(number: signal.Signals) -> None:
    """Let processes that are still there stop at once: they have been asked before."""
    left = psutil.Process().children()
    for process in left:
        process.send_signal(number)
    psutil.wait_procs(left, GRACE)
