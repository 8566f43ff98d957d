"""Faults other than a kill: what a disk, an object store, a clock, a source and a number can do to a training.

Each is a function of a directory that raises an AssertionError where the training does otherwise than it says.
"""

from __future__ import annotations

import http.client
import http.server
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from kills import STEPS, Training, await_end, begin, child, kill, prepare_data, to_the_end
from test_resume import assert_same, timeless

import selfsup
from selfsup import cli, trainer
from selfsup.data import places
from selfsup.data.cache import cache_directory
from selfsup.report import Reporter
from selfsup.run import Run

Fault = Callable[[Path], None]
FAULTS: dict[str, Fault] = {}
NOBODY = 65534


def fault(what: str) -> Callable[[Fault], Fault]:
    def add(function: Fault) -> Fault:
        FAULTS[what] = function
        return function

    return add


def decoder(place: Path, **more: Any) -> Training:
    from conftest import TINY

    data = prepare_data(place / "data")
    return Training("causal-lm", {**TINY, **STEPS, "objective": "causal-lm", "data": str(data["texts"]), **more})


def ends(work: Callable[[], object], told: Path) -> tuple[int, str]:
    """The exit code of some work in a process of its own, and what it said went wrong."""
    codes = await_end([child(work, told)], 120)
    assert codes is not None, "it hung"
    return codes[0], told.read_text() if told.exists() else ""


def train(training: Training, out: Path) -> None:
    torch.set_num_threads(1)
    given = {"resume": str(out)} if Run(out).exists else {**training.settings, "out": str(out)}
    selfsup.train(reporter=Reporter(False), **given)


def command(run: Run, told: Path) -> None:
    """Go on with a run by the command, whose errors go into a file."""
    torch.set_num_threads(1)
    with told.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = ["selfsup", "train", "--resume", str(run.directory)]
    cli.main()


def in_a_sentence(code: int, said: str) -> None:
    """An error as a user sees it."""
    assert code == 2, said
    assert "Traceback" not in said, said
    assert "selfsup: " in said, said


def both(training: Training, place: Path) -> tuple[Run, Run]:
    """A finished run, and one that is killed when two of its checkpoints are written."""
    assert to_the_end(training, place / "whole") is None
    numbers = begin(training, place / "run")
    checkpoints = Run(place / "run").checkpoints()
    until = time.monotonic() + 120
    while len(checkpoints.steps()) < 2 and time.monotonic() < until:
        time.sleep(0.002)
    kill(numbers)
    return Run(place / "whole"), Run(place / "run")


def goes_on(training: Training, run: Run, whole: Run) -> None:
    problem = to_the_end(training, run.directory)
    assert problem is None, problem
    assert_same(run, whole)


# -- disks ---------------------------------------------------------------------------------------------------


@fault("no file may grow beyond a bound, as on a full disk: it says so, and goes on when there is room")
def full_disk(place: Path) -> None:
    training = decoder(place)
    whole, run = both(training, place)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        command(run, place / "said")

    in_a_sentence(*ends(work, place / "said"))
    goes_on(training, run, whole)


@fault("a run directory that may not be written: one sentence, nothing lost")
def read_only(place: Path) -> None:
    training = decoder(place)
    whole, run = both(training, place)
    said, cache = place / "said", place / "cache of nobody"
    said.touch()
    cache.mkdir()
    for path, mode in ((said, 0o666), (cache, 0o777), (place, 0o755), (place.parent, 0o755)):
        path.chmod(mode)

    def work() -> None:
        if os.geteuid() == 0:  # who may write anything
            os.setuid(NOBODY)
        os.environ["SELFSUP_CACHE"] = str(cache)
        command(run, said)

    _let_write(run.directory, False)
    code, told = ends(work, said)
    _let_write(run.directory, True)
    in_a_sentence(code, told)
    goes_on(training, run, whole)


def _let_write(folder: Path, may: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o755 if path.is_dir() else 0o644) if may else (0o555 if path.is_dir() else 0o444))


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Cut short, or with one bit turned over."""
    place = dice.randrange(len(data))
    return (
        data[:place]
        if dice.random() < 0.5
        else data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
    )


@fault("a checkpoint that is cut short or has a bit turned over: the one before it serves")
def checkpoints(place: Path) -> None:
    training, dice = decoder(place), random.Random(1)
    whole, run = both(training, place)
    saved = shutil.copytree(run.directory, place / "saved")
    for number in range(4):
        shutil.rmtree(run.directory)
        shutil.copytree(saved, run.directory)
        newest = max(path for path in run.checkpoints_directory.iterdir() if path.name.startswith("step-"))
        file = dice.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
        file.write_bytes(damaged(file.read_bytes(), dice))
        goes_on(training, run, whole)
        assert number >= 0


@fault("a cache that is cut short or has a bit turned over: what was prepared is prepared again")
def caches(place: Path) -> None:
    dice, before = random.Random(2), os.environ.get("SELFSUP_CACHE")
    os.environ["SELFSUP_CACHE"] = str(place / "cache")
    try:
        training = decoder(place)
        whole, run = both(training, place)
        entries = sorted(path for path in cache_directory().rglob("*") if path.is_file() and path.stat().st_size > 8)
        for file in dice.sample(entries, min(3, len(entries))):
            file.write_bytes(damaged(file.read_bytes(), dice))
        goes_on(training, run, whole)
    finally:
        os.environ.pop("SELFSUP_CACHE")
        os.environ |= {"SELFSUP_CACHE": before} if before else {}


@fault("a block of a prepared corpus with a bit turned over: it is named, and counts against what may be lost")
def blocks(place: Path) -> None:
    training = decoder(place)
    tokens = place / "tokens"
    selfsup.prepare("causal-lm", data=training.settings["data"], out=tokens, tokenizer="characters", workers=1)
    settings = {name: value for name, value in training.settings.items() if name != "tokenizer"}
    on_tokens = Training("causal-lm", {**settings, "data": str(tokens)})
    assert to_the_end(on_tokens, place / "whole") is None
    shard = next((tokens / "train").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    code, said = ends(lambda: train(on_tokens, place / "run"), place / "said")
    assert code == 2, said
    assert shard.name in said or str(tokens) in said, said
    assert not (place / "run").exists()


# -- sources, clocks, numbers, two at once -------------------------------------------------------------------


@fault("a source that grows between start and resume: it is refused, and served again when it is as it was")
def growing_source(place: Path) -> None:
    training = decoder(place)
    whole, run = both(training, place)
    source = Path(training.settings["data"])
    content = source.read_text()
    source.write_text(content + '{"text": "Another line."}\n')
    code, said = ends(lambda: train(training, run.directory), place / "said")
    assert code == 2, said
    assert "changed" in said, said
    source.write_text(content)
    goes_on(training, run, whole)


@fault("a clock that jumps by days, both ways: the same run")
def clock(place: Path) -> None:
    training = decoder(place)
    whole, run = both(training, place)
    dice, own = random.Random(3), time.time

    def work() -> None:
        time.time = lambda: own() + dice.uniform(-1e6, 1e6)  # type: ignore[assignment]
        train(training, run.directory)

    code, said = ends(work, place / "said")
    assert code == 0, said
    assert_same(run, whole)


@fault("a gradient that is no number: the step is skipped, named and counted, the same after a kill")
def not_a_number(place: Path) -> None:
    training = decoder(place)
    gradients = trainer.gradients

    def poisoned(objective: Any, *rest: Any) -> Any:
        figures = gradients(objective, *rest)
        poisoned.calls += 1  # type: ignore[attr-defined]
        if poisoned.calls in (8, 9):  # type: ignore[attr-defined]
            next(p for p in objective.parameters() if p.grad is not None).grad.flatten()[0] = float("nan")
        return figures

    def work(out: Path, before: int, stop: int | None = None) -> Callable[[], None]:
        def run() -> None:
            poisoned.calls = before  # type: ignore[attr-defined]
            trainer.gradients = poisoned  # type: ignore[assignment]
            if stop is not None:
                update = trainer.Trainer._update

                def dying(self: Any, batches: Any) -> None:
                    if self.step == stop:
                        os.kill(os.getpid(), signal.SIGKILL)
                    update(self, batches)

                trainer.Trainer._update = dying  # type: ignore[method-assign]
            train(training, out)

        return run

    # Planning makes steps of its own, by the function as planning knows it: those are not counted here.
    code, said = ends(work(place / "whole", 0), place / "said")
    assert code == 0, said
    whole, run = Run(place / "whole"), Run(place / "run")
    assert whole.summary["skipped_steps"] == 2
    assert ends(work(run.directory, 0, stop=13), place / "said")[0] == -signal.SIGKILL
    code, said = ends(work(run.directory, 10), place / "said")
    assert code == 0, said
    assert run.summary["skipped_steps"] == 2
    assert timeless(run) == timeless(whole)
    assert_same(run, whole)


@fault("two trainings on one run directory: the second is refused, the first does not notice")
def two_at_once(place: Path) -> None:
    training = decoder(place)
    assert to_the_end(training, place / "whole") is None
    first = begin(training, place / "run")
    until = time.monotonic() + 120
    while not Run(place / "run").exists and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(first[0], signal.SIGSTOP)
    code, said = ends(lambda: train(training, place / "run"), place / "said")
    os.kill(first[0], signal.SIGCONT)
    assert code == 2, said
    assert await_end(first, 120) == [0]
    assert_same(Run(place / "run"), Run(place / "whole"))


# -- an object store -----------------------------------------------------------------------------------------


class Proxy(http.server.ThreadingHTTPServer):
    """Stands before a server, and now and then answers late, wrongly, in part, or not at all."""

    daemon_threads = True

    def __init__(self, port: int, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.behind, self.share, self.dice = port, share, random.Random(seed)
        self.faults: list[str] = []


class _Passing(http.server.BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def _pass(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        behind.request(self.command, self.path, sent, headers)
        answer = behind.getresponse()
        body = answer.read()
        happens = self.command == "GET" and self.server.dice.random() < self.server.share
        what = self.server.dice.choice(("late", "wrong", "part", "error", "nothing")) if happens else ""
        if what:
            self.server.faults.append(what)
        if what == "late":
            time.sleep(0.3)
        if what == "nothing":
            self.close_connection = True
            return
        if what == "error":
            answer.status, body = 503, b""
        if what == "wrong" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        told = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", told or "0")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if what == "part" else body)
        self.close_connection |= what == "part"

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815


@contextmanager
def object_store() -> Iterator[int]:
    """The port of an S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@fault("an S3 server that answers late, wrongly, in part, with errors or not at all: the same run")
def remote(place: Path) -> None:
    import fsspec

    training = decoder(place)
    settings = {name: value for name, value in training.settings.items() if name != "tokenizer"}
    tokens, before = place / "tokens", dict(os.environ)
    selfsup.prepare("causal-lm", data=training.settings["data"], out=tokens, tokenizer="characters", workers=1)
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    with object_store() as port:
        proxy = Proxy(port, 0.3, 4)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            os.environ |= keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
            store = fsspec.filesystem("s3", skip_instance_cache=True)
            store.mkdir("bucket")
            store.put(f"{tokens}/", "bucket/tokens/", recursive=True)
            on_store = Training("causal-lm", {**settings, "data": "s3://bucket/tokens"})
            os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}"}

            def work(out: Path, share: float) -> Callable[[], None]:
                def run() -> None:
                    places.PAUSE = 0.01
                    os.environ["SELFSUP_CACHE"] = str(place / f"cache {out.name}")
                    train(on_store, out)

                proxy.share = share
                return run

            for name, share in (("whole", 0.0), ("run", 0.3)):
                code, said = ends(work(place / name, share), place / "said")
                assert code == 0, said
            assert_same(Run(place / "run"), Run(place / "whole"))
            assert proxy.faults, "nothing happened"
            proxy.share = 1.0
        finally:
            proxy.shutdown()
            os.environ.clear()
            os.environ |= before
