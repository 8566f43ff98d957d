"""What a run keeps: its files, its checkpoints, and what lies in the cache."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from damage import of_bytes, of_json_text

import selfsup
from selfsup import planning
from selfsup.data.cache import cache_directory, kept_table
from selfsup.data.corpora import open_prepared
from selfsup.data.text import prepare_text
from selfsup.files import checksum
from selfsup.report import Reporter
from selfsup.saving import MANIFEST

DOCUMENTS = [
    f"The {animal} {verb} on day {day}." for animal in ("cat", "dog") for verb in ("ran", "sat") for day in range(30)
]
TINY: dict[str, Any] = {
    "tokenizer": "characters",
    "model": {"layers": 1, "width": 32, "heads": 1},
    "data.window": 16,
    "batch": 4,
    "steps": 8,
    "precision": "fp32",
    "train.log_every": 1,
    "checkpoint.every": 2,
    "evaluate.every": 4,
    "evaluate.records": 8,
    "evaluate.final_records": 8,
}


def finished() -> Path:
    """A finished run."""
    from surfaces_models import made

    def train(path: Path) -> None:
        planning.CALIBRATION_SECONDS = 0.02
        selfsup.train("causal-lm", data=DOCUMENTS, out=path, reporter=Reporter(False), **TINY)

    return made("run", train)


def stopped(place: Path) -> Path:
    """The same run as it was when it was killed before its last steps."""
    run = place / "run"
    shutil.copytree(finished(), run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-000000008", ignore_errors=True)
    return run


def resumed_alike(run: Path) -> None:
    """Go on with a run; what comes out is what came out of the one that was not damaged."""
    selfsup.train(resume=run, data=DOCUMENTS, reporter=Reporter(False))
    alike = checksum(run / "model" / "model.safetensors") == checksum(finished() / "model" / "model.safetensors")
    assert alike, "the resumed run ends with another model"


def checkpoints(random: Random, place: Path) -> None:
    """A checkpoint with a damaged file, its manifest as it was or made to fit."""
    run = stopped(place)
    checkpoint = random.choice(sorted((run / "checkpoints").iterdir()))
    file = random.choice(sorted(checkpoint.iterdir()))
    before = file.read_bytes()
    file.write_bytes((of_json_text if file.suffix == ".json" else of_bytes)(before, random))
    if file.name != MANIFEST and random.random() < 0.4:
        entries = json.loads((checkpoint / MANIFEST).read_text())
        entries[file.name] = {"size": file.stat().st_size, "checksum": checksum(file)}
        (checkpoint / MANIFEST).write_text(json.dumps(entries))
        selfsup.train(resume=run, data=DOCUMENTS, reporter=Reporter(False))
        return
    resumed_alike(run)


FILES = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")


def run_files(random: Random, place: Path) -> None:
    """A file of a run is damaged; the run is looked at in every way, then gone on with."""
    name = random.choice(FILES)
    run = place / "run"
    shutil.copytree(finished(), run)
    file = run / name
    text = file.read_bytes()
    if name.endswith(".jsonl") and random.random() < 0.5:
        lines = text.split(b"\n")
        number = random.randrange(len(lines) - 1)
        lines[number] = of_json_text(lines[number], random)
        file.write_bytes(b"\n".join(lines))
    else:
        file.write_bytes((of_json_text if name.endswith(".json") else of_bytes)(text, random))
    use = random.randrange(5)
    opened = selfsup.Run.open(run)
    if use == 0:
        selfsup.compare([run, finished()])
    elif use == 1:
        selfsup.doctor(run)
    elif use == 2:
        selfsup.evaluate(run, data=DOCUMENTS[:4])
    elif use == 3:
        _ = (opened.settings(), opened.environment(), opened.summary, opened.metrics(), opened.journal())
    else:
        selfsup.train(resume=run, data=DOCUMENTS, steps=10, reporter=Reporter(False))


# -- the cache -----------------------------------------------------------------------------------------------


def text_cache(random: Random, place: Path) -> None:
    """Prepared text that is damaged is prepared anew, whatever is wrong with it."""
    os.environ["SELFSUP_CACHE"] = str(place / "cache")
    logging.disable(logging.ERROR)
    before = prepare_text(DOCUMENTS, tokenizer="characters")
    tokens = np.array(before.train)
    del before
    files = sorted(path for path in (place / "cache").rglob("*") if path.is_file() and path.stat().st_size)
    file = random.choice(files)
    damage = of_json_text if file.suffix == ".json" else of_bytes
    file.write_bytes(damage(file.read_bytes(), random))
    after = prepare_text(DOCUMENTS, tokenizer="characters")
    assert np.array_equal(tokens, after.train), "damaged tokens are trained on"
    assert after.tokenizer.decode(after.tokenizer.encode(DOCUMENTS[0])) == DOCUMENTS[0], "a damaged tokenizer is used"


def corpora(random: Random, place: Path) -> None:
    """A prepared corpus with a damaged file: its tokens are what they were, or it is refused."""
    from surfaces_models import made

    def prepare(path: Path) -> None:
        (place / "texts.txt").write_text("\n".join(DOCUMENTS))
        selfsup.prepare(data=place / "texts.txt", out=path, tokenizer="characters", workers=1)

    whole = made("corpus", prepare)
    shutil.copytree(whole, place / "corpus")
    files = [path for path in (place / "corpus").rglob("*") if path.is_file() and path.suffix != ".md"]
    file = random.choice(sorted(files))
    damage = of_json_text if file.suffix == ".json" else of_bytes
    file.write_bytes(damage(file.read_bytes(), random))
    found, before = open_prepared(place / "corpus").corpus, open_prepared(whole).corpus
    for stream, plain in ((found.train, before.train), (found.validation, before.validation)):
        assert np.array_equal(np.asarray(stream), np.asarray(plain)), "damaged tokens are trained on"
    assert found.tokenizer.fingerprint == before.tokenizer.fingerprint, "a damaged tokenizer is used"


def image_cache(random: Random, place: Path) -> None:
    """A damaged index of images is made anew."""
    os.environ["SELFSUP_CACHE"] = str(place / "cache")
    table = pa.table({"hash": np.arange(500), "path": [f"{number}.png" for number in range(500)]})
    kept_table("images", ["key"], lambda: table)
    file = next(path for path in cache_directory().rglob("*") if path.is_file())
    file.write_bytes(of_bytes(file.read_bytes(), random))
    assert kept_table("images", ["key"], lambda: table).equals(table), "a damaged index is used"
