"""One short round of each comparison of speed or memory, beside what was measured last: `quick [DIRECTORY]`.

A benchmark says in its `QUICK` what that round is. It is left out where the other side is not installed, or where the
directory lacks what it needs of data. Nothing is written; what moved by more than the spread that was seen is marked.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from benchmarks import common
from benchmarks.common import Figures, Quick

SPREAD = re.compile(r"(-?[\d.,]+) \((-?[\d.,]+) to (-?[\d.,]+), \d+ runs\)")  # as `common.show` makes it


class Ratio(NamedTuple):
    """Of one side and the other: the median of some rounds, the smallest and the largest."""

    median: float
    smallest: float
    largest: float

    def moved(self, now: float) -> bool:
        """Whether another measurement is further from the median than these are from each other."""
        return abs(now - self.median) > self.largest - self.smallest


def ratios_of(result: Figures) -> dict[str, Ratio]:
    """Those in the table of a result; rates say more of the machine than of what runs on it."""
    compared = {measure: value for measure, value in result["table"] if " / " in measure or ", times " in measure}
    found = {measure: SPREAD.fullmatch(value) for measure, value in compared.items()}
    return {m: Ratio(*(float(n.replace(",", "")) for n in spread.groups())) for m, spread in found.items() if spread}


def table(now: Figures, before: Figures | None) -> list[str]:
    """The ratios of a result beside those of an earlier one."""
    known = {} if before is None else ratios_of(before)
    lines = []
    if before is not None:
        lines.append(f"{'':>8}  measured {before['date']} on {before['machine']['processor']}")
    for measure, ratio in ratios_of(now).items():
        told, mark = "nothing to compare with", ""
        if measure in known:
            was = known[measure]
            told = f"{was.median:.2f} ({was.smallest:.2f} to {was.largest:.2f})"
            mark = f"  moved {ratio.median / was.median - 1:+.0%}" if was.moved(ratio.median) else ""
        lines.append(f"{ratio.median:8.2f}  {told:24}  {measure}{mark}")
    return lines


def missing(quick: Quick, arguments: Sequence[str]) -> str | None:
    """Why a benchmark is left out; None where it is not."""
    if not quick.installed:
        return f"{' or '.join(quick.needs)} is not installed"
    places = [Path(a) for a, pattern in zip(arguments, quick.arguments, strict=True) if "{data}" in pattern]
    absent = next((place for place in places if not place.exists()), None)
    return None if absent is None else f"there is no {absent}"


def main(names: Sequence[str], arguments: Sequence[str]) -> None:
    data, committed, begun = (arguments or ["."])[0], common.RESULTS, time.perf_counter()
    print(f"On {common.machine()['processor']}: now, then the median and spread of what was measured last.")
    failed = []
    for name in names:
        module = import_module(f"benchmarks.{name}")
        quick: Quick | None = getattr(module, "QUICK", None)
        if quick is None:
            continue
        given = [argument.format(data=data) for argument in quick.arguments]
        if (reason := missing(quick, given)) is not None:
            print(f"{name} is left out: {reason}")
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as place, redirect_stdout(StringIO()):
            common.RESULTS = Path(place)  # where results are written, and go with it
            try:
                module.main(given)
            except Exception:
                traceback.print_exc()
                failed.append(name)
            made = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in Path(place).glob("*.json")}
        print(f"{name}, {time.perf_counter() - start:.0f} s{', which failed' if name in failed else ''}")
        for file, now in sorted(made.items()):
            earlier = committed / file
            before = json.loads(earlier.read_text(encoding="utf-8")) if earlier.exists() else None
            print("\n".join(table(now, before)))
    print(f"{time.perf_counter() - begun:.0f} seconds in all")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
