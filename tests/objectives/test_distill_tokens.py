"""Distillation of decoders: its loss against plain distributions of full logits, its task, its recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import selfsup
from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.inference.generate import LanguageModel
from selfsup.models import losses
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.losses import IGNORE, Divergences, Said, linear_cross_entropy, linear_distillation
from selfsup.objectives.causal_lm import CausalLM
from selfsup.objectives.distill_tokens import TokenDistillation, TokenDistillationRecipe
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import TOKENS_PER_PARAMETER
from selfsup.objectives.teachers import beside_teacher
from selfsup.run import Run
from selfsup.seeding import generator

ALONE = Processes.alone()
END, VOCABULARY, WINDOW = 0, 9, 10


# -- the loss ------------------------------------------------------------------------------------------------


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def example(
    n: int,
    rows: tuple[int, int],
    seed: int = 0,
    ignored: float = 0.3,
    caps: tuple[float | None, float | None] = (None,) * 2,
) -> tuple[Said, Said, Tensor]:
    """What a student and a teacher of other widths say, each with so many rows in its matrix, and the tokens that came,
    of which a share is ignored."""
    student = Said(drawn(seed, n, 3), drawn(seed + 1, rows[0], 3), caps[0])
    teacher = Said(drawn(seed + 2, n, 5), drawn(seed + 3, rows[1], 5), caps[1])
    draws = torch.Generator().manual_seed(seed)
    targets = torch.randint(min(rows), (n,), generator=draws)
    targets[torch.rand(n, generator=draws) < ignored] = IGNORE
    return student, teacher, targets


def logits(said: Said) -> Tensor:
    full = said.hidden @ said.weight.T
    return full if said.cap is None else said.cap * torch.tanh(full / said.cap)


def plain(student: Said, teacher: Said, targets: Tensor, temperature: float, hard: float) -> Divergences:
    """Token by token, of full distributions; what the teacher has no row for is impossible to it."""
    own, theirs = logits(student), logits(teacher)[:, : len(student.weight)]
    missing = theirs.new_full((len(theirs), own.shape[1] - theirs.shape[1]), -torch.inf)
    theirs = torch.cat((theirs, missing), 1)
    sums = [torch.zeros((), dtype=torch.double) for _ in range(4)]
    for token in range(len(targets)):
        wanted = int(targets[token])
        if wanted == IGNORE:
            continue
        p, q = (torch.softmax(each[token] / temperature, 0) for each in (theirs, own))
        possible = p > 0
        soft = -(p[possible] * q[possible].log()).sum()
        divergence = (p[possible] * (p[possible] / q[possible]).log()).sum()
        plain_q, plain_p = (torch.softmax(each[token], 0)[wanted] for each in (own, theirs))
        loss = (1 - hard) * temperature**2 * soft - hard * plain_q.log()
        found = loss, divergence, -plain_q.log(), -plain_p.log()
        sums = [total + value for total, value in zip(sums, found, strict=True)]
    return Divergences(*sums)


def with_gradients(
    function: Any, student: Said, teacher: Said, targets: Tensor, *how: float
) -> tuple[Divergences, Tensor | None, Tensor | None]:
    """The sums, and the gradients of the student where something stands behind the loss that scales them."""
    hidden, weight = student.hidden.clone().requires_grad_(), student.weight.clone().requires_grad_()
    found = function(Said(hidden, weight, student.cap), teacher, targets, *how)
    (found.loss * 0.37).backward()
    return Divergences(*(value.detach() for value in found)), hidden.grad, weight.grad


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 12),
    rows=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    hard=st.sampled_from([0.0, 0.3, 1.0]),
    caps=st.tuples(*[st.sampled_from([None, 2.0])] * 2),
    ignored=st.sampled_from([0.0, 0.5]),
    chunk=st.integers(1, 60),
    block=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_equals_the_plain_loss_for_any_sizes_and_chunks(
    n: int,
    rows: tuple[int, int],
    temperature: float,
    hard: float,
    caps: tuple[float | None, float | None],
    ignored: float,
    chunk: int,
    block: int,
    seed: int,
) -> None:
    inputs = example(n, rows, seed, ignored, caps)
    if (inputs[2] == IGNORE).all():
        inputs[2][0] = 0
    expected = with_gradients(plain, *inputs, temperature, hard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK_ELEMENTS", chunk)
        patch.setattr(losses, "BLOCK_ELEMENTS", block)
        found = with_gradients(linear_distillation, *inputs, temperature, hard)
    for ours, theirs in zip((*found[0], *found[1:]), (*expected[0], *expected[1:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_hard_share_alone_is_the_ordinary_loss() -> None:
    student, teacher, targets = example(40, (8, 8))
    found = linear_distillation(student, teacher, targets, temperature=3.0, hard=1.0)
    expected = linear_cross_entropy(student.hidden, student.weight, targets)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.cross_entropy, expected)


def test_who_says_the_same_is_at_the_bottom() -> None:
    """No divergence, and no gradient."""
    student, _, targets = example(20, (8, 8))
    found, hidden, weight = with_gradients(linear_distillation, student, student, targets, 2.0, 0.0)
    assert abs(float(found.divergence)) < 1e-12
    for gradient in (hidden, weight):
        assert gradient is not None
        assert gradient.abs().max() < 1e-12


def test_the_figures_and_the_teacher_have_no_gradient() -> None:
    student, teacher, targets = example(20, (8, 8))
    for said in (student, teacher):
        said.hidden.requires_grad_()
        said.weight.requires_grad_()
    found = linear_distillation(student, teacher, targets)
    assert [value.requires_grad for value in found] == [True, False, False, False]
    found.loss.backward()
    assert teacher.hidden.grad is None
    assert teacher.weight.grad is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precisions_stay_near_fp64(dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured against the exact loss of the rounded inputs, relative to the largest entry; sums are fp32."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 64 * 20)
    *pair, targets = example(200, (64, 64))
    narrow = [Said(said.hidden.to(dtype), said.weight.to(dtype)) for said in pair]
    wide = [Said(said.hidden.double(), said.weight.double()) for said in narrow]
    found = with_gradients(linear_distillation, *narrow, targets, 1.0, 0.3)
    expected = with_gradients(plain, *wide, targets, 1.0, 0.3)
    assert found[0].loss.dtype == torch.float32
    for ours, theirs in zip((*found[0], *found[1:]), (*expected[0], *expected[1:]), strict=True):
        assert ours is not None
        assert (ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_full_logits_never_stand_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the softmax has more rows than a chunk."""
    rows: list[int] = []
    softmax = torch.log_softmax

    def watched(values: Tensor, *given: Any, **named: Any) -> Tensor:
        rows.append(len(values))
        return softmax(values, *given, **named)

    student, teacher, targets = example(50, (8, 8))
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 8 * 7)
    monkeypatch.setattr(torch, "log_softmax", watched)
    with_gradients(linear_distillation, student, teacher, targets, 2.0, 0.5)
    assert max(rows) == 7


# -- the task ------------------------------------------------------------------------------------------------


def decoder(seed: int, layers: int, width: int) -> Decoder:
    """In fp64, with weights that are all random."""
    made = Decoder(DecoderConfig(VOCABULARY, layers, width, 2, 2, 4, 16, WINDOW, False)).double()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(seed, "noise", number))
            parameter.copy_(noise * 0.5 + (parameter.ndim == 1))
    return made


def objective(temperature: float = 1.0, hard: float = 0.0) -> TokenDistillation:
    return TokenDistillation(decoder(0, 2, 8), decoder(1, 1, 12), END, END, temperature, hard)


def batch() -> Batch:
    """Two windows; the first holds parts of three documents, the second begins inside one and counts in part."""
    tokens = torch.tensor([[0, 5, 6, 0, 7, 3, 3, 0, 2, 1, 4], [5, 6, 8, 7, 8, 1, 2, 3, 4, 5, 6]])
    rows = np.arange(2)
    return Batch({"tokens": tokens, "first": torch.tensor([0, 4])}, 0, np.zeros_like(rows), rows)


def test_the_task_is_that_of_causal_lm() -> None:
    made, expected = objective().hide(batch()), CausalLM(decoder(0, 2, 8), END, END).hide(batch())
    for name in expected.tensors:
        assert torch.equal(made[name], expected[name])
    assert {int(count) for count in made.counts.values()} == {int(expected.counts["cross_entropy"])}


def test_student_and_teacher_see_the_document_alone() -> None:
    """Each position says what it says of its document in a row of its own."""
    found = objective().predict(objective().hide(batch()))
    document = torch.tensor([[0, 7, 3, 3]])  # the second document of the first window, from its start token on
    for name, model in (("hidden", decoder(0, 2, 8)), ("taught", decoder(1, 1, 12))):
        torch.testing.assert_close(found[name][0, 3:7], model(document)[0])


@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (2.0, 0.25)])
def test_the_score_is_the_plain_one(temperature: float, hard: float) -> None:
    made = objective(temperature, hard)
    task = made.hide(batch())
    outputs = made.predict(task)
    sums = made.score(outputs, task, ALONE)
    student, teacher = decoder(0, 2, 8), decoder(1, 1, 12)
    said = Said(outputs["hidden"].flatten(0, 1), student.output_weight)
    taught = Said(outputs["taught"].flatten(0, 1), teacher.output_weight)
    expected = plain(said, taught, task["targets"].flatten(), temperature, hard)
    for value, wanted in zip(sums.values(), expected, strict=True):
        torch.testing.assert_close(value, wanted)
    assert [made.weights.get(term, 1.0) for term in sums] == [1.0, 0.0, 0.0, 0.0]


def test_the_teacher_is_no_part_of_what_is_trained_and_kept() -> None:
    made, own = objective(), decoder(0, 2, 8)
    assert {*made.state_dict()} == {f"model.{name}" for name in own.state_dict()}
    assert len(list(made.parameters())) == len(list(own.parameters()))
    assert not made.train().teacher.training
    assert made.to(torch.float32).teacher.output_weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())


# -- the recipe ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distilled(finished: Run, train: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A student of the smallest causal LM."""
    place = tmp_path_factory.mktemp("distilled") / "run"
    return train(
        place,
        "distill",
        **{"distill.teacher": str(finished.directory), "tokenizer": str(finished.model_directory), "steps": 24},
    )


def test_a_student_comes_nearer_to_its_teacher(distilled: Run, finished: Run) -> None:
    lines = [line for line in distilled.metrics() if line["split"] == "train"]
    assert lines[0]["distillation"] == pytest.approx(distilled.summary["chance"], abs=0.01)
    assert lines[-1]["divergence"] < 0.9 * lines[0]["divergence"]
    assert distilled.summary["parameters"] == finished.summary["parameters"]
    student, teacher = (selfsup.load(run.directory) for run in (distilled, finished))
    assert isinstance(student, LanguageModel)
    assert student.tokenizer.fingerprint == teacher.tokenizer.fingerprint  # type: ignore[union-attr]


def test_bits_are_those_of_the_tokens_that_came(distilled: Run, finished: Run) -> None:
    """Whatever the loss is made of."""
    for run in (distilled, finished):
        ratios = [
            line["bits_per_byte"] / line["cross_entropy"] for line in run.metrics() if line["split"] == "validation"
        ]
        assert ratios == pytest.approx([ratios[0]] * len(ratios))
    last, before = (run.metrics()[-1] for run in (distilled, finished))
    assert last["bits_per_byte"] / last["cross_entropy"] == pytest.approx(
        before["bits_per_byte"] / before["cross_entropy"]
    )


def test_a_text_is_looked_at_in_the_tokens_of_the_teacher(distilled: Run, finished: Run) -> None:
    """A run's losses are those of the tokens that came, beside ln V."""
    before = selfsup.inspect("distill", text="The cat ran.", teacher=str(finished.directory))
    after = selfsup.inspect(text="The cat ran.", run=distilled.directory)
    vocabulary = selfsup.load(finished.directory).tokenizer.vocabulary  # type: ignore[union-attr]
    assert "12 positions" in before.facts
    assert f"(chance {math.log(vocabulary):.3f})" in " ".join(after.facts)


def recipe(teacher: Path, corpus: Path, **given: Any) -> TokenDistillationRecipe:
    values = {"objective": "distill", "data": str(corpus), "distill.teacher": str(teacher), **given}
    made = TokenDistillationRecipe(TokenDistillationRecipe.resolve(("test", values)))
    made.open(lambda done, total: None)
    return made


def test_a_student_with_another_tokenizer_is_refused(finished: Run, train: Train, corpus: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", tokenizer="words", steps=2)
    with pytest.raises(UserError, match="different tokenizers, so that one cannot say the other's tokens"):
        recipe(finished.directory, corpus, **{"model.init": str(other.directory)})
    with pytest.raises(
        UserError, match=r"brings its own tokenizer, so data\.tokenizer cannot be 'words'; leave it out"
    ):
        recipe(finished.directory, corpus, tokenizer="words")


def test_a_student_may_start_from_its_teacher(finished: Run, corpus: Path) -> None:
    made = recipe(finished.directory, corpus, **{"model.init": str(finished.directory)})
    made.settle(Effort(steps=3))
    objective = made.build().double()
    read = made.train.read(np.arange(2))
    places = np.zeros(2, np.int64)
    task = objective.hide(Batch(read, 0, places, np.arange(2)))
    sums = objective.score(objective.predict(task), task, ALONE)
    assert abs(float(sums["divergence"])) < 1e-9


def test_windows_are_those_that_the_teacher_reads(finished: Run, corpus: Path) -> None:
    made = recipe(finished.directory, corpus)
    made.settle(Effort(steps=3))
    assert made.settings["data.window"] <= 16
    with pytest.raises(UserError, match=r"reads at most 16 tokens, so data\.window cannot be 32; give 16 or less"):
        recipe(finished.directory, corpus, **{"data.window": 32}).settle(Effort(steps=3))


@pytest.mark.parametrize("flops", [1e9, 1e12, 1e15])
@pytest.mark.parametrize("taught", [0.0, 1e6, 1e9])
def test_a_size_suits_what_is_seen_beside_the_teacher(taught: float, flops: float) -> None:
    """The student sees r tokens for each of its parameters, and student and teacher together use all operations."""
    own = beside_teacher(Effort(flops=flops), taught)
    parameters = own.parameters(TOKENS_PER_PARAMETER, 0)
    seen = own.tokens(parameters, 0)
    assert seen == pytest.approx(TOKENS_PER_PARAMETER * parameters)
    assert seen * (6 * parameters + taught) == pytest.approx(flops)


def test_the_plan_tells_the_teacher_and_the_chance(finished: Run, corpus: Path) -> None:
    made = recipe(finished.directory, corpus, **{"distill.temperature": 2.0, "distill.hard": 0.25})
    made.settle(Effort(steps=3))
    told = made.facts()["teacher"]
    assert f"{finished.summary['parameters']:,} parameters in {finished.directory}" in told
    assert "at temperature 2, 25% of the loss that of the token that came" in told
    assert made.chance(1) == pytest.approx((0.75 * 4 + 0.25) * math.log(made.corpus.tokenizer.vocabulary))
