"""To timm: one safetensors file with the weights of a vision model by timm's names, and all that is needed to use it.

A vision transformer is timm's Eva with the rotary positions of DINOv3 (its `vit_*_dinov3_qkvb`), whose call gives the
vector of an image as it is defined here: its pooling is timm's, a map behind it is timm's classifier. The header of the
file holds the name and arguments that timm builds the network from (`architecture`, `model_args`) and how an image
becomes pixels (`pretrained_cfg`), each as JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.exporting import Written, open_image_model
from selfsup.files import new_file, save_tensors, separate
from selfsup.models.backbones import SavedBackbone, timm_difference
from selfsup.models.convnet import ConvNet
from selfsup.models.features import Features
from selfsup.models.layouts import renamed
from selfsup.models.parity import Difference
from selfsup.models.timm_networks import TimmNetwork, import_timm, timm_preprocessing
from selfsup.models.vision import VisionConfig, VisionTransformer

ARCHITECTURE = "vit_small_patch16_dinov3_qkvb"  # whose arguments of size are all given anew
NORM_EPS = 1e-5  # of that architecture, where no argument changes it
POOLINGS = {"cls": "token", "mean": "avg"}
NAMES = {  # of what is called otherwise there
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "layer.*.attention.o_proj": "blocks.*.attn.proj",
    "layer.*.attention.q_proj.bias": "blocks.*.attn.q_bias",
    "layer.*.attention.v_proj.bias": "blocks.*.attn.v_bias",
    "layer.*.layer_scale1.lambda1": "blocks.*.gamma_1",
    "layer.*.layer_scale2.lambda1": "blocks.*.gamma_2",
    "layer.*.mlp.up_proj": "blocks.*.mlp.fc1",
    "layer.*.mlp.down_proj": "blocks.*.mlp.fc2",
    "layer.*": "blocks.*",
}


def write(source: Path, path: Path) -> Written:
    """Write the vision model of `source` to the file `path`. Raises UserError where it holds none, or one that timm
    has no place for."""
    opened = open_image_model(source, "timm")
    architecture, arguments, weights = _translated(opened)
    metadata = {
        "architecture": architecture,
        "model_args": json.dumps(arguments),
        "pretrained_cfg": json.dumps(timm_preprocessing(opened.preprocessing)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        save_tensors(weights, temporary, metadata)
        difference = compare(temporary, opened, architecture, arguments)
    given = "".join(f", {name}={value!r}" for name, value in arguments.items())
    opens_with = f"timm.create_model({architecture!r}, checkpoint_path={str(path)!r}{given})"
    return opens_with, difference


def _translated(opened: SavedBackbone) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The name and arguments that timm builds the network from, and its weights."""
    backbone, features = opened.backbone, opened.features
    if isinstance(backbone, VisionTransformer):
        _require_known(backbone.config)
        weights = timm_weights(backbone) | _classifier("head", features)
        return ARCHITECTURE, timm_arguments(backbone.config, features), weights
    if isinstance(backbone, ConvNet):
        raise UserError("timm has no TextNet; only its own networks and ViTs go there, so export to onnx.")
    network, own = backbone.network, backbone.timm
    if own is None:
        raise UserError(f"timm has no {type(network).__name__}; only its own networks and ViTs go there.")
    published: Any = network.pretrained_cfg
    classifier = published.get("classifier")
    if features.weight is not None and not isinstance(classifier, str):
        raise UserError(
            f"timm's {own.name} has no one classifier to hold the whitening of its vectors; give a run that "
            "was trained with model.whiten=false."
        )
    weights = {name: w.float() if w.is_floating_point() else w for name, w in separate(network).items()}
    arguments = {**own.arguments, "num_classes": _classes(features)}
    return own.name, arguments, weights | _classifier(str(classifier), features)


def _require_known(config: VisionConfig) -> None:
    """Raise a UserError where timm's architecture is another one than that of a vision transformer here."""
    shape = (config.size, config.patch, config.layers, config.width, config.heads, config.mlp, config.registers)
    plain = VisionConfig(*shape, config.layer_scale, config.rope_theta, config.norm_eps)
    if replace(config, mask_token=True) != plain:
        raise UserError(
            f"To timm go plain DINOv3 ViTs, and this is a {config.layout} of other parts; export it to transformers or "
            "onnx."
        )


def timm_weights(model: VisionTransformer) -> dict[str, Tensor]:
    """The weights of a vision transformer by the names of timm's Eva, but for the mask token, which it has not."""
    weights = {name: tensor.float() for name, tensor in separate(model).items()}
    weights.pop("embeddings.mask_token", None)
    if not model.config.registers:
        del weights["embeddings.register_tokens"]
    for layer in range(model.config.layers):
        parts = [weights.pop(f"layer.{layer}.attention.{part}_proj.weight") for part in "qkv"]
        weights[f"layer.{layer}.attn.qkv.weight"] = torch.cat(parts)
    return renamed(weights, NAMES)


def timm_arguments(config: VisionConfig, features: Features) -> dict[str, Any]:
    """What `ARCHITECTURE` is built with to be a vision transformer of this config. Raises UserError where it cannot
    be that one."""
    ratio = config.mlp / config.width
    if int(config.width * ratio) != config.mlp:  # as timm computes it
        ratio = math.nextafter(ratio, math.inf)
    if config.norm_eps != NORM_EPS:
        raise UserError(f"timm's DINOv3 ViTs have norms with eps {NORM_EPS:g}, and this one {config.norm_eps:g}.")
    return {
        "img_size": config.size,
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.layers,
        "num_heads": config.heads,
        "mlp_ratio": ratio,
        "num_reg_tokens": config.registers,
        "rope_temperature": config.rope_theta,
        "global_pool": POOLINGS[features.pooling],
        "num_classes": _classes(features),
    }


def _classes(features: Features) -> int:
    return 0 if features.weight is None else len(features.weight)


def _classifier(name: str, features: Features) -> dict[str, Tensor]:
    if features.weight is None:
        return {}
    bias = features.weight.new_zeros(len(features.weight)) if features.bias is None else features.bias
    return {f"{name}.weight": features.weight.float(), f"{name}.bias": bias.float()}


def compare(path: Path, opened: SavedBackbone, architecture: str, arguments: dict[str, Any]) -> Difference | None:
    """How far the vectors of noise by stock timm with the weights of a file are from those by selfsup, in fp32.

    None where timm cannot be imported.
    """
    try:
        import_timm("this export")
    except UserError:
        return None
    backbone, features = opened.backbone.eval(), opened.features
    source = TimmNetwork(architecture, arguments)
    return timm_difference(
        source, path, opened.size, lambda pixels: features.map(backbone.embed(pixels, features.pooling))
    )
