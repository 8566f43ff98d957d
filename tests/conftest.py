"""What most tests share: one cache of prepared text, a small corpus, trainings of a second, a full disk."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from browser import chromium as chromium
from drawings import write_drawings
from rich.cells import cell_len

import selfsup
from selfsup import cli, planning
from selfsup.budget import Clock
from selfsup.config import SHORT
from selfsup.errors import Interrupted
from selfsup.report import Reporter
from selfsup.trainer import Trainer

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: they run beside each other, two workers too
torch.set_num_threads(1)

# Where a pass decides what lands, it is the same examples every time; elsewhere hypothesis looks for new ones.
# However slow a machine is, it says nothing about the program.
patient = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("ci", derandomize=True, **patient)
hypothesis.settings.register_profile("looking", **patient)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "looking")

TINY: dict[str, Any] = {
    "tokenizer": "characters",
    "model": {"layers": 1, "width": 32, "heads": 1},
    "data.window": 16,
    "batch": 4,
    "steps": 12,
    "precision": "fp32",
    "train.log_every": 1,
    "optim.warmup": 2,  # these two, where they are left open, depend on the length of the run
    "optim.weight_decay": 0.1,
    "checkpoint.every": 3,
    "evaluate.every": 4,
    "evaluate.records": 8,
    "evaluate.final_records": 8,
}
TINY_VISION: dict[str, Any] = {
    "model": {"layers": 1, "width": 32, "heads": 1, "patch": 4},
    "data.size": 16,
    "batch": 8,
    **{key: TINY[key] for key in TINY if key not in ("tokenizer", "model", "data.window", "batch")},
}
TINY_PAIRS: dict[str, Any] = {
    **TINY_VISION,
    "objective": "clip",
    "text": {"layers": 1, "width": 32, "heads": 1},
    "data.window": 16,
    "data.vocabulary": 280,
}
TINY_WORDS = [f"model.{name}={value}" for name, value in TINY["model"].items()] + [
    f"{name}={value}" for name, value in TINY.items() if name != "model"
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first: workers take file by file, and none is to begin such a one at the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


def pytest_exception_interact(node: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """A signal that is meant for the tests (of `timeout`, say) may meet a training, which takes it for its own: it ends
    them all the same. A test that sends one expects what comes of it."""
    if call.excinfo is not None and call.excinfo.errisinstance(Interrupted):
        node.session.shouldstop = "a signal from outside stopped a training"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared text is kept for the session, and never in the user's own cache."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session", autouse=True)
def short_calibration() -> Iterator[None]:
    """A training times its steps for seconds before it starts; tests that are not about that need not wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "CALIBRATION_SECONDS", 0.02)
        yield


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """192 short documents."""
    animals, verbs, places = ("cat", "dog", "fox", "hen"), ("ran", "sat", "slept", "sang"), ("hill", "sea")
    return [
        f"The {animal} {verb} by the {place} on day {day}."
        for animal in animals
        for verb in verbs
        for place in places
        for day in range(6)
    ]


@pytest.fixture(scope="session")
def corpus(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents as JSON lines."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small images, each with one or two captions in a file of its name; some captions are alike."""
    directory = write_drawings(tmp_path_factory.mktemp("captioned") / "captioned", 96, 20)
    for number in range(96):
        captions = [f"drawing {number % 80}", f"a thing in {('red', 'green', 'blue')[number % 3]} {number}"]
        (directory / f"{number:03d}.txt").write_text("\n".join(captions[: 1 + number % 2]), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 96 small images."""
    return write_drawings(tmp_path_factory.mktemp("drawings") / "drawings", 96, 20)


Train = Callable[..., selfsup.Run]


@pytest.fixture(scope="session")
def train(corpus: Path) -> Train:
    """`train(out, …)`: causal LM at its smallest on the corpus, with any setting given in place of `TINY`'s."""

    def train_tiny(out: Path, /, objective: Any = "causal-lm", **given: Any) -> selfsup.Run:
        lengths = {"steps", "epochs", "budget"}
        settings = {k: v for k, v in TINY.items() if k not in lengths or not lengths & given.keys()}
        settings = {k: v for k, v in settings.items() if SHORT.get(k) not in given}  # its full name is
        return selfsup.train(objective, out=out, **{"data": corpus, "reporter": Reporter(False), **settings, **given})

    return train_tiny


@pytest.fixture(scope="session")
def train_vision(drawings: Path) -> Train:
    """`train_vision(out, objective, …)`: on the drawings, with any setting given in place of `TINY_VISION`'s."""

    def train_tiny(out: Path, /, objective: Any, **given: Any) -> selfsup.Run:
        settings = {"data": drawings, "reporter": Reporter(False), **TINY_VISION}
        return selfsup.train(objective, out=out, **{**settings, **given})

    return train_tiny


@pytest.fixture(scope="session")
def resume() -> Train:
    """`resume(directory, …)`: go on with a run, silently."""

    def go_on(directory: Path, /, objective: Any = None, **given: Any) -> selfsup.Run:
        return selfsup.train(objective, resume=directory, **{"reporter": Reporter(False), **given})

    return go_on


Trained = Callable[[str], selfsup.Run]


@pytest.fixture(scope="session")
def trained(train: Train, train_vision: Train, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """`trained("mae")`: the finished run of an objective at its smallest, which tests look at and leave as it is.

    Each of pytest's workers has its own: some tests lock a run, if only to be refused.
    """

    @functools.cache
    def run(objective: str) -> selfsup.Run:
        begin = train_vision if objective in ("simclr", "mae", "dino") else train
        return begin(tmp_path_factory.mktemp("trained") / objective, objective)

    return run


@pytest.fixture(scope="session")
def finished(trained: Trained) -> selfsup.Run:
    """A finished run that tests look at and leave as it is."""
    return trained("causal-lm")


def steps_take(seconds: float, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """From now on only steps take a run's time (reading its clock, next to none): budgets are alike on any machine."""
    update, now = Trainer._update, [0.0]

    def spend(trainer: Trainer, batches: list[Any]) -> None:
        update(trainer, batches)
        now[0] += seconds

    def read() -> float:
        now[0] += 1e-6
        return now[0]

    put(Trainer, "_update", spend)
    put(Clock.__init__, "__defaults__", (0.0, read))


class Answer:
    """What a command left: its exit code, its standard output and its standard error."""

    def __init__(self, code: int, out: str, error: str) -> None:
        self.code, self.out, self.error = code, out, error

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.error}"


@pytest.fixture
def selfsup_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`selfsup_command("train", …)`: the command line in this process."""

    def run(*words: object) -> Answer:
        monkeypatch.setattr("sys.argv", ["selfsup", *map(str, words)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Answer(int(str(code)), captured.out, captured.err)

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(bytes)`: a directory on a file system of that size; skips where none can be mounted."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs to mount a file system")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def dead_name() -> Callable[[Path], Path]:
    """`dead_name(path)`: the temporary name beside `path` that a process took which has ended since."""
    code = "import pathlib, selfsup.files as files; print(files.temporary_name(pathlib.Path('x')).name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return lambda path: path.with_name(done.stdout.strip().replace(".x.", f".{path.name}.", 1))


def assert_alike(found: Any, expected: Any, share: float = 1e-4) -> None:
    """Vectors, along the last axis, that differ by what fp32 rounds at most, measured by the length of each.

    `share` is a hundred times what two orders of the same sums make of it, and a hundredth of what bf16 does.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    apart, length = (np.linalg.norm(vectors, axis=-1) for vectors in (found - expected, expected))
    assert np.all(apart <= share * length), f"{(apart / length).max():.2e} of the length"


def widest(text: str) -> int:
    """The cells of a terminal that its longest line takes: marks that join a letter take none."""
    return max(map(cell_len, text.split("\n")))


def tree(directory: Path) -> dict[str, bytes | None]:
    """Every path below a directory, with the content of files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }
