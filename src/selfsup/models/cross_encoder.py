"""Cross-encoders: an encoder that reads a query and a passage together and gives one score (Nogueira and Cho 2019,
"Passage Re-ranking with BERT").

A directory is a class of transformers that classifies sequences, with one label, as sentence-transformers' CrossEncoder
saves it. In all whose encoder stands here the score is output(norm(activation(dense(h)))), where h is the first hidden
state or the mean of all; which weights these are, and whether there is a norm, differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.models.directories import (
    CONFIG,
    MODULES,
    broken,
    number,
    read_config,
    read_json,
    read_json_list,
    read_weights,
)
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.encoder_layouts import LAYOUTS, architectures, read_encoder
from selfsup.models.huggingface import built
from selfsup.models.layouts import Unfit
from selfsup.models.sentence_transformers import LENGTH, SETTINGS, SHORTEST
from selfsup.models.transformer import ACTIVATIONS, Linear, TensorModule, through

ENDING = "ForSequenceClassification"  # of the names of classes
INNER = "encoder."
TOKENIZER = "tokenizer_config.json"
# What stands behind the score, by the names that sentence-transformers has for it.
SIGMOID, IDENTITY = "Sigmoid", "Identity"
LAST: dict[str, Callable[[Tensor], Tensor]] = {SIGMOID: torch.sigmoid, IDENTITY: lambda score: score}


@dataclass(frozen=True)
class Head:
    """What makes a score of hidden states, by the names of its weights in files."""

    dense: str
    output: str
    activation: str
    norm: str = ""
    biases: bool = True  # of the dense map


ROBERTA = Head("classifier.dense", "classifier.out_proj", "tanh")
HEADS = {
    "bert": Head("pooler.dense", "classifier", "tanh"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), ROBERTA),
    "distilbert": Head("pre_classifier", "classifier", "relu"),
    "modernbert": Head("head.dense", "classifier", "gelu", "head.norm", False),
}


class CrossEncoder(TensorModule):
    """Pairs of texts to scores."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, head = config, HEADS[config.layout]
        self.encoder = TextEncoder(config)
        self.dense = Linear(config.width, config.width, head.biases)
        self.norm = config.norm() if head.norm else None
        self.output = Linear(config.width, 1, True)
        self.activation = {"tanh": torch.tanh, **ACTIVATIONS}[head.activation]
        self.mean = False  # of all hidden states, or the first

    def forward(self, tokens: Tensor, lengths: Tensor, types: Tensor) -> Tensor:
        """Scores (B,), fp32, of pairs: tokens (B, T), padded behind `lengths` (B,), and of which text each token is,
        (B, T)."""
        held = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        hidden = self.encoder(tokens, torch.where(held, 0, -1), types).float()
        pooled = (hidden * held[..., None]).sum(1) / lengths[:, None] if self.mean else hidden[:, 0]
        with torch.autocast(tokens.device.type, enabled=False):
            inner = self.activation(through(pooled, self.dense)[0])
            inner = inner if self.norm is None else self.norm(inner, inner.dtype)
            return through(inner, self.output)[0][:, 0]


def read_cross_encoder(directory: Path) -> CrossEncoder | None:
    """The cross-encoder of a directory, in fp32; None where its arithmetic is none here. Raises UserError where it is
    damaged."""
    head = HEADS.get(str(read_config(directory).get("model_type")))
    if head is None:
        return None
    try:
        saved = read_encoder(directory)
    except Unfit:
        return None
    there, prefix = read_weights(directory), LAYOUTS[saved.config.layout].prefix
    parts = {"dense": head.dense, "output": head.output} | ({"norm": head.norm} if head.norm else {})
    own = {
        f"{ours}.{kind}": weight
        for ours, theirs in parts.items()
        for kind in ("weight", "bias")
        for name in (f"{theirs}.{kind}", f"{prefix}{theirs}.{kind}")
        if (weight := there.get(name)) is not None
    }
    model = built(CrossEncoder, saved.config, own | {INNER + name: w for name, w in saved.weights.items()}, directory)
    model.mean = read_config(directory).get("classifier_pooling") == "mean"
    return model


def require_cross_encoder(directory: Path) -> None:
    """Raise a UserError where a directory is none: of another class, with more labels than one, or with steps behind it
    that are not here."""
    config, classes = read_config(directory), architectures(directory)
    if not any(name.endswith(ENDING) for name in classes):
        named = ", ".join(classes) or "no class"
        raise UserError(
            f"{directory} is no cross-encoder, whose class is a …{ENDING} ({CONFIG} names {named}); give one such as "
            "sentence-transformers' CrossEncoder saves."
        )
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count != 1:
        raise UserError(
            f"{directory} tells {count} labels apart, and what reranks gives one score; give one that does."
        )
    steps = read_json_list(directory / MODULES) if (directory / MODULES).exists() else []
    if any(str(step.get("type")).rpartition(".")[2] != "Transformer" for step in steps):
        raise UserError(f"{directory} has steps behind its network, which are not read; give a cross-encoder without.")
    if _said(directory, SETTINGS).get("default_prompt_name") is not None:
        raise UserError(f"{directory} puts a prompt before what it reads, which is not done here; give one without.")


def last_activation(directory: Path) -> Callable[[Tensor], Tensor]:
    """What the directory says stands behind the score: a sigmoid, which is the default, or nothing. Raises UserError
    where it is anything else."""
    config = read_config(directory)
    nested = config.get("sentence_transformers")
    said = [
        _said(directory, SETTINGS).get("activation_fn"),
        nested.get("activation_fn") if isinstance(nested, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    ]
    named: Any = next((name for name in said if name is not None), f"torch.nn.{SIGMOID}")
    library, _, kind = str(named).rpartition(".")
    if kind not in LAST or not library.startswith("torch.nn"):
        raise UserError(
            f"{directory} has {named} behind its score; only {' and '.join(LAST)} of torch can be computed."
        )
    return LAST[kind]


def pair_window(directory: Path, window: int) -> int:
    """The tokens of a pair that are read by a network with a window: as few as the files of its tokenizer say."""
    for name, key in ((LENGTH, "max_seq_length"), (TOKENIZER, "model_max_length")):
        found = _said(directory, name).get(key)
        if found is None:
            continue
        if not number(found, SHORTEST + 1):
            raise broken(directory / name, key, found)
        return min(window, int(found))
    return window


def _said(directory: Path, name: str) -> dict[str, Any]:
    """What a file of a directory says; nothing where it is not there."""
    return read_json(directory / name) if (directory / name).is_file() else {}
