"""Text encoders as model directories in ModernBERT's layout, which stock `transformers` opens: written and read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from selfsup.errors import UserError
from selfsup.models import kinds
from selfsup.models.directories import read_weights
from selfsup.models.encoder import GLOBAL, LOCAL, EncoderConfig, MaskedLanguageModel, TextEncoder
from selfsup.models.features import Features
from selfsup.models.huggingface import Tokenizer, built, new_model, write_card
from selfsup.models.layouts import FP32, Layout, at, renamed
from selfsup.models.sentence_transformers import read_features, text_window

PREFIX = "model."  # of the encoder's names where a head stands beside it
ENCODER, HEAD = ("embeddings.", "layers.", "final_norm."), ("head.", "decoder.")

LAYOUT = Layout(
    EncoderConfig,
    name="ModernBERT encoders",
    model_type=kinds.ENCODER,
    places={
        "vocabulary": at("vocab_size"),
        "layers": at("num_hidden_layers"),
        "width": at("hidden_size"),
        "heads": at("num_attention_heads"),
        "mlp": at("intermediate_size"),
        "window": at("max_position_embeddings"),
        "tied": at("tie_word_embeddings", default=True),
        "bias": at("decoder_bias", default=True),
        "dropout": at("mlp_dropout", "embedding_dropout", "attention_dropout", default=0.0, least=0),
        "local_window": at("local_attention", default=128),
        "global_every": at("global_attn_every_n_layers", default=3),
        # The latter keys are of transformers 4.
        "rope_theta": at("rope_parameters.full_attention.rope_theta", "global_rope_theta", default=160000.0),
        "local_rope_theta": at("rope_parameters.sliding_attention.rope_theta", "local_rope_theta", default=10000.0),
        "norm_eps": at("norm_eps", default=1e-5),
    },
    fixed={
        "hidden_activation": "gelu",
        "classifier_activation": "gelu",
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        **{f"rope_parameters.{kind}.rope_type": "default" for kind in (GLOBAL, LOCAL)},
    },
    refused={
        **{f"rope_parameters.{kind}.type": "default" for kind in (GLOBAL, LOCAL)},
        **{f"rope_scaling.{key}": "default" for key in ("rope_type", "type")},
    },
    derived={"layer_types": lambda config: [config.kind(layer) for layer in range(config.layers)]},
    written={"classifier_pooling": "mean", "initializer_range": 0.02, **FP32},
    names={"bias": "decoder.bias"},
)


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
    directory: Path, model: TextEncoder | MaskedLanguageModel, tokenizer: Tokenizer, features: Features, card: str
) -> None:
    """Write a directory that `AutoModel` (and, with a head, `AutoModelForMaskedLM`) and `AutoTokenizer` open, wholly or
    not at all; weights are fp32, `card` becomes README.md. Raises UserError where it exists already."""
    with new_model(directory) as temporary:
        write_encoder(temporary, model, tokenizer)
        features.write(temporary)
        write_card(temporary, card)


def write_encoder(directory: Path, model: TextEncoder | MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """Write what `AutoModel` and `AutoTokenizer` open, and nothing else, into a directory that exists."""
    fills = isinstance(model, MaskedLanguageModel)
    ids = dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.start)
    ids |= dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.end)
    architecture = "ModernBertForMaskedLM" if fills else "ModernBertModel"
    LAYOUT.save(directory, model.config, model, architecture, ids | {"pad_token_id": tokenizer.pad})
    tokenizer.save(directory, model.config.window, fills)


def read_encoder(directory: Path) -> SavedEncoder:
    """What a directory of `save_encoder` holds, or any ModernBERT of transformers or sentence-transformers. Raises
    UserError where it holds another architecture or a variant of this one with different arithmetic, or is broken."""
    config = LAYOUT.open(directory)
    config = replace(config, window=text_window(directory, config.window))
    weights = read_weights(directory)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in weights) else ""
    encoder = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix or ENCODER)}
    classifies = any(name.startswith("classifier.") for name in weights)  # its head has the same names
    head = {n: w for n, w in weights.items() if n.startswith(HEAD) and not classifies}
    if config.tied:
        head.pop("decoder.weight", None)  # some writers store the shared matrix twice
    head = renamed(head, {theirs: ours for ours, theirs in LAYOUT.names.items()})
    return SavedEncoder(directory, config, encoder, head, read_features(directory))
