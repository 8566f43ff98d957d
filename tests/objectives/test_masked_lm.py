"""Masked LM: what is hidden and how it is shown, held against plain loops; its loss against transformers'."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import Train
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from selfsup.data.loader import in_order
from selfsup.data.passages import Passages
from selfsup.data.records import Batch
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import TextTokenizer
from selfsup.distributed import Processes
from selfsup.inference.opening import load
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel
from selfsup.models.losses import IGNORE
from selfsup.objectives.base import Task
from selfsup.objectives.masked_lm import SAMPLE_TOKENS, MaskedLM, MaskedLMRecipe, Masking, document_numbers
from selfsup.seeding import generator
from selfsup.trainer import EVALUATION_SEED

RATE, EVALUATION_RATE = 0.3, 0.15
WINDOW = 66
SENTENCE = "the old man sat down by a stormy sea, smoking; it's 1859 and he'd never seen larger waves"
UNITS = ("token", "word", "span")


def text(count: int, seed: int = 0) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(SENTENCE.split(), count))


TOKENIZER = train_tokenizer("bpe", [text(3000)], 290, family="encoder")  # too few for words to be one token each
PAD, START, END, MASK = (int(id_ or 0) for id_ in (TOKENIZER.pad, TOKENIZER.start, TOKENIZER.end, TOKENIZER.mask))
ORDINARY = sorted(set(range(TOKENIZER.vocabulary)) - TOKENIZER.special)


def stream(documents: int = 300) -> np.ndarray:
    """Documents of 1 to 60 words."""
    random = np.random.default_rng(1)
    texts = [text(random.integers(1, 61), seed) for seed in range(documents)]
    return np.concatenate([TOKENIZER.frame(TOKENIZER.encode(one)) for one in texts])


RECORDS = Passages(stream(), WINDOW, TOKENIZER)
TOKENS = RECORDS.read(np.arange(len(RECORDS)))["tokens"]


def model(**changes: object) -> MaskedLanguageModel:
    """With weights that all matter: a fresh one says nothing."""
    shape = {
        "vocabulary": TOKENIZER.vocabulary,
        "layers": 3,
        "width": 16,
        "heads": 2,
        "mlp": 24,
        "window": WINDOW,
        "tied": False,
        "local_window": 8,
    }
    made = MaskedLanguageModel(EncoderConfig(**shape | changes))  # type: ignore[arg-type]
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number))
            parameter.copy_(0.3 * noise + (parameter.ndim == 1))
    return made


def objective(unit: str = "token", tokenizer: TextTokenizer = TOKENIZER, **changes: object) -> MaskedLM:
    return MaskedLM(model(**changes), Masking(tokenizer, unit), RATE, EVALUATION_RATE).train()


OBJECTIVES = {unit: objective(unit) for unit in UNITS}


def batch_of(indices: np.ndarray, seed: int = 3, epoch: int = 0) -> Batch:
    return Batch(RECORDS.read(indices), seed, np.full(len(indices), epoch), indices)


def whole(unit: str = "token", seed: int = 3, epoch: int = 0) -> Task:
    """All records in training."""
    return OBJECTIVES[unit].hide(batch_of(np.arange(len(RECORDS)), seed, epoch))


def hidden_of(task: Task) -> Tensor:
    """Whether each token is hidden, (B, T)."""
    found = torch.zeros(task["inputs"].shape, dtype=torch.int64)
    found.scatter_add_(1, task["positions"], (task["targets"] != IGNORE).long())
    assert found.max() <= 1, "a token is hidden twice"
    return found.bool()


def near(count: int, trials: int, share: float) -> bool:
    """Within five deviations of a binomial."""
    return abs(count - trials * share) < 5 * math.sqrt(trials * share * (1 - share))


# -- how much is hidden, and how it is shown -----------------------------------------------------------------


def test_three_tenths_of_each_record_are_hidden_and_special_tokens_never() -> None:
    task = whole()
    hidden = hidden_of(task)
    special = torch.isin(TOKENS, torch.tensor(sorted(TOKENIZER.special)))
    assert special.sum() > len(TOKENS) * 2  # whose windows hold several documents
    assert not (hidden & special).any()
    wanted = (RATE * (~special).sum(1)).round().long()
    assert hidden.sum(1).equal(wanted)
    assert int(task.counts["cross_entropy"]) == int(wanted.sum())
    assert task["inputs"][~hidden].equal(TOKENS[~hidden])


def test_targets_are_the_tokens_at_their_positions() -> None:
    for unit in UNITS:
        task = whole(unit)
        counts = task["targets"] != IGNORE
        assert task["targets"][counts].equal(TOKENS.gather(1, task["positions"])[counts])
        assert task["positions"].shape == (len(TOKENS), round(RATE * WINDOW))
        assert ((task["positions"] >= 0) & (task["positions"] < WINDOW)).all()


@pytest.mark.parametrize("unit", UNITS)
def test_eight_in_ten_are_masks_one_is_random_and_one_is_shown(unit: str) -> None:
    task = whole(unit)
    hidden = hidden_of(task)
    shown, truth = task["inputs"][hidden], TOKENS[hidden]
    count = len(truth)
    same = 1 / len(ORDINARY)  # a random token may be the true one
    assert count > 2500
    assert near(int((shown == MASK).sum()), count, 0.8)
    assert near(int((shown == truth).sum()), count, 0.1 + 0.1 * same)
    swapped = shown[(shown != MASK) & (shown != truth)]
    assert near(len(swapped), count, 0.1 * (1 - same))
    assert torch.isin(swapped, torch.tensor(ORDINARY)).all()


def test_random_tokens_are_all_ordinary_ones_alike() -> None:
    drawn: list[int] = []
    for epoch in range(60):
        task = whole(epoch=epoch)
        hidden = hidden_of(task)
        shown = task["inputs"][hidden]
        drawn += shown[(shown != MASK) & (shown != TOKENS[hidden])].tolist()
    counts = np.bincount(drawn, minlength=TOKENIZER.vocabulary)
    assert not counts[sorted(TOKENIZER.special)].any()
    truths = np.bincount(TOKENS.flatten(), minlength=TOKENIZER.vocabulary)[ORDINARY]
    expected = 1 - truths / truths.sum()  # a token that is the truth is no swap
    expected *= counts.sum() / expected.sum()
    assert stats.chisquare(counts[ORDINARY], expected).pvalue > 1e-5


def test_each_place_is_hidden_as_often_as_any_other() -> None:
    rows = torch.full((4000, 40), ORDINARY[5])
    found = OBJECTIVES["token"].hide(Batch({"tokens": rows}, 9, np.zeros(4000, int), np.arange(4000)))
    counts = hidden_of(found).sum(0).numpy()
    assert counts.sum() == 4000 * 12
    assert stats.chisquare(counts).pvalue > 1e-5


def test_evaluation_hides_fifteen_hundredths_under_one_fixed_mask() -> None:
    """Whatever the run's seed, and however the records are batched."""
    special = torch.isin(TOKENS, torch.tensor(sorted(TOKENIZER.special)))
    wanted = (EVALUATION_RATE * (~special).sum(1)).round().long()
    tasks = []
    for size in (7, len(RECORDS)):
        evaluated = objective().eval()
        parts = [evaluated.hide(batch) for batch in in_order(RECORDS, len(RECORDS), EVALUATION_SEED, size)]
        tasks.append(Task.join(parts))
    assert hidden_of(tasks[0]).sum(1).equal(wanted)
    for name, tensor in tasks[0].tensors.items():
        assert tensor.equal(tasks[1][name]), name


# -- a pure function of the place ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.integers(0, len(RECORDS) - 1), min_size=1, max_size=12),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 1000),
    unit=st.sampled_from(UNITS),
)
def test_a_mask_does_not_depend_on_the_batch(places: list[int], seed: int, epoch: int, unit: str) -> None:
    state = torch.get_rng_state()
    together = OBJECTIVES[unit].hide(batch_of(np.array(places), seed, epoch))
    for row, place in enumerate(places):
        alone = OBJECTIVES[unit].hide(batch_of(np.array([place]), seed, epoch))
        for name, tensor in alone.tensors.items():
            assert tensor[0].equal(together[name][row]), name
    assert torch.get_rng_state().equal(state)


def test_masks_of_other_places_are_others() -> None:
    """Neighbouring records, passes and seeds hide independently: two masks share rate² of the tokens."""
    rows = torch.full((2000, 50), ORDINARY[5])

    def mask(seed: int, epoch: int, first: int) -> Tensor:
        places = np.arange(first, first + 2000)
        return hidden_of(OBJECTIVES["token"].hide(Batch({"tokens": rows}, seed, np.full(2000, epoch), places)))

    here = mask(3, 0, 0)
    for other in (mask(3, 1, 0), mask(4, 0, 0), mask(3, 0, 1)):
        assert near(int((here & other).sum()), here.numel(), RATE**2)


# -- nothing hidden is seen ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.sampled_from([START, END, PAD, *ORDINARY[:40]]), min_size=1, max_size=30),
    others=st.lists(st.sampled_from(ORDINARY), min_size=30, max_size=30),
    record=st.integers(0, 10**9),
)
def test_the_truth_behind_a_mask_changes_nothing_that_is_shown(
    tokens: list[int], others: list[int], record: int
) -> None:
    def task_of(row: list[int]) -> Task:
        place = np.array([record])
        return OBJECTIVES["token"].hide(Batch({"tokens": torch.tensor([row])}, 3, place * 0, place))

    task = task_of(tokens)
    hidden = hidden_of(task)[0].tolist()
    shown = task["inputs"][0].tolist()
    behind = [hides and seen != token for hides, seen, token in zip(hidden, shown, tokens, strict=True)]
    assert all(seen == token or hides for hides, seen, token in zip(hidden, shown, tokens, strict=True))
    changed = [other if hides else token for token, hides, other in zip(tokens, behind, others, strict=False)]
    again = task_of(changed)
    for name in ("inputs", "positions", "documents"):
        assert again[name].equal(task[name])
    assert [t for t in again["targets"][0].tolist() if t != IGNORE] == [
        changed[place]
        for place, target in zip(task["positions"][0].tolist(), task["targets"][0].tolist(), strict=True)
        if target != IGNORE
    ]


def test_documents_are_numbered_by_their_start_tokens() -> None:
    rows = torch.tensor([[PAD, START, 9, END, START, 9, PAD], [START, 9, 9, END, START, END, PAD]])
    assert document_numbers(rows, TOKENIZER).tolist() == [[-1, 1, 1, 1, 2, 2, -1], [1, 1, 1, 1, 2, 2, -1]]
    task = whole()
    assert task["documents"].equal(document_numbers(TOKENS, TOKENIZER))


def test_a_document_alone_in_its_rows_needs_no_mask() -> None:
    """And gets none; the outputs are the same."""
    rows = torch.tensor([[START, *ORDINARY[:10], END], [START, *ORDINARY[10:20], END]])
    made = OBJECTIVES["token"].eval()
    task = made.hide(Batch({"tokens": rows}, 0, np.zeros(2, int), np.arange(2)))
    masked = made.model(task["inputs"], task["positions"], task["documents"])
    torch.testing.assert_close(made.predict(task)["hidden"], masked, atol=1e-5, rtol=1e-4)
    made.train()


# -- words and spans -----------------------------------------------------------------------------------------


def plain_words(row: list[int]) -> list[list[int]]:
    """Places of each word: tokens whose texts meet in letters. (No character here takes more than one token.)"""
    words: list[list[int]] = []
    texts = [TOKENIZER.decode([token]) for token in row]
    for place, here in enumerate(texts):
        before = texts[place - 1] if place else ""
        if before[-1:].isalpha() and here[:1].isalpha():
            words[-1].append(place)
        else:
            words.append([place])
    return words


def test_the_text_has_words_of_several_tokens_and_characters_of_one() -> None:
    assert "\ufffd" not in "".join(TOKENIZER.decode([token]) for token in TOKENS.flatten().tolist())
    lengths = [len(word) for row in TOKENS.tolist() for word in plain_words(row)]
    assert np.mean(np.array(lengths) > 1) > 0.1


@pytest.mark.parametrize("unit", ["word", "span"])
def test_whole_words_are_hidden_wholly(unit: str) -> None:
    hidden = hidden_of(whole(unit))
    for row, hides in zip(TOKENS.tolist(), hidden.tolist(), strict=True):
        for word in plain_words(row):
            assert len({hides[place] for place in word}) == 1


@pytest.mark.parametrize("unit", ["word", "span"])
def test_as_many_whole_words_as_fit_are_hidden(unit: str) -> None:
    """The first that does not fit ends it: the share that is missing is less than a word's, for spans as well."""
    task, special = whole(unit), torch.isin(TOKENS, torch.tensor(sorted(TOKENIZER.special)))
    wanted = (RATE * (~special).sum(1)).round().long()
    found = hidden_of(task).sum(1)
    assert (found <= wanted).all()
    longest = torch.tensor([max(map(len, plain_words(row))) for row in TOKENS.tolist()])
    assert (wanted - found < longest).all()
    assert found.sum() > 0.93 * wanted.sum()


def long_text() -> Tensor:
    """A single document of 6,000 words of one token each."""
    one = TOKENIZER.encode(" a")[0]
    return torch.full((1, 6000), int(one))


def test_spans_are_geometric_with_a_mean_of_3_8_words() -> None:
    """Few of many words, so that two spans seldom touch."""
    few = MaskedLM(model(), Masking(TOKENIZER, "span"), 0.02, 0.02)
    lengths: list[int] = []
    for record in range(60):
        place = np.array([record])
        hidden = hidden_of(few.hide(Batch({"tokens": long_text()}, 1, place * 0, place)))[0].tolist()
        runs = "".join("x" if hides else " " for hides in hidden).split()
        lengths += [len(run) for run in runs]
    assert len(lengths) > 1500
    # A geometric length has deviation sqrt(1 − p) / p; a few spans touch another one, and the last may not fit.
    p = 1 / 3.8
    tolerance = 5 * math.sqrt(1 - p) / p / math.sqrt(len(lengths))
    assert np.mean(lengths) == pytest.approx(3.8, abs=tolerance + 0.1)
    assert np.mean(np.array(lengths) == 1) == pytest.approx(p, abs=0.05)
    assert max(lengths) > 12


def test_spans_end_at_the_borders_of_documents() -> None:
    """So that none hides words of two; a special token between them stays."""
    row = [START, *ORDINARY[:4], END] * 10
    spans = Masking(TOKENIZER, "span")
    tokens = np.array([row] * 50)
    maskable, never = spans._maskable[tokens], np.full(tokens.shape, 0.999)
    begins = spans._spans(spans._words(tokens), maskable, never)
    assert begins.tolist() == [[True, True, False, False, False, True] * 10] * 50


# -- the loss ------------------------------------------------------------------------------------------------


def theirs(ours: MaskedLanguageModel) -> transformers.ModernBertForMaskedLM:
    config = transformers.ModernBertConfig(
        vocab_size=TOKENIZER.vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        local_attention=8,
        decoder_bias=ours.config.bias,
        tie_word_embeddings=ours.config.tied,
        pad_token_id=None,
        bos_token_id=START,
        eos_token_id=END,
        cls_token_id=START,
        sep_token_id=END,
        attn_implementation="eager",
    )
    other = transformers.ModernBertForMaskedLM(config)
    named = {name if name != "bias" else "decoder.bias": w for name, w in ours.state_dict().items()}
    other.load_state_dict(named, strict=False)
    other.tie_weights()
    return other.train()


def their_loss(other: transformers.ModernBertForMaskedLM, task: Task) -> Tensor:
    """Every document of every record by itself, through full logits, with labels where something is hidden."""
    labels = torch.full(task["inputs"].shape, IGNORE)
    for row, (positions, targets) in enumerate(zip(task["positions"], task["targets"], strict=True)):
        kept = targets != IGNORE
        labels[row, positions[kept]] = targets[kept]
    total = torch.zeros(())
    for row, numbers in enumerate(task["documents"].tolist()):
        for number in sorted(set(numbers) - {-1}):
            here = [place for place, found in enumerate(numbers) if found == number]
            logits = other(task["inputs"][row, here][None]).logits[0]
            total = total + F.cross_entropy(logits, labels[row, here], ignore_index=IGNORE, reduction="sum")
    return total


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_loss_and_gradients_are_those_of_transformers_with_labels(unit: str, tied: bool) -> None:
    ours = objective(unit, tied=tied, bias=tied)
    other = theirs(ours.model)
    task = ours.hide(batch_of(np.arange(0, len(RECORDS), 12)))
    value = ours.score(ours.predict(task), task, Processes.alone())["cross_entropy"]
    expected = their_loss(other, task)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    value.backward()
    expected.backward()
    gradients = {name.replace("decoder.bias", "bias"): p.grad for name, p in other.named_parameters()}
    for name, parameter in ours.model.named_parameters():
        assert parameter.grad is not None, name
        scale = float(gradients[name].abs().max())
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_one_document_per_record_is_their_mean_loss() -> None:
    """Their own labels, their own mean over what is hidden."""
    ours = objective()
    rows = torch.tensor([[START, *ORDINARY[n : n + 20], END] for n in range(8)])
    task = ours.hide(Batch({"tokens": rows}, 0, np.zeros(8, int), np.arange(8)))
    labels = torch.where(hidden_of(task), rows, IGNORE)
    expected = theirs(ours.model)(task["inputs"], labels=labels).loss
    value = ours.score(ours.predict(task), task, Processes.alone())["cross_entropy"]
    torch.testing.assert_close(value / task.counts["cross_entropy"], expected, rtol=1e-5, atol=0)


def test_only_hidden_tokens_go_through_the_head() -> None:
    ours, rows = objective(), []
    ours.model.head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape))
    ours.predict(ours.hide(batch_of(np.arange(6))))
    assert rows == [(6 * round(RATE * WINDOW), 16)]


def test_a_record_that_hides_nothing_costs_nothing() -> None:
    """One of special tokens only, beside another one."""
    ours = objective()
    rows = torch.tensor([[START, END, START, END, PAD, PAD], [START, *ORDINARY[:4], END]])
    task = ours.hide(Batch({"tokens": rows}, 0, np.zeros(2, int), np.arange(2)))
    assert (task["targets"][0] == IGNORE).all()
    assert int(task.counts["cross_entropy"]) == 1
    value = ours.score(ours.predict(task), task, Processes.alone())["cross_entropy"]
    torch.testing.assert_close(value, their_loss(theirs(ours.model), task), rtol=1e-5, atol=0)


# -- the recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["words", "wordpiece", "bpe", "characters"])
def test_a_sample_is_the_text_with_its_hidden_tokens_in_brackets(train: Train, tmp_path: Path, tokenizer: str) -> None:
    """Spaces stand where the tokenizer puts them; pieces within words show where they go on."""
    given = {"data.window": 32, "data.tokenizer": tokenizer, "steps": 1}
    run = train(tmp_path / "run", objective="masked-lm", **given)
    sample = sorted(run.samples.iterdir())[-1].read_text()
    recipe = MaskedLMRecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.cut()
    assert recipe.validation is not None
    tokens = recipe.validation.read(np.array([0]))["tokens"][0].tolist()[:SAMPLE_TOKENS]
    told = re.sub(r"( ?)\[(.*?) → .*?\]", lambda found: found[1] + found[2], sample.strip("\n"), flags=re.DOTALL)
    assert told.replace(" ##", "").replace("##", "") == recipe.corpus.tokenizer.decode(tokens)


def test_a_run_leaves_a_model_that_fills(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", objective="masked-lm", **{"masked_lm.unit": "word", "data.window": 32})
    summary = run.summary
    assert summary["bits_per_hidden_token"] == pytest.approx(summary["loss"] / math.log(2))
    made = load(tmp_path / "run")
    assert summary["chance"] == pytest.approx(math.log(made.tokenizer.vocabulary))
    assert summary["loss"] < summary["chance"]
    assert summary["max_difference"] < 1e-4
    (candidates,) = made.fill("The c[MASK]t ran by the sea.", top=3)  # type: ignore[union-attr]
    assert len(candidates) == 3
    sample = sorted(run.samples.iterdir())[-1].read_text()
    assert " → " in sample
    card = (run.model_directory / "README.md").read_text()
    assert "masked language modelling" in card
    assert "from scratch" in card
