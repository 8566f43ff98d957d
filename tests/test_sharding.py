"""Runs whose processes hold the model by rows: the same training, checkpoints that any number of processes reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from conftest import TINY, TINY_PAIRS, TINY_VISION, TINY_WORDS, Answer
from safetensors.torch import load_file
from torch import Tensor

import selfsup
from selfsup import planning
from selfsup.errors import UserError
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.sharding import deal, placed, rows_of, total_norm, whole

Command = Callable[..., Answer]
SHARD = "train.shard=true"


def test_rows_are_dealt_out_once() -> None:
    for count in range(13):
        for size in (1, 2, 3, 5):
            rows = [row for rank in range(size) for row in range(count)[rows_of(count, rank, size)]]
            assert rows == list(range(count))


def test_work_is_dealt_out_evenly() -> None:
    dealt = deal([1, 9, 4, 4, 2, 8, 0], 3)
    assert sorted(number for numbers in dealt for number in numbers) == list(range(7))
    loads = [sum([1, 9, 4, 4, 2, 8, 0][number] for number in numbers) for numbers in dealt]
    assert max(loads) <= 10
    assert deal([], 2) == [[], []]


def test_a_tensor_of_one_process_is_whole() -> None:
    tensor = torch.tensor([3.0, 4.0])
    assert whole(tensor) is tensor
    assert torch.equal(placed(tensor, torch.zeros(2)), tensor)
    assert float(total_norm([tensor, torch.tensor(12.0)])) == 13


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pairs"], "pairs cannot be sharded yet; leave train.shard out"),
        (["causal-lm", "train.compile=true"], "train.shard and train.compile cannot go together yet"),
    ],
)
def test_what_is_not_sharded_is_refused(words: list[str], said: str, selfsup_command: Command, tmp_path: Path) -> None:
    answer = selfsup_command("train", *words, SHARD, "--steps", "2", "--out", tmp_path / "run")
    assert answer.code == 2, answer
    assert said in answer.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("counts", "said"), [(True, "5 are not for 2 alike; give --batch 6"), (False, "or --processes")]
)
def test_processes_that_cannot_share_alike_are_refused(counts: bool, said: str) -> None:
    recipe, processes = SimpleNamespace(settings={"train.batch": 5}), SimpleNamespace(counts=counts, size=2)
    with pytest.raises(UserError, match=said):
        planning._require_shares(recipe, processes)  # type: ignore[arg-type]


# -- a run ---------------------------------------------------------------------------------------------------

EXACT = ["optim.matrices=adamw", "optim.lr=0.003"]  # Muon multiplies in bf16, which shows the order of additions


def command(corpus: Path, out: Path, *words: str, processes: int = 2) -> list[str]:
    train = [sys.executable, "-m", "selfsup", "train", "causal-lm", "--processes", str(processes), SHARD]
    return [*train, "--data", str(corpus), "--out", str(out), *TINY_WORDS, *words]


def run_all(*commands: list[str]) -> None:
    """Run commands beside each other."""
    started = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for each in commands]
    for process in started:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output


def model_of(run: Run) -> dict[str, Tensor]:
    return load_file(run.model_directory / "model.safetensors")


def test_a_sharded_run_is_the_run_of_one_process(corpus: Path, tmp_path: Path, selfsup_command: Command) -> None:
    """With figures, samples, checkpoints by rows, and a model directory; one process goes on from it."""
    out = tmp_path / "sharded"
    run_all(command(corpus, out, *EXACT))
    alone = selfsup_command("train", "causal-lm", "--data", corpus, "--out", tmp_path / "alone", *TINY_WORDS, *EXACT)
    assert alone.code == 0, alone
    run, other = Run.open(out), Run.open(tmp_path / "alone")
    assert model_of(run).keys() == model_of(other).keys()
    for name, tensor in model_of(run).items():
        torch.testing.assert_close(tensor, model_of(other)[name], rtol=0, atol=1e-4, msg=name)
    lines = [(line["step"], line["split"]) for line in run.metrics()]
    assert lines == [(line["step"], line["split"]) for line in other.metrics()]
    for line, expected in zip(run.metrics(), other.metrics(), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert line.get("grad_norm", 0) == pytest.approx(expected.get("grad_norm", 0), rel=1e-3)
    listing = selfsup.checkpoint(run)
    assert [each.step for each in listing.checkpoints] == other.checkpoints().steps()
    assert {(each.processes, each.problem) for each in listing.checkpoints} == {(2, None)}
    last = listing.checkpoints[-1].step
    selfsup.checkpoint(run, export=last, out=tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (
        run.model_directory / "model.safetensors"
    ).read_bytes()
    longer = selfsup.train(resume=out, steps=16, reporter=Reporter(False))  # by one process
    assert longer.summary["steps"] == 16
    assert {each.processes for each in selfsup.checkpoint(longer).checkpoints if each.step > last} == {1}


@pytest.mark.scale
def test_four_save_and_two_go_on(corpus: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "sharded", tmp_path / "two"
    run_all(command(corpus, out, *EXACT, processes=4), command(corpus, other, *EXACT, "steps=16"))
    extend = [sys.executable, "-m", "selfsup", "train", "--resume", str(out), "--steps", "16", "--processes", "2"]
    run_all(extend)
    for name, tensor in model_of(Run(out)).items():
        torch.testing.assert_close(tensor, model_of(Run(other))[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.scale
def test_blocks_are_gathered_in_the_precision_of_products(corpus: Path, tmp_path: Path) -> None:
    """Which changes nothing that would not be rounded to it anyway."""
    out, other = tmp_path / "sharded", tmp_path / "replicated"
    narrow = [*EXACT, "precision=bf16"]
    run_all(command(corpus, out, *narrow), [word for word in command(corpus, other, *narrow) if word != SHARD])
    for name, tensor in model_of(Run(out)).items():
        torch.testing.assert_close(tensor, model_of(Run(other))[name], rtol=0, atol=2e-3, msg=name)


@pytest.mark.scale
def test_killed_and_resumed_to_the_bit(corpus: Path, tmp_path: Path) -> None:
    """The leading process and the other one, each at some step of its own."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_all(command(corpus, whole, "steps=60"))
    again = [sys.executable, "-m", "selfsup", "train", "--resume", str(killed), "--processes", "2"]
    for rank, (step, words) in enumerate([(7, command(corpus, killed, "steps=60")), (23, again)]):
        launcher = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (killed / "metrics.jsonl").exists() or Run(killed).reached < step:
            assert time.monotonic() < deadline
            assert launcher.poll() is None
            time.sleep(0.01)
        children = psutil.Process(launcher.pid).children()
        next(child for child in children if child.environ().get("RANK") == str(rank)).send_signal(signal.SIGKILL)
        assert launcher.wait(240) == 2
    run_all(again)
    assert (whole / "model" / "model.safetensors").read_bytes() == (killed / "model" / "model.safetensors").read_bytes()
    assert Run(killed).summary["loss"] == Run(whole).summary["loss"]


OBJECTIVES = ("masked-lm", "simcse", "tsdae", "simclr", "vicreg", "mae", "dino", "clip")
DRAWN = ("simcse", "tsdae", "clip")  # by the dropout of micro-batches, which are others in other processes


def tiny(objective: str, sources: Mapping[str, Path], place: Path) -> dict[str, Any]:
    """The arguments of a training at its smallest."""
    images = objective in ("simclr", "vicreg", "mae", "dino")
    settings = TINY_PAIRS if objective == "clip" else TINY_VISION if images else TINY
    data = sources["captioned" if objective == "clip" else "drawings" if images else "corpus"]
    exact = {"optim.matrices": "adamw", "optim.lr": 1e-3}
    return {**settings, "objective": objective, "data": str(data), "out": str(place / objective), **exact, "steps": 6}


@pytest.mark.scale
def test_every_objective_trains_by_rows(corpus: Path, drawings: Path, captioned: Path, tmp_path: Path) -> None:
    sources = {"corpus": corpus, "drawings": drawings, "captioned": captioned}
    settings = {name: tiny(name, sources, tmp_path / "sharded") | {"train.shard": True} for name in OBJECTIVES}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_all([*launcher, __file__, str(tmp_path / "settings.json")])
    for name in OBJECTIVES:
        run = Run.open(tmp_path / "sharded" / name)
        assert run.summary["steps"] == 6
        assert {each.processes for each in selfsup.checkpoint(run).checkpoints} == {2}
        assert run.model_directory.is_dir()
        if name not in DRAWN:
            alone = selfsup.train(reporter=Reporter(False), **tiny(name, sources, tmp_path / "alone"))
            assert run.summary["loss"] == pytest.approx(alone.summary["loss"], rel=1e-3), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    for given in json.loads(Path(sys.argv[1]).read_text()).values():
        selfsup.train(reporter=Reporter(False), **given)
