"""A table of token vectors against plain means, and its files as they are read and written."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_tables
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from selfsup.errors import UserError
from selfsup.models.packing import embed, flattened
from selfsup.models.static import StaticConfig, StaticEncoder
from selfsup.models.static_files import read_static

VOCABULARY, WIDTH = 11, 4
START, END = 1, 2


def encoder(around: tuple[int, ...] = ()) -> StaticEncoder:
    made = StaticEncoder(StaticConfig(VOCABULARY, WIDTH, around=around))
    with torch.no_grad():
        made.embedding.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0)))
    return made


TEXTS = st.lists(st.lists(st.integers(3, VOCABULARY - 1), max_size=6), min_size=1, max_size=5)


@given(TEXTS, st.booleans())
@settings(deadline=None)
def test_vectors_are_means_of_the_tokens_between_start_and_end(texts: list[list[int]], framed: bool) -> None:
    made = encoder((START, END) if framed else ())
    rows = [[START, *text, END] if framed else text for text in texts]
    tokens = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    found = embed(made, tokens, lengths, "mean")
    table = made.embedding.weight
    expected = torch.stack([table[text].mean(0) if text else torch.zeros(WIDTH) for text in texts])
    torch.testing.assert_close(found, expected)


def test_gradients_are_those_of_the_means() -> None:
    made, texts = encoder((START, END)), [[3, 3, 5], [10], [4, 9, 8, 7]]
    padded = torch.zeros(3, 8, dtype=torch.long)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text) + 2] = torch.tensor([START, *text, END])
    lengths = torch.tensor([len(text) + 2 for text in texts])
    factors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    (embed(made, flattened(padded, lengths), lengths, "mean") * factors).sum().backward()
    expected = torch.zeros(VOCABULARY, WIDTH)
    for text, factor in zip(texts, factors, strict=True):
        for token in text:
            expected[token] += factor / len(text)
    torch.testing.assert_close(made.embedding.weight.grad, expected)


def test_fresh_tables_are_not_numbers() -> None:
    assert StaticEncoder(StaticConfig(VOCABULARY, WIDTH)).embedding.weight.isnan().all()


def test_hidden_states_are_the_vectors() -> None:
    made = encoder()
    torch.testing.assert_close(made(torch.tensor([[3, 5]]))[0, 1], made.embedding.weight[5])


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["0_StaticEmbedding", "", "."])
def test_the_table_is_found_where_the_first_step_says(place: str, tmp_path: Path) -> None:
    directory = tiny_tables.public(tmp_path / "model", place)
    torch.testing.assert_close(read_static(directory), tiny_tables.table(26), rtol=0, atol=0)


def test_rows_that_tokens_share_are_weighed(tmp_path: Path) -> None:
    directory = tiny_tables.model2vec(tmp_path / "model")
    saved, found = load_file(directory / "model.safetensors"), read_static(directory)
    for token, (row, weight) in enumerate(zip(saved["mapping"].tolist(), saved["weights"].tolist(), strict=True)):
        torch.testing.assert_close(found[token], saved["embeddings"][row] * weight)


BROKEN = {
    "more": ({"more": torch.zeros(2)}, "holds more, which no table"),
    "flat": ({"embeddings": torch.zeros(4)}, "holds no table of token vectors"),
    "empty": ({"embeddings": torch.zeros(0, 4)}, "holds no table of token vectors"),
    "numbers": ({"embeddings": torch.zeros(4, 4, dtype=torch.int32)}, "holds no table of token vectors"),
    "a row too far": ({"mapping": torch.full((26,), 5)}, "rows that the table has not"),
    "a row before": ({"mapping": torch.full((26,), -1)}, "rows that the table has not"),
    "rows in parts": ({"mapping": torch.zeros(26)}, "rows that the table has not"),
    "too few weights": ({"weights": torch.zeros(3)}, "does not weigh each token"),
    "whole weights": ({"weights": torch.zeros(26, dtype=torch.int64)}, "does not weigh each token"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_tables(damage: str, tmp_path: Path) -> None:
    path = tiny_tables.model2vec(tmp_path / "model") / "model.safetensors"
    changed, message = BROKEN[damage]
    save_file(load_file(path) | changed, path)
    with pytest.raises(UserError, match=message):
        read_static(path.parent)


def test_tables_that_no_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny_tables.model2vec(tmp_path / "model")
    monkeypatch.setattr("selfsup.models.static_files.MOST_NUMBERS", 26 * tiny_tables.WIDTH - 1)
    with pytest.raises(UserError, match="gives 26 tokens rows of 8 numbers"):
        read_static(directory)
