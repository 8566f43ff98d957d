"""Objectives that rebuild a sentence from its one vector: what is left of each, and what a run makes of the vector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from selfsup.data.records import Batch
from selfsup.data.sentences import Sentences
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import Line, Table, Token, Tokens, section, task
from selfsup.inspection.figures import means, networks
from selfsup.inspection.opening import first_batch
from selfsup.inspection.texts import opened, take_small
from selfsup.objectives.base import Task
from selfsup.objectives.recipe import Effort
from selfsup.objectives.simcse import kept_tokens
from selfsup.objectives.tsdae import TSDAE, Swapped, TSDAERecipe, rebuilt_text

BATCH = 24  # sentences that are looked at
WRITTEN = 6  # sentences that are written
FIGURES = {"cross_entropy": "from its own vector", "swapped": "from the vector of another sentence"}


@dataclass(frozen=True)
class Rebuilt:
    """What a run makes of a sentence: three texts, and the loss of its tokens from its own vector and from another."""

    sentence: str
    left: str
    written: str
    loss: float
    swapped: float


def inspect_rebuilding(request: Request) -> Inspection:
    """The sentences, what is deleted of them and the objective are those of the training."""
    recipe, source = _open(request)
    batch = first_batch(recipe, min(BATCH, recipe.settings["train.batch"]))
    batch = replace(batch, data=Swapped(cast(Sentences, recipe.train)).read(batch.records))
    objective = cast(TSDAE, recipe.begin())
    made, chance = objective.hide(batch), recipe.chance(len(batch))
    figures = {name: _means(cast(TSDAE, each), made) for name, each in networks(objective, request.run)}
    rebuilt = [] if request.run is None else _rebuilt(recipe, objective, batch)
    facts = [
        source,
        f"{len(batch)} of {len(recipe.train):,} sentences",
        f"deletion {objective.deletion:g}, {objective.pooling} pooling",
    ]
    sections = [
        task("rebuilding", recipe.words, left=1 - objective.deletion),
        section("rebuilding", "shown", Tokens(_lines(recipe, batch, objective.deletion))),
        section("rebuilding", "figures", _figures(figures, chance)),
        *([section("rebuilding", "written", _written(rebuilt), name=request.run)] if rebuilt else []),
    ]
    values: dict[str, Any] = {"source": source, "length": len(recipe.train), "chance": chance, "figures": figures}
    values |= {"deletion": objective.deletion, "pooling": objective.pooling, "rebuilt": list(map(vars, rebuilt))}
    return Inspection.of(request.objective, recipe.idea, facts, sections, values)


def _open(request: Request) -> tuple[TSDAERecipe, str]:
    """The recipe, settled, and the name of what is looked at; its encoder is a small one where nothing says which."""
    settings, tokenizer = request.settings, None
    if request.run is not None:
        from selfsup.inference.encoder import EncoderModel
        from selfsup.inference.opening import load_as

        tokenizer = load_as(request.run, EncoderModel).tokenizer
    else:
        take_small(settings)
    if request.window is not None:
        settings.change("data.window", request.window, "given")
    recipe, source = opened(request, tokenizer)
    assert isinstance(recipe, TSDAERecipe)
    recipe.settle(Effort())
    return recipe, source


@torch.inference_mode()
def _means(objective: TSDAE, made: Task) -> dict[str, float]:
    return means(objective, objective.predict(made), made)


def _rebuilt(recipe: TSDAERecipe, objective: TSDAE, batch: Batch) -> list[Rebuilt]:
    """Of the first sentences, by an objective as it was trained."""
    tokenizer, found = recipe.corpus.tokenizer, []
    for place in range(min(WRITTEN, len(batch))):
        one = slice(place, place + 1)
        data = {name: tensor[one] for name, tensor in batch.data.items()}
        made = objective.hide(Batch(data, batch.seed, batch.epochs[one], batch.records[one]))
        texts = rebuilt_text(objective, made, int(tokenizer.start), int(tokenizer.end))
        sentence, left, written = (tokenizer.decode(text) for text in texts.values())
        losses = _means(objective, made)
        found.append(Rebuilt(sentence, left, written, losses["cross_entropy"], losses["swapped"]))
    return found


def _lines(recipe: TSDAERecipe, batch: Batch, deletion: float) -> list[Line]:
    """The tokens of each sentence, those that are deleted crossed out."""
    kept = kept_tokens(batch, deletion, "damaged").tolist()
    rows = zip(batch.data["tokens"].tolist(), batch.data["lengths"].tolist(), kept, strict=True)
    lines = []
    for number, (row, length, left) in enumerate(rows, 1):
        names = recipe.corpus.tokenizer.tokens(row[:length])
        tokens = [Token(name, "" if stays else "neither") for name, stays in zip(names, left, strict=False)]
        lines.append(Line(tokens, str(number)))
    return lines


def _figures(figures: dict[str, dict[str, float]], chance: float) -> Table:
    rows = [[label, *(f"{each[term]:.3f}" for each in figures.values())] for term, label in FIGURES.items()]
    return Table([f"loss (chance {chance:.3f})", *figures], rows)


def _written(rebuilt: list[Rebuilt]) -> Table:
    rows = [
        [f"{each.sentence} → {each.left} → {each.written}", f"{each.loss:.2f}", f"{each.swapped:.2f}"]
        for each in rebuilt
    ]
    return Table(["sentence → what is left → what is written", "loss", "from another"], rows)
