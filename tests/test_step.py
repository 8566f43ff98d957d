"""The gradient of a step against plain autograd, on an objective with uneven numbers of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.objectives.base import Collectives, Objective, Outputs, Task, join_tensors
from selfsup.seeding import generator
from selfsup.step import evaluate, gradients

ALONE = Processes.alone()
SLOTS = 6  # predictions that a record may ask for


class Uneven(Objective):
    """Regression of up to six numbers per record, with a squared term over some and an absolute over others."""

    weights: ClassVar[dict[str, float]] = {"absolute": 0.3}

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, SLOTS))
        self.double()
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(0, "weights", number)))

    def hide(self, batch: Batch) -> Task:
        squared, absolute = batch.data["squared"], batch.data["absolute"]
        return Task(dict(batch.data), {"squared": squared.sum(), "absolute": absolute.sum()})

    def predict(self, task: Task) -> Outputs:
        return {"y": self.network(task["x"])}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        error = outputs["y"] - task["y"]
        return {"squared": (error.square() * task["squared"]).sum(), "absolute": (error.abs() * task["absolute"]).sum()}


class Joined(Uneven):
    """The same, cut through gradient caching."""

    separable: ClassVar[bool] = False


def record(number: int) -> dict[str, Tensor]:
    """Record `number` asks for number % 7 squared predictions and (3 · number) % 5 absolute ones."""
    random = generator(1, "record", number)
    return {
        "x": torch.randn(1, 4, generator=random, dtype=torch.double),
        "y": torch.randn(1, SLOTS, generator=random, dtype=torch.double),
        "squared": torch.arange(SLOTS)[None] < number % 7,
        "absolute": torch.arange(SLOTS)[None] < 3 * number % 5,
    }


def batch_of(records: Sequence[int]) -> Batch:
    data = join_tensors([record(number) for number in records])
    indices = np.array(records)
    return Batch(data, 0, np.zeros_like(indices), indices)


def plain_loss(objective: Uneven, records: Sequence[int]) -> dict[str, Tensor]:
    """Prediction by prediction."""
    squared, absolute = [], []
    for number in records:
        one = record(number)
        y = objective.network(one["x"])
        for slot in range(SLOTS):
            if slot < number % 7:
                squared.append((y[0, slot] - one["y"][0, slot]) ** 2)
            if slot < 3 * number % 5:
                absolute.append((y[0, slot] - one["y"][0, slot]).abs())
    terms = {"squared": torch.stack(squared).mean(), "absolute": torch.stack(absolute).mean()}
    return {"loss": terms["squared"] + 0.3 * terms["absolute"], **terms}


def gradients_of(objective: Objective) -> list[Tensor]:
    return [parameter.grad for parameter in objective.parameters()]


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), min_size=1, max_size=4),
    kind=st.sampled_from([Uneven, Joined]),
)
def test_any_micro_batches_equal_the_plain_loss(parts: list[list[int]], kind: type[Uneven]) -> None:
    parts = [*parts, [1, 2]]  # some prediction of each term
    expected_objective, objective = kind(), kind()
    expected = plain_loss(expected_objective, [number for part in parts for number in part])
    expected["loss"].backward()
    figures = gradients(objective, [batch_of(part) for part in parts], ALONE)
    assert figures.keys() == expected.keys()
    for term in expected:
        torch.testing.assert_close(figures[term], expected[term].detach(), rtol=1e-12, atol=1e-12)
        assert not figures[term].requires_grad
    for ours, theirs in zip(gradients_of(objective), gradients_of(expected_objective), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [Uneven, Joined])
@pytest.mark.parametrize("parts", [[[0]], [[0], [0, 35]]])
def test_a_step_in_which_nothing_is_hidden_costs_nothing(kind: type[Uneven], parts: list[list[int]]) -> None:
    objective = kind()
    figures = gradients(objective, [batch_of(part) for part in parts], ALONE)
    assert all(float(value) == 0 for value in figures.values())
    assert all(not gradient.any() for gradient in gradients_of(objective))


def test_gradients_are_added_to_those_that_are_there() -> None:
    """What the caller must empty, and a plain backward pass would do too."""
    once, twice = Uneven(), Uneven()
    gradients(once, [batch_of([1, 2])], ALONE)
    for _ in range(2):
        gradients(twice, [batch_of([1, 2])], ALONE)
    for one, two in zip(gradients_of(once), gradients_of(twice), strict=True):
        torch.testing.assert_close(two, 2 * one)


@pytest.mark.parametrize("kind", [Uneven, Joined])
def test_dropout_leaves_the_global_generator_alone(kind: type[Uneven]) -> None:
    batches = [batch_of([1, 2]), batch_of([3, 4, 5])]
    found = []
    for state in (1, 2):
        objective = kind(dropout=0.5).train()
        torch.manual_seed(state)
        before = torch.get_rng_state()
        gradients(objective, batches, ALONE)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(gradients_of(objective))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_dropout_differs_between_epochs_and_records() -> None:
    objective = Uneven(dropout=0.5).train()
    first = batch_of([1, 2])
    later = Batch(first.data, first.seed, first.epochs + 1, first.records)
    elsewhere = Batch(first.data, first.seed, first.epochs, first.records + 1)
    losses = {float(gradients(objective, [batch], ALONE)["loss"]) for batch in (first, later, elsewhere)}
    assert len(losses) == 3


# -- evaluation ----------------------------------------------------------------------------------------------

RECORDS = [5, 1, 2, 9, 30, 14, 0, 3]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_evaluation_does_not_depend_on_the_batches(size: int) -> None:
    objective = Uneven().eval()
    batches = [batch_of(RECORDS[start : start + size]) for start in range(0, len(RECORDS), size)]
    figures = evaluate(objective, batches, ALONE)
    expected = plain_loss(objective, RECORDS)
    assert figures == {term: pytest.approx(float(value.detach()), rel=1e-12) for term, value in expected.items()}


def test_evaluation_weighs_the_parts_of_other_processes_by_their_counts() -> None:
    """Two processes that hold uneven parts, one of which has no record of one term."""
    objective = Uneven().eval()

    class TwoProcesses(Processes):
        def collect(self, value: object) -> list[object]:
            return [value, theirs]

    theirs = ({"squared": 5.0}, {"squared": 2.0})
    mine = plain_loss(objective, RECORDS)
    counts = batch_of(RECORDS).data["squared"].sum()
    figures = evaluate(objective, [batch_of(RECORDS)], TwoProcesses.alone())
    squared = (float(mine["squared"].detach()) * int(counts) + 5) / (int(counts) + 2)
    assert figures["squared"] == pytest.approx(squared, rel=1e-12)
    assert figures["absolute"] == pytest.approx(float(mine["absolute"].detach()), rel=1e-12)


def test_evaluation_leaves_no_gradient() -> None:
    objective = Uneven().eval()
    evaluate(objective, [batch_of(RECORDS)], ALONE)
    assert all(gradient is None for gradient in gradients_of(objective))


def test_running_statistics_count_once_though_batches_are_predicted_twice() -> None:
    """Of batch normalisation; a separable objective predicts once, a coupled one twice, through gradient caching."""
    averages = []
    for kind in (Uneven, Joined):
        objective = kind()
        objective.network.insert(0, nn.BatchNorm1d(4).double())
        gradients(objective, [batch_of([0, 1, 2]), batch_of([3, 4, 5])], ALONE)
        norm = objective.network[0]
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.momentum == 0.1
        averages.append(norm.running_mean)
    assert averages[0] is not None
    torch.testing.assert_close(averages[0], averages[1])
    assert averages[0].abs().max() > 0
