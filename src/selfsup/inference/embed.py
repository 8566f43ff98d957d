"""Vectors of a whole source in one parquet file, made chunk by chunk so that a killed process loses one chunk.

Finished chunks lie in `OUT.partial/` beside the output with the plan that they belong to, each with its checksum in
its name; the same command makes what is missing or damaged, and at the end they are joined. A chunk's vectors depend
on that chunk alone, so the file is the same, byte for byte, with and without interruptions.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfsup.arguments import checked
from selfsup.data.tally import NAMED, Skipped, refusal
from selfsup.errors import UserError
from selfsup.files import expanded, held, sync, whole_file, write_atomically
from selfsup.inference.base import EmbeddingModel
from selfsup.inference.items import CHUNK, Item, LeftOut, Listed, chunks, digest, shifted, silent, survey
from selfsup.inference.opening import open_embedder
from selfsup.inference.passages import Size, cutter_for, described, listed
from selfsup.models.features import DOCUMENT
from selfsup.report import Progress

METADATA = b"selfsup"  # key of the JSON object in the schema's metadata
TRUNCATED = b"truncated"  # key of a chunk's number of truncated items
UNREAD = b"unread"  # key of the JSON list of a chunk's items that turned out to be unreadable
PLAN = "plan.json"
CHUNK_FILE = re.compile(r"\d{9}\.[0-9a-f]{32}\.parquet")
# All that an embedding leaves beside its output, whole or half written.
OURS = re.compile(rf"{CHUNK_FILE.pattern}|plan\.json|\.(lock|joined|plan\.json\..*|\d{{9}}\..*)")

KINDS = {"document": pa.string(), "start": pa.int64(), "end": pa.int64()}  # of columns that are no vector; else text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """What `embed` made: a file of so many records, and what of the source is not in it, or not wholly."""

    path: Path
    records: int
    dimension: int
    left_out: LeftOut

    def to_json(self) -> dict[str, Any]:
        made = {"path": str(self.path), "records": self.records, "dimension": self.dimension}
        return made | self.left_out.to_json()

    def rows(self) -> dict[str, str]:
        """What to tell of it, and what there is of each."""
        written = f"{self.path}, {self.records:,} vectors of {self.dimension} numbers"
        return {"written": written} | self.left_out.rows()


@checked
def embed(
    run: str | Path,
    data: object,
    out: str | Path,
    *,
    column: str | None = None,
    id_column: str | None = None,
    passages: Size = "auto",
    overlap: int | None = None,
    half: bool = False,
    batch: int = CHUNK,
    failures: float = 1.0,
    device: str = "auto",
    dimension: int | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed every record of a source into a parquet file with the columns id, text (source, of images) and vector.

    A text that is longer than the model's window becomes several passages, each a row of its own; beside it stand the
    id of its document, and where it starts and ends there in characters (document, start, end). A vector is a
    fixed-size list of float32, not normalised. The schema's metadata holds, under `selfsup`, a JSON
    object with the model, its fingerprint, pooling and dimension, the data, the fingerprint of its ids and contents,
    and what was left out. The same call after an interruption goes on where it stood.

    Args:
        run: a run of an encoder, of texts or of images, or a model directory.
        data: any source that the model reads, see `selfsup.data.sources.open_text`.
        out: the file to write; it must not exist.
        column, id_column: of the content, found by itself where it is None; of ids, each of which may occur once, where
            None takes the place of a record.
        passages: of texts: auto, passages of as many tokens as the model reads, or of at most so many; `none` embeds
            one vector for each record, that of its beginning.
        overlap: most tokens that a passage shares with the one before, in whole sentences; an eighth of a passage where
            it is None.
        half: store float16.
        batch: records that are embedded together, and kept together when interrupted.
        failures: the share of bad records, from 0 to 1, above which reading stops; with 1 they are left out and
            counted, however many there are, as long as one can be read.
        dimension: keep the first so many numbers of each vector.
        progress: called with the records embedded so far, and all of them (None while they are being counted).

    Raises:
        UserError: no such model, data or column; an id occurs twice; `out` exists, or was begun otherwise.
    """
    out, progress = expanded(out), progress or silent
    if not out.name:
        raise UserError(f"{out} is no name of a file; give another --out.")
    work = out.with_name(f"{out.name}.partial")
    _require_free(out, work)
    model = open_embedder(run, device, dimension)
    collection = model.read(data, column, failures=failures, progress=progress)
    cutter = cutter_for(model, collection, passages, overlap)
    source = listed(collection, cutter)
    total, fingerprint = survey(source.items(id_column), progress)
    read = {"data": source.name, "data_fingerprint": fingerprint, "column": column, "id": id_column}
    made = {"passages": described(cutter), "half": half, "batch": batch, "records": total}
    with _held(work, out):
        embeddings = _make(work, out, model, source, model.description() | read | made, failures, progress)
    _remove(work)
    return embeddings


def _make(
    work: Path,
    out: Path,
    model: EmbeddingModel,
    source: Listed,
    plan: dict[str, Any],
    failures: float,
    progress: Progress,
) -> Embeddings:
    """Make the chunks that a plan lacks in `work`, and the file of them: the same one for every plan that is equal,
    whatever the model and the data are called."""
    # Before images are decoded: what then fails is noted with its chunk.
    left_out, seen = LeftOut.of([source]).beside(model.notes(DOCUMENT)), source.skipped.seen
    _require_agreement(work, plan)
    write_atomically(work / PLAN, json.dumps(plan, ensure_ascii=False))
    schema = _schema(source.kind, model.dimension, plan["half"])
    parts, total = chunks(source.items(plan["id"]), plan["batch"]), plan["records"]
    files, done = _make_chunks(work, parts, model, schema, partial(shifted, progress, total=total))
    if done != total:
        raise UserError(f"{source.name} has changed while it was being embedded; run the same command again.")
    left_out = _with_chunks(left_out, files)
    if 0 < seen == left_out.skipped:
        raise refusal(source.name, Skipped(seen, seen, left_out.skipped_names), failures)
    written = _join(files, work, out, schema, plan | left_out.to_json())
    return Embeddings(out, written, model.dimension, left_out)


def _require_free(out: Path, work: Path) -> None:
    """Raise a UserError where the output exists; what a process killed in its last moment left is cleared up."""
    if out.is_file() and _is_left_over(work, out):
        _remove(work)
    if os.path.lexists(out):
        raise UserError(f"{out} exists already; give another --out.")


def _is_left_over(work: Path, out: Path) -> bool:
    """Whether `out` was made from the chunks in `work`, which were being removed."""
    try:
        if not any(work.iterdir()):
            return True
        made = dict(json.loads(pq.read_schema(out).metadata[METADATA]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError):
        return False
    plan = _read_plan(work)
    return bool(plan) and {key: made.get(key) for key in plan} == plan


def _read_plan(work: Path) -> dict[str, Any]:
    """The plan that the chunks in `work` belong to; empty where it cannot be read."""
    try:
        return dict(json.loads((work / PLAN).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, RecursionError):
        return {}


def _remove(work: Path) -> None:
    """Remove finished work, the plan last, so that what a crash leaves of it is still known for what it is.

    What else lies there is a user's own, and stays.
    """
    for file in sorted(work.iterdir(), key=lambda file: file.name == PLAN):
        if OURS.fullmatch(file.name):
            file.unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()


@contextmanager
def _held(work: Path, out: Path) -> Iterator[None]:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {work}: {error.strerror}; give another --out.") from None
    with held(work, f"{out} is being made by another process; wait for it, or give another --out."):
        yield


def _require_agreement(work: Path, plan: dict[str, Any]) -> None:
    """Raise a UserError where what lies in `work` is no chunk, or one of a plan that asks for something else."""
    names = {path.name for path in work.iterdir()}
    if foreign := [name for name in names if not OURS.fullmatch(name)]:
        raise UserError(f"{work} holds {min(foreign)}, which no embedding left there; give another --out.")
    if not any(map(CHUNK_FILE.fullmatch, names)):
        return
    begun = _read_plan(work)
    if not plan.keys() <= begun.keys():
        raise UserError(
            f"{work / PLAN} is missing or damaged, so it is not known what the chunks beside it belong to; give "
            f"another --out, or remove {work} to begin anew."
        )
    for key in sorted(plan.keys() - {"model", "data"}):  # these two are names; the fingerprints tell
        if begun[key] != plan[key]:
            raise UserError(
                f"{work} was begun with another {key.removesuffix('_fingerprint')}: give the same again to go "
                "on, give another --out, or remove it."
            )


def _found_chunk(work: Path, number: int) -> Path | None:
    """A finished chunk, as it was written; a damaged one is removed, since it can be made again."""
    for file in work.glob(f"{number:09d}.*.parquet"):
        if file.name == _chunk_name(number, file.read_bytes()):
            return file
        log.warning("%s is damaged; it is made anew.", file)
        file.unlink()
    return None


def _chunk_name(number: int, content: bytes) -> str:
    """What `CHUNK_FILE` matches: the number of a chunk and the checksum of its file."""
    return f"{number:09d}.{digest(content)}.parquet"


def _schema(kind: type[Item], dimension: int, half: bool) -> pa.Schema:
    vector = pa.list_(pa.float16() if half else pa.float32(), dimension)
    columns = {name: KINDS.get(name, pa.string()) for name in ("id", kind.shown, *kind.placed)} | {"vector": vector}
    return pa.schema([pa.field(name, column, nullable=False) for name, column in columns.items()])


def _stored(schema: pa.Schema) -> dict[str, Any]:
    """How parquet holds the columns: in numbers of vectors there is nothing to compress, and looking for it takes
    longer than all else."""
    packed = {name: "snappy" for name in schema.names if name != "vector"}
    return {"compression": packed, "use_dictionary": False, "write_statistics": list(packed)}


def _make_chunks(
    work: Path, parts: Iterator[list[Item]], model: EmbeddingModel, schema: pa.Schema, within: Callable[[int], Progress]
) -> tuple[list[Path], int]:
    """The files of all chunks, in order, and how many items they have; those that are there already are kept. `within`
    makes progress in all of progress within a chunk, by the number of items before it."""
    files: list[Path] = []
    done = 0
    for number, items in enumerate(parts):
        found = _found_chunk(work, number)
        files.append(found or _write_chunk(work, number, _chunk(items, model, schema, within(done))))
        done += len(items)
    return files, done


def _write_chunk(work: Path, number: int, table: pa.Table) -> Path:
    """The file of a chunk that was not there."""
    content = io.BytesIO()
    pq.write_table(table, content, **_stored(table.schema))
    file = work / _chunk_name(number, content.getvalue())
    with whole_file(file) as temporary:
        temporary.write_bytes(content.getvalue())
    return file


def _chunk(items: list[Item], model: EmbeddingModel, schema: pa.Schema, progress: Progress) -> pa.Table:
    """What can be read of some items, with its vectors; what cannot be, and what was truncated, in the metadata."""
    kind = schema.field("vector").type.value_type.to_pandas_dtype()
    read, vectors = model.embed_items(items, progress=progress, prompt=DOCUMENT)
    with np.errstate(over="ignore"):
        numbers = vectors.astype(kind).reshape(-1)
    if not np.isfinite(numbers).all():
        raise UserError(f"The vectors of {model.path} do not fit half precision; leave out --half.")
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers), model.dimension)
    there = list(itertools.compress(items, read))
    columns = [[getattr(item, name) for item in there] for name in schema.names[:-1]]
    unread = [f"{item.source}: it cannot be decoded" for item in itertools.compress(items, ~read)]
    counted = schema.with_metadata({TRUNCATED: str(model.truncated), UNREAD: json.dumps(unread, ensure_ascii=False)})
    return pa.table([*columns, column], schema=counted)


def _with_chunks(left_out: LeftOut, files: Sequence[Path]) -> LeftOut:
    """What was left out, with what the chunks know of."""
    noted = [pq.read_schema(file).metadata for file in files]
    unread = [name for metadata in noted for name in json.loads(metadata[UNREAD])]
    return replace(
        left_out,
        truncated=sum(int(metadata[TRUNCATED]) for metadata in noted),
        skipped=left_out.skipped + len(unread),
        skipped_names=(*left_out.skipped_names, *unread)[:NAMED],
    )


def _join(files: Sequence[Path], work: Path, out: Path, schema: pa.Schema, description: dict[str, Any]) -> int:
    """Write all chunks, in order, into the output, with its description; its rows."""
    described = schema.with_metadata({METADATA: json.dumps(description, ensure_ascii=False)})
    joined = work.absolute() / ".joined"  # a relative name with a colon would be taken for an address
    with pq.ParquetWriter(joined, described, **_stored(described)) as writer:
        for file in files:
            writer.write_table(pq.read_table(file).replace_schema_metadata(described.metadata))
    sync(joined)
    _require_free(out, work)
    joined.rename(out)
    sync(out.parent)
    return int(pq.read_metadata(out).num_rows)
