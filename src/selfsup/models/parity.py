"""How far the numbers of another library are from the ones here, on the same files, in fp32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.models.convnet import ConvNet
from selfsup.models.decoder import Decoder
from selfsup.models.encoder import MaskedLanguageModel, TextEncoder
from selfsup.models.vision import CHANNELS, VisionTransformer

NativeNetwork = Decoder | TextEncoder | MaskedLanguageModel | VisionTransformer | ConvNet
# What opens a network in transformers, where it has a head.
AUTO_CLASSES = {Decoder: "AutoModelForCausalLM", MaskedLanguageModel: "AutoModelForMaskedLM"}
# What opens a tower of two, alone or in the directory of both.
TOWER_CLASSES = {
    "clip_vision_model": "CLIPVisionModel",
    "clip_text_model": "CLIPTextModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip_text_model": "SiglipTextModel",
}
POSITIONS = 64  # that logits are compared at
# Of the length of a vector: what the order of additions may move it by. fp32 has 6e-8, networks and whitening multiply
# it to 1e-5 at most; a difference in what is computed is 1e-2 and more.
ROUNDING = 1e-4

_compares = ContextVar("compares", default=True)


@dataclass(frozen=True)
class Difference:
    """How far the vectors of two libraries are apart.

    Attributes:
        most: max |Δ|.
        share: the largest distance between two vectors, as a share of the length of the expected one; of the root mean
            square of all lengths where that is longer, for a short vector may be a difference of long ones.
    """

    most: float = 0.0
    share: float = 0.0

    @classmethod
    def between(cls, expected: Tensor, found: Tensor) -> Difference:
        """Of vectors along the last dimension."""
        expected, moved = expected.double(), (found.detach().cpu() - expected).double()
        lengths = torch.linalg.vector_norm(expected, dim=-1)
        usual = lengths.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        shares = torch.linalg.vector_norm(moved, dim=-1) / lengths.clamp_min(usual)
        return cls(float(moved.abs().max()), float(shares.max()))

    @classmethod
    def largest(cls, found: Iterable[Difference]) -> Difference:
        """The largest of several, none being 0."""
        found = [cls(), *found]
        return cls(max(one.most for one in found), max(one.share for one in found))

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it, of vectors of any length."""
        return self.share <= ROUNDING


def exactness(difference: Difference | None, library: str = "transformers") -> str:
    """What a comparison with another library found, for a model card."""
    if difference is None:
        return f"unchecked when it was written (`selfsup export` to {library} checks it)"
    return f"max |Δ| = {difference.most:.2e} against stock {library}, in fp32"


def max_difference(difference: Difference | None) -> float | None:
    """max |Δ|, as summaries say it; None where nothing was compared."""
    return None if difference is None else difference.most


def noise(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Images (B, 3, H, W) of noise, always the same, to compare models on."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# -- transformers --------------------------------------------------------------------------------------------


@contextmanager
def uncompared() -> Iterator[None]:
    """What is saved in the block is not compared with transformers, whose import takes seconds."""
    token = _compares.set(False)
    try:
        yield
    finally:
        _compares.reset(token)


def import_transformers() -> None:
    """Do what takes seconds of the first comparison, where transformers is installed."""
    with suppress(ImportError):
        import transformers.modeling_utils  # noqa: F401


def open_with_transformers(kind: str, directory: Path) -> Any:
    """The model of a directory as stock `transformers` opens it in fp32; None where that is not installed, or where
    nothing is to be compared."""
    if not _compares.get():
        return None
    try:
        import transformers
    except ImportError:
        return None
    with quiet_transformers():
        opened = getattr(transformers, kind).from_pretrained
        return opened(directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers loads weights without bars and reports during the block."""
    import transformers

    logging: Any = transformers.utils.logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# -- networks whose arithmetic stands here -------------------------------------------------------------------


@torch.inference_mode()
def network_difference(directory: Path, model: NativeNetwork, tokens: Tensor | None = None) -> Difference | None:
    """How far stock `transformers` on a directory is from `model`, in evaluation: of the logits where it has a head
    (of a decoder at the last 64 positions, which depend on all), else of the hidden states.

    Args:
        tokens: (B, T) that are shown, by default some from all over the vocabulary. Networks that see, see noise.

    None where transformers is not installed, or where nothing is to be compared.
    """
    usual = AUTO_CLASSES.get(type(model), "AutoModel")
    network = open_with_transformers(TOWER_CLASSES.get(model.config.layout, usual), directory)
    if network is None:
        return None
    device, kept = next(model.eval().parameters()).device, {}
    if isinstance(model, Decoder):
        kept = {"logits_to_keep": POSITIONS}  # so that a large vocabulary takes no memory to speak of
    found = []
    for shown in _inputs(model, tokens):
        made = network(shown.cpu(), **kept, **_asked(network, shown))
        expected = made.logits if "logits" in made else made.last_hidden_state
        expected = expected.flatten(2).mT if isinstance(model, ConvNet) else expected  # of maps, one vector a place
        ours = _outputs(model, shown.to(device))
        found.append(Difference.between(expected, ours.float().cpu()))
        if isinstance(model, VisionTransformer) and (model.config.pooled_norm or model.config.attention_pooling):
            found.append(Difference.between(made.pooler_output, model.pool(ours, model.config.summary).cpu()))
    return Difference.largest(found)


def _asked(network: Any, shown: Tensor) -> dict[str, Any]:
    """What some networks of transformers are to be told, so that they see all of an image of any size."""
    if not hasattr(network.config, "patch_size"):
        return {}
    patches = shown.shape[2] * shown.shape[3] // network.config.patch_size**2
    network.config.mask_ratio = 0.0  # of those that hide patches, in an order that is drawn unless one is given
    asked = {"interpolate_pos_encoding": True, "noise": torch.arange(patches).expand(len(shown), -1)}
    return {name: value for name, value in asked.items() if name in signature(network.forward).parameters}


def _inputs(model: NativeNetwork, tokens: Tensor | None) -> list[Tensor]:
    """Of a network that sees, images: square at the size of the config, and wide."""
    if isinstance(model, VisionTransformer | ConvNet):
        size = model.config.size
        return noise((2, CHANNELS, size, size), (1, CHANNELS, size, size + model.config.patch))
    count = min(POSITIONS, model.config.window)
    return [torch.arange(count)[None] * model.config.vocabulary // count if tokens is None else tokens]


def _outputs(model: NativeNetwork, shown: Tensor) -> Tensor:
    if isinstance(model, Decoder):
        return model.head(model(shown)[:, -POSITIONS:])
    if isinstance(model, MaskedLanguageModel):
        positions = torch.arange(shown.shape[1], device=shown.device).expand_as(shown)
        return model(shown, positions) @ model.output_weight.T
    return model(shown)
