"""A decoder prepared to write: one token per text at a time, with as few and as large operations as there can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.adapters import AdaptedDecoder
from selfsup.models.attention import capped_attention
from selfsup.models.decoder import Block, Decoder, KeyValueCache, Sight
from selfsup.models.kernels import GATES
from selfsup.models.losses import capped
from selfsup.models.transformer import RMSNorm

LARGE = 1 << 18  # numbers in a matrix, from where on oneDNN's calls, 26 µs slower each, pay


class PlainMap(NamedTuple):
    """A matrix (inputs, outputs), contiguous, and its bias (outputs,)."""

    matrix: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.matrix) if self.bias is None else torch.addmm(self.bias, x, self.matrix)


class PackedMap(NamedTuple):
    """A matrix in blocks, as oneDNN multiplies few rows fastest, and its bias: weights come at 14 to 25 GB/s in place
    of 5 to 15 (docs/LOG.md). torch has no public name for it."""

    matrix: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")
        return made


Map = PlainMap | PackedMap  # (rows, inputs) → (rows, outputs)


def prepared(matrix: Tensor, bias: Tensor | None = None) -> Map:
    """x · matrixᵀ + bias, of a matrix (outputs, inputs)."""
    if _packable(matrix):
        return PackedMap(torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous()), bias)
    return PlainMap(matrix.mT.contiguous(), bias)


def _packable(matrix: Tensor) -> bool:
    if matrix.device.type != "cpu" or matrix.numel() < LARGE:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    narrow = matrix.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool(narrow) or matrix.dtype == torch.float32


class Weights(NamedTuple):
    """One block: the maps of one input side by side, the gains before them folded in, attention's scale too."""

    qkv: Map
    gain: Tensor | None  # of queries and keys where they are normalised, (heads + kv_heads, 2, dim / 2)
    output: Map
    attention_gain: Tensor | None  # of what attention adds, where that is normalised, (width,)
    gate_up: Map
    down: Map
    mlp_gain: Tensor | None


class Turn(NamedTuple):
    """Where new positions stand to the layers of one sight: their rotation, (T, 1, 2, dim / 2) for all texts or
    (B, T, 1, 2, dim / 2) for each, and the mask."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    reach: int | None


class Cache(Protocol):
    """Keys and values of earlier positions: `KeyValueCache`, where all texts stand at the same one, or
    `selfsup.inference.rows.Rings`."""

    length: int  # positions that will be fed in all

    def advance(self, count: int) -> int | Tensor:
        """Make room for the next `count` positions; returns the first one's number, for all texts or as (B, 1)."""

    def extend(self, layer: int, keys: Tensor, values: Tensor, reach: int | None = None) -> tuple[Tensor, Tensor]:
        """Put keys and values (B, kv_heads, count, head_dim) in the room made; returns all in sight."""

    def mask(self, count: int, reach: int | None = None) -> Tensor | None:
        """What the `count` newest positions see, (B, 1, count, in sight), to add; None for plain causal."""


class Decoding:
    """`Decoder.logits` for the next position, with a cache that holds the earlier ones.

    Reading the weights is what writing one token costs; each is read once, in the order in which it stands.

    Args:
        dtype: of the products of matrices, and of the cache; sums and norms are of the weights'.
    """

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        config = self.config = decoder.config
        self.dtype, self.gate = dtype, GATES[config.activation].value
        self.embedding = decoder.model.embed_tokens.weight
        self.sights = config.sights
        self.blocks = [_pack(block, config.head_dim, dtype) for block in decoder.model.layers]  # type: ignore[arg-type]
        self.head = prepared(_fold(decoder.output_weight, decoder.model.norm).to(dtype))
        self.floor, self.head_floor = self._floor(config.width), self._floor(config.head_dim)
        self.tables: dict[Sight, tuple[Tensor, Tensor]] = {}

    def _floor(self, width: int) -> Tensor:
        """What `normalise` adds to the norm of vectors of this width."""
        return self.embedding.new_tensor((width * self.config.norm_eps) ** 0.5)

    def cache(self, batch: int, length: int, padding: Sequence[int] | None = None) -> KeyValueCache:
        """One for so many positions in all."""
        return KeyValueCache(self.config, batch, length, padding, self.dtype, self.embedding.device)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, cache: Cache, last: Tensor | None = None) -> Tensor:
        """Logits (B, vocabulary) of what follows `tokens` (B, T), in the precision of the weights.

        Args:
            last: the places (B,) of the last token of each text, of at most a window, where what stands behind it is
                nothing of the text.
        """
        for part in torch.split(tokens, self.config.window, 1):
            x = self._read(part, cache)
        x = x[:, -1] if last is None else x[torch.arange(len(x), device=x.device), last]
        return capped(self.head(self._normal(x)).to(x.dtype), self.config.logit_cap)

    def _read(self, tokens: Tensor, cache: Cache) -> Tensor:
        """The hidden states (B, T, width) of tokens (B, T), at most a window of them."""
        turns = self._turns(tokens.shape[1], cache)
        x = self.embedding[tokens.flatten()]
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        for number, (block, sight) in enumerate(zip(self.blocks, self.sights, strict=True)):
            seen = self._attend(block.qkv(self._normal(x)), block.gain, number, turns[sight], cache)
            x = x + self._scaled(block.output(seen), block.attention_gain)
            gate, up = block.gate_up(self._normal(x)).chunk(2, -1)
            x = x + self._scaled(block.down(self.gate(gate).mul_(up)), block.mlp_gain)
        return x.view(*tokens.shape, -1)

    def _normal(self, x: Tensor) -> Tensor:
        return normalise(x, self.floor).to(self.dtype)

    def _scaled(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """What a part adds."""
        return x if gain is None else normalise(x.to(gain.dtype), self.floor) * gain

    def _turns(self, count: int, cache: Cache) -> dict[Sight, Turn]:
        positions = cache.advance(count) + torch.arange(count, device=self.embedding.device)

        def turn(sight: Sight) -> Turn:
            cos, sin = self._tables(sight, cache.length)
            return Turn(cos[positions], sin[positions], cache.mask(count, sight.reach), sight.reach)

        return {sight: turn(sight) for sight in set(self.sights)}

    def _tables(self, sight: Sight, length: int) -> tuple[Tensor, Tensor]:
        """Of the positions to a length, (length, 1, 2, dim / 2) each; kept."""
        if sight not in self.tables or len(self.tables[sight][0]) < length:
            positions = torch.arange(length, device=self.embedding.device)
            cos, sin = self.config.tables(sight, positions, self.embedding.dtype)
            self.tables[sight] = cos.view(length, 1, 2, -1), sin.view(length, 1, 2, -1)
        return self.tables[sight]

    def _attend(self, qkv: Tensor, gain: Tensor | None, number: int, turn: Turn, cache: Cache) -> Tensor:
        """What the heads of one block read, (B · T, heads · dim)."""
        config, count, dim = self.config, turn.cos.shape[-4], self.config.head_dim
        qk, v = qkv.view(-1, count, config.heads + 2 * config.kv_heads, dim).split_with_sizes(
            [config.heads + config.kv_heads, config.kv_heads], 2
        )
        qk = qk.to(turn.cos.dtype)
        halves = (qk if gain is None else normalise(qk, self.head_floor)).view(*qk.shape[:3], 2, -1)
        halves = halves if gain is None else halves.mul_(gain)
        turned = halves.flip(-2).mul_(turn.sin).addcmul_(halves, turn.cos).flatten(-2).transpose(1, 2)
        q, k = turned.to(self.dtype).split_with_sizes([config.heads, config.kv_heads], 1)
        k, v = cache.extend(number, k, v.transpose(1, 2), turn.reach)
        return self._weighed(q, k, v, turn.mask)

    def _weighed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        count, grouped = q.shape[2], self.config.heads != self.config.kv_heads
        if self.config.score_cap is not None:
            return capped_attention(q, k, v, mask, self.config.score_cap, 1.0).flatten(0, 1)
        causal = mask is None and count > 1
        seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=1.0, enable_gqa=grouped)
        return seen.transpose(1, 2).flatten(2).flatten(0, 1)


def normalise(x: Tensor, floor: Tensor) -> Tensor:
    """RMSNorm without its gain and without the root of the width C, in three operations: x / sqrt(|x|² + floor²).

    With a floor of sqrt(C · eps) this is x / sqrt(mean(x²) + eps) / sqrt(C).
    """
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _pack(block: Block, dim: int, dtype: torch.dtype) -> Weights:
    attention, mlp = block.self_attn, block.mlp
    gain, scale = None, 1.0
    if attention.q_norm is None or attention.k_norm is None:
        scale = dim**-0.5
    else:  # the scale 1/√dim of the scores cancels one of the two roots that `normalise` leaves out
        q, k = attention.q_norm.gain, attention.k_norm.gain * dim**0.5
        counts = [len(part.weight) // dim for part in (attention.q_proj, attention.k_proj)]
        gain = torch.cat((q.expand(counts[0], -1), k.expand(counts[1], -1))).view(-1, 2, dim // 2)
    qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj], block.input_layernorm, dtype, scale)
    return Weights(
        qkv=qkv,
        gain=gain,
        output=_joined([attention.o_proj], None, dtype),
        attention_gain=_whole_gain(block.attention_norm),
        gate_up=_joined([mlp.gate_proj, mlp.up_proj], block.post_attention_layernorm, dtype),
        down=_joined([mlp.down_proj], None, dtype),
        mlp_gain=_whole_gain(block.mlp_norm),
    )


def _joined(maps: list[nn.Linear], norm: RMSNorm | None, dtype: torch.dtype, first: float = 1.0) -> Map:
    """Maps side by side behind a norm, the first one multiplied by a number."""
    scales = [first] + [1.0] * (len(maps) - 1)
    matrix = torch.cat([part.weight * scale for part, scale in zip(maps, scales, strict=True)])
    biases = [part.bias * scale for part, scale in zip(maps, scales, strict=True) if part.bias is not None]
    return prepared(_fold(matrix, norm).to(dtype), torch.cat(biases).to(dtype) if biases else None)


def _fold(matrix: Tensor, norm: RMSNorm | None) -> Tensor:
    """A matrix (outputs, inputs) behind a norm as one behind `normalise`."""
    gain = _whole_gain(norm)
    return matrix if gain is None else matrix * gain


def _whole_gain(norm: RMSNorm | None) -> Tensor | None:
    """The gain that `normalise` leaves out."""
    return None if norm is None else norm.gain * len(norm.weight) ** 0.5


class Reading:
    """As `Decoding` with its cache, of a decoder of transformers that reads one text: with the cache there where that
    makes no difference, else all of its window anew for each token.

    Where a window is full, its last half is the beginning of another one.

    Args:
        autocast: makes what the network computes within narrow, or not.
    """

    def __init__(self, decoder: AdaptedDecoder, autocast: Callable[[], AbstractContextManager[object]]) -> None:
        self.decoder, self.window, self.autocast = decoder, decoder.config.window, autocast
        self.tokens = torch.empty(1, 0, dtype=torch.long, device=decoder.output_weight.device)
        self.past: Any = None

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (1, vocabulary) of what follows `tokens` (1, T)."""
        self.tokens = torch.cat((self.tokens, tokens), 1)
        if self.tokens.shape[1] > self.window:
            self.tokens, self.past = self.tokens[:, -max(1, self.window // 2) :], None
        remembers = self.decoder.remembers
        with self.autocast():
            if not remembers:
                hidden = self.decoder(self.tokens)
            else:
                hidden, self.past = self.decoder.going_on(self.tokens if self.past is None else tokens, self.past)
            return F.linear(hidden[:, -1], self.decoder.output_weight).float()
