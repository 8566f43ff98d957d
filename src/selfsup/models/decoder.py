"""The causal decoder: by default the arithmetic and parameter names of Qwen3's dense models, so that its weights open
there.

Pre-norm blocks of grouped-query attention and SwiGLU, RMSNorm throughout (on each head's queries and keys
too), rotary positions, no biases (Qwen3 technical report, arXiv:2505.09388, section 2). In what other dense models
differ is said by fields of the configuration; `decoder_layouts` knows which have which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.attention import (
    Placement,
    Runs,
    additive,
    attention,
    capped_attention,
    causal_mask,
    document_mask,
    split,
)
from selfsup.models.counting import Kept, flops_per_token, kept_per_token, matrix_parameters
from selfsup.models.kernels import GATES, gated, rotary_tables
from selfsup.models.losses import capped
from selfsup.models.transformer import Embedding, Linear, RMSNorm, TensorModule, compute_dtype, fill, through


class Rotation(NamedTuple):
    """How rotary positions are scaled: see `rotary_tables`.

    Attributes:
        divisors: of the speeds at which the pairs of a head turn, (head_dim / 2,); infinite ones keep them still.
        amplitude: by which queries and keys grow.
    """

    divisors: tuple[float, ...] | None = None
    amplitude: float = 1.0


UNSCALED = Rotation()


class Sight(NamedTuple):
    """What a layer sees: the last `reach` positions, itself included, or all; and how they are turned."""

    reach: int | None
    theta: float
    rotation: Rotation


@dataclass(frozen=True)
class DecoderConfig:
    """All that determines a decoder but its weights. `window` is the longest context it is trained on.

    The fields behind `norm_eps` are what the models of other layouts have in a way of their own.

    Attributes:
        layout: the `model_type` that its files say.
        qk_norm: whether the queries and keys of each head are normalised.
        qkv_bias, output_bias, mlp_bias: which maps have a bias.
        activation: of the gate of the feed-forward part, one of `GATES`.
        gain_offset: what is added to the weights of a norm.
        post_norms: whether what attention and the feed-forward part add is normalised too.
        embedding_scale: by which embeddings are multiplied.
        score_cap, logit_cap: the bounds between which scores of attention, and logits, are bent by a tanh.
        score_scale: by which the product of a query and a key is multiplied; None for 1 / sqrt(head_dim).
        rotation: of all layers, or of those that are not local.
        sliding, local: how many positions the layers of these numbers see, themselves included; others see all.
        local_theta: of these layers, which are then turned without scaling; None where they are turned as others.
        still: the numbers of the layers without rotary positions.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    window: int
    tied: bool
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    layout: str = "qwen3"
    qk_norm: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    gain_offset: float = 0.0
    post_norms: bool = False
    embedding_scale: float = 1.0
    score_cap: float | None = None
    logit_cap: float | None = None
    score_scale: float | None = None
    rotation: Rotation = UNSCALED
    sliding: int | None = None
    local: tuple[int, ...] = ()
    local_theta: float | None = None
    still: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even, for rotary positions turn pairs")
        if self.activation not in GATES:
            raise ValueError(f"activation ({self.activation}) must be one of {', '.join(GATES)}")

    @property
    def sights(self) -> list[Sight]:
        """What each layer sees."""
        return [self._sight(layer) for layer in range(self.layers)]

    def _sight(self, layer: int) -> Sight:
        local, theta, rotation = layer in self.local, self.rope_theta, self.rotation
        if local and self.local_theta is not None:
            theta, rotation = self.local_theta, UNSCALED
        if layer in self.still:
            rotation = Rotation((math.inf,) * (self.head_dim // 2))
        if self.score_scale is not None:
            growth = (self.score_scale * self.head_dim**0.5) ** 0.5  # of a query and a key alike
            rotation = rotation._replace(amplitude=rotation.amplitude * growth)
        return Sight(self.sliding if local else None, theta, rotation)

    def tables(self, sight: Sight, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`rotary_tables` of the heads of layers with this sight. A scale of the scores is in them too."""
        return rotary_tables(positions, self.head_dim, sight.theta, dtype, *sight.rotation)


class Memory(Protocol):
    """Keys and values of the positions before those that are read."""

    def extend(self, layer: int, keys: Tensor, values: Tensor, reach: int | None = None) -> tuple[Tensor, Tensor]:
        """Put keys and values (B, kv_heads, count, head_dim) behind those of a layer; returns all that the new
        positions may see, of which each sees the last `reach`."""
        ...


class KeyValueCache:
    """Keys and values of the positions seen so far, for decoding a batch token by token.

    It slides: a position attends to the last `config.window` positions, itself included, so that no distance is met
    that training did not show. (Through the layers, older positions still reach a new one indirectly.)

    `length` is the number of positions that will be fed in all. All memory is taken at the start, for two windows at
    most: when they are full, the last window moves to the front.

    `padding` is the number of positions at the start of each row that hold no token: prompts of different
    lengths are aligned at their end. Nothing attends to a padding position but itself.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch: int,
        length: int,
        padding: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.window = config.window
        self.length = length
        self.slots = min(length, 2 * config.window)
        self.first_position = 0  # of what slot 0 holds
        self.start = 0  # the first slot in sight of the newest positions
        self.end = 0  # slots in use
        shape = (config.layers, batch, config.kv_heads, self.slots, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.padding = torch.tensor(padding or [0] * batch, device=device).view(batch, 1, 1, 1)
        self.longest_padding = max(padding or [0])

    def advance(self, count: int) -> int:
        """Make room for the next `count` positions (at most a window); returns the first one's number."""
        if count > self.window:
            raise ValueError(f"feed a cache at most its window of {self.window} positions at once, not {count}")
        if self.end + count > self.slots:
            self._slide()
        if self.end + count > self.slots:
            raise ValueError(f"the cache was built for {self.slots} positions; build it longer")
        self.end += count
        self.start = max(0, self.end - count + 1 - self.window)
        return self.first_position + self.end - count

    def _slide(self) -> None:
        kept = min(self.end, self.window - 1)
        for held in (self.keys, self.values):
            held[:, :, :, :kept] = held[:, :, :, self.end - kept : self.end].clone()
        self.first_position += self.end - kept
        self.end = kept

    def extend(self, layer: int, keys: Tensor, values: Tensor, reach: int | None = None) -> tuple[Tensor, Tensor]:
        """Put keys and values (B, kv_heads, count, head_dim) in the room made; returns all in sight."""
        count = keys.shape[2]
        fresh, seen = slice(self.end - count, self.end), slice(self._start(count, reach), self.end)
        self.keys[layer, :, :, fresh] = keys
        self.values[layer, :, :, fresh] = values
        return self.keys[layer, :, :, seen], self.values[layer, :, :, seen]

    def _start(self, count: int, reach: int | None) -> int:
        """The first slot that the `count` newest positions see, of which each sees the last `reach`."""
        return self.start if reach is None else max(self.start, self.end - count + 1 - reach)

    def mask(self, count: int, reach: int | None = None) -> Tensor | None:
        """What the `count` newest positions see, (B, 1, count, in sight), to add; None for plain causal."""
        start, reach = self._start(count, reach), min(reach or self.window, self.window)
        padded = self.first_position + start < self.longest_padding
        if not padded and (count == 1 or (self.end == count and count <= reach)):
            return None
        positions = self.first_position + torch.arange(start, self.end, device=self.keys.device)
        queries = positions[-count:, None]
        visible = (positions <= queries) & (positions > queries - reach) & (positions >= self.padding)
        return additive(visible | (positions == queries), self.keys.dtype)


class Attention(TensorModule):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.kv_heads, self.score_cap = config.kv_heads, config.score_cap
        self.q_proj = Linear(config.width, config.heads * config.head_dim, config.qkv_bias)
        self.k_proj = Linear(config.width, config.kv_heads * config.head_dim, config.qkv_bias)
        self.v_proj = Linear(config.width, config.kv_heads * config.head_dim, config.qkv_bias)
        self.o_proj = Linear(config.heads * config.head_dim, config.width, config.output_bias)
        self.q_norm, self.k_norm = (_norm(config, config.head_dim, config.qk_norm) for _ in range(2))

    def forward(self, x: Tensor, layer: int, placement: Placement, memory: Memory | None) -> Tensor:
        q, k, v = through(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = _turned(q, self.q_norm, placement), _turned(k, self.k_norm, placement), split(v, self.kv_heads)
        if memory is not None:
            k, v = memory.extend(layer, k, v, placement.reach)
        if self.score_cap is None:
            seen = attention(q, k, v, placement.mask, causal=placement.mask is None and x.shape[1] > 1)
        else:
            seen = capped_attention(q, k, v, placement.mask, self.score_cap, q.shape[-1] ** -0.5)  # type: ignore[arg-type]
        return through(seen, self.o_proj)[0]


def _turned(heads: Tensor, norm: RMSNorm | None, placement: Placement) -> Tensor:
    return placement.turned(heads) if norm is None else placement.turned(heads, norm.gain, norm.eps)


def _norm(config: DecoderConfig, width: int, there: bool = True) -> RMSNorm | None:
    return RMSNorm(width, config.norm_eps, config.gain_offset) if there else None


class GatedMLP(TensorModule):
    """down(activation(gate x) · up x) (Shazeer 2020, equations 5 and 6)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = Linear(config.width, config.mlp, config.mlp_bias)
        self.up_proj = Linear(config.width, config.mlp, config.mlp_bias)
        self.down_proj = Linear(config.mlp, config.width, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = through(x, self.gate_proj, self.up_proj)
        return through(gated(gate, up, self.activation), self.down_proj)[0]


class Block(TensorModule):
    """`attention_norm` and `mlp_norm` normalise what the two parts add, where that is asked for."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps, config.gain_offset)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps, config.gain_offset)
        self.attention_norm, self.mlp_norm = (_norm(config, config.width, config.post_norms) for _ in range(2))

    def forward(self, x: Tensor, layer: int, placement: Placement, memory: Memory | None) -> Tensor:
        # Under autocast x stays in fp32 and everything between a norm and the sum is in the narrow dtype.
        seen = self.self_attn(self.input_layernorm(x, placement.dtype), layer, placement, memory)
        x = x + _normalised(seen, self.attention_norm)
        return x + _normalised(self.mlp(self.post_attention_layernorm(x, placement.dtype)), self.mlp_norm)


def _normalised(x: Tensor, norm: RMSNorm | None) -> Tensor:
    return x if norm is None else norm(x, x.dtype)


class Trunk(nn.Module):
    """The modules that stand under `model.` in the saved names."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps, config.gain_offset)


class Decoder(TensorModule):
    """Token numbers to hidden states. Parameters are NaN until `initialise` or loading fills them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tied:
            self.lm_head = Linear(config.width, config.vocabulary)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (vocabulary, width) whose product with a hidden state gives the logits."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    @property
    def logit_cap(self) -> float | None:
        """What logits are capped by: see `losses.capped`."""
        return self.config.logit_cap

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocabulary) of hidden states (…, width)."""
        return capped(F.linear(hidden, self.output_weight), self.logit_cap)

    def flops(self, window: int) -> float:
        """Operations of forward and backward per token in windows of `window` tokens; the head counts."""
        config = self.config
        maps = matrix_parameters(self.model) + self.output_weight.numel()
        seen = sum(min(sight.reach or window, window) for sight in config.sights) / config.layers
        return flops_per_token(maps, config.layers, config.heads * config.head_dim, seen)

    @property
    def kept(self) -> Kept:
        """What a layer keeps of a token for its gradient on an accelerator. (On a CPU the norms have a function of
        their own, which keeps normalised numbers in the type of matrix products in place of its input.)"""
        config = self.config
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        return kept_per_token(config.width, queries, keys, config.mlp, turned=True, gated=True)

    def initialise(self, generator: torch.Generator) -> Decoder:
        """Fill the parameters, a pure function of the generator's state (see `transformer.fill`); returns self.

        Embeddings are normal with deviation 1, or .02 where they are the head too (GPT-2), which keeps the first logits
        small. The two matrices that write to the residual stream and an untied head start at zero: each block begins as
        the identity and an untied loss at ln(vocabulary) exactly, the habit of modded-nanogpt and nanochat, which suits
        Muon since its steps do not depend on the gradient's scale.
        """
        embedding = {"embed_tokens.weight": 0.02 if self.config.tied else 1.0}
        zeros = ("o_proj.weight", "down_proj.weight", "lm_head.weight")
        fill(self, generator, dict.fromkeys(zeros, 0.0), embedding)
        return self

    def forward(self, tokens: Tensor, documents: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """Hidden states (B, T, width) after the last norm, for tokens (B, T).

        `documents` (B, T) numbers the document of each position: a position sees itself and the earlier ones
        of its own document; None means one document per row. With a `cache`, tokens continue what it holds
        (and `documents` must be None). Under autocast the result has the narrow dtype.
        """
        return self.states(tokens, self._placements(tokens, documents, cache), cache)

    def states(self, tokens: Tensor, placements: Sequence[Placement], memory: Memory | None = None) -> Tensor:
        """As `forward`, of tokens whose places each layer is told; what they look back at is in the memory."""
        x = self.model.embed_tokens(tokens)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        for number, (block, placement) in enumerate(zip(self.model.layers, placements, strict=True)):
            x = block(x, number, placement, memory)
        return self.model.norm(x, compute_dtype(self.output_weight))

    def _placements(self, tokens: Tensor, documents: Tensor | None, cache: KeyValueCache | None) -> list[Placement]:
        """What each layer knows of where the tokens stand."""
        if documents is not None and cache is not None:
            raise ValueError("documents and cache exclude each other")
        dtype, count, sights = compute_dtype(self.output_weight), tokens.shape[1], self.config.sights
        first = 0 if cache is None else cache.advance(count)
        positions = torch.arange(first, first + count, device=tokens.device)

        def place(sight: Sight) -> Placement:
            tables = self.config.tables(sight, positions, dtype)
            if cache is not None:
                return Placement(*tables, cache.mask(count, sight.reach), sight.reach)
            mask = _mask(tokens, documents, sight.reach, dtype, whole=self.config.score_cap is not None)
            return Placement(*tables, mask, sight.reach)

        known = {sight: place(sight) for sight in set(sights)}
        return [known[sight] for sight in sights]

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, vocabulary); training scores the hidden states in chunks instead."""
        return self.head(self(tokens, documents, cache))


def _mask(
    tokens: Tensor, documents: Tensor | None, reach: int | None, dtype: torch.dtype, whole: bool
) -> Tensor | Runs | None:
    """What positions see of their documents, of the last `reach` positions of these; None for plain causal. A mask is
    never `Runs` where it is to be `whole`."""
    if reach is None or reach >= tokens.shape[1]:
        if documents is None or whole:
            return None if documents is None else document_mask(documents, dtype, causal=True)
        return causal_mask(documents, dtype)
    documents = torch.zeros_like(tokens[:1]) if documents is None else documents
    return document_mask(documents, dtype, causal=True, reach=reach)
