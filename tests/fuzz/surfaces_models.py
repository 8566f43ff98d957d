"""Tokenizers, model directories, probes, embeddings and libraries."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import torch
from damage import of_bytes, of_json, of_json_text

import selfsup
from selfsup.data.tokenizer_loading import open_tokenizer
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError

TEXT = "the cat sat on the hill and the dog ran in the sea [MASK] <|endoftext|> über"
STORIES = [
    {"id": f"n{n}", "text": f"{TEXT.split()[n % 9]} {TEXT.split()[n % 7]} {n}", "year": 1900 + n} for n in range(40)
]


@cache
def good() -> Path:
    """Where good inputs are kept, made once in a process."""
    place = Path(os.environ["FUZZ_SEEDS"])
    place.mkdir(parents=True, exist_ok=True)
    return place


def made(name: str, make: Callable[[Path], object]) -> Path:
    path = good() / name
    if not path.exists():
        make(path)
    return path


# -- tokenizers ----------------------------------------------------------------------------------------------

KINDS = [(kind, family) for kind in ("bpe", "wordpiece", "characters", "words") for family in ("decoder", "encoder")]


def tokenizers(random: Random, place: Path) -> None:
    kind, family = random.choice(KINDS)
    size = None if kind == "characters" else 300
    source = made(
        f"tokenizer-{kind}-{family}", lambda path: train_tokenizer(kind, [TEXT] * 4, size, family=family).save(path)
    )
    shutil.copytree(source, place / "t")
    files = sorted(file for file in (place / "t").iterdir() if file.suffix == ".json")
    file = random.choice(files)
    file.write_bytes(of_json_text(file.read_bytes(), random))
    found = open_tokenizer(place / "t", random.choice(("decoder", "encoder")))
    assert found is not None
    ids = found.encode(TEXT)
    found.decode(ids)
    found.tokens(ids)
    found.token_bytes()


# -- models --------------------------------------------------------------------------------------------------


def _encoder(path: Path) -> None:
    from tiny_encoder import save_tiny

    save_tiny(path)


def _decoder(path: Path) -> None:
    """The model of a tiny run."""
    from surfaces_runs import finished

    shutil.copytree(finished() / "model", path)


def _vision(path: Path) -> None:
    from tiny_vision import save_tiny_vision

    save_tiny_vision(path)


def _convnet(path: Path) -> None:
    from selfsup.models.convnet import ConvNet, ConvNetConfig
    from selfsup.models.convnet_layouts import save_convnet
    from selfsup.models.features import Features

    network = ConvNet(ConvNetConfig(size=16, layers=1, width=2)).initialise(torch.Generator().manual_seed(0))
    save_convnet(path, network, Features("mean"), str)


def _towers(path: Path) -> None:
    from tiny_clip import save_tiny_clip

    save_tiny_clip(path)


def _sentence_transformer(path: Path) -> None:
    selfsup.export(made("encoder", _encoder), out=path, to="sentence-transformers")


def _foreign(name: str) -> Callable[[Path], object]:
    """Of an architecture that transformers opens."""

    def make(path: Path) -> object:
        import foreign

        return getattr(foreign, name)(path)

    return make


def _table(name: str) -> Callable[[Path], object]:
    """Of token vectors."""

    def make(path: Path) -> object:
        import tiny_tables

        return getattr(tiny_tables, name)(path)

    return make


def _with_decoder(path: Path) -> None:
    """An image encoder beside a decoder that fills in pixels."""
    from selfsup.models.pixel_decoder import PixelDecoder, PixelDecoderConfig, save_decoder

    _vision(path)
    save_decoder(PixelDecoder(PixelDecoderConfig(16, 32, 1, 8, 0.5)).initialise(torch.Generator()), path)


MODELS = {
    "bert": _foreign("bert"),
    "roberta": _foreign("roberta"),
    "llama": _foreign("llama"),
    "gpt2": _foreign("gpt2"),
    "pixels": _with_decoder,
    "encoder": _encoder,
    "decoder": _decoder,
    "vision": _vision,
    "convnet": _convnet,
    "towers": _towers,
    "sentence-transformer": _sentence_transformer,
    "table": _table("public"),
    "model2vec": _table("model2vec"),
}


DAMAGED = (".json", ".safetensors")


def models(random: Random, place: Path) -> None:
    """One file of a model directory is damaged, and the model is used for what it is."""
    kind = random.choice(list(MODELS))
    directory = place / "model"
    shutil.copytree(made(kind, MODELS[kind]), directory)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix in DAMAGED)
    file = random.choice(files)
    if random.random() < 0.05:
        file.unlink()
    elif file.suffix == ".json":
        file.write_bytes(of_json_text(file.read_bytes(), random))
    else:
        file.write_bytes(_safetensors(file.read_bytes(), random))
    if kind == "pixels":
        selfsup.show(directory, [np.zeros((20, 20, 3), np.uint8)])
    use(selfsup.load(directory))


def cross_encoders(random: Random, place: Path) -> None:
    """The same of one that reads two texts together, here or by transformers."""
    from tiny_encoders import save_paired

    from selfsup.inference.cross_encoder import CrossEncoderModel

    kind = random.choice(("bert", "roberta", "modernbert", "electra"))
    shutil.copytree(made(f"paired-{kind}", lambda path: save_paired(kind, path)), place / "model")
    file = random.choice([path for path in sorted((place / "model").iterdir()) if path.suffix in DAMAGED])
    damage = of_json_text if file.suffix == ".json" else _safetensors
    file.write_bytes(damage(file.read_bytes(), random))
    assert len(CrossEncoderModel.open(place / "model").score(TEXT, [TEXT, "", "a dog"])) == 3


def _safetensors(data: bytes, random: Random) -> bytes:
    """Another header in front of the same numbers, or a damaged header; flipped numbers are other weights."""
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.5:
        head = json.dumps(of_json(json.loads(header), random)).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(head)) + head + numbers
    damaged = of_bytes(data[: 8 + length], random)
    return damaged + numbers[: random.choice((None, len(numbers) // 2))]


def use(model: object) -> None:
    from selfsup.inference.clip import PairModel
    from selfsup.inference.encoder import EncoderModel
    from selfsup.inference.generate import LanguageModel
    from selfsup.inference.vision import ImageModel
    from selfsup.models.decoder import Decoder

    if isinstance(model, LanguageModel):
        model.generate("the", tokens=4) if isinstance(model.decoder, Decoder) else model.decoder(torch.tensor([[1, 2]]))
    elif isinstance(model, EncoderModel):
        model.embed([TEXT, ""])
    elif isinstance(model, ImageModel):
        model.embed([np.zeros((20, 20, 3), np.uint8)])
    else:
        assert isinstance(model, PairModel)


# -- what models make ----------------------------------------------------------------------------------------


def probes(random: Random, place: Path) -> None:
    from selfsup.evaluation.probe import Probe

    encoder = made("encoder", _encoder)
    data = [{"text": row["text"], "label": str(number % 2)} for number, row in enumerate(STORIES)]
    source = made("probe", lambda path: Probe.fit(encoder, data).save(path))
    shutil.copytree(source, place / "probe")
    file = random.choice(sorted((place / "probe").iterdir()))
    damage = of_json_text if file.suffix == ".json" else _safetensors
    file.write_bytes(damage(file.read_bytes(), random))
    before = Probe.load(source).classify(encoder, [TEXT])
    after = Probe.load(place / "probe").classify(encoder, [TEXT])
    assert len(before) == len(after)


def embeddings(random: Random, place: Path) -> None:
    """A half-finished embedding of which a file is damaged: gone on with, it gives the same bytes, or is refused."""
    from selfsup.inference import embed as module

    encoder = made("encoder", _encoder)

    def half(path: Path) -> None:
        path.mkdir()
        selfsup.embed(encoder, STORIES, path / "whole.parquet", batch=8)
        before = module._write_chunk
        count = 0

        def interrupted(*words: object) -> Path:
            nonlocal count
            count += 1
            if count == 4:
                raise KeyboardInterrupt
            return before(*words)  # type: ignore[arg-type]

        module._write_chunk = interrupted
        try:
            selfsup.embed(encoder, STORIES, path / "out.parquet", batch=8)
        except KeyboardInterrupt:
            pass
        finally:
            module._write_chunk = before

    source = made("half", half)
    shutil.copytree(source, place / "half")
    partial = place / "half" / "out.parquet.partial"
    file = random.choice(sorted(path for path in partial.rglob("*") if path.is_file() and path.stat().st_size))
    file.write_bytes((of_json_text if file.suffix == ".json" else of_bytes)(file.read_bytes(), random))
    out = place / "half" / "out.parquet"
    selfsup.embed(encoder, STORIES, out, batch=8)
    whole, again = (pq.read_table(path) for path in (place / "half" / "whole.parquet", out))
    assert whole.equals(again), "damaged parts were taken for whole ones"


def libraries(random: Random, place: Path) -> None:
    """A library of which a file is damaged is searched, then brought up to date."""
    encoder = made("encoder", _encoder)
    source = made("stories.lance", lambda path: selfsup.index(encoder, STORIES, path, id_column="id"))
    library = place / "stories.lance"
    shutil.copytree(source, library)
    file = random.choice(sorted(path for path in library.rglob("*") if path.is_file()))
    if random.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(of_bytes(file.read_bytes(), random))
    try:
        selfsup.search(library, "the cat sat", top=3)
    except UserError:
        selfsup.index(encoder, STORIES, library, id_column="id")
