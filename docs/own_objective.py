"""An objective of one's own: predict clean vectors from noisy ones, on records and a network made here."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor, nn

import selfsup
from selfsup import Batch, Collectives, Outputs, Task, generator


class Denoise(selfsup.Objective):
    """Predict clean vectors from noisy ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def hide(self, batch: Batch) -> Task:
        clean = batch.data["x"]
        noise = torch.stack(
            [
                torch.randn(clean.shape[1:], generator=generator(batch.seed, "noise", int(epoch), int(record)))
                for epoch, record in zip(batch.epochs, batch.records, strict=True)
            ]
        )
        return Task({"clean": clean, "noisy": clean + noise}, {"mse": torch.tensor(clean.numel())})

    def predict(self, task: Task) -> Outputs:
        return {"guess": self.model(task["noisy"])}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        return {"mse": (outputs["guess"] - task["clean"]).square().sum()}


class Circle:
    """Points on a circle: records need only a length and `read`."""

    def __len__(self) -> int:
        return 1000

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        angles = torch.from_numpy(indices).float() * 0.00628
        return {"x": 3 * torch.stack((angles.cos(), angles.sin()), 1)}


if __name__ == "__main__":
    network = nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 2))
    out = sys.argv[1] if len(sys.argv) > 1 else "runs/denoise"
    run = selfsup.train(Denoise, data=Circle(), model=network, out=out, steps=200)
    print(f"mean squared error {run.summary['loss']:.3f}; guessing nothing gives 4.5")
