"""A trained model in the layout of another library, one file per target; imported when it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.arguments import checked
from selfsup.config import nearest
from selfsup.errors import UserError
from selfsup.files import expanded, require_free
from selfsup.models.directories import find_model
from selfsup.models.parity import Difference
from selfsup.run import Run

if TYPE_CHECKING:
    from selfsup.models.backbones import SavedBackbone

Written = tuple[str, Difference | None]  # the Python that opens it; how far the other library's vectors are from ours
TARGETS = {
    "gguf": "selfsup.exporting.gguf:write",
    "onnx": "selfsup.exporting.onnx:write",
    "sentence-transformers": "selfsup.exporting.sentence_transformers:write",
    "timm": "selfsup.exporting.timm:write",
    "transformers": "selfsup.exporting.transformers:write",
}
ONLY_FOR = {"dimension": "sentence-transformers", "quantize": "gguf"}  # arguments of one target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What an export left, and how far the other library is from this one in fp32, on texts or images that are always
    the same: None where it is not installed, or where the files are the model's own."""

    directory: Path  # what was written; a file where the target is one
    to: str  # the target
    opens_with: str  # the line of Python that opens it
    max_difference: float | None  # max |Δ|
    max_share: float | None = None  # how far a vector moves at most, as a share of its length

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"directory": str(self.directory)}


@checked
def export(
    run: str | Path | Run,
    *,
    out: str | Path,
    to: str = "sentence-transformers",
    dimension: int | None = None,
    quantize: str | None = None,
) -> Exported:
    """Write the model of a run in the layout of another library.

    Args:
        run: a run, its directory, or a model directory in Hugging Face's layout.
        out: the directory to write (of gguf, onnx and timm: the file), which must not exist; it appears wholly or not
            at all.
        to: a name of `TARGETS`; the module of each says what it writes.
        dimension: of a model of texts, for sentence-transformers: keep the first so many numbers of each vector.
        quantize: for gguf: what the weights of matrices are kept as, f32, f16 (without it) or q8_0.

    Raises:
        UserError: no such target, no model, one that the target does not take, no such dimension or kind of weights, or
            `out` exists.
    """
    if to not in TARGETS:
        raise UserError(f"There is no export to '{to}'{nearest(to, list(TARGETS))}")
    given = {name: value for name, value in (("dimension", dimension), ("quantize", quantize)) if value is not None}
    for name in given:
        if to != ONLY_FOR[name]:
            raise UserError(f"--{name} is for --to {ONLY_FOR[name]}, not for {to}; leave it out.")
    source = run.directory if isinstance(run, Run) else expanded(run)
    directory = expanded(out)
    require_free(directory)
    module, _, name = TARGETS[to].partition(":")
    write: Callable[..., Written] = getattr(import_module(module), name)
    opens_with, difference = write(source, directory, **given)
    if difference is None:
        return Exported(directory, to, opens_with, None)
    if not difference.is_rounding:
        log.warning(
            "The vectors differ from those of %s by up to %.1e, %.1e of their length, which is more than rounding "
            "explains.", to, difference.most, difference.share
        )  # fmt: skip
    return Exported(directory, to, opens_with, difference.most, difference.share)


def open_image_model(source: Path, to: str) -> SavedBackbone:
    """The vision model of a run or directory, for a target that takes no other; of two towers in one directory that of
    images. Raises UserError where it holds another one; which targets take that is said."""
    from selfsup.models.backbones import SavedBackbone, open_backbone
    from selfsup.models.kinds import described, in_one, reads, two_towers
    from selfsup.models.tower_layouts import read_towers

    directory = find_model(source)
    if in_one(directory):
        log.warning("%s holds two towers; that of images is exported.", source)
        image = read_towers(directory).image
        return SavedBackbone(directory, image.model(), image.features, image.preprocessing)
    what = f"{source} holds {described(directory)}, and export to {to} is for image models"
    if two_towers(directory):
        raise UserError(f"{what}; export its image tower, {directory / 'image'}.")
    if reads(directory):
        raise UserError(f"{what}; texts go --to sentence-transformers or --to transformers.")
    return open_backbone(directory)
