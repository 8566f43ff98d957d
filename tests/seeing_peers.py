"""Vision transformers of transformers, one tiny model of each class, with weights in which a wrong wiring shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

SIZE, PATCH = 32, 8
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": PATCH,
}
OF_RATIO = {name: value for name, value in SHAPE.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OF_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
SQUARE = {"size": {"height": SIZE, "width": SIZE}}
MIDDLE = {"do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE}}


@dataclass(frozen=True)
class Peer:
    """A class of transformers, the configuration of its tiny model, and how its images are prepared."""

    architecture: str
    config: Callable[[], Any]
    processor: str = "ViTImageProcessor"
    preparation: dict[str, Any] = field(default_factory=dict)


def _config(kind: str, **given: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, kind)(**given)


PEERS = {
    "dinov3-gated": Peer(
        "DINOv3ViTModel",
        _config(
            "DINOv3ViTConfig", **SHAPE, use_gated_mlp=True, hidden_act="silu", key_bias=True, num_register_tokens=2
        ),
        preparation={**SQUARE, **IMAGENET},
    ),
    "dinov3-bare": Peer(
        "DINOv3ViTModel",
        _config("DINOv3ViTConfig", **SHAPE, query_bias=False, value_bias=False, proj_bias=False, mlp_bias=False),
        preparation={**SQUARE, **IMAGENET},
    ),
    "dinov2": Peer(
        "Dinov2Model",
        _config("Dinov2Config", **OF_RATIO),
        "BitImageProcessor",
        {"size": {"shortest_edge": 40}, "resample": 3, **MIDDLE, **IMAGENET},
    ),
    "dinov2-swiglu": Peer(
        "Dinov2ForImageClassification",
        _config("Dinov2Config", **OF_RATIO, use_swiglu_ffn=True),
        "BitImageProcessor",
        {"size": {"shortest_edge": 40}, "resample": 3, **MIDDLE, **IMAGENET},
    ),
    "dinov2-registers": Peer(
        "Dinov2WithRegistersModel",
        _config("Dinov2WithRegistersConfig", **OF_RATIO, num_register_tokens=3),
        "BitImageProcessor",
        {"size": {"shortest_edge": 40}, "resample": 3, **MIDDLE, **IMAGENET},
    ),
    "vit": Peer("ViTModel", _config("ViTConfig", **SHAPE), preparation={**SQUARE, **HALVES}),
    "vit-classifier": Peer(
        "ViTForImageClassification",
        _config("ViTConfig", **SHAPE, qkv_bias=False, num_labels=3),
        preparation={**SQUARE, **HALVES},
    ),
    "deit": Peer(
        "DeiTForImageClassificationWithTeacher",
        _config("DeiTConfig", **SHAPE),
        "DeiTImageProcessor",
        {"size": {"height": 40, "width": 40}, "resample": 3, **MIDDLE, **IMAGENET},
    ),
    "vit-mae": Peer(
        "ViTMAEForPreTraining",
        _config(
            "ViTMAEConfig",
            **SHAPE,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
        ),
        preparation={**SQUARE, **IMAGENET},
    ),
    "siglip": Peer(
        "SiglipVisionModel",
        _config("SiglipVisionConfig", **SHAPE),
        "SiglipImageProcessor",
        {**SQUARE, "resample": 3, **HALVES},
    ),
    "siglip-headless": Peer(
        "SiglipVisionModel",
        _config("SiglipVisionConfig", **SHAPE, vision_use_head=False),
        "SiglipImageProcessor",
        {**SQUARE, "resample": 3, **HALVES},
    ),
    "clip": Peer(
        "CLIPVisionModel",
        _config("CLIPVisionConfig", **SHAPE),
        "CLIPImageProcessor",
        {"size": {"shortest_edge": SIZE}, "resample": 3, **MIDDLE, **OF_CLIP},
    ),
    "clip-projection": Peer(
        "CLIPVisionModelWithProjection",
        _config("CLIPVisionConfig", **SHAPE, projection_dim=16),
        "CLIPImageProcessor",
        {"size": {"shortest_edge": SIZE}, "resample": 3, **MIDDLE, **OF_CLIP},
    ),
}


def save_peer(name: str, directory: Path) -> Path:
    """The tiny model of a class, every weight drawn, as its own library saves it, and how images are prepared."""
    peer = PEERS[name]
    model = getattr(transformers, peer.architecture)(peer.config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(preparation(name), indent=1))
    return directory


def preparation(name: str) -> dict[str, Any]:
    """What preprocessor_config.json says of how images are prepared for a class."""
    return {
        "image_processor_type": PEERS[name].processor,
        **{f"do_{what}": True for what in ("convert_rgb", "resize", "rescale", "normalize")},
        "rescale_factor": 1 / 255,
        "resample": 2,
        **PEERS[name].preparation,
    }


@torch.no_grad()
def states_of(directory: Path, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the class that a directory names makes of pixels of any size: its hidden states, and the vector that it
    makes of an image by itself, where it does."""
    said = json.loads((directory / "config.json").read_text())["architectures"][0]
    whole, told = getattr(transformers, said).from_pretrained(directory, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    network = whole.eval() if said.endswith("Model") else whole.eval().base_model
    network.config.mask_ratio = 0.0
    patches = (pixels.shape[2] // PATCH) * (pixels.shape[3] // PATCH)
    asked = {"interpolate_pos_encoding": True, "noise": torch.arange(patches).expand(len(pixels), -1)}
    takes = signature(network.forward).parameters
    made = network(pixels, **{key: value for key, value in asked.items() if key in takes})
    return made.last_hidden_state, made.get("pooler_output")
