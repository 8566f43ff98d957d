"""Captions of images: how they are found in files and values, and how they are kept."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selfsup.data.parts import as_list, as_text
from selfsup.errors import UserError

# Extensions of a file of captions beside an image, and their names in the JSON of an archive, likewise.
CAPTION_FILES = ("txt", "caption", "captions", "text")


class Captions(Sequence[tuple[str, ...]]):
    """The captions of each of n images, in one Arrow array."""

    def __init__(self, lists: Any) -> None:
        self._lists = lists

    @classmethod
    def of(cls, captions: Iterable[Sequence[str]]) -> Captions | None:
        """Those of each image in turn; None where there is not a single one."""
        lists = pa.array(captions, pa.large_list(pa.large_string()))
        return cls(lists) if len(lists.flatten()) else None

    @classmethod
    def joined(cls, every: Sequence[Captions]) -> Captions:
        """Those of several collections, one behind the other."""
        return cls(pa.concat_arrays([captions._lists for captions in every]))

    def __len__(self) -> int:
        return len(self._lists)

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> Captions: ...

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | Captions:
        if isinstance(index, slice):
            return Captions(self._lists[index])
        return tuple(self._lists[index].as_py())

    def take(self, indices: npt.NDArray[np.integer[Any]]) -> Captions:
        """Those of some images."""
        return Captions(self._lists.take(pa.array(indices)))

    def counts(self) -> npt.NDArray[np.int64]:
        """How many each image has, (n,)."""
        return np.asarray(self._lists.value_lengths().to_numpy(), np.int64)

    def texts(self) -> list[str]:
        """The captions of all images in one sequence."""
        return list(self._lists.flatten().to_pylist())

    def batches(self, size: int) -> Iterator[list[str]]:
        """The captions of all images in one sequence, `size` at a time."""
        texts = self._lists.flatten()
        return (texts[start : start + size].to_pylist() for start in range(0, len(texts), size))


def no_captions(name: str) -> UserError:
    """What to say of a source without a caption."""
    return UserError(
        f"{name} has no captions: name their column, put a .txt file of the same name beside each image, "
        "or give a list (.csv, .tsv, .jsonl) of paths and captions."
    )


def captions_in(value: object) -> list[str]:
    """The captions in a value, which is a text or a list of texts, white space in them reduced to single spaces. What
    is blank, no text or not valid UTF-8 is none."""
    texts = map(as_text, as_list(value))
    tidy = (" ".join(text.split()) for text in texts if isinstance(text, str))
    return [text for text in tidy if text]


def captions_in_file(content: bytes) -> list[str]:
    """The captions in a file of text, one per line."""
    return captions_in(content.removeprefix(codecs.BOM_UTF8).splitlines())


def captions_by_name(wanted: Sequence[str], read: Callable[[str], list[str]]) -> list[str]:
    """The captions under all wanted names, or else under the first usual one that has any."""
    if wanted:
        return [caption for name in wanted for caption in read(name)]
    return next(filter(None, map(read, CAPTION_FILES)), [])
