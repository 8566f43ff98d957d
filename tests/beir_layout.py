"""Small collections for retrieval, as folders in the layouts that are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENTS = [
    {"_id": "d1", "title": "Storm", "text": "a ship sank"},
    {"_id": "d2", "title": "", "text": " by the fire "},
]
QUERIES = [{"_id": "q1", "text": "ship"}, {"_id": "q2", "text": "fire"}]
QRELS = [("q1", "d1", 2), ("q2", "d2", 1), ("q2", "d1", 0)]


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_qrels(path: Path, judgements: Sequence[tuple[Any, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [("query-id", "corpus-id", "score"), *judgements]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def write_beir(place: Path, documents: Any = DOCUMENTS, queries: Any = QUERIES, qrels: Any = QRELS) -> Path:
    write_lines(place / "corpus.jsonl", documents)
    write_lines(place / "queries.jsonl", queries)
    write_qrels(place / "qrels" / "test.tsv", qrels)
    return place


def write_hub(place: Path, judgements: str = "qrels") -> Path:
    """As `datasets` pushes several configurations of several splits."""
    tables = {"corpus": DOCUMENTS, "queries": QUERIES}
    for part, records in tables.items():
        renamed = [{name.removeprefix("_"): value for name, value in record.items()} for record in records]
        write_table(place / part / "test-00000-of-00001.parquet", renamed)
        write_table(place / part / "dev-00000-of-00001.parquet", [{"id": "other", "text": "of another split"}])
    rows = [dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in QRELS]
    write_table(place / judgements / "test-00000-of-00001.parquet", rows)
    return place


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)
