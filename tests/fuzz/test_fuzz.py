"""A small part of the campaign: some damaged inputs of every surface, the same ones each time."""

from __future__ import annotations

from campaign import COUNTS, run

EACH = {
    surface: 60 if count == 2000 else 25 if count == 1000 else 12 for surface, count in COUNTS.items()
}  # inputs


def test_no_damage_goes_by_unnoticed() -> None:
    # Patience is for a machine that does other things too; the campaign itself waits 30 seconds.
    tally, findings = run(list(COUNTS), EACH, seconds=240)
    assert sum(tally.values()) == sum(EACH.values())
    assert not findings, "\n\n".join(map(str, findings[:5]))
