"""Training on mixtures of sources: every objective that can, by the same bits as if it were never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_PAIRS, TINY_VISION, Answer, Train
from drawings import write_drawings
from safetensors.torch import load_file
from tiny_encoder import save_tiny

import selfsup
from selfsup.data.mixture import Mixture
from selfsup.data.text import shared_tokenizer
from selfsup.data.tokenizer_training import Training, train_on_mixture, train_tokenizer
from selfsup.errors import UserError
from selfsup.report import Reporter
from selfsup.run import Run

FEW: dict[str, Any] = {"steps": 6, "checkpoint.every": 3, "evaluate.every": 3, "train.log_every": 1}
SENTENCES: dict[str, Any] = {**TINY, **FEW, "data.window": 24, "batch": 8}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "causal-lm": {**TINY, **FEW},
    "masked-lm": {**TINY, **FEW},
    "simcse": SENTENCES,
    "tsdae": SENTENCES,
    "pairs": SENTENCES,
    "mae": {**TINY_VISION, **FEW, "mae.decoder_layers": 1},
    "dino": {**TINY_VISION, **FEW, "dino.prototypes": 64},
    "clip": {**TINY_PAIRS, **FEW},
}

OFTEN = ("causal-lm", "pairs", "dino")  # the others are long


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For texts and images a mixture each: a large source with little weight, and a small one with much."""
    folder = tmp_path_factory.mktemp("sources")
    stories = [f"Day {n} began. The fox ran {n} miles. It slept by the sea at last." for n in range(90)]
    with (folder / "stories.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in stories)
    plays = [{"line": f"Enter number {n}. He speaks of love. Exit all but {n}.", "act": n} for n in range(12)]
    (folder / "plays.json").write_text(json.dumps(plays))
    (folder / "mix.yaml").write_text(
        "sources:\n  stories: {data: stories.jsonl, weight: 1}\n  plays: {data: plays.json, weight: 3, column: line}\n"
    )
    for name, count, side in (("many", 60, 20), ("few", 16, 28)):
        directory = write_drawings(folder / name, count, side)
        for number in range(count):
            (directory / f"{number:03d}.txt").write_text(f"{name} drawing {number}")
    (folder / "images.yaml").write_text("sources:\n  many: {data: many, weight: 1}\n  few: {data: few, weight: 1}\n")
    return {"texts": folder / "mix.yaml", "images": folder / "images.yaml"}


def train_on(data: object, out: Path, objective: str, **given: Any) -> Run:
    settings = {**OBJECTIVES[objective], "objective": objective, "data": data, "out": out, "reporter": Reporter(False)}
    return selfsup.train(**{**settings, **given})


@pytest.mark.parametrize(
    "objective", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in OBJECTIVES]
)
def test_a_mixture_is_trained_on_looked_at_by_source_and_resumed(
    places: dict[str, Path], tmp_path: Path, resume: Train, objective: str
) -> None:
    images = objective in ("mae", "dino", "clip")
    shares = {"many": 0.5, "few": 0.5} if images else {"stories": 0.25, "plays": 0.75}
    run = train_on(str(places["images" if images else "texts"]), tmp_path / "run", objective)
    for line in run.metrics():
        if line["split"] == "validation":
            parts = sum(share * line[f"loss/{name}"] for name, share in shares.items())
            assert line["loss"] == pytest.approx(parts, abs=1e-9)
    assert {f"loss/{name}" for name in shares} <= run.summary.keys()
    facts = run.environment()["plan"]["facts"]
    assert all(name in facts["mixture"] and f"source {name}" in facts for name in shares)
    again = Run(shutil.copytree(run.directory, tmp_path / "again"))
    shutil.rmtree(again.model_directory)
    last = again.checkpoints_directory / max(place.name for place in again.checkpoints_directory.iterdir())
    shutil.rmtree(last)
    (again.directory / "summary.json").unlink()
    resume(again.directory)
    for file in run.model_directory.rglob("*.safetensors"):
        assert_same_tensors(file, again.model_directory / file.relative_to(run.model_directory))
    assert [line["loss"] for line in again.metrics()] == [line["loss"] for line in run.metrics()]


def assert_same_tensors(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_mapping_from_python(tmp_path: Path) -> None:
    """Objects from Python are sources too; shares may be said by passes."""
    few, many = [f"a few words {n}" for n in range(40)], [f"many more words than that {n}" for n in range(80)]
    data = {"sources": {"few": {"data": few, "epochs": 4}, "many": {"data": many, "epochs": 1}}}
    made, settings = selfsup.plan(
        "causal-lm", data=data, reporter=Reporter(False), **{**TINY, "steps": None, "epochs": 1}
    )
    sizes = {
        name: int(made.facts[f"source {name}"].split(" tokens")[0].split()[-1].replace(",", ""))
        for name in data["sources"]
    }
    assert settings["data.source"] == "python:dict"
    passes = {part.split()[0]: float(part.split("(")[1].split()[0]) for part in made.facts["mixture"].split(", ")}
    assert passes["few"] == pytest.approx(4, rel=0.1)
    assert passes["many"] == pytest.approx(1, rel=0.1)
    share = 4 * sizes["few"] / (4 * sizes["few"] + sizes["many"])
    assert float(made.facts["mixture"].split()[1]) == pytest.approx(share, rel=0.05)


def test_prepared_corpora_are_mixed_with_texts(tmp_path: Path, places: dict[str, Path]) -> None:
    """All have the tokenizer of the prepared one."""
    folder = places["texts"].parent
    tokens = tmp_path / "tokens"
    selfsup.prepare("causal-lm", data=folder / "stories.jsonl", out=tokens, tokenizer="characters", workers=1)
    mix = {
        "sources": {
            "ready": {"data": str(tokens), "weight": 1},
            "plays": {"data": str(folder / "plays.json"), "weight": 1, "column": "line"},
        }
    }
    (tmp_path / "mix.yaml").write_text(json.dumps(mix))
    settings = {**OBJECTIVES["causal-lm"]}
    del settings["tokenizer"]
    run = selfsup.train(
        "causal-lm", data=tmp_path / "mix.yaml", out=tmp_path / "run", reporter=Reporter(False), **settings
    )
    own = json.loads((run.model_directory / "tokenizer.json").read_text())
    assert own["model"] == json.loads((tokens / "tokenizer" / "tokenizer.json").read_text())["model"]
    assert {"loss/ready", "loss/plays"} <= run.summary.keys()
    with pytest.raises(UserError, match="has a tokenizer of its own"):
        selfsup.train(
            "causal-lm", data=tmp_path / "mix.yaml", out=tmp_path / "no", tokenizer="words", reporter=Reporter(False)
        )


def test_replay_beside_a_mixture(tmp_path: Path, places: dict[str, Path], corpus: Path) -> None:
    run = train_on(str(places["texts"]), tmp_path / "run", "causal-lm", **{"data.replay": f"{corpus}:0.25"})
    looks = [line for line in run.metrics() if line["split"] == "validation"]
    assert all({"loss/plays", "loss/stories", "replay_loss"} <= line.keys() for line in looks)


def test_a_tokenizer_learns_from_each_source_by_its_share() -> None:
    one, other = ["aaaa bbbb "] * 50, ["cccc dddd "] * 500
    sources = [Training(lambda: one, 500), Training(lambda: other, 5000)]
    heavy = train_on_mixture("bpe", sources, [0.9, 0.1], 264, "decoder")
    light = train_on_mixture("bpe", sources, [0.01, 0.99], 264, "decoder")
    lengths = [[len(tokenizer.encode(text)) for text in (one[0], other[0])] for tokenizer in (heavy, light)]
    assert lengths[0][0] < lengths[0][1]
    assert lengths[1][0] > lengths[1][1]
    alone = train_on_mixture("characters", sources, [0.9, 0.1], None, "decoder")
    assert alone.fingerprint == train_tokenizer("characters", [*one, *other]).fingerprint


def test_a_shared_tokenizer_is_kept(tmp_path: Path) -> None:
    opened: list[int] = []

    def sources() -> list[Training]:
        opened.append(1)
        return [Training(lambda: ["some words", "and more"], 18)]

    made = [shared_tokenizer("bpe", 300, "decoder", lambda sizes: [1.0], (str(tmp_path),), sources) for _ in range(2)]
    assert opened == [1]
    assert made[0].fingerprint == made[1].fingerprint


def test_places_of_pairs_are_of_their_own_source() -> None:
    class Placed:
        def __len__(self) -> int:
            return 9

        def read(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
            return {"places": torch.from_numpy(np.stack([indices, indices + 1], 1))}

    mixed = Mixture([Placed(), Placed()], [1, 1])
    places = mixed.read(np.arange(18))["places"]
    assert set(places[:9].flatten().tolist()).isdisjoint(places[9:].flatten().tolist())
    assert torch.equal(places[9:, 1] - places[9:, 0], torch.ones(9, dtype=torch.int64))


# -- what is refused -----------------------------------------------------------------------------------------

MISSING = "gone in FILE: There is no file or folder"
REFUSED: dict[str, tuple[str, str]] = {
    "gone: {data: nothing/here.txt, weight: 1}": ("causal-lm", MISSING),
    "gone: {data: nothing/here.txt, weight: 2}": ("dino", "gone in FILE: There is no file or folder"),
    "empty: {data: empty.txt, weight: 1}": ("causal-lm", "empty in FILE: "),
    "plays: {data: plays.json, weight: 1, column: text}": ("causal-lm", "plays in FILE: "),
    "short: {data: short.txt, weight: 1}": ("causal-lm", "short in FILE: The text has "),
    "plays: {data: plays.json, weight: 0.00001, column: line}": ("causal-lm", "plays has 1e-05 of the mixture"),
    "plays: {data: plays.json, weight: 1, column: line}": ("distill", "distill trains on one source, not on a mixture"),
}


@pytest.mark.parametrize("source", REFUSED)
def test_a_source_that_is_of_no_use_is_named(places: dict[str, Path], tmp_path: Path, source: str) -> None:
    objective, said = REFUSED[source]
    folder = shutil.copytree(places["texts"].parent, tmp_path / "sources")
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("hi")
    path = folder / "mix.yaml"
    path.write_text(f"sources:\n  {source}\n  stories: {{data: stories.jsonl, weight: 1}}\n")
    given = {**TINY, "objective": objective, "data": str(path), "out": tmp_path / "run", "reporter": Reporter(False)}
    if objective == "dino":
        given = {**given, **TINY_VISION}
        del given["tokenizer"], given["data.window"]
    if objective == "distill":
        teacher = str(save_tiny(tmp_path / "teacher"))
        given = {"objective": "distill", "data": str(path), "teacher": teacher, "reporter": Reporter(False)}
    with pytest.raises(UserError) as refused:
        selfsup.train(**given)
    assert said.replace("FILE", str(path)) in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_commands_on_one_source_say_so(
    places: dict[str, Path], tmp_path: Path, selfsup_command: Callable[..., Answer]
) -> None:
    run = train_on(str(places["texts"]), tmp_path / "run", "causal-lm")
    answer = selfsup_command("evaluate", run.directory, "--protocol", "bits-per-byte")
    assert answer.code == 2
    assert "was trained on a mixture of sources; name one of them with --data." in answer.error
    for words in (["causal-lm", "--data", places["texts"]], ["causal-lm", "--run", run.directory]):
        answer = selfsup_command("inspect", *words)
        assert answer.code == 2
        assert "One source is looked at, not a mixture of several; name one of them by --data." in answer.error
    other = train_on(str(places["texts"].parent / "stories.jsonl"), tmp_path / "other", "causal-lm")
    answer = selfsup_command("compare", run.directory, other.directory)
    assert answer.code == 0
    assert "loss on plays" in answer.out
    assert "loss on stories" in answer.out
    words = ["train", "causal-lm", "--data", places["texts"], "evaluate.protocols=bits-per-byte"]
    assert "bits-per-byte needs one text and a mixture has several" in selfsup_command(*words).error


def test_a_changed_weight_is_another_mixture(places: dict[str, Path], tmp_path: Path, resume: Train) -> None:
    folder = shutil.copytree(places["texts"].parent, tmp_path / "sources")
    run = train_on(str(folder / "mix.yaml"), tmp_path / "run", "causal-lm")
    text = (folder / "mix.yaml").read_text()
    (folder / "mix.yaml").write_text(text.replace("weight: 3", "weight: 2"))
    with pytest.raises(UserError, match="changed"):
        resume(run.directory, steps=8)
