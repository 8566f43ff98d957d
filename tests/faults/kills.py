"""Trainings that are killed at random moments, go on, are killed again, and end with the same bits as if nothing had
happened.

Each training is a child of a process that has imported everything, so that it begins at once; where it is of several
processes, each is such a child, and they find each other as torchrun's do.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import TINY, TINY_PAIRS, TINY_VISION
from drawings import write_drawings
from test_resume import ENCODERS, PAIRS, VISION, assert_same

import selfsup
from selfsup import planning
from selfsup.errors import UserError
from selfsup.report import Reporter
from selfsup.run import Run

STEPS = {"steps": 24, "checkpoint.every": 5, "evaluate.every": 8, "train.log_every": 1, "data.workers": 0}
PATIENCE = 120.0  # seconds that a training may take before it counts as hung
SHARDED = ("causal-lm", "masked-lm", "simcse", "tsdae", "simclr", "mae", "dino", "clip")


@dataclass(frozen=True)
class Training:
    """A training as the campaign meets it: its settings, without the run directory, and its processes."""

    name: str
    settings: dict[str, Any]
    processes: int = 1

    @property
    def label(self) -> str:
        how = "" if self.processes == 1 else f" by {self.processes}" + " sharded" * self.settings.get("train.shard", 0)
        return self.name + how


@dataclass(frozen=True)
class Outcome:
    """What became of a training that was killed: how often it was, and what was wrong, if anything."""

    label: str
    kills: int
    problem: str | None = None


def prepare_data(place: Path) -> dict[str, Path]:
    """Texts, images, images with captions, and a mixture of texts."""
    place.mkdir(parents=True, exist_ok=True)
    texts, plays = place / "texts.jsonl", place / "plays.jsonl"
    lines = [
        f"The {a} {v} by the {p} on day {d}."
        for a in ("cat", "fox")
        for v in ("ran", "sat", "sang")
        for p in ("hill", "sea")
        for d in range(12)
    ]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    plays.write_text("".join(json.dumps({"text": f"Enter {n}. Exit {n} at once."}) + "\n" for n in range(30)))
    (place / "mix.yaml").write_text(
        "sources:\n  texts: {data: texts.jsonl, weight: 1}\n  plays: {data: plays.jsonl, weight: 2}\n"
    )
    drawings = write_drawings(place / "drawings", 48, 20)
    captioned = write_drawings(place / "captioned", 48, 20)
    for number in range(48):
        (captioned / f"{number:03d}.txt").write_text(f"drawing {number}")
    return {"texts": texts, "drawings": drawings, "captioned": captioned, "mixture": place / "mix.yaml"}


def trainings(data: dict[str, Path]) -> list[Training]:
    """Every objective that learns from data alone, by one process; those that can, by two sharded and not, and one by
    four."""
    texts = {**TINY, **STEPS, "data": str(data["texts"])}
    made = {
        "causal-lm": {**texts, "objective": "causal-lm"},
        "mixture": {**texts, "objective": "causal-lm", "data": str(data["mixture"])},
        **{name: {**texts, "objective": name, **more} for name, more in ENCODERS.items()},
        **{
            name: {**TINY_VISION, **STEPS, "data": str(data["drawings"]), "objective": name, **more}
            for name, more in VISION.items()
        },
        "clip": {**TINY_PAIRS, **STEPS, "data": str(data["captioned"]), **PAIRS["softmax"]},
    }
    alone = [Training(name, settings) for name, settings in made.items()]
    by_two = [Training(one.name, one.settings, 2) for one in alone]
    sharded = [Training(name, {**made[name], "train.shard": True}, 2) for name in SHARDED]
    by_four = [Training(name, made[name], 4) for name in ("causal-lm", "simcse", "dino")]
    return [*alone, *by_two, *sharded, *by_four]


# -- processes -----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def child(work: Callable[[], object], told: Path) -> int:
    """A process that does some work and ends: with 0, with 2 for a UserError, with 1 for anything else; what went wrong
    stands in a file. Returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.setsid()
        code = _code_of(work, told)
    finally:
        os._exit(code)


def _code_of(work: Callable[[], object], told: Path) -> int:
    try:
        work()
    except UserError as error:
        told.write_text(str(error))
        return 2
    except SystemExit as end:
        return int(str(end.code or 0))
    except BaseException:
        told.write_text(traceback.format_exc())
        return 1
    return 0


def begin(training: Training, out: Path) -> list[int]:
    """Start a training, or go on with it where it has begun; the numbers of its processes, by rank."""
    given = {"resume": str(out)} if Run(out).exists else {**training.settings, "out": str(out)}
    port, told = free_port(), out.with_suffix(".told")
    told.unlink(missing_ok=True)

    def work(rank: int) -> None:
        planning.CALIBRATION_SECONDS = 0.02
        torch.set_num_threads(1)
        if training.processes > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": training.processes}
            places |= {"LOCAL_WORLD_SIZE": training.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in places.items()})
        selfsup.train(reporter=Reporter(False), **given)

    return [child(lambda rank=rank: work(rank), told) for rank in range(training.processes)]


def await_end(numbers: Sequence[int], seconds: float) -> list[int] | None:
    """The exit codes of processes; None where they have not ended after so many seconds."""
    codes: dict[int, int] = {}
    until = time.monotonic() + seconds
    while len(codes) < len(numbers):
        for number in set(numbers) - codes.keys():
            found, status = os.waitpid(number, os.WNOHANG)
            if found:
                codes[number] = os.waitstatus_to_exitcode(status)
        if len(codes) < len(numbers):
            if time.monotonic() > until:
                return None
            time.sleep(0.002)
    return [codes[number] for number in numbers]


def kill(numbers: Sequence[int]) -> None:
    for number in numbers:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for number in numbers:
        try:
            os.waitpid(number, 0)
        except ChildProcessError:
            continue


def to_the_end(training: Training, out: Path) -> str | None:
    """Let a training go on to its end; what was wrong, if anything."""
    numbers = begin(training, out)
    codes = await_end(numbers, PATIENCE)
    if codes is None:
        kill(numbers)
        return f"it hung for {PATIENCE:g} s"
    told = out.with_suffix(".told")
    return None if not any(codes) else f"it ended with {codes}: {told.read_text() if told.exists() else 'no word'}"


# -- a chain of kills ----------------------------------------------------------------------------------------


def killed_again_and_again(training: Training, place: Path, dice: random.Random, kills: int) -> Outcome:
    """A training that is killed so many times at random moments, beside one that is let be."""
    whole, out = place / "whole", place / "killed"
    began = time.monotonic()
    if problem := to_the_end(training, whole):
        return Outcome(training.label, 0, f"without a kill, {problem}")
    length, done = time.monotonic() - began, 0
    for _ in range(kills):
        numbers = begin(training, out)
        if await_end(numbers, dice.uniform(0.02, 0.9) * length) is not None:
            break  # it came to its end before
        if training.processes > 1:  # one first: the others wait for it, as they do until their launcher ends them
            kill([numbers.pop(dice.randrange(len(numbers)))])
            time.sleep(dice.choice((0.0, 0.1)))
        kill(numbers)
        done += 1
    if problem := None if Run(out).exists and Run(out).summary else to_the_end(training, out):
        return Outcome(training.label, done, problem)
    try:
        assert_same(Run(out), Run(whole))
    except AssertionError:
        return Outcome(training.label, done, "it ended with other bits: " + traceback.format_exc(limit=2))
    return Outcome(training.label, done)


def campaign(
    place: Path, seed: int, kills: int, each: int, seconds: float, named: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Chains of at most `each` kills over all trainings in turn, or those of these names, until so many are made or so
    much time is spent."""
    dice, made, until = random.Random(seed), 0, time.monotonic() + seconds
    every, number = trainings(prepare_data(place / "data")), 0
    every = [training for training in every if not named or training.label in named]
    while made < kills and time.monotonic() < until:
        training = every[number % len(every)]
        folder = place / f"{number}"
        folder.mkdir()
        outcome = killed_again_and_again(training, folder, dice, min(each, kills - made))
        if outcome.problem is None:
            shutil.rmtree(folder)
        made, number = made + outcome.kills, number + 1
        yield outcome
