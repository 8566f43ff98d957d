"""An encoder as the Massive Text Embedding Benchmark takes a model (Muennighoff et al. 2023), without an export:

    mteb.evaluate(MtebModel("runs/emb"), tasks=mteb.get_tasks(["STSBenchmark"]))

mteb is no dependency; what is here has the methods of its `EncoderProtocol` (of version 2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from selfsup.errors import UserError
from selfsup.inference.geometry import normalised
from selfsup.inference.items import Vectors
from selfsup.inference.opening import open_embedder
from selfsup.inference.texts import Text


class MtebModel:
    """A model that makes vectors of texts: of a run, or of a model directory. Raises UserError where there is none.

    Args:
        model_name: the directory; revision: is not asked for, a directory has one only.
        precision: fp32, bf16, or auto, which is bf16 where the hardware multiplies it natively.
    """

    def __init__(
        self, model_name: str | Path, revision: str | None = None, *, device: str | None = None, precision: str = "auto"
    ) -> None:
        self.model: Any = open_embedder(model_name, device or "auto")
        if Text not in self.model.embeds:
            raise UserError(f"{model_name} holds {self.model.kind}, which reads no texts; give an encoder of texts.")
        self.precision = precision

    def encode(
        self, inputs: Iterable[Mapping[str, Sequence[str]]], *, prompt_type: Any = None, **_: object
    ) -> npt.NDArray[np.float32]:
        """The vectors (n, dimension) of the texts of batches, each under `text`.

        Before a text stands what the model has for queries or documents, where its type (`query` or `document`) is
        given. The task, its split and its subset change nothing.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        vectors: npt.NDArray[np.float32] = self.model.embed(texts, self.precision, prompt=prompt)
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines of each vector (n, d) with each other one (m, d): (n, m)."""
        return _units(embeddings1) @ _units(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines of vectors (n, d) and others (n, d), two by two: (n,)."""
        return (_units(embeddings1) * _units(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What is known of the model, an `mteb.ModelMeta`; the revision is the fingerprint of its weights."""
        from mteb.models.model_meta import ModelMeta

        known = {
            "name": f"selfsup/{os.path.basename(self.model.path)}",
            "revision": self.model.fingerprint,
            "embed_dim": self.model.dimension,
            "similarity_fn_name": "cosine",
            "framework": ["PyTorch"],
        }
        return ModelMeta.create_empty(known)


def _units(vectors: Any) -> torch.Tensor:
    array: Vectors = np.atleast_2d(torch.as_tensor(vectors).float().cpu().numpy())
    return normalised(array)
