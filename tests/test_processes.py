"""`selfsup train --processes N`: several processes of this machine that start, speak, stop and fail as one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import TINY_WORDS, Answer

from selfsup.cli.processes import without
from selfsup.distributed import launch
from selfsup.run import Run

Command = Callable[..., Answer]
ENDLESS = "steps=100000"


def test_words_without_an_option() -> None:
    words = ["train", "--processes", "2", "--out", "run", "--processes=3", "steps=4"]
    assert without("--processes", words) == ["train", "--out", "run", "steps=4"]


def test_a_launcher_beside_another_one_is_refused(monkeypatch: pytest.MonkeyPatch, selfsup_command: Command) -> None:
    monkeypatch.setenv("RANK", "0")
    answer = selfsup_command("train", "causal-lm", "--processes", "2")
    assert answer.code == 2
    assert "leave --processes out" in answer.error


# -- as one --------------------------------------------------------------------------------------------------


def start(corpus: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "selfsup", "train", "causal-lm", "--processes", "2", "--data", str(corpus)]
    return subprocess.Popen(
        [*command, "--out", str(out), *TINY_WORDS, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def trains(out: Path) -> bool:
    return (out / "metrics.jsonl").exists() and bool(Run(out).metrics())


def await_training(*outs: Path) -> None:
    deadline = time.monotonic() + 240
    while not all(map(trains, outs)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def process(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    children = psutil.Process(launcher.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


def test_several_processes_look_like_one(corpus: Path, tmp_path: Path) -> None:
    """One trains to its end, one is stopped, of one the second process is killed, one has a wrong setting."""
    outs = {name: tmp_path / name for name in ("whole", "stopped", "killed", "wrong")}
    launched = {
        "whole": start(corpus, outs["whole"], "--json"),
        "stopped": start(corpus, outs["stopped"], ENDLESS),
        "killed": start(corpus, outs["killed"], ENDLESS),
        "wrong": start(corpus, outs["wrong"], "batch=1"),
    }
    await_training(outs["stopped"], outs["killed"])
    process(launched["killed"], 1).kill()
    launched["stopped"].send_signal(signal.SIGINT)
    found = {name: (*each.communicate(timeout=240), each.returncode) for name, each in launched.items()}
    said = {name: [line for line in error.splitlines() if line] for name, (_, error, _) in found.items()}
    assert {name: code for name, (_, _, code) in found.items()} == {"whole": 0, "stopped": 130, "killed": 2, "wrong": 2}
    for name, lines in said.items():
        assert "Traceback" not in "\n".join(lines), lines
        assert len([line for line in lines if line.startswith("selfsup: ")]) == (name != "whole"), lines

    whole = Run.open(outs["whole"])
    assert json.loads(found["whole"][0]) == whole.summary
    assert whole.environment()["processes"] == 2
    assert "".join(said["whole"]).count("Done in") == 1
    assert said["stopped"][-1].startswith("selfsup: Stopped at step")
    assert said["killed"][-1].startswith("selfsup: Process 1 of 2 was ended by SIGKILL")
    assert said["wrong"][-1].startswith("selfsup: A batch of 1 cannot be shared by 2 processes")
    steps = Run.open(outs["stopped"]).checkpoints().steps()
    assert steps
    assert f"step {steps[-1]:,};" in said["stopped"][-1]


# -- started again -------------------------------------------------------------------------------------------

FAILS = """
import datetime, os, signal, sys, time
import torch.distributed as dist
from selfsup import cli, distributed, trainer

update = trainer.Trainer._update
how, *words = sys.argv[1:]

def fails(self, batches):
    if self.step == 5 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if how == "hangs":
            dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=3), dist.group.WORLD)
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL) if how == "dies" else time.sleep(3600)
    update(self, batches)

trainer.Trainer._update = fails
distributed.SKEW = 2.0
sys.argv = ["selfsup", *words]
cli.main()
"""


def under_torchrun(how: str, corpus: Path, out: Path, restarts: int = 0) -> subprocess.Popen[str]:
    script = out.with_suffix(".py")
    script.write_text(FAILS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["train", "causal-lm", "--data", str(corpus), "--out", str(out), *TINY_WORDS]
    return subprocess.Popen(
        [*launcher, f"--max-restarts={restarts}", str(script), how, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.scale
def test_a_launcher_that_starts_again_goes_on_and_a_hung_process_is_named(corpus: Path, tmp_path: Path) -> None:
    goes_on = under_torchrun("dies", corpus, tmp_path / "again", restarts=1)
    hangs = under_torchrun("hangs", corpus, tmp_path / "hung")
    output, _ = goes_on.communicate(timeout=240)
    assert goes_on.returncode == 0, output
    run = Run.open(tmp_path / "again")
    assert [line["step"] for line in run.metrics() if line["split"] == "train"] == list(range(1, 13))
    assert run.summary["steps"] == 12
    # The checkpoint of step 3, or that of the look at 4, if it was whole when the process ended.
    assert re.search(r"Going on from step [34]\.", output), output

    output, _ = hangs.communicate(timeout=240)
    assert hangs.returncode != 0
    (said,) = [line for line in output.splitlines() if line.startswith("selfsup: ")]
    assert said.startswith("selfsup: Process 1 of 2 ("), output
    assert "did not come to where the other processes waited for it" in said


def test_who_is_started_again_must_say_where_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, selfsup_command: Command
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    answer = selfsup_command("train", "causal-lm", "--steps", "2")
    assert answer.code == 2
    assert "give --out" in answer.error


def test_a_run_of_another_launch_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, selfsup_command: Command, finished: Run
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    for name in ("another", "none"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        answer = selfsup_command("train", "causal-lm", "--steps", "2", "--out", finished.directory)
        assert answer.code == 2
        assert "already holds a run" in answer.error


def test_a_launch_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "big")
    assert launch() == "big"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert str(os.getppid()) in str(launch())
