"""SimCLR: one view of an image finds the other among the views of other images (Chen et al. 2020, equation 1).

L = − Σ_i log ( exp(cos(z_i, z_j(i)) / τ) / Σ_{k ≠ i} exp(cos(z_i, z_k) / τ) )      over all 2B views; j(i): i's other
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, ClassVar, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Count, Rate, Real, Section, Settings
from selfsup.models.backbones import AnyBackbone
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.checks.contrastive import FEWEST_RECORDS, small_batch
from selfsup.objectives.image_networks import SMALL
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.losses import nt_xent
from selfsup.objectives.recipe import Effort
from selfsup.objectives.two_views import TwoViews, fitting_crop, require_several
from selfsup.seeding import seeded
from selfsup.views import View, simclr_view

TEMPERATURES = (0.2, 0.1)  # for small images (measured), and for others (Chen et al. 2020, table 5)


class SimCLRSettings(Section):
    temperature: Rate | None = Field(None, description="by which cosine similarities are divided")
    crop: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        None, description="least share of an image that a view shows"
    )
    projection: Count = Field(128, description="dimension in which views are compared")


class ProjectionHead(nn.Sequential):
    """W₂ relu(W₁ h), which serves training only (section 2.1)."""

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dimension))


class SimCLR(TwoViews):
    """NT-Xent over two views of each image."""

    terms: ClassVar[dict[str, int]] = {"nt_xent": 2}

    def __init__(self, network: AnyBackbone, head: nn.Module, view: View, pooling: Pooling, temperature: float) -> None:
        super().__init__(network, head, view, pooling)
        self.temperature = temperature

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        first, second = (F.normalize(at_least_single(outputs[name]), dim=-1) for name in ("first", "second"))
        return {"nt_xent": nt_xent(first, second, task["records"], 1 / self.temperature, collectives)}


class SimCLRRecipe(ImageRecipe):
    """From images to a network whose vectors tell them apart."""

    name = "simclr"
    shards = True
    bodies = (("model.init", "network"),)
    section = SimCLRSettings
    convolutions = "small"
    views = 2.0
    checks = (small_batch,)
    fewest = FEWEST_RECORDS
    inspector = "views"
    idea = "an image is rendered twice, and each rendering finds the other among those of other images"

    def settle(self, effort: Effort) -> None:
        self.settle_size()
        self.settle_network(effort)
        self.cut()
        self.settle_batch(effort)
        require_several(self.settings)
        self.settle_rates()
        settle_simclr(self.settings)

    def build(self) -> SimCLR:
        return build_simclr(self.settings, self.network.build(), self.pooling, self.seen)

    def encoder(self, objective: Objective) -> AnyBackbone:
        return cast(SimCLR, objective).network

    def facts(self) -> dict[str, str]:
        size, crop = self.settings["data.size"], self.settings["simclr.crop"]
        return super().facts() | {
            "views": f"two of {size} × {size} pixels, of {crop:.0%} to 100% of an image "
            f"({self.settings.origin('simclr.crop')})"
        }

    def chance(self, records: int) -> float:
        return math.log(2 * records - 1)


def settle_simclr(settings: Settings) -> None:
    """Temperature and crops, by the size of the images."""
    settings.settle("simclr.temperature", TEMPERATURES[settings["data.size"] > SMALL], "image size")
    settings.settle("simclr.crop", fitting_crop(settings), "image size")


def build_simclr(settings: Settings, network: AnyBackbone, pooling: Pooling, seen: Callable[[View], View]) -> SimCLR:
    """The objective on a network, as its settings say; `seen` makes of a view what that network sees."""
    options = settings.section("simclr", SimCLRSettings)
    with seeded(settings["train.seed"], "head"):
        head = ProjectionHead(network.dimension, options.projection)
    view = seen(simclr_view(settings["data.size"], (settings["simclr.crop"], 1.0)))
    return SimCLR(network, head, view, pooling, settings["simclr.temperature"])
