"""What image-text training looks for: two towers that do not find to each other, or of which one is left behind."""

from __future__ import annotations

import math

from selfsup.doctor.base import Finding, History, NotMade
from selfsup.doctor.checks import BESIDE, FEWEST_STEPS, LINES, PATIENCE, TINY, level

TOWERS = ("image", "text")
FEWEST_DISTINCT = 25  # captions; with fewer, so many of a batch are alike that blind guessing costs much less


def check_loss_at_ln_b(history: History) -> Finding | None:
    """Captions are found no better than by chance, ln B of the softmax loss; other terms of the loss aside."""
    term = history.settings["clip.loss"]
    losses = history.curve(term).at_least(LINES)
    patience = max(PATIENCE * history.steps, FEWEST_STEPS)
    if history.step < patience:
        raise NotMade(f"it takes {patience:,.0f} steps before a loss can be judged")
    if history.count("captions") - history.count("duplicate_captions") < FEWEST_DISTINCT:
        raise NotMade("equal captions are no negatives of each other, so blind guessing costs less than ln B")
    apart = math.log(2 * history.setting("train.batch") - 1)  # of SimCLR, which may be a term beside it
    nothing = history.chance - history.setting("clip.simclr") * apart
    loss = level(losses)
    if loss < BESIDE * nothing:
        return None
    return Finding(
        check="loss-at-ln-b",
        severity="problem",
        seen=f"captions are found no better than by chance: the term {term} is {loss:.3f} at step {history.step:,}, "
        f"where guessing among the {history.setting('train.batch')} of a batch gives {nothing:.3f}",
        step=history.step,
        value=loss / nothing,
        threshold=BESIDE,
        why=f"sound runs are well below it after {PATIENCE:.0%} of their steps; towers that put everything in one "
        "place, and ones that do not move, stay there",
        remedy=_other_rates(history, nothing, losses.values[0], loss)
        + "; see whether the captions say what their images show: "
        + _look(history),
    )


UNMOVED = 0.12  # of the first loss, by which batches of few pairs differ


def _other_rates(history: History, nothing: float, first: float, loss: float) -> str:
    """Longer steps for towers that stayed where they began, above chance; shorter ones for those that came to it."""
    if first > nothing / BESIDE and abs(loss - first) <= UNMOVED * first:
        return f"raise the learning rates, optim.lr (now {history.setting('optim.lr'):g}) first"
    return f"lower the learning rates: {history.lower_rates()}"


# The lower bound is 1 over the largest scale of cosines (`selfsup.objectives.clip`). The upper one is 1; runs that
# collapsed went there, and came back to .7 as their rates decayed, while sound ones were seen between .07 and .12.
SHARPEST, FLAT = 0.01, 0.5
BY_THE_BOUND = 1.02  # times it


def check_temperature_bound(history: History) -> Finding | None:
    """The temperature is as low as it may be, or nearly as high."""
    value = level(history.curve("temperature").at_least(LINES))
    if SHARPEST * BY_THE_BOUND < value < FLAT:
        return None
    seen = f"the temperature is {value:.3f} at step {history.step:,}, "
    if value >= FLAT:
        return Finding(
            check="temperature-bound",
            severity="problem",
            seen=f"{seen}towards its upper bound of 1: the towers gave up telling captions apart",
            step=history.step,
            value=value,
            threshold=FLAT,
            why="it is learnt, and rises where what is near is wrong; with cosines from -1 to 1 a right caption gets "
            f"at most e^{2 / FLAT:g} times the probability of a wrong one; sound runs stay below .15",
            remedy=f"lower the learning rates: {history.lower_rates()}",
        )
    return Finding(
        check="temperature-bound",
        severity="warning",
        seen=f"{seen}as low as it may be: only the nearest wrong caption of each image still counts",
        step=history.step,
        value=value,
        threshold=SHARPEST * BY_THE_BOUND,
        why="long trainings on hundreds of millions of pairs end there (Radford et al. 2021, section 2.5, who set the "
        "bound); on few pairs it says that they are learnt by heart",
        remedy="hide more of what could be learnt by heart: "
        f"{history.anew('clip.hidden_tokens=0.3')}; give more pairs, or fewer steps",
    )


# CLIP's own is .82 (Liang et al. 2022); sound tiny runs pass through 1.25 as they begin and are at 0.1 to 1.1 from
# their half on, most with the sigmoid loss. A squared gap is at most the mean squared distance of the pairs: 1.25
# leaves these a mean cosine of .22.
WIDEST_GAP = 1.25
SETTLED = 0.5  # of the run


def check_modality_gap(history: History) -> Finding | None:
    """Images and captions lie in two places, far from each other."""
    gaps = history.curve("modality_gap").at_least(LINES)
    if history.step < SETTLED * history.steps:
        raise NotMade(f"it takes {SETTLED * history.steps:,.0f} steps before a gap can be judged")
    value = level(gaps)
    if value <= WIDEST_GAP:
        return None
    return Finding(
        check="modality-gap",
        severity="warning",
        seen=f"images and captions lie apart: their means are {value:.2f} from each other at step {history.step:,}",
        step=history.step,
        value=value,
        threshold=WIDEST_GAP,
        why="a gap is usual, .82 for CLIP itself (Liang et al. 2022, Mind the Gap), and 2 the largest there is; one "
        f"of {WIDEST_GAP} leaves images and their captions a mean cosine of at most {1 - WIDEST_GAP**2 / 2:.2f}",
        remedy=f"lower the learning rates: {history.lower_rates()}; until then rank no images and texts in one list",
    )


# Three captions in ten that equal an earlier one leave seven in ten images that a caption can name alone, at most.
MOST_ALIKE = 0.3


def check_duplicate_captions(history: History) -> Finding | None:
    """Captions that equal an earlier one, and so do not say which image they belong to."""
    captions, alike = history.count("captions"), history.count("duplicate_captions")
    share = alike / max(captions, 1)
    if share <= MOST_ALIKE:
        return None
    return Finding(
        check="duplicate-captions",
        severity="warning",
        seen=f"{alike:,} of {captions:,} captions ({share:.0%}) equal an earlier one",
        step=0,
        value=share,
        threshold=MOST_ALIKE,
        why="equal captions are no negatives of each other, so batches teach less than they hold; and at most "
        f"{1 - share:.0%} of these captions can find their own image first",
        remedy="name columns whose captions tell the images apart (clip.captions), or leave copies out of data.source "
        f"({history.settings['data.source']}), and train anew",
    )


# Norms of both towers of sound runs were seen within a factor of 2, of a collapsed one up to 2,800 times apart.
LEAST_GRADIENT = 0.01  # of the other tower's


def check_vanishing_tower(history: History) -> Finding | None:
    """A tower hardly has a gradient where the other has one; not one that is kept as it is."""
    norms = {tower: level(history.curve(f"grad_norm_{tower}").at_least(LINES)) for tower in TOWERS}
    trained = [tower for tower in TOWERS if tower != history.settings["clip.freeze"]]
    weakest = min(trained, key=norms.__getitem__)
    other = next(tower for tower in TOWERS if tower != weakest)
    value = norms[weakest] / max(norms[other], TINY)
    if value >= LEAST_GRADIENT or norms[other] == 0:
        return None
    return Finding(
        check="vanishing-tower",
        severity="warning",
        seen=f"the {weakest} tower learns next to nothing: its gradient is {norms[weakest]:.2g} and the {other} "
        f"tower's {norms[other]:.2g} at step {history.step:,}",
        step=history.step,
        value=value,
        threshold=LEAST_GRADIENT,
        why="what pulls an image to its caption pulls the caption to the image as well, so both gradients are of one "
        "order in sound runs; a tower that says the same of everything has none",
        remedy=f"lower the learning rates: {history.lower_rates()}; see whether its inputs differ: {_look(history)}",
    )


def _look(history: History) -> str:
    return f"selfsup inspect clip --run {history.directory}"
