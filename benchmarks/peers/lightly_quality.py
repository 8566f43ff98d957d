"""lightly's SimCLR on its ResNet-9 of half width for so many seconds; its vectors of two sets of images.

Arguments: a parquet file of images to train on and one of others, seconds, a seed, a file of arrays to write (`bank`
and `test`). Batch 256, AdamW at 1e-3 (cosine to zero over the time), temperature .5, views for small images (half
the strength of colours, no blur), two loader workers, bf16 autocast, channels last: what was best of a few choices.
"""

from __future__ import annotations

import json
import math
import sys
import time

import numpy as np
import torch
from lightly_parts import InMemory, allow_torchvision, batches, read_pixels, resnet
from torch import nn

BATCH, RATE = 256, 1e-3


def main() -> None:
    allow_torchvision()
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from lightly.transforms.utils import IMAGENET_NORMALIZE

    bank, test, seconds, seed, kept = *sys.argv[1:3], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    torch.manual_seed(seed)
    np.random.seed(seed)
    start = time.perf_counter()
    pixels = read_pixels(bank)
    network = resnet("resnet-9", 0.5).to(memory_format=torch.channels_last)
    head = SimCLRProjectionHead(256, 256, 128)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    criterion = NTXentLoss()
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    steps = 0
    for views in batches(InMemory(pixels, transform), min(BATCH, len(pixels))):
        done = (time.perf_counter() - start) / seconds
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * done))
        with torch.autocast("cpu", torch.bfloat16):
            first, second = (head(network(v.contiguous(memory_format=torch.channels_last))) for v in views)
            loss = criterion(first, second)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    took = time.perf_counter() - start
    mean, std = (torch.tensor(IMAGENET_NORMALIZE[name]).view(3, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def vectors(images: np.ndarray) -> np.ndarray:
        shown = torch.from_numpy(images).permute(0, 3, 1, 2).split(500)
        return torch.cat([network((part / 255 - mean) / std) for part in shown]).numpy()

    network.eval()
    np.savez(kept, bank=vectors(pixels), test=vectors(read_pixels(test)))
    print(
        json.dumps({"steps": steps, "wall_seconds": took, "loss": float(loss.detach()), "parameters": count(network)})
    )


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


main()
