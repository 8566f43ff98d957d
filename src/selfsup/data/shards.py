"""A stream of tokens that lies in shards: where they are, and how they are read, piece by piece.

A shard is a plain array of little-endian unsigned numbers of 16 or 32 bits. It is read in pieces of `PIECE` bytes, each
of which has a checksum; one that cannot be read, or differs, counts as lost.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from selfsup.data.tokenizers import Ids
from selfsup.errors import UserError

PIECE = 1 << 20  # bytes of a shard that have one checksum
BLOCK = 1 << 22  # bytes of tokens whose records are one block of the order of training
AT_HAND = 128  # pieces: more than a window of blocks has
MOST_TOKENS = 1 << 44  # of a shard

Width = Literal["uint16", "uint32"]
Numbers = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)


class Shard(BaseModel):
    """What a corpus says of one of its shards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^(train|validation)/\d{5,9}\.bin$")]  # below the corpus
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    checksums: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], ...]  # of each piece


def digest(data: bytes) -> str:
    """The checksum of a piece: BLAKE2b, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def checksums_of(path: Path) -> tuple[str, ...]:
    """Of the pieces of a file."""
    with path.open("rb") as file:
        return tuple(iter(lambda: digest(data) if (data := file.read(PIECE)) else "", ""))


class Place(Protocol):
    """Where the files of a corpus lie."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def whole(self, name: str, most: int) -> bytes:
        """A file; raises an OSError where it cannot be read, or has more than so many bytes."""

    def piece(self, name: str, start: int, stop: int, checksum: str) -> Numbers:
        """The bytes [start, stop) of a file; raises an OSError where they cannot be read, or differ."""


class TokenShards:
    """A stream of tokens in shards, read as an array is: `len`, slices, and runs of tokens at many places.

    At most `AT_HAND` pieces are in memory. Where one is lost, that is said, and the next one that can be read stands in
    its place; a UserError ends it where more than the share `failures` of the pieces are.
    """

    def __init__(self, place: Place, shards: Sequence[Shard], width: Width, vocabulary: int, failures: float) -> None:
        self.dtype = np.dtype(width).newbyteorder("<")
        self._place, self._shards, self._vocabulary, self._failures = place, shards, vocabulary, failures
        self._each = PIECE // self.dtype.itemsize  # tokens of a whole piece
        pieces = [len(shard.checksums) for shard in shards]
        self._first = np.cumsum([0, *pieces])  # piece of each shard
        self._starts = np.concatenate([*map(self._starts_of, self._tokens_before(), shards), np.zeros(0, np.int64)])
        self._length = sum(shard.tokens for shard in shards)
        self._lost: set[int] = set()
        self._read = lru_cache(AT_HAND)(self._piece)

    def _tokens_before(self) -> list[int]:
        """How many tokens are before each shard."""
        return list(itertools.accumulate((shard.tokens for shard in self._shards), initial=0))[:-1]

    def _starts_of(self, before: int, shard: Shard) -> npt.NDArray[np.int64]:
        return before + self._each * np.arange(len(shard.checksums), dtype=np.int64)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: slice) -> Ids:
        """Tokens in a row, copied."""
        start, stop, _ = places.indices(self._length)
        row: Ids = self.runs(np.array([start]), max(0, stop - start))[0]
        return row

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole: npt.NDArray[Any] = self[:].astype(dtype or self.dtype, copy=False)
        return whole

    def runs(self, starts: npt.NDArray[np.int64], length: int) -> Ids:
        """The `length` tokens from each of the places (n,) on, (n, length)."""
        found = np.empty((len(starts), length), self.dtype)
        pieces = np.searchsorted(self._starts, starts, "right") - 1
        for row, piece, start in zip(found, pieces.tolist(), starts.tolist(), strict=True):
            self._fill(row, piece, start)
        return found

    def _fill(self, row: Ids, piece: int, start: int) -> None:
        done = 0
        while done < len(row):
            tokens = self._read(piece)
            part = tokens[start + done - int(self._starts[piece]) :][: len(row) - done]
            row[done : done + len(part)] = part
            done += len(part)
            piece += 1

    def _piece(self, number: int) -> Ids:
        """The tokens of a piece; those of the next one, over and over if need be, where it is lost."""
        if number not in self._lost:
            try:
                return self._readable(number)
            except OSError as error:
                self._lose(number, error)
        _, start, stop = self._lies(number)
        return np.resize(self._read((number + 1) % len(self._starts)), stop - start)

    def _readable(self, number: int) -> Ids:
        shard, start, stop = self._lies(number)
        size, checksum = self.dtype.itemsize, self._shards[shard].checksums[number - int(self._first[shard])]
        tokens = self._place.piece(self._shards[shard].name, start * size, stop * size, checksum).view(self.dtype)
        if int(tokens.max()) >= self._vocabulary:
            raise OSError("it holds tokens that the tokenizer has not")
        return tokens

    def _lies(self, number: int) -> tuple[int, int, int]:
        """The shard of a piece, and where it begins and ends there, in tokens."""
        shard = int(np.searchsorted(self._first, number, "right")) - 1
        start = self._each * (number - int(self._first[shard]))
        return shard, start, min(start + self._each, self._shards[shard].tokens)

    def _lose(self, number: int, error: OSError) -> None:
        """Count a lost piece. Raises UserError: there are more than may be."""
        self._lost.add(number)
        shard, start, stop = self._lies(number)
        size, reason = self.dtype.itemsize, error.strerror or str(error)
        where = f"{self._place.name}/{self._shards[shard].name}, bytes {start * size:,} to {stop * size:,}"
        if len(self._lost) > self._failures * len(self._starts):
            raise UserError(
                f"{where}, cannot be read ({reason}); {len(self._lost):,} of {len(self._starts):,} pieces are lost, "
                f"more than the share of {self._failures:g} that may be (data.failures): restore it, or prepare the "
                "corpus again."
            ) from None
        _log.warning("%s, cannot be read (%s): what follows it stands in its place.", where, reason)


Tokens = Ids | TokenShards


def runs_of(tokens: Tokens, length: int) -> Callable[[npt.NDArray[np.int64]], Ids]:
    """What reads the `length` tokens from each of some places (n,) on, (n, length)."""
    if isinstance(tokens, TokenShards):
        return partial(tokens.runs, length=length)
    # A view of every run; the plain array spares memmap's cost per access.
    return np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), length).__getitem__


def block_of(tokens: Tokens, width: int, records: int) -> int:
    """Of so many records, those in a block of the order, each of `width` tokens; of what lies in memory all."""
    return max(1, BLOCK // (width * tokens.dtype.itemsize)) if isinstance(tokens, TokenShards) else records
