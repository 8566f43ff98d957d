"""The text encoder. By default its arithmetic is ModernBERT's, whose parameter names it has, so that its weights open
there:

pre-norm blocks of attention in both directions and GeGLU, LayerNorm without bias (none before the first attention, for
the embeddings have one), rotary positions, no biases; every third layer sees the whole document, the others 64
positions to either side (Warner et al. 2024, "Smarter, Better, Faster, Longer", section 2.1).

What other encoders do otherwise, BERT and its kin first of all, are fields of the configuration; which model has which
stands in `encoder_layouts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.attention import Placement, additive, attention, places_within, split
from selfsup.models.counting import Kept, flops_per_token, kept_per_token, matrix_parameters
from selfsup.models.kernels import affine, rotary_tables
from selfsup.models.transformer import (
    ACTIVATIONS,
    Embedding,
    LayerNorm,
    Linear,
    Stacked,
    TensorModule,
    compute_dtype,
    fill,
    unset,
)

GLOBAL, LOCAL = "full_attention", "sliding_attention"
Told = Callable[[Tensor], Tensor]  # hidden states (B, T, width) with what a layer is told beside them


@dataclass(frozen=True)
class EncoderConfig:
    """All that determines an encoder but its weights.

    Attributes:
        window: tokens of the longest text that it is trained on.
        tied: whether the head of masked LM shares the embedding's weights.
        bias: whether its output matrix has one.
        dropout: of embeddings, attention and feed-forward, while training.
        local_window: positions that a local layer sees, half of them to either side.
        global_every: layers from one that sees everything to the next.
        rope_theta, local_rope_theta: of the rotation in layers that see everything, and in local ones.
        layout: the `model_type` of the files it came from, and goes back into.
        positions: rows of a table of learnt positions; 0 where positions are rotary.
        first_position: the row of a document's first token.
        token_types: rows of a table of which one, by default the first, is added to every token.
        embedding_norm: whether embeddings are normalised. Then nothing is before the first attention.
        post_norm: whether norms stand behind the sums, and so none behind the last layer.
        biases: whether maps and norms have them.
        gated: whether the feed-forward is activation(a) · b of two maps, or activation(a).
        head_activation: of the head of masked LM.
        causal: whether positions see what comes before them only.
        padded: whether texts are padded to the window, and their positions see the padding.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    mlp: int
    window: int
    tied: bool
    bias: bool = False
    dropout: float = 0.0
    local_window: int = 128
    global_every: int = 3
    rope_theta: float = 160000.0
    local_rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    layout: str = "modernbert"
    positions: int = 0
    first_position: int = 0
    token_types: int = 0
    embedding_norm: bool = True
    post_norm: bool = False
    biases: bool = False
    gated: bool = True
    activation: str = "gelu"
    head_activation: str = "gelu"
    causal: bool = False
    padded: bool = False

    def __post_init__(self) -> None:
        if not self.positions and self.width % (2 * self.heads):
            raise ValueError(
                f"width ({self.width}) must be an even multiple of heads ({self.heads}): rotary positions turn pairs"
            )
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"positions ({self.positions}) must be more than those before the first one")
        if unknown := {self.activation, self.head_activation} - ACTIVATIONS.keys():
            raise ValueError(f"activations are {', '.join(ACTIVATIONS)}, not {', '.join(sorted(unknown))}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout ({self.dropout}) must be a share of what is computed, not all of it")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def longest(self) -> int | None:
        """Tokens of a text that it has positions for; None where these have no end."""
        return self.positions - self.first_position if self.positions else None

    def norm(self) -> LayerNorm:
        """A fresh one of its kind."""
        return LayerNorm(self.width, self.norm_eps, self.biases)

    def kind(self, layer: int) -> str:
        """`full_attention` or `sliding_attention`."""
        return LOCAL if layer % self.global_every else GLOBAL


class Attention(TensorModule):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.Wqkv = Stacked(config.width, config.width, 3, config.biases)
        self.Wo = Linear(config.width, config.width, config.biases)

    def forward(self, x: Tensor, placement: Placement) -> Tensor:
        q, k, v = self.Wqkv(x)
        seen = attention(placement.turned(q), placement.turned(k), split(v, self.heads), placement.mask)
        return F.dropout(affine(seen, (self.Wo.weight, self.Wo.bias))[0], self.dropout, self.training)


class FeedForward(TensorModule):
    """Wo(gelu(a) · b) with a, b = Wi x (Shazeer 2020, equation 6), or Wo gelu(Wi x), or with another activation."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.Wi = Stacked(config.width, config.mlp, 2 if config.gated else 1, config.biases)
        self.Wo = Linear(config.mlp, config.width, config.biases)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        gate, *up = self.Wi(x)
        active = self.activation(gate)
        inner = F.dropout(active * up[0] if up else active, self.dropout, self.training)
        return affine(inner, (self.Wo.weight, self.Wo.bias))[0]


class Block(TensorModule):
    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.post_norm = config.post_norm
        normal_already = config.embedding_norm and not (layer or config.post_norm)
        self.attn_norm = None if normal_already else config.norm()
        self.attn = Attention(config)
        self.mlp_norm = config.norm()
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, placement: Placement, told: Told | None = None) -> Tensor:
        """`told` stands between attention and feed-forward, where a decoder has its attention to what it decodes."""
        # Under autocast x stays in fp32 and everything between a norm and the sum is in the narrow dtype.
        dtype = placement.dtype
        if self.post_norm:
            x = self._normal(self.attn_norm, x + self.attn(x.to(dtype), placement), x.dtype)
            x = x if told is None else told(x)
            return self.mlp_norm(x + self.mlp(x.to(dtype)), x.dtype)
        x = x + self.attn(self._normal(self.attn_norm, x, dtype), placement)
        x = x if told is None else told(x)
        return x + self.mlp(self.mlp_norm(x, dtype))

    @staticmethod
    def _normal(norm: LayerNorm | None, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) if norm is None else norm(x, dtype)


class Embeddings(TensorModule):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.first = config.first_position
        self.tok_embeddings = Embedding(config.vocabulary, config.width)
        self.position_embeddings = Embedding(config.positions, config.width) if config.positions else None
        self.token_type_embeddings = Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = config.norm() if config.embedding_norm else None
        self.dropout = config.dropout

    def forward(self, tokens: Tensor, documents: Tensor | None, types: Tensor | None = None) -> Tensor:
        x = self.tok_embeddings(tokens)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(self.first + places_within(tokens, documents))
        if self.token_type_embeddings is not None:
            table = self.token_type_embeddings
            x = x + (table.weight[0] if types is None else table(types))
        if self.norm is not None:
            x = self.norm(x, x.dtype)
        return F.dropout(x, self.dropout, self.training)


class TextEncoder(TensorModule):
    """Token numbers to hidden states. Parameters are NaN until `initialise` or loading fills them."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = None if config.post_norm else config.norm()

    def flops(self, window: float) -> float:
        """Operations of forward and backward per token in windows of `window` tokens, all of which see each other."""
        return flops_per_token(matrix_parameters(self), self.config.layers, self.config.width, window)

    @property
    def kept(self) -> Kept:
        """What a layer keeps of a token for its gradient, with what dropout draws."""
        config = self.config
        width, turned = config.width, not config.positions
        kept = kept_per_token(width, width, width, config.mlp, turned, config.gated)
        return kept._replace(narrow=kept.narrow + (width + config.mlp) * (config.dropout > 0))

    def initialise(self, generator: torch.Generator) -> TextEncoder:
        """Fill the parameters as `Decoder.initialise`; returns self.

        (Embeddings are normalised at once, so their scale decides only on how far an update turns them.)
        """
        initialise(self, generator, self.config.tied)
        return self

    def forward(self, tokens: Tensor, documents: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, width) after the last norm, for tokens (B, T).

        `documents` (B, T) numbers the document of each position: positions see their own document only; None means
        one document per row. `types` (B, T) are the rows of the table of token types, where there is one; None is the
        first for all. Under autocast the result has the narrow dtype.
        """
        return self._through(self.embeddings(tokens, documents, types), documents, self.config.causal)

    def padded(self, tokens: Tensor, shown: Tensor) -> Tensor:
        """As `forward`, of one document in each row (B, T) from its beginning, behind which nothing is `shown`."""
        return self._through(self.embeddings(tokens, None), shown - 1, self.config.causal)

    def decode(self, tokens: Tensor, documents: Tensor | None, told: Sequence[Told]) -> Tensor:
        """The same of its layers as those of a decoder: positions see those before them alone, and what each layer is
        `told`."""
        return self._through(self.embeddings(tokens, documents), documents, True, told)

    def _through(
        self, x: Tensor, documents: Tensor | None, causal: bool, told: Sequence[Told | None] | None = None
    ) -> Tensor:
        """The layers, from what tokens are embedded as (B, T, width)."""
        dtype = compute_dtype(self.embeddings.tok_embeddings.weight)
        kinds = [self.config.kind(layer) for layer in range(self.config.layers)]
        placements = {kind: self._placement(kind, x, documents, causal, dtype) for kind in set(kinds)}
        for kind, block, beside in zip(kinds, self.layers, told or [None] * len(kinds), strict=True):
            x = block(x, placements[kind], beside)
        return x.to(dtype) if self.final_norm is None else self.final_norm(x, dtype)

    def _placement(self, kind: str, x: Tensor, documents: Tensor | None, causal: bool, dtype: torch.dtype) -> Placement:
        config, local = self.config, kind == LOCAL
        positions = torch.arange(x.shape[1], device=x.device)
        theta = config.local_rope_theta if local else config.rope_theta
        turned = positions[: 0 if config.positions else None]  # none where positions are learnt
        tables = rotary_tables(turned, config.head_dim, theta, dtype)
        visible = None if documents is None else (documents[:, :, None] == documents[:, None, :])[:, None]
        near = positions[:, None] - positions
        # An export asks no size: its lengths would be bounded.
        if local and (torch.compiler.is_exporting() or x.shape[1] > config.local_window // 2 + 1):
            visible = _both(visible, near.abs() <= config.local_window // 2)
        if causal:
            visible = _both(visible, near >= 0)
        return Placement(*tables, None if visible is None else additive(visible, dtype))


def _both(visible: Tensor | None, near: Tensor) -> Tensor:
    return near if visible is None else visible & near


class MaskedHead(TensorModule):
    """norm(gelu(dense(x))), or with another activation: the prediction head of BERT."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width, config.biases)
        self.activation = ACTIVATIONS[config.head_activation]
        self.norm = config.norm()

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.activation(affine(hidden, (self.dense.weight, self.dense.bias))[0])
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
        return self.headed(chosen).view(*positions.shape, -1)

    def headed(self, hidden: Tensor) -> Tensor:
        """What the output matrix is multiplied with, of hidden states (n, width): (n, width), or one column of ones
        more for a bias."""
        result = self.head(hidden)
        return F.pad(result, (0, 1), value=1.0) if self.config.bias else result


def initialise(module: nn.Module, generator: torch.Generator, tied: bool = False) -> None:
    """See `TextEncoder.initialise`."""
    embedding = {"tok_embeddings.weight": 0.02 if tied else 1.0}
    fill(module, generator, dict.fromkeys(("Wo.weight", "decoder.weight"), 0.0), embedding)
