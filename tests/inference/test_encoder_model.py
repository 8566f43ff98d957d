"""An encoder in use: vectors, fillings and pseudo-losses against transformers on the same directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.inference import encoder as module
from selfsup.inference.encoder import EncoderModel, by_length
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load, load_as, load_encoder
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel
from selfsup.models.encoder_layouts import save_encoder
from selfsup.models.features import Features
from selfsup.models.packing import POOLINGS, Pooling, lay

TEXT = "The old man sat by the sea and smoked his pipe, while seven dogs slept under a tree. "
WINDOW = 24
TOKENIZER = train_tokenizer("bpe", [TEXT * 3], 300, family="encoder")
TEXTS = ["The old man", "", "sea", TEXT, "seven dogs slept", "The old man", "pipe, " * 20, "naïve 日本"]


def model(pooling: Pooling = "mean", headed: bool = True) -> EncoderModel:
    """Random, but peaked enough that rounding does not decide between tokens."""
    config = EncoderConfig(TOKENIZER.vocabulary, 3, 32, 4, 48, WINDOW, tied=False, bias=True, local_window=6)
    generator = torch.Generator().manual_seed(3)
    made = MaskedLanguageModel(config).initialise(generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return EncoderModel(made.model, TOKENIZER, Features(pooling), made.eval() if headed else None)


MODEL = model()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("encoder") / "model"
    assert isinstance(MODEL.masked, MaskedLanguageModel)
    save_encoder(place, MODEL.masked, TOKENIZER, MODEL.features, "")
    return place


# -- vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_transformers_in_padded_batches(pooling: Pooling, directory: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModel.from_pretrained(directory)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    real = inputs["attention_mask"][..., None]
    places = {"cls": torch.zeros(len(TEXTS), dtype=torch.long), "last": real.sum((1, 2)) - 1}
    chosen = hidden[torch.arange(len(TEXTS)), places.get(pooling, places["cls"])]
    expected = (hidden * real).sum(1) / real.sum(1) if pooling == "mean" else chosen
    made = model(pooling)
    found = made.embed(TEXTS, precision="fp32")
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), made.dimension)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-5, rtol=1e-4)
    assert made.truncated == 2
    np.testing.assert_allclose(found[0], found[5], atol=1e-5)  # the same text, elsewhere in its row


def test_vectors_do_not_depend_on_company_or_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    together = MODEL.embed(TEXTS, precision="fp32")
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = MODEL.embed([TEXTS[place] for place in order], precision="fp32")
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)
    monkeypatch.setattr(module, "PLACES", 30)
    monkeypatch.setattr(module, "ROOM", 8)
    done: list[tuple[int, int]] = []
    small = MODEL.embed(TEXTS, precision="fp32", progress=lambda *counts: done.append(counts))
    np.testing.assert_allclose(small, together, atol=1e-5)
    assert len(done) > 2
    assert done == sorted(done)
    assert done[-1] == (len(TEXTS), len(TEXTS))


def test_vectors_in_bf16_are_near_those_in_fp32() -> None:
    exact, rough = (torch.from_numpy(MODEL.embed(TEXTS, precision=p)) for p in ("fp32", "bf16"))
    assert not exact.equal(rough)
    assert torch.cosine_similarity(exact, rough).min() > 0.999


def test_of_no_text_there_are_no_vectors() -> None:
    assert MODEL.embed([]).shape == (0, 32)
    assert MODEL.truncated == 0


@pytest.mark.parametrize("longest", [9, 30, 70, 300])
def test_texts_fill_rows_of_one_length(longest: int) -> None:
    """Every text once; as many rows as have their places, of little else than texts, but for the last of them."""
    lengths = np.random.default_rng(0).integers(1, longest, 3000)
    batches = list(by_length([np.zeros(length, np.uint16) for length in lengths]))
    order = np.concatenate([numbers for numbers, _ in batches])
    assert sorted(order.tolist()) == list(range(3000))
    assert (np.diff(lengths[order]) <= 0).all()
    laid = [lay(torch.from_numpy(lengths[numbers]), room).documents for numbers, room in batches]
    for (numbers, room), documents in zip(batches, laid, strict=True):
        assert room >= lengths[numbers].max()
        assert documents.shape[1] == room
        assert documents.numel() <= module.PLACES
    full = torch.cat([documents.flatten() for documents in laid[:-1]])
    assert (full < 0).float().mean() < 0.15


# -- hidden words --------------------------------------------------------------------------------------------


def test_candidates_are_the_likeliest_and_probable() -> None:
    (found,) = MODEL.fill("The [MASK] man sat", top=1000)
    assert len(found) == TOKENIZER.vocabulary
    probabilities = [candidate.probability for candidate in found]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert all(candidate.token for candidate in found)  # special tokens and white space by name
    assert {"[CLS]", "[MASK]"} <= {candidate.token for candidate in found}
    first, second = MODEL.fill("[MASK] old [MASK]", top=2)
    assert len(first) == len(second) == 2
    assert first != second


def test_what_cannot_be_filled_is_refused() -> None:
    for made, text, message in (
        (MODEL, "The old man", r"Nothing is hidden in 'The old man'; write \[MASK\]"),
        (MODEL, "[MASK] " + "old " * 30, f"tokens and the model a window of {WINDOW}; give a shorter one"),
        (model(headed=False), "The [MASK]", "no head that predicts hidden tokens; give a run of masked-lm"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            made.fill(text)
        assert len(str(caught.value).splitlines()) == 1


def test_pseudo_losses_hide_each_token_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against transformers, one token after the other; a longer text in pieces."""
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(directory)
    ids = TOKENIZER.encode(TEXT).tolist()
    assert len(ids) > WINDOW
    expected = []
    for start in range(0, len(ids), WINDOW - 2):
        piece = ids[start : start + WINDOW - 2]
        for place, token in enumerate(piece):
            shown = [TOKENIZER.start, *piece[:place], TOKENIZER.mask, *piece[place + 1 :], TOKENIZER.end]
            with torch.no_grad():
                logits = theirs(torch.tensor([shown])).logits[0, place + 1]
            expected.append(-float(logits.log_softmax(-1)[token]))
    np.testing.assert_allclose(MODEL.pseudo_losses(TEXT), expected, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(module, "PLACES", 40)
    np.testing.assert_allclose(MODEL.pseudo_losses(TEXT), expected, atol=1e-4, rtol=1e-4)
    assert MODEL.pseudo_losses("").shape == (0,)


# -- opening -------------------------------------------------------------------------------------------------


def test_a_directory_is_opened_as_what_it_is(directory: Path) -> None:
    made = load(directory)
    assert isinstance(made, EncoderModel)
    assert not made.encoder.training
    np.testing.assert_array_equal(made.embed(TEXTS, "fp32"), MODEL.embed(TEXTS, "fp32"))
    assert load_encoder(directory).fill("The [MASK]") == MODEL.fill("The [MASK]")
    with pytest.raises(UserError, match="holds a text encoder; give the run of a decoder"):
        load_as(directory, LanguageModel)
