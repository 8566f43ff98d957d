"""Images per second of lightly's training steps, with the recipes and loops of its examples in a loader's own pace.

Arguments: simclr, dino or mae; fp32, bf16 or bf16-channels-last; a parquet file of images of 32 pixels; steps.
SimCLR: its CIFAR ResNet-18, batch 256, SGD. DINO: ViT-Ti/4, 2 crops of 32 and 6 of 16 pixels, batch 64, 2,048
prototypes, Adam. MAE: ViT-Ti/4, 75 % hidden, a decoder of one block of width 512, batch 256, AdamW.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from lightly_parts import InMemory, allow_torchvision, batches, read_pixels, resnet, vit_tiny
from torch import Tensor, nn

WARM = 1
IMAGES = 10_000

Loss = Callable[[Any], Tensor]
Update = Callable[[], None]


def simclr() -> tuple[nn.Module, Loss, torch.optim.Optimizer, Update, Any, int]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    model = nn.Sequential(resnet("resnet-18"), SimCLRProjectionHead(512, 512, 128))
    criterion = NTXentLoss()

    def loss(views: list[Tensor]) -> Tensor:
        return criterion(model(views[0]), model(views[1]))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    return model, loss, optimizer, lambda: None, SimCLRTransform(input_size=32), 256


def dino() -> tuple[nn.Module, Loss, torch.optim.Optimizer, Update, Any, int]:
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import DINOTransform

    backbone = vit_tiny()
    student = nn.Sequential(backbone, DINOProjectionHead(192, 512, 64, 2048))
    teacher = nn.Sequential(copy.deepcopy(backbone), DINOProjectionHead(192, 512, 64, 2048))
    deactivate_requires_grad(teacher)
    criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    def loss(views: list[Tensor]) -> Tensor:
        return criterion([teacher(view) for view in views[:2]], [student(view) for view in views], epoch=0)

    optimizer = torch.optim.Adam(student.parameters(), lr=0.001)
    transform = DINOTransform(global_crop_size=32, local_crop_size=16)
    return student, loss, optimizer, lambda: update_momentum(student, teacher, m=0.996), transform, 64


class MAE(nn.Module):
    """The parts of lightly's MAE example on ViT-Ti/4."""

    def __init__(self) -> None:
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        super().__init__()
        vit: Any = vit_tiny()
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(vit.embed_dim, 512)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches, embed_dim=512, depth=1, num_heads=16
        )
        self.predict = nn.Linear(512, 4 * 4 * 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        from lightly.models import utils

        shape = len(images), self.encoder.sequence_length
        keep, hidden = utils.random_token_mask(size=shape, mask_ratio=0.75, device=images.device)
        seen = self.embed(self.encoder.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, shape)
        tokens = utils.set_at_index(tokens, keep, seen.type_as(tokens))
        predicted = self.predict(utils.get_at_index(self.decoder(tokens), hidden))
        return predicted, utils.get_at_index(utils.patchify(images, 4), hidden - 1)


def mae() -> tuple[nn.Module, Loss, torch.optim.Optimizer, Update, Any, int]:
    from lightly.transforms import MAETransform

    model = MAE()
    criterion = nn.MSELoss()

    def loss(views: list[Tensor]) -> Tensor:
        return criterion(*model(views[0]))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4)
    return model, loss, optimizer, lambda: None, MAETransform(input_size=32), 256


def main() -> None:
    allow_torchvision()
    objective, precision, parquet, steps = *sys.argv[1:4], int(sys.argv[4])
    torch.manual_seed(0)
    model, loss, optimizer, after, transform, batch = {"simclr": simclr, "dino": dino, "mae": mae}[objective]()
    layout = torch.channels_last if precision == "bf16-channels-last" else torch.contiguous_format
    model.to(memory_format=layout)
    autocast = nullcontext() if precision == "fp32" else torch.autocast("cpu", torch.bfloat16)
    views = batches(InMemory(read_pixels(parquet, IMAGES), transform), batch)
    moments = [time.perf_counter()]
    for _ in range(WARM + steps):
        shown = [view.contiguous(memory_format=layout) for view in next(views)]
        with autocast:
            value = loss(shown)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        after()
        moments.append(time.perf_counter())
    seconds = median(b - a for a, b in pairwise(moments[WARM:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"images_per_second": batch / seconds, "seconds": seconds, "loss": float(value.detach())}
    print(json.dumps({**figures, "parameters": sum(p.numel() for p in model.parameters()), "peak_memory": peak}))


main()
