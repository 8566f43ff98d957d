"""Retrieval: ranks against a plain loop, chance against drawn orders, ties, memory, and the whole protocol."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_clip import save_tiny_clip
from tiny_vision import save_photos, save_tiny_vision

import selfsup
from selfsup.data.images import open_images
from selfsup.data.pairs import open_pairs
from selfsup.errors import UserError
from selfsup.evaluation import PAIR_MODELS, evaluate, retrieval
from selfsup.evaluation.base import Measurement
from selfsup.evaluation.retrieval import TOLERANCE, Relation, chance, chance_median, ranks, recall
from selfsup.inference.clip import PairModel
from selfsup.inference.pictures import CaptionedPictures


def plain_ranks(queries: np.ndarray, candidates: np.ndarray, own: list[set[int]]) -> list[int]:
    """By the words of the definition, one candidate after the other."""
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, candidates)]
    found = []
    for query, mine in zip(unit[0], own, strict=True):
        cosine = [float(query @ candidate) for candidate in unit[1]]
        best = max(cosine[place] for place in mine)
        first = min(place for place in mine if cosine[place] >= best - TOLERANCE)
        rank = 1
        for place, value in enumerate(cosine):
            nearer, as_near = value > best + TOLERANCE, value >= best - TOLERANCE
            rank += nearer or (as_near and place < first)
        found.append(rank)
    return found


def relation_of(own: list[set[int]]) -> Relation:
    pairs = [(image, text) for image, mine in enumerate(own) for text in sorted(mine)]
    return Relation(*np.array(pairs, np.int64).T)


def inverse(own: list[set[int]], texts: int) -> list[set[int]]:
    return [{image for image, mine in enumerate(own) if text in mine} for text in range(texts)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[set[int]]]:
    """Vectors of few distinct values, so that many are equal, and any relation in which nobody is alone."""
    images, texts = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    numbers = st.integers(-2, 2).map(float)
    sides = [
        np.array(draw(st.lists(st.tuples(numbers, numbers, st.just(1.0)), min_size=n, max_size=n)))
        for n in (images, texts)
    ]
    own = [draw(st.sets(st.integers(0, texts - 1), min_size=1)) for _ in range(images)]
    for text in set(range(texts)) - set().union(*own):
        own[draw(st.integers(0, images - 1))].add(text)
    return sides[0], sides[1], own


@settings(deadline=None)
@given(cases(), st.sampled_from([1, 2, 3, 4096]))
def test_ranks_are_those_of_a_plain_loop(case: tuple[np.ndarray, np.ndarray, list[set[int]]], tile: int) -> None:
    images, texts, own = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "TILE", tile)
        by_image, by_text = ranks(images, texts, relation_of(own))
    assert by_image.tolist() == plain_ranks(images, texts, own)
    assert by_text.tolist() == plain_ranks(texts, images, inverse(own, len(texts)))


def test_ranks_of_vectors_without_ties_are_those_of_sorting() -> None:
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((40, 8)), random.standard_normal((120, 8))
    own = [set(range(3 * number, 3 * number + 3)) for number in range(40)]
    by_image, by_text = ranks(images, texts, relation_of(own))
    cosines = (images @ texts.T) / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(texts, axis=1)
    order = np.argsort(-cosines, axis=1)
    assert by_image.tolist() == [
        1 + min(order[image].tolist().index(text) for text in mine) for image, mine in enumerate(own)
    ]
    order = np.argsort(-cosines.T, axis=1)
    assert by_text.tolist() == [1 + order[text].tolist().index(text // 3) for text in range(120)]


def test_rounding_decides_nothing() -> None:
    """A collapsed model, whose vectors differ by rounding alone, ranks by the order of the data: at chance."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal(64) + 1e-7 * random.standard_normal((2, 50, 64))
    for image_side, text_side in itertools.permutations(vectors):
        found = ranks(image_side, text_side, Relation(np.arange(50), np.arange(50)))
        for side in found:
            assert side.tolist() == list(range(1, 51))
    assert recall(found[0], 1) == pytest.approx(chance(np.ones(50, np.int64), 50, 1))


def test_progress_counts_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "TILE", 3)
    seen: list[tuple[int, int | None]] = []
    vectors = np.eye(7)
    ranks(vectors, vectors, Relation(np.arange(7), np.arange(7)), progress=lambda *count: seen.append(count))
    assert seen == [(3, 7), (6, 7), (7, 7)]


# -- chance --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(6, 30), st.integers(1, 40))
def test_chance_is_the_share_of_orders(owned: list[int], candidates: int, at: int) -> None:
    drawn = min(at, candidates)
    missed = [comb(candidates - own, drawn) / comb(candidates, drawn) for own in owned]
    expected = 100 * (1 - np.mean(missed))
    assert chance(np.array(owned), candidates, at) == pytest.approx(expected, abs=1e-6)


def test_chance_of_a_million() -> None:
    owned = np.full(1_000_000, 5)
    assert chance(owned, 5_000_000, 1) == pytest.approx(1e-4, rel=1e-3)
    assert chance(np.ones(3, np.int64), 1_000_000, 10) == pytest.approx(1e-3, rel=1e-3)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(4, 25))
def test_the_median_of_chance_is_the_first_rank_that_half_reach(owned: list[int], candidates: int) -> None:
    found = chance_median(np.array(owned), candidates)
    assert chance(np.array(owned), candidates, found) >= 50
    assert found == 1 or chance(np.array(owned), candidates, found - 1) < 50


# -- the protocol --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in ten rows; one caption of three images, two captions of one, and a column in another language."""
    place = tmp_path_factory.mktemp("pairs")
    files = sorted(save_photos(place / "photos", 3).rglob("*.png"))
    captions = [f"a {file.parent.name} photo of {word}" for file, word in zip(files, "abc" * 3, strict=True)]
    captions[0] = captions[1] = captions[2] = "the noise"
    table = {
        "jpg": [file.read_bytes() for file in files] + [files[4].read_bytes()],
        "caption": [*captions, "a second cat"],
        "other": [f"number {number}" for number in ("one", "two", "three", "zero", "in", "on", "of", "a", "b", "in")],
    }
    pq.write_table(pa.table(table), place / "pairs.parquet")
    return place / "pairs.parquet"


@pytest.mark.parametrize("columns", [[], ["other"], ["caption", "other"]])
def test_the_protocol(columns: list[str], model: Path, pairs: Path) -> None:
    table = pq.read_table(pairs).to_pydict()
    opened = selfsup.load(model)
    assert isinstance(opened, PairModel)
    images = list(dict.fromkeys(table["jpg"]))
    texts: dict[str, int] = {}
    own: list[set[int]] = [set() for _ in images]
    for image in images:  # in the order of the images
        for row, content in enumerate(table["jpg"]):
            for column in columns or ["caption"]:
                if content == image:
                    own[images.index(image)].add(texts.setdefault(table[column][row], len(texts)))
    x, y = opened.image.embed(images, "fp32"), opened.text.embed(list(texts), "fp32")
    sides = plain_ranks(x, y, own), plain_ranks(y, x, inverse(own, len(texts)))
    score = evaluate(model, data=pairs, protocol="retrieval", captions=columns, seed=2)
    assert score.n == 9 + len(texts)
    assert (score.details["images"], score.details["texts"]) == (9, len(texts))
    for name, found in zip(("image to text", "text to image"), sides, strict=True):
        way = score.details[name]
        for at in (1, 5, 10):
            assert way[f"R@{at}"] == pytest.approx(100 * np.mean([rank <= at for rank in found]))
        assert way["median rank"] == np.median(found)
        assert way["chance"]["R@1"] < way["chance"]["R@5"] <= way["chance"]["R@10"]
    assert score.value == pytest.approx(50 * sum(np.mean([rank == 1 for rank in found]) for found in sides))
    assert score.interval[0] <= score.value <= score.interval[1]
    assert score == evaluate(model, data=pairs, protocol="retrieval", captions=columns, seed=2)


def test_held_out_pairs_of_a_recipe(model: Path, pairs: Path) -> None:
    opened = PairModel.load(model)
    images = open_pairs(pairs)
    chosen = CaptionedPictures(images, opened.image.size, np.array([0, 3, 5, 6]))
    assert opened.read(chosen) is chosen
    assert [len(captions) for _, captions in chosen.captioned()] == [1, 1, 1, 1]
    score = retrieval.measure(Measurement(model, opened, chosen))
    assert (score.details["images"], score.details["texts"]) == (4, 4)
    found = [item.content.index for item in chosen.items()]
    assert found == [0, 3, 5, 6]


def test_images_that_cannot_be_read_take_their_captions_along(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfsup.data.images import collection

    monkeypatch.setattr(collection, "SMALL", 0)  # only headers are looked at
    files = sorted(save_photos(tmp_path / "photos", 2).rglob("*.png"))
    for number, file in enumerate(files):
        file.with_suffix(".txt").write_text(f"a cat\nphoto {number}\n")
    files[2].write_bytes(files[2].read_bytes()[:-200])
    opened = PairModel.load(model)
    chosen = CaptionedPictures(open_pairs(tmp_path / "photos", failures=0.5), opened.image.size)
    score = retrieval.measure(Measurement(model, opened, chosen))
    assert (score.details["images"], score.details["texts"]) == (5, 6)


def test_every_protocol_of_pair_models(model: Path, tmp_path: Path) -> None:
    table = {"jpg": [], "caption": [], "label": []}  # type: ignore[var-annotated]
    for file in sorted(save_photos(tmp_path / "photos", 12).rglob("*.png")):
        table["jpg"].append(file.read_bytes())
        table["caption"].append(f"a {file.parent.name} photo")
        table["label"].append(file.parent.name)
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    for protocol in set(PAIR_MODELS) - {"sts"}:
        score = evaluate(model, data=tmp_path / "pairs.parquet", protocol=protocol)
        assert score.interval[0] <= score.value <= score.interval[1]
    sentences = [
        {"sentence1": f"a {one} cat", "sentence2": f"the {two} dog", "score": float(number)}
        for number, (one, two) in enumerate(itertools.product(("red", "blue", "green"), repeat=2))
    ]
    by_towers = evaluate(model, data=sentences, protocol="sts")
    assert by_towers.value == evaluate(model / "text", data=sentences, protocol="sts").value
    with pytest.raises(UserError, match="holds no scores to be followed"):
        evaluate(model, data=tmp_path / "pairs.parquet", protocol="sts")


def test_the_command(model: Path, pairs: Path, selfsup_command: Callable[..., Any]) -> None:
    words = ("evaluate", model, "--protocol", "retrieval", "--data", pairs)
    answer = selfsup_command(*words, "--captions", "caption", "other", "--json")
    found = json.loads(answer.out)
    assert found == evaluate(model, data=pairs, protocol="retrieval", captions=["caption", "other"]).to_json()
    printed = selfsup_command(*words).out
    assert "image to text (R@1 " in printed
    assert "median rank" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": ["missing"]}, "no column 'missing'"),
        ({"data": None}, "name a source with --data"),
        ({"label": "caption"}, "retrieval has no use for --label"),
        ({"templates": ["{}"]}, "retrieval has no use for --templates; leave it out, or take zero-shot"),
        ({"test": "x"}, "retrieval has no use for --test"),
        ({"protocol": "rankme", "captions": ["caption"]}, "rankme has no use for --captions; .* take retrieval"),
        ({"protocol": "bits-per-byte"}, "an image-text model, for which bits-per-byte is not defined"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str, model: Path, pairs: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(model, **{"data": pairs, "protocol": "retrieval", **change})


def test_other_data_and_models_are_refused(model: Path, pairs: Path, tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 2)
    with pytest.raises(UserError, match="has no captions"):
        evaluate(model, data=photos, protocol="retrieval")
    with pytest.raises(UserError, match="has no captions"):
        CaptionedPictures(open_images(photos), 16)
    same = [(np.full((20, 20, 3), 9, np.uint8), "a cat"), (np.full((20, 20, 3), 9, np.uint8), "a dog")]
    with pytest.raises(UserError, match="has 1 distinct images with 2 distinct captions"):
        evaluate(model, data=same, protocol="retrieval")
    with pytest.raises(UserError, match="an image encoder, for which retrieval is not defined"):
        evaluate(save_tiny_vision(tmp_path / "vision"), data=pairs, protocol="retrieval")
