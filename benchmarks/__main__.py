"""`python -m benchmarks` lists what can be measured, `python -m benchmarks NAME` measures it, `all` everything.

`python -m benchmarks quick` measures one short round of each comparison, and writes nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from benchmarks import quick
from benchmarks.common import write_page

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "__main__", "common", "networks", "quick")
)


def main() -> None:
    if len(sys.argv) < 2:
        for name in NAMES:
            print(f"{name:14}{(import_module(f'benchmarks.{name}').__doc__ or '').strip().splitlines()[0]}")
        return
    name, *arguments = sys.argv[1:]
    if name == "quick":
        quick.main(NAMES, arguments)
        return
    if name not in [*NAMES, "all"]:
        sys.exit(f"There is no benchmark '{name}'; there are {', '.join(NAMES)}, all, and quick.")
    for chosen in NAMES if name == "all" else [name]:
        sys.argv[1] = chosen  # as its result says
        import_module(f"benchmarks.{chosen}").main(arguments)
    write_page()


main()
