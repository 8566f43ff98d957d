"""The command line: quick to answer, and one JSON object where a program reads it."""

from __future__ import annotations

import errno
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from conftest import TINY_WORDS, Answer

import selfsup
from selfsup import cli, training
from selfsup.config import SHORT, Config, described
from selfsup.run import Run

Command = Callable[..., Answer]
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "pyarrow", "numpy", "tokenizers", "safetensors", "sklearn")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["generate", "--help"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from selfsup import cli
sys.argv = ["selfsup", *{words!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *(name for name in {HEAVY!r} if name in sys.modules))
"""
    *text, last = python(code).splitlines()
    assert last == "imported:"
    assert any("Usage" in line for line in text)


def test_importing_the_package_starts_nothing() -> None:
    code = f"import sys, selfsup; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code).strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in selfsup.__all__:
        assert getattr(selfsup, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        selfsup.nothing  # noqa: B018


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "selfsup", "--help"], capture_output=True, text=True, check=True)
    for command in ("train", "plan", "compare", "inspect", "generate", "evaluate"):
        assert command in done.stdout


# -- commands and functions ----------------------------------------------------------------------------------

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
NO_COMMANDS = {"load", "diagnose", "__version__"}  # functions that answer with an object of Python; a former name
CALLED = {"machine": "measure_machine", "report": "write_report"}  # commands that are not called as their function is
OF_PROGRAMS = {"progress", "running", "reporter", "origin", "clock", "say", "stream"}  # which no command line can give
WITHOUT_SETTINGS = {"objective", "data", "model", "tokenizer"}  # which the words and flags of settings give as well


def test_every_command_is_a_function_and_every_function_a_command() -> None:
    functions = {name for name in selfsup.__all__ if name.islower()} - NO_COMMANDS - {"generator"}
    assert {CALLED.get(name, name.replace("-", "_")) for name in COMMANDS} == functions


@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_function_have_the_same_arguments(name: str) -> None:
    parameters = inspect.signature(getattr(selfsup, CALLED.get(name, name.replace("-", "_")))).parameters
    wanted = {each.name: each for each in parameters.values() if each.name not in OF_PROGRAMS}
    given = {each.name: each for each in COMMANDS[name].params if each.name != "as_json"}
    if "words" in given:
        assert wanted.popitem()[1].kind == inspect.Parameter.VAR_KEYWORD
        wanted = {key: value for key, value in wanted.items() if key not in WITHOUT_SETTINGS}
        given = {key: value for key, value in given.items() if key not in {"words", "processes", *SHORT}}
    assert given.keys() == wanted.keys()
    for key, option in given.items():
        default = wanted[key].default
        assert option.required == (default is inspect.Parameter.empty), key
        assert option.required or option.default in (None, default), key  # None is left to the function


@pytest.mark.parametrize("name", ["train", "plan"])
def test_short_names_are_flags_that_say_what_the_schema_says(name: str) -> None:
    flags = {each.name: each for each in COMMANDS[name].params}
    for short, key in SHORT.items():
        first = next(other for other in SHORT if SHORT[other] == key)
        assert flags[short].help
        if key.split(".")[0] in Config.model_fields:
            assert flags[short].help == (described(key) if first == short else f"the same as --{first}")


def test_own_objectives_find_what_they_need_in_the_package() -> None:
    from selfsup import Batch, Collectives, Objective, Outputs, Task, generator

    assert all((Batch, Collectives, Objective, Outputs, Task, generator))


# -- one JSON object -----------------------------------------------------------------------------------------


def only_json(answer: Answer) -> dict[str, object]:
    assert answer.code == 0, answer
    found = json.loads(answer.out)
    assert isinstance(found, dict)
    assert len(answer.out.splitlines()) == 1
    return found


def test_train(corpus: Path, tmp_path: Path, selfsup_command: Command) -> None:
    words = ["train", "causal-lm", "--data", corpus, "--out", tmp_path / "run", *TINY_WORDS]
    assert only_json(selfsup_command(*words, "--json")) == Run(tmp_path / "run").summary
    assert only_json(selfsup_command("train", "--resume", tmp_path / "run", "--steps", "16", "--json"))["steps"] == 16


def test_plan(corpus: Path, selfsup_command: Command) -> None:
    assert only_json(selfsup_command("plan", "causal-lm", "--data", corpus, *TINY_WORDS, "--json"))["steps"] == 12


def test_generate(finished: Run, selfsup_command: Command) -> None:
    one = only_json(selfsup_command("generate", finished.directory, "The cat", "--tokens", "9", "--json"))
    (text,) = one["texts"]  # type: ignore[misc]
    assert text["prompt"] == "The cat"  # type: ignore[has-type]
    assert text["text"] == finished.model.generate("The cat", tokens=9)  # type: ignore[has-type]
    two = only_json(selfsup_command("generate", finished.directory, "a", "b", "--tokens", "9", "--json"))
    assert [text["prompt"] for text in two["texts"]] == ["a", "b"]  # type: ignore[attr-defined]


def test_inspect(selfsup_command: Command) -> None:
    words = ["inspect", "causal-lm", "--text", "Il gatto dorme", "--tokenizer", "words", "--json"]
    found = only_json(selfsup_command(*words))
    blocks = {block["kind"]: block for section in found["sections"] for block in section["blocks"]}  # type: ignore[attr-defined]
    assert blocks["window"]["targets"] == ["Il", "gatto", "dorme"]
    assert blocks["sight"]["mask"] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_evaluate(finished: Run, selfsup_command: Command) -> None:
    assert only_json(selfsup_command("evaluate", finished.directory, "--json"))


def test_compare(finished: Run, tmp_path: Path, selfsup_command: Command) -> None:
    other = shutil.copytree(finished.directory, tmp_path / "other")
    assert only_json(selfsup_command("compare", finished.directory, other, "--json"))


# -- text ----------------------------------------------------------------------------------------------------


def test_a_training_ends_with_what_it_left(corpus: Path, tmp_path: Path, selfsup_command: Command) -> None:
    words = ["train", "causal-lm", "--data", corpus, "--out", tmp_path / "run", *TINY_WORDS]
    answer = selfsup_command(*words)
    assert answer.code == 0
    summary = Run(tmp_path / "run").summary
    assert f"Validation loss {summary['loss']:.3f}" in answer.out
    assert "What it writes" in answer.out
    assert "selfsup generate" in answer.out
    assert "Done in" in answer.error


def test_a_training_without_a_finite_loss_ends_without_a_traceback(
    corpus: Path, tmp_path: Path, selfsup_command: Command
) -> None:
    words = ["train", "causal-lm", "--data", corpus, "--out", tmp_path / "run", *TINY_WORDS, "steps=3"]
    answer = selfsup_command(*words, "optim.lr=1e38", "optim.adamw_lr=1e38", "optim.warmup=0")
    assert answer.code == 0
    assert "skipped" in answer.error


def test_lines_are_as_long_as_they_are(corpus: Path, tmp_path: Path, selfsup_command: Command) -> None:
    """Where no terminal is, a program or a file reads: a line must not be broken at eighty characters."""
    out = tmp_path / "a directory with a name that is far too long for a line" / "run"
    answer = selfsup_command("train", "causal-lm", "--data", corpus, "--out", out, *TINY_WORDS, "steps=2")
    assert any(line.startswith("Done in") and line.endswith(f"{out / 'model'}.") for line in answer.error.splitlines())


def test_generated_text_follows_its_prompt(finished: Run, selfsup_command: Command) -> None:
    answer = selfsup_command("generate", finished.directory, "The cat", "--tokens", "9", "--seed", "4")
    assert answer.out == "The cat" + finished.model.generate("The cat", tokens=9, seed=4) + "\n"


def test_what_is_refused_is_refused_before_a_word_is_printed(finished: Run, selfsup_command: Command) -> None:
    for words in (["--tokens", "0"], ["--top-p", "2"], ["--stop", ""], ["--temperature", "nan"]):
        answer = selfsup_command("generate", finished.directory, "The cat", *words)
        assert (answer.code, answer.out) == (2, ""), words


def test_prompts_from_a_file_and_from_the_input(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selfsup_command: Command
) -> None:
    prompts = ["The cat", "", "a fox", "é"]
    (tmp_path / "prompts.txt").write_bytes("\ufeffThe cat\n\r\na fox\né\n".encode())
    texts = finished.model.generate(prompts, tokens=9, seed=2, stop=["a"])
    words = ["generate", finished.directory, "--tokens", "9", "--seed", "2", "--stop", "a", "--prompts"]
    for place in (tmp_path / "prompts.txt", "-"):
        with (tmp_path / "prompts.txt").open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            answer = selfsup_command(*words, place, "--json")
        found = [json.loads(line) for line in answer.out.splitlines()]
        assert found == [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    answer = selfsup_command(*words, tmp_path / "prompts.txt")
    assert answer.out == "\n\n".join(p + t for p, t in zip(prompts, texts, strict=True)) + "\n"


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "holds 0 bytes"), (b"a\nb\xff\n", "line 2"), (None, "Cannot read the prompts")]
)
def test_prompts_that_cannot_be_read(
    content: bytes | None, told: str, finished: Run, tmp_path: Path, selfsup_command: Command
) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    answer = selfsup_command("generate", finished.directory, "--prompts", tmp_path / "prompts.txt")
    assert (answer.code, answer.out) == (2, "")
    assert told in answer.error
    answer = selfsup_command("generate", finished.directory, "The", "--prompts", tmp_path / "prompts.txt")
    assert "in one way" in answer.error


def test_the_objective_may_stand_behind_settings(corpus: Path, tmp_path: Path, selfsup_command: Command) -> None:
    words = ["plan", *TINY_WORDS, "causal-lm", "--data", corpus, "--json"]
    assert only_json(selfsup_command(*words))["steps"] == 12
    assert "'second' is no setting" in selfsup_command("plan", "causal-lm", "second", "steps=1").error


def test_a_plan_is_a_table(corpus: Path, selfsup_command: Command) -> None:
    answer = selfsup_command("plan", "causal-lm", "--data", corpus, *TINY_WORDS)
    assert answer.code == 0
    for word in ("data", "tokens", "windows", "model", "recipe", "batch", "steps", "memory", "time", "chance"):
        assert any(line.startswith(word) for line in answer.out.splitlines()), word


# -- Ctrl-C and other ends -----------------------------------------------------------------------------------


def test_ctrl_c_before_the_first_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selfsup_command: Command
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_prepare", interrupted)
    answer = selfsup_command("train", "causal-lm", "--data", corpus, "--out", tmp_path / "run")
    assert (answer.code, answer.out, answer.error) == (130, "", "selfsup: Stopped.\n")
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_program_keeps_its_traceback(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selfsup_command: Command
) -> None:
    """Only what a user can put right is made one sentence."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(training, "_prepare", broken)
    with pytest.raises(ZeroDivisionError):
        selfsup_command("train", "causal-lm", "--data", corpus, "--out", tmp_path / "run")


def test_a_reader_that_goes_away_is_no_error_of_ours(finished: Run) -> None:
    command = f"{sys.executable} -m selfsup generate {finished.directory} a b c --tokens 50 | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_short_names_and_words_for_places(corpus: Path, tmp_path: Path, selfsup_command: Command) -> None:
    """`data=`, `out=` and `objective=` say the same as the flags."""
    words = ["train", "objective=causal-lm", f"data={corpus}", f"out={tmp_path / 'run'}", *TINY_WORDS, "steps=2"]
    assert selfsup_command(*words).code == 0
    assert Run(tmp_path / "run").summary["steps"] == 2


def test_a_full_disk_asks_for_room_and_for_nothing_that_a_command_may_not_have() -> None:
    told = cli.describe(OSError(errno.ENOSPC, "no space", "here"))
    assert "no space left" in told
    assert "same command again" in told
    assert "--resume" not in told
