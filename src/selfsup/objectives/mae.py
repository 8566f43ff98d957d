"""Masked autoencoding: most patches of an image are hidden, and their pixels are predicted (He et al. 2022).

L = Σ_{p hidden} mean over its values of (x̂_p − (x_p − mean(x_p)) / sqrt(var(x_p) + ε))²
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.models.pixel_decoder import PixelDecoder, patches, select
from selfsup.models.vision import VisionTransformer
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.views import View, render
from selfsup.views.masking import random_patches

EPS = 1e-6  # of a patch's variance: one that varies less is flat


class MAE(Objective):
    """Mean squared error of hidden patches, each brought to mean 0 and variance 1 (section 3, "Reconstruction target").

    Args:
        encoder: sees the visible patches only.
        decoder: predicts the hidden ones from them; its config says which share is hidden.
        view: what is shown of an image, of a size that the patch divides.
    """

    separable: ClassVar[bool] = True

    def __init__(self, encoder: VisionTransformer, decoder: PixelDecoder, view: View) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.view = view
        encoder.embeddings.mask_token.requires_grad_(False)  # the encoder is shown no hidden patch

    def hide(self, batch: Batch) -> Task:
        """Pixels (B, 3, S, S); places of visible patches (B, K), of hidden ones (B, M); targets (B, M, 3 · patch²)."""
        config, place = self.decoder.config, (batch.seed, batch.epochs, batch.records)
        pixels = render(batch.data["pixels"], batch.data["sizes"], self.view, *place, 0)
        count = (self.view.size // config.patch) ** 2
        visible, hidden = (part.to(pixels.device) for part in random_patches(*place, count, config.hidden))
        targets = normalised(select(patches(pixels, config.patch), hidden))
        tensors = {"pixels": pixels, "visible": visible, "hidden": hidden, "targets": targets}
        return Task(tensors, {"mse": torch.tensor(hidden.numel())})

    def predict(self, task: Task) -> Outputs:
        """The hidden patches as they are predicted, (B, M, 3 · patch²); their pixels are not looked at."""
        visible, hidden, side = task["visible"], task["hidden"], self.view.size // self.decoder.config.patch
        encoded = self.encoder(task["pixels"], visible=visible)[:, -visible.shape[1] :]
        return {"values": self.decoder(encoded, visible, hidden, (side, side))}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        values, targets = outputs["values"], task["targets"]
        wide = torch.promote_types(values.dtype, targets.dtype)
        total = F.mse_loss(values.to(wide), targets.to(wide), reduction="sum")
        return {"mse": total / targets.shape[-1]}

    def vectors(self) -> Iterable[nn.Parameter]:
        return self.encoder.vectors()


def normalised(values: Tensor) -> Tensor:
    """Patches (…, D) with mean 0 and variance 1 each, 0 where they are flat."""
    return F.layer_norm(values, values.shape[-1:], eps=EPS)
