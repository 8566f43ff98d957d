"""What is shown of MAE: against the batches of the training and the objective's own loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train
from looking import Page, printed

from selfsup.data.loader import Loader
from selfsup.distributed import Processes
from selfsup.inspection import inspect
from selfsup.inspection.mae import MAEInspection
from selfsup.objectives.base import Effort, Task
from selfsup.objectives.mae import MAE, MAERecipe
from selfsup.run import Run
from selfsup.views.drawn import levels

SIDE = 4  # patches


@pytest.fixture(scope="module")
def run(train_vision: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_vision(tmp_path_factory.mktemp("mae") / "run", "mae")


def look(**arguments: object) -> MAEInspection:
    inspection = inspect("mae", **arguments)  # type: ignore[arg-type]
    assert isinstance(inspection, MAEInspection)
    return inspection


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
    """(rows, columns, values)."""
    return pixels.reshape(SIDE, 4, SIDE, 4, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE, SIDE, -1)


def test_crops_and_hidden_patches_are_those_that_are_trained_on(run: Run) -> None:
    inspection = look(run=run.directory)
    _, task = beginning(run, len(inspection.images))
    for seen, pixels in zip(inspection.views, levels(task["pixels"]), strict=True):
        np.testing.assert_array_equal(seen.pixels, pixels)
    for mask, hidden in zip(inspection.hidden, task["hidden"].tolist(), strict=True):
        assert np.flatnonzero(mask).tolist() == hidden
        assert mask.sum() == 12


def test_losses_are_those_of_the_objective(run: Run) -> None:
    inspection = look(run=run.directory)
    objective, task = beginning(run, len(inspection.images))
    with torch.inference_mode():
        loss = objective.score(objective.predict(task), task, Processes.alone())["mse"]
    losses = [filled.loss for filled in inspection.filled]
    assert np.mean(losses) == pytest.approx(loss.item() / task["hidden"].numel(), abs=1e-5)
    assert inspection.chance == pytest.approx(task["targets"].square().mean().item(), abs=1e-6)
    shown = printed(inspection)
    assert f"{np.mean(losses):.3f}" in shown
    assert f"chance {inspection.chance:.3f}" in shown


def test_only_hidden_patches_are_filled_in(run: Run) -> None:
    inspection = look(run=run.directory)
    for seen, mask, filled in zip(inspection.views, inspection.hidden, inspection.filled, strict=True):
        for pixels in (filled.pixels, filled.smooth):
            same = (patches(pixels) == patches(seen.pixels)).all(-1)
            assert same[~mask].all()
            assert not same[mask].all()


def test_a_single_image(drawings: Path) -> None:
    inspection = look(data=str(drawings / "003.png"))
    assert inspection.names == ["003.png"]
    assert inspection.length == 1


def test_json_page_and_limits(run: Run, drawings: Path) -> None:
    inspection = look(run=run.directory)
    content = json.loads(json.dumps(inspection.to_json()))
    assert content["grid"] == [SIDE, SIDE]
    assert content["images"][0]["loss"] == inspection.filled[0].loss
    assert content["images"][0]["hidden"] == np.flatnonzero(inspection.hidden[0]).tolist()
    page = Page(inspection.to_html())
    assert not page.open
    assert page.tags.count("img") == 5 * 5
    assert "Figures are means over these 24; the first 5 are drawn." in page.text
    alone = look(data=str(drawings), **{"data.size": 16, "model.patch": 4})
    assert Page(alone.to_html()).tags.count("img") == 5 * 3
    assert alone.limits() == ""
    assert alone.to_json()["images"][0]["loss"] is None
    assert "12 patches (75%)" in Page(alone.to_html()).text
