"""Text encoders as model directories that stock `transformers` opens, in the layouts of its classes: read and written.

A fresh encoder is written as a ModernBERT. One that was opened goes back into the class it came from, with all that
stood beside it: a pooler, a classifier, the steps of a sentence-transformers directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from selfsup.errors import UserError
from selfsup.models.directories import MOST, forget_code, read_config
from selfsup.models.encoder import GLOBAL, LOCAL, EncoderConfig, MaskedLanguageModel, TextEncoder
from selfsup.models.features import Features
from selfsup.models.huggingface import Tokenizer, built, new_model, write_card
from selfsup.models.layouts import FP32, Layout, Opened, at, find_layout
from selfsup.models.sentence_transformers import keep_modules, read_features, text_window
from selfsup.models.transformer import ACTIVATIONS

INNER = "model."  # what stands before the names of an encoder beside which a head stands
CLASSIFIER = "classifier."
# Heads of other tasks, and what older files hold besides weights.
BESIDE = ("pooler.", CLASSIFIER, "qa_outputs.", "embeddings.position_ids")
KINDS = ("weight", "bias")
NAMED = {name: name for name in ACTIVATIONS}
OLDER = {".gamma": ".weight", ".beta": ".bias"}  # how names of norms ended in the first BERTs

SIZES = {
    "vocabulary": at("vocab_size"),
    "layers": at("num_hidden_layers"),
    "width": at("hidden_size"),
    "heads": at("num_attention_heads"),
    "mlp": at("intermediate_size"),
}

MODERNBERT = Layout(
    EncoderConfig,
    name="ModernBERT encoders",
    model_type="modernbert",
    places={
        **SIZES,
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
    inner=INNER,
    prefix="model.",
    spare=(CLASSIFIER,),
)

# BERT's arithmetic, of which nothing is said in a file: all layers see everything, positions are learnt, norms stand
# behind the sums, the feed-forward is plain.
POST_NORM = {
    "window": MOST,  # as long as the table of positions allows
    "tied": True,
    "bias": True,
    "global_every": 1,
    "post_norm": True,
    "biases": True,
    "gated": False,
}
BERT = Layout(
    EncoderConfig,
    name="BERT encoders",
    model_type="bert",
    places={
        **SIZES,
        "positions": at("max_position_embeddings", default=512),
        "token_types": at("type_vocab_size", default=2),
        "norm_eps": at("layer_norm_eps", default=1e-12),
        "activation": at("hidden_act", default="gelu", words=NAMED),
        "head_activation": at("hidden_act", default="gelu", words=NAMED),
    },
    fixed={"tie_word_embeddings": True},
    refused={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    written={"pad_token_id": 0, **FP32},
    names={
        "embeddings.tok_embeddings": "embeddings.word_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.*.attn.Wo": "encoder.layer.*.attention.output.dense",
        "layers.*.attn_norm": "encoder.layer.*.attention.output.LayerNorm",
        "layers.*.mlp.Wi": "encoder.layer.*.intermediate.dense",
        "layers.*.mlp.Wo": "encoder.layer.*.output.dense",
        "layers.*.mlp_norm": "encoder.layer.*.output.LayerNorm",
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
        "bias": "cls.predictions.bias",
    },
    parts={
        f"layers.*.attn.Wqkv.{kind}": tuple(
            f"encoder.layer.*.attention.self.{part}.{kind}" for part in ("query", "key", "value")
        )
        for kind in KINDS
    },
    inner=INNER,
    prefix="bert.",
    spare=(*BESIDE, "cls.seq_relationship."),
    given=POST_NORM,
)
PADDING = 1  # the token that stands for nothing: positions of RoBERTa begin behind its number
ROBERTA = replace(
    BERT,
    name="RoBERTa encoders",
    model_type="roberta",
    places={name: place for name, place in BERT.places.items() if name != "head_activation"},  # which is GELU
    fixed={**BERT.fixed, "pad_token_id": PADDING},
    written=FP32,
    names={
        **BERT.names,
        "head.dense": "lm_head.dense",
        "head.norm": "lm_head.layer_norm",
        "decoder": "lm_head.decoder",
        "bias": "lm_head.bias",
    },
    prefix="roberta.",
    spare=BESIDE,
    given={**POST_NORM, "first_position": PADDING + 1},
)
DISTILBERT = replace(
    BERT,
    name="DistilBERT encoders",
    model_type="distilbert",
    places={
        "vocabulary": at("vocab_size"),
        "layers": at("n_layers"),
        "width": at("dim"),
        "heads": at("n_heads"),
        "mlp": at("hidden_dim"),
        "positions": at("max_position_embeddings", default=512),
        "activation": at("activation", default="gelu", words=NAMED),
        "head_activation": at("activation", default="gelu", words=NAMED),
    },
    names={
        "embeddings.tok_embeddings": "embeddings.word_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "layers.*.attn.Wo": "transformer.layer.*.attention.out_lin",
        "layers.*.attn_norm": "transformer.layer.*.sa_layer_norm",
        "layers.*.mlp.Wi": "transformer.layer.*.ffn.lin1",
        "layers.*.mlp.Wo": "transformer.layer.*.ffn.lin2",
        "layers.*.mlp_norm": "transformer.layer.*.output_layer_norm",
        "head.dense": "vocab_transform",
        "head.norm": "vocab_layer_norm",
        "bias": "vocab_projector.bias",
        "decoder": "vocab_projector",
    },
    parts={
        f"layers.*.attn.Wqkv.{kind}": tuple(f"transformer.layer.*.attention.{part}_lin.{kind}" for part in "qkv")
        for kind in KINDS
    },
    prefix="distilbert.",
    spare=(*BESIDE, "pre_classifier."),
    given={**POST_NORM, "norm_eps": 1e-12},
)
CLIP_TEXT = Layout(
    EncoderConfig,
    name="text models of CLIP",
    model_type="clip_text_model",
    places={  # those of the first CLIP where files do not say
        "vocabulary": at("vocab_size", default=49408),
        "layers": at("num_hidden_layers", default=12),
        "width": at("hidden_size", default=512),
        "heads": at("num_attention_heads", default=8),
        "mlp": at("intermediate_size", default=2048),
        "positions": at("max_position_embeddings", default=77),
        "norm_eps": at("layer_norm_eps", default=1e-5),
        "activation": at("hidden_act", default="quick_gelu", words=NAMED),
    },
    names={
        "embeddings.tok_embeddings": "embeddings.token_embedding",
        "embeddings.position_embeddings": "embeddings.position_embedding",
        "layers.*.attn.Wo": "encoder.layers.*.self_attn.out_proj",
        "layers.*.attn_norm": "encoder.layers.*.layer_norm1",
        "layers.*.mlp.Wi": "encoder.layers.*.mlp.fc1",
        "layers.*.mlp.Wo": "encoder.layers.*.mlp.fc2",
        "layers.*.mlp_norm": "encoder.layers.*.layer_norm2",
        "final_norm": "final_layer_norm",
    },
    parts={
        f"layers.*.attn.Wqkv.{kind}": tuple(f"encoder.layers.*.self_attn.{part}_proj.{kind}" for part in "qkv")
        for kind in ("weight", "bias")
    },
    prefix="text_model.",
    spare=("text_projection.", "embeddings.position_ids"),
    given={
        "window": MOST,
        "tied": True,
        "global_every": 1,
        "embedding_norm": False,
        "biases": True,
        "gated": False,
        "causal": True,
    },
)
SIGLIP_TEXT = replace(
    CLIP_TEXT,
    name="text models of SigLIP",
    model_type="siglip_text_model",
    places={
        **CLIP_TEXT.places,
        "vocabulary": at("vocab_size", default=32000),
        "width": at("hidden_size", default=768),
        "heads": at("num_attention_heads", default=12),
        "mlp": at("intermediate_size", default=3072),
        "positions": at("max_position_embeddings", default=64),
        "norm_eps": at("layer_norm_eps", default=1e-6),
        "activation": at("hidden_act", default="gelu_pytorch_tanh", words=NAMED),
    },
    spare=("head.", "embeddings.position_ids"),
    given={**CLIP_TEXT.given, "causal": False, "padded": True},
)
LAYOUTS: Mapping[str, Layout[EncoderConfig]] = {
    str(layout.model_type): layout
    for layout in (
        MODERNBERT,
        BERT,
        ROBERTA,
        replace(ROBERTA, model_type="xlm-roberta"),
        replace(ROBERTA, model_type="camembert"),
        DISTILBERT,
        CLIP_TEXT,
        SIGLIP_TEXT,
    )
}
STEMS = {
    "modernbert": "ModernBert",
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "clip_text_model": "CLIPText",
    "siglip_text_model": "SiglipText",
}  # of the names of classes
FILLING = ("ForMaskedLM", "ForPreTraining")  # ends of those that have a head of masked LM
# How names begin, those of an encoder also where a part of a layer is known by no name here, and so to be refused.
ENCODER, HEAD = ("embeddings.", "layers.", "final_norm.", "encoder.", "transformer."), ("head.", "decoder.", "bias")


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

    def masked(self, encoder: TextEncoder | None = None) -> MaskedLanguageModel:
        """The encoder, or the one given, with its head, in fp32; raises UserError where there is none or it does not
        fit."""
        if not self.head:
            raise UserError(
                f"{self.directory} has no head that predicts hidden tokens; give a run of masked-lm, or a model such "
                "as a ModernBertForMaskedLM."
            )
        weights, config = (self.weights, self.config) if encoder is None else (encoder.state_dict(), encoder.config)
        named = {INNER + name: tensor for name, tensor in weights.items()}
        return built(MaskedLanguageModel, config, named | self.head, self.directory)

    def around(self, encoder: TextEncoder) -> TextEncoder | MaskedLanguageModel:
        """An encoder that was trained on from this one, with the head as it stands here, where there is one."""
        return self.masked(encoder) if self.head else encoder


def read_encoder(directory: Path) -> SavedEncoder:
    """What a directory of `save_encoder` holds, or any one of `LAYOUTS` that transformers or sentence-transformers
    wrote. Raises UserError where it holds another architecture or is broken, `Unfit` where it is a variant with other
    arithmetic."""
    _, opened = _opened(directory)
    config, head = opened.config, opened.head
    if config.tied:
        head.pop("decoder.weight", None)  # some writers store the shared matrix twice
    twice = head.pop("decoder.bias", None)  # and the bias by either name
    head |= {} if twice is None else {"bias": twice}
    config = replace(config, window=text_window(directory, min(config.window, config.longest or MOST)))
    return SavedEncoder(directory, config, opened.weights, head, read_features(directory))


def _opened(directory: Path) -> tuple[Layout[EncoderConfig], Opened[EncoderConfig]]:
    """What a directory holds, and its layout, whose spare weights are all that no encoder here has: the head of a class
    for another task among them, which a ModernBERT calls by the same name as that of masked LM."""
    layout, classes = find_layout(LAYOUTS, directory), architectures(directory)
    opened = layout.opened(directory)
    own = HEAD if all(name.endswith((*FILLING, "Model")) for name in classes) else ()
    weights, others = _split(opened.weights, ENCODER)
    head, more = _split(opened.head, own)
    return replace(layout, spare=(*layout.spare, *others, *more)), replace(opened, weights=weights, head=head)


def _split(weights: Mapping[str, Tensor], begin: tuple[str, ...]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights whose names begin so, by the names that are written today, and the names of the others."""
    known = {name: weight for name, weight in weights.items() if name.startswith(begin)}
    others = [name for name in weights if name not in known]
    for old, new in OLDER.items():
        known = {name.removesuffix(old) + new if name.endswith(old) else name: w for name, w in known.items()}
    return known, others


def architectures(directory: Path) -> list[str]:
    """The classes that a directory names."""
    return list(read_config(directory).get("architectures") or [])


def save_encoder(
    directory: Path,
    model: TextEncoder | MaskedLanguageModel,
    tokenizer: Tokenizer,
    features: Features,
    card: str,
    origin: Path | None = None,
) -> None:
    """Write a directory that `AutoModel` (and, with a head, `AutoModelForMaskedLM`) and `AutoTokenizer` open, wholly or
    not at all; weights are fp32, `card` becomes README.md. Raises UserError where it exists already.

    Args:
        origin: the directory that the model was opened from. It goes back into its class, and what lies there beside
            is kept; so is what its tokenizer makes of special tokens that stand in a text.
    """
    with new_model(directory) as temporary:
        marked = isinstance(model, MaskedLanguageModel) or (origin is not None and not tokenizer.plain)
        write_encoder(temporary, model, tokenizer, origin, marked)
        if origin is not None:
            keep_modules(origin, temporary, features, model.config.width, model.config.window)
        features.write(temporary)
        write_card(temporary, card)


def write_encoder(
    directory: Path,
    model: TextEncoder | MaskedLanguageModel,
    tokenizer: Tokenizer,
    origin: Path | None = None,
    marked: bool = False,
) -> None:
    """Write what `AutoModel` and `AutoTokenizer` open, and nothing else, into a directory that exists.

    Special tokens written out in a text are plain text there, or what they stand for where texts are `marked` so.
    """
    config, fills = model.config, isinstance(model, MaskedLanguageModel)
    layout = LAYOUTS[config.layout] if origin is None else _opened(origin)[0]
    ids: dict[str, int | None] = {}
    if origin is None:
        ids = dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.start)
        ids |= dict.fromkeys(("eos_token_id", "sep_token_id"), tokenizer.end) | {"pad_token_id": tokenizer.pad}
    before = config if origin is None else layout.open(origin)
    kept = replace(config, dropout=before.dropout)  # which is the objective's, and there for whoever trains it
    layout.save(directory, kept, model, _class(config.layout, fills, origin), ids, origin)
    grown = origin is None or config.window > before.window
    tokenizer.save(directory, config.window if grown else None, marked)
    forget_code(directory)


def _class(layout: str, fills: bool, origin: Path | None) -> str | None:
    """The class that opens a model, with a head of masked LM or without; None for that of its origin."""
    classes = [] if origin is None else architectures(origin)
    if classes and fills == any(name.endswith(FILLING) for name in classes):
        return None
    return STEMS[layout] + ("ForMaskedLM" if fills else "Model")
