"""From logits to the next token: the filters of `transformers`, and a draw that depends only on its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.seeding import derive

LEAST = 1e-4  # temperature above 0; and repetition penalty, with its inverse as the most


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token. Temperature 0 takes the likeliest; None leaves a filter out.

    Raises UserError for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        k, p, least, penalty = self.top_k, self.top_p, self.min_p, self.repetition_penalty
        ranges = {  # of a temperature below `LEAST`, a division would overflow
            "temperature": (self.temperature == 0 or LEAST <= self.temperature < math.inf, f"0, or {LEAST:g} or above"),
            "top_k": (k is None or k >= 1, "1 or above"),
            "top_p": (p is None or 0 < p <= 1, "above 0 and at most 1"),
            "min_p": (least is None or 0 <= least <= 1, "between 0 and 1"),
            "repetition_penalty": (LEAST <= penalty <= 1 / LEAST, f"{LEAST:g} to {1 / LEAST:g} (1 for none)"),
        }
        for name, (holds, allowed) in ranges.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}; set it {allowed}")


class Place(NamedTuple):
    """Where a token is drawn: by which seed, of which prompt, and how many of its text were drawn before."""

    seed: int
    prompt: int
    position: int


def choose(logits: Tensor, how: Sampling, places: Sequence[Place], seen: Tensor | None = None) -> Tensor:
    """The next token of each row, (B,), of logits (B, V). `seen` (B, V) are the tokens met so far, which the penalty
    needs. Raises UserError where the logits are no numbers."""
    if logits.isnan().any():
        raise UserError("what the model predicts is no number: its weights are damaged, or its training diverged")
    if seen is not None:
        logits = penalise_repetition(logits, seen, how.repetition_penalty)
    if how.temperature == 0:
        return logits.argmax(-1)
    return sample(distribution(logits, how), places)


def distribution(logits: Tensor, how: Sampling) -> Tensor:
    """Probabilities (B, V) after temperature (above 0), top-k, top-p and min-p, in this order."""
    logits = logits / how.temperature
    if how.top_k is not None:
        logits = keep_top_k(logits, how.top_k)
    if how.top_p is not None:
        logits = keep_top_p(logits, how.top_p)
    if how.min_p is not None:
        logits = keep_min_p(logits, how.min_p)
    return logits.softmax(-1)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits (B, V) of tokens where seen (B, V) is true (Keskar et al. 2019, CTRL, section 4.1)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest logits of each row, and what ties with the smallest of them."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the fewest likeliest tokens whose probabilities reach p together (Holtzman et al. 2020)."""
    ascending, tokens = logits.sort(dim=-1)
    tail = ascending.softmax(-1).cumsum(-1) <= 1 - p
    tail[:, -1] = False
    return logits.masked_fill(tail.scatter(1, tokens, tail), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens at least p times as likely as the likeliest (Nguyen et al. 2024)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def sample(probabilities: Tensor, places: Sequence[Place]) -> Tensor:
    """One token per row of probabilities (B, V), as (B,): a pure function of the row and its place.

    The draw inverts the cumulative distribution at one uniform number, so rows share nothing.
    """
    # 48 bits: below 1 by more than fp64 rounds off, so that a point always lies inside some token's interval.
    uniforms = [(derive(seed, "sample", prompt, position) >> 15) / 2**48 for seed, prompt, position in places]
    cumulative = probabilities.double().cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=probabilities.device)[:, None]
    return torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).squeeze(1)
