"""Objectives of images and captions: the pairs of a batch, how alike both towers find them, and what they confuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inspection.alike import Alike, alike, figures
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import (
    ALIEN,
    OUT,
    OWN,
    Gallery,
    Group,
    Matrix,
    Points,
    Section,
    Tile,
    Token,
    mean,
)
from selfsup.inspection.figures import networks as networks_of
from selfsup.inspection.images import HEIGHT, Look, Seen, first_of, opened
from selfsup.inspection.pictures import FIRST, OTHER
from selfsup.models.clip import IMAGE, TEXT
from selfsup.objectives.base import Objective, Task
from selfsup.objectives.captions import drawn_captions
from selfsup.objectives.clip import CLIP, VIEW, CLIPRecipe, chance
from selfsup.run import Run

BATCH, USUAL = 128, 64  # pairs that are looked at: at most, and where no batch is said
MOST = 16  # that are drawn
CELL = 26  # of the matrix of the pairs that are drawn
CONFUSIONS = 8  # that are shown in each direction
CONFUSED = 96  # height of their images on a page
MEANING = {OWN: "a pair", ALIEN: "no pair", OUT: "alike, so not counted"}


@dataclass(frozen=True)
class Caption:
    """What a pair's text tower is given.

    Attributes:
        text: the whole caption that was drawn.
        tokens: without those at its start and end; as they are read, hidden ones as the mark in their place.
        hidden: which of them are hidden.
    """

    text: str
    tokens: list[str]
    hidden: list[bool]


@dataclass(frozen=True)
class Confusion:
    """An image (or caption) to which a wrong caption (or image) is nearer than its own.

    Attributes:
        pair, other: whose it is, and whose the wrong one.
        own, wrong: the cosines.
    """

    pair: int
    other: int
    own: float
    wrong: float


@dataclass(frozen=True)
class Pairs:
    """The pairs that are looked at.

    Attributes:
        views: what is seen of each image.
        captions: which was drawn for each.
        networks: images in rows, captions in columns; before the training, and after it where there is a run.
        chance: the loss of towers that know nothing: ln B, or that of the sigmoid loss.
    """

    look: Look
    views: list[Seen]
    captions: list[Caption]
    networks: list[Alike]
    chance: float

    def __len__(self) -> int:
        return len(self.captions)


def inspect_pairs(request: Request) -> Inspection:
    """Views, captions and objective are those of the training."""
    _take_tokenizer(request)
    given = request.settings["train.batch"]
    recipe = opened(request)
    assert isinstance(recipe, CLIPRecipe)
    if given is None:  # it would follow from the length of a training
        recipe.settings.change("train.batch", min(USUAL, len(recipe.train)), "inspection")
    look = first_of(recipe, request, min(recipe.settings["train.batch"], BATCH), MOST)
    objective = look.objective
    assert isinstance(objective, CLIP)
    task = objective.hide(look.batch)
    tokens, lengths, _ = drawn_captions(look.batch)
    rows = zip(tokens, task["tokens"], lengths.tolist(), strict=True)
    captions = [
        _caption(recipe.text.tokenizer, whole[:length].tolist(), shown[:length].tolist())
        for whole, shown, length in rows
    ]
    networks = [_towers(name, each, task) for name, each in networks_of(look.objective, look.run)]
    blindly = chance(objective.loss, len(captions))
    pairs = Pairs(look, look.seen(task["views"], look.view, VIEW), captions, networks, blindly)
    return look.inspection(
        [*_shown(pairs), *_alike(pairs), _measured(pairs, objective.loss), *_confused(pairs)],
        _values(pairs, objective.loss),
        facts=look.facts("pairs of the first batch"),
        limits=_limits(pairs),
    )


def _take_tokenizer(request: Request) -> None:
    """That of a run reads other captions too; one that is trained would be another one.

    Raises:
        UserError: other data than the run's is named, and the run has no model yet to bring its tokenizer.
    """
    settings = request.settings
    if request.run is None or request.data is None or settings["text.init"] is not None:
        return
    directory = Run(request.run).model_directory / TEXT
    if not directory.is_dir():
        raise UserError(
            f"{request.run} has no model yet that could read the captions of other data; leave --data out."
        )
    settings.change("data.tokenizer", str(directory), "run")
    settings.change("data.vocabulary", None, "run")


def _caption(tokenizer: TextTokenizer, whole: list[int], shown: list[int]) -> Caption:
    inner = slice(1, -1)
    hidden = [one != other for one, other in zip(whole, shown, strict=True)]
    return Caption(tokenizer.decode(whole), tokenizer.tokens(shown[inner]), hidden[inner])


def _towers(name: str, objective: Objective, task: Task) -> Alike:
    with torch.inference_mode():
        outputs = objective.predict(task)
    return alike(name, objective, outputs, task, (outputs[IMAGE], outputs[TEXT]), _roles(task["keys"]))


def _roles(keys: Tensor) -> list[str]:
    """What each caption is to each image: its own, not to be counted (equal captions or images), or a wrong one."""
    same = (keys[:, None] == keys).any(-1).tolist()
    return [
        "".join(OWN if here == there else OUT if equal else ALIEN for there, equal in enumerate(row))
        for here, row in enumerate(same)
    ]


def confusions(network: Alike) -> list[Confusion]:
    """The rows to which a wrong column is as near as the right one, the worst first."""
    found = [
        Confusion(row, other, network.own(row), wrong)
        for row, (other, wrong) in network.hardest().items()
        if wrong >= network.own(row)
    ]
    return sorted(found, key=lambda each: each.own - each.wrong)


def of_tower(network: Alike, tower: str) -> Alike:
    """Images that look for captions, or captions that look for images."""
    return network if tower == IMAGE else network.turned()


def _limits(pairs: Pairs) -> str:
    """With how much of a batch is looked at."""
    count, batch, drawn = len(pairs), pairs.look.recipe.settings["train.batch"], len(pairs.look.shown)
    part = "" if count == batch else f"A training has {batch} in a batch. "
    some = "" if count == drawn else f"Figures are of these {count}; the first {drawn} are drawn."
    return (part + some).strip()


def _values(pairs: Pairs, loss: str) -> dict[str, Any]:
    values = pairs.look.values([[seen] for seen in pairs.views])
    for image, caption in zip(values["images"], pairs.captions, strict=True):
        image |= asdict(caption)
    networks = []
    for network in pairs.networks:
        found = {tower: list(map(asdict, confusions(of_tower(network, tower)))) for tower in (IMAGE, TEXT)}
        networks.append(asdict(network) | {"confusions": found})
    batch = pairs.look.recipe.settings["train.batch"]
    return values | {"loss": loss, "batch": batch, "chance": pairs.chance, "networks": networks}


# -- what is shown --


def _shown(pairs: Pairs) -> list[Section]:
    hides = any(any(caption.hidden) for caption in pairs.captions)
    points = {
        "Shown": "an image to one tower, a caption to the other; neither sees what the other sees.",
        "Hidden": f"which caption belongs to which image{', and some tokens of the captions' * hides}.",
        "Predicted": "for each image, which caption of the batch is its own; for each caption, which image. Those "
        "of all other pairs are what it could be mistaken for.",
        "Learned": "vectors of images and of texts in one space: what belongs together lies near, so that words "
        "find pictures they never came with.",
    }
    hint = (
        "What the towers are given: the part of an image that was drawn for it, and a caption of it, as the tokens "
        "beneath, without start and end."
    )
    hint += " Orange tokens are hidden: the tower sees a mark in their place." * hides
    tiles = [_tile(pairs, pair) for pair in pairs.look.shown]
    return [
        Section("the task", [Points({**points, **pairs.look.recipe.words})]),
        Section("pairs of a batch", [Gallery([Group("", [tiles])])], hint),
    ]


def _tile(pairs: Pairs, pair: int) -> Tile:
    seen, caption = pairs.views[pair], pairs.captions[pair]
    tokens = [
        Token(text, "gone" * hidden) for text, hidden in zip(caption.tokens, caption.hidden, strict=True)
    ]
    facts = seen.facts(pairs.look.images[pair])
    return Tile(seen.pixels, f"{pair + 1} {caption.text}", facts, HEIGHT, tokens=tokens)


# -- how alike --


def _alike(pairs: Pairs) -> list[Section]:
    count, same = len(pairs), len(pairs.networks[0].cosines(OUT))
    out = f" Crossed out are the {same} that are no negatives: equal captions or images." if same else ""
    drawn = Section(
        "which belong together",
        [_matrix(pairs, network) for network in pairs.networks],
        "Images in rows, captions in columns; the stronger a cell, the nearer the two are to the towers (cosine; the "
        "lower half of all is pale). Framed is what belongs together: training makes these cells strong and all "
        f"others pale.{out}",
    )
    if count == len(pairs.look.shown):
        return [drawn]
    whole = Section(
        f"the whole batch, {count} by {count}"
        if count == pairs.look.recipe.settings["train.batch"]
        else f"all {count} by {count}",
        [_whole(pairs, network) for network in pairs.networks],
        "The same of all pairs, with those that belong together in orange. A line from corner to corner is what is to "
        "appear: each image nearest to its own caption.",
    )
    return [drawn, whole]


def limits(network: Alike) -> tuple[float, float]:
    """The cosines that are drawn as nothing, so that half of all are pale, and at full strength."""
    return float(np.median(network.similarity)), float(np.max(network.similarity))


def _whole(pairs: Pairs, network: Alike) -> Matrix:
    texts = [caption.text for caption in pairs.captions]
    said = (pairs.look.names, texts)
    return Matrix(
        network.name, [], [], network.similarity, network.roles, limits(network), said=said, meaning=MEANING
    )


def _matrix(pairs: Pairs, network: Alike) -> Matrix:
    count = len(pairs.look.shown)
    texts = [f"{pair + 1} {pairs.captions[pair].text}" for pair in pairs.look.shown]
    return Matrix(
        network.name,
        [pairs.views[pair].pixels for pair in pairs.look.shown],
        texts,
        [row[:count] for row in network.similarity[:count]],
        [row[:count] for row in network.roles[:count]],
        limits(network),
        CELL,
        (pairs.look.names[:count], texts),
        MEANING,
    )


def _measured(pairs: Pairs, loss: str) -> Section:
    count = len(pairs)
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine with its own caption": lambda each: f"{mean(each.cosines(OWN)):.3f}",
        "with another one": lambda each: f"{mean(each.cosines(ALIEN)):.3f}",
        f"images that find their caption (blindly {1 / count:.0%})": lambda each: f"{found(each, IMAGE):.0%}",
        "captions that find their image": lambda each: f"{found(each, TEXT):.0%}",
        f"loss (chance {pairs.chance:.3f})": lambda each: f"{each.figures[loss]:.3f}",
        "temperature": lambda each: f"{each.figures['temperature']:.3f}",
        "gap": lambda each: f"{each.figures['modality_gap']:.2f}",
    }
    chance = f"{pairs.chance:.3f}" + (f", ln {count}" if loss == "softmax" else "")
    return Section(
        "how well they find each other",
        [figures(pairs.networks, rows)],
        f"Among the {count} pairs. The loss is what training lowers: guessing blindly gives {chance}; more than that "
        "is worse than not to know. The gap is the distance of the mean image from the mean caption: 0 is none and 2 "
        "the largest, and some is usual.",
    )


def found(network: Alike, tower: str) -> float:
    """Share of the images (or captions) to which no wrong caption (or image) is as near as their own."""
    return 1 - len(confusions(of_tower(network, tower))) / len(network.roles)


# -- what is confused --


def _confused(pairs: Pairs) -> list[Section]:
    if pairs.look.run is None:
        return []
    sections = []
    for tower, one, other in ((IMAGE, "image", "caption"), (TEXT, "caption", "image")):
        wrong = confusions(of_tower(pairs.networks[-1], tower))
        hint = (
            f"For {len(wrong)} of {len(pairs)} {one}s a wrong {other} is nearer than their own; these are the worst. "
            f"Green is the pair, orange the one whose {other} is taken for its own."
        )
        groups = [Group(_said(pairs, each, tower), [_tiles(pairs, each)]) for each in wrong[:CONFUSIONS]]
        sections += [Section(f"{one}s that take a wrong {other}", [Gallery(groups)], hint)] if groups else []
    return sections


def _said(pairs: Pairs, each: Confusion, tower: str) -> str:
    own, wrong = pairs.captions[each.pair].text, pairs.captions[each.other].text
    return f"an image takes “{wrong}” for its caption" if tower == IMAGE else f"“{own}” takes another image"


def _tiles(pairs: Pairs, each: Confusion) -> list[Tile]:
    right_and_wrong = ((each.pair, "right", each.own, OTHER), (each.other, "wrong", each.wrong, FIRST))
    return [
        Tile(
            pairs.views[pair].pixels,
            name,
            f"{pairs.captions[pair].text}, cosine {cosine:.2f}",
            CONFUSED,
            colour,
        )
        for pair, name, cosine, colour in right_and_wrong
    ]
