"""To transformers: what a run keeps is in its layout already, so this is a copy that leaves the run behind.

Where the run had no time to compare its model with stock transformers, or did not find it, the copy is compared.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

from selfsup.errors import UserError
from selfsup.exporting import Exported
from selfsup.files import whole_directory
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.vision import ImageModel
from selfsup.models import dinov3, huggingface, modernbert
from selfsup.models.clip import IMAGE, MODEL_TYPE, TEXT
from selfsup.models.decoder import Decoder
from selfsup.models.directories import read_config
from selfsup.models.encoder import MaskedLanguageModel
from selfsup.models.huggingface import exactness, spread_tokens
from selfsup.models.vision import VisionTransformer
from selfsup.run import find_model, open_model


def write(source: Path, directory: Path) -> Exported:
    """Copy the model directory of `source` to `directory`."""
    model = find_model(source)
    config = read_config(model)
    if not config.keys() & {
        "model_type",
        "architecture",
    }:  # the latter is of timm's, which transformers wraps
        raise UserError(
            f"{source} holds a network from Python, which transformers does not know; selfsup.load opens it."
        )
    if config.get("model_type") == MODEL_TYPE:
        raise UserError(
            f"{source} holds two towers, which transformers opens one by one; export {model / IMAGE} or {model / TEXT}."
        )
    architectures = config.get("architectures") or ["AutoModel"]
    with whole_directory(directory) as temporary:
        shutil.copytree(model, temporary, dirs_exist_ok=True)
        difference = _compare(temporary)
    opens_with = f"transformers.{architectures[0]}.from_pretrained({str(directory)!r})"
    return Exported(directory, "transformers", opens_with, difference)


def _compare(directory: Path) -> float | None:
    """Compare a model whose card says that it is unchecked, and write into the card what was found."""
    card = directory / "README.md"
    said = card.read_text(encoding="utf-8") if card.is_file() else ""
    difference = _difference(directory) if exactness(None) in said else None
    if difference is not None:
        card.write_text(said.replace(exactness(None), exactness(difference)), encoding="utf-8")
    return difference


def _difference(directory: Path) -> float | None:
    """max |Δ| in fp32 between stock transformers and selfsup on a directory; None where transformers is missing."""
    model = open_model(directory)
    if isinstance(model, ImageModel):
        return dinov3.parity(directory, cast(VisionTransformer, model.backbone))
    if isinstance(model, LanguageModel):
        decoder = cast(Decoder, model.decoder)
        tokens = spread_tokens(decoder.config.vocabulary, decoder.config.window)
        return huggingface.parity(directory, decoder, tokens)
    encoder = cast(EncoderModel, model)
    tokens = spread_tokens(encoder.native.config.vocabulary, encoder.window)
    return modernbert.parity(
        directory, cast(MaskedLanguageModel | None, encoder.masked) or encoder.native, tokens
    )
