"""Figures of a training in the programs that people watch trainings in, beside the JSON lines that are always written.

A logger is an adapter of one library, which is imported when a training asks for it (`log.to=[tensorboard,wandb]`).
Nothing leaves the machine unless the environment says so in the library's own words (`WANDB_MODE=online`,
`MLFLOW_TRACKING_URI`). What is written lies in the run directory, but for trackio, which keeps all runs of a user in
one place (TRACKIO_DIR):

    RUN/loggers/sent.json      how far each logger has come
    RUN/loggers/tensorboard    event files
    RUN/loggers/wandb          runs that `wandb sync` takes
    RUN/loggers/mlflow.db      a database

Loggers follow metrics.jsonl. `sent.json` says up to which step each of them was given the lines of a split, before it
is given them: a run that was killed goes on in the same run there, with the first step that it has not seen, and what a
resume computes once more is not written once more. A logger that is named later is given all lines from the first.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter

from selfsup.config import Logging, Settings, flatten
from selfsup.errors import UserError
from selfsup.files import write_atomically
from selfsup.run_files import Count, Keys, read_object

SENT = "sent.json"
PROJECT = "selfsup"  # under which runs stand, where the library's own variable does not name another
CURVES = ("train", "validation")  # splits whose lines are points of a curve
FINAL = "final"  # before the figures of the summary
AT_ONCE = 100  # parameters that MLflow takes together
LONGEST = 500  # characters of one of them


@dataclass(frozen=True)
class Place:
    """What a logger is opened for.

    Attributes:
        directory: RUN/loggers.
        name: of the run, as people see it.
        id: of the run, the same whenever it goes on.
        config: the settings, by dotted key.
        kept: what the library itself calls the run, from the time when it began there; None then.
    """

    directory: Path
    name: str
    id: str
    config: Mapping[str, Any]
    kept: str | None


class Logger(ABC):
    """One run in another library. What it is opened with makes that run, or goes on with it."""

    kept: str | None = None  # what the library calls the run, where it chooses that itself

    @abstractmethod
    def __init__(self, place: Place) -> None: ...

    @abstractmethod
    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add the figures of a step, on the disk when this returns or soon after."""

    @abstractmethod
    def summarise(self, summary: Mapping[str, float], step: int) -> None:
        """Keep the final figures."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Write what waits; of a training that is not `finished`, the run goes on some other time."""


class TensorBoard(Logger):
    """Event files by torch's writer, which needs the `tensorboard` package and no TensorFlow."""

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._config = place.config
        self._writer: Any = SummaryWriter(str(place.directory / "tensorboard"))
        if place.kept is None:
            table = "\n".join(f"| {key} | {value} |" for key, value in place.config.items())
            self._writer.add_text("configuration", f"| setting | value |\n| --- | --- |\n{table}")
        self.kept = place.id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def summarise(self, summary: Mapping[str, float], step: int) -> None:
        """As figures of the last step, and on the page of hyperparameters."""
        from torch.utils.tensorboard.summary import hparams

        self.log(summary, step)
        simple = {key: value for key, value in self._config.items() if isinstance(value, bool | int | float | str)}
        for part in hparams(simple, dict(summary)):
            self._writer.file_writer.add_summary(part)

    def close(self, finished: bool) -> None:
        self._writer.close()


class WandB(Logger):
    """Weights & Biases: a directory that `wandb sync` sends, unless WANDB_MODE says `online`."""

    def __init__(self, place: Place) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=place.name,
            id=place.id,
            resume="allow",
            dir=str(place.directory),
            config=dict(place.config),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )
        self.kept = place.id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def summarise(self, summary: Mapping[str, float], step: int) -> None:
        self._run.summary.update(dict(summary))

    def close(self, finished: bool) -> None:
        self._run.finish()


class MLflow(Logger):
    """A store beside the run, or the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, place: Place) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or mlflow_store(place.directory))
        self.kept = place.kept
        if self.kept is not None:
            self._client.update_run(self.kept, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        found = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self.kept = self._client.create_run(found, run_name=place.name).info.run_id
        parameters = [Param(key, str(value)[:LONGEST]) for key, value in place.config.items()]
        for start in range(0, len(parameters), AT_ONCE):
            self._client.log_batch(self.kept, params=parameters[start : start + AT_ONCE])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self._client.log_batch(self.kept, [Metric(name, value, now, step) for name, value in figures.items()])

    def summarise(self, summary: Mapping[str, float], step: int) -> None:
        self.log(summary, step)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.kept, "FINISHED" if finished else "KILLED")


def mlflow_store(directory: Path) -> str:
    """Where MLflow keeps runs beside a run of selfsup."""
    return f"sqlite:///{(directory / 'mlflow.db').as_posix()}"


class Trackio(Logger):
    """Trackio's database of this user, where it shows all runs beside each other."""

    def __init__(self, place: Place) -> None:
        import trackio

        self._trackio: Any = trackio
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{place.name}-{place.id}",
            config=dict(place.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
        )
        self.kept = place.id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(figures), step=step)

    def summarise(self, summary: Mapping[str, float], step: int) -> None:
        self.log(summary, step)

    def close(self, finished: bool) -> None:
        self._trackio.finish()


ALL: Mapping[Logging, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def require_installed(names: Iterable[Logging]) -> None:
    """Raise a UserError where the library of a logger is missing."""
    missing = [name for name in names if find_spec(name) is None]  # package, extra and logger are called the same
    if missing:
        raise UserError(
            f"log.to names {', '.join(missing)}, which is not installed: pip install 'selfsup[{','.join(missing)}]'."
        )


class Cursor(Keys):
    """What a logger calls the run, and the last step of each split that it was given."""

    kept: str | None = None
    steps: dict[str, Count] = Field(default_factory=dict)


class Sent(Keys):
    """sent.json: what the run is called, and how far each logger has come."""

    id: str
    cursors: dict[str, Cursor] = Field(default_factory=dict)


SENT_FILE = TypeAdapter(Sent)


class Loggers:
    """The loggers of a run, as the one process keeps them that writes its metrics.

    One that fails is left out from there on, and that is said once: a training never ends for it.

    Args:
        directory: RUN/loggers, which is made where it is needed.
        say: what tells the user.
    """

    def __init__(self, names: Sequence[Logging], directory: Path, settings: Settings, say: Callable[[str], None]):
        self._names = list(dict.fromkeys(names))
        self._directory, self._settings, self._say = directory.absolute(), settings, say
        self._open: dict[Logging, Logger] = {}
        self._sent = Sent(id="")
        self._finished = False

    @contextmanager
    def following(self, read: Callable[[], Iterable[Mapping[str, Any]]]) -> Iterator[None]:
        """Loggers that are open during the block, and have been given what they lack of the lines of metrics that are
        there, which are read where there is a logger."""
        if self._names:
            with self._heeding(*self._names):
                self._begin()
        for line in read() if self._open else ():
            self.log(line)
        try:
            yield
        finally:
            for name, logger in [*self._open.items()]:
                with self._heeding(name):
                    logger.close(self._finished)

    def _begin(self) -> None:
        """Open each logger, where the run left it."""
        self._directory.mkdir(exist_ok=True)
        path = self._directory / SENT
        self._sent = Sent(**read_object(path, SENT_FILE)) if path.exists() else Sent(id=secrets.token_hex(4))
        config = dict(flatten(self._settings.values(), sections=()))
        for name in self._names:
            cursor = self._sent.cursors.setdefault(name, Cursor())
            with self._heeding(name):
                place = Place(self._directory, self._directory.parent.name, self._sent.id, config, cursor.kept)
                self._open[name] = ALL[name](place)
                cursor.kept = self._open[name].kept
                self._remember()

    def log(self, line: Mapping[str, Any]) -> None:
        """Give a line of metrics to each logger that lacks it. A split has one point at a step; weights that are kept
        in place of the end's are no point of a curve."""
        if line["split"] in CURVES:
            self._give(line["split"], line["step"], line)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Give the final figures to each."""
        self._give(FINAL, summary["steps"], summary)
        self._finished = True

    def _give(self, what: str, step: int, given: Mapping[str, Any]) -> None:
        figures = dict(_figures(what, given))
        for name, logger in [*self._open.items()]:
            steps = self._sent.cursors[name].steps
            if steps.get(what, -1) < step:
                with self._heeding(name):
                    steps[what] = step
                    self._remember()
                    (logger.summarise if what == FINAL else logger.log)(figures, step)

    def _remember(self) -> None:
        write_atomically(self._directory / SENT, json.dumps(self._sent.model_dump()))

    @contextmanager
    def _heeding(self, *names: Logging) -> Iterator[None]:
        """Leave out these loggers, and say so, where the block fails; what libraries print in it is not shown."""
        try:
            with redirect_stdout(StringIO()):
                yield
        except Exception as error:  # of kinds that libraries do not state
            for name in names:
                self._open.pop(name, None)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self._say(f"{', '.join(names)} gets no more figures ({reason}); all of them are in metrics.jsonl.")


def _figures(what: str, given: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line or summary, by names that libraries group by: `train/loss`, `final/best.loss`."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from ((f"{what}/{key}.{name.partition('/')[2]}", inner) for name, inner in _figures("", value))
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{what}/{key}", value
