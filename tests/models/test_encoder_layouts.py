"""Encoder directories: stock transformers opens ours with the same numbers, we open theirs, others are refused."""

from __future__ import annotations

import builtins
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import KINDS, Kind, TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load
from selfsup.models.adapters import AdaptedEncoder
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel, TextEncoder
from selfsup.models.encoder_layouts import LAYOUTS, STEMS, read_encoder, save_encoder
from selfsup.models.features import Features
from selfsup.models.kinds import ENCODERS, TEXT_TOWERS
from selfsup.models.layouts import Unfit
from selfsup.models.parity import network_difference as parity
from selfsup.models.sentence_transformers import read_features

TEXT = ["The old man sat by the sea and smoked his pipe, while seven dogs slept under an old tree."] * 9


def trained(kind: Kind) -> TextTokenizer:
    return train_tokenizer(kind, TEXT, 300 if kind == "bpe" else None, family="encoder")


TOKENIZER = trained("bpe")
UNTIED = EncoderConfig(
    vocabulary=TOKENIZER.vocabulary,
    layers=4,
    width=32,
    heads=4,
    mlp=48,
    window=96,
    tied=False,
    local_window=8,
    dropout=0.1,
)
TIED = dataclasses.replace(
    UNTIED, tied=True, bias=True, heads=2, global_every=2, rope_theta=700.0, local_rope_theta=20.0, norm_eps=1e-4
)
CONFIGS = pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied with bias"])
HEADED = pytest.mark.parametrize("headed", [False, True])
TOKENS = torch.randint(UNTIED.vocabulary, (3, 40), generator=torch.Generator().manual_seed(0))


def lively(config: EncoderConfig) -> MaskedLanguageModel:
    generator = torch.Generator().manual_seed(0)
    model = MaskedLanguageModel(config).initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def logits(model: MaskedLanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens)) @ model.output_weight.T


def save(
    directory: Path,
    config: EncoderConfig,
    headed: bool = True,
    tokenizer: TextTokenizer = TOKENIZER,
    pooling: Any = "mean",
) -> MaskedLanguageModel:
    """Write a directory, with its head or without; returns the whole model."""
    model = lively(config)
    save_encoder(directory, model if headed else model.model, tokenizer, Features(pooling), "# A card\n")
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("modernbert") / "model"
    save(directory, UNTIED)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# -- ours, opened there --------------------------------------------------------------------------------------


@CONFIGS
@HEADED
def test_transformers_opens_it_with_the_same_numbers(config: EncoderConfig, headed: bool, tmp_path: Path) -> None:
    model = save(tmp_path / "model", config, headed)
    kind = transformers.AutoModelForMaskedLM if headed else transformers.AutoModel
    theirs, report = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == ("ModernBertForMaskedLM" if headed else "ModernBertModel")
    assert not any(report.values())
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        if headed:
            found, expected = theirs(TOKENS).logits, logits(model, TOKENS)
        else:
            found, expected = theirs(TOKENS).last_hidden_state, model.model(TOKENS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    difference = parity(tmp_path / "model", model if headed else model.model, TOKENS)
    assert difference is not None
    assert difference.most == pytest.approx(float((found - expected).abs().max()), abs=1e-6)


def test_transformers_finds_the_encoder_in_a_directory_with_a_head(saved: Path) -> None:
    theirs = transformers.AutoModel.from_pretrained(saved)
    with torch.no_grad():
        found, expected = theirs(TOKENS).last_hidden_state, lively(UNTIED).model(TOKENS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_its_config_says_what_others_ask_for(saved: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(saved)
    assert (config.pad_token_id, config.cls_token_id, config.sep_token_id) == (0, 1, 2)
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert config.max_position_embeddings == 96
    assert (config.embedding_dropout, config.attention_dropout, config.mlp_dropout) == (0.1, 0.1, 0.1)
    assert config.classifier_pooling == "mean"


def test_transformers_opens_its_tokenizer(saved: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    text = "The old man smoked."
    assert theirs(text)["input_ids"] == TOKENIZER.frame(TOKENIZER.encode(text)).tolist()
    assert theirs(text, "His pipe.")["input_ids"] == [
        *TOKENIZER.frame(TOKENIZER.encode(text)),
        *TOKENIZER.encode("His pipe."),
        TOKENIZER.end,
    ]
    assert theirs.model_max_length == 96
    assert len(theirs("old " * 200, truncation=True)["input_ids"]) == 96
    batch = theirs(["old man by the sea", "sea"], padding=True)
    assert batch["input_ids"][1][-1] == theirs.pad_token_id == TOKENIZER.pad
    assert theirs.mask_token_id == TOKENIZER.mask


@pytest.mark.parametrize("kind", KINDS)
@CONFIGS
def test_the_fill_mask_pipeline_gives_our_numbers(config: EncoderConfig, kind: Kind, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    save(tmp_path / "model", dataclasses.replace(config, vocabulary=tokenizer.vocabulary), tokenizer=tokenizer)
    fill = transformers.pipeline("fill-mask", str(tmp_path / "model"))
    ours = load(tmp_path / "model")
    assert isinstance(ours, EncoderModel)
    text = "The old man sat by the [MASK] and smoked his [MASK]."
    for found, expected in zip(fill(text, top_k=4), ours.fill(text, top=4), strict=True):
        assert [one["score"] for one in found] == pytest.approx([one.probability for one in expected], abs=1e-5)
        for one, other in zip(found, expected, strict=True):
            assert one["token_str"].strip() in (other.token, "")  # white space is named here
        assert found[0]["score"] > found[1]["score"]


def test_the_feature_extraction_pipeline_gives_our_vectors(tmp_path: Path) -> None:
    model = save(tmp_path / "model", TIED, headed=False)
    extract = transformers.pipeline("feature-extraction", str(tmp_path / "model"))
    text = "Seven dogs slept."
    found = torch.tensor(extract(text))[0].mean(0)
    ours = EncoderModel(model.model, TOKENIZER, Features("mean")).embed([text], precision="fp32")
    torch.testing.assert_close(found, torch.from_numpy(ours[0]), atol=1e-5, rtol=1e-4)


def test_parity_notices_other_weights(saved: Path) -> None:
    other = lively(UNTIED)
    with torch.no_grad():
        other.model.final_norm.weight.mul_(1.1)
    difference = parity(saved, other, TOKENS)
    assert difference is not None
    assert difference.most > 1e-2
    assert not difference.is_rounding


def test_parity_is_unknown_without_transformers(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return whole_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert parity(saved, lively(UNTIED), TOKENS) is None


# -- written and read ----------------------------------------------------------------------------------------


def test_what_the_directory_holds(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "features.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert (saved / "README.md").read_text() == "# A card\n"
    assert json.loads((saved / "features.json").read_text()) == {"pooling": "mean", "mapped": False}


@CONFIGS
@HEADED
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_what_is_saved_is_read(config: EncoderConfig, headed: bool, pooling: str, tmp_path: Path) -> None:
    model = save(tmp_path / "model", config, headed, pooling=pooling)
    read = read_encoder(tmp_path / "model")
    bias = config.bias and headed  # a directory without a head says nothing of its bias but what was configured
    assert dataclasses.replace(read.config, bias=bias) == dataclasses.replace(config, bias=bias)
    assert read.features == Features(pooling)  # type: ignore[arg-type]
    encoder = read.encoder().eval()
    assert type(encoder) is TextEncoder
    with torch.no_grad():
        assert encoder(TOKENS).equal(model.model(TOKENS))
    assert all(p.requires_grad and p.is_leaf for p in encoder.parameters())
    if headed:
        assert logits(read.masked().eval(), TOKENS).equal(logits(model, TOKENS))
    else:
        assert not read.head
        with pytest.raises(UserError, match="no head that predicts hidden tokens"):
            read.masked()
    assert load_tokenizer(tmp_path / "model", "encoder").fingerprint == TOKENIZER.fingerprint


def test_half_a_directory_is_never_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(TextTokenizer, "save", full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path / "model", UNTIED)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_overwritten(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        save(saved, TIED)
    assert (saved / "model.safetensors").read_bytes() == before


def test_features_are_the_mean_where_nothing_is_said(copy: Path) -> None:
    (copy / "features.json").unlink()
    assert read_features(copy) == Features("mean")
    (copy / "features.json").write_text('{"pooling": "max"}')
    with pytest.raises(UserError, match=r"pooling 'max'; it is one of mean, cls, last$"):
        read_encoder(copy)
    (copy / "features.json").write_text("{}")
    with pytest.raises(UserError, match="pooling None"):
        read_encoder(copy)


# -- theirs, opened here -------------------------------------------------------------------------------------


def stock_config(**changes: Any) -> transformers.ModernBertConfig:
    """A small one with ModernBERT's defaults: tied, with a bias in the decoder."""
    small = {
        "vocab_size": TOKENIZER.vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 96,
        "local_attention": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    }
    return transformers.ModernBertConfig(**small | changes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_stock_directories_are_read(tied: bool, bias: bool, shard: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = stock_config(tie_word_embeddings=tied, decoder_bias=bias, global_attn_every_n_layers=2)
    theirs = transformers.ModernBertForMaskedLM(config).eval()
    if bias:
        torch.nn.init.normal_(theirs.decoder.bias)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    read = read_encoder(tmp_path)
    assert (read.config.tied, read.config.bias, read.config.global_every) == (tied, bias, 2)
    with torch.no_grad():
        torch.testing.assert_close(logits(read.masked().eval(), TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-4)
        hidden = theirs.model(TOKENS).last_hidden_state
        torch.testing.assert_close(read.encoder()(TOKENS), hidden, atol=1e-5, rtol=1e-4)
    assert read.features == Features("mean")


@pytest.mark.parametrize("kind", ["ModernBertModel", "ModernBertForSequenceClassification"])
def test_the_encoder_of_other_stock_models_is_read(kind: str, tmp_path: Path) -> None:
    """Without a head, and with a head for something else."""
    torch.manual_seed(0)
    theirs = getattr(transformers, kind)(stock_config()).eval()
    theirs.save_pretrained(tmp_path)
    hidden = getattr(theirs, "model", theirs)(TOKENS).last_hidden_state
    torch.testing.assert_close(read_encoder(tmp_path).encoder()(TOKENS), hidden, atol=1e-5, rtol=1e-4)
    TOKENIZER.save(tmp_path)
    assert EncoderModel.load(tmp_path).embed(["sea"]).shape == (1, 32)


def test_configs_of_transformers_4_are_read(copy: Path) -> None:
    """As those of ModernBERT-base: rotary bases beside the rest, no kinds of layers, defaults left out."""
    config = json.loads((copy / "config.json").read_text())
    for name in ("rope_parameters", "layer_types", "tie_word_embeddings", "decoder_bias"):
        del config[name]
    config |= {
        "local_rope_theta": 30.0,
        "global_rope_theta": 12345.0,
        "position_embedding_type": "absolute",
        "sparse_prediction": False,
        "reference_compile": False,
        "torch_dtype": "float32",
    }
    (copy / "config.json").write_text(json.dumps(config))
    read = read_encoder(copy).config
    assert (read.rope_theta, read.local_rope_theta) == (12345.0, 30.0)
    assert (read.tied, read.bias) == (True, True)
    theirs = transformers.AutoConfig.from_pretrained(copy)
    assert (theirs.tie_word_embeddings, theirs.decoder_bias) == (True, True)
    assert theirs.rope_parameters["full_attention"]["rope_theta"] == 12345.0
    assert theirs.rope_parameters["sliding_attention"]["rope_theta"] == 30.0


def test_half_precision_weights_become_fp32(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({name: w.bfloat16() for name, w in weights.items()}, copy / "model.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in read_encoder(copy).masked().parameters())


def test_a_tied_matrix_may_be_stored_twice(tmp_path: Path) -> None:
    model = save(tmp_path / "model", TIED)
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    table = weights["model.embeddings.tok_embeddings.weight"].clone()
    save_file(weights | {"decoder.weight": table}, path)
    assert logits(read_encoder(tmp_path / "model").masked().eval(), TOKENS).equal(logits(model, TOKENS))


# -- what is refused -----------------------------------------------------------------------------------------


def assert_refused(directory: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        EncoderModel.load(directory)
    assert len(str(caught.value).splitlines()) == 1


VARIANTS = pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu'; only ModernBERT encoders with 'gelu'"),
        ({"classifier_activation": "relu"}, "classifier_activation = 'relu'"),
        ({"norm_bias": True}, "norm_bias = True"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"classifier_bias": True}, "classifier_bias = True"),
        ({"layer_types": ["full_attention"] * 4}, r"layer_types = \[.*; only ModernBERT encoders with \["),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}, "yarn"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 4.0}}}, "linear"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
    ],
)


@VARIANTS
def test_variants_are_no_networks_here(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **changes)
    with pytest.raises(Unfit, match=message):
        read_encoder(copy)


def test_a_variant_is_used_by_transformers_and_that_is_said(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(copy / "config.json", hidden_activation="silu")
    model = EncoderModel.load(copy)
    assert isinstance(model.network, AdaptedEncoder)
    assert "only ModernBERT encoders with 'gelu' can be loaded. It is opened by transformers." in caplog.text
    network = transformers.AutoModel.from_pretrained(copy)
    text = model.tokenizer.frame(model.tokenizer.encode("The old man")).tolist()
    expected = network(torch.tensor([text])).last_hidden_state[0].mean(0)
    vector = torch.from_numpy(model.embed(["The old man"], precision="fp32")[0])
    torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"num_attention_heads": 5}, "multiple of heads"),
        ({"hidden_size": 64}, "should be"),
        ({"num_hidden_layers": 5, "layer_types": None}, "is absent"),
        ({"num_hidden_layers": 3, "layer_types": None}, "should be absent"),
        ({"vocab_size": 400}, "should be 400×32"),
        ({"decoder_bias": True}, "bias should be"),
        ({"vocab_size": None}, "lacks 'vocab_size'"),
        ({"max_position_embeddings": None}, "lacks 'max_position_embeddings'"),
    ],
)
def test_other_models_are_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **changes)
    assert_refused(copy, message)


@pytest.mark.parametrize("kind", ["electra", "qwen3", None])
def test_other_architectures_are_not_read(kind: str | None, copy: Path) -> None:
    edit(copy / "config.json", model_type=kind)
    with pytest.raises(UserError, match=f"type {kind!r}, and what is opened by itself here is bert, .*hf:{copy}"):
        read_encoder(copy)


def test_incomplete_and_broken_directories_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert_refused(copy, "cannot be read")
    weights.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    assert_refused(copy, "only safetensors")
    weights.write_bytes(whole)
    tokenizer = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").unlink()
    assert_refused(copy, r"There is no .*tokenizer\.json")
    (copy / "tokenizer.json").write_text(tokenizer[:100])
    assert_refused(copy, "no tokenizer that")
    for content, message in (("{", "cannot be read"), ("[]", "not a JSON object")):
        (copy / "config.json").write_text(content)
        assert_refused(copy, message)
    (copy / "config.json").unlink()
    assert_refused(copy, "is missing")


def test_a_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    big = train_tokenizer("characters", ["".join(map(chr, range(300, 700)))], family="encoder")
    assert big.vocabulary > UNTIED.vocabulary
    big.save(copy)
    assert_refused(copy, f"has {big.vocabulary} tokens and the encoder {UNTIED.vocabulary}")


def test_every_type_that_is_known_has_a_layout_and_a_class() -> None:
    assert {*ENCODERS, *TEXT_TOWERS} == LAYOUTS.keys()
    assert set(ENCODERS) <= STEMS.keys()
    for name in ENCODERS:
        assert hasattr(transformers, f"{STEMS[name]}ForMaskedLM")
