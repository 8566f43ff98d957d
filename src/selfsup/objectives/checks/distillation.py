"""What objectives look for whose targets come from a teacher over prototypes: collapse, as soon as it shows.

A student can please its teacher by saying the same of every image. Then the teacher, its average, says so too: either
every prototype of everything (the entropy of its targets is ln K), or one prototype of everything.
"""

from __future__ import annotations

import math

from selfsup.checks import FEWEST_STEPS, LOWER_RATES, History, Symptom, problem

SOUND_TEMPERATURE = 0.04  # of a teacher; Caron et al. (2021, appendix) lose everything between .06 and .08
SHARPEN = "sharpen the teacher: {train} dino.teacher_temperature=" + f"[{SOUND_TEMPERATURE},{SOUND_TEMPERATURE}]"

# Teachers of sound runs were seen between 0.6 and 0.95 of ln K, at their softest before they had learnt anything; those
# of collapsed runs above 0.98, and on their way there above 0.97 for good.
UNIFORM = 0.975  # of ln K
PATIENCE = 0.05  # of the run


@problem(
    seen="collapse: the teacher gives every image all prototypes alike, with {value:.1%} of the largest entropy, ln K, "
    "at step {step:,}",
    why="targets that are the same for every image can be met without looking; teachers of sound runs stay below "
    f"{UNIFORM:.1%}",
)
def uniform_teacher(history: History) -> Symptom | None:
    """The teacher says nearly the same of every image: all prototypes alike."""
    entropy = history.level("teacher_entropy")
    history.require_steps(PATIENCE * history.steps, "a teacher")
    value = entropy / math.log(history.setting("dino.prototypes"))
    return None if value < UNIFORM else Symptom(value, UNIFORM, remedy=_sharper(history))


# A cross-entropy is the entropy of the targets and more, so it lies at ln K or above where nothing is told apart.
BESIDE = 0.99  # of ln K


@problem(
    seen="collapse: the term dino is {loss:.3f} at step {step:,}, beside the ln K = {nothing:.3f} of giving every "
    "image all prototypes alike",
    why=f"sound runs are below {BESIDE:.0%} of ln K after {FEWEST_STEPS} steps",
)
def loss_at_ln_k(history: History) -> Symptom | None:
    """The student does no better than one that gives every image all prototypes alike."""
    loss = history.level("dino")
    history.require_steps(max(PATIENCE * history.steps, FEWEST_STEPS), "a loss")
    nothing = math.log(history.setting("dino.prototypes"))
    if loss < BESIDE * nothing:
        return None
    return Symptom(loss / nothing, BESIDE, figures={"loss": loss, "nothing": nothing}, remedy=_sharper(history))


# Of as many as a batch can use: those of its two crops of each image. Sound runs use half of them and more.
FEWEST_USED = 0.05


@problem(
    seen="collapse: the teacher gives the images of a batch {value:.1%} of the prototypes they could have, at step "
    "{step:,}",
    why="targets that are the same for most images can be met without looking; sound runs use half of them",
    remedy="balance the targets: {train} dino.targets=sinkhorn",
)
def few_prototypes(history: History) -> Symptom | None:
    """The teacher gives most images the same few prototypes."""
    used = history.level("prototypes_used")
    most = min(history.setting("dino.prototypes"), 2 * history.setting("train.batch"))
    least = max(FEWEST_USED, 1.5 / most)  # of a small batch, more than one
    if used >= least:
        return None
    balanced = history.setting("dino.targets") == "sinkhorn"
    return Symptom(used, least, remedy=LOWER_RATES if balanced else None)


def _sharper(history: History) -> str:
    """Sharper targets, where they can be; else shorter steps."""
    return SHARPEN if max(history.setting("dino.teacher_temperature")) > SOUND_TEMPERATURE else LOWER_RATES


DISTILLATION = (uniform_teacher, few_prototypes, loss_at_ln_k)
