"""To transformers: what a run keeps is in its layout already, so this is a copy that leaves the run behind.

Where the run had no time to compare its model with stock transformers, or did not find it, the copy is compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfsup.errors import UserError
from selfsup.exporting import Written
from selfsup.files import whole_directory
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import open_model
from selfsup.inference.parity import compare, fact
from selfsup.inference.vision import ImageModel
from selfsup.models.directories import find_model, read_config, require_whole
from selfsup.models.huggingface import CARD
from selfsup.models.kinds import IMAGE, TEXT, TOWERS, described, static
from selfsup.models.parity import Difference, NativeNetwork, exactness, network_difference


def write(source: Path, directory: Path) -> Written:
    """Copy the model directory of `source` to `directory`."""
    model = find_model(source)
    config = read_config(model)
    if static(model):
        raise UserError(
            f"{source} holds {described(model)}, which transformers does not know; export it "
            "--to sentence-transformers."
        )
    if not config.keys() & {"model_type", "architecture"}:  # the latter is of timm's, which transformers wraps
        raise UserError(
            f"{source} holds {described(model)}, which transformers does not know; it opens with "
            f"selfsup.models.backbones.open_backbone({str(model)!r}, network)."
        )
    if config.get("model_type") == TOWERS:
        raise UserError(
            f"{source} holds two towers, which transformers opens one by one; export {model / IMAGE} or {model / TEXT}."
        )
    architectures = config.get("architectures") or ["AutoModel"]
    with copied(model, directory) as temporary:
        difference = _compare(temporary)
    opens_with = f"transformers.{architectures[0]}.from_pretrained({str(directory)!r})"
    return opens_with, difference


@contextmanager
def copied(model: Path, directory: Path) -> Iterator[Path]:
    """A place with all files of a model directory that becomes `directory` when the block ends, wholly or not at all.
    Raises a UserError where that lies in the former, or where something of the model lies elsewhere."""
    require_whole(model)
    if model.resolve() in directory.resolve().parents:
        raise UserError(f"{directory} lies in {model}, which is to be copied; give another --out.")
    with whole_directory(directory) as temporary:
        shutil.copytree(model, temporary, dirs_exist_ok=True)
        yield temporary


def _compare(directory: Path) -> Difference | None:
    """Compare a model whose card says that it is unchecked, and write into the card what was found."""
    card = directory / CARD
    said = card.read_text(encoding="utf-8") if card.is_file() else ""
    if exactness(None) not in said:
        return None
    difference, told = _difference(directory)
    card.write_text(said.replace(exactness(None), told), encoding="utf-8")
    return difference


def _difference(directory: Path) -> tuple[Difference | None, str]:
    """How far stock transformers is from selfsup on a directory, None where transformers is missing; and what a card
    says of it."""
    model = open_model(directory)
    if isinstance(model, LanguageModel | EncoderModel):
        network = model.decoder if isinstance(model, LanguageModel) else model.masked or model.encoder
        found = compare(directory, model, _difference_of(directory, network))
        return None if found is None else found.plain, fact(found)
    difference = _difference_of(directory, model.backbone) if isinstance(model, ImageModel) else None
    return difference, exactness(difference)


def _difference_of(directory: Path, network: object) -> Difference | None:
    """Of a network whose arithmetic stands here; of one of another library there is but one."""
    return network_difference(directory, network) if isinstance(network, NativeNetwork) else None
