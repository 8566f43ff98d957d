"""A table of token vectors that pairs train from nothing: how it starts, what it learns, what is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Train
from sentence_transformers import SentenceTransformer
from test_resume import Crash, CrashAt, assert_same

import selfsup
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.objectives import resolve
from selfsup.objectives.pairs import PairsRecipe
from selfsup.objectives.recipe import Effort
from selfsup.objectives.static import SIF
from selfsup.seeding import generator

SHAPE = {"model": "static", "model.width": 32, "pairs.from": "crops", "data.window": 24}


def recipe(corpus: Path, **more: Any) -> PairsRecipe:
    given = {"objective": "pairs", "data": str(corpus), "precision": "fp32", **SHAPE, **more}
    made = PairsRecipe(resolve(("test", given)))
    made.open(lambda done, total: None)
    made.settle(Effort(epochs=1))
    return made


@pytest.fixture(scope="module")
def learn(train: Train) -> Train:
    """`learn(out, …)`: a training of a second."""

    def begin(out: Path, **more: Any) -> selfsup.Run:
        return train(out, "pairs", **{**SHAPE, "batch": 32, **more})

    return begin


@pytest.fixture(scope="module")
def run(learn: Train, tmp_path_factory: pytest.TempPathFactory) -> selfsup.Run:
    return learn(tmp_path_factory.mktemp("static-pairs") / "run", steps=60)


def test_the_start_is_drawn_and_weighed(corpus: Path) -> None:
    """Each token is as long as its share of the training part says, by a count of its own."""
    made = recipe(corpus)
    table = made.build().encoder.embedding.weight.detach()
    tokenizer, stream = made.corpus.tokenizer, np.asarray(made.corpus.train).tolist()
    around = {tokenizer.start, tokenizer.end}
    counts = [1 + (0 if token in around else stream.count(token)) for token in range(tokenizer.vocabulary)]
    weights = torch.tensor([SIF / (SIF + count / sum(counts)) for count in counts])
    drawn = torch.randn(table.shape, generator=generator(made.settings["train.seed"], "weights"))
    torch.testing.assert_close(table, weights[:, None] * drawn)


def test_it_learns(run: selfsup.Run) -> None:
    found = [line["found"] for line in run.metrics() if line["split"] == "validation"]
    assert found[-1] > found[0]


def test_sentence_transformers_opens_it(run: selfsup.Run, documents: list[str]) -> None:
    """With the map that whitens as a step behind the table."""
    texts = [*documents[:9], "unheard of"]
    theirs = SentenceTransformer(str(run.model_directory), device="cpu", local_files_only=True)
    ours = load_as(run.directory, EncoderModel).embed(texts)
    np.testing.assert_allclose(ours, theirs.encode(texts, show_progress_bar=False), atol=1e-5, rtol=1e-5)


def test_vectors_can_be_cut(learn: Train, tmp_path: Path) -> None:
    cut = learn(tmp_path / "run", steps=4, **{"pairs.dimensions": (8,)})
    assert load_as(cut.directory, EncoderModel).features.dimensions == (8, 32)


def test_a_crash_changes_nothing(learn: Train, resume: Train, tmp_path: Path) -> None:
    whole = learn(tmp_path / "whole", steps=12)
    with pytest.raises(Crash):
        learn(tmp_path / "cut", steps=12, reporter=CrashAt(8))
    resume(tmp_path / "cut")
    assert_same(selfsup.Run(tmp_path / "cut"), whole)


@pytest.mark.parametrize("given", [{"pairs.pooling": "cls"}, {"model.layers": 2}, {"init": "x"}])
def test_what_means_nothing_is_refused(given: dict[str, Any], corpus: Path) -> None:
    with pytest.raises(UserError, match="has no use for"):
        recipe(corpus, **given)
