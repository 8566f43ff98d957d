"""Two towers in one directory, as transformers writes them: CLIP's and SigLIP's classes, read and written.

DIR/config.json               both towers, each an object of its own
DIR/model.safetensors         their weights, their maps into the shared space, the scale of the logits
DIR/tokenizer.json, …         of the text tower
DIR/preprocessor_config.json  how images are prepared
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.files import read_bytes
from selfsup.models import kinds
from selfsup.models.clip import Loss, Similarity
from selfsup.models.directories import MOST_JSON, damaged, read_config, read_weights
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.encoder_layouts import CLIP_TEXT, SIGLIP_TEXT, SavedEncoder
from selfsup.models.features import Features
from selfsup.models.huggingface import Tokenizer, new_model, write_card, write_network
from selfsup.models.kinds import IMAGE, TEXT
from selfsup.models.layouts import Layout
from selfsup.models.packing import embed
from selfsup.models.parity import Difference, noise, open_with_transformers
from selfsup.models.preprocessors import PROCESSOR, read_preprocessing
from selfsup.models.vision import CHANNELS, VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import CLIP as CLIP_IMAGE
from selfsup.models.vision_layouts import SIGLIP as SIGLIP_IMAGE
from selfsup.models.vision_layouts import SavedVision

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
SCALE, BIAS = "logit_scale", "logit_bias"  # the first is a logarithm
# How names begin of weights that are no tower's own, to the other one.
OTHERS = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", SCALE, BIAS)
OBJECTS = {IMAGE: "vision_config", TEXT: "text_config"}  # in config.json
MOST_SCALE = 50.0  # of that logarithm
# What config.json calls the end of a text where it says nothing, and in old files, which mean the largest number.
DEFAULT_END, LEGACY_END = 49407, 2
PREPARED = (kinds.PREPROCESSOR, PROCESSOR)  # files that say how images are prepared


def _within(layout: Layout[C], key: str) -> Layout[C]:
    """The layout of a tower where it stands in an object of config.json, beside the other one's weights."""

    def inner(values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{key}.{name}": value for name, value in values.items()}

    places = {
        name: replace(
            place, keys=tuple(inner(dict.fromkeys(place.keys))), elsewhere=tuple(inner(dict.fromkeys(place.elsewhere)))
        )
        for name, place in layout.places.items()
    }
    return replace(
        layout,
        model_type=None,
        places=places,
        fixed=inner(layout.fixed),
        refused=inner(layout.refused),
        derived=inner(layout.derived),
        spare=(*layout.spare, *(name for name in OTHERS if name != layout.prefix)),
        given={**layout.given, "layout": layout.model_type},
    )


@dataclass(frozen=True)
class TowerLayout:
    """How two towers stand in one directory.

    Attributes:
        loss: which one such models are trained with.
        image, text: the layouts of the towers.
        projections: by the tower, what its map into the shared space is called; the vectors of a tower without one are
            of that space themselves.
        ends: whether a text's vector is that of the token that config.json calls its end.
    """

    model_type: str
    loss: Loss
    image: Layout[VisionConfig]
    text: Layout[EncoderConfig]
    projections: Mapping[str, str]
    ends: bool


LAYOUTS: Mapping[str, TowerLayout] = {
    layout.model_type: layout
    for layout in (
        TowerLayout(
            "clip",
            "softmax",
            _within(CLIP_IMAGE, OBJECTS[IMAGE]),
            _within(CLIP_TEXT, OBJECTS[TEXT]),
            {IMAGE: "visual_projection", TEXT: "text_projection"},
            ends=True,
        ),
        TowerLayout(
            "siglip",
            "sigmoid",
            _within(replace(SIGLIP_IMAGE, fixed={**SIGLIP_IMAGE.fixed, "vision_use_head": True}), OBJECTS[IMAGE]),
            _within(SIGLIP_TEXT, OBJECTS[TEXT]),
            {TEXT: "text_model.head"},
            ends=False,
        ),
    )
}


@dataclass(frozen=True)
class SavedTowers:
    """What a directory of one of `LAYOUTS` holds, as it was read, and its towers by themselves.

    Attributes:
        content, weights: of the files.
        files: what says how images are prepared, by name.
    """

    directory: Path
    layout: TowerLayout
    content: dict[str, Any]
    weights: dict[str, Tensor]
    files: dict[str, bytes]
    image: SavedVision
    text: SavedEncoder
    similarity: Similarity

    def require_end(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """Raise a UserError where transformers finds the end of a text elsewhere than a tokenizer of so many ids puts
        it: at a number in the config, which in old files is always 2 and means the largest number in the text."""
        said = (self.content.get(OBJECTS[TEXT]) or {}).get("eos_token_id", DEFAULT_END)
        end = vocabulary - 1 if said == LEGACY_END else said
        if self.layout.ends and tokenizer.end != end:
            raise damaged(
                f"{self.directory} says that texts end with token {end}, and its tokenizer puts {tokenizer.end} there"
            )


def read_towers(directory: Path) -> SavedTowers:
    """What a directory of two towers of transformers holds. Raises UserError where it is none of `LAYOUTS`, a variant
    with different arithmetic, or damaged."""
    found = read_config(directory).get("model_type")
    if found not in LAYOUTS:
        raise UserError(
            f"{directory} holds two towers of type {found!r}, and those of {', '.join(LAYOUTS)} can be loaded, whose "
            "images are of one size; of SigLIP 2 give one of a fixed resolution, such as patch16-224."
        )
    layout, content, weights = LAYOUTS[str(found)], _plain(read_config(directory)), read_weights(directory)
    image = layout.image.found(content, weights, directory)
    text = layout.text.found(content, weights, directory)
    images = Features(
        image.config.summary, *_map(weights, layout.projections.get(IMAGE), image.config.width, directory)
    )
    texts = Features("last", *_map(weights, layout.projections.get(TEXT), text.config.width, directory))
    if images.dimension(image.config.width) != texts.dimension(text.config.width):
        raise damaged(f"{directory} has towers whose vectors have different dimensions")
    config = replace(image.config, mask_token=False)
    return SavedTowers(
        directory,
        layout,
        content,
        weights,
        {name: read_bytes(directory / name, MOST_JSON) for name in PREPARED if (directory / name).is_file()},
        SavedVision(
            directory, config, image.weights, images, read_preprocessing(directory, config.layout, config.size)
        ),
        SavedEncoder(directory, replace(text.config, window=text.config.positions), text.weights, text.head, texts),
        _similarity(layout, weights, directory),
    )


def _plain(saved: dict[str, Any]) -> dict[str, Any]:
    """What config.json says, each tower in one place: old files may say it in two, of which the second counts, with the
    defaults where it says nothing."""
    content = dict(saved)
    for name in OBJECTS.values():
        if isinstance(second := content.pop(f"{name}_dict", None), dict):
            content[name] = second
    return content


def _map(
    weights: Mapping[str, Tensor], name: str | None, width: int, directory: Path
) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a map of that name from so many numbers into the shared space; none of either without one."""
    if name is None:
        return None, None
    weight, bias = weights.get(f"{name}.weight", torch.empty(0)), weights.get(f"{name}.bias")
    if weight.shape[1:] != (width,) or (bias is not None and bias.shape != weight.shape[:1]):
        raise damaged(f"{directory} holds no {name}.weight from the {width} numbers of its tower, with its bias")
    return weight.float(), None if bias is None else bias.float()


def _similarity(layout: TowerLayout, weights: Mapping[str, Tensor], directory: Path) -> Similarity:
    numbers = {name: weights.get(name, torch.zeros(1)) for name in (SCALE, BIAS)}
    if SCALE not in weights or any(number.numel() != 1 for number in numbers.values()):
        raise damaged(f"{directory} holds no {SCALE} that is one number")
    scale, bias = (float(number) for number in numbers.values())
    if abs(scale) > MOST_SCALE:
        raise damaged(f"{directory} has an absurd {SCALE} ({scale:g})")
    return Similarity(layout.loss, math.exp(scale), bias)


def save_towers(
    directory: Path,
    image: VisionTransformer,
    image_features: Features,
    text: TextEncoder,
    tokenizer: Tokenizer,
    text_features: Features,
    similarity: Similarity,
    card: Callable[[dict[str, float | None]], str],
    origin: SavedTowers,
) -> dict[str, float | None]:
    """Write a directory of the same class as `origin`, with other weights, wholly or not at all: all that opened the
    original opens it. As `clip.save_clip`."""
    content, weights = origin.content, origin.weights
    content, weights = origin.layout.image.merged(content, weights, image.config, image, origin.directory)
    content, weights = origin.layout.text.merged(content, weights, text.config, text, origin.directory)
    weights |= _numbers(origin, similarity)
    for tower, features in ((IMAGE, image_features), (TEXT, text_features)):
        weights |= _named_map(origin.layout.projections.get(tower), features)
    with new_model(directory) as temporary:
        write_network(temporary, content, weights)
        tokenizer.save(temporary, fills=True)
        for name, file in origin.files.items():
            (temporary / name).write_bytes(file)
        found = _differences(temporary, image, image_features, text, tokenizer, text_features)
        write_card(temporary, card(found))
    return found


def _numbers(origin: SavedTowers, similarity: Similarity) -> dict[str, Tensor]:
    """The scale and bias of the logits, in the shapes that they have there."""
    values = {SCALE: math.log(similarity.scale), BIAS: similarity.bias}
    there = {name: origin.weights[name] for name in values if name in origin.weights}
    return {name: torch.full(number.shape, values[name]) for name, number in there.items()}


def _named_map(name: str | None, features: Features) -> dict[str, Tensor]:
    given = {"weight": features.weight, "bias": features.bias}
    return {f"{name}.{kind}": tensor for kind, tensor in given.items() if tensor is not None}


@torch.inference_mode()
def _differences(
    directory: Path,
    image: VisionTransformer,
    image_features: Features,
    text: TextEncoder,
    tokenizer: Tokenizer,
    text_features: Features,
) -> dict[str, float | None]:
    """max |Δ| of the vectors of each tower against stock transformers, of noise; None where that is not installed, or
    where nothing is to be compared."""
    network = open_with_transformers("AutoModel", directory)
    if network is None:
        return {IMAGE: None, TEXT: None}
    pixels = noise((2, CHANNELS, image.config.size, image.config.size))[0]
    tokens = torch.arange(text.config.window)[None] * 7 % text.config.vocabulary
    tokens = tokens.where(tokens != tokenizer.end, 0)
    tokens[:, -1] = tokenizer.end
    device = next(image.eval().parameters()).device
    of_images = image_features.map(image.embed(pixels.to(device), image_features.pooling))
    lengths = torch.tensor([tokens.shape[1]], device=device)
    of_texts = text_features.map(embed(text.eval(), tokens[0].to(device), lengths, text_features.pooling))
    expected = {IMAGE: network.get_image_features(pixels), TEXT: network.get_text_features(tokens)}
    theirs = {name: getattr(found, "pooler_output", found) for name, found in expected.items()}
    found = {IMAGE: of_images, TEXT: of_texts}
    return {name: Difference.between(theirs[name], found[name].float().cpu()).most for name in found}
