"""What is shown of LeJEPA: the crops that it is trained on, and plain loops over where a run puts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train
from looking import Page, Told

import selfsup
from selfsup.data.loader import Loader
from selfsup.inspection.blocks import Gallery, Matrix, Table, Tile
from selfsup.objectives.lejepa import LeJEPARecipe
from selfsup.objectives.recipe import Effort
from selfsup.views import Preprocessing
from selfsup.views.drawn import levels


def test_crops_are_those_of_the_training_and_told_by_plain_loops(train_vision: Train, tmp_path: Path) -> None:
    run = train_vision(tmp_path / "run", "lejepa", **{"lejepa.local_crops": 3, "lejepa.local_size": 8})
    inspection = Told(selfsup.inspect(run=run.directory))
    count = len(inspection.images)
    recipe = LeJEPARecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort())
    objective = recipe.build()
    task = objective.hide(Loader(recipe.train, run.settings()["train.seed"], count, count, 0).read(range(count)))
    for group, whole, local in zip(inspection.of(Gallery)[0].groups, task["globals"], task["locals"], strict=False):
        tiles: list[Tile] = [tile for row in group.rows for tile in row if tile.name.startswith("crop ")]
        for tile, crop in zip(tiles, [*whole, *local], strict=True):
            np.testing.assert_array_equal(tile.pixels, levels(crop[None], Preprocessing.plain(1))[0])
    checkpoint = run.checkpoints().newest()
    assert checkpoint is not None
    objective.load_state_dict(checkpoint.tensors["model"])
    with torch.inference_mode():
        put = [
            [objective.head(objective.network.embed(crop[None], "mean"))[0] for crop in [*whole, *local]]
            for whole, local in zip(task["globals"], task["locals"], strict=True)
        ]
    _, trained = inspection.networks
    nearest = 0
    for i, row in enumerate(z for own in put for z in own):
        cosines = [float(torch.cosine_similarity(row, (own[0] + own[1]) / 2, 0)) for own in put]
        assert trained["similarity"][i] == pytest.approx(cosines, abs=1e-4)
        assert trained["roles"][i] == "".join("+" if image == i // 5 else "-" for image in range(count))
        nearest += max(cosines) == cosines[i // 5]
    (table,) = inspection.of(Table)
    rows = {name: cells for name, *cells in table.rows}
    assert rows["nearer to its own than to any other"][1] == f"{nearest / (5 * count):.0%}"
    loss = 0.95 * trained["figures"]["prediction"] + 0.05 * trained["figures"]["sigreg"]
    assert trained["loss"] == pytest.approx(loss, rel=1e-6)
    assert [len(matrix.values) for matrix in inspection.of(Matrix)] == [15, 15]
    assert len(Page(inspection.to_html()).of("matrix")) == 2


def test_without_a_run_only_the_task_is_shown() -> None:
    inspection = Told(selfsup.inspect("lejepa", model="vit-atto", lejepa={"local_crops": 0}))
    assert inspection.networks == []
    page = Page(inspection.to_html())
    assert len(page.tiles) == 3 * 3
    assert "local" not in page.text.split("images and their crops")[0]
