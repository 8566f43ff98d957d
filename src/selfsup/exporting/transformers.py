"""To transformers: what a run keeps is in its layout already, so this is a copy that leaves the run behind."""

from __future__ import annotations

import shutil
from pathlib import Path

from selfsup.errors import UserError
from selfsup.exporting import Exported
from selfsup.files import whole_directory
from selfsup.models.clip import IMAGE, MODEL_TYPE, TEXT
from selfsup.models.directories import read_config
from selfsup.run import find_model


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
    opens_with = f"transformers.{architectures[0]}.from_pretrained({str(directory)!r})"
    return Exported(directory, "transformers", opens_with, None)
