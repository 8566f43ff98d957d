"""Training that starts from vision transformers of other layouts, and what is left of it, by their own classes."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_PAIRS, Train
from safetensors.torch import load_file
from seeing_peers import PATCH, SIZE, save_peer, states_of
from tiny_towers import save_towers

import selfsup
from selfsup.errors import UserError
from selfsup.models.features import Features
from selfsup.models.vision_layouts import read_vision
from selfsup.report import Reporter

TWO_VIEWS = ("dinov3-gated", "dinov2-registers", "vit", "deit", "siglip", "clip-projection")
CROPS = ("dinov2-swiglu", "vit-classifier", "siglip-headless", "clip")
CASES = [
    *((name, "simclr") for name in TWO_VIEWS),
    *((name, "dino") for name in CROPS),
    ("vit-mae", "mae"),
    ("vit", "mae"),
]
SHORT: dict[str, Any] = {
    "model": {},
    "data.size": None,
    "steps": 10,
    "batch": 8,
    "evaluate.every": 10,
    "checkpoint.every": 10,
    "optim.lr": 0.002,
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`peer("vit")`: the directory of a tiny model, as transformers saves it."""
    return functools.cache(lambda name: save_peer(name, tmp_path_factory.mktemp("peers") / name))


@pytest.fixture(scope="module")
def started(
    train_vision: Train, peer: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., selfsup.Run]:
    """`started("vit", "simclr")`: ten steps from that model."""

    @functools.cache
    def run(name: str, objective: str, **given: Any) -> selfsup.Run:
        own = {"data.size": SIZE} if name.startswith("dinov3") else {}
        own |= {"dino.local_crops": 1, "dino.prototypes": 16} if objective == "dino" else {}
        out = tmp_path_factory.mktemp("started") / "run"
        return train_vision(out, objective, init=peer(name), **{**SHORT, **own, **given})

    return run


def parity(directory: Path, *shapes: tuple[int, int]) -> float:
    model, apart = read_vision(directory).model().eval(), []
    for shape in shapes:
        pixels = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(3))
        expected, pooled = states_of(directory, pixels)
        with torch.no_grad():
            found = model(pixels)
        pairs = [(found, expected)]
        if model.config.pooled_norm or model.config.attention_pooling:
            assert pooled is not None
            pairs.append((model.pool(found, model.config.summary), pooled))
        apart += [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    return max(apart)


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_what_is_left_opens_in_the_class_it_came_from(
    name: str, objective: str, peer: Callable[[str], Path], started: Callable[..., selfsup.Run]
) -> None:
    origin, model = peer(name), started(name, objective).directory / "model"
    assert parity(model, (SIZE, SIZE), (SIZE, 2 * SIZE), (PATCH, 3 * PATCH)) < 1e-5
    assert (model / "preprocessor_config.json").read_bytes() == (origin / "preprocessor_config.json").read_bytes()
    before, after = (json.loads((place / "config.json").read_text()) for place in (origin, model))
    assert before.items() <= after.items()
    there, here = (load_file(place / "model.safetensors") for place in (origin, model))
    added = here.keys() - there.keys()
    assert {key.removeprefix("vit.").removeprefix("vision_model.") for key in added} == (
        {"embeddings.mask_token"} if objective == "dino" and "dinov2" not in name else set()
    )
    moved = [key for key in there if not torch.equal(here[key], there[key])]
    assert len(moved) > 10
    assert "max |Δ|" in (model / "README.md").read_text()


@pytest.mark.parametrize("name", ["siglip", "clip-projection", "vit"])
def test_vectors_are_made_as_the_model_brings_it(
    name: str, peer: Callable[[str], Path], started: Callable[..., selfsup.Run]
) -> None:
    brought, left = (read_vision(place) for place in (peer(name), started(name, "simclr").directory / "model"))
    assert brought.features == Features(brought.config.summary)
    assert left.features.pooling == brought.config.summary
    assert left.preprocessing == brought.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    vector = selfsup.load(started(name, "simclr").directory).embed([pixels])
    assert vector.shape == (1, 32)
    assert np.isfinite(vector).all()


def test_positions_are_interpolated_for_another_size(
    peer: Callable[[str], Path], started: Callable[..., selfsup.Run]
) -> None:
    model = started("vit", "simclr", **{"data.size": 16}).directory / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["image_size"] == 16
    assert json.loads((model / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}
    assert load_file(model / "model.safetensors")["embeddings.position_embeddings"].shape == (1, 1 + 4, 32)
    assert parity(model, (16, 16), (32, 24)) < 1e-5
    with torch.no_grad():
        pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        whole = read_vision(peer("vit")).model().eval()
        resized = read_vision(peer("vit")).model().resize(16).eval()
        torch.testing.assert_close(resized(pixels), whole(pixels))


def test_a_run_goes_on_with_the_same_bits(
    train_vision: Train, resume: Train, peer: Callable[[str], Path], tmp_path: Path
) -> None:
    """A mask token of its own, positions of another size."""
    given = {**SHORT, "dino.local_crops": 0, "dino.prototypes": 16, "data.size": 16, "checkpoint.every": 2, "steps": 4}
    whole, cut = (train_vision(tmp_path / name, "dino", init=peer("clip"), **given) for name in ("whole", "cut"))
    newest = max((cut.directory / "checkpoints").iterdir())
    shutil.rmtree(newest)
    (cut.directory / "summary.json").unlink()
    resumed = resume(cut.directory)
    first, second = (load_file(run.directory / "model" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_vector_that_a_network_does_not_make_is_refused(
    captioned: Path, peer: Callable[[str], Path], tmp_path: Path
) -> None:
    given = {**TINY_PAIRS, "model": {}, "data.size": None, "clip.pooling": "cls", "reporter": Reporter(False)}
    with pytest.raises(UserError, match=r"clip\.pooling=cls is no way .*; give one of attention, mean"):
        selfsup.train(data=captioned, out=tmp_path / "run", init=peer("siglip"), **given)
    place = Path(shutil.copytree(peer("siglip"), tmp_path / "model"))
    (place / "features.json").write_text(json.dumps({"pooling": "cls", "mapped": False}))
    with pytest.raises(UserError, match="has pooling 'cls'; it is one of attention, mean"):
        read_vision(place)


def test_a_tower_of_two_in_one_directory_goes_on_alone(train_vision: Train, tmp_path: Path) -> None:
    origin = save_towers(tmp_path / "clip", "clip")
    run = train_vision(tmp_path / "run", "simclr", init=origin, **{**SHORT, "steps": 2})
    assert parity(run.directory / "model", (SIZE, SIZE), (SIZE, 24)) < 1e-5
    left = read_vision(run.directory / "model")
    assert left.config.layout == "clip_vision_model"
    assert left.preprocessing.mean[0] == pytest.approx(0.48145466)


def test_the_tower_of_images_keeps_what_it_brought_beside_a_new_one_of_texts(
    captioned: Path, peer: Callable[[str], Path], tmp_path: Path
) -> None:
    given = {**TINY_PAIRS, "model": {}, "data.size": None, "steps": 2, "reporter": Reporter(False)}
    run = selfsup.train(data=captioned, out=tmp_path / "run", init=peer("siglip"), **given)
    image = run.directory / "model" / "image"
    assert parity(image, (SIZE, SIZE)) < 1e-5
    said = [(place / "preprocessor_config.json").read_bytes() for place in (peer("siglip"), image)]
    assert said[0] == said[1]
    assert read_vision(image).features.pooling == "attention"
