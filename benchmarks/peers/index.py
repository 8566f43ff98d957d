"""The side of selfsup: `index` of the books of a table in passages, passages/s, and where the time goes.

Arguments: a model directory, a parquet file of books, a library to make.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from selfsup.launch import ENVIRONMENT


def main() -> None:
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
    import selfsup
    from selfsup.data.cutting import Cutter
    from selfsup.inference.encoder import EncoderModel
    from selfsup.inference.library import Library

    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, what: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*arguments, **options)
            finally:
                spent[what] = spent.get(what, 0.0) + time.perf_counter() - start

        setattr(owner, name, call)

    timed(Cutter, "__call__", "cutting")
    timed(EncoderModel, "embed", "embedding")
    timed(Library, "put", "writing")
    timed(Library, "settle", "indices")
    directory, data, out = sys.argv[1:]
    start = time.perf_counter()
    made = selfsup.index(directory, data, out)
    seconds = time.perf_counter() - start
    figures = {"passages": made.records, "seconds": seconds, "passages_per_second": made.records / seconds}
    print(json.dumps({**figures, **spent, "index": made.index}))


main()
