"""The command's entry: what OpenMP and the C library read once, when a process starts, is set before they do."""

from __future__ import annotations

import os
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
    """Start anew with the settings that are missing, where the system knows them; then run the command."""
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    from selfsup.cli import main as run

    run()
