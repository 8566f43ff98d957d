"""What is shown of TSDAE: against the training's own batch, its checkpoint and its loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import widest
from looking import Page, Told, printed

import selfsup
from selfsup.data.records import Batch
from selfsup.data.sampler import draw
from selfsup.inspection.blocks import Tokens
from selfsup.inspection.figures import means, trained
from selfsup.objectives.tsdae import Swapped, TSDAERecipe
from selfsup.report import Reporter
from selfsup.run import Run

SENTENCES = [
    f"The {animal} {verb} on the {place}."
    for animal in ("cat", "dog", "hen")
    for verb in ("sits", "sleeps", "sings")
    for place in ("mat", "bed", "sofa")
]
SIZE = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("tsdae")
    data = place / "sentences.txt"
    data.write_text("\n".join(SENTENCES) + "\n")
    return selfsup.train(
        "tsdae",
        data={"source": str(data), "tokenizer": "words"},
        model={"layers": 2, "width": 16, "heads": 1},
        out=place / "run",
        steps=8,
        batch=SIZE,
        precision="fp32",
        reporter=Reporter(False),
    )


def test_a_text() -> None:
    inspection = Told(selfsup.inspect("tsdae", text="A cat sleeps. The dog barks. Nobody came.", tokenizer="words"))
    content = json.loads(json.dumps(inspection.to_json()))
    assert content["objective"] == "tsdae"
    assert content["values"]["length"] == 3
    assert content["values"]["rebuilt"] == []
    assert list(content["values"]["figures"]) == ["before training"]
    assert widest(printed(inspection, width=60)) <= 60


def test_what_is_shown_is_what_is_trained(run: Run) -> None:
    """The sentences of the first step, what the vector is made without, and the losses of the run's own objective."""
    inspection = Told(selfsup.inspect(run=run.directory))
    recipe = TSDAERecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.cut()
    seed = run.settings()["train.seed"]
    epochs, places = draw(seed, 0, SIZE, len(recipe.train))
    objective = trained(recipe.build(), run.directory)
    task = objective.hide(Batch(Swapped(recipe.train).read(places), seed, epochs, places))
    names = recipe.corpus.tokenizer.tokens
    (block,) = inspection.of(Tokens)
    for row, line in enumerate(block.lines):
        left = [token.text for token in line.tokens if token.role != "neither"]
        assert left == names(task["damaged"][row, : int(task["damaged_lengths"][row])].tolist())
        assert [token.text for token in line.tokens] == names(task["tokens"][row, : int(task["lengths"][row])].tolist())
    with torch.inference_mode():
        expected = means(objective, objective.predict(task), task)
    assert inspection.figures[str(run.directory)] == pytest.approx(expected)
    assert inspection.figures["before training"] != pytest.approx(expected)
    assert (inspection.deletion, inspection.pooling) == (0.6, "cls")
    first = inspection.rebuilt[0]
    assert first["sentence"] == recipe.corpus.tokenizer.decode(task["tokens"][0, : int(task["lengths"][0])].tolist())


def test_a_page(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    selfsup.inspect(run=run.directory, html=page)
    text = Page(page.read_text(encoding="utf-8")).text
    assert "decoder makes of a vector" in text
    assert "from the vector of another sentence" in text
