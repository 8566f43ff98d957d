"""Libraries of vectors: searched, and drawn as maps of two dimensions."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from selfsup.data.arrow_files import open_arrow
from selfsup.data.arrow_records import images_in
from selfsup.data.cache import kept_table
from selfsup.data.discovery import kind_of
from selfsup.data.images.decoding import MOST_BYTES, BadImage, decode
from selfsup.errors import UserError
from selfsup.files import read_bytes
from selfsup.inference.hits import Hit, snippet
from selfsup.inference.items import Vectors
from selfsup.inference.library import PLACED, Library
from selfsup.inference.search import Searcher
from selfsup.serving.guard import Folders
from selfsup.serving.models import Kept
from selfsup.serving.studio.inspecting import image_of
from selfsup.serving.studio.shared import Studio

MOST_LIBRARIES, DEEPEST = 200, 4  # of a list, and folders below which they are looked for
MOST_HITS, MOST_QUERY = 200, 4000
SHOWN = 600  # characters of a text
THUMBNAIL = 256  # pixels of the longer side
MOST_POINTS = 200_000  # of a map
CLASSES = 11  # that have a colour of their own on a map; what is rarer shares one
MISSING = 255  # the code of a value that is not there
NEIGHBOURS = 15  # of a vector, which UMAP keeps near it
FORMAT = 1  # of what is kept of a map; a change makes it anew

Name = Annotated[str, StringConstraints(max_length=1000)]
Named = Annotated[str, Query(max_length=1000)]
Points = npt.NDArray[np.float32]


class Looked(BaseModel):
    """What is looked for, and how."""

    model_config = ConfigDict(extra="forbid")
    library: Name
    query: Annotated[str, StringConstraints(max_length=MOST_QUERY)] | None = None
    image: Annotated[str, StringConstraints(max_length=1 << 25)] | None = None  # a data URL
    top: Annotated[int, Field(ge=1, le=MOST_HITS)] = 20
    where: Annotated[str, StringConstraints(max_length=2000)] | None = None
    hybrid: bool = False
    per_document: Annotated[int, Field(ge=1, le=MOST_HITS)] = 1


class Chosen(BaseModel):
    """Points of a map, by their numbers."""

    model_config = ConfigDict(extra="forbid")
    library: Name
    rows: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_POINTS)]


@dataclass(frozen=True)
class Charted:
    """A library with its map: the ids of the records that are points, their places (n, 2) from -1 to 1, and how they
    were laid out, in words."""

    library: Library
    ids: list[str]
    points: Points
    method: str

    def key(self, row: int) -> str:
        """The id of a point."""
        if row >= len(self.ids):
            raise UserError(f"The map of {self.library.path} has {len(self.ids):,} points, and none of number {row:,}.")
        return self.ids[row]


def router(studio: Studio) -> APIRouter:
    """What the pages Search and Map ask for."""
    routes, folders = APIRouter(prefix="/api"), studio.folders
    searchers, maps = Kept(lambda place: _searcher(folders, place)), Kept(_charted, most=2)

    @routes.get("/libraries")
    def libraries() -> dict[str, Any]:
        return {"libraries": [_described(folders, place) for place in _places(folders)]}

    @routes.post("/search")
    async def search(asked: Looked) -> dict[str, Any]:
        image = None if asked.image is None else image_of(asked.image)

        def find(searcher: Searcher) -> list[Hit]:
            return searcher(
                asked.query,
                asked.top,
                asked.where or None,
                image=image,
                hybrid=asked.hybrid,
                per_document=asked.per_document,
            )

        hits = await searchers.ask(folders.inside(asked.library), find)
        return {"hits": [_hit(folders, hit, asked.query or "") for hit in hits]}

    @routes.get("/picture")
    def picture(source: Named) -> Response:
        return Response(_thumbnail(folders, source), media_type="image/jpeg")

    @routes.get("/map")
    async def chart(library: Named) -> dict[str, Any]:
        return await maps.ask(folders.inside(library), _told)

    @routes.get("/map/column")
    async def column(library: Named, column: Named) -> dict[str, Any]:
        return await maps.ask(folders.inside(library), lambda charted: _coloured(charted, column))

    @routes.get("/map/item")
    async def item(library: Named, row: Annotated[int, Query(ge=0)]) -> dict[str, Any]:
        return await maps.ask(folders.inside(library), lambda charted: _item(folders, charted, row))

    @routes.post("/map/ids")
    async def ids(chosen: Chosen) -> dict[str, Any]:
        return await maps.ask(
            folders.inside(chosen.library), lambda charted: {"ids": [charted.key(row) for row in chosen.rows]}
        )

    return routes


# -- which there are -------------------------------------------------------------------------------------------


def _places(folders: Folders) -> list[Path]:
    """The libraries in the folders, as far down as is looked; none that a link leads to elsewhere."""
    patterns = ["*/" * depth + "*.lance" for depth in range(DEEPEST)]
    found = (path for place in folders.places for pattern in patterns for path in sorted(place.glob(pattern)))
    own = (path for path in found if any(path.resolve().is_relative_to(place) for place in folders.places))
    return list(dict.fromkeys(path for path in own if Library.exists(path)))[:MOST_LIBRARIES]


def _described(folders: Folders, place: Path) -> dict[str, Any]:
    """A library in a list; where it cannot be used, with the reason."""
    name = str(place.relative_to(folders.places[0])) if place.is_relative_to(folders.places[0]) else str(place)
    try:
        library = Library.open(place)
        made = library.description
        return {
            "name": name,
            "records": library.count(),
            "model": made["model"],
            "fingerprint": made["model_fingerprint"],
            "hybrid": library.has_words,
            "passages": library.passages is not None,
            "columns": _columns(library),
        }
    except UserError as error:
        return {"name": name, "problem": str(error)}


def _columns(library: Library) -> dict[str, str]:
    """The columns that a condition or a colour may go by, and their types: those of the data, and places."""
    placed = {name: kind for name, kind in PLACED.items() if name in library.own}
    return {name: str(kind) for name, kind in {**library.kinds, **placed, "source": "string"}.items()}


# -- searches --------------------------------------------------------------------------------------------------


def _searcher(folders: Folders, place: Path) -> Searcher:
    """A library with its model, which lies in the folders too."""
    model = str(Library.open(place).description["model"])
    return Searcher(place, folders.inside(model))


def _hit(folders: Folders, hit: Hit, query: str) -> dict[str, Any]:
    """A hit as a page shows it: around the words of the query, and whether its picture can be had."""
    shown = {**hit.to_json(), "text": snippet(hit.text, query, SHOWN), "values": _plain(hit.values)}
    return shown | {"picture": not hit.text and _file_of(folders, hit.source) is not None}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON can hold them: what is no finite number is none."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


# -- pictures --------------------------------------------------------------------------------------------------


def _file_of(folders: Folders, source: str) -> Path | None:
    """The file that the place of a record begins with, where it lies in the folders; what follows it is a row or a name
    within."""
    for path in (source, source.rpartition(", ")[0]):
        try:
            place = folders.inside(path) if path else None
        except UserError:
            return None
        if place is not None and place.is_file():
            return place
    return None


def _thumbnail(folders: Folders, source: str) -> bytes:
    """The picture of a record, made small. Raises UserError where there is none in the folders."""
    place = _file_of(folders, source)
    if place is None:
        raise UserError(f"{source:.200} lies outside of the folders that were given at the start, or is gone.")
    try:
        return _small(place, source, place.stat().st_mtime_ns)
    except (BadImage, OSError, ValueError) as error:
        raise UserError(f"The picture {source:.200} cannot be read: {error}.") from None


@lru_cache(maxsize=2048)
def _small(place: Path, source: str, written: int) -> bytes:
    """A JPEG of at most `THUMBNAIL` pixels to a side, of an image file or of a row of a table."""
    content = read_bytes(place, MOST_BYTES) if kind_of(place.name) == "images" else _row(place, source)
    small = Image.fromarray(decode(content, THUMBNAIL))
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return file.getvalue()


def _row(place: Path, source: str) -> bytes:
    """The bytes of the image in a row, `TABLE, row N`. Only what lies in the table itself is shown: paths in it may
    lead anywhere."""
    word, _, number = source.rpartition(", ")[2].partition(" ")
    if word != "row" or not number.isdecimal():
        raise ValueError("only image files and tables with images in them are shown")
    table = open_arrow(place)
    names, row = images_in(table.schema), int(number) - 1
    for batch in table.batches(names[:1]) if names else ():
        if row < batch.num_rows:
            value = batch.column(0)[row].as_py()
            content = value.get("bytes") if isinstance(value, dict) else value
            return bytes(content or b"")
        row -= batch.num_rows
    raise ValueError("the table has no such image")


# -- maps ------------------------------------------------------------------------------------------------------


def _charted(place: Path) -> Charted:
    """A library with its map, which is made once and kept in the cache."""
    library = Library.open(place)
    method = "UMAP" if _has_umap() else "PCA"
    kept = kept_table("maps", (FORMAT, library.fingerprint, method, MOST_POINTS), lambda: _laid_out(library, method))
    points = np.stack([kept.column(axis).to_numpy() for axis in ("x", "y")], 1)
    explained = kept.schema.metadata[b"explained"].decode()
    return Charted(library, kept.column("id").to_pylist(), points, f"{method}{explained}")


def _has_umap() -> bool:
    from importlib.util import find_spec

    return find_spec("umap") is not None


def _laid_out(library: Library, method: str) -> Any:
    """A table of ids and places."""
    ids, vectors = library.sample(MOST_POINTS)
    if not ids:
        raise UserError(f"{library.path} holds no records, so there is nothing to draw.")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    points, explained = _by_umap(unit) if method == "UMAP" and len(ids) > NEIGHBOURS else by_pca(unit)
    points = (points - (points.max(0) + points.min(0)) / 2) * (2 / max(float(np.ptp(points, axis=0).max()), 1e-12))
    table = pa.table({"id": ids, "x": points[:, 0].astype(np.float32), "y": points[:, 1].astype(np.float32)})
    return table.replace_schema_metadata({"explained": explained})


def _by_umap(unit: Vectors) -> tuple[Vectors, str]:
    """(McInnes et al. 2018, "UMAP".) By a fixed seed."""
    import umap

    found = umap.UMAP(n_neighbors=NEIGHBOURS, metric="euclidean", random_state=0, n_jobs=1).fit_transform(unit)
    return found, f" of {NEIGHBOURS} neighbours"


def by_pca(unit: Vectors) -> tuple[Vectors, str]:
    """The first two principal components (n, 2), and in words how much of the variance they hold. The sign of a
    component is the one in which its largest weight is positive."""
    centred = unit.astype(np.float64) - unit.mean(0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, :-3:-1]
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    share = variances[-2:].sum() / max(variances.sum(), 1e-12)
    points = np.zeros((len(unit), 2))
    points[:, : directions.shape[1]] = centred @ directions
    return points, f", {share:.0%} of the variance"


def _told(charted: Charted) -> dict[str, Any]:
    """The points in order, and what is said of them."""
    return {
        "points": _array(charted.points),
        "count": len(charted.ids),
        "records": charted.library.count(),
        "method": charted.method,
        "columns": list(_columns(charted.library)),
    }


def _array(values: npt.NDArray[Any]) -> str:
    """The bytes of an array, the lowest first, as a page makes a typed array of them."""
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _coloured(charted: Charted, name: str) -> dict[str, Any]:
    """A code from 0 to 255 for each point by its value in a column, and what the codes stand for."""
    if name not in _columns(charted.library):
        raise UserError(f"{charted.library.path} has no column {name:.100}; choose one of the list.")
    table = charted.library.columns("id", name)
    places = {key: row for row, key in enumerate(table.column("id").to_pylist())}
    values = table.column(name).take(pa.array([places.get(key) for key in charted.ids], pa.int64())).combine_chunks()
    numbers = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    return by_number(values) if numbers and pc.count_distinct(values).as_py() > CLASSES else by_class(values)


def by_number(values: Any) -> dict[str, Any]:
    numbers = np.array(values.to_pylist(), np.float64)  # None becomes NaN
    finite = np.isfinite(numbers)
    low, high = numbers[finite].min(), numbers[finite].max()
    codes = np.full(len(numbers), MISSING, np.uint8)
    codes[finite] = ((numbers[finite] - low) / max(high - low, 1e-300) * (MISSING - 1)).round()
    return {"kind": "number", "low": low, "high": high, "missing": int((~finite).sum()), "codes": _array(codes)}


def by_class(values: Any) -> dict[str, Any]:
    """The most frequent values, each with how many have it; the others together."""
    encoded = values.dictionary_encode()
    names, indices = encoded.dictionary.to_pylist(), encoded.indices.fill_null(len(encoded.dictionary)).to_numpy()
    counts = np.bincount(indices, minlength=len(names) + 1)
    order = sorted(range(len(names)), key=lambda place: (-counts[place], str(names[place])))
    kept, others = order[:CLASSES], order[CLASSES:]
    code = np.full(len(names) + 1, CLASSES, np.uint8)
    code[kept] = np.arange(len(kept))
    code[-1] = MISSING
    legend = [[str(names[place])[:200], int(counts[place])] for place in kept]
    rest = {"others": [len(others), int(counts[others].sum())], "missing": int(counts[-1])}
    return {"kind": "class", "legend": legend, **rest, "codes": _array(code[indices])}


def _item(folders: Folders, charted: Charted, row: int) -> dict[str, Any]:
    """A record that is pointed at."""
    key = charted.key(row)
    record = charted.library.record(key)
    own = ("id", "text", "source")
    values = _plain({name: value for name, value in record.items() if name not in own})
    picture = not record["text"] and _file_of(folders, record["source"]) is not None
    text = snippet(record["text"], "", SHOWN // 2)
    return {"id": key, "text": text, "source": record["source"], "values": values, "picture": picture}
