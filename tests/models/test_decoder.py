from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.models.attention import SHORT_ROW, Runs, attention, causal_mask, split
from selfsup.models.counting import parameter_count, sketched
from selfsup.models.decoder import Decoder, DecoderConfig, KeyValueCache, Rotation
from selfsup.models.presets import PRESETS

SMALL = DecoderConfig(vocabulary=50, layers=2, width=32, heads=4, kv_heads=4, head_dim=8, mlp=48, window=16, tied=False)
GROUPED = dataclasses.replace(SMALL, kv_heads=2, tied=True)
CONFIGS = pytest.mark.parametrize("config", [SMALL, GROUPED], ids=["untied", "grouped-tied"])
TOKENS = st.lists(st.integers(0, 49), min_size=2, max_size=16)


def lively(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A decoder whose every parameter matters: a fresh one has matrices of zeros."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config).initialise(generator)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return decoder


# With layers that see the last positions alone, turn in their own way or not at all; and with all that others have.
SLIDING = dataclasses.replace(GROUPED, sliding=3, local=(0,), local_theta=300.0, still=(1,))
OTHER = dataclasses.replace(
    GROUPED,
    qk_norm=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    activation="gelu",
    gain_offset=1.0,
    post_norms=True,
    embedding_scale=5.0,
    score_cap=1.5,
    logit_cap=2.0,
    score_scale=0.2,
    rotation=Rotation((1.0, 2.0, 4.0, 8.0), 1.2),
    sliding=4,
    local=(1,),
)
ALL_SEEING = [lively(SMALL), lively(GROUPED)]
DECODERS = [*ALL_SEEING, lively(SLIDING), lively(OTHER)]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhts,bhsd->bhtd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_plain_formula(kv_heads: int, masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, kv_heads, 9, 8), torch.randn(2, kv_heads, 9, 8)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    mask = torch.zeros(9, 9).masked_fill(~visible, -torch.inf) if masked else None
    torch.testing.assert_close(
        split(attention(q, k, v, mask, causal=not masked), q.shape[1]), plain_attention(q, k, v, visible)
    )


def test_parameters_are_nan_until_initialised() -> None:
    decoder = Decoder(SMALL)
    assert all(parameter.isnan().all() for parameter in decoder.parameters())
    decoder.initialise(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in decoder.parameters())


def test_initialisation_is_a_function_of_the_seed() -> None:
    first, same, other = (
        torch.cat([p.flatten() for p in Decoder(SMALL).initialise(torch.Generator().manual_seed(s)).parameters()])
        for s in (1, 1, 2)
    )
    assert first.equal(same)
    assert not first.equal(other)


def test_a_fresh_untied_decoder_guesses() -> None:
    decoder = Decoder(SMALL).initialise(torch.Generator().manual_seed(0))
    assert decoder.logits(torch.arange(10)[None]).abs().max() == 0


@CONFIGS
def test_gradients_reach_every_parameter(config: DecoderConfig) -> None:
    decoder = lively(config)
    tokens = torch.randint(50, (3, 16))
    F.cross_entropy(decoder.logits(tokens).flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@settings(deadline=None, max_examples=30)
@given(tokens=TOKENS, data=st.data(), decoder=st.sampled_from(DECODERS))
def test_a_future_token_moves_no_earlier_hidden_state(tokens: list[int], data: st.DataObject, decoder: Decoder) -> None:
    place = data.draw(st.integers(1, len(tokens) - 1))
    changed = [*tokens[:place], (tokens[place] + 1) % 50, *tokens[place + 1 :]]
    with torch.no_grad():
        before, after = decoder(torch.tensor([tokens])), decoder(torch.tensor([changed]))
    assert before[:, :place].equal(after[:, :place])
    assert not before[:, place:].equal(after[:, place:])


@settings(deadline=None, max_examples=30)
@given(
    documents=st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=6), min_size=2, max_size=4),
    data=st.data(),
    decoder=st.sampled_from(DECODERS),
)
def test_documents_do_not_see_each_other(documents: list[list[int]], data: st.DataObject, decoder: Decoder) -> None:
    tokens = torch.tensor([[token for document in documents for token in document]])
    numbers = torch.tensor([[n for n, document in enumerate(documents) for _ in document]])
    chosen = data.draw(st.integers(0, len(documents) - 1))
    inside = numbers == chosen
    with torch.no_grad():
        hidden = decoder(tokens, numbers)
        alone = decoder(torch.tensor([documents[chosen]]))
        others_changed = decoder(torch.where(inside, tokens, (tokens + 1) % 50), numbers)
    assert hidden[inside].equal(others_changed[inside])
    torch.testing.assert_close(hidden[inside], alone[0], atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(tokens=TOKENS, data=st.data(), reach=st.integers(1, 6))
def test_a_local_layer_sees_its_last_positions_alone(tokens: list[int], data: st.DataObject, reach: int) -> None:
    """Of one layer, so that nothing older reaches a position through another."""
    decoder = lively(dataclasses.replace(SLIDING, layers=1, still=(), sliding=reach))
    place = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens[:place], (tokens[place] + 1) % 50, *tokens[place + 1 :]]
    with torch.no_grad():
        before, after = decoder(torch.tensor([tokens])), decoder(torch.tensor([changed]))
    moved = (before != after).any(-1)[0].tolist()
    assert moved == [place <= position < place + reach for position in range(len(tokens))]


def test_documents_are_causal_inside() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 9, 4, 5, 9]])
    with torch.no_grad():
        moved = DECODERS[0](tokens, documents) != DECODERS[0](changed, documents)
    assert moved.any(-1).tolist() == [[False, False, True, False, False, True]]


@pytest.mark.parametrize("decoder", DECODERS)
def test_documents_of_long_rows_one_by_one_as_under_a_mask(decoder: Decoder) -> None:
    length = SHORT_ROW + 44
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, (3, length), generator=draws)
    documents = (torch.rand(3, length, generator=draws) < torch.tensor([[0.0], [0.02], [0.9]])).cumsum(1)
    masked = decoder(tokens, documents).detach()
    with torch.no_grad():
        assert isinstance(causal_mask(documents, torch.float32), Runs)
        torch.testing.assert_close(decoder(tokens, documents), masked, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=20)
@given(tokens=TOKENS, data=st.data(), decoder=st.sampled_from(DECODERS))
def test_cached_decoding_equals_the_whole_forward(tokens: list[int], data: st.DataObject, decoder: Decoder) -> None:
    cut = data.draw(st.integers(1, len(tokens) - 1))
    row = torch.tensor([tokens])
    cache = KeyValueCache(decoder.config, 1, len(tokens))
    parts = [row[:, :cut], *row[:, cut:].split(data.draw(st.integers(1, 4)), 1)]
    with torch.no_grad():
        pieces = torch.cat([decoder(part, cache=cache) for part in parts], 1)
        torch.testing.assert_close(pieces, decoder(row), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=10)
@given(sizes=st.lists(st.integers(1, 16), min_size=4, max_size=8), decoder=st.sampled_from(ALL_SEEING))
def test_beyond_the_window_a_position_sees_the_last_window(sizes: list[int], decoder: Decoder) -> None:
    """Held against a plain banded forward over everything, in one layer after the other."""
    length, window = sum(sizes), decoder.config.window
    row = torch.randint(50, (1, length), generator=torch.Generator().manual_seed(length))
    cache = KeyValueCache(decoder.config, 1, length)
    with torch.no_grad():
        pieces = torch.cat([decoder(part, cache=cache) for part in row.split(sizes, 1)], 1)
        # a cache whose window is longer than the text never slides; the band is put into its mask instead
        wide = dataclasses.replace(decoder.config, window=length + 1)
        whole = KeyValueCache(wide, 1, length)
        ages = torch.arange(length)[:, None] - torch.arange(length)
        band = torch.zeros(length, length).masked_fill((ages < 0) | (ages >= window), -torch.inf)
        whole.mask = lambda count, reach=None: band  # type: ignore[method-assign]
        torch.testing.assert_close(pieces, decoder(row, cache=whole), atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    more=st.integers(0, 30),
    decoder=st.sampled_from(DECODERS),
)
def test_rows_padded_on_the_left_equal_single_rows(lengths: list[int], more: int, decoder: Decoder) -> None:
    longest = max(lengths)
    rows = torch.randint(50, (len(lengths), longest + more), generator=torch.Generator().manual_seed(more))
    padding = [longest - length for length in lengths]
    cache = KeyValueCache(decoder.config, len(lengths), longest + more, padding)
    steps = [*rows[:, :longest].split(16, 1), *rows[:, longest:].split(1, 1)]
    with torch.no_grad():
        together = torch.cat([decoder(step, cache=cache) for step in steps if step.shape[1]], 1)
        for number, pad in enumerate(padding):
            alone = KeyValueCache(decoder.config, 1, longest + more - pad)
            parts = rows[number : number + 1, pad:].split(16, 1)
            single = torch.cat([decoder(part, cache=alone) for part in parts], 1)
            torch.testing.assert_close(together[number, pad:], single[0], atol=1e-5, rtol=1e-4)


def test_a_cache_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="at most its window"):
        KeyValueCache(SMALL, 1, 40).advance(17)
    cache = KeyValueCache(SMALL, 1, 4)
    cache.advance(4)
    with pytest.raises(ValueError, match="build it longer"):
        cache.advance(1)


def test_autocast_stays_near_fp32() -> None:
    tokens = torch.randint(50, (2, 16))
    documents = torch.arange(16).floor_divide(5).expand(2, -1)
    exact = DECODERS[0](tokens, documents)
    with torch.autocast("cpu", torch.bfloat16):
        rough = DECODERS[0](tokens, documents)
    assert rough.dtype == torch.bfloat16
    assert not rough.equal(exact)
    assert F.cosine_similarity(exact.flatten(), rough.float().flatten(), 0) > 0.999
    rough.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in DECODERS[0].parameters())
    DECODERS[0].zero_grad()


@CONFIGS
def test_counts_equal_the_built_model(config: DecoderConfig) -> None:
    decoder = Decoder(config)
    assert parameter_count(Decoder, config) == sum(p.numel() for p in decoder.parameters())
    matrices = sum(p.numel() for n, p in decoder.named_parameters() if p.ndim == 2 and "embed" not in n)
    head = config.vocabulary * config.width if config.tied else 0
    attention_flops = 12 * config.layers * config.heads * config.head_dim * 16
    assert sketched(Decoder, config).flops(16) == 6 * (matrices + head) + attention_flops


def test_presets_grow_and_are_named_by_their_blocks() -> None:
    counts = []
    for name, shape in PRESETS.items():
        config = DecoderConfig(
            vocabulary=256, window=256, tied=False, kv_heads=shape.heads, head_dim=shape.head_dim, **shape._asdict()
        )
        blocks = parameter_count(Decoder, config) - 2 * 256 * config.width
        said = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
        assert blocks == pytest.approx(said, rel=0.15), name
        assert config.heads * config.head_dim == config.width
        assert config.mlp % 64 == 0
        counts.append(blocks)
    assert counts == sorted(counts)


def test_a_config_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        dataclasses.replace(SMALL, kv_heads=3)
    with pytest.raises(ValueError, match="even"):
        dataclasses.replace(SMALL, head_dim=7)
