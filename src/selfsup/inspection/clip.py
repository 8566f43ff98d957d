"""CLIP, seen: the pairs of a batch, how alike both towers find every image and every caption, and what they confuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from rich.console import RenderableType

from selfsup.data.tokenizers import TextTokenizer
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.inspection.base import Request
from selfsup.inspection.blocks import (
    ALIEN,
    OUT,
    OWN,
    STYLE,
    Beside,
    Figures,
    Gallery,
    Matrix,
    Points,
    Section,
    Tile,
    scale_caption,
)
from selfsup.inspection.pictures import (
    DENSITY,
    FAINT,
    FIRST,
    GAP,
    GROUND,
    OTHER,
    PAPER,
    SECOND,
    data_uri,
    flowed,
    ramp,
    stacked,
    written,
)
from selfsup.inspection.tokens import TOKEN_STYLE, chip, visible
from selfsup.inspection.vision import (
    HEIGHT,
    Seen,
    VisionInspection,
    described,
    first_of,
    mean,
    opened,
    trained,
)
from selfsup.models.clip import IMAGE, TEXT, Loss
from selfsup.objectives.base import Task
from selfsup.objectives.captions import drawn_captions
from selfsup.objectives.clip import CLIP, VIEW, CLIPRecipe, chance
from selfsup.report import Text
from selfsup.run import Run

BATCH, USUAL = 128, 64  # pairs that are looked at: at most, and where no batch is said
CELL = 26  # of the matrix of the pairs that are drawn
WHOLE = 440  # side of the matrix of all, in pixels of a page
CONFUSIONS = 8  # that are shown in each direction
CONFUSED = 96  # height of their images on a page
PAIR_STYLE = """\
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: 1rem 1.4rem;
  margin-top: .9rem; }
.pairs figure { display: flex; gap: .6rem; align-items: flex-start; }
.pairs img { width: 84px; flex: none; image-rendering: pixelated; }
.pairs figcaption { margin: 0; }
.pairs .chip { font-size: .8rem; padding: .05rem .3rem; margin: 0 .15rem .15rem 0; color: var(--ink); }
.pairs .chip.gone { background: var(--hot); color: var(--paper); }
"""


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
class Towers:
    """What two towers make of the pairs.

    Attributes:
        name: of the towers.
        similarity: row i, column j: cosine of image i and caption j.
        loss: of these pairs as one batch; of the term that tells pairs apart.
        temperature: by which cosines are divided.
        gap: between the means of all images and of all captions.
    """

    name: str
    similarity: list[list[float]]
    loss: float
    temperature: float
    gap: float

    @property
    def limits(self) -> tuple[float, float]:
        """The cosines that are drawn as nothing, so that half of all are pale, and at full strength."""
        cosines = np.array(self.similarity)
        return float(np.median(cosines)), float(cosines.max())


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


@dataclass(frozen=True, kw_only=True)
class CLIPInspection(VisionInspection):
    """The first B pairs.

    Attributes:
        loss: which.
        batch: pairs of a batch of the training.
        views: what is seen of each image.
        captions: which was drawn for each.
        roles: row i, column j: what caption j is to image i.
        networks: before the training, and after it where a run was given.
    """

    objective: ClassVar[str] = "clip"
    idea: ClassVar[str] = "an image finds its caption among those of others, and a caption its image"
    style: ClassVar[str] = STYLE + TOKEN_STYLE + PAIR_STYLE
    most: ClassVar[int] = 16

    loss: Loss
    batch: int
    views: list[Seen]
    captions: list[Caption]
    roles: list[str]
    networks: list[Towers]

    def summary(self) -> str:
        return super().summary().replace("images that training takes first", "pairs of the first batch")

    def limits(self, width: int | None = None) -> str:
        """With how much of a batch is looked at."""
        count = len(self.images)
        part = "" if count == self.batch else f"A training has {self.batch} in a batch. "
        drawn = (
            ""
            if count == len(self.shown)
            else f"Figures are of these {count}; the first {len(self.shown)} are drawn."
        )
        return (part + drawn).strip()

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "loss": self.loss,
            "batch": self.batch,
            "chance": self.chance,
            "pairs": [
                {**self.described(pair), "view": described(self.views[pair]), **asdict(caption)}
                for pair, caption in enumerate(self.captions)
            ],
            "roles": self.roles,
            "networks": [
                {
                    **asdict(network),
                    "confusions": {
                        tower: [asdict(each) for each in self.confusions(network, tower)]
                        for tower in (IMAGE, TEXT)
                    },
                }
                for network in self.networks
            ],
        }

    @property
    def chance(self) -> float:
        """The loss of towers that know nothing: ln B, or that of the sigmoid loss."""
        return chance(self.loss, len(self.captions))

    def sections(self) -> list[Section]:
        marked = " Orange tokens are hidden: the tower sees a mark in their place." if self._hides else ""
        return [
            Section("the task", "", Points(self._points())),
            Section(
                "pairs of a batch",
                "What the towers are given: the part of an image that was drawn for it, and a caption of it, as the "
                f"tokens beneath, without start and end.{marked}",
                Pairs([self._pair(pair) for pair in self.shown]),
            ),
            *self._alike(),
            self._measured(),
            *self._confused(),
        ]

    @property
    def _hides(self) -> bool:
        return any(any(caption.hidden) for caption in self.captions)

    def _points(self) -> dict[str, str]:
        hidden = ", and some tokens of the captions" if self._hides else ""
        return {
            "Shown": "an image to one tower, a caption to the other; neither sees what the other sees.",
            "Hidden": f"which caption belongs to which image{hidden}.",
            "Predicted": "for each image, which caption of the batch is its own; for each caption, which image. Those "
            "of all other pairs are what it could be mistaken for.",
            "Learned": "vectors of images and of texts in one space: what belongs together lies near, so that words "
            "find pictures they never came with.",
        }

    def _pair(self, pair: int) -> tuple[Tile, Caption]:
        seen = self.views[pair]
        return Tile(seen.pixels, str(pair + 1), self.facts(pair, seen), HEIGHT), self.captions[pair]

    # -- how alike --

    def _alike(self) -> list[Section]:
        count, alike = len(self.captions), sum(row.count(OUT) for row in self.roles)
        out = (
            f" Crossed out are the {alike} that are no negatives: equal captions or images." if alike else ""
        )
        drawn = Section(
            "which belong together",
            "Images in rows, captions in columns; the stronger a cell, the nearer the two are to the towers (cosine; "
            "the lower half of all is pale). Framed is what belongs together: training makes these cells strong and "
            f"all others pale.{out}",
            Beside([self._matrix(network) for network in self.networks]),
        )
        if count == len(self.shown):
            return [drawn]
        whole = Section(
            f"the whole batch, {count} by {count}" if count == self.batch else f"all {count} by {count}",
            "The same of all pairs, with those that belong together in orange. A line from corner to corner is what "
            "is to appear: each image nearest to its own caption.",
            Beside([Whole(each.name, each.similarity, self.roles, each.limits) for each in self.networks]),
        )
        return [drawn, whole]

    def _measured(self) -> Section:
        count = len(self.captions)
        chance = f"{self.chance:.3f}" + (f", ln {count}" if self.loss == "softmax" else "")
        return Section(
            "how well they find each other",
            f"Among the {count} pairs. The loss is what training lowers: guessing blindly gives {chance}; more than "
            "that is worse than not to know. The gap is the distance of the mean image from the mean caption: 0 is "
            "none and 2 the largest, and some is usual.",
            Figures(["", *(network.name for network in self.networks)], self._figures()),
        )

    def _matrix(self, network: Towers) -> Matrix:
        count = len(self.shown)
        return Matrix(
            network.name,
            [self.views[pair].pixels for pair in self.shown],
            [f"{pair + 1} {self.captions[pair].text}" for pair in self.shown],
            [row[:count] for row in network.similarity[:count]],
            [row[:count] for row in self.roles[:count]],
            CELL,
            network.limits,
        )

    def _figures(self) -> list[list[str]]:
        blindly = f"{1 / len(self.captions):.0%}"
        rows: dict[str, Callable[[Towers], str]] = {
            "cosine with its own caption": lambda towers: f"{mean(self._cosines(towers, OWN)):.3f}",
            "with another one": lambda towers: f"{mean(self._cosines(towers, ALIEN)):.3f}",
            f"images that find their caption (blindly {blindly})": lambda towers: (
                f"{self.found(towers, IMAGE):.0%}"
            ),
            "captions that find their image": lambda towers: f"{self.found(towers, TEXT):.0%}",
            f"loss (chance {self.chance:.3f})": lambda towers: f"{towers.loss:.3f}",
            "temperature": lambda towers: f"{towers.temperature:.3f}",
            "gap": lambda towers: f"{towers.gap:.2f}",
        }
        return [[name, *map(figure, self.networks)] for name, figure in rows.items()]

    def _cosines(self, network: Towers, role: str) -> list[float]:
        rows = zip(self.roles, network.similarity, strict=True)
        return [cosine for roles, row in rows for is_, cosine in zip(roles, row, strict=True) if is_ == role]

    def found(self, network: Towers, tower: str) -> float:
        """Share of the images (or captions) to which no wrong caption (or image) is as near as their own."""
        return 1 - len(self.confusions(network, tower)) / len(self.captions)

    def confusions(self, network: Towers, tower: str) -> list[Confusion]:
        """Of the images, or of the captions: to which a wrong one is as near as the right one, the worst first."""
        cosines = np.array(network.similarity)
        cosines = cosines if tower == IMAGE else cosines.T
        negatives = np.array([[role == ALIEN for role in row] for row in self.roles])  # both ways the same
        nearest = np.where(negatives, cosines, -np.inf).argmax(1)
        found = [
            Confusion(pair, other, float(cosines[pair, pair]), float(cosines[pair, other]))
            for pair, other in enumerate(nearest.tolist())
            if negatives[pair, other] and cosines[pair, other] >= cosines[pair, pair]
        ]
        return sorted(found, key=lambda each: each.own - each.wrong)

    # -- what is confused --

    def _confused(self) -> list[Section]:
        if self.run is None:
            return []
        sections = []
        for tower, one, other in ((IMAGE, "image", "caption"), (TEXT, "caption", "image")):
            found = self.confusions(self.networks[-1], tower)
            if found:
                hint = (
                    f"For {len(found)} of {len(self.captions)} {one}s a wrong {other} is nearer than their own; these "
                    f"are the worst. Green is the pair, orange the one whose {other} is taken for its own."
                )
                groups = [(self._said(each, tower), [self._tiles(each)]) for each in found[:CONFUSIONS]]
                sections.append(Section(f"{one}s that take a wrong {other}", hint, Gallery(groups)))
        return sections

    def _said(self, each: Confusion, tower: str) -> str:
        own, wrong = self.captions[each.pair].text, self.captions[each.other].text
        return (
            f"an image takes “{wrong}” for its caption" if tower == IMAGE else f"“{own}” takes another image"
        )

    def _tiles(self, each: Confusion) -> list[Tile]:
        return [
            Tile(
                self.views[pair].pixels,
                name,
                f"{self.captions[pair].text}, cosine {cosine:.2f}",
                CONFUSED,
                colour,
            )
            for pair, name, cosine, colour in (
                (each.pair, "right", each.own, OTHER),
                (each.other, "wrong", each.wrong, FIRST),
            )
        ]


# -- how it is drawn --


@dataclass(frozen=True)
class Pairs:
    """Views and their captions side by side, hidden tokens marked."""

    pairs: Sequence[tuple[Tile, Caption]]

    def screen(self, width: int) -> RenderableType:
        lines = []
        for tile, caption in self.pairs:
            line = Text.assemble((f"{tile.name:>3} ", "dim"), f"{caption.text}  ")
            pieces = (
                Text(visible(token), "reverse yellow" if hidden else "dim")
                for token, hidden in zip(caption.tokens, caption.hidden, strict=True)
            )
            line.append_text(Text(" │ ", "dim").join(pieces))
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
        return Text("\n").join(lines)

    def html(self) -> str:
        return f'<div class="pairs">{"".join(self._figure(*pair) for pair in self.pairs)}</div>'

    def _figure(self, tile: Tile, caption: Caption) -> str:
        chips = "".join(
            chip("gone" if hidden else "", token)
            for token, hidden in zip(caption.tokens, caption.hidden, strict=True)
        )
        return (
            f'<figure><img src="{data_uri(Image.fromarray(tile.pixels))}" alt="{escape(caption.text)}"><figcaption>'
            f"<b>{escape(tile.name)} {escape(caption.text)}</b><br>{chips}<br>{escape(tile.facts)}"
            "</figcaption></figure>"
        )

    def paint(self, width: int) -> Image.Image:
        tiles = [
            replace(
                tile,
                name=f"{tile.name} {caption.text}",
                facts=f"{' '.join(map(visible, caption.tokens))}; {tile.facts}",
            )
            for tile, caption in self.pairs
        ]
        return flowed([tile.paint() for tile in tiles], width, GAP * DENSITY)


@dataclass(frozen=True)
class Whole:
    """The cosines of all images with all captions as one picture, without names.

    Attributes:
        name: of what says so.
        values, roles: as in `Matrix`.
        limits: the cosines that are drawn as nothing and at full strength.
    """

    name: str
    values: Sequence[Sequence[float]]
    roles: Sequence[str]
    limits: tuple[float, float]

    def screen(self, width: int) -> RenderableType:
        own = mean([row[pair] for pair, row in enumerate(self.values)])
        every = mean([cosine for row in self.values for cosine in row])
        return Text(f"{self.name}: cosine {own:.2f} on the diagonal, {every:.2f} everywhere, in the mean")

    def html(self) -> str:
        picture = self._drawn()
        return (
            f'<figure><figcaption>{escape(self._caption())}</figcaption><img src="{data_uri(picture)}" '
            f'width="{picture.width // DENSITY}" alt="{escape(self.name)}"></figure>'
        )

    def paint(self, width: int) -> Image.Image:
        picture = self._drawn()
        caption = written(self._caption(), 13, FAINT, picture.width)
        return stacked([caption, picture], picture.width, 4 * DENSITY)

    def _caption(self) -> str:
        return scale_caption(self.name, self.limits)

    def _drawn(self) -> Image.Image:
        """Cells without space between them; diagonal cells are of another colour, as strong as theirs."""
        low, high = self.limits
        shares = (np.array(self.values) - low) / max(high - low, 1e-9)
        colours = ramp(shares, (GROUND, SECOND))
        diagonal = np.eye(len(shares), dtype=bool)
        colours[diagonal] = ramp(shares, (PAPER, FIRST))[diagonal]
        side = max(1, WHOLE * DENSITY // len(shares))
        picture = Image.fromarray(colours.repeat(side, 0).repeat(side, 1))
        draw = ImageDraw.Draw(picture)
        for row, roles in enumerate(self.roles):
            for column in (place for place, role in enumerate(roles) if role == OUT):
                left, top = column * side, row * side
                draw.rectangle((left, top, left + side - 1, top + side - 1), fill=PAPER)
                draw.line((left, top, left + side - 1, top + side - 1), fill=FAINT, width=DENSITY)
        return picture


# -- what is looked at --


def inspect_clip(request: Request) -> CLIPInspection:
    """Views, captions and objective are those of the training."""
    _take_tokenizer(request)
    given = request.settings["train.batch"]
    recipe = opened(request, "clip")
    assert isinstance(recipe, CLIPRecipe)
    if given is None:  # it would follow from the length of a training
        recipe.settings.change("train.batch", min(USUAL, len(recipe.train)), "inspection")
    look = first_of(recipe, min(recipe.settings["train.batch"], BATCH))
    objective = recipe.build()
    task = objective.hide(look.batch)
    networks = [_towers("before training", objective.eval(), task)]
    if request.run is not None:
        networks.append(_towers(str(request.run), trained(Run(request.run), objective), task))
    tokens, lengths, _ = drawn_captions(look.batch)
    rows = zip(tokens, task["tokens"], lengths.tolist(), strict=True)
    return CLIPInspection(
        **look.shared(request.run),
        loss=objective.loss,
        batch=recipe.settings["train.batch"],
        views=look.seen(task["views"], objective.view, VIEW),
        captions=[
            _caption(recipe.text.tokenizer, whole[:length].tolist(), shown[:length].tolist())
            for whole, shown, length in rows
        ],
        roles=_roles(task["keys"].tolist()),
        networks=networks,
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


def _roles(keys: list[list[int]]) -> list[str]:
    """What each caption is to each image: its own, not to be counted (equal captions or images), or a wrong one."""
    return [
        "".join(
            OWN if here == there else OUT if any(map(int.__eq__, own, other)) else ALIEN
            for there, other in enumerate(keys)
        )
        for here, own in enumerate(keys)
    ]


@torch.inference_mode()
def _towers(name: str, objective: CLIP, task: Task) -> Towers:
    outputs, alone = objective.predict(task), Processes.alone()
    sums = objective.score(outputs, task, alone)
    image, text = (F.normalize(outputs[tower].float(), dim=-1) for tower in (IMAGE, TEXT))
    count = len(image)
    figures = (float(sums[term]) / count for term in (objective.loss, "temperature", "modality_gap"))
    return Towers(name, (image @ text.T).tolist(), *figures)
