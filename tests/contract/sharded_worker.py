"""What the contract compares of sharded trainings: `torchrun … sharded_worker.py DIRECTORY PLACE CASE…`.

Several starts share DIRECTORY; each leaves its results in PLACE, and goes on from the checkpoints that others left.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from objectives import CASES
from safetensors.torch import save_file
from suite import SEED, Case, Split, descend, one_step, sharded, train
from torch import Tensor

from selfsup.distributed import Processes, process_group

SPLITS = [Split(8, 8), Split(8, 1)]
SAVED = Split(8, 2)
SAVED_AFTER = 9


def results(case: Case, processes: Processes, directory: Path, place: Path) -> dict[str, dict[str, Tensor]]:
    """Every comparison by name: its tensors by name."""
    found = {}
    for split in SPLITS:
        cut = f"{split.batch}.{split.micro_batch}"
        found[f"one_step.{cut}"] = one_step(case, split, processes, sharded(case.build(SEED)))
        found[f"descend.{cut}"] = descend(case, split, processes, sharded)
    how: dict[str, Any] = {"held": sharded, "dtype": torch.float64, "drops": False}
    found["uninterrupted"] = train(case, place / case.name / "whole", processes, SAVED, **how)
    train(case, place / case.name / "saved", processes, SAVED, save_after=SAVED_AFTER, **how)
    found["resumed"] = train(case, place / case.name / "saved", processes, SAVED, build_seed=99, **how)
    for other in directory.iterdir():
        if other != place and other.is_dir():
            found[f"from {other.name}"] = train(
                case, other / case.name / "saved", processes, SAVED, build_seed=7, **how
            )
    return found


def main(directory: Path, place: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    with process_group() as processes:
        tensors = {
            f"{name}/{comparison}/{tensor}": value.contiguous().clone()
            for name in names
            for comparison, values in results(CASES[name], processes, directory, place).items()
            for tensor, value in values.items()
        }
        if processes.leads:
            save_file(tensors, place / "found.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
