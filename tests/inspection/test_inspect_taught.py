"""What is shown of a student of images and its teacher: against the batches of the training and plain cosines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Train
from looking import Page, Told, printed
from tiny_vision import save_tiny_vision

import selfsup
from selfsup.data.loader import Loader
from selfsup.inspection.alike import Alike
from selfsup.inspection.blocks import Gallery
from selfsup.objectives.base import Task
from selfsup.objectives.distill_images import ImageDistillation, ImageDistillationRecipe
from selfsup.objectives.recipe import Effort
from selfsup.run import Run
from selfsup.views.drawn import levels


@pytest.fixture(scope="module")
def run(train_vision: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("taught")
    return train_vision(place / "run", "distill", teacher=save_tiny_vision(place / "teacher"))


def look(**arguments: object) -> Told:
    return Told(selfsup.inspect("distill", **arguments))  # type: ignore[arg-type]


def beginning(run: Run, count: int) -> tuple[ImageDistillation, Task]:
    """The trained objective, and the first task as the trainer's own loader makes it."""
    recipe = ImageDistillationRecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort())
    objective = recipe.build()
    checkpoint = run.checkpoints().newest()
    assert checkpoint is not None
    objective.load_state_dict(checkpoint.tensors["model"])
    batch = Loader(recipe.train, run.settings()["train.seed"], count, count, 0).read(range(count))
    return objective.eval(), objective.hide(batch)


def test_views_and_cosines_are_those_of_the_training(run: Run) -> None:
    inspection = look(run=run.directory)
    objective, task = beginning(run, len(inspection.images))
    own, taught = levels(task["pixels"], objective.view), levels(task["taught"], objective.taught)
    (gallery,) = inspection.of(Gallery)
    assert len(gallery.groups) == 6
    for image, group in enumerate(gallery.groups):
        _, student, teacher = group.rows[0]
        np.testing.assert_array_equal(student.pixels, own[image])
        np.testing.assert_array_equal(teacher.pixels, taught[image])
    before, after = (Alike(**network) for network in inspection.networks)
    with torch.no_grad():
        outputs = objective.predict(task)
    expected = F.normalize(outputs["taught"], dim=1) @ F.normalize(outputs["vectors"], dim=1).T
    torch.testing.assert_close(torch.tensor(after.similarity), expected)
    assert after.mean("+") == pytest.approx(float(expected.diagonal().mean()), abs=1e-6)
    assert after.loss < before.loss
    assert after.loss == pytest.approx(after.figures["vectors"] + after.figures["patches"])


def test_it_is_printed_and_written(run: Run, tmp_path: Path) -> None:
    inspection = look(run=run.directory, html=tmp_path / "page.html", png=tmp_path / "page.png")
    text = printed(inspection, 160)
    assert "cosine of both on the same image" in text
    assert "what the teacher says of the image and of each of its patches" in " ".join(text.split())
    assert "the student, 16 px" in Page((tmp_path / "page.html").read_text()).text
    assert (tmp_path / "page.png").stat().st_size > 1000
    json.dumps(inspection.inspection.values)
