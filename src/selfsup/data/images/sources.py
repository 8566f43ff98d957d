"""What a source of images is: which files, which kind, and the images in them; see `selfsup.data.images`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from selfsup.data.arrow_files import open_arrow
from selfsup.data.columns import Wanted, names_image
from selfsup.data.discovery import File, Found, extensions, kind_of, readable
from selfsup.data.images import archives, lists, tables
from selfsup.data.images.captions import CAPTION_FILES, Captions, captions_by_name, captions_in, captions_in_file
from selfsup.data.images.decoding import MOST_BYTES, Encoded, formats
from selfsup.data.images.stores import MOST_TEXT, Span, Store, folders, for_all
from selfsup.data.origins import Medium, Origin, origin_of
from selfsup.data.tally import Tally
from selfsup.errors import UserError
from selfsup.files import expanded, read_bytes
from selfsup.report import Progress

KINDS = ("images", "archives", "tables", "lists")  # of files, as a folder is searched for them
# Extensions of further images, with what Pillow calls the format, where it can be read.
OPTIONAL = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}


def images_of() -> Medium:
    """What is read as images, as far as the libraries that are there allow."""
    missing = {extension for extension, name in OPTIONAL.items() if name not in formats()}
    return Medium(
        "image",
        lambda name: kind_of(name) in KINDS and extensions(name)[0] not in missing,
        readable("images", KINDS, missing),
        "a path, a non-empty list of PIL images, of uint8 arrays, of Path objects or of pairs (image, caption), a data "
        "frame, an Arrow table, or a datasets.Dataset",
    )


def store_of(origin: Origin, wanted: Wanted, tally: Tally, progress: Progress) -> Store:
    """The images in what a user pointed at; see `selfsup.data.images.open_images`."""
    if origin.table is not None:
        return tables.open_table(origin.name, origin.table, wanted)
    if not origin.found:
        return _of_items(origin, wanted)
    kinds = {_one_kind(found) for found in origin.found}
    if len(kinds) > 1:
        raise UserError(f"{origin.name} mixes {' and '.join(sorted(kinds))}: give files of one kind.")
    store = _OPENERS[kinds.pop()](origin, wanted, tally, progress)
    return replace(store, left_out=origin.left_out)


def holds_images(source: object, column: str | None = None) -> bool:
    """Whether a source is one of images rather than of texts, as far as its kind tells; what is not there is not.

    Image files and archives are, and pixels from Python; a table is where it has a column of images, a list where one
    of its columns names image files, a list of strings where each ends like one. A column that is named decides by
    itself, in a table also one of the names of image files.
    """
    try:
        origin = origin_of(source, images_of())
    except UserError:
        return False
    if (table := origin.table) is not None:
        return tables.holds_images(table, column, paths=table.at is None)
    if origin.found:
        return _holds_images(origin.found[0], column)
    if all(isinstance(item, str | Path | dict) for item in origin.items):
        return _all_images(origin.items)
    return isinstance(source, np.ndarray | list | tuple)


def _all_images(items: Sequence[object]) -> bool:
    """Whether strings or records are places of images; raises UserError where only some are."""
    images = [isinstance(item, str) and (names_image(item) or holds_images(expanded(item))) for item in items]
    if any(images) and not all(images):
        raise UserError(
            f"{items[images.index(True)]} is an image or holds some, and {items[images.index(False)]!r} does not; give "
            "images or texts alone."
        )
    return all(images)


def _holds_images(found: Found, column: str | None) -> bool:
    """By the first of some files, which are of one kind."""
    kind, path = _one_kind(found), found.files[0].path
    if kind == "tables":
        return tables.holds_images(open_arrow(Path(path)), column, paths=column is not None)
    if kind == "lists":
        return lists.holds_images(path, column)
    return kind == "images" or archives.holds_images(path)


def _one_kind(found: Found) -> str:
    """Leave the files of one kind, sorted by path: a list may be of the images beside it."""
    found.files.sort()
    kinds = {file.path: file.kind for file in found.files}
    kind = next(kind for kind in KINDS if kind in kinds.values())
    for file in found.files:
        if kinds[file.path] != kind and os.path.basename(file.path) not in lists.METADATA:
            found.leave_out(f"{kinds[file.path]} beside {kind}", file.path)
    found.files = [file for file in found.files if kinds[file.path] == kind]
    return kind


def _of_images(origin: Origin, wanted: Wanted, tally: Tally, progress: Progress) -> Store:
    """Image files, with what their folder's own lists say of them, or else with captions in files beside them."""
    files, first = origin.files, origin.found[0]
    said = lists.Described()
    if len(origin.found) == 1 and os.path.isdir(first.root):
        said = lists.described(first.root, files, wanted, tally.failures)
    if wanted.content is not None or (wanted.label is not None and said.labels is None):
        problem = f"{origin.name} holds image files, which have no columns"
        raise UserError(f"{problem}: leave column and label out.")
    captions = said.captions if wanted.captions is not None else None
    if captions is None and wanted.captions is not None:
        captions = Captions.of(_captions_beside(files, wanted.captions, progress))
        for found, extension in itertools.product(origin.found, wanted.captions or CAPTION_FILES):
            found.left_out.pop(f".{extension} files", None)
    for path in said.unknown:
        first.leave_out("images that a list names and that are not there", path)
    return Store(
        origin.name,
        len(files),
        lambda index: files[index].path,
        lambda index: Span(files[index].path, 0, files[index].size),
        labels=folders([file.path for file in files]) if said.labels is None else said.labels,
        captions=captions,
        stamp=lambda: files,
    )


_OPENERS: dict[str, Callable[[Origin, Wanted, Tally, Progress], Store]] = {
    "images": _of_images,
    "archives": archives.open_archives,
    "tables": tables.open_tables,
    "lists": lists.open_lists,
}


def _captions_beside(files: list[File], wanted: Sequence[str], progress: Progress) -> list[list[str]]:
    """The captions in the files of text that have the name of an image but for the extension."""
    captions: list[list[str]] = [[] for _ in files]

    def look(number: int) -> None:
        stem = os.path.splitext(files[number].path)[0]
        captions[number] = captions_by_name(wanted, lambda extension: _lines(f"{stem}.{extension}"))

    for_all(len(files), look, progress)
    return captions


def _lines(path: str) -> list[str]:
    try:
        return captions_in_file(read_bytes(path, MOST_TEXT))
    except OSError:  # mostly since there is no such file
        return []


def _of_items(origin: Origin, wanted: Wanted) -> Store:
    """Images from Python, or pairs of an image, which may be a path as a string, and its captions."""
    items = origin.items
    captions = None
    if all(isinstance(item, list | tuple) and len(item) == 2 for item in items):
        if wanted.captions is not None:
            captions = Captions.of(captions_in(texts) for _, texts in items)
        items = [Path(image) if isinstance(image, str) else image for image, _ in items]
    images: list[Encoded | Path] = []
    for number, image in enumerate(items, 1):
        if not isinstance(image, Image.Image | np.ndarray | bytes | Path):
            what = f"Image {number} of {origin.name} is a {type(image).__name__}"
            raise UserError(f"{what}: give PIL images, uint8 arrays, bytes or Path objects.")
        images.append(image)

    def content(index: int) -> Encoded:
        image = images[index]
        return read_bytes(expanded(image), MOST_BYTES) if isinstance(image, Path) else image

    def place(index: int) -> str:
        return str(images[index]) if isinstance(images[index], Path) else f"image {index + 1}"

    return Store(origin.name, len(images), place, content=content, captions=captions)
