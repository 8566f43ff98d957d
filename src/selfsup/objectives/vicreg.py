"""VICReg: two views of an image get one vector, while the vectors of a batch vary and their numbers do not repeat each
other (Bardes et al. 2022, equations 1 to 6, with the means of algorithm 1).

L = λ mean_i mean_j (z_ij − z'_ij)² + μ (v(Z) + v(Z')) + ν (c(Z) + c(Z'))          Z, Z': (n, d), a view each
v(Z) = mean_j max(0, 1 − sqrt(Var(Z_j) + ε))          c(Z) = 1/d Σ_{j ≠ k} Cov(Z)_jk²
"""

from __future__ import annotations

from typing import Annotated, ClassVar, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Count, Real, Section
from selfsup.models.backbones import AnyBackbone
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.checks.contrastive import FEWEST_RECORDS, small_batch
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.recipe import Effort
from selfsup.objectives.two_views import TwoViews, fitting_crop, require_several
from selfsup.seeding import seeded
from selfsup.views import View, simclr_view

EPS = 1e-4
WIDEST = 8192  # of the expander (section 4.2)

Weight = Annotated[Real, Field(ge=0)]


class VICRegSettings(Section):
    invariance: Weight = Field(25.0, description="weight of both views having one vector")
    variance: Weight = Field(25.0, description="weight of vectors that vary over a batch")
    covariance: Weight = Field(1.0, description="weight of numbers that do not repeat each other")
    expander: Count | None = Field(None, description="dimension in which views are compared")
    crop: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        None, description="least share of an image that a view shows"
    )


class VICReg(TwoViews):
    """The three terms over two views of each image; the head is the expander (section 4.1)."""

    terms: ClassVar[dict[str, int]] = {"invariance": 1, "variance": 1, "covariance": 1}

    def __init__(
        self, network: AnyBackbone, expander: nn.Module, view: View, pooling: Pooling, weights: dict[str, float]
    ) -> None:
        super().__init__(network, expander, view, pooling)
        self.weights = weights

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        first, second = (at_least_single(outputs[name]) for name in ("first", "second"))
        spreads = [spread(collectives.gather(z)) for z in (first, second)]
        own = len(first)  # this process's share of what is a figure of the whole batch
        return {
            "invariance": (first - second).square().mean(1).sum(),
            "variance": own * (spreads[0][0] + spreads[1][0]),
            "covariance": own * (spreads[0][1] + spreads[1][1]),
        }


def spread(z: Tensor) -> tuple[Tensor, Tensor]:
    """v(Z) and c(Z) of vectors (n, d), scalars with gradient."""
    centred, count = z - z.mean(0), max(1, len(z) - 1)
    variance = centred.square().sum(0) / count
    covariance = centred.T @ centred / count
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return F.relu(1 - (variance + EPS).sqrt()).mean(), off_diagonal / z.shape[1]


class VICRegRecipe(ImageRecipe):
    """From images to a network whose vectors vary."""

    name = "vicreg"
    shards = True
    bodies = (("model.init", "network"),)
    section = VICRegSettings
    convolutions = "small"
    inspector = "views"
    idea = "an image is rendered twice, and both renderings get one vector, while the vectors of images differ"
    checks = (small_batch,)
    fewest = FEWEST_RECORDS
    views = 2.0

    def compose(self) -> None:
        super().compose()
        self.options = self.settings.section("vicreg", VICRegSettings)

    def settle(self, effort: Effort) -> None:
        self.settle_size()
        self.settle_network(effort)
        self.cut()
        self.settle_batch(effort)
        require_several(self.settings)
        self.settle_rates()
        self.settings.settle("vicreg.expander", min(4 * self.network.width, WIDEST), "size")
        self.settings.settle("vicreg.crop", fitting_crop(self.settings), "image size")

    def build(self) -> VICReg:
        network, width, options = self.network.build(), self.settings["vicreg.expander"], self.options
        with seeded(self.settings["train.seed"], "head"):
            layers = [nn.Linear(network.dimension, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
            expander = nn.Sequential(*layers, nn.Linear(width, width, bias=False))  # no term sees a shift
        view = self.seen(simclr_view(self.settings["data.size"], (self.settings["vicreg.crop"], 1.0)))
        weights = {name: getattr(options, name) for name in ("invariance", "variance", "covariance")}
        return VICReg(network, expander, view, self.pooling, weights)

    def encoder(self, objective: Objective) -> AnyBackbone:
        return cast(VICReg, objective).network

    def chance(self, records: int) -> float:
        """Of who says the same of every image."""
        return float(2 * self.options.variance * (1 - EPS**0.5))
