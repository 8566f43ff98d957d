"""Objectives of images and captions: the pairs of a batch, how alike both towers find them, and what they confuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inspection.alike import Alike, alike, roles, table
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import ALIEN, OUT, OWN, Gallery, Group, Section, Tile, Token, section, task
from selfsup.inspection.figures import networks
from selfsup.inspection.images import HEIGHT, Look, Seen, first_of, opened
from selfsup.inspection.pictures import FIRST, OTHER
from selfsup.models.kinds import IMAGE, TEXT
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
class Pairs:
    """The pairs that are looked at: what is seen of each image, the caption that was drawn for it, and what networks
    make of them, images in rows and captions in columns, before the training and after it where there is a run."""

    look: Look
    views: list[Seen]
    captions: list[Caption]
    found: list[Alike]

    @property
    def batch(self) -> int:
        """Pairs of a batch of the training."""
        size: int = self.look.recipe.settings["train.batch"]
        return size

    def tile(self, pair: int, name: str, facts: str, height: int, colour: str | None, *tokens: Token) -> Tile:
        return Tile(self.views[pair].pixels, name, facts, height, colour, list(tokens))


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
    made, loss = objective.hide(look.batch), objective.loss
    captions = _captions(recipe.text.tokenizer, look, made)
    found = [towers(name, each, made) for name, each in networks(objective, look.run)]
    pairs = Pairs(look, look.seen(made["views"], look.view, VIEW), captions, found)
    blindly = chance(loss, len(captions))
    sections = [*_shown(pairs), *_alike(pairs), _measured(pairs, loss, blindly)]
    if look.run is not None:
        sections += [each for tower in (IMAGE, TEXT) for each in _confused(pairs, tower)]
    facts, values = look.facts("pairs of the first batch"), _values(pairs)
    values |= {"loss": loss, "batch": pairs.batch, "chance": blindly}
    part = "" if len(captions) == pairs.batch else f"A training has {pairs.batch} in a batch. "
    some = look.limits.replace("means over", "of")
    return look.inspection(sections, values, facts=facts, limits=(part + some).strip())


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
        raise UserError(f"{request.run} has no model yet that could read the captions of other data; leave --data out.")
    settings.change("data.tokenizer", str(directory), "run")
    settings.change("data.vocabulary", None, "run")


def _captions(tokenizer: TextTokenizer, look: Look, made: Task) -> list[Caption]:
    tokens, lengths, _ = drawn_captions(look.batch)
    captions = []
    for row, shown, length in zip(tokens, made["tokens"], lengths.tolist(), strict=True):
        hidden = (row != shown)[1 : length - 1].tolist()  # without start and end
        read = tokenizer.tokens(shown[1 : length - 1].tolist())
        captions.append(Caption(tokenizer.decode(row[:length].tolist()), read, hidden))
    return captions


@torch.inference_mode()
def towers(name: str, objective: Objective, made: Task) -> Alike:
    """What a model of two towers makes of pairs: images in rows, captions in columns."""
    outputs = objective.predict(made)
    keys = made["keys"].cpu().numpy()
    same = (keys[:, None] == keys).any(-1)  # equal captions or images
    found = roles(np.eye(len(keys), dtype=bool), same)
    return alike(name, objective, made, outputs, found, outputs[IMAGE], outputs[TEXT])


def of_tower(network: Alike, tower: str) -> Alike:
    """Images that look for captions, or captions that look for images."""
    return network if tower == IMAGE else network.turned()


def _values(pairs: Pairs) -> dict[str, Any]:
    values, found = pairs.look.values([[seen] for seen in pairs.views]), []
    for image, caption in zip(values["images"], pairs.captions, strict=True):
        image |= asdict(caption)
    for network in pairs.found:
        wrong = {tower: of_tower(network, tower).confusions() for tower in (IMAGE, TEXT)}
        found.append(asdict(network) | {"confusions": wrong})
    return values | {"networks": found}


# -- what is shown --


def _shown(pairs: Pairs) -> list[Section]:
    look, tiles = pairs.look, []
    for pair in look.shown:
        caption = pairs.captions[pair]
        name, facts = f"{pair + 1} {caption.text}", pairs.views[pair].facts(look.images[pair])
        marks = zip(caption.tokens, caption.hidden, strict=True)
        tokens = [Token(text, "gone" * hidden) for text, hidden in marks]
        tiles.append(pairs.tile(pair, name, facts, HEIGHT, None, *tokens))
    hides = any(any(caption.hidden) for caption in pairs.captions)
    marked = " Orange tokens are hidden: the tower sees a mark in their place." * hides
    return [
        task("pairs", look.recipe.words, tokens=", and some tokens of the captions" * hides),
        section("pairs", "shown", Gallery([Group("", [tiles])]), marked=marked),
    ]


def limits(network: Alike) -> tuple[float, float]:
    """The cosines that are drawn as nothing, so that half of all are pale, and at full strength."""
    return float(np.median(network.similarity)), float(np.max(network.similarity))


def _alike(pairs: Pairs) -> list[Section]:
    count, shown = len(pairs.captions), pairs.look.shown
    same = sum(row.count(OUT) for row in pairs.found[0].roles)
    out = f" Crossed out are the {same} that are no negatives: equal captions or images." if same else ""
    texts = [f"{pair} {caption.text}" for pair, caption in enumerate(pairs.captions, 1)]
    pixels, drawn = [pairs.views[pair].pixels for pair in shown], texts[: len(shown)]
    how = {"said": (pairs.look.names, texts), "meaning": MEANING}
    some = [each.matrix(pixels, drawn, limits=limits(each), cell=CELL, **how) for each in pairs.found]
    every = [each.matrix([], [], limits=limits(each), **how) for each in pairs.found]
    which = "the whole batch," if count == pairs.batch else "all"
    whole = section("pairs", "all", *every, which=which, count=count)
    return [section("pairs", "alike", *some, out=out), *([whole] if count > len(shown) else [])]


def _measured(pairs: Pairs, loss: str, blindly: float) -> Section:
    count = len(pairs.captions)
    rows: dict[str, Callable[[Alike], str]] = {
        "cosine with its own caption": lambda each: f"{each.mean(OWN):.3f}",
        "with another one": lambda each: f"{each.mean(ALIEN):.3f}",
        f"images that find their caption (blindly {1 / count:.0%})": lambda each: f"{each.found():.0%}",
        "captions that find their image": lambda each: f"{each.turned().found():.0%}",
        f"loss (chance {blindly:.3f})": lambda each: f"{each.figures[loss]:.3f}",
        "temperature": lambda each: f"{each.figures['temperature']:.3f}",
        "gap": lambda each: f"{each.figures['modality_gap']:.2f}",
    }
    chance = f"{blindly:.3f}" + (f", ln {count}" if loss == "softmax" else "")
    return section("pairs", "figures", table(pairs.found, rows), count=count, chance=chance)


def _confused(pairs: Pairs, tower: str) -> list[Section]:
    """The images, or the captions, that take a wrong one, where there are any."""
    network = of_tower(pairs.found[-1], tower)
    wrong, texts, groups = network.confusions(), [caption.text for caption in pairs.captions], []
    for own, other in wrong[:CONFUSIONS]:
        image = f"an image takes “{texts[other]}” for its caption"
        tiles = [
            pairs.tile(pair, name, f"{texts[pair]}, cosine {network.similarity[own][pair]:.2f}", CONFUSED, colour)
            for pair, name, colour in ((own, "right", OTHER), (other, "wrong", FIRST))
        ]
        groups.append(Group(image if tower == IMAGE else f"“{texts[own]}” takes another image", [tiles]))
    one, which = ("image", "caption") if tower == IMAGE else ("caption", "image")
    figures = {"wrong": len(wrong), "count": len(texts), "one": one, "other": which}
    return [section("pairs", "confused", Gallery(groups), **figures)] if groups else []
