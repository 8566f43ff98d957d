"""How rotary positions are scaled for longer windows, by the names that files have for it.

What comes of it is a `Rotation`: by what the speeds are divided at which the pairs of a head turn, and by what queries
and keys grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from selfsup.models.decoder import UNSCALED, Rotation
from selfsup.models.layouts import Said


def linear(said: Said, dim: int, theta: float) -> Rotation:
    """All positions are divided by the factor (Chen et al. 2023, arXiv:2306.15595)."""
    return Rotation((said.number("factor"),) * (dim // 2))


def llama3(said: Said, dim: int, theta: float) -> Rotation:
    """Slow pairs are divided by the factor, fast ones left alone, and those between are in between (Llama 3.1)."""
    low, high, factor = said.number("low_freq_factor"), said.number("high_freq_factor"), said.number("factor")

    def divisor(pair: int) -> float:
        turns = said.number("original_max_position_embeddings") * _speed(pair, dim, theta) / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        return _between(share, factor)

    return Rotation(tuple(map(divisor, range(dim // 2))))


def yarn(said: Said, dim: int, theta: float) -> Rotation:
    """As `llama3`, with a ramp over the numbers of the pairs, and queries and keys grow (Peng et al. 2023,
    arXiv:2309.00071, sections 3.2 and 3.4)."""
    factor, original = said.number("factor"), said.number("original_max_position_embeddings")

    def pair(turns: float) -> float:
        """The one that turns so often in the original window."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(said.number("beta_fast", 32.0)), pair(said.number("beta_slow", 1.0))
    if said.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    divisors = tuple(_between(1 - min(1.0, max(0.0, (n - low) / width)), factor) for n in range(dim // 2))
    return Rotation(divisors, _growth(said))


def _growth(said: Said) -> float:
    factor = said.number("factor")
    if said.get("attention_factor") is not None:
        return said.number("attention_factor")
    if said.get("mscale") and said.get("mscale_all_dim"):
        return _logarithmic(factor, said.number("mscale")) / _logarithmic(factor, said.number("mscale_all_dim"))
    return _logarithmic(factor, 1.0)


def _logarithmic(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _speed(pair: int, dim: int, theta: float) -> float:
    return float(theta ** (-2 * pair / dim))


def _between(share: float, factor: float) -> float:
    """The divisor of a pair of whose speed a share is left as it is."""
    return 1 / ((1 - share) / factor + share)


# By name: what the file says of rotary positions, the width of a head and theta, to a `Rotation`.
SCALINGS: dict[str, Callable[[Said, int, float], Rotation]] = {
    "default": lambda said, dim, theta: UNSCALED,
    "linear": linear,
    "llama3": llama3,
    "yarn": yarn,
}
