"""An inspection as a terminal prints it and as a browser reads its page."""

from __future__ import annotations

import io
from html.parser import HTMLParser

from rich.console import Console

from selfsup.inspection import Inspection


def printed(inspection: Inspection, width: int = 80) -> str:
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
