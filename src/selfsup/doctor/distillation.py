"""What objectives look for whose targets come from a teacher over prototypes: collapse, as soon as it shows.

A student can please its teacher by saying the same of every image. Then the teacher, its average, says so too: either
every prototype of everything (the entropy of its targets is ln K), or one prototype of everything.
"""

from __future__ import annotations

import math

from selfsup.doctor.base import Finding, History, NotMade
from selfsup.doctor.checks import LINES, level

SOUND_TEMPERATURE = 0.04  # of a teacher; Caron et al. (2021, appendix) lose everything between .06 and .08

# Teachers of sound runs were seen between 0.6 and 0.95 of ln K, at their softest before they had learnt anything; those
# of collapsed runs above 0.98, and on their way there above 0.97 for good.
UNIFORM = 0.975  # of ln K
PATIENCE = 0.05  # of the run


def check_uniform_teacher(history: History) -> Finding | None:
    """The teacher says nearly the same of every image: all prototypes alike."""
    entropies = history.curve("teacher_entropy").at_least(LINES)
    if history.step < PATIENCE * history.steps:
        raise NotMade(f"it takes {PATIENCE * history.steps:,.0f} steps before a teacher can be judged")
    value = level(entropies) / math.log(history.setting("dino.prototypes"))
    if value < UNIFORM:
        return None
    return Finding(
        check="uniform-teacher",
        severity="problem",
        seen=f"collapse: the teacher gives every image all prototypes alike, with {value:.1%} of the largest entropy, "
        f"ln K, at step {history.step:,}",
        step=history.step,
        value=value,
        threshold=UNIFORM,
        why="targets that are the same for every image can be met without looking; teachers of sound runs stay below "
        f"{UNIFORM:.1%}",
        remedy=_sharper(history),
    )


# A cross-entropy is the entropy of the targets and more, so it lies at ln K or above where nothing is told apart.
BESIDE = 0.99  # of ln K
FEWEST_STEPS = 50  # before which nothing can be expected of any run


def check_loss_at_ln_k(history: History) -> Finding | None:
    """The student does no better than one that gives every image all prototypes alike."""
    losses = history.curve("dino").at_least(LINES)
    patience = max(PATIENCE * history.steps, FEWEST_STEPS)
    if history.step < patience:
        raise NotMade(f"it takes {patience:,.0f} steps before a loss can be judged")
    nothing = math.log(history.setting("dino.prototypes"))
    loss = level(losses)
    if loss < BESIDE * nothing:
        return None
    return Finding(
        check="loss-at-ln-k",
        severity="problem",
        seen=f"collapse: the term dino is {loss:.3f} at step {history.step:,}, beside the ln K = {nothing:.3f} of "
        "giving every image all prototypes alike",
        step=history.step,
        value=loss / nothing,
        threshold=BESIDE,
        why=f"sound runs are below {BESIDE:.0%} of ln K after {FEWEST_STEPS} steps",
        remedy=_sharper(history),
    )


# Of as many as a batch can use: those of its two crops of each image. Sound runs use half of them and more.
FEWEST_USED = 0.05


def check_few_prototypes(history: History) -> Finding | None:
    """The teacher gives most images the same few prototypes."""
    used = level(history.curve("prototypes_used").at_least(LINES))
    most = min(history.setting("dino.prototypes"), 2 * history.setting("train.batch"))
    least = max(FEWEST_USED, 1.5 / most)  # of a small batch, more than one
    if used >= least:
        return None
    rates = f"lower the learning rates: {history.lower_rates()}"
    balanced = history.setting("dino.targets") == "sinkhorn"
    return Finding(
        check="few-prototypes",
        severity="problem",
        seen=f"collapse: the teacher gives the images of a batch {used:.1%} of the prototypes they could have, at step "
        f"{history.step:,}",
        step=history.step,
        value=used,
        threshold=least,
        why="targets that are the same for most images can be met without looking; sound runs use half of them",
        remedy=rates if balanced else f"balance the targets: {history.anew('dino.targets=sinkhorn')}",
    )


def _sharper(history: History) -> str:
    """Sharper targets, where they can be; else shorter steps."""
    first, last = history.setting("dino.teacher_temperature")
    if max(first, last) > SOUND_TEMPERATURE:
        sharp = f"[{SOUND_TEMPERATURE},{SOUND_TEMPERATURE}]"
        return f"sharpen the teacher: {history.anew(f'dino.teacher_temperature={sharp}')}"
    return f"lower the learning rates: {history.lower_rates()}"
