"""Distillation of images: a student says of a view of an image what a teacher says of it.

L = mean_i d(M f(x_i) + b, t(x_i)) + λ mean_ip d(N f_p(x_i) + c, t_p(x_i))
d(y, t) = .9 (1 − cos(y, t)) + .1 mean_j h(y_j − t_j)          h: smooth L1

f: the student's vector of an image, f_p: of its patch p; t, t_p: the teacher's, each number of them brought to mean 0
and variance 1, so that none drowns the others (Ranzinger et al. 2024, "PHI-S: Distribution Balancing for Label-Free
Multi-Teacher Distillation", where whitening fares worse). Terms and distance are those of AM-RADIO (Ranzinger et al.
2024, "AM-RADIO: Agglomerative Vision Foundation Model"), which measures whole images by the cosine alone; here they are
measured as patches are, so that the length of a vector is learnt too and the student's vectors lie in the teacher's
space. Both see the same view (Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent",
section 3), each at its own size, normalised as it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import DistillConfig, Real
from selfsup.data.images.answered import KEPT, AnsweredImages, ask
from selfsup.data.images.records import ImageRecords
from selfsup.data.loader import in_order
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inference.opening import load_image_model
from selfsup.inference.vision import ImageModel
from selfsup.machine import find_device
from selfsup.models.backbones import AnyBackbone, hide_nothing, see
from selfsup.models.features import Features
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.vision import VisionTransformer
from selfsup.objectives.base import Collectives, Deferred, Objective, Outputs, Task
from selfsup.objectives.held import HoldsTeacher
from selfsup.objectives.image_networks import OwnVision, forward_flops
from selfsup.objectives.images import SURPLUS, ImageRecipe
from selfsup.objectives.recipe import Effort
from selfsup.objectives.teachers import beside_teacher, open_teacher
from selfsup.report import Progress
from selfsup.seeding import seeded
from selfsup.views import View, render

COSINE = 0.9  # share of the direction in the distance, the rest is that of the numbers
SAMPLE = 256  # images that the teacher's numbers are measured on
ROUNDING = 1e-5  # of the largest number: what varies less says nothing
FLAT = 1e-3  # of the largest deviation: a number that varies less is no larger afterwards
MILD = (0.4, 1.0)  # share of an image that a crop shows
Grid = tuple[int, int]


class DistillImagesSettings(DistillConfig):
    views: Literal["crops", "whole"] = Field(
        "crops", description="crops, drawn anew in each epoch, or each image whole and always the same"
    )
    patches: Annotated[Real, Field(ge=0)] | None = Field(
        None, description="weight of saying of each patch what the teacher says of it; 0 for none"
    )


@dataclass(frozen=True)
class Moments:
    """Of the numbers of what a teacher says: mean (d,) and deviation (d,)."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Moments:
        """Over vectors (n, d)."""
        deviation = vectors.std(0, correction=0)
        return cls(vectors.mean(0), deviation.clamp(min=float(FLAT * deviation.max())))


class Target(nn.Module):
    """From what a network says, (…, width), to what a teacher says, (…, d), each number of it at mean 0, variance 1."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, moments: Moments) -> None:
        super().__init__()
        self.map = nn.Linear(width, len(moments.mean))
        self.register_buffer("mean", moments.mean.clone())
        self.register_buffer("deviation", moments.deviation.clone())

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = self.map(states)
        return found

    def standard(self, taught: Tensor) -> Tensor:
        """What the teacher says, brought to mean 0 and variance 1."""
        return (at_least_single(taught) - self.mean) / self.deviation

    def whole(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the map to what the teacher says itself."""
        weight, bias = self.map.weight.detach(), self.map.bias.detach()
        return (self.deviation[:, None] * weight).cpu(), (self.deviation * bias + self.mean).cpu()


class ImageTeacher(nn.Module):
    """What says of images what is to be learnt: the network of a model in use, and the map to its vectors.

    Args:
        grid: of the student's patches, for which the teacher speaks; None where only whole images are spoken of.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, network: AnyBackbone, features: Features, grid: Grid | None) -> None:
        super().__init__()
        self.network, self.pooling, self.grid = network, features.pooling, grid
        for name in ("weight", "bias"):
            self.register_buffer(name, getattr(features, name))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, d), and what it says of each of the student's patches (B, P, width): between its own where these
        are others; (B, 0, width) without a grid."""
        vectors, patches = see(self.network, pixels, self.pooling)
        with torch.autocast(pixels.device.type, enabled=False):
            found = Features(self.pooling, self.weight, self.bias).map(vectors)
        if self.grid is None:
            return found, patches[:, :0]
        own = cast(VisionTransformer, self.network).config.grid(*pixels.shape[2:])
        return found, regridded(at_least_single(patches), own, self.grid)


def regridded(patches: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """Patches (B, rows · columns, width) of a grid as those of another one that shows the same: between them where
    these are more, means of several where they are fewer."""
    if grid == wanted:
        return patches
    square = patches.mT.reshape(len(patches), -1, *grid)
    return F.interpolate(square, wanted, mode="bilinear", antialias=True).flatten(2).mT


def distance(said: Tensor, taught: Tensor) -> Tensor:
    """d(y, t) of vectors (…, width): (…), in fp32 or wider."""
    said, taught = at_least_single(said), at_least_single(taught)
    turned = 1 - F.cosine_similarity(said, taught, dim=-1)
    apart = F.smooth_l1_loss(said, taught, reduction="none").mean(-1)
    return COSINE * turned + (1 - COSINE) * apart


class ImageDistillation(HoldsTeacher):
    """A student's vectors, and its patches where both have any, beside those of a teacher that stands still.

    Args:
        vectors: to the teacher's vector of an image.
        patches: to what it says of a patch, in training only; None where nothing is asked of patches.
        view: what the student sees of an image; `taught`: the same part of it as the teacher sees it.
        weight: of the patches.
    """

    separable: ClassVar[bool] = True

    def __init__(
        self,
        student: AnyBackbone,
        teacher: ImageTeacher,
        vectors: Target,
        patches: Target | None,
        view: View,
        taught: View,
        pooling: Pooling,
        weight: float,
    ) -> None:
        super().__init__()
        self.student, self.vector_map, self.patch_map = student, vectors, patches
        self.view, self.taught, self.pooling = view, taught, pooling
        self.weights = {"patches": weight}
        self.hold(teacher)
        hide_nothing(student)

    def hide(self, batch: Batch) -> Task:
        """The same part of each image for the student, (B, 3, S, S), and for the teacher, (B, 3, S', S'), or, where it
        was asked before, what it says of whole images, `vectors` (B, d), and of `patches` (B, P, d')."""
        made: dict[str, Callable[[], Tensor]] = {"pixels": partial(shown, batch, self.view)}
        said = {name: batch.data[name] for name in KEPT if name in batch.data}
        if not said:
            made["taught"] = partial(shown, batch, self.taught)
        counts = {"vectors": torch.tensor(len(batch))}
        if self.patch_map is not None:
            counts["patches"] = torch.tensor(len(batch) * self._patches)
        return Task(Deferred(made, said), counts)

    @property
    def _patches(self) -> int:
        rows, columns = cast(Grid, cast(ImageTeacher, self.teacher).grid)
        return rows * columns

    def predict(self, task: Task) -> Outputs:
        """What the student says and what the teacher says, standardised: of whole images (B, d), of patches
        (B, P, d')."""
        asked = "taught" in task.tensors
        taught, taught_patches = self.teacher(task["taught"]) if asked else (task["vectors"], task["patches"])
        vectors, patches = see(self.student, task["pixels"], self.pooling)
        outputs = {"vectors": self.vector_map(vectors), "taught": self.vector_map.standard(taught)}
        if self.patch_map is not None:
            outputs["patches"] = self.patch_map(patches)
            outputs["taught_patches"] = self.patch_map.standard(taught_patches)
        return outputs

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        sums = {"vectors": distance(outputs["vectors"], outputs["taught"]).sum()}
        if self.patch_map is not None:
            sums["patches"] = distance(outputs["patches"], outputs["taught_patches"]).sum()
        return sums

    def features(self) -> Features:
        """What the vector of an image is, in the teacher's space."""
        return Features(self.pooling, *self.vector_map.whole())


def shown(batch: Batch, view: View) -> Tensor:
    """The view of each image of a batch, (B, 3, S, S)."""
    place = (batch.seed, batch.epochs, batch.records)
    return render(batch.data["pixels"], batch.data["sizes"], view, *place, 0)


@dataclass(frozen=True)
class Measured:
    """What a teacher says of a sample of the training part.

    Attributes:
        vectors, patches: the moments of its numbers; `patches` is None where it is not asked of any.
        chance: what saying the mean of everything costs, in the mean.
    """

    vectors: Moments
    patches: Moments | None
    chance: float


class ImageDistillationRecipe(ImageRecipe):
    """From images and a teacher of them to a network whose vectors lie in the teacher's space."""

    name = "distill"
    mixes = False
    bodies = (("model.init", "student"),)
    section = DistillImagesSettings
    convolutions = "named"
    inspector = "taught"
    idea = "a student says of a view of an image what a teacher says of the same view"

    def compose(self) -> None:
        super().compose()
        self.options = self.settings.section("distill", DistillImagesSettings)

    def reads(self) -> set[str]:
        return super().reads() - {"model.whiten"}

    # -- the teacher ---------------------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> ImageModel:
        """Of two towers that of images."""
        return open_teacher(self.settings, load_image_model)

    def open(self, progress: Progress) -> None:
        _ = self.teacher  # before the data are read, which takes longer
        super().open(progress)

    @cached_property
    def answers(self) -> ImageTeacher:
        """What it says of images and of the student's patches."""
        return ImageTeacher(self.teacher.backbone, self.teacher.features, self.grid)

    @property
    def grid(self) -> Grid | None:
        """Of the student's patches, where something is asked of them."""
        look = self.network.look
        if not self.settings["distill.patches"] or not isinstance(look, VisionTransformer):
            return None
        size = self.settings["data.size"]
        return look.config.grid(size, size)

    @cached_property
    def measured(self) -> Measured:
        """Raises UserError where the teacher says the same of every image."""
        seed, device = self.settings["train.seed"], find_device(self.settings["train.device"])
        teacher, found = self.answers.to(device).eval(), []
        for batch in in_order(self.train, min(SAMPLE, len(self.train)), seed, self.feature_batch):
            found.append([part.cpu() for part in teacher(shown(batch.to(device), self.taught_view))])
        vectors, patches = (torch.cat(parts) for parts in zip(*found, strict=True))
        if vectors.std(0, correction=0).max() <= ROUNDING * vectors.abs().max():
            raise UserError(
                f"{self.settings['distill.teacher']} says the same of every image of {self.images.name}, so there is "
                "nothing to learn from it; give more images or another teacher."
            )
        moments = Moments.of(vectors), Moments.of(patches.flatten(0, 1)) if patches.numel() else None
        weights = 1.0, self.settings["distill.patches"]
        chances = [
            weight * knowing_nothing(values, of)
            for weight, values, of in zip(weights, (vectors, patches), moments, strict=True)
            if of is not None
        ]
        return Measured(*moments, sum(chances))

    # -- sizes ---------------------------------------------------------------------------------------------

    def settle(self, effort: Effort) -> None:
        self.settle_size()
        own = self.network
        taught = self._teacher_flops / own.patches if isinstance(own, OwnVision) else 0.0
        own.settle_shape(beside_teacher(effort, taught), len(self.images))
        self.settle_patches()
        self.cut()
        self.settle_batch(effort)
        self.settle_rates()

    def settle_patches(self) -> None:
        """Whether something is asked of patches; raises a UserError where it is, and one of the two has none."""
        settings = self.settings
        have = {
            self.network.named: self.network.hides_patches,
            settings["distill.teacher"]: isinstance(self.teacher.backbone, VisionTransformer),
        }
        if settings["distill.patches"] and not all(have.values()):
            without = " and ".join(str(name) for name, has in have.items() if not has)
            raise UserError(
                f"distill.patches asks of patches, which only vision transformers of selfsup's own have, and {without} "
                "has none; leave distill.patches out."
            )
        settings.settle("distill.patches", float(all(have.values())), "networks")

    def cut(self) -> None:
        """Divide the images; where they are always shown the same way, with what the teacher says of each."""
        super().cut()
        if self.options.views != "whole":
            return
        answers, parts = self._ask(), self.parts()
        self.train = AnsweredImages(cast(ImageRecords, self.train), parts[0], answers)
        if self.validation is not None:
            self.validation = AnsweredImages(cast(ImageRecords, self.validation), parts[1], answers)

    def _ask(self) -> dict[str, npt.NDArray[Any]]:
        """What the teacher says of all images, from the cache where it was asked before."""
        everything, device = np.arange(len(self.images)), find_device(self.settings["train.device"])
        teacher, view = self.answers.to(device).eval(), self.taught_view

        def say(read: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            place = np.zeros(len(read["pixels"]), np.int64)
            said: tuple[Tensor, Tensor] = teacher(shown(Batch(read, 0, place, place).to(device), view))
            return said

        identity = self.images.fingerprint(), self.teacher.fingerprint, view, self.grid, self.least
        return ask(ImageRecords(self.images, everything, self.least), say, identity)

    @property
    def whitening_records(self) -> int:
        """None: the vectors are the teacher's."""
        return 0

    @property
    def least(self) -> int:
        """As the larger of the two sees them."""
        return max(super().least, math.ceil(SURPLUS * self.teacher.size))

    @property
    def pooling(self) -> Pooling:
        return self.network.summary

    @property
    def view(self) -> View:
        """What the student sees."""
        size = self.settings["data.size"]
        if self.options.views == "crops":
            return self.seen(View(size, MILD))
        return self.seen(View(size, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0))

    @property
    def taught_view(self) -> View:
        """The same part of an image as the teacher sees it."""
        return replace(self.view, size=self.teacher.size).prepared(self.teacher.preprocessing)

    def flops_per_record(self) -> float:
        """The student's way there and back, the teacher's way there."""
        return super().flops_per_record() + self._teacher_flops

    @cached_property
    def _teacher_flops(self) -> float:
        return forward_flops(self.teacher.backbone, self.teacher.size)

    # -- the objective -------------------------------------------------------------------------------------

    def build(self) -> ImageDistillation:
        student, known = self.network.build(), self.measured
        with seeded(self.settings["train.seed"], "head"):
            vectors = Target(student.dimension, known.vectors)
            patches = None if known.patches is None else Target(student.dimension, known.patches)
        views, weight = (self.view, self.taught_view), self.settings["distill.patches"]
        return ImageDistillation(student, self.answers, vectors, patches, *views, self.pooling, weight)

    def encoder(self, objective: Objective) -> AnyBackbone:
        return cast(ImageDistillation, objective).student

    def definition(self, objective: Objective) -> Features:
        return cast(ImageDistillation, objective).features()

    def chance(self, records: int) -> float:
        """Of who says the same of everything: the mean."""
        return self.measured.chance

    def facts(self) -> dict[str, str]:
        teacher, settings = self.teacher, self.settings
        parameters = sum(parameter.numel() for parameter in teacher.backbone.parameters())
        low, high = self.view.scale
        part = f"crops of {low:.0%} to {high:.0%} of an image, mirrored half of the time"
        return super().facts() | {
            "teacher": f"{parameters:,} parameters in {settings['distill.teacher']}: {teacher.dimension} numbers of an "
            f"image, seen at {teacher.size} × {teacher.size} pixels",
            "views": f"{part if self.options.views == 'crops' else 'each image whole'}; the same for both",
            "patches": self._patches_told,
        }

    @property
    def _patches_told(self) -> str:
        if self.grid is None:
            return f"nothing is asked of them ({self.settings.origin('distill.patches')})"
        own, size = cast(VisionTransformer, self.teacher.backbone).config, self.teacher.size
        rows, columns = own.grid(size, size)
        between = "" if (rows, columns) == self.grid else f", between the teacher's {rows} × {columns}"
        weight = f"weight {self.settings['distill.patches']:g} ({self.settings.origin('distill.patches')})"
        return f"{self.grid[0]} × {self.grid[1]}{between}, {weight}"


def knowing_nothing(taught: Tensor, moments: Moments) -> float:
    """What saying the mean of what is taught, (…, d), costs in the mean."""
    standard = (taught - moments.mean) / moments.deviation
    return float(distance(torch.zeros_like(standard), standard).mean())
