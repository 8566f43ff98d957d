"""The packed decoder against the one that is trained: the same logits, position by position."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfsup.inference.decoding import Decoding
from selfsup.models.decoder import Decoder, DecoderConfig, KeyValueCache


def lively(kv_heads: int, tied: bool) -> Decoder:
    config = DecoderConfig(
        vocabulary=30, layers=2, width=24, heads=4, kv_heads=kv_heads, head_dim=8, mlp=40, window=6, tied=tied
    )
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(config).initialise(generator).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, 0.1, 0.5, generator=generator)
    return decoder.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("padding", [[0], [0, 3, 1]])
@torch.inference_mode()
def test_decoding_equals_the_decoder(kv_heads: int, tied: bool, padding: list[int]) -> None:
    """Beyond the window too, where the cache slides, and beside padding."""
    decoder = lively(kv_heads, tied)
    batch, length = len(padding), 20
    tokens = torch.randint(30, (batch, length), generator=torch.Generator().manual_seed(1))
    caches = [KeyValueCache(decoder.config, batch, length, padding, dtype=torch.float64) for _ in range(2)]
    decode = Decoding(decoder, torch.float64)
    for cache in caches:
        decoder(tokens[:, :4], cache=cache)
    for position in range(4, length):
        expected = decoder.logits(tokens[:, position, None], cache=caches[0])[:, 0]
        torch.testing.assert_close(decode(tokens[:, position, None], caches[1]), expected, rtol=1e-6, atol=1e-6)


def test_the_decoder_is_left_as_it_was() -> None:
    decoder = lively(2, tied=False)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    decode = Decoding(decoder, torch.float64)
    decode(torch.zeros(1, 1, dtype=torch.long), decode.cache(1, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())
