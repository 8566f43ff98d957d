"""`selfsup machine`, and the accounts of a training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answer

import selfsup
from selfsup import rates
from selfsup.accounting import COLLECTIVES, Accounts, of_run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECONDS": 0.01, "COPIED": 1 << 16, "WRITTEN": 1 << 16, "BLOCK": 1 << 14}.items():
        monkeypatch.setattr(rates, name, value)


@pytest.mark.usefixtures("quick")
def test_a_machine_is_measured(tmp_path: Path, selfsup_command: Callable[..., Answer]) -> None:
    answer = selfsup_command("machine", tmp_path, "--device", "cpu", "--json")
    assert answer.code == 0, answer
    found = json.loads(answer.out)
    assert found["matrix_flops"].keys() == {"fp32", "bf16"}
    assert min(*found["matrix_flops"].values(), found["memory"], found["disk_write"], found["disk_read"]) > 0
    assert (found["processes"], found["exchange"]) == (1, None)
    assert list(tmp_path.iterdir()) == []
    table = selfsup_command("machine", "--device", "cpu").out
    assert "which plans use" in table
    assert "one process" in table
    assert "disk" not in table


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(selfsup.UserError, match="no directory"):
        selfsup.measure_machine(tmp_path / "missing")
    with pytest.raises(selfsup.UserError, match="no device"):
        selfsup.measure_machine(device="abacus")


PROGRAM = """
from selfsup import rates
rates.SECONDS, rates.COPIED, rates.EXCHANGED = 0.01, 1 << 16, 1 << 16
from selfsup.cli import main
import sys
sys.argv = ["selfsup", "machine", "--device", "cpu", "--json"]
main()
"""


def test_several_processes_exchange(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, str(program)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["processes"] == 2
    assert found["exchange"] > 0


# -- accounts ------------------------------------------------------------------------------------------------


def test_shares_are_of_the_time_since_the_last_line() -> None:
    accounts = Accounts()
    accounts.data.seconds, accounts.checkpoints.seconds = 1.0, 3.0
    with accounts.step():
        COLLECTIVES.seconds += 2.0
    assert accounts.shares(4.0) == {"waiting": 0.125, "waiting_collectives": 0.25, "waiting_checkpoints": 0.375}
    assert accounts.shares(4.0) == {"waiting": 0.0, "waiting_collectives": 0.0, "waiting_checkpoints": 0.0}


def test_a_run_has_the_means_of_its_lines() -> None:
    lines = [
        {"split": "train", "utilisation": 0.2, "waiting": 0.0},
        {"split": "validation", "loss": 1.0},
        {"split": "train", "utilisation": 0.4, "waiting": 0.1},
    ]
    assert of_run(lines) == {"utilisation": 0.3, "waiting": 0.05}
