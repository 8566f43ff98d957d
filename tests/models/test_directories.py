"""What lies in a model directory: what is refused before anything of it is opened."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoder import save_tiny

from selfsup.errors import UserError
from selfsup.models.adapters import open_network
from selfsup.models.directories import MOST_JSON, read_config, read_json, read_weights
from selfsup.models.encoder_layouts import read_encoder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def change(directory: Path, name: str = "config.json", **values: Any) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attn_implementation": "someone/kernels"}, r"asks for kernels of others \(attn_implementation someone/k"),
        ({"_attn_implementation": "someone/kernels@v1:fast"}, "asks for kernels of others"),
        ({"text_config": {"_attn_implementation": {"": "someone/kernels"}}}, "asks for kernels of others"),
        ({"layers": [{"experts_implementation": "someone/kernels"}]}, "asks for kernels of others"),
        ({"transformers_weights": "other.safetensors"}, "names other weights than model.safetensors"),
        ({"quantization_config": {"quant_method": "fp8"}}, "holds quantised weights"),
        ({"vision_config": {"model_type": "timm_wrapper", "architecture": "hf-hub:a/b"}}, "a part that timm builds"),
        ({"model_type": "detr", "use_timm_backbone": True}, "a part that timm builds"),
    ],
)  # fmt: skip
def test_what_lies_elsewhere_is_not_asked_for(values: dict[str, Any], message: str, directory: Path) -> None:
    change(directory, **values)
    with pytest.raises(UserError, match=message):
        read_config(directory)


def test_an_adapter_is_no_model(directory: Path) -> None:
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    with pytest.raises(UserError, match="holds an adapter of another model; merge the two"):
        read_config(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
def test_links_that_lead_out_are_refused(name: str, directory: Path, tmp_path: Path) -> None:
    (directory / name).rename(tmp_path / name) if (directory / name).exists() else (tmp_path / name).touch()
    (directory / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} leads out of the model's directory"):
        read_encoder(directory)
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "elsewhere").symlink_to(directory)
    (directory / name).unlink()
    (tmp_path / name).rename(directory / name)
    assert read_encoder(tmp_path / "seen" / "elsewhere").config.layers == 1  # a link to the whole is none out of it


def test_the_cache_of_the_hub_holds_links(directory: Path, tmp_path: Path) -> None:
    place = tmp_path / "models--a--b"
    (place / "snapshots" / "0").mkdir(parents=True)
    directory.rename(place / "blobs")
    for path in (place / "blobs").iterdir():
        (place / "snapshots" / "0" / path.name).symlink_to(f"../../blobs/{path.name}")
    assert read_encoder(place / "snapshots" / "0").config.layers == 1


@pytest.mark.parametrize("named", ["../other.safetensors", "{}/other.safetensors", "../../x\0y", "/dev/zero"])
@pytest.mark.parametrize("kind", ["ours", "bert"])
def test_shards_lie_in_the_directory(named: str, kind: str, tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model") if kind == "ours" else foreign.bert(tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").rename(tmp_path / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, named.format(tmp_path))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="leads out of the model's directory"):
        read_weights(directory) if kind == "ours" else open_network("AutoModelForMaskedLM", directory)


@pytest.mark.parametrize("index", [{}, {"weight_map": None}, {"weight_map": {"a": 1}}, {"weight_map": ["a"]}])
def test_an_index_names_a_file_for_each_weight(index: Any, directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names no file for each weight"):
        read_weights(directory)


def test_shards_are_read(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    for number, some in enumerate((names[::2], names[1::2])):
        save_file({name: weights[name] for name in some}, directory / f"{number}.safetensors")
    index = {"weight_map": {name: f"{names.index(name) % 2}.safetensors" for name in names}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_weights(directory).items())


def test_code_that_is_named_is_said_not_to_run(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(directory, auto_map={"AutoModel": "mine.Model"})
    change(directory, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.Tokenizer"]})
    with caplog.at_level(logging.WARNING):
        read_encoder(directory)
        read_encoder(directory)
    said = [record.message for record in caplog.records]
    assert said == [f"{directory} names Python code of its own (mine.Model, mine.Tokenizer), which is not run."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "is not a JSON object"),
        (b"{", "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b"[" * 100_000, r"cannot be read \(maximum recursion"),
        (b'{"a":' * 100_000, r"cannot be read \(maximum recursion"),
        (b" " * (MOST_JSON + 1), "it has more than 33,554,432 bytes"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
    ],
)
def test_what_is_no_object_of_json_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_plain_files_are_read(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "config.json")
