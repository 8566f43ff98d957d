"""A sample of the campaign of faults; all of it is `make faults`, and docs/faults.md says what came of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parent / "faults.py"


def campaign(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CAMPAIGN), *words], capture_output=True, text=True, check=False)


def test_a_sample_of_the_campaign() -> None:
    done = campaign("--kills", "2", "--each", "2", "--trainings", "mixture", "--faults", "grows")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills and 1 other faults, 0 of all with losses" in done.stdout


@pytest.mark.scale
def test_more_of_it() -> None:
    done = campaign("--kills", "60", "--seconds", "900")
    assert done.returncode == 0, done.stdout + done.stderr
