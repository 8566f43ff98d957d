"""Checkpoints that exist wholly or not at all.

A checkpoint is a directory `step-000001200` with safetensors files, `state.json`, and, written last, a manifest
with the size and checksum of each. It is written under a temporary name by a thread of its own, so that training
does not wait for the disk, and takes its name when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from selfsup.errors import UserError
from selfsup.files import MANIFEST, damage, remove_made, save_tensors, whole_directory, write_manifest

logger = logging.getLogger(__name__)
NAME = re.compile(r"step-(\d{9})")
STATE = "state.json"
TENSORS = ("model", "optimizer", "renewed")
FILES = (*(f"{name}.safetensors" for name in TENSORS), STATE, MANIFEST)  # all that this program puts into one


@dataclass(frozen=True)
class Checkpoint:
    """One moment of a run: its tensors by file (`TENSORS`) and a JSON-like state.

    The model goes without weights that stay as they were started where the state has their digest, `still`. `renewed`
    is there where records are made anew by the model (`Recipe.renewed`).
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def model(self, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors; those that it goes without are taken from the start, where they are the same bits."""
        found = self.tensors.get("model", {})
        rest = {name: tensor for name, tensor in start.items() if name not in found}
        return found | rest if rest and digest(rest) == self.state.get("still") else found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names and bits."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


class Checkpoints:
    """The checkpoints of one run: the newest few, and beside them those that are marked as best or before the decay."""

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.directory = directory
        self.keep = keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.seconds: float | None = None  # of the last write

    def save(self, checkpoint: Checkpoint, marked: Iterable[int] = ()) -> None:
        """Copy the tensors and hand them to the writing thread; waits only for the save before this one.

        Checkpoints of the `marked` steps stay, whatever their age. Raises a UserError where the save before failed
        (disk full, directory not writable).
        """
        self.wait()
        copies = {
            name: {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
            for name, tensors in checkpoint.tensors.items()
        }
        snapshot = Checkpoint(checkpoint.step, copies, checkpoint.state)
        self._pending = self._writer.submit(self._write, snapshot, frozenset(marked))

    def wait(self) -> None:
        """Return when the last save is on the disk; raises a UserError where it could not be written."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except OSError as error:
            raise UserError(
                f"The checkpoint in {self.directory} could not be written ({error.strerror or error}); make room or "
                f"give another --out; the earlier checkpoints are whole, go on with --resume {self.directory.parent}."
            ) from error

    def close(self) -> None:
        """Finish what is being written and end the thread; errors of a last save have been raised by `wait`."""
        self._writer.shutdown(wait=True)

    def _write(self, checkpoint: Checkpoint, marked: frozenset[int]) -> None:
        began = time.monotonic()
        target = self._path(checkpoint.step)
        if os.path.lexists(target):
            if self.problem(checkpoint.step) is None:
                return
            self._make_way(target)
        with whole_directory(target) as temporary:
            for name, tensors in checkpoint.tensors.items():
                save_tensors(tensors, temporary / f"{name}.safetensors")
            (temporary / STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
            write_manifest(temporary)
        self.seconds = time.monotonic() - began
        self._forget(marked)

    def _make_way(self, target: Path) -> None:
        """Clear the place of a damaged checkpoint; one that holds something else too is moved beside it."""
        if target.is_dir() and remove_made(target, FILES):
            return
        numbers = itertools.count(1)
        while (aside := target.with_name(f"damaged-{target.name}-{next(numbers)}")).exists():
            pass
        logger.warning("%s is damaged and holds files that are not the run's; it is now %s.", target, aside)
        target.rename(aside)

    def _forget(self, marked: frozenset[int]) -> None:
        """Remove what is neither among the newest nor marked; a directory with a user's own files in it stays."""
        for step in self.steps()[: -self.keep]:
            if step not in marked:
                remove_made(self._path(step), FILES)

    def steps(self) -> list[int]:
        """The steps of which a checkpoint stands, oldest first."""
        if not self.directory.is_dir():
            return []
        found = (NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def newest(
        self, before: int | None = None, misfit: Callable[[Checkpoint], str | None] = lambda _: None
    ) -> Checkpoint | None:
        """The newest whole checkpoint (at or before a step); broken ones are passed over, and said.

        `misfit` says what is wrong with one whose files are as they were written, if anything is.
        """
        for step in reversed(self.steps()):
            if before is not None and step > before:
                continue
            found = self._try(step, misfit)
            if isinstance(found, Checkpoint):
                return found
            logger.warning("Checkpoint %s is damaged (%s); trying the one before it.", self._path(step), found)
        return None

    def _try(self, step: int, misfit: Callable[[Checkpoint], str | None]) -> Checkpoint | str:
        """The checkpoint of a step, or what is wrong with it."""
        if problem := self.problem(step):
            return problem
        try:
            checkpoint = self.load(step)
        except (SafetensorError, OSError, ValueError):
            return "its files hold no tensors or no JSON"
        return misfit(checkpoint) or checkpoint

    def problem(self, step: int) -> str | None:
        """What is wrong with a checkpoint, judged by its manifest; None for a whole one."""
        path = self._path(step)
        return damage(path, {STATE, *(file.name for file in path.glob("*.safetensors"))})

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step, as it was saved."""
        path = self._path(step)
        tensors = {file.stem: safetensors.torch.load_file(file) for file in path.glob("*.safetensors")}
        return Checkpoint(step, tensors, json.loads((path / STATE).read_text(encoding="utf-8")))

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:09d}"
