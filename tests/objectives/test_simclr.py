"""SimCLR: its loss against a plain loop, its views, and gradient caching: the large batch in the small one's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_VISION, Train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import read_vision
from selfsup.objectives.losses import nt_xent
from selfsup.objectives.recipe import Effort
from selfsup.objectives.simclr import ProjectionHead, SimCLR, SimCLRRecipe
from selfsup.seeding import generator
from selfsup.step import gradients
from selfsup.views import render, simclr_view

ALONE = Processes.alone()
SIZE, WIDTH = 8, 16
PIXELS = torch.randint(0, 256, (24, 3, 12, 12), dtype=torch.uint8, generator=generator(0, "images"))


def objective(temperature: float = 0.5, dtype: torch.dtype = torch.float32) -> SimCLR:
    """With weights that all matter."""
    network = VisionTransformer(VisionConfig(SIZE, 4, 1, WIDTH, 2, 24, registers=1))
    made = SimCLR(network, ProjectionHead(WIDTH, 6), simclr_view(SIZE), "mean", temperature)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number))
            parameter.copy_(0.2 * noise + (parameter.ndim == 1))
    return made.to(dtype)


def batch_of(indices: Sequence[int], epoch: int = 0) -> Batch:
    places = np.asarray(indices)
    data = {"pixels": PIXELS[places], "sizes": torch.full((len(places), 2), 12)}
    return Batch(data, 3, np.full(len(places), epoch), places)


# -- the loss ------------------------------------------------------------------------------------------------


def plain_nt_xent(first: Tensor, second: Tensor, identities: Sequence[int], temperature: float) -> Tensor:
    """Chen et al. 2020, equation 1, one view and one other after the other; views of equal images are no negatives."""
    views, count = torch.cat((first, second)), len(first)
    total = torch.zeros((), dtype=first.dtype)
    for i in range(2 * count):
        other = (i + count) % (2 * count)
        terms = []
        for k in range(2 * count):
            if k == i or (k != other and identities[k % count] == identities[i % count]):
                continue
            cosine = views[i] @ views[k] / (views[i].norm() * views[k].norm())
            terms.append(cosine / temperature)
            if k == other:
                wanted = terms[-1]
        total = total - wanted + torch.stack(terms).logsumexp(0)
    return total


@settings(deadline=None, max_examples=50)
@given(
    identities=st.lists(st.integers(-3, 3), min_size=1, max_size=7),
    seed=st.integers(0, 2**30),
    temperature=st.floats(0.05, 1.0),
)
def test_nt_xent_against_a_plain_loop(identities: list[int], seed: int, temperature: float) -> None:
    random = torch.Generator().manual_seed(seed)
    raw = [torch.randn(len(identities), 5, generator=random, dtype=torch.double, requires_grad=True) for _ in "ab"]
    first, second = (torch.nn.functional.normalize(x, dim=-1) for x in raw)
    found = nt_xent(first, second, torch.tensor(identities), 1 / temperature, ALONE)
    expected = plain_nt_xent(raw[0], raw[1], identities, temperature)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, raw)
    for one, other in zip(torch.autograd.grad(found, raw), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)


def test_views_that_are_all_alike_cost_the_logarithm_of_the_others() -> None:
    same = torch.ones(8, 4, dtype=torch.double) / 2
    found = float(nt_xent(same, same, torch.arange(8), 2.0, ALONE))
    assert found == pytest.approx(16 * math.log(15))


def test_score_is_the_plain_loss_of_views_alone() -> None:
    """Each view by itself through network and head; an image that is there twice is no negative of itself."""
    made, batch = objective(0.3, torch.double), batch_of([0, 7, 3, 7])
    task = made.hide(batch)
    found = made.score(made.predict(task), task, ALONE)["nt_xent"]
    sides = []
    for number in (0, 1):
        views = render(*batch.data.values(), made.view, batch.seed, batch.epochs, batch.records, number)
        states = [made.network(view[None])[0, 2:].mean(0) for view in views.double()]
        first, _, last = made.head
        sides.append(torch.stack([last(torch.relu(first(state))) for state in states]))
    torch.testing.assert_close(found, plain_nt_xent(*sides, [0, 7, 3, 7], 0.3), rtol=1e-6, atol=0)
    assert int(task.counts["nt_xent"]) == 8


def test_the_two_views_of_an_image_differ() -> None:
    first, second = objective().hide(batch_of(range(8)))["views"].unbind(1)
    assert ((first - second).flatten(1).abs().mean(1) > 0.05).all()


# -- gradient caching ----------------------------------------------------------------------------------------


def cut(indices: Sequence[int], size: int) -> list[Batch]:
    return [batch_of(indices[start : start + size]) for start in range(0, len(indices), size)]


@pytest.mark.parametrize("size", [4, 7, 24])
def test_caching_gives_the_gradient_of_the_large_batch(size: int) -> None:
    """To 1e-5 in fp32, of a plain loop over all views."""
    plain = objective()
    task = plain.hide(batch_of(range(24)))
    outputs = plain.predict(task)
    (plain_nt_xent(outputs["first"], outputs["second"], range(24), 0.5) / 48).backward()
    made = objective()
    gradients(made, cut(range(24), size), ALONE)
    for (name, one), other in zip(made.named_parameters(), plain.parameters(), strict=True):
        if name == "network.embeddings.mask_token":  # no patch is hidden
            assert not one.requires_grad
            continue
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert float((one.grad - other.grad).norm()) < 1e-5 * float(other.grad.norm()), name


def test_a_cut_without_caching_would_be_another_gradient() -> None:
    """Which is why it is cached: micro-batches scored by themselves have fewer negatives."""
    whole, parts = objective(), objective()
    gradients(whole, cut(range(24), 24), ALONE)
    for batch in cut(range(24), 4):
        gradients(parts, [batch], ALONE)
    one, other = (made.head[2].weight.grad for made in (whole, parts))
    assert float((one - other / 6).norm()) > 0.1 * float(one.norm())


# -- the recipe ----------------------------------------------------------------------------------------------


def test_a_run_leaves_a_network_and_no_head(train_vision: Train, tmp_path: Path) -> None:
    run = train_vision(tmp_path / "run", "simclr", **{"train.micro_batch": 3})
    saved = read_vision(run.model_directory)
    assert saved.features.pooling == "mean"
    assert not [name for name in saved.weights if "head" in name]
    summary = run.summary
    assert run.environment()["plan"]["chance"] == pytest.approx(math.log(15))
    held_out = summary["validation_records"]  # in one batch, of fewer images
    assert held_out < 8
    expected = math.log(2 * held_out - 1)
    assert summary["chance"] == pytest.approx(expected)
    assert summary["images"] == 12 * 8
    assert summary["max_difference"] < 1e-5
    assert {"images", "images_per_second"} <= run.metrics()[0].keys()


@pytest.mark.parametrize(("size", "expected"), [(16, 0.2), (112, 0.1)])
def test_the_temperature_suits_the_size_of_the_images(size: int, expected: float, drawings: Path) -> None:
    given: dict[str, Any] = {**TINY_VISION, "objective": "simclr", "data": str(drawings), "data.size": size}
    recipe = SimCLRRecipe(SimCLRRecipe.resolve(("test", given)))
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=12))
    assert recipe.build().temperature == expected


def test_one_image_has_none_to_be_told_from(train_vision: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs 2 or more"):
        train_vision(tmp_path / "run", "simclr", batch=1)


def test_weights_to_start_from_bring_their_shape(train_vision: Train, tmp_path: Path) -> None:
    run = train_vision(tmp_path / "first", "simclr", steps=1)
    with pytest.raises(UserError, match="brings its own shape"):
        train_vision(tmp_path / "second", "simclr", init=str(run.directory), model="vit-atto")
