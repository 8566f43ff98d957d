"""Objectives of two views of a sentence: what each sees, who is whose positive and negative, how similar they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.inspection.alike import Alike, alike, roles, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Bars, Line, Section, Table, Token, Tokens, mean, section
from selfsup.inspection.opening import first_batch
from selfsup.inspection.texts import opened, take_small
from selfsup.models.encoder import TextEncoder
from selfsup.objectives.recipe import Effort
from selfsup.objectives.simcse import VIEWS, SimCSE, SimCSERecipe, kept_tokens
from selfsup.objectives.starting import take_shape
from selfsup.objectives.text_networks import OwnEncoder
from selfsup.step import predict

SEEN_IN = ("neither", "first", "second", "")  # views that a token is left in: the last, both
BATCH = 24  # sentences that are looked at
NUMBERS = 32  # of a vector that are shown
PAIRS = 4  # sentences whose two views are drawn
CELL = 22  # of the matrix
MEANING = {OWN: "its own other view", ALIEN: "a negative", OUT: "the same sentence, so no negative"}


@dataclass(frozen=True)
class Views:
    """What an encoder makes of the two views of the sentences: how alike they are, and the first numbers of both."""

    alike: Alike
    first: list[list[float]]
    second: list[list[float]]


def inspect_sentences(request: Request) -> Inspection:
    """The sentences, their order and the objective are those of the training."""
    model = None if request.run is None else load_as(request.run, EncoderModel)
    source, recipe = _open(request, model)
    objective, init = recipe.build(), recipe.settings["model.init"]
    objectives = {"before training" + (f" ({init})" if init else ""): objective}
    if model is not None:
        objectives[str(request.run)] = recipe.objective_on(_with_dropout(model.native, recipe))
    batch = first_batch(recipe, min(BATCH, recipe.settings["train.batch"]))
    views = [_views(name, each, batch) for name, each in objectives.items()]
    how = {
        "temperature": objective.temperature,
        "dropout": recipe.settings["model.dropout"],
        "deletion": objective.deletion,
        "pooling": objective.pooling,
    }
    return _inspection(request, source, recipe, batch, views, how)


def _inspection(
    request: Request, source: str, recipe: SimCSERecipe, batch: Batch, views: list[Views], how: dict[str, Any]
) -> Inspection:
    tokenizer, data = recipe.corpus.tokenizer, batch.data
    pairs = zip(data["tokens"].tolist(), data["lengths"].tolist(), strict=True)
    rows = [row[:length] for row, length in pairs]
    texts, roles = [tokenizer.decode(row) for row in rows], views[0].alike.roles
    negatives, equal = (sum(row.count(role) for row in roles) for role in (ALIEN, OUT))
    said = "temperature {temperature:g}, dropout {dropout:g}, deletion {deletion:g}, {pooling} pooling"
    facts = [
        source,
        f"{len(roles)} of {len(recipe.train):,} sentences",
        f"{negatives:,} negatives",
        *([f"{equal} pairs of equal sentences left out"] if equal else []),
        said.format(**how),
    ]
    shown = _shown(list(map(tokenizer.tokens, rows)), batch, how["deletion"], roles)
    values = {"source": source, "length": len(recipe.train), "texts": texts, **how}
    values["views"] = list(map(asdict, views))
    return Inspection.of(request.objective, recipe.idea, facts, [shown, *_told(texts, views)], values)


# -- what is looked at --


def _open(request: Request, model: EncoderModel | None) -> tuple[str, SimCSERecipe]:
    """The name of what is looked at, and the recipe, settled; its encoder is a small one where nothing says which."""
    settings = request.settings
    if model is not None:
        take_shape(settings, "model", OwnEncoder.shape, model.native.config, str(request.run))
    else:
        take_small(settings)
    if request.window is not None:
        settings.change("data.window", request.window, "given")
    recipe, source = opened(request, None if model is None else model.tokenizer)
    assert isinstance(recipe, SimCSERecipe)
    recipe.settle(Effort())
    if len(recipe.train) < 2:
        raise UserError("There is one sentence alone, so it has no negatives; give two or more.")
    return source, recipe


def _with_dropout(encoder: TextEncoder, recipe: SimCSERecipe) -> TextEncoder:
    """The same weights, with the dropout of the training."""
    copy = TextEncoder(replace(encoder.config, dropout=recipe.settings["model.dropout"]))
    copy.load_state_dict(encoder.state_dict())
    return copy


@torch.inference_mode()
def _views(name: str, objective: SimCSE, batch: Batch) -> Views:
    """Both views of each sentence, with the deletion and dropout of the first step."""
    objective.projection = nn.Identity()
    made, keys = objective.train().hide(batch), batch.data["keys"].numpy()
    found = roles(np.eye(len(keys), dtype=bool), keys[:, None] == keys)
    outputs = predict(objective, batch, made, nullcontext)
    first, second = (outputs[view] for view in VIEWS)
    similar = alike(name, objective, made, outputs, found, first, second)
    return Views(similar, first[:, :NUMBERS].tolist(), second[:, :NUMBERS].tolist())


# -- what is shown --


def _shown(tokens: list[list[str]], batch: Batch, deletion: float, roles: list[str]) -> Section:
    first, second = (kept_tokens(batch, deletion, view).int() for view in VIEWS)
    lines = []
    for t, (names, seen) in enumerate(zip(tokens, (first + 2 * second).tolist(), strict=True)):
        row = [Token(name, SEEN_IN[views]) for name, views in zip(names, seen, strict=False)]
        same = [str(other + 1) for other, role in enumerate(roles[t]) if role == OUT]
        lines.append(Line(row, str(t + 1), f" (equal to {', '.join(same)})" if same else ""))
    return section("sentences", "shown", Tokens(lines))


def _told(texts: list[str], views: list[Views]) -> list[Section]:
    last, found = views[-1], [each.alike for each in views]
    said = [f"{number} “{text}”" for number, text in enumerate(texts, 1)]
    numbers = [str(number) for number in range(1, len(texts) + 1)]
    how = {"limits": (0.0, 1.0), "cell": CELL, "said": (said, said), "meaning": MEANING}
    vectors = [
        Bars(said[t], {"view 1": last.first[t], "view 2": last.second[t]}, f"cosine {last.alike.own(t):.3f}")
        for t in range(min(PAIRS, len(texts)))
    ]
    return [
        section("sentences", "vectors", *vectors, numbers=NUMBERS, name=last.alike.name),
        section("sentences", "alike", *(each.matrix(numbers, numbers, **how) for each in found)),
        section("sentences", "figures", _figures(found)),
        section("sentences", "hardest", _hardest(texts, last.alike), name=last.alike.name),
    ]


def _figures(found: list[Alike]) -> Table:
    chance = mean([math.log(1 + row.count(ALIEN)) for row in found[0].roles])
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine with its own other view": lambda each: f"{each.mean(OWN):.3f}",
        "with a negative": lambda each: f"{each.mean(ALIEN):.3f}",
        "with the hardest negative": lambda each: f"{mean([c for _, c in each.hardest().values()]):.3f}",
        "nearer to it than to any negative": lambda each: f"{each.found():.0%}",
        f"loss (chance {chance:.3f})": lambda each: f"{each.loss:.3f}",
    }
    return table(found, rows)


def _hardest(texts: list[str], network: Alike) -> Table:
    found = [(t, other, cosine, network.own(t)) for t, (other, cosine) in network.hardest().items()]
    rows = [
        [f"{t + 1} {texts[t]} ~ {other + 1} {texts[other]}", f"{cosine:.2f}", f"{own:.2f}"]
        for t, other, cosine, own in sorted(found, key=lambda each: each[3] - each[2])
    ]
    return Table(["a sentence ~ its hardest negative", "cosine", "own other view"], rows)
