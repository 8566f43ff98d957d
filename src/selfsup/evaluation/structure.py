"""structure: how well a passage finds the one that follows it, which no label is needed for.

Every text is cut into consecutive passages of up to `PASSAGE` characters, at the white space before that, and into two
at least; each looks for the one behind it, among those that follow any passage, by cosine similarity. Where records
have the columns `query` and `passage`, the one looks for the other instead. Equal texts are one, and right for whoever
is followed by it; none finds itself. Ranks are those of `selfsup.evaluation.ranking`, which neither rounding nor equal
vectors improve.

The value is the mean of 1 / rank in percent (MRR); the details have R@1 and R@10 beside it, and the median rank. At
most `MOST` passages look for theirs, drawn by the seed; the interval resamples records. (What stands together in a text
is what retrievers are trained by without labels: Izacard et al. 2022, "Unsupervised Dense Information Retrieval with
Contrastive Learning", section 3.1. Here it measures.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.data.sources import Table, open_text
from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Resampling, Score
from selfsup.evaluation.ranking import Indices, Ranks, Relevance, drawn_order
from selfsup.inference.geometry import normalised
from selfsup.inference.items import digest
from selfsup.inference.texts import Text
from selfsup.machine import find_device

PAIR = ("query", "passage")  # columns
PASSAGE = 400  # characters, at most
SHORTEST = 12  # characters of a passage: a shorter one says too little to be found
MOST = 5000
AT = (1, 10)


def measure(measurement: Measurement) -> Score:
    m = measurement
    table = open_text(m.need_data(), m.column, m.failures)
    m.sources.append(table)
    found = [each for each in followed(table, m.column) if each[1] != each[2]]
    if len(found) < 2:
        raise UserError(
            f"{table.name} has {len(found)} passages that another one follows, and nothing can be mistaken for the "
            f"only one; give texts of {2 * SHORTEST} characters and more, two at least."
        )
    m.records = min(m.records or MOST, MOST)
    drawn = m.sampled(found)
    queries = [query for _, query, _ in drawn]
    texts: dict[str, int] = {}
    own = torch.tensor([texts.setdefault(answer, len(texts)) for _, _, answer in drawn])
    if in_columns(table, m.column):
        asking, answers = _unit(m, queries, "query"), _unit(m, list(texts), "document")
    else:
        asking, answers = _unit(m, [*queries, *texts], "document").tensor_split([len(queries)])
    rank = _ranks(asking, answers, queries, texts, own)
    records = np.unique([record for record, _, _ in drawn], return_inverse=True)[1]
    of = digest("\0".join(itertools.chain(queries, texts)).encode())
    resampling = Resampling.of_ratio(np.bincount(records, 100.0 / rank), np.bincount(records), of)
    return Score.of(resampling, m.seed, data=table.name, **figures(rank, len(texts)))


def _ranks(asking: Tensor, answers: Tensor, queries: list[str], texts: dict[str, int], own: Tensor) -> Indices:
    """At which rank each query (n, d) finds its own (n,) of the texts (m, d), which are numbered."""
    itself = [(number, texts[query]) for number, query in enumerate(queries) if query in texts]
    barred = torch.tensor(itself, dtype=torch.int64, device=asking.device).view(-1, 2)
    order, own = drawn_order(texts).to(asking.device), own.to(asking.device)
    relevance = Relevance(np.arange(len(queries)), np.ones(len(queries)))
    ranks = Ranks(asking, relevance, (asking * answers[own]).sum(1), order[own])
    ranks.count(answers, order, (barred[:, 0], barred[:, 1]))
    return ranks()


def _unit(m: Measurement, texts: list[str], prompt: str) -> Tensor:
    _, vectors = m.embed([Text("", text, "", {}) for text in texts], prompt)
    return normalised(vectors).to(find_device(m.device))


def figures(rank: Indices, candidates: int) -> dict[str, Any]:
    """Of a score: the figures of ranks (n,) among so many, beside those of a random order."""
    return {
        "value": float(100 * (1 / rank).mean()),
        "unit": "% MRR",
        "n": len(rank),
        "chance": float(100 * (1 / np.arange(1, candidates + 1)).mean()),
        "details": {
            "candidates": candidates,
            **{f"R@{at}": float(100 * (rank <= at).mean()) for at in AT},
            "median rank": float(np.median(rank)),
        },
    }


def followed(table: Table, column: str | None) -> Iterator[tuple[int, str, str]]:
    """The number of a record, a passage of it, and what is to be found by that."""
    if in_columns(table, column):
        for number, row in enumerate(table.rows(PAIR)):
            yield number, str(row.values[PAIR[0]]), str(row.values[PAIR[1]])
        return
    for number, (text, _) in enumerate(table.texts()):
        for passage, following in itertools.pairwise(passages(text)):
            yield number, passage, following


def in_columns(table: Table, column: str | None) -> bool:
    """Whether records say what belongs together."""
    return column is None and set(PAIR) <= set(table.columns)


def passages(text: str, longest: int = PASSAGE) -> list[str]:
    """A text in consecutive passages of up to so many characters, cut at white space where there is any in their last
    half: two at least, and none of less than `SHORTEST`; [] where it is too short for that."""
    text = " ".join(text.split())
    size = min(longest, -(-len(text) // 2))
    found, start = [], 0
    while start < len(text):
        end = start + size
        space = text.rfind(" ", start + size // 2, end + 1) if end < len(text) else -1
        end = space if space > 0 else end
        found.append(text[start:end].strip())
        start = end
    return [passage for passage in found if len(passage) >= SHORTEST]
