"""Peak memory of CLIP's training at an effective batch of 4,096, 128 pairs at once, beside a batch of 128.

Arguments: a parquet file of images with captions, such as emoji.parquet; rounds (1).
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from benchmarks.clip_steps import TOWERS
from benchmarks.common import Figures, alternate, ratios, selfsup, show, spread, write

SMALL, LARGE = 128, 4096
SEEN = LARGE  # pairs of a run, whatever its batch: the heap grows a little with each micro-batch
RECORDS = LARGE + LARGE // 4  # with what a run holds out


def repeated(source: Path, place: Path) -> Path:
    """A parquet file of the pairs of another, over and over, until they are enough for a large batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    file = place / f"{source.stem}-repeated.parquet"
    pq.write_table(pa.concat_tables([table] * -(-RECORDS // len(table))), file)
    return file


def train(pairs: Path, precision: str, batch: int) -> Figures:
    given = {
        **TOWERS, "precision": precision, "batch": batch, "train.micro_batch": SMALL, "steps": SEEN // batch,
        "evaluate.every": 1000, "evaluate.final_records": SMALL, "evaluate.batch": SMALL,
    }  # fmt: skip
    words = [f"{name}={value}" for name, value in given.items()]
    with tempfile.TemporaryDirectory() as directory:
        return selfsup("train", "clip", "--data", str(pairs), "--out", f"{directory}/run", "--json", *words)


def main(arguments: list[str]) -> None:
    if not arguments:
        print("clip_memory is left out: give it pairs: python -m benchmarks clip_memory FILE.parquet")
        return
    rounds = int(arguments[1]) if len(arguments) > 1 else 1
    with tempfile.TemporaryDirectory() as name:
        pairs = repeated(Path(arguments[0]), Path(name))
        sides = {
            f"{precision}_{batch}": partial(train, pairs, precision, batch)
            for precision in ("fp32", "bf16")
            for batch in (SMALL, LARGE)
        }
        measured = alternate(rounds, **sides)
    peaks = {side: spread([one[side]["peak_memory"] / 2**30 for one in measured]) for side in sides}
    shares = {
        precision: ratios(measured, f"{precision}_{LARGE}", f"{precision}_{SMALL}", "peak_memory")
        for precision in ("fp32", "bf16")
    }
    write(
        "clip_memory",
        f"Largest resident size in GiB of CLIP's training, {SMALL} pairs at once, in batches of {SMALL} and, with "
        f"gradient caching, of {LARGE:,}, on the towers of clip_steps; the pairs of the file are repeated until they "
        f"are {RECORDS:,} or more, and both runs see {SEEN:,}, beside the few steps that planning tries.",
        {"rounds": measured, "peaks": peaks, "shares": shares},
        [(f"{side.split('_')[0]}, batch {int(side.split('_')[1]):,}: GiB", show(peak)) for side, peak in peaks.items()]
        + [(f"{precision}: {LARGE:,} / {SMALL}", show(share)) for precision, share in shares.items()],
    )
