"""Two towers and how their vectors are compared, as a model directory; each tower opens by itself.

DIR/config.json   which loss it was trained with, its scale and bias, and the dimension of the shared space
DIR/image/        a network that sees, see `selfsup.models.backbones`; its features map into the shared space
DIR/text/         a text encoder, see `selfsup.models.encoder_layouts`, likewise
DIR/README.md     the model card
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from selfsup.models.adapters import AdaptedEncoder
from selfsup.models.backbones import AnyBackbone, save_backbone
from selfsup.models.cards import card
from selfsup.models.directories import CONFIG, damaged, inside, write_json
from selfsup.models.encoder import TextEncoder
from selfsup.models.encoder_layouts import SavedEncoder, save_encoder
from selfsup.models.features import Features
from selfsup.models.huggingface import Tokenizer, new_model, write_card
from selfsup.models.kinds import IMAGE, TEXT, TOWERS
from selfsup.models.layouts import Layout, at
from selfsup.models.parity import exactness, max_difference, network_difference
from selfsup.views import Preprocessing

Loss = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Similarity:
    """How an image and a text belong together: scale · cosine + bias, the logit of a softmax or of a sigmoid.

    (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3; Zhai et al.
    2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2.)
    """

    loss: str  # a `Loss`
    scale: float
    bias: float

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"the loss is {self.loss!r}, not {' or '.join(get_args(Loss))}")

    def probabilities(self, cosines: Tensor) -> Tensor:
        """Of texts, for cosines (images, texts): that it is this one of all (softmax), or whether it is (sigmoid)."""
        logits = self.scale * cosines + self.bias
        return logits.softmax(-1) if self.loss == "softmax" else logits.sigmoid()


@dataclass(frozen=True)
class SharedSpace(Similarity):
    """The same, and the numbers in the vectors of both towers."""

    dimension: int


LAYOUT = Layout(
    SharedSpace,
    name="runs of an image-text model",
    model_type=TOWERS,
    places={
        "loss": at("loss"),
        "scale": at("scale", least=-1e30),
        "bias": at("bias", least=-1e30),
        "dimension": at("dimension"),
    },
)


def save_clip(
    directory: Path,
    image: AnyBackbone,
    image_features: Features,
    text: TextEncoder | AdaptedEncoder,
    tokenizer: Tokenizer,
    text_features: Features,
    similarity: Similarity,
    card: Callable[[dict[str, float | None]], str],
    preprocessing: Preprocessing | None = None,
    origin: Path | None = None,
    text_origin: SavedEncoder | None = None,
) -> dict[str, float | None]:
    """Write a directory that `read_clip` reads and each of whose towers opens by itself, wholly or not at all.

    The features of each tower map its pooled states into the shared space; a ValueError is raised where these are of
    different dimensions, a UserError where the directory exists already. `card` makes README.md of what is returned:
    max |Δ| of the hidden states in fp32 against the library whose layout each tower has, `image` and `text`, None where
    that is unchecked. `preprocessing` and `origin` are of the tower of images: see `backbones.save_backbone`. The
    encoder of texts goes back into the class of `text_origin`, with its head: see `encoder_layouts.save_encoder`.
    """
    dimension = image_features.dimension(image.dimension)
    if text_features.dimension(text.config.width) != dimension:
        raise ValueError("both towers map into one space")
    with new_model(directory) as temporary:
        found = {
            IMAGE: save_backbone(
                temporary / IMAGE, image, image_features, partial(_tower_card, IMAGE), preprocessing, origin
            ),
            TEXT: _save_text(temporary / TEXT, text, tokenizer, text_features, text_origin),
        }
        space = SharedSpace(similarity.loss, similarity.scale, similarity.bias, dimension)
        write_json(temporary / CONFIG, LAYOUT.write(space))
        write_card(temporary, card(found))
    return found


def _save_text(
    directory: Path,
    text: TextEncoder | AdaptedEncoder,
    tokenizer: Tokenizer,
    features: Features,
    origin: SavedEncoder | None,
) -> float | None:
    if isinstance(text, AdaptedEncoder):
        with new_model(directory) as temporary:
            text.opened.save(temporary, tokenizer, heads=False)
            features.write(temporary)
            write_card(temporary, _tower_card(TEXT, "as transformers writes it"))
        return None
    network, place = (text, None) if origin is None else (origin.around(text), origin.directory)
    save_encoder(directory, network, tokenizer, features, "", place)
    difference = network_difference(directory, text)
    write_card(directory, _tower_card(TEXT, f"{text.config.layout} of transformers; {exactness(difference)}"))
    return max_difference(difference)


def read_clip(directory: Path) -> SharedSpace:
    """What a directory of `save_clip` says of its towers, which are not opened. Raises UserError where it holds
    something else, is incomplete or damaged."""
    space = LAYOUT.open(directory)
    for tower in (IMAGE, TEXT):
        if not (inside(directory, tower) / CONFIG).is_file():
            raise damaged(f"{directory} lacks its {tower} tower")
    return space


def _tower_card(tower: str, layout: str) -> str:
    return card(
        f"The {tower} tower of an image-text model",
        "Trained with selfsup beside the other tower; its features (features.json) map into the space that both share.",
        {"Layout": layout},
        'import selfsup\n\nvectors = selfsup.load("path/to/this/directory").embed(...)',
    )
