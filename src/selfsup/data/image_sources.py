"""What a source of images is: which files, which kind, and the images in them; see `selfsup.data.images`."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from selfsup.data import image_archives, image_lists, image_tables
from selfsup.data.arrow_files import open_arrow
from selfsup.data.discovery import File, Found, find
from selfsup.data.image_archives import open_archives
from selfsup.data.image_captions import (
    CAPTION_FILES,
    Captions,
    captions_by_name,
    captions_in,
    captions_in_file,
)
from selfsup.data.image_files import MOST_BYTES, Encoded
from selfsup.data.image_lists import described, open_lists
from selfsup.data.image_stores import (
    KINDS,
    MOST_TEXT,
    Columns,
    Progress,
    Span,
    Store,
    file_at,
    folders,
    for_all,
    kind_of,
    of_spans,
    readable,
)
from selfsup.data.image_tables import has_images, open_dataset, open_frame, open_tables
from selfsup.data.sources import load_from_hub, of_split, sample_file
from selfsup.errors import UserError
from selfsup.files import expanded, read_bytes


def find_store(
    source: object, columns: Columns, failures: float, split: str | None, progress: Progress
) -> Store:
    """What a source of images stands for; see `open_images`."""
    if isinstance(source, np.ndarray | list | tuple) and len(source):
        if all(isinstance(item, Path) for item in source):
            found = [_find(cast(Path, path), split) for path in source]
            name = f"{source[0]} and {len(source) - 1} more" if source[1:] else str(source[0])
            return _of_files(name, found, columns, failures, progress)
        if all(isinstance(item, list | tuple) and len(item) == 2 for item in source):
            return _of_pairs(cast("Sequence[tuple[Any, object]]", source), columns)
        return _of_objects(cast("Sequence[Any]", source))
    if isinstance(source, str) and source.startswith("sample:"):
        return _of_files(source, [_find(sample_file(source))], columns, failures, progress)
    if isinstance(source, str) and source.startswith("hub:"):
        return open_dataset(source, load_from_hub(source), columns)
    if isinstance(source, str | Path) and str(source):
        return _of_files(str(source), [_find(expanded(source), split)], columns, failures, progress)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        return open_dataset("the data set given from Python", source, columns)
    if hasattr(source, "__arrow_c_stream__"):
        return open_frame(source, columns)
    raise UserError(
        f"A {type(source).__name__} is no image source: give a path, a non-empty list of PIL images, of uint8 arrays "
        "of Path objects or of pairs (image, caption), a data frame, an Arrow table, or a datasets.Dataset."
    )


def holds_images(source: object, column: str | None = None) -> bool:
    """Whether a source is one of images rather than of texts, as far as its kind tells; what is not there is not.

    Image files and archives are, and pixels from Python; a table is where it has a column of images, a list where one
    of its columns names image files, a list of strings where each ends like one. A column that is named decides by
    itself, in a table also one of the names of image files.
    """
    if isinstance(source, str) and source.startswith("hub:"):
        return has_images(load_from_hub(source).features.arrow_schema, column)
    if isinstance(source, str) and source.startswith("sample:"):
        return _hold_images([file_at(sample_file(source))], column)
    if isinstance(source, str | Path):
        return _hold_images(_found(expanded(source)), column)
    if isinstance(source, list | tuple) and all(isinstance(item, str | Path | dict) for item in source):
        if all(isinstance(item, Path) for item in source):
            return _hold_images([file for path in source for file in _found(path)], column)
        return bool(source) and _all_images(source)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        return has_images(source.features.arrow_schema, column)
    if hasattr(source, "__arrow_c_stream__"):
        return image_tables.holds_images(source, column)
    return isinstance(source, np.ndarray | list | tuple)


def _all_images(items: Sequence[object]) -> bool:
    """Whether strings or records are places of images; raises UserError where only some are."""
    images = [
        isinstance(item, str) and (kind_of(item) == "images" or _hold_images(_found(expanded(item)), None))
        for item in items
    ]
    if any(images) and not all(images):
        raise UserError(
            f"{items[images.index(True)]} is an image or holds some, and {items[images.index(False)]!r} does not; give "
            "images or texts alone."
        )
    return all(images)


def _found(path: Path) -> list[File]:
    try:
        return _find(path).files
    except UserError:
        return []


def _hold_images(files: list[File], column: str | None) -> bool:
    """By the first of some files, which are of one kind."""
    kind = _kind(files[0]) if files else None
    if kind == "tables":
        path = Path(files[0].path)
        named = column is not None and image_tables.names_images(path, column)
        return has_images(open_arrow(path).schema, column) or named
    if kind == "lists":
        return image_lists.names_images(files[0].path, column)
    if kind == "archives":
        return image_archives.holds_images(files[0].path)
    return kind is not None


def _find(path: Path, split: str | None = None) -> Found:
    """The readable files of one kind that a path, folder or glob stands for, sorted by path.

    One kind only: a list may be of the images beside it.
    """
    found = find(path, lambda name: kind_of(name) is not None, readable())
    found = of_split(found, split)
    found.files.sort()
    kinds = {file.path: _kind(file) for file in found.files}
    kind = next(kind for kind in KINDS if kind in kinds.values())
    for file in found.files:
        if kinds[file.path] != kind and os.path.basename(file.path) not in image_lists.METADATA:
            found.leave_out(f"{kinds[file.path]} beside {kind}", file.path)
    found.files = [file for file in found.files if kinds[file.path] == kind]
    return found


def _kind(file: File) -> str | None:
    """The kind of a file; a folder that is one data set is a table."""
    return "tables" if os.path.isdir(file.path) else kind_of(file.path)


def _of_files(name: str, found: list[Found], columns: Columns, failures: float, progress: Progress) -> Store:
    files = [file for part in found for file in part.files]
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise UserError(f"{name} mixes {' and '.join(sorted(map(str, kinds)))}: give files of one kind.")
    kind = kinds.pop()
    if kind == "images":
        return _of_images(name, found, columns, failures, progress)
    if kind == "tables":
        store = open_tables(name, files, columns, failures, progress)
    elif kind == "lists":
        store = open_lists(name, files, columns, failures)
    else:
        store = open_archives(name, files, columns, failures)
    return replace(store, left_out=_told(found))


def _told(found: Sequence[Found]) -> tuple[str, ...]:
    return tuple(filter(None, (part.told() for part in found)))


def _of_images(name: str, found: list[Found], columns: Columns, failures: float, progress: Progress) -> Store:
    """Image files, with what their folder's own lists say of them, or else with captions in files beside them."""
    files = [file for part in found for file in part.files]
    root = found[0].root if len(found) == 1 and os.path.isdir(found[0].root) else None
    said = None if root is None else described(root, files, columns, failures)
    if columns.content is not None or (columns.label is not None and said is None):
        raise UserError(f"{name} holds image files, which have no columns: leave column and label out.")
    captions = None if said is None else said.captions
    if captions is None and columns.captions is not None:
        captions = Captions.of(_captions_beside(files, columns.captions, progress))
        for part, extension in itertools.product(found, columns.captions or CAPTION_FILES):
            part.left_out.pop(f".{extension} files", None)
    if said is not None:
        for path in said.unknown:
            found[0].leave_out("images that a list names and that are not there", path)
    classes = folders([file.path for file in files])
    store = of_spans(
        name,
        len(files),
        lambda index: Span(files[index].path, 0, files[index].size),
        lambda index: files[index].path,
        labels=said.labels if said is not None and said.labels is not None else classes,
        stamp=lambda: files,
        captions=captions if columns.captions is not None else None,
    )
    return replace(store, left_out=_told(found))


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


def _of_objects(images: Sequence[Any]) -> Store:
    name = f"the list of {len(images)} images"
    for number, image in enumerate(images, 1):
        if not isinstance(image, Image.Image | np.ndarray | bytes | Path):
            raise UserError(
                f"Image {number} of {name} is a {type(image).__name__}: "
                "give PIL images, uint8 arrays, bytes or Path objects."
            )

    def read(index: int) -> Encoded:
        image = images[index]
        return read_bytes(expanded(image), MOST_BYTES) if isinstance(image, Path) else cast(Encoded, image)

    def place(index: int) -> str:
        return str(images[index]) if isinstance(images[index], Path) else f"image {index + 1}"

    return Store(name, len(images), read, place)


def _of_pairs(pairs: Sequence[tuple[Any, object]], columns: Columns) -> Store:
    store = _of_objects([Path(image) if isinstance(image, str) else image for image, _ in pairs])
    if columns.captions is None:
        return store
    return replace(store, captions=Captions.of(captions_in(captions) for _, captions in pairs))
