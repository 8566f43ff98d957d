"""What objectives look for whose loss is contrastive: their recipes name these checks in `Recipe.checks`."""

from __future__ import annotations

from selfsup.doctor.base import Finding, History


def check_dropout_off(history: History) -> Finding | None:
    """Neither dropout nor deletion, which tell two views apart: for objectives that encode a sentence twice."""
    dropout = history.setting("model.dropout")
    if dropout > 0 or history.setting("simcse.deletion"):
        return None
    return Finding(
        check="dropout-off",
        severity="problem",
        seen="model.dropout and simcse.deletion are 0, so both views of a sentence are the same",
        step=0,
        value=dropout,
        threshold=0.0,
        why="nothing is hidden then: the views agree before anything is learnt "
        "(Gao et al. 2021, SimCSE, table 3)",
        remedy=f"give it one: {history.anew('simcse.deletion=0.5')}, or model.dropout=0.1",
    )


# Half of the smallest batch that Gao et al. (2021, SimCSE, appendix A) tried.
FEWEST_RECORDS = 32


def check_small_batch(history: History) -> Finding | None:
    """A batch of too few records to be told apart: for losses in which the others of the batch are the negatives."""
    batch = history.setting("train.batch")
    if batch >= FEWEST_RECORDS:
        return None
    return Finding(
        check="small-batch",
        severity="warning",
        seen=f"a batch of {batch} gives each record {batch - 1} others to be told from",
        step=0,
        value=float(batch),
        threshold=float(FEWEST_RECORDS),
        why="a loss over a batch of B can only ask for ln B nats (van den Oord et al. 2018, section 2.3), and is "
        "solved too soon",
        remedy="a larger batch costs no memory, since it is computed in micro-batches: "
        + history.anew(f"--batch {4 * FEWEST_RECORDS}"),
    )
