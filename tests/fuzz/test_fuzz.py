"""A small part of the campaign: some damaged inputs of every surface, the same ones each time."""

from __future__ import annotations

import pytest
from campaign import COUNTS, run

FEW = dict.fromkeys(COUNTS, 2)  # inputs of each surface
MORE = {surface: 60 if count == 2000 else 25 if count == 1000 else 12 for surface, count in COUNTS.items()}


@pytest.mark.parametrize(
    ("counts", "workers"), [(FEW, 1), pytest.param(MORE, 2, marks=pytest.mark.long)], ids=["few", "more"]
)
def test_no_damage_goes_by_unnoticed(counts: dict[str, int], workers: int) -> None:
    # Patience is for a machine that does other things too; the campaign itself waits 30 seconds.
    tally, findings = run(list(COUNTS), counts, workers=workers, seconds=240)
    assert sum(tally.values()) == sum(counts.values())
    assert not findings, "\n\n".join(map(str, findings[:5]))
