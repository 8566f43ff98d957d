"""Training on pairs beside sentence-transformers: an encoder of others, both directions, batch 64, STS-B's sentences.

Arguments: the directory of stsb-en-train.parquet, the directory of an encoder, and the number of rounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Figures, Quick, alternate, peer, ratios, selfsup, show, spread, step_seconds, write

STEPS, BATCH = 24, 64
QUICK = Quick(("{data}/sentences", "{data}/minilm", "1"), ("sentence_transformers",))


def write_pairs(directory: Path, file: Path) -> None:
    """Both sentences of each row of STS-B, each row once."""
    rows = pq.read_table(directory / "stsb-en-train.parquet").to_pylist()
    pairs = dict.fromkeys((row["sentence1"].strip(), row["sentence2"].strip()) for row in rows)
    queries, passages = zip(*pairs, strict=True)
    pq.write_table(pa.table({"query": queries, "passage": passages}), file)


def train(precision: str, encoder: str, pairs: Path, out: Path) -> Figures:
    """Steps of a run as a user starts it; the last ones' median."""
    summary = selfsup(
        "train", "pairs", "--data", str(pairs), "--init", encoder, "--steps", str(STEPS), "--precision", precision,
        "--out", str(out), "--json", f"train.batch={BATCH}", "data.window=32", "evaluate.every=1000",
        "train.log_every=1", "evaluate.final_records=64",
    )  # fmt: skip
    step = step_seconds(out)
    return {"sentences_per_second": 2 * BATCH / step, "seconds": step, "peak_memory": summary["peak_memory"]}


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print(
            "pairs_steps is left out: give it STS-B and an encoder: python -m benchmarks pairs_steps sentences/ bert/"
        )
        return
    sentences, encoder, *more = arguments
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pairs = place / "pairs.parquet"
        write_pairs(Path(sentences), pairs)
        numbers = iter(range(1000))

        def ours(precision: str) -> Figures:
            return train(precision, encoder, pairs, place / f"run-{next(numbers)}")

        rounds = alternate(
            int(more[0]) if more else 3,
            trainer_bf16=lambda: peer("pairs_step", "bf16", str(pairs), encoder),
            selfsup_bf16=lambda: ours("bf16"),
            trainer_fp32=lambda: peer("pairs_step", "fp32", str(pairs), encoder),
            selfsup_fp32=lambda: ours("fp32"),
        )
    sides = {
        "trainer_fp32": "sentence-transformers fp32 (its default): sentences/s",
        "trainer_bf16": "sentence-transformers bf16: sentences/s",
        "selfsup_fp32": "selfsup fp32: sentences/s",
        "selfsup_bf16": "selfsup bf16 (its default where it is native): sentences/s",
    }
    rates = {side: spread([one[side]["sentences_per_second"] for one in rounds]) for side in sides}
    compared = {
        f"selfsup {precision} / sentence-transformers {precision}": ratios(
            rounds, f"selfsup_{precision}", f"trainer_{precision}", "sentences_per_second"
        )
        for precision in ("bf16", "fp32")
    }
    write(
        "pairs_steps",
        f"Training on pairs, sentence-transformers and selfsup: the same encoder ({Path(encoder).name}), the pairs of "
        "STS-B's training part, at most 32 tokens, 64 pairs a step, InfoNCE in both directions.",
        {"rounds": rounds, "rates": rates, "compared": compared},
        [(told, show(rates[side], 0)) for side, told in sides.items()]
        + [(what, show(ratio)) for what, ratio in compared.items()],
    )
