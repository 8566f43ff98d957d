"""retrieval: how often the nearest text of an image is one of its own, and the nearest image of a text likewise.

Every image looks for its captions among the texts of all, every text for its images among all, by cosine similarity.
Images of equal content are one image with all their captions, equal captions one text with all its images; all of
them count as right (Karpathy and Fei-Fei 2015 and all that follow take the best-ranked of an image's captions).

    rank = 1 + what is nearer than the best of one's own by more than `TOLERANCE`
             + what is as near, within it, and stands earlier in the data

So neither rounding nor what a program does with ties decides, and a model that gives everything one vector is no
better than chance. R@K is the share of ranks up to K, in percent. The value is the mean of R@1 of images and of texts;
the details have R@1, R@5, R@10 and the median rank of both ways, each beside that of a random order. The interval
resamples images, each with the captions that no earlier image has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Resample, Resampling, Score
from selfsup.evaluation.ranking import TOLERANCE, Indices, before
from selfsup.inference.geometry import normalised
from selfsup.inference.items import Item, Vectors, silent
from selfsup.inference.pictures import open_captioned
from selfsup.inference.texts import Text
from selfsup.machine import find_device
from selfsup.report import Progress

TILE = 4096  # images and texts whose similarities are in memory at once
AT = (1, 5, 10)


@dataclass(frozen=True)
class Relation:
    """Which image belongs with which text: numbers of both, (pairs,), no pair twice, in the order of the images."""

    images: Indices
    texts: Indices


def ranks(
    images: Vectors, texts: Vectors, relation: Relation, device: torch.device | None = None, progress: Progress = silent
) -> tuple[Indices, Indices]:
    """The rank of the best of one's own, of each image (n,) among the texts, and of each text (m,) among the images.

    Args:
        images, texts: (n, d) and (m, d); each has one of its own at least.
        device: where similarities are computed, the CPU by default.
        progress: called with the images done, and all of them.

    Beside the features, `TILE`² similarities are in memory at once.
    """
    x, y = normalised(images).to(device), normalised(texts).to(device)
    i, t = torch.from_numpy(relation.images).to(device), torch.from_numpy(relation.texts).to(device)
    blocks = zip(torch.split(i, TILE), torch.split(t, TILE), strict=True)
    own = torch.cat([(x[first] * y[second]).sum(1) for first, second in blocks])
    of_images, of_texts = _Queries(i, t, own, len(x)), _Queries(t, i, own, len(y))
    for start in range(0, len(x), TILE):
        rows = slice(start, min(start + TILE, len(x)))
        for begin in range(0, len(y), TILE):
            columns = slice(begin, min(begin + TILE, len(y)))
            tile = x[rows] @ y[columns].T
            of_images.count(tile, rows, columns)
            of_texts.count(tile.T, columns, rows)
        progress(rows.stop, len(x))
    return of_images.ranks.cpu().numpy(), of_texts.ranks.cpu().numpy()


class _Queries:
    """What looks for its own among candidates: the similarity to beat, and the place of the earliest that has it.

    Args:
        queries, candidates: numbers of what belongs together, (pairs,); similarity: of each, (pairs,).
        count: of the queries.

    Attributes:
        ranks: int64 (count,), of the candidates counted so far.
    """

    def __init__(self, queries: Tensor, candidates: Tensor, similarity: Tensor, count: int) -> None:
        self._best = similarity.new_full((count,), -math.inf).scatter_reduce(0, queries, similarity, "amax")
        level = similarity >= self._best[queries] - TOLERANCE
        nowhere = candidates.new_full((count,), torch.iinfo(torch.int64).max)
        self._place = nowhere.scatter_reduce(0, queries[level], candidates[level], "amin")
        self.ranks = torch.ones_like(self._place)

    def count(self, tile: Tensor, queries: slice, candidates: slice) -> None:
        """Add what comes before one's own, of similarities (queries, candidates)."""
        places = torch.arange(candidates.start, candidates.stop, device=tile.device)
        self.ranks[queries] += before(tile, self._best[queries, None], places, self._place[queries, None]).sum(1)


# -- figures -------------------------------------------------------------------------------------------------


def recall(ranks: Indices, at: int) -> float:
    """The share of ranks up to `at`, in percent."""
    return float(100 * (ranks <= at).mean())


def chance(owned: Indices, candidates: int, at: int) -> float:
    """R@`at` of a random order of the candidates, for queries that own so many of them each, (n,), in percent.

    1 − C(m − at, k) / C(m, k) for k of m: all of one's own stand behind the first `at`.
    """
    own = np.arange(owned.max())
    missed = np.cumprod(np.maximum(candidates - at - own, 0) / (candidates - own))
    return float(100 * (1 - missed[owned - 1]).mean())


def chance_median(owned: Indices, candidates: int) -> int:
    """The first rank that half of the queries reach in a random order of the candidates; see `chance`."""
    low, high = 1, candidates
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(owned, candidates, middle) >= 50 else (middle + 1, high)
    return low


def direction(found: Indices, owned: Indices, candidates: int) -> dict[str, Any]:
    """The figures of one way, of ranks (n,) of queries that own so many of the candidates, (n,)."""
    return {
        **{f"R@{at}": recall(found, at) for at in AT},
        "median rank": float(np.median(found)),
        "chance": {
            **{f"R@{at}": chance(owned, candidates, at) for at in AT},
            "median rank": chance_median(owned, candidates),
        },
    }


def measure(measurement: Measurement) -> Score:
    pictures, captions, relation, name = _open(measurement)
    images, texts = len(pictures), len(captions)
    device = find_device(measurement.device)
    by_image, by_text = ranks(pictures, captions, relation, device, measurement.progress)
    ways = {
        "image to text": direction(by_image, np.bincount(relation.images, minlength=images), texts),
        "text to image": direction(by_text, np.bincount(relation.texts, minlength=texts), images),
    }
    return Score.of(
        Resampling(images, _statistic(by_image, by_text, relation)),
        measurement.seed,
        value=float(np.mean([way["R@1"] for way in ways.values()])),
        unit="% R@1, mean of both ways",
        n=images + texts,
        chance=float(np.mean([way["chance"]["R@1"] for way in ways.values()])),
        data=name,
        details={"images": images, "texts": texts, **ways, "tolerance": TOLERANCE},
    )


def _statistic(by_image: Indices, by_text: Indices, relation: Relation) -> Callable[[Resample], float]:
    """The value for images that are drawn, each with the texts that are first of all its own."""
    texts, first = np.unique(relation.texts, return_index=True)
    owner = relation.images[first]
    right = 100.0 * (by_image == 1)
    texts_right = np.bincount(owner, 100.0 * (by_text[texts] == 1), len(by_image))
    texts_owned = np.bincount(owner, minlength=len(by_image))

    def value(drawn: Resample) -> float:
        owned = texts_owned[drawn].sum()
        return float((right[drawn].mean() + texts_right[drawn].sum() / owned) / 2) if owned else math.nan

    return value


# -- data ----------------------------------------------------------------------------------------------------


def _open(measurement: Measurement) -> tuple[Vectors, Vectors, Relation, str]:
    """Vectors of the distinct images (n, d) and captions (m, d) of the data, which belong together, and its name.

    Images that cannot be read are left out with captions only they have. Raises UserError where there is no data, no
    captions, or one image or one text only.
    """
    m = measurement
    size = m.model.image.size
    how = {"failures": m.failures, "progress": m.progress}
    collection = open_captioned(m.need_data(), size, m.column, m.captions, **how)
    m.sources.append(collection)
    items: dict[bytes, Item] = {}
    captions: dict[bytes, dict[str, None]] = {}  # in their order
    for item, own in collection.captioned():
        items.setdefault(item.identity, item)
        captions.setdefault(item.identity, {}).update(dict.fromkeys(own))
    records = m.sampled(list(zip(items.values(), captions.values(), strict=True)))
    read, images = m.embed([item for item, _ in records])
    texts: dict[str, int] = {}
    pairs = [
        (number, texts.setdefault(caption, len(texts)))
        for number, (_, own) in enumerate(itertools.compress(records, read))
        for caption in own
    ]
    if len(images) < 2 or len(texts) < 2:
        raise UserError(
            f"{collection.name} has {len(images)} distinct images with {len(texts)} distinct captions, and nothing can "
            "be mistaken for the only one; give two or more of each."
        )
    _, vectors = m.embed([Text("", text, "", {}) for text in texts])
    return images, vectors, Relation(*np.array(pairs, np.int64).T), collection.name
