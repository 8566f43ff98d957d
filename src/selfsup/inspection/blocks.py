"""What an inspection is made of: plain data in a few kinds of block. Terminal, page and sheet draw each kind once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from selfsup.inspection.pictures import Pixels, data_uri

OWN, ALIEN, OUT = "+", "-", "="  # a cell that belongs together, one that does not, and one that says nothing

Picture: TypeAlias = Pixels | str  # in the margin of a matrix: one, or a short text


class Block:
    """Something to look at: plain data of one kind, which is named as its class is."""

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Points(Block):
    """Terms and a sentence on each."""

    points: dict[str, str]


@dataclass(frozen=True)
class Table(Block):
    """Figures in rows and columns, under names; the first column says what they are of."""

    names: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Token:
    """A token to look at."""

    text: str
    role: str = ""  # how it looks: mask, random, kept, first, second, neither, gone, or as it is
    heat: float | None = None  # how surprising it was to the model, from 0 to 1


@dataclass(frozen=True)
class Line:
    """Tokens in a line, with what stands before and behind them."""

    tokens: list[Token]
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tokens(Block):
    """Lines of tokens; a single one is a text that runs on."""

    lines: list[Line]
    chance: float | None = None  # nats of a model that knows nothing, where tokens have heat


@dataclass(frozen=True)
class Window(Block):
    """A window of T positions: what is shown at each, and what is to be predicted there."""

    inputs: list[str]
    targets: list[str | None]  # None where nothing is to be predicted
    roles: list[str]  # how what is shown looks
    notes: list[str]  # what is said of a position that is pointed at
    documents: list[int]  # number of the document that each position belongs to
    losses: list[float | None] | None = None  # nats of each target, where a run was given
    chance: float | None = None  # nats of a model that knows nothing, likewise
    legend: dict[str, str] = field(default_factory=dict)  # what the roles stand for

    def heat(self, position: int) -> float | None:
        """How surprising a target was, from 0 to 1; None where no model says so."""
        loss = self.losses[position] if self.losses else None
        return None if loss is None else share_of(loss, self.chance)


@dataclass(frozen=True)
class Guess:
    """A token that the model holds for likely."""

    token: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """A token to be predicted, and what it is predicted from."""

    position: int
    given: list[Token]  # what is shown around it, or the last tokens before it
    target: str
    more: bool = False  # whether there are earlier ones
    done: str = ""  # to the token, in words
    loss: float | None = None  # nats, where a run was given
    guesses: list[Guess] | None = None  # the likeliest, likewise


@dataclass(frozen=True)
class Predictions(Block):
    """Tokens to be predicted, one by one; `chance` as in `Window`."""

    predictions: list[Prediction]
    chance: float | None = None


@dataclass(frozen=True)
class Sight(Block):
    """Who sees whom among the T positions of a window."""

    names: list[str]
    mask: list[list[int]]  # row t says with 0 and 1 which positions t sees
    reach: int | None = None  # positions to either side that local layers see, where only some see farther

    def far(self, t: int, other: int) -> bool:
        """Whether only the layers that see far let position t see another one."""
        return bool(self.mask[t][other]) and self.reach is not None and abs(t - other) > self.reach


@dataclass(frozen=True)
class Marks(Block):
    """Rows of letters, one for each position; `roles`: how a letter looks, any other as nothing."""

    rows: dict[str, str]
    roles: dict[str, str]


@dataclass(frozen=True)
class Bars(Block):
    """Rows of numbers under a title, drawn on one scale around 0, and what is said of them."""

    title: str
    rows: dict[str, list[float]]
    said: str


@dataclass(frozen=True)
class Tile:
    """A picture (H, W, 3), and what is said beneath it."""

    pixels: Pixels
    name: str
    facts: str
    height: int  # at which it is shown, in pixels of a page
    colour: str | None = None  # of its frame
    tokens: list[Token] = field(default_factory=list)  # of a text that belongs to it


@dataclass(frozen=True)
class Group:
    """Rows of tiles under one name."""

    name: str
    rows: list[list[Tile]]


@dataclass(frozen=True)
class Gallery(Block):
    """Groups of tiles."""

    groups: list[Group]


@dataclass(frozen=True)
class Matrix(Block):
    """How alike what is in each row is to what is in each column: the stronger a cell, the more. Without anything in
    the margins the cells lie close together, and those that belong together have a colour of their own."""

    name: str  # of what says so
    rows: Sequence[Picture]
    columns: Sequence[Picture]
    values: list[list[float]]
    roles: list[str]  # row by row: OWN cells are framed, OUT cells crossed out
    limits: tuple[float, float] | None = None  # drawn as nothing and in full; else the least and the largest
    cell: int = 34  # side of one, in pixels of a page, where there is room
    said: tuple[list[str], list[str]] = ([], [])  # what rows and columns are, where a cell is pointed at
    meaning: dict[str, str] = field(default_factory=dict)  # what roles stand for, likewise

    @property
    def range(self) -> tuple[float, float]:
        """What is drawn as nothing, and at full strength."""
        kept = [value for role in (OWN, ALIEN) for value in of_role(role, self.roles, self.values)]
        return self.limits or (min(kept, default=0.0), max(kept, default=1.0))

    @property
    def caption(self) -> str:
        return f"{self.name}, from {self.range[0]:.2f} (pale) to {self.range[1]:.2f} (full)"


# -- the whole --


@dataclass(frozen=True)
class Section:
    """Blocks under a title; a hint on how they are read, for a page or a sheet; a note on what they show, for all."""

    title: str
    blocks: Sequence[Block]
    hint: str = ""
    note: str = ""

    @property
    def said(self) -> str:
        """Hint and note."""
        return f"{self.hint} {self.note}".strip()


AnyBlock = TypeVar("AnyBlock", bound=Block)


@dataclass(frozen=True)
class Document:
    """All that is shown, in reading order."""

    objective: str
    heading: str  # of a page
    idea: str  # what the objective hides and what it shows, in a sentence without its full stop
    facts: list[str]  # on what is looked at
    sections: list[Section]
    values: dict[str, Any] = field(default_factory=dict)  # figures and settings, as JSON can hold them
    limits: str = ""  # what is looked at and not drawn, as a sentence

    @property
    def summary(self) -> str:
        """A line of facts."""
        return ", ".join(self.facts)

    @property
    def pictured(self) -> bool:
        """Whether it has pictures, which a terminal cannot show."""
        return bool(self.blocks(Gallery))

    def blocks(self, kind: type[AnyBlock]) -> list[AnyBlock]:
        """All blocks of a kind."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, kind)]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it; pictures are URIs of PNG data."""
        plain: dict[str, Any] = as_json(self)
        return plain


def as_json(value: object) -> Any:
    """Data as JSON can hold it; what is None in a dataclass is left out."""
    if is_dataclass(value):
        content = {each.name: getattr(value, each.name) for each in fields(value)}
        kind: dict[str, Any] = {"kind": value.kind} if isinstance(value, Block) else {}
        return kind | {name: as_json(inner) for name, inner in content.items() if inner is not None}
    if isinstance(value, np.ndarray):
        return data_uri(Image.fromarray(value))
    if isinstance(value, Mapping):
        return {name: as_json(inner) for name, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list | tuple) else value


# -- words --


@cache
def _words() -> dict[str, dict[str, dict[str, str]]]:
    return tomllib.loads(files(__package__).joinpath("words.toml").read_text(encoding="utf-8"))


def section(kind: str, name: str, /, *blocks: Block, **figures: object) -> Section:
    """Blocks under the title of a section of a kind of inspection; figures are put into its words (words.toml)."""
    words = {part: text.format(**figures) for part, text in _words()[kind][name].items()}
    return Section(blocks=blocks, **words)


def task(kind: str, said: Mapping[str, str], /, **figures: object) -> Section:
    """What is shown, hidden, predicted and learned; `said` in place of the words of the kind."""
    points = {term: text.format(**figures) for term, text in _words()[kind]["task"].items()}
    return Section("the task", [Points({**points, **said})])


def of_role(role: str, roles: Sequence[str], values: Sequence[Sequence[float]]) -> list[float]:
    """The values of all cells of a role, row by row."""
    rows = zip(roles, values, strict=True)
    return [value for marks, row in rows for mark, value in zip(marks, row, strict=True) if mark == role]


def share_of(loss: float, chance: float | None) -> float:
    """A loss as a share of chance, from 0 to 1."""
    return min(1.0, loss / chance) if chance else 0.0


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / max(1, len(values))
