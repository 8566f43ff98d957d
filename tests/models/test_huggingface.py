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

from selfsup.errors import UserError
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import load_decoder, save_model
from selfsup.models.parity import network_difference as parity

UNTIED = DecoderConfig(
    vocabulary=50, layers=2, width=32, heads=4, kv_heads=4, head_dim=8, mlp=48, window=16, tied=False
)
TIED = dataclasses.replace(UNTIED, tied=True)
GROUPED = dataclasses.replace(UNTIED, kv_heads=2, rope_theta=500.0, norm_eps=1e-5)
TOKENS = torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(0))


class StubTokenizer:
    start, end, pad = 5, 7, 3

    def save(self, directory: Path, max_length: int | None = None, fills: bool = False) -> None:
        (directory / "tokenizer.json").write_text(f'"{max_length}"')


class BrokenTokenizer(StubTokenizer):
    def save(self, directory: Path, max_length: int | None = None, fills: bool = False) -> None:
        raise OSError("no space left on device")


def lively(config: DecoderConfig) -> Decoder:
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(config).initialise(generator)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return decoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("huggingface") / "model"
    save_model(directory, lively(UNTIED), StubTokenizer(), "# A card\n")
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("config", [UNTIED, TIED, GROUPED], ids=["untied", "tied", "grouped"])
def test_transformers_opens_it_with_the_same_numbers(config: DecoderConfig, tmp_path: Path) -> None:
    decoder = lively(config)
    save_model(tmp_path / "model", decoder, StubTokenizer(), "")
    difference = parity(tmp_path / "model", decoder, TOKENS)
    assert difference is not None
    assert difference.most < 1e-4
    assert difference.is_rounding
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert not any(report.values())
    assert theirs.dtype == torch.float32
    for config in (theirs.config, theirs.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 7, 3)


@pytest.mark.parametrize("config", [UNTIED, TIED, GROUPED], ids=["untied", "tied", "grouped"])
def test_what_is_saved_is_loaded(config: DecoderConfig, tmp_path: Path) -> None:
    decoder = lively(config)
    save_model(tmp_path / "model", decoder, StubTokenizer(), "")
    loaded = load_decoder(tmp_path / "model")
    assert loaded.config == config
    assert loaded.logits(TOKENS).equal(decoder.logits(TOKENS))
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())


def test_parity_notices_other_weights(saved: Path) -> None:
    other = lively(UNTIED)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.1)
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


def test_the_directory_holds_tokenizer_and_card(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (saved / "README.md").read_text() == "# A card\n"
    assert (saved / "tokenizer.json").read_text() == '"16"'


def test_half_a_directory_is_never_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        save_model(tmp_path / "model", lively(UNTIED), BrokenTokenizer(), "")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_not_overwritten(saved: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        save_model(saved, lively(UNTIED), StubTokenizer(), "other")
    assert (saved / "README.md").read_text() == "# A card\n"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_stock_directories_are_loaded(tied: bool, shard: str, tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(config)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    ours = load_decoder(tmp_path)
    assert ours.config.rope_theta == 1e6
    assert ours.config.tied == tied
    torch.testing.assert_close(ours.logits(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-4)


def test_configs_of_transformers_4_are_loaded(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config["rope_parameters"]
    (copy / "config.json").write_text(json.dumps(config | {"rope_scaling": None, "rope_theta": 12345.0}))
    assert load_decoder(copy).config.rope_theta == 12345.0


def test_half_precision_weights_become_fp32(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file({name: w.bfloat16() for name, w in weights.items()}, copy / "model.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in load_decoder(copy).parameters())


def test_a_tied_matrix_may_be_stored_twice(tmp_path: Path) -> None:
    save_model(tmp_path / "model", lively(TIED), StubTokenizer(), "")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, path)
    assert load_decoder(tmp_path / "model").logits(TOKENS).equal(lively(TIED).logits(TOKENS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "k_norm.weight should be absent"),
        ({"model_type": "qwen3_moe"}, "type 'qwen3_moe'"),
        ({"attention_bias": True}, "bias should be 32 and is absent"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types = 'linear_attention'"),
        ({"layer_types": ["full_attention"]}, "broken"),
        ({"use_sliding_window": True, "sliding_window": 0}, "broken"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type = 'longrope'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type = 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 4.0}}, "lacks 'original_max"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "broken"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -4}}, "broken"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "rope_type = \\['linear'\\]"),
        ({"rope_parameters": [1]}, "broken"),
        ({"head_dim": 1 << 20, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "heads of 1,048,576"),
        ({"quantization_config": {}}, "quantised"),
        ({"hidden_size": 64}, "should be"),
        ({"num_hidden_layers": 3}, "is absent"),
        ({"num_hidden_layers": 1}, "should be absent"),
    ],
)
def test_other_models_are_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_decoder(copy)


def test_incomplete_and_broken_directories_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_decoder(copy)
    weights.unlink()
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(UserError, match="only safetensors"):
        load_decoder(copy)
    edit(copy / "config.json", head_dim=None)
    config = json.loads((copy / "config.json").read_text())
    del config["vocab_size"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="lacks 'vocab_size'"):
        load_decoder(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_decoder(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        load_decoder(copy)
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match="is missing"):
        load_decoder(copy)
