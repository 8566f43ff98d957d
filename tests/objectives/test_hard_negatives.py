"""Negatives that a training on pairs looks for itself: which those are, that they are trained on, and that a run which
was stopped anywhere, or shared by processes and threads, looks for the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, Train
from test_distributed import TORCHRUN, finish, start

import selfsup
from selfsup.accounting import SHARES
from selfsup.budget import Budget, Clock
from selfsup.data.pair_records import Framing, TextPairs
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.distributed import Processes
from selfsup.errors import Interrupted, UserError
from selfsup.files import save_tensors, write_manifest
from selfsup.inference.items import silent
from selfsup.objectives import find_recipe, mining
from selfsup.objectives.mining import Miner
from selfsup.objectives.recipe import Renewal
from selfsup.report import Reporter
from selfsup.run import Run

COUNT, DUE = 2, (3, 6)
SETTINGS: dict[str, Any] = {
    **TINY,
    "pairs.negatives": COUNT,
    "pairs.mining": [0.25, 0.5],
    "data.validation": 0.1,
    "checkpoint.every": 1,
    "checkpoint.keep": 20,
}
ANIMALS, PLACES = ("cat", "dog", "fox", "hen", "owl", "bee"), ("hill", "sea", "wood", "barn", "road", "lake")
OF_THE_CLOCK = ("time", "pairs_per_second", *SHARES)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of a query and a passage; some queries and some passages are there several times."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    made = [
        {"query": f"{animal} {place}", "passage": f"the {animal} ran by the {place} {number % 4}"}
        for number, (animal, place) in enumerate((animal, place) for animal in ANIMALS for place in PLACES)
    ]
    made += [{"query": "cat hill", "passage": "it sat"}, {"query": "a hen", "passage": "the cat ran by the hill 0"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


Go = Callable[..., Run]


@pytest.fixture(scope="module")
def go(rows: Path) -> Go:
    def train(out: Path, **given: Any) -> Run:
        return selfsup.train("pairs", data=rows, out=out, **{"reporter": Reporter(False), **SETTINGS, **given})

    return train


@pytest.fixture(scope="module")
def whole(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never stopped."""
    return go(tmp_path_factory.mktemp("whole") / "run")


def kept(run: Run, step: int) -> dict[str, dict[str, torch.Tensor]]:
    return run.checkpoints().load(step).tensors


def lines(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in OF_THE_CLOCK} for line in run.metrics()]


def assert_equal(run: Run, other: Run) -> None:
    """To the bit, in all that is trained, looked for and logged."""
    for step in (*DUE, SETTINGS["steps"]):
        one, two = kept(run, step), kept(other, step)
        assert one.keys() == two.keys() == {"model", "optimizer", "renewed"}
        for part in one:
            assert one[part].keys() == two[part].keys()
            assert all(tensor.equal(two[part][name]) for name, tensor in one[part].items()), (step, part)
    assert lines(run) == lines(other)


# -- which they are ------------------------------------------------------------------------------------------


def test_what_the_objective_takes_for_no_negative_is_none() -> None:
    """Distinct passages alone; none of the same query, of a shared place, or that equals the query."""
    tokenizer = train_tokenizer("words", ["a b c d e f g h"] * 9, 20, family="encoder")
    texts = ["a", "b", "a", "c", "d", "b", "e", "f", "f", "g", "h", "h"]  # query, passage, …
    ids = np.concatenate([tokenizer.encode(text) for text in texts])
    spans = np.arange(len(texts))[:, None] + [0, 1]
    places = np.array([[0, 0], [1, 1], [2, 2], [3, 7], [4, 7], [5, 5]])
    pairs = TextPairs(ids, spans.reshape(-1, 2, 2), places, (Framing(tokenizer, "", 8),) * 2)
    miner = Miner(pairs)
    assert sorted(texts[2 * pair + 1] for pair in miner.firsts) == ["b", "c", "f", "g", "h"]
    vectors = F.normalize(torch.rand(len(pairs), 2, 4, generator=torch.Generator().manual_seed(0)), dim=-1)

    def embed(side: int, numbers: np.ndarray) -> torch.Tensor:
        return vectors[numbers, side]

    found = miner.look(embed, 4, 1.0, Processes.alone(), silent)
    rest = miner.look(lambda side, n: -embed(side, n) if side else embed(side, n), 4, 1.0, Processes.alone(), silent)
    fit: list[set[str]] = []
    for of_both in zip(found.passages.tolist(), rest.passages.tolist(), strict=True):
        fit.append({texts[2 * miner.firsts[place] + 1] for side in of_both for place in side if place >= 0})
    assert fit == [set(letters) for letters in ("fgh", "fgh", "cfgh", "bch", "bch", "bcfg")]


def test_before_any_are_looked_for_they_are_drawn(whole: Run) -> None:
    before, first, second = (kept(whole, step)["renewed"]["negatives"] for step in (1, *(due + 1 for due in DUE)))
    assert kept(whole, DUE[0])["renewed"]["negatives"].equal(before)  # a checkpoint comes before the look
    assert before.shape == (len(before), COUNT)
    assert not before.equal(first)
    assert not first.equal(second)


def test_they_are_those_that_the_model_of_that_step_finds(whole: Run, rows: Path) -> None:
    """By a plain search among the vectors of the model as it was saved, with what it was trained on as text."""
    recipe: Any = find_recipe("pairs")(whole.settings(), None, None)
    recipe.open(silent)
    recipe.settle(None)
    objective = recipe.begin()
    objective.load_state_dict(kept(whole, DUE[0])["model"])
    batch = recipe.train.read(np.arange(len(recipe.train)))
    with torch.no_grad():
        query, passage = F.normalize(recipe.pooled(objective.encoder.eval(), batch), dim=-1).chunk(2)
    queries, passages = batch["query_keys"].tolist(), batch["passage_keys"].tolist()
    table = kept(whole, DUE[0] + 1)["renewed"]["negatives"].tolist()
    for number, negatives in enumerate(table):
        alike = {passages[other] for other, key in enumerate(queries) if key == queries[number]} | {queries[number]}
        similar = {key: float(query[number] @ passage[place]) for place, key in enumerate(passages)}
        bound = 0.95 * similar[passages[number]]
        fit = sorted((s for key, s in similar.items() if key not in alike and s < bound), reverse=True)[:COUNT]
        found = [similar[passages[place]] for place in negatives]
        assert found[: len(fit)] == pytest.approx(fit, abs=1e-5)


def test_they_are_trained_on(whole: Run, go: Go, tmp_path: Path) -> None:
    """From the first step after the look on; until then a run that looks elsewhen is the same."""
    other = go(tmp_path / "run", **{"pairs.mining": [0.5]})
    one, two = ([line["loss"] for line in run.metrics() if line["split"] == "train"] for run in (whole, other))
    assert one[:3] == two[:3]
    assert one[3] != two[3]


def test_what_was_found_is_told(go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = go(tmp_path / "run", reporter=Reporter())
    said = " ".join(capsys.readouterr().err.split())
    for step in DUE:
        assert f"step {step} {COUNT} negatives for each of" in said
    assert "that are nearer than 95% of that were passed over" in said
    assert "looked for by the model at 25%, 50% of the run" in said
    found = {line["step"]: line for line in run.metrics() if line["split"] == "train"}
    assert "passed_over" not in found[DUE[0]]
    assert found[DUE[0] + 1]["negative_similarity"] < found[DUE[0] + 1]["own_similarity"]


def test_what_it_takes_is_in_the_plan_and_in_the_budget(whole: Run, rows: Path) -> None:
    """All texts embedded, all queries compared, at two of a hundred steps; a budget counts those that are due yet."""
    recipe: Any = find_recipe("pairs")(whole.settings(), None, None)
    recipe.open(silent)
    recipe.settle(None)
    renewal = recipe.renewal(100)
    queries, passages, width = len(recipe.train), len(recipe.miner.firsts), TINY["model"]["width"]
    assert renewal.steps == (25, 50)
    assert renewal.memory == 4 * width * (queries + passages)
    compared = 2 * queries * passages * width / recipe.flops_per_record()
    assert renewal.records == pytest.approx((queries + passages) / 3 / (2 + COUNT) + compared)
    settings = whole.settings()
    settings.change("train.budget", 100.0, "test")
    clock = Clock(now=lambda: 0.0)
    budget = Budget(settings, clock, 0, False)
    for _ in range(9):
        budget.stepped(0.5)
    left = budget._left(10)
    budget.renewal = Renewal((5, 20, 30), 10 * settings["train.batch"])
    assert left - budget._left(10) == pytest.approx(2 * 10 * 0.5)


# -- the same, whatever happens ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [DUE[0] - 1, DUE[0], DUE[0] + 1, DUE[1]])
def test_a_run_that_was_stopped_at_a_step_goes_on_as_if_it_was_not(
    step: int, whole: Run, resume: Train, tmp_path: Path
) -> None:
    """Before a look for negatives, right before it, or behind it: of later steps nothing is left."""
    directory = tmp_path / "run"
    shutil.copytree(whole.directory, directory)
    shutil.rmtree(directory / "model")
    (directory / "summary.json").unlink()
    for later in whole.checkpoints().steps():
        if later > step:
            shutil.rmtree(directory / "checkpoints" / f"step-{later:09d}")
    assert_equal(resume(directory), whole)


def test_a_look_that_is_interrupted_is_made_again(
    whole: Run, go: Go, resume: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while texts are embedded: the run is saved as it stood before, what was found so far is not kept."""
    embedded = mining._embedded

    def interrupt(*given: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return embedded(*given)

    with monkeypatch.context() as patch:
        patch.setattr(mining, "_embedded", interrupt)
        with pytest.raises(Interrupted, match=f"Stopped at step {DUE[0]}; everything is saved"):
            go(tmp_path / "run", **{"checkpoint.every": 50})
    assert Run(tmp_path / "run").checkpoints().steps() == [DUE[0]]
    run = resume(tmp_path / "run")
    assert lines(run) == lines(whole)
    last = SETTINGS["steps"]
    assert kept(run, last)["renewed"]["negatives"].equal(kept(whole, last)["renewed"]["negatives"])


@pytest.mark.parametrize("workers", [0, 3])
def test_threads_that_read_ahead_change_nothing(workers: int, whole: Run, go: Go, tmp_path: Path) -> None:
    assert_equal(go(tmp_path / "run", **{"data.workers": workers}), whole)


def test_blocks_and_their_number_change_nothing_that_is_found(
    whole: Run, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "READ", 5)
    assert_equal(go(tmp_path / "run"), whole)


def test_two_processes_find_what_one_finds(rows: Path, tmp_path: Path) -> None:
    """Before the first step, when the weights are the same to the bit."""
    words = ["-m", "selfsup", "train", "pairs", "--data", str(rows), "--device", "cpu", "--out", "run", "--steps", "2"]
    own = SETTINGS | {"pairs.mining": "0", "steps": 2}
    words += [f"model.{key}={value}" for key, value in TINY["model"].items()]
    words += [f"{key}={value}" for key, value in own.items() if key not in ("model", "steps")]
    started = {}
    for name, launcher in {"one": TORCHRUN[:1], "two": TORCHRUN}.items():
        (tmp_path / name).mkdir()
        started[name] = start([*launcher, *words], tmp_path / name, tmp_path / f"cache-{name}")
    for process in started.values():
        finish(process)
    one, two = (kept(Run.open(tmp_path / name / "run"), 1) for name in started)
    assert one["renewed"]["negatives"].equal(two["renewed"]["negatives"])
    torch.testing.assert_close(one["renewed"]["figures"], two["renewed"]["figures"])


# -- what cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pairs.negatives": 0}, "pairs.mining says when negatives are looked for, and pairs.negatives is 0"),
        ({"pairs.negatives": 500}, "distinct passages, too few for 500 negatives of each query"),
        ({"pairs.from": "crops"}, "Crops are drawn anew in each epoch, so there are no pairs.negatives"),
    ],
)
def test_what_there_are_no_negatives_for(given: dict[str, Any], told: str, go: Go, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        go(tmp_path / "run", **given)


def test_a_checkpoint_with_other_negatives_is_passed_over(
    whole: Run, resume: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(whole.directory, directory)
    shutil.rmtree(directory / "model")
    (directory / "summary.json").unlink()
    place = directory / "checkpoints" / f"step-{SETTINGS['steps']:09d}"
    (place / "manifest.json").unlink()
    (place / "renewed.safetensors").unlink()
    save_tensors({"negatives": torch.zeros(3, COUNT, dtype=torch.int32)}, place / "renewed.safetensors")
    write_manifest(place)
    assert lines(resume(directory)) == lines(whole)
    assert "its records, figures is missing" in caplog.text
