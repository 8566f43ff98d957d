"""Networks that turn an image into a vector: selfsup's vision transformer and convolutional network, any of timm's, any
module from Python.

What a network of others leaves behind is its weights by its own names beside a JSON file:

DIR/config.json               of timm: its name and sizes, as timm itself writes them; else the class it is of
DIR/model.safetensors         the weights
DIR/preprocessor_config.json  how an image becomes pixels
DIR/features.json             what follows the network's own vector

timm (1.0.31 or later) opens a directory of its own by `timm.create_model("local-dir:DIR", pretrained=True)`, and
transformers by `AutoModel`; a module from Python must be built anew before it is given its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.models.convnet import ConvNet
from selfsup.models.convnet_layouts import read_convnet, save_convnet
from selfsup.models.directories import WEIGHTS, damaged, read_config, read_json, read_safetensors, read_weights
from selfsup.models.features import Features
from selfsup.models.huggingface import new_model, require_fit, write_card, write_network
from selfsup.models.kinds import CONVOLVING, PREPROCESSOR
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.parity import Difference, exactness, max_difference, noise
from selfsup.models.preprocessors import read_preprocessing, write_preprocessing
from selfsup.models.sentence_transformers import read_features
from selfsup.models.timm_networks import (
    TIMM,
    TimmNetwork,
    TimmStart,
    import_timm,
    known_arguments,
    require_known,
    timm_preprocessing,
)
from selfsup.models.vision import CHANNELS, VisionTransformer
from selfsup.models.vision_layouts import read_vision, save_vision
from selfsup.views import Preprocessing

Extract = Callable[[Any, Tensor], Tensor]


class AdaptedBackbone(nn.Module):
    """A network of others, pixels (B, 3, H, W) to one vector each, (B, dimension): see `adapt`.

    Attributes:
        size: the side of the images it was opened for.
        timm: what timm builds it from, where it is timm's.
    """

    def __init__(
        self, network: nn.Module, size: int, extract: Extract | None = None, timm: TimmNetwork | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.extract = extract
        self.timm = timm
        self.dimension = self._probe()

    @torch.no_grad()
    def _probe(self) -> int:
        """Numbers in a vector; the network stays in the mode that it is in."""
        training = {part: part.training for part in self.network.modules()}
        parameter = next(self.network.parameters(), torch.empty(0))
        images = torch.zeros(2, CHANNELS, self.size, self.size, device=parameter.device, dtype=parameter.dtype)
        try:
            return _vectors(self.network.eval(), self.extract, images).shape[1]
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            name = type(self.network).__name__ if self.timm is None else TIMM + self.timm.name
            raise UserError(
                f"{name} fails on images of {self.size} × {self.size} pixels ({error}); give a size it takes."
            ) from None
        finally:
            for part, mode in training.items():
                part.training = mode

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, dimension)."""
        # Convolutions are faster on channels that lie side by side.
        return _vectors(self.network, self.extract, pixels.contiguous(memory_format=torch.channels_last))

    def embed(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """One vector per image, (B, dimension), in fp32 or wider; the network pools by itself."""
        return at_least_single(self(pixels))


AnyBackbone = VisionTransformer | ConvNet | AdaptedBackbone


def see(network: AnyBackbone, pixels: Tensor, pooling: Pooling, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One vector of each image, (B, dimension) in fp32 or wider, and its patches (B, P, dimension), `hidden` (B, P) of
    them hidden; of a network that pools by itself no patches, (B, 0, dimension)."""
    if not isinstance(network, VisionTransformer):
        vectors = network.embed(pixels, pooling)
        return vectors, vectors[:, None][:, :0]
    states = network(pixels, hidden)
    return network.pool(states, pooling), states[:, network.config.prefix :]


def _vectors(module: nn.Module, extract: Extract | None, pixels: Tensor) -> Tensor:
    found = module(pixels) if extract is None else extract(module, pixels)
    if isinstance(found, Tensor) and found.is_floating_point() and found.shape[0] == pixels.shape[0]:
        if found.ndim == 2:
            return found
        if found.ndim == 4:
            return found.mean((2, 3))
    shape = "×".join(map(str, found.shape)) if isinstance(found, Tensor) else type(found).__name__
    raise UserError(
        f"{type(module).__name__} makes {shape} of {len(pixels)} images, where (images, features) or "
        "(images, features, rows, columns) are asked for; wrap it in adapt(module, size, extract), extract a function "
        "of the module and pixels to its features."
    )


def adapt(module: nn.Module, size: int, extract: Extract | None = None) -> AnyBackbone:
    """A network from Python as a backbone for images of `size` × `size` pixels; one that is a backbone stays as it is.

    `extract` makes features of (module, pixels) where calling the module does not: (B, dimension), or maps
    (B, dimension, h, w), which are averaged over their places. Raises UserError where that fails.
    """
    if isinstance(module, AnyBackbone):
        return module
    # Muon writes to convolutions as matrices, in place.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return AdaptedBackbone(module, size, extract)


def hide_nothing(network: AnyBackbone) -> None:
    """No patch is shown as hidden to a network in this training, so what stands for hidden ones stays as it is."""
    if isinstance(network, VisionTransformer) and network.embeddings.mask_token is not None:
        network.embeddings.mask_token.requires_grad_(False)


def open_timm(name: str, size: int, start: TimmStart | None = None) -> AdaptedBackbone:
    """A network of timm, `timm:resnet50`, without its classifier, with fresh weights (from torch's global generator) or
    those to start from. Raises UserError where timm cannot be imported, knows no such network, has it for other sizes
    only, or the weights are not its own."""
    timm, known = import_timm(name), name.removeprefix(TIMM).partition("@")[0]
    require_known(timm, known)
    if start is not None:
        with torch.device("meta"):
            require_fit(timm.create_model(known, num_classes=0, **start.network.arguments), start.weights, start.place)
    if not getattr(timm.get_pretrained_cfg(known), "fixed_input_size", False):
        return _build_timm(timm, TimmNetwork(known, {}), size, start)
    try:
        return _build_timm(timm, TimmNetwork(known, {"img_size": size, "dynamic_img_size": True}), size, start)
    except TypeError:  # it has no way to take crops of other sizes too
        return _build_timm(timm, TimmNetwork(known, {"img_size": size}), size, start)


def _build_timm(timm: Any, source: TimmNetwork, size: int, start: TimmStart | None = None) -> AdaptedBackbone:
    """timm itself brings learnt positions to another size."""
    weights = {} if start is None else {"state_dict": dict(start.weights), "source": ""}
    given = {"pretrained": start is not None, "pretrained_cfg_overlay": weights}
    network = timm.create_model(source.name, num_classes=0, **source.arguments, **given)
    kept = {key: value for key, value in network.pretrained_cfg.items() if key != "state_dict"}
    network.pretrained_cfg = network.default_cfg = kept
    return AdaptedBackbone(network, size, timm=source)


# -- directories ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedBackbone:
    """What a directory of `save_backbone` holds: the network, what the vector of an image is, how one is prepared."""

    directory: Path
    backbone: AnyBackbone
    features: Features
    preprocessing: Preprocessing

    @property
    def size(self) -> int:
        """Of the images that it sees."""
        return self.preprocessing.size


def save_backbone(
    directory: Path,
    backbone: AnyBackbone,
    features: Features,
    card: Callable[[str], str],
    preprocessing: Preprocessing | None = None,
    origin: Path | None = None,
) -> float | None:
    """Write a directory that `open_backbone` opens and, where it is known there, transformers or timm.

    As `save_vision` and `save_convnet`, which do it for networks of selfsup's own; of timm's, max |Δ| is against timm.
    """
    if isinstance(backbone, VisionTransformer):
        return save_vision(directory, backbone, features, card, preprocessing, origin)
    if isinstance(backbone, ConvNet):
        return save_convnet(directory, backbone, features, card, preprocessing)
    seen = preprocessing or Preprocessing.plain(backbone.size)
    difference, statement = None, f"weights by the names of {_class(backbone.network)}, which opens them"
    with new_model(directory) as temporary:
        write_network(temporary, _config(backbone, seen), backbone.network.state_dict())
        write_preprocessing(temporary, seen)
        features.write(temporary)
        if backbone.timm is not None:
            source, device = backbone.timm.of_vectors(), next(backbone.eval().parameters()).device
            difference = timm_difference(
                source, temporary / WEIGHTS, backbone.size, lambda pixels: backbone(pixels.to(device))
            )
            also = "where timm is installed, `transformers.AutoModel` opens it too"
            statement = f"{exactness(difference, 'timm')}; {also}"
        write_card(temporary, card(statement))
    return max_difference(difference)


def open_backbone(directory: Path, module: nn.Module | None = None) -> SavedBackbone:
    """What a directory of `save_backbone` holds, in fp32; of transformers, any plain DINOv3 ViT.

    Weights of a network from Python take a module of its class, as `adapt` or anything else made it. Raises UserError
    where the directory is broken, or of another architecture; timm or a module is needed and not there.
    """
    saved = read_config(directory)
    if saved.get("model_type") == CONVOLVING:
        convnet = read_convnet(directory)
        return SavedBackbone(directory, convnet.model(), convnet.features, convnet.preprocessing)
    if not saved.keys() & {"architecture", "class"}:
        vision = read_vision(directory)
        return SavedBackbone(directory, vision.model(), vision.features, vision.preprocessing)
    read_json(directory / PREPROCESSOR)  # which must be there
    preprocessing = read_preprocessing(directory)
    weights = read_weights(directory)
    if "architecture" in saved:
        backbone = _reopen_timm(saved, preprocessing.size, weights, directory)
    else:
        backbone = _given(module, saved["class"], preprocessing.size, directory)
    try:
        backbone.network.load_state_dict(weights)
    except RuntimeError as error:
        raise damaged(f"{directory} does not fit its network ({error})") from None
    return SavedBackbone(directory, backbone, read_features(directory), preprocessing)


def _reopen_timm(saved: dict[str, Any], size: int, weights: dict[str, Tensor], directory: Path) -> AdaptedBackbone:
    timm, name = import_timm(str(directory)), str(saved["architecture"])
    arguments = known_arguments(timm, saved, directory)
    try:
        with torch.device("meta"):
            planned = timm.create_model(name, num_classes=0, **arguments)
        require_fit(planned, weights, directory)
        return _build_timm(timm, TimmNetwork(name, arguments), size)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"timm cannot build what {directory} holds ({error}); try the newest timm") from None


def _given(module: nn.Module | None, name: str, size: int, directory: Path) -> AdaptedBackbone:
    if module is None:
        raise UserError(
            f"{directory} holds the weights of {name}, a network from Python; build one and open it with "
            f"selfsup.models.backbones.open_backbone({str(directory)!r}, network)."
        )
    backbone = adapt(module, size)
    if not isinstance(backbone, AdaptedBackbone) or _class(backbone.network) != name:
        raise UserError(f"{directory} holds the weights of {name}, not of {_class(module)}; give one of the former.")
    return backbone


def _config(backbone: AdaptedBackbone, seen: Preprocessing) -> dict[str, Any]:
    """What config.json says: of a network of timm's, what timm's own files say."""
    if backbone.timm is None:
        return {"class": _class(backbone.network), "num_features": backbone.dimension}
    known: dict[str, Any] = backbone.network.pretrained_cfg  # type: ignore[assignment]
    return {
        "architecture": backbone.timm.name,
        "num_classes": 0,
        "num_features": backbone.dimension,
        "model_args": backbone.timm.arguments,  # num_classes is said above; twice is too often for transformers
        "pretrained_cfg": {
            **timm_preprocessing(seen),
            "num_classes": 0,
            "fixed_input_size": known.get("fixed_input_size", False),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


@torch.inference_mode()
def timm_difference(source: TimmNetwork, file: Path, size: int, ours: Callable[[Tensor], Tensor]) -> Difference:
    """How far what stock timm makes of noise, with the weights of a file, is from `ours`, (B, dimension).

    Before 1.0.31 timm itself takes any of several safetensors files of a directory for the weights, and fails.
    """
    theirs = import_timm(str(file)).create_model(source.name, **source.arguments).eval()
    theirs.load_state_dict(read_safetensors(file))
    pixels = noise((2, CHANNELS, size, size))[0]
    return Difference.between(_vectors(theirs, None, pixels), ours(pixels).float())
