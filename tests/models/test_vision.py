"""The vision transformer against transformers' DINOv3 ViT, and what must not depend on what."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.models.counting import parameter_count, sketched
from selfsup.models.presets import VISION
from selfsup.models.vision import VisionConfig, VisionTransformer, axial_rotation, kept_rotation

CONFIG = VisionConfig(size=32, patch=8, layers=3, width=48, heads=3, mlp=80)
OTHER = dataclasses.replace(
    CONFIG, size=24, patch=4, registers=0, heads=2, layers=2, rope_theta=30.0, norm_eps=1e-3, layer_scale=0.1
)
CONFIGS = pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["registers", "none"])


def lively(config: VisionConfig = CONFIG, dtype: torch.dtype = torch.float32) -> VisionTransformer:
    """With every parameter away from where it starts."""
    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(config).initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.to(dtype).eval()


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def theirs(model: VisionTransformer) -> torch.nn.Module:
    config = model.config
    made = transformers.DINOv3ViTConfig(
        image_size=config.size,
        patch_size=config.patch,
        num_hidden_layers=config.layers,
        hidden_size=config.width,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        num_register_tokens=config.registers,
        rope_theta=config.rope_theta,
        layer_norm_eps=config.norm_eps,
    )
    other = transformers.DINOv3ViTModel(made).to(model.norm.weight.dtype)
    weights = {("model." if n.startswith("layer.") else "") + n: w for n, w in model.state_dict().items()}
    other.load_state_dict(weights)
    return other.eval()


# -- the same numbers as transformers ------------------------------------------------------------------------


@CONFIGS
@pytest.mark.parametrize("shape", [(32, 32), (8, 8), (16, 40), (48, 24)])
@pytest.mark.parametrize("masked", [False, True])
def test_hidden_states_are_those_of_transformers(config: VisionConfig, shape: tuple[int, int], masked: bool) -> None:
    model = lively(config)
    pixels = noise(3, 3, *shape)
    rows, columns = config.grid(*shape)
    hidden = noise(3, rows * columns, seed=1) < 0 if masked else None
    with torch.no_grad():
        found = model(pixels, hidden)
        expected = theirs(model)(pixels, bool_masked_pos=hidden).last_hidden_state
    assert found.shape == (3, config.prefix + rows * columns, config.width)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_gradients_are_those_of_transformers() -> None:
    model, pixels, above = lively(), noise(2, 3, 16, 24), noise(2, 5 + 6, 48, seed=2)
    hidden = noise(2, 6, seed=1) < 0
    other = theirs(model)
    (model(pixels, hidden) * above).sum().backward()
    (other(pixels, bool_masked_pos=hidden).last_hidden_state * above).sum().backward()
    expected = {name.removeprefix("model."): p.grad for name, p in other.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-4, rtol=1e-3, msg=name)


def test_bf16_stays_near() -> None:
    model, pixels = lively(), noise(4, 3, 32, 32)
    with torch.no_grad():
        exact = model(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.is_autocast_enabled("cpu")
            narrow = model(pixels)
            trained = model.train()(pixels)
    assert narrow.dtype == torch.bfloat16
    assert float((narrow - exact).abs().mean()) < 0.03
    torch.testing.assert_close(trained, narrow)


def test_the_gradient_in_bf16_is_that_in_fp32_but_for_rounding() -> None:
    model, pixels, above = lively(), noise(4, 3, 32, 32), noise(4, 21, 48, seed=2)
    exact = torch.autograd.grad((model(pixels) * above).sum(), list(model.parameters()), allow_unused=True)
    with torch.autocast("cpu", torch.bfloat16):
        states = model(pixels)
    narrow = torch.autograd.grad((states.float() * above).sum(), list(model.parameters()), allow_unused=True)
    for (name, parameter), a, b in zip(model.named_parameters(), exact, narrow, strict=True):
        if name.endswith("mask_token"):
            assert a is None
            assert b is None
            continue
        assert b.dtype == parameter.dtype
        assert float((a - b).norm() / a.norm()) < 0.1, name


# -- what is shown and what is hidden ------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_hidden_patches_influence_nothing(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    hidden = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    pixels = noise(1, 3, rows * 8, columns * 8, seed=data.draw(st.integers(0, 9)))
    under = hidden.view(1, 1, rows, columns).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(under, noise(*pixels.shape, seed=77), pixels)
    model = lively()
    with torch.no_grad():
        assert torch.equal(model(pixels, hidden[None]), model(changed, hidden[None]))
        if not hidden.all():
            seen = (~hidden).nonzero().T
            assert torch.equal(model(pixels, visible=seen), model(changed, visible=seen))


LEARNT = dataclasses.replace(CONFIG, layers=1, registers=None, learnt_positions=True, scaled=False, key_bias=True)
OTHERS = {
    "vit": LEARNT,
    "deit": dataclasses.replace(LEARNT, distilled=True),
    "dinov2": dataclasses.replace(LEARNT, registers=2, antialias=True, scaled=True, gated=True),
    "siglip": dataclasses.replace(LEARNT, class_token=False, attention_pooling=True, activation="gelu_pytorch_tanh"),
    "clip": dataclasses.replace(LEARNT, pre_norm=True, pooled_norm=True, patch_bias=False, activation="quick_gelu"),
}


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_hidden_patches_influence_nothing_whatever_the_layout(data: st.DataObject) -> None:
    """Neither hidden states nor any vector of the image, at sizes between which positions are interpolated too."""
    config = OTHERS[data.draw(st.sampled_from(list(OTHERS)))]
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    hidden = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    pixels = noise(1, 3, rows * 8, columns * 8, seed=data.draw(st.integers(0, 9)))
    under = hidden.view(1, 1, rows, columns).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed, model = torch.where(under, noise(*pixels.shape, seed=77), pixels), lively(config)
    with torch.no_grad():
        one, other = (model(given, hidden[None]) for given in (pixels, changed))
        assert torch.equal(one, other)
        for pooling in config.poolings:
            assert torch.equal(model.pool(one, pooling), model.pool(other, pooling))
        if not hidden.all():
            seen = (~hidden).nonzero().T
            assert torch.equal(model(pixels, visible=seen), model(changed, visible=seen))


@pytest.mark.parametrize("name", list(OTHERS))
def test_visible_patches_keep_learnt_positions_whatever_the_layout(name: str) -> None:
    config, pixels = OTHERS[name], noise(2, 3, 16, 40)
    model, order = lively(config), torch.stack([torch.randperm(10), torch.randperm(10)])
    with torch.no_grad():
        full, shuffled = model(pixels), model(pixels, visible=order)
    before, width = config.prefix, config.width
    found, expected = shuffled[:, before:], full[:, before:].gather(1, order[..., None].expand(-1, -1, width))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shuffled[:, :before], full[:, :before], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(OTHERS))
def test_parts_of_other_layouts_are_trained_in_bf16_as_in_fp32(name: str) -> None:
    model, pixels = lively(OTHERS[name]), noise(3, 3, 32, 32)
    hidden = noise(3, 16, seed=1) < 0

    def gradients() -> list[Tensor]:
        states = model(pixels, hidden)
        whole = model.pool(states, model.config.summary)
        assert whole.dtype == torch.float32
        return list(torch.autograd.grad(whole.square().sum() + states.float().square().sum(), list(model.parameters())))

    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = gradients()
    for (part, parameter), a, b in zip(model.named_parameters(), exact, narrow, strict=True):
        assert b.dtype == parameter.dtype
        if not part.endswith("k_proj.bias"):  # which changes nothing, so that its gradient is rounding
            assert float((a - b).norm()) <= 0.1 * float(a.norm()), part


def test_what_is_left_beyond_whole_patches_is_not_looked_at() -> None:
    model, pixels = lively(dataclasses.replace(LEARNT, size=38)), noise(1, 3, 38, 38)
    changed = pixels.clone()
    changed[:, :, 32:], changed[:, :, :, 32:] = 7.0, 7.0
    with torch.no_grad():
        assert torch.equal(model(pixels), model(changed))


def test_a_mask_token_is_given_once() -> None:
    model = lively(dataclasses.replace(LEARNT, mask_token=False))
    assert model.embeddings.mask_token is None
    model.give_mask_token(torch.Generator().manual_seed(0))
    token = model.embeddings.mask_token
    assert token is not None
    assert model.config.mask_token
    model.give_mask_token(torch.Generator().manual_seed(1))
    assert model.embeddings.mask_token is token
    assert any(parameter is token for parameter in model.vectors())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_visible_patches_are_a_set_at_their_own_positions(seed: int, count: int) -> None:
    """In another order the result is in that order; of all patches it is the plain result."""
    model, pixels = lively(dtype=torch.float64), noise(2, 3, 24, 32, dtype=torch.float64)
    order = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(seed + n)) for n in (0, 1)])
    chosen = order[:, :count]
    with torch.no_grad():
        found = model(pixels, visible=chosen)
        again = model(pixels, visible=chosen.flip(1))
        full, shuffled = model(pixels), model(pixels, visible=order)
    torch.testing.assert_close(found[:, :5], again[:, :5])
    torch.testing.assert_close(found[:, 5:], again[:, 5:].flip(1))
    torch.testing.assert_close(shuffled[:, 5:], full[:, 5:].gather(1, order[..., None].expand(-1, -1, 48)))


def test_visible_patches_are_those_that_attention_sees() -> None:
    """Against transformers with the other patches taken out of its attention."""
    model, pixels = lively(), noise(2, 3, 24, 24)
    visible = torch.tensor([[1, 4, 8], [0, 2, 5]])
    seen = torch.zeros(2, 14, dtype=torch.bool)
    seen[:, :5] = True
    seen.scatter_(1, visible + 5, True)
    mask = torch.zeros(2, 1, 14, 14).masked_fill(~seen[:, None, None, :], -torch.inf)
    with torch.no_grad():
        expected = theirs(model)(pixels, attention_mask=mask).last_hidden_state
        found = model(pixels, visible=visible)
    torch.testing.assert_close(found, expected[seen].view(2, 8, 48), atol=2e-5, rtol=1e-4)


def test_records_do_not_see_each_other() -> None:
    model, pixels = lively(dtype=torch.float64), noise(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels)[1:2], model(pixels[1:2]))


def test_pixels_may_lie_in_any_order() -> None:
    model, pixels = lively(), noise(2, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(model(pixels.contiguous(memory_format=torch.channels_last)), model(pixels))


# -- positions -----------------------------------------------------------------------------------------------


def test_rotation_is_that_of_the_formula() -> None:
    config = VisionConfig(8, 4, layers=1, width=16, heads=2, mlp=8, registers=1, rope_theta=100.0)
    rotation = axial_rotation(config, (2, 3), torch.float64, torch.device("cpu"))
    assert rotation.cos.shape == rotation.sin.shape == (2 + 6, 1, 8)
    assert torch.equal(rotation.cos[:2], torch.ones(2, 1, 8, dtype=torch.float64))
    assert not rotation.sin[:2].any()
    for patch in range(6):
        y, x = (-0.5, 0.5)[patch // 3], (-2 / 3, 0.0, 2 / 3)[patch % 3]
        angles = torch.tensor([y, y / 10, x, x / 10], dtype=torch.float64) * 2 * torch.pi
        torch.testing.assert_close(rotation.cos[2 + patch, 0], angles.cos().repeat(2))
        torch.testing.assert_close(rotation.sin[2 + patch, 0], torch.cat((-angles.sin(), angles.sin())))


def test_rotations_kept_from_inference_serve_training() -> None:
    kept_rotation.cache_clear()
    model, pixels = lively().train(), noise(1, 3, 16, 16)
    with torch.inference_mode():
        model(pixels)
    model(pixels).sum().backward()
    assert kept_rotation.cache_info().hits > 0


# -- parameters ----------------------------------------------------------------------------------------------


def test_nothing_is_left_uninitialised() -> None:
    fresh = VisionTransformer(OTHER)
    assert all(parameter.isnan().all() for parameter in fresh.parameters())
    fresh.initialise(torch.Generator().manual_seed(1))
    assert not any(parameter.isnan().any() for parameter in fresh.parameters())
    again = VisionTransformer(OTHER).initialise(torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), again.parameters(), strict=True))
    assert fresh.layer[0].layer_scale1.lambda1[0].item() == pytest.approx(0.1)


def test_a_fresh_class_token_tells_images_apart() -> None:
    """Where it did not, DINO would start collapsed."""
    model = VisionTransformer(CONFIG).initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = model(noise(64, 3, 32, 32))[:, 0]
    assert float(tokens.std(0).mean()) > 0.1


@CONFIGS
def test_parameters_are_counted(config: VisionConfig) -> None:
    assert parameter_count(VisionTransformer, config) == sum(p.numel() for p in VisionTransformer(config).parameters())


@CONFIGS
@pytest.mark.parametrize("share", [None, 3])
def test_operations_are_counted(config: VisionConfig, share: int | None) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = lively(config)
    visible = None if share is None else torch.arange(share)[None]
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
    ):
        model(noise(1, 3, config.size, config.size), visible=visible)
    assert 3 * counter.get_total_flops() == pytest.approx(
        sketched(VisionTransformer, config).flops(config.size, share), rel=0.15
    )


def test_vectors_are_no_maps() -> None:
    model = lively()
    names = {name for name, p in model.named_parameters() if any(p is vector for vector in model.vectors())}
    assert names == {"embeddings.cls_token", "embeddings.mask_token", "embeddings.register_tokens"}


def test_presets_are_shapes_that_can_be_built() -> None:
    count = partial(parameter_count, VisionTransformer)
    sizes = [count(VisionConfig(224, 16, *shape)) for shape in VISION.values()]
    assert sizes == sorted(sizes)
    assert sizes[0] < 600_000
    assert count(VisionConfig(224, 16, *VISION["vit-s"])) == pytest.approx(21.6e6, rel=0.01)
    assert count(VisionConfig(224, 16, *VISION["vit-l"])) == pytest.approx(303.1e6, rel=0.01)
    for shape in VISION.values():
        assert shape.width == shape.heads * (shape.width // shape.heads)


def test_pooling() -> None:
    model, pixels, states = lively(), noise(2, 3, 16, 16), noise(2, 5 + 6, 4).to(torch.bfloat16)
    assert torch.equal(model.pool(states, "cls"), states[:, 0].float())
    torch.testing.assert_close(model.pool(states, "mean"), states[:, 5:].float().mean(1))
    with torch.no_grad():
        torch.testing.assert_close(model.embed(pixels, "mean"), model(pixels)[:, 5:].mean(1))
        assert model.embed(pixels, "cls").shape == (2, model.dimension)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "multiple of four times heads"),
        ({"width": 18, "heads": 3}, "multiple of four times heads"),
        ({"size": 30}, "30 × 30 pixels cannot be cut into patches of 8 × 8"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_images_that_the_patch_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="16 × 20 pixels cannot be cut"):
        lively()(noise(1, 3, 16, 20))
