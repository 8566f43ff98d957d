"""What a user points at: files, a table, or items from Python. Sources of texts and of images both begin here.

Of all sources only `hub:NAME[/CONFIG][:SPLIT]`, a data set of the Hugging Face hub, uses the network. Files
are read with pyarrow, `csv` and `json`; `datasets` serves the hub and its own objects.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfsup.data.arrow_files import BATCH_ROWS, ArrowFile
from selfsup.data.discovery import File, Found, find, is_remote
from selfsup.errors import UserError
from selfsup.files import expanded

_HERE = Path(__file__).parent / "samples"
SAMPLES = {"shakespeare": _HERE / "shakespeare.txt", "emoji": _HERE / "emoji.parquet"}


@dataclass(frozen=True)
class Medium:
    """What is to be read."""

    noun: str  # in messages, such as `text`
    reads: Callable[[str], bool]  # whether a file of that name is read
    readable: str  # the same in words
    accepts: str  # the kinds of sources, in words


@dataclass(frozen=True)
class Origin:
    """What a user pointed at, found but not read: one of files, a table and items."""

    name: str
    found: Sequence[Found] = ()  # what each path stands for
    table: ArrowFile | None = None
    items: Sequence[Any] = ()
    split: str | None = None  # the part of a data set that its files are chosen by, where there are others

    @property
    def files(self) -> list[File]:
        return [file for found in self.found for file in found.files]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The files and folders that are not read, in words."""
        return tuple(filter(None, (found.told() for found in self.found)))


def origin_of(source: object, medium: Medium, split: str | None = None) -> Origin:
    """What a source stands for; for the split see `selfsup.data.discovery.Found.of`. Raises UserError: nothing there,
    nothing readable, or no source at all."""
    if isinstance(source, list | tuple | np.ndarray) and len(source):
        items: Sequence[Any] = list(source) if isinstance(source, np.ndarray) else source
        if not all(isinstance(item, Path) for item in items):
            return Origin(f"the list of {len(items)} {medium.noun}s", items=items)
        name = f"{items[0]} and {len(items) - 1} more" if items[1:] else str(items[0])
        return _of_files(name, items, medium, split)
    if isinstance(source, str) and source.startswith("sample:"):
        if (name := source.removeprefix("sample:")) not in SAMPLES:
            raise UserError(f"There is no bundled sample {name!r}: choose one of {', '.join(SAMPLES)}.")
        return _of_files(source, [SAMPLES[name]], medium, None)
    if isinstance(source, str) and source.startswith("hub:"):
        return Origin(source, table=_of_dataset(source, _load_from_hub(source)))
    if isinstance(source, str | Path) and str(source):
        return _of_files(str(source), [expanded(source)], medium, split)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        name = "the data set given from Python"
        return Origin(name, table=_of_dataset(name, source))
    if hasattr(source, "__arrow_c_stream__"):  # data frames of pandas and polars, tables of Arrow
        name = f"the {type(source).__name__} given from Python"
        return Origin(name, table=_of_frame(name, source))
    if source == "":
        raise UserError("The name of the data is empty; give a path, hub:NAME or sample:NAME.")
    raise no_source(source, medium)


def absolute(source: str) -> str:
    """A local path as an absolute one, so that it is found from anywhere; other names of sources as they are."""
    if not source or source.startswith(("sample:", "hub:", "python:")) or is_remote(source):
        return source
    return str(expanded(source).absolute())


def no_source(source: object, medium: Medium) -> UserError:
    """What to say of an object that is none."""
    return UserError(f"A {type(source).__name__} is no {medium.noun} source: give {medium.accepts}.")


def _of_files(name: str, places: Sequence[Path], medium: Medium, split: str | None) -> Origin:
    every = [find(place, medium.reads, medium.readable) for place in places]
    chosen = [found.of(split) for found in every]
    others = sum(len(found.files) for found in every) > sum(len(found.files) for found in chosen)
    return Origin(name, chosen, split=("train" if split == "training" else split) if others else None)


def _of_frame(name: str, frame: Any) -> ArrowFile:
    try:
        table = pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"{name} is no table that Arrow can hold ({' '.join(str(error).split())}); give the texts as strings, and "
            "give the images as bytes or paths."
        ) from error

    def read(columns: list[str]) -> Iterator[Any]:
        return iter(table.select(columns).to_batches(BATCH_ROWS))

    return ArrowFile(Path(name), table.schema, table.num_rows, table.nbytes, True, read)


def _of_dataset(name: str, dataset: Any) -> ArrowFile:
    """A `datasets.Dataset`, whose images it keeps encoded or as paths."""
    rows = dataset.with_format("arrow")
    one = cache(lambda column: rows.select_columns([column]))

    def read(columns: list[str]) -> Iterator[Any]:
        for table in rows.select_columns(columns).iter(BATCH_ROWS):
            yield from table.combine_chunks().to_batches()

    def at(column: str, row: int) -> Any:
        return one(column)[row].column(column)[0]

    return ArrowFile(Path(name), dataset.features.arrow_schema, len(dataset), 0, True, read, at)


def _load_from_hub(source: str) -> Any:
    """The map-style data set behind `hub:NAME[/CONFIG][:SPLIT]`; the split is `train` unless given."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"Reading {source} needs the datasets library: pip install 'selfsup[hub]'.") from error
    path, _, split = source.removeprefix("hub:").partition(":")
    user, _, rest = path.partition("/")
    name, _, config = rest.partition("/")
    try:
        where = "/".join(filter(None, (user, name)))
        return datasets.load_dataset(where, config or None, split=split or "train")
    except Exception as error:  # network, authorisation, an unknown name, split or config: many classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{source} cannot be loaded from the hub ({reason}); the form is hub:user/name[/config][:split]."
        ) from error
