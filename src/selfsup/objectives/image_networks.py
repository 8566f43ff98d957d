"""Networks that see and are trained: selfsup's own vision transformer or convolutional network, fresh or started from;
one of timm or from Python."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from selfsup.config import Settings, nearest
from selfsup.errors import UserError
from selfsup.models.backbones import AdaptedBackbone, AnyBackbone, adapt, open_timm
from selfsup.models.convnet import ConvNet, ConvNetConfig
from selfsup.models.convnet_layouts import SavedConvNet, read_convnet
from selfsup.models.counting import sketched
from selfsup.models.directories import read_config
from selfsup.models.kinds import CONVOLVING, IMAGE, in_one
from selfsup.models.packing import Pooling
from selfsup.models.parity import exactness, network_difference
from selfsup.models.presets import CONVOLUTIONAL, VISION
from selfsup.models.timm_networks import TIMM, TimmStart
from selfsup.models.tower_layouts import read_towers
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import SavedVision, read_vision
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import TOKENS_PER_PARAMETER
from selfsup.objectives.starting import make_absolute, require_image_model, take_shape, tower_directory
from selfsup.seeding import generator, seeded
from selfsup.views import Preprocessing

PATCHES = ((48, 4), (96, 8), (math.inf, 16))  # up to which side of images, which patch
ROUND, ROUND_FROM = 32, 64  # what sides are multiples of for networks of others, from which side on
SMALL = 96  # pixels, up to which images are small
STRIDES = ((48, 1), (SMALL, 2), (math.inf, 4))  # up to which side of images, which stride of the first convolution
LAYERS = 2  # convolutions of a stage
WIDTH, SHOWN = 32, 540_000  # a network that was found good, and the views that it was shown in eight minutes
SHOWN_IN_A_STEP = 512  # about, where only the number of steps is said
Convolutions = Literal["never", "named", "small"]
LARGEST = 224  # side of what a network sees, unless it is said
REGISTERS = 4


class Brought(TypedDict):
    """How images are prepared for a network, and the directory that it was started from."""

    preprocessing: Preprocessing
    origin: Path | None


class ImageNetwork(ABC):
    """What a recipe of images asks of the network that it trains."""

    names: ClassVar[tuple[str, ...]]  # of the settings of the model that mean something to it

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def reads(self) -> set[str]:
        """The settings that mean something to it."""
        return {f"model.{name}" for name in ("preset", "whiten", *self.names)}

    @property
    @abstractmethod
    def named(self) -> str:
        """What it is called in messages."""

    @property
    def layout(self) -> str:
        """What the model that is left is called elsewhere."""
        return self.named

    @property
    def origin(self) -> SavedVision | SavedConvNet | None:
        """The model to start from, where one is named."""
        return None

    @property
    def started(self) -> bool:
        """Whether it starts from weights."""
        return self.origin is not None

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for it."""
        size, origin = self.settings["data.size"], self.origin
        return Preprocessing.plain(size) if origin is None else origin.preprocessing.at(size)

    @property
    def brought(self) -> Brought:
        """What goes along with it when it is saved."""
        kept = None if self.origin is None else self.origin.directory
        return {"preprocessing": self.preprocessing, "origin": kept}

    @property
    def pooling(self) -> Pooling:
        """How it makes one vector of an image, where an objective is trained on any: as what it was started from."""
        return "mean" if self.origin is None else self.origin.features.pooling

    @property
    def summary(self) -> Pooling:
        """What of it says most of a whole image."""
        return "cls"

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The ways in which it can make one vector of an image; one that pools by itself does whatever is said."""
        return ("cls", "mean")

    def fitting(self, side: int) -> ImageNetwork:
        """The network for images with a short side of so many pixels: this one, unless that is yet to be decided."""
        return self

    @abstractmethod
    def settle_size(self, side: int) -> None:
        """What it sees, `data.size` pixels, of images with a short side of so many."""

    @abstractmethod
    def settle_shape(self, effort: Effort, images: float) -> None:
        """Its shape, for a data set that it sees so many images of full size of."""

    @abstractmethod
    def build(self) -> AnyBackbone:
        """The network as it starts: a function of the seed alone, or of the weights to start from."""

    @cached_property
    def look(self) -> AnyBackbone:
        """A network like the one to be trained, to ask its shape."""
        return self.build()

    @property
    def width(self) -> int:
        """Numbers in its vectors."""
        return int(self.look.dimension)

    @property
    def hides_patches(self) -> bool:
        """Whether it can leave patches out or show others in their places."""
        return isinstance(self.look, VisionTransformer)

    @property
    @abstractmethod
    def flops(self) -> float:
        """Floating-point operations for an image of full size, there and back."""

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.look.parameters())

    @abstractmethod
    def describe(self) -> str:
        """Its parameters and shape, for the plan."""

    def facts(self) -> dict[str, str]:
        """Of networks with batch normalisation: images meet in it, so that micro-batches are no mere split."""
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
        if not any(isinstance(part, norms) for part in self.look.modules()):
            return {}
        told = "of a micro-batch in one process: another train.micro_batch is another training"
        return {"statistics": told}

    @abstractmethod
    def require_side(self, side: int, remedy: str) -> None:
        """Raise a UserError where it does not take images of so many pixels."""


class OwnVision(ImageNetwork):
    """A vision transformer: a fresh one is in the layout of DINOv3, one to start from in any that is known."""

    shape: ClassVar[tuple[str, ...]] = ("layers", "width", "heads", "mlp", "registers", "patch")
    names = (*shape, "init", "lora", "lora_alpha", "lora_targets")

    @property
    def named(self) -> str:
        return "selfsup's own vision transformer"

    @cached_property
    def origin(self) -> SavedVision | None:
        """The model to start from, where one is named.

        Raises:
            UserError: there is none, or it is of another architecture.
        """
        make_absolute(self.settings, "model.init")
        place = self.settings["model.init"]
        if place is None:
            return None
        directory = tower_directory(place, IMAGE)
        if in_one(directory):
            return read_towers(directory).image
        require_image_model(directory, self.settings["objective"])
        return read_vision(directory)

    def settle_size(self, side: int) -> None:
        settings, origin = self.settings, self.origin
        known = LARGEST if origin is None else origin.preprocessing.size
        side = min(side, known)
        if origin is None:
            settings.settle("model.patch", next(patch for most, patch in PATCHES if side <= most), "image size")
        else:
            settings.settle("model.patch", origin.config.patch, "init")
        if origin is not None and origin.config.learnt_positions:
            settings.settle("data.size", known, "init")  # what each position was learnt for
        patch = settings["model.patch"]
        settings.settle("data.size", max(patch, side // patch * patch), "image size")
        if settings["data.size"] % patch and settings["data.size"] != known:
            raise UserError(
                f"data.size {settings['data.size']} is no multiple of model.patch {patch}; give one that is."
            )

    def settle_shape(self, effort: Effort, images: float) -> None:
        settings = self.settings
        if self.origin is not None:
            take_shape(settings, "model", self.shape, self.origin.config, settings["model.init"])
            return
        if settings["model.preset"] == "auto":
            patches = int((settings["data.size"] // settings["model.patch"]) ** 2 * images)
            wanted = effort.parameters(TOKENS_PER_PARAMETER, patches)
            fitting = min(VISION, key=lambda name: abs(math.log(VISION[name].blocks / wanted)))
            settings.change("model.preset", fitting, effort.origin)
        preset = settings["model.preset"]
        if preset not in VISION:
            raise UserError(f"There is no model preset '{preset}'{nearest(preset, ['auto', *VISION, *CONVOLUTIONAL])}")
        shape, origin = VISION[preset], f"preset {preset}"
        settings.settle("model.layers", shape.layers, origin)
        settings.settle("model.width", shape.width, origin)
        settings.settle("model.heads", max(1, settings["model.width"] * shape.heads // shape.width), origin)
        settings.settle("model.mlp", 4 * settings["model.width"], origin)
        settings.settle("model.registers", REGISTERS, "recipe")

    @property
    def config(self) -> VisionConfig:
        """Its shape; raises a UserError where there is no such."""
        size = self.settings["data.size"]
        if self.origin is not None:
            kept = size == self.origin.preprocessing.size  # learnt positions may be of images of other sizes
            return self.origin.config if kept else replace(self.origin.config, size=size)
        try:
            return VisionConfig(size=size, **{name: self.settings[f"model.{name}"] for name in self.shape})
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None

    def build(self) -> VisionTransformer:
        if self.origin is not None:
            opened = self.origin.model().resize(self.config.size)
            return copy.deepcopy(opened)  # for training writes into its memory, the calibration's too
        return VisionTransformer(self.config).initialise(generator(self.settings["train.seed"], "weights"))

    @property
    def layout(self) -> str:
        return f"{self.config.layout} of transformers"

    @property
    def summary(self) -> Pooling:
        return self.config.summary

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        return self.config.poolings

    @property
    def patches(self) -> int:
        """Of an image of full size."""
        return int((self.settings["data.size"] // self.settings["model.patch"]) ** 2)

    @property
    def flops(self) -> float:
        return float(sketched(VisionTransformer, self.config).flops(self.settings["data.size"]))

    def require_side(self, side: int, remedy: str) -> None:
        """It takes whatever its patches divide."""

    def describe(self) -> str:
        config = self.config
        return (
            f"{self.parameters:,} parameters in the vision transformer: {config.layers} layers, width {config.width}, "
            f"{config.heads} heads, patches of {config.patch} pixels"
        )

    def facts(self) -> dict[str, str]:
        """Of one to start from that is of another layout: how near its own class is, how images are prepared as it
        brings it, and whether its positions are others now."""
        if self.origin is None or self.config.layout == VisionConfig.layout:
            return {}
        side, before = self.config.size, self.origin.config.size
        placed = f"; positions learnt at {before} × {before} pixels interpolated for {side} × {side}"
        told = self.preprocessing.words + (placed if side != before else "")
        return {"start": f"{self.layout}; {self._exactness}", "brought along": told}

    @cached_property
    def _exactness(self) -> str:
        """What a comparison of the model to start from with its own class finds."""
        assert self.origin is not None
        return exactness(network_difference(self.origin.directory, self.origin.model()))


class OwnConvNet(ImageNetwork):
    """A convolutional network, fresh or started from."""

    shape: ClassVar[tuple[str, ...]] = ("layers", "width", "stride")
    names = (*shape, "group", "init")

    @property
    def named(self) -> str:
        return "selfsup's own convolutional network"

    @cached_property
    def origin(self) -> SavedConvNet | None:
        """The model to start from, where one is named."""
        make_absolute(self.settings, "model.init")
        place = self.settings["model.init"]
        return None if place is None else read_convnet(tower_directory(place, IMAGE))

    @property
    def summary(self) -> Pooling:
        return "mean"

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        return ("mean",)

    def settle_size(self, side: int) -> None:
        known = LARGEST if self.origin is None else self.origin.preprocessing.size
        self.settings.settle("data.size", min(side, known), "image size")

    def settle_shape(self, effort: Effort, images: float) -> None:
        settings = self.settings
        if self.origin is not None:
            take_shape(settings, "model", self.shape, self.origin.config, settings["model.init"])
            return
        size = settings["data.size"]
        settings.settle("model.stride", next(stride for most, stride in STRIDES if size <= most), "image size")
        settings.settle("model.layers", LAYERS, "recipe")
        if settings["model.preset"] == "auto":
            wanted = self._wanted_width(effort, images)
            fitting = min(CONVOLUTIONAL, key=lambda name: abs(math.log(CONVOLUTIONAL[name] / wanted)))
            settings.change("model.preset", fitting, f"image size, {effort.origin}")
        preset = settings["model.preset"]
        settings.settle("model.width", CONVOLUTIONAL[preset], f"preset {preset}")

    def _wanted_width(self, effort: Effort, images: float) -> float:
        """Arithmetic grows with the images that are shown and with the square of the width, and both grow alike."""
        if effort.flops is not None:
            usual = SHOWN * sketched(ConvNet, self._config(WIDTH)).flops(self.settings["data.size"])
            return float(WIDTH * (effort.flops / usual) ** 0.25)
        shown = (effort.epochs or 1.0) * images if effort.steps is None else effort.steps * SHOWN_IN_A_STEP
        return float(WIDTH * (shown / SHOWN) ** 0.5)

    @property
    def config(self) -> ConvNetConfig:
        """Its shape; raises a UserError where there is no such."""
        if self.origin is not None:
            return replace(self.origin.config, size=self.settings["data.size"])
        return self._config(self.settings["model.width"])

    def _config(self, width: int) -> ConvNetConfig:
        settings = self.settings
        try:
            return ConvNetConfig(settings["data.size"], settings["model.layers"], width, settings["model.stride"])
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None

    def build(self) -> ConvNet:
        if self.origin is not None:
            network = self.origin.model()
        else:
            network = ConvNet(self.config).initialise(generator(self.settings["train.seed"], "weights"))
        network.group = self.settings["model.group"]
        return network

    @property
    def layout(self) -> str:
        return f"{self.config.layout} of transformers"

    @property
    def flops(self) -> float:
        return sketched(ConvNet, self.config).flops(self.config.size)

    def require_side(self, side: int, remedy: str) -> None:
        """It takes any."""

    def describe(self) -> str:
        widths = self.config.widths
        return (
            f"{self.parameters:,} parameters in the convolutional network: {len(widths) - 1} stages of "
            f"{self.config.layers} layers, widths {widths[0]} to {widths[-1]}, first stride {self.config.stride}"
        )

    def facts(self) -> dict[str, str]:
        """Of what images meet in, in training, and what they do not meet in afterwards."""
        settings = self.settings
        if settings["model.group"] is None:
            return {}
        told = f"of {settings['model.group']:,} images in training ({settings.origin('model.group')})"
        return {"statistics": f"{told}, measured over training images for all else"}


class OwnEither(OwnVision):
    """The vision transformer or the convolutional network, which the size of the images decides."""

    names = (*dict.fromkeys(OwnVision.names + OwnConvNet.names),)

    def fitting(self, side: int) -> ImageNetwork:
        """Of small images the convolutional one, which learns more of them in a few minutes (docs/LOG.md)."""
        side = min(side, self.settings["data.size"] or side)
        return OwnConvNet(self.settings) if side <= SMALL else OwnVision(self.settings)


class ForeignVision(ImageNetwork):
    """A network of timm, trained anew (`model=timm:NAME`) or from weights (`model=timm:NAME@PLACE`), or one from
    Python, trained on as it is given.

    Args:
        module: the one from Python.
    """

    names = ()

    def __init__(self, settings: Settings, module: nn.Module | None) -> None:
        super().__init__(settings)
        self.module = module
        self.start = None if module is not None else TimmStart.named(settings["model.preset"])
        if self.start is not None:
            settings.change("model.preset", self.start.preset, settings.origin("model.preset"))
        self._given = {} if module is None else {n: t.clone() for n, t in module.state_dict().items()}

    @property
    def named(self) -> str:
        return str(self.settings["model.preset"]) if self.module is None else type(self.module).__name__

    @property
    def started(self) -> bool:
        return self.start is not None

    def settle_size(self, side: int) -> None:
        settings, own = self.settings, self._own_size
        if own is not None:
            settings.settle("data.size", own, "network")
            if settings["data.size"] != own:
                raise UserError(f"The network sees images of {own} pixels, so leave data.size out.")
        if self.start is not None:
            settings.settle("data.size", self.start.preprocessing.size, "weights")
        side = min(side, LARGEST)
        rounded = side // ROUND * ROUND if side >= ROUND_FROM else side  # which patches and strides divide
        settings.settle("data.size", rounded, "image size")

    @property
    def preprocessing(self) -> Preprocessing:
        return super().preprocessing if self.start is None else self.start.preprocessing.at(self.settings["data.size"])

    @property
    def _own_size(self) -> int | None:
        """The side of images that a network from Python was made for, where it says so."""
        if isinstance(self.module, VisionTransformer):
            return self.module.config.size
        return self.module.size if isinstance(self.module, AdaptedBackbone) else None

    def settle_shape(self, effort: Effort, images: float) -> None:
        """It brings its own."""

    def build(self) -> AnyBackbone:
        settings = self.settings
        if self.module is not None:
            self.module.load_state_dict(self._given)  # as it was given, whatever the calibration did to it
            return adapt(self.module, settings["data.size"])
        with seeded(settings["train.seed"], "weights"):
            return open_timm(settings["model.preset"], settings["data.size"], self.start)

    @cached_property
    def flops(self) -> float:
        """The forward pass is counted, the backward pass taken for twice as much."""
        return 3 * forward_flops(self._copy(), self.settings["data.size"])

    def _copy(self) -> Any:
        """Of the network, which may be the one that is in training."""
        return copy.deepcopy(self.look).cpu().eval()

    @torch.no_grad()
    def require_side(self, side: int, remedy: str) -> None:
        try:
            self._copy().embed(torch.zeros(1, 3, side, side), "mean")
        except (RuntimeError, ValueError, TypeError, AssertionError):
            raise UserError(f"{self.named} takes no images of {side} × {side} pixels, {remedy}.") from None

    def describe(self) -> str:
        return f"{self.parameters:,} parameters in {self.settings['model.preset']}"

    def facts(self) -> dict[str, str]:
        """With what is known of weights to start from."""
        if self.start is None:
            return super().facts()
        left = f"; left out: {', '.join(self.start.left_out)}" if self.start.left_out else ""
        return super().facts() | {"brought along": f"weights of {self.start.place}{left}; {self.preprocessing.words}"}


def forward_flops(network: AnyBackbone, size: int) -> float:
    """Floating-point operations of a network for an image of `size` × `size` pixels on the way there, counted."""
    pixels = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network.embed(pixels, "mean")
    return float(counter.get_total_flops())


def vision_network(settings: Settings, module: nn.Module | None, convolutions: Convolutions = "never") -> ImageNetwork:
    """The network that the settings name, or the one that is given.

    Args:
        convolutions: for which images an objective trains selfsup's own convolutional network: for none, those for
            which it is named, small ones too.
    """
    preset, place = settings["model.preset"], settings["model.init"]
    if module is not None or preset.startswith(TIMM):
        return ForeignVision(settings, module)
    if preset in CONVOLUTIONAL and convolutions == "never":
        raise UserError(f"{settings['objective']} needs a vision transformer, and {preset} is none; leave it out.")
    if convolutions != "never" and (preset in CONVOLUTIONAL or _convolves(place)):
        return OwnConvNet(settings)
    undecided = preset == "auto" and place is None and convolutions == "small"
    transforms = any(settings[f"model.{name}"] for name in set(OwnVision.names) - set(OwnConvNet.names))
    return OwnEither(settings) if undecided and not transforms else OwnVision(settings)


def _convolves(place: str | None) -> bool:
    """Whether a model to start from is a convolutional network."""
    return place is not None and read_config(tower_directory(place, IMAGE)).get("model_type") == CONVOLVING
