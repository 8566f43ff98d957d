"""What a user can do wrong: one sentence, exit code 2, nothing created, nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_WORDS, Answer, Train, tree

from selfsup.errors import UserError
from selfsup.run import Run

Command = Callable[..., Answer]
TRAIN = ["train", "causal-lm", "--out", "new", *TINY_WORDS]
ON_CORPUS = [*TRAIN, "--data", "corpus.jsonl"]


@pytest.fixture
def place(corpus: Path, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a corpus, a finished run, and much that is wrong."""
    shutil.copy(corpus, tmp_path / "corpus.jsonl")
    shutil.copytree(finished.directory, tmp_path / "run")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "short.txt").write_text("Hello.")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "binary.txt").write_bytes(random.Random(0).randbytes(2000))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "no-text").mkdir()
    (tmp_path / "no-text" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    (tmp_path / "numbers.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "broken.yaml").write_text("model: {layers: [\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "unknown.yaml").write_text("model:\n  layrs: 3\n")
    (tmp_path / "two.yaml").write_text("steps: 3\nbudget: 5m\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES: dict[str, tuple[list[str], str]] = {
    # data
    "missing data": ([*TRAIN, "--data", "missing.txt"], "missing.txt"),
    "no name of data": ([*TRAIN, "--data", ""], "data.source"),
    "glob without a match": ([*TRAIN, "--data", "none*.txt"], "none*.txt"),
    "empty file": ([*TRAIN, "--data", "empty.txt"], "empty.txt"),
    "blank file": ([*TRAIN, "--data", "blank.txt"], "blank.txt"),
    "too short for a window": ([*TRAIN, "--data", "short.txt"], "too few for one window of 16"),
    "window longer than the corpus": ([*ON_CORPUS, "data.window=1000000"], "too few for one window"),
    "broken lines": ([*TRAIN, "--data", "broken.jsonl"], "broken.jsonl"),
    "no text": ([*TRAIN, "--data", "binary.txt"], "binary.txt"),
    "no kind of text": ([*TRAIN, "--data", "picture.png"], "picture.png"),
    "folder without text": ([*TRAIN, "--data", "no-text"], "no-text"),
    "no text column": ([*TRAIN, "--data", "numbers.jsonl"], "numbers.jsonl"),
    "unknown column": ([*ON_CORPUS, "data.column=title"], "title"),
    "unknown sample": ([*TRAIN, "--data", "sample:tolstoy"], "shakespeare"),
    # settings
    "unknown key": ([*ON_CORPUS, "model.layrs=3"], "did you mean 'model.layers'?"),
    "unknown key of a file": ([*ON_CORPUS, "--config", "unknown.yaml"], "did you mean 'model.layers'?"),
    "keyword of Python": ([*ON_CORPUS, "reporter=3"], "Unknown key 'reporter'"),
    "wrong type": ([*ON_CORPUS, "model.layers=many"], "'model.layers' cannot be 'many'"),
    "truth value for a number": ([*ON_CORPUS, "model.layers=true"], "'model.layers' cannot be True"),
    "infinite rate": ([*ON_CORPUS, "optim.lr=.inf"], "optim.lr"),
    "value that is no YAML": ([*ON_CORPUS, "model.layers=[["], "no valid YAML"),
    "glob that is not quoted": ([*TRAIN, "data=*.txt"], "no valid YAML"),
    "word with a tag": ([*ON_CORPUS, "data.column=!!timestamp 2020-01-01"], "no valid YAML"),
    "data twice": ([*ON_CORPUS, "data=corpus.jsonl"], "data.source is given twice"),
    "objective twice": ([*ON_CORPUS, "objective=mae"], "objective is given twice"),
    "word without a value": ([*ON_CORPUS, "fast"], "'fast' is no setting"),
    "negative seed": ([*ON_CORPUS, "--seed", "-1"], "train.seed"),
    "no steps": ([*ON_CORPUS, "steps=0"], "train.steps"),
    "one setting twice": ([*ON_CORPUS, "--steps", "9"], "train.steps is given twice"),
    "two lengths": ([*ON_CORPUS, "--budget", "5m"], "train.steps and train.budget are both given"),
    "two lengths in a file": (["train", "--data", "corpus.jsonl", "--config", "two.yaml"], "both given (two.yaml)"),
    "bad duration": (["train", "--budget", "5 minutes"], "such as 90s, 10m or 1h30m"),
    "budget without time to train": (
        [word for word in ON_CORPUS if "steps" not in word] + ["--budget", "0.01s"], "leaves no time"),
    "missing configuration": ([*ON_CORPUS, "--config", "missing.yaml"], "missing.yaml"),
    "malformed configuration": ([*ON_CORPUS, "--config", "broken.yaml"], "Cannot read the configuration broken.yaml: "),
    "configuration without keys": ([*ON_CORPUS, "--config", "list.yaml"], "list.yaml"),
    "folder as a configuration": ([*ON_CORPUS, "--config", "run"], "run"),
    # names
    "unknown objective": (["train", "causal-ml", "--data", "corpus.jsonl", "--out", "new"], "did you mean 'causal-lm'"),
    "unknown preset": ([*ON_CORPUS, "model=huge"], "no model preset 'huge'"),
    "unknown tokenizer": ([*ON_CORPUS, "tokenizer=charcters"], "charcters"),
    "broken tokenizer": ([*ON_CORPUS, "tokenizer=./tokenizer.json"], "tokenizer.json"),
    "vocabulary too small": ([*ON_CORPUS, "data.tokenizer=bpe", "data.vocabulary=3"], "too small"),
    "unknown device": ([*ON_CORPUS, "--device", "abacus"], "no device 'abacus'"),
    "device that holds nothing": ([*ON_CORPUS, "--device", "meta"], "no device 'meta'"),
    "device that is not built": ([*ON_CORPUS, "--device", "privateuseone"], "privateuseone"),
    "unknown precision": ([*ON_CORPUS, "precision=fp16"], "train.precision"),
    "heads that do not fit": ([*ON_CORPUS, "model.heads=4", "model.kv_heads=3"], "multiple of kv_heads"),
    "odd head width": ([*ON_CORPUS, "model.head_dim=7"], "must be even"),
    # places
    "existing run": (["train", "--data", "corpus.jsonl", "--out", "run"], "already holds a run"),
    "foreign directory": (["train", "--data", "corpus.jsonl", "--out", "foreign"], "thesis.tex"),
    "file as a run": (["train", "--data", "corpus.jsonl", "--out", "corpus.jsonl"], "Cannot write to"),
    "run below a file": (["train", "--data", "corpus.jsonl", "--out", "corpus.jsonl/run"], "Cannot write to"),
    "place that takes nothing": (["train", "--data", "corpus.jsonl", "--out", "/proc/run"], "Cannot write to"),
    "name too long": (["train", "--data", "corpus.jsonl", "--out", "x" * 300], "File name too long"),
    # runs
    "resume what is no run": (["train", "--resume", "foreign"], "foreign holds no run"),
    "resume what is not there": (["train", "--resume", "missing"], "missing holds no run"),
    "resume what is finished": (["train", "--resume", "run"], "is finished (12 steps)"),
    "resume with other settings": (["train", "--resume", "run", "optim.lr=1"], "optim.lr"),
    "resume somewhere else": (["train", "--resume", "run", "out=new"], "--out"),
    "generate from what is no run": (["generate", "foreign", "Hello"], "foreign is neither a run nor a model"),
    "generate from what is not there": (["generate", "missing"], "There is no missing"),
    "no tokens": (["generate", "run", "--tokens", "0"], "tokens"),
    "negative temperature": (["generate", "run", "--temperature", "-1"], "temperature"),
    "top-p above one": (["generate", "run", "--top-p", "2"], "top_p"),
    "evaluate what is no run": (["evaluate", "foreign"], "foreign"),
    "evaluate on missing data": (["evaluate", "run", "--data", "missing.txt"], "missing.txt"),
    "protocol of encoders": (["evaluate", "run", "--protocol", "sts", "--data", "corpus.jsonl"], "bits-per-byte"),
    "labels that nobody needs": (["evaluate", "run", "--label", "class"], "no use for --label"),
    "probe of a decoder": (["probe", "run", "--data", "corpus.jsonl", "--out", "new"], "run holds a decoder"),
    "probe in a place that is taken": (
        ["probe", "run", "--data", "corpus.jsonl", "--out", "foreign"], "foreign exists already"),
    "classify without a probe": (["classify", "run", "--probe", "foreign", "a text"], "foreign holds no probe"),
    "classify nothing": (["classify", "run", "--probe", "foreign"], "either by itself or with --data"),
    "unknown protocol": (["evaluate", "run", "--protocol", "accuracy"], "accuracy"),
    "compare one with nothing": (["compare", "run", "missing"], "missing"),
    "inspect nothing": (["inspect", "causal-lm", "--data", "missing.txt"], "missing.txt"),
    "inspect an unknown objective": (["inspect", "causal-ml", "--text", "a"], "causal-ml"),
    "page over a file": (
        ["inspect", "causal-lm", "--text", "a b", "--tokenizer", "words", "--html", "corpus.jsonl"],
        "corpus.jsonl exists already"),
    "plan without data": (["plan", "causal-lm", "--data", "missing.txt"], "missing.txt"),
    "plan an unknown objective": (["plan", "causal-ml"], "did you mean 'causal-lm'"),
    # words that typer does not understand
    "unknown command": (["trian"], "No such command 'trian'"),
    "unknown option": (["train", "--nope"], "--nope"),
    "option without a value": (["train", "--steps"], "--steps"),
    "text for a number": (["train", "--steps", "many"], "'train.steps' cannot be 'many' (command line)"),
    "missing argument": (["generate"], "Missing argument"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_exit_code_2_and_nothing_touched(case: str, place: Path, selfsup_command: Command) -> None:
    words, message = CASES[case]
    before = tree(place)
    answer = selfsup_command(*words)
    assert answer.code == 2, answer
    assert len(answer.error.splitlines()) == 1, answer
    assert answer.error.startswith("selfsup: ")
    assert message in answer.error
    assert answer.out == ""
    assert tree(place) == before


def test_the_same_in_a_process_of_its_own(place: Path) -> None:
    words = [*TRAIN, "--data", "missing.txt"]
    done = subprocess.run([sys.executable, "-m", "selfsup", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("selfsup: ")
    assert not (place / "new").exists()


def test_broken_checkpoints(place: Path, selfsup_command: Command) -> None:
    (place / "run" / "summary.json").unlink()
    for path in (place / "run" / "checkpoints").rglob("model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = tree(place)
    answer = selfsup_command("train", "--resume", "run")
    assert answer.code == 2
    last = answer.error.splitlines()[-1]
    assert last.startswith("selfsup: All checkpoints in run/checkpoints are damaged")
    assert tree(place) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff{", b"\0" * 100])
def test_a_broken_model_directory(name: str, content: bytes | None, place: Path, selfsup_command: Command) -> None:
    path = place / "run" / "model" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    answer = selfsup_command("generate", "run", "The", "--tokens", "3")
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert line.startswith("selfsup: ")
    assert "run/model" in line


@pytest.mark.parametrize("content", ["", "{", "model: {layrs: 3}", "[]", "train: {steps: -1}"])
def test_a_run_whose_configuration_is_broken(content: str, place: Path, selfsup_command: Command) -> None:
    (place / "run" / "config.yaml").write_text(content)
    before = tree(place)
    answer = selfsup_command("train", "--resume", "run", "--steps", "20")
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert line.startswith("selfsup: ")
    assert tree(place) == before


def test_bits_per_byte_needs_tokens_that_hold_every_byte(place: Path, tmp_path: Path, selfsup_command: Command) -> None:
    words = [word for word in ON_CORPUS if "tokenizer" not in word]
    assert selfsup_command(*words, "data.tokenizer=words").code == 0
    answer = selfsup_command("evaluate", "new", "--protocol", "bits-per-byte")
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert line.startswith("selfsup: ")


# -- no space left -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [0, 8, 24, 60, 150, 260, 330, 380, 420])
def test_a_full_disk_ends_a_run_in_one_sentence_and_room_lets_it_go_on(
    kilobytes: int, place: Path, finished: Run, small_disk: Callable[[int], Path], selfsup_command: Command
) -> None:
    disk = small_disk((kilobytes + 4) * 1024)
    start = [*ON_CORPUS, "--out", str(disk / "run")]
    answer = selfsup_command(*start)
    run = Run(disk / "run")
    assert answer.code == 2, answer
    *_, last = answer.error.splitlines()
    assert last.startswith("selfsup: ")
    assert "no space left on" in last.lower()
    assert "Traceback" not in answer.error
    assert not run.summary
    for step in run.checkpoints().steps():
        assert run.checkpoints().problem(step) is None

    subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
    answer = selfsup_command(*(["train", "--resume", run.directory] if run.exists else start))
    assert answer.code == 0, answer
    model = Path("model") / "model.safetensors"
    assert (run.directory / model).read_bytes() == (finished.directory / model).read_bytes()


@pytest.mark.parametrize("kilobytes", [24, 260, 380])
def test_the_same_from_python(
    kilobytes: int, corpus: Path, finished: Run, small_disk: Callable[[int], Path], train: Train, resume: Train
) -> None:
    run = Run(small_disk((kilobytes + 4) * 1024) / "run")
    with pytest.raises(UserError, match=r"(?i)no space left on") as caught:
        train(run.directory)
    assert len(str(caught.value).splitlines()) == 1
    assert run.exists == (f"--resume {run.directory}" in str(caught.value))
    subprocess.run(["mount", "-o", "remount,size=10m", str(run.directory.parent)], check=True)
    again = resume(run.directory) if run.exists else train(run.directory)
    assert tree(again.model_directory) == tree(finished.model_directory)


def test_a_disk_that_can_only_be_read(place: Path, small_disk: Callable[[int], Path], selfsup_command: Command) -> None:
    disk = small_disk(10 << 20)
    shutil.copytree(place / "run", disk / "run")
    (disk / "run" / "summary.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = tree(disk)
    for words in (
        ["train", "--resume", disk / "run"],
        ["train", "--resume", disk / "run", "--steps", 20],
        [*ON_CORPUS, "--out", disk / "new"],
        ["export", "run", "--to", "transformers", "--out", disk / "exported"],
        ["compare", "run", disk / "run", "--plot", disk / "plot.png"],
        ["inspect", "--run", "run", "--text", "The cat", "--html", disk / "page.html"],
    ):
        answer = selfsup_command(*words)
        assert answer.code == 2, answer
        *_, last = answer.error.splitlines()
        assert last.startswith("selfsup: "), answer
        assert "Read-only file system" in last, answer
    assert tree(disk) == before
    assert selfsup_command("doctor", disk / "run").code == 0


def test_a_full_cache_is_named(
    place: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, selfsup_command: Command
) -> None:
    disk = small_disk(12 * 1024)
    monkeypatch.setenv("SELFSUP_CACHE", str(disk))
    before = tree(place)
    answer = selfsup_command(*ON_CORPUS)
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert "no space left" in line
    assert "SELFSUP_CACHE" in line
    assert {k: v for k, v in tree(place).items() if not k.startswith("disk")} == {
        k: v for k, v in before.items() if not k.startswith("disk")
    }


def test_a_cache_that_cannot_be_written_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, selfsup_command: Command
) -> None:
    monkeypatch.setenv("SELFSUP_CACHE", str(place / "corpus.jsonl"))
    answer = selfsup_command(*ON_CORPUS)
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert "SELFSUP_CACHE" in line
    assert not (place / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_directory_without_the_right_to_write(place: Path, selfsup_command: Command) -> None:
    (place / "closed").mkdir(mode=0o500)
    answer = selfsup_command("train", "--data", "corpus.jsonl", "--out", "closed/run")
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert "Permission denied" in line
