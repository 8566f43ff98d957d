"""The commands and the Python of README, run as they are written, but for their length."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import foreign
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from seeing_peers import save_peer
from tiny_towers import save_towers

from selfsup.cli import app
from selfsup.cli.options import split_words

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLE = Path(__file__).parent.parent / "docs" / "own_objective.py"
SHORTER = {
    "--out runs/ours --budget 1h": "--out runs/ours --steps 3 --batch 4",
    "--out runs/lora": "--out runs/lora --steps 3 --batch 4",
    "--out runs/domain": "--out runs/domain --steps 3 --batch 4",
    "--out runs/photos": "--out runs/photos --steps 3 --batch 8",
    "--out runs/pairs": "--out runs/pairs --steps 3 --batch 8",
    "--out runs/clip --budget 30m": "--out runs/clip --steps 3 --batch 8 model.preset=vit-atto text.preset=0.1m",
    "--out runs/lit": "--out runs/lit --steps 3 --batch 8",
    "--out runs/bert --budget 20m": "--out runs/bert --steps 8 model.preset=0.1m",
    "--init runs/bert --out runs/emb": "--init runs/bert --out runs/emb --steps 3 --batch 16",
    "--out runs/titles": "--out runs/titles --steps 3 --batch 8",
    "--out runs/next": "--out runs/next --steps 3 --batch 8",
    "--out runs/tsdae": "--out runs/tsdae --steps 3 --batch 8",
    "--out runs/small": "--out runs/small --steps 3 --batch 8 model.preset=0.1m",
    "--out runs/static": "--out runs/static --steps 3",
    "--budget 30m --out runs/adapted": "--budget 1m --out runs/adapted",
    "--budget 8m": "--steps 4 --batch 16 model.preset=vit-atto",
    "--budget 30m": "--steps 3 --batch 8 model.preset=vit-atto",
    "--budget 12m": "--steps 4 --batch 16 model.preset=vit-atto",
    "--budget 10m": "--budget 15s model.preset=0.1m",
    "--budget 1h": "--budget 20m",  # plan only
    "--steps 2000": "--steps 6 model.width=64",
    "--steps 4000": "--steps 9",
    "steps=1000": "steps=20",
    'budget="1m"': 'budget="15s", model="0.1m"',
    "torchrun": f"{sys.executable} -m torch.distributed.run",
    "--out runs/two": "--out runs/two --steps 4 --batch 4 model.preset=0.1m",
    "--out runs/several": "--out runs/several --steps 4 model.preset=0.1m",
    "--out runs/web": "--out runs/web --steps 4 model.preset=0.1m",
    "--out runs/mix": "--out runs/mix --steps 4 model.preset=0.1m",
    "--out runs/logged": "--out runs/logged --steps 4 model.preset=0.1m",
    "--budget 40s --out runs/seen": "--steps 4 --batch 16 --out runs/seen model.preset=vit-atto",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shortened(text: str) -> str:
    for written, run in SHORTER.items():
        text = text.replace(written, run)
    return text


def commands() -> list[str]:
    """Every line of a plain block that starts selfsup, in the order of the page, without prompts and remarks."""
    lines = [line.removeprefix("$ ") for block in blocks("") for line in block.splitlines()]
    started = [line for line in lines if line.startswith(("selfsup ", "torchrun "))]
    return [re.sub(r"\s{2,}#.*", "", line) for line in started if line != "selfsup train"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what README speaks of: texts (books/, docs/, …), sentences, pairs, reviews, photos/."""
    place = tmp_path_factory.mktemp("newcomer")
    text = files("selfsup").joinpath("data/samples/shakespeare.txt").read_text(encoding="utf-8")
    (place / "books").mkdir()
    for number in range(12):
        (place / "books" / f"{number}.txt").write_text(text[number * 30_000 : (number + 1) * 30_000])
    with gzip.open(place / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text[i : i + 2000]}) + "\n" for i in range(0, 200_000, 2000))
    (place / "other.txt").write_text(text[-20_000:])
    shutil.copytree(place / "books", place / "docs")
    lines = [line for line in text.splitlines() if len(line) > 20]
    (place / "sentences.txt").write_text("\n".join(lines[:500]))
    pairs = [{"sentence1": a, "sentence2": b, "score": float(len(a) % 6)} for a, b in pairwise(lines[:40])]
    pq.write_table(pa.Table.from_pylist(pairs), place / "stsb-en-test.parquet")
    titles = [{"title": a, "body": b} for a, b in zip(lines[:120:2], lines[1:120:2], strict=True)]
    pq.write_table(pa.Table.from_pylist(titles), place / "titles.parquet")
    pq.write_table(pa.table({"text": [text[:3000], text[3000:5000]]}), place / "books.parquet")
    reviews = [{"text": line, "label": len(line) % 2} for line in lines[:80]]
    pq.write_table(pa.Table.from_pylist(reviews), place / "movie-reviews.parquet")
    emoji = pq.read_table(str(files("selfsup").joinpath("data/samples/emoji.parquet"))).slice(0, 96).to_pylist()
    for number, row in enumerate(emoji):
        (place / "photos" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        picture.save(place / "photos" / str(number % 2) / f"{number}.jpg")
        (place / "pairs").mkdir(exist_ok=True)
        shutil.copy(place / "photos" / str(number % 2) / f"{number}.jpg", place / "pairs")
        (place / "pairs" / f"{number}.txt").write_text(row["text"], encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(emoji[:40]), place / "heldout.parquet")
    for name in ("query.jpg", "cat.jpg"):
        shutil.copy(place / "photos" / "0" / "0.jpg", place / name)
    mixed = [f"  {name}: {{data: {name}, weight: {weight}}}\n" for name, weight in (("books", 3), ("other.txt", 1))]
    (place / "mix.yaml").write_text("".join(["sources:\n", *mixed]))
    for name in ("reports", "mine"):
        shutil.copytree(place / "books", place / name)
    (place / "wikitext.txt").write_text(text[-20_000:])
    return place


@pytest.fixture(scope="module")
def published(place: Path) -> Path:
    """The same with what README calls public models: small ones of their classes."""
    foreign.llama(place / "smollm2")
    for name in ("bert", "minilm"):
        foreign.bert(place / name)
    save_peer("dinov2", place / "dinov2")
    save_towers(place / "siglip", "siglip")
    return place


def start(command: str, place: Path) -> subprocess.CompletedProcess[str]:
    here = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{here}:{os.environ['PATH']}", "SELFSUP_CACHE": str(place / "cache")}
    return subprocess.run(command, shell=True, cwd=place, env=environment, text=True, capture_output=True)


def test_every_command_is_understood() -> None:
    """Its options, and the settings among its words; what it does is told by the long test below."""
    assert len(commands()) >= 10
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in commands():
        words = shlex.split(command)
        name, *given = words[words.index("selfsup") + 1 :]
        understood = known[name].make_context(name, given).params
        if name in ("train", "plan", "inspect"):
            split_words(understood["words"] or [], {})


@pytest.mark.long
def test_commands(published: Path) -> None:
    place = published
    for command in commands():
        if command.endswith("--resume runs/c"):  # README resumes what was interrupted; here it had time to finish
            continue
        ended = start(shortened(command), place)
        assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    from_readme = json.loads((place / "runs/c/summary.json").read_text())
    assert from_readme["steps"] == 9


def run_python(code: str, place: Path) -> str:
    (place / "code.py").write_text(code)
    ended = start(f"{sys.executable} code.py", place)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_python(place: Path) -> None:
    first, second = blocks("python")
    assert run_python(shortened(first), place).strip()
    needs = """
import selfsup
import torch
from own_objective import Circle
from selfsup.objectives.base import Task
from selfsup.seeding import generator
my_records, my_network = Circle(), torch.nn.Linear(2, 2)
"""
    shutil.copy(EXAMPLE, place)
    assert run_python(f"{needs}\n{shortened(second)}\nprint(run.summary['steps'])", place).strip() == "20"


def test_own_objective(place: Path) -> None:
    ended = start(f"{sys.executable} {EXAMPLE} runs/circle", place)
    assert ended.returncode == 0, ended.stderr
    figure = re.search(r"mean squared error (\d\.\d+)", ended.stdout)
    assert figure is not None
    assert float(figure[1]) < 1.5
