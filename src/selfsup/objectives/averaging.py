"""The average of the weights that a run starts from and those it ends with (WiSE-FT): often as good on the new data,
and better on all other (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

MIXES = tuple(tenth / 10 for tenth in range(11))  # shares of the end that are tried
FORGOTTEN = 0.01  # of the start's loss on what is replayed, that a mix may be worse by


class Tried(NamedTuple):
    """A mix, and what it costs on held-out records: of the new data, and of what is replayed, if anything is."""

    share: float
    loss: float
    replay_loss: float | None

    @property
    def told(self) -> str:
        beside = "" if self.replay_loss is None else f" and {self.replay_loss:.4f} on what is replayed"
        return f"{self.share:.0%} of the end {self.loss:.4f}{beside}"


def choose(tried: Sequence[Tried]) -> Tried:
    """Of mixes that begin with the start itself: the one with the lowest loss on the new data, among those whose loss
    on what is replayed is at most a hundredth above the start's; of equals the one nearest to the start."""
    start = tried[0].replay_loss
    most = math.inf if start is None else start + FORGOTTEN * abs(start)
    allowed = [mix for mix in tried if mix.replay_loss is None or mix.replay_loss <= most]
    return min([mix for mix in allowed if math.isfinite(mix.loss)] or [tried[0]], key=lambda mix: mix.loss)


class Averages:
    """The weights between a start and an end.

    θ = (1 − share) · θ_start + share · θ_end, for all parameters that were started from weights. An adapter B A is
    scaled: its B starts at zero and takes the share, and its A stays that of the end.

    Args:
        ended: parameters as a run ended with them, by name; they are changed by `mix`.
        started: the same as the run began with them.
    """

    def __init__(self, ended: Iterable[tuple[str, nn.Parameter]], started: Iterable[nn.Parameter]) -> None:
        pairs = [(p, s.detach()) for (name, p), s in zip(ended, started, strict=True) if ".lora_A." not in name]
        self._moved = [(p, s, p.detach().clone()) for p, s in pairs if not torch.equal(p, s)]

    @torch.no_grad()
    def mix(self, share: float) -> None:
        """Put the weights where they have this share of the end; at 0 and 1 they are start and end to the bit."""
        for parameter, start, end in self._moved:
            torch.lerp(start, end, share, out=parameter)
