"""retrieval, of models of texts: how high the documents stand that people judged to answer a query.

Every query looks among all documents of a collection in BEIR's layout (`selfsup.data.judged`) by cosine similarity. The
value is the mean over queries of nDCG@10, as trec_eval has it; the details have Recall@10 and @100, MRR@10 and MAP, the
latter of the whole ranking (`selfsup.evaluation.ranking` defines them, and how ties are broken). Chance is the mean
nDCG@10 of a random order. The interval resamples queries.

- Before a query and before a document stands what the model has for them.
- The text of a document is its title, a space and its text. Of one that is longer than the model's window the beginning
  is read (`truncated`).
- Relevant is what has a score above 0, and how much is the score.
- A document with the id of the query is left aside for it, unless it was judged for it: there the query itself is among
  the documents. So does BEIR.
- With `rerank`, a cross-encoder reads the 100 documents nearest to a query, each together with it, and orders them
  anew; all others stand behind them. The details then have the nDCG@10 of the vectors by themselves, too.
- Queries for which no document of the collection is relevant are left out, and judgements of documents that it does not
  hold; both are counted.

Documents are read twice, one after the other, and embedded a chunk at a time: the queries and what was judged for them
are in memory, the others are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.data.judged import Entry, JudgedCollection, open_judged
from selfsup.data.tally import NAMED
from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Score
from selfsup.evaluation.features import UnitVectors
from selfsup.evaluation.ranking import Indices, Nearest, Ranks, Relevance, before, drawn_order, ndcg, scored
from selfsup.inference.cross_encoder import CrossEncoderModel
from selfsup.inference.items import CHUNK, Item, chunks
from selfsup.inference.texts import Text
from selfsup.models.features import DOCUMENT, QUERY

CANDIDATES = 100  # documents that a cross-encoder reads for a query


@dataclass(frozen=True)
class Asked:
    """Queries that something is relevant to.

    Attributes:
        relevance: of the documents to the queries.
        relevant: the id of the document of each pair of `relevance`, (pairs,).
        documents: those documents, by id.
        count: of all documents of the collection.
        judged: by query, all documents that were judged for it.
        left_out: what is not measured, counted and named.
    """

    queries: Sequence[Item]
    relevance: Relevance
    relevant: Sequence[str]
    documents: Mapping[str, Item]
    count: int
    judged: Mapping[str, Mapping[str, float]]
    left_out: dict[str, str]


def measure(measurement: Measurement) -> Score:
    collection = open_judged(measurement.need_data(), measurement.failures, measurement.split)
    measurement.sources.append(collection)
    asked = _asked(collection, measurement)
    reader = None if measurement.rerank is None else CrossEncoderModel.open(measurement.rerank, measurement.device)
    ranks, nearest = _ranks(collection, asked, measurement, 0 if reader is None else CANDIDATES)
    details: dict[str, Any] = {"documents": asked.count, **asked.left_out}
    if reader is not None:
        details |= {"reranked": CANDIDATES, "nDCG@10 of the vectors": float(ndcg(asked.relevance, ranks).mean())}
        ranks = _reranked(ranks, nearest, collection, asked, reader, measurement)
    return scored(asked.relevance, ranks, measurement.seed, asked.count, data=collection.name, details=details)


def _asked(collection: JudgedCollection, measurement: Measurement) -> Asked:
    """What is measured. Raises UserError where no query has a relevant document."""
    judged = collection.judgements()
    wanted = {document for scores in judged.values() for document in scores}
    documents = {}  # that were judged
    count = 0
    for entry in collection.documents():
        count += 1
        if entry.id in wanted:
            documents[entry.id] = _item(entry)
    queries = [_item(entry) for entry in collection.asked()]
    scores = {query: _above_zero(of, documents) for query, of in judged.items()}
    answered = [query for query in queries if scores.get(query.id)]
    if not answered:
        raise UserError(
            f"None of the {len(queries):,} queries of {collection.name} has a relevant document among its {count:,}; "
            "check that the ids are those of the judgements."
        )
    left_out = {
        "queries without a relevant document": [query.id for query in queries if not scores.get(query.id)],
        "judged queries that are not there": sorted(judged.keys() - {query.id for query in queries}),
        "judged documents that are not there": sorted(wanted - documents.keys()),
    }
    chosen = measurement.sampled(answered)
    pairs = [(place, key, gain) for place, query in enumerate(chosen) for key, gain in scores[query.id].items()]
    places, relevant, gains = zip(*pairs, strict=True)
    return Asked(
        chosen, Relevance(np.array(places), np.array(gains)), relevant, documents, count, judged,
        {what: _named(ids) for what, ids in left_out.items() if ids},
    )  # fmt: skip


def _item(entry: Entry) -> Item:
    return Text(entry.id, entry.text, entry.where, {})


def _above_zero(scores: Mapping[str, float], there: Mapping[str, Item]) -> dict[str, float]:
    """What is relevant of the judged documents that are there."""
    return {key: score for key, score in scores.items() if score > 0 and key in there}


def _named(ids: Sequence[str]) -> str:
    """How many there are, and the first of them."""
    return f"{len(ids):,} ({', '.join(ids[:NAMED])}{' and others' if len(ids) > NAMED else ''})"


def _ranks(
    collection: JudgedCollection, asked: Asked, measurement: Measurement, count: int
) -> tuple[Indices, list[list[str]]]:
    """The rank of each relevant document among all of the collection, (pairs,), and, by query, the ids of so many
    documents that are nearest to it, the nearest first."""
    vectors = UnitVectors(measurement, len(asked.queries) + asked.count)
    queries = vectors(asked.queries, QUERY)
    first = {key: place for place, key in enumerate(dict.fromkeys(asked.relevant))}  # the relevant ones, once each
    owned, order = vectors([asked.documents[key] for key in first], DOCUMENT), drawn_order(first).to(queries.device)
    places = torch.tensor([first[key] for key in asked.relevant], device=queries.device)
    similarity = (queries[torch.from_numpy(asked.relevance.queries)] * owned[places]).sum(1)
    ranks, nearest = Ranks(queries, asked.relevance, similarity, order[places]), Nearest(queries, count)
    names: list[str] = []

    def look(candidates: Tensor, keys: Sequence[str]) -> None:
        barred = _barred(asked, keys)
        ranks.count(candidates, drawn_order(keys).to(queries.device), barred)
        if count:
            nearest.add(candidates, len(names), barred)
            names.extend(keys)

    look(owned, list(first))
    others = filterfalse(lambda entry: entry.id in first, collection.documents())
    for items in chunks(map(_item, others), CHUNK):
        look(vectors(items, DOCUMENT), [item.id for item in items])
    return ranks(), [[names[n] for n in row if n >= 0] for row in nearest.numbers.tolist()]


def _reranked(
    ranks: Indices,
    nearest: Sequence[Sequence[str]],
    collection: JudgedCollection,
    asked: Asked,
    reader: CrossEncoderModel,
    measurement: Measurement,
) -> Indices:
    """The ranks, (pairs,), where a cross-encoder orders the documents nearest to each query, given by their ids."""
    wanted = {key for keys in nearest for key in keys}
    texts = {entry.id: entry.text for entry in collection.documents() if entry.id in wanted}
    anew = np.maximum(ranks, CANDIDATES + 1)  # of what it does not read
    pairs = list(zip(asked.relevance.queries.tolist(), asked.relevant, strict=True))
    place = {pair: number for number, pair in enumerate(pairs)}
    for number, (query, keys) in enumerate(zip(asked.queries, nearest, strict=True)):
        logits = torch.from_numpy(reader.logits(query.text, [texts[key] for key in keys], measurement.precision))
        order = drawn_order(keys)
        for own, key in enumerate(keys):
            if (pair := place.get((number, key))) is not None:
                anew[pair] = 1 + int(before(logits, logits[own], order, order[own]).sum())
        measurement.truncated += reader.truncated
        measurement.progress(number + 1, len(nearest))
    measurement.used.add(reader.precision)
    return anew


def _barred(asked: Asked, documents: Iterable[str]) -> tuple[Tensor, Tensor]:
    """The numbers of queries and of documents that are one thing, and were not judged for each other."""
    places = {key: place for place, key in enumerate(documents)}
    same = [
        (number, places[query.id])
        for number, query in enumerate(asked.queries)
        if query.id in places and query.id not in asked.judged[query.id]
    ]
    both = torch.tensor(same, dtype=torch.int64).view(-1, 2)
    return both[:, 0], both[:, 1]
