"""`selfsup machine`, and the accounts of a training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Answer

import selfsup
from selfsup import machine, rates
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
    assert "plans use" in table
    assert "one process" in table
    assert "disk" not in table


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(selfsup.UserError, match="no directory"):
        selfsup.measure_machine(tmp_path / "missing")
    with pytest.raises(selfsup.UserError, match="no device"):
        selfsup.measure_machine(device="abacus")


# -- the rate that plans use ---------------------------------------------------------------------------------

CPU = torch.device("cpu")


@pytest.fixture
def measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and what each measurement finds: half of the one before."""
    found = (2.0**power for power in range(40, 0, -1))
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rates, "matrix_rate", lambda *_: next(found))


@pytest.mark.usefixtures("measures")
def test_the_rate_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = rates.kept_rate(CPU, "bf16")
    assert (first.flops, first.measured[:2], first.measured[-3:]) == (2.0**40, "20", "UTC")
    assert rates.kept_rate(CPU, "bf16") == first
    assert rates.kept_rate(CPU, "fp32").flops == 2.0**39
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        assert rates.kept_rate(CPU, "bf16").flops == 2.0**38
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "99.0")
        assert rates.kept_rate(CPU, "bf16").flops == 2.0**37
    with monkeypatch.context() as patch:
        patch.setattr(rates, "processor", lambda: "Another 9000")
        assert rates.kept_rate(CPU, "bf16").flops == 2.0**36
    assert rates.kept_rate(CPU, "bf16") == first


@pytest.mark.usefixtures("measures")
@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_rate_that_is_damaged_is_measured_anew(harm: str, tmp_path: Path) -> None:
    rates.kept_rate(CPU, "bf16")
    (file,) = (tmp_path / "cache" / "machine").rglob("rate.json")
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:9] if harm == "cut" else content.replace(b"1", b"7"))
    second = rates.kept_rate(CPU, "bf16")
    assert second.flops == 2.0**39
    assert rates.kept_rate(CPU, "bf16") == second


@pytest.mark.usefixtures("measures")
def test_a_rate_is_read_where_nothing_can_be_written(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(1 << 20)
    monkeypatch.setenv("SELFSUP_CACHE", str(disk))
    kept = rates.kept_rate(CPU, "bf16")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert rates.kept_rate(CPU, "bf16") == kept
    assert caplog.text == ""
    with pytest.raises(selfsup.UserError, match=r"Read-only.*SELFSUP_CACHE"):
        selfsup.measure_machine(device="cpu", keep=True)


@pytest.mark.usefixtures("measures")
def test_where_no_rate_can_be_kept_it_is_measured_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "file"))
    assert [rates.kept_rate(CPU, "bf16").flops for _ in range(2)] == [2.0**40, 2.0**39]
    assert "measured each time" in caplog.text


@pytest.mark.usefixtures("measures", "quick")
def test_a_machine_tells_the_rate_that_is_kept_and_measures_it_anew(selfsup_command: Callable[..., Answer]) -> None:
    def kept(*words: str) -> float:
        answer = selfsup_command("machine", "--device", "cpu", "--json", *words)
        assert answer.code == 0, answer
        return float(json.loads(answer.out)["kept"]["flops"])

    first = kept()
    assert kept() == first
    anew = kept("--keep")
    assert anew < first
    assert kept() == anew


class Shared:
    """A core of 100 GFLOP/s, whose other users wait while a process that came back from a pause has its first
    milliseconds, and have it for much longer then."""

    SLICE, OTHERS, RATE = 0.003, 0.024, 1e11

    def __init__(self) -> None:
        self.now, self.left = 0.0, self.SLICE

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.left = self.SLICE

    def multiply(self, a: torch.Tensor, *_: object, **__: object) -> None:
        seconds = 2 * len(a) ** 3 / self.RATE
        waits = max(0.0, seconds - self.left) // self.SLICE
        self.left = max(0.0, self.left - seconds)
        self.now += seconds + waits * self.OTHERS


def test_load_does_not_lower_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Shared()
    monkeypatch.setattr(machine, "time", shared)
    monkeypatch.setattr(torch, "mm", shared.multiply)
    assert machine.matrix_rate(CPU, "fp32") == pytest.approx(Shared.RATE)


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
