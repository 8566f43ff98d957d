"""What the contract compares, from processes that torchrun starts: `torchrun … worker.py DIRECTORY CASE…`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from objectives import CASES
from safetensors.torch import save_file
from suite import Case, Split, descend, held_out, one_step, train
from torch import Tensor

from selfsup.distributed import Processes, process_group

SPLITS = [Split(6, 6), Split(6, 1), Split(5, 5), Split(5, 2)]  # shares of 3 and 3, 2 and 3 records
RESUMED = Split(5, 2)


def results(case: Case, processes: Processes, directory: Path) -> dict[str, dict[str, Tensor]]:
    """Every comparison by name: its tensors by name."""
    found = {"held_out": held_out(case, processes)}
    for split in SPLITS:
        place = f"{split.batch}.{split.micro_batch}"
        found[f"one_step.{place}"] = one_step(case, split, processes)
        found[f"descend.{place}"] = descend(case, split, processes)
    found["uninterrupted"] = train(case, directory / "uninterrupted", processes, RESUMED)
    train(case, directory / "resumed", processes, RESUMED, workers=1, save_after=9)
    found["resumed"] = train(case, directory / "resumed", processes, RESUMED, workers=2, build_seed=99)
    return found


def main(directory: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    with process_group() as processes:
        tensors = {
            f"{name}/{comparison}/{tensor}": value.contiguous()
            for name in names
            for comparison, values in results(CASES[name], processes, directory / name).items()
            for tensor, value in values.items()
        }
        save_file({k: v.clone() for k, v in tensors.items()}, directory / f"rank{processes.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
