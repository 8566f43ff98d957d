"""The causal decoder: arithmetic and parameter names of Qwen3's dense models, so that its weights open there.

Pre-norm blocks of grouped-query attention and SwiGLU, RMSNorm throughout (on each head's queries and keys
too), rotary positions, no biases (Qwen3 technical report, arXiv:2505.09388, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.attention import Placement, additive, attention, document_mask, split
from selfsup.models.counting import flops_per_token, matrix_parameters
from selfsup.models.kernels import project, rotary_tables, swiglu
from selfsup.models.transformer import Embedding, Linear, RMSNorm, TensorModule, compute_dtype, fill


@dataclass(frozen=True)
class DecoderConfig:
    """All that determines a decoder but its weights. `window` is the longest context it is trained on."""

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

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even, for rotary positions turn pairs")


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

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values (B, kv_heads, count, head_dim) in the room made; returns all in sight."""
        fresh = slice(self.end - keys.shape[2], self.end)
        self.keys[layer, :, :, fresh] = keys
        self.values[layer, :, :, fresh] = values
        seen = slice(self.start, self.end)
        return self.keys[layer, :, :, seen], self.values[layer, :, :, seen]

    def mask(self, count: int) -> Tensor | None:
        """What the `count` newest positions see, (B, 1, count, in sight), to add; None for plain causal."""
        padded = self.first_position + self.start < self.longest_padding
        if not padded and (count == 1 or self.end == count):
            return None
        positions = self.first_position + torch.arange(self.start, self.end, device=self.keys.device)
        queries = positions[-count:, None]
        visible = (positions <= queries) & (positions > queries - self.window) & (positions >= self.padding)
        return additive(visible | (positions == queries), self.keys.dtype)


class Attention(TensorModule):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.kv_heads = config.kv_heads
        self.q_proj = Linear(config.width, config.heads * config.head_dim)
        self.k_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.width)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, layer: int, placement: Placement, cache: KeyValueCache | None) -> Tensor:
        q, k, v = project(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        q = placement.turned(q, self.q_norm.weight, self.q_norm.eps)
        k, v = placement.turned(k, self.k_norm.weight, self.k_norm.eps), split(v, self.kv_heads)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        seen = attention(q, k, v, placement.mask, causal=placement.mask is None and x.shape[1] > 1)
        return project(seen, self.o_proj.weight)[0]


class SwiGLU(TensorModule):
    """down(silu(gate x) · up x), without biases (Shazeer 2020, equation 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden)
        self.up_proj = Linear(width, hidden)
        self.down_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj.weight, self.up_proj.weight)
        return project(swiglu(gate, up), self.down_proj.weight)[0]


class Block(TensorModule):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config.width, config.mlp)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, layer: int, placement: Placement, cache: KeyValueCache | None) -> Tensor:
        # Under autocast x stays in fp32 and everything between a norm and the sum is in the narrow dtype.
        x = x + self.self_attn(self.input_layernorm(x, placement.dtype), layer, placement, cache)
        return x + self.mlp(self.post_attention_layernorm(x, placement.dtype))


class Trunk(nn.Module):
    """The modules that stand under `model.` in the saved names."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


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

    def flops(self, window: int) -> float:
        """Operations of forward and backward per token in windows of `window` tokens; the head counts."""
        config = self.config
        maps = matrix_parameters(self.model) + self.output_weight.numel()
        return flops_per_token(maps, config.layers, config.heads * config.head_dim, window)

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
        placement = self._placement(tokens, documents, cache)
        x = self.model.embed_tokens(tokens)
        for number, block in enumerate(self.model.layers):
            x = block(x, number, placement, cache)
        return self.model.norm(x, placement.dtype)

    def _placement(self, tokens: Tensor, documents: Tensor | None, cache: KeyValueCache | None) -> Placement:
        if documents is not None and cache is not None:
            raise ValueError("documents and cache exclude each other")
        dtype, count = compute_dtype(self.output_weight), tokens.shape[1]
        first = 0 if cache is None else cache.advance(count)
        positions = torch.arange(first, first + count, device=tokens.device)
        tables = rotary_tables(positions, self.config.head_dim, self.config.rope_theta, dtype)
        if cache is not None:
            return Placement(*tables, cache.mask(count))
        return Placement(*tables, None if documents is None else document_mask(documents, dtype, causal=True))

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, vocabulary); training scores the hidden states in chunks instead."""
        return F.linear(self(tokens, documents, cache), self.output_weight)
