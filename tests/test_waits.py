"""The steps of a training between two log lines: where the host would wait for an accelerator, of every objective.

No accelerator is needed: see `waits.py`. What waits today is named here, and in docs/scale.md; a new place fails, and
so does one that is named and waits no more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from waits import DEVICE, OnDevice, Waits, to_device

sys.path.insert(0, str(Path(__file__).parent / "contract"))
from objectives import CASES
from suite import LR, SEED, Split

from selfsup.config import OptimConfig
from selfsup.distributed import Processes
from selfsup.optim import Optimizer
from selfsup.step import gradients

CONFIG = OptimConfig(lr=LR, adamw_lr=LR, weight_decay=0.1)
NORM = "optim.py clip"  # the gradient's norm is read once in a step, as the loss is by the trainer


@pytest.mark.parametrize("name", CASES)
def test_where_a_step_waits_for_the_device(name: str) -> None:
    case = CASES[name]
    objective = case.build(SEED).train()
    waits = Waits()
    with waits:
        to_device(objective)
        optimizer = Optimizer(objective, CONFIG, torch.float64)
        steps = Split(6, 3).loader(case, Processes.alone()).steps(0)
        for step in range(2):
            batches = [batch.to(DEVICE) for batch in next(steps)]
            gradients(objective, batches, Processes.alone())
            optimizer.clip(1.0)
            optimizer.step(1.0)
            objective.after_step(step, 2)
    assert set(waits.found) == {NORM}
    assert waits.found[NORM] == 2


def test_the_device_sees_reads() -> None:
    with (waits := Waits()):
        numbers = torch.arange(4, device=DEVICE)
        assert isinstance(numbers, OnDevice)
        assert isinstance(torch.ones(4).to(DEVICE), OnDevice)
        doubled = 2 * numbers + torch.tensor(1)
        assert isinstance(doubled, OnDevice)
        assert not waits.found
        reads = [
            lambda: doubled[0].item(),
            lambda: bool((doubled > 3).any()),
            lambda: doubled[doubled > 3],
            lambda: doubled.nonzero(),
            lambda: doubled.unique(),
            lambda: doubled.cpu(),
            lambda: torch.empty(4, dtype=torch.int64).copy_(doubled),
        ]
        for read in reads:
            before = waits.found.total()
            read()
            assert waits.found.total() > before
    assert doubled.held.tolist() == [1, 3, 5, 7]
