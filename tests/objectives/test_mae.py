"""MAE: its targets and loss against plain loops, what is hidden, and that nothing hidden is seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_VISION, Train, Trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import selfsup
from selfsup.data.loader import in_order
from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.models.pixel_decoder import PixelDecoder, PixelDecoderConfig, read_decoder
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import read_vision
from selfsup.objectives.base import Task
from selfsup.objectives.mae import MAE, MAERecipe, normalised
from selfsup.objectives.recipe import Effort
from selfsup.run import Run
from selfsup.seeding import generator
from selfsup.step import evaluate
from selfsup.trainer import EVALUATION_SEED
from selfsup.views import mae_view, render

ALONE = Processes.alone()
SIZE, PATCH, WIDTH = 16, 4, 16
PATCHES = (SIZE // PATCH) ** 2


def images(count: int, seed: int = 0, side: int = 20) -> Tensor:
    """Noise; the last image is all of one colour."""
    made = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator(seed, "images"))
    made[-1] = 77
    return made


def objective(hidden: float = 0.75, dtype: torch.dtype = torch.double) -> MAE:
    """With weights that all matter: a fresh decoder says nothing."""
    config = VisionConfig(size=SIZE, patch=PATCH, layers=2, width=WIDTH, heads=2, mlp=24, registers=2)
    decoder = PixelDecoder(PixelDecoderConfig(WIDTH, 32, 1, PATCH, hidden))
    made = MAE(VisionTransformer(config), decoder, mae_view(SIZE))
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number))
            parameter.copy_(0.2 * noise + (parameter.ndim == 1))
    return made.to(dtype)


def batch_of(pixels: Tensor, records: Sequence[int] | None = None, epoch: int = 0) -> Batch:
    places = np.arange(len(pixels)) if records is None else np.array(records)
    sizes = torch.tensor([pixels.shape[2:]] * len(pixels))
    return Batch({"pixels": pixels, "sizes": sizes}, 3, np.full(len(places), epoch), places)


def with_pixels(task: Task, pixels: Tensor) -> Task:
    return Task(task.tensors | {"pixels": pixels}, task.counts)


def hidden_pixels(task: Task) -> Tensor:
    """Whether each pixel lies in a hidden patch, (B, S, S)."""
    columns = SIZE // PATCH
    mask = torch.zeros(len(task["hidden"]), SIZE, SIZE, dtype=torch.bool)
    for image, places in enumerate(task["hidden"].tolist()):
        for place in places:
            row, column = PATCH * (place // columns), PATCH * (place % columns)
            mask[image, row : row + PATCH, column : column + PATCH] = True
    return mask


# -- the loss ------------------------------------------------------------------------------------------------


def plain_loss(pixels: Tensor, hidden: list[list[int]], values: Tensor) -> float:
    """Section 3, one image, one hidden patch and one of its values after the other."""
    total, columns = 0.0, SIZE // PATCH
    for image, places in enumerate(hidden):
        for number, place in enumerate(places):
            row, column = PATCH * (place // columns), PATCH * (place % columns)
            patch = [
                float(pixels[image, channel, row + y, column + x])
                for channel in range(3)
                for y in range(PATCH)
                for x in range(PATCH)
            ]
            mean = sum(patch) / len(patch)
            variance = sum((value - mean) ** 2 for value in patch) / len(patch)
            errors = [
                (float(predicted.detach()) - (value - mean) / (variance + 1e-6) ** 0.5) ** 2
                for value, predicted in zip(patch, values[image, number], strict=True)
            ]
            total += sum(errors) / len(errors)
    return total


def test_against_a_plain_loop() -> None:
    made, batch = objective(), batch_of(images(3))
    task = made.hide(batch)
    outputs = made.predict(task)
    pixels = render(batch.data["pixels"], batch.data["sizes"], made.view, batch.seed, batch.epochs, batch.records, 0)
    expected = plain_loss(pixels, task["hidden"].tolist(), outputs["values"])
    assert cost(made, task, outputs["values"]) == pytest.approx(expected, rel=1e-5)


def cost(made: MAE, task: Task, values: Tensor) -> float:
    return float(made.score({"values": values}, task, ALONE)["mse"].detach())


def test_who_knows_the_mean_of_each_patch_has_a_loss_of_one() -> None:
    """As a fresh decoder does."""
    made = objective()
    made.decoder.initialise(generator(0, "weights"))
    task = made.hide(batch_of(images(4)))
    patches = float(task.counts["mse"])
    assert cost(made, task, torch.zeros_like(task["targets"])) == pytest.approx(patches, rel=1e-4)
    assert cost(made, task, made.predict(task)["values"]) == pytest.approx(patches, rel=1e-4)


def test_values_that_are_all_equal_have_nothing_to_be_predicted() -> None:
    assert not normalised(torch.full((2, 3, 48), 0.7)).any()


# -- what is hidden ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "hidden"), [(0.75, 12), (0.5, 8), (0.9, 14)])
def test_the_task_says_how_much_is_hidden(share: float, hidden: int) -> None:
    task = objective(share).hide(batch_of(images(5)))
    assert task["hidden"].shape == (5, hidden)
    assert int(task.counts["mse"]) == 5 * hidden
    together = torch.cat((task["visible"], task["hidden"]), 1).sort().values
    assert torch.equal(together, torch.arange(PATCHES).expand(5, -1))


def test_the_encoder_computes_visible_patches_only() -> None:
    made, lengths = objective(), []
    made.encoder.register_forward_hook(lambda module, inputs, states: lengths.append(states.shape[1]))
    made.predict(made.hide(batch_of(images(2))))
    assert lengths == [1 + made.encoder.config.registers + PATCHES // 4]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**30), epoch=st.integers(0, 9), share=st.sampled_from([0.5, 0.75, 0.9]))
def test_nothing_hidden_is_seen(seed: int, epoch: int, share: float) -> None:
    """The gradient of the prediction is exactly zero in hidden pixels, and is not in visible ones."""
    made = objective(share)
    task = made.hide(batch_of(images(2, seed), epoch=epoch))
    pixels = task["pixels"].double().requires_grad_()
    mask = hidden_pixels(task)
    values = made.predict(with_pixels(task, pixels))["values"]
    values.square().sum().backward()
    slopes = pixels.grad.abs().sum(1)
    assert not slopes[mask].any()
    assert (slopes[~mask] > 0).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**30), scale=st.floats(0.1, 1e6))
def test_hidden_pixels_may_be_anything(seed: int, scale: float) -> None:
    """Whatever stands there, even what is no number, the prediction keeps every bit; visible pixels do change it."""
    made = objective(dtype=torch.float32)
    task = made.hide(batch_of(images(2, seed)))
    mask = hidden_pixels(task)[:, None].expand(-1, 3, -1, -1)
    noise = scale * torch.randn(task["pixels"].shape, generator=generator(seed, "noise"))
    expected = made.predict(task)["values"]
    for others in (noise, torch.full_like(noise, torch.nan)):
        changed = torch.where(mask, others, task["pixels"])
        assert torch.equal(made.predict(with_pixels(task, changed))["values"], expected)
    changed = torch.where(mask, task["pixels"], task["pixels"] + 0.1 * noise / scale)
    assert not torch.allclose(made.predict(with_pixels(task, changed))["values"], expected)


# -- the recipe ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(trained: Trained) -> Run:
    return trained("mae")


def recipe(drawings: Path, **given: Any) -> MAERecipe:
    """Settled."""
    made = MAERecipe(MAERecipe.resolve(("test", {**TINY_VISION, "objective": "mae", "data": str(drawings), **given})))
    made.open(lambda done, total: None)
    made.settle(Effort(steps=12))
    return made


def test_a_run_leaves_the_encoder_and_its_decoder(run: Run) -> None:
    """The decoder is no part of what other programs open."""
    saved, decoder = read_vision(run.model_directory), read_decoder(run.model_directory)
    assert saved.features.pooling == "mean"
    assert (saved.config.width, saved.config.patch, saved.config.size) == (32, 4, 16)
    assert decoder.config == PixelDecoderConfig(encoder=32, width=32, layers=4, patch=4, hidden=0.75)
    assert not [name for name in saved.weights if "decoder" in name]
    assert run.summary["chance"] == 1.0
    assert run.summary["loss"] < 0.99


def test_what_is_saved_predicts_what_was_trained(run: Run, drawings: Path) -> None:
    """The held-out loss of the saved encoder and decoder is that of the end of the run."""
    recipe = MAERecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=12))
    made = MAE(read_vision(run.model_directory).model(), read_decoder(run.model_directory), mae_view(16)).eval()
    batches = in_order(recipe.validation, run.settings()["evaluate.final_records"], EVALUATION_SEED, 4)
    assert evaluate(made, batches, ALONE)["loss"] == pytest.approx(run.summary["loss"], rel=1e-4)


def test_a_run_goes_on_from_another_one_with_its_decoder(
    run: Run, train_vision: Train, drawings: Path, tmp_path: Path
) -> None:
    still = {"optim.lr": 1e-30, "optim.adamw_lr": 1e-30, "optim.weight_decay": 0, "steps": 2}
    later = train_vision(tmp_path / "run", "mae", init=str(run.directory), **still, model={})
    before, after = (read_decoder(one.model_directory).state_dict() for one in (run, later))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert later.settings().origin("mae.decoder_layers") == "init"
    with pytest.raises(UserError, match=r"has decoder_layers 4, so mae\.decoder_layers is not 2"):
        recipe(drawings, init=str(run.directory), model={}, **{"mae.decoder_layers": 2})


@pytest.mark.parametrize(("width", "expected"), [(32, 32), (192, 128), (384, 256), (768, 512)])
def test_the_decoder_is_narrower_than_the_encoder(width: int, expected: int, drawings: Path) -> None:
    found = recipe(drawings, model={"layers": 1, "width": width, "heads": 1, "patch": 4})
    assert found.decoder_config().width == expected
    assert f"width {expected}; it fills in 12 of 16 patches" in found.facts()["decoder"]


def test_operations_are_counted(drawings: Path) -> None:
    """Of a step forward and back, against torch's own count of the way forward."""
    settled = recipe(drawings, **{"mae.decoder_layers": 2})
    made = settled.build().eval()
    task = made.hide(next(in_order(settled.train, 1, 0, 1)))
    plainly = sdpa_kernel(SDPBackend.MATH)  # whose products are counted
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plainly:
        made.predict(task)
    assert settled.flops_per_record() == pytest.approx(3 * counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": {"preset": "timm:resnet18"}}, "which timm:resnet18 cannot do"),
        ({"data.size": 4}, "a single patch of 4"),
        ({"mae.decoder_width": 40}, "multiple of 32"),
        ({"mae.hidden": 1.0}, "mae.hidden"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], message: str, drawings: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        recipe(drawings, **given).decoder_config()
    assert "\n" not in str(error.value)


def test_a_network_from_python_is_refused(drawings: Path, tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4))
    with pytest.raises(UserError, match="a network from Python cannot do"):
        selfsup.train("mae", data=drawings, out=tmp_path / "run", model=network, steps=1)
    assert not (tmp_path / "run").exists()
