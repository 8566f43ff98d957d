"""The card of a sentence-transformers directory: what the model said of itself, and what this layout adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from selfsup.inference.encoder import EncoderModel
from selfsup.inference.vision import ImageModel

CARD_FILE = "README.md"
Tower = EncoderModel | ImageModel


@dataclass(frozen=True)
class Compared:
    """How far the vectors of two libraries are apart, in fp32.

    Attributes:
        difference: max |Δ|, of images over those whose short side is that of the model.
        resized: of images that are resized, how far a vector moves at most, as a share of its length.
    """

    difference: float
    resized: float | None


def card(model: Path, towers: Sequence[Tower], compared: Compared | None) -> str:
    """The card of a model directory, with what is said of it as a sentence-transformers directory."""
    example = PAIR_EXAMPLE
    if len(towers) == 1:
        example = TEXT_EXAMPLE if isinstance(towers[0], EncoderModel) else IMAGE_EXAMPLE
    texts = any(isinstance(tower, EncoderModel) for tower in towers)
    return CARD.format(
        task="sentence-similarity" if texts else "image-feature-extraction",
        tags="sentence-similarity" if texts else "image-feature-extraction",
        own=_body(model / CARD_FILE),
        facts="\n".join(f"- {fact}" for fact in [*_facts(towers), *_parity(compared)]),
        example=example,
    )


def _facts(towers: Sequence[Tower]) -> list[str]:
    facts = []
    for tower in towers:
        mapped = ", then a linear map" if tower.features.weight is not None else ""
        vectors = f"{_dimension(tower)} numbers; {_pooled(tower)}{mapped}; not normalised"
        if isinstance(tower, EncoderModel):
            facts.append(f"Vectors of texts: {vectors} (compare them by their cosine)")
            facts.append(f"Longest text: {tower.window} tokens; longer ones lose their end")
        else:
            facts.append(f"Vectors of images: {vectors} (compare them by their cosine)")
            facts.append(f"Images: the short side is resized to {tower.size} pixels, the middle is kept")
    if len(towers) > 1:
        facts.append("One call is of images or of texts, not of both")
    return facts


def _dimension(tower: Tower) -> int:
    weight = tower.features.weight
    return tower.dimension if weight is None else len(weight)


def _pooled(tower: Tower) -> str:
    if isinstance(tower, EncoderModel):
        first, mean = "first token", "the mean of its last hidden states"
    else:
        first, mean = "class token", "the mean of the last hidden states of its patches"
    return mean if tower.features.pooling == "mean" else f"the last hidden state of its {first}"


def _parity(compared: Compared | None) -> list[str]:
    if compared is None:
        found = "unchecked (sentence-transformers was not installed when it was written)"
        return [f"The same vectors as selfsup's: {found}"]
    facts = [f"The same vectors as selfsup's: max |Δ| = {compared.difference:.2e} in fp32, on samples"]
    if compared.resized is not None:
        facts.append(
            f"Images of another size: vectors differ by up to {compared.resized:.1%} of their length, since what "
            "resizes them there rounds pixels to 8 bits, and here does not"
        )
    return facts


def _body(path: Path) -> str:
    """What a model's card says, without the block of metadata above it."""
    if not path.is_file():
        return "# An encoder"
    text = path.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2].strip() if text.startswith("---\n") else text.strip()


CARD = """\
---
library_name: sentence-transformers
pipeline_tag: {task}
tags: [selfsup, sentence-transformers, feature-extraction, {tags}]
---
{own}

## As a sentence-transformers model

{facts}

```python
{example}
```
"""
TEXT_EXAMPLE = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
vectors = model.encode(["A cat sleeps.", "The dog barks."])
print(model.similarity(vectors, vectors))"""
IMAGE_EXAMPLE = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
vectors = model.encode([Image.open("cat.jpg"), Image.open("dog.jpg")])
print(model.similarity(vectors, vectors))"""
PAIR_EXAMPLE = """\
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
images = model.encode([Image.open("cat.jpg")])
texts = model.encode(["a cat", "a dog"])
print(model.similarity(images, texts))"""
