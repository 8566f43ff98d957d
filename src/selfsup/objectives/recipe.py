"""How an objective is put together: data, a network and a method, and what is left of it when it ends.

A recipe stands beside its objective in one file. It is composed of data (`texts.py`, `images.py`), of a network
(`text_networks.py`, `image_networks.py`) and of what the objective adds: its section of the settings, its decisions
(`settle`, one visible list), its modules (`build`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from selfsup.checks import Check
from selfsup.config import Section, Settings
from selfsup.data.loader import in_order
from selfsup.data.mixture import Mixture, parts_of
from selfsup.data.records import Records
from selfsup.models.convnet import ConvNet
from selfsup.models.counting import Sketch
from selfsup.models.features import Features, whitening
from selfsup.models.packing import Pooling
from selfsup.objectives.adaptation import Adaptation
from selfsup.objectives.base import Autocast, Collectives, Objective
from selfsup.objectives.sizes import whitened_over
from selfsup.report import Progress

MEASURED = 1024  # images that statistics are measured over
TOKENS_PER_STEP = 8192  # where only the number of steps is said
DATA = ("source", "column", "split", "validation", "failures", "workers")  # settings of all data


@dataclass(frozen=True)
class Effort:
    """What a run may spend: passes, steps, or floating-point operations (the budget at the rate that is kept for the
    machine); and the memory that there is, free or not: what is decided by it is the same on a busy machine."""

    steps: int | None = None
    epochs: float | None = None
    flops: float | None = None
    memory: float | None = None  # bytes, where that is known

    def parameters(self, tokens_per_parameter: float, tokens: int) -> float:
        """The model size whose training sees `tokens_per_parameter` tokens per parameter, of a corpus of `tokens`."""
        if self.flops is not None:
            return float((self.flops / (6 * tokens_per_parameter)) ** 0.5)
        return self.tokens(1.0, tokens) / tokens_per_parameter

    def tokens(self, parameters: float, tokens: int) -> float:
        """The tokens that a model of this size will see."""
        if self.flops is not None:
            return self.flops / (6 * parameters)
        return (self.epochs or 1.0) * tokens if self.steps is None else self.steps * TOKENS_PER_STEP

    @property
    def origin(self) -> str:
        return "data and " + ("steps" if self.steps else "epochs" if self.epochs else "budget")


@dataclass(frozen=True)
class Replay:
    """Records of other data, which have a share of each batch, so that what they teach is not forgotten."""

    train: Records
    validation: Records | None
    share: float


@dataclass(frozen=True)
class Renewal:
    """When some of the records are made anew by the model as it stands, and what that takes each time."""

    steps: tuple[int, ...] = ()  # before which it is due, in their order
    records: float = 0.0  # that could be trained on meanwhile, about
    memory: int = 0  # bytes that it needs


class Recipe(ABC):
    """What the spine asks of an objective beside the objective itself.

    Args:
        settings: gaps in them are filled by `settle`.
        source: a source from Python, where the configuration does not name one.
        module: a network from Python, in place of the objective's own.

    Raises:
        UserError: a setting is given that means nothing to this recipe.
    """

    train: Records
    validation: Records | None = None
    replay: Replay | None = None  # what of other data is trained on beside them
    name: ClassVar[str]  # of the objective; its section of the settings is called the same, with underscores
    section: ClassVar[type[Section] | None] = None  # the objective's own settings
    unit: ClassVar[str] = "tokens"  # what the pace of training is counted in
    example: ClassVar[str] = "sample:shakespeare"  # what is trained on where no data is named
    sample_title: ClassVar[str] = "What it makes"
    checks: tuple[Check, ...] = ()  # what the doctor looks for beside what it always does
    inspector: ClassVar[str] = "task"  # by which `selfsup.inspection` shows its task
    idea: ClassVar[str] = "a part of the data is hidden and predicted from the rest"
    words: ClassVar[Mapping[str, str]] = {}  # for Shown, Hidden, Predicted, Learned of its inspector
    loss_unit: ClassVar[str | None] = None  # what the loss counts, where it depends on the tokens
    # Whether of two runs, or of two steps of a run, the model with the lower held-out loss is the better one.
    losses_compare: bool = True
    mixes: ClassVar[bool] = False  # whether it trains on a mixture of sources
    takes_modules: ClassVar[bool] = False  # whether a network may come from Python
    shards: ClassVar[bool] = False  # whether its parameters may be spread over processes
    checks_layout: ClassVar[bool] = True  # whether what is saved is compared with another library
    feature_batch: ClassVar[int] = 64  # records whose vectors are computed at once
    # Modules of the objective whose weights may be started from others, each behind the setting that names these.
    bodies: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, settings: Settings, source: object | None = None, module: nn.Module | None = None) -> None:
        self.settings, self.source, self.module = settings, source, module
        self.renewed: dict[str, Tensor] = {}  # of records that the model makes anew; names, shapes and types stay
        self.compose()
        read = self.reads()
        self.adaptation = Adaptation(settings, [(key, name) for key, name in self.bodies if key in read])
        settings.keep(read)

    @classmethod
    def sections(cls) -> dict[str, type[Section]]:
        """The objective's own sections of the settings, by name."""
        return {} if cls.section is None else {cls.name.replace("-", "_"): cls.section}

    @classmethod
    def fitting(cls, values: Mapping[str, Any]) -> type[Recipe]:
        """The recipe that settings ask for by their dotted keys: this one, unless the objective has several."""
        return cls

    @classmethod
    def resolve(cls, *layers: tuple[str, Mapping[str, Any]]) -> Settings:
        """Layers of values as the settings of this recipe, see `Settings`."""
        return Settings(*layers, sections=cls.sections())

    @classmethod
    def upgraded(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration of an older run, with what was decided otherwise then."""
        return config

    @abstractmethod
    def compose(self) -> None:
        """Choose the parts, such as the network, by the settings."""

    def reads(self) -> set[str]:
        """Which settings of the data, the model and the objective mean something to this recipe."""
        own = {f"{name}.{key}" for name, section in self.sections().items() for key in section.model_fields}
        return own | {f"data.{key}" for key in DATA} | {"model.preset", "model.freeze"}

    # -- what it trains on, and how large everything is ----------------------------------------------------

    @property
    def given_source(self) -> object:
        """What it trains on, as it was given."""
        return self.source if self.source is not None else self.settings["data.source"]

    @abstractmethod
    def open(self, progress: Progress) -> None:
        """Open the data; what takes long reports (bytes done, bytes in all where known)."""

    @abstractmethod
    def settle(self, effort: Effort) -> None:
        """Fill the gaps of the settings that depend on data and effort; `train` and `validation` stand then."""

    def settle_evaluation_batch(self) -> None:
        """Where records meet in the score, a loss is comparable only among as many of them as meet in training."""
        if self.validation is not None:
            batch = min(self.settings["train.batch"], len(self.validation))
            self.settings.settle("evaluate.batch", batch, "batch")

    @property
    def grouped(self) -> int | None:
        """Images of a micro-batch, which meet in groups (`model.group`) in layers of the network; None if none do."""
        return None

    @property
    def new_share(self) -> float:
        """The share of a batch that `train` has."""
        return 1.0 if self.replay is None else 1 - self.replay.share

    @property
    def drawn(self) -> Records:
        """What batches are drawn from: `train`, and what is replayed beside it."""
        if self.replay is None:
            return self.train
        return Mixture((self.train, self.replay.train), (self.new_share, self.replay.share))

    def mixture_told(self, records: float) -> dict[str, str]:
        """How often each source of a mixture is gone through in a run of so many records, for the plan."""
        mixture = self.train
        if not isinstance(mixture, Mixture):
            return {}
        each = zip(mixture.names, parts_of(mixture), strict=True)
        passes = {name: (share, self.new_share * share * records / len(part)) for name, (share, part) in each}
        return {
            "mixture": ", ".join(
                f"{name} {share:.4g} ({often:.3g} {'passes' if often >= 1 else 'of a pass'})"
                for name, (share, often) in passes.items()
            )
        }

    @abstractmethod
    def fingerprint(self) -> str:
        """Of the data as it is trained on; a run is resumed only where it is the same."""

    def counts(self) -> dict[str, int]:
        """Figures of the data that the doctor looks at."""
        return {}

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """What the plan says of data and model."""

    # -- the objective -------------------------------------------------------------------------------------

    @abstractmethod
    def build(self) -> Objective:
        """The objective with fresh weights, a function of the seed alone."""

    def begin(self) -> Objective:
        """The objective as its training begins: built, and what of it is to stay is frozen."""
        objective = self.build()
        self.adaptation.apply(objective)
        return objective

    @abstractmethod
    def flops_per_record(self) -> float:
        """Floating-point operations of forward and backward."""

    def sketch(self) -> Sketch | None:
        """What the memory of its training follows from, where its network is of a known shape from scratch; nothing is
        built."""
        return None

    @property
    def started(self) -> bool:
        """Whether it starts from weights that know something already."""
        return bool(self.adaptation.bodies)

    @property
    def units_per_record(self) -> int:
        """Units in a record."""
        return 1

    def chance(self, records: int) -> float | None:
        """The loss of a model that knows nothing, of so many records in a batch; None where that is not known."""
        return None

    def chance_in_training(self, records: int) -> float | None:
        """The same of a batch that is trained on, where that holds more to be told apart than one that is held out."""
        return self.chance(records)

    def figures(self, means: Mapping[str, float], part: str) -> dict[str, float]:
        """What the loss and its terms mean in other units, on the part `train` or `validation`."""
        return {}

    def sample(self, objective: Objective) -> str | None:
        """Something to look at, made by the model as it stands."""
        return None

    @property
    def next_command(self) -> str | None:
        """The command to try on a finished run, with {run} for it."""
        return None

    # -- records that depend on the model ------------------------------------------------------------------

    def renewal(self, steps: int) -> Renewal:
        """When, in a run of so many steps, records are made anew by the model as it stands; for most never."""
        return Renewal()

    def renew(self, objective: Objective, collectives: Collectives, autocast: Autocast, progress: Progress) -> str:
        """Make them anew, a function of the weights and the data alone and the same on every process; what to tell of
        it. Nothing reads records meanwhile. What of them a checkpoint is to keep goes into `renewed`. `progress`
        receives what is done and all of it."""
        raise NotImplementedError

    # -- what is left of it --------------------------------------------------------------------------------

    @abstractmethod
    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """Write what a user keeps, in a layout that opens elsewhere."""

    def model(self, objective: Objective) -> Any:
        """The model as it stands and as a user would open it, for protocols; None where there is none to open."""
        return None

    def measurable(self, by_class: bool) -> bool:
        """Whether protocols can be measured on `examples`, opened: those that need classes, or all others."""
        return False

    def examples(self, by_class: bool, records: int) -> tuple[object, object]:
        """Data and test data of its own for a protocol: held-out records; to learn classes from, training records."""
        return None, None

    def reading_options(self) -> dict[str, Any]:
        """How other data than the run's own is read for protocols: fields of `selfsup.evaluation.base.Measurement`."""
        return {}

    # -- the vectors of an encoder -------------------------------------------------------------------------

    @property
    def pooling(self) -> Pooling:
        """How an item becomes one vector."""
        return "mean"

    def encoder(self, objective: Objective) -> nn.Module | None:
        """What of an objective makes vectors; None where nothing does."""
        return None

    def pooled(self, encoder: Any, data: dict[str, Tensor]) -> Tensor:
        """The pooled vectors (n, width) of what records hold, which may be several items each. Only a recipe
        that has an `encoder` is asked."""
        raise NotImplementedError

    def whole(self, data: dict[str, Tensor]) -> Tensor:
        """Images of records as a model in use sees them; only a recipe of images is asked."""
        raise NotImplementedError

    def measure_statistics(self, objective: Objective) -> None:
        """Where layers of the encoder have statistics of what passes, give them those that serve for all but training:
        a function of the weights and the training data alone, the same on every process."""
        network = self.encoder(objective)
        if isinstance(network, ConvNet):
            device = next(network.parameters()).device
            batches = in_order(self.train, min(MEASURED, len(self.train)), 0, self.feature_batch)
            network.measure(self.whole(batch.to(device).data) for batch in batches)

    @property
    def items_per_record(self) -> int:
        """How many vectors `pooled` makes of a record."""
        return 1

    @property
    def whitening_records(self) -> int:
        """Records of the training part that are embedded when a model is saved."""
        if not self.settings["model.whiten"]:
            return 0
        return min(len(self.train), -(-whitened_over(self.settings) // self.items_per_record))

    def definition(self, objective: Objective) -> Features:
        """What the vector of an item is: pooled, and whitened over items of the training part."""
        records = self.whitening_records
        return self.whitened(objective, records) if records else Features(self.pooling)

    def whitened(self, objective: Objective, records: int) -> Features:
        """The same, whitened over so many records of the training part."""
        return Features(self.pooling, *whitening(self.embed(objective, self.train, records)))

    def features(self, objective: Objective, records: int) -> npt.NDArray[np.float32] | None:
        """Vectors of held-out records, (records, dim), which say whether they collapse; None where there are none."""
        if self.validation is None or self.encoder(objective) is None:
            return None
        return self.embed(objective, self.validation, records)

    @torch.inference_mode()
    def embed(self, objective: Objective, source: Records, records: int) -> npt.NDArray[np.float32]:
        """The pooled vectors of records spread evenly over a source."""
        encoder = self.encoder(objective)
        assert encoder is not None
        encoder.eval()
        device = next(encoder.parameters()).device
        batches = in_order(source, records, 0, self.feature_batch)
        parts = [self.pooled(encoder, batch.to(device).data) for batch in batches]
        return torch.cat(parts).cpu().numpy()
