"""SimCSE and embedding beside sentence-transformers: 6 layers, 6 heads, width 384, batch 64, STS-B's sentences.

Arguments: the directory of stsb-en-{train,dev,test}.parquet, and the number of rounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.common import Figures, Quick, alternate, peer, ratios, selfsup, show, spread, step_seconds, write

STEPS = 24
QUICK = Quick(("{data}/sentences", "1"), ("sentence_transformers",))
ENCODED = 5000
SHAPE = ("model.layers=6", "model.width=384", "model.heads=6", "data.vocabulary=8192", "data.window=32")


def write_sentences(directory: Path, file: Path) -> None:
    """The distinct sentences of STS-B, one a line."""
    sentences: dict[str, None] = {}
    for part in ("train", "dev", "test"):
        for row in pq.read_table(directory / f"stsb-en-{part}.parquet").to_pylist():
            sentences |= dict.fromkeys((row["sentence1"].strip(), row["sentence2"].strip()))
    file.write_text("\n".join(sentences) + "\n", encoding="utf-8")


def train(precision: str, text: Path, out: Path) -> Figures:
    """Steps of a run as a user starts it; the last ones' median."""
    summary = selfsup(
        "train", "simcse", "--data", str(text), "--steps", str(STEPS), "--precision", precision, "--out", str(out),
        "--json", *SHAPE, "train.batch=64", "optim.matrices=adamw", "evaluate.every=1000", "train.log_every=1",
        "evaluate.final_records=64", "simcse.deletion=0",
    )  # fmt: skip
    step = step_seconds(out)
    return {"sentences_per_second": 64 / step, "seconds": step, "peak_memory": summary["peak_memory"]}


def main(arguments: list[str]) -> None:
    if not arguments:
        print("sentences is left out: give it STS-B: python -m benchmarks sentences sentences/")
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        text, some = place / "sentences.txt", place / "some.txt"
        write_sentences(Path(arguments[0]), text)
        some.write_text("\n".join(text.read_text(encoding="utf-8").splitlines()[:ENCODED]) + "\n")
        numbers = iter(range(1000))

        def ours(precision: str) -> Figures:
            return train(precision, text, place / f"run-{next(numbers)}")

        ours("bf16")
        model, exported = place / "run-0" / "model", place / "exported"
        selfsup("export", str(place / "run-0"), "--to", "sentence-transformers", "--out", str(exported), "--json")
        rounds = alternate(
            int(arguments[1]) if len(arguments) > 1 else 3,
            trainer_fp32=lambda: peer("sentences_step", "fp32", str(text)),
            selfsup_fp32=lambda: ours("fp32"),
            trainer_bf16=lambda: peer("sentences_step", "bf16", str(text)),
            selfsup_bf16=lambda: ours("bf16"),
            encode_fp32=lambda: peer("encode", str(exported), "fp32", str(some)),
            embed_fp32=lambda: peer("embed", str(model), "fp32", str(some)),
            encode_bf16=lambda: peer("encode", str(exported), "bf16", str(some)),
            embed_bf16=lambda: peer("embed", str(model), "bf16", str(some)),
        )
    sides = [side for side in rounds[0] if isinstance(rounds[0][side], dict)]
    rates = {side: spread([one[side]["sentences_per_second"] for one in rounds]) for side in sides}
    pairs = {
        "training: selfsup bf16 / sentence-transformers fp32": ("selfsup_bf16", "trainer_fp32"),
        "training: selfsup bf16 / sentence-transformers bf16": ("selfsup_bf16", "trainer_bf16"),
        "training: selfsup fp32 / sentence-transformers fp32": ("selfsup_fp32", "trainer_fp32"),
        "embedding: selfsup bf16 / encode fp32": ("embed_bf16", "encode_fp32"),
        "embedding: selfsup bf16 / encode bf16": ("embed_bf16", "encode_bf16"),
        "embedding: selfsup fp32 / encode fp32": ("embed_fp32", "encode_fp32"),
    }
    compared = {what: ratios(rounds, *pair, "sentences_per_second") for what, pair in pairs.items()}
    names = {
        "trainer_fp32": "training, sentence-transformers fp32 (its default): sentences/s",
        "trainer_bf16": "training, sentence-transformers bf16: sentences/s",
        "selfsup_fp32": "training, selfsup fp32: sentences/s",
        "selfsup_bf16": "training, selfsup bf16 (its default here): sentences/s",
        "encode_fp32": "embedding, SentenceTransformer.encode fp32 (its default): sentences/s",
        "encode_bf16": "embedding, SentenceTransformer.encode bf16: sentences/s",
        "embed_fp32": "embedding, selfsup fp32: sentences/s",
        "embed_bf16": "embedding, selfsup bf16 (its default here): sentences/s",
    }
    write(
        "sentences",
        "SimCSE and embedding, sentence-transformers and selfsup: 6 layers, 6 heads, width 384, batch 64, the distinct "
        "sentences of STS-B, at most 32 tokens; training on BERT there and ModernBERT here, embedding 5,000 sentences "
        "with the same exported weights.",
        {"rounds": rounds, "rates": rates, "compared": compared},
        [(names[side], show(rates[side], 0)) for side in names]
        + [(what, show(ratio)) for what, ratio in compared.items()],
    )
