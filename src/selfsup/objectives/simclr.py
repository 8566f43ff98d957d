"""SimCLR: one view of an image finds the other among the views of other images (Chen et al. 2020, equation 1).

L = − Σ_i log ( exp(cos(z_i, z_j(i)) / τ) / Σ_{k ≠ i} exp(cos(z_i, z_k) / τ) )      over all 2B views; j(i): i's other
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Count, Rate, Real, Section, Settings
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.models.backbones import AnyBackbone, hide_nothing
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.objectives.base import Collectives, Deferred, Objective, Outputs, Task
from selfsup.objectives.checks.contrastive import small_batch
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.losses import nt_xent
from selfsup.objectives.recipe import Effort
from selfsup.seeding import seeded
from selfsup.views import View, render_several, simclr_view

SMALL = 96  # pixels, up to which images are small
TEMPERATURES = (0.5, 0.1)  # for small images (Chen et al. 2020, appendix B.9), and for others (table 5)
CROPS = (0.2, 0.08)  # least share of an image that a view shows: of small ones measured, of others appendix A


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


class SimCLR(Objective):
    """NT-Xent over two views of each image.

    Args:
        network: pixels (B, 3, H, W) to one vector each.
        view: what both views are drawn from.
    """

    separable: ClassVar[bool] = False

    def __init__(
        self, network: AnyBackbone, head: nn.Module, view: View, pooling: Pooling, temperature: float
    ) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.view = view
        self.pooling = pooling
        self.temperature = temperature
        hide_nothing(network)

    def hide(self, batch: Batch) -> Task:
        """Two views of each image, (B, 2, 3, S, S): each hides from the other what the augmentation changed."""
        records = torch.from_numpy(batch.records).to(batch.data["pixels"].device)
        tensors = Deferred({"views": partial(self._views, batch)}, {"records": records})
        return Task(tensors, {"nt_xent": torch.tensor(2 * len(batch))})

    def _views(self, batch: Batch) -> Tensor:
        pixels, place = batch.data["pixels"], (batch.seed, batch.epochs, batch.records)
        return render_several(pixels, batch.data["sizes"], self.view, *place, range(2))

    def predict(self, task: Task) -> Outputs:
        """Where the two views of each image are put, (B, dimension) each; one forward pass for both."""
        z = self.head(self.network.embed(task["views"].flatten(0, 1), self.pooling))
        first, second = z.unflatten(0, (-1, 2)).unbind(1)
        return {"first": first, "second": second}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        first, second = (F.normalize(at_least_single(outputs[name]), dim=-1) for name in ("first", "second"))
        return {"nt_xent": nt_xent(first, second, task["records"], 1 / self.temperature, collectives)}


class SimCLRRecipe(ImageRecipe):
    """From images to a network whose vectors tell them apart."""

    name = "simclr"
    section = SimCLRSettings
    checks = (small_batch,)
    inspector = "views"
    idea = "an image is rendered twice, and each rendering finds the other among those of other images"

    @property
    def views(self) -> float:
        return 2.0

    def settle(self, effort: Effort) -> None:
        self.settle_size()
        self.settle_network(effort)
        self.settings.settle("model.whiten", True, "recipe")
        self.cut()
        self.settle_batch(effort)
        require_several(self.settings)
        self.settle_rates()
        settle_simclr(self.settings)

    def build(self) -> SimCLR:
        return build_simclr(self.settings, self.network.build(), self.pooling)

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
    kind = int(settings["data.size"] > SMALL)
    settings.settle("simclr.temperature", TEMPERATURES[kind], "image size")
    settings.settle("simclr.crop", CROPS[kind], "image size")


def build_simclr(settings: Settings, network: AnyBackbone, pooling: Pooling) -> SimCLR:
    """The objective on a network, as its settings say."""
    options = settings.section("simclr", SimCLRSettings)
    with seeded(settings["train.seed"], "head"):
        head = ProjectionHead(network.dimension, options.projection)
    view = simclr_view(settings["data.size"], (settings["simclr.crop"], 1.0))
    return SimCLR(network, head, view, pooling, settings["simclr.temperature"])


def require_several(settings: Settings) -> None:
    """Raise a UserError where a batch holds a single record, which nothing can be told apart from."""
    if settings["train.batch"] < 2:
        raise UserError(
            f"{settings['objective']} tells the records of a batch apart, so it needs 2 or more; give more data or a "
            "larger --batch."
        )
