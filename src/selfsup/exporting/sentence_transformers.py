"""To sentence-transformers: a directory that stock `SentenceTransformer(…)` opens, and that gives the same vectors.

It holds the encoder without heads, of texts its tokenizer, its feature definition (once more as a pooling step), and a
card that says how far the vectors of the two libraries differ. Of an image-text model it holds both towers so, in
directories of their own, and what sends images to the one and texts to the other. It opens here again, too.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfsup.errors import UserError
from selfsup.exporting import Exported
from selfsup.exporting.sentence_transformers_card import CARD_FILE, Compared, Tower, card
from selfsup.files import whole_directory
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.vision import ImageModel
from selfsup.models.dinov3 import write_vision
from selfsup.models.huggingface import quiet_transformers, read_json
from selfsup.models.sentence_transformers import (
    write_image_input,
    write_modules,
    write_router,
    write_text_input,
)
from selfsup.models.vision import VisionTransformer
from selfsup.run import find_model, load_encoder

if TYPE_CHECKING:
    from PIL import Image

EXACT = 1e-5  # max |Δ| of fp32 vectors that is put down to rounding
PAIR = "selfsup-clip"  # the model type of two towers
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
    """Write the encoders of `source` to `directory`.

    Raises:
        UserError: it holds none, or a network that transformers does not know.
    """
    model = find_model(source)
    towers = _open(model)
    with whole_directory(directory) as temporary:
        for name, tower in towers.items():
            (temporary / name).mkdir(exist_ok=True)
            _write_tower(temporary / name, tower)
        if len(towers) > 1:
            shutil.copy(model / "config.json", temporary)
            write_router(temporary, list(towers))
        compared = compare(temporary, list(towers.values()))
        (temporary / CARD_FILE).write_text(card(model, list(towers.values()), compared), encoding="utf-8")
    difference = None if compared is None else compared.difference
    if difference is not None and difference > EXACT:
        log.warning("The vectors differ by up to %.1e, which is more than rounding explains.", difference)
    opens_with = f"sentence_transformers.SentenceTransformer({str(directory)!r})"
    return Exported(directory, "sentence-transformers", opens_with, difference)


def _open(model: Path) -> dict[str, Tower]:
    """The encoders of a model directory, by the directory in it where each stands."""
    if read_json(model / "config.json").get("model_type") == PAIR:
        return {"image": ImageModel.load(model / "image"), "text": EncoderModel.load(model / "text")}
    return {"": load_encoder(model)}


def _write_tower(directory: Path, tower: Tower) -> None:
    """Into a directory that exists: an encoder, and what makes of it a sentence-transformers directory by itself."""
    if isinstance(tower, EncoderModel):
        tower.write(directory)
        write_text_input(directory, tower.window)
        width = tower.encoder.config.width
    else:
        network = tower.backbone
        if not isinstance(network, VisionTransformer):
            raise UserError(
                "sentence-transformers opens networks of transformers; give a run whose images are seen by selfsup's "
                "own vision transformer."
            )
        write_vision(directory, network)
        write_image_input(directory, tower.features.pooling)
        width = network.config.width
    tower.features.write(directory)
    write_modules(directory, tower.features, width)


def compare(directory: Path, towers: Sequence[Tower]) -> Compared | None:
    """How far the vectors of stock sentence-transformers on a directory are from those of its towers, in fp32.

    None where sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    with quiet_transformers():
        theirs = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    differences, resized = [], None
    for tower in towers:
        if isinstance(tower, EncoderModel):
            differences.append(np.abs(_apart(theirs, tower, SAMPLES)[0]).max())
        else:
            differences.append(np.abs(_apart(theirs, tower, images(tower.size, 1))[0]).max())
            moved, expected = _apart(theirs, tower, [*images(tower.size, 1.7), *images(tower.size, 5)])
            resized = float((np.linalg.norm(moved, axis=1) / np.linalg.norm(expected, axis=1)).max())
    return Compared(float(max(differences)), resized)


def _apart(theirs: Any, tower: Tower, samples: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The differences (n, dimension) of vectors from those of a tower, and the latter."""
    expected = tower.embed(samples, precision="fp32")
    return theirs.encode(list(samples), show_progress_bar=False) - expected, expected


def images(size: int, scale: float) -> list[Image.Image]:
    """Smooth images, always the same ones: square, wide, high, grey; the short side is `scale` times `size`."""
    from PIL import Image

    side, generator = round(scale * size), np.random.default_rng(0)
    made = []
    for width, height in ((side, side), (2 * side + 1, side), (side, side + 3)):
        dots = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        made.append(dots.resize((width, height), Image.Resampling.BICUBIC))
    return [*made, made[0].convert("L")]
