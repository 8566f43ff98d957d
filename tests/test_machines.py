"""Two processes that each have a machine to themselves: own files, own cache, no run directory but the first one's."""

from __future__ import annotations

import datetime
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfsup.distributed import Processes
from selfsup.machine import own_of
from selfsup.run import Run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = ["train", "causal-lm", "--data", "songs.jsonl", "--tokenizer", "characters", "--batch", "4"]
TRAIN += ["--device", "cpu", "--precision", "fp32", "data.window=16", "model.layers=1", "model.width=32"]
TRAIN += ["model.heads=1", "train.log_every=1", "evaluate.every=4", "evaluate.records=8", "evaluate.final_records=8"]
TIMEOUT = 8.0  # seconds, of collectives in these processes
PATIENCE = 180.0  # the same where none is to be reached
COMMANDS: dict[str, list[str]] = {
    "trained": [*TRAIN, "--out", "run", "--steps", "6"],
    "extended": ["train", "--resume", "run", "--steps", "9"],
    "a slow start": [*TRAIN, "--out", "slow", "--steps", "2"],
    "kept": [*TRAIN, "--out", "kept", "--steps", "6"],
    "other data": [*TRAIN, "--out", "other", "--steps", "2", "--data", "mine.jsonl"],
    "no data": [*TRAIN, "--out", "none", "--steps", "2", "--data", "first-only.jsonl"],
    "taken": [*TRAIN, "--out", "run", "--steps", "6"],
    "no such setting": [*TRAIN, "--out", "wrong", "model.layer=2"],
    "no such protocol": [*TRAIN, "--out", "wrong", "evaluate.protocols=[luck]"],
    "unreadable later": [*TRAIN, "--out", "later", "--steps", "20"],
    "killed": [*TRAIN, "--out", "killed", "--steps", "1000"],
}


def songs(about: str) -> str:
    texts = [f"{n} bottles of {about} stand on wall {n % 7}." * (1 + n % 3) for n in range(40)]
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What each of the two processes left: its files, and of each command NAME.json with code and output."""
    directory = tmp_path_factory.mktemp("machines")
    places = [directory / str(rank) for rank in (0, 1)]
    for rank, place in enumerate(places):
        place.mkdir()
        (place / "songs.jsonl").write_text(songs("beer"), encoding="utf-8")
        (place / "mine.jsonl").write_text(songs(("rum", "gin")[rank]), encoding="utf-8")
    (places[0] / "first-only.jsonl").write_text(songs("milk"), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*TORCHRUN, __file__, str(directory)], env=environment, capture_output=True, timeout=600)
    return places


def left(machines: list[Path], name: str) -> list[dict[str, Any]]:
    return [json.loads((place / f"{name}.json").read_text(encoding="utf-8")) for place in machines]


def test_a_second_machine_needs_no_run_directory(machines: list[Path]) -> None:
    for name in ("trained", "extended", "a slow start"):
        for seen in left(machines, name):
            assert seen["code"] == 0, seen
    assert Run.open(machines[0] / "run").summary["steps"] == 9
    assert not (machines[1] / "run").exists()
    lines = [line["step"] for line in Run(machines[0] / "run").metrics() if line["split"] == "train"]
    assert lines == list(range(1, 10))


def test_the_best_weights_reach_a_machine_without_their_checkpoint(machines: list[Path]) -> None:
    """Both score what is kept: its loss is that of its look."""
    assert [seen["code"] for seen in left(machines, "kept")] == [0, 0]
    run = Run.open(machines[0] / "kept")
    looks = {line["step"]: line["loss"] for line in run.metrics() if line["split"] == "validation"}
    last = run.metrics()[-1]
    assert (last["split"], last["of"], run.summary["kept"]["step"]) == ("kept", 4, 4)
    assert last["loss"] == pytest.approx(looks[4], rel=1e-6)
    weights = load_file(run.model_directory / "model.safetensors")
    best = run.checkpoints().load(4).tensors["model"]
    assert all(torch.equal(tensor, best[f"model.{name}"]) for name, tensor in weights.items())


def test_each_machine_prepares_the_data_for_itself(machines: list[Path]) -> None:
    for place in machines:
        assert [path for path in (place / "cache").rglob("*") if path.is_file()]


def test_preparing_may_take_longer_than_a_collective(machines: list[Path]) -> None:
    """One process takes its time to read, and the other says what it waits for."""
    leading, _ = left(machines, "a slow start")
    assert "waiting for other processes to read their data" in leading["error"]


REFUSED = {
    "other data": (1, "Process 1 of 2", "mine.jsonl is not the same here as for process 0; put the same files"),
    "no data": (1, "Process 1 of 2", "first-only.jsonl"),
    "unreadable later": (1, "Process 1 of 2", "record 7 cannot be read"),
    "taken": (0, "", "already holds a run"),
    "no such setting": (0, "", "model.layer"),
    "no such protocol": (0, "", "luck"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_of_one_process_ends_all_with_one_sentence(name: str, machines: list[Path]) -> None:
    seen = left(machines, name)
    speaker, who, what = REFUSED[name]
    assert [one["code"] for one in seen] == [2, 2], seen
    written = "\n".join(one["error"] for one in seen)
    said = [line for line in seen[speaker]["error"].splitlines() if line.startswith("selfsup: ")]
    assert len(said) == written.count("selfsup: ") == 1
    assert said[0].startswith(f"selfsup: {who}")
    assert what in said[0]
    for one in seen:
        assert "Traceback" not in one["error"]
        assert one["seconds"] < PATIENCE


def test_a_process_that_is_killed_is_missed(machines: list[Path]) -> None:
    seen = json.loads((machines[0] / "killed.json").read_text(encoding="utf-8"))
    assert seen["code"] == 2
    said = seen["error"].splitlines()[-1]
    assert said.startswith("selfsup: Process 0 of 2")
    assert "lost another process of this training" in said
    assert "--resume" in said
    assert "Traceback" not in seen["error"]


def test_the_first_process_of_a_machine_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for rank, local in [(0, "0"), (1, "1"), (2, "0"), (3, "1"), (4, None)]:
        processes = Processes()
        processes.active, processes.rank, processes.size = True, rank, 5
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local is not None:
            monkeypatch.setenv("LOCAL_RANK", local)
        found[rank] = processes.prepares
    assert found == {0: True, 1: False, 2: True, 3: False, 4: False}
    assert Processes().prepares  # alone


def test_each_process_of_a_resumed_run_takes_its_own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration names that of the first process."""
    first, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_of(first) == first
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_of(first) == torch.device("cuda", 3)
    assert own_of(cpu) == cpu


# -- in each of the two processes ----------------------------------------------------------------------------


def prepare(name: str, rank: int, patch: pytest.MonkeyPatch) -> None:
    """What is special about a command in this process."""
    from selfsup import report, trainer
    from selfsup.data import loader
    from selfsup.errors import UserError
    from selfsup.objectives.causal_lm import CausalLMRecipe

    patch.setattr(report, "SECONDS_BETWEEN_LINES", 0.5)
    whole, update, read = CausalLMRecipe.open, trainer.Trainer._update, loader.Loader.read
    losses = trainer.Trainer._losses

    def slow(self: Any, progress: Any) -> None:
        time.sleep(TIMEOUT + 2)
        whole(self, progress)

    def fail(self: Any, place: range) -> Any:
        if place.start > 20:
            raise UserError("record 7 cannot be read; restore it")
        return read(self, place)

    def die(self: Any, batches: Any) -> None:
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        update(self, batches)

    def worse(self: Any, source: Any, records: int) -> dict[str, float]:
        figures = losses(self, source, records)
        return figures if self.step < 6 or self.kept else figures | {"loss": figures["loss"] + 1}

    if name == "kept":
        patch.setattr(trainer.Trainer, "_losses", worse)
    if rank == 1 and name == "a slow start":
        patch.setattr(CausalLMRecipe, "open", slow)
    if rank == 1 and name == "unreadable later":
        patch.setattr(loader.Loader, "read", fail)
    if rank == 1 and name == "killed":
        patch.setattr(trainer.Trainer, "_update", die)


def run(name: str) -> dict[str, Any]:
    from selfsup import cli

    error, out, begun = io.StringIO(), io.StringIO(), time.monotonic()
    code: object = 0
    with redirect_stderr(error), redirect_stdout(out):
        sys.argv = ["selfsup", *COMMANDS[name]]
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return {"code": code or 0, "error": error.getvalue(), "seconds": time.monotonic() - begun}


def main(directory: Path) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    os.environ |= {"LOCAL_RANK": "0", "GROUP_RANK": str(rank), "SELFSUP_CACHE": str(directory / str(rank) / "cache")}
    os.chdir(directory / str(rank))
    whole = dist.init_process_group
    for name in COMMANDS:
        with pytest.MonkeyPatch.context() as patch:
            timeout = datetime.timedelta(seconds=TIMEOUT if name == "a slow start" else PATIENCE)
            patch.setattr(dist, "init_process_group", lambda *a, t=timeout, **k: whole(*a, **(k | {"timeout": t})))
            prepare(name, rank, patch)
            seen = run(name)
        Path(f"{name}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
