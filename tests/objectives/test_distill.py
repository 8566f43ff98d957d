"""Distillation of vectors: its loss against sentence-transformers', its map, its teacher, and what a run leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Answer, Train, Trained
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import VOCABULARY, WIDTH, WORDS, save_tiny
from torch import Tensor, nn

import selfsup
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.encoder_layouts import save_encoder
from selfsup.models.features import Features
from selfsup.models.packing import POOLINGS, Pooling
from selfsup.objectives import find_recipe
from selfsup.objectives.base import Task
from selfsup.objectives.distill import Distill, DistillRecipe, Map
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.seeding import generator

ALONE = Processes.alone()
TEXTS = [f"{first} {second} {third}" for first in WORDS[1:7] for second in WORDS[7:12] for third in WORDS[12:15]]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder whose vectors have 32 numbers."""
    return Path(save_tiny(tmp_path_factory.mktemp("teachers") / "teacher"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


def taught(train: Train, out: Path, teacher: Path, data: Path, **given: Any) -> Run:
    return train(out, "distill", teacher=teacher, data=data, **{"tokenizer": "words", **given})


# -- the loss ------------------------------------------------------------------------------------------------


class Saying(nn.Module):
    """In place of a model of sentence-transformers: says what it is told to."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**30))
def test_terms_are_those_of_sentence_transformers(texts: int, numbers: int, seed: int) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    draws = torch.Generator().manual_seed(seed)
    vectors, answers = (torch.randn(texts, numbers, generator=draws, dtype=torch.double) for _ in range(2))
    vectors.requires_grad_()
    made = Distill(nn.Identity(), nn.Identity(), "mean", {})  # type: ignore[arg-type]
    found = made.score({"vectors": vectors}, Task({"answers": answers}, {}), ALONE)
    oracles = {"mse": losses.MSELoss(Saying()), "cosine": losses.EmbedDistillLoss(Saying(), distance_metric="cosine")}
    for term, oracle in oracles.items():
        expected = oracle([{"vectors": vectors}], answers)
        torch.testing.assert_close(found[term] / texts, expected)
        (gradient,) = torch.autograd.grad(found[term] / texts, vectors, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, vectors)
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_texts_alone(pooling: Pooling) -> None:
    """Each by itself through the encoder, pooled, and mapped by what is saved as its features."""
    config = EncoderConfig(20, 2, 16, 2, 24, 12, True, local_window=8)
    draws = generator(0, "weights")
    made = Distill(
        TextEncoder(config).double().initialise(draws), Map(16, [0.5, -1.0, 2.0], 0.3).initialise(draws), pooling, {}
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draws, dtype=torch.double))
    lengths = torch.tensor([4, 12, 2])
    tokens = torch.randint(1, 20, (3, 12), generator=draws)
    found = made.say(tokens, lengths)
    assert isinstance(made.map, Map)
    features = Features(pooling, *made.map.folded())
    for row, length, vector in zip(tokens, lengths.tolist(), found, strict=True):
        hidden = made.encoder(row[:length][None])[0]
        pooled = hidden.mean(0) if pooling == "mean" else hidden[-1 if pooling == "last" else 0]
        torch.testing.assert_close(features.map(pooled[None])[0], vector)


@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 2**30))
def test_a_map_that_is_taken_is_the_same_map(width: int, dimension: int, scale: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(dimension, width, generator=draws), torch.randn(dimension, generator=draws)
    x = torch.randn(4, width, generator=draws)
    for given_bias in (bias, None):
        made = Map(width, torch.randn(dimension, generator=draws).tolist(), scale).take(weight, given_bias)
        torch.testing.assert_close(made(x), F.linear(x, weight, given_bias), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(F.linear(x, *made.folded()), made(x), rtol=1e-4, atol=1e-4)


# -- a run ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_an_encoder_that_answers_as_its_teacher(
    train: Train, teacher: Path, lines: Path, tmp_path: Path
) -> None:
    run = taught(train, tmp_path / "run", teacher, lines, steps=120, batch=32, **{"evaluate.final_records": 4})
    student, master = selfsup.load(run), selfsup.load(teacher)
    assert isinstance(student, EncoderModel)
    assert isinstance(master, EncoderModel)
    assert student.dimension == master.dimension == WIDTH
    vectors, answers = (torch.from_numpy(model.embed(TEXTS, "fp32")) for model in (student, master))
    mse = float(F.mse_loss(vectors, answers) / answers.var(0, correction=0).mean())
    assert mse < 0.5  # of what the mean answer costs
    assert run.summary["loss"] < 0.5
    assert run.summary["chance"] == 1
    assert run.summary["max_difference"] < 1e-4
    assert {"mse", "cosine", "sentences_per_second"} <= run.metrics()[0].keys()
    assert "distillation of the vectors of teacher" in (run.model_directory / "README.md").read_text()
    sample = sorted(run.samples.glob("*.txt"))[-1].read_text()
    assert sample.startswith("mean cosine with the teacher's vectors of")
    resolved, plan = run.settings(), run.plan()
    assert resolved["distill.teacher"] == str(teacher)
    assert resolved["distill.kind"] == "a text encoder"
    assert resolved["distill.fingerprint"] == master.fingerprint
    assert plan["facts"]["teacher"].startswith(f"{teacher}, a text encoder of ")
    assert plan["facts"]["answers"].startswith("90 vectors of 32 numbers, fp32")
    assert not [name for name in run.checkpoints().newest().tensors["model"] if "teacher" in name]  # type: ignore[union-attr]


def test_other_libraries_find_the_same_vectors(train: Train, teacher: Path, lines: Path, tmp_path: Path) -> None:
    """With the map as a step of its own."""
    peers = pytest.importorskip("sentence_transformers")
    run = taught(train, tmp_path / "run", teacher, lines, steps=4)
    selfsup.export(run, to="sentence-transformers", out=tmp_path / "st")
    peer = peers.SentenceTransformer(str(tmp_path / "st"), device="cpu")
    own = selfsup.load(run)
    assert isinstance(own, EncoderModel)
    np.testing.assert_allclose(peer.encode(TEXTS[:5]), own.embed(TEXTS[:5], "fp32"), atol=1e-4)


def test_a_student_that_starts_from_its_teacher_needs_no_map(
    train: Train, teacher: Path, lines: Path, tmp_path: Path
) -> None:
    """It says at once what is to be said; in fp32, to rounding."""
    given = {"init": str(teacher), "tokenizer": str(teacher), "model": {}}
    run = taught(train, tmp_path / "run", teacher, lines, **given)
    start = next(line for line in run.metrics() if line["split"] == "validation")
    assert start["step"] == 0
    assert start["loss"] < 1e-6
    made = selfsup.load(run)
    assert isinstance(made, EncoderModel)
    assert made.features == Features("mean")


def test_the_map_of_a_start_is_gone_on_with(train: Train, teacher: Path, lines: Path, tmp_path: Path) -> None:
    """A student whose own states are narrower than the teacher's vectors, taught again by the same teacher."""
    narrow = {"model": {"layers": 1, "width": 16, "heads": 1}}
    first = taught(train, tmp_path / "first", teacher, lines, steps=60, batch=32, **narrow)
    given = {"init": str(first.directory), "tokenizer": str(first.model_directory), "model": {"freeze": ["encoder"]}}
    again = taught(train, tmp_path / "again", teacher, lines, **given)
    start = next(line for line in again.metrics() if line["split"] == "validation")
    assert start["loss"] == pytest.approx(first.summary["loss"], rel=1e-4)


def test_translations_are_answered_as_their_source(train: Train, teacher: Path, tmp_path: Path) -> None:
    foreign = {word: f"{word[::-1]}o" for word in WORDS}
    rows = [{"en": text, "it": " ".join(foreign[word] for word in text.split())} for text in TEXTS]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data.column": "en", "distill.columns": ["it"], "distill.cosine": 1.0, "data.validation": 0.0}
    run = taught(train, tmp_path / "run", teacher, data, steps=160, batch=32, **given)
    student, master = selfsup.load(run), selfsup.load(teacher)
    assert isinstance(student, EncoderModel)
    assert isinstance(master, EncoderModel)
    vectors = torch.from_numpy(student.embed([row["it"] for row in rows], "fp32"))
    answers = torch.from_numpy(master.embed(TEXTS, "fp32"))
    assert float(F.mse_loss(vectors, answers) / answers.var(0, correction=0).mean()) < 0.5
    assert run.plan()["facts"]["translations"] == "it"
    assert run.plan()["chance"] > 1
    assert "180 documents" in run.plan()["facts"]["data"]


# -- the teacher ---------------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_teacher(train: Train, teacher: Path, lines: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(teacher, own)
    run = taught(train, tmp_path / "run", own, lines)
    with pytest.raises(UserError, match=r"distill\.teacher cannot be given with --resume"):
        selfsup.train(resume=run.directory, steps=14, teacher=str(teacher), reporter=Reporter(False))
    shutil.rmtree(own)
    save_tiny(own, seed=1)
    with pytest.raises(UserError, match=r"The teacher .*own is not the one whose answers are learnt here"):
        selfsup.train(resume=run.directory, steps=14, reporter=Reporter(False))
    shutil.rmtree(own)
    assert run.settings()["distill.fingerprint"]
    assert selfsup.doctor(run).finished
    assert isinstance(run.model, EncoderModel)
    with pytest.raises(UserError, match=r"There is no .*own"):
        selfsup.train(resume=run.directory, steps=14, reporter=Reporter(False))
    shutil.copytree(teacher, own)
    assert selfsup.train(resume=run.directory, steps=14, reporter=Reporter(False)).summary["steps"] == 14


def test_the_recipe_follows_from_the_teacher(teacher: Path, trained: Trained, tmp_path: Path) -> None:
    assert find_recipe("distill") is DistillRecipe
    assert find_recipe("distill", {"distill": {"teacher": str(teacher)}}) is DistillRecipe
    assert find_recipe("distill", {"distill.kind": "a text encoder", "distill.teacher": "gone"}) is DistillRecipe
    with pytest.raises(UserError, match="There is no gone; give the directory of a run or of a model"):
        find_recipe("distill", {"teacher": "gone"})
    with pytest.raises(UserError, match="gone holds a horse, and distill learns from a text encoder"):
        find_recipe("distill", {"distill.kind": "a horse", "distill.teacher": "gone"})


def test_another_kind_than_is_said_is_refused(train: Train, trained: Trained, lines: Path, tmp_path: Path) -> None:
    run = trained("causal-lm")
    with pytest.raises(UserError, match="holds a decoder; give the run of a text encoder"):
        taught(train, tmp_path / "run", run.directory, lines, **{"distill.kind": "a text encoder"})


def test_a_run_without_a_teacher_is_refused(train: Train, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the run or model directory of one by --teacher"):
        train(tmp_path / "run", "distill", data=lines)
    assert not (tmp_path / "run").exists()


def test_no_weight_at_all_is_refused(train: Train, teacher: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are both 0, so nothing is learnt"):
        taught(train, tmp_path / "run", teacher, lines, **{"distill.mse": 0})


def test_the_command(teacher: Path, lines: Path, tmp_path: Path, selfsup_command: Any) -> None:
    words = ["--data", lines, "--out", tmp_path / "run", "--tokenizer", "words", "--steps", 3, "--batch", 8]
    answer: Answer = selfsup_command("train", "distill", "--teacher", teacher, *words, "model=0.1m")
    assert answer.code == 0, answer
    assert "What it says beside its teacher:" in answer.out
    assert "Try: selfsup index" in answer.out


# -- how it is looked at -------------------------------------------------------------------------------------


def test_inspection(train: Train, teacher: Path, lines: Path, tmp_path: Path) -> None:
    run = taught(train, tmp_path / "run", teacher, lines, steps=60, batch=32)
    before = selfsup.inspect("distill", data=str(lines), teacher=str(teacher), tokenizer="words")
    assert before.values["texts"]
    after = selfsup.inspect(run=run.directory)
    first, last = after.values["networks"]
    assert (first["name"], last["name"]) == ("before training", str(run.directory))
    assert last["loss"] < first["loss"]
    master = selfsup.load(teacher)
    assert isinstance(master, EncoderModel)
    texts = [text.removeprefix("[CLS] ").removesuffix(" [SEP]") for text in after.values["texts"]]
    answers = F.normalize(torch.from_numpy(master.embed(texts, "fp32")), dim=1)
    student = selfsup.load(run)
    assert isinstance(student, EncoderModel)
    vectors = F.normalize(torch.from_numpy(student.embed(texts, "fp32")), dim=1)
    np.testing.assert_allclose(last["similarity"], vectors @ answers.T, atol=1e-4)
    assert "answers of" in after.to_html()
    with pytest.raises(UserError, match="looks at data, of which the teacher is asked"):
        selfsup.inspect("distill", text="the cat ran", teacher=str(teacher), tokenizer="words")


def test_a_teacher_reads_more_than_words_here_know(tmp_path: Path, train: Train, lines: Path) -> None:
    """It reads with its own tokenizer, whatever the student's is, behind its prompt of documents, and may map its
    states."""
    tokenizer = train_tokenizer("characters", [VOCABULARY], family="encoder")
    config = EncoderConfig(tokenizer.vocabulary, 1, 16, 2, 24, 40, True)
    encoder = TextEncoder(config).initialise(generator(0, "weights"))
    weight = torch.randn(7, 16, generator=generator(1, "map"))
    features = Features("mean", weight, prompts={"document": "old "})
    save_encoder(tmp_path / "teacher", encoder, tokenizer, features, "A teacher.")
    run = taught(train, tmp_path / "run", tmp_path / "teacher", lines, **{"distill.pooling": "last"})
    made = selfsup.load(run)
    assert isinstance(made, EncoderModel)
    assert (made.dimension, made.features.pooling, dict(made.features.prompts)) == (7, "last", {})
    recipe, master = DistillRecipe(run.settings()), selfsup.load(tmp_path / "teacher")
    recipe.open(lambda done, total: None)
    assert isinstance(master, EncoderModel)
    np.testing.assert_allclose(
        recipe.answered.vectors, master.embed([f"old {text}" for text in TEXTS], "fp32"), atol=1e-5
    )
