"""What is shown of MAE: against the batches of the training and the objective's own loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Trained
from looking import Page, Told, printed

import selfsup
from selfsup.data.loader import Loader
from selfsup.distributed import Processes
from selfsup.inspection.blocks import Gallery
from selfsup.objectives.base import Task
from selfsup.objectives.mae import MAE, MAERecipe
from selfsup.objectives.recipe import Effort
from selfsup.run import Run
from selfsup.views import Preprocessing
from selfsup.views.drawn import levels

SIDE = 4  # patches


@pytest.fixture(scope="module")
def run(trained: Trained) -> Run:
    return trained("mae")


def look(**arguments: object) -> Told:
    return Told(selfsup.inspect("mae", **arguments))  # type: ignore[arg-type]


def tiles(inspection: Told) -> list[dict[str, np.ndarray]]:
    """The pictures of each image that is drawn, by name."""
    (gallery,) = inspection.of(Gallery)
    return [{tile.name: tile.pixels for tile in group.rows[0]} for group in gallery.groups]


def masks(inspection: Told) -> list[np.ndarray]:
    """Which patches of each image are hidden, (rows, columns)."""
    made = np.zeros((len(inspection.images), SIDE * SIDE), bool)
    for mask, image in zip(made, inspection.images, strict=True):
        mask[image["hidden"]] = True
    return list(made.reshape(-1, SIDE, SIDE))


def beginning(run: Run, count: int) -> tuple[MAE, Task]:
    """The trained objective, and the first task as the trainer's own loader makes it."""
    recipe = MAERecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort())
    objective = recipe.build()
    checkpoint = run.checkpoints().newest()
    assert checkpoint is not None
    objective.load_state_dict(checkpoint.tensors["model"])
    batch = Loader(recipe.train, run.settings()["train.seed"], count, count, 0).read(range(count))
    return objective.eval(), objective.hide(batch)


def patches(pixels: np.ndarray) -> np.ndarray:
    """(rows, values)."""
    return pixels.reshape(SIDE, 4, SIDE, 4, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE, SIDE, -1)


def test_crops_and_hidden_patches_are_those_that_are_trained_on(run: Run) -> None:
    inspection = look(run=run.directory)
    _, task = beginning(run, len(inspection.images))
    assert len(tiles(inspection)) == 5
    for drawn, pixels in zip(tiles(inspection), levels(task["pixels"], Preprocessing.plain(1)), strict=False):
        np.testing.assert_array_equal(drawn["crop"], pixels)
    for mask, hidden in zip(masks(inspection), task["hidden"].tolist(), strict=True):
        assert np.flatnonzero(mask).tolist() == hidden
        assert mask.sum() == 12


def test_losses_are_those_of_the_objective(run: Run) -> None:
    inspection = look(run=run.directory)
    objective, task = beginning(run, len(inspection.images))
    with torch.inference_mode():
        loss = objective.score(objective.predict(task), task, Processes.alone())["mse"]
    losses = [image["loss"] for image in inspection.images]
    assert np.mean(losses) == pytest.approx(loss.item() / task["hidden"].numel(), abs=1e-5)
    assert inspection.chance == pytest.approx(task["targets"].square().mean().item(), abs=1e-6)
    shown = printed(inspection)
    assert f"{np.mean(losses):.3f}" in shown
    assert f"chance {inspection.chance:.3f}" in shown


def test_only_hidden_patches_are_filled_in(run: Run) -> None:
    inspection = look(run=run.directory)
    for drawn, mask in zip(tiles(inspection), masks(inspection), strict=False):
        for name in ("filled in", "without a model"):
            same = (patches(drawn[name]) == patches(drawn["crop"])).all(-1)
            assert same[~mask].all()
            assert not same[mask].all()


def test_a_single_image(drawings: Path) -> None:
    inspection = look(data=str(drawings / "003.png"))
    assert [image["name"] for image in inspection.images] == ["003.png"]
    assert inspection.length == 1


def test_json_page_and_limits(run: Run, drawings: Path) -> None:
    inspection = look(run=run.directory)
    content = json.loads(json.dumps(inspection.to_json()))["values"]
    assert content["grid"] == [SIDE, SIDE]
    assert len(content["images"]) == 24
    assert all(image["loss"] > 0 for image in content["images"])
    page = Page(inspection.to_html())
    assert len(page.tiles) == 5 * 5
    assert "Figures are means over these 24; the first 5 are drawn." in page.text
    alone = look(data=str(drawings), **{"data.size": 16, "model.patch": 4})
    assert len(Page(alone.to_html()).tiles) == 5 * 3
    assert alone.limits == ""
    assert "loss" not in alone.to_json()["values"]["images"][0]
    assert "12 patches (75%)" in Page(alone.to_html()).text
