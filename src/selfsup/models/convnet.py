"""A convolutional network for small images: pixels to one vector per place and one for the image, at any size.

A 3 × 3 convolution, then four stages of 3 × 3 convolutions, of which all but the first stage halve the sides and double
the width. Each convolution has a batch normalisation behind it and, where neither sides nor width change, its input
beside it (He et al. 2016, "Deep Residual Learning for Image Recognition", section 3.2, with one convolution between two
shortcuts, as in Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", section 3):

    y = relu(norm(conv(x)) + x)

In training the statistics of a normalisation are those of a group of images (Hoffer et al. 2017, "Train longer,
generalize better", algorithm 1), whatever else is computed at once. No average of them is kept meanwhile: those that
serve evaluation are measured over images of the training part whenever the network is looked at or saved (Wu and
Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3). So a resume changes nothing that is learnt, and neither do
micro-batches and processes whose shares a group divides. Parameters have the names of transformers' TextNetModel, see
`models/convnet_layouts.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.models.directories import MOST
from selfsup.models.kinds import CONVOLVING
from selfsup.models.losses import at_least_single
from selfsup.models.packing import Pooling
from selfsup.models.transformer import TensorModule, Unset, fill, unset
from selfsup.models.vision import CHANNELS

STAGES = 4
KERNEL = 3


@dataclass(frozen=True)
class ConvNetConfig:
    """All that determines a convolutional network but its weights.

    Attributes:
        size: the side of the images that it is trained on; it takes any other one.
        layers: convolutions in each stage.
        width: of the first stage.
        stride: of the first convolution, in pixels.
    """

    size: int
    layers: int
    width: int
    stride: int = 1
    norm_eps: float = 1e-5
    layout: str = CONVOLVING

    def __post_init__(self) -> None:
        if self.width << (STAGES - 1) > MOST or self.layers > MOST:
            raise ValueError(f"{self.layers:,} layers of width {self.width:,} are more than any network has")

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the first convolution and of each stage."""
        return (self.width, *(self.width << stage for stage in range(STAGES)))

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """Of each convolution of each stage."""
        rest = (1,) * (self.layers - 1)
        return tuple((1 + (stage > 0), *rest) for stage in range(STAGES))

    @property
    def patch(self) -> int:
        """Pixels from one place to the next."""
        return self.stride << (STAGES - 1)

    @property
    def summary(self) -> Pooling:
        """What of the network says most of a whole image."""
        return "mean"

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The ways in which it can make one vector of an image."""
        return ("mean",)


class Convolution(Unset, nn.Conv2d):
    """3 × 3, weight (outputs, inputs, 3, 3); the sides become those of the input over the stride, rounded up."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, KERNEL, stride, KERNEL // 2, bias=False)


class BatchNorm(TensorModule):
    """weight · (x − mean) / sqrt(variance + eps) + bias for each channel of (B, width, h, w) (Ioffe & Szegedy 2015,
    algorithm 1): in training with the mean and variance of all that is given at once, else with those that are kept."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = unset(width), unset(width)
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = (None, None) if self.training else (self.running_mean, self.running_var)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, 0.0, self.eps)


class Stem(TensorModule):
    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.conv = Convolution(CHANNELS, config.width, config.stride)
        self.batch_norm = BatchNorm(config.width, config.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.relu(self.batch_norm(self.conv(pixels)), inplace=True)


def has_shortcut(inputs: int, outputs: int, stride: int) -> bool:
    """Whether the input of a convolution is added to what it makes."""
    return inputs == outputs and stride == 1


class Layer(TensorModule):
    def __init__(self, inputs: int, outputs: int, stride: int, eps: float) -> None:
        super().__init__()
        self.main_conv = Convolution(inputs, outputs, stride)
        self.main_batch_norm = BatchNorm(outputs, eps)
        self.residual = has_shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.main_batch_norm(self.main_conv(x))
        return F.relu(y.add_(x) if self.residual else y, inplace=True)  # nobody else looks at y


class Stage(TensorModule):
    def __init__(self, inputs: int, outputs: int, strides: Iterable[int], eps: float) -> None:
        super().__init__()
        steps = enumerate(strides)
        self.stage = nn.Sequential(*(Layer(outputs if step else inputs, outputs, s, eps) for step, s in steps))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.stage(x)
        return made


class Encoder(TensorModule):
    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        stages = zip(pairwise(config.widths), config.strides, strict=True)
        self.stages = nn.Sequential(*(Stage(*widths, strides, config.norm_eps) for widths, strides in stages))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.stages(x)
        return made


class ConvNet(TensorModule):
    """Pixels to hidden states. Parameters are NaN until `initialise` or loading fills them.

    Attributes:
        group: images that have their statistics together in training, those that stand behind each other in a call;
            None for all of it. A call whose images it does not divide ends with a smaller group.
    """

    group: int | None = None

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.encoder = Encoder(config)

    def initialise(self, generator: torch.Generator) -> ConvNet:
        """Fill the parameters, a pure function of the generator's state (see `transformer.fill`); returns self."""
        fill(self, generator, {}, {})
        return self

    @property
    def dimension(self) -> int:
        """Of the vector of an image."""
        return self.config.widths[-1]

    def flops(self, size: int) -> float:
        """Operations of forward and backward for an image of `size` × `size` pixels."""
        total, side = 0, size
        for part in self.modules():
            if isinstance(part, Convolution):
                side = -(-side // part.stride[0])
                total += 6 * part.weight.numel() * side**2
        return float(total)

    def forward(self, pixels: Tensor) -> Tensor:
        """Hidden states (B, P, dimension) of pixels (B, 3, H, W), normalised: places row by row.

        Under autocast the result has the narrow dtype.
        """
        # Convolutions are faster on channels that lie side by side.
        pixels = pixels.to(self.stem.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        if not (self.training and self.group):
            return self._states(pixels)
        return torch.cat([self._states(part) for part in torch.split(pixels, self.group)])

    def _states(self, pixels: Tensor) -> Tensor:
        return self.encoder(self.stem(pixels)).flatten(2).mT

    def pool(self, states: Tensor, pooling: Pooling) -> Tensor:
        """One vector per image, (B, dimension) in fp32 or wider: the mean over places, the only way there is."""
        return at_least_single(states).mean(1)

    def embed(self, pixels: Tensor, pooling: Pooling) -> Tensor:
        """One vector per image, (B, dimension), in fp32 or wider: see `pool`."""
        return self.pool(self(pixels), pooling)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Keep the statistics of images for evaluation: means and variances over all of these, each batch of pixels
        (B, 3, H, W) normalised as in training."""
        norms = [part for part in self.modules() if isinstance(part, BatchNorm)]
        moments: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
        sizes: list[int] = []

        def add(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(at_least_single(inputs[0]), (0, 2, 3), correction=0)
            moments[norm].append(torch.stack((mean, variance)).cpu().double())

        hooks, training, group = [norm.register_forward_pre_hook(add) for norm in norms], self.training, self.group
        self.train().group = None
        try:
            for pixels in batches:
                self(pixels)
                sizes.append(len(pixels))
        finally:
            self.train(training).group = group
            for hook in hooks:
                hook.remove()
        shares = torch.tensor(sizes, dtype=torch.float64)[:, None] / sum(sizes)
        for norm in norms:
            means, variances = torch.stack(moments[norm], 1)
            mean = (shares * means).sum(0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_((shares * (variances + (means - mean).square())).sum(0))
