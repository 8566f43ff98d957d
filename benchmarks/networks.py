"""Networks that benchmarks bring from Python: residual networks for small images, without a classifier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, section 3.3)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Pixels (B, 3, H, W) to (B, 8 · width): a 3 × 3 convolution, four stages, the mean over places.

    With two blocks a stage it is the ResNet-18 that is usual on CIFAR, with one a ResNet-9.
    """

    def __init__(self, blocks: int, width: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width, *(width * 2**stage for stage in range(4))]
        self.stages = nn.Sequential(
            *(
                Block(widths[stage + (number > 0)], widths[stage + 1], 2 if stage and not number else 1)
                for stage in range(4)
                for number in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(F.relu(self.norm(self.conv(x)))).mean((2, 3))


NETWORKS = {"resnet-18": lambda: ResNet(2), "resnet-9": lambda: ResNet(1), "resnet-9-half": lambda: ResNet(1, 32)}
