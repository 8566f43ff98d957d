"""What is looked for in every run, whatever its objective.

Thresholds stand above the check that uses them; docs/doctor.md says what they were measured on.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from selfsup.checks import (
    BESIDE,
    FEWEST_STEPS,
    LINES,
    LOWER_RATES,
    PACE,
    PATIENCE,
    TINY,
    Curve,
    History,
    NotMade,
    Symptom,
    Values,
    problem,
    warning,
)
from selfsup.objectives import declared

CONTRASTIVE_TOO = LOWER_RATES + "; a contrastive loss wants a larger --batch too"

WORSE = 1.12  # times where it began, by which losses of small batches differ


@problem(
    seen="the loss is {loss:.3f} at step {step:,}, {beside} the {chance:.3f} of knowing nothing",
    why=f"after {PATIENCE:.0%} of a run even the frequencies of what is predicted put a loss well below {BESIDE:.0%} "
    "of chance",
    remedy="try another optim.lr (now {lr:g}), and look at what is to be learnt with selfsup inspect",
)
def beside_chance(history: History) -> Symptom | None:
    """The loss is still that of a model that knows nothing, or worse."""
    chance = history.chance
    patience = max(PATIENCE * history.steps, FEWEST_STEPS, 2 * history.setting("optim.warmup"))
    history.require_steps(patience, "a loss")
    loss = history.curve("loss").level
    if loss < BESIDE * chance:
        return None
    beside = "worse than" if loss > chance / BESIDE else "beside"
    figures = {"loss": loss, "chance": chance, "beside": beside, "lr": history.setting("optim.lr")}
    rose = loss > WORSE * begun(history)
    too_high = "the learning rate is too high: {lower_rates}" if rose else None
    return Symptom(loss / chance, BESIDE, figures=figures, remedy=too_high)


# Steps of sound runs are never worse than no training at all; what starts too fast is so at once.
ABOVE_START = 1.05  # times the larger of chance and the first loss


@warning(
    seen="the loss was {loss:.3f} at step {step:,}, above the {start:.3f} it began with",
    why=f"batches differ by less than {ABOVE_START - 1:.0%} before anything is learnt; more comes from updates that "
    "are too long",
)
def above_start(history: History) -> Symptom | None:
    """The loss rose above where it began: the first steps were too long."""
    losses = history.curve("loss").at_least(LINES)
    start = max(history.start, losses.values[0])
    scatter = begun(history) - history.start  # what begins above chance differs as much from batch to batch
    worst = int(losses.values.argmax())
    loss = losses.values[worst]
    if loss <= ABOVE_START * (start + scatter):
        return None
    figures = {"loss": loss, "start": start}
    return Symptom(loss / (start + scatter), ABOVE_START, losses.steps[worst], figures)


# Of what the loss has fallen from chance. The noise of the steps has to be exceeded as well: batches of 128 tokens
# jump by up to 0.27 of the fall without ailing, but never by more than 3.3 of their own standard deviations.
JUMP = 0.3
JUMP_NOISE = 8.0  # robust standard deviations of the jumps


@warning(
    seen="{spikes} of the loss, the highest to {loss:.3f} from {before:.3f} at step {step:,}",
    why=f"a jump beyond {JUMP:.0%} of all that was learnt, and beyond {JUMP_NOISE:g} standard deviations of the steps, "
    "is no accident of a batch",
)
def loss_spikes(history: History) -> Symptom | None:
    """Single steps with a loss far above those before them."""
    losses = history.curve("loss").at_least(3 * LINES)
    levels = preceding_medians(losses.values, LINES)
    after, steps = losses.values[LINES:], losses.steps[LINES:]
    jumps = after - levels
    shares = jumps / learnt(history, levels)
    spikes = (shares > JUMP) & (jumps > JUMP_NOISE * deviation(jumps))
    if not spikes.any():
        return None
    worst = int(np.where(spikes, shares, -np.inf).argmax())
    figures = {"spikes": count(spikes.sum(), "spike"), "loss": after[worst], "before": levels[worst]}
    return Symptom(shares[worst], JUMP, steps[worst], figures)


# Of what the loss had fallen from chance. The level of sound runs with 40 predictions a step wavers by more, but within
# the noise of the steps.
LOST = 0.25
LOST_NOISE = 3.0  # robust standard deviations of single steps


@problem(
    seen="the training loss is back at {loss:.3f} at step {step:,} after {lowest:.3f} at step {then:,}",
    why=f"{LOST:.0%} of what was learnt is lost in the median of {LINES} lines, which single batches do not move",
)
def diverging(history: History) -> Symptom | None:
    """The training loss rose again and stays there."""
    losses = history.curve("loss").at_least(3 * LINES)
    medians = preceding_medians(losses.values, LINES)
    noise = deviation(losses.values[LINES:] - medians)
    # A contrastive loss is low before the first update where the two views of a record share most of what they show.
    levels = np.concatenate([losses.values[:1], medians])
    steps = np.concatenate([losses.steps[:1], losses.steps[LINES - 1 :]])
    lowest, loss = int(levels.argmin()), losses.level
    rise = loss - levels[lowest]
    lost = rise / learnt(history, levels)[lowest]
    if lost <= LOST or rise <= LOST_NOISE * noise:
        return None
    return Symptom(lost, LOST, figures={"loss": loss, "lowest": levels[lowest], "then": steps[lowest]})


# Of what the loss has fallen from chance. Looks are at the same records under the same masks, yet a look at a few dozen
# predictions wavers: by how much is seen in how crooked the curve of the looks is.
RISE = 0.02
RISE_NOISE = 4.0  # robust standard deviations of a look
RISING_LOOKS = 2  # in a row
FEWEST_LOOKS = 4  # that show how crooked they are


@warning(
    seen="the validation loss is {loss:.3f} at step {step:,} after {lowest:.3f} at step {then:,}",
    why=f"{RISING_LOOKS} looks in a row are above the lowest by more than {RISE:.0%} of what had been learnt and more "
    f"than {RISE_NOISE:g} standard deviations of a look at the same records",
    remedy="give more data, a smaller model.preset, or stop there: {train} --steps {then}",
)
def validation_rising(history: History) -> Symptom | None:
    """The held-out loss rises while training goes on: the model learns its data by heart."""
    looks = comparable_looks(history).after(0).at_least(FEWEST_LOOKS)
    losses, steps = looks.values, looks.steps
    lowest = int(losses.argmin())
    scale = learnt(history, losses)[lowest]
    noise = typical(np.diff(losses, 2)) / 6**0.5  # second differences of noise have six times its variance
    rise = losses[-RISING_LOOKS:].min() - losses[lowest]
    if rise <= max(RISE * scale, RISE_NOISE * noise):
        return None
    figures = {"loss": losses[-1], "lowest": losses[lowest], "then": steps[lowest]}
    return Symptom(rise / scale, max(RISE, RISE_NOISE * noise / scale), steps[-1], figures)


# Looks are at the same records as the one before the first step; warming a rate up anew costs for a while what its
# decay wins back (Gupta et al. 2023, figure 2), so that a run is judged from its half on, and by two looks.
ABOVE_BEGINNING = 1.002  # times the loss of the start
JUDGED = 0.5  # of the run


@warning(
    seen="the held-out loss is {loss:.4f} at step {step:,}, above the {start:.4f} of the weights that it started from",
    why="the same records cost less before the first step: what the run adds is worth less than what it forgets",
    remedy=LOWER_RATES + "; or hold on to the start: optim.l2_sp=0.01, optim.wise_ft=true, data.replay=OLD:0.2",
)
def below_start(history: History) -> Symptom | None:
    """What a run makes of the weights that it started from is worse than these."""
    looks = comparable_looks(history)
    if looks.steps[0] != 0:  # it starts from nothing
        return None
    if not declared(history.settings["objective"], history.settings.values()).losses_compare:
        raise NotMade("the loss is measured against what the run makes itself")
    history.require_steps(JUDGED * history.steps, "it beside its start")
    start, latest = looks.values[0], looks.after(0).at_least(RISING_LOOKS).values[-RISING_LOOKS:]
    if latest.min() <= ABOVE_BEGINNING * start:
        return None
    figures = {"loss": latest[-1], "start": start}
    return Symptom(latest.min() / start, ABOVE_BEGINNING, looks.steps[-1], figures)


# Norms of sound runs lie within 6 times the median of the ten before them, and that with 40 predictions a step; only
# those of a contrastive loss that is nearly solved vary by orders of magnitude, and show it all the time.
SPIKE = 10.0
SPIKE_NOISE = 6.0  # robust standard deviations of the logarithm of that ratio


@warning(
    seen="{spikes} out of line, the longest {norm:.3g} after {before:.3g} at step {step:,}",
    why=f"norms of sound runs stay within 6 times the median of the {LINES} lines before them, or vary by as much all "
    "the time",
    remedy=LOWER_RATES + "; and look for odd records in the data",
)
def gradient_spikes(history: History) -> Symptom | None:
    """Gradients far longer than those before them."""
    norms = history.curve("grad_norm").after(history.setting("optim.warmup")).at_least(2 * LINES)
    levels = preceding_medians(norms.values, LINES)
    after, steps = norms.values[LINES:], norms.steps[LINES:]
    ratios = after / np.maximum(levels, TINY)
    least = max(SPIKE, np.exp(SPIKE_NOISE * deviation(np.log(np.maximum(ratios, TINY)))))
    spikes = (ratios > least).sum()
    if not spikes:
        return None
    worst = int(ratios.argmax())
    figures = {"spikes": count(spikes, "gradient"), "norm": after[worst], "before": levels[worst]}
    return Symptom(ratios[worst], least, steps[worst], figures)


MANY_SKIPPED = 0.01  # of the steps: above that the run is not the one that was planned
SKIPPED = "{steps} of {all:,} skipped for a loss or gradient that is not finite, the last at step {step:,}"
FINITE = "every sound step is finite; ten in a row end the run"
STEADIER = "train with --precision fp32, or " + LOWER_RATES


@problem(name="skipped-steps", seen=SKIPPED, why=FINITE, remedy=STEADIER)
def many_skipped(history: History) -> Symptom | None:
    """More steps without a finite loss or gradient, which changed nothing, than a run can do without."""
    symptom = skipped(history)
    return symptom if symptom and symptom.value > MANY_SKIPPED * history.step else None


@warning(name="skipped-steps", seen=SKIPPED, why=FINITE, remedy=STEADIER)
def some_skipped(history: History) -> Symptom | None:
    """Fewer of them."""
    symptom = skipped(history)
    return symptom if symptom and symptom.value <= MANY_SKIPPED * history.step else None


def skipped(history: History) -> Symptom | None:
    train = [line for line in history.lines if line["split"] == "train"]
    if not train:
        raise NotMade("no step is logged yet")
    steps = [line["step"] for line in train if line["loss"] is None or line["grad_norm"] is None]
    number = max(len(steps), history.summary.get("skipped_steps", 0))
    figures = {"steps": count(number, "step"), "all": history.step}
    return Symptom(number, 0.0, steps[-1] if steps else None, figures) if number else None


# Collapsed features are one point but for rounding. Text encoders crowd theirs into a cone without being collapsed
# (Ethayarajh 2019, "How Contextual are Contextualized Word Representations?"): sound ones were seen at 0.19.
LOWEST_SPREAD = 0.05


@problem(
    seen="the features have collapsed into one point: their deviation is {value:.3f} of 1 at step {step:,}",
    why=f"below it the mean cosine of two records is above {1 - LOWEST_SPREAD**2:.4f}; 1 is spread, 0 one point",
    remedy=CONTRASTIVE_TOO,
)
def collapse(history: History) -> Symptom | None:
    """Features that are nearly the same for every record."""
    step, spread = history.curve("feature_std", "validation").latest
    return Symptom(spread, LOWEST_SPREAD, step) if spread < LOWEST_SPREAD else None


LOWEST_RANK = 0.05  # of the directions that there are; sound encoders of 64 to 128 dimensions were seen at 0.14
FEWEST_DIRECTIONS = 2.0
FEWEST_RECORDS = 64  # whose features span enough directions to judge by


@warning(
    seen="the features use {value:.1f} (RankMe) of {directions:.0f} directions at step {step:,}",
    why=f"encoders that learn use three times {LOWEST_RANK:.0%} of their directions and more",
    remedy=CONTRASTIVE_TOO,
)
def low_rank(history: History) -> Symptom | None:
    """Features that lie in a few of their dimensions."""
    step, rank = history.curve("rankme", "validation").latest
    records = history.curve("records", "validation").latest[1]
    if records < FEWEST_RECORDS:
        raise NotMade(f"it takes looks at {FEWEST_RECORDS} records")
    directions = min(dimensions(history), records)
    least = max(LOWEST_RANK * directions, FEWEST_DIRECTIONS)
    return Symptom(rank, least, step, {"directions": directions}) if rank < least else None


def dimensions(history: History) -> int:
    """Of the features: as the recipe noted them, else those of the model."""
    try:
        return history.count("dimensions")
    except NotMade:
        return int(history.setting("model.width"))


# Features whose pairs all lie equally far have a uniformity of −4 spread² (and none less: Jensen). Sound encoders
# reach nine tenths of that, k clumps at right angles 0.34 (k = 2), 0.48 (k = 5), 0.60 (k = 10).
LEAST_EVEN = 0.45


@warning(
    seen="the features lie in a few clumps: a uniformity of {uniformity:.2f} with a deviation of {spread:.2f} at step "
    "{step:,}",
    why="features that are spread evenly reach nine tenths of −4 deviation², four clumps less than half of it",
    remedy="unless the data is of so few kinds, look for what its records share (selfsup inspect), and " + LOWER_RATES,
)
def clumps(history: History) -> Symptom | None:
    """Features that lie in a few clumps, each of them nearly a point."""
    spread = history.curve("feature_std", "validation").latest[1]
    step, uniformity = history.curve("uniformity", "validation").latest
    even = uniformity / min(-4 * spread**2, -TINY)
    if even >= LEAST_EVEN or spread < LOWEST_SPREAD:
        return None
    return Symptom(even, LEAST_EVEN, step, {"uniformity": uniformity, "spread": spread})


# Of web corpora 3 % (C4) to 14 % (RealNews) are copies or nearly so (Lee et al. 2022, "Deduplicating Training Data
# Makes Language Models Better"); exact copies beyond a tenth are not what text is like by itself.
MOST_DUPLICATES = 0.1


@warning(
    seen="{duplicates:,} of {documents:,} documents ({value:.0%}) equal an earlier one",
    why="web text holds about a tenth at its worst; models learn by heart what they meet often (Lee et al. 2022)",
    remedy="leave the copies out of data.source ({source}), and train anew",
)
def duplicates(history: History) -> Symptom | None:
    """Documents that equal an earlier one."""
    documents, copies = history.count("documents"), history.count("duplicates")
    figures = {"duplicates": copies, "documents": documents, "source": history.settings["data.source"]}
    share = copies / max(documents, 1)
    return Symptom(share, MOST_DUPLICATES, 0, figures) if share > MOST_DUPLICATES else None


MOST_WAITING = 0.2  # of a step: a fifth of the machine stands still


@warning(
    seen="steps wait for their data during {value:.0%} of their time, at step {step:,}",
    why="reading is to happen beside the arithmetic; what it takes beyond that is lost",
    remedy="read with more threads, data.workers={more} (now {workers}; --resume takes it too), or put the data on a "
    "faster disk",
)
def loader(history: History) -> Symptom | None:
    """Steps that wait for their data."""
    waiting = history.level("waiting")
    if waiting <= MOST_WAITING:
        return None
    workers = history.setting("data.workers")
    return Symptom(waiting, MOST_WAITING, figures={"workers": workers, "more": max(2, 2 * workers)})


SECONDS = 60.0  # that it takes to tell what the machine does from an accident


def _require_time(history: History) -> None:
    """Raise `NotMade` where a run is too short for its times to say anything."""
    if history.lines[-1]["time"] < SECONDS:
        raise NotMade(f"it takes {SECONDS:g} seconds before a pace can be judged")


MOST_EXCHANGING = 0.5  # of the time: two processes then do no more than one


@warning(
    seen="steps wait for other processes during {value:.0%} of their time, at step {step:,}",
    why="what two processes gain is lost when each waits for half of it",
    remedy="give each more to do between two exchanges (--batch {batch}), or train with fewer processes",
)
def exchange(history: History) -> Symptom | None:
    """Steps that wait for other processes."""
    waiting = history.level("waiting_collectives")
    _require_time(history)
    batch = 2 * (history.settings["train.batch"] or 1)
    return Symptom(waiting, MOST_EXCHANGING, figures={"batch": batch}) if waiting > MOST_EXCHANGING else None


MOST_SAVING = 0.05  # of the time: a few checkpoints less lose less than that in a crash


@warning(
    seen="{value:.0%} of the time goes into checkpoints",
    why="a checkpoint saves the time since the last one, and that rarely; this is lost for certain",
    remedy="save less often: {train} checkpoint.every={every}",
)
def checkpoints(history: History) -> Symptom | None:
    """Time that goes into checkpoints."""
    saving = float(np.mean(history.curve("waiting_checkpoints").at_least(LINES).values))
    _require_time(history)
    every = math.ceil(saving / MOST_SAVING) * history.setting("checkpoint.every")
    return Symptom(saving, MOST_SAVING, figures={"every": every}) if saving > MOST_SAVING else None


SLOWED = 0.5  # of the best quarter of the run; a shared machine may well take a third


@warning(
    seen="{pace:,.0f} {unit} per second towards step {step:,}, where it had been {best:,.0f}",
    why="each step takes the same arithmetic, so a pace that halves is the machine's: another program, heat, or memory "
    "that runs out",
    remedy="make room on the machine, then go on: selfsup train --resume {directory}",
)
def throughput(history: History) -> Symptom | None:
    """The run became slower and slower."""
    unit = history.unit
    rates = history.curve(f"{unit}{PACE}").at_least(4 * LINES)
    _require_time(history)
    quarters = [float(np.median(part)) for part in np.array_split(rates.values, 4)]
    pace, best = quarters[-1], max(quarters)
    figures = {"pace": pace, "best": best, "unit": unit}
    return Symptom(pace / best, SLOWED, figures=figures) if pace < SLOWED * best else None


CHECKS = (
    beside_chance,
    diverging,
    collapse,
    low_rank,
    clumps,
    many_skipped,
    some_skipped,
    below_start,
    validation_rising,
    above_start,
    loss_spikes,
    gradient_spikes,
    duplicates,
    loader,
    exchange,
    checkpoints,
    throughput,
)


LEAST_LEARNT = 0.05  # of the start, so that nothing is measured by a run that has learnt nothing


def begun(history: History) -> float:
    """The loss before any update, where that is above chance: of towers that are sure of what they say, and wrong."""
    losses = history.curve("loss")
    return max(history.start, float(losses.values[0])) if losses.steps[0] == 1 else history.start


def learnt(history: History, levels: Values) -> Values:
    """What each level of the loss has fallen from the start, and at least a little of it: shaped like `levels`."""
    return np.maximum(history.start - levels, LEAST_LEARNT * history.start)


def preceding_medians(values: Values, number: int) -> Values:
    """The median of the `number` values before each value, from the first that has so many: (n − number,)."""
    return np.median(np.lib.stride_tricks.sliding_window_view(values, number)[:-1], axis=1)


def deviation(values: Values) -> float:
    """Their standard deviation, by the median, which a few values that are far off do not move."""
    return typical(values - np.median(values))


def typical(values: Values) -> float:
    """The standard deviation of the normal distribution around 0 with this median size."""
    return float(1.4826 * np.median(np.abs(values)))


def comparable_looks(history: History) -> Curve:
    """The held-out loss of the looks at as many records as the first one: the last look may be at more."""
    looks = [line for line in history.lines if line["split"] == "validation"]
    same = [line for line in looks if line.get("records") == looks[0].get("records")]
    return replace(history, lines=same).curve("loss", "validation")


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
