"""Images as items: decoded when a model's turn comes to them, with their classes and captions, and views of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from selfsup.data.tally import NAMED
from selfsup.errors import UserError
from selfsup.inference.items import Item, Label, ScoredPairs, silent
from selfsup.report import Progress

if TYPE_CHECKING:
    from selfsup.data.images import Images
    from selfsup.data.tally import Skipped

Pixels = npt.NDArray[np.uint8]

VIEW_SURPLUS = 2  # of the side that a model sees, for the short side of what its views are cropped from


@dataclass(frozen=True, eq=False)
class Stored:
    """An image of an opened source, decoded when it is asked for."""

    images: Images
    index: int

    @property
    def identity(self) -> bytes:
        """What tells it from any other one: the hash of its content."""
        return int(self.images.hashes[self.index]).to_bytes(8, "little")

    def pixels(self, least: int) -> Pixels:
        """(H, W, 3) RGB, its short side no smaller than `least` where the image's own is not."""
        return self.images.pixels(self.index, least)


@dataclass(frozen=True, eq=False)
class Viewed:
    """A view of an image as SimCLR draws it (`selfsup.views.simclr_view`), in 8 bits."""

    image: Stored
    number: int
    size: int
    seed: int

    @property
    def identity(self) -> bytes:
        return self.image.identity + f" view {self.number}".encode()

    def pixels(self, least: int) -> Pixels:
        """(size, size, 3) RGB."""
        import torch

        from selfsup.views import MEAN, STD, render, simclr_view

        whole = torch.from_numpy(self.image.pixels(VIEW_SURPLUS * self.size)).permute(2, 0, 1)[None]
        sizes, record = torch.tensor([whole.shape[2:]]), np.array([self.image.index])
        epoch, described = np.zeros_like(record), simclr_view(self.size)
        view = render(whole, sizes, described, self.seed, epoch, record, self.number)
        shown = view[0].permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)
        return np.asarray((255 * shown).round().clip(0, 255), np.uint8)


class Picture(Item):
    """An image."""

    noun = "image"
    asked = "an image, --image FILE"
    shown = "source"

    content: Stored | Viewed

    @property
    def text(self) -> str:
        return ""

    @property
    def identity(self) -> bytes:
        return self.content.identity


class Pictures:
    """The images of an opened source, or those of them that are numbered, for a model that sees this size; views of
    images have it."""

    kind: ClassVar[type[Item]] = Picture

    def __init__(self, images: Images, size: int, indices: npt.NDArray[np.int64] | None = None) -> None:
        self.name = images.name
        self._images = images
        self._size = size
        self._indices = np.arange(len(images)) if indices is None else indices
        self._classless: list[str] = []

    @property
    def skipped(self) -> Skipped:
        """Images that cannot be read, and those that the last pass over classes found without one."""
        found = self._images.skipped
        names = (*found.names, *(f"{place}: it has no class" for place in self._classless))
        return replace(found, count=found.count + len(self._classless), names=names[:NAMED])

    @property
    def notes(self) -> dict[str, str]:
        """How the source is read; see `selfsup.data.images.Images.notes`."""
        return self._images.notes

    @property
    def empty(self) -> int:
        return 0

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes that the source knows, also of those that none of these images is of."""
        return self._images.classes

    def items(self, id_column: str | None = None, with_values: bool = False) -> Iterator[Item]:
        """All images; where they have classes, these are the column `label`. A list may name one file several times:
        the ids of the others then end in their number. Raises UserError where ids are asked for."""
        if id_column is not None:
            raise UserError(f"Images go by their place, so there are no ids in a column {id_column}; leave it out.")
        labels = self._images.labels if with_values else None
        times: Counter[str] = Counter()
        for index in self._indices.tolist():
            item = self._item(index, {} if labels is None else {"label": self._class(index)})
            times[item.id] += 1
            yield item if times[item.id] == 1 else replace(item, id=f"{item.id} ({times[item.id]})")

    def labelled(self) -> Iterator[tuple[Item, Label]]:
        if self._images.labels is None:
            raise UserError(
                f"{self.name} has no classes; give a folder with one folder for each class, or name the column of the "
                "class with --label."
            )
        self._classless = []
        for index in self._indices.tolist():
            item, label = self._item(index), self._class(index)
            if label is None:
                self._classless.append(item.source)
            else:
                yield item, label

    def parts(self) -> Iterator[Item]:
        return self.items()

    def pairs(self, seed: int) -> ScoredPairs:
        """Two views of each image, which belong together."""
        places = self._indices.tolist()
        first, second = ([self._view(place, number, seed) for place in places] for number in (0, 1))
        return ScoredPairs(first, second, np.ones(len(first)))

    def _class(self, index: int) -> str | None:
        number = -1 if self._images.labels is None else int(self._images.labels[index])
        return None if number < 0 else self._images.classes[number]

    def _item(self, index: int, values: dict[str, object] | None = None) -> Item:
        place = _absolute(self._images.place(index))
        return Picture(place, Stored(self._images, index), place, values or {})

    def _view(self, index: int, number: int, seed: int) -> Item:
        item = self._item(index)
        return replace(item, content=Viewed(item.content, number, self._size, seed))


class CaptionedPictures(Pictures):
    """The same of a source with captions, such as `selfsup.data.pairs.open_pairs` opens; raises UserError where it has
    none."""

    def __init__(self, images: Images, size: int, indices: npt.NDArray[np.int64] | None = None) -> None:
        from selfsup.data.pairs import captions_of

        super().__init__(images, size, indices)
        self._captions = captions_of(images)

    def captioned(self) -> Iterator[tuple[Item, tuple[str, ...]]]:
        """Each image with all its captions."""
        for index in self._indices.tolist():
            yield self._item(index), self._captions[index]


def open_pictures(
    source: object,
    size: int,
    column: str | None = None,
    label: str | None = None,
    failures: float = 0.01,
    progress: Progress = silent,
) -> Pictures:
    """The images of any source that `selfsup.data.images.open_images` takes, or of paths as words."""
    from selfsup.data.images import open_images

    if isinstance(source, Pictures):
        return source
    if isinstance(source, list | tuple) and all(isinstance(path, str) for path in source):
        if not all(path.strip() for path in source):
            raise UserError("The path of an image is empty; give the paths of files or folders.")
        source = [Path(path) for path in source]
    images = open_images(source, column=column, label=label, failures=failures, progress=progress)
    return Pictures(images, size)


def open_captioned(
    source: object, size: int, column: str | None = None, captions: Sequence[str] = (), **how: Any
) -> CaptionedPictures:
    """The captioned images of any source that `selfsup.data.pairs.open_pairs` takes, or of such a collection. Raises
    UserError where it has no captions."""
    from selfsup.data.pairs import open_pairs

    if isinstance(source, CaptionedPictures):
        return source
    return CaptionedPictures(open_pairs(source, column=column, captions=captions, **how), size)


def open_picture(image: object) -> Item:
    """One image, given by its path, its pixels (H, W, 3), or as a PIL image, to look for others with. Raises
    UserError where there is none, it cannot be read, or there are several."""
    source = image if isinstance(image, str | Path) else [image]
    found = list(open_pictures(source, size=0, failures=0.0).items())
    if len(found) != 1:
        raise UserError(f"{image} holds {len(found)} images; look for one at a time.")
    return found[0]


def _absolute(place: str) -> str:
    """A place with the absolute path of its file: `photos/cat.jpg`, `train.parquet, row 3`; in valid UTF-8."""
    known = os.path.isfile(place) or _is_file(place.rpartition(", ")[0])
    return os.fsencode(os.path.abspath(place) if known else place).decode("utf-8", "backslashreplace")


@lru_cache(maxsize=1024)
def _is_file(path: str) -> bool:
    """Of a file that many rows are in."""
    return os.path.isfile(path)
