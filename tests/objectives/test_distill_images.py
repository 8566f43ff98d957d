"""Distillation of images: distance and grids against plain loops, one view for both, vectors in the teacher's space."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_VISION, Train
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_clip import DIMENSION, save_tiny_clip
from tiny_vision import save_tiny_vision, tiny_vision
from torch import Tensor, nn

from selfsup.data.images import answered
from selfsup.data.loader import in_order
from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.inference.opening import load_image_model
from selfsup.models.backbones import open_backbone
from selfsup.models.features import Features
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import save_vision
from selfsup.objectives import find_recipe
from selfsup.objectives.distill_images import (
    ImageDistillation,
    ImageDistillationRecipe,
    ImageTeacher,
    Moments,
    Target,
    distance,
    regridded,
    shown,
)
from selfsup.objectives.recipe import Effort
from selfsup.run import Run
from selfsup.seeding import generator
from selfsup.views import Preprocessing, View
from selfsup.views.drawn import levels

ALONE = Processes.alone()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


# -- distance and grids --------------------------------------------------------------------------------------


def plain_distance(said: list[float], taught: list[float]) -> float:
    """Number by number."""
    along = sum(y * t for y, t in zip(said, taught, strict=True))
    lengths = [math.sqrt(sum(x * x for x in each)) for each in (said, taught)]
    apart = [abs(y - t) for y, t in zip(said, taught, strict=True)]
    smooth = [d * d / 2 if d < 1 else d - 0.5 for d in apart]
    return 0.9 * (1 - along / (lengths[0] * lengths[1])) + 0.1 * sum(smooth) / len(smooth)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 5), width=st.integers(1, 7), seed=st.integers(0, 2**20))
def test_distance_against_a_plain_loop(n: int, width: int, seed: int) -> None:
    said, taught = 2 * drawn(seed, n, width), drawn(seed + 1, n, width)
    pairs = zip(said.tolist(), taught.tolist(), strict=True)
    expected = torch.tensor([plain_distance(*pair) for pair in pairs], dtype=torch.double)
    torch.testing.assert_close(distance(said, taught), expected)


def test_lower_precisions_are_widened() -> None:
    said, taught = drawn(0, 4, 8).bfloat16(), drawn(1, 4, 8).float()
    assert distance(said, taught).dtype == torch.float32
    torch.testing.assert_close(distance(said, taught).double(), distance(said.double(), taught.double()))


def plain_line(count: int, wanted: int) -> list[list[float]]:
    """Weights of a line's cells in each of the wanted ones: a triangle around its centre, as wide as it is or as a cell
    of the line is, whichever is more."""
    step = count / wanted
    reach = max(step, 1.0)
    rows = []
    for place in range(wanted):
        centre = (place + 0.5) * step
        weights = [max(0.0, 1 - abs(cell + 0.5 - centre) / reach) for cell in range(count)]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


@settings(max_examples=50, deadline=None)
@given(grid=st.tuples(*[st.integers(1, 7)] * 2), wanted=st.tuples(*[st.integers(1, 7)] * 2))
def test_grids_against_plain_weights(grid: tuple[int, int], wanted: tuple[int, int]) -> None:
    patches = drawn(0, 2, grid[0] * grid[1], 3)
    down, along = (torch.tensor(plain_line(*each), dtype=torch.double) for each in zip(grid, wanted, strict=True))
    expected = torch.einsum("ir,jc,brcw->bijw", down, along, patches.unflatten(1, grid)).flatten(1, 2)
    torch.testing.assert_close(regridded(patches, grid, wanted), expected)


def test_numbers_are_brought_to_mean_0_and_variance_1() -> None:
    """A number that never varies stays small, and is given back as it is."""
    vectors = 3 * drawn(0, 200, 4) + drawn(1, 1, 4)
    vectors[:, 2] = 7.0
    target = Target(5, Moments.of(vectors)).double()
    standard = target.standard(vectors)
    torch.testing.assert_close(standard.mean(0), torch.zeros(4, dtype=torch.double), atol=1e-9, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.double))
    states = drawn(2, 6, 5)
    weight, bias = target.whole()
    torch.testing.assert_close(target.standard(F.linear(states, weight, bias)), target(states))


# -- the task ------------------------------------------------------------------------------------------------

TEACHER = VisionConfig(size=16, patch=4, layers=1, width=12, heads=1, mlp=16, registers=0)
SEEN = Preprocessing(16, 16, bicubic=True, mean=(0.2, 0.4, 0.6), std=(0.3, 0.2, 0.1))


def teacher(seed: int = 1) -> ImageTeacher:
    """Of 4 × 4 patches of 12 numbers; an image has 5."""
    network = VisionTransformer(TEACHER).initialise(generator(seed, "teacher"))
    return ImageTeacher(network, Features("mean", drawn(3, 5, 12), drawn(4, 5)), (2, 2))


def objective(crops: tuple[float, float] = (0.4, 1.0), weight: float = 0.5) -> ImageDistillation:
    """The student, of 2 × 2 patches, is of another size."""
    view = View(16, crops)
    moments = Moments.of(drawn(5, 50, 5)), Moments.of(drawn(6, 50, 12))
    vectors, patches = (Target(16, each) for each in moments)
    student = tiny_vision()
    return ImageDistillation(student, teacher(), vectors, patches, view, view.prepared(SEEN), "cls", weight).double()


def batch_of(count: int = 3, side: int = 20) -> Batch:
    draws = generator(0, "images")
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draws)
    places = np.arange(count)
    return Batch({"pixels": pixels, "sizes": torch.full((count, 2), side)}, 3, np.zeros_like(places), places)


def test_both_see_the_same_part_each_as_it_was_trained() -> None:
    """Turned back into levels of colour, the two are the same but for the filter."""
    made = objective()
    task = made.hide(batch_of())
    own, taught = levels(task["pixels"], made.view), levels(task["taught"], made.taught)
    assert np.abs(own.astype(int) - taught.astype(int)).mean() < 12
    other = levels(made.hide(batch_of(4)).tensors["pixels"][1:], made.view)
    assert np.abs(own.astype(int) - other.astype(int)).mean() > 40
    plain = shown(batch_of(), View(16, (0.4, 1.0), bicubic=True))
    assert np.array_equal(levels(plain, View(16, (0.4, 1.0))), taught)


def test_the_score_is_the_plain_one() -> None:
    """Of the teacher's own vectors and patches, standardised, and of the student's states through a map."""
    made = objective()
    task = made.hide(batch_of())
    task = type(task)({name: task[name].double() for name in task.tensors}, task.counts)
    sums = made.score(made.predict(task), task, ALONE)
    network, features = made.teacher.network, Features("mean", made.teacher.weight, made.teacher.bias)
    states = network(task["taught"])
    vectors = features.map(states[:, TEACHER.prefix :].mean(1))
    grid = states[:, TEACHER.prefix :].unflatten(1, (4, 4))
    weights = torch.tensor(plain_line(4, 2), dtype=torch.double)
    patches = torch.einsum("ir,jc,brcw->bijw", weights, weights, grid).flatten(1, 2)
    own = made.student(task["pixels"])
    expected = {
        "vectors": (made.vector_map, own[:, 0], vectors),
        "patches": (made.patch_map, own[:, made.student.config.prefix :], patches),
    }
    for term, (target, states, taught) in expected.items():
        standard = (taught - target.mean) / target.deviation
        said = F.linear(states, target.map.weight, target.map.bias)
        pairs = zip(said.flatten(0, -2).tolist(), standard.flatten(0, -2).tolist(), strict=True)
        each = [plain_distance(*pair) for pair in pairs]
        assert len(each) == int(task.counts[term])
        assert float(sums[term].detach()) == pytest.approx(sum(each))
    assert made.weights == {"patches": 0.5}


def test_the_teacher_is_no_part_of_what_is_trained_and_kept() -> None:
    made = objective()
    assert not [name for name in made.state_dict() if "teacher" in name]
    trained = {id(parameter) for parameter in made.parameters()}
    assert not trained & {id(parameter) for parameter in made.teacher.parameters()}
    assert not made.train().teacher.training
    assert made.float().teacher.network.norm.weight.dtype == torch.float32


# -- the recipe ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer that nobody trained: also what it says of an image is something to learn."""
    return save_tiny_vision(tmp_path_factory.mktemp("teacher") / "vit")


@pytest.fixture(scope="module")
def distilled(taught: Path, train_vision: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("distilled") / "run"
    return train_vision(place, "distill", **{"distill.teacher": str(taught), "steps": 60, "evaluate.every": 60})


def test_a_student_comes_nearer_to_its_teacher(distilled: Run, taught: Path, drawings: Path) -> None:
    """Its vectors lie in the teacher's space, nearer to what the teacher says of the image than the mean is."""
    lines = [line for line in distilled.metrics() if line["split"] == "train"]
    assert lines[-1]["loss"] < 0.8 * distilled.summary["chance"]
    images = [Image.open(file) for file in sorted(drawings.glob("*.png"))[:40]]
    models = (load_image_model(place) for place in (distilled.directory, taught))
    own, theirs = (model.embed(images, precision="fp32") for model in models)
    assert own.shape == theirs.shape
    assert np.square(own - theirs).mean() < 0.7 * np.square(theirs - theirs.mean(0)).mean()


def recipe(teacher: Path, drawings: Path, module: nn.Module | None = None, **given: Any) -> ImageDistillationRecipe:
    values = {"objective": "distill", "data": str(drawings), "distill.teacher": str(teacher), **TINY_VISION, **given}
    made = ImageDistillationRecipe(ImageDistillationRecipe.resolve(("test", values)), module=module)
    made.open(lambda done, total: None)
    return made


class Colours(nn.Module):
    """The mean colour of an image, and nothing of its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 6)

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.head(pixels.mean((2, 3)))
        return found


def test_patches_are_asked_of_where_both_have_any(taught: Path, drawings: Path) -> None:
    both, one = recipe(taught, drawings), recipe(taught, drawings, Colours(), model="auto")
    for made, weight in ((both, 1.0), (one, 0.0)):
        made.settle(Effort(steps=3))
        assert made.settings["distill.patches"] == weight
        assert (made.build().patch_map is not None) == bool(weight)
    assert both.facts()["patches"] == "4 × 4, between the teacher's 2 × 2, weight 1 (networks)"
    assert one.facts()["patches"] == "nothing is asked of them (networks)"
    asked = recipe(taught, drawings, Colours(), model="auto", **{"distill.patches": 1.0})
    with pytest.raises(UserError, match=r"and Colours has none; leave distill\.patches out"):
        asked.settle(Effort(steps=3))


def test_a_network_from_python_comes_to_the_space_of_the_teacher(
    taught: Path, train_vision: Train, tmp_path: Path
) -> None:
    """Its own vector has other numbers."""
    run = train_vision(tmp_path / "run", "distill", teacher=taught, model=Colours(), steps=3)
    saved, teacher = open_backbone(run.model_directory, Colours()), load_image_model(taught)
    assert (saved.backbone.dimension, saved.features.dimension(6)) == (6, teacher.dimension)
    assert next(line["loss"] for line in run.metrics()) == pytest.approx(run.summary["chance"], rel=0.5)


def test_of_two_towers_that_of_images_teaches(drawings: Path, tmp_path: Path) -> None:
    """Its vectors in the shared space are learnt."""
    place = save_tiny_clip(tmp_path / "clip")
    assert find_recipe("distill", {"distill.teacher": str(place)}) is ImageDistillationRecipe
    made = recipe(place, drawings)
    made.settle(Effort(steps=3))
    assert made.definition(made.build()).dimension(32) == made.teacher.dimension == DIMENSION


def test_chance_is_what_the_mean_costs(taught: Path, drawings: Path) -> None:
    """Of whole images and of patches, with their weights."""
    made = recipe(taught, drawings, **{"distill.patches": 0.5})
    made.settle(Effort(steps=3))
    objective = made.build()
    (batch,) = in_order(made.train, len(made.train), 0, len(made.train))
    outputs = objective.predict(objective.hide(batch))
    costs = [distance(torch.zeros_like(outputs[name]), outputs[name]).mean() for name in ("taught", "taught_patches")]
    assert made.chance(8) == pytest.approx(float(costs[0] + 0.5 * costs[1]), rel=1e-3)


def test_whole_images_are_always_the_same(taught: Path, drawings: Path) -> None:
    made = recipe(taught, drawings, **{"distill.views": "whole"})
    made.settle(Effort(steps=3))
    read, places = made.train.read(np.arange(4)), np.arange(4)
    first, later = (shown(Batch(read, 0, np.full(4, epoch), places), made.view) for epoch in (0, 3))
    assert torch.equal(first, later)
    crops = recipe(taught, drawings)
    crops.settle(Effort(steps=3))
    assert not torch.equal(first, shown(Batch(read, 0, np.full(4, 0), places), crops.view))


def test_a_teacher_that_says_the_same_of_every_image_is_refused(drawings: Path, tmp_path: Path) -> None:
    network = tiny_vision()
    save_vision(tmp_path / "dumb", network, Features("mean", torch.zeros(3, 16), torch.ones(3)), lambda exact: exact)
    made = recipe(tmp_path / "dumb", drawings)
    with pytest.raises(UserError, match=r"says the same of every image of .*, so there is nothing to learn from it"):
        made.settle(Effort(steps=3))
        made.build()


def test_what_was_asked_of_whole_images_is_kept(
    taught: Path, drawings: Path, train_vision: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as computed in each step; a second run asks for nothing."""
    given = {"distill.teacher": str(taught), "distill.views": "whole", "steps": 3}
    made = recipe(taught, drawings, **{"distill.views": "whole"})
    made.settle(Effort(steps=3))
    read, places = made.train.read(np.arange(8)), np.arange(8)
    kept = made.build()
    asked = Batch({name: read[name] for name in ("pixels", "sizes")}, 0, np.zeros(8, np.int64), places)
    outputs = [kept.predict(kept.hide(batch)) for batch in (asked, Batch(read, 0, asked.epochs, places))]
    for name in outputs[0]:
        torch.testing.assert_close(outputs[0][name], outputs[1][name], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(outputs[0]["taught"], outputs[1]["taught"])
    train_vision(tmp_path / "first", "distill", **given)
    monkeypatch.setattr(answered, "_build", None)
    train_vision(tmp_path / "second", "distill", **given)
