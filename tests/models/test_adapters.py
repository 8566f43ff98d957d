from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.errors import UserError
from selfsup.models.adapters import AdaptedTextNetwork, fetch, open_decoder, open_encoder, open_network, set_dropout

Make = Callable[[Path], Path]
ENCODERS = [foreign.bert, foreign.roberta, foreign.modernbert]
DECODERS = [foreign.gpt2, foreign.llama, foreign.mistral, foreign.bloom]
STAYS = {"bert", "roberta", "gpt2", "llama"}  # whose rows stay as they are

# Three rows of documents of other lengths, as they are packed; −1 is padding.
DOCUMENTS = torch.tensor([[0] * 9 + [1] * 3, [4] + [5] * 11, [7] * 6 + [8] * 5 + [-1]])
REAL = DOCUMENTS >= 0


def tokens_for(adapted: AdaptedTextNetwork) -> Tensor:
    return torch.randint(5, adapted.config.vocabulary, DOCUMENTS.shape, generator=torch.Generator().manual_seed(3))


def alone(network: Any, tokens: Tensor) -> Tensor:
    """What transformers itself makes of each document by itself: a plain loop, the reference."""
    rows = []
    for row, numbers in zip(tokens, DOCUMENTS, strict=True):
        parts = [row[numbers == number][None] for number in numbers.unique_consecutive()]
        rows.append(torch.cat([network(input_ids=part)[0][0] for part in parts]))
    return torch.stack(rows)


@pytest.mark.parametrize("make", ENCODERS, ids=lambda make: make.__name__)
@torch.no_grad()
def test_an_encoder_sees_each_document_as_if_it_were_alone(make: Make, tmp_path: Path) -> None:
    encoder, masked = open_encoder(make(tmp_path))
    assert masked is not None
    tokens = tokens_for(encoder)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    found = encoder(tokens, DOCUMENTS)
    torch.testing.assert_close(found[REAL], alone(base, tokens)[REAL], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(tokens), base(tokens).last_hidden_state, atol=1e-5, rtol=1e-4)
    assert encoder.packs == (make.__name__ in STAYS)
    assert encoder.config.width == 32


@pytest.mark.parametrize("make", ENCODERS, ids=lambda make: make.__name__)
@torch.no_grad()
def test_the_head_of_masked_lm_has_its_logits(make: Make, tmp_path: Path) -> None:
    _, masked = open_encoder(make(tmp_path))
    assert masked is not None
    tokens = tokens_for(masked.model)
    positions = torch.tensor([[0, 3, 11], [5, 5, 1], [10, 2, 8]])
    stock = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    expected = alone(stock, tokens)[torch.arange(3)[:, None], positions]
    found = masked(tokens, positions, DOCUMENTS) @ masked.output_weight.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", DECODERS, ids=lambda make: make.__name__)
@torch.no_grad()
def test_a_decoder_has_its_logits_document_by_document(make: Make, tmp_path: Path) -> None:
    decoder = open_decoder(make(tmp_path))
    tokens = tokens_for(decoder)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    found = decoder(tokens, DOCUMENTS) @ decoder.output_weight.T
    torch.testing.assert_close(found[REAL], alone(stock, tokens)[REAL], atol=1e-5, rtol=1e-4)
    whole = decoder(tokens) @ decoder.output_weight.T
    torch.testing.assert_close(whole, stock(tokens).logits, atol=1e-5, rtol=1e-4)
    assert decoder.packs == (make.__name__ in STAYS)


def test_both_ways_to_keep_documents_apart_have_the_same_gradient(tmp_path: Path) -> None:
    gradients = []
    for packs in (True, False):
        _, masked = open_encoder(foreign.roberta(tmp_path / str(packs)))
        assert masked is not None
        masked.model.packs = packs
        positions = torch.tensor([[1], [4], [7]])
        logits = masked(tokens_for(masked.model), positions, DOCUMENTS).flatten(0, 1) @ masked.output_weight.T
        F.cross_entropy(logits, torch.tensor([5, 6, 7])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in masked.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_runs_in_mixed_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    encoder, _ = open_encoder(foreign.bert(tmp_path))
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        found = encoder(tokens_for(encoder), DOCUMENTS)
    assert (found.float() - encoder(tokens_for(encoder), DOCUMENTS)).abs().max() < 0.2


def test_windows_are_as_long_as_the_positions(tmp_path: Path) -> None:
    """RoBERTa's table of positions begins behind its padding index."""
    for make in (foreign.bert, foreign.roberta):
        encoder, _ = open_encoder(make(tmp_path / make.__name__))
        assert encoder.config.window == 64
        encoder(torch.full((1, 64), 7))
    encoder, _ = open_encoder(foreign.roberta(tmp_path / "again"))
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, 65), 7))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    _, masked = open_encoder(foreign.bert(tmp_path))
    assert masked is not None
    embeddings = masked.model.network.get_input_embeddings().weight
    assert masked.model.network.get_output_embeddings().weight is embeddings
    names = [name for name, _ in masked.named_parameters()]
    stock = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert len(names) == len(set(names)) == len(list(stock.parameters()))


def test_dropout_is_set_in_every_layer(tmp_path: Path) -> None:
    encoder, _ = open_encoder(foreign.bert(tmp_path))
    tokens = tokens_for(encoder)
    assert set_dropout(encoder, 0.0)
    encoder.train()
    assert encoder(tokens).equal(encoder(tokens))
    assert set_dropout(encoder, 0.3)
    assert not encoder(tokens).equal(encoder(tokens))
    assert not set_dropout(torch.nn.Linear(2, 2), 0.3)


def test_what_is_saved_opens_again(tmp_path: Path) -> None:
    encoder, _ = open_encoder(foreign.bert(tmp_path / "first"))
    tokenizer = load_tokenizer(tmp_path / "first", "encoder")
    encoder.opened.save(tmp_path / "second", tokenizer, heads=False)
    again, masked = open_encoder(tmp_path / "second")
    assert masked is None
    assert type(again.network).__name__ == "BertModel"
    assert again(tokens_for(encoder)).equal(encoder(tokens_for(encoder)))
    files = {path.name for path in (tmp_path / "second").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "model.safetensors"} <= files


# -- what is refused -----------------------------------------------------------------------------------------


def test_an_encoder_is_no_decoder(tmp_path: Path) -> None:
    foreign.bert(tmp_path, "BertLMHeadModel")
    with pytest.raises(UserError, match="sees what comes after a token"):
        open_decoder(tmp_path)


def test_logits_that_are_bent_afterwards_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = foreign.SHAPE | {"vocab_size": 40, "head_dim": 16, "num_key_value_heads": 2}
    config = transformers.Gemma2Config(**shape, final_logit_softcapping=0.01, layer_types=["full_attention"] * 2)
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not just hidden states times a matrix"):
        open_decoder(tmp_path)


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign.bert(tmp_path / "bert", "BertModel")
    lost = open_network("AutoModelForMaskedLM", tmp_path / "bert").fresh
    assert any("cls.predictions" in name for name in lost)
    with pytest.raises(UserError, match="transformers has no AutoModelForMaskedLM"):
        open_network("AutoModelForMaskedLM", foreign.gpt2(tmp_path / "gpt2"))
    (tmp_path / "bert" / "model.safetensors").rename(tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(UserError, match="is missing; only safetensors weights are loaded"):
        open_encoder(tmp_path / "bert")
    shape = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    transformers.T5Model(transformers.T5Config(**shape)).save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match="encoder with a decoder"):
        open_encoder(tmp_path / "t5")


def test_weights_must_be_there(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = foreign.bert(tmp_path, "BertModel") / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if "layer.1.output.dense.weight" not in k}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks encoder\.layer\.1\.output\.dense\.weight"):
        open_encoder(tmp_path)


def test_without_transformers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign.bert(tmp_path)
    whole_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return whole_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install transformers"):
        open_encoder(tmp_path)
    with pytest.raises(UserError, match="pip install transformers"):
        fetch("somebody/some-model")


def test_a_model_of_texts_and_more_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 60}, vision_config={**small, "image_size": 16, "patch_size": 8}
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a CLIPModel, which is no model of texts alone"):
        open_encoder(tmp_path)
