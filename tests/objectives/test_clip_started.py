"""Image-text training that goes on with a whole model of two towers, and leaves one of the same class."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_PAIRS, TINY_VISION, assert_alike
from safetensors.torch import load_file
from tiny_towers import DIMENSION, KINDS, SIZE, TEXTS, WINDOW, asked, pictures, save_towers, share

import selfsup
from selfsup.errors import UserError
from selfsup.inference.encoder import encoder_tokenizer
from selfsup.models.encoder_layouts import save_encoder
from selfsup.models.kinds import IMAGE, TEXT
from selfsup.models.tower_layouts import read_towers
from selfsup.objectives.clip import CLIPRecipe
from selfsup.objectives.recipe import Effort
from selfsup.report import Reporter
from selfsup.run import Run

TRAINED = ("clip", "siglip2")
GIVEN = {
    name: value for name, value in TINY_PAIRS.items() if name.partition(".")[0] in ("train", "evaluate", "checkpoint")
}
GIVEN |= {"objective": "clip", "batch": 8, "steps": 10, "precision": "fp32", "evaluate.every": 5}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("towers")
    return {kind: save_towers(place / kind, kind) for kind in KINDS}


Begin = Callable[..., Run]


@pytest.fixture(scope="module")
def begin(directories: dict[str, Path], captioned: Path) -> Begin:
    def call(out: Path, kind: str, **more: Any) -> Run:
        given = {**GIVEN, "data": str(captioned), "init": str(directories[kind]), "reporter": Reporter(False)}
        return selfsup.train(out=out, **{**given, **more})

    return call


@pytest.fixture(scope="module")
def trained(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Ten steps, looked at and left as they are."""
    return functools.cache(lambda kind: begin(tmp_path_factory.mktemp("run") / kind, kind))


def settled(directory: Path, captioned: Path, **more: Any) -> CLIPRecipe:
    given = {"objective": "clip", "batch": 8, "data": str(captioned), "init": str(directory), **more}
    recipe = CLIPRecipe(
        CLIPRecipe.resolve(("test", {name: value for name, value in given.items() if value is not None}))
    )
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=4))
    return recipe


# -- where it starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_starts_from_there(kind: str, directories: dict[str, Path], captioned: Path) -> None:
    recipe = settled(directories[kind], captioned)
    model, original = recipe.model(recipe.build()), selfsup.load(directories[kind])
    assert_alike(model.embed(TEXTS, precision="fp32"), original.embed(TEXTS, precision="fp32"))
    assert_alike(model.embed(pictures(), precision="fp32"), original.embed(pictures(), precision="fp32"))
    assert model.similarity.loss == original.similarity.loss == recipe.settings["clip.loss"]
    assert model.similarity.scale == pytest.approx(original.similarity.scale)
    assert model.similarity.bias == pytest.approx(original.similarity.bias)
    settings = recipe.settings
    assert settings["text.init"] == str(directories[kind])
    assert [key for key, _ in recipe.adaptation.bodies] == ["model.init", "text.init"]
    assert (settings["data.size"], settings["data.window"]) == (SIZE, WINDOW)
    assert (settings["clip.hidden_tokens"], settings["text.dropout"]) == (0.0, 0.0)
    fresh = settled(directories[kind], captioned, init=None)
    for rate in ("optim.lr", "optim.adamw_lr"):  # of projections and scale too, as all of them know something
        assert settings[rate] <= 0.2 * fresh.settings[rate]
    assert settings["clip.image_rate"] == settings["clip.text_rate"] == 1.0
    name, start = "clip" if "clip" in kind.split("-") else "siglip", recipe.facts()["start"]
    assert start.startswith(f"both towers of {directories[kind]}, their maps, and how they are compared; images: ")
    exact = re.findall(rf"{name}_(?:vision|text)_model of transformers; max \|Δ\| = (\S+)", start)
    assert len(exact) == 2
    assert max(map(float, exact)) < 1e-5


def test_a_scale_above_the_largest_may_stay(directories: dict[str, Path], captioned: Path) -> None:
    built = settled(directories["siglip"], captioned, **{"clip.temperature": 0.01}).build()
    assert built.similarity.scale == pytest.approx(100.0)
    with torch.no_grad():
        built.log_scale.fill_(9.0)
    built.after_step(1, 10)
    assert built.similarity.scale == pytest.approx(100.0)
    recipe = settled(directories["siglip"], captioned)
    assert recipe.known is not None
    object.__setattr__(recipe.known, "scale", 117.0)
    built = recipe.build()
    built.after_step(1, 10)
    assert built.similarity.scale == pytest.approx(117.0, rel=1e-5)


# -- what is left of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAINED)
def test_it_is_left_as_its_class_and_opens_as_that(
    kind: str, directories: dict[str, Path], trained: Callable[[str], Run]
) -> None:
    run, origin = trained(kind), directories[kind]
    assert max(run.summary["max_difference"].values()) < 1e-5
    model, expected = selfsup.load(run.directory), asked(run.model_directory)
    assert share(model.embed(TEXTS, precision="fp32"), expected.text_model_output.pooler_output) < 1e-5
    assert share(model.embed(pictures(), precision="fp32"), expected.vision_model_output.pooler_output) < 1e-5
    before, after = (load_file(place / "model.safetensors") for place in (origin, run.model_directory))
    assert before.keys() == after.keys()
    unused = ("text_model.embeddings.token_embedding.weight", "vision_model.embeddings.position_ids")
    assert not [name for name in before if name not in unused and torch.equal(before[name], after[name])]
    kept = {path.name for path in origin.iterdir()} - {"config.json", "model.safetensors"}
    for name in kept:
        assert (run.model_directory / name).read_bytes() == (origin / name).read_bytes(), name
    said = [json.loads((place / "config.json").read_text()) for place in (origin, run.model_directory)]
    assert {**said[0], "torch_dtype": "float32"} == said[1]
    score = selfsup.evaluate(run, data=run.settings()["data.source"], protocol="retrieval", records=16)
    assert 0 <= score.value <= 100
    assert run.metrics()[-1]["temperature"] == pytest.approx(1 / model.similarity.scale, rel=1e-2)


@pytest.mark.parametrize("kind", TRAINED)
def test_interrupted_and_resumed_it_is_the_same_to_the_bit(
    kind: str, begin: Begin, trained: Callable[[str], Run], tmp_path: Path
) -> None:
    class Crash(Exception):
        pass

    class CrashAtALook(Reporter):
        def say(self, text: str) -> None:
            if text.startswith("step 5 "):
                raise Crash

    with pytest.raises(Crash):
        begin(tmp_path / "run", kind, reporter=CrashAtALook(False))
    assert not Run(tmp_path / "run").summary
    run = selfsup.train(resume=tmp_path / "run", reporter=Reporter(False))
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
        files = [(one.model_directory / name).read_bytes() for one in (run, trained(kind))]
        assert files[0] == files[1], name
    losses = [[line["loss"] for line in one.metrics()] for one in (run, trained(kind))]
    assert losses[0] == losses[1]


def test_another_loss_leaves_two_directories(directories: dict[str, Path], begin: Begin, tmp_path: Path) -> None:
    """For the class has no place for its bias."""
    run = begin(tmp_path / "run", "clip", steps=2, **{"clip.loss": "sigmoid"})
    assert json.loads((run.model_directory / "config.json").read_text())["model_type"] == "selfsup-clip"
    for tower, kind in ((IMAGE, "clip_vision_model"), (TEXT, "clip_text_model")):
        assert json.loads((run.model_directory / tower / "config.json").read_text())["model_type"] == kind
    model = selfsup.load(run.directory)
    assert model.similarity.loss == "sigmoid"
    assert max(run.summary["max_difference"].values()) < 1e-5
    for tower, contents in ((IMAGE, pictures()), (TEXT, TEXTS)):
        alone = selfsup.load(run.model_directory / tower).embed(contents, precision="fp32")
        assert_alike(alone, model.embed(contents, precision="fp32"))


def test_one_of_the_towers_starts_another_model(
    directories: dict[str, Path], begin: Begin, trained: Callable[[str], Run], tmp_path: Path
) -> None:
    """The text tower of a directory, with a fresh one of images."""
    fresh = {"init": None, **{name: TINY_VISION[name] for name in ("model", "data.size")}}
    run = begin(tmp_path / "run", "siglip2", steps=2, **fresh, **{"text.init": str(directories["siglip2"])})
    assert json.loads((run.model_directory / TEXT / "config.json").read_text())["model_type"] == "siglip_text_model"
    text = selfsup.load(run.model_directory / TEXT)
    assert (text.pooling, text.window, text.tokenizer.fixed) == ("last", WINDOW, WINDOW)
    assert_alike(selfsup.load(run.directory).embed(TEXTS, precision="fp32"), text.embed(TEXTS, precision="fp32"))
    origin = json.loads((directories["siglip2"] / "tokenizer.json").read_text())
    assert json.loads((run.model_directory / TEXT / "tokenizer.json").read_text()) == origin


def test_its_image_tower_starts_other_objectives(directories: dict[str, Path], captioned: Path, tmp_path: Path) -> None:
    """And leaves as the class of that tower alone."""
    origin = directories["siglip2"]
    given = {**GIVEN, "objective": "simclr", "data": str(captioned), "steps": 2, "reporter": Reporter(False)}
    run = selfsup.train(**given, init=str(origin), out=tmp_path / "run")
    assert json.loads((run.model_directory / "config.json").read_text())["model_type"] == "siglip_vision_model"
    assert run.summary["max_difference"] < 1e-5
    assert np.isfinite(selfsup.load(run.directory).embed(pictures())).all()
    before, after = (place / "preprocessor_config.json" for place in (origin, run.model_directory))
    assert before.read_bytes() == after.read_bytes()


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("clip", {"clip.dimension": 12}, f"has clip.dimension {DIMENSION}, so it is not 12; leave it out"),
        ("clip", {"data.size": 16}, f"has data.size {SIZE}, so it is not 16; leave it out"),
        ("clip", {"data.window": 20}, f"reads at most {WINDOW} tokens, so data.window cannot be 20; give less"),
        ("siglip", {"data.window": 8}, f"padded to {WINDOW} tokens, so data.window is not 8; leave it out"),
        ("clip", {"clip.hidden_tokens": 0.2}, "has no token for what is hidden; leave captions as they are"),
        ("clip", {"data.tokenizer": "bpe"}, "brings its own tokenizer"),
        ("clip", {"text.layers": 3}, "brings its own layers, so text.layers is not 3; leave it out"),
    ],
)
def test_what_a_model_decides_is_not_decided_again(
    kind: str, more: dict[str, Any], message: str, directories: dict[str, Path], captioned: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        settled(directories[kind], captioned, **more).build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("objective", ["masked-lm", "simcse", "causal-lm"])
@pytest.mark.parametrize("tower", ["both", "text"])
def test_its_text_tower_starts_no_other_objective(
    objective: str, tower: str, directories: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    directory, advice = directories["clip"], "holds two towers, and .* starts from .*; give one"
    if tower == "text":
        directory, saved = tmp_path / "text", read_towers(directory)
        tokenizer = encoder_tokenizer(directories["clip"], saved.text.config)
        save_encoder(directory, saved.text.encoder(), tokenizer, saved.text.features, "")
        advice = r"a text encoder of type 'clip_text_model', and .*; clip goes on with that \(--text-init\)"
    with pytest.raises(UserError, match=advice) as caught:
        selfsup.plan(objective, data=str(corpus), steps=1, init=str(directory))
    assert "\n" not in str(caught.value)
