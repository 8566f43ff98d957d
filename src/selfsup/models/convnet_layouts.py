"""Convolutional networks as model directories of transformers' TextNet, which opens what is written here: written and
read.

A TextNet (Chen et al. 2021, "FAST: Faster Arbitrarily-Shaped Text Detector with Minimalist Kernel Representation",
section 3.2) has beside each 3 × 3 convolution one of 3 × 1 and one of 1 × 3, and a normalisation of its input where
there is a shortcut. Here the former do not exist, so they are written as zeros, and the latter changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from selfsup.models.convnet import KERNEL, STAGES, ConvNet, ConvNetConfig, has_shortcut
from selfsup.models.directories import MOST_SIDE, damaged
from selfsup.models.features import Features
from selfsup.models.huggingface import built, new_model, write_card, write_network
from selfsup.models.kinds import CONVOLVING
from selfsup.models.layouts import FP32, Layout, Said, Unfit, at
from selfsup.models.parity import exactness, max_difference, network_difference
from selfsup.models.preprocessors import read_preprocessing, write_preprocessing
from selfsup.models.sentence_transformers import read_features
from selfsup.models.vision import CHANNELS
from selfsup.views import Preprocessing

ARCHITECTURE = "TextNetModel"
SIDES = {"vertical": (KERNEL, 1), "horizontal": (1, KERNEL)}  # convolutions of a TextNet that are none here
COUNTED = "num_batches_tracked"  # what torch's normalisation keeps beside its statistics, for nothing here
CLOSE = 1e-6


def _layers(said: Said) -> int:
    """How many convolutions the first stage has: a network here has as many in each."""
    found = said.get("conv_layer_strides")
    if not (isinstance(found, list) and found and isinstance(found[0], list) and found[0]):
        raise said.broken("conv_layer_strides")
    return len(found[0])


LAYOUT = Layout(
    ConvNetConfig,
    name="TextNets of plain 3 × 3 convolutions",
    model_type=CONVOLVING,
    places={
        "size": at("image_size", most=MOST_SIDE),
        "width": at("stem_out_channels", default=64),
        "stride": at("stem_stride", default=2),
        "norm_eps": at("batch_norm_eps", default=1e-5),
    },
    facts={"layers": _layers},
    fixed={"stem_kernel_size": KERNEL, "stem_num_channels": CHANNELS, "stem_act_func": "relu"},
    derived={
        "hidden_sizes": lambda config: list(config.widths),
        "conv_layer_strides": lambda config: [list(strides) for strides in config.strides],
        "conv_layer_kernel_sizes": lambda config: [[[KERNEL, KERNEL]] * config.layers] * STAGES,
    },
    written={"initializer_range": 0.02, **FP32},
    prefix="textnet.",
    spare=("fc.",),
)


def _beside(config: ConvNetConfig) -> dict[str, tuple[tuple[int, ...], float]]:
    """What the weights of a TextNet have beside those of a network here: shapes, and the number that each is full of,
    so that it changes nothing."""
    found: dict[str, tuple[tuple[int, ...], float]] = {}

    def norm(name: str, width: int, gain: float = 1.0) -> None:
        values = {"weight": gain, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        found.update({f"{name}.{kind}": ((width,), value) for kind, value in values.items()})

    for stage, (widths, strides) in enumerate(zip(pairwise(config.widths), config.strides, strict=True)):
        for layer, stride in enumerate(strides):
            name, inputs, outputs = f"encoder.stages.{stage}.stage.{layer}", widths[layer > 0], widths[1]
            for side, kernel in SIDES.items():
                found[f"{name}.{side}_conv.weight"] = (outputs, inputs, *kernel), 0.0
                norm(f"{name}.{side}_batch_norm", outputs)
            if has_shortcut(inputs, outputs, stride):
                norm(f"{name}.rbr_identity", outputs, (1 + config.norm_eps) ** 0.5)
    return found


@dataclass(frozen=True)
class SavedConvNet:
    """What a directory holds: the weights by the names of `ConvNet`, what the vector of an image is, and how an image
    is prepared."""

    directory: Path
    config: ConvNetConfig
    weights: dict[str, Tensor]
    features: Features
    preprocessing: Preprocessing

    def model(self) -> ConvNet:
        """The network, in fp32 and in memory of its own; raises UserError where the weights do not fit the config."""
        weights = {name: tensor.clone() for name, tensor in self.weights.items()}
        return built(ConvNet, self.config, weights, self.directory)


def save_convnet(
    directory: Path,
    model: ConvNet,
    features: Features,
    card: Callable[[str], str],
    preprocessing: Preprocessing | None = None,
) -> float | None:
    """Write a directory that `AutoModel` and `AutoImageProcessor` open with the same numbers; as `save_vision`."""
    config = model.config
    beside = {name: torch.full(shape, value) for name, (shape, value) in _beside(config).items()}
    weights = model.state_dict() | beside
    norms = [name.removesuffix("running_var") for name in weights if name.endswith("running_var")]
    with new_model(directory) as temporary:
        counts = {norm + COUNTED: torch.tensor(0) for norm in norms}
        write_network(temporary, LAYOUT.write(config) | {"architectures": [ARCHITECTURE]}, weights | counts)
        write_preprocessing(temporary, preprocessing or Preprocessing.plain(config.size))
        features.write(temporary)
        difference = network_difference(temporary, model)
        write_card(temporary, card(exactness(difference)))
    return max_difference(difference)


def read_convnet(directory: Path) -> SavedConvNet:
    """What a directory of `save_convnet` holds, or any TextNet of transformers that has no more than a network here.
    Raises UserError where it is another one, or broken."""
    opened = LAYOUT.opened(directory)
    config = opened.config
    weights = {name: tensor for name, tensor in opened.whole.items() if not name.endswith(COUNTED)}
    if STAGES * config.layers > len(weights):
        raise damaged(f"{directory} does not fit its config.json: {config.layers:,} layers are more than its tensors")
    for name, (shape, value) in _beside(config).items():
        found = weights.pop(name, torch.empty(0))
        if found.shape != shape:
            raise damaged(f"{directory} does not fit its config.json: {name} should be {'×'.join(map(str, shape))}")
        if float((found.float() - value).abs().max()) > CLOSE:
            raise Unfit(f"{directory} has a {name} that is more than nothing; only {LAYOUT.name} can be loaded")
    features = read_features(directory, config.poolings)
    preprocessing = read_preprocessing(directory, CONVOLVING, config.size)
    return SavedConvNet(directory, config, weights, features, preprocessing)
