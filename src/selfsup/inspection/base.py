"""What the inspections of all objectives have in common: an idea, some facts, and parts to look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table

from selfsup.errors import UserError
from selfsup.report import Text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from selfsup.config import Settings
    from selfsup.data.tokenizers import TextTokenizer


@dataclass(frozen=True)
class Request:
    """What is to be looked at; see `selfsup.inspect`."""

    text: str | None
    data: object
    tokenizer: str | Path | TextTokenizer
    run: str | Path | None
    window: int | None
    settings: Settings
    progress: Callable[[int, int | None], None] = lambda done, total: None


@dataclass(frozen=True)
class Part:
    """One thing to look at, in two forms.

    Attributes:
        title: what it is.
        hint: how the page's form is read.
        screen: the form for a terminal of so many columns.
        html: the form for a page; whatever comes from the data is escaped.
    """

    title: str
    hint: str
    screen: Callable[[int], RenderableType]
    html: Callable[[], str]


def table_part(title: str, hint: str, names: list[str], rows: list[list[str]]) -> Part:
    """Figures in rows and columns, under names; the first column says what they are of."""

    def screen(width: int) -> RenderableType:
        table = new_table()
        for number, name in enumerate(names):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        return table

    def html() -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    return Part(title, hint, screen, html)


def new_table() -> Table:
    """A table without lines, for a terminal."""
    return Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")


class Inspection(ABC):
    """What an objective makes of some data.

    Attributes:
        objective: name of the objective.
        idea: what it hides and what it shows, in a sentence without its full stop.
        style, script: CSS and JavaScript that its parts need on a page.
        pictured: whether it has pictures, which a terminal cannot show.
    """

    objective: ClassVar[str]
    idea: ClassVar[str]
    style: ClassVar[str] = ""
    script: ClassVar[str] = ""
    pictured: ClassVar[bool] = False

    @abstractmethod
    def summary(self) -> str:
        """A line of facts on what is looked at."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """What there is to look at, in reading order."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""

    def limits(self, width: int | None = None) -> str:
        """What a terminal of so many columns (or a page, without) leaves out, as a sentence; empty for nothing."""
        return ""

    def print(self, console: Console) -> None:
        """Every part, for a terminal."""
        console.print(Text.assemble((self.objective, "bold"), f": {self.idea}"))
        console.print(Text(self.summary(), "dim"))
        if limits := self.limits(console.width):
            console.print(Text(limits, "dim"))
        for part in self.parts():
            console.print()
            console.print(Text(part.title, "bold"))
            console.print(part.screen(console.width))

    def to_html(self) -> str:
        """One small page that needs nothing beside itself."""
        from selfsup.inspection.page import page

        return page(self)

    def to_png(self) -> bytes:
        """One picture with all of it; raises UserError where there are none."""
        raise UserError(f"{self.objective} has no pictures to show; write a page with --html.")
