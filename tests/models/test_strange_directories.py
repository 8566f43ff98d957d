"""Model directories with files that are damaged, of another kind, or promise what is not there: one sentence each."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import foreign
import numpy as np
import pytest
import tiny_tables
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import save_tiny_clip
from tiny_encoder import save_tiny
from tiny_vision import save_tiny_vision

import selfsup
from selfsup.errors import UserError
from selfsup.inference.generate import LanguageModel
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model
from selfsup.models.features import Features
from selfsup.models.pixel_decoder import PixelDecoder, PixelDecoderConfig, read_decoder, save_decoder

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**31, 10**9, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "12", "\ud800"),
    *([], {}, [[]], [None], ["x", 1], [10**9], {"x": 1}, {"": {}}, [[[[1]]]]),
)


def _decoder(directory: Path) -> Path:
    from selfsup.data.tokenizer_training import train_tokenizer

    tokenizer = train_tokenizer("words", ["the cat ran"] * 2)
    config = DecoderConfig(tokenizer.vocabulary, 1, 32, 2, 1, 16, 64, 16, tied=True)
    save_model(directory, Decoder(config).initialise(torch.Generator()), tokenizer, "A tiny decoder.")
    return directory


def _sentences(directory: Path) -> Path:
    """A directory of sentence-transformers with a linear map, as it leaves it."""
    source = save_tiny(directory.with_name("source"))
    (source / "features.json").unlink()
    Features("mean", torch.randn(8, 32), torch.randn(8)).write(source)
    selfsup.export(source, out=directory)
    (directory / "features.json").unlink()
    return directory


def _pixels(directory: Path) -> Path:
    """A vision transformer beside a decoder that fills in pixels."""
    config = PixelDecoderConfig(encoder=16, width=32, layers=1, patch=8, hidden=0.5)
    save_tiny_vision(directory)
    save_decoder(PixelDecoder(config).initialise(torch.Generator()), directory)
    return directory


MAKE: dict[str, Callable[[Path], Path]] = {
    "decoder": _decoder,
    "encoder": save_tiny,
    "sentences": _sentences,
    "pixels": _pixels,
    "towers": save_tiny_clip,
    "bert": foreign.bert,
    "electra": foreign.electra,
    "llama": foreign.llama,
    "table": lambda directory: tiny_tables.public(directory, ""),
    "model2vec": tiny_tables.model2vec,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp("kept") / kind) for kind, make in MAKE.items()}


def use(directory: Path) -> None:
    """Open what a directory holds, and have it do what it is for."""
    model: Any = selfsup.load(directory)
    if isinstance(model, LanguageModel):
        native = isinstance(model.decoder, Decoder)
        model.generate("the", tokens=2) if native else model.decoder(torch.tensor([[1, 2]]))
    else:
        images = np.zeros((1, 20, 20, 3), np.uint8)
        for one in (model.image, model.text) if hasattr(model, "image") else (model,):
            one.embed(images if hasattr(one, "size") else ["the cat", ""])
    if (directory / "decoder.json").exists():
        read_decoder(directory)


def opened(directory: Path) -> str:
    """What is said of a directory, where it cannot be used; empty where it can."""
    try:
        use(directory)
    except UserError as error:
        assert "\n" not in str(error)
        assert 10 < len(str(error)) < 1000
        return str(error)
    return ""


@pytest.mark.parametrize("kind", MAKE)
def test_as_they_are_they_are_used(kind: str, kept: dict[str, Path]) -> None:
    assert opened(kept[kind]) == ""


MOST = 25  # changed files of a kind of directory


def changes(content: Any, random: Random) -> list[Any]:
    """A JSON value with each of its values replaced by one of another kind, one after the other."""
    found = []
    for key in content if isinstance(content, dict) else range(len(content)):
        rest = dict(content) if isinstance(content, dict) else list(content)
        inner = content[key]
        nested = changes(inner, random) if isinstance(inner, dict | list) else []
        for value in (random.choice(ODD), *nested):
            rest[key] = value
            found.append(json.loads(json.dumps(rest)))
    return found


@pytest.mark.parametrize("kind", MAKE)
def test_values_of_another_kind(kind: str, kept: dict[str, Path], tmp_path: Path) -> None:
    """Each value of each JSON file but the tokenizer's own, which has its tests."""
    random, directory = Random(kind), tmp_path / "model"
    shutil.copytree(kept[kind], directory)
    files = [path for path in sorted(directory.rglob("*.json")) if path.name != "tokenizer.json"]
    whole = {path: path.read_text() for path in files}
    changed = [(path, content) for path in files for content in changes(json.loads(whole[path]), random)]
    changed += [(path, content) for path in files for content in ([], {}, None, "x")]
    for path, content in random.sample(changed, min(MOST, len(changed))):
        path.write_text(json.dumps(content))
        opened(directory)
        path.write_text(whole[path])


SIZES = {
    "decoder": {
        "num_hidden_layers": (10**6, "1,000,000 layers are asked for, and there are 13 tensors"),
        "hidden_size": (10**9, "hidden_size is 1000000000"),
        "intermediate_size": (1 << 24, "does not fit its config.json"),
        "vocab_size": (1 << 24, "does not fit its config.json"),
        "head_dim": (1 << 24, "does not fit its config.json|absurd sizes"),
        "max_position_embeddings": (10**30, "max_position_embeddings is 1000"),
        "num_attention_heads": (0, "num_attention_heads is 0"),
    },
    "encoder": {
        "num_hidden_layers": (10**6, "num_hidden_layers is 1000000"),
        "global_attn_every_n_layers": (0, "global_attn_every_n_layers is 0"),
    },
    "pixels": {
        "num_hidden_layers": (10**6, "1,000,000 layers are asked for"),
        "image_size": (1 << 14, "image_size is 16384"),
        "patch_size": (1 << 24, "cannot be cut into patches"),
        "num_register_tokens": (1 << 23, "does not fit its config.json"),
    },
    "bert": {
        "num_hidden_layers": (10**6, "1,000,000 layers are asked for"),
        "hidden_size": (1 << 20, "does not fit its config.json"),
        "vocab_size": (1 << 24, "does not fit its config.json"),
        "max_position_embeddings": (1 << 24, "does not fit its config.json"),
        "type_vocab_size": (1 << 24, "does not fit its config.json"),
        "intermediate_size": (10**9, "intermediate_size is 1000000000"),
        "num_attention_heads": (0, "num_attention_heads is 0"),
    },
    "electra": {
        "num_hidden_layers": (10**6, "num_hidden_layers is 1000000"),
        "hidden_size": (1 << 20, "numbers, and there are"),
        "vocab_size": (1 << 24, "numbers, and there are"),
        "max_position_embeddings": (1 << 24, "numbers, and there are"),
        "num_labels": (10**6, "num_labels is 1000000"),
        "intermediate_size": (10**9, "intermediate_size is 1000000000"),
        "pad_token_id": (10**9, "pad_token_id is 1000000000"),
        "bos_token_id": ([10**9], "bos_token_id is"),
    },
    "llama": {
        "num_hidden_layers": (1 << 21, "num_hidden_layers is 2097152"),
        "hidden_size": (1 << 20, "does not fit its config.json"),
        "num_key_value_heads": (1 << 20, "must be a multiple of kv_heads"),
        "head_dim": (1 << 20, "does not fit its config.json|absurd sizes"),
        "rope_scaling": ({"type": "linear", "factor": 1e40}, "factor is 1e"),
        "rope_parameters": ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "lacks 'original_max_position"),
    },
}  # fmt: skip
PROMISED = [(kind, key, *found) for kind, sizes in SIZES.items() for key, found in sizes.items()]


@pytest.mark.parametrize(("kind", "key", "value", "message"), PROMISED)
def test_sizes_that_the_weights_have_not(
    kind: str, key: str, value: Any, message: str, kept: dict[str, Path], tmp_path: Path
) -> None:
    """Refused before memory is taken for them."""
    path = shutil.copytree(kept[kind], tmp_path / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert re.search(message, opened(path.parent))


# -- weights -------------------------------------------------------------------------------------------------


def _header(content: Any, numbers: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _entry(*offsets: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def _changed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """One tensor of a file is another."""

    def damage(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    return damage


def _largest(tensors: dict[str, torch.Tensor]) -> str:
    return max(tensors, key=lambda name: tensors[name].numel())


def _set(value: float) -> Callable[[Path], object]:
    return _changed(lambda tensors: tensors[_largest(tensors)].view(-1)[1:2].fill_(value))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "cut header": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"x": 1})),
    "no json": lambda path: path.write_bytes(_header(b"x" * 20)),
    "deep json": lambda path: path.write_bytes(_header(b"[" * 100_000)),
    "long header": lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "beyond the end": lambda path: path.write_bytes(_header(_entry(0, 1 << 50, shape=(1 << 48,)))),
    "backwards": lambda path: path.write_bytes(_header(_entry(4, 0), b"0000")),
    "no such dtype": lambda path: path.write_bytes(_header(_entry(0, 4, dtype="X9"), b"0000")),
    "another size": lambda path: path.write_bytes(_header(_entry(0, 4, shape=(1 << 40,)), b"0000")),
    "no tensors": lambda path: path.write_bytes(_header({})),
    "pipe": _pipe,
    "folder": _folder,
    "one missing": _changed(lambda tensors: tensors.pop(_largest(tensors))),
    "another shape": _changed(lambda tensors: tensors.update({_largest(tensors): torch.zeros(3, 5)})),
    "quantised": _changed(
        lambda tensors: tensors.update({_largest(tensors): tensors[_largest(tensors)].to(torch.float8_e4m3fn)})
    ),
    "no number": _set(float("nan")),
    "infinite": _set(float("inf")),
}  # fmt: skip
WEIGHTS = [
    *((kind, "model.safetensors") for kind in ("decoder", "encoder", "pixels", "bert", "llama", "table", "model2vec")),
    *(("sentences", "2_Dense/model.safetensors"), ("pixels", "decoder.safetensors")),
    *(("towers", "image/features.safetensors"), ("towers", "text/model.safetensors")),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("kind", "name"), WEIGHTS)
def test_damaged_weights(kind: str, name: str, damage: str, kept: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(kept[kind], tmp_path / "model")
    DAMAGES[damage](directory / name)
    said = opened(directory)
    assert "model" in said


@pytest.mark.parametrize("kind", ["decoder", "encoder", "pixels", "bert"])
def test_tensors_that_the_network_has_not(kind: str, kept: dict[str, Path], tmp_path: Path) -> None:
    """Encoders of others may bring heads of their own."""
    directory = shutil.copytree(kept[kind], tmp_path / "model")
    _changed(lambda tensors: tensors.update(more=torch.zeros(2)))(directory / "model.safetensors")
    assert ("more should be absent and is 2" in opened(directory)) == (kind in ("decoder", "pixels"))


def test_half_precision_is_read(kept: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(kept["encoder"], tmp_path / "model")
    path = directory / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    assert opened(directory) == ""
    assert next(selfsup.load(directory).encoder.parameters()).dtype == torch.float32
