"""What the scripts beside it that run lightly share: torchvision without its operators, images, networks.

They need lightly 1.6.0, torchvision and timm. Where torchvision has a build beside the torch that is there, `pip
install lightly==1.6.0 timm` is all. Where it has none, an environment of its own keeps it from other packages:

    python -m venv build/lightly
    python -c "import site; print(site.getsitepackages()[0])" > build/lightly/lib/python3.11/site-packages/torch.pth
    build/lightly/bin/pip install --no-deps lightly==1.6.0 lightly-utils torchvision==0.28.0 timm==1.0.31 \\
        pytorch-lightning==2.6.6 lightning-utilities torchmetrics
    export LIGHTLY_PYTHON=build/lightly/bin/python
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

WORKERS = 2  # processes that make views, one for each core


def allow_torchvision() -> None:
    """Make torchvision importable beside a torch for which its C++ operators were not built, such as a CPU one.

    On import it gives two operators shapes, for which it is enough that their names exist; transforms use none.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise SystemExit("The scripts that run lightly need torchvision.")
    try:
        torch.ops.load_library(Path(found.origin).with_name("_C.so"))
    except OSError:
        names = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            names.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        kept.append(names)


kept: list[torch.library.Library] = []  # a library's names last as long as it does


def read_pixels(parquet: str, count: int | None = None) -> np.ndarray:
    """The first images of a file with a column of encoded ones, uint8 (n, H, W, 3)."""
    column = pq.read_table(parquet, columns=["image"])["image"].slice(0, count).to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in column])


class InMemory(Dataset[Any]):
    """Views of decoded images, as torchvision's CIFAR10 hands them to a transform."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.pixels[index]))


class Files(Dataset[Any]):
    """Views of image files."""

    def __init__(self, directory: str, transform: Callable[[Image.Image], Any]) -> None:
        self.paths, self.transform = sorted(Path(directory).iterdir()), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def batches(images: Dataset[Any], batch: int, workers: int = WORKERS) -> Iterator[list[torch.Tensor]]:
    """Batches of views without end: workers do not wait where a pass over few images ends."""
    endless = RandomSampler(images, num_samples=1 << 40)
    return iter(DataLoader(images, batch, sampler=endless, num_workers=workers))


def vit_tiny() -> nn.Module:
    """ViT-Ti with patches of 4 of images of 32, or of crops of any size."""
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=0, dynamic_img_size=True)


def resnet(name: str, width: float = 1.0) -> nn.Module:
    """lightly's ResNet for CIFAR-10, without its classifier."""
    from lightly.models import ResNetGenerator

    network = ResNetGenerator(name, width)
    network.linear = nn.Identity()
    return network
