"""A path that begins with `~` lies in the home directory, wherever a command or a function takes one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY, TINY_WORDS, Answer, Trained
from drawings import write_drawings

import selfsup
from selfsup.evaluation.probe import Probe
from selfsup.report import Reporter
from selfsup.run import Run

Command = Callable[..., Answer]


@pytest.fixture
def home(trained: Trained, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with runs and data; nothing may come to lie in the current directory."""
    place, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    runs = {"run": "causal-lm", "other": "causal-lm", "encoder": "masked-lm", "eye": "mae"}
    for name, objective in runs.items():
        shutil.copytree(trained(objective).directory, place / name)
    shutil.copy(corpus, place / "corpus.jsonl")
    notes = [{"text": f"note {n} on {'cats' if n % 2 else 'dogs'}", "label": n % 2} for n in range(80)]
    (place / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    (place / "prompts.txt").write_text("The cat\n")
    write_drawings(place / "drawings", 4, 20)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(elsewhere)
    yield place
    assert list(elsewhere.iterdir()) == []


ENCODE = ["~/encoder", "--data=~/notes.jsonl"]
WORDS = {
    "train": (["train", "causal-lm", "--data=~/corpus.jsonl", "--out=~/new", *TINY_WORDS], "new/summary.json"),
    "out as a key": (["train", "causal-lm", "data=~/corpus.jsonl", "out=~/new", *TINY_WORDS], "new/summary.json"),
    "config": (["train", "--config=~/run/config.yaml", "--steps", 2, "--out=~/new"], "new/summary.json"),
    "init": (["train", "causal-lm", "--data=~/corpus.jsonl", "--init=~/run", "--out=~/new", "steps=2", "data.window=16",
              "batch=4"], "new/summary.json"),
    "tokenizer": (["train", "causal-lm", "--data=~/corpus.jsonl", "--out=~/new", *TINY_WORDS[:3], "tokenizer=~/run",
                   "data.window=16", "steps=2"], "new/summary.json"),
    "extend": (["train", "--resume=~/run", "--steps", 14], "run/earlier"),
    "plan": (["plan", "causal-lm", "--data=~/corpus.jsonl", *TINY_WORDS], None),
    "prepare": (["prepare", "causal-lm", "--data=~/corpus.jsonl", "--out=~/new"], "new/selfsup-corpus.json"),
    "doctor": (["doctor", "~/run"], None),
    "checkpoint": (["checkpoint", "~/run", "--export", 12, "--out=~/exported"], "exported/config.json"),
    "compare": (["compare", "~/run", "~/other", "--plot=~/curves.png"], "curves.png"),
    "generate": (["generate", "~/run", "--prompts=~/prompts.txt", "--tokens", 2], None),
    "evaluate": (["evaluate", "~/run", "--data=~/corpus.jsonl"], None),
    "inspect": (["inspect", "--run=~/run", "--data=~/corpus.jsonl", "--html=~/page.html"], "page.html"),
    "inspect a tokenizer": (["inspect", "causal-lm", "--text", "The cat", "--tokenizer=~/run"], None),
    "show": (["show", "~/eye", "--image=~/drawings/000.png", "--out=~/seen.png"], "seen.png"),
    "export": (["export", "~/run", "--to", "transformers", "--out=~/exported"], "exported/config.json"),
    "fill": (["fill", "~/encoder", "The [MASK] sat."], None),
    "embed": (["embed", *ENCODE, "--out=~/vectors.parquet"], "vectors.parquet"),
    "index": (["index", *ENCODE, "--out=~/notes.lance"], "notes.lance/_versions"),
    "probe": (["probe", *ENCODE, "--out=~/probe"], "probe/probe.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
def test_on_the_command_line(case: str, home: Path, selfsup_command: Command) -> None:
    words, made = WORDS[case]
    answer = selfsup_command(*words)
    assert answer.code == 0, answer
    assert made is None or (home / made).exists()


def test_what_was_made_is_used(home: Path, selfsup_command: Command) -> None:
    for case in ("probe", "index"):
        assert selfsup_command(*WORDS[case][0]).code == 0
    classify = ["classify", "~/encoder", "--probe=~/probe", "--data=~/notes.jsonl", "--out=~/classes.jsonl"]
    answer = selfsup_command(*classify)
    assert answer.code == 0, answer
    answer = selfsup_command("search", "~/notes.lance", "dogs", "--model=~/encoder", "--json")
    assert answer.code == 0, answer
    (first, *_) = json.loads(answer.out)["hits"]
    assert selfsup_command("delete", "~/notes.lance", first["id"]).code == 0
    assert len((home / "classes.jsonl").read_text().splitlines()) == 80


def test_from_python(home: Path) -> None:
    silent = Reporter(False)
    run = selfsup.train("causal-lm", data="~/corpus.jsonl", out="~/new", reporter=silent, **{**TINY, "steps": 2})
    assert run.directory == home / "new" == Run("~/new").directory
    again = selfsup.train(config="~/new/config.yaml", out=Path("~/again"), reporter=silent)
    assert again.directory == home / "again"
    assert selfsup.load("~/run").generate("The", tokens=1)
    assert selfsup.doctor("~/run").step == 12
    selfsup.compare(["~/run", Path("~/other")]).plot("~/curves.svg")
    assert selfsup.export("~/run", out="~/exported", to="transformers").directory == home / "exported"
    assert selfsup.embed("~/encoder", "~/notes.jsonl", "~/v.parquet", passages="none").records == 80
    assert selfsup.index("~/encoder", Path("~/notes.jsonl"), "~/n.lance", passages="none").records == 80
    assert selfsup.search("~/n.lance", "dogs", model="~/encoder")
    Probe.fit("~/encoder", "~/notes.jsonl").save("~/probe")
    assert Probe.load("~/probe").records == 80
    assert {"curves.svg", "exported", "v.parquet", "n.lance", "probe"} <= {path.name for path in home.iterdir()}
