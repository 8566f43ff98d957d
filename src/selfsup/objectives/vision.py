"""What recipes of vision share: the images, the network and its sizes, and the directory that is left of it."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from selfsup.config import nearest
from selfsup.data.loader import in_order
from selfsup.data.records import Records
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.models.backbones import TIMM, Adapted, AnyBackbone, adapt, open_timm, save_backbone
from selfsup.models.cards import card, data_name, measured
from selfsup.models.clip import IMAGE
from selfsup.models.counting import sketched
from selfsup.models.dinov3 import SavedVision, read_vision
from selfsup.models.features import Features, whitening
from selfsup.models.packing import Pooling
from selfsup.models.presets import VISION
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.objectives.base import Effort, Objective, Progress, Recipe
from selfsup.objectives.sizes import TOKENS_PER_PARAMETER, power_of_two, settle_rates, whitened_over
from selfsup.objectives.starting import require_image_model, tower_directory
from selfsup.seeding import generator, seeded
from selfsup.views import centred

if TYPE_CHECKING:
    from selfsup.data.images import ImageRecords, Images
    from selfsup.data.pairs import PairRecords
    from selfsup.inference.pictures import Pictures

SIZES = ((48, 4), (96, 8), (math.inf, 16))  # up to which side, which patch
ROUND, ROUND_FROM = 32, 64  # what sides are multiples of for networks of others, from which side on
LARGEST = 224  # side of what a network sees, unless it is said
SURPLUS = 1.5  # of that side, for the short side that images are kept at: a crop sees a part of them
FEWEST_STEPS = 300  # a batch leaves room for
BATCH = 256
BANK = 5000  # images that protocols learn classes from during a run
REGISTERS = 4
FEATURE_BATCH = 128  # images whose features are computed at once
TEXT_ONLY = {
    "data.tokenizer": "bpe",
    "data.vocabulary": None,
    "data.window": None,
    "model.kv_heads": None,
    "model.head_dim": None,
    "model.tied": None,
    "model.dropout": None,
}


class VisionRecipe(Recipe):
    """From images to a network that sees: a vision transformer of selfsup's own, one of timm, or one from Python."""

    example: ClassVar[str] = "sample:emoji"
    unit: ClassVar[str] = "images"
    useful: ClassVar[str | None] = "selfsup index {run} --data photos/ --out photos.lance"
    pooling: ClassVar[Pooling] = "mean"  # how an image becomes one vector, where the network leaves it open
    adamw_lr: ClassVar[float] = 0.003
    useless: ClassVar[Mapping[str, Any]] = (
        TEXT_ONLY  # settings that mean nothing here, and what they are by default
    )
    views: float  # images that the network sees of a record, in units of one of full size
    images: Images
    train: ImageRecords | PairRecords
    validation: ImageRecords | PairRecords | None = None

    # -- data ----------------------------------------------------------------------------------------------

    def open(self, progress: Progress) -> None:
        for key, default in self.useless.items():
            if self.settings[key] != default:
                raise UserError(f"{self.settings['objective']} has no use for {key}; leave it out.")
        if (place := self.settings["model.init"]) is not None:  # for a resume from anywhere
            place = str(expanded(place).absolute())
            self.settings.change("model.init", place, self.settings.origin("model.init"))
        self._open_images(progress)

    def _open_images(self, progress: Progress) -> None:
        from selfsup.data.images import open_images

        data = self.settings.config.data
        source = self.source if self.source is not None else data.source
        self.images = open_images(
            source,
            column=data.column,
            failures=data.failures,
            split=data.split or "training",
            progress=progress,
        )

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def counts(self) -> dict[str, int]:
        return {"documents": len(self.images), "duplicates": self.images.duplicates}

    @property
    def side(self) -> int:
        """The median of the images' short sides."""
        return int(np.median(self.images.sizes.min(1)))

    # -- sizes ---------------------------------------------------------------------------------------------

    def settle(self, effort: Effort) -> None:
        """Sizes of image, patch, network and batch, and learning rates."""
        settings = self.settings
        self._settle_size()
        self._settle_network(effort)
        settings.settle("model.whiten", True, "recipe")
        self._records()
        most = power_of_two(min(BATCH, max(16, self._seen(effort) / FEWEST_STEPS), len(self.train)))
        settings.settle("train.batch", most, "recipe and data")
        if self.validation is not None:
            settings.settle("evaluate.batch", min(settings["train.batch"], len(self.validation)), "batch")
        self._settle_rates()

    def _settle_rates(self) -> None:
        width = self.settings["model.width"] or self.backbone_look.dimension
        settle_rates(self.settings, width, self.adamw_lr, self.settings["model.init"] is not None)

    def _settle_size(self) -> None:
        settings = self.settings
        side = min(self.side, LARGEST if self.origin is None else self.origin.config.size)
        if (own := self._own_size()) is not None:
            settings.settle("data.size", own, "network")
            if settings["data.size"] != own:
                raise UserError(f"The network sees images of {own} pixels, so leave data.size out.")
        elif not self.native and side >= ROUND_FROM:
            side = side // ROUND * ROUND  # which patches and strides of others divide
        if self.native and self.origin is None:
            settings.settle("model.patch", next(patch for most, patch in SIZES if side <= most), "image size")
        elif self.origin is not None:
            settings.settle("model.patch", self.origin.config.patch, "init")
        patch = settings["model.patch"] or 1
        settings.settle("data.size", max(patch, side // patch * patch), "image size")
        if settings["data.size"] % patch:
            raise UserError(
                f"data.size {settings['data.size']} is no multiple of model.patch {patch}; give one that is."
            )

    def _own_size(self) -> int | None:
        """The side of images that a network from Python was made for, where it says so."""
        if isinstance(self.module, VisionTransformer):
            return self.module.config.size
        return self.module.size if isinstance(self.module, Adapted) else None

    def _records(self) -> None:
        from selfsup.data.images import split_images

        train, held_out = split_images(self.images, self.settings["data.validation"])
        self.train = self._records_of(train)
        if len(held_out):
            self.validation = self._records_of(held_out)

    def _records_of(self, indices: npt.NDArray[np.int64]) -> ImageRecords | PairRecords:
        from selfsup.data.images import ImageRecords

        return ImageRecords(self.images, indices, self._least)

    @property
    def _least(self) -> int:
        """The short side that images are kept at."""
        size: int = self.settings["data.size"]
        return math.ceil(SURPLUS * size)

    def _seen(self, effort: Effort) -> float:
        """Images that the run will see, about."""
        if effort.flops is not None:
            return effort.flops / self.flops_per_record()
        if effort.steps is not None:
            return float(effort.steps * BATCH)
        return (effort.epochs or 1.0) * len(self.images)

    # -- the network ---------------------------------------------------------------------------------------

    @property
    def native(self) -> bool:
        """Whether the network is selfsup's own vision transformer."""
        return self.module is None and not str(self.settings["model.preset"]).startswith(TIMM)

    @cached_property
    def origin(self) -> SavedVision | None:
        """The model to start from, where one is named.

        Raises:
            UserError: there is none, or it is of another architecture.
        """
        place = self.settings["model.init"]
        if place is None:
            return None
        directory = tower_directory(place, IMAGE)
        require_image_model(directory, self.settings["objective"])
        return read_vision(directory)

    def _settle_network(self, effort: Effort) -> None:
        settings = self.settings
        if not self.native:
            given = [name for name in ("layers", "width", "heads", "mlp", "patch", "registers", "init")
                     if settings[f"model.{name}"] is not None]  # fmt: skip
            if given:
                raise UserError(
                    f"{settings['model.preset']} has a shape of its own, so leave model.{given[0]} out."
                )
            return
        if self.origin is not None:
            if settings["model.preset"] != "auto":
                raise UserError(f"{settings['model.init']} brings its own shape, so leave model.preset out.")
            for name in ("layers", "width", "heads", "mlp", "registers", "patch"):
                found, asked = getattr(self.origin.config, name), settings[f"model.{name}"]
                if asked not in (None, found):
                    raise UserError(
                        f"{settings['model.init']} has {name} {found}, so model.{name} is not {asked}; leave it out."
                    )
                settings.settle(f"model.{name}", found, "init")
            return
        if settings["model.preset"] == "auto":
            settings.change("model.preset", self._fitting_preset(effort), effort.origin)
        preset = settings["model.preset"]
        if preset not in VISION:
            raise UserError(f"There is no model preset '{preset}'{nearest(preset, ['auto', *VISION])}")
        shape, origin = VISION[preset], f"preset {preset}"
        settings.settle("model.layers", shape.layers, origin)
        settings.settle("model.width", shape.width, origin)
        settings.settle("model.heads", max(1, settings["model.width"] * shape.heads // shape.width), origin)
        settings.settle("model.mlp", 4 * settings["model.width"], origin)
        settings.settle("model.registers", REGISTERS, "recipe")

    def _fitting_preset(self, effort: Effort) -> str:
        """The preset whose parameters suit what is spent, a patch of an image taken for a token."""
        patches = (self.settings["data.size"] // self.settings["model.patch"]) ** 2 * self.views
        wanted = effort.parameters(TOKENS_PER_PARAMETER, int(patches * len(self.images)))
        return min(VISION, key=lambda name: abs(math.log(VISION[name].blocks / wanted)))

    def vision_config(self) -> VisionConfig:
        settings = self.settings
        if self.origin is not None:
            return replace(self.origin.config, size=settings["data.size"])
        shape = {
            name: settings[f"model.{name}"]
            for name in ("patch", "layers", "width", "heads", "mlp", "registers")
        }
        try:
            return VisionConfig(size=settings["data.size"], **shape)
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None

    def backbone(self) -> AnyBackbone:
        """The network as it starts: a function of the seed alone, or of the weights to start from."""
        settings, seed = self.settings, self.settings["train.seed"]
        if self.module is not None:
            self.module.load_state_dict(self._given)  # as it was given, whatever the calibration did to it
            return adapt(self.module, settings["data.size"])
        if not self.native:
            with seeded(seed, "weights"):
                return open_timm(settings["model.preset"], settings["data.size"])
        if self.origin is not None:
            return replace(self.origin, config=self.vision_config()).model()
        return VisionTransformer(self.vision_config()).initialise(generator(seed, "weights"))

    @cached_property
    def _given(self) -> dict[str, torch.Tensor]:
        assert self.module is not None
        return {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    @cached_property
    def backbone_look(self) -> AnyBackbone:
        """A network like the one to be trained, to ask its shape."""
        return self.backbone()

    # -- what the spine asks -------------------------------------------------------------------------------

    @abstractmethod
    def network(self, objective: Objective) -> AnyBackbone:
        """What of an objective is kept."""

    def definition(self, objective: Objective) -> Features:
        """What the vector of an image is: pooled, and whitened over images of the training part."""
        if not self.whitened:
            return Features(self.pooling)
        return self.whiten(objective, self.whitened)

    def whiten(self, objective: Objective, records: int) -> Features:
        """The vector of an item, whitened over records of the training part."""
        return Features(self.pooling, *whitening(self._embed(objective, self.train, records)))

    @property
    def whitened(self) -> int:
        return min(len(self.train), whitened_over(self.settings)) if self.settings["model.whiten"] else 0

    @cached_property
    def _flops_per_image(self) -> float:
        """Of forward and backward; of a network of others the forward pass is counted."""
        size = self.settings["data.size"]
        if self.native:
            return float(sketched(VisionTransformer, self.vision_config()).flops(size))
        network = copy.deepcopy(self.backbone_look).cpu().eval()  # it may be the one that is in training
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network.embed(torch.zeros(1, 3, size, size), self.pooling)
        return float(3 * counter.get_total_flops())

    def flops_per_record(self) -> float:
        return float(self.views * self._flops_per_image)

    @property
    def units_per_record(self) -> int:
        return 1

    def facts(self) -> dict[str, str]:
        images, size = self.images, self.settings["data.size"]
        skipped = images.skipped
        left_out = {"duplicates": images.duplicates, "unreadable ones left out": skipped.count}
        counted = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        held_out = 0 if self.validation is None else len(self.validation)
        return {
            "data": f"{len(images):,} images, {self.side} pixels at their short side in the median"
            + (f" ({counted})" if counted else ""),
            **({"left out": "; ".join(skipped.left_out)} if skipped.left_out else {}),
            **({"unreadable": "; ".join(skipped.names)} if skipped.names else {}),
            "images": f"{len(self.train):,} for training, {held_out:,} held out, seen at {size} × {size} pixels",
            "model": self._describe_model(),
        } | self._normalised_together()

    def _normalised_together(self) -> dict[str, str]:
        """Of networks with batch normalisation: images that meet in it, so that micro-batches are no mere split."""
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
        if not any(isinstance(part, norms) for part in self.backbone_look.modules()):
            return {}
        return {
            "statistics": "of a micro-batch in one process: another train.micro_batch is another training"
        }

    def _describe_model(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.backbone_look.parameters())
        if not self.native:
            return f"{parameters:,} parameters in {self.settings['model.preset']}"
        config = self.vision_config()
        return (
            f"{parameters:,} parameters in the vision transformer: {config.layers} layers, width {config.width}, "
            f"{config.heads} heads, patches of {config.patch} pixels"
        )

    def model(self, objective: Objective) -> Any:
        from selfsup.inference.vision import ImageModel

        network = self.network(objective)
        return ImageModel(network, self.definition(objective), self.settings["data.size"])

    def measurable(self, by_class: bool) -> bool:
        labels = self.images.labels
        has_classes = labels is not None and bool((labels >= 0).any())
        return self.settings["data.validation"] > 0 and (has_classes or not by_class)

    def examples(self, by_class: bool, records: int) -> tuple[object, object]:
        """Images spread evenly over the held-out part; classes are learnt from at most `BANK` of the training part."""
        from selfsup.data.images import split_images

        trained, held_out = split_images(self.images, self.settings["data.validation"])
        measured = self._some(held_out, records)
        return (self._some(trained, BANK), measured) if by_class else (measured, None)

    def _some(self, indices: npt.NDArray[np.int64], most: int) -> Pictures:
        """Images spread evenly over those of the indices."""
        from selfsup.inference.pictures import Pictures

        return Pictures(self.images, self.settings["data.size"], spread_evenly(indices, most))

    def features(self, objective: Objective, records: int) -> npt.NDArray[np.float32] | None:
        return None if self.validation is None else self._embed(objective, self.validation, records)

    @torch.inference_mode()
    def _embed(self, objective: Objective, source: Records, records: int) -> npt.NDArray[np.float32]:
        """The pooled vectors of records spread evenly over a source."""
        network, size = self.network(objective).eval(), self.settings["data.size"]
        device = next(network.parameters()).device
        parts = []
        for batch in in_order(source, records, 0, FEATURE_BATCH):
            data = batch.to(device).data
            parts.append(network.embed(centred(data["pixels"], data["sizes"], size), self.pooling))
        return torch.cat(parts).cpu().numpy()

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """The network, how an image is prepared for it and what its vector is, as a directory that opens elsewhere."""
        card = self._card(summary)
        summary["max_difference"] = save_backbone(
            directory, self.network(objective), self.definition(objective), card
        )

    def _card(self, summary: dict[str, Any]) -> Callable[[str], str]:
        """The model card, for a statement of how exact the layout is."""
        settings, size = self.settings, self.settings["data.size"]
        layout = "DINOv3 ViT" if self.native else settings["model.preset"]
        return lambda exactness: card(
            f"A vision model trained on {data_name(settings['data.source'])}",
            f"{self._describe_model()}, trained by {settings['objective']} with selfsup: {summary['steps']:,} steps on "
            f"images of {size} × {size} pixels, no labels.",
            {
                "Validation loss": measured(summary),
                "Layout": f"{layout}; {exactness}",
                "Features": "see features.json",
            },
            USE,
            library="transformers" if self.native else "selfsup",
            task="image-feature-extraction",
        )


def spread_evenly(indices: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most so many of the indices, evenly over all."""
    count = min(most, len(indices))
    return indices[np.arange(count) * len(indices) // count]


USE = """\
import selfsup

vectors = selfsup.load("path/to/this/directory").embed(images)  # uint8 arrays (height, width, 3)
"""
