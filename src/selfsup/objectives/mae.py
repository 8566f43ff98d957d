"""Masked autoencoding: most patches of an image are hidden, and their pixels are predicted (He et al. 2022).

L = Σ_{p hidden} mean over its values of (x̂_p − (x_p − mean(x_p)) / sqrt(var(x_p) + ε))²
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsup.config import Count, Real, Section
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.models.backbones import AnyBackbone, hide_nothing
from selfsup.models.counting import Sketch, Stack, matrix_parameters, size_of, sketched
from selfsup.models.packing import Pooling
from selfsup.models.pixel_decoder import (
    HEAD_DIM,
    PixelDecoder,
    PixelDecoderConfig,
    holds_decoder,
    patches,
    read_decoder,
    save_decoder,
    select,
)
from selfsup.models.vision import VisionTransformer
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.image_networks import OwnVision, vision_network
from selfsup.objectives.images import ImageRecipe
from selfsup.objectives.recipe import Effort
from selfsup.seeding import generator
from selfsup.views import View, mae_view, random_patches, render

EPS = 1e-6  # of a patch's variance: one that varies less is flat
NARROWER = 2 / 3  # the decoder than the encoder (He et al. 2022, section 4.1: 512 beside 768 of a ViT-B)
LAYERS = 4  # of the decoder


class MAESettings(Section):
    hidden: Annotated[Real, Field(gt=0, lt=1)] = Field(0.75, description="share of the patches that is hidden")
    decoder_layers: Count | None = Field(None, description="of the decoder, which serves training only")
    decoder_width: Count | None = Field(None, description="and its width, a multiple of 32")


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
        hide_nothing(encoder)  # hidden patches are left out

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


def normalised(values: Tensor) -> Tensor:
    """Patches (…, D) with mean 0 and variance 1 each, over their pixels and channels; 0 where all values are equal."""
    return F.layer_norm(values, values.shape[-1:], eps=EPS)


class MAERecipe(ImageRecipe):
    """From images to a vision transformer that can tell what is hidden."""

    name = "mae"
    shards = True
    bodies = (("model.init", "encoder"),)
    section = MAESettings
    next_command = "selfsup show {run} --image photo.jpg"
    inspector = "patches"
    idea = "most patches of an image are hidden, and their pixels are predicted from the few others"
    network: OwnVision

    def compose(self) -> None:
        network = vision_network(self.settings, self.module)
        if not isinstance(network, OwnVision):
            named = "a network from Python" if self.module is not None else network.named
            raise UserError(
                f"mae computes visible patches only, which {named} cannot do; leave it out for a vision transformer "
                "of selfsup's own, or train simclr or dino on it."
            )
        self.network = network

    def settle(self, effort: Effort) -> None:
        self.settle_size()
        self.settle_network(effort)
        self.settle_decoder()
        self.cut()
        self.settle_batch(effort)
        self.settle_rates()

    def settle_decoder(self) -> None:
        """Its shape: narrower than the encoder, or that of the one that is started from."""
        settings = self.settings
        size, patch = settings["data.size"], settings["model.patch"]
        if size == patch:
            raise UserError(
                f"Images of {size} × {size} pixels are a single patch of {patch}, so that nothing is left to be seen "
                "where it is hidden; give a smaller model.patch."
            )
        if self.origin_decoder is not None:
            self._keep_shape(self.origin_decoder.config)
        width = max(1, round(NARROWER * settings["model.width"] / HEAD_DIM)) * HEAD_DIM
        settings.settle("mae.decoder_width", width, "model.width")
        settings.settle("mae.decoder_layers", LAYERS, "recipe")

    def _keep_shape(self, config: PixelDecoderConfig) -> None:
        settings = self.settings
        for name, found in (("decoder_width", config.width), ("decoder_layers", config.layers)):
            asked = settings[f"mae.{name}"]
            if asked not in (None, found):
                raise UserError(
                    f"{settings['model.init']} has {name} {found}, so mae.{name} is not {asked}; leave it out."
                )
            settings.settle(f"mae.{name}", found, "init")

    @cached_property
    def origin_decoder(self) -> PixelDecoder | None:
        """That of the model to start from, where one is named that has one."""
        origin = self.network.origin
        if origin is None or not holds_decoder(origin.directory):
            return None
        return read_decoder(origin.directory)

    def decoder_config(self) -> PixelDecoderConfig:
        settings = self.settings
        try:
            return PixelDecoderConfig(
                encoder=settings["model.width"],
                width=settings["mae.decoder_width"],
                layers=settings["mae.decoder_layers"],
                patch=settings["model.patch"],
                hidden=settings["mae.hidden"],
            )
        except ValueError as error:
            raise UserError(f"There is no such decoder: {error}.") from None

    def build(self) -> MAE:
        decoder = PixelDecoder(self.decoder_config())
        decoder.initialise(generator(self.settings["train.seed"], "decoder"))
        if self.origin_decoder is not None:
            decoder.load_state_dict(self.origin_decoder.state_dict())
        return MAE(self.network.build(), decoder, self.seen(mae_view(self.settings["data.size"])))

    @property
    def pooling(self) -> Pooling:
        """Nothing is asked of the class token."""
        return "mean"

    def encoder(self, objective: Objective) -> AnyBackbone:
        return cast(MAE, objective).encoder

    def flops_per_record(self) -> float:
        """The encoder's on visible patches and the decoder's on all."""
        config, patches = self.decoder_config(), self.network.patches
        hidden = round(config.hidden * patches)
        visible = patches - hidden
        encoder = sketched(VisionTransformer, self.network.config).flops(self.settings["data.size"], visible)
        return float(encoder + sketched(PixelDecoder, config).flops(visible, hidden))

    def sketch(self) -> Sketch | None:
        """Of the encoder on visible patches and the decoder on all."""
        config, of_decoder, patches = self.network.config, self.decoder_config(), self.network.patches
        encoder, decoder = sketched(VisionTransformer, config), sketched(PixelDecoder, of_decoder)
        seen = config.prefix + patches - round(of_decoder.hidden * patches)
        stacks = (
            Stack(config.layers, config.width, size_of(encoder.layer[0]), seen, encoder.kept),
            Stack(of_decoder.layers, of_decoder.width, size_of(decoder.blocks[0]), patches, decoder.kept),
        )
        hidden = matrix_parameters(encoder.layer) + matrix_parameters(decoder.blocks)
        return Sketch(size_of(encoder) + size_of(decoder), hidden, stacks)

    def facts(self) -> dict[str, str]:
        config, patches = self.decoder_config(), self.network.patches
        return super().facts() | {
            "decoder": f"{matrix_parameters(sketched(PixelDecoder, config)):,} parameters that serve training only: "
            f"{config.layers} layers, width {config.width}; it fills in {round(config.hidden * patches)} of {patches} "
            "patches" + (f"; started from {self.settings['model.init']}" if self.origin_decoder is not None else "")
        }

    def chance(self, records: int) -> float:
        """Of who knows the mean of each patch: the variance of the targets."""
        return 1.0

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """The encoder as other objectives leave it, and beside it the decoder, for pictures of what it fills in."""
        super().save(objective, directory, summary)
        save_decoder(cast(MAE, objective).decoder, directory)
