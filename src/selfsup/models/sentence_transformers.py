"""The layout of sentence-transformers around a model directory: which tokens are pooled how, and how many are read.

DIR/modules.json                        the steps from text to vector, in their order
DIR/1_Pooling/config.json               how hidden states become one vector
DIR/2_Dense/                            the linear map that follows, where there is one
DIR/sentence_bert_config.json           tokens that are read of a text
DIR/config_sentence_transformers.json   how two vectors are compared

Written as every version since 2 reads it; version 6 itself writes other names, which are read here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from selfsup.errors import UserError
from selfsup.files import save_tensors
from selfsup.models.huggingface import read_json, read_json_list, read_safetensors, write_json
from selfsup.models.packing import POOLINGS, Pooling

MODULES = "modules.json"
IDENTITY = "torch.nn.modules.linear.Identity"
LENGTH = "sentence_bert_config.json"
POOLING_KEYS: dict[str, Pooling] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


def write_modules(
    directory: Path, pooling: Pooling, weight: Tensor | None, bias: Tensor | None, width: int, window: int
) -> None:
    """Beside the files of a model, what makes of them a sentence-transformers directory.

    No step normalises the vectors, for ours are not; the cosine that compares them does not need it.

    Args:
        weight, bias: (dimension, width) and (dimension,) of the linear map behind the pooling, where there is one.
        width: of the hidden states.
    """
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    if weight is not None:
        kinds["2_Dense"] = "Dense"
        _write_dense(directory / "2_Dense", weight, bias)
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    chosen = {key: mode == pooling for key, mode in POOLING_KEYS.items()}
    (directory / "1_Pooling").mkdir()
    write_json(directory / MODULES, modules)
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **chosen})
    write_json(directory / LENGTH, {"max_seq_length": window, "do_lower_case": False})
    write_json(
        directory / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )


def _write_dense(directory: Path, weight: Tensor, bias: Tensor | None) -> None:
    directory.mkdir()
    outputs, inputs = weight.shape
    sizes = {"in_features": inputs, "out_features": outputs, "bias": bias is not None}
    write_json(directory / "config.json", {**sizes, "activation_function": IDENTITY})
    given = {"linear.weight": weight, "linear.bias": bias}
    tensors = {name: t.float().cpu().contiguous() for name, t in given.items() if t is not None}
    save_tensors(tensors, directory / "model.safetensors")


def read_modules(directory: Path) -> tuple[Pooling, Tensor | None, Tensor | None]:
    """How a sentence-transformers directory makes one vector of hidden states: pooling, and a linear map behind it.

    A step that normalises is passed over: it changes lengths only.

    Raises:
        UserError: it does so in a way that an encoder here does not know.
    """
    pooling: Any = "mean"
    weight: Tensor | None = None
    bias: Tensor | None = None
    for module in read_json_list(directory / MODULES):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _mode(read_json(directory / str(module.get("path")) / "config.json"))
        elif kind == "Dense" and weight is None:
            weight, bias = _read_dense(directory / str(module.get("path")))
        elif kind not in ("Transformer", "Normalize"):
            raise UserError(
                f"{directory} has a step {kind!r} behind its encoder; only pooling and a linear map can be loaded"
            )
    if pooling not in POOLINGS:
        raise UserError(f"{directory} pools by {pooling!r}; only {' and '.join(POOLINGS)} can be loaded")
    return pooling, weight, bias


def _read_dense(directory: Path) -> tuple[Tensor, Tensor | None]:
    activation = read_json(directory / "config.json").get("activation_function", IDENTITY)
    if activation != IDENTITY:
        raise UserError(f"{directory} applies {activation}; only a linear map can be loaded")
    tensors = read_safetensors(directory / "model.safetensors")
    return tensors["linear.weight"], tensors.get("linear.bias")


def _mode(saved: dict[str, Any]) -> object:
    """The one mode of a pooling step, in the names of before version 6 or of since."""
    flags = [key for key, on in saved.items() if key.startswith("pooling_mode_") and on]
    modes = saved.get("pooling_mode", [POOLING_KEYS.get(key, key) for key in flags])
    return modes[0] if isinstance(modes, list) and len(modes) == 1 else modes


def read_length(directory: Path) -> int | None:
    """The tokens that a sentence-transformers directory reads of a text, where it says so."""
    for name, key in ((LENGTH, "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (directory / name).is_file() and (found := read_json(directory / name).get(key)) is not None:
            return int(found)
    return None
