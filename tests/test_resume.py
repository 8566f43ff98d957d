"""Killed and resumed, stopped and resumed, finished and extended: always the same bits as a run that never ended.

Run as a script, this file is the training that is killed: `test_resume.py SPECIFICATION` (JSON).
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from conftest import TINY, TINY_PAIRS, TINY_VISION, TINY_WORDS, Answer, Train, steps_take, tree
from tiny_decoder import save_tiny_decoder
from tiny_encoder import save_tiny
from tiny_vision import save_tiny_vision

import selfsup
from selfsup import cli, files, planning, saving, stopping
from selfsup.accounting import SHARES
from selfsup.errors import Interrupted, UserError
from selfsup.models import huggingface
from selfsup.optim import Decay
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.trainer import Trainer, find_schedule

STEPS = 60
LONG = {"steps": STEPS, "precision": "auto", "checkpoint.every": 7, "evaluate.every": 20, "optim.average": 0.2}
PACES = tuple(f"{unit}_per_second" for unit in ("tokens", "sentences", "pairs", "images"))
OF_THE_CLOCK = ("time", *PACES, *SHARES)


# -- the training that is killed -----------------------------------------------------------------------------


def main(specification: dict[str, Any]) -> None:
    """Train, with a pause after each step, a long one from `crawl` on, and die where the specification says."""
    torch.set_num_threads(1)
    planning.CALIBRATION_SECONDS = 0.02
    update = Trainer._update

    def slow(self: Trainer, batches: list[Any]) -> None:
        update(self, batches)
        time.sleep(specification["pause"] if self.step < specification.get("crawl", math.inf) else 2.0)

    Trainer._update = slow  # type: ignore[method-assign]
    if "step" in specification:
        steps_take(specification["step"])
    die_at(specification["die"])
    if "words" in specification:
        sys.argv = ["selfsup", *specification["words"]]
        cli.main()
    else:
        selfsup.train(reporter=Reporter(False), **specification["settings"])


def die_at(moment: str) -> None:
    """Arrange that this process kills itself at a moment of its third checkpoint, or of its end."""
    write, rename, forget = saving.save_tensors, files._rename_to_free_name, shutil.rmtree
    calls = {"made": 0}

    def third() -> bool:
        calls["made"] += 1
        return calls["made"] == 3

    def half_a_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        write(tensors, path)
        if path.name == "optimizer.safetensors" and third():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()

    def unnamed(source: Path, target: Path) -> None:
        if target.name.startswith("step-") and third():
            die()
        rename(source, target)

    def half_forgotten(path: Path, **more: Any) -> None:
        if Path(path).name.startswith(".step-") and (Path(path) / "manifest.json").exists():
            (Path(path) / "model.safetensors").unlink()
            die()
        forget(path, **more)

    if moment == "half a file":
        saving.save_tensors = half_a_file
    elif moment == "before it has its name":
        files._rename_to_free_name = unnamed
    elif moment == "while an older one is removed":
        shutil.rmtree = half_forgotten  # type: ignore[assignment]
    elif moment == "half a model":
        huggingface.save_tensors = lambda tensors, path: (path.write_bytes(b"half"), die())  # type: ignore[assignment]
    elif moment == "before the summary":
        Run.write_summary = lambda self, summary: die()  # type: ignore[method-assign]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


MOMENTS = [
    "half a file",
    "before it has its name",
    "while an older one is removed",
    "half a model",
    "before the summary",
]


def start(die: str = "never", pause: float = 0.0, **what: Any) -> subprocess.Popen[str]:
    """Begin a training with `settings`, or a command with `words`."""
    specification = json.dumps({"die": die, "pause": pause, **what})
    return subprocess.Popen([sys.executable, __file__, specification], stderr=subprocess.PIPE, text=True)


def settings_of(out: Path, corpus: Path, **given: Any) -> dict[str, Any]:
    lengths = {"steps": None, "budget": None} if "budget" in given else {}
    return {"objective": "causal-lm", **TINY, **LONG, **lengths, "data": str(corpus), "out": str(out), **given}


def signal_when(processes: Sequence[tuple[subprocess.Popen[str], int, Callable[[], bool]]]) -> list[tuple[int, str]]:
    """Send each process a signal when it is due; what each ended with, and its standard error."""
    waiting, deadline = list(processes), time.monotonic() + 240
    while waiting:
        assert time.monotonic() < deadline
        for entry in list(waiting):
            process, number, due = entry
            assert process.poll() is None, f"the training ended by itself: {process.communicate()[1]}"
            if due():
                process.send_signal(number)
                waiting.remove(entry)
        time.sleep(0.002)
    errors = [process.communicate(timeout=240)[1] for process, _, _ in processes]
    return [(process.returncode, error) for (process, _, _), error in zip(processes, errors, strict=True)]


def kill_at(
    runs: Sequence[Run], trainings: Sequence[dict[str, Any]], steps: Sequence[int], pause: float = 0.02
) -> None:
    """Start trainings beside each other, and kill each soon after a step: it waits there for a machine that is busy."""
    processes = [
        start(pause=pause, crawl=step + 2, settings=settings) for settings, step in zip(trainings, steps, strict=True)
    ]
    due = [reaches(run, step) for run, step in zip(runs, steps, strict=True)]
    numbers = [signal.SIGKILL] * len(runs)
    ends = signal_when(list(zip(processes, numbers, due, strict=True)))
    assert [code for code, _ in ends] == [-signal.SIGKILL] * len(runs)


def reaches(run: Run, step: int) -> Callable[[], bool]:
    return lambda: last_step(run) >= step


def last_step(run: Run) -> int:
    return max((line["step"] for line in run.metrics()), default=0)


# -- what is compared ----------------------------------------------------------------------------------------


def timeless(run: Run) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in run.metrics()]


def assert_same(run: Run, reference: Run) -> None:
    """The same model to the bit, the same metrics in the same order, each step once, the same samples."""
    assert timeless(run) == timeless(reference)
    steps = [line["step"] for line in run.metrics() if line["split"] == "train"]
    assert steps == list(range(1, reference.summary["steps"] + 1))
    model, expected = tree(run.model_directory), tree(reference.model_directory)
    assert any(name.endswith("model.safetensors") for name in expected)
    assert model == expected
    assert tree(run.samples) == tree(reference.samples)
    on_both = [k for k in reference.summary if k not in ("wall_seconds", "peak_memory", "accounting")]
    assert {k: run.summary[k] for k in on_both} == {k: reference.summary[k] for k in on_both}


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that is never interrupted."""
    return train(tmp_path_factory.mktemp("whole") / "run", **LONG)


class Crash(Exception):
    pass


class CrashAt(Reporter):
    """Ends a training as a crash would, at the look at the validation part of a step."""

    def __init__(self, step: int) -> None:
        super().__init__(False)
        self.start = f"step {step} "

    def say(self, text: str) -> None:
        if text.startswith(self.start):
            raise Crash


def cut(train: Train, out: Path, at: int = 40, **given: Any) -> Run:
    with pytest.raises(Crash):
        train(out, reporter=CrashAt(at), **{**LONG, **given})
    return Run(out)


# -- SIGKILL -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_killed_at_any_time_twice_in_a_row_with_any_number_of_workers(
    whole: Run, corpus: Path, resume: Train, tmp_path: Path
) -> None:
    """Two chains beside each other; each is killed at a random step, resumed, killed again, resumed."""
    dice = random.Random(seed := int.from_bytes(os.urandom(4), "big"))
    print("dice", seed)
    runs = [Run(tmp_path / name) for name in ("a", "b")]
    kill_at(runs, [settings_of(run.directory, corpus) for run in runs], [dice.randint(3, 25) for _ in runs])
    again = [{"resume": str(run.directory), "data.workers": 3} for run in runs]
    kill_at(runs, again, [dice.randint(30, 50) for _ in runs])
    for run, workers in zip(runs, (0, 2), strict=True):
        assert not run.summary
        resume(run.directory, **{"data.workers": workers})
        assert_same(run, whole)


def test_killed_before_the_first_checkpoint(whole: Run, corpus: Path, resume: Train, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    kill_at([run], [settings_of(run.directory, corpus)], [2], pause=0.2)
    assert run.checkpoints().steps() == []
    resume(run.directory)
    assert_same(run, whole)


ENCODERS: dict[str, dict[str, Any]] = {
    "masked-lm": {"model.dropout": 0.1, "masked_lm.unit": "word"},
    "simcse": {"data.window": 40, "batch": 8, "train.micro_batch": 3},  # unequal parts, and dropout
    "pairs": {"data.window": 40, "batch": 8, "train.micro_batch": 3, "pairs.from": "crops", "pairs.dimensions": [8]},
    "tsdae": {"data.window": 40, "batch": 8, "train.micro_batch": 3},
}
VISION: dict[str, dict[str, Any]] = {
    "simclr": {"train.micro_batch": 3},
    "vicreg": {"model": {"layers": 1, "width": 4, "group": 4}, "train.micro_batch": 4},  # a convolutional network
    "lejepa": {"train.micro_batch": 3},
    "mae": {"train.micro_batch": 3, "mae.decoder_layers": 1},
    "dino": {"train.micro_batch": 3, "dino.prototypes": 64, "dino.frozen": 0.2, "dino.targets": "centring"},
}


@pytest.mark.long
def test_encoders_are_killed_and_resumed(corpus: Path, resume: Train, tmp_path: Path) -> None:
    taught = {"teacher": str(save_tiny(tmp_path / "teacher")), "model.dropout": 0.1, "train.micro_batch": 3}
    check_kills(
        {
            name: settings_of(tmp_path, corpus, objective=name, **more)
            for name, more in {**ENCODERS, "distill": taught}.items()
        },
        resume,
        tmp_path,
    )


@pytest.mark.long
def test_tables_are_killed_and_resumed(corpus: Path, resume: Train, tmp_path: Path) -> None:
    teacher = str(save_tiny(tmp_path / "teacher"))
    given = {"objective": "distill", "teacher": teacher, "model": "static", "tokenizer": teacher}
    check_kills({"static": settings_of(tmp_path, corpus, **given, **{"train.micro_batch": 3})}, resume, tmp_path)


@pytest.mark.long
def test_vision_is_killed_and_resumed(drawings: Path, resume: Train, tmp_path: Path) -> None:
    common = {**TINY_VISION, **LONG, "data": str(drawings)}
    check_kills({name: {**common, "objective": name, **more} for name, more in VISION.items()}, resume, tmp_path)


PAIRS: dict[str, dict[str, Any]] = {
    "softmax": {"train.micro_batch": 3, "clip.hidden_tokens": 0.2, "text.dropout": 0.1},
    "sigmoid": {"clip.loss": "sigmoid", "clip.simclr": 0.5},
}


@pytest.mark.long
def test_students_are_killed_and_resumed(corpus: Path, drawings: Path, resume: Train, tmp_path: Path) -> None:
    """Their teachers are opened again."""
    decoder, seeing = save_tiny_decoder(tmp_path / "decoder"), save_tiny_vision(tmp_path / "seeing")
    tokens = settings_of(tmp_path, corpus, objective="distill", teacher=str(decoder), tokenizer=str(decoder))
    images = {**TINY_VISION, **LONG, "data": str(drawings), "objective": "distill", "teacher": str(seeing)}
    check_kills({"tokens": tokens, "images": images | {"train.micro_batch": 3}}, resume, tmp_path)


@pytest.mark.long
def test_image_text_is_killed_and_resumed(captioned: Path, resume: Train, tmp_path: Path) -> None:
    common = {**TINY_PAIRS, **LONG, "data": str(captioned)}
    check_kills({name: {**common, **more} for name, more in PAIRS.items()}, resume, tmp_path)


FOREIGN = {"masked-lm": foreign.bert, "simcse": foreign.roberta, "causal-lm": foreign.gpt2}


@pytest.mark.long
def test_networks_of_transformers_are_killed_and_resumed(corpus: Path, resume: Train, tmp_path: Path) -> None:
    places = {name: str(make(tmp_path / f"of-{name}")) for name, make in FOREIGN.items()}
    check_kills(
        {
            name: settings_of(tmp_path, corpus, objective=name, model=f"hf:{place}", tokenizer=place)
            for name, place in places.items()
        },
        resume,
        tmp_path,
    )


def check_kills(trainings: dict[str, dict[str, Any]], resume: Train, place: Path) -> None:
    """Trainings of objectives, beside each other, are killed twice: before the decay and in it."""
    dice = random.Random(seed := int.from_bytes(os.urandom(4), "big"))
    print("dice", seed)
    runs = [Run(place / name) for name in trainings]
    given = [{**more, "steps": 40} for more in trainings.values()]
    first = [{**more, "out": str(run.directory)} for run, more in zip(runs, given, strict=True)]
    kill_at(runs, first, [dice.randint(3, 15) for _ in runs])
    again = [{"resume": str(run.directory), "data.workers": 3} for run in runs]
    kill_at(runs, again, [dice.randint(21, 33) for _ in runs])
    for run, more in zip(runs, given, strict=True):
        assert not run.summary
        resume(run.directory, **{"data.workers": 0})
        whole = {**more, "out": place / f"whole-{run.directory.name}", "reporter": Reporter(False)}
        assert_same(run, selfsup.train(**whole))


@pytest.mark.parametrize("moment", [MOMENTS[0], *(pytest.param(m, marks=pytest.mark.long) for m in MOMENTS[1:])])
def test_killed_in_the_middle_of_a_write(moment: str, corpus: Path, whole: Run, resume: Train, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    process = start(moment, settings=settings_of(run.directory, corpus))
    _, error = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, error
    assert not run.summary
    leftovers = list(run.checkpoints_directory.glob(".step-*"))
    assert bool(leftovers) == ("model" not in moment and "summary" not in moment)
    resume(run.directory)
    assert_same(run, whole)
    assert [path.name for path in run.directory.rglob(".*")] == [".lock"]


# -- a budget ------------------------------------------------------------------------------------------------


def multiplier(step: int, warmup: int, decisions: list[dict[str, int]]) -> float:
    """The factor of the learning rate in update `step` (from 0): each decision takes over where it begins."""
    factor = min(1.0, (step + 1) / (warmup + 1))
    begun = [decision for decision in decisions if decision.get("start", math.inf) <= step]
    for number, decision in enumerate(begun):
        reached = begun[number + 1]["start"] if number + 1 < len(begun) else step
        factor *= (decision["end"] - reached) / (decision["end"] - decision["start"])
    return factor


def test_a_journalled_decision_is_repeated(
    corpus: Path, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    settings = settings_of(run.directory, corpus, budget=4, **{"checkpoint.keep": 1000})
    process = start(pause=0.02, step=0.02, settings=settings)

    def well_into_the_decay() -> bool:
        journal = run.journal()
        return bool(journal) and last_step(run) >= journal[0]["start"] + 30

    signal_when([(process, signal.SIGKILL, well_into_the_decay)])
    before, journal = timeless(run), run.journal()
    newest = max(run.checkpoints().steps())
    for step in run.checkpoints().steps():  # as if the crash had come before any of these was written
        if step >= journal[0]["start"]:
            shutil.rmtree(run.checkpoints_directory / f"step-{step:09d}")
    assert max(run.checkpoints().steps()) < journal[0]["start"] <= newest
    steps_take(0.02, monkeypatch.setattr)
    resume(run.directory)

    after = timeless(run)
    assert after[: len(before)] == before
    assert run.journal()[: len(journal)] == journal
    lines = [line for line in after if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, run.summary["steps"] + 1))
    peak, warmup = run.settings()["optim.lr"], run.settings()["optim.warmup"]
    expected = [peak * multiplier(line["step"] - 1, warmup, run.journal()) for line in lines]
    assert [line["lr"] for line in lines] == pytest.approx(expected)
    assert lines[-1]["lr"] < peak


# -- SIGTERM and Ctrl-C --------------------------------------------------------------------------------------


def test_signals_save_this_very_step_and_say_how_to_go_on(
    whole: Run, corpus: Path, resume: Train, tmp_path: Path
) -> None:
    """The command line, in processes of its own."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    runs = [Run(tmp_path / number.name) for number in numbers]
    settings = [*TINY_WORDS, *(f"{name}={value}" for name, value in LONG.items()), "checkpoint.every=1000"]
    steps = (5, 25, 15)
    words = [["train", "--data", str(corpus), "--out", str(run.directory), *settings] for run in runs]
    processes = [start(pause=0.02, crawl=step + 2, words=each) for each, step in zip(words, steps, strict=True)]
    due = [reaches(run, step) for run, step in zip(runs, steps, strict=True)]
    ends = signal_when(list(zip(processes, numbers, due, strict=True)))
    for run, (code, error) in zip(runs, ends, strict=True):
        assert code == 130
        step = last_step(run)
        assert 5 <= step < STEPS
        last = error.splitlines()[-1]
        assert last.startswith(f"selfsup: Stopped at step {step}; ")
        assert last.endswith(f"selfsup train --resume {run.directory}")
        assert "Traceback" not in error
        assert step in run.checkpoints().steps()
        assert_same(resume(run.directory), whole)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


class SignalAt(Reporter):
    """Sends this process a signal, once or more often, when the look of a step has been made."""

    def __init__(self, step: int, times: int = 1) -> None:
        super().__init__(False)
        self.start, self.times = f"step {step} ", times

    def say(self, text: str) -> None:
        for _ in range(self.times if text.startswith(self.start) else 0):
            send(signal.SIGINT)


def test_a_signal_during_the_last_look_stops_before_the_end_which_a_resume_makes(
    whole: Run, train: Train, resume: Train, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted, match=f"Stopped at step {STEPS}; everything is saved"):
        train(tmp_path / "run", reporter=SignalAt(STEPS), **LONG)
    assert not Run(tmp_path / "run").model_directory.exists()
    assert_same(resume(tmp_path / "run"), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_model_is_saved_lets_it_finish(
    number: int, whole: Run, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Run.write_summary
    monkeypatch.setattr(Run, "write_summary", lambda run, summary: (send(number), write(run, summary)))
    assert_same(train(tmp_path / "run", **LONG), whole)


def test_a_second_interruption_stops_at_once_and_says_how_to_go_on(
    whole: Run, train: Train, resume: Train, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted, match=f"Stopped at once; .* --resume {tmp_path / 'run'}"):
        train(tmp_path / "run", reporter=SignalAt(40, times=2), **LONG)
    stopping.stopped.clear()
    assert_same(resume(tmp_path / "run"), whole)


# -- damage --------------------------------------------------------------------------------------------------


def damage(run: Run, step: int) -> None:
    path = run.checkpoints_directory / f"step-{step:09d}" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_costs_its_steps_only(
    whole: Run, train: Train, resume: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = cut(train, tmp_path / "run")
    newest, older = sorted(run.checkpoints().steps(), reverse=True)[:2]
    damage(run, newest)
    resume(run.directory)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"step-{newest:09d} is damaged" in message
    assert_same(run, whole)
    assert older < newest


def test_where_all_are_damaged_nothing_is_touched(train: Train, resume: Train, tmp_path: Path) -> None:
    run = cut(train, tmp_path / "run")
    for step in run.checkpoints().steps():
        damage(run, step)
    before = tree(run.directory)
    with pytest.raises(UserError, match=r"All checkpoints in .* are damaged") as caught:
        resume(run.directory)
    assert len(str(caught.value).splitlines()) == 1
    assert tree(run.directory) == before


def test_a_line_of_metrics_that_is_cut_short_is_made_again(
    whole: Run, train: Train, resume: Train, tmp_path: Path
) -> None:
    run = cut(train, tmp_path / "run")
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    resume(run.directory)
    assert_same(run, whole)


# -- what a resumed run keeps --------------------------------------------------------------------------------


@pytest.fixture
def own_corpus(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(corpus, tmp_path / "own.jsonl"))


def test_changed_or_missing_data_is_refused_and_nothing_is_touched(
    own_corpus: Path, train: Train, resume: Train, tmp_path: Path
) -> None:
    unfinished = cut(train, tmp_path / "unfinished", data=own_corpus)
    done = train(tmp_path / "finished", data=own_corpus)
    before = tree(unfinished.directory), tree(done.directory)
    with own_corpus.open("a") as file:
        file.write('{"text": "One more document."}\n')
    for change in (lambda: None, own_corpus.unlink):
        change()
        for run, more in (
            (unfinished, {}),
            (unfinished, {"steps": 100}),
            (done, {"steps": 20}),
            (done, {"budget": 99}),
        ):
            with pytest.raises(UserError):
                resume(run.directory, **more)
    assert (tree(unfinished.directory), tree(done.directory)) == before


def test_data_may_move_within_a_run_that_names_it(
    own_corpus: Path, train: Train, resume: Train, tmp_path: Path
) -> None:
    """The content counts, and when it was written does not."""
    run = cut(train, tmp_path / "run", data=own_corpus)
    os.utime(own_corpus, (1, 1))
    assert resume(run.directory).summary["steps"] == STEPS


@pytest.mark.parametrize(
    "given",
    [
        {"optim.lr": 0.5},
        {"seed": 3},
        {"batch": 8},
        {"model": {"layers": 2}},
        {"precision": "bf16"},
        {"out": "elsewhere"},
        {"config": "other.yaml"},
        {"data": "other.txt"},
        {"objective": "masked-lm"},
        {"optim.lr": 0.5, "steps": 99},
    ],
)
def test_other_settings_are_refused(given: dict[str, Any], finished: Run, resume: Train) -> None:
    before = tree(finished.directory)
    with pytest.raises(UserError, match="keeps its configuration"):
        resume(finished.directory, **given)
    assert tree(finished.directory) == before


def test_settings_that_say_the_same_are_taken(
    whole: Run, corpus: Path, train: Train, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that began a run, with --resume in place of --out, goes on with it."""
    run = cut(train, tmp_path / "run")
    newest = max(run.checkpoints().steps())
    monkeypatch.chdir(corpus.parent)
    resume(run.directory, objective="causal-lm", data=corpus.name, steps=STEPS, batch=4, seed=0)
    assert_same(run, whole)
    assert not (run.directory / "earlier").exists()
    assert newest > run.summary["steps"] // 2  # within the decay: beginning anew from before it would be a loss


def test_a_run_can_be_moved_before_it_is_resumed(whole: Run, train: Train, resume: Train, tmp_path: Path) -> None:
    cut(train, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert_same(resume(tmp_path / "moved"), whole)
    assert not (tmp_path / "run").exists()


# -- extension -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twenty(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("twenty") / "run", steps=20)


def copy_of(run: Run, place: Path) -> Run:
    return Run(shutil.copytree(run.directory, place))


def test_an_extended_run_equals_one_that_was_so_long_from_the_start(
    finished: Run, twenty: Run, resume: Train, tmp_path: Path
) -> None:
    run = copy_of(finished, tmp_path / "run")
    former = tree(run.directory)
    resume(run.directory, steps=20)
    assert timeless(run) == timeless(twenty)
    assert tree(run.model_directory) == tree(twenty.model_directory)
    rates = [line["lr"] for line in run.metrics() if line["split"] == "train"]
    assert rates[6:10] == [rates[5]] * 4  # the decay of the twelve steps has left no trace
    assert run.settings()["train.steps"] == 20
    assert "extending step 6" in run.settings().origin("train.steps")

    earlier = tree(run.directory / "earlier" / "step-000000012")
    assert earlier["summary.json"] == former["summary.json"]
    for name, content in former.items():
        if name.startswith("model"):
            assert earlier[name] == content
    assert earlier["step-000000012/model.safetensors"] == former["checkpoints/step-000000012/model.safetensors"]


def test_a_run_is_extended_again_and_again(finished: Run, train: Train, resume: Train, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    for steps in (16, 20, 31):
        resume(run.directory, steps=steps)
    reference = train(tmp_path / "reference", steps=31)
    assert timeless(run) == timeless(reference)
    assert tree(run.model_directory) == tree(reference.model_directory)
    assert sorted(path.name for path in (run.directory / "earlier").iterdir()) == [
        "step-000000012",
        "step-000000016",
        "step-000000020",
    ]


def test_killed_during_the_extension_and_resumed(finished: Run, twenty: Run, resume: Train, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    with pytest.raises(Crash):
        resume(run.directory, steps=20, reporter=CrashAt(16))
    assert not run.summary
    resume(run.directory)
    assert timeless(run) == timeless(twenty)
    assert tree(run.model_directory) == tree(twenty.model_directory)


def test_an_unfinished_run_is_given_another_length(twenty: Run, train: Train, resume: Train, tmp_path: Path) -> None:
    for number, (steps, at) in enumerate([(12, 4), (12, 8), (40, 4)]):  # before, in and before the decay
        with pytest.raises(Crash):
            train(tmp_path / str(number), steps=steps, reporter=CrashAt(at))
        run = resume(tmp_path / str(number), steps=20)
        assert timeless(run) == timeless(twenty)
        assert tree(run.model_directory) == tree(twenty.model_directory)


def test_a_run_is_extended_by_time(
    finished: Run, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_take(0.05, monkeypatch.setattr)
    run = copy_of(finished, tmp_path / "run")
    budget = finished.summary["wall_seconds"] + 4  # a last step of a short decay is not near zero
    resume(run.directory, budget=budget)
    lines = [line for line in run.metrics() if line["split"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, run.summary["steps"] + 1))
    assert run.summary["steps"] > 12
    assert timeless(run)[:7] == timeless(finished)[:7]  # six steps and a look, from before the decay
    assert lines[-1]["lr"] < max(line["lr"] for line in lines)
    assert run.journal()[-2]["end"] == run.summary["steps"]
    settings = run.settings()
    assert (settings["train.steps"], settings["train.budget"]) == (None, pytest.approx(budget))
    with pytest.raises(UserError, match="larger --budget"):
        resume(run.directory, budget=0.5)
    steps = run.summary["steps"]
    resume(run.directory, steps=steps + 9)
    trained = [line["step"] for line in run.metrics() if line["split"] == "train"]
    assert trained == list(range(1, steps + 10))


def test_a_run_on_a_budget_is_extended_by_a_few_steps_and_again(
    train: Train, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_take(0.05, monkeypatch.setattr)
    run = train(tmp_path / "run", budget=3)
    for _ in range(2):
        more = run.summary["steps"] + 5
        resume(run.directory, steps=more)
        assert run.summary["steps"] == more


def test_the_decay_never_begins_before_the_step_that_a_run_was_extended_from(
    finished: Run, resume: Train, tmp_path: Path
) -> None:
    """As on a budget, where the clock may begin the decay later than a number of steps would have."""
    run = copy_of(finished, tmp_path / "run")
    run.note({"start": 9, "end": 12})
    settings = run.settings()
    assert find_schedule(settings, run).decays == [Decay(6, 12)]
    run.note({"extended_from": 9})
    assert find_schedule(settings, run).decays == [Decay(9, 12)]
    settings.change("train.steps", 30, "test")
    assert find_schedule(settings, run).decays == [Decay(15, 30)]


def test_an_extension_needs_the_checkpoint_from_before_the_decay(finished: Run, resume: Train, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    damage(run, 6)
    before = tree(run.directory)
    with pytest.raises(UserError, match="from before the decay"):
        resume(run.directory, steps=20)
    shutil.rmtree(run.checkpoints_directory / "step-000000006")
    with pytest.raises(UserError, match="from before the decay"):
        resume(run.directory, steps=20)
    assert tree(run.directory) == {k: v for k, v in before.items() if "step-000000006" not in k or "samples" in k}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "is finished (12 steps)"),
        (["--steps", "11"], "has made 12 steps already"),
        (["--steps", "12"], "12 steps"),
        (["--epochs", "3"], "--steps or --budget"),
        (["--budget", "0.001"], "larger --budget"),
        (["--steps", "20", "--budget", "1m"], "both given"),
        (["--steps", "0"], "train.steps"),
        (["--steps", "20", "optim.lr=0.5"], "optim.lr"),
        (["--out", "new"], "--out"),
        (["--config", "c.yaml"], "--config"),
        (["data.workers=3"], "is finished"),
    ],
)
def test_what_cannot_be_resumed_is_refused_in_one_sentence(
    words: list[str], message: str, finished: Run, selfsup_command: Callable[..., Answer]
) -> None:
    before = tree(finished.directory)
    answer = selfsup_command("train", "--resume", finished.directory, *words)
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert line.startswith("selfsup: ")
    assert message in line
    assert tree(finished.directory) == before


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
