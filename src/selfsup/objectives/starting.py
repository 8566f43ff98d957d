"""Models to start from: where they lie, and what helps where a directory holds another one than an objective takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfsup.data.tokenizers import Family
from selfsup.errors import UserError
from selfsup.models.adapters import writes
from selfsup.models.clip import MODEL_TYPE as TOWERS
from selfsup.models.clip import TEXT
from selfsup.models.dinov3 import MODEL_TYPE as VISION
from selfsup.models.dinov3 import PREPROCESSOR
from selfsup.models.directories import read_config
from selfsup.run import find_model

# By the kind of an objective of texts: the architecture that --init takes, and where one comes from.
TAKEN: dict[Family, tuple[str, str]] = {
    "decoder": ("qwen3", "a run of causal-lm or a dense Qwen3"),
    "encoder": ("modernbert", "a run of masked-lm or simcse, or a ModernBERT"),
}


def tower_directory(place: str | Path, tower: str) -> Path:
    """The model directory to start a tower from: of an image-text run, that of its own tower."""
    directory = find_model(place)
    inside = directory / tower
    return inside if (inside / "config.json").is_file() else directory


def require_text_model(directory: Path, objective: str, family: Family) -> None:
    """Raise a UserError where a directory holds none whose weights an objective of texts starts from (--init)."""
    (kind, source), saved = TAKEN[family], read_config(directory)
    if saved.get("model_type") == kind:
        return
    if not _of_texts(directory, saved):
        advice = f"give {_text_tower(directory, saved, family) or 'one'}"
    elif writes(directory) == (family == "decoder"):
        advice = f"leave --init out and give model=hf:{directory}"
    else:
        advice = "masked-lm and simcse train encoders" if family == "decoder" else "causal-lm trains decoders"
    raise UserError(
        f"{directory} holds {_described(directory, saved)}, and {objective} starts from {source}; {advice}."
    )


def require_texts(directory: Path, family: Family = "encoder") -> None:
    """Raise a UserError where a directory holds no model of texts alone, whatever its architecture."""
    saved = read_config(directory)
    if not _of_texts(directory, saved):
        tower = _text_tower(directory, saved, family)
        raise UserError(
            f"{directory} holds {_described(directory, saved)}, and a model of texts is asked for; give "
            f"{tower or 'the directory of one'}."
        )


def require_image_model(directory: Path, objective: str) -> None:
    """Raise a UserError where a directory holds none whose weights an objective of images starts from (--init)."""
    saved = read_config(directory)
    if saved.get("model_type") != VISION:
        anew = " (a network of timm is trained anew: model=timm:NAME)" if _timm(saved) else ""
        raise UserError(
            f"{directory} holds {_described(directory, saved)}, and {objective} starts from a vision "
            f"transformer{anew}; give a run of dino, simclr, mae or clip, or a DINOv3 ViT."
        )


def _of_texts(directory: Path, saved: dict[str, Any]) -> bool:
    return "model_type" in saved and saved["model_type"] != TOWERS and not _of_images(directory, saved)


def _of_images(directory: Path, saved: dict[str, Any]) -> bool:
    return saved.get("model_type") == VISION or (directory / PREPROCESSOR).exists()


def _timm(saved: dict[str, Any]) -> bool:
    return "architecture" in saved


def _text_tower(directory: Path, saved: dict[str, Any], family: Family) -> str | None:
    """Which is an encoder."""
    there = family == "encoder" and saved.get("model_type") == TOWERS
    return f"its text tower, {directory / TEXT}" if there else None


def _described(directory: Path, saved: dict[str, Any]) -> str:
    kind = saved.get("model_type")
    if kind == TOWERS:
        return "two towers"
    if _timm(saved):
        return f"timm's {saved['architecture']}"
    if "class" in saved:
        return f"{saved['class']}, a network from Python"
    of_texts = "a decoder" if writes(directory) else "a text encoder"
    return f"{'an image encoder' if _of_images(directory, saved) else of_texts} of type {kind!r}"
