"""A table of token vectors as a student: how it starts, what it learns, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
import transformers
from conftest import Answer, Train
from sentence_transformers import SentenceTransformer
from test_resume import Crash, CrashAt, assert_same

import selfsup
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.objectives import resolve
from selfsup.objectives.distill import DistillRecipe
from selfsup.objectives.recipe import Effort
from selfsup.objectives.static import SIF, principal, weighed

WIDTH = 32  # of the teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign.bert(tmp_path_factory.mktemp("teacher") / "bert", "BertModel")


@pytest.fixture(scope="module")
def learn(train: Train, teacher: Path) -> Train:
    """`learn(out, …)`: a training of a second."""
    given = {"teacher": teacher, "model": "static", "data.tokenizer": str(teacher), "data.window": 24, "batch": 16}

    def begin(out: Path, **more: Any) -> selfsup.Run:
        return train(out, "distill", **{**given, **more})

    return begin


@pytest.fixture(scope="module")
def run(learn: Train, tmp_path_factory: pytest.TempPathFactory) -> selfsup.Run:
    return learn(tmp_path_factory.mktemp("static") / "run", epochs=3)


def recipe(teacher: Path, corpus: Path, **more: Any) -> DistillRecipe:
    given = {"data": str(corpus), "teacher": str(teacher), "model": "static", "precision": "fp32", **more}
    made = DistillRecipe(resolve(("test", {"objective": "distill", **given})))
    made.open(lambda done, total: None)
    made.settle(Effort(epochs=1))
    return made


# -- the start -----------------------------------------------------------------------------------------------


def plain_start(teacher: Path, documents: list[str]) -> np.ndarray:
    """The start as its formula says, token by token and text by text, by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    network = transformers.AutoModel.from_pretrained(teacher).eval()

    def says(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return network(torch.tensor([[2, *ids, 3]])).last_hidden_state[0].mean(0).double().numpy()

    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    alone = np.stack([says([token]) for token in range(len(tokenizer))])
    every = [token for text in texts for token in text]
    shares = np.array([(every.count(token) + 1) / (len(every) + len(tokenizer)) for token in range(len(tokenizer))])
    weights = 1e-4 / (1e-4 + shares)
    mean = sum(w * p * t for w, p, t in zip(weights, shares, alone, strict=True)) / (weights * shares).sum()
    rows = np.stack([w * (t - mean) for w, t in zip(weights, alone, strict=True)])
    answers = np.stack([says(text) for text in texts])
    center = answers.mean(0)
    means = np.stack([rows[text].mean(0) for text in texts])
    factor = np.linalg.lstsq(means.reshape(-1, 1), (answers - center).reshape(-1), rcond=None)[0].item()
    return center + factor * rows


@pytest.mark.filterwarnings("ignore")
def test_the_start_is_that_of_the_formula(teacher: Path, documents: list[str], corpus: Path) -> None:
    """Of all texts: none is held out."""
    made = recipe(teacher, corpus, **{"data.validation": 0.0})
    found = made.build().encoder.embedding.weight.detach()
    np.testing.assert_allclose(found.numpy(), plain_start(teacher, documents), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(made.build().encoder.embedding.weight.detach(), found, rtol=0, atol=0)


def test_rare_tokens_are_the_longest() -> None:
    alone = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.0, SIF, 0.5, 0.5 - SIF])
    mean = sum((SIF / (SIF + share) * share * t for share, t in zip(shares, alone, strict=True)), torch.zeros(3))
    mean = mean / sum(SIF / (SIF + share) * share for share in shares)
    torch.testing.assert_close(weighed(alone, shares)[0], alone[0] - mean)
    torch.testing.assert_close(weighed(alone, shares)[1], (alone[1] - mean) / 2)


def test_principal_directions_keep_most() -> None:
    draws = np.random.default_rng(0)
    vectors = (draws.standard_normal((50, 2)) @ draws.standard_normal((2, 6))).astype(np.float32)
    directions = principal(vectors, 2)
    np.testing.assert_allclose(directions.T @ directions, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(vectors @ directions @ directions.T, vectors, atol=1e-4)
    assert np.linalg.norm(vectors @ directions[:, 0]) > np.linalg.norm(vectors @ directions[:, 1])


def test_a_narrower_table_lies_in_the_teachers_space(teacher: Path, corpus: Path) -> None:
    made = recipe(teacher, corpus, **{"model.width": 5})
    objective = made.build()
    data = made.train.read(np.arange(4))
    pooled, said = objective.encoder.pooled, objective.say(data["tokens"], data["lengths"])
    assert said.shape == (4, WIDTH)
    flat = torch.cat([row[:length] for row, length in zip(data["tokens"], data["lengths"], strict=True)])
    own = pooled(flat, data["lengths"])
    assert own.shape == (4, 5)
    torch.testing.assert_close(own @ own.T, said @ said.T, atol=1e-4, rtol=1e-4)
    assert all("directions" not in name for name in objective.state_dict())


# -- a training ----------------------------------------------------------------------------------------------


def test_it_learns_and_is_opened_by_sentence_transformers(run: selfsup.Run, documents: list[str]) -> None:
    losses = [line["loss"] for line in run.metrics() if line["split"] == "validation"]
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] < 1  # what the mean of all answers costs
    model = load_as(run.directory, EncoderModel)
    theirs = SentenceTransformer(str(run.model_directory), device="cpu", local_files_only=True)
    texts = [*documents[:9], "", "unheard of"]
    expected = theirs.encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(model.embed(texts), expected, atol=1e-6)
    assert "config.json" not in {path.name for path in run.model_directory.iterdir()}


def test_a_narrow_one_keeps_its_own_numbers(learn: Train, tmp_path: Path) -> None:
    narrow = learn(tmp_path / "run", steps=3, **{"model.width": 6})
    model = load_as(narrow.directory, EncoderModel)
    assert model.embed(["the cat"]).shape == (1, 6)


def test_a_crash_changes_nothing(learn: Train, resume: Train, tmp_path: Path) -> None:
    whole = learn(tmp_path / "whole", steps=12)
    with pytest.raises(Crash):
        learn(tmp_path / "cut", steps=12, reporter=CrashAt(8))
    resume(tmp_path / "cut")
    assert_same(selfsup.Run(tmp_path / "cut"), whole)


def test_it_is_measured_and_exported(run: selfsup.Run, tmp_path: Path) -> None:
    rows = [
        {"sentence1": f"the {one} ran", "sentence2": f"the {other} ran", "score": float(one == other)}
        for one in ("cat", "dog", "fox")
        for other in ("cat", "dog", "hen")
    ]
    found = selfsup.evaluate(run.directory, protocol="sts", data=rows)
    assert found.n == len(rows)
    exported = selfsup.export(run, out=tmp_path / "out")
    assert exported.max_difference is not None
    assert exported.max_difference < 1e-5


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model.width": WIDTH + 1}, "have 32 numbers, so model.width cannot be 33; give 32 or less"),
        ({"distill.pooling": "cls"}, "has no use for distill.pooling here"),
        ({"model.layers": 2}, "has no use for model.layers here"),
        ({"init": "x"}, "has no use for model.init here"),
    ],
)
def test_what_it_does_not_take(given: dict[str, Any], message: str, teacher: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match=message):
        recipe(teacher, corpus, **given)


@pytest.mark.parametrize("objective", ["masked-lm", "simcse"])
def test_other_objectives_refuse_it(
    objective: str, corpus: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]
) -> None:
    answer = selfsup_command("train", objective, "--data", corpus, "--out", tmp_path / "run", "model=static")
    assert answer.code == 2
    assert "train it by pairs, or by distill" in answer.error


def test_it_is_no_teacher_of_its_like_and_no_start(run: selfsup.Run, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a table of token vectors already"):
        selfsup.train("distill", data=corpus, teacher=run.directory, model="static", out=tmp_path / "run")
    with pytest.raises(UserError, match="holds a table of token vectors, and simcse starts from"):
        selfsup.train("simcse", data=corpus, init=run.directory, out=tmp_path / "run")
