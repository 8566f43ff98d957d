"""What an inspection is made of: plain data in a few kinds of block. Terminal, page and sheet draw each kind once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from selfsup.inspection.pictures import Pixels, data_uri

OWN, ALIEN, OUT = "+", "-", "="  # a cell that belongs together, one that does not, and one that says nothing


Picture: TypeAlias = Pixels | str  # in the margin of a matrix: one, or a short text


class Block:
    """Something to look at: plain data of one kind."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Points(Block):
    """Terms and a sentence on each."""

    kind: ClassVar[str] = "points"

    points: dict[str, str]


@dataclass(frozen=True)
class Table(Block):
    """Figures in rows and columns, under names; the first column says what they are of."""

    kind: ClassVar[str] = "table"

    names: list[str]
    rows: list[list[str]]


# -- tokens --


@dataclass(frozen=True)
class Token:
    """A token to look at.

    Attributes:
        role: how it looks: `mask`, `random`, `kept`, `first`, `second`, `neither`, `gone`, or as it is.
        heat: how surprising it was to the model, from 0 to 1.
    """

    text: str
    role: str = ""
    heat: float | None = None


@dataclass(frozen=True)
class Line:
    """Tokens in a line, with what stands before and behind them."""

    tokens: list[Token]
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Tokens(Block):
    """Lines of tokens; a single one is a text that runs on.

    Attributes:
        chance: nats of a model that knows nothing, where tokens have heat.
    """

    kind: ClassVar[str] = "tokens"

    lines: list[Line]
    chance: float | None = None


@dataclass(frozen=True)
class Window(Block):
    """A window of T positions: what is shown at each, and what is to be predicted there.

    Attributes:
        inputs: what is shown.
        targets: what is to be predicted; None where nothing is.
        roles: how what is shown looks.
        notes: what is said of a position that is pointed at.
        documents: number of the document that each position belongs to.
        losses: nats of each target, where a run was given.
        chance: nats of a model that knows nothing, where a run was given.
        legend: what the roles stand for.
    """

    kind: ClassVar[str] = "window"

    inputs: list[str]
    targets: list[str | None]
    roles: list[str]
    notes: list[str]
    documents: list[int]
    losses: list[float | None] | None = None
    chance: float | None = None
    legend: dict[str, str] = field(default_factory=dict)

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
    """A token to be predicted, and what it is predicted from.

    Attributes:
        given: the tokens that are shown around it, or the last ones before it.
        more: whether there are earlier ones.
        done: what was done to it, in words.
        loss, guesses: nats, and the likeliest tokens, where a run was given.
    """

    position: int
    given: list[Token]
    target: str
    more: bool = False
    done: str = ""
    loss: float | None = None
    guesses: list[Guess] | None = None


@dataclass(frozen=True)
class Predictions(Block):
    """Tokens to be predicted, one by one; `chance`: nats of a model that knows nothing, where a run was given."""

    kind: ClassVar[str] = "predictions"

    predictions: list[Prediction]
    chance: float | None = None


@dataclass(frozen=True)
class Sight(Block):
    """Who sees whom among the T positions of a window.

    Attributes:
        names: of the positions.
        mask: row t says with 0 and 1 which positions t sees.
        reach: positions to either side that local layers see, where only some layers see farther.
    """

    kind: ClassVar[str] = "sight"

    names: list[str]
    mask: list[list[int]]
    reach: int | None = None

    def far(self, t: int, other: int) -> bool:
        """Whether only the layers that see far let position t see another one."""
        return bool(self.mask[t][other]) and self.reach is not None and abs(t - other) > self.reach


@dataclass(frozen=True)
class Marks(Block):
    """Rows of letters, one for each position; `roles`: how a letter looks, `·` as nothing."""

    kind: ClassVar[str] = "marks"

    rows: dict[str, str]
    roles: dict[str, str]


@dataclass(frozen=True)
class Bars(Block):
    """Rows of numbers under a title, drawn on one scale around 0, and what is said beneath them."""

    kind: ClassVar[str] = "bars"

    title: str
    rows: dict[str, list[float]]
    said: str


# -- pictures --


@dataclass(frozen=True)
class Tile:
    """A picture and what is said beneath it.

    Attributes:
        pixels: (H, W, 3).
        name: what it is, in a few words.
        facts: on it; may be empty.
        height: at which it is shown, in pixels of a page.
        colour: of its frame.
        tokens: of a text that belongs to it.
    """

    pixels: Pixels
    name: str
    facts: str
    height: int
    colour: str | None = None
    tokens: list[Token] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Rows of tiles under one name."""

    name: str
    rows: list[list[Tile]]


@dataclass(frozen=True)
class Gallery(Block):
    """Groups of tiles."""

    kind: ClassVar[str] = "gallery"

    groups: list[Group]


@dataclass(frozen=True)
class Matrix(Block):
    """How alike what is in each row is to what is in each column: the stronger a cell, the more.

    Attributes:
        name: of what says so.
        rows, columns: pictures or short texts, drawn in the margins; without any, the cells lie close together and
            those that belong together have a colour of their own.
        values: row by row; what is at the lower limit is drawn as nothing, at the upper one at full strength.
        roles: row by row: OWN cells are framed, OUT cells crossed out.
        limits: by default the least and the largest value of cells that are not OUT.
        cell: side of one, in pixels of a page, where there is room.
        said: what rows and columns are, where a cell is pointed at.
        meaning: what roles stand for, likewise.
    """

    kind: ClassVar[str] = "matrix"

    name: str
    rows: Sequence[Picture]
    columns: Sequence[Picture]
    values: list[list[float]]
    roles: list[str]
    limits: tuple[float, float] | None = None
    cell: int = 34
    said: tuple[list[str], list[str]] = ([], [])
    meaning: dict[str, str] = field(default_factory=dict)

    @property
    def range(self) -> tuple[float, float]:
        """What is drawn as nothing, and at full strength."""
        if self.limits is not None:
            return self.limits
        kept = by_role(self, OWN) + by_role(self, ALIEN)
        return min(kept, default=0.0), max(kept, default=1.0)

    @property
    def caption(self) -> str:
        return f"{self.name}, from {self.range[0]:.2f} (pale) to {self.range[1]:.2f} (full)"


def by_role(matrix: Matrix, role: str) -> list[float]:
    """The values of all cells of a role, row by row."""
    rows = zip(matrix.roles, matrix.values, strict=True)
    return [value for roles, row in rows for is_, value in zip(roles, row, strict=True) if is_ == role]


# -- the whole --


@dataclass(frozen=True)
class Section:
    """Blocks under a title.

    Attributes:
        hint: how they are read, on a page or a sheet.
        note: what they show, said everywhere.
    """

    title: str
    blocks: Sequence[Block]
    hint: str = ""
    note: str = ""


AnyBlock = TypeVar("AnyBlock", bound=Block)


@dataclass(frozen=True)
class Document:
    """All that is shown.

    Attributes:
        objective: its name.
        heading: of a page.
        idea: what the objective hides and what it shows, in a sentence without its full stop.
        facts: on what is looked at.
        limits: what is looked at and not drawn, as a sentence; empty for nothing.
        values: figures and settings by name, as JSON can hold them.
        sections: in reading order.
    """

    objective: str
    heading: str
    idea: str
    facts: list[str]
    sections: list[Section]
    values: dict[str, Any] = field(default_factory=dict)
    limits: str = ""

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
    """Data as JSON can hold it: what is None in a dataclass is left out, what is not finite in an array is None."""
    if is_dataclass(value):
        content = {each.name: getattr(value, each.name) for each in fields(value)}
        kind: dict[str, Any] = {"kind": value.kind} if isinstance(value, Block) else {}
        return kind | {name: as_json(inner) for name, inner in content.items() if inner is not None}
    if isinstance(value, np.ndarray):
        return data_uri(Image.fromarray(value)) if value.dtype == np.uint8 else finite(value)
    if isinstance(value, Mapping):
        return {name: as_json(inner) for name, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def finite(array: np.ndarray) -> Any:
    """An array as lists; None stands for what is no number."""
    whole = array.astype(object)
    whole[~np.isfinite(array)] = None
    return whole.tolist()


def share_of(loss: float, chance: float | None) -> float:
    """A loss as a share of chance, from 0 to 1."""
    return min(1.0, loss / chance) if chance else 0.0


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / max(1, len(values))
