"""Muon and AdamW against torch's own, who belongs to which, their state, and the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selfsup.config import OptimConfig
from selfsup.errors import UserError
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.objectives.base import Objective
from selfsup.objectives.causal_lm import CausalLM
from selfsup.optim import Decay, Muon, Optimizer, Schedule, orthogonalize

SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (16, 16), "row": (1, 12), "column": (12, 1)}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- Muon ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (16, 16), (4, 64)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.stack([random(*shape, seed=seed) for seed in range(5)])
    found = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert found.min() > 0.5
    assert found.max() < 1.3


def test_orthogonalize_keeps_the_directions() -> None:
    """U Vᵀ of the singular value decomposition, up to the singular values that stay near one."""
    matrix = random(12, 20)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalize(matrix[None])[0].float() @ v.T
    off_diagonal = turned - turned.diag().diag()
    assert off_diagonal.abs().max() < 0.05
    assert turned.diag().min() > 0.5


def test_orthogonalize_takes_a_zero_matrix() -> None:
    assert not orthogonalize(torch.zeros(1, 4, 6)).any()


def torch_muon(parameters: list[nn.Parameter], lr: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.Muon(parameters, lr=lr, momentum=momentum, weight_decay=decay, adjust_lr_fn="match_rms_adamw")


def follow(ours: list[nn.Parameter], theirs: list[nn.Parameter], decay: float, momentum: float = 0.95) -> None:
    """Ten steps of both on the same random gradients; theirs see everything as matrices."""
    lr = 0.02
    mine = Muon(ours, lr, decay, momentum)
    other = torch_muon(theirs, lr, momentum, decay)
    for step in range(10):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = random(*a.shape, seed=100 * step + number)
            b.grad = a.grad.reshape(b.shape).clone()
        mine.step(1.0)
        other.step()
        for a, b in zip(ours, theirs, strict=True):
            # The iteration runs in bf16, so products in another order move an update's entries by a few 2^-8 of
            # themselves, which are about lr · 0.2 in size.
            error = (a.detach().reshape(b.shape) - b.detach()).abs().max()
            assert error < (step + 1) * lr * 0.2 * 0.02, f"step {step}"


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_muon_equals_torch(shape: tuple[int, int], decay: float) -> None:
    start = random(*shape, seed=7)
    follow([nn.Parameter(start.clone())], [nn.Parameter(start.clone())], decay)


def test_a_batch_of_equal_shapes_equals_torch_one_by_one() -> None:
    shapes = [(8, 12), (12, 8), (8, 12), (12, 8), (8, 12)]
    starts = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    follow([nn.Parameter(s.clone()) for s in starts], [nn.Parameter(s.clone()) for s in starts], 0.1)


def test_how_a_convolution_lies_in_memory_changes_nothing() -> None:
    start, gradient = random(8, 4, 3, 3), random(8, 4, 3, 3, seed=1)
    plain = nn.Parameter(start.clone())
    spread = nn.Parameter(start.clone(memory_format=torch.channels_last))
    for parameter in (plain, spread):
        parameter.grad = gradient.clone(memory_format=torch.preserve_format)
        Muon([parameter], 0.1, 0.1, 0.9).step(1.0)
    assert not plain.equal(start)
    assert spread.equal(plain)


def test_a_convolution_is_a_matrix_of_its_filters() -> None:
    start = random(8, 3, 5, 5)
    follow([nn.Parameter(start.clone())], [nn.Parameter(start.flatten(1).clone())], 0.1)


def test_without_momentum_and_gradient_nothing_but_what_has_one_moves() -> None:
    moving, still = nn.Parameter(random(4, 6)), nn.Parameter(random(4, 6))
    before = still.detach().clone()
    moving.grad = random(4, 6, seed=1)
    Muon([moving, still], 0.1, 0.5, 0.9).step(1.0)
    assert torch.equal(still, before)


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_an_update_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    """Root mean square 0.2 for any shape (Liu et al. 2025, eq. 4), up to the spread of the singular values."""
    parameter = nn.Parameter(torch.zeros(shape))
    parameter.grad = random(*shape)
    Muon([parameter], 1.0, 0.0, 0.95).step(1.0)
    assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


# -- the optimizer of an objective ---------------------------------------------------------------------------


class Bare(Objective):
    """Modules and nothing else."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    hide = predict = score = None  # type: ignore[assignment]


class Weights(Objective):
    """Nothing but a parameter."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter

    hide = predict = score = None  # type: ignore[assignment]


def bare() -> Bare:
    torch.manual_seed(0)
    return Bare(
        embedding=nn.Embedding(7, 6),
        linear=nn.Linear(6, 8),
        convolution=nn.Conv2d(3, 4, 2),
        norm=nn.LayerNorm(6),
        frozen=nn.Linear(3, 3).requires_grad_(False),
    )


def config(**values: object) -> OptimConfig:
    return OptimConfig(**{"lr": 0.02, "adamw_lr": 0.003, "weight_decay": 0.1} | values)


def places(optimizer: Optimizer) -> dict[str, tuple[str, float, float]]:
    """Of each parameter: its optimizer, learning rate and weight decay."""
    return {
        optimizer.names[parameter]: (type(part).__name__, part.lr, part.weight_decay)
        for part in optimizer.parts
        for parameter in part.parameters
    }


def fill_gradients(objective: nn.Module, seed: int) -> None:
    for number, parameter in enumerate(objective.parameters()):
        if parameter.requires_grad:
            parameter.grad = random(*parameter.shape, seed=1000 * seed + number)


def test_who_belongs_where() -> None:
    muon, adamw, bias = ("Muon", 0.02, 0.1), ("AdamW", 0.003, 0.1), ("AdamW", 0.003, 0.0)
    assert places(Optimizer(bare(), config())) == {
        "embedding.weight": adamw,
        "linear.weight": muon,
        "linear.bias": bias,
        "convolution.weight": muon,
        "convolution.bias": bias,
        "norm.weight": bias,
        "norm.bias": bias,
    }


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_of_a_decoder_belong_to_adamw(tied: bool) -> None:
    decoder = Decoder(DecoderConfig(11, 1, 8, 2, 1, 4, 16, 8, tied))
    found = places(Optimizer(CausalLM(decoder, 0, 0), config()))
    muon = {name for name, (kind, *_) in found.items() if kind == "Muon"}
    expected = {name for name in found if "_proj" in name}
    assert muon == expected
    assert len(expected) == 7
    assert ("model.lm_head.weight" in found) != tied
    for name, (_, _, decay) in found.items():
        assert (decay == 0) == ("norm" in name)


def test_adamw_for_everything_has_the_learning_rate_of_the_matrices_for_them() -> None:
    found = places(Optimizer(bare(), config(matrices="adamw")))
    assert found["linear.weight"] == ("AdamW", 0.02, 0.1)
    assert found["embedding.weight"] == ("AdamW", 0.003, 0.1)


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_adamw_part_equals_torch(matrices: str) -> None:
    ours, theirs = bare(), bare()
    optimizer = Optimizer(ours, config(matrices=matrices, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3))
    named = dict(theirs.named_parameters())
    table = places(optimizer)
    groups = [
        {"params": [named[name]], "lr": lr, "weight_decay": decay}
        for name, (kind, lr, decay) in table.items()
        if kind == "AdamW"
    ]
    assert len(groups) >= 5
    plain = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6, fused=False, foreach=False)
    for step in range(6):
        multiplier = 1.0 - step / 10
        fill_gradients(ours, step)
        fill_gradients(theirs, step)
        for group, (_, lr, _) in zip(plain.param_groups, (t for t in table.values() if t[0] == "AdamW"), strict=True):
            group["lr"] = lr * multiplier
        optimizer.step(multiplier)
        plain.step()
    mine = dict(ours.named_parameters())
    for name, (kind, *_) in table.items():
        if kind == "AdamW":
            torch.testing.assert_close(mine[name], named[name], rtol=1e-5, atol=1e-6)


def test_a_step_at_zero_changes_nothing_and_empties_the_gradients() -> None:
    objective = bare()
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    optimizer = Optimizer(objective, config())
    fill_gradients(objective, 0)
    optimizer.step(0.0)
    assert optimizer.lr == 0
    for name, parameter in objective.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_clip_scales_the_joint_norm() -> None:
    objective = bare()
    optimizer = Optimizer(objective, config())
    fill_gradients(objective, 0)
    gradients = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert optimizer.clip(0.5) == pytest.approx(float(norm))
    clipped = [p.grad for p in objective.parameters() if p.grad is not None]
    for gradient, now in zip(gradients, clipped, strict=True):
        torch.testing.assert_close(now, gradient * 0.5 / norm)
    assert optimizer.clip(10.0) == pytest.approx(0.5)
    assert all(torch.equal(a, p.grad) for a, p in zip(clipped, optimizer.names, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_clip_leaves_gradients_that_are_no_numbers_as_they_are(value: float) -> None:
    """So that the parameter to blame can be named."""
    objective = bare()
    optimizer = Optimizer(objective, config())
    fill_gradients(objective, 0)
    objective.linear.weight.grad[1, 2] = value
    gradients = [parameter.grad.clone() for parameter in optimizer.names]
    assert not math.isfinite(optimizer.clip(0.5))
    for gradient, parameter in zip(gradients, optimizer.names, strict=True):
        assert torch.equal(gradient.nan_to_num(nan=7.0), parameter.grad.nan_to_num(nan=7.0))


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_state_round_trip_is_exact(matrices: str) -> None:
    first, second = bare(), bare()
    one = Optimizer(first, config(matrices=matrices))
    for step in range(3):
        fill_gradients(first, step)
        one.step(0.7)
    state = {name: tensor.clone() for name, tensor in one.state().items()}
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    second.load_state_dict(first.state_dict())
    two = Optimizer(second, config(matrices=matrices))
    two.load_state(state)
    assert two.state().keys() == state.keys()
    for step in range(3, 6):
        for objective, optimizer in ((first, one), (second, two)):
            fill_gradients(objective, step)
            optimizer.step(0.5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(tensor, two.state()[name]) for name, tensor in one.state().items())


def test_an_objective_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="no parameter that can be trained"):
        Optimizer(Bare(frozen=nn.Linear(2, 2).requires_grad_(False)), config())


# -- the average of the weights ------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.01, 0.9), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_average_is_that_of_a_plain_loop(share: float, steps: int, seed: int) -> None:
    """And its parts add up to one: that of update t is what t's share leaves of it in all later ones."""
    parameter = nn.Parameter(random(3, 2))
    objective = Weights(parameter)
    optimizer = Optimizer(objective, config(average=share))
    met = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            parameter.copy_(random(3, 2, seed=100 * seed + step))
        met.append(parameter.detach().clone())
        optimizer.average(step)
    parts = [min(1.0, 1 / (share * step)) for step in range(1, steps + 1)]
    left = [part * math.prod(1 - later for later in parts[n + 1 :]) for n, part in enumerate(parts)]
    assert sum(left) == pytest.approx(1.0)
    expected = sum(part * weights for part, weights in zip(left, met, strict=True))
    with optimizer.averaged():
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(parameter, met[-1])
    optimizer.keep_averages()
    torch.testing.assert_close(parameter.detach(), expected)
    with optimizer.averaged():
        torch.testing.assert_close(parameter.detach(), expected)


def test_averages_are_part_of_the_state() -> None:
    """A parameter that rests has an average and no moments; without the setting there are none, and none are taken."""
    objective, other = bare(), bare()
    optimizer = Optimizer(objective, config(average=0.3))
    for step in range(3):
        fill_gradients(objective, step)
        objective.embedding.weight.grad = None
        optimizer.step(1.0)
        optimizer.average(step + 1)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert {name for name in state if name.startswith("embedding.weight")} == {"embedding.weight.average"}
    again = Optimizer(other, config(average=0.3))
    assert again.misfit(state) is None
    again.load_state(state)
    other.load_state_dict(objective.state_dict())
    for mine in (optimizer, again):
        fill_gradients(objective if mine is optimizer else other, 7)
        mine.step(0.5)
        mine.average(4)
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in optimizer.state().items())
    assert "average is unknown" in str(Optimizer(bare(), config()).misfit(state))
    del state["linear.weight.average"]
    assert again.misfit(state) == "linear.weight.average is missing"
    assert not any(name.endswith("average") for name in Optimizer(bare(), config()).state())


# -- the schedule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup", "start", "end"), [(0, 5, 10), (4, 10, 30), (10, 10, 11), (3, 20, 1000)])
def test_warm_up_plateau_and_decay_against_a_plain_loop(warmup: int, start: int, end: int) -> None:
    schedule = Schedule(warmup, [Decay(start, end)])
    for step in range(end + 5):
        expected = (step + 1) / (warmup + 1) if step < warmup else 1.0
        if step >= start:
            expected = max(0.0, (end - step) / (end - start))
        assert schedule.multiplier(step) == pytest.approx(expected, abs=1e-12)
    assert schedule.end == end


def test_before_the_decay_is_decided_the_plateau_goes_on() -> None:
    schedule = Schedule(2)
    assert [schedule.multiplier(step) for step in (0, 1, 2, 10**6)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert schedule.end is None


def test_a_run_that_decays_from_its_start_is_warmed_up_all_the_same() -> None:
    """optim.decay=1: both factors at once, so the peak comes where the warm-up ends."""
    schedule = Schedule(10, [Decay(0, 100)])
    values = [schedule.multiplier(step) for step in range(100)]
    assert values[0] == pytest.approx(1 / 11)
    assert max(values) == values[10] == pytest.approx(0.9)


@st.composite
def decisions(draw: st.DrawFn) -> tuple[int, list[Decay]]:
    """A warm-up, and decays each decided while the one before it goes on."""
    warmup = draw(st.integers(0, 20))
    start = draw(st.integers(0, 60))
    decays = [Decay(start, start + draw(st.integers(1, 80)))]
    for _ in range(draw(st.integers(0, 5))):
        latest = decays[-1]
        start = draw(st.integers(latest.start, latest.end - 1))
        decays.append(Decay(start, start + draw(st.integers(1, 80))))
    return warmup, decays


@settings(max_examples=200, deadline=None)
@given(decisions())
def test_every_decision_takes_over_from_where_the_last_one_stood(made: tuple[int, list[Decay]]) -> None:
    warmup, decays = made
    schedule = Schedule(warmup, decays)
    for number, decay in enumerate(decays):
        before, after = Schedule(warmup, decays[:number]), Schedule(warmup, decays[: number + 1])
        for step in range(decay.start + 1):  # nothing that has been done is changed
            assert after.multiplier(step) == pytest.approx(before.multiplier(step), abs=1e-12)
        assert after.multiplier(decay.end) == 0
    end = decays[-1].end
    values = [schedule.multiplier(step) for step in range(end + 3)]
    assert all(0 <= value <= 1 for value in values)
    assert all(value > 0 for value in values[:end])
    assert values[end:] == [0, 0, 0]
    falling = values[max(warmup, decays[0].start) :]
    assert falling == sorted(falling, reverse=True)


@settings(max_examples=100, deadline=None)
@given(decisions())
def test_the_latest_decay_is_a_straight_line(made: tuple[int, list[Decay]]) -> None:
    warmup, decays = made
    latest = decays[-1]
    schedule = Schedule(warmup, decays)
    top = schedule.multiplier(latest.start)
    if latest.start < warmup:
        return
    for step in range(latest.start, latest.end + 1):
        share = (latest.end - step) / (latest.end - latest.start)
        assert schedule.multiplier(step) == pytest.approx(top * share, abs=1e-12)
