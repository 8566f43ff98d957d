"""SimCSE: its loss against a plain loop, its views, and gradient caching: the large batch in the small one's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from selfsup.data.sentences import Sentences
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.distributed import Processes
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.packing import POOLINGS, Pooling
from selfsup.objectives.losses import info_nce
from selfsup.objectives.simcse import VIEWS, SentenceHead, SimCSE, kept_tokens
from selfsup.report import Reporter
from selfsup.seeding import generator, seeded
from selfsup.step import gradients, predict

ALONE = Processes.alone()
WINDOW, WIDTH = 24, 16
TOKENIZER = train_tokenizer("characters", ["abcdefghijklmnopqrstuvwxyz"], family="encoder")


def sentences(count: int = 96) -> Sentences:
    """Of 1 to 22 tokens; the first is there again as the sixth and the tenth."""
    random = np.random.default_rng(0)
    texts = [random.integers(5, TOKENIZER.vocabulary, random.integers(1, 23)) for _ in range(count)]
    texts[5] = texts[9] = texts[0]
    return Sentences(np.concatenate([TOKENIZER.frame(text) for text in texts]), WINDOW, TOKENIZER)


RECORDS = sentences()


def objective(
    dropout: float = 0.0,
    pooling: Pooling = "mean",
    layers: int = 3,
    dtype: torch.dtype = torch.float32,
    deletion: float = 0.0,
) -> SimCSE:
    """With weights that all matter: a fresh encoder says little."""
    config = EncoderConfig(TOKENIZER.vocabulary, layers, WIDTH, 2, 24, WINDOW, True, local_window=8, dropout=dropout)
    made = SimCSE(TextEncoder(config), SentenceHead(WIDTH), pooling, 0.05, deletion)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number))
            parameter.copy_(0.2 * noise + (parameter.ndim == 1))
    return made.to(dtype)


def batch_of(indices: Sequence[int] | np.ndarray) -> Batch:
    places = np.asarray(indices)
    return Batch(RECORDS.read(places), 3, np.zeros_like(places), places)


# -- the loss ------------------------------------------------------------------------------------------------


def plain_info_nce(first: Tensor, second: Tensor, identities: Sequence[int], temperature: float) -> Tensor:
    """Gao et al. 2021, equation 4, one sentence and one other after the other."""
    total = torch.zeros((), dtype=first.dtype)
    for i in range(len(first)):
        terms = []
        for j in range(len(second)):
            if j != i and identities[j] == identities[i]:
                continue
            cosine = first[i] @ second[j] / (first[i].norm() * second[j].norm())
            terms.append(cosine / temperature)
            if j == i:
                wanted = terms[-1]
        total = total - wanted + torch.stack(terms).logsumexp(0)
    return total


@settings(deadline=None, max_examples=50)
@given(
    identities=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
    seed=st.integers(0, 2**30),
    temperature=st.floats(0.02, 1.0),
)
def test_info_nce_against_a_plain_loop(identities: list[int], seed: int, temperature: float) -> None:
    random = torch.Generator().manual_seed(seed)
    raw = [torch.randn(len(identities), 5, generator=random, dtype=torch.double, requires_grad=True) for _ in "ab"]
    first, second = (torch.nn.functional.normalize(x, dim=-1) for x in raw)
    found = info_nce(first, second, torch.tensor(identities), 1 / temperature, ALONE)
    expected = plain_info_nce(raw[0], raw[1], identities, temperature)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, raw)
    for one, other in zip(torch.autograd.grad(found, raw), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)


def test_equal_sentences_are_no_negatives() -> None:
    """Where all are equal, nothing is left to be told apart; where two are, neither pushes the other."""
    random = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(4, 5, generator=random, dtype=torch.double), dim=-1)
    assert float(info_nce(queries, queries.flip(0), torch.zeros(4, dtype=torch.long), 20.0, ALONE)) == 0
    found, expected = (queries.clone().requires_grad_() for _ in range(2))
    keys = torch.nn.functional.normalize(found, dim=-1)
    info_nce(queries, keys, torch.tensor([7, 7, 1, 2]), 2.0, ALONE).backward()
    plain_info_nce(queries, expected, [7, 7, 1, 2], 0.5).backward()
    assert expected.grad is not None
    assert expected.grad.abs().max() > 0.1
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)  # the loss is computed in fp32


@pytest.mark.parametrize("pooling", POOLINGS)
def test_score_is_the_plain_loss_of_sentences_alone(pooling: Pooling) -> None:
    """Each sentence by itself through the encoder and the projection, the repeated ones left out of each other."""
    made, indices = objective(pooling=pooling, dtype=torch.double), [0, 5, 9, 3, 40, 41, 42]
    task = made.hide(batch_of(indices))
    found = made.score(made.predict(task), task, ALONE)["info_nce"]
    vectors = []
    for row, length in zip(task["first"], task["first_lengths"].tolist(), strict=True):
        hidden = made.encoder(row[:length][None])[0]
        pooled = hidden.mean(0) if pooling == "mean" else hidden[-1 if pooling == "last" else 0]
        vectors.append(torch.tanh(made.projection.dense.weight @ pooled))
    both = torch.stack(vectors)
    torch.testing.assert_close(found, plain_info_nce(both, both, [0, 0, 0, 3, 40, 41, 42], 0.05))
    assert int(task.counts["info_nce"]) == 7


# -- views ---------------------------------------------------------------------------------------------------


def test_dropout_makes_two_views() -> None:
    made = objective(dropout=0.1)
    outputs = predict(made, batch_of(range(8)), made.hide(batch_of(range(8))), torch.no_grad)
    difference = (outputs["first"] - outputs["second"]).norm(dim=-1) / outputs["first"].norm(dim=-1)
    assert (difference > 0.01).all()
    assert outputs["first"].requires_grad is False
    twins = objective()
    outputs = twins.predict(twins.hide(batch_of(range(8))))
    torch.testing.assert_close(outputs["first"], outputs["second"])


def test_views_are_drawn_from_the_place_of_the_batch() -> None:
    made, batch = objective(dropout=0.1), batch_of(range(8))
    task = made.hide(batch)
    first, again = (predict(made, batch, task, torch.no_grad)["first"] for _ in range(2))
    assert first.equal(again)
    elsewhere = Batch(batch.data, batch.seed, batch.epochs + 1, batch.records)
    assert not first.equal(predict(made, elsewhere, task, torch.no_grad)["first"])


def test_dropout_runs_in_evaluation_too() -> None:
    """Else both views were one, and the loss said nothing of what is trained."""
    made = objective(dropout=0.1).eval()
    assert made.training
    assert made.encoder.training
    outputs = made.predict(made.hide(batch_of(range(8))))
    assert not outputs["first"].equal(outputs["second"])


@settings(deadline=None, max_examples=60)
@given(
    indices=st.lists(st.integers(0, 95), min_size=1, max_size=12),
    deletion=st.floats(0, 0.95),
    seed=st.integers(0, 2**30),
)
def test_views_are_without_the_tokens_that_are_deleted(indices: list[int], deletion: float, seed: int) -> None:
    """Each of what is kept, in its order, between the start and the end, and of a sentence something is always left."""
    batch = batch_of(indices)
    batch = Batch(batch.data, seed, batch.epochs, batch.records)
    task = objective(deletion=deletion).hide(batch)
    for view in VIEWS:
        kept = kept_tokens(batch, deletion, view)
        for t, (tokens, length) in enumerate(zip(batch.data["tokens"], batch.data["lengths"].tolist(), strict=True)):
            left = [place for place in range(length) if kept[t, place]]
            assert left[0] == 0
            assert left[-1] == length - 1
            assert len(left) > 2 or length == 2
            assert not kept[t, length:].any()
            assert task[f"{view}_lengths"][t] == len(left)
            assert task[view][t, : len(left)].equal(tokens[left])


def test_what_is_deleted_changes_no_vector() -> None:
    """A token that a view is without has no part in its encoding."""
    made, batch = objective(deletion=0.5), batch_of(range(12))
    kept = kept_tokens(batch, 0.5, "first")
    other = torch.where(kept, batch.data["tokens"], 5)
    changed = Batch({**batch.data, "tokens": other}, batch.seed, batch.epochs, batch.records)
    one, same = (made.predict(made.hide(shown)) for shown in (batch, changed))
    assert not other.equal(batch.data["tokens"])
    torch.testing.assert_close(one["first"], same["first"])
    assert not one["second"].equal(same["second"])


def test_deletion_is_a_function_of_the_place() -> None:
    """The same wherever a sentence stands in a batch; another in each view, epoch and seed; as often as it is said."""
    batch = batch_of(range(96))
    whole = kept_tokens(batch, 0.3, "first")
    part = Batch(RECORDS.read(np.array([40, 7])), 3, np.zeros(2, int), np.array([40, 7]))
    alone = kept_tokens(part, 0.3, "first")
    assert alone.equal(whole[[40, 7], : alone.shape[1]])
    words = whole.sum() - 2 * len(whole)
    assert float(words / (batch.data["lengths"] - 2).sum()) == pytest.approx(0.7, abs=0.05)
    others = [
        kept_tokens(batch, 0.3, "second"),
        kept_tokens(Batch(batch.data, 3, batch.epochs + 1, batch.records), 0.3, "first"),
        kept_tokens(Batch(batch.data, 4, batch.epochs, batch.records), 0.3, "first"),
    ]
    assert not any(other.equal(whole) for other in others)
    assert kept_tokens(batch, 0.0, "first").sum() == batch.data["lengths"].sum()


# -- gradient caching ----------------------------------------------------------------------------------------


def cut(indices: Sequence[int], size: int) -> list[Batch]:
    return [batch_of(indices[start : start + size]) for start in range(0, len(indices), size)]


def plain_gradients(made: SimCSE, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Of one graph over the whole batch; the dropout of each part is that of its first record."""
    parts, tasks = [], []
    for batch in batches:
        tasks.append(made.hide(batch))
        with seeded(batch.seed, "dropout", int(batch.epochs[0]), int(batch.records[0])):
            parts.append(made.predict(tasks[-1]))
    first, second = (torch.cat([part[view] for part in parts]) for view in ("first", "second"))
    keys = torch.cat([task["keys"] for task in tasks]).tolist()
    (plain_info_nce(first, second, keys, 0.05) / len(keys)).backward()
    return {name: parameter.grad for name, parameter in made.named_parameters()}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("size", [4, 7, 24])
def test_caching_gives_the_gradient_of_the_large_batch(size: int, dropout: float) -> None:
    """To 1e-5 in fp32."""
    batches = cut(range(24), size)
    expected = plain_gradients(objective(dropout), batches)
    made = objective(dropout)
    gradients(made, batches, ALONE)
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        scale = float(expected[name].norm())
        assert scale > 0, name
        assert float((parameter.grad - expected[name]).norm()) < 1e-5 * scale, name


def test_without_dropout_the_cut_changes_nothing() -> None:
    found = []
    for size in (24, 5):
        made = objective()
        figures = gradients(made, cut(range(24), size), ALONE)
        found.append({name: p.grad for name, p in made.named_parameters()} | figures)
    for name, value in found[0].items():
        assert float((found[1][name] - value).norm()) < 1e-5 * float(value.norm()), name


def test_a_cut_without_caching_would_be_another_gradient() -> None:
    """Which is why it is cached: micro-batches scored by themselves have fewer negatives."""
    whole, parts = objective(), objective()
    gradients(whole, cut(range(24), 24), ALONE)
    for batch in cut(range(24), 4):
        gradients(parts, [batch], ALONE)
    one, other = (made.projection.dense.weight.grad for made in (whole, parts))
    assert float((one - other / 6).norm()) > 0.1 * float(one.norm())


class Kept:
    """What is kept for backward passes: bytes now, and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def hooks(self, parameters: Sequence[Tensor]) -> Any:
        known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        kept = self

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor
                self.size = 0 if tensor.untyped_storage().data_ptr() in known else tensor.nbytes
                kept.now += self.size
                kept.most = max(kept.most, kept.now)

            def __del__(self) -> None:
                kept.now -= self.size

        return torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor)


def kept_bytes(batches: Sequence[Batch]) -> int:
    made, kept = objective(dropout=0.1), Kept()
    with kept.hooks(list(made.parameters())):
        gradients(made, batches, ALONE)
    assert kept.now == 0
    return kept.most


def test_the_memory_of_caching_is_that_of_the_micro_batch() -> None:
    largest = max(kept_bytes([batch]) for batch in cut(range(96), 8))
    cached, plain = kept_bytes(cut(range(96), 8)), kept_bytes(cut(range(96), 96))
    assert cached < 1.1 * largest
    assert plain > 6 * cached


# -- the recipe ----------------------------------------------------------------------------------------------

SIMCSE: dict[str, Any] = {"objective": "simcse", "data.window": 40, "train.batch": 16}


def test_a_run_leaves_an_encoder_and_no_projection(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **SIMCSE, **{"simcse.pooling": "cls", "train.micro_batch": 4})
    made = load(tmp_path / "run")
    assert isinstance(made, EncoderModel)
    assert made.masked is None
    assert made.features.pooling == "cls"
    assert not [name for name in made.encoder.state_dict() if "projection" in name]
    vectors = made.embed(["The cat ran.", "The dog sat by the sea."])
    assert vectors.shape == (2, 32)
    assert np.isfinite(vectors).all()
    summary = run.summary
    assert run.environment()["plan"]["chance"] == pytest.approx(math.log(16))
    assert summary["chance"] == pytest.approx(math.log(8))  # of the last look, at 8 sentences
    assert summary["validation_records"] == 8
    assert summary["sentences"] == 12 * 16
    assert summary["max_difference"] < 1e-5
    assert run.settings()["model.dropout"] == 0.1
    assert run.settings()["simcse.deletion"] == 0.5
    lines = run.metrics()
    assert {"sentences", "sentences_per_second"} <= lines[0].keys()
    assert "unsupervised SimCSE" in (run.model_directory / "README.md").read_text()


def test_a_run_from_before_there_was_deletion_goes_on_without(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **SIMCSE, **{"simcse.deletion": 0.0})
    lines = run.config_file.read_text().splitlines(keepends=True)
    run.config_file.write_text("".join(line for line in lines if "deletion" not in line))
    assert run.settings()["simcse.deletion"] == 0
    selfsup.train(resume=run.directory, steps=14, reporter=Reporter(False))
    assert "deletion: 0.0" in run.config_file.read_text()
    inspection = selfsup.inspect(run=run.directory)
    assert inspection.values["deletion"] == 0


def test_the_plan_counts_what_loses_its_end(corpus: Path) -> None:
    made, settings = selfsup.plan(
        "simcse", data=corpus, tokenizer="characters", model={"preset": "0.1m"}, steps=3, **{"data.window": 20}
    )
    assert "longer than 20 lose their end" in made.facts["windows"]
    records = int(made.facts["windows"].split(" ")[0].replace(",", ""))
    assert 0 < records <= 192
    assert settings["train.batch"] == 128


def test_lines_of_a_text_file_are_the_records(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(f"One. Two, {n}. Three" for n in range(64)))
    made, _ = selfsup.plan(
        "simcse", data=path, tokenizer="characters", model={"preset": "0.1m"}, steps=3, **{"train.batch": 8}
    )
    assert made.facts["data"].startswith("64 documents")
