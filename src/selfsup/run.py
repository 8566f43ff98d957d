"""A run directory: where each thing lies, and how it is opened.

RUN/config.yaml        the resolved configuration, each value with its origin
RUN/environment.json   machine, versions, command, plan
RUN/journal.jsonl      decisions that the clock made, written before they take effect
RUN/metrics.jsonl      one object per line
RUN/samples/           what the model wrote, or saw, on the way
RUN/loggers/           what the loggers wrote that log.to names, see selfsup.loggers
RUN/checkpoints/       see selfsup.saving
RUN/model/             the model, as a Hugging Face directory
RUN/adapter/           what was trained of it, where that is an adapter (LoRA), as peft reads it
RUN/summary.json       final figures; a run that has one is finished
RUN/report.html        all of this on one page, see selfsup.reporting
RUN/inspection.json    the first batch, as the report draws it
RUN/earlier/           model and summary of a finished run that was extended since
RUN/.lock              empty; the process that trains the run has it locked
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from selfsup import run_files
from selfsup.config import LENGTHS, Config, Settings, flatten, read_yaml
from selfsup.distributed import Processes
from selfsup.errors import Interrupted, UserError
from selfsup.files import LOCK, TEMPORARY, expanded, held, whole, writable, write_atomically
from selfsup.objectives import DEFAULT, find_recipe
from selfsup.objectives.recipe import Recipe
from selfsup.run_files import RUN_CONFIG, RUN_MODEL, read_lines, read_object
from selfsup.saving import Checkpoints

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from selfsup.inference.opening import AnyModel

ENVIRONMENT = "environment.json"


class Run:
    """One training, and the directory that holds all of it."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = expanded(directory)
        self.config_file = self.directory / RUN_CONFIG
        self.model_directory, self.adapter_directory = self.directory / RUN_MODEL, self.directory / "adapter"
        self.checkpoints_directory = self.directory / "checkpoints"
        self.samples, self.loggers_directory = self.directory / "samples", self.directory / "loggers"
        self._metrics, self._journal = self.directory / "metrics.jsonl", self.directory / "journal.jsonl"
        self._made: list[Path] = []  # by this process, for a run that is being started

    def __fspath__(self) -> str:
        """A run stands for its directory wherever one is asked for."""
        return str(self.directory)

    @classmethod
    def create(cls, directory: str | Path) -> Run:
        """A new run; raises a UserError where its directory holds something already, or cannot be written."""
        run = cls(directory)
        if run.exists:
            raise UserError(
                f"{run.directory} already holds a run; go on with it (--resume {run.directory}) or give another --out."
            )
        try:
            run._begin()
        except OSError as error:
            run.discard()
            raise UserError(f"Cannot write to {run.directory}: {error.strerror}; give another --out.") from None
        return run

    def _begin(self) -> None:
        """Make the directory and what shows that it can be written, and remember what was not there before."""
        self._made = [place for place in (self.directory, *self.directory.parents) if not place.exists()]
        self.directory.mkdir(parents=True, exist_ok=True)
        foreign = {path.name for path in self.directory.iterdir() if not self._is_of_a_start(path)}
        if foreign:
            raise UserError(f"{self.directory} holds {min(foreign)}, which is no run; give another --out.")
        self._made = [self.directory / ENVIRONMENT, self.directory / LOCK, *self._made]
        write_atomically(self.directory / ENVIRONMENT, "{}")

    def _is_of_a_start(self, path: Path) -> bool:
        """Whether a start that was cut short left this: a half-written file, a lock, or an environment."""
        if path.name != ENVIRONMENT:
            return bool(TEMPORARY.fullmatch(path.name)) or (path.name == LOCK and path.stat().st_size == 0)
        try:
            found = json.loads(whole(path))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(found, dict) and (found == {} or "selfsup" in found)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training this run during the block; raises a UserError where one trains it."""
        refusal = f"{self.directory} is being trained by another process; wait for it, or give another --out."
        with held(self.directory, refusal):
            yield

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Say how to go on where the block is stopped at once (Interrupted) or the disk is full (UserError)."""
        again = f"selfsup train --resume {self.directory}"
        try:
            with writable(self.directory, f"make room there, then go on with: {again}"):
                yield
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped at once; what was saved is whole. Go on with: {again}") from None

    def discard(self) -> None:
        """Remove what `create` made, as long as nothing else lies in it: a start that came to nothing."""
        if self.exists:  # it came to something in the last moment
            return
        for path in self._made:
            with suppress(OSError):
                path.unlink() if path.name in (ENVIRONMENT, LOCK) else path.rmdir()
        self._made = []

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """An existing run; raises a UserError where there is none."""
        run = cls(directory)
        if not run.exists:
            raise UserError(f"{directory} holds no run (there is no config.yaml in it); give the directory of a run.")
        return run

    @property
    def start_another(self) -> str:
        """What to do where this run cannot go on, as the end of a sentence."""
        return f"start another run with --config {self.config_file} --out NEW"

    @property
    def exists(self) -> bool:
        return self.config_file.is_file()

    @property
    def model(self) -> AnyModel:
        """The trained model, ready to use."""
        from selfsup.inference.opening import load

        return load(self.directory)

    def checkpoints(self, keep: int = 3, processes: Processes | None = None) -> Checkpoints:
        """Its checkpoints, saved by one process, or by these together."""
        return Checkpoints(self.checkpoints_directory, keep, processes)

    def config(self) -> dict[str, Any]:
        """The configuration as it was written."""
        return read_yaml(self.config_file)

    def settings(self, recipe: type[Recipe] | None = None) -> Settings:
        """The resolved configuration, with the origins that were written beside the values.

        Of an objective from Python without its `recipe`, its own section is left out. Raises a UserError where the
        configuration cannot be read, or lacks what the run was planned with.
        """
        config, environment = self.config(), self.environment()
        named = str(config.get("objective", DEFAULT))
        if recipe is None and not named.startswith("python:"):
            recipe = find_recipe(named, config)
        if recipe is None:
            shared = {key: value for key, value in config.items() if key in Config.model_fields}
            settings = Settings((str(self.config_file), shared))
        else:
            config = recipe.upgraded(config)
            settings = recipe.resolve((str(self.config_file), config))
            recipe(settings)  # which leaves those that mean something to the objective
        settings.sources = environment.get("sources", settings.sources)
        self._require_planned(settings, config, environment)
        return settings

    def _require_planned(self, settings: Settings, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """Raise a UserError where the configuration lacks what the run was planned with."""
        planned = dict(flatten((environment.get("plan") or {}).get("settings", {})))
        given = {*(key for key, value in flatten(config) if value is not None), *LENGTHS}
        for key in settings.names():
            value = planned.get(key)
            if value is not None and key not in given:
                raise UserError(
                    f"{self.config_file} lacks {key}, which the run was planned with ({value}); restore it from a copy."
                )

    def write_settings(self, settings: Settings) -> None:
        write_atomically(self.config_file, settings.to_yaml())

    def require_readable(self) -> None:
        """Raise a UserError where a file that a resume needs is damaged, before anything is changed."""
        for read in (self.settings, self.plan, self.metrics, self.journal):
            read()

    def environment(self) -> dict[str, Any]:
        """What stands in environment.json; empty where there is none."""
        return self._read(ENVIRONMENT, run_files.ENVIRONMENT)

    def plan(self) -> dict[str, Any]:
        """The plan that the run was started with; raises a UserError where it was not kept."""
        plan: dict[str, Any] | None = self.environment().get("plan")
        if plan is None:
            raise UserError(f"{self.directory / ENVIRONMENT} holds no plan of the run; restore it from a copy.")
        return plan

    def write_environment(self, environment: dict[str, Any]) -> None:
        self._write(ENVIRONMENT, environment)

    @property
    def summary(self) -> dict[str, Any]:
        """The final figures; empty while the run is not finished."""
        return self._read("summary.json", run_files.SUMMARY)

    def write_summary(self, summary: dict[str, Any]) -> None:
        self._write("summary.json", summary)

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl."""
        return read_lines(self._metrics, run_files.METRICS)

    @property
    def reached(self) -> int:
        """The last step that metrics tell of."""
        return max((int(line["step"]) for line in self.metrics()), default=0)

    def journal(self) -> list[dict[str, Any]]:
        """The decisions of the clock, in the order they were made."""
        return read_lines(self._journal, run_files.JOURNAL)

    def note(self, decision: dict[str, Any]) -> None:
        """Write a decision to the disk before it takes effect."""
        append_line(self._journal, decision, durable=True)

    def log(self, line: dict[str, Any]) -> None:
        append_line(self._metrics, line)

    def write_sample(self, step: int, text: str) -> None:
        """Keep what the model wrote at a step."""
        self.samples.mkdir(exist_ok=True)
        write_atomically(self.samples / f"step-{step:09d}.txt", text)

    def write_pictures(self, step: int, sections: list[Mapping[str, Any]]) -> None:
        """Keep what the model saw at a step, as a page draws it."""
        self.samples.mkdir(exist_ok=True)
        write_atomically(self.samples / f"step-{step:09d}.json", json.dumps(sections, allow_nan=False))

    def rewind(self, step: int, look_again: bool = False) -> None:
        """Drop the metrics after a step, which are made again; with `look_again` also the looks at that step."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        if look_again:
            kept = [line for line in kept if line["step"] < step or line["split"] == "train"]
        write_atomically(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def set_aside(self, step: int) -> None:
        """Move what lies beyond a step to earlier/, before the run takes another way from there."""
        beyond = [f"step-{made:09d}" for made in self.checkpoints().steps() if made > step]
        checkpoints = [self.checkpoints_directory / name for name in beyond]
        name = beyond[-1] if beyond else f"step-{step:09d}"
        made = self.model_directory, self.adapter_directory, self.loggers_directory
        self._move_aside(name, self.directory / "summary.json", *made, *checkpoints)

    def make_way_for_model(self) -> None:
        """Move to earlier/ what of the model an end left which was cut short before its summary."""
        if os.path.lexists(self.model_directory):
            self._move_aside("unfinished", self.model_directory, self.adapter_directory)

    def _move_aside(self, name: str, *paths: Path) -> None:
        place = new_directory(name, self.directory / "earlier")
        place.mkdir(parents=True)
        for path in paths:
            if os.path.lexists(path):
                path.rename(place / path.name)

    def _read(self, name: str, kind: TypeAdapter[Any]) -> dict[str, Any]:
        path = self.directory / name
        return read_object(path, kind) if os.path.lexists(path) else {}

    def _write(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(finite(content), indent=2, ensure_ascii=False)
        write_atomically(self.directory / name, text + "\n")


def finite(value: Any) -> Any:
    """What JSON can hold of a value: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_line(path: Path, line: dict[str, Any], durable: bool = False) -> None:
    """Add one JSON object as a line in a single write; a last line that a crash cut short goes before."""
    with path.open("ab+") as file:
        file.truncate(_end_of_lines(file))
        file.write((json.dumps(finite(line), ensure_ascii=False) + "\n").encode())
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line of a file ends, in bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"\n", b""):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def new_directory(name: str, parent: Path = Path("runs")) -> Path:
    """runs/NAME, or runs/NAME-2, … where that is taken."""
    place, number = parent / name, 1
    while os.path.lexists(place):
        number += 1
        place = parent / f"{name}-{number}"
    return place
