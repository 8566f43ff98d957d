"""Image-text training as a user runs it: sizes, towers from earlier runs, frozen towers, what is left of a run."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, TINY_PAIRS, TINY_VISION, assert_alike
from PIL import Image
from safetensors.torch import load_file

import selfsup
from selfsup.errors import UserError
from selfsup.inference.clip import PairModel
from selfsup.models.sentence_transformers import read_features
from selfsup.objectives.clip import CLIPRecipe
from selfsup.objectives.recipe import Effort
from selfsup.report import Reporter
from selfsup.run import Run

TrainPairs = Callable[..., Run]


@pytest.fixture
def train_pairs(captioned: Path) -> TrainPairs:
    def call(out: Path, **more: Any) -> Run:
        settings = {**TINY_PAIRS, "data": str(captioned), "steps": 4, **more}
        return selfsup.train(**settings, out=out, reporter=Reporter(False))

    return call


@pytest.fixture(scope="module")
def towers(captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run on the images alone, and one on texts alone."""
    place, quiet = tmp_path_factory.mktemp("towers"), Reporter(False)
    texts = [file.read_text(encoding="utf-8") for file in sorted(captioned.glob("*.txt"))]
    return {
        "image": selfsup.train(
            "dino", data=str(captioned), out=place / "dino", reporter=quiet, **{**TINY_VISION, "steps": 3}
        ),
        "text": selfsup.train("masked-lm", data=texts, out=place / "masked", reporter=quiet, **{**TINY, "steps": 3}),
    }


def settled(captioned: Path, **more: Any) -> CLIPRecipe:
    recipe = CLIPRecipe(CLIPRecipe.resolve(("test", {**TINY_PAIRS, "data": str(captioned), **more})))
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=4))
    return recipe


# -- a run ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_two_towers_in_one_space(train_pairs: TrainPairs, tmp_path: Path) -> None:
    run = train_pairs(tmp_path / "run", **{"evaluate.every": 2, "evaluate.protocols": "retrieval,rankme"})
    summary, lines = run.summary, run.metrics()
    records, batch = (summary["validation_records"], 8)  # the last batch is smaller, and so is what chance costs in it
    rest = records % batch
    expected = ((records - rest) * math.log(batch) + (rest * math.log(rest) if rest else 0.0)) / records
    assert summary["chance"] == pytest.approx(expected)
    assert {"softmax", "temperature", "modality_gap", "grad_norm_image", "grad_norm_text"} <= lines[0].keys()
    assert {"retrieval", "rankme"} <= next(line for line in lines if line["split"] == "validation").keys()
    assert max(summary["max_difference"].values()) < 1e-5
    model = selfsup.load(run.directory)
    assert isinstance(model, PairModel)
    assert model.similarity.scale == pytest.approx(1 / lines[-1]["temperature"], rel=0.05)
    image = np.zeros((20, 20, 3), np.uint8)
    assert model.embed([image, "a thing"]).shape == (2, model.dimension)
    tower = selfsup.load(run.model_directory / "text").embed(["a thing"], precision="fp32")
    assert_alike(tower, model.embed(["a thing"], precision="fp32"))


def test_the_loss_of_the_towers_that_are_saved_is_that_of_the_run(
    train_pairs: TrainPairs, captioned: Path, tmp_path: Path
) -> None:
    """Trained for a while it finds its own pairs more often than by chance, from its files alone."""
    more = {"steps": 60, "batch": 32, "data.validation": 0.0, "optim.lr": 0.01, "optim.adamw_lr": 0.003}
    run = train_pairs(tmp_path / "run", **more)
    score = selfsup.evaluate(run, data=str(captioned), protocol="retrieval")
    assert score.value > 4 * score.chance


def test_pairs_from_python(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 256, (20, 20, 3), dtype=np.uint8), f"thing {n}") for n in range(24)]
    settings = {**TINY_PAIRS, "steps": 2, "out": tmp_path / "run", "reporter": Reporter(False)}
    run = selfsup.train(**settings, data=pairs)
    assert run.environment()["counts"]["captions"] == 24


# -- towers from earlier runs --------------------------------------------------------------------------------


def test_towers_start_from_runs(towers: dict[str, Run], captioned: Path) -> None:
    """With the weights and the tokenizer of these, at a tenth of the rates, pooled as there."""
    given = {name: value for name, value in TINY_PAIRS.items() if name not in ("model", "text")}
    given = {name: value for name, value in given.items() if not name.startswith("data.voc")}
    places = {"model.init": str(towers["image"].directory), "text.init": str(towers["text"].directory)}
    recipe = CLIPRecipe(CLIPRecipe.resolve(("test", {**given, "data": str(captioned), **places})))
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=4))
    built = recipe.build()
    for tower, module in (("image", built.image.network), ("text", built.text.network)):
        saved = load_file(towers[tower].model_directory / "model.safetensors")
        own = module.state_dict()
        shared = [name for name in saved if name.removeprefix("model.") in own]
        assert shared
        for name in shared:
            assert torch.equal(saved[name], own[name.removeprefix("model.")]), name
    assert recipe.settings["clip.image_rate"] == recipe.settings["clip.text_rate"] == 0.1
    assert recipe.settings["clip.pooling"] == "cls"
    assert recipe.settings["data.tokenizer"] == str(towers["text"].model_directory)
    vocabulary = json.loads((towers["text"].model_directory / "config.json").read_text())["vocab_size"]
    assert recipe.text.tokenizer.vocabulary == vocabulary
    whitening = read_features(towers["image"].model_directory)
    assert torch.equal(built.image.projection.weight, whitening.weight)  # as many dimensions as its width
    assert "image tower of" in recipe.facts()["start"]


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_leaves_as_it_came(
    frozen: str, towers: dict[str, Run], train_pairs: TrainPairs, tmp_path: Path
) -> None:
    init = {"image": {"model": {}, "model.init": str(towers["image"].directory)}}
    init["text"] = {"text": {}, "text.init": str(towers["text"].directory), "data.vocabulary": None}
    run = train_pairs(tmp_path / "run", **init[frozen], **{"clip.freeze": frozen, "optim.lr": 0.05})
    before = load_file(towers[frozen].model_directory / "model.safetensors")
    after = load_file(run.model_directory / frozen / "model.safetensors")
    shared = {name: name if name in after else name.removeprefix("model.") for name in before}
    assert {other for other in shared.values() if "layer" in other} <= after.keys()
    for name, other in shared.items():
        assert other not in after or torch.equal(before[name], after[other]), name
    other = {"image": "text", "text": "image"}[frozen]
    trained = [line[f"grad_norm_{other}"] for line in run.metrics() if line["split"] == "train"]
    assert min(trained) > 0


def test_a_clip_run_goes_on_with_its_projections(train_pairs: TrainPairs, captioned: Path, tmp_path: Path) -> None:
    first = train_pairs(tmp_path / "first", **{"clip.loss": "sigmoid"})
    recipe = settled(captioned, model={}, text={}, init=str(first.directory), **{"data.vocabulary": None})
    built = recipe.build()
    assert (built.loss, recipe.settings["text.init"]) == ("sigmoid", str(first.directory))
    similarity = selfsup.load(first.directory).similarity
    assert built.similarity.scale == pytest.approx(similarity.scale)
    assert built.similarity.bias == pytest.approx(similarity.bias)
    for tower in ("image", "text"):
        features = read_features(first.model_directory / tower)
        assert torch.equal(getattr(built, tower).projection.weight, features.weight)
        assert torch.equal(getattr(built, tower).projection.bias, features.bias)


def test_a_text_tower_of_others(train_pairs: TrainPairs, tmp_path: Path) -> None:
    """Any encoder that transformers opens; it is saved under its own names, and opens again."""
    directory = foreign.bert(tmp_path / "bert")
    more = {"text": {}, "text.init": str(directory), "data.vocabulary": None}
    run = train_pairs(tmp_path / "run", **more)
    assert json.loads((run.model_directory / "text" / "config.json").read_text())["model_type"] == "bert"
    assert np.isfinite(selfsup.load(run.directory).embed(["a thing"])).all()


def test_hidden_tokens_are_shown_as_unknown_or_as_an_earlier_tower_knows_them(
    towers: dict[str, Run], captioned: Path
) -> None:
    fresh = settled(captioned).text
    assert fresh.hiding(0.2).shown == fresh.tokenizer.unknown != fresh.tokenizer.mask
    bytewise = settled(captioned, tokenizer="bpe").text  # which knows everything
    assert bytewise.hiding(0.2).shown == bytewise.tokenizer.mask
    more = {"text": {}, "text.init": str(towers["text"].directory), "data.vocabulary": None}
    started = settled(captioned, **more).text
    assert started.hiding(0.2).shown == started.tokenizer.mask


def test_a_tower_sees_images_at_the_size_that_it_was_trained_at(towers: dict[str, Run], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 256, (60, 60, 3), dtype=np.uint8), f"thing {n}") for n in range(24)]
    given = {name: value for name, value in TINY_PAIRS.items() if name not in ("model", "data.size")}
    settings = CLIPRecipe.resolve(("test", {**given, "model.init": str(towers["image"].directory)}))
    recipe = CLIPRecipe(settings, pairs)
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=4))
    assert recipe.settings["data.size"] == TINY_VISION["data.size"]


def test_held_out_pairs_are_looked_for_by_default(train_pairs: TrainPairs, tmp_path: Path) -> None:
    run = train_pairs(tmp_path / "run")
    assert run.settings()["evaluate.protocols"] == ("retrieval",)
    assert 0 <= run.summary["retrieval"] <= 100
    alone = train_pairs(tmp_path / "alone", **{"data.validation": 0.0})
    assert alone.settings()["evaluate.protocols"] == ()


def test_protocols_read_the_captions_that_are_trained_on(tmp_path: Path) -> None:
    """Of another source, too: its first usual column holds something else."""
    random = np.random.default_rng(0)
    rows = [
        {"image": png(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)), "caption": "", "fr": f"chose {n}"}
        for n in range(24)
    ]
    for name in ("train", "held"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    settings = {**TINY_PAIRS, "steps": 2, "out": tmp_path / "run", "reporter": Reporter(False)}
    more = {"clip.captions": "fr", "evaluate.data": str(tmp_path / "held.parquet")}
    run = selfsup.train(**settings, **more, data=str(tmp_path / "train.parquet"))
    assert "retrieval" in run.summary


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def test_features_are_those_of_the_shared_space(captioned: Path) -> None:
    recipe = settled(captioned)
    built = recipe.build()
    features = recipe.features(built, 6)
    assert features is not None
    assert features.shape[1] == recipe.settings["clip.dimension"]
    with torch.no_grad():
        built.image.projection.weight.zero_()
        built.image.projection.bias.fill_(1.0)
    collapsed = recipe.features(built, 6)
    assert collapsed is not None
    np.testing.assert_array_equal(collapsed, 1.0)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch": 1}, "clip tells the records of a batch apart, so it needs 2 or more"),
        ({"text.preset": "5mm"}, "There is no model preset '5mm'"),
        ({"text": {"width": 30, "heads": 4, "layers": 1}}, "There is no such text tower"),
        ({"clip.captions": "fr"}, "has no captions"),
        ({"clip.crop": 0.0}, "clip.crop"),
        ({"data.tokenizer": "bpee"}, "did you mean bpe"),
        ({"text.init": "nowhere"}, "nowhere"),
        ({"clip.freeze": "image"}, "keeps a tower that knows nothing yet; start it from a run"),
        ({"clip.freeze": "text"}, "keeps a tower that knows nothing yet"),
        ({"model.whiten": True}, "clip has no use for model.whiten"),
        ({"clip.temperature": 0.001}, "clip.temperature"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    more: dict[str, Any], message: str, train_pairs: TrainPairs, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train_pairs(tmp_path / "run", **more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_what_an_earlier_tower_decides_is_not_decided_again(
    towers: dict[str, Run], train_pairs: TrainPairs, tmp_path: Path
) -> None:
    start = {"text": {}, "text.init": str(towers["text"].directory), "data.vocabulary": None}
    for more, message in (
        ({"text.width": 64}, "so text.width is not 64; leave it out"),
        ({"text.preset": "0.1m"}, "brings its own shape, so leave text.preset out"),
        ({"data.tokenizer": "bpe"}, "brings its own tokenizer"),
        ({"data.vocabulary": 300}, "has a size of its own, so leave data.vocabulary out"),
    ):
        with pytest.raises(UserError, match=message):
            train_pairs(tmp_path / "run", **{**start, **more})


def test_simclr_needs_a_tower_that_learns(towers: dict[str, Run], train_pairs: TrainPairs, tmp_path: Path) -> None:
    more = {"model": {}, "model.init": str(towers["image"].directory), "clip.simclr": 0.5}
    with pytest.raises(UserError, match="leave one out"):
        train_pairs(tmp_path / "run", **more, **{"clip.freeze": "image"})


def test_images_without_captions_are_no_pairs(drawings: Path, train_pairs: TrainPairs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="caption"):
        train_pairs(tmp_path / "run", data=str(drawings))


@pytest.mark.parametrize("objective", ["simclr", "clip"])
def test_the_training_part_is_trained_on_and_the_others_are_told(objective: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 3)):
        (tmp_path / part).mkdir()
        for number in range(count):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
            (tmp_path / part / f"{number}.txt").write_text(f"a picture of {number}")
    (tmp_path / "train" / "bad.png").write_bytes(b"")
    tiny = TINY_PAIRS if objective == "clip" else TINY_VISION
    given = {**tiny, "objective": objective, "data": str(tmp_path), "data.failures": 0.5}
    plan, _ = selfsup.plan(**given)
    assert plan.facts["data"].startswith("10 images")
    assert "files of the test split: 3" in plan.facts["left out"]
    assert (".txt files" in plan.facts["left out"]) == (objective == "simclr")
    assert "bad.png: it is empty" in plan.facts["unreadable"]
