"""Feeds one damaged input after the other to the program.

`python worker.py` reads lines `SURFACE SEED` and answers each with a line of JSON. An input is a function of its
surface and seed, so a finding is seen again by giving its line again.

Outcomes: `read` (the program could use the input), `refused` (one sentence), `finding` (anything else).
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "fuzz"), str(TESTS), str(TESTS / "inference")]

MOST_SECONDS = 10.0  # of an input
MOST_MEMORY = 1 << 30  # bytes that an input may take
DATA_LIMIT = 8 << 30  # bytes that end in a MemoryError, so that a bomb spares the machine


def peak(reset: bool = False) -> int:
    """The largest resident memory, in bytes, since it was reset; 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def answer(surface: str, seed: int, place: Path) -> dict[str, object]:
    """What becomes of one input."""
    from surfaces import SURFACES

    from selfsup.errors import UserError

    before, start = peak(reset=True), time.monotonic()
    outcome, detail = "read", ""
    try:
        SURFACES[surface](Random(f"{surface} {seed}"), place)
    except UserError as error:
        outcome, detail = "refused", str(error)
    except (Exception, SystemExit):
        outcome, detail = "finding", traceback.format_exc()
    seconds, memory = time.monotonic() - start, peak() - before
    if outcome == "refused" and ("\n" in detail or not 10 < len(detail) < 4000):
        outcome, detail = "finding", f"no sentence: {detail}"
    if memory > MOST_MEMORY:
        outcome, detail = "finding", f"{memory:,} bytes of memory; {detail}"
    return {"outcome": outcome, "detail": detail, "seconds": round(seconds, 3), "memory": memory}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))
    answers, sys.stdout = sys.stdout, sys.stderr  # what the program prints is no answer
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ["SELFSUP_CACHE"] = str(root / "cache")
    os.environ["FUZZ_SEEDS"] = str(root / "good")
    print("ready", file=answers, flush=True)
    try:
        for line in sys.stdin:
            surface, seed = line.split()
            place = root / "input"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            faulthandler.dump_traceback_later(MOST_SECONDS)
            found = answer(surface, int(seed), place)
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(found), file=answers, flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
