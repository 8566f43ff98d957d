"""A collection of readable images: opened from anywhere, each looked at once."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from selfsup.data.cache import kept_table
from selfsup.data.columns import Wanted
from selfsup.data.images import decoding
from selfsup.data.images.captions import no_captions
from selfsup.data.images.decoding import BadImage, Pixels, decode, hash_of, reduced, size_of
from selfsup.data.images.sources import images_of, store_of
from selfsup.data.images.stores import FORMAT, ROOM, SHARE, Store, for_all
from selfsup.data.origins import origin_of
from selfsup.data.parts import Malformed
from selfsup.data.tally import NAMED, Skipped, Tally, refusal, require_share, too_many
from selfsup.errors import HALF, UserError
from selfsup.machine import free_memory
from selfsup.report import Progress

Indices = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)

SMALL = 1 << 32  # bytes of pixels: a collection of no more is decoded when it is opened
LONG = 10_000  # images: the index of so many is kept
FREE, TIMES = 1 << 28, 100  # decoded images that are held take so many bytes, and so many times their files


class Unreadable(UserError):
    """An image that cannot be decoded, found when it was to be read."""


class Images:
    """A collection of readable images, map-style; threads may read it at once.

    What is found unreadable when the collection is opened (everything where its decoded pixels are `SMALL`, else what
    the headers tell) is left out: indices count what remains.

    Attributes:
        name: what messages call it.
        sizes: int64 (n, 2), height and width of each; of images that are not `SMALL` as the header has them, before
            they are turned or cut.
        hashes: uint64 (n,), of the content of each file.
        labels: int64 (n,), the class of each image, -1 where it has none; None where the source has no classes.
        classes: their names, by which the classes of two sources are matched.
        captions: of each image one or more; None where none were asked for, or none found.
    """

    def __init__(self, store: Store, index: _Index, skipped: Skipped, failures: float) -> None:
        self.name = store.name
        self._good = np.delete(np.arange(store.count), list(index.problems))
        if not len(self._good):
            raise UserError(f"{store.name} holds no images: point at data with at least one.")
        self.sizes = index.sizes[self._good]
        self.hashes = index.hashes[self._good]
        self.labels, self.classes = _numbered(store, self._good)
        self.captions = None if store.captions is None else store.captions.take(self._good)
        self._store = store
        self._small = index.small
        self._held = index.held
        self._skipped, self._failures = skipped, failures
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._good)

    @property
    def duplicates(self) -> int:
        """How many images equal an earlier one."""
        return len(self) - len(np.unique(self.hashes))

    @property
    def skipped(self) -> Skipped:
        """The images that cannot be read, as far as they have been found."""
        found = self._skipped
        names = (*found.names, *self._bad.values())[:NAMED]
        return replace(found, count=found.count + len(self._bad), names=names)

    @property
    def stack(self) -> Pixels | None:
        """All pixels (n, H, W, 3), where they are held in memory and the images are equally large."""
        return self._held if isinstance(self._held, np.ndarray) else None

    def pixels(self, index: int, least: int | None = None) -> Pixels:
        """An image, uint8 (H, W, 3), not to be written to. With `least`, a larger image may be reduced, but never to a
        short side below; see `selfsup.data.images.decoding.decode`. Raises Unreadable, or UserError where more than may
        be cannot be read."""
        if self._held is not None:
            return reduced(self._held[index], least)
        try:
            with ROOM.taken(_work(self.sizes[index])):
                image = self._store.read(int(self._good[index]))
                # A small collection gives the same pixels whether or not there is memory to hold it.
                return reduced(decode(image), least) if self._small else decode(image, least)
        except (BadImage, OSError) as error:
            raise self._refusal(index, _reason(error)) from None

    def place(self, index: int) -> str:
        """Where an image stands, such as `photos/cat.jpg` or `train.parquet, row 3`."""
        return self._store.place(int(self._good[index]))

    @property
    def notes(self) -> dict[str, str]:
        """What to tell of how the source is read: the column of the images, and what lies there and is none."""
        told = {"column": self._store.column, "left out": "; ".join(self.skipped.left_out)}
        return {name: text for name, text in told.items() if text}

    def fingerprint(self) -> str:
        """32 hex digits that depend on the content and order of images and captions, not on where they lie."""
        digest = hashlib.blake2b(self.hashes.tobytes(), digest_size=16)
        for captions in self.captions or ():
            digest.update(repr(captions).encode())
        return digest.hexdigest()

    def _refusal(self, index: int, reason: str) -> UserError:
        place = self.place(index)
        with self._lock:
            if index not in self._bad:
                self._bad[index] = f"{place}: {reason}"
                _log.warning("%s cannot be read (%s).", place, reason)
            skipped = self.skipped
        if too_many(skipped, self._failures):
            return refusal(self.name, skipped, self._failures)
        return Unreadable(f"{place} cannot be read ({reason}): repair it or leave it out.")


def open_images(
    source: object,
    *,
    column: str | None = None,
    label: str | None = None,
    captions: Sequence[str] | None = None,
    failures: float = 0.01,
    split: str | None = None,
    progress: Progress | None = None,
) -> Images:
    """Open any source of images (see the module's description) and look at each image once.

    Args:
        column: the column of images or paths; by default one with a usual name, else the first that holds any.
        label: the column of classes; by default one with a usual name, where there is one.
        captions: where the captions are, see `selfsup.data.pairs`; with () they are found by themselves, if there are
            any, and an image without one counts as unreadable. By default none are read.
        failures: the share of unreadable images, from 0 to 1, above which reading stops.
        split: the part of a data set to read, see `selfsup.data.sources.open_text`.
        progress: called with the images done and all, once while their captions are read from files of their own,
            once while they are looked at, once while they are decoded.

    Raises:
        UserError: nothing there, no such column, too many images that cannot be read, none that can, no caption
            under the names given.
    """
    if isinstance(source, Images):
        return source
    require_share(failures)
    progress = progress or (lambda done, total: None)
    named = (captions,) if isinstance(captions, str) else captions
    wanted = Wanted(column, label, None if named is None else tuple(named))
    origin = origin_of(source, images_of(), split)
    tally = Tally(origin.name, failures)
    store = store_of(origin, wanted, tally, progress)
    if wanted.captions and store.captions is None:
        raise no_captions(store.name)
    index = _looked_at(store, progress)
    if index.small:
        _decode_all(store, index, progress)
    for number in range(store.count):
        problem = index.problems.get(number)
        tally.count(store.place(number) if problem else "", problem and Malformed(problem))
    skipped = replace(tally.close(), left_out=store.left_out)
    return Images(store, index, skipped, failures)


# -- looking at every image once -----------------------------------------------------------------------------


@dataclass
class _Index:
    """What is known of each image of a store: hashes uint64 (n,), sizes int64 (n, 2), problems by number."""

    hashes: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    problems: dict[int, str]
    held: Sequence[Pixels] | Pixels | None = None  # of the images without a problem

    @property
    def bytes(self) -> int:
        """Of the pixels of all images."""
        return 3 * int(self.sizes.prod(1).sum())

    @property
    def small(self) -> bool:
        return self.bytes <= SMALL


def _looked_at(store: Store, progress: Progress) -> _Index:
    """The index of a store, which is kept where it is long and its stamp tells when it changes."""
    if store.stamp is None or store.count < LONG:
        table = _look(store, progress)
    else:
        table = kept_table("images", ("index", FORMAT, *store.stamp()), lambda: _look(store, progress))
    hashes, heights, widths = (table.column(name).to_numpy() for name in ("hash", "height", "width"))
    problems = {i: text for i, text in enumerate(table.column("problem").to_pylist()) if text is not None}
    if store.captions is not None:
        bare = np.flatnonzero(store.captions.counts() == 0).tolist()
        problems = dict.fromkeys(bare, "it has no caption") | problems
    return _Index(hashes, np.stack([heights, widths], 1), problems)


def _look(store: Store, progress: Progress) -> Any:
    """An Arrow table of hashes, sizes from the headers, and what cannot be read at all."""
    hashes = np.zeros(store.count, np.uint64)
    sizes = np.zeros((store.count, 2), np.int64)
    problems: list[str | None] = [None] * store.count

    def look(number: int) -> None:
        try:
            hashes[number], sizes[number] = _look_at(store, number)
        except (BadImage, OSError) as error:
            problems[number] = _reason(error)

    for_all(store.count, look, progress)
    columns = [hashes, sizes[:, 0], sizes[:, 1], pa.array(problems, pa.string())]
    return pa.table(columns, ["hash", "height", "width", "problem"])


def _look_at(store: Store, number: int) -> tuple[int, tuple[int, int]]:
    """Hash and size of an image, of a file from its two ends where they tell."""
    if store.span is None:
        image = store.read(number)
        return hash_of(image), size_of(image)
    span = store.span(number)
    head, tail = span.ends()
    if not decoding.stored_plainly(head):
        with suppress(BadImage):  # some formats have their header elsewhere
            return decoding.hash_of_ends(span.size, head, tail), size_of(head, span.size)
    with ROOM.taken(span.size):
        whole = span.read()
        return hash_of(whole), size_of(whole)


def _work(size: npt.NDArray[np.int64]) -> int:
    """Bytes that decoding an image takes."""
    return decoding.WORK * int(size.prod())


def _decode_all(store: Store, index: _Index, progress: Progress) -> None:
    """Decode every image of a small collection, and hold all in the index where memory allows it, and they do not take
    far more than their files."""
    decoded: list[Pixels | None] = [None] * store.count
    lock, room = threading.Lock(), FREE
    held = index.bytes <= free_memory(torch.device("cpu")) // SHARE

    def work(number: int) -> None:
        nonlocal held, room
        if number in index.problems:
            return
        try:
            with ROOM.taken(_work(index.sizes[number])):
                image = store.read(number)
                pixels = decode(image)
        except (BadImage, OSError) as error:
            index.problems[number] = _reason(error)
            return
        index.sizes[number] = pixels.shape[:2]
        with lock:
            room += TIMES * (len(image) if isinstance(image, bytes) else pixels.nbytes) - pixels.nbytes
            held &= room >= 0
            decoded[number] = pixels if held else None

    for_all(store.count, work, progress)
    if held:
        kept = [pixels for pixels in decoded if pixels is not None]
        index.held = np.stack(kept) if len({pixels.shape for pixels in kept}) == 1 else kept


def _reason(error: BadImage | OSError) -> str:
    return str(error) if isinstance(error, BadImage) else error.strerror or str(error)


def _numbered(store: Store, good: Indices) -> tuple[npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """The classes of images as numbers, and the names of the numbers."""
    if store.labels is None:
        return None, ()
    values = [_class_of(store.labels[number]) for number in good]
    if store.classes is not None:
        known = range(len(store.classes))
        return np.array([value if value in known else -1 for value in values], np.int64), store.classes
    there = sorted({value for value in values if value is not None}, key=_order)
    numbers = {value: number for number, value in enumerate(there)}
    labels = [-1 if value is None else numbers[value] for value in values]
    return (np.array(labels, np.int64), tuple(map(str, there))) if there else (None, ())


def _class_of(value: object) -> int | str | None:
    """A class as a whole number where a table has it as a float: with one missing, pandas writes them so. In a name,
    what is no UTF-8 is replaced."""
    if isinstance(value, str):
        return HALF.sub("\ufffd", value) or None
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return value if isinstance(value, int) else None


def _order(value: object) -> tuple[int, int, str]:
    """Numbers, as words too, before names."""
    text = str(value)
    return (0, int(text), text) if text.removeprefix("-").isdecimal() else (1, 0, text)
