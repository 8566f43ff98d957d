"""What objectives look for whose targets are what a teacher says: whether there is anything to learn from it."""

from __future__ import annotations

from selfsup.checks import History, Symptom, warning

CUT = 0.1  # of the texts


@warning(
    seen="{value:.0%} of the texts are longer than {window} tokens: the student answers without having read their end",
    why="its teacher may have read on, and nothing in what is left says what stood there",
    remedy="a larger window: {train} data.window={double}",
)
def cut_texts(history: History) -> Symptom | None:
    """Many texts that lose their end."""
    share, window = history.count("cut") / max(1, history.count("texts")), history.setting("data.window")
    figures = {"window": window, "double": 2 * window}
    return Symptom(share, CUT, step=0, figures=figures) if share > CUT else None


OUTDONE = 0.99  # of the teacher's loss: less apart, both are as good


@warning(
    seen="the student knows these texts better than its teacher: {own:.3f} nats beside {teacher:.3f} for a held-out "
    "token at step {step:,}",
    why="what the teacher says is then farther from what comes than what the student says already",
    remedy="give what comes a share: {train} distill.hard=0.5; or go on from the student by causal-lm",
)
def teacher_outdone(history: History) -> Symptom | None:
    """The teacher of a decoder knows the texts less than its student."""
    own, teacher = (history.curve(f"{of}cross_entropy", "validation").latest for of in ("", "teacher_"))
    if own[1] >= OUTDONE * teacher[1]:
        return None
    return Symptom(own[1] / teacher[1], OUTDONE, own[0], {"own": own[1], "teacher": teacher[1]})
