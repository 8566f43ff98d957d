"""Two processes that torchrun starts: what they tell each other, and one model that they train together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfsup.distributed import Processes, process_group
from selfsup.run import Run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(command: list[str], directory: Path, cache: Path | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SELFSUP_CACHE": str(cache or directory / "cache")}
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


# -- collectives ---------------------------------------------------------------------------------------------


def rows_of(rank: int) -> Tensor:
    """Two rows in process 0, three in process 1."""
    return torch.arange(2.0 + rank)[:, None] + torch.tensor([[10.0 * rank, 1.0]])


def observe(processes: Processes) -> dict[str, Any]:
    """What one process sees; lists, so that JSON can hold it."""
    rank = processes.rank
    one, two = (rows_of(rank).requires_grad_() for _ in range(2))
    gathered = processes.gather(one)
    total = gathered + processes.gather(two)  # whose backward hands one tensor to both
    ((1 + rank) * total.square()).sum().backward()

    used, unused, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    double = nn.Parameter(torch.zeros(1, dtype=torch.double))
    frozen.requires_grad_(False)
    used.grad = torch.tensor([1.0, 10.0]) * (rank + 1)
    double.grad = torch.tensor([0.5], dtype=torch.double)
    if rank == 0:
        unused.grad = torch.tensor([3.0, 4.0])
    processes.sum_gradients([used, unused, frozen, double])
    return {
        "rank": rank,
        "size": processes.size,
        "leads": processes.leads,
        "gathered": gathered.tolist(),
        "gathered_numbers": processes.gather(torch.full((2 + rank,), rank)).tolist(),
        "gradients": [one.grad.tolist(), two.grad.tolist()],
        "sum": int(processes.sum(torch.tensor(5 + rank))),
        "shared": processes.share({"from": rank}),
        "collected": processes.collect({"from": rank}),
        "summed": [used.grad.tolist(), unused.grad.tolist(), frozen.grad, double.grad.tolist()],
        "alone": [Processes.alone().size, Processes.alone().gather(one).tolist() == one.tolist()],
    }


def expected_gradient() -> Tensor:
    """By one graph: the loss of both processes, each with its own factor."""
    rows = torch.cat([rows_of(0), rows_of(1)]).requires_grad_()
    sum((1 + rank) * (rows + rows.detach()).square().sum() for rank in (0, 1)).backward()
    return rows.grad


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("collectives")
    finish(start([*TORCHRUN, __file__, str(directory)], directory))
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_who_is_who(observed: list[dict[str, Any]]) -> None:
    assert [(seen["rank"], seen["size"], seen["leads"]) for seen in observed] == [(0, 2, True), (1, 2, False)]


def test_gather_joins_uneven_parts_in_rank_order(observed: list[dict[str, Any]]) -> None:
    for seen in observed:
        assert seen["gathered"] == torch.cat([rows_of(0), rows_of(1)]).tolist()
        assert seen["gathered_numbers"] == [0, 0, 1, 1, 1]


def test_gradients_flow_back_from_every_process(observed: list[dict[str, Any]]) -> None:
    for seen, part in zip(observed, expected_gradient().split([2, 3]), strict=True):
        assert seen["gradients"] == [part.tolist(), part.tolist()]


def test_sums_and_objects_reach_everyone(observed: list[dict[str, Any]]) -> None:
    for seen in observed:
        assert seen["sum"] == 11
        assert seen["shared"] == {"from": 0}
        assert seen["collected"] == [{"from": 0}, {"from": 1}]
        assert seen["alone"] == [1, True]


def test_gradients_are_summed_in_every_type_and_where_one_has_none(observed: list[dict[str, Any]]) -> None:
    for seen in observed:
        assert seen["summed"] == [[3.0, 30.0], [3.0, 4.0], None, [1.0]]


def test_one_process_answers_with_its_own_values() -> None:
    alone = Processes()
    tensor, parameter = rows_of(0).requires_grad_(), nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    alone.sum_gradients([parameter])
    alone.wait()
    assert (alone.rank, alone.size, alone.leads) == (0, 1, True)
    assert alone.gather(tensor) is tensor
    assert torch.equal(alone.sum(tensor), tensor)
    assert not alone.sum(tensor).requires_grad
    assert alone.share("x") == "x"
    assert alone.collect("x") == ["x"]
    assert parameter.grad.tolist() == [1, 1]


# -- one model from two processes ----------------------------------------------------------------------------

STEPS = 6
TRAIN = ["-m", "selfsup", "train", "causal-lm", "--tokenizer", "characters", "--steps", str(STEPS), "--batch", "5"]
SETTINGS = ["--device", "cpu", "--precision", "fp32", "data.window=16", "train.micro_batch=2"]
SETTINGS += ["model.layers=1", "model.width=32", "model.heads=1", "optim.lr=0.01", "optim.adamw_lr=0.003"]
SETTINGS += ["train.compile=false", "train.log_every=1", "evaluate.every=2", "evaluate.records=7"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The working directories of the same command in one process and in two, which ran at once; output in `log`."""
    directory = tmp_path_factory.mktemp("runs")
    texts = [f"{number} bottles of beer stand on wall {number % 7}." * (1 + number % 3) for number in range(40)]
    data = directory / "songs.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    started = {}
    for name, launcher in {"one": [sys.executable], "two": TORCHRUN}.items():
        (directory / name).mkdir()
        command = [*launcher, *TRAIN, "--data", str(data), *SETTINGS]
        started[name] = start(command, directory / name, directory / f"cache-{name}")
    for name, process in started.items():
        (directory / name / "log").write_text(finish(process), encoding="utf-8")
    return {name: directory / name for name in started}


def only_run(directory: Path) -> Run:
    (run,) = (directory / "runs").iterdir()
    return Run.open(run)


def test_torchrun_trains_the_model_of_one_process(runs: dict[str, Path]) -> None:
    """Measured against the way that each weight went in the last three steps.

    fp32 sums over two processes round differently; Muon iterates in bf16, which turns that into a percent or two.
    """
    one, two = (only_run(runs[name]).checkpoints() for name in ("one", "two"))
    middle, end, other = (
        checkpoints.load(step).tensors["model"] for checkpoints, step in ((one, 3), (one, 6), (two, 6))
    )
    assert end.keys() == other.keys()
    for name, tensor in end.items():
        way = float((tensor - middle[name]).norm())
        assert way > 0
        assert float((other[name] - tensor).norm()) < (0.06 if "_proj" in name else 1e-3) * way, name


def test_the_saved_model_is_that_of_the_last_checkpoint(runs: dict[str, Path]) -> None:
    for directory in runs.values():
        run = only_run(directory)
        weights = load_file(run.model_directory / "model.safetensors")
        trained = run.checkpoints().load(STEPS).tensors["model"]
        assert {f"model.{name}": tensor.tolist() for name, tensor in weights.items()} == {
            name: tensor.tolist() for name, tensor in trained.items()
        }


def test_torchrun_leaves_one_run_with_each_line_once(runs: dict[str, Path]) -> None:
    one, two = (only_run(runs[name]) for name in ("one", "two"))
    lines, others = one.metrics(), two.metrics()
    places = [(line["step"], line["split"]) for line in others]
    assert places == [(line["step"], line["split"]) for line in lines]
    assert len(set(places)) == len(places)
    assert [line["step"] for line in others if line["split"] == "train"] == list(range(1, STEPS + 1))
    for line, other in zip(lines, others, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-4)
        if line["split"] == "train":
            assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-3)
    assert two.environment()["processes"] == 2
    assert two.summary["steps"] == STEPS
    assert two.summary["loss"] == pytest.approx(one.summary["loss"], rel=1e-4)
    assert two.checkpoints().steps() == one.checkpoints().steps()


def test_only_the_first_process_speaks(runs: dict[str, Path]) -> None:
    for directory in runs.values():
        log = (directory / "log").read_text(encoding="utf-8")
        for once in ("What it writes", "Validation loss", "Done in"):
            assert log.count(once) == 1, log


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group() as group:
        Path(sys.argv[1], f"{group.rank}.json").write_text(json.dumps(observe(group)))
