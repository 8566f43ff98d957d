"""A decoder prepared to write: one token per text at a time, with as few and as large operations as there can be."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.models.decoder import Block, Decoder, KeyValueCache
from selfsup.models.kernels import rotary_tables


class Weights(NamedTuple):
    """One block's matrices as (inputs, outputs), contiguous, those of one input side by side, the gains folded in."""

    qkv: Tensor
    gain: Tensor  # of queries and keys, (heads + kv_heads, 2, dim / 2), attention's scale included
    output: Tensor
    gate_up: Tensor
    down: Tensor


class Decoding:
    """`Decoder.logits` for the next position, with a cache that holds the earlier ones.

    Reading the weights is what writing one token costs; each is read once, in the order in which it stands.

    Args:
        length: the number of positions that the cache will be fed in all.
    """

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, length: int) -> None:
        config = self.config = decoder.config
        self.embedding = decoder.model.embed_tokens.weight
        self.blocks = [_pack(block) for block in decoder.model.layers]  # type: ignore[arg-type]
        self.head = _fold(decoder.output_weight, decoder.model.norm.weight)
        positions = torch.arange(length, device=self.embedding.device)
        tables = rotary_tables(positions, config.head_dim, config.rope_theta, self.embedding.dtype)
        self.cos, self.sin = (list(table.view(length, 2, -1)) for table in tables)
        self.floor = self._floor(config.width)
        self.head_floor = self._floor(config.head_dim)

    def _floor(self, width: int) -> Tensor:
        """What `normalise` adds to the norm of vectors of this width."""
        return self.embedding.new_tensor((width * self.config.norm_eps) ** 0.5)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits (B, vocabulary) of what follows `tokens` (B,)."""
        position, mask = cache.advance(1), cache.mask(1)
        x = self.embedding[tokens]
        for number, block in enumerate(self.blocks):
            seen = self._attend(normalise(x, self.floor), block, number, position, mask, cache)
            x = torch.addmm(x, seen, block.output)
            gate, up = torch.mm(normalise(x, self.floor), block.gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), block.down)
        return torch.mm(normalise(x, self.floor), self.head)

    def _attend(
        self, x: Tensor, block: Weights, number: int, position: int, mask: Tensor | None, cache: KeyValueCache
    ) -> Tensor:
        """What the heads of one block read, (B, heads · dim)."""
        config, batch, dim = self.config, len(x), self.config.head_dim
        turning = config.heads + config.kv_heads
        qk, v = torch.mm(x, block.qkv).view(batch, -1, dim).tensor_split((turning,), 1)
        halves = normalise(qk, self.head_floor).view(batch, turning, 2, -1).mul_(block.gain)
        turned = halves.flip(-2).mul_(self.sin[position]).addcmul_(halves, self.cos[position])
        q, k = turned.view(batch, turning, 1, dim).tensor_split((config.heads,), 1)
        k, v = cache.extend(number, k, v.unsqueeze(2))
        # Queries that share keys stand beside each other.
        scores = torch.bmm(q.reshape(batch * config.kv_heads, -1, dim), k.flatten(0, 1).mT)
        if mask is not None:
            scores = (scores.view(batch, config.kv_heads, -1, k.shape[2]) + mask).view_as(scores)
        return torch.bmm(torch.softmax(scores, -1), v.flatten(0, 1)).view(batch, -1)


def normalise(x: Tensor, floor: Tensor) -> Tensor:
    """RMSNorm without its gain and without the root of the width C, in three operations: x / sqrt(|x|² + floor²).

    With a floor of sqrt(C · eps) this is x / sqrt(mean(x²) + eps) / sqrt(C).
    """
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _pack(block: Block) -> Weights:
    attention, mlp = block.self_attn, block.mlp
    q, k, v = attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
    dim = len(attention.q_norm.weight)
    gains = [  # the scale 1/√dim of the scores cancels one of the two roots that `normalise` leaves out
        attention.q_norm.weight.expand(len(q) // dim, -1),
        attention.k_norm.weight.expand(len(k) // dim, -1) * dim**0.5,
    ]
    return Weights(
        qkv=_fold(torch.cat((q, k, v)), block.input_layernorm.weight),
        gain=torch.cat(gains).view(-1, 2, dim // 2),
        output=attention.o_proj.weight.mT.contiguous(),
        gate_up=_fold(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)), block.post_attention_layernorm.weight),
        down=mlp.down_proj.weight.mT.contiguous(),
    )


def _fold(matrix: Tensor, gain: Tensor) -> Tensor:
    """The transpose of a matrix (outputs, inputs) behind a norm with this gain, for one behind `normalise`."""
    folded: Tensor = matrix * (gain * len(gain) ** 0.5)
    return folded.mT.contiguous()
