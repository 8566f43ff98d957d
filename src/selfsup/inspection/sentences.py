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
from selfsup.data.sampler import draw
from selfsup.data.sentences import Sentences, open_sentences, split_sentences
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.inspection.alike import Alike, alike, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import (
    ALIEN,
    OUT,
    OWN,
    Bars,
    Line,
    Section,
    Table,
    Token,
    Tokens,
    mean,
    section,
)
from selfsup.inspection.texts import open_for, prepare
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.objectives.simcse import (
    DELETION,
    DROPOUT,
    SENTENCE,
    VIEWS,
    SimCSE,
    SimCSERecipe,
    SimCSESettings,
    kept_tokens,
)
from selfsup.objectives.text_networks import take_preset
from selfsup.objectives.texts import reading_of
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
    batch = _first_batch(records, min(BATCH, settings["train.batch"] or BATCH), settings["train.seed"])
    settings.settle("model.dropout", DROPOUT, "recipe")
    settings.settle("simcse.deletion", DELETION, "recipe")
    shape = begun.native.config if begun else _shape(request, records.tokenizer)
    config = replace(shape, dropout=settings["model.dropout"])
    fresh = TextEncoder(config).initialise(generator(settings["train.seed"], "weights"))
    begins = f"before training ({settings['model.init']})" if origin else "before training"
    encoders = {begins: origin.native if origin else fresh} | (
        {str(request.run): model.native} if model else {}
    )
    options = settings.section("simcse", SimCSESettings)
    how = {
        "temperature": options.temperature,
        "dropout": config.dropout,
        "deletion": settings["simcse.deletion"],
    }
    parts = options.pooling, options.temperature, how["deletion"]
    views = [
        _views(name, SimCSE(_with_dropout(each, config), nn.Identity(), *parts), batch)
        for name, each in encoders.items()
    ]
    return _inspection(request, source, records, batch, views, how | {"pooling": options.pooling})


def _inspection(
    request: Request, source: str, records: Sentences, batch: Batch, views: list[Views], how: dict[str, Any]
) -> Inspection:
    pairs = zip(batch.data["tokens"].tolist(), batch.data["lengths"].tolist(), strict=True)
    rows = [row[:length] for row, length in pairs]
    texts, roles = [records.tokenizer.decode(row) for row in rows], views[0].alike.roles
    negatives, equal = (sum(row.count(role) for row in roles) for role in (ALIEN, OUT))
    facts = [source, f"{len(roles)} of {len(records):,} sentences", f"{negatives:,} negatives"]
    facts += [f"{equal} pairs of equal sentences left out"] if equal else []
    facts.append(
        "temperature {temperature:g}, dropout {dropout:g}, deletion {deletion:g}, {pooling} pooling".format(
            **how
        )
    )
    tokens = list(map(records.tokenizer.tokens, rows))
    sections = [_shown(tokens, batch, how["deletion"], roles), *_told(texts, views)]
    values = {
        "source": source,
        "length": len(records),
        "texts": texts,
        **how,
        "views": list(map(asdict, views)),
    }
    return Inspection.of(request.objective, SimCSERecipe.idea, facts, sections, values)


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
        sentences = open_sentences(named, **reading_of(settings))
        corpus = prepare(sentences, given, settings, "encoder")
        source, stream, tokenizer = f"the training part of {sentences.name}", corpus.train, corpus.tokenizer
    records = Sentences(stream, window, tokenizer)
    if len(records) < 2:
        raise UserError("There is one sentence alone, so it has no negatives; give two or more.")
    return source, records


def _first_batch(records: Sentences, size: int, seed: int) -> Batch:
    """The sentences that a training takes first."""
    epochs, places = draw(seed, 0, min(size, len(records)), len(records))
    return Batch(records.read(places), seed, epochs, places)


def _shape(request: Request, tokenizer: TextTokenizer) -> EncoderConfig:
    """Of the encoder that the settings name, else of a small one."""
    settings = request.settings
    if settings["model.preset"] == "auto":
        settings.change("model.preset", PRESET, "inspection")
    take_preset(settings, "model")
    shape = {name: settings[f"model.{name}"] for name in ("layers", "width", "heads", "mlp")}
    window = settings["data.window"] or SENTENCE
    try:
        return EncoderConfig(vocabulary=tokenizer.vocabulary, window=window, tied=True, **shape)
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
    made, roles = objective.train().hide(batch), _roles(batch.data["keys"].tolist())
    outputs = predict(objective, batch, made, nullcontext)
    first, second = (outputs[view] for view in VIEWS)
    found = alike(name, objective, made, outputs, roles, first, second)
    return Views(found, first[:, :NUMBERS].tolist(), second[:, :NUMBERS].tolist())


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
