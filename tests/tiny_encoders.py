"""Tiny text encoders of other people's classes, as directories that they wrote: every weight is drawn, so that a wrong
wiring shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import foreign
import torch
import transformers

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-6,
}
SLIM: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "activation": "relu"}
ROBERTA = {**SHAPE, "max_position_embeddings": 66, "type_vocab_size": 1, "hidden_act": "gelu"}
MODERN: dict[str, Any] = {
    **{key: SHAPE[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")},
    "max_position_embeddings": 64,
    "local_attention": 8,
    "global_attn_every_n_layers": 2,
}
# By their names here: the class, its configuration, whether the tokenizer is RoBERTa's.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": ("ModernBertForMaskedLM", MODERN),
    "bert": ("BertForMaskedLM", SHAPE | {"max_position_embeddings": 64}),
    "bert with two heads": ("BertForPreTraining", SHAPE | {"max_position_embeddings": 64, "hidden_act": "relu"}),
    "bert without a head": ("BertModel", SHAPE | {"max_position_embeddings": 64, "type_vocab_size": 3}),
    "classifier": ("BertForSequenceClassification", SHAPE | {"max_position_embeddings": 64}),
    "roberta": ("RobertaForMaskedLM", ROBERTA),
    "xlm-roberta": ("XLMRobertaForMaskedLM", ROBERTA | {"hidden_act": "gelu_fast"}),
    "camembert": ("CamembertForMaskedLM", ROBERTA),
    "distilbert": ("DistilBertForMaskedLM", SLIM | {"max_position_embeddings": 64}),
    "sentences": ("BertModel", SHAPE | {"max_position_embeddings": 64}),
}
# Of two texts, likewise.
PAIRED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", SHAPE | {"max_position_embeddings": 64}),
    "roberta": ("RobertaForSequenceClassification", ROBERTA),
    "xlm-roberta": ("XLMRobertaForSequenceClassification", ROBERTA | {"hidden_act": "gelu_fast"}),
    "camembert": ("CamembertForSequenceClassification", ROBERTA),
    "distilbert": ("DistilBertForSequenceClassification", SLIM | {"max_position_embeddings": 64}),
    "modernbert": ("ModernBertForSequenceClassification", MODERN | {"classifier_pooling": "mean"}),
    "modernbert by its first token": ("ModernBertForSequenceClassification", MODERN | {"classifier_pooling": "cls"}),
    "electra": ("ElectraForSequenceClassification", SHAPE | {"embedding_size": 16, "max_position_embeddings": 64}),
}
STEPS = ("Transformer", "Pooling", "Normalize")
PROMPTS = {"prompts": {"query": "find: "}, "default_prompt_name": None, "similarity_fn_name": "cosine"}


def save(name: str, directory: Path) -> Path:
    """One of `CLASSES`; that of `sentences` as a sentence-transformers directory that pools the first token."""
    _save(*CLASSES[name], directory)
    if name == "sentences":
        _write_steps(directory)
    return directory


def save_paired(name: str, directory: Path, labels: int = 1) -> Path:
    """One of `PAIRED`, with so many labels, that reads 48 tokens of a pair."""
    kind, settings = PAIRED[name]
    _save(kind, settings | {"num_labels": labels}, directory)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 48}))
    return directory


def _save(kind: str, settings: dict[str, Any], directory: Path) -> Path:
    bytewise = kind.startswith(("Roberta", "XLMRoberta", "Camembert"))
    tokenizer = foreign.roberta_tokenizer() if bytewise else foreign.wordpiece_tokenizer()
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    network = getattr(transformers, kind)
    torch.manual_seed(0)
    model = network(network.config_class(vocab_size=len(tokenizer), **ids | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(float(parameter.ndim == 1) / 2, 0.3)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _write_steps(directory: Path) -> None:
    steps = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(STEPS)
    ]
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    files = {
        "modules.json": steps,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": False},
        "config_sentence_transformers.json": PROMPTS,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
