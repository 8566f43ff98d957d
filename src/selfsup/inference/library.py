"""A library: records with their vectors in a LanceDB table, which remembers the model that made them.

The directory `NAME.lance` is the table NAME of the database that its parent directory is to LanceDB. What belongs to
the whole table (the model, how well its index finds) stands in the metadata of the column `vector`.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa

from selfsup.errors import UserError
from selfsup.files import LOCK, held
from selfsup.inference.base import EmbeddingModel
from selfsup.inference.items import Vectors, digest
from selfsup.inference.recorded import fingerprint, record, verify
from selfsup.seeding import derive

BEGUN = {"_transactions", "_versions", LOCK}  # what may lie in a directory before a table is in it
KEY = "selfsup"  # of the JSON object in the metadata
OWN = ("id", "text", "source", "vector", "content_hash", "values_hash")  # the columns of every library
PLACED = {"document": pa.string(), "start": pa.int64(), "end": pa.int64()}  # of one of passages: where a record stands

# An exact search reads every vector: 0.08 s for 50,000 of 384 numbers on two cores, and in proportion for more.
EXACT_ROWS = 50_000
# Of LanceDB's indices, IVF_SQ (cells, one byte a number) builds fastest, in 0.5 s for 50,000 vectors on two cores
# (IVF_HNSW_SQ 22 s, IVF_PQ 36 s); with the exact distance of three times as many candidates as asked for it found
# every neighbour that the exact search finds (recall@10 0.99 without).
CANDIDATES = 3
CELLS = 20  # that a query looks into
SEGMENTS = "icu"  # words by the rules of Unicode, with dictionaries for scripts that put no spaces between them
AT_ONCE = 1000  # ids in one condition

# What LanceDB raises, Arrow where it reads the answers, and (no Exception) its Rust where it panics.
FAILURES = (OSError, ValueError, RuntimeError, KeyError, pa.ArrowException)
PANIC = "Panic"
SURROGATE = re.compile("[\ud800-\udfff]")
NO_SPACE = f"os error {errno.ENOSPC}"

SHOWN = 300  # characters of a condition, or of what LanceDB says, in a message

QUERIES = 100  # to measure recall with
NEIGHBOURS = 10

P = ParamSpec("P")
R = TypeVar("R")


def _told(method: Callable[Concatenate[Library, P], R]) -> Callable[Concatenate[Library, P], R]:
    """A method whose failures are told in one sentence."""

    @wraps(method)
    def told(library: Library, /, *arguments: P.args, **options: P.kwargs) -> R:
        with _speaking(library.path):
            return method(library, *arguments, **options)

    return told


class Library:
    """A table on the disk; whatever LanceDB finds wrong with it is a UserError."""

    def __init__(self, path: Path, table: Any) -> None:
        self.path = path
        self._table = table

    @classmethod
    @contextmanager
    def held(cls, path: Path, description: Mapping[str, Any] | None = None) -> Iterator[Library]:
        """A library that no other process writes to during the block, at whose end its files are noted by checksum.
        Where there is none, one with the description is made. Raises UserError where another process writes to it, and
        as `open` and `create` do."""
        if description is None:
            cls.open(path)
        path.mkdir(parents=True, exist_ok=True)
        with held(path, f"{path} is being written by another process; wait for it, then give the command again."):
            yield cls.open(path) if description is None or cls.exists(path) else cls.create(path, description)
            with _speaking(path):
                record(path)

    @classmethod
    def create(cls, path: Path, description: Mapping[str, Any]) -> Library:
        """An empty library for the vectors of a model, whose `dimension` is among the description. Raises UserError as
        `require_free` does."""
        cls.require_free(path)
        numbers = pa.list_(pa.float32(), description["dimension"])
        vector = pa.field("vector", numbers, False, _metadata(description))
        fields = [vector if name == "vector" else pa.field(name, pa.string(), False) for name in OWN]
        if description.get("passages"):
            fields += [pa.field(name, kind, False) for name, kind in PLACED.items()]
        with _speaking(path):
            return cls(path, _database(path).create_table(_name(path), schema=pa.schema(fields)))

    @staticmethod
    def require_free(path: Path) -> None:
        """Raise a UserError where a library cannot come to stand; what a crash left of one is no obstacle."""
        _name(path)
        _database(path)
        if path.exists() and (not path.is_dir() or {child.name for child in path.iterdir()} - BEGUN):
            raise UserError(f"{path} exists already and is no library; give another --out.")

    @classmethod
    def open(cls, path: Path) -> Library:
        """An existing table. Raises UserError where there is none, or it is another program's."""
        name = _name(path)
        if not cls.exists(path):
            raise UserError(f"There is no library {path}; make one with: selfsup index RUN --data … --out {path}")
        with _speaking(path):
            verify(path)
            table = _database(path).open_table(name)
            if not _is_ours(table.schema):
                raise UserError(
                    f"{path} was not made by selfsup index as it is now, or it is damaged; make it anew, under another "
                    "name."
                )
        return cls(path, table)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a table stands there: a directory with a version of one."""
        return any((path / "_versions").glob("*"))

    # -- what is stored --

    @property
    def description(self) -> dict[str, Any]:
        """What `describe` stored."""
        return _description(self._table.schema)

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self.description["dimension"])

    def admit(self, model: EmbeddingModel) -> None:
        """Keep of a model's vectors as many numbers as those of the library have. Raises UserError where it was made by
        another model."""
        if model.dimension > self.dimension:
            model.cut(self.dimension)
        self.require_model(model.description())

    def require_model(self, described: Mapping[str, Any]) -> None:
        """Raise a UserError where the library was made by another model than one of a description."""
        made = self.description
        if made["model_fingerprint"] != described["model_fingerprint"]:
            raise UserError(
                f"{self.path} was made by another model ({made['model']}) than {described['model']}, so their vectors "
                "cannot be compared; give the one that made it, or make a new library."
            )

    @property
    def passages(self) -> dict[str, int] | None:
        """How its documents were cut; None where they are whole."""
        return self.description.get("passages")

    @property
    def own(self) -> tuple[str, ...]:
        """The columns that do not come from the data."""
        return (*OWN, *PLACED) if self.passages else OWN

    def require_passages(self, passages: Mapping[str, int] | None) -> None:
        """Raise a UserError where its documents were cut otherwise."""
        made, wanted = (
            "whole documents" if cut is None else "passages of {tokens} tokens that share {overlap}".format(**cut)
            for cut in (self.passages, passages)
        )
        if made != wanted:
            raise UserError(
                f"{self.path} was made of {made}, not of {wanted}; leave out --passages and --overlap, or make a new "
                "library."
            )

    @_told
    def describe(self, description: Mapping[str, Any]) -> None:
        """Replace it."""
        self._table.update_field_metadata({"path": "vector", "metadata": _metadata(description)})

    @property
    def kinds(self) -> dict[str, pa.DataType]:
        """The type of each column that came from the data."""
        return {field.name: field.type for field in self._table.schema if field.name not in self.own}

    @_told
    def widen(self, kinds: Mapping[str, pa.DataType]) -> None:
        """Add columns, which are null in the rows that are there."""
        if kinds:
            self._table.add_columns([pa.field(name, kind) for name, kind in kinds.items()])

    @_told
    def count(self) -> int:
        """How many records there are."""
        return int(self._table.count_rows())

    @_told
    def hashes(self) -> dict[str, tuple[str, str]]:
        """By id: the hash of the content, the hash of the other columns."""
        keys, contents, values = self._read("id", "content_hash", "values_hash")
        return dict(zip(keys, zip(contents, values, strict=True), strict=True))

    @_told
    def documents(self) -> dict[str, set[str]]:
        """The ids of the records of each document; of a library of whole ones none."""
        found: dict[str, set[str]] = {}
        if self.passages:
            for document, key in zip(*self._read("document", "id"), strict=True):
                found.setdefault(document, set()).add(key)
        return found

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with anything in it."""
        return digest(f"{self._table.version} {fingerprint(self.path)}".encode())

    @property
    def has_words(self) -> bool:
        """Whether its words are indexed, as a hybrid search needs."""
        return self._index("text") is not None

    @_told
    def columns(self, *names: str) -> pa.Table:
        """Some columns of all records."""
        return self._table.search().select(list(names)).to_arrow()

    def _read(self, *names: str) -> list[list[str]]:
        found = self.columns(*names)
        return [found.column(name).to_pylist() for name in names]

    @_told
    def sample(self, most: int) -> tuple[list[str], Vectors]:
        """The ids and vectors (n, dimension) of all records; where they are more than so many, of some that are
        drawn."""
        count = self.count()
        if count <= most:
            found = self.columns("id", "vector")
        else:
            places = np.sort(np.random.default_rng(derive(0, "sample")).choice(count, most, replace=False)).tolist()
            found = self._table.take_offsets(places).select(["id", "vector"]).to_arrow()
        return found.column("id").to_pylist(), _matrix(found)

    @_told
    def record(self, key: str) -> dict[str, Any]:
        """All of a record but its vector and hashes. Raises UserError where there is none."""
        names = [name for name in self._table.schema.names if name not in OWN[3:]]
        found = self._table.search().where(_among([key])).select(names).limit(1).to_list()
        if not found:
            raise UserError(f"{self.path} holds no record with the id {key!r:.200}.")
        return dict(found[0])

    @_told
    def vectors(self, ids: Sequence[str]) -> Vectors:
        """The vectors (n, dimension) of records that are there."""
        found = self._table.search().where(_among(ids)).select(["id", "vector"]).limit(len(ids)).to_arrow()
        place = {key: number for number, key in enumerate(found.column("id").to_pylist())}
        return _matrix(found)[[place[key] for key in ids]]

    @_told
    def put(self, rows: Mapping[str, Sequence[Any]], vectors: Vectors) -> None:
        """Insert records, given by column, or replace those of the same ids; at once or not at all."""
        schema = self._table.schema
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        columns = [numbers if field.name == "vector" else pa.array(rows[field.name], field.type) for field in schema]
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(pa.table(columns, schema=schema))

    @_told
    def delete(self, ids: Sequence[str]) -> None:
        """Remove records, of a document all. Raises UserError where there is no such record, and removes none then."""
        if not ids:
            return
        known = [key for key in ids if not SURROGATE.search(key)] or [""]  # what is no valid text is no id
        names = ["id", "document"] if self.passages else ["id"]
        condition = " OR ".join(_among(known, name) for name in names)
        found = self._table.search().where(condition).select(names).to_arrow()
        if missing := set(ids).difference(*(found.column(name).to_pylist() for name in names)):
            raise UserError(f"{self.path} holds no record with the id {min(missing)!r}; nothing was deleted.")
        self._table.delete(condition)

    @_told
    def remove(self, ids: Sequence[str]) -> None:
        """Remove records, each by its own id."""
        for start in range(0, len(ids), AT_ONCE):
            self._table.delete(_among(ids[start : start + AT_ONCE]))

    # -- how it is searched --

    @_told
    def settle(self, worded: bool) -> None:
        """Bring the files in order, index the words of what has any, and the vectors where there are many and not all
        were indexed yet."""
        rows = self.count()
        stale = rows >= EXACT_ROWS and not self._is_indexed(rows)
        self._table.optimize()  # which adds new records to the indices that are there
        if worded and rows and self._index("text") is None:
            self._index_words()
        if stale:
            self._index_vectors(rows)

    def _index_words(self) -> None:
        from lancedb.index import FTS

        config = FTS(base_tokenizer=SEGMENTS, stem=False, remove_stop_words=False)  # of no one language
        self._table.create_index("text", config=config)
        self._table.wait_for_index([self._index("text")])

    def _index_vectors(self, rows: int) -> None:
        from lancedb.index import IvfSq

        self._table.create_index("vector", config=IvfSq(distance_type="cosine"), replace=True)
        self._table.wait_for_index([self._index("vector")])
        measured = {"index": "IVF_SQ", "recall@10": self._recall(), "queries": QUERIES, "rows": rows}
        self.describe(self.description | {"index": measured})

    def _is_indexed(self, rows: int) -> bool:
        index = self._index("vector")
        if index is None or self.description.get("index", {}).get("rows") != rows:
            return False
        return bool(self._table.index_stats(index).num_unindexed_rows == 0)

    @_told
    def search(self, vector: Vectors, top: int, where: str | None = None) -> list[dict[str, Any]]:
        """The nearest records by cosine distance (`_distance`), nearest first, without their vectors. Raises UserError
        where `where` is no condition on the columns."""
        return self._found(self._nearest(vector, top, exact=False), "_distance", where)

    @_told
    def worded(self, words: str, top: int, where: str | None = None) -> list[dict[str, Any]]:
        """The records that hold any of some words, those first that match best by BM25 (`_score`), by id where they
        match alike. Whatever stands in a query is words, never syntax. Raises UserError where the words were never
        indexed, and as `search` does."""
        from lancedb.query import MatchQuery

        if self._index("text") is None:
            raise UserError(
                f"{self.path} has no index of its words; give the `selfsup index` that made it again, which adds one."
            )
        match: Any = MatchQuery  # whose other fields have defaults that its types do not know
        query = self._table.search(match(words, "text"), query_type="fts").limit(top)
        return sorted(self._found(query, "_score", where), key=lambda row: (-row["_score"], row["id"]))

    def _found(self, query: Any, figure: str, where: str | None) -> list[dict[str, Any]]:
        """What a query finds under a condition, without vectors."""
        names = [name for name in self._table.schema.names if name not in OWN[3:]]
        query = query.select([*names, figure])
        if where is None:
            return list(query.to_list())
        from selfsup.inference.conditions import enclosed

        with _failing(
            lambda error: (
                f"The condition {_shortened(str(where))!r} cannot be used ({_reason(error)}); it is one expression in "
                f"SQL over the columns {', '.join(names)}, such as \"source LIKE '%.txt'\"."
            )
        ):
            return list(query.where(enclosed(where)).to_list())

    def _nearest(self, vector: Vectors, top: int, exact: bool) -> Any:
        query = self._table.search(vector, vector_column_name="vector").distance_type("cosine").limit(top)
        return query.bypass_vector_index() if exact else query.nprobes(CELLS).refine_factor(CANDIDATES)

    def _index(self, column: str) -> str | None:
        names = [index.name for index in self._table.list_indices() if index.columns == [column]]
        return names[0] if names else None

    def _recall(self) -> float:
        """The share of the exact ten nearest others that the index finds, over records drawn as queries."""
        random = np.random.default_rng(derive(0, "recall"))
        places = np.sort(random.choice(self.count(), QUERIES, replace=False)).tolist()
        drawn = self._table.take_offsets(places).select(["id", "vector"]).to_arrow()
        shares = []
        for key, vector in zip(drawn.column("id").to_pylist(), _matrix(drawn), strict=True):
            queries = (self._nearest(vector, NEIGHBOURS + 1, how) for how in (True, False))
            exact, found = ({row["id"] for row in q.select(["id", "_distance"]).to_list()} for q in queries)
            others = exact - {key}
            shares.append(len(others & found) / len(others))
        return float(np.mean(shares))


def _description(schema: pa.Schema) -> dict[str, Any]:
    """What `Library.describe` stored; raises KeyError, TypeError or ValueError where it stored nothing there."""
    return dict(json.loads(schema.field("vector").metadata[KEY.encode()]))


def _is_ours(schema: pa.Schema) -> bool:
    """Whether a table has the columns of a library, and says of which model its vectors are."""
    columns = {field.name: field.type for field in schema}
    try:
        description = _description(schema)
        vectors = pa.list_(pa.float32(), description["dimension"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return False
    passages = description.get("passages")
    if not isinstance(description.get("index", {}), dict) or not (passages is None or _is_cut(passages, columns)):
        return False
    facts = [description.get(key) for key in ("model", "model_fingerprint", "pooling")]
    texts = [columns.get(name) == pa.string() for name in OWN if name != "vector"]
    return all(texts) and columns["vector"] == vectors and all(isinstance(fact, str) for fact in facts)


def _is_cut(passages: object, columns: Mapping[str, pa.DataType]) -> bool:
    """Whether a table of passages says how they were cut, and has their columns."""
    if not isinstance(passages, dict) or passages.keys() != {"tokens", "overlap"}:
        return False
    numbers = all(isinstance(number, int) for number in passages.values())
    return numbers and all(columns.get(name) == kind for name, kind in PLACED.items())


def _metadata(description: Mapping[str, Any]) -> dict[str, str]:
    return {KEY: json.dumps(dict(description), ensure_ascii=False)}


def _database(path: Path) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise UserError("Libraries need LanceDB: pip install 'selfsup[search]'.") from error
    return lancedb.connect(path.parent)


def _name(path: Path) -> str:
    if path.suffix != ".lance" or not re.fullmatch(r"[A-Za-z0-9_.-]+", path.stem):
        raise UserError(
            f"{path} is no name for a library; it ends in .lance, with letters, digits, _, - and . before that, "
            "such as library.lance."
        )
    return path.stem


@contextmanager
def _failing(told: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn what LanceDB raises into one sentence."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, FAILURES) and PANIC not in type(error).__name__:
            raise
        raise UserError(told(error)) from error


def _speaking(path: Path) -> AbstractContextManager[None]:
    """The same, where a library cannot be used."""

    def told(error: BaseException) -> str:
        if NO_SPACE in str(error):
            return (
                f"There is no space left on the device for {path}; what is in it can be searched as before: make room, "
                "then give the same command again."
            )
        return f"{path} cannot be used ({_reason(error)}); restore it or make it anew."

    return _failing(told)


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _reason(error: BaseException) -> str:
    """What LanceDB says, without the place in its own sources and the columns, which are named anyway."""
    text = re.sub(r", /\S+\.rs:\d+:\d+.*|\.? Valid fields are .*", "", " ".join(str(error).split()))
    return _shortened(text.removeprefix("Invalid input, ").removeprefix("lance error: ").rstrip("."))


def _among(values: Sequence[str], name: str = "id") -> str:
    return "{} IN ({})".format(name, ", ".join("'{}'".format(value.replace("'", "''")) for value in values))


def _matrix(table: pa.Table) -> Vectors:
    column = table.column("vector").combine_chunks()
    vectors: Vectors = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors
