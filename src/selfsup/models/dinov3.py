"""Vision transformers as model directories in DINOv3's layout, which stock `transformers` opens: written and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfsup.models.directories import MOST_SIDE, read_json, read_weights, write_json
from selfsup.models.features import FEATURES, Features
from selfsup.models.huggingface import built, new_model, write_card
from selfsup.models.kinds import PREPROCESSOR, VISION
from selfsup.models.layouts import FP32, Layout, at
from selfsup.models.parity import exactness, max_difference, network_difference
from selfsup.models.sentence_transformers import read_features
from selfsup.models.vision import CHANNELS, VisionConfig, VisionTransformer
from selfsup.views import MEAN, STD

LAYOUT = Layout(
    VisionConfig,
    name="DINOv3 ViTs",
    model_type=VISION,
    places={
        "size": at("image_size", most=MOST_SIDE),
        "patch": at("patch_size"),
        "layers": at("num_hidden_layers"),
        "width": at("hidden_size"),
        "heads": at("num_attention_heads"),
        "mlp": at("intermediate_size"),
        "registers": at("num_register_tokens", default=0, least=0),
        "layer_scale": at("layerscale_value", default=1.0, least=0),
        "rope_theta": at("rope_theta", default=100.0),
        "norm_eps": at("layer_norm_eps", default=1e-5),
    },
    fixed={
        "hidden_act": "gelu",
        "use_gated_mlp": False,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "num_channels": CHANNELS,
    },
    written={
        **dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")),  # of positions in training
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        **FP32,
    },
)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels: its short side is resized to `size`, the middle cropped, and normalised."""

    size: int


PREPROCESSING = Layout(
    Preprocessing,
    name="models of images",
    places={"size": at("crop_size.height", "crop_size.width", "size.shortest_edge", most=MOST_SIDE)},
    fixed={"image_mean": list(MEAN), "image_std": list(STD)},
    written={
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 2,  # Pillow's number for bilinear
        "do_center_crop": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    },
)


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
    """Write a directory that `AutoModel` and `AutoImageProcessor` open with the same numbers, wholly or not at all;
    weights are fp32. `card` makes README.md of a statement of how exact that is. Raises UserError where the directory
    exists already; returns max |Δ| against stock transformers, as `network_difference`."""
    with new_model(directory) as temporary:
        write_vision(temporary, model)
        features.write(temporary)
        difference = network_difference(temporary, model)
        write_card(temporary, card(exactness(difference)))
    return max_difference(difference)


def write_vision(directory: Path, model: VisionTransformer) -> None:
    """Write what `AutoModel` and `AutoImageProcessor` open, and nothing else, into a directory that exists."""
    LAYOUT.save(directory, model.config, model, "DINOv3ViTModel")
    write_json(directory / PREPROCESSOR, preprocessor(model.config.size))


def preprocessor(size: int) -> dict[str, Any]:
    """How an image becomes pixels, as a ViTImageProcessor: short side to `size`, centre crop, normalisation."""
    return PREPROCESSING.write(Preprocessing(size))


def read_vision(directory: Path) -> SavedVision:
    """What a directory of `save_vision` holds, or any plain DINOv3 ViT of transformers. Raises UserError where it holds
    another architecture or a variant of this one with different arithmetic, or is broken."""
    config = LAYOUT.open(directory)
    if (path := directory / PREPROCESSOR).exists():  # images are normalised in one way here
        PREPROCESSING.require(read_json(path), path)
    features = read_features(directory) if (directory / FEATURES).exists() else Features("cls")
    weights = {name.removeprefix("model."): tensor for name, tensor in read_weights(directory).items()}
    return SavedVision(directory, config, weights, features)
