"""Objectives of two views of a sentence: what each sees, who is whose positive and negative, how similar they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn

from selfsup.config import nearest
from selfsup.data.records import Batch
from selfsup.data.sampler import draw
from selfsup.data.sentences import Sentences, open_sentences, split_sentences
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.inspection.alike import Alike, alike, figures
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import (
    ALIEN,
    OUT,
    OWN,
    Bars,
    Block,
    Line,
    Matrix,
    Section,
    Table,
    Token,
    Tokens,
    mean,
)
from selfsup.inspection.texts import open_for, prepare
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.presets import PRESETS
from selfsup.objectives.language import how_texts_are_read
from selfsup.objectives.simcse import SENTENCE, VIEWS, SimCSE, SimCSERecipe, kept_tokens
from selfsup.seeding import generator
from selfsup.step import predict

SEEN_IN = ("neither", "first", "second", "")  # views that a token is left in: the last, both
BATCH = 24  # sentences that are looked at
NUMBERS = 32  # of a vector that are shown
PRESET = "0.8m"  # an encoder to look at where neither a run nor a setting says which
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
    settings = request.settings
    model = None if request.run is None else load_as(request.run, EncoderModel)
    origin = None if settings["model.init"] is None else load_as(settings["model.init"], EncoderModel)
    begun = model or origin
    source, records = _open_sentences(request, begun)
    tokenizer, options = records.tokenizer, settings.config.simcse
    batch = _first_batch(records, min(BATCH, settings["train.batch"] or BATCH), settings["train.seed"])
    dropout = SimCSERecipe.dropout if settings["model.dropout"] is None else settings["model.dropout"]
    config = replace(begun.native.config if begun else _shape(request, tokenizer), dropout=dropout)
    deletion = SimCSERecipe.deletion if options.deletion is None else options.deletion
    fresh = TextEncoder(config).initialise(generator(settings["train.seed"], "weights"))
    begins = f"before training ({settings['model.init']})" if origin else "before training"
    encoders = {begins: origin.native if origin else fresh} | (
        {str(request.run): model.native} if model else {}
    )
    views = []
    for name, encoder in encoders.items():
        parts = _with_dropout(encoder, config), nn.Identity(), options.pooling, options.temperature, deletion
        views.append(_views(name, SimCSE(*parts), batch))
    pairs = zip(batch.data["tokens"], batch.data["lengths"], strict=True)
    rows = [row[:length].tolist() for row, length in pairs]
    texts = [tokenizer.decode(row) for row in rows]
    how = {
        "temperature": options.temperature,
        "dropout": dropout,
        "deletion": deletion,
        "pooling": options.pooling,
    }
    values = {
        "source": source,
        "length": len(records),
        "texts": texts,
        **how,
        "views": list(map(asdict, views)),
    }
    return Inspection(
        request.objective,
        f"What the data teaches: {request.objective}",
        SimCSERecipe.idea,
        _facts(source, len(records), views[0].alike.roles, how),
        [
            _shown(list(map(tokenizer.tokens, rows)), batch, deletion, views[0].alike.roles),
            *_told(texts, views),
        ],
        values,
    )


def _facts(source: str, length: int, roles: list[str], how: dict[str, object]) -> list[str]:
    negatives, excluded = (sum(row.count(role) for row in roles) for role in (ALIEN, OUT))
    return [
        source,
        f"{len(roles)} of {length:,} sentences",
        f"{negatives:,} negatives",
        *([f"{excluded} pairs of equal sentences left out"] if excluded else []),
        f"temperature {how['temperature']:g}, dropout {how['dropout']:g}, deletion {how['deletion']:g}, "
        f"{how['pooling']} pooling",
    ]


# -- what is looked at --


def _open_sentences(request: Request, model: EncoderModel | None) -> tuple[str, Sentences]:
    """The name of what is looked at, and its sentences, cut to the length that they are trained with."""
    settings = request.settings
    window = request.window or settings["data.window"] or SENTENCE
    given = model.tokenizer if model else request.tokenizer
    if request.text is not None:
        tokenizer = open_for(request.text, given, "encoder")
        framed = [tokenizer.frame(ids) for ids in tokenizer.encode_batch(list(split_sentences(request.text)))]
        source, stream = "the text", np.concatenate(framed)
    else:
        named = settings.config.data.source if request.data is None else request.data
        if isinstance(named, str) and named.startswith("python:"):
            raise UserError(f"{request.run} was trained on data given from Python; name data with --data.")
        sentences = open_sentences(named, **how_texts_are_read(settings))
        corpus = prepare(sentences, given, settings, "encoder")
        source, stream, tokenizer = f"the training part of {sentences.name}", corpus.train, corpus.tokenizer
    records = Sentences(stream, window, tokenizer)
    if len(records) < 2:
        raise UserError("There is one sentence alone, so it has no negatives; give two or more.")
    return source, records


def _first_batch(records: Sentences, size: int, seed: int) -> Batch:
    """The sentences that a training takes first."""
    count = min(size, len(records))
    epochs, places = draw(seed, 0, count, len(records))
    return Batch(records.read(places), seed, epochs, places)


def _shape(request: Request, tokenizer: TextTokenizer) -> EncoderConfig:
    """Of the encoder that the settings name, else of a small one."""
    model = request.settings.config.model
    preset = PRESET if model.preset == "auto" else model.preset
    if preset not in PRESETS:
        raise UserError(f"There is no model preset '{preset}'{nearest(preset, ['auto', *PRESETS])}")
    shape = PRESETS[preset]
    try:
        return EncoderConfig(
            vocabulary=tokenizer.vocabulary,
            layers=model.layers or shape.layers,
            width=model.width or shape.width,
            heads=model.heads or shape.heads,
            mlp=model.mlp or shape.mlp,
            window=request.settings["data.window"] or SENTENCE,
            tied=True,
        )
    except ValueError as error:
        raise UserError(f"There is no such model: {error}.") from None


def _with_dropout(encoder: TextEncoder, config: EncoderConfig) -> TextEncoder:
    """The same weights, with the dropout of the training."""
    copy = TextEncoder(config)
    copy.load_state_dict(encoder.state_dict())
    return copy


def _roles(keys: list[int]) -> list[str]:
    """What the other view of each sentence is to a sentence: its own, an equal one's (not counted), or another."""
    return [
        "".join(OWN if here == there else OUT if key == other else ALIEN for there, other in enumerate(keys))
        for here, key in enumerate(keys)
    ]


@torch.inference_mode()
def _views(name: str, objective: SimCSE, batch: Batch) -> Views:
    """Both views of each sentence, with the deletion and dropout of the first step."""
    objective.train()
    task = objective.hide(batch)
    outputs = predict(objective, batch, task, nullcontext)
    first, second = (outputs[view] for view in VIEWS)
    found = alike(name, objective, outputs, task, (first, second), _roles(batch.data["keys"].tolist()))
    return Views(found, first[:, :NUMBERS].tolist(), second[:, :NUMBERS].tolist())


# -- what is shown --


def _shown(tokens: list[list[str]], batch: Batch, deletion: float, roles: list[str]) -> Section:
    first, second = (kept_tokens(batch, deletion, view).int() for view in VIEWS)
    lines = []
    for t, (names, seen) in enumerate(zip(tokens, (first + 2 * second).tolist(), strict=True)):
        row = [Token(name, SEEN_IN[views]) for name, views in zip(names, seen, strict=False)]
        same = [str(other + 1) for other, role in enumerate(roles[t]) if role == OUT]
        lines.append(Line(row, str(t + 1), f" (equal to {', '.join(same)})" if same else ""))
    hint = (
        "Each is read twice, each time without some of its tokens. Plain ones are in both views, blue ones in the "
        "first alone, orange ones in the second alone; what is crossed out is in neither."
    )
    return Section("sentences of a batch", [Tokens(lines)], hint)


def _told(texts: list[str], views: list[Views]) -> list[Section]:
    last, networks = views[-1], [each.alike for each in views]
    matrices: list[Block] = [_matrix(texts, network) for network in networks]
    return [
        Section(
            "the two views of a sentence",
            [_bars(t, text, last) for t, text in enumerate(texts[:PAIRS])],
            f"The first {NUMBERS} numbers of its vectors ({last.alike.name}): not the same, and yet to be recognised.",
        ),
        Section(
            "how similar: first views in rows, second views in columns",
            matrices,
            "The stronger a cell, the nearer the cosine is to 1. On the diagonal, framed, is the positive: a sentence "
            "and its own other view; all else in its row are negatives, but for equal sentences, crossed out.",
        ),
        Section(
            "how well a sentence is found",
            [_figures(networks)],
            "Before the projection head, which serves training only, and before whitening.",
        ),
        Section(
            "the hardest negatives",
            [_hardest(texts, last.alike)],
            f"For each sentence the one most similar to it ({last.alike.name}), the hardest first.",
        ),
    ]


def _bars(t: int, text: str, views: Views) -> Bars:
    rows = {"view 1": views.first[t], "view 2": views.second[t]}
    return Bars(f"{t + 1} “{text}”", rows, f"cosine {views.alike.own(t):.3f}")


def _matrix(texts: list[str], network: Alike) -> Matrix:
    numbers = [str(number) for number in range(1, len(texts) + 1)]
    said = [f"{number} “{text}”" for number, text in zip(numbers, texts, strict=True)]
    return Matrix(
        network.name,
        numbers,
        numbers,
        network.similarity,
        network.roles,
        (0.0, 1.0),
        CELL,
        (said, said),
        MEANING,
    )


def _figures(networks: list[Alike]) -> Table:
    chance = mean([math.log(1 + row.count(ALIEN)) for row in networks[0].roles])
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine with its own other view": lambda each: f"{mean(each.cosines(OWN)):.3f}",
        "with a negative": lambda each: f"{mean(each.cosines(ALIEN)):.3f}",
        "with the hardest negative": lambda each: f"{mean([c for _, c in each.hardest().values()]):.3f}",
        "nearer to it than to any negative": lambda each: f"{each.found():.0%}",
        f"loss (chance {chance:.3f})": lambda each: f"{each.loss:.3f}",
    }
    return figures(networks, rows)


def _hardest(texts: list[str], network: Alike) -> Table:
    found = [(t, other, cosine, network.own(t)) for t, (other, cosine) in network.hardest().items()]
    rows = [
        [f"{t + 1} {texts[t]} ~ {other + 1} {texts[other]}", f"{cosine:.2f}", f"{own:.2f}"]
        for t, other, cosine, own in sorted(found, key=lambda each: each[3] - each[2])
    ]
    return Table(["a sentence ~ its hardest negative", "cosine", "own other view"], rows)
