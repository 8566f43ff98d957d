"""What objectives of two views of an image share: how both are rendered, and where a head puts them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsup.config import Settings
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.models.backbones import AnyBackbone, hide_nothing
from selfsup.models.packing import Pooling
from selfsup.objectives.base import Deferred, Objective, Outputs, Task
from selfsup.objectives.image_networks import SMALL
from selfsup.views import View, render_several

CROPS = (0.2, 0.08)  # least share of an image that a view shows: of small ones measured, of others Chen et al. 2020


class TwoViews(Objective):
    """Two views of each image, each of which hides from the other what the augmentation changed.

    Args:
        network: pixels (B, 3, H, W) to one vector each.
        head: of these vectors, in training only.
        view: what both views are drawn from.
    """

    separable: ClassVar[bool] = False
    terms: ClassVar[Mapping[str, int]]  # of the score, and how many predictions each makes of an image

    def __init__(self, network: AnyBackbone, head: nn.Module, view: View, pooling: Pooling) -> None:
        super().__init__()
        self.network, self.head, self.view, self.pooling = network, head, view, pooling
        hide_nothing(network)

    def hide(self, batch: Batch) -> Task:
        """The views (B, 2, 3, S, S), and the numbers of the images (B,)."""
        records = torch.from_numpy(batch.records).to(batch.data["pixels"].device)
        counts = {term: torch.tensor(each * len(batch)) for term, each in self.terms.items()}
        return Task(Deferred({"views": partial(self._views, batch)}, {"records": records}), counts)

    def _views(self, batch: Batch) -> Tensor:
        pixels, place = batch.data["pixels"], (batch.seed, batch.epochs, batch.records)
        return render_several(pixels, batch.data["sizes"], self.view, *place, range(2))

    def predict(self, task: Task) -> Outputs:
        """Where the two views of each image are put, (B, dimension) each; one forward pass for both."""
        z = self.head(self.network.embed(task["views"].flatten(0, 1), self.pooling))
        first, second = z.unflatten(0, (-1, 2)).unbind(1)
        return {"first": first, "second": second}


def fitting_crop(settings: Settings) -> float:
    """The least share of an image that a view shows, by the size of the images."""
    return CROPS[settings["data.size"] > SMALL]


def require_several(settings: Settings) -> None:
    """Raise a UserError where a batch holds a single record, which nothing can be told apart from."""
    if settings["train.batch"] < 2:
        raise UserError(
            f"{settings['objective']} tells the records of a batch apart, so it needs 2 or more; give more data or a "
            "larger --batch."
        )
