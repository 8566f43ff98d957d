"""The directory where prepared data are kept from one command to the next."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from selfsup.files import damage, expanded, temporary_name, whole_directory, writable, write_manifest

REMEDY = "make room there or set SELFSUP_CACHE to another directory."

_log = logging.getLogger(__name__)


def cache_directory(cache: str | Path | None = None) -> Path:
    """The one given, else $SELFSUP_CACHE, else ~/.cache/selfsup."""
    return expanded(cache or os.environ.get("SELFSUP_CACHE") or "~/.cache/selfsup")


def kept(kind: str, key: str, build: Callable[[Path], None], cache: str | Path | None = None) -> Path:
    """A directory of the cache, `kind`/`key`: the one that is there, or, where it is missing or damaged, a new one that
    is built. All of it is read and held against its checksums, before anything is made of it."""
    place = cache_directory(cache) / kind / key
    with writable(place.parent.parent, REMEDY):
        if os.path.lexists(place) and (problem := damage(place)) is not None:
            _log.warning("The prepared data in the cache, %s, are damaged (%s): preparing them again.", place, problem)
            forget(place)
        if not place.exists():
            with suppress(FileExistsError), whole_directory(place) as temporary:  # the first of two builders stays
                build(temporary)
                write_manifest(temporary)
    return place


def forget(place: Path) -> None:
    """Take a directory out of the cache, under its name all at once."""
    with writable(place.parent.parent, REMEDY):
        place.rename(dying := temporary_name(place))
    shutil.rmtree(dying, ignore_errors=True)


def kept_file(kind: str, name: str, key: Iterable[object], write: Callable[[Path], None]) -> Path:
    """A file of the cache, written where it is not there; `key` is all that it depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in key:
        digest.update(f"{part!r}\n".encode(errors="surrogatepass"))
    return kept(kind, digest.hexdigest(), lambda directory: write(directory / name)) / name


def kept_table(kind: str, key: Iterable[object], build: Callable[[], Any]) -> Any:
    """An Arrow table of the cache, built where it is not there."""
    return pq.read_table(kept_file(kind, "table.parquet", key, lambda path: pq.write_table(build(), path)))
