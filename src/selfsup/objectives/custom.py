"""An objective of a user's own, from Python: its class, its records, its network, and nothing to edit here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from selfsup.config import Settings
from selfsup.data.records import Records, Subset
from selfsup.errors import UserError
from selfsup.files import save_tensors, separate, whole_directory
from selfsup.objectives.base import Objective
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.report import Progress
from selfsup.seeding import derive


class CustomRecipe(Recipe):
    """Trains `objective(model)`, or `objective()` where no network is given, on records with `len` and `read`."""

    checks_layout: ClassVar[bool] = False

    def __init__(
        self, settings: Settings, source: object | None, module: nn.Module | None, objective: type[Objective]
    ) -> None:
        self.objective, self.checks, self.losses_compare = objective, objective.checks, objective.losses_compare
        super().__init__(settings, source, module)

    def compose(self) -> None:
        """The network as it was given, whatever the calibration does to it."""
        module = self.module
        self.start = None if module is None else {k: v.clone() for k, v in module.state_dict().items()}

    @property
    def whitening_records(self) -> int:
        return 0

    def open(self, progress: Progress) -> None:
        if not hasattr(self.source, "read") or not hasattr(self.source, "__len__"):
            raise UserError(
                f"The objective {self.objective.__name__} needs records: give `data` an object with __len__ and "
                f"read(indices), not {type(self.source).__name__}."
            )
        self.records = cast(Records, self.source)

    def settle(self, effort: Effort) -> None:
        """The held-out part is drawn by the hash of each record's index, so it does not depend on the seed."""
        share = self.settings["data.validation"]
        held_out = np.array([derive(0, "validation", i) < share * 2**63 for i in range(len(self.records))])
        self.train = Subset(self.records, np.flatnonzero(~held_out))
        if held_out.any():
            self.validation = Subset(self.records, np.flatnonzero(held_out))
        self.settings.settle("train.batch", min(32, len(self.train)), "recipe")
        self.settings.settle("optim.lr", 0.01, "recipe")
        self.settings.settle("optim.adamw_lr", 0.003, "recipe")
        self.settings.settle("optim.weight_decay", 0.1, "recipe")
        self.parameters = sum(parameter.numel() for parameter in self.build().parameters())

    def fingerprint(self) -> str:
        """The number of records and the content of the first ones: the rest is the source's own business."""
        first = self.records.read(np.arange(min(8, len(self.records))))
        digest = hashlib.blake2b(str(len(self.records)).encode(), digest_size=16)
        for name in sorted(first):
            digest.update(name.encode() + first[name].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def build(self) -> Objective:
        torch.manual_seed(derive(self.settings["train.seed"], "weights"))
        if self.module is None or self.start is None:
            return self.objective()
        self.module.load_state_dict(self.start)
        return self.objective(self.module)

    def flops_per_record(self) -> float:
        """Six for each parameter: the floor that any network which uses each of them once per record pays."""
        return 6.0 * self.parameters

    def facts(self) -> dict[str, str]:
        held_out = len(self.validation) if self.validation is not None else 0
        return {
            "data": f"{len(self.train):,} records for training, {held_out:,} held out",
            "model": f"{self.parameters:,} parameters in {self.objective.__name__}",
        }

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """All of the objective's weights as safetensors, under their own names."""
        with whole_directory(directory) as temporary:
            save_tensors(separate(objective), temporary / "model.safetensors")
