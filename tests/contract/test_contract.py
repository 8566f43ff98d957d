"""Every objective keeps the contract: the spine may cut its records as it likes, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from objectives import CASES
from safetensors.torch import load_file
from suite import (
    RECORDS,
    SEED,
    Case,
    Split,
    assert_equal,
    batch_of,
    batches_of_step,
    descend,
    held_out,
    one_step,
    plain_gradients,
    tasks_by_record,
    total_counts,
    train,
)
from torch import Tensor
from worker import SPLITS

from selfsup.data.records import Batch
from selfsup.distributed import Processes

TOLERANCE = 1e-10
TRAINED = 1e-9  # after 20 steps
ALONE = Processes.alone()
WORKER = Path(__file__).with_name("worker.py")
SHARED = ("causal-lm", "simcse", "two-views")  # by two processes in `make test` too


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test is that of every case; most of what two processes share is long."""
    long = CASES.keys() - SHARED if "two_processes" in metafunc.fixturenames else ()
    marks = {name: [pytest.mark.long] for name in long}
    cases = [pytest.param(case, id=name, marks=marks.get(name, ())) for name, case in CASES.items()]
    metafunc.parametrize("case", cases)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of two processes that torchrun started found for the cases that are asked for."""
    directory = tmp_path_factory.mktemp("contract")
    asked = [item for item in request.session.items if "two_processes" in getattr(item, "fixturenames", ())]
    names = dict.fromkeys(item.callspec.params["case"].name for item in asked)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(WORKER), str(directory), *names],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [load_file(directory / f"rank{rank}.safetensors") for rank in (0, 1)]


@cache
def step_alone(case: Case, batch: int) -> dict[str, Tensor]:
    """One step in one process and one micro-batch."""
    return one_step(case, Split(batch, batch), ALONE)


@cache
def descent_alone(case: Case, batch: int) -> dict[str, Tensor]:
    return descend(case, Split(batch, batch), ALONE)


def found(tensors: dict[str, Tensor], case: Case, comparison: str) -> dict[str, Tensor]:
    prefix = f"{case.name}/{comparison}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


# -- one step ------------------------------------------------------------------------------------------------


def test_every_parameter_has_a_gradient(case: Case) -> None:
    """Without which the comparisons below would prove little."""
    step = step_alone(case, 6)
    for name, gradient in step.items():
        assert gradient.dtype == torch.float64
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-6, name


@pytest.mark.parametrize("batch", [5, 6])
def test_one_micro_batch_equals_the_plain_loss(case: Case, batch: int) -> None:
    batches = batches_of_step(case, Split(batch, batch), ALONE)
    assert_equal(step_alone(case, batch), plain_gradients(case.build(SEED), batches), TOLERANCE)


@pytest.mark.parametrize(("batch", "micro_batch"), [(6, 1), (6, 2), (6, 3), (6, 4), (6, 5), (5, 2), (5, 9)])
def test_micro_batches_change_no_gradient(case: Case, batch: int, micro_batch: int) -> None:
    expected = step_alone(case, batch)
    assert_equal(one_step(case, Split(batch, micro_batch), ALONE), expected, TOLERANCE)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_processes_change_no_gradient(case: Case, split: Split, two_processes: list[dict[str, Tensor]]) -> None:
    expected = step_alone(case, split.batch)
    for tensors in two_processes:
        step = found(tensors, case, f"one_step.{split.batch}.{split.micro_batch}")
        assert_equal(step, expected, TOLERANCE)


# -- twenty steps --------------------------------------------------------------------------------------------


def test_descent_moves_every_weight(case: Case) -> None:
    start, end = case.build(SEED).state_dict(), descent_alone(case, 6)
    for name in start:
        moved = float((start[name] - end[name]).abs().max())
        assert moved == 0 if name in case.still else moved > 1e-4, name


@pytest.mark.parametrize(("batch", "micro_batch"), [pytest.param(6, 1, marks=pytest.mark.long), (6, 4), (5, 2)])
def test_micro_batches_change_no_training(case: Case, batch: int, micro_batch: int) -> None:
    expected = descent_alone(case, batch)
    assert_equal(descend(case, Split(batch, micro_batch), ALONE), expected, TRAINED)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_processes_change_no_training(case: Case, split: Split, two_processes: list[dict[str, Tensor]]) -> None:
    expected = descent_alone(case, split.batch)
    first, second = (found(tensors, case, f"descend.{split.batch}.{split.micro_batch}") for tensors in two_processes)
    assert_equal(first, expected, TRAINED)
    assert_equal(first, second)


def test_processes_change_no_evaluation(case: Case, two_processes: list[dict[str, Tensor]]) -> None:
    expected = held_out(case, ALONE)
    for tensors in two_processes:
        assert_equal(found(tensors, case, "held_out"), expected, TOLERANCE)


def test_batches_change_no_evaluation_of_a_separable_objective(case: Case) -> None:
    if not case.build(SEED).separable:
        pytest.skip("records meet in the score")
    assert_equal(held_out(case, ALONE), held_out(case, ALONE, RECORDS), TOLERANCE)


# -- dropout -------------------------------------------------------------------------------------------------


def test_dropout_is_the_same_whatever_was_drawn_before(case: Case) -> None:
    if case.with_dropout is None:
        pytest.skip("no dropout")
    steps = []
    for state in (1, 2):
        torch.manual_seed(state)
        steps.append(one_step(case, Split(6, 4), ALONE, case.with_dropout(SEED)))
    assert_equal(*steps)
    assert not torch.equal(steps[0]["loss"], one_step(case, Split(6, 4), ALONE)["loss"])  # there is some


@pytest.mark.parametrize("micro_batch", [2, 4])
def test_caching_repeats_the_dropout_of_the_first_pass(case: Case, micro_batch: int) -> None:
    """Dropout depends on the split (it is drawn once per micro-batch); for one split there is one gradient."""
    if case.with_dropout is None:
        pytest.skip("no dropout")
    split = Split(6, micro_batch)
    plain = plain_gradients(case.with_dropout(SEED).train(), batches_of_step(case, split, ALONE))
    assert_equal(one_step(case, split, ALONE, case.with_dropout(SEED)), plain, TOLERANCE)


# -- killed and resumed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [(7, 13), *(pytest.param((at,), marks=pytest.mark.long) for at in (1, 19))])
def test_resuming_is_exact(case: Case, kills: tuple[int, ...], tmp_path: Path) -> None:
    """Bit for bit, from any step, with any number of workers, whatever a fresh build would start from."""
    split = Split(6, 4)
    expected = train(case, tmp_path / "whole", ALONE, split)
    for number, step in enumerate(kills):
        train(case, tmp_path / "killed", ALONE, split, workers=number, save_after=step)
        torch.manual_seed(step)
    resumed = train(case, tmp_path / "killed", ALONE, split, workers=3, build_seed=SEED + 1)
    assert_equal(resumed, expected)


def test_resuming_is_exact_in_two_processes(case: Case, two_processes: list[dict[str, Tensor]]) -> None:
    for tensors in two_processes:
        expected = found(tensors, case, "uninterrupted")
        assert expected
        assert_equal(found(tensors, case, "resumed"), expected)


# -- hide, predict, score ------------------------------------------------------------------------------------

SOME = [4, RECORDS - 1, 0, 17, 9, 3]


def test_hide_is_a_function_of_the_place(case: Case) -> None:
    """Twice, in another order, in other micro-batches, in other company: each record has one task."""
    objective = case.build(SEED)
    expected = tasks_by_record(objective, [batch_of(case, SOME)])
    cuts = [[SOME], [SOME[::-1]], [SOME[:1], SOME[1:]], [[record] for record in SOME], [[*SOME, 11, 12]]]
    for cut in cuts:
        torch.manual_seed(len(cut))
        state = torch.get_rng_state()
        tasks = tasks_by_record(objective, [batch_of(case, part) for part in cut])
        assert torch.equal(torch.get_rng_state(), state), "hide draws from the global generator"
        for record in SOME:
            assert_equal(tasks[record], expected[record])


def test_hide_draws_anew_in_each_epoch_and_for_each_seed(case: Case) -> None:
    objective = case.build(SEED)
    first, *others = (objective.hide(batch_of(case, SOME, epoch, seed)) for epoch, seed in [(0, 1), (1, 1), (0, 2)])
    for other in others:
        equal = all(torch.equal(first[name], other[name]) for name in first.tensors)
        assert equal != case.random


def test_the_records_are_as_the_suite_takes_them(case: Case) -> None:
    assert len(case.records()) == RECORDS


def test_counts_add_up_over_micro_batches(case: Case) -> None:
    objective = case.build(SEED)
    whole = total_counts(objective, [batch_of(case, SOME)])
    assert total_counts(objective, [batch_of(case, SOME[:2]), batch_of(case, SOME[2:])]) == whole
    assert all(count > 0 for count in whole.values())


@pytest.mark.parametrize("changed", [0, 3, 5])
def test_no_record_moves_the_outputs_of_another(case: Case, changed: int) -> None:
    objective = case.build(SEED)
    batch = batch_of(case, SOME)
    stranger = case.records().read(np.array([14]))
    data = {name: tensor.clone() for name, tensor in batch.data.items()}
    for name, tensor in data.items():
        tensor[changed] = stranger[name][0]
    before = objective.predict(objective.hide(batch))
    after = objective.predict(objective.hide(Batch(data, batch.seed, batch.epochs, batch.records)))
    others = [row for row in range(len(SOME)) if row != changed]
    for name in before:
        assert len(before[name]) == len(SOME)
        torch.testing.assert_close(after[name][others], before[name][others], rtol=0, atol=1e-12)
    assert any((after[name][changed] - before[name][changed]).abs().max() > 1e-6 for name in before)


def test_counts_are_the_predictions_that_the_score_sums_over(case: Case) -> None:
    """Where all outputs are zero each prediction costs what chance costs, so sum / chance counts them."""
    objective = case.build(SEED)
    task = objective.hide(batch_of(case, SOME))
    outputs = {name: torch.zeros_like(tensor) for name, tensor in objective.predict(task).items()}
    sums = objective.score(outputs, task, ALONE)
    chance = case.chance(task)
    assert sums.keys() == task.counts.keys() == chance.keys()
    for term, value in sums.items():
        expected = chance[term] * int(task.counts[term])
        assert float(value.detach()) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_separable_score_adds_up(case: Case) -> None:
    objective = case.build(SEED)
    if not objective.separable:
        pytest.skip("records meet in the score")
    sums = []
    for parts in ([SOME], [SOME[:1], SOME[1:4], SOME[4:]]):
        tasks = [objective.hide(batch_of(case, part)) for part in parts]
        scores = [objective.score(objective.predict(task), task, ALONE) for task in tasks]
        sums.append({term: sum(score[term].detach() for score in scores) for term in scores[0]})
    assert_equal(*sums, 1e-12)
