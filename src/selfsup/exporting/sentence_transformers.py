"""To sentence-transformers: a directory that stock `SentenceTransformer(…)` opens, and that gives the same vectors.

It holds the encoder without heads, of texts its tokenizer, its feature definition (once more as a pooling step), and a
card that says how far the vectors of the two libraries differ. Of an image-text model it holds both towers so, in
directories of their own, and what sends images to the one and texts to the other. It opens here again, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from selfsup.errors import UserError
from selfsup.exporting import Exported
from selfsup.exporting.sentence_transformers_card import Compared, Tower, told
from selfsup.files import whole_directory
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_encoder
from selfsup.inference.parity import LONG, SAMPLES, written_out
from selfsup.inference.vision import ImageModel
from selfsup.models.dinov3 import write_vision
from selfsup.models.directories import find_model
from selfsup.models.huggingface import write_card
from selfsup.models.kinds import IMAGE, TEXT
from selfsup.models.parity import Difference, quiet_transformers
from selfsup.models.sentence_transformers import (
    write_image_input,
    write_modules,
    write_router,
    write_text_input,
)
from selfsup.models.vision import VisionTransformer


def write(source: Path, directory: Path) -> Exported:
    """Write the encoder of `source`, or both towers, to `directory`. Raises UserError where it holds none, or one
    that is no network of transformers."""
    model, towers = find_model(source), _towers(load_encoder(source))
    with whole_directory(directory) as temporary:
        for name, tower in towers.items():
            (temporary / name).mkdir(exist_ok=True)
            _write_tower(temporary / name, tower)
        if len(towers) > 1:
            shutil.copy(model / "config.json", temporary)
            write_router(temporary, list(towers))
        compared = compare(temporary, list(towers.values()))
        write_card(temporary, told(model, list(towers.values()), compared))
    difference = None if compared is None else compared.difference
    opens_with = f"sentence_transformers.SentenceTransformer({str(directory)!r})"
    return Exported.found(directory, "sentence-transformers", opens_with, difference)


def _towers(model: Tower | PairModel) -> dict[str, Tower]:
    """The encoders of a model by the directory that each is given: by what it takes, or the one there is."""
    return {IMAGE: model.image, TEXT: model.text} if isinstance(model, PairModel) else {"": model}


def _write_tower(directory: Path, tower: Tower) -> None:
    """Into a directory that exists: an encoder, and what makes of it a sentence-transformers directory by itself."""
    if isinstance(tower, EncoderModel):
        tower.write(directory)
        write_text_input(directory, tower.window)
        width = tower.encoder.config.width
    else:
        network = _known(tower)
        write_vision(directory, network)
        write_image_input(directory, tower.features.pooling)
        width = network.config.width
    tower.features.write(directory)
    write_modules(directory, tower.features, width)


def _known(tower: ImageModel) -> VisionTransformer:
    if isinstance(tower.backbone, VisionTransformer):
        return tower.backbone
    raise UserError(
        f"sentence-transformers opens networks of transformers, and {type(tower.backbone.network).__name__} is none; "
        "give a run of selfsup's own vision transformer."
    )


def compare(directory: Path, towers: Sequence[Tower]) -> Compared | None:
    """How far the vectors of stock sentence-transformers on a directory are from those of its towers, in fp32.

    None where sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    with quiet_transformers():
        theirs = SentenceTransformer(
            str(directory), device="cpu", local_files_only=True, trust_remote_code=False
        )

    def differ(tower: Tower, samples: Sequence[Any]) -> Difference:
        found = theirs.encode(list(samples), show_progress_bar=False)
        return Difference.between(
            torch.from_numpy(found), torch.from_numpy(tower.embed(samples, precision="fp32"))
        )

    differences, resized = [], None
    for tower in towers:
        differences.append(differ(tower, _samples(tower)))
        if isinstance(tower, ImageModel):
            resized = differ(tower, pictures(tower.size, 1.7) + pictures(tower.size, 5)).share
    return Compared(Difference.largest(differences), resized)


def _samples(tower: Tower) -> list[Any]:
    if isinstance(tower, ImageModel):
        return [*pictures(tower.size, 1)]
    return [*SAMPLES, LONG, *written_out(tower.tokenizer)]


def pictures(size: int, scale: float) -> list[Image.Image]:
    """Smooth images, always the same: square, wide, high and grey; the short side is `scale` times `size`."""
    side, generator, made = round(scale * size), np.random.default_rng(0), []
    for shape in ((side, side), (2 * side + 1, side), (side, side + 3)):
        dots = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        made.append(dots.resize(shape, Image.Resampling.BICUBIC))
    return [*made, made[0].convert("L")]
