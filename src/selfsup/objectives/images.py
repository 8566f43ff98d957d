"""What recipes of vision share: the images, the sizes that follow from them, and the model directory that is left."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from selfsup.data.mixing import Mixing, is_mixture, read_mixture
from selfsup.data.mixture import Mixture
from selfsup.data.records import Records, Subset
from selfsup.errors import UserError
from selfsup.models.backbones import AnyBackbone, save_backbone
from selfsup.models.cards import card, data_name, measured
from selfsup.models.packing import Pooling
from selfsup.models.vision_layouts import SavedVision
from selfsup.objectives.base import Objective
from selfsup.objectives.image_networks import Convolutions, ForeignVision, ImageNetwork, OwnConvNet, vision_network
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.objectives.sizes import power_of_two, settle_layer_decay, settle_rates
from selfsup.report import Progress
from selfsup.views import View, centred

if TYPE_CHECKING:
    from selfsup.data.images import ImageRecords, Images
    from selfsup.data.images.answered import AnsweredImages
    from selfsup.data.pairs import PairRecords
    from selfsup.data.tally import Skipped
    from selfsup.inference.pictures import Pictures
    from selfsup.inference.vision import ImageModel

    AnyImageRecords: TypeAlias = ImageRecords | PairRecords | AnsweredImages

SURPLUS = 1.5  # of the side that a network sees, for the short side that images are kept at: a crop sees a part
FEWEST_STEPS = 300  # a batch leaves room for
BATCH = 256
BANK = 5000  # images that protocols learn classes from during a run
ADAMW_LR = 0.003
USAGE = """\
import selfsup

vectors = selfsup.load("path/to/this/directory").embed(images)  # uint8 arrays (height, width, 3)
"""


class ImageRecipe(Recipe):
    """From images to a network that sees."""

    example = "sample:emoji"
    unit = "images"
    takes_modules = True
    feature_batch = 128
    convolutions: ClassVar[Convolutions] = "never"  # for which images selfsup's own convolutional network is trained
    fewest: ClassVar[int] = 16  # records of a batch, however short the run
    views: float = 1.0  # images that the network sees of a record, in units of one of full size
    network: ImageNetwork
    mixes = True
    images: Images
    mixing: Mixing | None = None  # the sources of a mixture

    def compose(self) -> None:
        self.network = vision_network(self.settings, self.module, self.convolutions)

    def reads(self) -> set[str]:
        return super().reads() | {"data.size"} | self.network.reads()

    @property
    def next_command(self) -> str | None:
        return "selfsup index {run} --data photos/ --out photos.lance"

    # -- data ----------------------------------------------------------------------------------------------

    def open(self, progress: Progress) -> None:
        data = self.settings.config.data
        how = {"column": data.column, "failures": data.failures, "split": data.split or "training"}
        if is_mixture(self.given_source):
            self._open_mixture(read_mixture(self.given_source), how, progress)
        else:
            self.images = self.open_source(self.given_source, how, progress)

    def open_source(self, source: object, how: dict[str, Any], progress: Progress) -> Images:
        """The images of a source."""
        from selfsup.data.images import open_images

        return open_images(source, **how, progress=progress)

    def _open_mixture(self, mixing: Mixing, how: dict[str, Any], progress: Progress) -> None:
        """Open all sources of a mixture, as one collection."""
        from selfsup.data.images.joint import JointImages

        every: list[Images] = []
        for name, one in mixing.sources.items():
            with mixing.reading(name):
                every.append(self.open_source(one.data, how | one.reading, progress))
        self.mixing, self.images = mixing, JointImages(mixing.name, every)

    def fingerprint(self) -> str:
        mixed = () if self.mixing is None else (self.mixing.told(), [len(one) for one in self.sources.values()])
        own = self.images.fingerprint()
        return hashlib.blake2b(repr((own, *mixed)).encode(), digest_size=16).hexdigest() if mixed else own

    @property
    def pooling(self) -> Pooling:
        return self.network.pooling

    def counts(self) -> dict[str, int]:
        return {"documents": len(self.images), "duplicates": self.images.duplicates}

    @property
    def started(self) -> bool:
        return self.network.started or super().started

    @property
    def side(self) -> int:
        """The median of the images' short sides."""
        return int(np.median(self.images.sizes.min(1)))

    # -- sizes ---------------------------------------------------------------------------------------------

    def settle_size(self) -> None:
        """Which network fits the images, and what it sees, in pixels."""
        self.network = self.network.fitting(self.side)
        self.settings.keep(self.reads())
        self.network.settle_size(self.side)

    @property
    def grouped(self) -> int | None:
        own = isinstance(self.network, OwnConvNet)
        return int(self.views) * self.settings["train.micro_batch"] if own else None

    def settle_network(self, effort: Effort) -> None:
        """The shape of the network, and whether its vectors are whitened."""
        self.network.settle_shape(effort, self.views * len(self.images))
        self.settings.settle("model.whiten", True, "recipe")

    def cut(self) -> None:
        """Divide the images into records to train on and records held out."""
        train, held_out = self.parts()
        if self.mixing is not None:
            self._cut_mixture(self.mixing, train, held_out)
            return
        self.train = self.records_of(train)
        if len(held_out):
            self.validation = self.records_of(held_out)

    def _cut_mixture(self, mixing: Mixing, train: npt.NDArray[np.int64], held_out: npt.NDArray[np.int64]) -> None:
        """The same in the shares of a mixture; of a source of which no image is held out, none is looked at."""
        names, (together, parts) = list(mixing.sources), self._by_source(train)
        sizes = [len(part) for part in parts]
        if 0 in sizes:
            name = names[sizes.index(0)]
            raise UserError(f"Of {name} in {mixing.name} all images would be held out; give more of them.")
        shares = mixing.shares(sizes)
        self.train = Mixture(parts, shares, names, together, mixing.once(sizes))
        if len(held_out):
            together, parts = self._by_source(held_out)
            there = [number for number, part in enumerate(parts) if len(part)]
            self.validation = Mixture(
                [parts[n] for n in there], [shares[n] for n in there], [names[n] for n in there], together
            )

    def _by_source(self, indices: npt.NDArray[np.int64]) -> tuple[Records, list[Subset]]:
        """Images of these numbers, in their order, as records, and those of each source of a mixture."""
        together = self.records_of(indices)
        stops = np.cumsum([len(images) for images in self.sources.values()])
        borders = [0, *np.searchsorted(indices, stops).tolist()]
        return together, [Subset(together, np.arange(start, stop)) for start, stop in pairwise(borders)]

    def parts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the images to train on, and of those held out."""
        from selfsup.data.images import split_images

        return split_images(self.images, self.settings["data.validation"])

    @property
    def sources(self) -> dict[str, Images]:
        """The images of each source of a mixture, by its name."""
        from selfsup.data.images.joint import JointImages

        return dict(zip(self.mixing.sources, cast(JointImages, self.images).every, strict=True)) if self.mixing else {}

    def records_of(self, indices: npt.NDArray[np.int64]) -> AnyImageRecords:
        """Images of these numbers as records."""
        from selfsup.data.images import ImageRecords

        return ImageRecords(self.images, indices, self.least)

    @property
    def least(self) -> int:
        """The short side that images are kept at."""
        size: int = self.settings["data.size"]
        return math.ceil(SURPLUS * size)

    def settle_batch(self, effort: Effort) -> None:
        """Records of a step, and of an evaluation."""
        most = power_of_two(min(BATCH, max(self.fewest, self._seen(effort) / FEWEST_STEPS), len(self.train)))
        self.settings.settle("train.batch", most, "recipe and data")
        self.settle_evaluation_batch()

    def _seen(self, effort: Effort) -> float:
        """Images that the run will see, about."""
        if effort.flops is not None:
            return effort.flops / self.flops_per_record()
        if effort.steps is not None:
            return float(effort.steps * BATCH)
        return (effort.epochs or 1.0) * len(self.images)

    def settle_rates(self) -> None:
        """Learning rates, by the width of the network."""
        settings = self.settings
        settle_layer_decay(settings, isinstance(self.network.origin, SavedVision))
        settle_rates(settings, self.network.width, ADAMW_LR, self.network.started)

    def flops_per_record(self) -> float:
        return float(self.views * self.network.flops)

    # -- what is told --------------------------------------------------------------------------------------

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
            **{
                f"source {name}": f"{len(images):,} images" + _left_out_told(images.skipped)
                for name, images in self.sources.items()
            },
            "images": f"{len(self.train):,} for training, {held_out:,} held out, seen at {size} × {size} pixels",
            "model": self.network.describe(),
            **self.network.facts(),
        }

    # -- protocols -----------------------------------------------------------------------------------------

    def measurable(self, by_class: bool) -> bool:
        labels = self.images.labels
        has_classes = labels is not None and bool((labels >= 0).any())
        return self.settings["data.validation"] > 0 and (has_classes or not by_class)

    def examples(self, by_class: bool, records: int) -> tuple[object, object]:
        """Images spread evenly over the held-out part; classes are learnt from at most `BANK` of the training part."""
        trained, held_out = self.parts()
        measured = self.pictures(spread_evenly(held_out, records))
        return (self.pictures(spread_evenly(trained, BANK)), measured) if by_class else (measured, None)

    def seen(self, view: View) -> View:
        """A view as the network sees it."""
        return view.prepared(self.network.preprocessing)

    def pictures(self, indices: npt.NDArray[np.int64]) -> Pictures:
        """Images of these numbers, for a model in use."""
        from selfsup.inference.pictures import Pictures

        return Pictures(self.images, self.settings["data.size"], indices)

    # -- what is left --------------------------------------------------------------------------------------

    def pooled(self, encoder: Any, data: dict[str, Tensor]) -> Tensor:
        vectors: Tensor = encoder.embed(self.whole(data), self.pooling)
        return vectors

    def whole(self, data: dict[str, Tensor]) -> Tensor:
        return centred(data["pixels"], data["sizes"], self.network.preprocessing)

    @abstractmethod
    def encoder(self, objective: Objective) -> AnyBackbone: ...

    def model(self, objective: Objective) -> ImageModel:
        from selfsup.inference.vision import ImageModel

        features = self.definition(objective)
        return ImageModel(self.encoder(objective), features, self.network.preprocessing)

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """The network, how an image is prepared for it and what its vector is, as a directory that opens elsewhere."""
        features, described = self.definition(objective), self.model_card(summary)
        encoder, brought = self.encoder(objective), self.network.brought
        summary["max_difference"] = save_backbone(directory, encoder, features, described, **brought)

    def model_card(self, summary: dict[str, Any]) -> Callable[[str], str]:
        """The model card, for a statement of how exact the layout is."""
        settings, own = self.settings, not isinstance(self.network, ForeignVision)
        size, layout = settings["data.size"], self.network.layout
        return lambda exactness: card(
            f"A vision model trained on {data_name(settings['data.source'])}",
            f"{self.network.describe()}, trained by {settings['objective']} with selfsup: {summary['steps']:,} steps "
            f"on images of {size} × {size} pixels, no labels.",
            {"Validation loss": measured(summary), "Layout": f"{layout}; {exactness}", "Features": "see features.json"},
            USAGE,
            library="transformers" if own else "selfsup",
            task="image-feature-extraction",
        )


def _left_out_told(skipped: Skipped) -> str:
    return f" ({skipped.count:,} unreadable ones left out)" if skipped.count else ""


def spread_evenly(indices: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most so many of the indices, evenly over all."""
    count = min(most, len(indices))
    return indices[np.arange(count) * len(indices) // count]
