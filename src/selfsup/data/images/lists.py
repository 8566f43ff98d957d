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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from selfsup.data.columns import Wanted, image_columns, names_image
from selfsup.data.discovery import File, file_at, find, opened, reading
from selfsup.data.formats import file_part
from selfsup.data.images.captions import Captions, captions_in
from selfsup.data.images.decoding import BadImage
from selfsup.data.images.stores import Span, Store
from selfsup.data.origins import Origin
from selfsup.data.parts import Malformed, Part, Values, record_part
from selfsup.data.tally import Tally
from selfsup.errors import Damaged
from selfsup.files import read_bytes
from selfsup.report import Progress

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NAME = "file_name"  # the column of paths in a folder's own lists
COCO_BYTES = 1 << 29  # of a file of captions in COCO's layout, which is read at once
COCO_HEAD = 1 << 16  # bytes that tell whether a file is one

_COCO = re.compile(rb'[\xef\xbb\xbf\s]*\{\s*"(info|images|annotations|licenses|categories|type)"\s*:')

Place = Callable[[str], str]  # where the image of a name lies


@dataclass
class Listed:
    """The images that lists name, in the order of their first appearance."""

    paths: list[str] = field(default_factory=list)  # "" where a row has none
    labels: list[object] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    labelled: bool = False  # whether a list has classes
    column: str = ""  # the columns of the last list, in words
    _numbers: dict[str, int] = field(default_factory=dict)  # by path, of what may get further captions

    def read(self, path: str, place: Place, wanted: Wanted, failures: float) -> None:
        """Add the images of a list."""
        part = _part(path, failures)
        sample = part.sample()
        chosen = image_columns(part.name, sample, wanted)
        self.labelled |= chosen.label is not None
        self.column = chosen.told(sample.names)
        for _, row in part.rows([chosen.images, *chosen.beside]):
            values = {} if isinstance(row, Malformed) else row
            name = values.get(chosen.images)
            path, number = place(name) if _is_path(name) else "", len(self.paths)
            if chosen.captions and path:  # a row may hold further captions of an image
                number = self._numbers.setdefault(path, number)
            if number == len(self.paths):
                self.paths.append(path)
                self.labels.append(values.get(chosen.label) if chosen.label else None)
                self.captions.append([])
            for column in chosen.captions:
                self.captions[number] += captions_in(values.get(column))


def open_lists(origin: Origin, wanted: Wanted, tally: Tally, progress: Progress) -> Store:
    """The images that lists name, wherever they lie."""
    listed, files = Listed(), origin.files
    for file in files:
        with tally.allowed(file.path):
            listed.read(file.path, _place(file.path), wanted, tally.failures)
    paths = listed.paths

    def span(index: int) -> Span:
        if not paths[index]:
            raise BadImage("it has no path")
        return Span(paths[index], 0, file_at(paths[index]).size)

    def stamp() -> Iterator[object]:
        yield from files
        for path in paths:
            yield file_at(path) if os.path.isfile(path) else path

    return Store(
        origin.name,
        len(paths),
        lambda index: paths[index] or f"{origin.name}, record {index + 1}",
        span,
        labels=listed.labels if listed.labelled else None,
        captions=Captions.of(listed.captions),
        stamp=stamp,
        column=listed.column,
    )


def holds_images(path: str, column: str | None) -> bool:
    """Whether the first values of a column of a list, or of the one named, are names of image files."""
    rows = _part(path, 1.0).sample().rows[:1]
    return any(names_image(value) for row in rows for name, value in row.items() if column in (None, name))


class Described(NamedTuple):
    """What a folder's own lists say: classes and captions of its images, if any; and the images that are not there."""

    labels: list[object] | None = None
    captions: Captions | None = None
    unknown: Sequence[str] = ()


def described(root: str, files: Sequence[File], wanted: Wanted, failures: float) -> Described:
    """What the lists of a folder say of its images. Raises UserError: a damaged list, or one without a column that is
    asked for."""
    below = {os.path.basename(file.path): file.path for file in files}
    listed = Listed()
    for path in _lists_of(root, files, wanted):
        place = _by_name(below, root) if _is_coco(path) else _beside(path)
        listed.read(path, place, Wanted(NAME, wanted.label, wanted.captions), failures)
    paths = [path and os.path.normpath(path) for path in listed.paths]
    numbers = {path: number for number, path in enumerate(paths)}
    there = [os.path.normpath(file.path) for file in files]
    if numbers.keys().isdisjoint(there):
        return Described()
    known, within = [numbers.get(path) for path in there], set(there)
    labels = [None if number is None else listed.labels[number] for number in known]
    captions = [[] if number is None else listed.captions[number] for number in known]
    unknown = [path or "a row without a path" for path in paths if path not in within]
    return Described(labels if listed.labelled else None, Captions.of(captions), unknown)


def _lists_of(root: str, files: Sequence[File], wanted: Wanted) -> list[str]:
    """The metadata in the folders of images, or else the captions in COCO's layout beside or above them."""
    folders = {os.path.dirname(file.path) for file in files} | {root}
    places = (os.path.join(folder, name) for folder in sorted(folders) for name in METADATA)
    metadata = [place for place in places if os.path.isfile(place)]
    if metadata or wanted.captions is None:
        return metadata
    above = os.path.join(root, os.pardir)
    searched = (root, os.path.join(root, "annotations"), above, os.path.join(above, "annotations"))
    patterns = (os.path.join(glob.escape(folder), "captions*.json") for folder in searched)
    return [path for pattern in patterns for path in sorted(glob.glob(pattern)) if _is_coco(path)]


def _is_path(name: object) -> TypeGuard[str]:
    """Whether a value may be the path of a file."""
    with suppress(UnicodeEncodeError):
        return isinstance(name, str) and bool(name) and b"\0" not in os.fsencode(name)
    return False


def _place(path: str) -> Place:
    """Where the images of a list lie that the user named: beside it, of COCO's layout somewhere below."""
    if not _is_coco(path):
        return _beside(path)
    root = os.path.dirname(path)
    if os.path.basename(os.path.abspath(root)) == "annotations":
        root = os.path.join(root, os.pardir)
    images = find(root or os.curdir, names_image, "images").files
    return _by_name({os.path.basename(file.path): file.path for file in images}, root)


def _beside(path: str) -> Place:
    return lambda name: os.path.join(os.path.dirname(path), name)


def _by_name(below: dict[str, str], root: str) -> Place:
    return lambda name: below.get(os.path.basename(name), os.path.join(root, os.path.basename(name)))


# -- COCO ----------------------------------------------------------------------------------------------------


def _part(path: str, failures: float) -> Part:
    return _coco_part(path) if _is_coco(path) else file_part(Path(path), failures)


def _is_coco(path: str) -> bool:
    """Whether a file is an object with images and annotations, as far as its beginning tells."""
    if not path.lower().endswith(".json"):
        return False
    with reading(path), opened(path) as file:
        head = file.read(COCO_HEAD)
    with suppress(ValueError, RecursionError):  # a line that is complete may be the first of many records
        return _COCO.match(head) is not None and "annotations" in json.loads(head.partition(b"\n")[0])
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
        problem = f"{path} holds no captions in COCO's layout ({type(error).__name__}: {error})"
        needs = "images with id and file_name, and annotations with image_id and caption"
        raise Damaged(f"{problem}: it needs {needs}.") from error
    rows: list[Values] = [{NAME: names[number], "captions": captions[number]} for number in names]
    return record_part(path, lambda: ((f"{path}, image {number}", row) for number, row in enumerate(rows, 1)))
