"""What is exported reads texts as what was measured, special tokens that are written out in them among the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import assert_alike
from foreign import bert
from sentence_transformers import SentenceTransformer
from styles import STYLES
from torch import nn

import selfsup
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import KINDS, Family, TextTokenizer
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import open_model
from selfsup.inference.parity import compare, written_out
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel, TextEncoder
from selfsup.models.encoder_layouts import save_encoder
from selfsup.models.features import Features
from selfsup.models.parity import Difference

CORPUS = ["It was the best of times, it was the worst of times.\n", "[MASK] <|endoftext|> and [SEP]!"] * 5
TEXTS = ["[MASK] and [CLS]", "a text [SEP] [PAD][PAD]", "<|endoftext|>", "the end<|endoftext|>", "the best", ""]
EXACT = 1e-4
WINDOW = 48


def lively(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return module.eval()


def tokenizer_of(kind: Any, family: Family) -> TextTokenizer:
    return train_tokenizer(kind, CORPUS, 400 if kind == "bpe" else None, family=family)


def decoder_directory(place: Path, kind: str) -> Path:
    tokenizer = tokenizer_of(kind, "decoder")
    shape = DecoderConfig(tokenizer.vocabulary, 2, 16, 2, 2, 8, 32, WINDOW, False)
    save_model(place, lively(Decoder(shape)), tokenizer, "")
    return place


def encoder_directory(place: Path, kind: str, head: bool) -> Path:
    tokenizer = tokenizer_of(kind, "encoder")
    shape = EncoderConfig(tokenizer.vocabulary, 2, 16, 2, 32, WINDOW, tied=True)
    model = lively(MaskedLanguageModel(shape) if head else TextEncoder(shape))
    save_encoder(place, model, tokenizer, Features(), "")
    return place


def measured(directory: Path) -> Any:
    model = open_model(directory)
    assert isinstance(model, LanguageModel | EncoderModel)
    return compare(directory, model, None)


@pytest.mark.parametrize("kind", KINDS)
def test_our_directories_take_special_tokens_in_texts_for_text(kind: str, tmp_path: Path) -> None:
    for place in (
        decoder_directory(tmp_path / "decoder", kind),
        encoder_directory(tmp_path / "encoder", kind, head=False),
    ):
        found = measured(place)
        assert found.plain.most < EXACT
        assert found.opened.most < EXACT
        assert found.summary() == {"max_difference": found.plain.most}
        model, stock = open_model(place), transformers.AutoTokenizer.from_pretrained(place)
        tokenizer = model.tokenizer  # type: ignore[union-attr]
        for text in TEXTS:
            assert stock(text).input_ids[1 : 1 + len(tokenizer.encode(text))] == tokenizer.encode(text).tolist()


def test_a_model_that_fills_hidden_places_reads_them(tmp_path: Path) -> None:
    """So its card says what other special tokens do to it, and by how much."""
    place = encoder_directory(tmp_path / "model", "bpe", head=True)
    found = measured(place)
    assert found.plain.most < EXACT
    assert found.opened.most > 100 * EXACT
    assert found.summary()["max_difference_special"] == found.opened.most
    for told in (f"{found.plain.most:.2e}", f"{found.opened.most:.2e}", "[SEP]", "split_special_tokens=True"):
        assert told in found.fact()
    text = "It was [MASK] best of[MASK]"
    fill = transformers.pipeline("fill-mask", str(place))
    expected = [[guess["score"] for guess in guesses] for guesses in fill(text)]
    model = open_model(place)
    assert isinstance(model, EncoderModel)
    ours = [[candidate.probability for candidate in places] for places in model.fill(text)]
    assert_alike(ours, expected)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_vectors_of_texts_with_special_tokens(kind: str, head: bool, tmp_path: Path) -> None:
    place = encoder_directory(tmp_path / "model", kind, head)
    exported = selfsup.export(place, out=tmp_path / "exported")
    theirs = SentenceTransformer(str(tmp_path / "exported")).encode(TEXTS, show_progress_bar=False)
    ours = selfsup.load(place).embed(TEXTS, precision="fp32")
    assert_alike(theirs, ours)
    again = selfsup.load(tmp_path / "exported").embed(TEXTS, precision="fp32")
    assert_alike(again, ours)
    assert exported.max_difference is not None
    assert exported.max_difference < EXACT


def test_vectors_of_an_encoder_from_elsewhere(tmp_path: Path) -> None:
    place = bert(tmp_path / "bert")
    assert measured(place).opened.most > 100 * EXACT
    exported = selfsup.export(place, out=tmp_path / "exported")
    assert exported.max_difference is not None
    assert exported.max_difference < EXACT
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == (place / "tokenizer.json").read_bytes()
    assert measured(tmp_path / "exported").opened.most < EXACT


@pytest.mark.parametrize("style", STYLES)
def test_directories_from_elsewhere(style: str, tmp_path: Path) -> None:
    found = measured(STYLES[style](tmp_path / style))
    assert found.plain.most < EXACT
    assert found.opened.most > 100 * EXACT


def damage(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = place / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_another_reading_is_noticed(tmp_path: Path) -> None:
    model = open_model(decoder_directory(tmp_path / "decoder", "bpe"))
    assert isinstance(model, LanguageModel)
    damage(tmp_path / "decoder", lambda content: content.update(post_processor=None))
    assert compare(tmp_path / "decoder", model, None).plain.most > 100 * EXACT  # type: ignore[union-attr]
    place = encoder_directory(tmp_path / "encoder", "wordpiece", head=False)
    encoder = open_model(place)
    assert isinstance(encoder, EncoderModel)
    assert compare(place, encoder, Difference(0.5, 0.1)).plain.most == 0.5  # type: ignore[union-attr]
    damage(place, lambda content: content["normalizer"].update(lowercase=False))
    assert compare(place, encoder, None).plain.most > 100 * EXACT  # type: ignore[union-attr]


def test_every_special_token_is_written_out() -> None:
    for family, names in (("encoder", ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]), ("decoder", [])):
        texts = written_out(tokenizer_of("words", family))  # type: ignore[arg-type]
        for name in names or ["<|endoftext|>", "<|unk|>"]:
            assert any(name in text for text in texts)


def test_texts_are_padded_and_two_are_one(tmp_path: Path) -> None:
    """A decoder's end token fills rows, as its config says, and closes nothing within a prompt."""
    place = decoder_directory(tmp_path / "decoder", "bpe")
    stock = transformers.AutoTokenizer.from_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    assert stock.pad_token_id == config["pad_token_id"] == stock.eos_token_id
    assert stock(["a", "a longer one"], padding=True).attention_mask[0].count(0) > 0
    one, other = (stock(text, add_special_tokens=False).input_ids for text in ("It was", " the best"))
    assert stock("It was", " the best").input_ids == [stock.bos_token_id, *one, *other]
    template = json.loads((place / "tokenizer.json").read_text())["post_processor"]
    for parts in (template["single"], template["pair"]):
        assert [part.get("SpecialToken", {}).get("id") for part in parts][1:] == [None] * (len(parts) - 1)
