"""The packed decoder against the one that is trained: the same logits, position by position."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfsup.inference import decoding
from selfsup.inference.decoding import Decoding, PackedMap, prepared
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 40])
@torch.inference_mode()
def test_prepared_maps(dtype: torch.dtype, biased: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either form a map is that of torch, of a matrix that is a view too."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(48, 2 * 70, generator=generator).to(dtype)[:, ::2]
    bias = torch.randn(48, generator=generator).to(dtype) if biased else None
    x = torch.randn(rows, 70, generator=generator).to(dtype)
    close = {"rtol": 0.02, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    for large in (0, 48 * 70 + 1):
        monkeypatch.setattr(decoding, "LARGE", large)
        made = prepared(matrix, bias)
        if large:
            assert not isinstance(made, PackedMap)
        torch.testing.assert_close(made(x), F.linear(x, matrix, bias), **close)


@torch.inference_mode()
def test_a_decoder_of_packed_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = lively(2, tied=False).float()
    tokens = torch.randint(30, (2, 5), generator=torch.Generator().manual_seed(1))
    plain = Decoding(decoder, torch.float32)
    monkeypatch.setattr(decoding, "LARGE", 0)
    packed = Decoding(decoder, torch.float32)
    torch.testing.assert_close(
        packed(tokens, packed.cache(2, 8)), plain(tokens, plain.cache(2, 8)), rtol=1e-4, atol=1e-4
    )
