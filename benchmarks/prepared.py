"""Preparing a corpus beside datasets.map, and reading a large prepared one. Arguments: parquet files of texts."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Figures, alternate, peer, ratios, selfsup, show, spread, write

RECORDS, WINDOW, BATCH = 10_000_000, 64, 64  # of the large one, whose tokens are drawn at random
PROCESSES = 2
SHARD = 1 << 24  # tokens


def mapped(files: list[str], tokenizer: str) -> Figures:
    """Seconds of the map of datasets, of the whole process."""
    start = time.perf_counter()
    told = peer("map_tokens", tokenizer, str(PROCESSES), *files)
    return told | {"map_seconds": told["seconds"], "seconds": time.perf_counter() - start}


def made(pattern: str, tokenizer: str) -> Figures:
    """Seconds of `selfsup prepare`, of the whole command."""
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        told = selfsup(
            *("prepare", "causal-lm", "--data", pattern, "--out", f"{place}/corpus", "--tokenizer", tokenizer),
            *("--workers", str(PROCESSES), "data.validation=0", "--json"),
        )
        seconds = time.perf_counter() - start
        manifest = json.loads(Path(place, "corpus", "selfsup-corpus.json").read_text(encoding="utf-8"))
        return {"seconds": seconds, "bytes": manifest["facts"]["bytes"], "shards": told["shards"]}


def large(template: Path, place: Path) -> None:
    """A corpus of so many records: random tokens under the manifest of a small one."""
    from selfsup.data.corpora import Manifest
    from selfsup.data.shards import checksums_of

    told = json.loads((template / "selfsup-corpus.json").read_text(encoding="utf-8"))
    (place / "train").mkdir(parents=True)
    (place / "tokenizer").symlink_to(template / "tokenizer")
    shards, left, draws = [], RECORDS * WINDOW + 1, np.random.default_rng(0)
    while left:
        count = min(SHARD, left)
        path = place / f"train/{len(shards):05}.bin"
        path.write_bytes(draws.integers(0, told["facts"]["vocabulary"], count).astype("<u2").tobytes())
        shards.append({"name": f"train/{path.name}", "tokens": count, "checksums": checksums_of(path)})
        left -= count
    told |= {"train": shards, "validation": []}
    told["facts"] |= {"training_tokens": RECORDS * WINDOW + 1, "validation_tokens": 0}
    manifest = Manifest.model_validate(told).model_dump_json()
    (place / "selfsup-corpus.json").write_text(manifest, encoding="utf-8")


def reading(place: Path) -> Figures:
    """Opening it, and reading an epoch, with the resident memory on the way."""
    import psutil

    from selfsup.data.corpora import open_prepared
    from selfsup.data.loader import Loader
    from selfsup.data.text import Windows

    start = time.perf_counter()
    corpus = open_prepared(place).corpus
    windows = Windows(corpus.train, WINDOW, corpus.tokenizer.end)
    seconds = time.perf_counter() - start
    loader, own = Loader(windows, 0, BATCH, BATCH, 0), psutil.Process()
    memory, reads, steps = [], [], len(windows) // BATCH
    for step, _ in zip(range(steps), loader.steps(0), strict=False):
        if step % (steps // 20) == steps // 40:
            memory.append(own.memory_info().rss / 2**20)
    start = time.perf_counter()
    for _, _ in zip(range(2000), loader.steps(steps // 2), strict=False):
        reads.append((time.perf_counter() - start) * 1e3)
        start = time.perf_counter()
    return {"records": len(windows), "seconds_to_open": seconds, "memory": memory, "ms_to_read": spread(reads)}


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print("prepared is left out: give it a pattern of parquet files and a tokenizer's directory")
        return
    pattern, tokenizer = arguments[:2]
    files = sorted(map(str, Path(pattern).parent.glob(Path(pattern).name)))
    rounds = alternate(
        int(arguments[2]) if len(arguments) > 2 else 3,
        datasets=lambda: mapped(files, tokenizer),
        selfsup=lambda: made(pattern, tokenizer),
    )
    for one in rounds:
        for side in ("datasets", "selfsup"):
            one[side]["rate"] = one[side]["bytes"] / one[side]["seconds"] / 1e6
    with tempfile.TemporaryDirectory() as place:
        small, big = Path(place, "small"), Path(place, "big")
        selfsup("prepare", "causal-lm", "--data", "sample:shakespeare", "--out", str(small), "--json")
        large(small, big)
        found = reading(big)
    rates = {side: spread([one[side]["rate"] for one in rounds]) for side in ("datasets", "selfsup")}
    share = ratios(rounds, "selfsup", "datasets", "rate")
    drift = max(found["memory"]) / min(found["memory"]) - 1
    write(
        "prepared",
        f"Preparing {rounds[0]['selfsup']['bytes']:,} bytes of text in {PROCESSES} processes with a given tokenizer, "
        "whole commands; that of selfsup also finds out what is held out and what occurs twice. Reading all of a "
        f"corpus of {RECORDS:,} records of {WINDOW} random tokens, in batches of {BATCH}.",
        {"rounds": rounds, "rates": rates, "share": share, "reading": found},
        [
            ("datasets.map: MB/s", show(rates["datasets"])),
            ("selfsup prepare: MB/s", show(rates["selfsup"])),
            ("selfsup / datasets", show(share)),
            ("seconds to open the large one", f"{found['seconds_to_open']:.2f}"),
            ("milliseconds to read a batch", show(found["ms_to_read"], 3)),
            ("resident memory over the epoch, largest over smallest", f"+{drift:.1%}"),
        ],
    )
