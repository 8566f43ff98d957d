"""The command's entry: what OpenMP and the C library read once, when a process starts, is set before they do."""

from __future__ import annotations

import os
import signal
import sys

ENVIRONMENT = {
    # Threads that fall asleep soon: on a machine that others use too, spinning ones make a step many times longer.
    "GOMP_SPINCOUNT": "10000",
    # The memory of one step's activations is kept for the next one, in pages of 2 MB: given back to the system and
    # taken anew, as is usual for large tensors, it costs a step on CPU 10-15 % (docs/LOG.md).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"
    ":glibc.malloc.mmap_threshold=1099511627776"
    ":glibc.malloc.trim_threshold=1099511627776"
    ":glibc.malloc.top_pad=67108864",
}


def main() -> None:
    """Start anew with the settings that are missing, where the system knows them; then run the command.

    Whatever a request to stop comes to interrupt, be it an import, ends in one line and exit code 130.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: _leave("selfsup: Stopped.\n"))  # nothing has begun
    from selfsup.stopping import STOPPED, signals, stop_by_signals, stopped

    _start_anew(signals())
    try:
        stop_by_signals()
        from selfsup.cli import main as run

        run()
    except SystemExit as end:
        if end.code != STOPPED:
            raise
        _leave()
    except BaseException:
        if not stopped:
            raise
        _leave("selfsup: Stopped.\n")


def _start_anew(signals: list[int]) -> None:
    """Replace this process by one that has what is missing; signals wait until it is ready for them."""
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if sys.platform != "linux":
        return
    if missing:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _leave(line: str = "") -> None:
    """End at once, with exit code 130: threads that still read or compute are not waited for. Of several processes that
    one launcher started the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(line)
        sys.stderr.flush()
    os._exit(130)
