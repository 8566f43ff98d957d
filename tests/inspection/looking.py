"""An inspection as a terminal prints it and as a browser reads its page."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from typing import Any

from rich.console import Console

from selfsup.inspection import Inspection
from selfsup.inspection.blocks import AnyBlock


def printed(inspection: Inspection | Told, width: int = 80) -> str:
    file = io.StringIO()
    inspection.print(Console(file=file, width=width))
    return file.getvalue()


class Page(HTMLParser):
    """The text, attributes and balance of a page."""

    VOID = ("meta", "rect", "path", "br", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class Told:
    """An inspection, whose figures by name and whose blocks' fields are attributes: those of the first of its kind."""

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self.fields = {}
        for block in reversed([block for section in inspection.sections for block in section.blocks]):
            self.fields |= vars(block)
        self.fields |= inspection.values

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inspection, name) if hasattr(self.inspection, name) else self.fields[name]

    def __eq__(self, other: object) -> bool:
        return self.inspection == (other.inspection if isinstance(other, Told) else other)

    def of(self, kind: type[AnyBlock]) -> list[AnyBlock]:
        return self.inspection.blocks(kind)


def found(content: dict[str, Any], kind: str) -> dict[str, Any]:
    """The first block of a kind in an inspection's JSON."""
    kinds = {block["kind"]: block for section in reversed(content["sections"]) for block in section["blocks"]}
    return kinds[kind]
