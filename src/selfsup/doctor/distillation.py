"""What objectives look for whose targets come from a teacher over prototypes: collapse, as early as it shows."""

from __future__ import annotations

import math

from selfsup.doctor.base import Finding, History, NotMade
from selfsup.doctor.checks import level

PATIENCE = 0.05  # of the run
FEWEST_LINES = 5

EVEN = 0.98  # of ln K


def patient(history: History) -> None:
    """Nothing is said of the first steps."""
    least = max(PATIENCE * history.steps, 1)
    if history.step < least:
        raise NotMade(f"it takes {least:,.0f} steps before a teacher can be judged")


def check_loss_at_chance(history: History) -> Finding | None:
    """The cross-entropy with the teacher is that of a student that says the same of everything."""
    patient(history)
    nothing = math.log(history.setting("dino.prototypes"))
    loss = level(history.curve("dino").at_least(FEWEST_LINES))
    if loss < EVEN * nothing:
        return None
    return Finding(
        check="loss-at-chance",
        severity="problem",
        seen=f"the term dino is {loss:.3f} at step {history.step:,}, beside the ln K = {nothing:.3f} of saying the same "
        "of every image",
        step=history.step,
        value=loss / nothing,
        threshold=EVEN,
        why="",
        remedy="",
    )


def check_uniform_teacher(history: History) -> Finding | None:
    return None


def check_few_prototypes(history: History) -> Finding | None:
    return None
