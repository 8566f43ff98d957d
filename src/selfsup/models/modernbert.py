"""Text encoders as model directories in ModernBERT's layout, which stock `transformers` opens: written and read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.files import whole_directory
from selfsup.models.directories import broken, read_config, read_weights, shaped
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel, TextEncoder
from selfsup.models.features import Features, read_features
from selfsup.models.huggingface import Tokenizer, built, open_with_transformers, refuse_taken, write_files
from selfsup.models.sentence_transformers import MODULES, read_length

PREFIX = "model."  # of the encoder's names where a head stands beside it
ENCODER, HEAD = ("embeddings.", "layers.", "final_norm."), ("head.", "decoder.")
# What other ModernBERTs may have and the encoder here has not.
PLAIN = {
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
}
# Where a config.json says what, and what it means where it does not.
KEYS = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "window": "max_position_embeddings",
    "tied": "tie_word_embeddings",
    "bias": "decoder_bias",
    "dropout": "mlp_dropout",
    "local_window": "local_attention",
    "global_every": "global_attn_every_n_layers",
    "rope_theta": "global_rope_theta",
    "local_rope_theta": "local_rope_theta",
    "norm_eps": "norm_eps",
}
DEFAULTS = {
    "tie_word_embeddings": True,
    "decoder_bias": True,
    "mlp_dropout": 0.0,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "norm_eps": 1e-5,
}
# Of the rotary positions of each kind of layers: where transformers 4 has their base, and which it is by default.
ROPES = {
    "full_attention": ("global_rope_theta", 160000.0),
    "sliding_attention": ("local_rope_theta", 10000.0),
}


@dataclass(frozen=True)
class SavedEncoder:
    """What a directory holds: the weights by the names of `TextEncoder`, and those of the head of masked LM, if any."""

    directory: Path
    config: EncoderConfig
    weights: dict[str, Tensor]
    head: dict[str, Tensor]
    features: Features

    def encoder(self) -> TextEncoder:
        """The encoder, in fp32; raises UserError where the weights do not fit the config."""
        return built(TextEncoder, self.config, self.weights, self.directory)

    def masked(self) -> MaskedLanguageModel:
        """The encoder with its head, in fp32; raises UserError where there is none or it does not fit."""
        if not self.head:
            raise UserError(
                f"{self.directory} has no head that predicts hidden tokens; give a run of masked-lm, or a "
                "ModernBertForMaskedLM."
            )
        named = {PREFIX + name: tensor for name, tensor in self.weights.items()}
        return built(MaskedLanguageModel, self.config, named | self.head, self.directory)


def save_encoder(
    directory: Path,
    model: TextEncoder | MaskedLanguageModel,
    tokenizer: Tokenizer,
    features: Features,
    card: str,
) -> None:
    """Write a directory that `AutoModel` (and, with a head, `AutoModelForMaskedLM`) and `AutoTokenizer` open.

    Weights are fp32; `card` becomes README.md. The directory appears wholly or not at all. Raises UserError where it
    exists already.
    """
    refuse_taken(directory)
    with whole_directory(directory) as temporary:
        write_encoder(temporary, model, tokenizer)
        features.write(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def write_encoder(directory: Path, model: TextEncoder | MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """Write what `AutoModel` and `AutoTokenizer` open, and nothing else, into a directory that exists."""
    fills = isinstance(model, MaskedLanguageModel)
    write_files(directory, _named(model), _documents(model, tokenizer), tokenizer, model.config.window, fills)


def _documents(model: TextEncoder | MaskedLanguageModel, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    kind = "ModernBertForMaskedLM" if isinstance(model, MaskedLanguageModel) else "ModernBertModel"
    return {"config.json": {"architectures": [kind], **_to_modernbert(model.config, tokenizer)}}


def _named(model: TextEncoder | MaskedLanguageModel) -> dict[str, Tensor]:
    """The weights by their names in the saved file."""
    return {("decoder.bias" if name == "bias" else name): w for name, w in model.state_dict().items()}


def read_encoder(directory: Path) -> SavedEncoder:
    """What a directory of `save_encoder` holds, or any ModernBERT of transformers or sentence-transformers.

    Only JSON and safetensors are read. Raises UserError where the directory holds another architecture or a variant of
    this one with different arithmetic, or is incomplete or broken.
    """
    config = _from_modernbert(read_config(directory), directory)
    length = read_length(directory) if (directory / MODULES).exists() else None
    config = replace(config, window=min(config.window, length or config.window))
    weights = read_weights(directory)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in weights) else ""
    encoder = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix or ENCODER)}
    head = {n: w for n, w in weights.items() if n.startswith(HEAD)}
    if any(name.startswith("classifier.") for name in weights):
        head = {}  # a classifier's, under the same names
    if "decoder.bias" in head:
        head["bias"] = head.pop("decoder.bias")
    if config.tied:
        head.pop("decoder.weight", None)  # some writers store the shared matrix twice
    return SavedEncoder(directory, config, encoder, head, read_features(directory))


@torch.inference_mode()
def parity(directory: Path, model: TextEncoder | MaskedLanguageModel, tokens: Tensor) -> float | None:
    """max |Δ| in fp32 between stock `transformers` on a directory and `model`, for tokens (B, T): of the logits, or of
    the hidden states where there is no head. None where transformers is not installed."""
    masked = isinstance(model, MaskedLanguageModel)
    theirs = open_with_transformers("AutoModelForMaskedLM" if masked else "AutoModel", directory)
    if theirs is None:
        return None
    model.eval()
    if isinstance(model, MaskedLanguageModel):
        positions = torch.arange(tokens.shape[1]).expand_as(tokens).to(tokens.device)
        ours, expected = model(tokens, positions) @ model.output_weight.T, theirs(tokens.cpu()).logits
    else:
        ours, expected = model(tokens), theirs(tokens.cpu()).last_hidden_state
    return float((expected - ours.float().cpu()).abs().max())


def _to_modernbert(config: EncoderConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "model_type": "modernbert",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.window,
        "norm_eps": config.norm_eps,
        "local_attention": config.local_window,
        "global_attn_every_n_layers": config.global_every,
        "layer_types": [config.kind(layer) for layer in range(config.layers)],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        "global_rope_theta": config.rope_theta,  # where transformers 4 looks
        "local_rope_theta": config.local_rope_theta,
        "embedding_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        "tie_word_embeddings": config.tied,
        "decoder_bias": config.bias,
        **PLAIN,
        "classifier_pooling": "mean",
        "initializer_range": 0.02,
        "pad_token_id": tokenizer.pad,
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.end,
        "cls_token_id": tokenizer.start,
        "sep_token_id": tokenizer.end,
        "dtype": "float32",
        "torch_dtype": "float32",  # what transformers 4 calls it
    }


def _from_modernbert(saved: dict[str, Any], directory: Path) -> EncoderConfig:
    if saved.get("model_type") != "modernbert":
        raise UserError(
            f"{directory} holds a model of type {saved.get('model_type')!r}; only ModernBERT encoders can be loaded"
        )
    for key, value in PLAIN.items():
        if saved.get(key, value) != value:
            raise UserError(
                f"{directory} has {key} = {saved[key]!r}; only ModernBERT with {value!r} can be loaded"
            )
    if "quantization_config" in saved:
        raise UserError(f"{directory} holds quantised weights; load the model's unquantised release")
    scaling = saved.get("rope_scaling") or {}  # where transformers 4 puts it
    rope = saved.get("rope_parameters") or dict.fromkeys(ROPES, scaling)
    thetas = {
        key: _theta(rope, layers, saved.get(key, default), directory)
        for layers, (key, default) in ROPES.items()
    }
    config = shaped(EncoderConfig, directory / "config.json", DEFAULTS | saved | thetas, KEYS, ("dropout",))
    kinds = saved.get("layer_types")
    listed = isinstance(kinds, list) and len(kinds) == config.layers
    if kinds is not None and not (listed and kinds == [config.kind(layer) for layer in range(config.layers)]):
        raise UserError(
            f"{directory} has layers of other kinds than every {config.global_every}th global; it cannot be loaded"
        )
    return config


def _theta(ropes: Any, layers: str, default: Any, directory: Path) -> Any:
    rope = (ropes.get(layers) or {}) if isinstance(ropes, dict) else ropes
    if not isinstance(rope, dict):
        raise broken(directory / "config.json", "rope_parameters", ropes)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(
            f"{directory} scales its rotary positions ({kind}); only ModernBERT without it can be loaded"
        )
    return rope.get("rope_theta", default)
