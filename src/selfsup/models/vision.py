"""A vision transformer: pixels to one vector per patch and one for the image, at any size that the patch divides.

The architecture is DINOv3's (Siméoni et al. 2025, section 3.2): class and register tokens before the patches, rotary
positions on both axes of the patches (Heo et al. 2024, "Rotary Position Embedding for Vision Transformer"), LayerScale
(Touvron et al. 2021, "Going deeper with Image Transformers", equation 4), a plain feed-forward with GELU, and no
bias in the keys. Parameters have the names of transformers' DINOv3ViTModel in its files, so that what is saved opens
there; saving and loading is `models/dinov3.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.attention import Placement, attention, split
from selfsup.models.counting import flops_per_token, matrix_parameters
from selfsup.models.kernels import affine, tables
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.transformer import LayerNorm, Linear, TensorModule, compute_dtype, fill, unset

CHANNELS = 3
TOKEN_SCALE = 0.02  # deviation of fresh class, register and mask tokens


@dataclass(frozen=True)
class VisionConfig:
    """All that determines a vision transformer but its weights. `size` is the side of the images it is trained on."""

    size: int
    patch: int
    layers: int
    width: int
    heads: int
    mlp: int
    registers: int = 4
    layer_scale: float = 1.0  # what fresh LayerScales are filled with
    rope_theta: float = 100.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            shape = f"width ({self.width}) must be a multiple of four times heads ({self.heads})"
            raise ValueError(f"{shape}: rotary positions turn pairs on two axes")
        self.grid(self.size, self.size)

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.registers

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image; raises ValueError where the patch does not divide it."""
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height} × {width} pixels cannot be cut into patches of {self.patch} × {self.patch}"
            )
        return height // self.patch, width // self.patch


class LayerScale(nn.Module):
    """A factor for each channel, before a residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = unset(width)

    def into(self, part: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of λ (M x + b), for a map M x + b: a pass over a matrix in place of one over activations."""
        return self.lambda1[:, None] * part.weight, self.lambda1 * part.bias


@lru_cache(maxsize=64)
def kept_rotation(config: VisionConfig, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Placement:
    """`axial_rotation`, computed once."""
    with torch.inference_mode(False), torch.no_grad():  # what is kept must serve training too
        return axial_rotation(config, grid, dtype, device)


def axial_rotation(config: VisionConfig, grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Placement:
    """The rotation of a grid of patches, row by row, behind the tokens before them, which are not turned.

    The centres of the patches have coordinates in [−1, 1]; the first half of the pairs i turns by
    2π · y · theta^(−4i/dim), the second by 2π · x · theta^(−4i/dim). The angles are fp32 (or `dtype`, if wider).
    """
    wide = torch.promote_types(dtype, torch.float32)
    centres = [(torch.arange(n, device=device, dtype=wide) + 0.5) / n * 2 - 1 for n in grid]
    places = torch.stack(torch.meshgrid(*centres, indexing="ij"), -1).flatten(0, 1)
    exponents = torch.arange(config.head_dim // 4, device=device, dtype=wide) * 4 / config.head_dim
    angles = (2 * math.pi * places[:, :, None] * config.rope_theta**-exponents).flatten(1)
    return Placement(*tables(F.pad(angles, (0, 0, config.prefix, 0)), dtype))


def tiles(pixels: Tensor, patch: int) -> Tensor:
    """Pixels (B, 3, H, W) cut into (B, rows, columns, 3, patch, patch)."""
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5)


class PatchEmbedding(TensorModule):
    """A convolution of stride `patch`, weight (width, 3, patch, patch), as one product with the patches' pixels."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.weight = unset(config.width, CHANNELS, config.patch, config.patch)
        self.bias = unset(config.width)

    def forward(self, pixels: Tensor, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, P, width), or of the visible (B, K) patches only."""
        cut = tiles(pixels, self.weight.shape[-1])
        if visible is None:
            chosen = cut.flatten(1, 2)
        else:
            images, columns = torch.arange(len(pixels), device=pixels.device)[:, None], cut.shape[2]
            chosen = cut[images, visible // columns, visible % columns]
        return affine(chosen.flatten(2).to(dtype), (self.weight.flatten(1), self.bias))[0]


class Embeddings(TensorModule):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.cls_token = unset(1, 1, config.width)
        self.mask_token = unset(1, 1, config.width)
        self.register_tokens = unset(1, config.registers, config.width)
        self.patch_embeddings = PatchEmbedding(config)

    def forward(self, pixels: Tensor, hidden: Tensor | None, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
        patches = self.patch_embeddings(pixels, visible, dtype)
        if hidden is not None:
            patches = torch.where(hidden[..., None], self.mask_token.to(patches.dtype), patches)
        # The shape, for len() would be a constant in an exported graph.
        prefix = torch.cat((self.cls_token, self.register_tokens), 1).expand(pixels.shape[0], -1, -1)
        return torch.cat((prefix, patches.to(prefix.dtype)), 1)


class Attention(TensorModule):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = Linear(config.width, config.width, bias=True)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width, bias=True)
        self.o_proj = Linear(config.width, config.width, bias=True)

    def forward(self, x: Tensor, scale: LayerScale, placement: Placement) -> Tensor:
        """The result comes scaled."""
        q, k, v = affine(x, *((part.weight, part.bias) for part in (self.q_proj, self.k_proj, self.v_proj)))
        seen = attention(placement.turned(q), placement.turned(k), split(v, self.heads))
        return affine(seen, scale.into(self.o_proj))[0]


class FeedForward(TensorModule):
    """down(gelu(up x))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.up_proj = Linear(config.width, config.mlp, bias=True)
        self.down_proj = Linear(config.mlp, config.width, bias=True)

    def forward(self, x: Tensor, scale: LayerScale) -> Tensor:
        """The result comes scaled."""
        inner = affine(x, (self.up_proj.weight, self.up_proj.bias))[0]
        return affine(F.gelu(inner), scale.into(self.down_proj))[0]


class Block(TensorModule):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, config.norm_eps, bias=True)
        self.attention = Attention(config)
        self.layer_scale1 = LayerScale(config.width)
        self.norm2 = LayerNorm(config.width, config.norm_eps, bias=True)
        self.mlp = FeedForward(config)
        self.layer_scale2 = LayerScale(config.width)

    def forward(self, x: Tensor, placement: Placement) -> Tensor:
        # Under autocast x stays in fp32 and everything between a norm and the sum is in the narrow dtype.
        x = x + self.attention(self.norm1(x, placement.dtype), self.layer_scale1, placement)
        return x + self.mlp(self.norm2(x, placement.dtype), self.layer_scale2)


class VisionTransformer(TensorModule):
    """Pixels to hidden states. Parameters are NaN until `initialise` or loading fills them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layer = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, config.norm_eps, bias=True)

    def flops(self, size: int, visible: int | None = None) -> float:
        """Operations of forward and backward for an image of `size` × `size` pixels, or for so many patches of it."""
        config = self.config
        patches = math.prod(config.grid(size, size)) if visible is None else visible
        tokens = config.prefix + patches
        per_token = flops_per_token(matrix_parameters(self.layer), config.layers, config.width, tokens)
        return tokens * per_token + 6 * patches * matrix_parameters(self.embeddings.patch_embeddings)

    def initialise(self, generator: torch.Generator) -> VisionTransformer:
        """Fill the parameters, a pure function of the generator's state (see `transformer.fill`); returns self.

        LayerScales are as the config says. Class and register tokens are small beside the patches, so that what a fresh
        network puts there comes from the image.
        """
        scales, tokens = {"lambda1": self.config.layer_scale}, dict.fromkeys(("token", "tokens"), TOKEN_SCALE)
        fill(self, generator, scales, tokens)
        return self

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Hidden states after the last norm, (B, 1 + registers + P, width): class token, registers, patches by row.

        Args:
            pixels: (B, 3, H, W), normalised.
            hidden: (B, P) bool; these patches are replaced by the mask token.
            visible: (B, K) int64; only these patches are computed, in this order and at their own positions, and the
                result is (B, 1 + registers + K, width). Not together with `hidden`.

        Under autocast the result has the narrow dtype. Raises ValueError where the patch does not divide H and W.
        """
        config, dtype = self.config, compute_dtype(self.norm.weight)
        placement = kept_rotation(config, config.grid(*pixels.shape[2:]), dtype, pixels.device)
        if visible is not None:
            before = torch.arange(config.prefix, device=visible.device).expand(len(visible), -1)
            shown = torch.cat((before, visible + config.prefix), 1)
            placement = Placement(placement.cos[shown], placement.sin[shown])
        with torch.autocast(pixels.device.type, enabled=False):  # from here on each dtype is chosen by hand
            return self.states(self.embeddings(pixels, hidden, visible, dtype), placement)

    def states(self, x: Tensor, placement: Placement) -> Tensor:
        """Hidden states after the last norm, of embedded tokens (B, T, width)."""
        for block in self.layer:
            x = block(x, placement)
        return self.norm(x, placement.dtype)

    @property
    def dimension(self) -> int:
        """Of the vector of an image."""
        return self.config.width

    def embed(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """One vector per image, (B, width), in fp32 or wider: see `pool`."""
        return pool(self(pixels), self.config.prefix, pooling)

    def vectors(self) -> Iterable[nn.Parameter]:
        """Parameters of more than one dimension that are lists of vectors rather than maps."""
        return self.embeddings.cls_token, self.embeddings.mask_token, self.embeddings.register_tokens


def pool(states: Tensor, prefix: int, pooling: Pooling) -> Tensor:
    """One vector per image, (B, width) in fp32 or wider, of hidden states (B, prefix + P, width): that of the class
    token, or the mean of the patches."""
    return at_least_single(states[:, 0]) if pooling == "cls" else at_least_single(states[:, prefix:]).mean(1)
