"""Vision transformers as model directories in DINOv3's layout, which stock `transformers` opens: written and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.files import save_tensors, whole_directory
from selfsup.models.directories import (
    MOST_SIDE,
    broken,
    read_config,
    read_json,
    read_weights,
    shaped,
    write_json,
)
from selfsup.models.features import FEATURES, Features, read_features
from selfsup.models.huggingface import built, exactness, open_with_transformers, refuse_taken
from selfsup.models.vision import CHANNELS, VisionConfig, VisionTransformer
from selfsup.views import MEAN, STD

MODEL_TYPE = "dinov3_vit"
PREPROCESSOR = "preprocessor_config.json"
BILINEAR = 2  # Pillow's number for it
# What other DINOv3 ViTs may have and the one here has not.
PLAIN = {
    "hidden_act": "gelu",
    "use_gated_mlp": False,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "num_channels": CHANNELS,
}
# Where a config.json says what, and what it means where it does not.
KEYS = {
    "size": "image_size",
    "patch": "patch_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "registers": "num_register_tokens",
    "layer_scale": "layerscale_value",
    "rope_theta": "rope_theta",
    "norm_eps": "layer_norm_eps",
}
DEFAULTS = {"num_register_tokens": 0, "layerscale_value": 1.0, "rope_theta": 100.0, "layer_norm_eps": 1e-5}


@dataclass(frozen=True)
class SavedVision:
    """What a directory holds: the weights by the names of `VisionTransformer`, and what the vector of an image is."""

    directory: Path
    config: VisionConfig
    weights: dict[str, Tensor]
    features: Features

    def model(self) -> VisionTransformer:
        """The network, in fp32; raises UserError where the weights do not fit the config."""
        return built(VisionTransformer, self.config, self.weights, self.directory)


def save_vision(
    directory: Path, model: VisionTransformer, features: Features, card: Callable[[str], str]
) -> float | None:
    """Write a directory that `AutoModel` and `AutoImageProcessor` open with the same numbers, checked.

    Args:
        card: the model card, README.md, for a statement of how exact the layout is.

    Returns:
        max |Δ| against stock transformers: see `parity`.

    Weights are fp32. The directory appears wholly or not at all. Raises UserError where it exists already.
    """
    refuse_taken(directory)
    with whole_directory(directory) as temporary:
        write_vision(temporary, model)
        features.write(temporary)
        difference = parity(temporary, model)
        (temporary / "README.md").write_text(card(exactness(difference)), encoding="utf-8")
    return difference


def write_vision(directory: Path, model: VisionTransformer) -> None:
    """Write what `AutoModel` and `AutoImageProcessor` open, and nothing else, into a directory that exists."""
    write_json(directory / "config.json", _to_dinov3(model.config))
    write_json(directory / PREPROCESSOR, preprocessor(model.config.size))
    weights = {name: tensor.float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_tensors(weights, directory / "model.safetensors")


def preprocessor(size: int) -> dict[str, Any]:
    """How an image becomes pixels, as a ViTImageProcessor: short side to `size`, centre crop, normalisation."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def read_vision(directory: Path) -> SavedVision:
    """What a directory of `save_vision` holds, or any plain DINOv3 ViT of transformers.

    Only JSON and safetensors are read. Raises UserError where the directory holds another architecture or a variant of
    this one with different arithmetic, or is incomplete or broken.
    """
    config = _from_dinov3(read_config(directory), directory)
    _refuse_other_pixels(directory)
    features = read_features(directory) if (directory / FEATURES).exists() else Features("cls")
    weights = {name.removeprefix("model."): tensor for name, tensor in read_weights(directory).items()}
    return SavedVision(directory, config, weights, features)


@torch.inference_mode()
def parity(directory: Path, model: VisionTransformer) -> float | None:
    """max |Δ| of the hidden states in fp32 between stock `transformers` on a directory and `model`.

    On images of noise, square at the size of the config and wide at another. None where transformers is not installed.
    """
    theirs = open_with_transformers("AutoModel", directory)
    if theirs is None:
        return None
    device, size, patch = model.norm.weight.device, model.config.size, model.config.patch
    generator = torch.Generator().manual_seed(0)
    differences = []
    for shape in ((2, CHANNELS, size, size), (1, CHANNELS, size, size + patch)):
        pixels = torch.randn(shape, generator=generator)
        expected = theirs(pixels).last_hidden_state
        differences.append(float((expected - model(pixels.to(device)).float().cpu()).abs().max()))
    return max(differences)


def _to_dinov3(config: VisionConfig) -> dict[str, Any]:
    return {
        "architectures": ["DINOv3ViTModel"],
        "model_type": MODEL_TYPE,
        "image_size": config.size,
        "patch_size": config.patch,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_register_tokens": config.registers,
        "layerscale_value": config.layer_scale,
        "layer_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "pos_embed_shift": None,  # what transformers would do to positions in training
        "pos_embed_jitter": None,
        "pos_embed_rescale": None,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        **PLAIN,
        "initializer_range": 0.02,
        "dtype": "float32",
        "torch_dtype": "float32",  # what transformers 4 calls it
    }


def _from_dinov3(saved: dict[str, Any], directory: Path) -> VisionConfig:
    if saved.get("model_type") != MODEL_TYPE:
        raise UserError(
            f"{directory} holds a model of type {saved.get('model_type')!r}; only DINOv3 ViTs can be loaded"
        )
    for key, value in PLAIN.items():
        if saved.get(key, value) != value:
            raise UserError(
                f"{directory} has {key} = {saved[key]!r}; only DINOv3 ViTs with {value!r} can be loaded"
            )
    if "quantization_config" in saved:
        raise UserError(f"{directory} holds quantised weights; load the model's unquantised release")
    path = directory / "config.json"
    config = shaped(VisionConfig, path, DEFAULTS | saved, KEYS, ("registers", "layer_scale"))
    if config.size > MOST_SIDE:
        raise broken(path, "image_size", config.size)
    return config


def _refuse_other_pixels(directory: Path) -> None:
    """Images are normalised in one way here."""
    if not (directory / PREPROCESSOR).exists():
        return
    saved = read_json(directory / PREPROCESSOR)
    for key, value in (("image_mean", MEAN), ("image_std", STD)):
        if saved.get(key, list(value)) != list(value):
            raise UserError(
                f"{directory / PREPROCESSOR} has {key} = {saved[key]}; only models of images normalised by "
                f"{list(value)} can be loaded"
            )
