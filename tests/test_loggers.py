"""Loggers are given each line once, whatever becomes of the process; what their own libraries wrote is read back."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_WORDS, Answer, Train

from selfsup import loggers
from selfsup.config import Settings
from selfsup.errors import UserError
from selfsup.loggers import Logger, Loggers, Place
from selfsup.run import Run
from selfsup.trainer import Trainer

Command = Callable[..., Answer]
Points = dict[str, list[tuple[int, float]]]  # by the name of a figure: (step, value)
OF_THE_CLOCK = ("time", "tokens_per_second", "utilisation", "share")


class Recorded(Logger):
    """A logger that keeps what it is given, over all runs of a test, and fails where it is told to."""

    points: list[tuple[str, int]] = []  # noqa: RUF012
    opened: list[Place] = []  # noqa: RUF012
    fails_at: int | None = None

    def __init__(self, place: Place) -> None:
        self.opened.append(place)
        self.kept = f"run {len(self.opened)}" if place.kept is None else place.kept

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("the disk is full")
        self.points.extend((name, step) for name in figures)

    def summarise(self, summary: Mapping[str, float], step: int) -> None:
        self.log(summary, step)

    def close(self, finished: bool) -> None:
        self.points.append(("finished" if finished else "closed", len(self.opened)))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    """The one logger there is, under the name of one of them."""
    monkeypatch.setattr(Recorded, "points", [])
    monkeypatch.setattr(Recorded, "opened", [])
    monkeypatch.setattr(Recorded, "fails_at", None)
    monkeypatch.setattr(loggers, "ALL", {"wandb": Recorded})
    monkeypatch.setattr(loggers, "find_spec", lambda name: name)
    return Recorded


def line(step: int, split: str = "train") -> dict[str, Any]:
    return {"step": step, "split": split, "time": 1.0, "loss": 1.0 / (step + 1), "odd": math.nan}


def session(directory: Path, before: list[int], then: list[int], finished: bool = False) -> list[str]:
    """A session that finds the lines of some steps and makes others; what was said."""
    said: list[str] = []
    of_run = Loggers(["wandb"], directory / "loggers", Settings(("test", {"objective": "causal-lm"})), said.append)
    with of_run.following(lambda: map(line, before)):
        for step in then:
            of_run.log(line(step))
        if finished:
            of_run.finish({"steps": then[-1], "loss": 0.5, "best": {"step": 2, "loss": 0.4}, "kept": None, "ok": True})
    return said


def steps(recorded: type[Recorded], name: str = "train/loss") -> list[int]:
    return [step for at, step in recorded.points if at == name]


def test_a_line_is_given_once_however_often_it_is_made(recorded: type[Recorded], tmp_path: Path) -> None:
    session(tmp_path, [], [1, 2, 3, 4, 5])
    session(tmp_path, [1, 2, 3], [4, 5])  # resumed from 3, and killed at 5 again
    session(tmp_path, [1, 2, 3], [4, 5, 6, 7], finished=True)
    session(tmp_path, [1, 2, 3, 4, 5, 6], [7], finished=True)  # killed before its summary was on the disk
    assert steps(recorded) == [1, 2, 3, 4, 5, 6, 7]
    assert steps(recorded, "final/best.loss") == [7]
    assert {place.id for place in recorded.opened} == {recorded.opened[0].id}
    assert [place.kept for place in recorded.opened] == [None, "run 1", "run 1", "run 1"]


def test_what_is_no_number_is_left_out(recorded: type[Recorded], tmp_path: Path) -> None:
    session(tmp_path, [], [1], finished=True)
    assert {name for name, _ in recorded.points} == {
        *(
            "train/step",
            "train/time",
            "train/loss",
            "final/steps",
            "final/loss",
            "final/best.step",
            "final/best.loss",
            "finished",
        )
    }


def test_one_that_comes_later_is_given_everything(recorded: type[Recorded], tmp_path: Path) -> None:
    session(tmp_path, [1, 2, 3], [4])
    assert steps(recorded) == [1, 2, 3, 4]


def test_one_that_fails_is_said_once_and_catches_up(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Recorded, "fails_at", 2)
    said = session(tmp_path, [], [1, 2, 3, 4])
    assert said == ["wandb gets no more figures (the disk is full); all of them are in metrics.jsonl."]
    assert steps(recorded) == [1]
    monkeypatch.setattr(Recorded, "fails_at", None)
    session(tmp_path, [1, 2, 3, 4], [5])
    assert steps(recorded) == [1, 3, 4, 5]  # the one at which it failed is not tried again: it may be there


def test_one_that_does_not_open_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loggers, "ALL", {"wandb": Logger})  # which is abstract
    (said,) = session(tmp_path, [], [1, 2], finished=True)
    assert said.startswith("wandb gets no more figures (")


def test_a_damaged_file_ends_no_training(recorded: type[Recorded], tmp_path: Path) -> None:
    session(tmp_path, [], [1])
    (tmp_path / "loggers" / "sent.json").write_text("{")
    (said,) = session(tmp_path, [1], [2])
    assert "sent.json is damaged" in said
    assert steps(recorded) == [1]


# -- in trainings --------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a training end when it has made a step, as if its process did; what undoes that."""
    update = Trainer._update

    def made(self: Trainer, batches: list[Any]) -> None:
        update(self, batches)
        if self.step == step:
            raise Killed

    monkeypatch.setattr(Trainer, "_update", made)
    return lambda: monkeypatch.setattr(Trainer, "_update", update)


def interrupted(train: Train, resume: Train, out: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Run:
    """A training that ended at step 5, behind its checkpoint of step 3, and then went on to its end."""
    undo = killed_at(5, monkeypatch)
    with pytest.raises(Killed):
        train(out, **{"log.to": [name]})
    undo()
    return resume(out)


def test_the_lines_of_a_training(
    recorded: type[Recorded], train: Train, resume: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = interrupted(train, resume, tmp_path / "run", monkeypatch, "wandb")
    assert steps(recorded) == [line["step"] for line in run.metrics() if line["split"] == "train"]
    assert steps(recorded, "validation/loss") == [a["step"] for a in run.metrics() if a["split"] == "validation"]
    assert steps(recorded, "final/loss") == [12]
    assert recorded.opened[0].config["model.width"] == 32
    assert recorded.opened[0].name == "run"
    assert recorded.points[-1] == ("finished", 2)


def test_an_extended_run_begins_anew(recorded: type[Recorded], train: Train, resume: Train, tmp_path: Path) -> None:
    """What it makes from before its decay has other figures at the same steps."""
    train(tmp_path / "run", **{"log.to": "wandb"})
    del recorded.points[:]
    resume(tmp_path / "run", steps=16)
    assert steps(recorded) == [*range(1, 17)]
    first, then = recorded.opened
    assert first.id != then.id
    assert [*(tmp_path / "run" / "earlier").glob("*/loggers/sent.json")]


def test_a_resumed_run_may_take_others(
    recorded: type[Recorded], train: Train, resume: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    undo = killed_at(5, monkeypatch)
    with pytest.raises(Killed):
        train(tmp_path / "run")
    undo()
    resume(tmp_path / "run", **{"log.to": ["wandb"]})
    assert steps(recorded) == [*range(1, 13)]


def test_what_is_missing_is_refused_before_the_first_step(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log.to names trackio, .* pip install 'selfsup\[trackio\]'"):
        train(tmp_path / "run", **{"log.to": ["trackio"]})
    assert not (tmp_path / "run").exists()


def test_an_unknown_one_is_refused(selfsup_command: Command, tmp_path: Path) -> None:
    answer = selfsup_command("train", "causal-lm", *TINY_WORDS, "log.to=[tensorbord]", "--out", tmp_path / "run")
    assert answer.code == 2
    assert "'log.to' cannot be 'tensorbord'" in answer.error
    assert "'tensorboard', 'wandb', 'mlflow' or 'trackio'" in answer.error


# -- what the libraries wrote --------------------------------------------------------------------------------


def of_tensorboard(directory: Path) -> tuple[Points, str]:
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulation.EventAccumulator(str(directory / "tensorboard"), {"scalars": 0, "tensors": 0})
    found.Reload()
    points = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    (text,) = found.Tensors("configuration/text_summary")
    return points, text.tensor_proto.string_val[0].decode()


def records_of(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: behind 7 bytes blocks of 32 KiB, in which each part of a record has a checksum, its
    length and whether it is whole, the first, a middle or the last one (as in LevelDB's logs)."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind:
            parts += data[at + 7 : at + 7 + length]
            if kind in (1, 4):
                yield parts
                parts = b""
            at += 7 + length
        if not kind or 32768 - at % 32768 < 7:  # what is left of a block holds none
            at += -at % 32768


def of_wandb(directory: Path) -> tuple[Points, str]:
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    points: Points = {}
    told = ""
    for path in sorted((directory / "wandb").glob("offline-run-*/*.wandb")):
        for data in records_of(path):
            record = proto.Record.FromString(data)
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            told += "".join(f"{item.key} {item.value_json}\n" for item in record.run.config.update)
            for name, value in items.items():
                points.setdefault(name, []).append((int(items["_step"]), float(value)))
            for item in record.summary.update:
                name = item.key or item.nested_key[0]
                if name.startswith("final/"):
                    points[name] = [(12, float(item.value_json))]
    return points, told


def of_mlflow(directory: Path) -> tuple[Points, str]:
    tracking = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(loggers.mlflow_store(directory))
    (run,) = client.search_runs([client.get_experiment_by_name("selfsup").experiment_id])
    assert run.info.status == "FINISHED"
    points = {
        name: [(int(metric.step), metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return points, "".join(f"{key} {value}\n" for key, value in run.data.params.items())


def of_trackio(directory: Path) -> tuple[Points, str]:
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    (name,) = (
        name for name in storage.get_runs("selfsup") if json.loads((directory / "sent.json").read_text())["id"] in name
    )
    points: Points = {}
    for entry in storage.get_logs("selfsup", name):
        for key, value in entry.items():
            if key not in ("step", "timestamp"):
                points.setdefault(key, []).append((entry["step"], value))
    return points, "".join(f"{key} {value}\n" for key, value in storage.get_run_config("selfsup", name).items())


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", READERS)
def test_the_library_reads_each_step_once(
    name: str, train: Train, resume: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(name)
    run = interrupted(train, resume, tmp_path / "run", monkeypatch, name)
    points, config = READERS[name](run.loggers_directory)
    assert "model.width" in config
    lines = run.metrics()
    for split in ("train", "validation"):
        written = {line["step"]: line for line in lines if line["split"] == split}
        given = points[f"{split}/loss"]
        assert [step for step, _ in given] == [*written]
        assert [value for _, value in given] == pytest.approx([line["loss"] for line in written.values()], rel=1e-6)
        assert points.keys() >= {f"{split}/{key}" for key in ("loss", "time")}
    assert points["final/loss"] == [(12, pytest.approx(run.summary["loss"], rel=1e-6))]
    assert max(Counter(step for step, _ in points["train/grad_norm"]).values()) == 1
