"""Objectives of pairs of texts: the pairs of a batch, how alike a network finds them, and what it confuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from selfsup.data.pair_records import SIDES
from selfsup.errors import UserError
from selfsup.inspection.alike import Alike, alike, roles, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Line, Section, Table, Token, Tokens, mean, section
from selfsup.inspection.blocks import task as task_of
from selfsup.inspection.figures import networks
from selfsup.inspection.opening import first_batch
from selfsup.inspection.texts import opened, take_small
from selfsup.objectives.base import Task
from selfsup.objectives.pairs import Pairs, PairsRecipe
from selfsup.objectives.recipe import Effort

BATCH = 24  # pairs that are looked at
CELL = 22  # of the matrix
MEANING = {OWN: "a pair", ALIEN: "a negative", OUT: "equal, or of one place, so no negative"}


def inspect_text_pairs(request: Request) -> Inspection:
    """The pairs, their order and the objective are those of the training."""
    source, recipe = _open(request)
    batch = first_batch(recipe, min(BATCH, recipe.settings["train.batch"]))
    built = recipe.begin()
    assert isinstance(built, Pairs)
    task = built.hide(batch)
    found = roles(np.eye(len(batch), dtype=bool), _together(task))
    likes = []
    for name, objective in networks(built, request.run):
        with torch.inference_mode():
            outputs = objective.predict(task)
        likes.append(alike(name, objective, task, outputs, found, *(outputs[side] for side in SIDES)))
    rows = {side: _rows(task, side) for side in SIDES}
    texts = {side: [recipe.corpus.tokenizer.decode(row) for row in rows[side]] for side in SIDES}
    negatives, equal = (sum(row.count(role) for row in found) for role in (ALIEN, OUT))
    facts = [
        source,
        recipe.text.told(),
        f"{len(batch)} of {len(recipe.train):,} pairs",
        f"{negatives:,} negatives",
        *([f"{equal} left out, equal or of one place"] if equal else []),
        f"temperature {built.temperature:g}, {built.pooling} pooling",
    ]
    said = task_of("text_pairs", recipe.words, pairs=recipe.text.told())
    sections = [said, _shown(recipe, rows), *_told(texts, likes)]
    values: dict[str, Any] = {"source": source, "length": len(recipe.train), "texts": texts}
    values |= {"temperature": built.temperature, "found": list(map(asdict, likes))}
    return Inspection.of(request.objective, recipe.idea, facts, sections, values)


def _open(request: Request) -> tuple[str, PairsRecipe]:
    """The name of what is looked at, and the recipe, settled; its encoder is a small one where nothing says which."""
    if request.text is not None or request.window is not None:
        raise UserError(f"--text and --window say nothing to {request.objective}; give --data.")
    if request.run is None:
        take_small(request.settings)
    recipe, source = opened(request, None)
    assert isinstance(recipe, PairsRecipe)
    recipe.settle(Effort())
    if len(recipe.train) < 2:
        raise UserError("There is one pair alone, so it has no negatives; give two or more.")
    return source, recipe


def _together(task: Task) -> np.ndarray:
    """Which passage (column) is none of a query's (row) negatives, (n, n)."""
    query, passage = (task[f"{side}_keys"].numpy() for side in SIDES)
    places = task["places"].numpy()
    same = (query[:, None] == query) | (passage[:, None] == passage) | (query[:, None] == passage)
    return np.asarray(same | (places[:, None] == places).any(-1))


def _rows(task: Task, side: str) -> list[list[int]]:
    """The tokens of each text."""
    both = zip(task[f"{side}_tokens"].tolist(), task[f"{side}_lengths"].tolist(), strict=True)
    return [row[:length] for row, length in both]


def _shown(recipe: PairsRecipe, rows: dict[str, list[list[int]]]) -> Section:
    tokenizer, lines = recipe.corpus.tokenizer, []
    for number, pair in enumerate(zip(*rows.values(), strict=True), 1):
        for side, row in zip(SIDES, pair, strict=True):
            role = "first" if side == SIDES[0] else "second"
            lines.append(Line([Token(name, role) for name in tokenizer.tokens(row)], f"{number} {side}"))
    return section("text_pairs", "shown", Tokens(lines))


def _told(texts: dict[str, list[str]], found: list[Alike]) -> list[Section]:
    last = found[-1]
    said = tuple([f"{number} “{text}”" for number, text in enumerate(texts[side], 1)] for side in SIDES)
    margins = [str(number) for number in range(1, len(said[0]) + 1)]
    how = {"limits": (0.0, 1.0), "cell": CELL, "said": said, "meaning": MEANING}
    return [
        section("text_pairs", "alike", *(each.matrix(margins, margins, **how) for each in found)),
        section("text_pairs", "figures", _figures(found)),
        section("text_pairs", "hardest", _hardest(texts, last), name=last.name),
    ]


def _figures(found: list[Alike]) -> Table:
    chance = mean([math.log(1 + row.count(ALIEN)) for row in found[0].roles])
    lines: dict[str, Callable[[Alike], str]] = {
        "cosine with its own": lambda each: f"{each.mean(OWN):.3f}",
        "with a negative": lambda each: f"{each.mean(ALIEN):.3f}",
        "queries nearer to their own than to any negative": lambda each: f"{each.found():.0%}",
        "passages nearer to their own than to any negative": lambda each: f"{each.turned().found():.0%}",
        f"loss (chance {chance:.3f} for each length of a vector)": lambda each: f"{each.loss:.3f}",
    }
    return table(found, lines)


def _hardest(texts: dict[str, list[str]], network: Alike) -> Table:
    queries, passages = (texts[side] for side in SIDES)
    found = [(t, other, cosine, network.own(t)) for t, (other, cosine) in network.hardest().items()]
    lines = [
        [f"{t + 1} {queries[t]} ~ {other + 1} {passages[other]}", f"{cosine:.2f}", f"{own:.2f}"]
        for t, other, cosine, own in sorted(found, key=lambda each: each[3] - each[2])
    ]
    return Table(["a query ~ its hardest negative", "cosine", "own passage"], lines)
