"""LeJEPA: how far vectors are from a Gaussian by plain loops and by the authors' package, its score and its recipe."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.objectives.base import Outputs, Task
from selfsup.objectives.gaussian import REGULARIZERS, of_one_place, sigreg, visreg
from selfsup.objectives.lejepa import WEIGHTS, LeJEPA, LeJEPARecipe, Regularizer
from selfsup.objectives.multi_crop import Crops
from selfsup.objectives.recipe import Effort
from selfsup.seeding import generator
from selfsup.views import dino_global, dino_local, dino_second

ALONE = Processes.alone()
SIZE, WIDTH, NUMBERS = 12, 16, 5
PICTURES = np.random.default_rng(0).integers(0, 256, (24, 3, 20, 20), dtype=np.uint8)
NAMES = st.sampled_from(sorted(REGULARIZERS))
SEEDS = st.integers(0, 2**30)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def directions(seed: int, numbers: int, count: int) -> Tensor:
    return nn.functional.normalize(drawn(seed, numbers, count), dim=0)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# -- how far from a Gaussian -----------------------------------------------------------------------------------


def plain_sigreg(sample: Sequence[float]) -> float:
    """The integral over both signs of t, by complex numbers, one after the other."""
    step = 3 / 16
    total = 0.0
    for knot in range(-16, 17):
        t = knot * step
        found = sum(cmath.exp(1j * t * x) for x in sample) / len(sample)
        inner = abs(found - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2)
        total += inner * step * (0.5 if abs(knot) == 16 else 1)
    return len(sample) * total


def plain_visreg(vectors: Sequence[Sequence[float]], direction: Sequence[float]) -> float:
    """Of one view, number by number, then along a direction, value by value."""
    count, numbers = len(vectors), len(direction)
    means = [sum(vector[j] for vector in vectors) / count for j in range(numbers)]
    deviations = [
        math.sqrt(sum((vector[j] - means[j]) ** 2 for vector in vectors) / count) + 1e-6 for j in range(numbers)
    ]
    centre = sum(mean**2 for mean in means) / numbers
    scale = sum((1 - deviation) ** 2 for deviation in deviations) / numbers
    seen = sorted(
        sum(direction[j] * (vector[j] - means[j]) / deviations[j] for j in range(numbers)) for vector in vectors
    )
    quantiles = [NormalDist().inv_cdf(place / (count + 1)) for place in range(1, count + 1)]
    shape = sum((x - q) ** 2 for x, q in zip(seen, quantiles, strict=True)) / count
    return centre + scale + shape


@settings(max_examples=25, deadline=None)
@given(records=st.integers(2, 9), views=st.integers(1, 3), seed=SEEDS, scale=st.floats(0.01, 4))
def test_regularizers_against_plain_loops(records: int, views: int, seed: int, scale: float) -> None:
    vectors, along = scale * drawn(seed, records, views, 3) + drawn(seed + 1, views, 3), directions(seed, 3, 4)
    each = [vectors[:, view].tolist() for view in range(views)]
    one_by_one = [[plain_sigreg((vectors[:, view] @ a).tolist()) for view in range(views)] for a in along.T]
    near(sigreg(vectors, along), torch.tensor(one_by_one, dtype=torch.double).mean(1))
    one_by_one = [[plain_visreg(sample, a.tolist()) for sample in each] for a in along.T]
    near(visreg(vectors, along), torch.tensor(one_by_one, dtype=torch.double).mean(1))


@pytest.mark.parametrize("records", [7, 64])
def test_sigreg_equals_the_authors_package(records: int) -> None:
    """Of which every statistic, and the sketch of its own first step; it computes in fp32."""
    lejepa = pytest.importorskip("lejepa")
    vectors = (1.5 * drawn(3, records, NUMBERS) + 0.2).float()
    statistic = lejepa.univariate.EppsPulley(t_max=3, n_points=17)
    along = directions(4, NUMBERS, 11).float()
    near(sigreg(vectors[:, None], along), statistic(vectors @ along), 1e-5)
    sketch = torch.randn(NUMBERS, 32, generator=torch.Generator().manual_seed(0))  # its seed is the number of the step
    theirs = lejepa.multivariate.SlicingUnivariateTest(statistic, 32)(vectors)
    near(sigreg(vectors[:, None], nn.functional.normalize(sketch, dim=0)).mean(), theirs, 1e-5)


@settings(max_examples=25, deadline=None)
@given(name=NAMES, seed=SEEDS)
def test_the_order_of_records_says_nothing(name: str, seed: int) -> None:
    vectors, along = drawn(seed, 12, 2, 4), directions(seed, 4, 5)
    mixed = vectors[torch.randperm(12, generator=torch.Generator().manual_seed(seed))]
    near(REGULARIZERS[name](mixed, along), REGULARIZERS[name](vectors, along))


@settings(max_examples=15, deadline=None)
@given(name=NAMES, seed=SEEDS)
def test_a_gaussian_is_the_least(name: str, seed: int) -> None:
    """Beside vectors in one place, on a line, in two clumps, too near, too far, moved."""
    gaussian, along = drawn(seed, 512, 1, 4), directions(seed + 1, 4, 64)
    others = {
        "one place": torch.zeros_like(gaussian),
        "a line": gaussian[..., :1] * torch.ones(4).double(),
        "two clumps": gaussian.sign()[..., :1] + 0.1 * gaussian,
        "near": 0.7 * gaussian,
        "far": 1.5 * gaussian,
        "moved": gaussian + 0.4,
    }
    told = REGULARIZERS[name](gaussian, along).mean()
    for what, vectors in others.items():
        assert REGULARIZERS[name](vectors, along).mean() > 1.5 * told, what


def test_sigreg_of_a_gaussian_and_of_one_place_are_known() -> None:
    """E n |φ_n − φ|² is 1 − φ², whatever n; at 0 it is n (1 − φ)²."""
    sample = drawn(0, 8, 500, 40)
    assert float(sigreg(sample, torch.eye(40).double()).mean()) == pytest.approx(1.053, rel=0.01)
    assert of_one_place("sigreg", 100) == pytest.approx(40.2, rel=0.01)
    assert of_one_place("visreg", 1000) == pytest.approx(2, rel=0.01)


def test_the_gradient_near_one_place_stays_with_visreg_alone() -> None:
    along, lengths = directions(0, 4, 16), {}
    for name, regularizer in REGULARIZERS.items():
        vectors = (1e-4 * drawn(1, 32, 1, 4)).requires_grad_()
        regularizer(vectors, along).mean().backward()
        assert vectors.grad is not None
        lengths[name] = float(vectors.grad.norm()) / of_one_place(name, 32)
    assert lengths["sigreg"] < 1e-3 < 0.1 < lengths["visreg"]


# -- the score -------------------------------------------------------------------------------------------------


def lejepa(regularizer: Regularizer = "sigreg", count: int = 3, slices: int = 9) -> LeJEPA:
    network = VisionTransformer(VisionConfig(SIZE, 4, 1, WIDTH, 2, 24, registers=1)).initialise(generator(1, "weights"))
    head = nn.Linear(WIDTH, NUMBERS)
    crops = Crops(dino_global(SIZE), dino_second(SIZE), dino_local(8), count)
    made = LeJEPA(network, head, crops, "mean", regularizer, 0.2, slices, seed=3)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator(3, "noise", number))
    return made.double().train()


def task_of(made: LeJEPA, records: int = 8) -> Task:
    """In fp64."""
    places = np.arange(records)
    data = {"pixels": torch.from_numpy(PICTURES[places]), "sizes": torch.full((records, 2), 20)}
    task = made.hide(Batch(data, 3, np.zeros_like(places), places))
    return Task({name: tensor.double() for name, tensor in task.tensors.items()}, task.counts)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_the_score_against_plain_loops(name: Regularizer, count: int) -> None:
    """Every crop through the network by itself; directions as the seed and the step say."""
    made = lejepa(name, count)
    made.after_step(6, 100)
    task = task_of(made)
    sums = made.score(made.predict(task), task, ALONE)
    crops = [[*task["globals"][i], *(task["locals"][i] if count else ())] for i in range(8)]
    put = [[made.head(made.network.embed(crop[None], "mean"))[0] for crop in own] for own in crops]
    predicted = sum(((z - (own[0] + own[1]) / 2) ** 2).mean() for own in put for z in own)
    near(sums["prediction"], torch.as_tensor(predicted))
    sketch = torch.randn(NUMBERS, 9, generator=generator(3, "slices", 7))
    along = nn.functional.normalize(sketch, dim=0).double()
    told = 0.0
    for view in range(2 + count):
        for a in along.T:
            sample = [own[view].detach() for own in put]
            projected = [float(z @ a) for z in sample]
            told += (
                plain_sigreg(projected) if name == "sigreg" else plain_visreg([z.tolist() for z in sample], a.tolist())
            ) / 9
    assert float(sums[name].detach()) == pytest.approx(8 * told, rel=1e-6)  # directions are drawn in fp32
    assert {term: int(n) for term, n in task.counts.items()} == dict.fromkeys(("prediction", name), 8 * (2 + count))


class Part:
    """A process among several, all of whose outputs are known here."""

    def __init__(self, rank: int, size: int, everyone: Tensor) -> None:
        self.rank, self.size, self.everyone = rank, size, everyone

    def gather(self, tensor: Tensor) -> Tensor:
        return self.everyone.to(tensor.dtype)

    def sum(self, tensor: Tensor) -> Tensor:
        raise AssertionError("nothing is summed")


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
@pytest.mark.parametrize("cuts", [[3, 5], [1, 2, 2, 3]])
def test_what_processes_say_adds_up(name: Regularizer, cuts: list[int]) -> None:
    """Unequal parts of the records, and of three directions, fewer than there may be processes."""
    made = lejepa(name, slices=3)
    task = task_of(made)
    vectors = made.predict(task)["vectors"].detach()
    whole = made.score({"vectors": vectors}, task, ALONE)
    parts = [
        made.score({"vectors": part}, task, Part(rank, len(cuts), vectors))
        for rank, part in enumerate(vectors.split(cuts))
    ]
    for term, value in whole.items():
        near(torch.stack([part[term] for part in parts]).sum(), value)


def test_directions_are_others_in_each_step_and_the_same_for_all_looks() -> None:
    made, outputs = lejepa(), {"vectors": drawn(0, 8, 5, NUMBERS)}
    task = task_of(made)

    def told(made: LeJEPA, outputs: Outputs) -> float:
        return float(made.score(outputs, task, ALONE)["sigreg"])

    first, looked = told(made, outputs), told(made.eval(), outputs)
    assert told(made.train(), outputs) == first
    made.after_step(0, 10)
    second = told(made, outputs)
    assert len({first, second, looked}) == 3
    assert told(made.eval(), outputs) == looked
    resumed = lejepa()
    resumed.load_state_dict(made.state_dict())
    assert told(resumed.train(), outputs) == second


def test_scores_are_of_single_precision_at_least() -> None:
    made = lejepa()
    task, vectors = task_of(made), drawn(0, 8, 5, NUMBERS).bfloat16()
    low, exact = (made.score({"vectors": each}, task, ALONE) for each in (vectors, vectors.double()))
    for term, value in low.items():
        assert value.dtype == torch.float32
        near(value.double(), exact[term], 1e-5)


# -- the recipe ------------------------------------------------------------------------------------------------


def settled(**given: Any) -> LeJEPARecipe:
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(40)]
    options = {"objective": "lejepa", "model.preset": "vit-atto", **given}
    recipe = LeJEPARecipe(LeJEPARecipe.resolve(("test", options)), images, None)
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=10))
    return recipe


def test_the_plan_says_it_all() -> None:
    recipe = settled()
    facts = recipe.facts()
    assert facts["crops"] == "2 of 32 × 32, 6 (recipe) of 16 × 16 pixels (image size)"
    assert facts["held apart"] == "sigreg, 256 directions in 64 dimensions, weight 0.05 (regularizer)"
    assert recipe.views == 2 + 6 / 4
    assert recipe.chance(64) == pytest.approx(0.05 * 0.402 * 64, rel=0.01)
    assert "weight 0.6" in settled(**{"lejepa.regularizer": "visreg"}).facts()["held apart"]
    twice, once = (settled(**{"lejepa.slices": count}).flops_per_record() for count in (512, 256))
    assert twice - once == 6 * 8 * 256 * 64


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match=r"lejepa\.local_size 15 is no multiple of model\.patch 4"):
        settled(**{"lejepa.local_size": 15})
    with pytest.raises(UserError, match=r"lejepa\.weight"):
        settled(**{"lejepa.weight": 1})
    with pytest.raises(UserError, match=r"lejepa\.regularizer"):
        settled(**{"lejepa.regularizer": "vicreg"})


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_what_a_run_leaves_opens(train_vision: Train, tmp_path: Path, name: Regularizer) -> None:
    """Micro-batches beside each other, and a configuration that says what was chosen."""
    given = {"steps": 4, "batch": 16, "train.micro_batch": 6, "lejepa": {"local_crops": 2, "regularizer": name}}
    run = train_vision(tmp_path / "run", "lejepa", **given)
    assert run.model.kind == "an image encoder"
    assert run.settings()["lejepa.weight"] == WEIGHTS[name]
    lines = [line for line in run.metrics() if line["split"] == "train"]
    assert all(math.isfinite(line[name]) and line["prediction"] > 0 for line in lines)
