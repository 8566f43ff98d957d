"""Decoders as model directories in the layouts that stock `transformers` opens, one for each `model_type`: written and
read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfsup.models.decoder import Decoder, DecoderConfig, Rotation
from selfsup.models.directories import CONFIG, damaged, listed, read_json
from selfsup.models.huggingface import Tokenizer, built, new_model, write_card
from selfsup.models.kernels import GATES
from selfsup.models.kinds import DECODERS
from selfsup.models.layouts import FP32, Layout, Place, Said, at, find_layout
from selfsup.models.rope_scalings import SCALINGS

GENERATION = "generation_config.json"
ARCHITECTURE = "Qwen3ForCausalLM"  # of new decoders
WINDOW = 4096  # of layers with a short sight, where a file does not say
MOST_LAYERS, MOST_DIM = 1 << 20, 1 << 16  # for whose numbers there may be lists
FULL, SLIDING = "full_attention", "sliding_attention"
Fact = Callable[[Said], Any]


# -- what follows from several keys ------------------------------------------------------------------------


def _kv_heads(said: Said) -> int:
    return said.size("num_key_value_heads", said.size("num_attention_heads"))


def _head_dim(said: Said) -> int:
    return said.size("head_dim", said.size("hidden_size") // said.size("num_attention_heads"))


def _rope(said: Said, kind: str = FULL) -> Said:
    """What is said of the rotary positions of a kind of layers."""
    parts = [said.part(key) for key in ("rope_scaling", "rope_parameters")]  # the former is of transformers 4
    rope = next((part for part in parts if part.content), parts[0])
    return rope.part(kind) if kind in rope.content else rope


def _turned(theta: float = 1e4) -> dict[str, Fact]:
    """How fast the pairs of a head turn: with this `rope_theta` where none is said, scaled by the name of a way."""

    def rope_theta(said: Said) -> float:
        return _rope(said).number("rope_theta", said.number("rope_theta", theta))

    def rotation(said: Said) -> Rotation:
        rope = _rope(said)
        name = rope.word("rope_type", SCALINGS, rope.get("type") or "default")
        dim, scaled = _head_dim(said), SCALINGS[name]
        if dim > MOST_DIM and name != "default":
            raise damaged(f"{said.path} is broken (heads of {dim:,} numbers)")
        try:
            return scaled(rope, dim, rope_theta(said))
        except (ArithmeticError, ValueError):  # of numbers that do not fit together
            raise rope.broken("rope_type") from None

    return {"rope_theta": rope_theta, "rotation": rotation}


def _sliding(pattern: Callable[[Said, int], bool], on: Callable[[Said], bool] = lambda said: True) -> dict[str, Fact]:
    """Which layers see the last positions alone: as `layer_types` says, else by the pattern of their numbers; none
    where that is off."""

    def sliding(said: Said) -> int | None:
        nowhere = not on(said) or said.content.get("sliding_window", WINDOW) is None
        return None if nowhere else said.size("sliding_window", WINDOW)

    def local(said: Said) -> tuple[int, ...]:
        layers = said.size("num_hidden_layers")
        kinds = said.words("layer_types", (FULL, SLIDING)) or [
            SLIDING if pattern(said, n) else FULL for n in range(layers)
        ]
        if len(kinds) != layers:
            raise said.broken("layer_types")
        return () if sliding(said) is None else tuple(n for n, kind in enumerate(kinds) if kind == SLIDING)

    return {"sliding": sliding, "local": local}


def _asked(said: Said) -> bool:
    return said.flag("use_sliding_window", False)


def _late(said: Said, layer: int) -> bool:
    return layer >= said.size("max_window_layers", 28, least=0)


def _local_theta(said: Said) -> float:
    rope = said.part("rope_parameters").part(SLIDING)
    rope.word("rope_type", ("default",), "default")
    return rope.number("rope_theta", said.number("rope_local_base_freq", 1e4))


def _cap(key: str, default: float | None) -> Fact:
    """None where null is said."""

    def cap(said: Said) -> float | None:
        none = said.content.get(key, default) is None
        return None if none else said.number(key, default)

    return cap


def _score_scale(said: Said) -> float:
    return 1 / math.sqrt(said.number("query_pre_attn_scalar", 256.0))


def _without_positions(said: Said) -> tuple[int, ...]:
    layers, interval = said.size("num_hidden_layers"), said.size("no_rope_layer_interval", 4)
    turned = said.get("no_rope_layers") or [(layer + 1) % interval for layer in range(layers)]
    if not isinstance(turned, list) or len(turned) != layers or not all(isinstance(one, int) for one in turned):
        raise said.broken("no_rope_layers")
    return tuple(layer for layer, one in enumerate(turned) if not one)


# -- the layouts -------------------------------------------------------------------------------------------

TANH = "gelu_pytorch_tanh"
ACTIVATIONS = {name: name for name in GATES}
SHAPE = {
    "vocabulary": at("vocab_size"),
    "layers": at("num_hidden_layers", most=MOST_LAYERS),
    "width": at("hidden_size"),
    "heads": at("num_attention_heads"),
    "mlp": at("intermediate_size"),
    "window": at("max_position_embeddings"),
}
SIZES: dict[str, Fact] = {"kv_heads": _kv_heads, "head_dim": _head_dim}
WHOLLY = {"rope_parameters.partial_rotary_factor": 1.0, "partial_rotary_factor": 1.0}


def _layout(name: str, model_type: str, tied: bool = False, **more: Any) -> Layout[DecoderConfig]:
    """One with Llama's names of keys; `more` is what it has of its own."""
    own = {
        "tied": at("tie_word_embeddings", default=tied),
        "norm_eps": at("rms_norm_eps", default=1e-6),
        "activation": at("hidden_act", default="silu", words=ACTIVATIONS),
    }
    places = {**SHAPE, **own, **more.pop("places", {})}
    facts = {**SIZES, **_turned(), **more.pop("facts", {})}
    return Layout(
        DecoderConfig, places, name, model_type, refused=WHOLLY | more.pop("refused", {}), facts=facts, **more
    )


def _gemma(model_type: str, act: str, **more: Any) -> Layout[DecoderConfig]:
    """One of Gemma, whose norms have gains beside 1, and whose embeddings grow with the width."""
    places = {
        "activation": at(act, default=TANH, words={TANH: TANH, "gelu": TANH}),  # the latter meant it as well
        **ATTENTION,
    }
    facts = {"embedding_scale": lambda said: math.sqrt(said.size("hidden_size")), **more.pop("facts", {})}
    given = {"gain_offset": 1.0, **more.pop("given", {})}
    one_way = {"use_bidirectional_attention": False}
    return _layout("Gemma models", model_type, True, places=places, facts=facts, given=given, refused=one_way, **more)


def _biases(*fields: str, key: str = "attention_bias") -> dict[str, Place]:
    return {name: at(key, default=False) for name in fields}


ATTENTION = _biases("qkv_bias", "output_bias")
SANDWICH = {  # Gemma 2's and 3's names of four norms
    f"model.layers.*.{ours}": f"model.layers.*.{theirs}"
    for ours, theirs in (
        ("attention_norm", "post_attention_layernorm"),
        ("post_attention_layernorm", "pre_feedforward_layernorm"),
        ("mlp_norm", "post_feedforward_layernorm"),
    )
}
QWEN3 = Layout(
    DecoderConfig,
    name="dense Qwen3 models",
    model_type=DECODERS[0],
    places={
        **SHAPE,
        "kv_heads": at("num_key_value_heads"),
        "head_dim": at("head_dim"),
        "tied": at("tie_word_embeddings", default=False),
        "rope_theta": at("rope_parameters.rope_theta", "rope_theta"),  # the latter is of transformers 4
        "norm_eps": at("rms_norm_eps"),
        "activation": at("hidden_act", words=ACTIVATIONS),
        **ATTENTION,
    },
    facts={**_turned(), **_sliding(_late, _asked)},
    refused=WHOLLY,
    written={
        "use_sliding_window": False,
        "rope_parameters.rope_type": "default",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **FP32,
    },
)
LAYOUTS: Mapping[str, Layout[DecoderConfig]] = {
    layout.model_type or "": layout
    for layout in (
        QWEN3,
        _layout(
            "dense Qwen2 models", "qwen2", given={"qk_norm": False, "qkv_bias": True}, facts=_sliding(_late, _asked)
        ),
        _layout(
            "Llama models",
            "llama",
            given={"qk_norm": False},
            places={**ATTENTION, **_biases("mlp_bias", key="mlp_bias")},
        ),
        _layout("Mistral models", "mistral", given={"qk_norm": False}, facts=_sliding(lambda said, layer: True)),
        _layout(
            "SmolLM3 models",
            "smollm3",
            tied=True,
            given={"qk_norm": False},
            places={**ATTENTION, **_biases("mlp_bias", key="mlp_bias")},
            facts={**_turned(2e6), "still": _without_positions, **_sliding(lambda said, layer: False, _asked)},
        ),
        _gemma("gemma", "hidden_act", given={"qk_norm": False}),
        _gemma(
            "gemma2",
            "hidden_activation",
            given={"qk_norm": False, "post_norms": True},
            names=SANDWICH,
            facts={
                **_sliding(lambda said, layer: layer % 2 == 0),
                "score_scale": _score_scale,
                "score_cap": _cap("attn_logit_softcapping", 50.0),
                "logit_cap": _cap("final_logit_softcapping", 30.0),
            },
        ),
        _gemma(
            "gemma3_text",
            "hidden_activation",
            given={"post_norms": True},
            names=SANDWICH,
            facts={
                **_turned(1e6),
                **_sliding(lambda said, layer: (layer + 1) % said.size("sliding_window_pattern", 6) > 0),
                "local_theta": _local_theta,
                "logit_cap": _cap("final_logit_softcapping", None),
                "score_scale": _score_scale,
            },
        ),
    )
}


# -- directories -------------------------------------------------------------------------------------------


def save_model(directory: Path, decoder: Decoder, tokenizer: Tokenizer, card: str, origin: Path | None = None) -> None:
    """Write a directory that `AutoModelForCausalLM` and `AutoTokenizer` open, wholly or not at all; `card` becomes its
    README.md. Raises UserError where it exists already.

    Weights are fp32. `origin` is the directory of the model that the decoder was trained on from, of whose files is
    kept what need not change.
    """
    layout, said = LAYOUTS[decoder.config.layout], {} if origin is None else read_json(origin / CONFIG)
    architecture = ARCHITECTURE if origin is None else None
    with new_model(directory) as temporary:
        layout.save(temporary, decoder.config, decoder, architecture, _special_ids(tokenizer, said), origin)
        tokenizer.save(temporary, decoder.config.window)
        (temporary / GENERATION).write_bytes(_generation_config(tokenizer, origin))
        write_card(temporary, card)


def load_decoder(directory: Path) -> Decoder:
    """A decoder in fp32 from a directory in one of `LAYOUTS`. Raises UserError where it holds another architecture or
    is broken, and `Unfit` where it is a variant of one with different arithmetic."""
    opened = find_layout(LAYOUTS, directory).opened(directory)
    if opened.config.tied:
        opened.weights.pop("lm_head.weight", None)  # some writers store the shared matrix twice
    return built(Decoder, opened.config, opened.weights, directory)


def read_ends(directory: Path) -> list[int]:
    """The tokens that end a text, as the directory of a decoder names them."""
    for name in (GENERATION, CONFIG):
        if (directory / name).is_file() and (found := _ends(read_json(directory / name))):
            return found
    return []


def _ends(content: dict[str, Any]) -> list[int]:
    return [id_ for id_ in listed(content.get("eos_token_id")) if isinstance(id_, int)]


def _special_ids(tokenizer: Tokenizer, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of them, as far as the tokenizer agrees."""
    ends = _ends(dict(said))
    return {
        "bos_token_id": tokenizer.start,
        "eos_token_id": said["eos_token_id"] if tokenizer.end in ends else _joined(ends, tokenizer.end),
        "pad_token_id": said.get("pad_token_id", tokenizer.pad),
    }


def _joined(ends: list[int], end: int) -> int | list[int]:
    return [*ends, end] if ends else end


def _generation_config(tokenizer: Tokenizer, origin: Path | None) -> bytes:
    """That of the origin, as it is where it ends texts as the tokenizer does."""
    path = None if origin is None else origin / GENERATION
    given = path.read_bytes() if path is not None and path.is_file() else None
    found = {"do_sample": True} if given is None else json.loads(given)
    if given is not None and tokenizer.end in _ends(found):
        return given
    ids = _special_ids(tokenizer, found)
    return (json.dumps({**ids, **found, "eos_token_id": ids["eos_token_id"]}, indent=2) + "\n").encode()
