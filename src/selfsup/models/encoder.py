"""The text encoder: arithmetic and parameter names of ModernBERT, so that its weights open there.

Pre-norm blocks of attention in both directions and GeGLU, LayerNorm without bias (none before the first attention, for
the embeddings have one), rotary positions, no biases; every third layer sees the whole document, the others 64
positions to either side (Warner et al. 2024, "Smarter, Better, Faster, Longer", section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.attention import Placement, additive, attention, split
from selfsup.models.counting import flops_per_token, matrix_parameters
from selfsup.models.kernels import project, rotary_tables
from selfsup.models.transformer import Embedding, LayerNorm, Linear, Stacked, TensorModule, compute_dtype, fill, unset

GLOBAL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class EncoderConfig:
    """All that determines an encoder but its weights. `window` is the longest text it is trained on."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    mlp: int
    window: int
    tied: bool  # the head of masked LM shares the embedding's weights
    bias: bool = False  # of the head of masked LM, which other people's models have
    dropout: float = 0.0  # of embeddings, attention and feed-forward, while training
    local_window: int = 128  # positions that a local layer sees, half of them to either side
    global_every: int = 3  # layers from one that sees everything to the next
    rope_theta: float = 160000.0  # of layers that see everything
    local_rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width ({self.width}) must be an even multiple of heads ({self.heads}): rotary positions turn pairs"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout ({self.dropout}) must be a share of what is computed, not all of it")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def kind(self, layer: int) -> str:
        """`full_attention` or `sliding_attention`."""
        return LOCAL if layer % self.global_every else GLOBAL


class Attention(TensorModule):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.Wqkv = Stacked(config.width, config.width, 3)
        self.Wo = Linear(config.width, config.width)

    def forward(self, x: Tensor, placement: Placement) -> Tensor:
        q, k, v = self.Wqkv(x)
        seen = attention(placement.turned(q), placement.turned(k), split(v, self.heads), placement.mask)
        return F.dropout(project(seen, self.Wo.weight)[0], self.dropout, self.training)


class GeGLU(TensorModule):
    """Wo(gelu(a) · b) with a, b = Wi x, without biases (Shazeer 2020, equation 6), under ModernBERT's names."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.Wi = Stacked(width, hidden, 2)
        self.Wo = Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.Wi(x)
        inner = F.dropout(F.gelu(gate) * up, self.dropout, self.training)
        return project(inner, self.Wo.weight)[0]


class Block(TensorModule):
    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = LayerNorm(config.width, config.norm_eps) if layer else None
        self.attn = Attention(config)
        self.mlp_norm = LayerNorm(config.width, config.norm_eps)
        self.mlp = GeGLU(config.width, config.mlp, config.dropout)

    def forward(self, x: Tensor, placement: Placement) -> Tensor:
        # Under autocast x stays in fp32 and everything between a norm and the sum is in the narrow dtype.
        dtype = placement.dtype
        normal = x.to(dtype) if self.attn_norm is None else self.attn_norm(x, dtype)
        x = x + self.attn(normal, placement)
        return x + self.mlp(self.mlp_norm(x, dtype))


class Embeddings(TensorModule):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = Embedding(config.vocabulary, config.width)
        self.norm = LayerNorm(config.width, config.norm_eps)
        self.dropout = config.dropout

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        return F.dropout(self.norm(x, x.dtype), self.dropout, self.training)


class TextEncoder(TensorModule):
    """Token numbers to hidden states. Parameters are NaN until `initialise` or loading fills them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = LayerNorm(config.width, config.norm_eps)

    def flops(self, window: float) -> float:
        """Operations of forward and backward per token in windows of `window` tokens, all of which see each other."""
        return flops_per_token(matrix_parameters(self), self.config.layers, self.config.width, window)

    def initialise(self, generator: torch.Generator) -> TextEncoder:
        """Fill the parameters as `Decoder.initialise`; returns self.

        (Embeddings are normalised at once, so their scale decides only on how far an update turns them.)
        """
        initialise(self, generator, self.config.tied)
        return self

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, width) after the last norm, for tokens (B, T).

        `documents` (B, T) numbers the document of each position: positions see their own document only; None means
        one document per row. Under autocast the result has the narrow dtype.
        """
        dtype = compute_dtype(self.final_norm.weight)
        placements = {kind: self._placement(kind, tokens, documents, dtype) for kind in (GLOBAL, LOCAL)}
        x = self.embeddings(tokens)
        for layer, block in enumerate(self.layers):
            x = block(x, placements[self.config.kind(layer)])
        return self.final_norm(x, dtype)

    def _placement(self, kind: str, tokens: Tensor, documents: Tensor | None, dtype: torch.dtype) -> Placement:
        config, local = self.config, kind == LOCAL
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        theta = config.local_rope_theta if local else config.rope_theta
        tables = rotary_tables(positions, config.head_dim, theta, dtype)
        visible = None if documents is None else (documents[:, :, None] == documents[:, None, :])[:, None]
        if local and tokens.shape[1] > config.local_window // 2 + 1:
            near = (positions[:, None] - positions).abs() <= config.local_window // 2
            visible = near if visible is None else visible & near
        return Placement(*tables, None if visible is None else additive(visible, dtype))


class MaskedHead(TensorModule):
    """norm(gelu(dense(x))), the prediction head of BERT."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = LayerNorm(config.width, config.norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        x = F.gelu(project(hidden, self.dense.weight)[0])
        return self.norm(x, hidden.dtype)


class MaskedLanguageModel(TensorModule):
    """An encoder with the head of masked LM, under the names of `ModernBertForMaskedLM`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = TextEncoder(config)
        self.head = MaskedHead(config)
        if not config.tied:
            self.decoder = Linear(config.width, config.vocabulary)
        if config.bias:
            self.bias = unset(config.vocabulary)

    @property
    def output_weight(self) -> Tensor:
        """The matrix whose product with what `forward` returns gives the logits: (vocabulary, width), or one column
        more for a bias."""
        weight = self.model.embeddings.tok_embeddings.weight if self.config.tied else self.decoder.weight
        return torch.cat((weight, self.bias[:, None]), 1) if self.config.bias else weight

    def flops(self, window: float, predicted: float) -> float:
        """As `TextEncoder.flops`, and the head's for the share of tokens that is `predicted`."""
        head = matrix_parameters(self.head) + self.config.vocabulary * self.config.width
        return self.model.flops(window) + 6 * predicted * head

    def initialise(self, generator: torch.Generator) -> MaskedLanguageModel:
        """As `TextEncoder.initialise`; an untied output matrix is zero. Returns self."""
        initialise(self, generator, self.config.tied)
        return self

    def forward(self, tokens: Tensor, positions: Tensor, documents: Tensor | None = None) -> Tensor:
        """What the output matrix is multiplied with, at `positions` (B, K) of tokens (B, T): (B, K, width), or one
        column of ones more for a bias."""
        hidden = self.model(tokens, documents)
        first = torch.arange(len(tokens), device=tokens.device)[:, None] * tokens.shape[1]
        chosen = hidden.flatten(0, 1).index_select(0, (positions + first).flatten())
        result = self.head(chosen)
        result = F.pad(result, (0, 1), value=1.0) if self.config.bias else result
        return result.view(*positions.shape, -1)


def initialise(module: nn.Module, generator: torch.Generator, tied: bool = False) -> None:
    """See `TextEncoder.initialise`."""
    embedding = {"tok_embeddings.weight": 0.02 if tied else 1.0}
    fill(module, generator, dict.fromkeys(("Wo.weight", "decoder.weight"), 0.0), embedding)
