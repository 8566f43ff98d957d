"""A public sentence encoder here and in sentence-transformers: embedding, sentences/s.

Arguments: a sentence-transformers directory, that of stsb-en-{train,dev,test}.parquet, and the number of
rounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import Quick, alternate, peer, ratios, show, spread, write
from benchmarks.sentences import write_sentences

ENCODED = 3000
QUICK = Quick(("{data}/minilm", "{data}/sentences", "1"), ("sentence_transformers",))
PRECISIONS = ("fp32", "bf16")


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print("public_encoders is left out: python -m benchmarks public_encoders minilm/ sentences/")
        return
    model, count = arguments[0], int(arguments[2]) if len(arguments) > 2 else 3
    with tempfile.TemporaryDirectory() as name:
        every, some = Path(name) / "every.txt", Path(name) / "some.txt"
        write_sentences(Path(arguments[1]), every)
        some.write_text("\n".join(every.read_text(encoding="utf-8").splitlines()[:ENCODED]) + "\n")
        rounds = alternate(
            count,
            encode_fp32=lambda: peer("encode", model, "fp32", str(some)),
            embed_fp32=lambda: peer("embed", model, "fp32", str(some)),
            encode_bf16=lambda: peer("encode", model, "bf16", str(some)),
            embed_auto=lambda: peer("embed", model, "auto", str(some)),
        )
    sides = {
        "encode_fp32": "SentenceTransformer.encode fp32 (its default): sentences/s",
        "encode_bf16": "SentenceTransformer.encode bf16: sentences/s",
        "embed_fp32": "selfsup fp32: sentences/s",
        "embed_auto": "selfsup in the machine's precision (its default): sentences/s",
    }
    rates = {side: spread([one[side]["sentences_per_second"] for one in rounds]) for side in sides}
    pairs = {
        "selfsup / encode fp32": ("embed_auto", "encode_fp32"),
        "selfsup / encode bf16": ("embed_auto", "encode_bf16"),
        "selfsup fp32 / encode fp32": ("embed_fp32", "encode_fp32"),
    }
    compared = {what: ratios(rounds, *pair, "sentences_per_second") for what, pair in pairs.items()}
    write(
        "public_encoders",
        f"Embedding with a public sentence encoder as it lies ({Path(model).name}): {ENCODED:,} distinct sentences of "
        "STS-B, sentence-transformers (the better of batches of 32 and 128) and selfsup.",
        {"rounds": rounds, "rates": rates, "compared": compared},
        [(what, show(rates[side], 0)) for side, what in sides.items()]
        + [(what, show(ratio)) for what, ratio in compared.items()],
    )
