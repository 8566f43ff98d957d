"""Objectives on selfsup's own convolutional network: when they take it, how its images meet, what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import TINY_VISION, Answer, Train
from drawings import write_drawings
from tiny_vision import save_tiny_vision

import selfsup
from selfsup import Run
from selfsup.errors import UserError
from selfsup.models.backbones import open_backbone
from selfsup.models.convnet import ConvNet
from selfsup.objectives import find_recipe
from selfsup.objectives.recipe import Effort
from selfsup.report import Reporter
from selfsup.views import centred

TINY = {"layers": 1, "width": 4}
Command = Callable[..., Answer]


def settled(objective: str, data: Path, effort: Effort, **given: Any) -> Any:
    kind = find_recipe(objective)
    recipe = kind(kind.resolve(("test", {"objective": objective, "data": str(data), **given})))
    recipe.open(lambda done, total: None)
    recipe.settle(effort)
    return recipe


@pytest.fixture(scope="module")
def run(train_vision: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_vision(tmp_path_factory.mktemp("convolutional") / "run", "simclr", model=TINY)


# -- which network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["simclr", "vicreg"])
def test_small_images_have_a_convolutional_network(objective: str, drawings: Path) -> None:
    recipe = settled(objective, drawings, Effort(steps=10))
    assert isinstance(recipe.network.look, ConvNet)
    assert recipe.settings["model.preset"] == "conv-16"
    assert recipe.settings.origin("model.preset") == "image size, data and steps"
    assert (recipe.settings["data.size"], recipe.settings["model.stride"]) == (20, 1)
    assert "model.patch" not in recipe.settings.names()
    assert "convolutional network: 4 stages of 2 layers, widths 16 to 128" in recipe.facts()["model"]


def test_large_images_and_whoever_asks_for_patches_have_a_vision_transformer(drawings: Path, tmp_path: Path) -> None:
    large = write_drawings(tmp_path / "large", 12, 112)
    for data, given in ((large, {}), (drawings, {"model.patch": 4}), (drawings, {"model": "vit-atto"})):
        recipe = settled("simclr", data, Effort(steps=10), **given)
        assert recipe.network.hides_patches
        assert "model.stride" not in recipe.settings.names()
    assert not settled("simclr", large, Effort(steps=10), **{"data.size": 64}).network.hides_patches
    assert settled("dino", drawings, Effort(steps=10)).network.hides_patches


def test_its_width_grows_with_what_a_run_may_spend(drawings: Path) -> None:
    widths = [settled("simclr", drawings, Effort(flops=10.0**power)).settings["model.width"] for power in range(11, 18)]
    assert widths == sorted(widths)
    assert len(set(widths)) > 3


def test_larger_images_have_a_larger_first_stride(tmp_path: Path) -> None:
    recipe = settled("simclr", write_drawings(tmp_path / "data", 8, 64), Effort(steps=10))
    assert recipe.settings["model.stride"] == 2


@pytest.mark.parametrize("objective", ["dino", "mae", "clip"])
def test_objectives_that_hide_patches_refuse_it(objective: str) -> None:
    kind = find_recipe(objective)
    with pytest.raises(UserError, match=f"^{objective} needs a vision transformer, and conv-32 is none"):
        kind(kind.resolve(("test", {"objective": objective, "model": "conv-32"})))


def test_what_means_nothing_to_it_is_refused(train_vision: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no use for model\.registers here"):
        train_vision(tmp_path / "run", "simclr", model={"preset": "conv-16", "registers": 2})
    with pytest.raises(UserError, match=r"no model preset 'conv-17'; did you mean 'conv-1"):
        train_vision(tmp_path / "run", "simclr", model="conv-17")


# -- how its images meet -------------------------------------------------------------------------------------


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.metrics() if line["split"] == "train"]


def test_micro_batches_change_nothing_but_rounding(train_vision: Train, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": {**TINY, "group": 4}, "steps": 3, "evaluate.every": 3}
    whole, *parts = (train_vision(tmp_path / str(n), "simclr", **given, **{"train.micro_batch": n}) for n in (8, 4, 2))
    for run in parts:
        assert losses(run)[0] == pytest.approx(losses(whole)[0], rel=1e-5)
        assert losses(run) == pytest.approx(losses(whole), rel=1e-2)
    together = train_vision(tmp_path / "together", "simclr", **given | {"model": TINY})
    assert together.settings()["model.group"] == 16
    assert losses(together)[0] != pytest.approx(losses(whole)[0], rel=1e-3)


def test_groups_that_do_not_fit_are_refused(train_vision: Train, tmp_path: Path) -> None:
    given = {"model": {**TINY, "group": 6}, "train.micro_batch": 4}
    with pytest.raises(UserError, match=r"^8 images are computed at once, which are no whole groups of model\.group 6"):
        train_vision(tmp_path / "run", "simclr", **given)


def test_statistics_are_those_of_training_images_as_they_are_seen_in_use(run: Run) -> None:
    opened = open_backbone(run.model_directory)
    recipe = find_recipe("simclr")(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=12))
    records = recipe.train.read(np.arange(len(recipe.train)))
    pixels = centred(records["pixels"], records["sizes"], recipe.network.preprocessing)
    network = opened.backbone
    assert isinstance(network, ConvNet)
    with torch.inference_mode():
        made = network.stem.conv(pixels).transpose(0, 1).flatten(1)
    torch.testing.assert_close(network.stem.batch_norm.running_mean, made.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.stem.batch_norm.running_var, made.var(1), rtol=1e-2, atol=1e-5)


# -- what it leaves ------------------------------------------------------------------------------------------


def test_a_run_leaves_what_transformers_opens(run: Run) -> None:
    assert run.summary["max_difference"] < 1e-4
    theirs = transformers.AutoModel.from_pretrained(run.model_directory, trust_remote_code=False)
    assert type(theirs).__name__ == "TextNetModel"
    told = run.environment()["plan"]["facts"]["statistics"]
    assert told == "of 16 images in training (micro-batch), measured over training images for all else"


def test_every_command_takes_it(run: Run, drawings: Path, tmp_path: Path, selfsup_command: Command) -> None:
    photo = next(drawings.glob("*.png"))
    works = [
        ["evaluate", run.directory, "--protocol", "rankme", "--data", drawings, "--json"],
        ["embed", run.directory, "--data", drawings, "--out", tmp_path / "vectors.parquet"],
        ["inspect", "--run", run.directory, "--json"],
        ["index", run.directory, "--data", drawings, "--out", tmp_path / "x.lance"],
        ["search", tmp_path / "x.lance", "--image", photo],
        ["export", run.directory, "--to", "onnx", "--out", tmp_path / "model.onnx"],
        ["export", run.directory, "--to", "transformers", "--out", tmp_path / "copy"],
        ["plan", "--config", run.directory / "config.yaml"],
        ["doctor", run.directory],
    ]
    for words in works:
        answer = selfsup_command(*words)
        assert answer.code == 0, f"{words}: {answer}"
    refused = {
        "timm has no TextNet": ["export", run.directory, "--to", "timm", "--out", tmp_path / "timm"],
        "that make tokens": ["export", run.directory, "--to", "sentence-transformers", "--out", tmp_path / "st"],
        "whose patches cannot be shown": ["show", run.directory, "--image", photo, "--out", tmp_path / "seen.png"],
        "starts from a vision transformer": [
            "train",
            "dino",
            "--init",
            run.directory,
            "--data",
            drawings,
            "--out",
            tmp_path / "dino",
        ],
    }
    for message, words in refused.items():
        answer = selfsup_command(*words)
        assert answer.code == 2, f"{words}: {answer}"
        assert message in answer.error, f"{words}: {answer}"


def test_it_is_started_from(run: Run, train_vision: Train, tmp_path: Path) -> None:
    again = train_vision(
        tmp_path / "again",
        "vicreg",
        **{"init": str(run.directory), "model": {}, "steps": 1, "optim.lr": 1e-12, "optim.adamw_lr": 1e-12},
    )
    assert again.settings()["model.width"] == 4
    assert again.metrics()[0]["step"] == 0
    before, after = (open_backbone(each.model_directory).backbone for each in (run, again))
    for (name, one), other in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_it_is_a_student_where_it_is_named(drawings: Path, tmp_path: Path) -> None:
    given = {**TINY_VISION, "model": {"preset": "conv-16", **TINY}, "steps": 2, "data": str(drawings)}
    teacher = str(save_tiny_vision(tmp_path / "teacher"))
    run = selfsup.train("distill", teacher=teacher, out=tmp_path / "run", reporter=Reporter(False), **given)
    config = json.loads((run.model_directory / "config.json").read_text())
    assert config["model_type"] == "textnet"
    assert run.settings()["model.group"] == 8
