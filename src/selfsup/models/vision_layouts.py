"""Vision transformers as model directories of transformers, which opens what is written here: written and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from selfsup.errors import UserError
from selfsup.models.directories import MOST_SIDE, forget_code, read_config
from selfsup.models.features import FEATURES, Features
from selfsup.models.huggingface import built, new_model, write_card
from selfsup.models.kinds import VISION, in_one
from selfsup.models.layouts import FP32, Layout, at
from selfsup.models.parity import exactness, max_difference, network_difference
from selfsup.models.preprocessors import read_preprocessing, write_preprocessing
from selfsup.models.sentence_transformers import read_features
from selfsup.models.vision import CHANNELS, VisionConfig, VisionTransformer
from selfsup.views import Preprocessing

QKV = ("query", "key", "value")
SIZES = {  # of a ViT-B, which is what files that do not say a size mean
    "size": at("image_size", default=224, most=MOST_SIDE),
    "patch": at("patch_size", default=16),
    "layers": at("num_hidden_layers", default=12),
    "width": at("hidden_size", default=768),
    "heads": at("num_attention_heads", default=12),
    "mlp": at("intermediate_size", default=3072),
    "activation": at("hidden_act", default="gelu"),
}
BIASES = {name: at("qkv_bias", default=True) for name in ("query_bias", "key_bias", "value_bias")}
# What vision transformers with learnt positions, and nothing else of DINOv3, have in common.
PLAIN = {"registers": None, "learnt_positions": True, "scaled": False, "key_bias": True}
ATTENTION = {
    **{f"layer.*.attention.{one[0]}_proj": f"encoder.layer.*.attention.attention.{one}" for one in QKV},
    "layer.*.attention.o_proj": "encoder.layer.*.attention.output.dense",
}
PATCHES = {"embeddings.patch_embeddings": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
WITHOUT_A_HEAD = {"num_channels": CHANNELS}

DINOV3 = Layout(
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
        "activation": at("hidden_act", default="gelu"),
        "gate_activation": at("hidden_act", default="gelu"),
        "gated": at("use_gated_mlp", default=False),
        "query_bias": at("query_bias", default=True),
        "key_bias": at("key_bias", default=False),
        "value_bias": at("value_bias", default=True),
        "out_bias": at("proj_bias", default=True),
        "mlp_bias": at("mlp_bias", default=True),
    },
    fixed=WITHOUT_A_HEAD,
    written={
        **dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")),  # of positions in training
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": 0.02,
        **FP32,
    },
    parts={
        f"layer.*.mlp.gate_up.{kind}": tuple(f"layer.*.mlp.{part}_proj.{kind}" for part in ("gate", "up"))
        for kind in ("weight", "bias")
    },
    spare=("classifier.",),
)
VIT = Layout(
    VisionConfig,
    name="ViTs",
    model_type="vit",
    places={**SIZES, **BIASES, "norm_eps": at("layer_norm_eps", default=1e-12)},
    given=PLAIN,
    fixed=WITHOUT_A_HEAD,
    names={
        **PATCHES,
        **ATTENTION,
        "layer.*.norm1": "encoder.layer.*.layernorm_before",
        "layer.*.norm2": "encoder.layer.*.layernorm_after",
        "layer.*.mlp.up_proj": "encoder.layer.*.intermediate.dense",
        "layer.*.mlp.down_proj": "encoder.layer.*.output.dense",
    },
    prefix="vit.",
    spare=("pooler.", "classifier.", "decoder."),
)
DEIT = replace(
    VIT,
    name="DeiTs",
    model_type="deit",
    given={**PLAIN, "distilled": True},
    prefix="deit.",
    spare=(*VIT.spare, "cls_classifier.", "distillation_classifier."),
)
DINOV2 = Layout(
    VisionConfig,
    name="DINOv2 ViTs",
    model_type="dinov2",
    places={
        **{name: place for name, place in SIZES.items() if name != "mlp"},
        **BIASES,
        "patch": at("patch_size", default=14),
        "norm_eps": at("layer_norm_eps", default=1e-6),
        "mlp_ratio": at("mlp_ratio", default=4),
        "layer_scale": at("layerscale_value", default=1.0, least=0),
        "gated": at("use_swiglu_ffn", default=False),
        "mask_token": at("use_mask_token", default=True),
    },
    given={**PLAIN, "scaled": True, "mlp": 0, "gate_activation": "silu"},
    fixed=WITHOUT_A_HEAD,
    names={
        **PATCHES,
        **ATTENTION,
        "layer.*.mlp.up_proj": "encoder.layer.*.mlp.fc1",
        "layer.*.mlp.down_proj": "encoder.layer.*.mlp.fc2",
        "layer.*.mlp.gate_up": "encoder.layer.*.mlp.weights_in",
        "layer.*": "encoder.layer.*",
    },
    flat={"embeddings.mask_token": 1},
    prefix="dinov2.",
    spare=("classifier.",),
)
REGISTERED = replace(
    DINOV2,
    name="DINOv2 ViTs with registers",
    model_type="dinov2_with_registers",
    places={
        **{name: place for name, place in DINOV2.places.items() if name != "mask_token"},
        "registers": at("num_register_tokens", default=4),
    },
    given={**DINOV2.given, "antialias": True},
    prefix="dinov2_with_registers.",
)
SIGLIP = Layout(
    VisionConfig,
    name="vision models of SigLIP",
    model_type="siglip_vision_model",
    places={
        **SIZES,
        "activation": at("hidden_act", default="gelu_pytorch_tanh"),
        "norm_eps": at("layer_norm_eps", default=1e-6),
        "attention_pooling": at("vision_use_head", default=True),
    },
    given={**PLAIN, "class_token": False},
    fixed=WITHOUT_A_HEAD,
    names={
        "embeddings.patch_embeddings": "embeddings.patch_embedding",
        "embeddings.position_embeddings": "embeddings.position_embedding.weight",
        "layer.*.norm1": "encoder.layers.*.layer_norm1",
        "layer.*.attention.o_proj": "encoder.layers.*.self_attn.out_proj",
        "layer.*.attention": "encoder.layers.*.self_attn",
        "layer.*.norm2": "encoder.layers.*.layer_norm2",
        "layer.*.mlp.up_proj": "encoder.layers.*.mlp.fc1",
        "layer.*.mlp.down_proj": "encoder.layers.*.mlp.fc2",
        "norm": "post_layernorm",
        "pooler.qkv.weight": "head.attention.in_proj_weight",
        "pooler.qkv.bias": "head.attention.in_proj_bias",
        "pooler.o_proj": "head.attention.out_proj",
        "pooler.norm": "head.layernorm",
        "pooler.mlp.up_proj": "head.mlp.fc1",
        "pooler.mlp.down_proj": "head.mlp.fc2",
        "pooler": "head",
    },
    flat={"embeddings.position_embeddings": 1},
    prefix="vision_model.",
    spare=("classifier.", "embeddings.position_ids"),
)
CLIP = Layout(
    VisionConfig,
    name="vision models of CLIP",
    model_type="clip_vision_model",
    places={
        **SIZES,
        "patch": at("patch_size", default=32),
        "activation": at("hidden_act", default="quick_gelu"),
        "norm_eps": at("layer_norm_eps", default=1e-5),
    },
    given={**PLAIN, "pre_norm": True, "pooled_norm": True, "patch_bias": False},
    fixed=WITHOUT_A_HEAD,
    names={
        **{ours: theirs for ours, theirs in SIGLIP.names.items() if not ours.startswith("pooler")},
        "embeddings.cls_token": "embeddings.class_embedding",
        "pre_norm": "pre_layrnorm",
    },
    flat={"embeddings.position_embeddings": 1, "embeddings.cls_token": 2},
    prefix="vision_model.",
    spare=("visual_projection.", "classifier.", "embeddings.position_ids"),
)
LAYOUTS: dict[str, Layout[VisionConfig]] = {
    layout.model_type: layout
    for layout in (
        DINOV3,
        DINOV2,
        REGISTERED,
        VIT,
        DEIT,
        replace(VIT, name="ViTs of masked autoencoders", model_type="vit_mae"),
        SIGLIP,
        CLIP,
    )
    if layout.model_type
}
WEIGHTS_OUT = {"layer.*.mlp.down_proj": "encoder.layer.*.mlp.weights_out"}
GATED = LAYOUTS | {  # of gated networks, which call a matrix otherwise
    name: replace(LAYOUTS[name], names={**LAYOUTS[name].names, **WEIGHTS_OUT})
    for name in ("dinov2", "dinov2_with_registers")
}
ARCHITECTURES = {  # the class that opens a network alone
    "dinov3_vit": "DINOv3ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
    "deit": "DeiTModel",
    "vit_mae": "ViTMAEModel",
    "siglip_vision_model": "SiglipVisionModel",
    "clip_vision_model": "CLIPVisionModel",
}
MASK = "embeddings.mask_token"


@dataclass(frozen=True)
class SavedVision:
    """What a directory holds: the weights by the names of `VisionTransformer`, what the vector of an image is, and how
    an image is prepared."""

    directory: Path
    config: VisionConfig
    weights: dict[str, Tensor]
    features: Features
    preprocessing: Preprocessing

    def model(self) -> VisionTransformer:
        """The network, in fp32 and in memory of its own; raises UserError where the weights do not fit the config."""
        weights = {name: tensor.clone() for name, tensor in self.weights.items()}
        return built(VisionTransformer, self.config, weights, self.directory)


def save_vision(
    directory: Path,
    model: VisionTransformer,
    features: Features,
    card: Callable[[str], str],
    preprocessing: Preprocessing | None = None,
    origin: Path | None = None,
) -> float | None:
    """Write a directory that `AutoModel` and `AutoImageProcessor` open with the same numbers, wholly or not at all;
    weights are fp32. `card` makes README.md of a statement of how exact that is. What the model directory `origin`,
    that it was started from, has beside the network is kept. Without `preprocessing`, images are prepared as they are
    for fresh networks. Raises UserError where the directory exists already; returns max |Δ| against stock
    transformers, as `network_difference`."""
    with new_model(directory) as temporary:
        write_vision(temporary, model, preprocessing, origin)
        features.write(temporary)
        difference = network_difference(temporary, model)
        write_card(temporary, card(exactness(difference)))
    return max_difference(difference)


def write_vision(
    directory: Path, model: VisionTransformer, preprocessing: Preprocessing | None = None, origin: Path | None = None
) -> None:
    """Write what `AutoModel` and `AutoImageProcessor` open, and nothing else, into a directory that exists."""
    config = model.config
    layout = (GATED if config.gated else LAYOUTS)[config.layout]
    beside = None if origin is None or in_one(origin) else origin  # a tower of two in one directory leaves alone
    layout.save(directory, config, model, ARCHITECTURES[config.layout] if beside is None else None, origin=beside)
    write_preprocessing(directory, preprocessing or Preprocessing.plain(config.size), origin)
    forget_code(directory)


def read_vision(directory: Path) -> SavedVision:
    """What a directory of `save_vision` holds, or any of transformers in one of `LAYOUTS`. Raises UserError where it
    holds another architecture or a variant of these with different arithmetic, or is broken."""
    opened = _layout(directory).opened(directory)
    weights = {name.removeprefix("model."): tensor for name, tensor in opened.whole.items()}
    config = replace(opened.config, mask_token=MASK in weights)
    own = (directory / FEATURES).exists()
    features = read_features(directory, config.poolings) if own else Features(config.summary)
    preprocessing = read_preprocessing(directory, config.layout, config.size)
    return SavedVision(directory, config, weights, features, preprocessing)


def _layout(directory: Path) -> Layout[VisionConfig]:
    """That of a model directory."""
    saved = read_config(directory)
    layouts = GATED if saved.get("use_swiglu_ffn") else LAYOUTS
    if (found := saved.get("model_type")) in layouts:
        return layouts[str(found)]
    raise UserError(
        f"{directory} holds a model of type {found!r}; of vision models only {', '.join(LAYOUTS)}, networks of timm "
        "and modules that selfsup saved can be loaded"
    )
