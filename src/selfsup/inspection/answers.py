"""Objectives that learn a teacher's vectors: texts, what is to be answered, and how near the student comes to it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
import torch
from torch import nn

from selfsup.data.records import Batch
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.inspection.alike import Alike, alike, roles, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Bars, Line, Section, Token, Tokens, section
from selfsup.inspection.opening import first_batch
from selfsup.inspection.texts import opened, take_small
from selfsup.objectives.distill import Distill, DistillRecipe
from selfsup.objectives.recipe import Effort
from selfsup.objectives.starting import take_shape
from selfsup.objectives.text_networks import OwnEncoder
from selfsup.step import predict

BATCH = 24  # texts that are looked at
NUMBERS = 32  # of a vector that are shown
PAIRS = 4  # texts whose two vectors are drawn
CELL = 22  # of the matrix
MEANING = {OWN: "its own answer", ALIEN: "the answer to another text", OUT: "the same answer, to a translation"}


def inspect_answers(request: Request) -> Inspection:
    """The texts, their order and the objective are those of the training."""
    model = None if request.run is None else load_as(request.run, EncoderModel)
    source, recipe = _open(request, model)
    init, name = recipe.settings["model.init"], str(request.run)
    objectives = {"before training" + (f" ({init})" if init else ""): recipe.build()}
    if model is not None:
        objectives[name] = recipe.mapped(model.network, _map(recipe, model))
    batch = first_batch(recipe, min(BATCH, recipe.settings["train.batch"]))
    said = {name: _say(objective, batch) for name, objective in objectives.items()}
    answers = batch.data["answers"]
    same = (answers[:, None] == answers).all(-1).numpy()
    found = [
        _alike(name, objectives[name], batch, vectors, roles(np.eye(len(same), dtype=bool), same))
        for name, vectors in said.items()
    ]
    return _inspection(request, source, recipe, batch, found, said[found[-1].name])


def _inspection(
    request: Request, source: str, recipe: DistillRecipe, batch: Batch, found: list[Alike], vectors: torch.Tensor
) -> Inspection:
    tokenizer, data, options = recipe.corpus.tokenizer, batch.data, recipe.options
    pairs = zip(data["tokens"].tolist(), data["lengths"].tolist(), strict=True)
    rows = [row[:length] for row, length in pairs]
    texts, teacher = [tokenizer.decode(row) for row in rows], recipe.settings["distill.teacher"]
    facts = [
        source,
        f"{len(rows)} of {len(recipe.train):,} texts",
        f"answers of {teacher}, {recipe.answered.dimension} numbers each",
        f"mse {options.mse:g}, cosine {options.cosine:g}, {options.pooling} pooling",
    ]
    shown = [
        Line([Token(token) for token in tokenizer.tokens(row)], str(number), _twins(found[0].roles[number - 1]))
        for number, row in enumerate(rows, 1)
    ]
    sections = [
        section("answers", "shown", Tokens(shown)),
        *_told(texts, vectors, data["answers"], found, recipe.chance(len(rows))),
    ]
    values = {"source": source, "length": len(recipe.train), "texts": texts, "teacher": teacher}
    values["networks"] = list(map(asdict, found))
    return Inspection.of(request.objective, recipe.idea, facts, sections, values)


def _twins(row: str) -> str:
    """Which other texts have the same answer, in words."""
    same = [str(other + 1) for other, role in enumerate(row) if role == OUT]
    return f" (as {', '.join(same)})" if same else ""


# -- what is looked at --


def _open(request: Request, model: EncoderModel | None) -> tuple[str, DistillRecipe]:
    """The name of what is looked at, and the recipe, settled; its encoder is a small one where nothing says which."""
    settings = request.settings
    if model is not None and settings["model.preset"] == "auto" and settings["model.init"] is None:
        take_shape(settings, "model", OwnEncoder.shape, model.native.config, str(request.run))
    else:
        take_small(settings)
    if request.window is not None:
        settings.change("data.window", request.window, "given")
    recipe, source = opened(request, None if model is None else model.tokenizer)
    assert isinstance(recipe, DistillRecipe)
    recipe.settle(Effort())
    return source, recipe


def _map(recipe: DistillRecipe, model: EncoderModel) -> nn.Module:
    """That of a model in use, as the objective has it."""
    weight, bias = model.features.weight, model.features.bias
    return nn.Identity() if weight is None else recipe.map_of(model.width).take(weight, bias)


@torch.inference_mode()
def _say(objective: Distill, batch: Batch) -> torch.Tensor:
    return predict(objective.eval(), batch, objective.hide(batch), nullcontext)["vectors"]


def _alike(name: str, objective: Distill, batch: Batch, vectors: torch.Tensor, found: list[str]) -> Alike:
    """How near the student's vectors, in rows, are to the answers, in columns."""
    made = objective.hide(batch)
    return alike(name, objective, made, {"vectors": vectors}, found, vectors, made["answers"])


# -- what is shown --


def _told(
    texts: list[str], vectors: torch.Tensor, answers: torch.Tensor, found: list[Alike], chance: float
) -> list[Section]:
    last, numbers = found[-1], [str(number) for number in range(1, len(texts) + 1)]
    said = [f"{number} “{text}”" for number, text in enumerate(texts, 1)]
    how = {"limits": (0.0, 1.0), "cell": CELL, "said": (said, said), "meaning": MEANING}
    bars = [
        Bars(
            said[t],
            {"student": vectors[t, :NUMBERS].tolist(), "teacher": answers[t, :NUMBERS].tolist()},
            f"cosine {last.own(t):.3f}",
        )
        for t in range(min(PAIRS, len(texts)))
    ]
    figures = {
        "cosine with its own answer": lambda each: f"{each.mean(OWN):.3f}",
        "with the answer to another text": lambda each: f"{each.mean(ALIEN):.3f}",
        "nearer to it than to any other": lambda each: f"{each.found():.0%}",
        f"loss (chance {chance:.3f})": lambda each: f"{each.loss:.3f}",
    }
    return [
        section("answers", "vectors", *bars, numbers=NUMBERS, name=last.name),
        section("answers", "alike", *(each.matrix(numbers, numbers, **how) for each in found)),
        section("answers", "figures", table(found, figures)),
    ]
