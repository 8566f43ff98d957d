"""Commands of vectors: make them, keep them, find what is near."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfsup.cli.options import Chunk, Column, Data, Failures, Id, Json, app
from selfsup.errors import UserError
from selfsup.report import print_json, say


@app.command()
def embed(
    run: Annotated[
        Path, typer.Argument(help="the run, or model directory, of an encoder of texts or images")
    ],
    data: Annotated[str, typer.Option(help="file, folder, glob, hub:NAME or sample:NAME")],
    out: Annotated[Path, typer.Option(help="the parquet file to write")],
    half: Annotated[bool, typer.Option("--half", help="store float16")] = False,
    id_column: Id = None,
    column: Column = None,
    batch: Chunk = 4096,
    failures: Failures = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    as_json: Json = False,
) -> None:
    """Turn every text or image of a source into a vector, in a parquet file; the same command goes on after a crash."""
    from selfsup.inference.embed import embed as write
    from selfsup.report import Reporter

    reporter = Reporter()
    with reporter.bar("Embedding"):
        made = write(
            run,
            data,
            out,
            column=column,
            id_column=id_column,
            half=half,
            batch=batch,
            failures=failures,
            device=device,
            progress=reporter.counting,
        )
    if as_json:
        print_json(made.to_json())
    else:
        Reporter(to=sys.stdout).table(made.rows())


@app.command()
def index(
    out: Annotated[Path, typer.Option(help="the library to make or bring up to date: NAME.lance")],
    run: Annotated[
        Path | None, typer.Argument(help="the run, or model directory, of an encoder of texts or images")
    ] = None,
    data: Data = None,
    delete: Annotated[
        list[str] | None, typer.Option(help="in place of RUN and --data: an id to remove; may be repeated")
    ] = None,
    id_column: Id = None,
    column: Column = None,
    batch: Chunk = 4096,
    failures: Failures = 1.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    as_json: Json = False,
) -> None:
    """Make a searchable library of a source, or add, update and delete in one."""
    import selfsup
    from selfsup.report import Reporter

    if delete:
        if run is not None or data is not None:
            raise UserError("--delete removes records by id, without RUN and --data; give two commands.")
        left = selfsup.delete(out, delete)
        if as_json:
            print_json({"library": str(out), "deleted": len(set(delete)), "records": left})
        else:
            say(f"{len(set(delete)):,} deleted, {left:,} left in {out}.")
        return
    if run is None or data is None:
        raise UserError(
            "Say what makes the vectors and of what: selfsup index RUN --data SOURCE --out NAME.lance"
        )
    reporter = Reporter()
    with reporter.bar("Indexing"):
        made = selfsup.index(
            run,
            data,
            out,
            column=column,
            id_column=id_column,
            batch=batch,
            failures=failures,
            device=device,
            progress=reporter.counting,
        )
    if as_json:
        print_json(made.to_json())
    else:
        Reporter(to=sys.stdout).table(made.rows())


@app.command()
def search(
    library: Annotated[Path, typer.Argument(help="a library that `selfsup index` made")],
    query: Annotated[str | None, typer.Argument(help="words to look for")] = None,
    image: Annotated[Path | None, typer.Option(help="in their place: an image to look for")] = None,
    top: Annotated[int, typer.Option(help="hits to show")] = 10,
    where: Annotated[
        str | None, typer.Option(help='a condition on the columns in SQL, such as "year > 1990"')
    ] = None,
    model: Annotated[Path | None, typer.Option(help="where the library's model is now, if it moved")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    as_json: Json = False,
) -> None:
    """Find the records of a library that are nearest to a query."""
    from selfsup.inference.hits import show
    from selfsup.inference.search import search as find
    from selfsup.report import to_stdout

    hits = find(library, query, image=image, top=top, where=where, model=model, device=device)
    if as_json:
        asked = {"query": query} if image is None else {"image": str(image)}
        print_json({"library": str(library), **asked, "hits": [hit.to_json() for hit in hits]})
    else:
        show(hits, query or "", to_stdout())
