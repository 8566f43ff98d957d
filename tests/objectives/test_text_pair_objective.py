"""Pairs of texts: loss and gradients against plain loops and sentence-transformers; what a run leaves."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import foreign
import numpy as np
import pytest
import torch
from conftest import Answer, Train
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

import selfsup
from selfsup.config import Settings
from selfsup.data.pair_records import Framing, TextPairs, paired
from selfsup.data.records import Batch
from selfsup.data.text_pairs import TextGroups
from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.models.encoder_layouts import read_encoder, write_encoder
from selfsup.objectives.base import Task
from selfsup.objectives.losses import found, info_nce
from selfsup.objectives.pairs import Pairs, PairsRecipe
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.step import gradients

ALONE = Processes.alone()
WINDOW, COUNT, CHOSEN = 16, 12, 2  # tokens, pairs, and negatives of each
Command = Callable[..., Answer]

# -- the loss ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    kinds=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=7),
    more=st.lists(st.integers(0, 3), max_size=4),
    seed=st.integers(0, 2**30),
)
def test_info_nce_against_a_plain_loop(kinds: list[tuple[int, int]], more: list[int], seed: int) -> None:
    """Queries and keys with identities of their own, and further keys."""
    random = torch.Generator().manual_seed(seed)
    count = len(kinds)
    raw = [torch.randn(n, 5, generator=random, dtype=torch.double) for n in (count, count, len(more))]
    queries, keys, others = (normalize(x, dim=-1).requires_grad_() for x in raw)
    mine, theirs = (torch.tensor(each) for each in zip(*kinds, strict=True))
    negatives = (others, torch.tensor(more)) if more else None
    total = info_nce(queries, keys, mine, 20.0, ALONE, theirs, negatives)
    nearest = 0
    losses = []
    for i in range(count):
        terms = [20 * queries[i] @ keys[j] for j in range(count) if j == i or mine[i] != theirs[j]]
        nearest += int(max(terms) <= 20 * queries[i] @ keys[i] + 1e-12)
        terms += [20 * queries[i] @ others[k] for k in range(len(more)) if mine[i] != more[k]]
        losses.append(torch.stack(terms).logsumexp(0) - 20 * queries[i] @ keys[i])
    expected = torch.stack(losses).sum()
    torch.testing.assert_close(total, expected)
    wanted = torch.autograd.grad(expected, (queries, keys, others), allow_unused=True)
    got = torch.autograd.grad(total, (queries, keys, others), allow_unused=True)
    for one, other, tensor in zip(got, wanted, (queries, keys, others), strict=True):
        nothing = torch.zeros_like(tensor)
        torch.testing.assert_close(nothing if one is None else one, nothing if other is None else other)
    assert int(found(queries, keys, mine, theirs, ALONE)) == nearest


# -- beside sentence-transformers ----------------------------------------------------------------------------


class Peer(NamedTuple):
    """The same small BERT here and in sentence-transformers, and pairs of texts, none of them twice."""

    directory: Path
    records: TextPairs
    negatives: dict[str, Tensor]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    place = foreign.bert(tmp_path_factory.mktemp("bert") / "bert", "BertModel")
    tokenizer, random = load_tokenizer(place, "encoder"), np.random.default_rng(0)
    texts = {" ".join(random.choice(foreign.WORDS, random.integers(2, 10))) for _ in range(99)}
    ids = [tokenizer.encode(text) for text in sorted(texts)]
    lengths = np.array(list(map(len, ids)), np.int64)

    def some(first: int, count: int) -> TextPairs:
        part = ids[first : first + 2 * count]
        groups = TextGroups(np.concatenate(part), lengths[first : first + 2 * count], np.full(count, 2))
        framing = Framing(tokenizer, "", WINDOW)
        return paired(groups, (framing, framing))

    more = some(2 * COUNT, COUNT * CHOSEN // 2).read(np.arange(COUNT * CHOSEN // 2))
    negatives = {
        f"negative_{what}": torch.cat((more[f"query_{what}"], more[f"passage_{what}"])).unflatten(0, (COUNT, CHOSEN))
        for what in ("tokens", "lengths", "keys")
    }
    return Peer(place, some(0, COUNT), negatives)


def ours(peer: Peer, sizes: Sequence[int], negatives: bool, dimensions: Sequence[int], place: Path) -> Any:
    """Loss and gradients, these by the names of transformers, of a batch in micro-batches of these sizes."""
    objective = Pairs(read_encoder(peer.directory).encoder(), "mean", 0.05, dimensions=dimensions)
    batches, start = [], 0
    for size in sizes:
        indices = np.arange(start, start + size)
        chosen = {name: tensor[indices] for name, tensor in peer.negatives.items()} if negatives else {}
        batches.append(Batch(peer.records.read(indices) | chosen, 0, np.zeros_like(indices), indices))
        start += size
    loss = gradients(objective.eval(), batches, ALONE)["loss"]
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    write_encoder(place, objective.encoder, load_tokenizer(peer.directory, "encoder"), peer.directory)
    return float(loss), load_file(place / "model.safetensors")


def theirs(peer: Peer, kind: str, negatives: bool, dimensions: Sequence[int]) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(peer.directory), max_seq_length=WINDOW)
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu").eval()
    how = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    cached = {"mini_batch_size": 5} if kind.startswith("Cached") else {}
    loss = getattr(losses, kind)(model, scale=20.0, **how, **cached)
    if dimensions:
        loss = losses.MatryoshkaLoss(model, loss, matryoshka_dims=list(dimensions))
    data = peer.records.read(np.arange(COUNT))
    columns = [(data["query_tokens"], data["query_lengths"]), (data["passage_tokens"], data["passage_lengths"])]
    if negatives:
        columns += zip(
            peer.negatives["negative_tokens"].unbind(1), peer.negatives["negative_lengths"].unbind(1), strict=True
        )
    features = [
        {"input_ids": tokens, "attention_mask": (torch.arange(WINDOW) < lengths[:, None]).long()}
        for tokens, lengths in columns
    ]
    value = loss(features, torch.zeros(COUNT))
    value.backward()
    network = transformer.auto_model
    return float(value.detach()), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "sizes", "negatives", "dimensions"),
    [
        ("MultipleNegativesRankingLoss", [COUNT], False, ()),
        ("MultipleNegativesRankingLoss", [COUNT], True, ()),
        ("MultipleNegativesRankingLoss", [COUNT], True, (8, 16, 32)),
        ("CachedMultipleNegativesRankingLoss", [5, 3, 4], True, ()),
    ],
)
def test_loss_and_gradients_are_those_of_sentence_transformers(
    kind: str, sizes: list[int], negatives: bool, dimensions: tuple[int, ...], peer: Peer, tmp_path: Path
) -> None:
    """Both directions, with chosen negatives, of cut vectors, and by gradient caching; in fp32."""
    (loss, mine), (expected, others) = (
        ours(peer, sizes, negatives, dimensions, tmp_path),
        theirs(peer, kind, negatives, dimensions),
    )
    assert loss == pytest.approx(expected, rel=1e-5)
    assert len(others) > 30
    largest = max(float(gradient.norm()) for gradient in others.values())
    for name, gradient in others.items():
        if "pooler" in name or float(gradient.norm()) < 1e-5 * largest:  # of the bias of keys nothing but rounding
            continue
        assert float((mine[name] - gradient).norm()) < 1e-4 * float(gradient.norm()), name


# -- the task ------------------------------------------------------------------------------------------------


def test_what_is_equal_or_of_one_place_is_no_negative(peer: Peer) -> None:
    """A loss to which only the first two pairs matter is that of them alone: all others share a text or a place."""
    objective = Pairs(read_encoder(peer.directory).encoder(), "mean", 0.05).eval()
    data = peer.records.read(np.arange(6))
    whole = objective.hide(Batch(data, 0, np.zeros(6), np.arange(6)))
    outputs = {name: tensor.detach() for name, tensor in objective.predict(whole).items()}
    tensors = {name: tensor.clone() for name, tensor in whole.tensors.items()}
    tensors["query_keys"][2] = tensors["query_keys"][0]  # one query, two passages
    tensors["passage_keys"][3] = tensors["passage_keys"][0]
    tensors["passage_keys"][4] = tensors["query_keys"][0]  # a passage that is a query elsewhere
    tensors["places"][5, 1] = tensors["places"][0, 1]
    similar = normalize(outputs["query"], dim=-1) @ normalize(outputs["passage"], dim=-1).T / 0.05
    apart = torch.ones(6, 6, dtype=torch.bool)
    for one, other in ((0, 2), (0, 3), (0, 4), (0, 5)):
        apart[one, other] = apart[other, one] = False
    apart[4, 0], apart[2, 4] = True, False  # the fifth query equals nothing; the third one is the first one
    forth = -(similar.masked_fill(~apart, -torch.inf).log_softmax(1)).diagonal().sum()
    back = -(similar.T.masked_fill(~apart.T, -torch.inf).log_softmax(1)).diagonal().sum()
    sums = objective.score(outputs, Task(tensors, whole.counts), ALONE)
    assert float(sums["info_nce"]) == pytest.approx(float(forth + back) / 2, rel=1e-5)


# -- runs ----------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"objective": "pairs", "data.window": 40, "train.batch": 16, "tokenizer": "words"}
WORDS = ("cat", "dog", "fox", "hen", "cow", "owl")


def rows(count: int = 120) -> list[dict[str, str]]:
    draws = np.random.default_rng(0)
    made = []
    for number in range(count):
        one, other = draws.choice(WORDS, 2, replace=False)
        made.append({"title": f"{one} and {other} {number}", "body": f"The {one} met the {other}, day {number}."})
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "titles.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return file


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    stories = [" ".join(row["body"] for row in rows()[n : n + 6]) for n in range(0, 120, 4)]
    file.write_text("".join(json.dumps({"text": f"Story {n}\n{text}"}) + "\n" for n, text in enumerate(stories)))
    return file


def test_a_run_of_two_columns(train: Train, table: Path, tmp_path: Path) -> None:
    prompts = {"pairs.query_prompt": "day ", "pairs.passage_prompt": "met "}
    run = train(tmp_path / "run", data=table, **SMALL, **prompts, **{"train.micro_batch": 5})
    model, chosen = run.model, run.settings(PairsRecipe)
    assert isinstance(model, EncoderModel)
    assert [chosen[f"pairs.{key}"] for key in ("from", "query", "passage")] == ["columns", "title", "body"]
    assert chosen.origin("pairs.from") == "data"
    facts = run.plan()["facts"]
    assert facts["pairs"] == "'title' with 'body'"
    assert facts["data"].startswith("120 pairs, ")
    assert facts["prompts"] == "query 'day ', passage 'met '"
    assert run.environment()["plan"]["chance"] == pytest.approx(math.log(16))
    assert model.features.prompts == {"query": "day ", "document": "met "}
    one, other = model.embed(["cat"], prompt="query"), model.embed(["day cat"])
    np.testing.assert_allclose(one, other)
    assert run.summary["pairs"] == 12 * 16
    assert run.summary["max_difference"] < 1e-5
    assert {"found", "info_nce", "pairs_per_second"} <= run.metrics()[0].keys()
    assert "contrasting pairs of texts" in (run.model_directory / "README.md").read_text()
    query, *nearest = sorted(run.samples.glob("*.txt"))[-1].read_text(encoding="utf-8").splitlines()
    assert query.startswith("“day ")
    assert len(nearest) == 3
    assert all(re.match(r"  -?\d\.\d{3}(  \(its own\))?  “met The ", line) for line in nearest)


@pytest.mark.parametrize("origin", ["title", "neighbours", "crops"])
def test_a_run_of_documents(origin: str, train: Train, stories: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", data=stories, **SMALL | {"data.window": 14}, **{"pairs.from": origin})
    assert run.summary["max_difference"] < 1e-5
    assert run.plan()["facts"]["pairs"].endswith("rest of it" if origin == "title" else "of a document")
    assert f"from: {origin}" in run.config_file.read_text()
    assert run.environment()["counts"].keys() == (
        {"pairs", "alike_pairs"} if origin == "title" else {"documents", "duplicates"}
    )


def test_neighbours_are_what_documents_are_taken_for(stories: Path) -> None:
    made, chosen = plan(stories)
    assert chosen["pairs.from"] == "neighbours"
    assert "adjacent passages" in made.facts["pairs"]
    assert chosen["data.column"] == "text"


def plan(data: object, **given: Any) -> tuple[Any, Settings]:
    how = {"tokenizer": "words", "model": {"layers": 1, "width": 32, "heads": 1}, "steps": 3, "data.window": 14}
    return selfsup.plan("pairs", data=data, **{**how, **given})


def test_vectors_that_can_be_cut(train: Train, table: Path, tmp_path: Path) -> None:
    """Each length is trained; the whole one belongs to them, and no map mixes their numbers."""
    run = train(tmp_path / "run", data=table, **SMALL, **{"pairs.dimensions": "8,16"})
    assert run.settings(PairsRecipe)["pairs.dimensions"] == (8, 16, 32)
    assert run.settings(PairsRecipe)["model.whiten"] is False
    lines = run.metrics()
    assert {"info_nce_8", "info_nce_16", "info_nce_32"} <= lines[0].keys()
    terms = sum(lines[0][f"info_nce_{number}"] for number in (8, 16, 32))
    assert lines[0]["loss"] == pytest.approx(terms, rel=1e-5)
    assert run.environment()["plan"]["chance"] == pytest.approx(3 * math.log(16))
    assert isinstance(run.model, EncoderModel)
    assert run.model.features.weight is None
    assert run.model.dimensions == (8, 16, 32)


def test_prompts_of_what_is_started_from_go_on(train: Train, table: Path, tmp_path: Path) -> None:
    """Until others are given; as they were trained with."""
    prompts = {"pairs.query_prompt": "day ", "pairs.passage_prompt": "met "}
    first = train(tmp_path / "first", data=table, **SMALL, **prompts)
    how = {"data": table, "init": first.directory, "steps": 2, "batch": 8, "reporter": Reporter(False)}
    going_on = selfsup.train("pairs", out=tmp_path / "on", **how)
    assert going_on.settings(PairsRecipe)["pairs.query_prompt"] == "day "
    other = selfsup.train(
        "pairs", out=tmp_path / "other", **how, **{"pairs.query_prompt": "", "pairs.passage_prompt": "The "}
    )
    for run, expected in ((going_on, {"query": "day ", "document": "met "}), (other, {"document": "The "})):
        assert isinstance(run.model, EncoderModel)
        assert run.model.features.prompts == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pairs.dimensions": [64]}, "Vectors have 32 numbers, so pairs.dimensions cannot ask for 64"),
        ({"pairs.dimensions": [8], "model.whiten": True}, "model.whiten mixes the numbers of a vector"),
        ({"pairs.dimensions": "eight"}, "'pairs.dimensions' cannot be"),
        ({"pairs.from": "rows"}, "'pairs.from' cannot be 'rows'"),
        ({"pairs.form": "crops"}, "did you mean 'pairs.from'"),
        ({"pairs.query_prompt": "a b c d e f g h i j k l m n"}, "make data.window"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], said: str, table: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        plan(table, **given)


def test_from_is_a_setting_like_any_other(selfsup_command: Command, stories: Path, tmp_path: Path) -> None:
    """On the command line, in a file, and in what a run leaves."""
    words = ["model.layers=1", "model.width=32", "model.heads=1", "data.tokenizer=words", "data.window=14"]
    config = tmp_path / "config.yaml"
    config.write_text("objective: pairs\npairs:\n  from: crops\n  temperature: 0.1\n")
    given = ["--data", stories, "--steps", "2", *words]
    first = selfsup_command("train", "--config", config, "--out", tmp_path / "one", *given)
    second = selfsup_command(
        "train", "pairs", "--out", tmp_path / "two", *given, "pairs.from=crops", "pairs.temperature=0.1"
    )
    assert (first.code, second.code) == (0, 0), f"{first}{second}"
    one, two = (Run(tmp_path / name) for name in ("one", "two"))
    assert one.summary["loss"] == two.summary["loss"]
    assert one.settings(PairsRecipe)["pairs.from"] == "crops"


def test_from_an_encoder_that_others_made(table: Path, tmp_path: Path) -> None:
    """With its pooling, whose vectors are not whitened; and back into its class."""
    place = foreign.roberta(tmp_path / "roberta")
    run = selfsup.train(
        "pairs", data=table, init=place, steps=2, batch=8, out=tmp_path / "run", reporter=Reporter(False),
        precision="fp32",
    )  # fmt: skip
    assert run.settings(PairsRecipe)["model.whiten"] is False
    assert json.loads((run.model_directory / "config.json").read_text())["model_type"] == "roberta"
    assert run.summary["max_difference"] < 1e-4


def test_a_query_finds_its_passage(train: Train, table: Path, tmp_path: Path) -> None:
    """Of held-out pairs, far more often than by chance, after a training of seconds."""
    run = train(tmp_path / "run", data=table, **{**SMALL, "train.batch": 32, "steps": 60, "optim.warmup": 5})
    last = run.metrics()[-1]
    assert last["found"] > 0.5
    assert last["loss"] < 0.7 * math.log(8)
