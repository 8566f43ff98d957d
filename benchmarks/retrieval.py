"""Passages that find the passage which follows them (`structure`), by the words they share and by models of texts.

Arguments: texts, such as a folder of books, the number of seeds, and directories of models or runs. BM25 takes the
package bm25s and is left out without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figures, selfsup, show, spread, write
from selfsup.data.sources import open_text
from selfsup.evaluation.base import Measurement
from selfsup.evaluation.ranking import before, drawn_order
from selfsup.evaluation.structure import MOST, figures, followed

Pair = tuple[str, str]

WORDS = r"(?u)\w+"


def tf_idf(queries: Sequence[str], passages: Sequence[str]) -> Any:
    """Cosines of TF-IDF (queries, passages), with the frequencies of all of these."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(token_pattern=WORDS, sublinear_tf=True).fit([*queries, *passages])
    return (vectors.transform(queries) @ vectors.transform(passages).T).toarray()


def bm25(queries: Sequence[str], passages: Sequence[str]) -> Any:
    """BM25 (queries, passages), with the parameters that the package has: k₁ = 1.5, b = .75 (Robertson et al. 1995)."""
    import bm25s

    def words(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(list(texts), token_pattern=WORDS, stopwords=None, show_progress=False, return_ids=False)

    index = bm25s.BM25()
    index.index(words(passages), show_progress=False)
    return np.stack([index.get_scores(query) for query in words(queries)])


def by_words(pairs: Sequence[Pair], scores: Callable[[Sequence[str], Sequence[str]], Any]) -> float:
    """The figure of the protocol for scores of words."""
    passages = {text: place for place, text in enumerate(dict.fromkeys(second for _, second in pairs))}
    own = torch.tensor([passages[second] for _, second in pairs])
    found = torch.from_numpy(np.asarray(scores([first for first, _ in pairs], list(passages)), np.float32))
    order, similarity = drawn_order(passages), found.gather(1, own[:, None])
    for number, (first, _) in enumerate(pairs):
        if first in passages:  # none finds itself
            found[number, passages[first]] = -torch.inf
    ranks = 1 + before(found, similarity, order, order[own][:, None]).sum(1).numpy()
    return float(figures(ranks, len(passages))["value"])


def drawn_pairs(texts: Path, seed: int) -> list[Pair]:
    """Those that the protocol draws."""
    every = [each for each in followed(open_text(texts, failures=1.0), None) if each[1] != each[2]]
    chosen = Measurement(Path(), None, None, seed=seed, records=MOST).sampled(every)
    return [(passage, following) for _, passage, following in chosen]


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        print("retrieval is left out: give it texts, seeds and models: python -m benchmarks retrieval books/ 3 minilm/")
        return
    texts, seeds, models = arguments[0], range(int(arguments[1])), arguments[2:]
    drawn = [drawn_pairs(Path(texts), seed) for seed in seeds]
    plain = {"TF-IDF of these passages": tf_idf}
    if importlib.util.find_spec("bm25s"):
        plain["BM25 of these passages"] = bm25
    values = {name: [by_words(pairs, scores) for pairs in drawn] for name, scores in plain.items()}
    measured: list[Figures] = []
    for model in models:
        words = ("evaluate", model, "--protocol", "structure", "--data", texts, "--json")
        scores = [selfsup(*words, "--seed", str(seed)) for seed in seeds]
        values[Path(model).name] = [score["value"] for score in scores]
        measured += scores
    rows = [(name, show(spread(each), 1)) for name, each in values.items()]
    write(
        "retrieval",
        f"MRR in percent by the protocol `structure`: {len(drawn[0]):,} passages of texts, each of which looks for the "
        "passage that follows it among as many; by words they share, and by models.",
        {"seeds": list(seeds), "values": values, "measured": measured},
        rows,
    )
