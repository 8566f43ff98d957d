"""What image-text training looks for: two towers that do not find to each other, or of which one is left behind."""

from __future__ import annotations

import math

from selfsup.checks import (
    BESIDE,
    FEWEST_STEPS,
    LINES,
    LOWER_RATES,
    PATIENCE,
    TINY,
    History,
    NotMade,
    Symptom,
    problem,
    warning,
)

TOWERS = ("image", "text")
FEWEST_DISTINCT = 25  # captions; with fewer, so many of a batch are alike that blind guessing costs much less
UNMOVED = 0.12  # of the first loss, by which batches of few pairs differ
LOOK = "; see whether the captions say what their images show: selfsup inspect clip --run {directory}"


@problem(
    seen="captions are found no better than by chance: the term {term} is {loss:.3f} at step {step:,}, where guessing "
    "among the {batch} of a batch gives {nothing:.3f}",
    why=f"sound runs are well below it after {PATIENCE:.0%} of their steps; towers that put everything in one place, "
    "and ones that do not move, stay there",
    remedy=LOWER_RATES + LOOK,
)
def loss_at_ln_b(history: History) -> Symptom | None:
    """Captions are found no better than by chance, ln B of the softmax loss; other terms of the loss aside."""
    term, batch = history.settings["clip.loss"], history.setting("train.batch")
    losses = history.curve(term).at_least(LINES)
    history.require_steps(max(PATIENCE * history.steps, FEWEST_STEPS), "a loss")
    if history.count("captions") - history.count("duplicate_captions") < FEWEST_DISTINCT:
        raise NotMade("equal captions are no negatives of each other, so blind guessing costs less than ln B")
    apart = math.log(2 * batch - 1)  # of SimCLR, which may be a term beside it
    nothing = history.chance - history.setting("clip.simclr") * apart
    loss, first = losses.level, losses.values[0]
    if loss < BESIDE * nothing:
        return None
    figures = {"term": term, "loss": loss, "batch": batch, "nothing": nothing, "lr": history.setting("optim.lr")}
    # Towers that stayed where they began, above chance, want longer steps; shorter ones those that came to it.
    still = first > nothing / BESIDE and abs(loss - first) <= UNMOVED * first
    longer = "raise the learning rates, optim.lr (now {lr:g}) first" + LOOK
    return Symptom(loss / nothing, BESIDE, figures=figures, remedy=longer if still else None)


# The lower bound is 1 over the largest scale of cosines (`selfsup.objectives.clip`). The upper one is 1; runs that
# collapsed went there, and came back to .7 as their rates decayed, while sound ones were seen between .07 and .12.
SHARPEST, FLAT = 0.01, 0.5
BY_THE_BOUND = 1.02  # times it


@problem(
    name="temperature-bound",
    seen="the temperature is {value:.3f} at step {step:,}, towards its upper bound of 1: the towers gave up telling "
    "captions apart",
    why="it is learnt, and rises where what is near is wrong; with cosines from -1 to 1 a right caption gets at most "
    f"e^{2 / FLAT:g} times the probability of a wrong one; sound runs stay below .15",
)
def temperature_flat(history: History) -> Symptom | None:
    """The temperature is nearly as high as it may be."""
    value = history.level("temperature")
    return Symptom(value, FLAT) if value >= FLAT else None


@warning(
    name="temperature-bound",
    seen="the temperature is {value:.3f} at step {step:,}, as low as it may be: only the nearest wrong caption of each "
    "image still counts",
    why="long trainings on hundreds of millions of pairs end there (Radford et al. 2021, section 2.5, who set the "
    "bound); on few pairs it says that they are learnt by heart",
    remedy="hide more of what could be learnt by heart: {train} clip.hidden_tokens=0.3; give more pairs, or fewer "
    "steps",
)
def temperature_sharp(history: History) -> Symptom | None:
    """The temperature is as low as it may be, and was not so in a model that both towers were started from."""
    place = history.settings["model.init"]
    if place is not None and place == history.settings["text.init"]:
        raise NotMade("the model that the towers start from brings its own")
    value, threshold = history.level("temperature"), SHARPEST * BY_THE_BOUND
    return Symptom(value, threshold) if value <= threshold else None


# CLIP's own is .82 (Liang et al. 2022); sound tiny runs pass through 1.25 as they begin and are at 0.1 to 1.1 from
# their half on, most with the sigmoid loss. A squared gap is at most the mean squared distance of the pairs: 1.25
# leaves these a mean cosine of .22.
WIDEST_GAP = 1.25
SETTLED = 0.5  # of the run


@warning(
    seen="images and captions lie apart: their means are {value:.2f} from each other at step {step:,}",
    why="a gap is usual, .82 for CLIP itself (Liang et al. 2022, Mind the Gap), and 2 the largest there is; one of "
    f"{WIDEST_GAP} leaves images and their captions a mean cosine of at most {1 - WIDEST_GAP**2 / 2:.2f}",
    remedy=LOWER_RATES + "; until then rank no images and texts in one list",
)
def modality_gap(history: History) -> Symptom | None:
    """Images and captions lie in two places, far from each other."""
    value = history.level("modality_gap")
    history.require_steps(SETTLED * history.steps, "a gap")
    return Symptom(value, WIDEST_GAP) if value > WIDEST_GAP else None


# Three captions in ten that equal an earlier one leave seven in ten images that a caption can name alone, at most.
MOST_ALIKE = 0.3


@warning(
    seen="{alike:,} of {captions:,} captions ({value:.0%}) equal an earlier one",
    why="equal captions are no negatives of each other, so batches teach less than they hold; and at most {alone:.0%} "
    "of these captions can find their own image first",
    remedy="name columns whose captions tell the images apart (clip.captions), or leave copies out of data.source "
    "({source}), and train anew",
)
def duplicate_captions(history: History) -> Symptom | None:
    """Captions that equal an earlier one, and so do not say which image they belong to."""
    captions, alike = history.count("captions"), history.count("duplicate_captions")
    share = alike / max(captions, 1)
    if share <= MOST_ALIKE:
        return None
    figures = {"captions": captions, "alike": alike, "alone": 1 - share}
    figures["source"] = history.settings["data.source"]
    return Symptom(share, MOST_ALIKE, step=0, figures=figures)


# Norms of both towers of sound runs were seen within a factor of 2, of a collapsed one up to 2,800 times apart.
LEAST_GRADIENT = 0.01  # of the other tower's


@warning(
    seen="the {weakest} tower learns next to nothing: its gradient is {norm:.2g} and the {other} tower's {others:.2g} "
    "at step {step:,}",
    why="what pulls an image to its caption pulls the caption to the image as well, so both gradients are of one order "
    "in sound runs; a tower that says the same of everything has none",
    remedy=LOWER_RATES + "; see whether its inputs differ: selfsup inspect clip --run {directory}",
)
def vanishing_tower(history: History) -> Symptom | None:
    """A tower hardly has a gradient where the other has one; not one that is kept as it is."""
    norms = {tower: history.level(f"grad_norm_{tower}") for tower in TOWERS}
    trained = [tower for tower in TOWERS if tower != history.settings["clip.freeze"]]
    weakest = min(trained, key=norms.__getitem__)
    other = next(tower for tower in TOWERS if tower != weakest)
    value = norms[weakest] / max(norms[other], TINY)
    if value >= LEAST_GRADIENT or norms[other] == 0:
        return None
    figures = {"weakest": weakest, "norm": norms[weakest], "other": other, "others": norms[other]}
    return Symptom(value, LEAST_GRADIENT, figures=figures)


PAIRS = (loss_at_ln_b, temperature_flat, temperature_sharp, modality_gap, duplicate_captions, vanishing_tower)
