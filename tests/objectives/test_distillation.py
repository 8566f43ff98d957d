"""Targets over prototypes and the losses of distillation, against plain implementations of one row after the other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.distributed import Processes
from selfsup.objectives import distillation
from selfsup.objectives.distillation import centred, in_use, koleo, sinkhorn_knopp, soft_cross_entropy

ALONE = Processes.alone()


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# -- targets -------------------------------------------------------------------------------------------------


def plain_sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int) -> list[list[float]]:
    """Entry by entry, every division carried out on the whole table."""
    count, width = logits.shape
    table = [[math.exp(float(x) / temperature) for x in row] for row in logits]
    table = [[x / sum(row) for x in row] for row in table]
    for _ in range(iterations):
        columns = [sum(table[i][k] for i in range(count)) for k in range(width)]
        table = [[x / column for x, column in zip(row, columns, strict=True)] for row in table]
        table = [[x / sum(row) for x in row] for row in table]
    return table


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 9),
    prototypes=st.integers(1, 9),
    seed=st.integers(0, 2**30),
    temperature=st.floats(0.2, 1.0),  # below, a prototype may be less likely than what a column's sum is kept above
    iterations=st.integers(1, 5),
)
def test_sinkhorn_knopp_against_a_plain_loop(
    rows: int, prototypes: int, seed: int, temperature: float, iterations: int
) -> None:
    logits = drawn(seed, rows, prototypes)
    found = sinkhorn_knopp(logits, temperature, ALONE, iterations)
    near(found, torch.tensor(plain_sinkhorn_knopp(logits, temperature, iterations), dtype=torch.double), 1e-8)


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 40), prototypes=st.integers(1, 40), seed=st.integers(0, 2**30), temperature=st.floats(0.2, 2.0)
)
def test_marginals_of_sinkhorn_knopp(rows: int, prototypes: int, seed: int, temperature: float) -> None:
    """Rows are distributions; with enough iterations each prototype gets its even share of them."""
    logits = drawn(seed, rows, prototypes)
    for iterations in (1, 3, 200):
        found = sinkhorn_knopp(logits, temperature, ALONE, iterations)
        assert (found >= 0).all()
        near(found.sum(1), torch.ones(rows, dtype=torch.double))
    near(found.sum(0), torch.full((prototypes,), rows / prototypes, dtype=torch.double), 1e-3)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**30), temperature=st.floats(0.05, 1.0))
def test_sinkhorn_knopp_treats_rows_and_prototypes_alike(seed: int, temperature: float) -> None:
    """Their order changes nothing; nor do constants added to a row, or to everything."""
    logits = drawn(seed, 6, 5)
    found = sinkhorn_knopp(logits, temperature, ALONE)
    random = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(6, generator=random), torch.randperm(5, generator=random)
    near(sinkhorn_knopp(logits[rows][:, columns], temperature, ALONE), found[rows][:, columns])
    near(sinkhorn_knopp(logits + drawn(seed, 6, 1), temperature, ALONE), found, 1e-8)


def test_each_iteration_brings_the_prototypes_closer_to_even_use() -> None:
    logits = drawn(1, 64, 16)
    uneven = [float((sinkhorn_knopp(logits, 0.3, ALONE, n).sum(0) - 4).abs().max()) for n in range(1, 8)]
    assert uneven == sorted(uneven, reverse=True)
    assert uneven[2] < 1
    assert float((torch.softmax(logits / 0.3, 1).sum(0) - 4).abs().max()) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinkhorn_knopp_bears_logits_far_apart(dtype: torch.dtype) -> None:
    """As of prototypes without weight norm: no row or column is lost, and nothing overflows."""
    logits = (300 * drawn(2, 32, 64)).to(dtype)
    logits[:, 7] = -5000
    found = sinkhorn_knopp(logits, 0.04, ALONE)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    near(found.sum(1), torch.ones(32), 1e-5)
    even = sinkhorn_knopp(torch.zeros(8, 4), 0.04, ALONE)
    assert torch.equal(even, torch.full((8, 4), 0.25))


def test_no_row_gives_no_targets() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 4), 0.1, ALONE).shape == (0, 4)


def test_centring_against_a_plain_loop() -> None:
    logits, centre = drawn(3, 5, 7), drawn(4, 7)
    found = centred(logits, centre, 0.07)
    for row, logit in zip(found, logits, strict=True):
        parts = [math.exp((float(x) - float(c)) / 0.07) for x, c in zip(logit, centre, strict=True)]
        near(row, torch.tensor([part / sum(parts) for part in parts], dtype=torch.double))
    assert centred(logits.bfloat16(), centre.float(), 0.07).dtype == torch.float32


# -- cross-entropy -------------------------------------------------------------------------------------------


def plain_soft_cross_entropy(vectors: Tensor, prototypes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=vectors.dtype)
    for views, target in zip(vectors, targets, strict=True):
        for view in views:
            logits = torch.stack([view @ prototype for prototype in prototypes]) / temperature
            total = total - sum(p * (x - logits.logsumexp(0)) for p, x in zip(target, logits, strict=True))
    return total


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(0, 5),
    views=st.integers(1, 3),
    prototypes=st.integers(1, 6),
    seed=st.integers(0, 2**30),
    temperature=st.floats(0.05, 1.0),
    block=st.integers(1, 40),
)
def test_soft_cross_entropy_against_a_plain_loop(
    rows: int, views: int, prototypes: int, seed: int, temperature: float, block: int
) -> None:
    """Value and gradients, whatever the size of the blocks."""
    inputs = [drawn(seed, rows, views, 4).requires_grad_(), drawn(seed + 1, prototypes, 4).requires_grad_()]
    targets = torch.softmax(drawn(seed + 2, rows, prototypes), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "BLOCK_ELEMENTS", block)
        found = soft_cross_entropy(*inputs, targets, temperature)
        slopes = torch.autograd.grad(3 * found, inputs)
    expected = plain_soft_cross_entropy(*inputs, targets, temperature)
    near(found, expected)
    wanted = torch.autograd.grad(3 * expected, inputs) if rows else [torch.zeros_like(x) for x in inputs]
    for one, other in zip(slopes, wanted, strict=True):
        near(one, other)


def test_soft_cross_entropy_in_bf16_keeps_its_statistics_wide() -> None:
    vectors, prototypes = (torch.nn.functional.normalize(drawn(s, 40, 16), dim=-1) for s in (1, 2))
    targets = torch.softmax(drawn(3, 40, 40) * 3, 1).float()
    inputs = [vectors[:, None].bfloat16().requires_grad_(), prototypes.float().requires_grad_()]
    found = soft_cross_entropy(*inputs, targets, 0.1)
    assert found.dtype == torch.float32
    wide = [vectors[:, None].requires_grad_(), prototypes.requires_grad_()]
    expected = soft_cross_entropy(*wide, targets.double(), 0.1)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=2e-3)
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, wide), strict=True):
        assert float((one - other).norm()) < 0.02 * float(other.norm())


def test_without_gradients_none_is_made() -> None:
    frozen = torch.ones(3, 2, dtype=torch.double)
    vectors = drawn(1, 4, 1, 2).requires_grad_()
    targets = torch.full((4, 3), 1 / 3, dtype=torch.double)
    soft_cross_entropy(vectors, frozen, targets, 0.1).backward()
    assert frozen.grad is None
    assert vectors.grad is not None
    with torch.no_grad():
        assert not soft_cross_entropy(vectors, frozen, targets, 0.1).requires_grad


def test_equal_logits_cost_chance() -> None:
    targets = torch.softmax(drawn(1, 6, 9), 1)
    found = soft_cross_entropy(torch.zeros(6, 2, 4).double(), drawn(2, 9, 4), targets, 0.1)
    assert float(found) == pytest.approx(12 * math.log(9))


# -- KoLeo ---------------------------------------------------------------------------------------------------


def plain_koleo(features: Tensor) -> Tensor:
    total = torch.zeros((), dtype=features.dtype)
    for i, one in enumerate(features):
        distances = [(one / one.norm() - other / other.norm()).norm() for j, other in enumerate(features) if j != i]
        total = total - torch.log(torch.stack(distances).min())
    return total


@settings(deadline=None, max_examples=50)
@given(count=st.integers(2, 9), seed=st.integers(0, 2**30))
def test_koleo_against_a_plain_loop(count: int, seed: int) -> None:
    features = drawn(seed, count, 4).requires_grad_()
    found, expected = koleo(features, ALONE), plain_koleo(features)
    near(found, expected, 1e-7)
    near(*(torch.autograd.grad(value, features)[0] for value in (found, expected)), 1e-6)


def test_koleo_is_lowest_where_features_are_spread() -> None:
    corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    crowded = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [1, 0.3]])
    assert float(koleo(corners, ALONE)) < float(koleo(crowded, ALONE))
    near(koleo(100 * crowded, ALONE), koleo(crowded, ALONE), 1e-5)


def test_koleo_bears_equal_features_and_single_ones() -> None:
    """Equal ones have no direction to be driven in; a single one has no neighbour."""
    for features in (torch.ones(3, 4), torch.ones(1, 4), torch.ones(0, 4)):
        value = koleo(features.requires_grad_(), ALONE)
        value.backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        assert value.isfinite()
    assert koleo(torch.ones(3, 4, dtype=torch.bfloat16), ALONE).dtype == torch.float32


# -- figures -------------------------------------------------------------------------------------------------


def test_prototypes_in_use() -> None:
    """Of as many as there can be: rows, or prototypes."""
    rows = torch.tensor([0, 1, 1, 0])
    assert float(in_use(torch.nn.functional.one_hot(rows, 10).float(), ALONE)) == 0.5
    assert float(in_use(torch.nn.functional.one_hot(rows, 2).float(), ALONE)) == 1
    assert float(in_use(torch.full((64, 4), 0.25), ALONE)) == 0.25
