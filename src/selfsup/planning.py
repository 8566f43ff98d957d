"""What a run will be, before its first step: sizes, steps, arithmetic, memory and time, and why."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.budget import FEWEST_STEPS, FINAL_SHARE, FORWARD_SHARE, Clock
from selfsup.config import OptimConfig, Settings
from selfsup.data.loader import Loader
from selfsup.data.mixture import Mixture
from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.machine import Machine, all_memory, find_device, find_precision, free_memory, peak_memory, synchronise
from selfsup.models.transformer import Linear, RMSNorm
from selfsup.objectives.base import Objective
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.optim import Optimizer
from selfsup.rates import kept_rate
from selfsup.report import amount, duration
from selfsup.sharding import shard
from selfsup.step import gradients

DEFAULT_BUDGET = 120.0
# Share of the matrix rate that sizes are chosen for. Small models reach about that, larger ones more, but tokens per
# parameter and all else that sizes follow from were settled with it.
UTILISATION = 0.2
# What a step takes on a machine at rest, about: its arithmetic at a share of the matrix rate, and seconds beside that
# for each micro-batch. Steps that take many times as long, or more than all of the rate, are told of.
REACHED, OVERHEAD, APART, BEYOND = 0.7, 0.05, 4.0, 1.2
STARTING = 5.0  # seconds of a budget, about, before the first step
LOOKS_SHARE = 0.025  # of a run's time, for looks at the validation part on the way
EVALUATION_SHARE = LOOKS_SHARE + FINAL_SHARE / 4  # of a run's time, expected
LOOKS = 10
SECONDS_PER_LOOK = 10.0  # of a budget, at least
FEWEST_EVALUATED = 8  # records
EVALUATION_BATCHES = 4  # micro-batches that are evaluated at once: nothing is kept for a gradient
# Records whose memory is compared: not one alone, for batch normalisation needs two values, and enough that the last of
# them does not just fill the rest of a row of sentences.
COMPARED = (2, 10)
FORGOTTEN = 5.0  # times that the weights' average over past updates is renewed within a run
MOST_WEIGHT_DECAY = 1.0
MOMENTS_KNOWN = 20  # steps, 1 / (1 − β₂)
CALIBRATION_SECONDS = 0.8
CALIBRATION_SHARE = 0.02  # of a budget, at most
WORTH_COMPILING = 7200.0  # seconds of a run
COMPILED_GAIN = 0.9  # of the plain step's time, at most, for compiling to be chosen
UNSHARDED = ("model.lora", "optim.heads_first", "optim.wise_ft", "train.compile")  # settings that sharding excludes
BEHIND_BUDGET = 3.0  # seconds, that a short budget may be exceeded by
DRIFT = (0.6, 2.0)  # how much faster or slower a shared machine may become


@dataclass(frozen=True)
class Plan:
    """Figures of a run that is about to start; times in seconds, memory in bytes."""

    facts: dict[str, str]
    parameters: int
    steps: int
    records: int
    flops: float
    step_seconds: float
    seconds: tuple[float, float]
    peak_memory: int
    matrix_flops: float
    chance: float | None
    settings: dict[str, Any]
    sources: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self, settings: Settings) -> dict[str, str]:
        """The plan as a table."""
        train, optim = settings.config.train, settings.config.optim

        def why(key: str) -> str:
            return f" ({settings.origin(key)})"

        known = self.chance is not None
        chance = {"chance": f"a loss of {self.chance:.3f} means knowing nothing"} if known else {}
        length, about = ("budget", "about ") if train.budget else ("steps", "")
        return {
            **self.facts,
            "size": f"preset {settings['model.preset']}{why('model.preset')}",
            "recipe": f"{optim.matrices} at {optim.lr:g}{why('optim.lr')}, AdamW at {optim.adamw_lr:g}"
            f"{why('optim.adamw_lr')}, warm-up {optim.warmup} steps, decay over the last {optim.decay:.0%}"
            + (f", each layer at {optim.layer_decay:g} of the one above it" if optim.layer_decay < 1 else "")
            + (f", fresh heads alone for {optim.heads_first} steps" if optim.heads_first else ""),
            "batch": f"{train.batch} records{why('train.batch')}, {train.micro_batch} at once"
            f"{why('train.micro_batch')}, {train.precision}{why('train.precision')} on {train.device}",
            "steps": f"{about}{self.steps:,}{why(f'train.{length}')}: {self.records:,} records, "
            f"{self.flops:.3g} FLOPs, {self.step_seconds:.3g} s each, "
            f"{self.reached:.0%} of the machine's "
            f"{amount(self.matrix_flops, 'FLOP/s')}",
            **self.apart(),
            "memory": f"{amount(self.peak_memory, 'B')} at its peak",
            "time": f"{duration(self.seconds[0])} to {duration(self.seconds[1])}",
            **chance,
        }

    @property
    def reached(self) -> float:
        """The share of the rate of matrix products that the timed steps came to."""
        return self.flops / self.steps / self.step_seconds / self.matrix_flops

    def apart(self) -> dict[str, str]:
        """What is to be told where the timed steps and the rate of the machine do not belong together."""
        train = self.settings["train"]
        parts = math.ceil(train["batch"] / train["micro_batch"])
        usual = self.flops / self.steps / (REACHED * self.matrix_flops) + parts * OVERHEAD
        if self.step_seconds > APART * usual:
            slower = self.step_seconds / usual
            return {
                "pace": f"{slower:.0f} times slower than this machine at rest, which sizes are chosen for: it is busy"
            }
        if self.reached > BEYOND:
            return {"pace": "beyond the rate that is kept for this machine; selfsup machine --keep measures it anew"}
        return {}


def make_plan(recipe: Recipe, processes: Processes, clock: Clock) -> tuple[Plan, Machine]:
    """Fill every gap of the settings, time a few steps on a throw-away model, and say what the run will be."""
    settings, machine = recipe.settings, find_machine(recipe.settings, processes)
    train = settings.config.train
    if train.steps is None and train.epochs is None:
        settings.settle("train.budget", DEFAULT_BUDGET, "default")
    # Nothing of this depends on what else the machine does, nor on how long it took to prepare the data.
    rate = machine.flops * UTILISATION * processes.size
    spend = None if train.budget is None else rate * max(train.budget - STARTING, train.budget / 2)
    memory = processes.share(float(all_memory(machine.device)))
    recipe.settle(Effort(train.steps, train.epochs, spend, memory))
    processes.wait()  # what that prepares may take longer than a collective waits
    if settings["train.batch"] > len(recipe.train):
        raise UserError(
            f"A batch of {settings['train.batch']:,} is more than the {len(recipe.train):,} records of the training "
            "part; give a smaller --batch or more data."
        )
    _settle_steps(recipe)
    _settle_micro_batch(recipe, machine, processes)
    step_seconds = _settle_compile_and_time(recipe, machine, processes)
    steps = processes.share(train.steps or _steps_in(recipe, clock, step_seconds))
    _settle_intervals(recipe, steps)
    return _summarise(recipe, machine, processes, clock, steps, step_seconds), machine


def find_machine(settings: Settings, processes: Processes) -> Machine:
    """Device and precision as the settings say, or as the hardware suggests, and the rate that is kept for these."""
    device = find_device(settings["train.device"])
    precision = find_precision(settings["train.precision"], device)
    for key, found in (("train.device", str(device)), ("train.precision", precision)):
        if settings[key] == "auto":
            settings.change(key, found, "machine")
    return Machine(device, precision, processes.share(kept_rate(device, precision).flops if processes.leads else None))


def _settle_steps(recipe: Recipe) -> None:
    """Epochs are resolved to steps, so that the resolved configuration says one thing once."""
    settings, epochs = recipe.settings, recipe.settings["train.epochs"]
    if epochs is None:
        return
    records = recipe.train.once if isinstance(recipe.train, Mixture) else len(recipe.train)
    steps = max(1, round(epochs * records / recipe.new_share / settings["train.batch"]))
    settings.change("train.steps", steps, f"{epochs:g} epochs ({settings.origin('train.epochs')})")
    settings.change("train.epochs", None, "resolved to steps")


def ready(recipe: Recipe, machine: Machine, processes: Processes) -> Objective:
    """A fresh objective, where and how it is going to be trained."""
    objective = _fresh(recipe, machine, processes)
    if recipe.settings["train.compile"]:
        vars(objective)["predict"] = torch.compile(objective.predict)
    return objective


def _fresh(recipe: Recipe, machine: Machine, processes: Processes) -> Objective:
    """The same, not compiled."""
    objective = recipe.begin().to(machine.device).train()
    if sharded(recipe, processes):
        _require_shares(recipe, processes)
        shard(objective, machine.device, lambda block: machine.dtype if _is_multiplied(block) else None)
    return objective


def _is_multiplied(block: nn.Module) -> bool:
    """Whether all that is done with a block's parameters is done in the precision of matrix products."""
    owners = [module for module in block.modules() if list(module.parameters(recurse=False))]
    return all(isinstance(module, Linear | RMSNorm) for module in owners)


def sharded(recipe: Recipe, processes: Processes) -> bool:
    """Whether each process holds its rows of the parameters only."""
    return bool(recipe.settings["train.shard"]) and processes.size > 1


def require_shardable(recipe: Recipe) -> None:
    """Raise a UserError where sharding is asked for, and this objective or one of its settings is not made for it."""
    settings = recipe.settings
    if not settings["train.shard"]:
        return
    if not recipe.shards:
        raise UserError(
            f"{settings['objective']} cannot be sharded yet; leave train.shard out: then each process holds all of it."
        )
    if recipe.module is not None or ":" in settings["model.preset"]:
        raise UserError("train.shard is for selfsup's own networks (presets, --init); leave it out for this one.")
    for key in UNSHARDED:
        if settings[key]:
            raise UserError(f"train.shard and {key} cannot go together yet; leave one of them out.")


def _require_shares(recipe: Recipe, processes: Processes) -> None:
    """Raise a UserError where one process would ask for the others' rows more often than these for its own, or where
    they could not save together."""
    if not processes.counts:
        raise UserError(
            "train.shard is for processes that torchrun or --processes has started; leave it out in others."
        )
    batch, size = recipe.settings["train.batch"], processes.size
    if batch is not None and batch % size:
        raise UserError(
            f"Sharded, each process has as many records of a batch as any other, and {batch} are not for {size} alike; "
            f"give --batch {-(-batch // size) * size}, or another number of processes."
        )


def _settle_micro_batch(recipe: Recipe, machine: Machine, processes: Processes) -> None:
    """The largest micro-batch that fits."""
    settings, batch = recipe.settings, recipe.settings["train.batch"]
    if batch < (size := processes.size):
        raise UserError(f"A batch of {batch} cannot be shared by {size} processes; give a larger --batch.")
    if settings["train.micro_batch"] is None:
        fitting = processes.share(_fitting_micro_batch(recipe, machine, processes, -(-batch // processes.size)))
        settings.change("train.micro_batch", fitting, "memory")
    if (images := recipe.grouped) is not None:
        settings.settle("model.group", images, "micro-batch")
        if images % (group := settings["model.group"]):
            raise UserError(
                f"{images:,} images are computed at once, which are no whole groups of model.group {group:,}; give "
                "another one, or another train.micro_batch."
            )


def _settle_compile_and_time(recipe: Recipe, machine: Machine, processes: Processes) -> float:
    """Whether compiling pays, and the median time of a step.

    Compiling takes a minute or more, so it is tried only where the run is long enough to earn that back.
    """
    settings, train = recipe.settings, recipe.settings.config.train
    plain = _time_step(recipe, machine, processes)
    if train.compile is not None:
        return plain
    if train.shard:
        settings.change("train.compile", False, "sharded")
        return plain
    if (train.budget or (train.steps or 0) * plain) < WORTH_COMPILING:
        settings.change("train.compile", False, "short run")
        return plain
    settings.change("train.compile", True, "measured")
    compiled = _time_step(recipe, machine, processes)
    pays = compiled < COMPILED_GAIN * plain
    settings.change("train.compile", pays, "measured")
    return compiled if pays else plain


def _fitting_micro_batch(recipe: Recipe, machine: Machine, processes: Processes, most: int) -> int:
    """The largest halving of `most` whose saved activations take at most half of the free memory."""
    objective = _fresh(recipe, machine, processes)
    _trial_optimizer(objective, recipe, machine)  # says so where there is nothing to train
    recipe.adaptation.resting(objective)  # or where heads are to be trained alone, and there are none
    loader = Loader(recipe.train, recipe.settings["train.seed"], 1, 1, 0)
    few, more = (_saved(objective, loader.read(range(n)).to(machine.device), machine) for n in COMPARED)
    record = max(1, (more - few) // (COMPARED[1] - COMPARED[0]))
    size = most
    while size > 1 and size * record > free_memory(machine.device) / 2:
        size = -(-size // 2)
    return size


def _saved(objective: Objective, batch: Batch, machine: Machine) -> int:
    """Bytes that are kept for the gradient of a batch, weights among them."""
    held: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        gradients(objective, [batch], Processes.alone(), machine.autocast)
    objective.zero_grad()
    return sum(held.values())


def _trial_optimizer(objective: Objective, recipe: Recipe, machine: Machine) -> Optimizer:
    """An optimizer for trials: the weight decay follows from the number of steps, which they are to find."""
    config = recipe.settings.config.optim.model_copy(update={"weight_decay": 0.0})
    return optimizer_of(recipe, objective, config, machine)


def optimizer_of(recipe: Recipe, objective: Objective, config: OptimConfig, machine: Machine) -> Optimizer:
    """What trains an objective of a recipe."""
    adaptation = recipe.adaptation
    return Optimizer(objective, config, machine.dtype, adaptation.started(objective), adaptation.factors(objective))


def loader_of(recipe: Recipe, processes: Processes, workers: int) -> Loader:
    """What reads the batches of a training, of which each process has its share."""
    train = recipe.settings.config.train
    batch, micro_batch = train.batch or 1, train.micro_batch or 1
    return Loader(recipe.drawn, train.seed, batch, micro_batch, workers, processes.rank, processes.size)


def _time_step(recipe: Recipe, machine: Machine, processes: Processes) -> float:
    """The median of a few steps after the first; the model they train is thrown away."""
    train, objective = recipe.settings.config.train, ready(recipe, machine, processes)
    optimizer = _trial_optimizer(objective, recipe, machine)
    seconds = min(CALIBRATION_SECONDS, CALIBRATION_SHARE * (train.budget or math.inf))
    times: list[float] = []  # the first one is left out: it compiles, and takes memory for the first time
    with closing(loader_of(recipe, processes, 0).steps(0)) as steps:
        for batches in steps:
            start = time.perf_counter()
            gradients(objective, [batch.to(machine.device) for batch in batches], processes, machine.autocast)
            optimizer.clip(recipe.settings["optim.clip"])
            optimizer.step(1.0)
            synchronise(machine.device)
            times.append(time.perf_counter() - start)
            spent = sum(times[1:])
            if processes.share((len(times) > 2 and spent > seconds) or spent > 5 * seconds):
                return float(processes.share(median(times[1:])))
    raise AssertionError("the steps of a loader do not end")


def _steps_in(recipe: Recipe, clock: Clock, step_seconds: float) -> int:
    """Steps that fit into the budget beside looks, and records that are made anew."""
    settings, looks = recipe.settings, _looks_share(recipe)
    left = settings["train.budget"] - clock.elapsed()
    if left + clock.before < FEWEST_STEPS * step_seconds:
        raise UserError(
            f"The budget of {duration(settings['train.budget'])} leaves no time to train: preparing took "
            f"{duration(clock.elapsed() - clock.before)} and a step takes {duration(step_seconds)}; "
            "give a larger --budget or a smaller model."
        )
    left -= _renewing(recipe, max(1, int(left / step_seconds)), step_seconds)
    return max(FEWEST_STEPS, int(left * (1 - looks) / step_seconds))


def _renewing(recipe: Recipe, steps: int, step_seconds: float) -> float:
    """Seconds for making records anew, in a run of so many steps."""
    renewal, batch = recipe.renewal(steps), recipe.settings.config.train.batch or 1
    return len(renewal.steps) * renewal.records / batch * step_seconds


def _looks_share(recipe: Recipe) -> float:
    """Of a run's time, for its looks: of one that starts from weights also for two at these."""
    return EVALUATION_SHARE * (2 if recipe.started else 1)


def weight_decay(lr: float, steps: float) -> float:
    """The decay that forgets a weight's past a few times within the run, whatever its length.

    1 / (lr · decay) is the number of steps that the weights average over (Wang and Aitchison 2024, "How to set
    AdamW's weight decay as you scale model and dataset size"); here a fifth of the run.
    """
    return float(f"{min(FORGOTTEN / (lr * steps), MOST_WEIGHT_DECAY):.2g}")


def _settle_intervals(recipe: Recipe, steps: int) -> None:
    """Weight decay, warm-up, log lines, looks at the validation part and checkpoints, in steps."""
    settings, origin = recipe.settings, "length of the run"
    settings.settle("optim.weight_decay", weight_decay(settings["optim.lr"], steps), origin)
    warmup = min(max(steps // 50, 1), 1000)
    if recipe.settings.origin("optim.matrices") == "init":  # until the second moments are known, which begin at zero
        warmup = max(warmup, min(steps // 10, MOMENTS_KNOWN))
    settings.settle("optim.warmup", warmup, origin)
    settings.settle("train.log_every", max(1, steps // 200), origin)
    budget = settings["train.budget"]
    looks = LOOKS if budget is None else max(1, min(LOOKS, int(budget / SECONDS_PER_LOOK)))
    settings.settle("evaluate.every", max(1, steps // looks), origin)
    settings.settle("checkpoint.every", settings["evaluate.every"], origin)
    if recipe.validation is None:
        return
    available = len(recipe.validation)
    whole = steps * settings["train.batch"] / FORWARD_SHARE  # records to look at in all of the run's time
    looks = max(1, steps // settings["evaluate.every"])
    origin = "held-out part and time"
    fewest = settings["evaluate.batch"] or FEWEST_EVALUATED  # where records meet in the score, a whole batch
    for key, share in (("final_records", FINAL_SHARE), ("records", LOOKS_SHARE / looks)):
        settings.settle(f"evaluate.{key}", min(max(int(share * whole), fewest), available), origin)
    settings.settle("evaluate.batch", EVALUATION_BATCHES * settings["train.micro_batch"], "micro-batch")
    for key in ("evaluate.final_records", "evaluate.records"):
        if settings[key] > available:
            settings.change(key, available, "held-out part")


def _summarise(
    recipe: Recipe, machine: Machine, processes: Processes, clock: Clock, steps: int, step_seconds: float
) -> Plan:
    settings, train = recipe.settings, recipe.settings.config.train
    objective = recipe.begin()
    records = steps * (train.batch or 1)
    work = steps * step_seconds * (1 + _looks_share(recipe)) + _renewing(recipe, steps, step_seconds)
    seconds = (clock.elapsed() + work * DRIFT[0], clock.elapsed() + work * DRIFT[1] + 10)
    if train.budget is not None:
        budget = max(train.budget, seconds[0])
        seconds = (budget * 0.9, budget * 1.05 + BEHIND_BUDGET)
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    parts = processes.size if sharded(recipe, processes) else 1
    snapshot = 4 * parameters * 3 // parts  # what a checkpoint copies: weights and optimizer state
    held = {"sharded": f"each of {parts} processes holds {parameters // parts:,} parameters"} if parts > 1 else {}
    return Plan(
        facts=recipe.facts() | recipe.mixture_told(records) | recipe.adaptation.facts(objective) | held,
        parameters=parameters,
        steps=steps,
        records=records,
        flops=records * recipe.flops_per_record(),
        step_seconds=step_seconds,
        seconds=seconds,
        peak_memory=peak_memory(machine.device)
        + recipe.renewal(steps).memory
        + (snapshot if machine.device.type == "cpu" else 0),
        matrix_flops=machine.flops * processes.size,
        chance=recipe.chance_in_training(settings["train.batch"]),
        settings=settings.values(),
        sources=settings.sources,
    )
