"""Images that lists name by their paths, with what the lists say of them; and what a folder's own lists say.

A list is a file of records (`.csv`, `.tsv`, JSON lines or a JSON array) or captions in COCO's layout: a JSON object
with `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).

A list that the user names may point anywhere. What a folder of images says of itself, in `metadata.csv`, `.jsonl` or
`.parquet` with `file_name`, or in COCO's captions beside or above it, tells of the images of that folder alone.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsup.data.columns import NAME_IT, require_column
from selfsup.data.discovery import File, find
from selfsup.data.formats import file_part
from selfsup.data.image_captions import Captions, caption_columns, captions_in
from selfsup.data.image_files import BadImage
from selfsup.data.image_stores import (
    PATH_COLUMNS,
    Columns,
    Damage,
    Span,
    Store,
    file_at,
    kind_of,
    label_column,
    named,
    of_spans,
)
from selfsup.data.parts import Malformed, Part, Values, record_part
from selfsup.data.streams import reading
from selfsup.errors import Damaged
from selfsup.files import opened, read_bytes

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NAME = "file_name"  # the column of paths in a folder's own lists
COCO_BYTES = 1 << 29  # of a file of captions in COCO's layout, which is read at once
COCO_HEAD = 1 << 16  # bytes that tell whether a file is one

_COCO = re.compile(rb'[\xef\xbb\xbf\s]*\{\s*"(info|images|annotations|licenses|categories|type)"\s*:')


@dataclass(frozen=True)
class Listed:
    """The images that lists name, in the order of their first appearance.

    Attributes:
        paths: of each; "" where a row has none.
    """

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


def open_lists(name: str, files: list[File], columns: Columns, failures: float) -> Store:
    """The images that lists name, wherever they lie."""
    listed, damage = Listed(), Damage(failures)
    labelled = False
    for file in files:
        with damage.allowed(file.path):
            labelled |= _read(file.path, _place(file.path), columns, failures, listed)
    paths = listed.paths

    def span(index: int) -> Span:
        if not paths[index]:
            raise BadImage("it has no path")
        return Span(paths[index], 0, file_at(paths[index]).size)

    def stamp() -> Iterator[object]:
        yield from files
        for path in paths:
            yield file_at(path) if os.path.isfile(path) else path

    return of_spans(
        name,
        len(paths),
        span,
        lambda index: paths[index] or f"{name}, record {index + 1}",
        labels=listed.labels if labelled else None,
        stamp=stamp,
        captions=Captions.of(listed.captions),
        damaged=damage.found,
    )


def names_images(path: str, column: str | None) -> bool:
    """Whether the first values of a column of a list, or of the one named, are names of image files."""
    _, rows = _part(path, 1.0).sample()
    values = [value for row in rows[:1] for name, value in row.items() if column in (None, name)]
    return any(isinstance(value, str) and kind_of(value) == "images" for value in values)


@dataclass(frozen=True)
class Described:
    """What a folder's own lists say of its images.

    Attributes:
        labels, captions: of each image; None where they have none.
        unknown: the images that they name and that are not there.
    """

    labels: list[object] | None
    captions: Captions | None
    unknown: list[str]


def described(root: str, files: Sequence[File], columns: Columns, failures: float) -> Described | None:
    """What the lists of a folder say of its images, None where they say nothing.

    Raises:
        UserError: a damaged list, or one without a column that is asked for.
    """
    below = {os.path.basename(file.path): file.path for file in files}
    listed = Listed()
    labelled = False
    for path in _lists_of(root, files, columns):
        asked = Columns(NAME, columns.label, columns.captions)
        labelled |= _read(
            path, _by_name(below, root) if _is_coco(path) else _beside(path), asked, failures, listed
        )
    paths = [path and os.path.normpath(path) for path in listed.paths]
    numbers = {path: number for number, path in enumerate(paths)}
    known = [numbers.get(os.path.normpath(file.path)) for file in files]
    if all(number is None for number in known):
        return None
    labels = [None if number is None else listed.labels[number] for number in known]
    captions = [[] if number is None else listed.captions[number] for number in known]
    there = {os.path.normpath(file.path) for file in files}
    unknown = [path or "a row without a path" for path in paths if path not in there]
    return Described(labels if labelled else None, Captions.of(captions), unknown)


def _lists_of(root: str, files: Sequence[File], columns: Columns) -> list[str]:
    """The metadata in the folders of images, or else the captions in COCO's layout beside or above them."""
    folders = {os.path.dirname(file.path) for file in files} | {root}
    places = (os.path.join(folder, name) for folder in sorted(folders) for name in METADATA)
    metadata = [place for place in places if os.path.isfile(place)]
    if metadata or columns.captions is None:
        return metadata
    above = os.path.join(root, os.pardir)
    searched = (root, os.path.join(root, "annotations"), above, os.path.join(above, "annotations"))
    found = (
        path
        for folder in searched
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "captions*.json")))
    )
    return [path for path in found if _is_coco(path)]


def _read(path: str, place: Callable[[str], str], columns: Columns, failures: float, listed: Listed) -> bool:
    """Add the images of a list to those listed; whether it has classes."""
    part = _part(path, failures)
    names, rows = part.sample()
    wanted = _path_column(part.name, names, rows, columns.content)
    labelled = label_column(part.name, names, columns.label)
    texts = [name for name in names if any(captions_in(row.get(name)) for row in rows)]
    captioned = caption_columns(part.name, names, texts, (wanted, labelled), columns.captions)
    for _, row in part.rows([wanted, *([labelled] if labelled else []), *captioned]):
        values = {} if isinstance(row, Malformed) else row
        name = values.get(wanted)
        listed.add(
            place(name) if isinstance(name, str) and _may_be_path(name) else "",
            values.get(labelled) if labelled else None,
            [text for name in captioned for text in captions_in(values.get(name))] if captioned else None,
        )
    return labelled is not None


def _may_be_path(name: str) -> bool:
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _place(path: str) -> Callable[[str], str]:
    """Where the images of a list lie that the user named: beside it, of COCO's layout somewhere below."""
    if not _is_coco(path):
        return _beside(path)
    folder = os.path.dirname(path)
    root = (
        os.path.join(folder, os.pardir)
        if os.path.basename(os.path.abspath(folder)) == "annotations"
        else folder
    )
    images = find(root or os.curdir, lambda name: kind_of(name) == "images", "images").files
    return _by_name({os.path.basename(file.path): file.path for file in images}, root)


def _beside(path: str) -> Callable[[str], str]:
    return lambda name: os.path.join(os.path.dirname(path), name)


def _by_name(below: dict[str, str], root: str) -> Callable[[str], str]:
    return lambda name: below.get(os.path.basename(name), os.path.join(root, os.path.basename(name)))


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
    raise Damaged(f"{where} has no column of image paths, only {named(columns)}: {NAME_IT}.")


# -- COCO ----------------------------------------------------------------------------------------------------


def _part(path: str, failures: float) -> Part:
    return _coco_part(path) if _is_coco(path) else file_part(Path(path), failures)


def _is_coco(path: str) -> bool:
    """Whether a file is an object with images and annotations, as far as its beginning tells."""
    if not path.lower().endswith(".json"):
        return False
    with reading(path), opened(path) as file:
        head = file.read(COCO_HEAD)
    if not _COCO.match(head):
        return False
    try:  # a line that is complete may be the first of many records
        return "annotations" in json.loads(head.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return True


def _coco_part(path: str) -> Part:
    """Captions in COCO's layout as rows, one for each image."""
    with reading(path):
        content = read_bytes(path, COCO_BYTES)
    try:
        whole = json.loads(content)
        names = {image["id"]: image["file_name"] for image in whole["images"]}
        captions: dict[Any, list[object]] = {number: [] for number in names}
        for annotation in whole["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Damaged(
            f"{path} holds no captions in COCO's layout ({type(error).__name__}: {error}): it needs images with id and "
            "file_name, and annotations with image_id and caption."
        ) from error
    rows: list[Values] = [{NAME: names[number], "captions": captions[number]} for number in names]
    return record_part(path, lambda: ((f"{path}, image {number}", row) for number, row in enumerate(rows, 1)))
