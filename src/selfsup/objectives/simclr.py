"""SimCLR: one view of an image finds the other among the views of other images (Chen et al. 2020, equation 1).

L = − Σ_i log ( exp(cos(z_i, z_j(i)) / τ) / Σ_{k ≠ i} exp(cos(z_i, z_k) / τ) )      over all 2B views; j(i): i's other
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.models.backbones import AnyBackbone
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.vision import VisionTransformer
from selfsup.objectives.base import Collectives, Deferred, Effort, Objective, Outputs, Task
from selfsup.objectives.checks.contrastive import small_batch
from selfsup.objectives.losses import nt_xent
from selfsup.objectives.vision import VisionRecipe
from selfsup.seeding import seeded
from selfsup.views import View, render_several, simclr_view

SMALL = 96  # pixels, up to which images are small
TEMPERATURES = (0.5, 0.1)  # for small images (Chen et al. 2020, appendix B.9), and for others (table 5)
CROPS = (0.2, 0.08)  # least share of an image that a view shows: of small ones measured, of others appendix A


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
        if isinstance(network, VisionTransformer):
            network.embeddings.mask_token.requires_grad_(False)  # no patch is hidden

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


class SimCLRRecipe(VisionRecipe):
    """From images to a network whose vectors tell them apart."""

    inspector: ClassVar[str] = "views"
    idea: ClassVar[str] = (
        "an image is rendered twice, and each rendering finds the other among those of other images"
    )
    views = 2.0
    checks = (small_batch,)

    def settle(self, effort: Effort) -> None:
        super().settle(effort)
        if self.settings["train.batch"] < 2:
            raise UserError(
                "simclr tells the images of a batch apart, so it needs 2 or more; give more images or a larger --batch."
            )
        kind = int(self.settings["data.size"] > SMALL)
        self.settings.settle("simclr.temperature", TEMPERATURES[kind], "image size")
        self.settings.settle("simclr.crop", CROPS[kind], "image size")

    def build(self) -> SimCLR:
        options, network = self.settings.config.simclr, self.backbone()
        with seeded(self.settings["train.seed"], "head"):
            head = ProjectionHead(network.dimension, options.projection)
        view = simclr_view(self.settings["data.size"], (self.settings["simclr.crop"], 1.0))
        return SimCLR(network, head, view, self.pooling, options.temperature or 1.0)

    def network(self, objective: Objective) -> AnyBackbone:
        assert isinstance(objective, SimCLR)
        return objective.network

    def facts(self) -> dict[str, str]:
        size, crop = self.settings["data.size"], self.settings["simclr.crop"]
        return super().facts() | {
            "views": f"two of {size} × {size} pixels, of {crop:.0%} to 100% of an image "
            f"({self.settings.origin('simclr.crop')})"
        }

    @property
    def chance(self) -> float:
        return self.chance_of(self.settings["train.batch"])

    def chance_of(self, records: int) -> float:
        return math.log(2 * records - 1)


SimCLRRecipe.adapted = SimCLRRecipe
