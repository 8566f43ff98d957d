"""Nothing of a stranger's is run: commands on model and run directories that try it, `y` being the answer to all."""

from __future__ import annotations

import io
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import yaml
from conftest import Answer
from planted import plant, planted_copy
from tiny_clip import save_tiny_clip
from tiny_vision import save_tiny_vision

import selfsup

Command = Callable[..., Answer]
SHORT = ("steps=1", "batch=4", "evaluate.records=4", "evaluate.final_records=4", "precision=fp32")
TEXT = ("data.window=16", *SHORT)
IMAGES = ("model.layers=1", "model.width=32", "model.heads=1", *SHORT)

# By the kind of directory: words in which {} stands for it, and {texts}, {labelled}, {pairs}, {photos}, {out} for data.
COMMANDS = {
    "bert": [
        "embed {} --data {texts} --out {out}",
        "index {} --data {texts} --out {out}.lance",
        "evaluate {} --data {texts} --protocol pseudo-perplexity",
        "fill {} the_[MASK]",
        "probe {} --data {labelled} --out {out}",
        "export {} --to sentence-transformers --out {out}",
        "export {} --to transformers --out {out}",
        "inspect masked-lm --data {texts} --run {}",
        "train masked-lm --data {texts} --out {out} model=hf:{} TEXT",
        "train simcse --data {texts} --out {out} model=hf:{} TEXT",
        "plan masked-lm --data {texts} model=hf:{} TEXT",
        "train clip --data {pairs} --out {out} --text-init {} IMAGES",
        "train causal-lm --data {texts} --out {out} tokenizer={} model.layers=1 model.width=32 TEXT",
    ],
    "gpt2": [
        "generate {} the",
        "evaluate {} --data {texts} --protocol bits-per-byte",
        "train causal-lm --data {texts} --out {out} model=hf:{} TEXT",
        "inspect causal-lm --data {texts} --run {}",
        "export {} --to transformers --out {out}",
    ],
    "vision": [
        "embed {} --data {photos} --out {out}",
        "show {} --image {photo} --out {out}.png",
        "evaluate {} --data {photos} --protocol rankme",
        "export {} --to sentence-transformers --out {out}",
        "export {} --to transformers --out {out}",
        "export {} --to timm --out {out}",
        "train simclr --data {photos} --out {out} --init {} SHORT",
        "train mae --data {photos} --out {out} --init {} SHORT",
        "train clip --data {pairs} --out {out} --image-init {} text.layers=1 text.width=32 SHORT",
    ],
    "towers": [
        "embed {} --data {photos} --out {out}",
        "zero-shot {} {photo} --labels a --labels b",
        "export {} --to sentence-transformers --out {out}",
        "train clip --data {pairs} --out {out} --image-init {} --text-init {} SHORT",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each kind as it should be."""
    place = tmp_path_factory.mktemp("kept")
    return {
        "bert": foreign.bert(place / "bert"),
        "gpt2": foreign.gpt2(place / "gpt2"),
        "vision": save_tiny_vision(place / "vision"),
        "towers": save_tiny_clip(place / "towers"),
    }


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is answered by y; nobody can be asked over the network."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 1000))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def command(
    selfsup_command: Command, corpus: Path, drawings: Path, captioned: Path, labelled: Path, tmp_path: Path
) -> Callable[[str, Path], Answer]:
    places = {"texts": corpus, "photos": drawings, "pairs": captioned, "labelled": labelled}
    groups = {"TEXT": TEXT, "IMAGES": IMAGES, "SHORT": SHORT}

    def run(words: str, directory: Path) -> Answer:
        photo = next(drawings.glob("*.png"))
        written = words.replace("{}", str(directory)).format(**places, photo=photo, out=tmp_path / "out").split()
        return selfsup_command(*(part for word in written for part in groups.get(word, (word,))))

    return run


@pytest.fixture(scope="session")
def labelled(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "labelled.csv"
    rows = [f"{text},{text.split()[1]}" for text in documents[::4]]
    path.write_text("\n".join(["text,label", *rows]))
    return path


CASES = [(kind, words) for kind, commands in COMMANDS.items() for words in commands]


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize(("kind", "words"), CASES, ids=[f"{kind}: {words[:40]}" for kind, words in CASES])
def test_no_command_runs_what_a_model_directory_holds(
    kind: str, words: str, kept: dict[str, Path], command: Callable[[str, Path], Answer], tmp_path: Path
) -> None:
    """What opens without its code is used without it."""
    mark, directory = tmp_path / "mark", tmp_path / "model"
    shutil.copytree(kept[kind], directory)
    for place in [directory, *(path for path in directory.iterdir() if path.is_dir())]:
        plant(place, mark)
    answer = command(words, directory)
    assert not mark.exists()
    assert answer.code == 0, answer


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize(("kind", "words"), CASES[:18], ids=[words[:40] for _, words in CASES[:18]])
def test_what_opens_only_by_its_code_is_refused(
    kind: str, words: str, kept: dict[str, Path], command: Callable[[str, Path], Answer], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    directory = planted_copy(kept[kind], tmp_path / "model", mark, model_type="planted")
    answer = command(words, directory)
    assert not mark.exists()
    if answer.code == 0:  # what takes no more than its tokenizer, or copies it
        assert words.startswith(
            ("train causal-lm --data {texts} --out {out} tokenizer=", "export {} --to transformers")
        )
        return
    assert (answer.code, answer.error.count("\n")) == (2, 1)
    assert "opens only by Python code of its own (modeling_planted.Planted), which is not run" in answer.error


@pytest.mark.usefixtures("answering")
def test_pickles_are_no_weights(kept: dict[str, Path], command: Callable[[str, Path], Answer], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for number, (kind, words) in enumerate((("bert", CASES[0][1]), ("bert", CASES[8][1]), ("gpt2", "generate {} the"))):
        directory = planted_copy(kept[kind], tmp_path / str(number), mark)
        (directory / "model.safetensors").unlink()
        answer = command(words, directory)
        assert answer.code == 2, answer
        assert "safetensors" in answer.error
    assert not mark.exists()


@pytest.mark.usefixtures("answering")
def test_steps_of_sentence_transformers_are_of_its_own_classes(
    kept: dict[str, Path], command: Callable[[str, Path], Answer], tmp_path: Path
) -> None:
    mark, directory = tmp_path / "mark", tmp_path / "model"
    selfsup.export(kept["bert"], out=directory)
    (directory / "features.json").unlink()  # which selfsup writes beside
    plant(directory, mark)
    steps = json.loads((directory / "modules.json").read_text())
    steps[0]["type"] = "modeling_planted.Transformer"
    (directory / "modules.json").write_text(json.dumps(steps))
    answer = command(CASES[0][1], directory)
    assert not mark.exists()
    assert answer.code == 2
    assert "has a step of a class of its own (modeling_planted.Transformer), whose code is not run" in answer.error


RUN_COMMANDS = (
    "doctor {}",
    "compare {} {}",
    "evaluate {}",
    "generate {} the",
    "embed {} --data {texts} --out {out}",
    "export {} --to transformers --out {out}",
    "train --resume {}",
    "train causal-lm --data {texts} --out {out} --init {} TEXT",
    "inspect causal-lm --run {} --data {texts}",
)


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize("words", RUN_COMMANDS)
@pytest.mark.parametrize("objective", ["causal-lm", "python:modeling_planted.Planted", "modeling_planted:Planted"])
def test_no_command_imports_what_a_run_names(
    words: str,
    objective: str,
    finished: selfsup.Run,
    command: Callable[[str, Path], Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even where the directory is the one that is worked in, and a path of Python's."""
    mark, directory = tmp_path / "mark", tmp_path / "run"
    shutil.copytree(finished.directory, directory)
    plant(plant(directory / "model", mark).parent, mark)
    config = yaml.safe_load((directory / "config.yaml").read_text()) | {"objective": objective}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(directory)
    answer = command(words, directory)
    assert not mark.exists()
    assert answer.code in (0, 2), answer
