"""How images are prepared for a model, as its directory says it: in the JSON of transformers' image processors.

preprocessor_config.json, or the part `image_processor` of processor_config.json. A file says what differs from what its
class does by itself; those classes whose ways are ways here are known by name, others are refused.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.models.directories import MOST_SIDE, broken, number, read_json, shown, whole, write_json
from selfsup.models.kinds import PREPROCESSOR
from selfsup.views import MEAN, STD, Preprocessing
from selfsup.views.preprocessing import Colour

PROCESSOR, PART = "processor_config.json", "image_processor"
LEVELS = 255
ROUNDING = 1e-6
FILTERS = {2: False, 3: True}  # Pillow's numbers of the bilinear and the bicubic filter: whether it is the latter
ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")  # of names of classes
HALF, UNCHANGED = (0.5, 0.5, 0.5), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
IMAGENET, HALVES = {"image_mean": MEAN, "image_std": STD}, {"image_mean": HALF, "image_std": HALF}
SQUARE, SHORT = {"size": {"height": 224, "width": 224}}, {"size": {"shortest_edge": 224}}
CROPPED = {"do_center_crop": True, "crop_size": 224}
# What classes do where a file is silent.
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "ViT": {**SQUARE, **HALVES, "resample": 2},
    "DeiT": {"size": {"height": 256, "width": 256}, **CROPPED, **HALVES, "resample": 3},
    "Bit": {**SHORT, **CROPPED, **CLIP, "resample": 3},
    "CLIP": {**SHORT, **CROPPED, **CLIP, "resample": 3},
    "Siglip": {**SQUARE, **HALVES, "resample": 3},
    "DINOv3ViT": {**SQUARE, **IMAGENET, "resample": 2},
}
# What is usual for models of a type, where their directory says nothing.
USUAL: Mapping[str, Mapping[str, Any]] = {
    "vit": CLASSES["ViT"],
    "vit_mae": {**SQUARE, **IMAGENET, "resample": 2},
    "deit": {**SHORT, **CROPPED, **IMAGENET, "resample": 3},
    "dinov2": {**SHORT, **CROPPED, **IMAGENET, "resample": 3},
    "dinov2_with_registers": {**SHORT, **CROPPED, **IMAGENET, "resample": 3},
    "siglip_vision_model": CLASSES["Siglip"],
    "clip_vision_model": CLASSES["CLIP"],
}

log = logging.getLogger(__name__)


def read_preprocessing(directory: Path, model_type: str | None = None, size: int = 0) -> Preprocessing:
    """How images are prepared for the model of a directory; where that says nothing, as is usual for models of this
    type, at this size. Raises UserError where it is done in a way that is none here, or a file is damaged."""
    path, said = _said(directory)
    if said:
        return _read(_filled(said, path), path)
    usual = USUAL.get(str(model_type))
    if usual is None:
        return Preprocessing.plain(size)
    found = _read(usual, path).at(size)
    log.warning("%s does not say how images are prepared for it; as is usual for its kind, %s.", directory, found.words)
    return found


def write_preprocessing(directory: Path, preprocessing: Preprocessing, origin: Path | None = None) -> None:
    """Say in a model directory how images are prepared for it: as the directory `origin` says it, byte for byte, where
    it is as that says, and with other sizes in it where only these differ."""
    path, said = (directory / PREPROCESSOR, {}) if origin is None else _said(origin)
    if origin is None or not said:
        write_json(directory / PREPROCESSOR, as_processor(preprocessing))
        return
    for name in (PREPROCESSOR, PROCESSOR):
        if (origin / name).exists():
            shutil.copyfile(origin / name, directory / name)
    if read_preprocessing(origin) != preprocessing:
        changed = said | _sizes(preprocessing, bool(_filled(said, path).get("do_center_crop")))
        content = changed if path.name == PREPROCESSOR else read_json(path) | {PART: changed}
        write_json(directory / path.name, content)


def as_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The same as a ViTImageProcessor, which opens without torchvision."""
    return {
        "image_processor_type": "ViTImageProcessor",
        **_sizes(preprocessing, True),
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": next(name for name, bicubic in FILTERS.items() if bicubic == preprocessing.bicubic),
        "do_center_crop": True,
        "do_rescale": True,
        "rescale_factor": 1 / LEVELS,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _sizes(preprocessing: Preprocessing, crops: bool) -> dict[str, Any]:
    resized = preprocessing.resized
    size = {"height": resized, "width": resized} if preprocessing.square else {"shortest_edge": resized}
    kept = {"height": preprocessing.size, "width": preprocessing.size}
    return {"size": size, **({"crop_size": kept} if crops else {})}


def _said(directory: Path) -> tuple[Path, dict[str, Any]]:
    """What a directory says, and in which file; nothing where there is none."""
    path, other = directory / PREPROCESSOR, directory / PROCESSOR
    if path.exists() or not other.exists():
        return path, read_json(path) if path.exists() else {}
    part = read_json(other).get(PART)
    if not isinstance(part, dict):
        raise broken(other, PART, part)
    return other, part


def _filled(said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a file says, and its class where it is silent; a size that is one number as that class takes it."""
    name = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "ViTImageProcessor")
    kind = next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)
    if kind not in CLASSES:
        known = ", ".join(f"{kind}{ENDINGS[0]}" for kind in CLASSES)
        raise UserError(f"{path} prepares images as a {shown(name)}; only {known} can be loaded")
    filled = {**CLASSES[kind], **{key: value for key, value in said.items() if value is not None}}
    if type(filled["size"]) is int:
        filled["size"] = dict.fromkeys(CLASSES[kind]["size"], filled["size"])
    return filled


def _read(said: Mapping[str, Any], path: Path) -> Preprocessing:
    _require_known(said, path)
    resized, square = _side(said["size"], "size", path)
    crops, normalises = said.get("do_center_crop"), said.get("do_normalize", True)
    size = _side(said["crop_size"], "crop_size", path)[0] if crops else resized
    if not (square or crops) or size > resized:
        raise UserError(f"{path} does not make images of {size} × {size} pixels; give a model whose images are square")
    colours = (read_colour(said[key], key, path) for key in ("image_mean", "image_std")) if normalises else UNCHANGED
    return Preprocessing(size, resized, square, FILTERS[said["resample"]], *colours)


def _require_known(said: Mapping[str, Any], path: Path) -> None:
    """Raise a UserError where images are prepared in a way that is none here."""
    factor, known = said.get("rescale_factor", 1 / LEVELS), "can be loaded"
    if type(said["resample"]) is not int or said["resample"] not in FILTERS:
        raise UserError(f"{path} has resample = {shown(said['resample'])}; only 2 (bilinear) and 3 (bicubic) {known}")
    for key, wanted in (("do_resize", True), ("do_rescale", True), ("do_pad", False)):
        if bool(said.get(key, wanted)) != wanted:
            raise UserError(f"{path} has {key} = {shown(said[key])}; only models of images with {wanted} {known}")
    if not number(factor) or abs(LEVELS * factor - 1) > ROUNDING:
        raise UserError(f"{path} has rescale_factor = {shown(factor)}; only models of images with 1/{LEVELS} {known}")


def _side(value: Any, key: str, path: Path) -> tuple[int, bool]:
    """A side, and whether it is that of a square, of a size: {"height", "width"}, {"shortest_edge"}, or one number."""
    sides = value if isinstance(value, dict) else {"height": value, "width": value}
    sides = {name: side for name, side in sides.items() if side is not None}
    known = sides.keys() in ({"height", "width"}, {"shortest_edge"})
    if not known or not all(whole(side, most=MOST_SIDE) for side in sides.values()) or len(set(sides.values())) > 1:
        raise broken(path, key, value)
    return next(iter(sides.values())), "height" in sides


def read_colour(value: Any, key: str, path: Path) -> Colour:
    """A number for each channel; raises UserError where there is no such."""
    values = tuple(value) if isinstance(value, list | tuple) else ()
    least = 1e-6 if key.endswith("std") else -1e30
    if len(values) != 3 or not all(number(one, least) for one in values):
        raise broken(path, key, value)
    return float(values[0]), float(values[1]), float(values[2])
