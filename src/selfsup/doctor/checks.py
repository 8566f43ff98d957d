"""What is looked for in every run, whatever its objective.

Each check is a function of a `History`: it answers with a `Finding`, with None where all is well, or raises `NotMade`
where the run does not hold what it looks at. Thresholds stand above the check that uses them; docs/doctor.md says
what they were measured on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from selfsup.doctor.base import Check, Curve, Finding, History, NotMade, Values, preceding_medians

TINY = 1e-12  # keeps a division from failing

# A log line is the loss of one step, so a level is read off the median of ten of them.
LINES = 10

# Even the frequencies of tokens, which the first steps learn, take a fifth off chance; dice stay within a percent.
BESIDE = 0.98  # of chance
WORSE = 1.12  # times where it began, by which losses of small batches differ
PATIENCE = 0.2  # of the run
FEWEST_STEPS = 50  # before which nothing can be expected of any run


def check_beside_chance(history: History) -> Finding | None:
    """The loss is still that of a model that knows nothing, or worse."""
    chance = history.chance
    patience = max(PATIENCE * history.steps, FEWEST_STEPS, 2 * history.setting("optim.warmup"))
    if history.step < patience:
        raise NotMade(f"it takes {patience:,.0f} steps before a loss can be judged")
    loss = level(history.curve("loss"))
    if loss < BESIDE * chance:
        return None
    if loss > WORSE * begun(history):
        remedy = f"the learning rate is too high: {history.lower_rates()}"
    else:
        remedy = (
            f"try another optim.lr (now {history.setting('optim.lr'):g}), and look at what is to be learnt with "
            "selfsup inspect"
        )
    beside = "worse than" if loss > chance / BESIDE else "beside"
    return Finding(
        check="beside-chance",
        severity="problem",
        seen=f"the loss is {loss:.3f} at step {history.step:,}, {beside} the {chance:.3f} of knowing nothing",
        step=history.step,
        value=loss / chance,
        threshold=BESIDE,
        why=f"after {PATIENCE:.0%} of a run even the frequencies of what is predicted put a loss well below "
        f"{BESIDE:.0%} of chance",
        remedy=remedy,
    )


# Steps of sound runs are never worse than no training at all; what starts too fast is so at once.
ABOVE_START = 1.05  # times the larger of chance and the first loss


def check_above_start(history: History) -> Finding | None:
    """The loss rose above where it began: the first steps were too long."""
    losses = history.curve("loss").at_least(LINES)
    start = max(history.start, losses.values[0])
    scatter = begun(history) - history.start  # what begins above chance differs as much from batch to batch
    worst = int(losses.values.argmax())
    value = losses.values[worst] / (start + scatter)
    if value <= ABOVE_START:
        return None
    return Finding(
        check="above-start",
        severity="warning",
        seen=f"the loss was {losses.values[worst]:.3f} at step {losses.steps[worst]:,}, above the {start:.3f} it "
        "began with",
        step=int(losses.steps[worst]),
        value=float(value),
        threshold=ABOVE_START,
        why=f"batches differ by less than {ABOVE_START - 1:.0%} before anything is learnt; more comes from updates "
        "that are too long",
        remedy=f"lower the learning rates: {history.lower_rates()}",
    )


# Of what the loss has fallen from chance. The noise of the steps has to be exceeded as well: batches of 128 tokens
# jump by up to 0.27 of the fall without ailing, but never by more than 3.3 of their own standard deviations.
JUMP = 0.3
JUMP_NOISE = 8.0  # robust standard deviations of the jumps


def check_loss_spikes(history: History) -> Finding | None:
    """Single steps with a loss far above those before them."""
    losses = history.curve("loss").at_least(3 * LINES)
    levels = preceding_medians(losses.values, LINES)
    jumps, steps = losses.values[LINES:] - levels, losses.steps[LINES:]
    shares = jumps / learnt(history, levels)
    spikes = (shares > JUMP) & (jumps > JUMP_NOISE * deviation(jumps))
    if not spikes.any():
        return None
    worst = int(np.where(spikes, shares, -np.inf).argmax())
    return Finding(
        check="loss-spikes",
        severity="warning",
        seen=f"{count(int(spikes.sum()), 'spike')} of the loss, the highest to {losses.values[LINES:][worst]:.3f} from "
        f"{levels[worst]:.3f} at step {steps[worst]:,}",
        step=int(steps[worst]),
        value=float(shares[worst]),
        threshold=JUMP,
        why=f"a jump beyond {JUMP:.0%} of all that was learnt, and beyond {JUMP_NOISE:g} standard deviations of the "
        "steps, is no accident of a batch",
        remedy=f"lower the learning rates: {history.lower_rates()}",
    )


# Of what the loss had fallen from chance. The level of sound runs with 40 predictions a step wavers by more, but within
# the noise of the steps.
LOST = 0.25
LOST_NOISE = 3.0  # robust standard deviations of single steps


def check_diverging(history: History) -> Finding | None:
    """The training loss rose again and stays there."""
    losses = history.curve("loss").at_least(3 * LINES)
    medians = preceding_medians(losses.values, LINES)
    noise = deviation(losses.values[LINES:] - medians)
    # A contrastive loss is low before the first update where the two views of a record share most of what they show.
    levels = np.concatenate([losses.values[:1], medians])
    steps = np.concatenate([losses.steps[:1], losses.steps[LINES - 1 :]])
    lowest, loss = int(levels.argmin()), level(losses)
    lost = (loss - levels[lowest]) / learnt(history, levels)[lowest]
    if lost <= LOST or loss - levels[lowest] <= LOST_NOISE * noise:
        return None
    return Finding(
        check="diverging",
        severity="problem",
        seen=f"the training loss is back at {loss:.3f} at step {history.step:,} after {levels[lowest]:.3f} at step "
        f"{steps[lowest]:,}",
        step=history.step,
        value=float(lost),
        threshold=LOST,
        why=f"{LOST:.0%} of what was learnt is lost in the median of {LINES} lines, which single batches do not move",
        remedy=f"lower the learning rates: {history.lower_rates()}",
    )


# Of what the loss has fallen from chance. Looks are at the same records under the same masks, yet a look at a few dozen
# predictions wavers: by how much is seen in how crooked the curve of the looks is.
RISE = 0.02
RISE_NOISE = 4.0  # robust standard deviations of a look
RISING_LOOKS = 2  # in a row
FEWEST_LOOKS = 4  # that show how crooked they are


def check_validation_rising(history: History) -> Finding | None:
    """The held-out loss rises while training goes on: the model learns its data by heart."""
    looks = comparable_looks(history).at_least(FEWEST_LOOKS)
    losses, steps = looks.values, looks.steps
    lowest = int(losses.argmin())
    scale = float(learnt(history, losses)[lowest])
    noise = (
        typical(np.diff(losses, 2)) / 6**0.5
    )  # the second differences of noise have six times its variance
    rise = losses[-RISING_LOOKS:].min() - losses[lowest]
    if rise <= max(RISE * scale, RISE_NOISE * noise):
        return None
    return Finding(
        check="validation-rising",
        severity="warning",
        seen=f"the validation loss is {losses[-1]:.3f} at step {steps[-1]:,} after {losses[lowest]:.3f} at step "
        f"{steps[lowest]:,}",
        step=int(steps[-1]),
        value=float(rise / scale),
        threshold=max(RISE, RISE_NOISE * noise / scale),
        why=f"{RISING_LOOKS} looks in a row are above the lowest by more than {RISE:.0%} of what had been learnt and "
        f"more than {RISE_NOISE:g} standard deviations of a look at the same records",
        remedy=f"give more data, a smaller model.preset, or stop there: {history.anew(f'--steps {steps[lowest]}')}",
    )


# Norms of sound runs lie within 6 times the median of the ten before them, and that with 40 predictions a step; only
# those of a contrastive loss that is nearly solved vary by orders of magnitude, and show it all the time.
SPIKE = 10.0
SPIKE_NOISE = 6.0  # robust standard deviations of the logarithm of that ratio


def check_gradient_spikes(history: History) -> Finding | None:
    """Gradients far longer than those before them."""
    norms = history.curve("grad_norm").after(history.setting("optim.warmup")).at_least(2 * LINES)
    levels = preceding_medians(norms.values, LINES)
    ratios, steps = norms.values[LINES:] / np.maximum(levels, TINY), norms.steps[LINES:]
    least = max(SPIKE, np.exp(SPIKE_NOISE * deviation(np.log(np.maximum(ratios, TINY)))))
    spikes = int((ratios > least).sum())
    if not spikes:
        return None
    worst = int(ratios.argmax())
    return Finding(
        check="gradient-spikes",
        severity="warning",
        seen=f"{count(spikes, 'gradient')} out of line, the longest {norms.values[LINES:][worst]:.3g} after "
        f"{levels[worst]:.3g} at step {steps[worst]:,}",
        step=int(steps[worst]),
        value=float(ratios[worst]),
        threshold=float(least),
        why=f"norms of sound runs stay within 6 times the median of the {LINES} lines before them, or vary by as much "
        "all the time",
        remedy=f"lower the learning rates: {history.lower_rates()}; and look for odd records in the data",
    )


MANY_SKIPPED = 0.01  # of the steps: above that the run is not the one that was planned


def check_skipped_steps(history: History) -> Finding | None:
    """Steps without a finite loss or gradient, which changed nothing."""
    train = [line for line in history.lines if line["split"] == "train"]
    if not train:
        raise NotMade("no step is logged yet")
    skipped = [line["step"] for line in train if line["loss"] is None or line["grad_norm"] is None]
    number = max(len(skipped), history.summary.get("skipped_steps", 0))
    if not number:
        return None
    last = int(skipped[-1] if skipped else history.step)
    return Finding(
        check="skipped-steps",
        severity="problem" if number > MANY_SKIPPED * history.step else "warning",
        seen=f"{count(number, 'step')} of {history.step:,} skipped for a loss or gradient that is not finite, the "
        f"last at step {last:,}",
        step=last,
        value=float(number),
        threshold=0.0,
        why="every sound step is finite; ten in a row end the run",
        remedy=f"train with --precision fp32, or lower the learning rates: {history.lower_rates()}",
    )


# Collapsed features are one point but for rounding. Text encoders crowd theirs into a cone without being collapsed
# (Ethayarajh 2019, "How Contextual are Contextualized Word Representations?"): sound ones were seen at 0.19.
LOWEST_SPREAD = 0.05


def check_collapse(history: History) -> Finding | None:
    """Features that are nearly the same for every record."""
    step, spread = latest(history.curve("feature_std", "validation"))
    if spread >= LOWEST_SPREAD:
        return None
    return Finding(
        check="collapse",
        severity="problem",
        seen=f"the features have collapsed into one point: their deviation is {spread:.3f} of 1 at step {step:,}",
        step=step,
        value=spread,
        threshold=LOWEST_SPREAD,
        why=f"below it the mean cosine of two records is above {1 - LOWEST_SPREAD**2:.4f}; 1 is spread, 0 one point",
        remedy=f"lower the learning rates: {history.lower_rates()}; a contrastive loss wants a larger --batch too",
    )


LOWEST_RANK = (
    0.05  # of the directions that there are; sound encoders of 64 to 128 dimensions were seen at 0.14
)
FEWEST_DIRECTIONS = 2.0
FEWEST_RECORDS = 64  # whose features span enough directions to judge by


def check_low_rank(history: History) -> Finding | None:
    """Features that lie in a few of their dimensions."""
    step, rank = latest(history.curve("rankme", "validation"))
    records = latest(history.curve("records", "validation"))[1]
    if records < FEWEST_RECORDS:
        raise NotMade(f"it takes looks at {FEWEST_RECORDS} records")
    shared = history.settings["clip.dimension"] or np.inf  # of a space that two towers share
    directions = min(history.setting("model.width"), shared, records)
    least = max(LOWEST_RANK * directions, FEWEST_DIRECTIONS)
    if rank >= least:
        return None
    return Finding(
        check="low-rank",
        severity="warning",
        seen=f"the features use {rank:.1f} (RankMe) of {directions:.0f} directions at step {step:,}",
        step=step,
        value=rank,
        threshold=least,
        why=f"encoders that learn use three times {LOWEST_RANK:.0%} of their directions and more",
        remedy=f"lower the learning rates: {history.lower_rates()}; a contrastive loss wants a larger --batch too",
    )


# Features whose pairs all lie equally far have a uniformity of −4 spread² (and none less: Jensen). Sound encoders
# reach nine tenths of that, k clumps at right angles 0.34 (k = 2), 0.48 (k = 5), 0.60 (k = 10).
LEAST_EVEN = 0.45


def check_clumps(history: History) -> Finding | None:
    """Features that lie in a few clumps, each of them nearly a point."""
    spread = latest(history.curve("feature_std", "validation"))[1]
    step, uniformity = latest(history.curve("uniformity", "validation"))
    even = uniformity / min(-4 * spread**2, -TINY)
    if even >= LEAST_EVEN or spread < LOWEST_SPREAD:
        return None
    return Finding(
        check="clumps",
        severity="warning",
        seen=f"the features lie in a few clumps: a uniformity of {uniformity:.2f} with a deviation of {spread:.2f} at "
        f"step {step:,}",
        step=step,
        value=even,
        threshold=LEAST_EVEN,
        why="features that are spread evenly reach nine tenths of −4 deviation², four clumps less than half of it",
        remedy="unless the data is of so few kinds, look for what its records share (selfsup inspect), and lower the "
        f"learning rates: {history.lower_rates()}",
    )


# Of web corpora 3 % (C4) to 14 % (RealNews) are copies or nearly so (Lee et al. 2022, "Deduplicating Training Data
# Makes Language Models Better"); exact copies beyond a tenth are not what text is like by itself.
MOST_DUPLICATES = 0.1


def check_duplicates(history: History) -> Finding | None:
    """Documents that equal an earlier one."""
    documents, duplicates = history.count("documents"), history.count("duplicates")
    share = duplicates / max(documents, 1)
    if share <= MOST_DUPLICATES:
        return None
    return Finding(
        check="duplicates",
        severity="warning",
        seen=f"{duplicates:,} of {documents:,} documents ({share:.0%}) equal an earlier one",
        step=0,
        value=share,
        threshold=MOST_DUPLICATES,
        why="web text holds about a tenth at its worst; models learn by heart what they meet often (Lee et al. 2022)",
        remedy=f"leave the copies out of data.source ({history.settings['data.source']}), and train anew",
    )


MOST_WAITING = 0.2  # of a step: a fifth of the machine stands still


def check_loader(history: History) -> Finding | None:
    """Steps that wait for their data."""
    waiting = level(history.curve("waiting").at_least(LINES))
    if waiting <= MOST_WAITING:
        return None
    workers = history.setting("data.workers")
    return Finding(
        check="loader",
        severity="warning",
        seen=f"steps wait for their data during {waiting:.0%} of their time, at step {history.step:,}",
        step=history.step,
        value=waiting,
        threshold=MOST_WAITING,
        why="reading is to happen beside the arithmetic; what it takes beyond that is lost",
        remedy=f"read with more threads, data.workers={max(2, 2 * workers)} (now {workers}; --resume takes it too), or "
        "put the data on a faster disk",
    )


SLOWED = 0.5  # of the best quarter of the run; a shared machine may well take a third
SECONDS = 60.0  # that it takes to tell a slower machine from an accident


def check_throughput(history: History) -> Finding | None:
    """The run became slower and slower."""
    unit = history.unit
    rates = history.curve(f"{unit}_per_second").at_least(4 * LINES)
    if history.lines[-1]["time"] < SECONDS:
        raise NotMade(f"it takes {SECONDS:g} seconds before a pace can be judged")
    quarters = [float(np.median(part)) for part in np.array_split(rates.values, 4)]
    value = quarters[-1] / max(quarters)
    if value >= SLOWED:
        return None
    return Finding(
        check="throughput",
        severity="warning",
        seen=f"{quarters[-1]:,.0f} {unit} per second towards step {history.step:,}, where it had been "
        f"{max(quarters):,.0f}",
        step=history.step,
        value=value,
        threshold=SLOWED,
        why="each step takes the same arithmetic, so a pace that halves is the machine's: another program, heat, or "
        "memory that runs out",
        remedy=f"make room on the machine, then go on: selfsup train --resume {history.directory}",
    )


CHECKS: tuple[Check, ...] = (
    check_beside_chance,
    check_diverging,
    check_collapse,
    check_low_rank,
    check_clumps,
    check_skipped_steps,
    check_validation_rising,
    check_above_start,
    check_loss_spikes,
    check_gradient_spikes,
    check_duplicates,
    check_loader,
    check_throughput,
)


LEAST_LEARNT = 0.05  # of the start, so that nothing is measured by a run that has learnt nothing


def begun(history: History) -> float:
    """The loss before any update, where that is above chance: of towers that are sure of what they say, and wrong."""
    losses = history.curve("loss")
    return max(history.start, float(losses.values[0])) if losses.steps[0] == 1 else history.start


def learnt(history: History, levels: Values) -> Values:
    """What each level of the loss has fallen from the start, and at least a little of it: shaped like `levels`."""
    return np.maximum(history.start - levels, LEAST_LEARNT * history.start)


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


def level(curve: Curve) -> float:
    """Where a curve stands: the median of its last lines."""
    return float(np.median(curve.values[-LINES:]))


def latest(curve: Curve) -> tuple[int, float]:
    """The last step of a curve and its value there."""
    return int(curve.steps[-1]), float(curve.values[-1])
