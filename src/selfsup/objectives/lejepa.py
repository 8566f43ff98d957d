"""LeJEPA: each crop of an image is put where its global crops are in the mean, and the vectors of all images are kept
an isotropic Gaussian (Balestriero and LeCun 2025, "LeJEPA", arXiv:2511.08544).

L = (1 − λ) mean_(i, v, j) (z_ivj − m_ij)² + λ mean_(v, a) R({a · z_iv} over i)         m_i: mean of z_iv over global v

a: random directions, other ones in each step. R: SIGReg, or VISReg, see `selfsup.objectives.gaussian`. There is no
teacher, and no gradient is stopped.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Count, Real
from selfsup.data.records import Batch
from selfsup.models.backbones import AnyBackbone, hide_nothing
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.objectives.base import Collectives, Deferred, Objective, Outputs, Task
from selfsup.objectives.checks.gaussian import one_place
from selfsup.objectives.gaussian import REGULARIZERS, of_one_place
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.multi_crop import (
    GLOBALS,
    Crops,
    CropSettings,
    build_crops,
    local_share,
    require_crops,
    settle_crops,
    told_crops,
)
from selfsup.objectives.recipe import Effort
from selfsup.objectives.two_views import require_several
from selfsup.seeding import generator, seeded

WEIGHTS = {"sigreg": 0.05, "visreg": 0.6}  # of the authors' own settings: for ImageNet; for Imagenette
WIDEST = 2048  # of the head
MOST_NUMBERS = 128  # of the vectors that are compared

Regularizer = Literal["sigreg", "visreg"]


class LeJEPASettings(CropSettings):
    regularizer: Regularizer = Field("sigreg", description="what keeps the vectors of images a Gaussian")
    weight: Annotated[Real, Field(gt=0, lt=1)] | None = Field(
        None, description="its weight; agreement of crops has what is left of 1"
    )
    slices: Count = Field(256, description="random directions that it looks along in each step")
    hidden: Count | None = Field(None, description="hidden width of the head")
    projection: Count | None = Field(None, description="dimension in which crops are compared")


class LeJEPA(Objective):
    """Agreement of crops, and a Gaussian.

    Args:
        head: of the network's vectors, in training only.
        slices: directions that the regularizer looks along, a function of the seed and the step.
        weight: of the regularizer, λ.
    """

    separable: ClassVar[bool] = False

    def __init__(
        self,
        network: AnyBackbone,
        head: nn.Module,
        crops: Crops,
        pooling: Pooling,
        regularizer: Regularizer,
        weight: float,
        slices: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.network, self.head, self.crops, self.pooling = network, head, crops, pooling
        self.regularizer, self.slices, self.seed = regularizer, slices, seed
        self.weights = {"prediction": 1 - weight, regularizer: weight}
        self.done = 0  # updates made
        hide_nothing(network)

    def hide(self, batch: Batch) -> Task:
        """Two global crops (B, 2, 3, S, S), and local ones (B, L, 3, s, s)."""
        count = torch.tensor(len(batch) * (GLOBALS + self.crops.count))
        return Task(Deferred(self.crops.made(batch), {}), {"prediction": count, self.regularizer: count})

    def predict(self, task: Task) -> Outputs:
        """Where the crops of each image are put, the global ones first: (B, 2 + L, dimension)."""
        names = ("globals", "locals") if self.crops.count else ("globals",)
        return {"vectors": self.head(torch.cat([self._embed(task[name]) for name in names], 1))}

    def _embed(self, crops: Tensor) -> Tensor:
        vectors: Tensor = self.network.embed(crops.flatten(0, 1), self.pooling)
        return vectors.view(*crops.shape[:2], -1)

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        """Each process looks along directions of its own at the vectors of all."""
        own = at_least_single(outputs["vectors"])
        meant = own[:, :GLOBALS].mean(1, keepdim=True)
        vectors = collectives.gather(own)
        directions = self._directions(vectors)[:, collectives.rank :: collectives.size]
        told = REGULARIZERS[self.regularizer](vectors, directions).sum() / self.slices
        return {"prediction": (own - meant).square().mean(2).sum(), self.regularizer: vectors[..., 0].numel() * told}

    def _directions(self, like: Tensor) -> Tensor:
        """Of length 1, (dimension, slices). All looks at held-out records have the same, so that they compare."""
        place = ("slices", self.done) if self.training else ("held-out slices", 0)
        drawn = torch.randn(like.shape[-1], self.slices, generator=generator(self.seed, *place))
        return F.normalize(drawn, dim=0).to(like)

    def after_step(self, step: int, steps: int) -> None:
        self.done = step + 1

    def get_extra_state(self) -> Tensor:
        """Where the run stands, which directions follow from."""
        return torch.tensor([self.done])

    def set_extra_state(self, state: Tensor) -> None:
        self.done = int(state)


class LeJEPARecipe(ImageRecipe):
    """From images to a network whose vectors say of a part what they say of the whole."""

    name = "lejepa"
    bodies = (("model.init", "network"),)
    section = LeJEPASettings
    inspector = "parts"
    idea = "every crop of an image is put where its global crops are, while the vectors of all images are a Gaussian"
    checks = (one_place,)

    def compose(self) -> None:
        super().compose()
        self.options = self.settings.section("lejepa", LeJEPASettings)

    def settle(self, effort: Effort) -> None:
        self.settle_size()
        settle_crops(self.settings, "lejepa")
        self.settle_network(effort)
        require_crops(self.settings, "lejepa", self.network)
        self.cut()
        self.settle_batch(effort)
        require_several(self.settings)
        self.settle_rates()
        self.settings.settle("lejepa.weight", WEIGHTS[self.options.regularizer], "regularizer")
        self.settings.settle("lejepa.hidden", min(4 * self.network.width, WIDEST), "size")
        self.settings.settle("lejepa.projection", min(self.network.width, MOST_NUMBERS), "size")

    @property
    def views(self) -> float:  # type: ignore[override]
        return GLOBALS + local_share(self.settings, "lejepa")

    def build(self) -> LeJEPA:
        options, network = self.options, self.network.build()
        hidden, projection = (self.settings[f"lejepa.{name}"] for name in ("hidden", "projection"))
        with seeded(self.settings["train.seed"], "head"):
            first, second = nn.Linear(network.dimension, hidden), nn.Linear(hidden, hidden)
            head = nn.Sequential(first, nn.GELU(), second, nn.GELU(), nn.Linear(hidden, projection))
        crops = build_crops(self.settings, "lejepa", self.seen)
        weight, seed = self.settings["lejepa.weight"], self.settings["train.seed"]
        return LeJEPA(network, head, crops, self.pooling, options.regularizer, weight, options.slices, seed)

    def encoder(self, objective: Objective) -> AnyBackbone:
        return cast(LeJEPA, objective).network

    def flops_per_record(self) -> float:
        """With the head and the directions, there and back."""
        width = self.network.width
        hidden, projection, local = (
            self.settings[f"lejepa.{name}"] for name in ("hidden", "projection", "local_crops")
        )
        matrices = width * hidden + hidden**2 + (hidden + self.options.slices) * projection
        return float(super().flops_per_record() + 6 * (GLOBALS + local) * matrices)

    def facts(self) -> dict[str, str]:
        options, weight = self.options, self.settings["lejepa.weight"]
        return super().facts() | {
            "crops": told_crops(self.settings, "lejepa"),
            "held apart": f"{options.regularizer}, {options.slices:,} directions in {options.projection} dimensions, "
            f"weight {weight:g} ({self.settings.origin('lejepa.weight')})",
        }

    def chance(self, records: int) -> float:
        """Of who says the same of every image."""
        return float(self.settings["lejepa.weight"] * of_one_place(self.options.regularizer, records))
