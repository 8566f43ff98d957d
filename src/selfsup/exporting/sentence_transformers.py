"""To sentence-transformers: a directory that stock `SentenceTransformer(…)` opens, and that gives the same vectors.

It holds the encoder without heads, its tokenizer, its feature definition (once more as a pooling step), and a card that
says how far the vectors of the two libraries differ. It opens here again, too.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from selfsup.exporting import Exported
from selfsup.files import whole_directory
from selfsup.inference.encoder import EncoderModel
from selfsup.models.huggingface import quiet_transformers
from selfsup.models.sentence_transformers import write_modules
from selfsup.run import find_model, load_text_encoder

EXACT = 1e-5  # max |Δ| of fp32 vectors that is put down to rounding
CARD_FILE = "README.md"
# Short and long, with and without what is not plain English; the last one is longer than small windows.
SAMPLES = (
    "A cat sleeps.",
    "The dog barks at the sea, and the sea does not answer.",
    "Il pleuvait à verse; 42 % of the umbrellas were broken.",
    "Yes",
    "whale " * 300,
)

log = logging.getLogger(__name__)


def write(source: Path, directory: Path) -> Exported:
    """Write the encoder of `source` to `directory`; raises UserError where it holds none."""
    model, card = load_text_encoder(source), find_model(source) / CARD_FILE
    with whole_directory(directory) as temporary:
        model.write(temporary)
        features = model.features
        features.write(temporary)
        write_modules(
            temporary,
            features.pooling,
            features.weight,
            features.bias,
            model.encoder.config.width,
            model.window,
        )
        difference = compare(temporary, model)
        (temporary / CARD_FILE).write_text(_card(card, model, difference), encoding="utf-8")
    if difference is not None and difference > EXACT:
        log.warning("The vectors differ by up to %.1e, which is more than rounding explains.", difference)
    opens_with = f"sentence_transformers.SentenceTransformer({str(directory)!r})"
    return Exported(directory, "sentence-transformers", opens_with, difference)


def compare(directory: Path, model: EncoderModel) -> float | None:
    """max |Δ| in fp32 between the vectors of `SAMPLES` by stock sentence-transformers on a directory and by `model`.

    None where sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    with quiet_transformers():
        theirs = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    expected = theirs.encode(list(SAMPLES), show_progress_bar=False)
    return float(np.abs(expected - model.embed(SAMPLES, precision="fp32")).max())


def _card(own: Path, model: EncoderModel, difference: float | None) -> str:
    """The card of the model, with what is said of it as a sentence-transformers directory."""
    parity = (
        "unchecked (sentence-transformers was not installed when it was written)"
        if difference is None
        else f"max |Δ| = {difference:.2e} in fp32, over {len(SAMPLES)} texts"
    )
    pooling = {
        "mean": "the mean of its last hidden states",
        "cls": "the last hidden state of its first token",
    }
    return CARD.format(
        own=_body(own),
        dimension=model.dimension,
        pooling=pooling[model.features.pooling]
        + (", mapped linearly" if model.features.weight is not None else ""),
        window=model.window,
        parity=parity,
    )


def _body(card: Path) -> str:
    """What a model's card says, without the block of metadata above it."""
    if not card.is_file():
        return "# A text encoder"
    text = card.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2].strip() if text.startswith("---\n") else text.strip()


CARD = """\
---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [selfsup, sentence-transformers, feature-extraction, sentence-similarity]
---
{own}

## As a sentence-transformers model

- Vectors: {dimension} numbers; {pooling}; not normalised (compare them by their cosine)
- Longest text: {window} tokens; longer ones lose their end
- The same vectors as selfsup's: {parity}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/directory")
vectors = model.encode(["A cat sleeps.", "The dog barks."])
print(model.similarity(vectors, vectors))
```
"""
