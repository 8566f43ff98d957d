"""What is shown of pairs of texts: against the training's own batch, loss and encoder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import widest
from looking import Page, Told, printed

import selfsup
from selfsup.data.sampler import draw
from selfsup.errors import UserError
from selfsup.inspection.alike import Alike
from selfsup.inspection.blocks import Tokens
from selfsup.objectives.pairs import PairsRecipe
from selfsup.report import Reporter
from selfsup.run import Run

SIZE = 20
ANIMALS, PLACES = ("cat", "dog", "hen", "owl", "fox"), ("mat", "bed", "sofa", "roof", "hill", "road")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pairs, of which six share a query with the one before them."""
    rows = [
        {
            "question": f"Where is the {animal}{'' if n % 5 == 1 else f' of {place}'}?",
            "answer": f"{animal} on the {place}",
        }
        for animal in ANIMALS
        for n, place in enumerate(PLACES)
    ]
    rows += [{"question": "Where is the cat?", "answer": f"It is in place {n}"} for n in range(4)]
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return selfsup.train(
        "pairs",
        data={"source": str(data), "tokenizer": "words", "window": 12},
        model={"layers": 1, "width": 16, "heads": 1},
        out=tmp_path_factory.mktemp("run") / "run",
        steps=8,
        batch=SIZE,
        precision="fp32",
        reporter=Reporter(False),
    )


def look(**arguments: object) -> Told:
    return Told(selfsup.inspect("pairs", **arguments))  # type: ignore[arg-type]


def test_pairs_are_those_of_the_first_step(run: Run) -> None:
    inspection = look(run=run.directory)
    recipe = PairsRecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.cut()
    _, places = draw(run.settings()["train.seed"], 0, SIZE, len(recipe.train))
    batch, tokenizer = recipe.train.read(places), recipe.corpus.tokenizer
    (block,) = inspection.of(Tokens)
    shown = [[token.text for token in line.tokens] for line in block.lines]
    for place, side in enumerate(("query", "passage")):
        rows = zip(batch[f"{side}_tokens"], batch[f"{side}_lengths"], strict=True)
        assert shown[place::2] == [tokenizer.tokens(row[:length].tolist()) for row, length in rows]
    assert [line.label for line in block.lines[:2]] == ["1 query", "1 passage"]


def test_figures_are_those_of_the_training(run: Run) -> None:
    """The loss of this batch before the first step, and who is whose negative."""
    inspection = look(run=run.directory)
    before, after = (Alike(**found) for found in inspection.found)
    assert (before.name, after.name) == ("before training", str(run.directory))
    queries = inspection.texts["query"]
    for i, row in enumerate(before.roles):
        for j, role in enumerate(row):
            assert role == ("+" if i == j else "=" if queries[i] == queries[j] else "-")
    assert any("=" in row for row in before.roles)
    similar = torch.tensor(before.similarity, dtype=torch.double) / inspection.temperature
    out = torch.tensor([[role == "=" for role in row] for row in before.roles])
    losses = [-m.masked_fill(out, -math.inf).log_softmax(1).diagonal().mean() for m in (similar, similar.T)]
    assert before.loss == pytest.approx(float(sum(losses)) / 2, rel=1e-4)
    assert after.loss < before.loss


def test_what_a_run_makes_of_texts_is_what_its_model_does(run: Run) -> None:
    inspection = look(run=run.directory)
    model = run.model
    model.features = type(model.features)(model.features.pooling)
    vectors = [model.embed(inspection.texts[side], precision="fp32") for side in ("query", "passage")]
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors)
    np.testing.assert_allclose(inspection.found[-1]["similarity"], one @ other.T, atol=1e-4)


def test_every_form(run: Run, tmp_path: Path) -> None:
    inspection = selfsup.inspect(run=run.directory, html=tmp_path / "page.html")
    told = json.loads(json.dumps(inspection.to_json()))
    assert told["objective"] == "pairs"
    shown = printed(Told(inspection), width=100)
    for word in ("Shown", "Hidden", "Predicted", "pairs of a batch", "the hardest negatives"):
        assert word in shown
    assert widest(printed(Told(inspection), width=60)) <= 60
    assert "hardest negatives" in Page((tmp_path / "page.html").read_text()).text


def test_crops_of_documents_without_a_run() -> None:
    texts = [
        " ".join(f"{animal} number {n} sat on the {place}." for n, place in enumerate(PLACES)) for animal in ANIMALS
    ]
    inspection = look(data=texts, tokenizer="words", pairs={"from": "crops"})
    assert "two random crops of a document" in inspection.facts
    assert len(inspection.texts["query"]) == len(inspection.texts["passage"]) >= 2


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="--text and --window say nothing to pairs"):
        look(text="A text.")
    with pytest.raises(UserError, match="There is one pair alone"):
        look(data=[{"title": "a", "body": "b"}], tokenizer="words", **{"data.validation": 0.0})
