"""What a source of images is: which files, which kind, and the images in them; see `selfsup.data.images`."""

from __future__ import annotations

import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from selfsup.data.formats import Malformed, Values, file_part
from selfsup.data.image_archives import open_archives
from selfsup.data.image_captions import (
    Captions,
    caption_columns,
    captions_by_name,
    captions_in,
    captions_in_file,
)
from selfsup.data.image_files import BadImage, Encoded
from selfsup.data.image_stores import (
    KINDS,
    Columns,
    File,
    Progress,
    Span,
    Store,
    file_at,
    folders,
    for_all,
    kind_of,
    label_column,
    of_spans,
)
from selfsup.data.image_tables import has_images, names_images, open_dataset, open_tables, schema_of
from selfsup.data.sources import load_from_hub, require_column, sample_file
from selfsup.errors import UserError

# Names under which a column of paths goes, the likeliest first.
PATH_COLUMNS = ("path", "file", "file_name", "filename", "file_path", "filepath", "image", "img")


def find_store(source: object, columns: Columns, failures: float, progress: Progress) -> Store:
    """What a source of images stands for; see `open_images`."""
    if isinstance(source, np.ndarray | list | tuple) and len(source):
        if all(isinstance(item, Path) for item in source):
            files = list(itertools.chain.from_iterable(_find(cast(Path, path)) for path in source))
            name = f"{source[0]} and {len(source) - 1} more" if source[1:] else str(source[0])
            return _of_files(name, files, columns, failures, progress)
        if all(isinstance(item, list | tuple) and len(item) == 2 for item in source):
            return _of_pairs(cast("Sequence[tuple[Any, object]]", source), columns)
        return _of_objects(cast("Sequence[Any]", source))
    if isinstance(source, str) and source.startswith("sample:"):
        return _of_files(source, [file_at(sample_file(source))], columns, failures, progress)
    if isinstance(source, str) and source.startswith("hub:"):
        return open_dataset(source, load_from_hub(source), columns)
    if isinstance(source, str | Path) and str(source):
        return _of_files(str(source), _find(Path(source).expanduser()), columns, failures, progress)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        return open_dataset("the data set given from Python", source, columns)
    raise UserError(
        f"A {type(source).__name__} is no image source: give a path, a non-empty list of PIL images, of uint8 arrays "
        "of Path objects or of pairs (image, caption), or a datasets.Dataset."
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
        return _hold_images(_found(Path(source).expanduser()), column)
    if isinstance(source, list | tuple) and all(isinstance(item, str | Path | dict) for item in source):
        if all(isinstance(item, Path) for item in source):
            return _hold_images([file for path in source for file in _found(path)], column)
        return bool(source) and _all_images(source)
    if "datasets" in sys.modules and isinstance(source, sys.modules["datasets"].Dataset):
        return has_images(source.features.arrow_schema, column)
    return isinstance(source, np.ndarray | list | tuple)


def _all_images(items: Sequence[object]) -> bool:
    """Whether strings or records are places of images; raises UserError where only some are."""
    images = [
        isinstance(item, str) and (kind_of(item) == "images" or _hold_images(_found(Path(item)), None))
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
        return _find(path)
    except UserError:
        return []


def _hold_images(files: list[File], column: str | None) -> bool:
    """By the first of some files, which are of one kind."""
    kind = _kind(files[0]) if files else None
    if kind == "tables":
        path = Path(files[0].path)
        return has_images(schema_of(path), column) or (column is not None and names_images(path, column))
    if kind == "lists":
        return _lists_images(Path(files[0].path), column)
    return kind is not None


def _lists_images(path: Path, column: str | None) -> bool:
    """Whether the first values of a column, or of the one named, are names of image files."""
    _, rows = file_part(path, 1.0).sample()
    values = [value for row in rows[:1] for name, value in row.items() if column in (None, name)]
    return any(isinstance(value, str) and kind_of(value) == "images" for value in values)


def _find(path: Path) -> list[File]:
    """The readable files that a path, folder or glob stands for, sorted by path."""
    if path.is_file():
        if path.suffix.lower() not in KINDS:
            raise UserError(f"{path} is of no readable kind: selfsup reads images from {', '.join(KINDS)}.")
        return [file_at(path)]
    if path.is_dir():
        found = sorted(_below(str(path)))
    elif any(sign in str(path) for sign in "*?["):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            raise UserError(f"No file matches {path}: check the pattern.")
        found = sorted({file for match in matches for file in _below_or_at(match)})
    else:
        raise UserError(
            f"There is no file or folder {path}: check the path (a hub data set is hub:user/name)."
        )
    for kind in dict.fromkeys(KINDS.values()):  # one kind only: a list may be of the images beside it
        if files := [file for file in found if _kind(file) == kind]:
            return files
    raise UserError(f"{path} holds no file of a readable kind: selfsup reads images from {', '.join(KINDS)}.")


def _below_or_at(path: Path) -> Iterable[File]:
    return _below(str(path)) if path.is_dir() else [file_at(path)]


def _below(folder: str, above: frozenset[str] | None = None) -> Iterator[File]:
    """All files in a folder and the folders in it but hidden ones; links are followed, but not back up."""
    here = os.path.realpath(folder)
    above = frozenset(map(str, Path(here).parents)) if above is None else above
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(entry.path, above | {here})
            elif entry.is_file() and kind_of(entry.name):
                status = entry.stat()
                yield File(entry.path, status.st_size, status.st_mtime_ns)


def _kind(file: File) -> str | None:
    return kind_of(file.path)


def _of_files(name: str, files: list[File], columns: Columns, failures: float, progress: Progress) -> Store:
    kinds = {_kind(file) for file in files}
    if None in kinds:
        raise UserError(f"{name} holds no images; selfsup reads them from {', '.join(KINDS)}.")
    if len(kinds) > 1:
        raise UserError(f"{name} mixes {' and '.join(sorted(map(str, kinds)))}: give files of one kind.")
    kind = kinds.pop()
    if kind == "images":
        if columns.content is not None or columns.label is not None:
            raise UserError(f"{name} holds image files, which have no columns: leave column and label out.")
        return _of_images(name, files, columns.captions, progress)
    if kind == "tables":
        return open_tables(name, files, columns, progress)
    if kind == "lists":
        return _of_lists(name, files, columns, failures)
    return open_archives(name, files, columns)


def _of_images(name: str, files: list[File], captions: Sequence[str] | None, progress: Progress) -> Store:
    return of_spans(
        name,
        len(files),
        lambda index: Span(files[index].path, 0, files[index].size),
        lambda index: files[index].path,
        labels=folders([file.path for file in files]),
        stamp=lambda: files,
        captions=None if captions is None else Captions.of(_captions_beside(files, captions, progress)),
    )


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
        return captions_in_file(Path(path).read_bytes())
    except OSError:  # mostly since there is no such file
        return []


@dataclass(frozen=True)
class _Listed:
    """The images that lists name, in the order of their first appearance."""

    paths: list[str] = field(default_factory=list)
    labels: list[object] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)  # by path, of what may get further captions

    def add(self, path: str, label: object, captions: list[str] | None) -> None:
        """Add a row: of an image with captions further ones, else an image."""
        number = len(self.paths)
        if captions is not None and path:
            number = self.numbers.setdefault(path, number)
        if number == len(self.paths):
            self.paths.append(path)
            self.labels.append(label)
            self.captions.append([])
        self.captions[number] += captions or []


def _of_lists(name: str, files: list[File], columns: Columns, failures: float) -> Store:
    listed = _Listed()
    labelled = [_read_list(file, columns, failures, listed) for file in files]
    paths = listed.paths

    def span(index: int) -> Span:
        if not paths[index]:
            raise BadImage("it has no path")
        return Span(paths[index], 0, os.path.getsize(paths[index]))

    def stamp() -> Iterator[object]:
        yield from files
        for path in paths:
            yield file_at(path) if os.path.isfile(path) else path

    return of_spans(
        name,
        len(paths),
        span,
        lambda index: paths[index] or f"{name}, record {index + 1}",
        labels=listed.labels if any(labelled) else None,
        stamp=stamp,
        captions=Captions.of(listed.captions),
    )


def _read_list(file: File, columns: Columns, failures: float, listed: _Listed) -> bool:
    """Add the images of a file to those listed; whether the file has classes."""
    part = file_part(Path(file.path), failures)
    names, rows = part.sample()
    wanted = _path_column(part.name, names, rows, columns.content)
    labelled = label_column(part.name, names, columns.label)
    texts = [name for name in names if any(captions_in(row.get(name)) for row in rows)]
    captioned = caption_columns(part.name, names, texts, (wanted, labelled), columns.captions)
    folder = os.path.dirname(file.path)
    for _, row in part.rows([wanted, *([labelled] if labelled else []), *captioned]):
        values = {} if isinstance(row, Malformed) else row
        path = values.get(wanted)
        listed.add(
            os.path.join(folder, path) if path and isinstance(path, str) else "",
            values.get(labelled) if labelled else None,
            [text for name in captioned for text in captions_in(values.get(name))] if captioned else None,
        )
    return labelled is not None


def _path_column(where: str, columns: Sequence[str], rows: Sequence[Values], wanted: str | None) -> str:
    if wanted is not None:
        require_column(where, columns, wanted)
        return wanted
    for name in PATH_COLUMNS:
        if name in columns:
            return name
    for name in columns:
        if rows and isinstance(rows[0].get(name), str) and kind_of(str(rows[0][name])) == "images":
            return name
    raise UserError(
        f"{where} has no column of image paths, only {', '.join(columns)}: name the column to read."
    )


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
        return image.expanduser().read_bytes() if isinstance(image, Path) else cast(Encoded, image)

    def place(index: int) -> str:
        return str(images[index]) if isinstance(images[index], Path) else f"image {index + 1}"

    return Store(name, len(images), read, place)


def _of_pairs(pairs: Sequence[tuple[Any, object]], columns: Columns) -> Store:
    store = _of_objects([Path(image) if isinstance(image, str) else image for image, _ in pairs])
    if columns.captions is None:
        return store
    return replace(store, captions=Captions.of(captions_in(captions) for _, captions in pairs))
