"""The card of a sentence-transformers directory: what the model said of itself, and what this layout adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfsup.inference.encoder import EncoderModel
from selfsup.inference.vision import ImageModel
from selfsup.models.cards import card
from selfsup.models.huggingface import CARD
from selfsup.models.parity import Difference

Tower = EncoderModel | ImageModel


@dataclass(frozen=True)
class Compared:
    """How far the vectors of two libraries are apart, in fp32.

    Attributes:
        difference: of images, over those whose short side is that of the model.
        resized: of images that are resized, how far a vector moves at most, as a share of its length.
    """

    difference: Difference
    resized: float | None


def told(model: Path, towers: Sequence[Tower], compared: Compared | None) -> str:
    """The card of a model directory, with what is said of its towers as a sentence-transformers directory."""
    kinds = {type(tower) for tower in towers}
    task = "sentence-similarity" if EncoderModel in kinds else "image-feature-extraction"
    return card(
        "",
        f"{_body(model / CARD)}\n\n## As a sentence-transformers model",
        _facts(towers) | _parity(compared),
        PAIRS if len(kinds) > 1 else TEXTS if EncoderModel in kinds else IMAGES,
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
            f"{tower.dimension} numbers; {_pooled(tower)}{mapped}; not normalised (compare them by their cosine)"
        )
        if isinstance(tower, EncoderModel):
            facts["Longest text"] = f"{tower.window} tokens; longer ones lose their end"
        else:
            facts["Images"] = f"the short side is resized to {tower.size} pixels, the middle is kept"
    return facts | ({"One call": "is of images or of texts, not of both"} if len(towers) > 1 else {})


def _pooled(tower: Tower) -> str:
    if isinstance(tower, EncoderModel):
        first, mean = "first token", "the mean of its last hidden states"
    else:
        first, mean = "class token", "the mean of the last hidden states of its patches"
    return mean if tower.features.pooling == "mean" else f"the last hidden state of its {first}"


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
