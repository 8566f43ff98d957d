"""An encoder of texts in ONNX: tokens of texts that are padded behind their ends to vectors.

    input_ids, attention_mask (batch, sequence)  →  last_hidden_state (batch, sequence, width)
                                                    sentence_embedding (batch, dimension): what `selfsup embed` gives

The texts stand between what the tokenizer of the model directory puts around them. The metadata of the file says what
was done to the hidden states, and what is put before a text (`features`), as JSON.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.exporting.onnx.graphs import Exportable
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.parity import LONG, SAMPLES
from selfsup.models.encoder import TextEncoder
from selfsup.models.packing import padded
from selfsup.models.parity import Difference


class TextGraph(Exportable):
    """Tokens to hidden states and vectors. Raises UserError where the encoder is no network of selfsup's."""

    inputs = ("input_ids", "attention_mask")
    outputs = ("last_hidden_state", "sentence_embedding")
    given = "{'input_ids': ids, 'attention_mask': mask}"

    def __init__(self, model: EncoderModel) -> None:
        super().__init__()
        if not isinstance(model.network, TextEncoder):
            raise UserError(
                f"{model.path} holds {type(model.network).__name__}, which is not written as ONNX here; "
                "export it --to sentence-transformers, and have optimum write it."
            )
        self.model, self.encoder, self.features = model, model.network, model.features
        features = self.features
        told = {"pooling": features.pooling, "mapped": features.weight is not None, "kept": features.kept}
        put = {"prompts": dict(features.prompts), "default_prompt": features.default_prompt}
        self.about = {"features": told | put}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        shown = torch.ones_like(attention_mask) if self.encoder.config.padded else attention_mask
        states = self.encoder.padded(input_ids, shown)
        return states, self.features.map(self._pooled(states, shown))

    def _pooled(self, states: Tensor, shown: Tensor) -> Tensor:
        if self.features.pooling == "cls":
            return states[:, 0]
        lengths = shown.sum(1, keepdim=True)
        if self.features.pooling == "last":
            last = (lengths - 1)[:, :, None].expand(-1, -1, states.shape[2])
            return states.gather(1, last)[:, 0]  # take_along_dim would fix the sizes of the graph
        return (states * shown[:, :, None]).sum(1) / lengths

    def example(self) -> tuple[Any, ...]:
        return torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)

    def shapes(self) -> tuple[Any, ...]:
        return ({0: "batch", 1: "sequence"},) * 2

    @torch.inference_mode()
    def compare(self, session: Any) -> Difference:
        """On texts of several lengths together, and on one alone."""
        model = self.model
        room, texts = model.tokenizer.room(model.window), [*SAMPLES, LONG]
        rows = [model.tokenizer.frame(ids[:room]) for ids in model.tokenizer.encode_batch(texts)]
        found = [self.run(session, batch) for batch in (rows, rows[:1])]
        vectors = np.concatenate([vectors for _, vectors in found])
        expected = model.embed_framed([*rows, rows[0]], "fp32")
        differences = [Difference.between(torch.from_numpy(expected), torch.from_numpy(vectors))]
        for number, row in enumerate(rows):
            alone = self.encoder(torch.from_numpy(row.astype(np.int64))[None])[0]
            differences.append(Difference.between(alone, torch.from_numpy(found[0][0][number, : len(row)])))
        return Difference.largest(differences)

    def run(self, session: Any, rows: list[Any]) -> Any:
        """Hidden states and vectors of texts that are tokens."""
        ids = padded(rows, self.model.tokenizer.pad or 0)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return session.run(list(self.outputs), {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
