"""To sentence-transformers: a directory that stock `SentenceTransformer(…)` opens, and that gives the same vectors.

It holds the encoder without heads, of texts its tokenizer, its feature definition (once more as a pooling step), and a
card that says how far the vectors of the two libraries differ. Of an image-text model it holds both towers so, in
directories of their own, and what sends images to the one and texts to the other. It opens here again, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from selfsup.errors import UserError
from selfsup.exporting import Written
from selfsup.exporting.transformers import copied
from selfsup.files import whole_directory
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import cut, load_encoder
from selfsup.inference.parity import LONG, SAMPLES, written_out
from selfsup.inference.vision import ImageModel
from selfsup.models.adapters import transformers_at_work
from selfsup.models.cards import card
from selfsup.models.convnet import ConvNet
from selfsup.models.directories import MODULES, find_model, forget_code
from selfsup.models.features import DOCUMENT, QUERY
from selfsup.models.huggingface import CARD, write_card
from selfsup.models.kinds import IMAGE, TEXT, in_one
from selfsup.models.parity import Difference
from selfsup.models.sentence_transformers import (
    keep_modules,
    normalizes,
    write_image_input,
    write_modules,
    write_router,
    write_text_input,
)
from selfsup.models.static import UNLIMITED, StaticEncoder
from selfsup.models.vision import VisionTransformer
from selfsup.models.vision_layouts import write_vision

Tower = EncoderModel | ImageModel


def write(source: Path, directory: Path, dimension: int | None = None) -> Written:
    """Write the encoder of `source`, or both towers, to `directory`, or of one of texts what keeps of each vector the
    first `dimension` numbers (`truncate_dim` there). Raises UserError where it holds none, or one that is no network of
    transformers."""
    model, opened = find_model(source), load_encoder(source)
    if dimension is not None and not isinstance(opened, EncoderModel):
        raise UserError(f"{source} holds {opened.kind}, and --dimension is for a text encoder; leave it out.")
    cut(opened, dimension)
    towers: dict[str, Tower]  # by the directory that each is given: by what it takes, or the one there is
    towers = {IMAGE: opened.image, TEXT: opened.text} if isinstance(opened, PairModel) else {"": opened}
    whole = copied(model, directory) if in_one(model) else whole_directory(directory)  # the former it opens as it is
    with whole as temporary:
        if in_one(model):
            forget_code(temporary)
        else:
            _write_towers(temporary, model, towers)
        compared = compare(temporary, list(towers.values()))
        write_card(temporary, told(model, list(towers.values()), compared))
    opens_with = f"sentence_transformers.SentenceTransformer({str(directory)!r})"
    return opens_with, None if compared is None else compared.difference


def _write_towers(directory: Path, model: Path, towers: dict[str, Tower]) -> None:
    for name, tower in towers.items():
        (directory / name).mkdir(exist_ok=True)
        _write_tower(directory / name, tower)
    if len(towers) > 1:
        shutil.copy(model / "config.json", directory)
        write_router(directory, list(towers))


def _write_tower(directory: Path, tower: Tower) -> None:
    """Into a directory that exists: an encoder, and what makes of it a sentence-transformers directory by itself."""
    if isinstance(tower, EncoderModel):
        tower.write(directory)
        if isinstance(tower.network, StaticEncoder):  # with its steps
            return
        width = tower.encoder.config.width
        if tower.directory is not None:
            keep_modules(tower.directory, directory, tower.features, width, tower.window)
        write_text_input(directory, tower.window)
    elif isinstance(tower.backbone, VisionTransformer):
        write_vision(directory, tower.backbone, tower.preprocessing, tower.directory)
        write_image_input(directory, tower.backbone.config, tower.features.pooling)
        width = tower.backbone.config.width
    else:
        network = "a TextNet" if isinstance(tower.backbone, ConvNet) else type(tower.backbone.network).__name__
        raise UserError(
            f"sentence-transformers opens networks of transformers that make tokens, and {network} is none; give a run "
            "of selfsup's own vision transformer."
        )
    tower.features.write(directory)
    if not (directory / MODULES).exists():
        write_modules(directory, tower.features, width)


@dataclass(frozen=True)
class Compared:
    """How far the vectors of two libraries are apart, in fp32."""

    difference: Difference  # of images, over those whose short side is that of the model
    resized: float | None  # how far a vector of a resized image moves at most, as a share of its length


def compare(directory: Path, towers: Sequence[Tower]) -> Compared | None:
    """How far the vectors of stock sentence-transformers on a directory are from those of its towers, in fp32.

    None where sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    with transformers_at_work(str(towers[0].directory or directory)):  # whose steps these are
        theirs = SentenceTransformer(str(directory), device="cpu", local_files_only=True, trust_remote_code=False)

    encoders: dict[str | None, Callable[..., Any]]  # by the prompt that each takes
    encoders = {None: theirs.encode, QUERY: theirs.encode_query, DOCUMENT: theirs.encode_document}

    def differ(tower: Tower, samples: Sequence[Any], prompt: str | None = None) -> Difference:
        found = torch.from_numpy(encoders[prompt](list(samples), show_progress_bar=False))
        ours = torch.from_numpy(tower.embed(samples, precision="fp32", prompt=prompt))
        if _normalized(tower):  # there before they are cut
            found, ours = F.normalize(found, dim=1), F.normalize(ours, dim=1)
        return Difference.between(found, ours)

    differences, resized = [], None
    for tower in towers:
        prompts = encoders if len(towers) == 1 and tower.features.prompts else (None,)
        differences += [differ(tower, _samples(tower), prompt) for prompt in prompts]
        if isinstance(tower, ImageModel):
            resized = differ(tower, pictures(tower.size, 1.7) + pictures(tower.size, 5)).share
    return Compared(Difference.largest(differences), resized)


def _normalized(tower: Tower) -> bool:
    """Whether a step of what is written normalises its vectors, as it did where the tower was opened."""
    return isinstance(tower, EncoderModel) and tower.directory is not None and normalizes(tower.directory)


def _samples(tower: Tower) -> list[Any]:
    if isinstance(tower, ImageModel):
        first, *others, last = pictures(tower.preprocessing.resized, 1)
        return [first, *([] if tower.preprocessing.square else others), last]  # none is resized
    framed = tower.tokenizer.marks.mask is None  # by files of others, to which special tokens in a text are those
    return [*SAMPLES, LONG, *([] if framed else written_out(tower.tokenizer))]


def pictures(size: int, scale: float) -> list[Image.Image]:
    """Smooth images, always the same: square, wide, high and grey; the short side is `scale` times `size`."""
    side, generator, made = round(scale * size), np.random.default_rng(0), []
    for shape in ((side, side), (2 * side + 1, side), (side, side + 3)):
        dots = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        made.append(dots.resize(shape, Image.Resampling.BICUBIC))
    return [*made, made[0].convert("L")]


# -- the card -----------------------------------------------------------------------------------------------


def told(model: Path, towers: Sequence[Tower], compared: Compared | None) -> str:
    """The card of a model directory, with what is said of its towers as a sentence-transformers directory."""
    texts = any(isinstance(tower, EncoderModel) for tower in towers)
    task = "sentence-similarity" if texts else "image-feature-extraction"
    return card(
        "",
        f"{_body(model / CARD)}\n\n## As a sentence-transformers model",
        _facts(towers) | _parity(compared),
        PAIRS if len(towers) > 1 else TEXTS if texts else IMAGES,
        library="sentence-transformers",
        task=task,
        tags=["sentence-transformers", "feature-extraction", task],
    )


def _facts(towers: Sequence[Tower]) -> dict[str, str]:
    facts = {}
    for tower in towers:
        kind = "texts" if isinstance(tower, EncoderModel) else "images"
        mapped = ", mapped linearly" if tower.features.weight is not None else ""
        facts[f"Vectors of {kind}"] = (
            f"{tower.dimension} numbers; {_pooled(tower)}{mapped}; {NORMALIZED if _normalized(tower) else BARE}"
        )
        if isinstance(tower, EncoderModel):
            if tower.window < UNLIMITED:
                facts["Longest text"] = f"{tower.window} tokens; longer ones lose their end"
            facts |= _prompts(tower)
        else:
            facts["Images"] = tower.preprocessing.words
    return facts | ({"One call": "is of images or of texts, not of both"} if len(towers) > 1 else {})


def _prompts(tower: EncoderModel) -> dict[str, str]:
    """What is put before texts, for a card, and to which numbers vectors were trained to be cut."""
    features = tower.features
    ends = {"a query": QUERY, "a document": DOCUMENT, "any other text": None}
    put = {f"Before {end}": features.prompt(name) for end, name in ends.items()}
    told = {before: json.dumps(text, ensure_ascii=False) for before, text in put.items() if text}
    trained = ", ".join(map(str, features.dimensions))
    return told | ({"Vectors may be cut to": f"{trained} numbers (`truncate_dim`)"} if trained else {})


def _pooled(tower: Tower) -> str:
    if isinstance(tower.network, StaticEncoder):
        return "the mean of the vectors of its tokens"
    return (OF_TEXTS if isinstance(tower, EncoderModel) else OF_IMAGES)[tower.features.pooling]


def _parity(compared: Compared | None) -> dict[str, str]:
    if compared is None:
        found = "unchecked (sentence-transformers was not installed when it was written)"
        return {"The same vectors as selfsup's": found}
    facts = {"The same vectors as selfsup's": f"max |Δ| = {compared.difference.most:.2e} in fp32, on samples"}
    if compared.resized is not None:
        facts["Images that are resized"] = (
            f"vectors differ by up to {compared.resized:.1%} of their length, for pixels are rounded to 8 bits there, "
            "and much larger images first reduced by a whole number here"
        )
    return facts


def _body(path: Path) -> str:
    """What a model's card says, without the block of metadata above it."""
    if not path.is_file():
        return "# An encoder"
    text = path.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2].strip() if text.startswith("---\n") else text.strip()


BARE = "not normalised (compare them by their cosine)"
NORMALIZED = "normalised by a last step, which selfsup leaves out"
OF_TEXTS = {
    "mean": "the mean of its last hidden states",
    "cls": "the last hidden state of its first token",
    "last": "the last hidden state of its last token",
}
OF_IMAGES = {
    "mean": "the mean of the last hidden states of its patches",
    "cls": "the last hidden state of its class token",
    "attention": "what a query that was learnt for it makes of the last hidden states of its patches",
}
TEXTS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
vectors = model.encode(["A cat sleeps.", "The dog barks."])
print(model.similarity(vectors, vectors))"""
IMAGES = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
vectors = model.encode([Image.open("cat.jpg"), Image.open("dog.jpg")])
print(model.similarity(vectors, vectors))"""
PAIRS = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
images = model.encode([Image.open("cat.jpg")])
texts = model.encode(["a cat", "a dog"])
print(model.similarity(images, texts))"""
