"""What student and teacher are made of, and how the teacher follows (Caron et al. 2021, "DINO")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.backbones import AnyBackbone, see
from selfsup.models.losses import at_least_single
from selfsup.models.vision import VisionTransformer

LONGEST_MEMORY = 250.0  # steps: a momentum of .996, what DINO begins with


class Head(nn.Module):
    """Three layers to vectors of length 1, and the prototypes they are compared with (Caron et al. 2021, section 3.1).

    Args:
        normalised: whether prototypes have length 1: weight norm with its gain fixed.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, normalised: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.full((prototypes, bottleneck), torch.nan))
        self.normalised = normalised

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Head:
        """Matrices are unit in, unit out, biases zero, prototypes of any direction and length 1; returns self."""
        for parameter in self.layers.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        self.prototypes.copy_(F.normalize(self.prototypes.normal_(generator=generator), dim=-1))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(n, width) → (n, bottleneck), of length 1, in the precision of the products."""
        x = self.layers(x)
        return F.normalize(at_least_single(x), dim=-1).to(x.dtype)

    def directions(self) -> Tensor:
        """The prototypes (K, bottleneck), as vectors are compared with them."""
        return F.normalize(self.prototypes, dim=-1) if self.normalised else self.prototypes


class Network(nn.Module):
    """What student and teacher are made of: a backbone and a head that serves class tokens and patches alike."""

    def __init__(self, backbone: AnyBackbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def see(self, pixels: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class tokens (B, width) and patches (B, P, width), `hidden` (B, P) of them hidden.

        Of a network without a class token, or with a norm of its own for it, that is what says most of a whole image;
        one that gives one vector per image has that for a class token, and no patches: (B, 0, width).
        """
        network = self.backbone
        summary = network.config.summary if isinstance(network, VisionTransformer) else "cls"
        vectors, patches = see(network, pixels, summary, hidden)
        return vectors.to(patches.dtype), patches


@dataclass(frozen=True)
class Teaching:
    """What of the teacher follows the run; shares are of its steps, so that every length has the same course.

    Attributes:
        targets: how its logits become targets.
        temperatures: of its softmax, at first and from the end of the warm-up on.
        warmup: share of the run in which the temperature rises in a straight line.
        memory: share of the run that the teacher averages the student over at first; by the end it stands still.
        frozen: share of the run in which the student's prototypes stay what they were.
    """

    targets: Literal["sinkhorn", "centring"]
    temperatures: tuple[float, float]
    warmup: float
    memory: float
    frozen: float

    def temperature(self, done: float) -> float:
        """Where the share `done` of the run lies behind."""
        first, last = self.temperatures
        return first + (last - first) * (min(1.0, done / self.warmup) if self.warmup else 1.0)

    def momentum(self, step: int, steps: int) -> float:
        """Of the teacher in update number `step`: from its first value to 1 along a cosine (section 3.1).

        At first 1 / (1 − momentum) is `memory` of the run: .996 over a thousand steps would hardly leave the start.
        """
        memory = min(max(self.memory * steps, 1.0), LONGEST_MEMORY)
        return 1 - (1 + math.cos(math.pi * min(1.0, step / steps))) / 2 / memory
