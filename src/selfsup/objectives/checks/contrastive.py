"""What objectives look for that tell the records of a batch apart."""

from __future__ import annotations

from selfsup.checks import History, Symptom, problem, warning


@problem(
    seen="model.dropout and simcse.deletion are 0, so both views of a sentence are the same",
    why="nothing is hidden then: the views agree before anything is learnt (Gao et al. 2021, SimCSE, table 3)",
    remedy="give it one: {train} simcse.deletion=0.5, or model.dropout=0.1",
)
def dropout_off(history: History) -> Symptom | None:
    """Neither dropout nor deletion, which tell two views apart: for objectives that encode a sentence twice."""
    dropout = history.setting("model.dropout")
    return None if dropout > 0 or history.setting("simcse.deletion") else Symptom(dropout, 0.0, step=0)


FEWEST_RECORDS = 32  # half of the smallest batch that Gao et al. (2021, SimCSE, appendix A) tried


@warning(
    seen="a batch of {value:.0f} gives each record {others} others to be told from",
    why="a loss over a batch of B can only ask for ln B nats (van den Oord et al. 2018, section 2.3), and is solved "
    "too soon",
    remedy="a larger batch costs no memory, since it is computed in micro-batches: {train} "
    f"--batch {4 * FEWEST_RECORDS}",
)
def small_batch(history: History) -> Symptom | None:
    """A batch of too few records to be told apart: for losses in which the others of the batch are the negatives."""
    batch = history.setting("train.batch")
    if batch >= FEWEST_RECORDS:
        return None
    return Symptom(batch, FEWEST_RECORDS, step=0, figures={"others": batch - 1})


MOST_ALIKE = 0.3  # as of captions: at most seven in ten of the texts can then be told from all others


@warning(
    seen="{alike:,} of {pairs:,} pairs ({value:.0%}) share a text with an earlier one",
    why="what shares a text is no negative, so batches teach less than they hold; and texts that nearly equal each "
    "other, which comes with them, are pushed apart all the same",
    remedy="leave copies out of data.source ({source}), or name columns whose texts differ (pairs.query, "
    "pairs.passage), and train anew",
)
def alike_pairs(history: History) -> Symptom | None:
    """Pairs with a text of an earlier pair, which say little of who belongs to whom."""
    pairs, alike = history.count("pairs"), history.count("alike_pairs")
    share = alike / max(pairs, 1)
    figures = {"pairs": pairs, "alike": alike, "source": history.settings["data.source"]}
    return Symptom(share, MOST_ALIKE, 0, figures) if share > MOST_ALIKE else None
