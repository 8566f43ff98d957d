"""The light decoder of a masked autoencoder: from encoded visible patches to the pixels of hidden ones.

(He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3.) It serves training, and pictures of
what a model fills in; what a user keeps is the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.models.attention import attention, split
from selfsup.models.counting import Kept, flops_per_token, kept_per_token, matrix_parameters
from selfsup.models.directories import read_json, read_safetensors, write_json
from selfsup.models.huggingface import built, write_weights
from selfsup.models.kernels import project
from selfsup.models.layouts import Layout, at
from selfsup.models.transformer import LayerNorm, Linear, Stacked, TensorModule, compute_dtype, fill, unset
from selfsup.models.vision import CHANNELS, tiles

HEAD_DIM = 32
THETA = 10000.0
CONFIG, WEIGHTS = "decoder.json", "decoder.safetensors"


@dataclass(frozen=True)
class PixelDecoderConfig:
    """All that determines a decoder but its weights, and the share of the patches it was trained to fill in."""

    encoder: int  # width of the encoded patches
    width: int
    layers: int
    patch: int  # pixels along a side
    hidden: float  # share of the patches
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % HEAD_DIM:
            raise ValueError(f"width ({self.width}) must be a multiple of {HEAD_DIM}, the width of a head")
        if not 0 < self.hidden < 1:
            raise ValueError(f"hidden ({self.hidden}) must be a share of the patches, and not all of them")

    @property
    def values(self) -> int:
        """In a patch."""
        return CHANNELS * self.patch**2


LAYOUT = Layout(PixelDecoderConfig, {field.name: at(field.name) for field in fields(PixelDecoderConfig)})


class Block(TensorModule):
    """Attention among all patches, then a feed-forward of four times the width, each after a norm."""

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.heads = config.width // HEAD_DIM
        self.attention_norm = LayerNorm(config.width, config.norm_eps)
        self.qkv = Stacked(config.width, config.width, 3)
        self.out = Linear(config.width, config.width)
        self.mlp_norm = LayerNorm(config.width, config.norm_eps)
        self.up = Linear(config.width, 4 * config.width)
        self.down = Linear(4 * config.width, config.width)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        # Under autocast x stays in fp32 and everything between a norm and the sum is in the narrow dtype.
        q, k, v = (split(part, self.heads) for part in self.qkv(self.attention_norm(x, dtype)))
        x = x + project(attention(q, k, v), self.out.weight)[0]
        inner = F.gelu(project(self.mlp_norm(x, dtype), self.up.weight)[0])
        return x + project(inner, self.down.weight)[0]


class PixelDecoder(TensorModule):
    """Encoded visible patches to predicted hidden ones. Parameters are NaN until `initialise` or loading fills them."""

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Linear(config.encoder, config.width)
        self.mask_token = unset(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, config.norm_eps)
        self.head = Linear(config.width, config.values)

    def flops(self, visible: int, hidden: int) -> float:
        """Operations of forward and backward for an image of so many visible and hidden patches."""
        config, patches = self.config, visible + hidden
        per_patch = flops_per_token(matrix_parameters(self.blocks), config.layers, config.width, patches)
        ends = visible * matrix_parameters(self.embed) + hidden * matrix_parameters(self.head)
        return patches * per_patch + 6 * ends

    @property
    def kept(self) -> Kept:
        """What a layer keeps of a patch for its gradient."""
        width = self.config.width
        return kept_per_token(width, width, width, 4 * width, turned=False, gated=False)

    def initialise(self, generator: torch.Generator) -> PixelDecoder:
        """Fill the parameters, a pure function of the generator's state (see `transformer.fill`); returns self.

        Matrices that write to the residual stream and the head are zero, so that at first each patch is predicted by
        its mean.
        """
        zeros = dict.fromkeys(("out.weight", "down.weight", "head.weight"), 0.0)
        fill(self, generator, zeros, {"mask_token": 0.02})
        return self

    def forward(self, encoded: Tensor, visible: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predicted values of the hidden patches (B, M, 3 · patch²), in the order of `patches`.

        Args:
            encoded: (B, K, encoder) the visible patches.
            visible, hidden: (B, K) and (B, M), where in the grid (rows, columns) they lie, counted along rows.
        """
        dtype = compute_dtype(self.norm.weight)
        places = sin_cos(grid, self.config.width, self.norm.weight.dtype, encoded.device)
        with torch.autocast(encoded.device.type, enabled=False):  # from here on each dtype is chosen by hand
            shown = project(encoded.to(dtype), self.embed.weight)[0] + places[visible]
            x = torch.cat((shown, self.mask_token + places[hidden]), 1)
            for block in self.blocks:
                x = block(x, dtype)
            return project(self.norm(x[:, visible.shape[1] :], dtype), self.head.weight)[0]


def sin_cos(grid: tuple[int, int], width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fixed positions (rows · columns, width), a quarter each: sines and cosines of the column, then of the row.

    Frequency i is 10000^(−4i / width) (Vaswani et al. 2017, section 3.5, for two dimensions).
    """
    frequencies = THETA ** -(torch.arange(0, width, 4, device=device, dtype=dtype) / width)
    row, column = (torch.outer(torch.arange(n, device=device, dtype=dtype), frequencies) for n in grid)
    row, column = row[:, None].expand(-1, grid[1], -1), column[None].expand(grid[0], -1, -1)
    return torch.cat((column.sin(), column.cos(), row.sin(), row.cos()), 2).flatten(0, 1)


def patches(pixels: Tensor, patch: int) -> Tensor:
    """Pixels (B, 3, H, W) cut into (B, P, 3 · patch²): patches along rows, values as (channel, row, column)."""
    return tiles(pixels, patch).flatten(3).flatten(1, 2)


def assembled(values: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patches`."""
    cut = values.view(len(values), *grid, -1, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def select(values: Tensor, places: Tensor) -> Tensor:
    """Of patches (B, P, D) those at places (B, K): (B, K, D)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def save_decoder(decoder: PixelDecoder, directory: Path) -> None:
    """Put a decoder beside its encoder, into a directory that exists."""
    write_weights(directory / WEIGHTS, decoder.state_dict())
    write_json(directory / CONFIG, LAYOUT.write(decoder.config))


def holds_decoder(directory: Path) -> bool:
    """Whether a decoder lies in a directory of a model."""
    return (directory / CONFIG).exists()


def read_decoder(directory: Path) -> PixelDecoder:
    """The decoder that `save_decoder` left. Raises UserError where there is none, or it is damaged."""
    if not holds_decoder(directory):
        raise UserError(f"{directory} holds no decoder that fills in pixels; name a run of mae")
    config = LAYOUT.read(read_json(directory / CONFIG), directory / CONFIG)
    return built(PixelDecoder, config, read_safetensors(directory / WEIGHTS), directory)
