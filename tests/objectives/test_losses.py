"""Linear + cross-entropy in chunks against the plain loss on full logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.models import losses
from selfsup.models.losses import IGNORE, linear_cross_entropy, token_losses


def example(n: int, width: int, vocabulary: int, dtype: torch.dtype, seed: int = 0, ignored: float = 0.3):
    """Hidden states, weights and targets, of which a share is ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, width, generator=generator, dtype=torch.double)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.double)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < ignored] = IGNORE
    return hidden.to(dtype), weight.to(dtype), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="sum")


def with_gradients(loss, hidden: Tensor, weight: Tensor, targets: Tensor, factor: float = 1.0):
    """The loss, and its gradients where something stands behind it that scales them."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = loss(hidden, weight, targets)
    (value * factor).backward()
    return value.detach(), hidden.grad, weight.grad


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 20),
    width=st.integers(1, 6),
    vocabulary=st.integers(1, 12),
    chunk=st.integers(1, 200),
    block=st.integers(1, 200),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_plain_loss_for_any_sizes_and_chunks(
    n: int, width: int, vocabulary: int, chunk: int, block: int, ignored: float, seed: int
) -> None:
    inputs = example(n, width, vocabulary, torch.double, seed, ignored)
    expected = with_gradients(plain, *inputs, factor=0.37)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK_ELEMENTS", chunk)
        patch.setattr(losses, "BLOCK_ELEMENTS", block)
        found = with_gradients(linear_cross_entropy, *inputs, factor=0.37)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 6, 7, 8, 9, 49, 50, 51])
def test_chunk_borders(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = example(50, 4, 8, torch.double)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", rows * 8)
    for ours, theirs in zip(with_gradients(linear_cross_entropy, *inputs), with_gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_logits_far_apart_cost_what_they_should() -> None:
    """−log p is right where p itself is too small for a number."""
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([[500.0], [-500.0], [0.0]])
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, 0]))
    torch.testing.assert_close(loss, torch.tensor(1000.0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precisions_stay_near_fp64(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured against the exact loss of the rounded inputs, relative to the largest entry."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 64 * 20)
    hidden, weight, targets = example(200, 16, 64, dtype)
    expected = with_gradients(plain, hidden.double(), weight.double(), targets)
    found = with_gradients(linear_cross_entropy, hidden, weight, targets)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == found[2].dtype == dtype
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_fp32_weights_with_bf16_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision: the products run in bf16, the weights' gradient is added up in fp32."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 64 * 20)
    hidden, weight, targets = example(200, 16, 64, torch.float32)
    hidden, weight = hidden.bfloat16(), weight.bfloat16().float()
    expected = with_gradients(plain, hidden.double(), weight.double(), targets)
    found = with_gradients(linear_cross_entropy, hidden, weight, targets)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.bfloat16, torch.float32]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).abs().max() <= 2e-2 * theirs.abs().max()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = example(10, 4, 8, torch.float32)
    hidden = hidden * 1e4
    for tensor in with_gradients(linear_cross_entropy, hidden, weight, targets):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_only_one_input_needs_a_gradient(wanted: str) -> None:
    hidden, weight, targets = example(30, 4, 8, torch.double)
    _, *expected = with_gradients(plain, hidden, weight, targets)
    inputs = {"hidden": hidden, "weight": weight}
    inputs[wanted].requires_grad_()
    linear_cross_entropy(hidden, weight, targets).backward()
    other = "weight" if wanted == "hidden" else "hidden"
    assert inputs[other].grad is None
    torch.testing.assert_close(inputs[wanted].grad, dict(zip(inputs, expected, strict=True))[wanted])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same value, and none of the work that only gradients need."""
    hidden, weight, targets = example(30, 4, 8, torch.double)
    expected = plain(hidden, weight, targets)
    monkeypatch.setattr(Tensor, "scatter_add_", None)  # where the gradient starts
    with context():
        value = linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert not value.requires_grad
    torch.testing.assert_close(value.clone(), expected)


def test_inputs_are_left_alone() -> None:
    inputs = example(30, 4, 8, torch.double)
    copies = [tensor.clone() for tensor in inputs]
    with_gradients(linear_cross_entropy, *inputs)
    linear_cross_entropy(*inputs)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_token_losses_are_the_loss_of_each_target() -> None:
    hidden, weight, targets = example(12, 4, 8, torch.float32)
    logits = (hidden @ weight.T).view(3, 4, 8)
    found = token_losses(logits, targets.view(3, 4))
    expected = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0).view(3, 4, 1)).squeeze(-1)
    expected[targets.view(3, 4) == IGNORE] = 0
    torch.testing.assert_close(found, expected)
    assert token_losses(logits.bfloat16(), targets.view(3, 4)).dtype == torch.float32
