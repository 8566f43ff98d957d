"""Checkpoints that exist wholly or not at all.

A checkpoint is a directory `step-000001200` with safetensors files, `state.json`, and, written last, a manifest
with the size and checksum of each. It is written under a temporary name by a thread of its own, so that training
does not wait for the disk, and takes its name when all of it is on the disk.

Of a model that several processes hold by rows each of them writes its own, `model-00002-of-00004.safetensors`: a
tensor is what the files have of it, one behind the other in their order. So any number of processes reads what any
other number wrote, and no index is needed beside the manifest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfsup.distributed import Lost, Processes, is_sharded
from selfsup.errors import UserError
from selfsup.files import (
    MANIFEST,
    damage,
    remove_made,
    save_tensors,
    sync,
    temporary_name,
    whole_directory,
    write_manifest,
)
from selfsup.sharding import own

logger = logging.getLogger(__name__)
NAME = re.compile(r"step-(\d{9})")
STATE = "state.json"
KEPT = "kept"  # an empty file; a checkpoint in which it lies is never removed, as none that holds files of others is
TENSORS = ("model", "optimizer", "renewed")
AVERAGE = "average"  # of a parameter, among what the optimizer remembers of it
PART = re.compile(r"(.+?)(?:-\d{5}-of-\d{5})?\.safetensors")
# All that this program puts into one.
OURS = re.compile(rf"(?:{'|'.join(TENSORS)})(?:-\d{{5}}-of-\d{{5}})?\.safetensors|{STATE}|{MANIFEST}")
PATIENCE = 10.0  # seconds that a training which ends leaves to the other processes for writing their parts


class Pieces(Mapping[str, Tensor]):
    """The tensors of some files, read when they are asked for; one of several pieces has them joined by rows."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, list[Path]] = {}
        for path in sorted(files):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    self._files.setdefault(name, []).append(path)

    def __getitem__(self, name: str) -> Tensor:
        pieces = []
        for path in self._files[name]:
            with safe_open(path, "pt") as file:
                pieces.append(file.get_tensor(name))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True)
class Checkpoint:
    """One moment of a run: its tensors by file (`TENSORS`) and a JSON-like state.

    The model goes without weights that stay as they were started where the state has their digest, `still`. `renewed`
    is there where records are made anew by the model (`Recipe.renewed`).
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: dict[str, Any]

    def model(self, start: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The model's tensors; those that it goes without are taken from the start, where they are the same bits."""
        found = self.tensors.get("model", {})
        rest = {name: tensor for name, tensor in start.items() if name not in found}
        still = self.state.get("still")
        return {**found, **rest} if still and digest(rest) == still else found

    def used(self, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's tensors as a user opens them: where averages of weights are kept, these in place of them."""
        moments = self.tensors.get("optimizer", {})
        averages = {name.removesuffix(f".{AVERAGE}"): moments[name] for name in moments if name.endswith(f".{AVERAGE}")}
        return {**self.model(start), **averages}


def _copied(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in memory of its own on the CPU."""
    return own(tensor).detach().to("cpu", copy=True).contiguous()


def _ours(directory: Path) -> list[str]:
    """The names in a directory that this program gives to the files of a checkpoint."""
    return [path.name for path in directory.iterdir() if OURS.fullmatch(path.name)]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names and bits."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(tensors[name].detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


class Checkpoints:
    """The checkpoints of one run: the newest few, and beside them those that are marked as best or before the decay.

    Args:
        processes: those that save together, each what it holds; without them one process saves all.
    """

    def __init__(self, directory: Path, keep: int = 3, processes: Processes | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self.processes = processes or Processes.alone()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._patient_until = math.inf
        self.seconds: float | None = None  # of the last write

    def save(self, checkpoint: Checkpoint, marked: Iterable[int] = ()) -> None:
        """Copy the tensors and hand them to the writing thread; waits only for the save before this one.

        Checkpoints of the `marked` steps stay, whatever their age. Raises a UserError where the save before failed
        (disk full, directory not writable).
        """
        self.wait()
        copies = {
            name: {key: _copied(tensor) for key, tensor in tensors.items() if self._writes(tensor)}
            for name, tensors in checkpoint.tensors.items()
        }
        snapshot = Checkpoint(checkpoint.step, copies, checkpoint.state)
        if self.processes.size == 1:
            self._pending = self._writer.submit(self._write, snapshot, frozenset(marked))
        elif (place := self._place_of_all(checkpoint.step)) is None:
            return
        elif self.processes.leads:
            self._pending = self._writer.submit(self._write, snapshot, frozenset(marked), place)
        else:
            self._pending = self._writer.submit(self._write_part, snapshot, place)

    def _writes(self, tensor: Tensor) -> bool:
        """Whether this process has rows of a tensor that no other one writes."""
        return len(own(tensor)) > 0 if is_sharded(tensor) else self.processes.leads

    def _place_of_all(self, step: int) -> Path | None:
        """A temporary directory in which all processes write their parts; None where the checkpoint stands already."""
        name = None
        if self.processes.leads and not self._stands(step):
            place = temporary_name(self.place(step))
            with self._said():
                place.mkdir(parents=True)
            name = place.name
        name = self.processes.share(name)
        return None if name is None else self.directory / name

    def wait(self) -> None:
        """Return when the last save is on the disk; raises a UserError where it could not be written."""
        pending, self._pending = self._pending, None
        with self._said():
            if pending is not None:
                pending.result()

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Raise a UserError where the block could not write."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The checkpoint in {self.directory} could not be written ({error.strerror or error}); make room or "
                f"give another --out; the earlier checkpoints are whole, go on with --resume {self.directory.parent}."
            ) from error

    def close(self) -> None:
        """Finish what is being written and end the thread; errors of a last save have been raised by `wait`."""
        self._patient_until = time.monotonic() + PATIENCE
        self._writer.shutdown(wait=True)

    def _write(self, checkpoint: Checkpoint, marked: frozenset[int], temporary: Path | None = None) -> None:
        began = time.monotonic()
        if self._stands(checkpoint.step):
            return
        with whole_directory(self.place(checkpoint.step), temporary) as place:
            for name, tensors in checkpoint.tensors.items():
                save_tensors(dict(tensors), place / self._file(name))
            self._await_parts(checkpoint, place)
            (place / STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
            write_manifest(place)
        self.seconds = time.monotonic() - began
        self._forget(marked)

    def _write_part(self, checkpoint: Checkpoint, place: Path) -> None:
        """What a process that does not lead writes of a checkpoint."""
        for name, tensors in checkpoint.tensors.items():
            save_tensors(dict(tensors), place / self._file(name))
            sync(place / self._file(name))
        self.processes.arrive(place.name)  # which no other one is called

    def _await_parts(self, checkpoint: Checkpoint, place: Path) -> None:
        """Return when all processes have written their parts; raises Lost where one of them has failed, and OSError
        where the disk that they wrote to is not this one."""
        if self.processes.size == 1:
            return
        self.processes.arrive(place.name)
        self.processes.await_all(place.name, self._lose_patience)
        for rank in range(self.processes.size):
            for kind in checkpoint.tensors:
                (place / self._file(kind, rank)).stat()

    def _lose_patience(self) -> None:
        """Raise Lost where a training that ends has waited long enough."""
        if time.monotonic() > self._patient_until:
            raise Lost("it has not written its part of the checkpoint")

    def _file(self, kind: str, rank: int | None = None) -> str:
        """The name of what a process, by default this one, writes of a kind of tensors."""
        rank, size = self.processes.rank if rank is None else rank, self.processes.size
        return f"{kind}.safetensors" if size == 1 else f"{kind}-{rank + 1:05d}-of-{size:05d}.safetensors"

    def _stands(self, step: int) -> bool:
        """Whether the checkpoint of a step is there and whole; a damaged one makes way."""
        if not os.path.lexists(self.place(step)):
            return False
        if self.problem(step) is None:
            return True
        self._make_way(self.place(step))
        return False

    def _make_way(self, target: Path) -> None:
        """Clear the place of a damaged checkpoint; one that holds something else too is moved beside it."""
        if target.is_dir() and remove_made(target, _ours(target)):
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
                remove_made(self.place(step), _ours(self.place(step)))

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
            found = self.whole(step, misfit)
            if isinstance(found, Checkpoint):
                return found
            logger.warning("Checkpoint %s is damaged (%s); trying the one before it.", self.place(step), found)
        return None

    def whole(self, step: int, misfit: Callable[[Checkpoint], str | None]) -> Checkpoint | str:
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
        path = self.place(step)
        return damage(path, {STATE, *(file.name for file in path.glob("*.safetensors"))})

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step, as it was saved."""
        path = self.place(step)
        kinds: dict[str, list[Path]] = {}
        for file in path.glob("*.safetensors"):
            kinds.setdefault(PART.sub(r"\1", file.name), []).append(file)
        tensors = {kind: Pieces(files) for kind, files in kinds.items()}
        return Checkpoint(step, tensors, json.loads((path / STATE).read_text(encoding="utf-8")))

    def place(self, step: int) -> Path:
        """The directory of the checkpoint of a step."""
        return self.directory / f"step-{step:09d}"
