"""What is shown of DINO: against the batches of the training, and plain loops over what student and teacher say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train
from looking import Page, Told, printed

import selfsup
from selfsup.data.loader import Loader
from selfsup.inspection.blocks import Gallery, Matrix, Table, Tile
from selfsup.inspection.pictures import HIDDEN, ramp
from selfsup.objectives.base import Task
from selfsup.objectives.dino import DINO, DINORecipe
from selfsup.objectives.recipe import Effort
from selfsup.run import Run
from selfsup.views import Preprocessing
from selfsup.views.drawn import levels

SIZE, PATCH, LOCAL = 16, 4, 8
GREY = ramp(np.zeros((1, 1)), (HIDDEN,))[0, 0]


@pytest.fixture(scope="module")
def run(train_vision: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("dino") / "run"
    return train_vision(out, "dino", **{"dino.prototypes": 16, "dino.local_crops": 3, "dino.local_size": LOCAL})


def look(**arguments: object) -> Told:
    return Told(selfsup.inspect("dino", **arguments))  # type: ignore[arg-type]


def tiles(inspection: Told) -> list[list[Tile]]:
    """Of each image that is drawn: all tiles of its crops."""
    return [[tile for row in group.rows for tile in row] for group in inspection.of(Gallery)[0].groups]


def masks(inspection: Told) -> np.ndarray:
    """Which patches are hidden, (images, 2, rows, columns)."""
    return np.array([image["hidden"] for image in inspection.images], bool)


def beginning(run: Run, count: int) -> tuple[DINO, Task]:
    """The objective, and the first task as the trainer's own loader makes it."""
    recipe = DINORecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort())
    objective = recipe.build()
    batch = Loader(recipe.train, run.settings()["train.seed"], count, count, 0).read(range(count))
    return objective, objective.hide(batch)


def test_crops_and_hidden_patches_are_those_that_are_trained_on(run: Run) -> None:
    inspection = look(run=run.directory)
    count = len(inspection.images)
    _, task = beginning(run, count)
    for drawn, whole, local in zip(tiles(inspection), task["globals"], task["locals"], strict=False):
        crops = [tile.pixels for tile in drawn if tile.name.startswith("crop ")]
        assert len(crops) == 5
        for seen, crop in zip(crops, [*whole, *local], strict=True):
            np.testing.assert_array_equal(seen, levels(crop[None], Preprocessing.plain(1))[0])
    hidden = masks(inspection)
    np.testing.assert_array_equal(hidden.reshape(count, 2, -1), task["hidden"])
    assert [len(image["views"]) for image in inspection.images] == [5] * count
    shares = [mask.mean() for mask in hidden.reshape(2 * count, -1) if mask.any()]
    assert 0 < len(shares) < 2 * count
    assert f"{hidden[0][0].mean():.0%}" in printed(inspection) or not hidden[0][0].any()


def test_hidden_patches_are_grey_on_the_page_and_no_others(run: Run) -> None:
    inspection = look(run=run.directory)
    hidden = [mask for pair in masks(inspection)[:3] for mask in pair if mask.any()]
    shown = [tile for drawn in tiles(inspection) for tile in drawn if tile.name == "for the student"]
    for tile, mask in zip(shown, hidden, strict=True):
        patches = tile.pixels.reshape(4, PATCH, 4, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(4, 4, -1, 3)
        np.testing.assert_array_equal((patches == GREY).all((2, 3)), mask)


def test_agreement_against_plain_loops(run: Run) -> None:
    inspection = look(run=run.directory)
    agreement = inspection.agreement
    patches_of = np.array(agreement["patches"], float)
    count = len(inspection.images)
    objective, task = beginning(run, count)
    checkpoint = run.checkpoints().newest()
    assert checkpoint is not None
    objective.load_state_dict(checkpoint.tensors["model"])
    with torch.inference_mode():
        teach, study = objective.teacher, objective.student
        said: dict[tuple[int, int], torch.Tensor] = {}
        own, other = [], []
        pairs = []
        for image in range(count):
            for crop in range(2):
                pixels, hidden = task["globals"][image, crop][None], task["hidden"][image, crop][None]
                seen, patches = teach.see(pixels)
                guess, guesses = study.see(pixels, hidden)
                said[image, crop] = study.head(guess)[0]
                told = teach.head(seen)[0]
                pairs.append(((image, crop), told))
                for place in hidden[0].nonzero().flatten().tolist():
                    taught, guessed = teach.head(patches[:, place])[0], study.head(guesses[:, place])[0]
                    cosine = float(taught @ guessed)
                    assert patches_of[image][crop].flat[place] == pytest.approx(cosine, abs=1e-4)
                    own.append((taught, guessed))
            for crop, pixels in enumerate(task["locals"][image], 2):
                said[image, crop] = study.head(study.see(pixels[None])[0])[0]
    for row, (here, told) in enumerate(pairs):
        for column, there in enumerate(sorted(said)):
            assert agreement["crops"]["similarity"][row][column] == pytest.approx(float(told @ said[there]), abs=1e-4)
            role = "=" if here == there else "+" if here[0] == there[0] else "-"
            assert agreement["crops"]["roles"][row][column] == role
    other = [float(own[i][0] @ own[j][1]) for i in range(len(own)) for j in range(len(own)) if i != j]
    assert agreement["others"] == pytest.approx(np.mean(other), abs=1e-4)
    assert np.isnan(patches_of).sum() == 2 * count * 16 - len(own)
    (table,) = inspection.of(Table)
    rows = dict(table.rows)
    assert float(rows["a hidden patch"]) == pytest.approx(np.mean([float(a @ b) for a, b in own]), abs=1e-3)


def test_json_and_page(run: Run) -> None:
    inspection = look(run=run.directory)
    content = json.loads(json.dumps(inspection.to_json()))["values"]
    assert content["prototypes"] == 16
    assert [len(image["views"]) for image in content["images"]] == [5] * len(inspection.images)
    (matrix,) = inspection.of(Matrix)
    assert matrix.values == [row[:15] for row in content["agreement"]["crops"]["similarity"][:6]]
    page = Page(inspection.to_html())
    masked = sum(mask.any() for pair in masks(inspection)[:3] for mask in pair)
    assert len(page.tiles) == 3 * 7 + 2 * masked  # with the patches' guesses
    assert len(page.of("matrix")) == 1
    assert "which of 16 kinds (prototypes)" in page.text


def test_without_hidden_patches_and_local_crops(drawings: Path) -> None:
    inspection = look(data=str(drawings), **{"dino.ibot": 0.0, "dino.local_crops": 0, "data.size": 16})
    assert "agreement" not in inspection.values
    assert all("hidden" not in image for image in inspection.images)
    page = Page(inspection.to_html())
    assert len(page.tiles) == 3 * 3
    assert "local" not in page.text.split("images and their crops")[0]
    assert "patches in half" not in page.text


def test_sample_is_looked_at_where_nothing_is_named() -> None:
    inspection = look(model="vit-atto")
    assert inspection.source == "the training part of sample:emoji"
    first, *_ = inspection.images
    assert first["name"].startswith("emoji.parquet, row")
    assert (first["width"], first["height"]) == (64, 64)
