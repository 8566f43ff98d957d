"""Opening a saved model: that of a run, or of a directory in a layout that is known."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.base import EmbeddingModel, Model
from selfsup.machine import find_device
from selfsup.models.directories import find_model
from selfsup.models.kinds import sees, two_towers, writes

if TYPE_CHECKING:
    from selfsup.inference.clip import PairModel
    from selfsup.inference.encoder import EncoderModel
    from selfsup.inference.generate import LanguageModel
    from selfsup.inference.vision import ImageModel

    AnyModel: TypeAlias = LanguageModel | EncoderModel | ImageModel | PairModel

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Model)
TOWERS = ("image", "text")  # attributes of a model of two, and directories in its own


def load(path: str | Path) -> AnyModel:
    """The model of a run, or of a directory in Hugging Face's layout or, of an encoder, in that of
    sentence-transformers. Raises UserError where there is neither."""
    model = open_model(find_model(path))
    model.path = os.path.abspath(expanded(path))
    return model


def open_model(directory: Path) -> AnyModel:
    """What a model directory holds."""
    return model_class(directory).load(directory)


def model_class(directory: Path) -> type[AnyModel]:
    """The class of what a model directory holds, by what its files say; only the module of that kind is imported."""
    if two_towers(directory):
        from selfsup.inference.clip import PairModel

        return PairModel
    if sees(directory):
        from selfsup.inference.vision import ImageModel

        return ImageModel
    if writes(directory):
        from selfsup.inference.generate import LanguageModel

        return LanguageModel
    from selfsup.inference.encoder import EncoderModel

    return EncoderModel


def load_as(path: str | Path | Model, kind: type[M]) -> M:
    """As `load`, where only one kind of model will do; one that is open already is taken as it is. Raises UserError
    where there is none, or one of another kind."""
    model = path if isinstance(path, Model) else load(path)
    if isinstance(model, kind):
        return model
    path = model.path if isinstance(path, Model) else path
    towers = (getattr(model, name, None) for name in TOWERS)
    named = next((name for name, tower in zip(TOWERS, towers, strict=True) if isinstance(tower, kind)), None)
    tower = find_model(path) / (named or "")
    of_two = f", such as its {named} tower {tower}" if named and tower.is_dir() else ""
    raise UserError(f"{path} holds {model.kind}; give the run of {kind.kind}{of_two}.")


def load_image_model(path: str | Path | Model) -> ImageModel:
    """As `load_as`, of one that sees, or of two towers that of images."""
    from selfsup.inference.clip import PairModel
    from selfsup.inference.vision import ImageModel

    of_two = isinstance(path, PairModel) if isinstance(path, Model) else two_towers(find_model(path))
    return load_as(path, PairModel).image if of_two else load_as(path, ImageModel)


def load_encoder(path: str | Path) -> EncoderModel | ImageModel | PairModel:
    """As `load`, where only what embeds will do, whatever it reads."""
    model = load(path)
    if isinstance(model, EmbeddingModel):
        return model
    raise UserError(f"{path} holds {model.kind}, which makes no vectors; give the run of an encoder.")


def open_embedder(path: str | Path, device: str = "auto", dimension: int | None = None) -> EmbeddingModel:
    """As `load_encoder`, where it is to compute, and its vectors cut as `cut` does; raises UserError where there is no
    such device, too."""
    model = load_encoder(path)
    cut(model, dimension)
    model.to(find_device(device))
    return model


def cut(model: EmbeddingModel, dimension: int | None) -> None:
    """Keep of a model's vectors the first numbers alone, so many as are asked for. Where it does not say that it was
    trained for that, this is said. Raises UserError where there are not so many, or it was trained to be cut
    elsewhere."""
    if dimension is None or dimension == model.dimension:
        return
    trained, own = ", ".join(map(str, model.dimensions)), model.dimension
    if not 1 <= dimension <= own:
        raise UserError(f"The vectors of {model.path} have {own} numbers, so --dimension cannot be {dimension}.")
    if trained and dimension not in model.dimensions:
        raise UserError(
            f"{model.path} was trained to be cut to {trained} numbers, so --dimension cannot be {dimension}; give one "
            "of these."
        )
    if not trained:
        log.warning(
            "%s does not say that its vectors were trained to be cut; the first %d of their %d numbers may tell much "
            "less than all.", model.path, dimension, own
        )  # fmt: skip
    model.cut(dimension)
