"""What is shown of an objective of a user's own: its tensors and the terms of its score, before and after training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from looking import Page, printed
from torch import Tensor, nn

import selfsup
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inspection.blocks import Table
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.report import Reporter


class Line:
    """y = 3 x + 1 at 64 places."""

    def __len__(self) -> int:
        return 64

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        x = torch.from_numpy(indices).float()[:, None] / 64
        return {"x": x, "y": 3 * x + 1}


class Fit(Objective):
    """Two terms, one of which counts half of the records twice as much."""

    weights = {"absolute": 0.5}  # noqa: RUF012

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def hide(self, batch: Batch) -> Task:
        return Task(
            {"<x>": batch.data["x"], "y": batch.data["y"]},
            {"squared": torch.tensor(len(batch)), "absolute": torch.tensor(3 * len(batch))},
        )

    def predict(self, task: Task) -> Outputs:
        return {"y": self.network(task["<x>"])}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        off = outputs["y"] - task["y"]
        return {"squared": off.square().sum(), "absolute": off.abs().sum()}


def zero() -> nn.Linear:
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    return network


def test_an_objective_from_python() -> None:
    inspection = selfsup.inspect(Fit, data=Line(), model=zero(), **{"data.validation": 0.0})
    read, made, terms = inspection.blocks(Table)
    assert [row[:3] for row in read.rows] == [["x", "24 × 1", "float32"], ["y", "24 × 1", "float32"]]
    assert [row[0] for row in made.rows] == ["<x>", "y"]
    y = [3 * float(row[0]) + 1 for row in Line().read(drawn())["x"]]
    squared, absolute = np.mean(np.square(y)), np.sum(y) / 72
    assert terms.names == ["", "predictions", "weight", "before training", "chance"]
    assert [row[:3] for row in terms.rows] == [["squared", "24", "1"], ["absolute", "72", "0.5"], ["loss", "", ""]]
    found = [float(row[3]) for row in terms.rows]
    assert found == pytest.approx([squared, absolute, squared + absolute / 2], abs=1e-3)
    assert "squared" in printed(inspection)
    assert "<x>" in Page(inspection.to_html()).text
    content = json.loads(json.dumps(inspection.to_json()))
    assert content["values"]["figures"]["before training"]["squared"] == pytest.approx(squared, rel=1e-4)
    with pytest.raises(UserError, match="no pictures"):
        inspection.to_png()


def drawn() -> np.ndarray:
    """The records that a training takes first."""
    from selfsup.data.sampler import draw

    return draw(0, 0, 24, 64)[1]


def test_what_a_run_makes_of_it(tmp_path: Path) -> None:
    run = selfsup.train(
        Fit, data=Line(), model=zero(), out=tmp_path / "run", steps=40, reporter=Reporter(False), seed=0
    )
    inspection = selfsup.inspect(Fit, data=Line(), model=zero(), run=run.directory)
    *_, terms = inspection.blocks(Table)
    assert terms.names[3:5] == ["before training", str(run.directory)]
    before, after = (float(cell) for cell in terms.rows[-1][3:5])
    assert after < before


def test_what_says_nothing_to_it_is_refused() -> None:
    with pytest.raises(UserError, match="Fit"):
        selfsup.inspect(Fit, text="a text", model=zero())
    with pytest.raises(UserError, match="needs records"):
        selfsup.inspect(Fit, data=["a", "b"], model=zero())
