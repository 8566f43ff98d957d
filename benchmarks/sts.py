"""STS-B in English: what training from scratch adds to an untrained encoder, and baselines that learn nothing of words.

Arguments: the directory of stsb-en-{train,test}.parquet, texts to train on, and the number of seeds.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import Figures, selfsup, show, spread, write

DIMENSION = 300  # of a random vector
SHAPE = ("model.layers=2", "model.width=256", "data.vocabulary=8192")
MASKED, CONTRASTIVE = "240s", "90s"  # of training
STAGES = ("untrained", "masked", "simcse")
STILL = ("--steps", "32", "optim.lr=1e-30", "optim.adamw_lr=1e-30")  # steps that change nothing


def read(directory: Path, part: str) -> tuple[list[str], list[str], list[float]]:
    rows = pq.read_table(directory / f"stsb-en-{part}.parquet").to_pylist()
    return ([row["sentence1"] for row in rows], [row["sentence2"] for row in rows], [row["score"] for row in rows])


def spearman(one: np.ndarray, other: np.ndarray, scores: list[float]) -> float:
    """Of cosines and scores, in percent."""
    from scipy.stats import spearmanr

    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return float(100 * spearmanr(cosines, scores).statistic)


def random_words(directory: Path, seed: int) -> float:
    """The mean of a random vector for each word."""
    random, vectors = np.random.default_rng(seed), {}

    def embed(sentence: str) -> np.ndarray:
        words = re.findall(r"\w+", sentence.lower())
        return np.mean([vectors.setdefault(word, random.normal(size=DIMENSION)) for word in words], 0)

    one, other, scores = read(directory, "test")
    return spearman(np.array([*map(embed, one)]), np.array([*map(embed, other)]), scores)


def tf_idf(directory: Path) -> float:
    """Cosines of TF-IDF, with the frequencies of the test sentences themselves."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    one, other, scores = read(directory, "test")
    vectors = TfidfVectorizer(token_pattern=r"\w+").fit(one + other)
    return spearman(vectors.transform(one).toarray(), vectors.transform(other).toarray(), scores)


def write_corpus(texts: Path, directory: Path, place: Path, with_sts: bool) -> Path:
    """The texts, and, if asked for, the training sentences of STS-B, one a line; returns the folder."""
    place.mkdir()
    for file in sorted(texts.iterdir()) if texts.is_dir() else [texts]:
        (place / file.name).symlink_to(file.absolute())
    if with_sts:
        one, other, _ = read(directory, "train")
        lines = [sentence.strip() for sentence in dict.fromkeys(one + other)]
        (place / "stsb-train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


def measure(run: Path, directory: Path) -> Figures:
    """Of the vectors as the run saves them, whitened, and of the mean of the hidden states as it is."""
    test = str(directory / "stsb-en-test.parquet")

    def score(model: Path) -> float:
        return float(selfsup("evaluate", str(model), "--protocol", "sts", "--data", test, "--json")["value"])

    plain = run / "plain"
    shutil.copytree(run / "model", plain)
    (plain / "features.json").write_text(json.dumps({"pooling": "mean", "mapped": False}))
    return {"whitened": score(run), "as it is": score(plain)}


def train_all(corpus: Path, directory: Path, place: Path, seed: int) -> dict[str, Figures]:
    """The encoder before training, after masked LM, and after SimCSE on top."""
    place.mkdir()
    common = ("--data", str(corpus), "--seed", str(seed), "--json")
    fresh = ("--tokenizer", "wordpiece", *SHAPE)
    start = ("--init", str(place / "masked"))
    selfsup("train", "simcse", *common, *fresh, *STILL, "--out", str(place / "untrained"))
    selfsup("train", "masked-lm", *common, *fresh, "--budget", MASKED, "--out", str(place / "masked"))
    selfsup("train", "simcse", *common, *start, "--budget", CONTRASTIVE, "--out", str(place / "simcse"))
    return {name: measure(place / name, directory) for name in STAGES}


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print("sts is left out: give it STS-B and texts: python -m benchmarks sts sentences/ texts/")
        return
    directory, texts = Path(arguments[0]), Path(arguments[1])
    seeds = range(int(next(islice(arguments, 2, None), 3)))
    with tempfile.TemporaryDirectory() as name:
        corpora = {
            what: write_corpus(texts, directory, Path(name) / what.replace(" ", "-"), what == "with STS sentences")
            for what in ("without STS sentences", "with STS sentences")
        }
        trained = {
            what: [train_all(corpus, directory, Path(name) / f"{corpus.name}-{seed}", seed) for seed in seeds]
            for what, corpus in corpora.items()
        }
    words = spread([random_words(directory, seed) for seed in seeds])
    rows = [
        ("random vector for each word", show(words, 1)),
        ("TF-IDF of the test sentences", f"{tf_idf(directory):.1f}"),
    ]
    for what, runs in trained.items():
        for stage in STAGES:
            columns = (show(spread([run[stage][how] for run in runs]), 1) for how in ("as it is", "whitened"))
            rows.append((f"{stage}, {what}", "; ".join(columns)))
    write(
        "sts",
        "Spearman correlation (percent) on the test part of STS-B: 2 layers, width 256, WordPiece of 8,192 tokens; "
        f"masked LM for {MASKED}, then SimCSE for {CONTRASTIVE} from it. First the mean of the last states as it is, "
        "then whitened over training texts, as runs save it.",
        {"seeds": list(seeds), "trained": trained, "random words": words},
        rows,
    )
