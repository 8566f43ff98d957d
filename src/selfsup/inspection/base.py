"""An inspection: what is to be looked at, and what is shown of it in each form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from selfsup.errors import UserError
from selfsup.files import write_new
from selfsup.inspection.blocks import Document, Section

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from selfsup.config import Settings
    from selfsup.data.tokenizers import TextTokenizer
    from selfsup.objectives.base import Objective
    from selfsup.objectives.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """What is to be looked at; see `selfsup.inspect`."""

    objective: str
    text: str | None
    data: object
    tokenizer: TextTokenizer | None  # where one is given that is opened
    run: str | Path | None
    window: int | None
    settings: Settings
    progress: Callable[[int, int | None], None]
    kind: type[Objective | Recipe]
    module: nn.Module | None


class Inspection(Document):
    """What an objective makes of some data, and the forms in which it can be looked at."""

    @classmethod
    def of(cls, objective: str, idea: str, facts: list[str], sections: list[Section], values: dict[str, Any]) -> Self:
        """Of the task of an objective."""
        name = objective.rpartition(".")[2]  # of a class from Python
        return cls(name, f"What the data teaches: {name}", idea, facts, sections, values)

    def print(self, console: Console) -> None:
        """Every section, for a terminal."""
        from selfsup.inspection.terminal import show

        show(self, console)

    def to_html(self) -> str:
        """One small page that needs nothing beside itself."""
        from selfsup.inspection.page import page

        return page(self)

    def to_png(self) -> bytes:
        """One picture with all of it.

        Raises:
            UserError: there are no pictures.
        """
        from selfsup.inspection.sheet import sheet

        if not self.pictured:
            raise UserError(f"{self.objective} has no pictures to show; write a page with --html.")
        return sheet(self)

    def write(self, html: str | Path | None = None, png: str | Path | None = None) -> None:
        """Write the page, and the picture, into files that are not there yet; raises what `to_png` raises."""
        picture = None if png is None else self.to_png()
        if html is not None:
            write_new(html, self.to_html())
        if png is not None and picture is not None:
            write_new(png, picture)
