"""Commands of vectors: make them, keep them, find what is near."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from selfsup.cli.options import (
    Chunk,
    Column,
    Device,
    Dimension,
    Encoder,
    Failures,
    Id,
    Overlap,
    Passages,
    Rerank,
    Source,
    command,
)
from selfsup.report import say

Library = Annotated[Path, typer.Argument(help="a library that `selfsup index` made")]


@command("selfsup.inference.embed", bar="Embedding")
def embed(
    made: Any,
    run: Encoder,
    data: Source,
    out: Annotated[Path, typer.Option(help="the parquet file to write")],
    half: Annotated[bool, typer.Option("--half", help="store float16")] = False,
    id_column: Id = None,
    column: Column = None,
    passages: Passages = None,
    overlap: Overlap = None,
    batch: Chunk = 4096,
    failures: Failures = 1.0,
    device: Device = "auto",
    dimension: Dimension = None,
) -> None:
    """Turn every text or image of a source into a vector, long texts into one for each passage, in a parquet file; the
    same command goes on after a crash."""
    from selfsup.report import Reporter

    Reporter(to=sys.stdout).table(made.rows())


@command("selfsup.inference.indexing", bar="Indexing")
def index(
    made: Any,
    run: Encoder,
    data: Source,
    out: Annotated[Path, typer.Option(help="the library to make or bring up to date: NAME.lance")],
    id_column: Id = None,
    column: Column = None,
    passages: Passages = None,
    overlap: Overlap = None,
    batch: Chunk = 4096,
    failures: Failures = 1.0,
    device: Device = "auto",
    dimension: Dimension = None,
) -> None:
    """Make a searchable library of a source, or add and update in one."""
    from selfsup.report import Reporter

    Reporter(to=sys.stdout).table(made.rows())


@command(
    "selfsup.inference.search",
    to_json=lambda left, given: {"library": str(given["library"]), "deleted": len(set(given["ids"])), "records": left},
)
def delete(
    left: int, library: Library, ids: Annotated[list[str], typer.Argument(help="of records or documents to remove")]
) -> None:
    """Remove records from a library by id; of a document all its passages."""
    say(f"{len(set(ids)):,} deleted, {left:,} left in {library}.")


def _hits(hits: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"image": str(given["image"])} if "image" in given else {"query": given.get("query")}
    return {"library": str(given["library"]), **asked, "hits": [hit.to_json() for hit in hits]}


@command("selfsup.inference.search", to_json=_hits)
def search(
    hits: Any,
    library: Library,
    query: Annotated[str | None, typer.Argument(help="words to look for")] = None,
    image: Annotated[Path | None, typer.Option(help="in their place: an image to look for")] = None,
    top: Annotated[int, typer.Option(help="hits to show")] = 10,
    where: Annotated[str | None, typer.Option(help='a condition on the columns in SQL, such as "year > 1990"')] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="look for the words themselves too, and join both by their ranks")
    ] = False,
    per_document: Annotated[
        int, typer.Option(help="most passages of one document, as long as others fill the list", min=1)
    ] = 1,
    rerank: Rerank = None,
    candidates: Annotated[int, typer.Option(help="hits that --rerank reads", min=1)] = 100,
    model: Annotated[Path | None, typer.Option(help="where the library's model is now, if it moved")] = None,
    device: Device = "auto",
) -> None:
    """Find the records of a library that are nearest to a query."""
    from selfsup.inference.hits import show
    from selfsup.report import to_stdout

    show(hits, query or "", to_stdout())
