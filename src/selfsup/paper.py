"""What a training would be on machines that are not here: memory, time and price, on paper.

Networks are built without numbers, on the meta device, and nothing is measured. What is counted is counted by the
formulas that a run's own plan and metrics use: `Recipe.flops_per_record` and `models.counting`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from selfsup.accelerators import Fleet
from selfsup.config import Settings
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.models.counting import Sketch
from selfsup.models.losses import BLOCK_ELEMENTS, CHUNK_ELEMENTS
from selfsup.objectives.image_networks import OwnVision
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.mae import MAERecipe
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.objectives.text_networks import OwnDecoder, OwnEncoder
from selfsup.objectives.texts import TextRecipe
from selfsup.report import amount, duration

# Share of the published rate that trainings reach: 48 % nanochat's d20 on 8 H100, 57 % torchtitan's Llama 3 8B on 64
# A100, 33 to 39 % the same on H100 (docs/plan.md, with sources).
UTILISATION = 0.4
ROOM = 0.9  # of a GPU's memory; the rest goes to the driver, to exchange, and into gaps between blocks of memory
NARROW = 2  # bytes of a number in bf16
LEAST_AT_ONCE = 4096  # tokens: fewer at once leave a GPU idle
# Tokens of a step, up to so many parameters (Brown et al. 2020, "Language Models are Few-Shot Learners", table 2.1).
STEP_TOKENS = ((1e9, 1 << 19), (5e9, 1 << 20), (math.inf, 1 << 21))
STEP_IMAGES = 4096  # He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", table 8
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", section 3.4
WINDOWS = {"decoder": 2048, "encoder": 512}  # tokens
VOCABULARY = 32768
SIDE = 224  # pixels
# Of the hidden matrices those of one shape are orthogonalised together, at most: of the 12 · width² numbers of a layer
# the 8 · width² of its feed-forward. With them stand, of rows three eighths as many as columns, their stack, two
# generations and two Gram matrices.
ALIKE, GENERATIONS = 2 / 3, 3 + 2 * 3 / 8
SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Asked:
    """What a plan on paper is asked for: machines, and of the rest what is known."""

    fleet: Fleet
    units: float | None = None  # tokens or images that are trained on
    price: float | None = None  # of a GPU hour
    utilisation: float | None = None

    @classmethod
    def of(cls, gpus: str, tokens: object, price: object, utilisation: object) -> Asked:
        """What was given, in numbers; raises a UserError where it is none."""
        return cls(
            Fleet.named(str(gpus)),
            None if tokens is None else _number("tokens", tokens, 1e18),
            None if price is None else _number("price", price, 1e9),
            None if utilisation is None else _number("utilisation", utilisation, 1.0),
        )


def _number(name: str, value: object, most: float) -> float:
    """140B, 1.5e12 or a number, above 0."""
    match = re.fullmatch(r"(\d+\.?\d*(?:e\d{1,2})?)([kmbt]?)", str(value).strip().lower())
    found = float(match[1]) * SUFFIXES[match[2]] if match else math.nan
    if isinstance(value, bool) or not 0 < found <= most:
        raise UserError(f"{name} cannot be '{str(value)[:40]}'; give a number above 0, at most {most:g}.")
    return found


# -- memory --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """How a training lies on its GPUs.

    Attributes:
        records: that one GPU computes at once.
        sharded: each holds its part of weights, gradients and moments, and gathers a layer when that has its turn
            (Rajbhandari et al. 2020, "ZeRO", stage 3); else each holds all.
        recomputed: of the layers only the inputs are kept for the gradient (Chen et al. 2016, "Training Deep Nets with
            Sublinear Memory Cost"). Trainings here do not do so yet.
        accumulates: gradients of earlier records of the same step stand already.
        muon: it moves the hidden matrices; else AdamW does.
        narrow: bytes of a number in matrix products.
    """

    gpus: int
    records: int
    sharded: bool = False
    recomputed: bool = False
    accumulates: bool = False
    muon: bool = True
    narrow: int = NARROW

    @property
    def words(self) -> str:
        return ("sharded" if self.sharded else "replicated") + (", activations recomputed" if self.recomputed else "")


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights, gradients, optimizer: in fp32, that GPU's part of them.
        copies: of weights: of all layers in the type of matrix products, and what is gathered of sharded ones.
        activations: that are kept for the gradient.
        passing: at the turn from the way there to the way back: logits in chunks and the gradient of their matrix, or
            what the gradient of one layer takes.
        updating: beside gradients, while weights are moved: what is orthogonalised, or gradients in one message.
    """

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    passing: float
    updating: float
    accumulates: bool

    @property
    def peak(self) -> float:
        """The most of what stands at once. Gradients grow while activations go, so the most is at either end."""
        turn = self.copies + self.activations + self.passing + self.accumulates * self.gradients
        return self.weights + self.optimizer + max(turn, self.gradients + self.updating)

    def told(self) -> str:
        parts = {name: value for name, value in asdict(self).items() if name != "accumulates"}
        return ", ".join(f"{name} {amount(value, 'B')}" for name, value in parts.items())


def memory_of(sketch: Sketch, setup: Setup) -> Memory:
    """What a training of a network takes on each GPU."""
    shards = setup.gpus if setup.sharded else 1
    narrow, rest = setup.narrow, sketch.parameters - sketch.hidden
    in_layers = sum(stack.layers * stack.block for stack in sketch.stacks)
    largest = max(stack.block for stack in sketch.stacks)
    layer = max(setup.records * stack.tokens * stack.kept.size(narrow) for stack in sketch.stacks)
    copies = (0 if narrow == 4 else narrow) * (largest if setup.recomputed else in_layers)
    ends = sketch.parameters - in_layers
    if setup.sharded:  # in fp32: the layer at hand, the next one, and a gradient before it is given away; the ends stay
        copies += 4 * (3 * largest + ends)
    head = _head(sketch, setup)
    moments = (4 * sketch.hidden + 8 * rest) if setup.muon else 8 * sketch.parameters
    orthogonal = (
        setup.muon * sketch.hidden * (4 + narrow + (narrow if narrow < 4 else 0) + ALIKE * GENERATIONS * narrow)
    )
    message = 0 if setup.gpus == 1 else 4 * ends if setup.sharded else 4 * sketch.parameters
    return Memory(
        weights=4 * sketch.parameters / shards,
        gradients=4 * sketch.parameters / shards,
        optimizer=moments / shards,
        copies=copies,
        activations=sum(_activations(sketch, setup)) + setup.recomputed * layer,
        passing=max(head, layer + 4 * sketch.vocabulary * sketch.width),
        updating=max(orthogonal / shards, message),
        accumulates=setup.accumulates,
    )


def _activations(sketch: Sketch, setup: Setup) -> Iterable[float]:
    """What each stack keeps: of every layer, or of every layer its input; and what stands before and behind all."""
    for stack in sketch.stacks:
        kept = 4 * stack.width if setup.recomputed else stack.kept.size(setup.narrow)
        ends = (4 + 4 + setup.narrow) * stack.width
        yield setup.records * stack.tokens * (stack.layers * kept + ends)


def _head(sketch: Sketch, setup: Setup) -> float:
    """What the loss of `models.losses.linear_cross_entropy` takes: the gradients of hidden states and matrix, that
    matrix and a part of its gradient in the type of matrix products, a block of the logits' gradient and a chunk of
    logits."""
    predicted, narrow = setup.records * sketch.predicted, setup.narrow
    matrix, logits = sketch.vocabulary * sketch.width, predicted * sketch.vocabulary
    block, chunk = min(BLOCK_ELEMENTS, logits), min(CHUNK_ELEMENTS, logits)
    of_matrix = 4 + narrow + (narrow if narrow < 4 else 0)
    return narrow * predicted * sketch.width + of_matrix * matrix + narrow * block + (narrow + 8) * chunk


def exchanged(sketch: Sketch, setup: Setup) -> float:
    """Bytes that each GPU sends in a step, in fp32: all gradients, there and back; sharded, the weights for both ways,
    and the gradients once."""
    if setup.gpus == 1:
        return 0.0
    others = (setup.gpus - 1) / setup.gpus
    return others * sketch.parameters * 4 * (3 if setup.sharded else 2)


# -- the plan ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaperPlan:
    """A training on paper; memory in bytes on one GPU, times in seconds.

    Attributes:
        units: tokens or images that are trained on.
        alternatives: the peak of each other way to lay it on the GPUs, with as many records at once.
        exchange_seconds: of a step, if nothing of it hides behind the arithmetic.
        cost: in whatever the price of a GPU hour was given in.
    """

    facts: dict[str, str]
    parameters: int
    gpus: int
    gpu: str
    mode: str
    batch: int
    micro_batch: int
    steps: int
    unit: str
    units: int
    flops: float
    utilisation: float
    memory: dict[str, float]
    alternatives: dict[str, float]
    step_seconds: float
    exchange_seconds: float
    seconds: float
    gpu_hours: float
    cost: float | None
    settings: dict[str, Any]
    sources: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rows(self, settings: Settings) -> dict[str, str]:
        """The plan as a table."""
        return self.facts


def plan_on_paper(recipe: Recipe, asked: Asked, opened: bool) -> PaperPlan:
    """Fill every gap of the settings that size and machines decide, and say what the training would be.

    Args:
        opened: whether the data of the recipe are open; else nothing is known of them.

    Raises:
        UserError: an objective or a network of which too little is known on paper, or one that fits on no such GPU.
    """
    settings, fleet = recipe.settings, asked.fleet
    if settings["train.precision"] == "fp32":
        raise UserError("A plan on paper is made for bf16, whose rates are published; leave --precision out.")
    _settle_network(recipe, asked, opened)
    sketch = recipe.sketch()
    assert sketch is not None
    _settle_batch(recipe, sketch, fleet)
    setup = _choose(recipe, sketch, fleet)
    settings.settle("train.micro_batch", setup.records, "memory")
    share = asked.utilisation or UTILISATION
    flops_per_step = settings["train.batch"] * recipe.flops_per_record()
    rate = share * fleet.count * fleet.gpu.flops
    step_seconds = flops_per_step / rate
    per_step = settings["train.batch"] * recipe.units_per_record
    steps = _steps(recipe, sketch, asked, opened, step_seconds)
    memory, seconds = memory_of(sketch, setup), steps * step_seconds
    hours = seconds * fleet.count / 3600
    plan = PaperPlan(
        facts={},
        parameters=sketch.parameters,
        gpus=fleet.count,
        gpu=fleet.gpu.name,
        mode=setup.words,
        batch=settings["train.batch"],
        micro_batch=setup.records,
        steps=steps,
        unit=recipe.unit,
        units=steps * per_step,
        flops=steps * flops_per_step,
        utilisation=share,
        memory={**asdict(memory), "peak": memory.peak},
        alternatives={other.words: memory_of(sketch, other).peak for other in _others(setup)},
        step_seconds=step_seconds,
        exchange_seconds=exchanged(sketch, setup) / fleet.link,
        seconds=seconds,
        gpu_hours=hours,
        cost=None if asked.price is None else hours * asked.price,
        settings=settings.values(),
        sources=settings.sources,
    )
    return replace(plan, facts=_facts(plan, recipe, asked, memory))


@dataclass(frozen=True)
class Vocabulary:
    """What stands in place of a tokenizer: of that only the number of its tokens is asked on paper."""

    vocabulary: int


def _settle_network(recipe: Recipe, asked: Asked, opened: bool) -> None:
    """Its shape, and what it sees at once."""
    settings = recipe.settings
    own = isinstance(getattr(recipe, "network", None), OwnDecoder | OwnEncoder | OwnVision)
    if not own or settings["model.init"] is not None:
        raise UserError("A plan on paper is made for networks of selfsup's own, from scratch; name a model.preset.")
    if isinstance(recipe, TextRecipe):
        if not opened:
            settings.settle("data.vocabulary", VOCABULARY, "paper")
            recipe.network.take_tokenizer(cast(TextTokenizer, Vocabulary(settings["data.vocabulary"])))
        settings.settle("data.window", WINDOWS[recipe.family], "paper")
        tokens = _known(settings, asked.units or (recipe.corpus.facts.training_tokens if opened else 0))
        recipe.network.settle(Effort(epochs=1.0), round(tokens))
    elif isinstance(recipe, ImageRecipe):
        recipe.network.settle_size(recipe.side if opened else SIDE)
        images = _known(settings, len(recipe.images) if opened else asked.units or 0)
        recipe.network.settle_shape(Effort(epochs=1.0), images)
        if isinstance(recipe, MAERecipe):
            recipe.settle_decoder()
    if recipe.sketch() is None:
        raise UserError(f"A plan on paper is made for causal-lm, masked-lm and mae, not for {settings['objective']}.")


def _known(settings: Settings, units: float) -> float:
    """Tokens or images that a size is chosen by where none is named: those that are known, or those that suit a shape
    that is given; raises a UserError where neither is."""
    layers, width = settings["model.layers"], settings["model.width"]
    if units or settings["model.preset"] != "auto":
        return units
    if layers is None or width is None:
        raise UserError("A plan on paper needs a size, such as model.preset=7b, or --tokens or --data for one.")
    return float(TOKENS_PER_PARAMETER * 12 * layers * width**2)


def _settle_batch(recipe: Recipe, sketch: Sketch, fleet: Fleet) -> None:
    """Records of a step: as is usual for the size, the same number on every GPU; raises a UserError where there are
    fewer records than GPUs."""
    settings = recipe.settings
    if settings["train.batch"] is None:
        usual = next(tokens for most, tokens in STEP_TOKENS if sketch.parameters <= most)
        records = usual // recipe.units_per_record if recipe.unit == "tokens" else STEP_IMAGES
        each = max(1, -(-records // fleet.count))
        settings.settle("train.batch", each * fleet.count, "size and machines")
    if settings["train.batch"] < fleet.count:
        raise UserError(
            f"A batch of {settings['train.batch']} cannot be shared by {fleet.count:,} GPUs; give a larger --batch."
        )


def _modes(recipe: Recipe, gpus: int) -> list[Setup]:
    """The ways to lay a training on its GPUs, the simplest first, with one record at once."""
    muon, shards = recipe.settings["optim.matrices"] == "muon", gpus > 1 and recipe.shards
    return [Setup(gpus, 1, sharded=sharded, muon=muon) for sharded in (False, True)[: 1 + shards]]


def _others(setup: Setup) -> list[Setup]:
    """The other ways, those among them that do not exist here yet."""
    ways = [(sharded, again) for again in (False, True) for sharded in (False, True)[: 1 + (setup.gpus > 1)]]
    return [replace(setup, sharded=way[0], recomputed=way[1]) for way in ways if way != (setup.sharded, False)]


def _choose(recipe: Recipe, sketch: Sketch, fleet: Fleet) -> Setup:
    """The first way in which enough records for a GPU's work fit at once, and the most of them that do; raises a
    UserError where not even one does."""
    settings = recipe.settings
    share = -(-settings["train.batch"] // fleet.count)
    asked: int | None = settings["train.micro_batch"]
    sizes = _halvings(share) if asked is None else [min(asked, share)]
    tokens = max(stack.tokens for stack in sketch.stacks)
    enough = [size for size in sizes if size * tokens >= LEAST_AT_ONCE or size == share]
    modes = _modes(recipe, fleet.count)
    ways = [
        replace(mode, records=size, accumulates=size < share)
        for wanted in (enough, sizes)
        for mode in modes
        for size in wanted
    ]
    room = ROOM * fleet.gpu.memory
    fitting = next((way for way in ways if memory_of(sketch, way).peak <= room), None)
    if fitting is not None:
        return fitting
    needed = min(memory_of(sketch, way).peak for way in ways)
    raise UserError(
        f"This takes {amount(needed, 'B')} on each GPU at the least, and of a {fleet.gpu.name} {amount(room, 'B')} are "
        "planned with; give more GPUs, larger ones, or a smaller model or data.window."
    )


def _halvings(most: int) -> list[int]:
    """So many, half of them, and so on until one."""
    return [most] if most == 1 else [most, *_halvings(-(-most // 2))]


def _steps(recipe: Recipe, sketch: Sketch, asked: Asked, opened: bool, step_seconds: float) -> int:
    """As many as asked for: by their number, what is trained on, the time, or passes over the data; of texts otherwise
    as many as suit the size."""
    train = recipe.settings.config.train
    per_step = (train.batch or 1) * recipe.units_per_record
    if asked.units is not None:
        if train.steps or train.epochs or train.budget:
            raise UserError("--tokens says how long the training is, as --steps, --epochs and --budget do; give one.")
        return math.ceil(asked.units / per_step)
    if train.steps is not None:
        return train.steps
    if train.budget is not None:
        return max(1, int(train.budget / step_seconds))
    if opened:
        return math.ceil((train.epochs or 1.0) * _size(recipe) / per_step)
    if recipe.unit != "tokens" or train.epochs is not None:
        raise UserError("Nothing says how long the training is; give --tokens (the images, of images), or --data.")
    return math.ceil(TOKENS_PER_PARAMETER * sketch.parameters / per_step)


def _size(recipe: Recipe) -> int:
    """Tokens or images of the training part of data that are open."""
    if isinstance(recipe, TextRecipe):
        return recipe.corpus.facts.training_tokens
    assert isinstance(recipe, ImageRecipe)
    return len(recipe.parts()[0])


def _facts(plan: PaperPlan, recipe: Recipe, asked: Asked, memory: Memory) -> dict[str, str]:
    """The plan in words."""
    settings, gpu = recipe.settings, asked.fleet.gpu

    def why(key: str) -> str:
        return f" ({settings.origin(key)})"

    seen = ""
    if recipe.unit == "tokens":
        seen = f" of {settings['data.window']:,} tokens{why('data.window')}"
    others = "; ".join(f"{name} {amount(peak, 'B')}" for name, peak in plan.alternatives.items())
    whose = "given" if asked.utilisation else "assumed, --utilisation"
    cost = {} if plan.cost is None else {"cost": f"{plan.cost:,.0f} at {asked.price:g} for a GPU hour"}
    return {
        "machines": f"{plan.gpus:,} × {gpu.name}, each {amount(gpu.memory, 'B')} at {amount(gpu.bandwidth, 'B/s')} and "
        f"{amount(gpu.flops, 'FLOP/s')} in bf16, as published",
        "model": f"{plan.parameters:,} parameters{why('model.layers')}: "
        f"{settings['model.layers']} layers, width {settings['model.width']}, {settings['model.heads']} heads, "
        f"feed-forward {settings['model.mlp']}",
        "batch": f"{plan.batch:,} records{seen}{why('train.batch')}, {plan.micro_batch} at once on each GPU"
        f"{why('train.micro_batch')}",
        "steps": f"{plan.steps:,}: {amount(plan.units)} {plan.unit}, {plan.flops:.3g} FLOPs",
        "memory": f"{amount(memory.peak, 'B')} at its peak on each GPU, {plan.mode}: {memory.told()}",
        "otherwise": f"{others} (recomputing is not built yet)",
        "pace": f"{plan.step_seconds:.3g} s a step, at {plan.utilisation:.0%} of the published rate ({whose})",
        "exchange": f"{plan.exchange_seconds:.3g} s a step at {amount(asked.fleet.link, 'B/s')}, as far as it does not "
        "hide behind the arithmetic",
        "time": f"{duration(plan.seconds)}, {plan.gpu_hours:,.0f} GPU hours",
        **cost,
    }
