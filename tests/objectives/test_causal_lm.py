"""Causal LM: its task against a plain loop, no leakage, its loss against the plain loss of full logits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import selfsup
from selfsup.data.records import Batch
from selfsup.data.text import Windows
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.models import losses as losses_module
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.losses import IGNORE
from selfsup.objectives.base import Task
from selfsup.objectives.causal_lm import CausalLM, CausalLMRecipe
from selfsup.objectives.recipe import Effort
from selfsup.seeding import generator

END, VOCABULARY, WINDOW = 0, 9, 10


def make_objective(tied: bool = False) -> CausalLM:
    """In fp64, with weights that are all random: a fresh decoder would leak nothing because it says nothing."""
    shape = DecoderConfig(VOCABULARY, 2, 8, 2, 2, 4, 16, WINDOW, tied)
    decoder = Decoder(shape).double()
    with torch.no_grad():
        for number, parameter in enumerate(decoder.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number))
            parameter.copy_(noise * 0.5 + (parameter.ndim == 1))
    return CausalLM(decoder, END, END)


OBJECTIVE = make_objective()


def batch_of(tokens: Tensor, first: Tensor | None = None) -> Batch:
    rows = np.arange(len(tokens))
    first = torch.zeros(len(tokens), dtype=torch.long) if first is None else first
    return Batch({"tokens": tokens, "first": first}, 0, np.zeros_like(rows), rows)


def task_of(tokens: list[int]) -> Task:
    """One window with these tokens."""
    return OBJECTIVE.hide(batch_of(torch.tensor([tokens])))


# -- the task ------------------------------------------------------------------------------------------------

documents = st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=14), min_size=1, max_size=8)


def stream_of(texts: list[list[int]]) -> list[int]:
    return [END, *(token for text in texts for token in [*text, END])]


def plain_tasks(stream: list[int], window: int) -> list[list[tuple[int, int, int, bool]]]:
    """Per window and position: input, target, which document of the stream the input belongs to, does it count."""
    targets = len(stream) - 1
    counted: set[int] = set()
    rows = []
    for number in range(math.ceil(targets / window)):
        start = min(number * window, targets - window)
        row = []
        for place in range(start, start + window):
            document = sum(token == END for token in stream[: place + 1])
            row.append((stream[place], stream[place + 1], document, place not in counted))
            counted.add(place)
        rows.append(row)
    return rows


@settings(max_examples=150, deadline=None)
@given(texts=documents, window=st.integers(1, 12))
def test_task_against_a_plain_loop(texts: list[list[int]], window: int) -> None:
    stream = stream_of(texts)
    if len(stream) - 1 < window:
        return
    records = Windows(np.array(stream, dtype=np.uint16), window, END)
    indices = np.arange(len(records))
    task = OBJECTIVE.hide(Batch(records.read(indices), 0, np.zeros_like(indices), indices))
    expected = plain_tasks(stream, window)
    assert task["inputs"].tolist() == [[inputs for inputs, *_ in row] for row in expected]
    assert task["targets"].tolist() == [
        [target if counts else IGNORE for _, target, _, counts in row] for row in expected
    ]
    for found, row in zip(task["documents"].tolist(), expected, strict=True):
        here = [document for _, _, document, _ in row]
        assert [number - found[0] for number in found] == [document - here[0] for document in here]
    assert int(task.counts["cross_entropy"]) == len(stream) - 1  # every target of the stream, exactly once


def test_a_window_that_begins_with_a_document_and_one_that_begins_inside() -> None:
    task = OBJECTIVE.hide(batch_of(torch.tensor([[0, 5, 6, 0, 7], [5, 6, 0, 7, 8]]), torch.tensor([0, 3])))
    assert task["inputs"].tolist() == [[0, 5, 6, 0], [5, 6, 0, 7]]
    assert task["targets"].tolist() == [[5, 6, 0, 7], [IGNORE, IGNORE, IGNORE, 8]]
    assert task["documents"].tolist() == [[1, 1, 1, 2], [0, 0, 1, 1]]
    assert int(task.counts["cross_entropy"]) == 5


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.lists(st.integers(2, VOCABULARY - 1), max_size=9), min_size=1), window=st.integers(1, 12))
def test_a_start_token_of_its_own_is_given_and_never_asked_for(texts: list[list[int]], window: int) -> None:
    """Behind an end token stands a start token in any case; it opens the next document, and no target is lost."""
    start = 1
    stream = [token for text in texts for token in [start, *text, END]]
    if len(stream) - 1 < window:
        return
    records = Windows(np.array(stream, dtype=np.uint16), window, END)
    indices = np.arange(len(records))
    task = CausalLM(nn.Identity(), start, END).hide(Batch(records.read(indices), 0, np.zeros_like(indices), indices))
    asked = task["targets"] != IGNORE
    assert task["targets"][asked].tolist() == [token for text in texts for token in [*text, END]]
    assert int(task.counts["cross_entropy"]) == asked.sum() == sum(len(text) + 1 for text in texts)
    assert END not in task["inputs"][asked].tolist()
    for inputs, numbers in zip(task["inputs"].tolist(), task["documents"].tolist(), strict=True):
        assert numbers == [sum(token == start for token in inputs[: place + 1]) for place in range(window)]


# -- leakage -------------------------------------------------------------------------------------------------

window_tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=WINDOW + 1, max_size=WINDOW + 1)
NOTHING = 1e-5  # losses are fp32


@settings(max_examples=80, deadline=None)
@given(tokens=window_tokens, place=st.integers(1, WINDOW), other=st.integers(0, VOCABULARY - 1))
def test_a_future_token_moves_no_earlier_loss(tokens: list[int], place: int, other: int) -> None:
    """Token `place` is the target of position place − 1 and an input from position `place` on."""
    changed = [*tokens[:place], other, *tokens[place + 1 :]]
    before, after = OBJECTIVE.losses(task_of(tokens))[0], OBJECTIVE.losses(task_of(changed))[0]
    assert (after[: place - 1] - before[: place - 1]).abs().sum() < NOTHING


@settings(max_examples=80, deadline=None)
@given(tokens=window_tokens, place=st.integers(0, WINDOW), other=st.integers(1, VOCABULARY - 1))
def test_a_token_moves_no_loss_of_another_document(tokens: list[int], place: int, other: int) -> None:
    """A position belongs to the document of its input; an end token opens one."""
    if tokens[place] == END:
        return
    changed = [*tokens[:place], other, *tokens[place + 1 :]]
    before, after = OBJECTIVE.losses(task_of(tokens))[0], OBJECTIVE.losses(task_of(changed))[0]
    numbers = task_of(tokens)["documents"][0]
    untouched = numbers != numbers[place] if place < WINDOW else torch.ones(WINDOW, dtype=torch.bool)
    if place:
        untouched[place - 1] = False  # whose target it is
    assert (after[untouched] - before[untouched]).abs().sum() < NOTHING


def test_an_earlier_token_of_the_same_document_does_move_a_loss() -> None:
    before = OBJECTIVE.losses(task_of([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]))[0]
    after = OBJECTIVE.losses(task_of([0, 1, 8, 3, 4, 5, 0, 1, 2, 3, 4]))[0]
    assert ((after - before).abs()[1:6] > 1e-3).all()


# -- the loss ------------------------------------------------------------------------------------------------


def plain_losses(decoder: Decoder, task: Task) -> Tensor:
    """Each document of each window by itself through full logits: (B, T), 0 where nothing counts."""
    found = torch.zeros(task["targets"].shape, dtype=torch.double)
    for row, numbers in enumerate(task["documents"]):
        for number in numbers.unique():
            here = (numbers == number).nonzero().squeeze(1)
            logits = decoder.logits(task["inputs"][row, here][None])[0]
            targets = task["targets"][row, here]
            found[row, here] = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    return found


def example() -> Task:
    """Windows with one to four documents, with documents of one token, with targets that do not count."""
    random = torch.Generator().manual_seed(4)
    tokens = torch.randint(VOCABULARY, (12, WINDOW + 1), generator=random)
    tokens[0] = 3
    tokens[1] = torch.tensor([0, 0, 1, 0, 1, 2, 3, 4, 5, 6, 0])
    first = torch.zeros(12, dtype=torch.long)
    first[5] = 4
    return OBJECTIVE.hide(batch_of(tokens, first))


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("tied", [True, False])
def test_score_and_gradients_equal_the_plain_loss(tied: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "CHUNK_ELEMENTS", rows * VOCABULARY)
    task = example()
    ours, theirs = make_objective(tied), make_objective(tied)
    value = ours.score(ours.predict(task), task, Processes.alone())["cross_entropy"]
    value.backward()
    expected = plain_losses(theirs.model, task).sum()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Rotary angles are fp32 and count from the window's start here, from the document's there.
        assert (mine.grad - other.grad).abs().max() < 1e-6 * other.grad.abs().max(), name


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_losses_per_token_equal_the_plain_loss(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfsup.models.losses.CHUNK_ELEMENTS", rows * VOCABULARY)
    task = example()
    found = OBJECTIVE.losses(task)
    assert (found[task["targets"] == IGNORE] == 0).all()
    torch.testing.assert_close(found.double(), plain_losses(OBJECTIVE.model, task).detach(), rtol=1e-5, atol=1e-5)


class OwnNetwork(nn.Module):
    """The least that causal LM asks of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 8)
        self.mix = nn.Linear(8, 8)
        self.output_weight = nn.Parameter(torch.zeros(VOCABULARY, 8))

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        return self.mix(self.table(tokens))


def test_a_network_of_ones_own_starts_at_chance_and_its_head_is_no_matrix_for_muon() -> None:
    objective = CausalLM(OwnNetwork(), END, END)
    task = example()
    value = objective.score(objective.predict(task), task, Processes.alone())["cross_entropy"]
    chance = math.log(VOCABULARY) * int(task.counts["cross_entropy"])
    assert float(value.detach()) == pytest.approx(chance, rel=1e-5)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    assert {names[id(p)] for p in objective.vectors()} == {"model.table.weight", "model.output_weight"}


# -- what is read again and again ----------------------------------------------------------------------------


def settled(effort: Effort, **given: object) -> CausalLMRecipe:
    texts = [f"number {n} of the texts that are read again and again, and again. " * 3 for n in range(60)]
    shape = {"model": {"layers": 1, "width": 16, "heads": 2, "mlp": 32}, "data": {"window": 32}, "train.batch": 4}
    recipe = CausalLMRecipe(CausalLMRecipe.resolve(("test", {**shape, **given})), source=texts)
    recipe.open(lambda done, total: None)
    recipe.settle(effort)
    return recipe


def test_beyond_five_passes_weights_forget_within_a_pass_and_are_averaged() -> None:
    for often in (settled(Effort(epochs=6)), settled(Effort(epochs=20))):
        optim, steps = often.settings.config.optim, len(often.train) / 4
        assert optim.lr * optim.weight_decay * steps == pytest.approx(1, rel=0.05)
        assert optim.average == 0.1
    assert often.settings.origin("optim.weight_decay") == often.settings.origin("optim.average") == "about 20 passes"
    assert "about 20 passes over the text: weight decay" in often.facts()["repeats"]
    seldom = settled(Effort(epochs=5))
    assert (seldom.settings["optim.weight_decay"], seldom.settings["optim.average"]) == (None, 0)
    assert "repeats" not in seldom.facts()


def test_passes_are_known_from_steps_and_what_is_given_stays() -> None:
    given = {"optim.weight_decay": 0.3, "optim.average": 0.5}
    some = settled(Effort(steps=700), **given)
    assert some.settings.origin("optim.average") == "test"
    assert {key: some.settings[key] for key in given} == given
    passes = 700 * 4 * 32 / some.corpus.facts.training_tokens
    assert some.facts()["repeats"].startswith(f"about {passes:.0f} passes")


# -- continued pretraining -----------------------------------------------------------------------------------


def test_a_run_is_started_from_another(tmp_path: Path) -> None:
    """Weights, shape and tokenizer are kept; a step that changes nothing leaves the same model."""
    text = ["the cat sat on the mat and the dog lay by the door of the old house. " * 40, "a bird sings. " * 60]
    shape = {"layers": 1, "width": 16, "heads": 2, "mlp": 32}
    first = selfsup.train("causal-lm", data=text, out=tmp_path / "first", steps=3, model=shape)
    still = {"optim.lr": 1e-30, "optim.adamw_lr": 1e-30, "optim.weight_decay": 0.0}
    second = selfsup.train(
        "causal-lm", data=text[::-1], out=tmp_path / "second", steps=1, init=str(first.directory), **still
    )
    before, after = (load_file(run.model_directory / "model.safetensors") for run in (first, second))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(before[name], after[name])
    assert second.settings()["model.width"] == 16
    with pytest.raises(UserError, match="width 16"):
        selfsup.train("causal-lm", data=text, out=tmp_path / "third", init=str(first.directory), model={"width": 32})


@pytest.mark.parametrize(("key", "value"), [("model.dropout", 0.1), ("model.whiten", True), ("simcse.temperature", 1)])
def test_settings_of_others_are_refused(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key):
        selfsup.train("causal-lm", data=["a text " * 400], out=tmp_path / "run", steps=1, **{key: value})
