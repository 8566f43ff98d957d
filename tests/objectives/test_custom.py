"""An objective of a user's own: its recipe, and a network that keeps what it has learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.custom import CustomRecipe
from selfsup.objectives.recipe import Effort


class Line:
    """y = 3 x + 1 at 64 places."""

    def __len__(self) -> int:
        return 64

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        x = torch.from_numpy(indices).float()[:, None] / 64
        return {"x": x, "y": 3 * x + 1}


class Fit(Objective):
    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network or nn.Linear(1, 1)

    def hide(self, batch: Batch) -> Task:
        return Task(dict(batch.data), {"squared": torch.tensor(len(batch))})

    def predict(self, task: Task) -> Outputs:
        return {"y": self.network(task["x"])}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        return {"squared": (outputs["y"] - task["y"]).square().sum()}


def recipe_of(source: object, module: nn.Module | None = None) -> CustomRecipe:
    recipe = CustomRecipe(CustomRecipe.resolve(("test", {})), source, module, Fit)
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=10))
    return recipe


@pytest.mark.parametrize("module", [None, nn.Linear(1, 1)])
def test_asking_for_figures_leaves_a_trained_network_alone(module: nn.Module | None) -> None:
    recipe = recipe_of(Line(), module)
    objective = recipe.build()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.fill_(7.0)
    assert recipe.flops_per_record() == 12
    assert "2 parameters in Fit" in recipe.facts()["model"]
    assert recipe.units_per_record == 1
    assert recipe.fingerprint() == recipe_of(Line()).fingerprint()
    assert all((parameter == 7).all() for parameter in objective.parameters())


def test_every_build_starts_from_the_same_weights() -> None:
    recipe = recipe_of(Line(), nn.Linear(1, 1))
    start = {name: tensor.clone() for name, tensor in recipe.build().state_dict().items()}
    with torch.no_grad():
        recipe.build().network.weight.fill_(7.0)
    assert all(torch.equal(tensor, start[name]) for name, tensor in recipe.build().state_dict().items())
    fresh = recipe_of(Line())
    one = {name: tensor.clone() for name, tensor in fresh.build().state_dict().items()}
    torch.manual_seed(5)
    assert all(torch.equal(tensor, one[name]) for name, tensor in fresh.build().state_dict().items())


def test_parts_do_not_overlap_and_hold_everything() -> None:
    recipe = recipe_of(Line())
    assert recipe.validation is not None
    parts = [part.read(np.arange(len(part)))["x"] for part in (recipe.train, recipe.validation)]
    assert sorted(torch.cat(parts).flatten().tolist()) == Line().read(np.arange(64))["x"].flatten().tolist()


def test_saved_weights_are_those_of_the_objective(tmp_path) -> None:
    recipe = recipe_of(Line())
    objective = recipe.build()
    recipe.save(objective, tmp_path / "model", {})
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == objective.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in objective.state_dict().items())


def test_what_is_no_collection_of_records_is_refused() -> None:
    with pytest.raises(UserError, match="needs records: give `data` an object"):
        recipe_of([1, 2, 3])
