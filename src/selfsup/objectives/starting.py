"""Models to start from: where they lie, and what helps where a directory holds another one than an objective takes."""

from __future__ import annotations

from pathlib import Path

from selfsup.data.tokenizers import Family
from selfsup.errors import UserError
from selfsup.models.adapters import writes
from selfsup.models.clip import TEXT
from selfsup.models.dinov3 import MODEL_TYPE as VISION
from selfsup.models.directories import find_model, read_config
from selfsup.models.kinds import described, reads, two_towers

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
    kind, source = TAKEN[family]
    if read_config(directory).get("model_type") == kind:
        return
    if not reads(directory):
        advice = f"give {_text_tower(directory, family) or 'one'}"
    elif writes(directory) == (family == "decoder"):
        advice = f"leave --init out and give model=hf:{directory}"
    else:
        advice = "masked-lm and simcse train encoders" if family == "decoder" else "causal-lm trains decoders"
    raise UserError(
        f"{directory} holds {described(directory)}, and {objective} starts from {source}; {advice}."
    )


def require_texts(directory: Path, family: Family = "encoder") -> None:
    """Raise a UserError where a directory holds no model of texts alone, whatever its architecture."""
    if not reads(directory):
        one = _text_tower(directory, family) or "the directory of one"
        raise UserError(
            f"{directory} holds {described(directory)}, and a model of texts is asked for; give {one}."
        )


def require_image_model(directory: Path, objective: str) -> None:
    """Raise a UserError where a directory holds none whose weights an objective of images starts from (--init)."""
    saved = read_config(directory)
    if saved.get("model_type") != VISION:
        anew = " (a network of timm is trained anew: model=timm:NAME)" if "architecture" in saved else ""
        raise UserError(
            f"{directory} holds {described(directory)}, and {objective} starts from a vision transformer{anew}; give "
            "a run of dino, simclr, mae or clip, or a DINOv3 ViT."
        )


def _text_tower(directory: Path, family: Family) -> str | None:
    """Which is an encoder."""
    there = family == "encoder" and two_towers(directory)
    return f"its text tower, {directory / TEXT}" if there else None
