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
        self.eps, self.head_eps = (
            self.embedding.new_tensor((width * config.norm_eps) ** 0.5) for width in (config.width, config.head_dim)
        )
        positions = torch.arange(length, device=self.embedding.device)
        tables = rotary_tables(positions, config.head_dim, config.rope_theta, self.embedding.dtype)
        self.cos, self.sin = (list(table.view(length, 2, -1)) for table in tables)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits (B, vocabulary) of what follows `tokens` (B,)."""
        config, batch = self.config, len(tokens)
        position, mask = cache.advance(1), cache.mask(1)
        cos, sin = self.cos[position], self.sin[position]
        heads = config.heads + config.kv_heads
        together = (batch * config.kv_heads, -1, config.head_dim)  # queries that share keys stand beside each other
        x = self.embedding[tokens]
        for number, block in enumerate(self.blocks):
            qk, v = torch.mm(normalise(x, self.eps), block.qkv).view(batch, -1, config.head_dim).tensor_split((heads,), 1)
            pairs = normalise(qk, self.head_eps).view(block.gain.shape if batch == 1 else (batch, *block.gain.shape))
            pairs = pairs.mul_(block.gain)
            turned = pairs.flip(-2).mul_(sin).addcmul_(pairs, cos).view(batch, heads, 1, config.head_dim)
            q, k = turned.tensor_split((config.heads,), 1)
            k, v = cache.extend(number, k, v.unsqueeze(2))
            scores = torch.bmm(q.reshape(together), k.flatten(0, 1).mT)
            if mask is not None:
                scores = (scores.view(batch, config.kv_heads, -1, scores.shape[-1]) + mask).view_as(scores)
            seen = torch.bmm(torch.softmax(scores, -1), v.flatten(0, 1))
            x = torch.addmm(x, seen.view(batch, -1), block.output)
            gate, up = torch.mm(normalise(x, self.eps), block.gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), block.down)
        return normalise(x, self.eps) @ self.head


def normalise(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without its gain and without the root of the width C, in three operations: x / sqrt(|x|² + C · eps)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.hypot(norm, eps)


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
        gain=torch.cat(gains).unflatten(-1, (2, -1)),
        output=attention.o_proj.weight.mT.contiguous(),
        gate_up=_fold(
            torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)), block.post_attention_layernorm.weight
        ),
        down=mlp.down_proj.weight.mT.contiguous(),
    )


def _fold(matrix: Tensor, gain: Tensor) -> Tensor:
    """The transpose of a matrix (outputs, inputs) behind a norm with this gain, for one behind `normalise`."""
    return (matrix * (gain * len(gain) ** 0.5)).mT.contiguous()
