"""Processes that hold a model by rows compute what one process computes, and read each other's checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from objectives import CASES
from safetensors.torch import load_file
from sharded_worker import SAVED, SAVED_AFTER, SPLITS
from suite import SEED, Case, Split, assert_equal, descend, one_step, train
from torch import Tensor

from selfsup.distributed import Processes
from selfsup.saving import Checkpoints

TOLERANCE, TRAINED = 1e-10, 1e-9  # relative to the largest entry: of one step, after 20
ALONE = Processes.alone()
WORKER = Path(__file__).with_name("sharded_worker.py")
FEW = ("causal-lm", "cached-causal-lm", "masked-lm", "simclr")  # by two processes in `make test` too
OTHERS = ("simcse", "tsdae", "simclr-convnet", "vicreg", "mae", "dino", "dino-centring", "clip", "clip-sigmoid")
SHARDED = [*FEW, *OTHERS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test is that of every case, sharded by two processes and by four."""
    if "case" in metafunc.fixturenames:
        many = [(name, 4) for name in SHARDED] + [(name, 2) for name in SHARDED if name not in FEW]
        marked = [pytest.param(CASES[name], size, id=f"{name}-{size}", marks=pytest.mark.scale) for name, size in many]
        few = [pytest.param(CASES[name], 2, id=f"{name}-2") for name in FEW]
        metafunc.parametrize(("case", "size"), [*few, *marked])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What groups of processes left for the cases that are asked for, the larger groups first, each in its place."""
    directory = tmp_path_factory.mktemp("sharded")
    own = (item for item in request.session.items if item.path == request.path)
    asked = [item.callspec.params for item in own if "directory" in getattr(item, "fixturenames", ())]
    for size in sorted({params["size"] for params in asked}, reverse=True):
        place = directory / str(size)
        place.mkdir()
        names = dict.fromkeys(params["case"].name for params in asked if params["size"] == size)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        done = subprocess.run(
            [*command, str(WORKER), str(directory), str(place), *names],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
    return directory


@cache
def left(place: Path) -> dict[str, Tensor]:
    return load_file(place / "found.safetensors")


def found(place: Path, case: Case, comparison: str) -> dict[str, Tensor]:
    prefix = f"{case.name}/{comparison}/"
    return {name.removeprefix(prefix): tensor for name, tensor in left(place).items() if name.startswith(prefix)}


def train_alone(case: Case, place: Path, build_seed: int = SEED) -> dict[str, Tensor]:
    return train(case, place, ALONE, SAVED, build_seed=build_seed, dtype=torch.float64, drops=False)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_the_gradient_is_that_of_one_process(case: Case, size: int, split: Split, directory: Path) -> None:
    step = found(directory / str(size), case, f"one_step.{split.batch}.{split.micro_batch}")
    assert_equal(step, one_step(case, Split(8, 8), ALONE), TOLERANCE)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_twenty_steps_end_where_one_process_ends(case: Case, size: int, split: Split, directory: Path) -> None:
    weights = found(directory / str(size), case, f"descend.{split.batch}.{split.micro_batch}")
    assert_equal(weights, descend(case, Split(8, 8), ALONE), TRAINED)


def test_muon_and_adamw_move_rows_as_they_move_all(case: Case, size: int, directory: Path, tmp_path: Path) -> None:
    """Muon iterates in fp64 here: in bf16 the order of additions would show."""
    trained = found(directory / str(size), case, "uninterrupted")
    assert_equal(trained, train_alone(case, tmp_path), 1e-6)


def test_resuming_is_exact(case: Case, size: int, directory: Path) -> None:
    expected = found(directory / str(size), case, "uninterrupted")
    assert expected
    assert_equal(found(directory / str(size), case, "resumed"), expected)


def test_each_process_writes_its_rows(case: Case, size: int, directory: Path) -> None:
    (checkpoint,) = (directory / str(size) / case.name / "saved").iterdir()
    names = {path.name for path in checkpoint.glob("*.safetensors")}
    numbers = [f"-{rank:05d}-of-{size:05d}" for rank in range(1, size + 1)]
    assert names == {f"{kind}{number}.safetensors" for kind in ("model", "optimizer") for number in numbers}
    parts = [load_file(checkpoint / f"model{number}.safetensors") for number in numbers]
    whole = Checkpoints(checkpoint.parent).load(SAVED_AFTER).tensors["model"]
    for name, tensor in case.build(SEED).named_parameters():
        rows = [len(part[name]) for part in parts if tensor.ndim and name in part]
        assert sum(rows) == (len(tensor) if tensor.ndim else 0)
        assert not rows or max(rows) <= -(-len(tensor) // size)
        assert whole[name].shape == tensor.shape


def test_one_process_goes_on_from_what_several_saved(case: Case, size: int, directory: Path) -> None:
    saved = directory / str(size) / case.name / "saved"
    assert_equal(train_alone(case, saved, 99), found(directory / str(size), case, "uninterrupted"), 1e-6)


@pytest.mark.scale
def test_fewer_processes_go_on_from_what_more_saved(directory: Path, case: Case, size: int) -> None:
    if size == 4:
        pytest.skip("there are none with more")
    assert_equal(found(directory / "2", case, "from 4"), found(directory / "4", case, "uninterrupted"), 1e-6)
