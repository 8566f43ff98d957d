"""Pairs per second of open_clip's training: `train_one_epoch` of its open_clip_train, with what its `main` gives it.

Arguments: fp32 or bf16; a parquet file of images with captions; steps. A vision transformer of 12 layers of width 192
on 64 pixels in patches of 8, a text transformer of 6 layers of width 256 that reads 77 tokens, batch 128. Its own
transform, byte-pair tokenizer of 49,408 tokens, loss and cosine schedule, AdamW, two loader workers.

It needs open_clip_torch 3.3.0 and ftfy beside what lightly_parts.py needs; where torchvision has no build beside the
torch that is there, in an environment made as described there, and named by OPEN_CLIP_PYTHON:

    pip install --no-deps open_clip_torch==3.3.0 ftfy wcwidth
"""

from __future__ import annotations

import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from lightly_parts import allow_torchvision, batches
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

WARM, BATCH, NAME = 4, 128, "vit-on-64-pixels"
SHAPES = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 12, "width": 192, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 6, "width": 256, "heads": 4},
}


class Pairs(Dataset[Any]):
    """An image decoded, and its caption read, each time it is asked for, as of a list of files."""

    def __init__(self, parquet: str, transform: Callable[[Image.Image], Tensor], tokenizer: Any) -> None:
        table = pq.read_table(parquet, columns=["image", "caption"])
        self.images = [row["bytes"] for row in table["image"].to_pylist()]
        self.captions: list[str] = table["caption"].to_pylist()
        self.transform, self.tokenizer = transform, tokenizer

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.transform(Image.open(io.BytesIO(self.images[index])))
        return image, self.tokenizer([self.captions[index]])[0]


class Epoch:
    """So many batches as the one epoch of a training, and the moments at which they were asked for."""

    def __init__(self, pairs: Pairs, steps: int) -> None:
        self.pairs, self.num_batches, self.num_samples = pairs, steps, steps * BATCH
        self.dataloader = self
        self.moments: list[float] = []

    def set_epoch(self, epoch: int) -> None:
        """There is one."""

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(batches(self.pairs, BATCH), self.num_batches):
            self.moments.append(time.perf_counter())
            yield batch
        self.moments.append(time.perf_counter())


def build(arguments: Any) -> tuple[Any, Any, Any]:
    """The model, its training transform and its tokenizer."""
    import open_clip

    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / f"{NAME}.json"
        config.write_text(json.dumps(SHAPES), encoding="utf-8")
        open_clip.add_model_config(config)
    made = open_clip.create_model_and_transforms(NAME, precision=arguments.precision, output_dict=True)
    return made[0], made[1], open_clip.get_tokenizer(NAME)


def optimizer(model: torch.nn.Module, arguments: Any) -> torch.optim.Optimizer:
    """AdamW as it is by default there, without weight decay of vectors."""
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": others, "weight_decay": arguments.wd}]
    betas = (arguments.beta1, arguments.beta2)
    return torch.optim.AdamW(groups, lr=arguments.lr, betas=betas, eps=arguments.eps)


def main() -> None:
    allow_torchvision()
    from open_clip import create_loss
    from open_clip_train.distributed import init_distributed_device
    from open_clip_train.params import parse_args
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    precision, parquet, steps = sys.argv[1], sys.argv[2], WARM + int(sys.argv[3])
    words = ["--model", NAME, "--precision", {"fp32": "fp32", "bf16": "amp_bf16"}[precision]]
    arguments = parse_args([*words, "--device", "cpu", "--batch-size", str(BATCH)])
    arguments.distill = arguments.wandb = False  # as its main says
    init_distributed_device(arguments)
    torch.manual_seed(0)
    model, transform, tokenizer = build(arguments)
    epoch = Epoch(Pairs(parquet, transform, tokenizer), steps)
    update = optimizer(model, arguments)
    schedule = cosine_lr(update, arguments.lr, arguments.warmup, steps)
    train_one_epoch(model, {"train": epoch}, create_loss(arguments), 0, update, None, schedule, None, arguments)
    seconds = median(b - a for a, b in pairwise(epoch.moments[WARM:]))
    figures = {"pairs_per_second": BATCH / seconds, "seconds": seconds, "threads": torch.get_num_threads()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**figures, "parameters": parameters, "peak_memory": peak}))


main()
