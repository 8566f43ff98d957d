"""Sequences in rows: every one once, none over another, and vectors that do not know of their company."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.models import packing
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.encoder_layouts import LAYOUTS
from selfsup.models.packing import POOLINGS, Pooling, embed, lay, pack

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
CONFIG = EncoderConfig(vocabulary=50, layers=3, width=16, heads=2, mlp=24, window=32, tied=True, local_window=6)


def lively(config: EncoderConfig = CONFIG) -> TextEncoder:
    """In fp64, with weights that all matter: a fresh encoder's blocks add nothing."""
    generator = torch.Generator().manual_seed(0)
    encoder = TextEncoder(config).initialise(generator).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return encoder


LONGEST = 20  # tokens of a text


def of_layout(name: str) -> TextEncoder:
    """With as many learnt positions as the longest text asks for, and no more for the padding."""
    given = {**LAYOUTS[name].given, "window": LONGEST, "layout": name, "activation": "gelu_new", "norm_eps": 1e-6}
    first = given.get("first_position", 0)
    return lively(dataclasses.replace(CONFIG, positions=LONGEST + first, token_types=2, **given))


ENCODER = lively().eval()
CAUSAL = dataclasses.replace(CONFIG, positions=LONGEST, embedding_norm=False, biases=True, gated=False, causal=True)
ENCODERS = [ENCODER, lively(CAUSAL).eval(), *(of_layout(name).eval() for name in ("bert", "roberta", "distilbert"))]


@given(lengths=LENGTHS)
def test_every_sequence_is_packed_once_and_none_over_another(lengths: list[int]) -> None:
    rows, offsets, count = pack(lengths, max(lengths))
    taken: set[tuple[int, int]] = set()
    for row, offset, length in zip(rows, offsets, lengths, strict=True):
        places = {(row, place) for place in range(offset, offset + length)}
        assert not places & taken
        assert offset + length <= max(lengths)
        taken |= places
    assert {row for row, _ in taken} == set(range(count))


@given(lengths=LENGTHS)
def test_no_row_could_be_emptied_into_another(lengths: list[int]) -> None:
    """A sequence opens a row only where no open one has room for it, so at most one row is half empty or more."""
    rows, _, count = pack(lengths, max(lengths))
    filled = [sum(n for n, row in zip(lengths, rows, strict=True) if row == number) for number in range(count)]
    assert sum(2 * fill <= max(lengths) for fill in filled) <= 1


@given(lengths=LENGTHS)
def test_a_sequence_goes_where_it_leaves_least_room(lengths: list[int]) -> None:
    """Best fit, longest first, against the plain definition: what is left in the rows, whatever their order."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, room in enumerate(left) if room >= length]
        if not fitting:
            left.append(max(lengths))
            fitting = [len(left) - 1]
        best = min(fitting, key=lambda number: left[number])
        left[best] -= length
    rows, _, count = pack(lengths, max(lengths))
    found = [max(lengths)] * count
    for row, length in zip(rows, lengths, strict=True):
        found[row] -= length
    assert sorted(found) == sorted(left)


def test_packing_wastes_little() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 65, (256,), generator=random).tolist()
    _, _, count = pack(lengths, max(lengths))
    assert sum(lengths) > 0.97 * count * max(lengths)


@given(lengths=LENGTHS)
def test_tokens_lie_where_lay_says(lengths: list[int]) -> None:
    laid = lay(torch.tensor(lengths))
    many = len(lengths) > 1
    room = up(max(lengths)) if many else max(lengths)
    rows, offsets, used = pack(lengths, room)
    count = up(used)
    assert laid.documents.shape == (count, room)
    expected = torch.full((count, room), -1)
    for number, (row, offset, length) in enumerate(zip(rows, offsets, lengths, strict=True)):
        expected[row, offset : offset + length] = number
    assert laid.documents.equal(expected)
    starts = [row * room + offset for row, offset in zip(rows, offsets, strict=True)]
    assert laid.first.tolist() == starts
    places = [start + t for start, length in zip(starts, lengths, strict=True) for t in range(length)]
    assert laid.places.tolist() == places


def up(count: int) -> int:
    """To a multiple of 8, from there on."""
    return count if count < 8 else math.ceil(count / 8) * 8


@pytest.mark.parametrize("block", [1, 3, 256])
def test_vectors_are_made_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BLOCK", block)
    lengths = torch.tensor([3, 1, 7, 2, 5])
    tokens = torch.arange(int(lengths.sum())) % 9 + 1
    found = embed(ENCODER, tokens, lengths, "mean")
    for row, text in zip(found, tokens.split(lengths.tolist()), strict=True):
        torch.testing.assert_close(row, ENCODER(text[None])[0].mean(0))


def test_rows_of_many_batches_have_few_shapes() -> None:
    """Each new one would cost kernels that are made for it, and kept."""
    random = torch.Generator().manual_seed(0)
    batches = [torch.randint(3, 40, (64,), generator=random) for _ in range(100)]
    assert len({lay(lengths).documents.shape for lengths in batches}) <= 4


def alone(encoder: TextEncoder, texts: list[list[int]], pooling: Pooling) -> Tensor:
    """Each text in a row of its own."""
    hidden = [encoder(torch.tensor([text]))[0] for text in texts]
    pooled = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "last": lambda h: h[-1]}[pooling]
    return torch.stack([pooled(h) for h in hidden])


def flat(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([token for text in texts for token in text]), torch.tensor([*map(len, texts)])


TEXTS = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=LONGEST), min_size=1, max_size=9)


@settings(deadline=None, max_examples=100)
@given(texts=TEXTS, pooling=st.sampled_from(POOLINGS), encoder=st.sampled_from(ENCODERS))
def test_a_vector_does_not_know_of_its_company(texts: list[list[int]], pooling: Pooling, encoder: TextEncoder) -> None:
    with torch.no_grad():
        found, expected = embed(encoder, *flat(texts), pooling), alone(encoder, texts, pooling)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_those_of_texts_alone(pooling: Pooling) -> None:
    random = torch.Generator().manual_seed(2)
    texts = [torch.randint(50, (n,), generator=random).tolist() for n in (20, 7, 3, 13, 1, 9, 9)]
    along = torch.randn(len(texts), 16, generator=random, dtype=torch.double)
    packed, plain = lively(), lively()
    (embed(packed, *flat(texts), pooling) * along).sum().backward()
    (alone(plain, texts, pooling) * along).sum().backward()
    for (name, one), other in zip(packed.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad.abs().max() > 0, name
        torch.testing.assert_close(one.grad, other.grad, atol=1e-10, rtol=1e-8, msg=name)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_fp32_where_the_encoder_runs_in_bf16(pooling: Pooling) -> None:
    """And as near to fp32's as bf16 hidden states allow: their mean is not taken in bf16."""
    encoder = lively().float().eval()
    texts = [list(range(n)) for n in (20, 5, 12)]
    exact = embed(encoder, *flat(texts), pooling)
    with torch.autocast("cpu", torch.bfloat16):
        rough = embed(encoder, *flat(texts), pooling)
    assert exact.dtype == rough.dtype == torch.float32
    assert torch.cosine_similarity(exact, rough).min() > 0.999
    assert not rough.bfloat16().float().equal(rough) or pooling != "mean"


def test_dropout_is_drawn_anew_for_each_of_two_equal_texts() -> None:
    encoder = TextEncoder(dataclasses.replace(CONFIG, dropout=0.1)).double()
    encoder.load_state_dict(ENCODER.state_dict())
    first, second = embed(encoder.train(), *flat([[1, 2, 3], [1, 2, 3]]), "mean")
    assert (first - second).abs().max() > 1e-3
    first, second = embed(encoder.eval(), *flat([[1, 2, 3], [1, 2, 3]]), "mean")
    torch.testing.assert_close(first, second)
