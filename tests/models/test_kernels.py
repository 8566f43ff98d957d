"""Each kernel and its hand-written gradient, against the formula composed by autograd, in fp64 and in bf16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.models import kernels
from selfsup.models.attention import attention, split
from selfsup.models.kernels import (
    affine,
    dense_attention,
    gated,
    project,
    rms_norm,
    rotary_tables,
    rotate,
    rotate_heads,
)

Kernel = Callable[..., Tensor | tuple[Tensor, ...]]


def plain_norm(x: Tensor, gain: Tensor) -> Tensor:
    return gain * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()


def plain_rotation(x: Tensor) -> Tensor:
    """Pairs (i, i + dim/2) of (B, T, heads, dim) as complex numbers, turned by position · 100^(−2i/dim)."""
    first, second = x.chunk(2, -1)
    frequencies = 100.0 ** (-torch.arange(0, x.shape[-1], 2, dtype=x.dtype) / x.shape[-1])
    angles = torch.outer(torch.arange(x.shape[1], dtype=x.dtype), frequencies)[:, None]
    return torch.cat((first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()), -1)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | int) -> Tensor:
    weights = (q @ k.mT / q.shape[-1] ** 0.5 + mask).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def tables(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rotary_tables(torch.arange(5), 8, 100.0, dtype)


def gradient_and_value(kernel: Kernel, inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Results, and gradients for random ones of the results, which come as attention has them: not contiguous."""
    results = kernel(*inputs)
    results = (results,) if isinstance(results, Tensor) else results
    above = [torch.randn(y.mT.shape, generator=generator, dtype=torch.float64).mT.to(y.dtype) for y in results]
    return [*results, *torch.autograd.grad(results, inputs, above)]


KERNELS: dict[str, tuple[Kernel, Kernel, list[tuple[int, ...]]]] = {
    "norm": (lambda x, g: rms_norm(x, g, 1e-3, x.dtype), plain_norm, [(2, 5, 24), (24,)]),
    "heads": (
        lambda x, g: rotate_heads(x, g, *tables(x.dtype), 1e-3),
        lambda x, g: plain_rotation(plain_norm(x.unflatten(-1, (3, 8)), g)).transpose(1, 2),
        [(2, 5, 24), (8,)],
    ),
    "heads without norm": (
        lambda x: rotate_heads(x, None, *tables(x.dtype), 1e-3),
        lambda x: plain_rotation(x.unflatten(-1, (3, 8))).transpose(1, 2),
        [(2, 5, 24)],
    ),
    "silu, gated": (gated, lambda gate, up: gate * torch.sigmoid(gate) * up, [(2, 5, 24), (2, 5, 24)]),
    "gelu, gated": (
        lambda gate, up: gated(gate, up, "gelu_new"),
        lambda gate, up: gate / (1 + torch.exp(-((8 / torch.pi) ** 0.5) * (gate + 0.044715 * gate**3))) * up,
        [(2, 5, 24), (2, 5, 24)],
    ),
    "exact gelu, gated": (
        lambda gate, up: gated(gate, up, "gelu"),
        lambda gate, up: gate * (1 + torch.erf(gate / 2**0.5)) / 2 * up,
        [(2, 5, 24), (2, 5, 24)],
    ),
    "one projection": (lambda x, w: project(x, w), lambda x, w: x @ w.mT, [(2, 5, 24), (7, 24)]),
    "three projections": (
        project,
        lambda x, *weights: tuple(x @ w.mT for w in weights),
        [(2, 5, 24), (7, 24), (9, 24), (24, 24)],
    ),
    "projections with and without bias": (
        lambda x, w, b, u: affine(x, (w, b), (u, None)),
        lambda x, w, b, u: (x @ w.mT + b, x @ u.mT),
        [(2, 5, 24), (7, 24), (7,), (9, 24)],
    ),
}
MASK = torch.zeros(40, 40).masked_fill_(torch.eye(40).roll(1) > 0, -torch.inf)
for length, mask in ((5, None), (40, None), (40, MASK), (40, MASK.expand(2, 1, -1, -1))):
    KERNELS[f"attention over {length}, mask {None if mask is None else mask.ndim}"] = (
        lambda q, k, v, mask=mask: dense_attention(q, k, v, None if mask is None else mask.to(q.dtype)),
        lambda q, k, v, mask=mask: plain_attention(q, k, v, 0 if mask is None else mask),
        [(2, 3, length, 8)] * 3,
    )
for mask in (MASK, MASK.expand(2, 1, -1, -1)):
    KERNELS[f"attention in groups of 3, mask {mask.ndim}"] = (
        lambda q, k, v, mask=mask: dense_attention(q, k, v, mask.to(q.dtype)),
        lambda q, k, v, mask=mask: plain_attention(q, *(x.repeat_interleave(3, 1) for x in (k, v)), mask),
        [(2, 6, 40, 8), (2, 2, 40, 8), (2, 2, 40, 8)],
    )
EACH = pytest.mark.parametrize("name", KERNELS)


@EACH
def test_a_kernel_and_its_gradient_equal_the_plain_formula(name: str) -> None:
    kernel, plain, shapes = KERNELS[name]
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    ours = gradient_and_value(kernel, inputs, torch.Generator().manual_seed(2))
    theirs = gradient_and_value(plain, inputs, torch.Generator().manual_seed(2))
    # Rotary angles are fp32.
    torch.testing.assert_close(ours, theirs, rtol=1e-6 if "heads" in name else 1e-12, atol=1e-6)


@EACH
def test_a_kernel_in_bfloat16_stays_near_fp64(name: str) -> None:
    kernel, plain, shapes = KERNELS[name]
    generator = torch.Generator().manual_seed(1)
    narrow = [torch.randn(s, generator=generator).bfloat16().requires_grad_() for s in shapes]
    wide = [tensor.detach().double().requires_grad_() for tensor in narrow]
    ours = gradient_and_value(kernel, narrow, torch.Generator().manual_seed(2))
    theirs = gradient_and_value(plain, wide, torch.Generator().manual_seed(2))
    for mine, exact in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - exact).norm() < 0.02 * exact.norm()


def test_gradients_have_the_precision_of_what_they_belong_to() -> None:
    x, gain, weight = torch.randn(4, 6), torch.randn(6), torch.randn(3, 6)
    for tensor in (x, gain, weight):
        tensor.requires_grad_()
    (y,) = project(rms_norm(x, gain, 1e-6, torch.bfloat16), weight)
    assert y.dtype == torch.bfloat16
    assert [g.dtype for g in torch.autograd.grad(y.sum(), (x, gain, weight))] == [torch.float32] * 3


def test_a_large_input_is_normalised_in_bfloat16() -> None:
    x, gain = torch.randn(8, 64).mul(1e4), torch.randn(64)
    with torch.autocast("cpu", torch.bfloat16):
        y = rms_norm(x, gain, 1e-6, torch.bfloat16)
    torch.testing.assert_close(y.float(), plain_norm(x, gain), atol=0.02, rtol=0.02)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_products_by_other_kernels_equal_those_in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGE", 0)
    monkeypatch.setattr(kernels, "_has_own_kernels", lambda: True)
    generator = torch.Generator().manual_seed(0)
    wide = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((2, 5, 24), (7, 24), (7,), (9, 24))]
    found, exact = [], []
    for dtype, results in ((torch.float32, found), (torch.float64, exact)):
        x, w, b, u = (tensor.to(dtype).requires_grad_() for tensor in wide)
        y, z = affine(x, (w, b), (u, None))
        results += [y, z, *torch.autograd.grad(y.square().sum() + z.sin().sum(), (x, w, b, u))]
    for single, double in zip(found, exact, strict=True):
        assert single.dtype == torch.float32
        assert (single - double).norm() < 1e-6 * double.norm()


def test_rotation_equals_complex_multiplication() -> None:
    x = torch.randn(2, 5, 3, 8)
    positions = torch.arange(7, 12)
    turned = rotate(x, *rotary_tables(positions, 8, 100.0, torch.float32))
    for pair in range(4):
        turn = torch.polar(torch.ones(5), positions * 100.0 ** (-2 * pair / 8))[:, None]
        expected = torch.complex(x[..., pair], x[..., pair + 4]) * turn
        torch.testing.assert_close(turned[..., pair], expected.real)
        torch.testing.assert_close(turned[..., pair + 4], expected.imag)


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("mask", ["none", "causal", "of each batch"])
def test_attention_in_bfloat16_equals_the_fused_kernel_in_fp32(mask: str, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 9, 8, generator=generator).bfloat16().requires_grad_()
        for heads in (3, kv_heads, kv_heads)
    )
    hidden = torch.rand(2, 1, 9, 9, generator=generator) < 0.3
    hidden.diagonal(dim1=-2, dim2=-1).fill_(False)
    added = torch.zeros(2, 1, 9, 9).masked_fill(hidden, -torch.inf) if mask == "of each batch" else None
    above = torch.randn(2, 3, 9, 8, generator=generator)
    ours = attention(q, k, v, None if added is None else added.bfloat16(), causal=mask == "causal")
    ours = split(ours, q.shape[1])
    wide = [t.detach().float().requires_grad_() for t in (q, k, v)]
    theirs = F.scaled_dot_product_attention(*wide, attn_mask=added, is_causal=mask == "causal", enable_gqa=True)
    torch.testing.assert_close(ours.float(), theirs, atol=0.02, rtol=0.02)
    for mine, exact in zip(
        torch.autograd.grad(ours, (q, k, v), above.bfloat16()), torch.autograd.grad(theirs, wide, above), strict=True
    ):
        assert (mine - exact).norm() < 0.02 * exact.norm()
