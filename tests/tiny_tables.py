"""Tiny tables of token vectors, as directories of sentence-transformers and of model2vec."""

from __future__ import annotations

import json
from pathlib import Path

import foreign
import numpy as np
import torch
from safetensors.torch import save_file

STEP = "sentence_transformers.models.StaticEmbedding"
WIDTH = 8


def table(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def public(directory: Path, place: str = "0_StaticEmbedding", longest: int | None = None) -> Path:
    """In the layout of public ones: the table in a directory of its own, or at the root."""
    tokenizer = foreign.wordpiece_tokenizer()
    (directory / place).mkdir(parents=True)
    step = {"idx": 0, "name": "0", "path": place, "type": STEP}
    (directory / "modules.json").write_text(json.dumps([step]))
    save_file({"embedding.weight": table(len(tokenizer))}, directory / place / "model.safetensors")
    backend = tokenizer.backend_tokenizer
    if longest is not None:
        backend.enable_truncation(longest)
    backend.save(str(directory / place / "tokenizer.json"))
    return directory


def model2vec(directory: Path, mapped: bool = True) -> Path:
    """As model2vec leaves it: tokens that share rows, and what each weighs."""
    tokenizer = foreign.wordpiece_tokenizer()
    directory.mkdir(parents=True)
    count, draws = len(tokenizer), np.random.default_rng(0)
    tensors = {"embeddings": table(count)}
    if mapped:
        tensors = {"embeddings": table(5), "mapping": torch.from_numpy(draws.integers(0, 5, count))}
        tensors["weights"] = torch.from_numpy(draws.random(count))
    save_file(tensors, directory / "model.safetensors")
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True, "hidden_dim": WIDTH}
    (directory / "config.json").write_text(json.dumps(config))
    steps = [("StaticEmbedding", "."), ("Normalize", "1_Normalize")]
    named = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(steps)
    ]
    (directory / "modules.json").write_text(json.dumps(named))
    return directory
