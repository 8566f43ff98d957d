"""Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models") in networks of selfsup's
own: chosen, drawn and written by peft, computed by `selfsup.models.kernels`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import Tensor, nn

from selfsup.files import save_tensors, whole_directory
from selfsup.models import decoder_layouts, encoder_layouts, vision_layouts
from selfsup.models.kernels import LowRank, affine
from selfsup.models.layouts import Layout
from selfsup.models.transformer import Linear, Stacked
from selfsup.models.vision import VisionConfig

NAME = "default"  # of the adapter, which peft drops where it writes


class LowRankLinear(lora.Linear):  # type: ignore[misc]
    """peft's layer around a `Linear`, whose weight is a `LowRank`: whoever multiplies by it trains the adapter."""

    @property
    def weight(self) -> LowRank:
        down, up = self.lora_A[NAME].weight, self.lora_B[NAME].weight
        return LowRank(self.base_layer.weight, down, up, self.scaling[NAME])

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, (self.weight, self.bias))[0]


class LowRankStacked(LowRankLinear):
    """The same around a `Stacked`."""

    @property
    def parts(self) -> int:
        return int(self.base_layer.parts)

    @property
    def biased(self) -> bool:
        return bool(self.base_layer.biased)

    forward = Stacked.forward  # type: ignore[assignment]


def inject(network: nn.Module, names: Collection[str], rank: int, alpha: float) -> None:
    """Put adapters around the matrices of these names; all other parameters of the network are frozen. Drawn from
    torch's global generator: an update begins at zero."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(names))
    config._register_custom_module({Stacked: LowRankStacked, Linear: LowRankLinear})
    inject_adapter_in_model(config, network, NAME)


def layers(network: nn.Module) -> dict[str, LowRankLinear]:
    """The matrices with an adapter, by their names."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LowRankLinear)}


@contextmanager
def merged(network: nn.Module) -> Iterator[None]:
    """Within the block the network is one of matrices alone, with their updates in them; afterwards every bit of it
    is what it was."""
    adapted = layers(network)
    before = {name: layer.base_layer.weight for name, layer in adapted.items()}
    for name, layer in adapted.items():
        with torch.no_grad():
            layer.base_layer.weight = nn.Parameter(layer.weight.dense(), requires_grad=False)
        network.set_submodule(name, layer.base_layer)
    try:
        yield
    finally:
        for name, layer in adapted.items():
            layer.base_layer.weight = before[name]
            network.set_submodule(name, layer)


# What a block is called in classes of transformers that see, where their files have other names for it.
BLOCKS = {
    "dinov3_vit": "model.layer.*",
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "encoder.layer.*"),
    **dict.fromkeys(("vit", "deit", "vit_mae"), "layers.*"),
}


def _seeing(config: VisionConfig) -> Layout[VisionConfig]:
    block, own = BLOCKS.get(config.layout), "dinov3_vit"
    if block is None:
        return vision_layouts.LAYOUTS[config.layout]
    plain = {"layer.*.mlp.up_proj": f"{block}.mlp.fc1", "layer.*.mlp.down_proj": f"{block}.mlp.fc2"}
    names = {**({} if config.gated or config.layout == own else plain), "layer.*": block}
    parts = {"layer.*.mlp.gate_up.weight": tuple(f"{block}.mlp.{part}_proj.weight" for part in ("gate", "up"))}
    return Layout(VisionConfig, {}, names=names, parts=parts)


def _layout(config: Any) -> Layout[Any]:
    """How the matrices of a network are called in the class of transformers that opens it."""
    if isinstance(config, VisionConfig):
        return _seeing(config)
    towers = {str(layout.model_type): layout for layout in (encoder_layouts.CLIP_TEXT, encoder_layouts.SIGLIP_TEXT)}
    known: dict[str, Layout[Any]] = {**decoder_layouts.LAYOUTS, **encoder_layouts.LAYOUTS, **towers}
    return known[config.layout]


def save(network: nn.Module, directory: Path, base: str) -> None:
    """Write the adapters of a network as peft reads them, wholly or not at all; raises FileExistsError where there is
    something already.

    Args:
        base: the directory of the model without them, by whose names they are written.
    """
    adapted, renamed = layers(network), _layout(network.config).theirs
    places = {name: f"{name}.weight" for name in adapted}
    ups = renamed({places[name]: layer.lora_B[NAME].weight.detach() for name, layer in adapted.items()})
    numbers = {places[name]: torch.full((layer.out_features, 1), n) for n, (name, layer) in enumerate(adapted.items())}
    downs = [layer.lora_A[NAME].weight.detach() for layer in adapted.values()]
    tensors = {}
    for place, number in renamed(numbers).items():  # of a matrix that is several there, all have the same inner map
        name = f"base_model.model.{place.removesuffix('.weight')}"
        tensors[f"{name}.lora_A.weight"] = downs[int(number[0])].cpu().clone()
        tensors[f"{name}.lora_B.weight"] = ups[place].cpu().clone()
    first = next(iter(adapted.values()))
    names = sorted(place.removesuffix(".weight") for place in ups)
    config = LoraConfig(
        r=first.r[NAME],
        lora_alpha=first.lora_alpha[NAME],
        target_modules=names,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    with whole_directory(directory) as temporary:
        save_tensors(tensors, temporary / "adapter_model.safetensors")
        config.save_pretrained(temporary)
