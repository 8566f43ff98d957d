"""Networks of timm: what one is built from, the weights that it starts from, and how images are prepared for it."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.models.directories import (
    MOST_SIDE,
    broken,
    listed,
    read_config,
    read_safetensors,
    read_weights,
    shown,
    whole,
)
from selfsup.models.preprocessors import read_colour
from selfsup.models.vision import CHANNELS
from selfsup.views import Preprocessing

TIMM = "timm:"
ARGUMENTS = {"img_size", "dynamic_img_size"}  # that networks of timm are given here
CENTER = "center"
MODES, FILTERS = {CENTER: False, "squash": True}, {"bilinear": False, "bicubic": True}  # square ones, bicubic ones


@dataclass(frozen=True)
class TimmNetwork:
    """What timm builds a network from: its name there, and the arguments that are not that name's own."""

    name: str
    arguments: dict[str, Any]

    def of_vectors(self) -> TimmNetwork:
        """Without its classifier."""
        return TimmNetwork(self.name, {"num_classes": 0, **self.arguments})


def import_timm(name: str) -> Any:
    """The module timm; raises UserError where it cannot be imported."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: of a torchvision that does not fit torch
        raise UserError(
            f"{name} needs timm, which cannot be imported ({error}); pip install timm, and the torchvision that fits "
            "torch."
        ) from None
    return timm


@dataclass(frozen=True)
class TimmStart:
    """Weights that a network of timm starts from, and how images are prepared for it.

    Attributes:
        network: that the weights are of.
        place: the file, or the directory, that the weights lie in.
        left_out: names of the weights of its classifier, which is not kept.
    """

    network: TimmNetwork
    place: Path
    weights: dict[str, Tensor]
    preprocessing: Preprocessing
    left_out: tuple[str, ...]

    @classmethod
    def named(cls, preset: str) -> TimmStart | None:
        """What `timm:NAME@PLACE` names, PLACE a file of safetensors, or a directory as timm writes it for the hub, with
        config.json; None where no place is named. Raises UserError where there is none, it holds another network, or
        images are prepared for it in a way that is none here."""
        name, at, place = preset.removeprefix(TIMM).partition("@")
        if not at:
            return None
        timm, path = import_timm(preset), expanded(place).absolute()
        require_known(timm, name)
        if not path.exists():
            raise UserError(f"There is no {place}; give the file of weights, or a directory of timm.")
        published, arguments = dict(timm.get_pretrained_cfg(name).to_dict()), {}
        if path.is_dir():
            saved = read_config(path)
            published, arguments = published | _published(saved, name, path), known_arguments(timm, saved, path)
        weights = read_weights(path) if path.is_dir() else read_safetensors(path)
        classifiers = tuple(f"{one}." for one in listed(published.get("classifier")) if one)
        left_out = tuple(key for key in weights if classifiers and key.startswith(classifiers))
        kept = {key: tensor for key, tensor in weights.items() if key not in left_out}
        return cls(TimmNetwork(name, arguments), path, kept, _way(published, path), left_out)

    @property
    def preset(self) -> str:
        """What names it from anywhere."""
        return f"{TIMM}{self.network.name}@{self.place}"


def _published(saved: dict[str, Any], name: str, directory: Path) -> dict[str, Any]:
    """What the config.json of a directory says of its weights."""
    if saved.get("architecture") != name:
        raise UserError(f"{directory} holds timm's {saved.get('architecture')}, not {name}; name that one.")
    published = saved.get("pretrained_cfg")
    return published if isinstance(published, dict) else {}


def known_arguments(timm: Any, saved: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The arguments of the network that a config.json names. Raises UserError where there are others than are given
    here: a name may be of the hub, an argument a file."""
    given = saved.get("model_args")
    given = {key: value for key, value in given.items() if key != "num_classes"} if isinstance(given, dict) else {}
    name, sizes = str(saved["architecture"]), (type(v) is bool or whole(v, most=MOST_SIDE) for v in given.values())
    if all(sizes) and given.keys() <= ARGUMENTS and timm.is_model(name):
        return given
    raise UserError(
        f"{directory} holds a network of timm that is built otherwise than here ({name}, {', '.join(given)}); only "
        f"timm's own names with {' and '.join(sorted(ARGUMENTS))} can be loaded"
    )


def _way(published: dict[str, Any], path: Path) -> Preprocessing:
    """How images are prepared, as timm says it."""
    sizes, crop, mode, way = (published.get(key) for key in ("input_size", "crop_pct", "crop_mode", "interpolation"))
    if not (isinstance(sizes, list | tuple) and len(sizes) == 3 and whole(sizes[1], most=MOST_SIDE)):
        raise broken(path, "input_size", sizes)
    if sizes[1] != sizes[2]:
        raise UserError(f"{path} is of images of {sizes[1]} × {shown(sizes[2])} pixels; only square ones can be loaded")
    if not isinstance(crop, float | int) or not 0 < crop <= 1:
        raise broken(path, "crop_pct", crop)
    for key, value, known in (("crop_mode", mode or CENTER, MODES), ("interpolation", way, FILTERS)):
        if not isinstance(value, str) or value not in known:
            raise UserError(f"{path} has {key} = {shown(value)}; only {' and '.join(known)} can be loaded")
    colours = (read_colour(published.get(key), key, path) for key in ("mean", "std"))
    resized, square = math.floor(sizes[1] / crop), MODES[str(mode or CENTER)]
    return Preprocessing(sizes[1], resized, square, FILTERS[str(way)], *colours)


def require_known(timm: Any, known: str) -> None:
    """Raise a UserError where timm has no network of a name."""
    if not timm.is_model(known):
        close = difflib.get_close_matches(known, timm.list_models(), 1, 0.5)
        hint = f"did you mean {TIMM}{close[0]}?" if close else "timm.list_models() lists what there is."
        if Path(known).exists():
            hint = f"to start from a directory of a vision transformer, give --init {known}."
        raise UserError(f"timm has no network '{known}'; {hint}")


def timm_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """How an image becomes pixels, in timm's terms."""
    size, resized = preprocessing.size, preprocessing.resized
    return {
        "input_size": [CHANNELS, size, size],
        "interpolation": "bicubic" if preprocessing.bicubic else "bilinear",
        "crop_pct": size / resized,
        "crop_mode": "squash" if preprocessing.square else "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
