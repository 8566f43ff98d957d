"""Images with their captions as items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from selfsup.inference.items import Item, silent
from selfsup.inference.pictures import Pictures
from selfsup.report import Progress

if TYPE_CHECKING:
    from selfsup.data.images import Images


class CaptionedPictures(Pictures):
    """The images of an opened source with captions, or those of them that are numbered; read as `Pictures`, too.

    Args:
        images: of `selfsup.data.pairs.open_pairs`.

    Raises:
        UserError: they have no captions.
    """

    def __init__(self, images: Images, size: int, indices: npt.NDArray[np.int64] | None = None) -> None:
        from selfsup.data.pairs import captions_of

        super().__init__(images, size, indices)
        self._captions = captions_of(images)

    def captioned(self) -> Iterator[tuple[Item, tuple[str, ...]]]:
        """Each image with all its captions."""
        for index in self._indices.tolist():
            yield self._item(index), self._captions[index]


def open_captioned(
    source: object,
    size: int,
    column: str | None = None,
    captions: Sequence[str] = (),
    failures: float = 0.01,
    progress: Progress = silent,
) -> CaptionedPictures:
    """The captioned images of any source that `selfsup.data.pairs.open_pairs` takes, or of such a collection. Raises
    UserError where it has no captions."""
    from selfsup.data.pairs import open_pairs

    if isinstance(source, CaptionedPictures):
        return source
    images = open_pairs(source, column=column, captions=captions, failures=failures, progress=progress)
    return CaptionedPictures(images, size)
