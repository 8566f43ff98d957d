"""Decoders as model directories in Qwen3's layout, which stock `transformers` opens: written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.directories import CONFIG, listed, read_json, read_weights
from selfsup.models.huggingface import Tokenizer, built, new_model, write_card
from selfsup.models.kinds import DECODER
from selfsup.models.layouts import FP32, Layout, at

GENERATION = "generation_config.json"
LAYOUT = Layout(
    DecoderConfig,
    name="dense Qwen3 models",
    model_type=DECODER,
    places={
        "vocabulary": at("vocab_size"),
        "layers": at("num_hidden_layers"),
        "width": at("hidden_size"),
        "heads": at("num_attention_heads"),
        "kv_heads": at("num_key_value_heads"),
        "head_dim": at("head_dim"),
        "mlp": at("intermediate_size"),
        "window": at("max_position_embeddings"),
        "tied": at("tie_word_embeddings", default=False),
        "rope_theta": at("rope_parameters.rope_theta", "rope_theta"),  # the latter is of transformers 4
        "norm_eps": at("rms_norm_eps"),
    },
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "use_sliding_window": False,
        "rope_parameters.rope_type": "default",
    },
    refused=dict.fromkeys(("rope_parameters.type", "rope_scaling.rope_type", "rope_scaling.type"), "default"),
    written={"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, **FP32},
)


def save_model(
    directory: Path, decoder: Decoder, tokenizer: Tokenizer, card: str, generation: bytes | None = None
) -> None:
    """Write a directory that `AutoModelForCausalLM` and `AutoTokenizer` open, wholly or not at all; `card` becomes its
    README.md. Raises UserError where it exists already.

    Weights are fp32. `generation` is the generation_config.json of the model that the decoder was trained on from.
    """
    with new_model(directory) as temporary:
        LAYOUT.save(temporary, decoder.config, decoder, "Qwen3ForCausalLM", _special_ids(tokenizer))
        tokenizer.save(temporary, decoder.config.window)
        (temporary / GENERATION).write_bytes(_generation_config(tokenizer, generation))
        write_card(temporary, card)


def load_decoder(directory: Path) -> Decoder:
    """A decoder in fp32 from a directory of `save_model`, or any dense Qwen3 in Hugging Face's layout. Raises UserError
    where it holds another architecture or a variant of this one with different arithmetic, or is broken."""
    config, weights = LAYOUT.open(directory), read_weights(directory)
    if config.tied:
        weights.pop("lm_head.weight", None)  # some writers store the shared matrix twice
    return built(Decoder, config, weights, directory)


def read_ends(directory: Path) -> list[int]:
    """The tokens that end a text, as the directory of a decoder names them."""
    for name in (GENERATION, CONFIG):
        if (directory / name).is_file() and (found := _ends(read_json(directory / name))):
            return found
    return []


def _ends(content: dict[str, Any]) -> list[int]:
    return [id_ for id_ in listed(content.get("eos_token_id")) if isinstance(id_, int)]


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}


def _generation_config(tokenizer: Tokenizer, given: bytes | None) -> bytes:
    """The one that is given, as it is where it ends texts as the tokenizer does."""
    found = {"do_sample": True} if given is None else json.loads(given)
    stops = _ends(found)
    if given is not None and tokenizer.end in stops:
        return given
    ids = _special_ids(tokenizer) | ({"eos_token_id": [*stops, tokenizer.end]} if stops else {})
    return (json.dumps({**ids, **found, "eos_token_id": ids["eos_token_id"]}, indent=2) + "\n").encode()
