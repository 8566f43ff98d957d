"""What objectives look for that keep the vectors of a batch a Gaussian: whether they are in one place instead."""

from __future__ import annotations

from selfsup.checks import FEWEST_STEPS, LOWER_RATES, PATIENCE, History, NotMade, Symptom, problem
from selfsup.objectives.gaussian import of_one_place

BESIDE = 0.5  # of what vectors in one place have
FEWEST_RECORDS = 16  # of which even a Gaussian sample is far from that
MOST = 0.9  # weight that is told to try


@problem(
    seen="collapse: the term {term} is {told:.3g} at step {step:,}, where {batch} images that are all put in one place "
    "have {nothing:.3g}",
    why=f"vectors of sound runs are below a quarter of that after {PATIENCE:.0%} of their steps; crops agree in one "
    "place without anything learnt",
    remedy="hold the images apart with more weight: {train} lejepa.weight={more:.2g}; or " + LOWER_RATES,
)
def one_place(history: History) -> Symptom | None:
    """The vectors of a batch lie nearly in one place."""
    term, batch = history.setting("lejepa.regularizer"), history.setting("train.batch")
    told, nothing = history.level(term), of_one_place(term, batch)
    history.require_steps(max(PATIENCE * history.steps, FEWEST_STEPS), "vectors")
    if batch < FEWEST_RECORDS:
        raise NotMade(f"it takes batches of {FEWEST_RECORDS} records")
    if told < BESIDE * nothing:
        return None
    more = min(4 * history.setting("lejepa.weight"), MOST)
    figures = {"term": term, "told": told, "batch": batch, "nothing": nothing, "more": more}
    return Symptom(told / nothing, BESIDE, figures=figures)
