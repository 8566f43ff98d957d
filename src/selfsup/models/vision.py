"""A vision transformer: pixels to one vector per patch and one for the image, at any size that the patch divides.

By default the architecture is DINOv3's (Siméoni et al. 2025, section 3.2): class and register tokens before the
patches, rotary positions on both axes of the patches (Heo et al. 2024, "Rotary Position Embedding for Vision
Transformer"), LayerScale (Touvron et al. 2021, "Going deeper with Image Transformers", equation 4), a plain
feed-forward with GELU, and no bias in the keys. What other vision transformers have otherwise are fields of the
configuration: positions that are learnt (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1), a
token that was distilled into (Touvron et al. 2021, "DeiT"), a norm before the first layer (Radford et al. 2021,
"CLIP"), attention that pools (Zhai et al. 2022, "Scaling Vision Transformers", section 2.2). Parameters have the names
of transformers' DINOv3ViTModel in its files; those of others stand in `models/vision_layouts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.attention import Placement, attention, split
from selfsup.models.counting import Kept, flops_per_token, kept_per_token, matrix_parameters
from selfsup.models.kernels import affine, tables
from selfsup.models.kinds import VISION
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.transformer import ACTIVATIONS, LayerNorm, Linear, Stacked, TensorModule, compute_dtype, fill, unset

CHANNELS = 3
TOKEN_SCALE = 0.02  # deviation of fresh class, register and mask tokens, and of positions
TABLES = ("token", "tokens", "position_embeddings", "probe")  # how names end of parameters that are lists of vectors
ROUNDED = 8  # hidden widths of gated feed-forwards are multiples of it where they follow from a ratio


@dataclass(frozen=True)
class VisionConfig:
    """All that determines a vision transformer but its weights.

    Attributes:
        size: the side of the images it is trained on; learnt positions are one for each patch of these.
        mlp: the hidden width of the feed-forward; it follows where `mlp_ratio` is above 0: that many times the width,
            of a gated one two thirds of it.
        registers: None where there is no place for any.
        layer_scale: what fresh LayerScales are filled with.
        layout: the `model_type` of the library whose files it comes from and goes to.
        learnt_positions: a vector for each patch is added to it, in place of rotary positions in each layer.
        antialias: learnt positions are smoothed where they are made fewer.
        distilled: a second token stands behind the class token.
        mask_token: what stands for hidden patches is learnt.
        pre_norm: a norm stands before the first layer too.
        pooled_norm: the last norm is that of the vector of an image, and hidden states are given without it.
        attention_pooling: a learnt query, which attends to all hidden states, makes the vector of an image.
        activation: a name of `ACTIVATIONS`; `gate_activation` that of a gate.
    """

    size: int
    patch: int
    layers: int
    width: int
    heads: int
    mlp: int
    registers: int | None = 4
    layer_scale: float = 1.0
    rope_theta: float = 100.0
    norm_eps: float = 1e-5
    layout: str = VISION
    learnt_positions: bool = False
    antialias: bool = False
    class_token: bool = True
    distilled: bool = False
    mask_token: bool = True
    pre_norm: bool = False
    pooled_norm: bool = False
    attention_pooling: bool = False
    scaled: bool = True
    gated: bool = False
    activation: str = "gelu"
    gate_activation: str = "gelu"
    patch_bias: bool = True
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    mlp_ratio: int = 0

    def __post_init__(self) -> None:
        if self.learnt_positions and self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if not self.learnt_positions and self.width % (4 * self.heads):
            shape = f"width ({self.width}) must be a multiple of four times heads ({self.heads})"
            raise ValueError(f"{shape}: rotary positions turn pairs on two axes")
        for name in (self.activation, self.gate_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"the activation {name!r} is none of {', '.join(ACTIVATIONS)}")
        if self.mlp_ratio:
            object.__setattr__(self, "mlp", self._mlp())
        self.grid(self.size, self.size)

    def _mlp(self) -> int:
        wide = self.mlp_ratio * self.width
        return -(-(wide * 2 // 3) // ROUNDED) * ROUNDED if self.gated else wide

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def own_tokens(self) -> int:
        """Tokens before the patches that positions are learnt for: the class token, and one distilled into."""
        return self.class_token + self.distilled

    @property
    def prefix(self) -> int:
        """Tokens before the patches: its own, and the registers."""
        return self.own_tokens + (self.registers or 0)

    @property
    def summary(self) -> Pooling:
        """What of the network says most of a whole image."""
        return self.poolings[0]

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The ways in which it can make one vector of an image."""
        ways: dict[Pooling, bool] = {"attention": self.attention_pooling, "cls": self.class_token, "mean": True}
        return tuple(way for way, known in ways.items() if known)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image; raises ValueError where the patch does not divide it. Networks with
        learnt positions pass over what is left on the right and at the bottom."""
        rows, columns = height // self.patch, width // self.patch
        left = (height % self.patch or width % self.patch) and not self.learnt_positions
        if left or not (rows and columns):
            raise ValueError(
                f"images of {height} × {width} pixels cannot be cut into patches of {self.patch} × {self.patch}"
            )
        return rows, columns


class LayerScale(nn.Module):
    """A factor for each channel, before a residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = unset(width)


def scaled(part: nn.Linear, scale: LayerScale | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of λ (M x + b), for a map M x + b: a pass over a matrix in place of one over activations."""
    if scale is None:
        return part.weight, part.bias
    return scale.lambda1[:, None] * part.weight, None if part.bias is None else scale.lambda1 * part.bias


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
    """Pixels (B, 3, H, W) cut into (B, rows, columns, 3, patch, patch); what lies beyond whole patches is cut off."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    pixels = pixels[:, :, : rows * patch, : columns * patch]
    cut = pixels.reshape(batch, channels, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5)


class PatchEmbedding(TensorModule):
    """A convolution of stride `patch`, weight (width, 3, patch, patch), as one product with the patches' pixels."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.weight = unset(config.width, CHANNELS, config.patch, config.patch)
        self.bias = unset(config.width) if config.patch_bias else None

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
        self.config, width = config, config.width
        self.cls_token = unset(1, 1, width) if config.class_token else None
        self.mask_token = unset(1, 1, width) if config.mask_token else None
        self.register_tokens = None if config.registers is None else unset(1, config.registers, width)
        self.patch_embeddings = PatchEmbedding(config)
        self.distillation_token = unset(1, 1, width) if config.distilled else None
        places = config.own_tokens + math.prod(config.grid(config.size, config.size))
        self.position_embeddings = unset(1, places, width) if config.learnt_positions else None

    def forward(self, pixels: Tensor, hidden: Tensor | None, visible: Tensor | None, dtype: torch.dtype) -> Tensor:
        patches = self.patch_embeddings(pixels, visible, dtype)
        if hidden is not None:
            assert self.mask_token is not None
            patches = torch.where(hidden[..., None], self.mask_token.to(patches.dtype), patches)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.distillation_token) if token is not None]
        if self.position_embeddings is not None:
            places, before = self.places(self.config.grid(*pixels.shape[2:])), len(prefix)
            prefix = [token + places[:, place : place + 1] for place, token in enumerate(prefix)]
            patches = patches.to(places.dtype) + (
                places[:, before:] if visible is None else places[0, before:][visible]
            )
        if self.register_tokens is not None:
            prefix.append(self.register_tokens)
        if not prefix:
            return patches
        # The shape, for len() would be a constant in an exported graph.
        first = torch.cat(prefix, 1).expand(pixels.shape[0], -1, -1)
        return torch.cat((first, patches.to(first.dtype)), 1)

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Learnt positions (1, tokens + rows · columns, width) for a grid of patches, between those that were learnt
        (by bicubic interpolation; Dosovitskiy et al. 2021, section 3.2)."""
        assert self.position_embeddings is not None
        config, learnt = self.config, self.position_embeddings
        known = config.grid(config.size, config.size)
        if not torch.compiler.is_exporting() and grid == known:
            return learnt
        before, patches = learnt[:, : config.own_tokens], learnt[:, config.own_tokens :]
        square = patches.mT.reshape(1, config.width, *known)
        resized = F.interpolate(square, grid, mode="bicubic", antialias=config.antialias)
        return torch.cat((before, resized.flatten(2).mT), 1)


class Attention(TensorModule):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.q_proj = Linear(width, width, bias=config.query_bias)
        self.k_proj = Linear(width, width, bias=config.key_bias)
        self.v_proj = Linear(width, width, bias=config.value_bias)
        self.o_proj = Linear(width, width, bias=config.out_bias)

    def forward(self, x: Tensor, scale: LayerScale | None, placement: Placement) -> Tensor:
        """The result comes scaled."""
        q, k, v = affine(x, *((part.weight, part.bias) for part in (self.q_proj, self.k_proj, self.v_proj)))
        seen = attention(placement.turned(q), placement.turned(k), split(v, self.heads))
        return affine(seen, scaled(self.o_proj, scale))[0]


class FeedForward(TensorModule):
    """down(act(up x)), or, gated, down(act(gate x) · up x)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.gate_activation if config.gated else config.activation]
        if config.gated:
            self.gate_up = Stacked(config.width, config.mlp, 2, bias=config.mlp_bias)
        else:
            self.up_proj = Linear(config.width, config.mlp, bias=config.mlp_bias)
        self.down_proj = Linear(config.mlp, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor, scale: LayerScale | None) -> Tensor:
        """The result comes scaled."""
        return affine(self._inner(x), scaled(self.down_proj, scale))[0]

    def _inner(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, up = self.gate_up(x)
            active: Tensor = self.activation(gate) * up
            return active
        return self.activation(affine(x, (self.up_proj.weight, self.up_proj.bias))[0])


class Block(TensorModule):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, config.norm_eps, bias=True)
        self.attention = Attention(config)
        self.layer_scale1 = LayerScale(config.width) if config.scaled else None
        self.norm2 = LayerNorm(config.width, config.norm_eps, bias=True)
        self.mlp = FeedForward(config)
        self.layer_scale2 = LayerScale(config.width) if config.scaled else None

    def forward(self, x: Tensor, placement: Placement) -> Tensor:
        # Under autocast x stays in fp32 and everything between a norm and the sum is in the narrow dtype.
        x = x + self.attention(self.norm1(x, placement.dtype), self.layer_scale1, placement)
        return x + self.mlp(self.norm2(x, placement.dtype), self.layer_scale2)


class AttentionPooling(TensorModule):
    """One vector of hidden states: what a learnt query sees in them, and a feed-forward behind a norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.probe = unset(1, 1, config.width)
        self.qkv = Stacked(config.width, config.width, 3, bias=True)
        self.o_proj = Linear(config.width, config.width, bias=True)
        self.norm = LayerNorm(config.width, config.norm_eps, bias=True)
        self.mlp = FeedForward(config)

    def forward(self, states: Tensor) -> Tensor:
        """(B, T, width) → (B, width)."""
        to_q, to_k, to_v = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        query = self.probe.to(states.dtype).expand(states.shape[0], -1, -1)
        q, k, v = (split(part, self.heads) for part in (*affine(query, to_q), *affine(states, to_k, to_v)))
        x = affine(attention(q, k, v), (self.o_proj.weight, self.o_proj.bias))[0]
        return (x + self.mlp(self.norm(x, x.dtype), None))[:, 0]


class VisionTransformer(TensorModule):
    """Pixels to hidden states. Parameters are NaN until `initialise` or loading fills them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_norm = LayerNorm(config.width, config.norm_eps, bias=True) if config.pre_norm else None
        self.layer = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width, config.norm_eps, bias=True)
        self.pooler = AttentionPooling(config) if config.attention_pooling else None

    def flops(self, size: int, visible: int | None = None) -> float:
        """Operations of forward and backward for an image of `size` × `size` pixels, or for so many patches of it."""
        config = self.config
        patches = math.prod(config.grid(size, size)) if visible is None else visible
        tokens = config.prefix + patches
        per_token = flops_per_token(matrix_parameters(self.layer), config.layers, config.width, tokens)
        return tokens * per_token + 6 * patches * matrix_parameters(self.embeddings.patch_embeddings)

    @property
    def kept(self) -> Kept:
        """What a layer keeps of a token for its gradient."""
        config = self.config
        width, turned = config.width, not config.learnt_positions
        return kept_per_token(width, width, width, config.mlp, turned, config.gated)

    def initialise(self, generator: torch.Generator) -> VisionTransformer:
        """Fill the parameters, a pure function of the generator's state (see `transformer.fill`); returns self.

        LayerScales are as the config says. Class and register tokens, and learnt positions, are small beside the
        patches, so that what a fresh network puts there comes from the image.
        """
        scales = {"lambda1": self.config.layer_scale}
        fill(self, generator, scales, dict.fromkeys(TABLES, TOKEN_SCALE))
        return self

    def resize(self, size: int) -> VisionTransformer:
        """Make it one of images of `size` × `size` pixels: learnt positions become those between the ones it has;
        returns self."""
        if self.embeddings.position_embeddings is not None:
            places = self.embeddings.places(self.config.grid(size, size)).detach()
            self.embeddings.position_embeddings = nn.Parameter(places.clone())
        self.config = self.embeddings.config = replace(self.config, size=size)
        return self

    def give_mask_token(self, generator: torch.Generator) -> None:
        """A fresh vector that stands for hidden patches, where it has none."""
        if self.embeddings.mask_token is None:
            fresh = torch.empty(1, 1, self.config.width).normal_(0.0, TOKEN_SCALE, generator=generator)
            self.embeddings.mask_token = nn.Parameter(fresh)
            self.config = self.embeddings.config = replace(self.config, mask_token=True)

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Hidden states, (B, prefix + P, width): class token, registers, patches by row; after the last norm, unless
        that is of the vector of an image (`VisionConfig.pooled_norm`).

        Args:
            pixels: (B, 3, H, W), normalised.
            hidden: (B, P) bool; these patches are replaced by the mask token.
            visible: (B, K) int64; only these patches are computed, in this order and at their own positions, and the
                result is (B, prefix + K, width). Not together with `hidden`.

        Under autocast the result has the narrow dtype. Raises ValueError where the patch does not divide H and W.
        """
        dtype = compute_dtype(self.norm.weight)
        placement = self._placement(pixels, visible, dtype)
        with torch.autocast(pixels.device.type, enabled=False):  # from here on each dtype is chosen by hand
            return self.states(self.embeddings(pixels, hidden, visible, dtype), placement)

    def _placement(self, pixels: Tensor, visible: Tensor | None, dtype: torch.dtype) -> Placement:
        config, grid = self.config, self.config.grid(*pixels.shape[2:])
        if config.learnt_positions:
            nothing = torch.empty(0, 1, config.head_dim, dtype=dtype, device=pixels.device)
            return Placement(nothing, nothing)
        rotation = axial_rotation if torch.compiler.is_exporting() else kept_rotation  # which needs numbers
        placement = rotation(config, grid, dtype, pixels.device)
        if visible is None:
            return placement
        before = torch.arange(config.prefix, device=visible.device).expand(len(visible), -1)
        shown = torch.cat((before, visible + config.prefix), 1)
        return Placement(placement.cos[shown], placement.sin[shown])

    def states(self, x: Tensor, placement: Placement) -> Tensor:
        """Hidden states, as `forward`, of embedded tokens (B, T, width)."""
        if self.pre_norm is not None:
            x = self.pre_norm(x, x.dtype)
        for block in self.layer:
            x = block(x, placement)
        return x.to(placement.dtype) if self.config.pooled_norm else self.norm(x, placement.dtype)

    def pool(self, states: Tensor, pooling: Pooling) -> Tensor:
        """One vector per image, (B, width) in fp32 or wider, of hidden states (B, prefix + P, width): that of the class
        token, the mean of the patches, or what the query of attention pooling makes of all."""
        with torch.autocast(states.device.type, enabled=False):
            if pooling == "attention":
                assert self.pooler is not None
                return at_least_single(self.pooler(states))
            found = states[:, 0] if pooling == "cls" else at_least_single(states[:, self.config.prefix :]).mean(1)
            wide = at_least_single(found)
            return self.norm(wide, wide.dtype) if self.config.pooled_norm else wide

    @property
    def dimension(self) -> int:
        """Of the vector of an image."""
        return self.config.width

    def embed(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """One vector per image, (B, width), in fp32 or wider: see `pool`."""
        return self.pool(self(pixels), pooling)

    def vectors(self) -> Iterable[nn.Parameter]:
        """Parameters of more than one dimension that are lists of vectors rather than maps."""
        tables = (name for name, _ in self.named_parameters() if name.endswith(TABLES))
        return (self.get_parameter(name) for name in tables)
