"""Images with their captions as training data.

`open_pairs` takes what `selfsup.data.images.open_images` takes. An image has one caption or several: in a column of
texts or of lists of texts, where several rows of a list that name one path are one image; in the metadata of a folder
or in COCO's layout; in a file of the same name as the image, each line a caption, or in the JSON of that name in an
archive; in a pair from Python. docs/formats.md says which are looked for.

Where several columns (or extensions, or keys) are named, as for several languages, an image has the captions of all;
where none is, it is one with a usual name (`CAPTION_COLUMNS`, `CAPTION_FILES`, in that order), never the column of the
images or of their classes. White space in captions is reduced to single spaces. An image without a caption counts as
one that cannot be read; a caption that is not valid UTF-8 is none.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.images.captions import Captions, no_captions
from selfsup.data.images.collection import Images, Indices, open_images
from selfsup.data.images.records import ImageRecords
from selfsup.data.tokenizers import Ids, TextTokenizer
from selfsup.errors import UserError
from selfsup.report import Progress

BATCH = 4096  # captions encoded at a time


def open_pairs(
    source: object,
    *,
    column: str | None = None,
    captions: Sequence[str] = (),
    label: str | None = None,
    failures: float = 0.01,
    split: str | None = None,
    progress: Progress | None = None,
) -> Images:
    """Open any source of images with captions (see the module's description); their `captions` are not None.

    Args:
        captions: the columns, extensions or keys that hold the captions; by default one with a usual name.
        column, label, failures, split, progress: as in `open_images`.

    Raises:
        UserError: what `open_images` raises; there is no caption.
    """
    how: dict[str, Any] = {"failures": failures, "split": split, "progress": progress}
    images = open_images(source, column=column, label=label, captions=captions, **how)
    captions_of(images)
    return images


def captions_of(images: Images) -> Captions:
    """The captions of images; raises UserError where there are none."""
    if images.captions is None:
        raise no_captions(images.name)
    return images.captions


class PairRecords:
    """Images with all their captions as records, the captions as tokens.

    An image that turns out to be unreadable gives way, with its captions, to the next readable one of the indices.
    `truncated` counts the captions of more than `window` tokens, which lose their end; `mean_length` is in tokens, the
    start and the end token included. Raises UserError: no captions, or a window of less than three tokens.
    """

    def __init__(self, images: Images, indices: Indices, least: int, tokenizer: TextTokenizer, window: int) -> None:
        if (room := tokenizer.room(window)) < 1:
            least = window + 1 - room
            raise UserError(f"A window of {window} holds no token between start and end; make it {least} or more.")
        captions = captions_of(images).take(indices)
        self.window = window
        self.tokenizer = tokenizer
        self._images = ImageRecords(images, indices, least)
        self._image_keys = images.hashes[indices].view(np.int64)
        self._counts = captions.counts()
        self._firsts = self._counts.cumsum() - self._counts
        self._texts = _Texts(captions, tokenizer, window)
        self.truncated = self._texts.truncated
        self.mean_length = float(self._texts.lengths.mean())

    def __len__(self) -> int:
        return len(self._images)

    def place(self, record: int) -> str:
        """Where a record's image stands: see `Images.place`."""
        return self._images.place(record)

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Tensor]:
        """Records by index (n,), where C is the most captions that one of them has, T the most tokens of any caption.

        Returns:
            `pixels`, `sizes`: see `ImageRecords.read`; `image_keys`: int64 (n,), equal for equal images;
            `captions`: int64 (n,), how many each has; `tokens`: int64 (n, C, T), padded, start and end token included;
            `lengths`: int64 (n, C), 0 where there is no caption; `text_keys`: int64 (n, C), equal for captions of equal
            tokens (and else, up to a chance of 2^-64, different), 0 where there is none.

        Raises:
            UserError: more images than may be cannot be read.
        """
        records, batch = self._images.found(indices)
        counts = self._counts[records]
        column = np.arange(counts.max())
        there = column < counts[:, None]
        captions = np.where(there, self._firsts[records][:, None] + column, 0)
        lengths = np.where(there, self._texts.lengths[captions], 0)
        added = {
            "image_keys": self._image_keys[records],
            "captions": counts,
            "tokens": self._texts.padded(captions, lengths, int(self.tokenizer.pad or 0)),
            "lengths": lengths,
            "text_keys": np.where(there, self._texts.keys[captions], 0),
        }
        return batch | {name: torch.from_numpy(values) for name, values in added.items()}


class _Texts:
    """Captions between start and end token, cut to the window, one behind the other: ids (all tokens,), starts, lengths
    and keys int64 (captions,); `truncated` counts those that were cut."""

    def __init__(self, captions: Captions, tokenizer: TextTokenizer, window: int) -> None:
        chunks: list[Ids] = []
        room = tokenizer.room(window)
        lengths, keys, self.truncated = array("q"), bytearray(), 0
        for batch in captions.batches(BATCH):
            encoded = tokenizer.encode_batch(batch)
            self.truncated += sum(len(ids) > room for ids in encoded)
            runs = [tokenizer.frame(ids[:room]) for ids in encoded]
            lengths.extend(map(len, runs))
            for run in runs:
                keys += hashlib.blake2b(run.tobytes(), digest_size=8).digest()
            chunks.append(np.concatenate(runs))
        self.ids, self.keys = np.concatenate(chunks), np.frombuffer(keys, np.int64)
        self.lengths = np.array(lengths, np.int64)
        self.starts = self.lengths.cumsum() - self.lengths

    def padded(
        self, captions: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], pad: int
    ) -> npt.NDArray[np.int64]:
        """The first tokens of captions by number (…,), as many as `lengths` (…,) says: (…, most tokens of all), so that
        batches can be joined."""
        token = np.arange(self.lengths.max())
        places = np.minimum(self.starts[captions][..., None] + token, len(self.ids) - 1)
        return np.where(token < lengths[..., None], self.ids[places], pad).astype(np.int64)
