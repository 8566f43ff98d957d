"""The Python and the harness's task of docs/handover.md, run as they are written, on small models and little data."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Train

import selfsup

PAGE = (Path(__file__).parent.parent / "docs" / "handover.md").read_text(encoding="utf-8")


def block(language: str, holding: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (only,) = [text for text in found if holding in text]
    return str(only)


def run(place: Path, *command: str) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "cache"), "MTEB_CACHE": str(place)}
    ended = subprocess.run(command, cwd=place, env=environment, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def run_python(place: Path, holding: str) -> str:
    (place / "code.py").write_text(block("python", holding), encoding="utf-8")
    return run(place, sys.executable, "code.py").splitlines()[-1]


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")


@pytest.fixture(scope="module")
def place(train: Train, documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the page speaks of."""
    place = tmp_path_factory.mktemp("handover")
    train(place / "runs" / "reviews", "masked-lm")
    train(place / "runs" / "decoder", "causal-lm")
    selfsup.export(place / "runs" / "reviews", out=place / "emb-st")
    short = list(dict.fromkeys(" ".join(text.split()[1:3]) for text in documents))  # "cat ran"
    pairs = [(first, second) for first in short[:3] for second in short[3:11]]
    sts = {
        "sentence1": [first for first, _ in pairs],
        "sentence2": [second for _, second in pairs],
        "score": [float(number % 6) for number in range(len(pairs))],
    }
    (place / "stsb").mkdir()
    pq.write_table(pa.table(sts), place / "stsb" / "test.parquet")
    reviews = {"text": documents, "label": [int("cat" in text or "dog" in text) for text in documents]}
    pq.write_table(pa.table(reviews), place / "movie-reviews.parquet")
    (place / "pages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents[:20]))
    return place


def test_mteb(place: Path) -> None:
    needs("mteb")
    theirs = eval(run_python(place, "import mteb"))["cosine_spearman"]
    ours = selfsup.evaluate(place / "emb-st", protocol="sts", data=place / "stsb" / "test.parquet").value / 100
    assert theirs == pytest.approx(ours, abs=1e-4)


def test_fine_tuning(place: Path) -> None:
    assert float(run_python(place, "Trainer(")) > 0.4


def test_lm_evaluation_harness(place: Path) -> None:
    needs("lm_eval")
    (place / "tasks").mkdir()
    (place / "tasks" / "pages.yaml").write_text(block("yaml", "task: pages"), encoding="utf-8")
    (command,) = re.findall(r"^\$ lm-eval (.*)$", PAGE, re.MULTILINE)
    table = run(place, sys.executable, "-m", "lm_eval", *command.split())
    theirs = re.search(r"bits_per_byte\s*\|↓\s*\|\s*([\d.]+)", table)
    assert theirs is not None
    ours = selfsup.evaluate(place / "runs" / "decoder", protocol="bits-per-byte", data=place / "pages.jsonl")
    # Here the closing token counts, and documents are packed into windows.
    assert float(theirs[1]) == pytest.approx(ours.value, rel=0.05)
