"""A cross-encoder with its tokenizer: how well passages answer a query, each read together with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.base import require_room
from selfsup.inference.items import silent
from selfsup.machine import Machine, find_device, find_precision
from selfsup.models.adapters import AdaptedCrossEncoder, open_cross_encoder
from selfsup.models.cross_encoder import (
    CrossEncoder,
    last_activation,
    pair_window,
    read_cross_encoder,
    require_cross_encoder,
)
from selfsup.models.directories import find_model
from selfsup.models.packing import padded, side_by_side
from selfsup.report import Progress

PLACES = 8192  # of tokens that are read at once, padding included


class CrossEncoderModel:
    """A cross-encoder, its tokenizer, and what is done to its scores.

    Attributes:
        path: of the directory that it was opened from, absolute.
        window: tokens that are read of a query and a passage together.
        truncated: pairs of the last `score` that were longer.
        precision: fp32 or bf16, in which they were read.
    """

    def __init__(
        self,
        network: CrossEncoder | AdaptedCrossEncoder,
        tokenizer: TextTokenizer,
        window: int,
        activation: Callable[[Tensor], Tensor],
        path: str,
    ) -> None:
        self.path = path
        self.network, self.tokenizer, self.window = network.eval(), tokenizer, window
        self.truncated, self.precision = 0, "fp32"
        self._activation = activation

    @classmethod
    def open(cls, path: str | Path, device: str = "auto") -> Self:
        """That of a directory, where it is to compute: with the network here where that computes the same, else with
        that of transformers. Raises UserError where there is none."""
        directory = find_model(path)
        require_cross_encoder(directory)
        activation = last_activation(directory)
        network = read_cross_encoder(directory) or open_cross_encoder(directory)
        tokenizer = load_tokenizer(directory, "encoder")
        if isinstance(network, CrossEncoder):
            config = network.config
            require_room(tokenizer, config.vocabulary, directory, "cross-encoder")
            longest = min(config.window, config.longest or config.window)
        else:
            longest = network.window
        network.to(find_device(device))
        return cls(network, tokenizer, pair_window(directory, longest), activation, os.path.abspath(expanded(path)))

    def score(
        self, query: str, passages: Sequence[str], precision: str = "auto", progress: Progress = silent
    ) -> npt.NDArray[np.float32]:
        """How well each passage answers the query, (n,), as sentence-transformers says it: what `logits` gives, mostly
        squashed to lie between 0 and 1."""
        return self.squashed(self.logits(query, passages, precision, progress))

    def squashed(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What the directory says stands behind its network, of scores (n,)."""
        scores: npt.NDArray[np.float32] = self._activation(torch.from_numpy(logits)).numpy()
        return scores

    @torch.inference_mode()
    def logits(
        self, query: str, passages: Sequence[str], precision: str = "auto", progress: Progress = silent
    ) -> npt.NDArray[np.float32]:
        """How well each passage answers the query, (n,): more is better. What is too long loses its end, the longer of
        both first (`truncated` counts such pairs). Raises UserError where a number is not finite."""
        pairs = self.tokenizer.encode_pairs([(query, passage) for passage in passages], self.window)
        self.truncated = sum(cut for _, _, cut in pairs)
        device = next(self.network.parameters()).device
        self.precision = find_precision(precision, device)
        autocast = Machine(device, self.precision, 0.0).autocast
        scores = np.empty(len(pairs), np.float32)
        done = 0
        for numbers in side_by_side([len(ids) for ids, _, _ in pairs], PLACES):
            chosen = [pairs[number] for number in numbers]
            lengths = torch.tensor([len(ids) for ids, _, _ in chosen], device=device)
            tokens = padded([ids for ids, _, _ in chosen], self.tokenizer.pad or 0).to(device)
            types = padded([kinds for _, kinds, _ in chosen], 0).to(device)
            with autocast():
                found = self.network(tokens, lengths, types)
            scores[numbers] = found.cpu().numpy()
            done += len(numbers)
            progress(done, len(pairs))
        if not np.isfinite(scores).all():
            raise UserError(f"{self.path} gives scores that are not finite numbers; give another cross-encoder.")
        return scores
