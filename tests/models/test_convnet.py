"""The convolutional network: its arithmetic against plain torch, groups of images, and the statistics that are kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from selfsup.models.convnet import ConvNet, ConvNetConfig
from selfsup.models.counting import sketched

CONFIG = ConvNetConfig(size=16, layers=2, width=4)
PIXELS = torch.randn(6, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def lively(config: ConvNetConfig = CONFIG) -> ConvNet:
    """In fp64, with gains, biases and statistics that all matter."""
    generator = torch.Generator().manual_seed(1)
    model = ConvNet(config).initialise(generator).double()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.double), alpha=0.3)
    return model


def plain(model: ConvNet, x: Tensor, training: bool) -> Tensor:
    """Maps (B, width, h, w), layer by layer, each normalised by hand."""
    state = dict(model.state_dict())

    def convolved(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        y = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        if training:
            flat = y.transpose(0, 1).flatten(1)
            mean, variance = flat.mean(1), flat.var(1, correction=0)
        mean, variance, gain, bias = (
            part[:, None, None] for part in (mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"])
        )
        return gain * (y - mean) / (variance + model.config.norm_eps).sqrt() + bias

    x = convolved(x, "stem.conv", "stem.batch_norm", model.config.stride).clamp(min=0)
    for stage in range(4):
        for layer in range(model.config.layers):
            name = f"encoder.stages.{stage}.stage.{layer}"
            y = convolved(x, f"{name}.main_conv", f"{name}.main_batch_norm", 2 if stage and not layer else 1)
            x = (y + x if x.shape == y.shape else y).clamp(min=0)
    return x


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_plain_operations_compute(stride: int, training: bool) -> None:
    model = lively(ConvNetConfig(size=16, layers=2, width=4, stride=stride)).train(training)
    expected = plain(model, PIXELS, training)
    found = model(PIXELS)
    torch.testing.assert_close(found, expected.flatten(2).mT)
    torch.testing.assert_close(model.pool(found, "mean"), expected.mean((2, 3)))
    assert model.dimension == found.shape[2] == 32


@settings(max_examples=20)
@given(height=st.integers(1, 40), width=st.integers(1, 40), stride=st.integers(1, 3))
def test_it_takes_images_of_any_size(height: int, width: int, stride: int) -> None:
    model = lively(ConvNetConfig(size=16, layers=1, width=2, stride=stride)).eval()
    rows, columns = (-(-side // model.config.patch) for side in (height, width))
    assert model(torch.zeros(2, 3, height, width).double()).shape == (2, rows * columns, 16)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_in_training_images_meet_their_group_alone(group: int) -> None:
    model = lively().train()
    alone = torch.cat([model(part) for part in PIXELS.split(group)])
    model.group = group
    torch.testing.assert_close(model(PIXELS), alone)
    model.group = None
    assert float((model(PIXELS) - alone).detach().abs().max()) > 1e-3


def test_in_evaluation_an_image_meets_none() -> None:
    model = lively().eval()
    model.group = 4
    torch.testing.assert_close(model(PIXELS), torch.cat([model(one[None]) for one in PIXELS]))


def test_measured_statistics_are_those_of_training() -> None:
    """Of one group, so that evaluation computes what training does; in the same way, whatever was kept before."""
    model = lively()
    model.measure([PIXELS])
    torch.testing.assert_close(model.eval()(PIXELS), model.train()(PIXELS), rtol=1e-9, atol=1e-9)


def test_statistics_are_measured_over_all_batches() -> None:
    model = lively().train()
    model.group = 3
    model.measure(PIXELS.split(4))
    first = F.conv2d(PIXELS, model.stem.conv.weight, padding=1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model.stem.batch_norm.running_mean, first.mean(1))
    torch.testing.assert_close(model.stem.batch_norm.running_var, first.var(1, correction=0))
    assert model.training
    assert model.group == 3
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(PIXELS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_fresh_weights_are_a_function_of_the_seed_and_leave_nothing_unset() -> None:
    one, same, other = (ConvNet(CONFIG).initialise(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for (name, first), again, different in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(first, again), name
        assert first.isfinite().all(), name
        assert first.ndim == 1 or not torch.equal(first, different), name


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_operations_are_those_that_torch_counts(stride: int) -> None:
    config = ConvNetConfig(size=20, layers=2, width=4, stride=stride)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lively(config)(torch.zeros(2, 3, 20, 20).double())
    assert sketched(ConvNet, config).flops(20) == 3 * counter.get_total_flops() / 2


def test_vectors_are_wide_in_mixed_precision() -> None:
    model = lively().float().eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(PIXELS.float()).dtype == torch.bfloat16
        assert model.embed(PIXELS.float(), "mean").dtype == torch.float32


def test_sizes_without_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="are more than any network has"):
        ConvNetConfig(size=32, layers=2, width=1 << 40)
