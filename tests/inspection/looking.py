"""An inspection as a terminal prints it and as a browser reads its page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from selfsup.inspection import Inspection
from selfsup.inspection.blocks import AnyBlock


def printed(inspection: Inspection | Told, width: int = 80) -> str:
    file = io.StringIO()
    inspection.print(Console(file=file, width=width))
    return file.getvalue()


class Page:
    """What a page draws: its JSON, which its modules turn into elements (see tests/test_drawing.py)."""

    def __init__(self, html: str) -> None:
        (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
        self.json: dict[str, Any] = json.loads(data)
        self.text = "\n".join(self.strings(self.json))

    def strings(self, value: Any) -> Iterator[str]:
        """All texts of it but pictures."""
        if isinstance(value, str):
            yield from () if value.startswith("data:") else (value,)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from self.strings(inner)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All blocks of a kind."""
        return [block for section in self.json["sections"] for block in section["blocks"] if block["kind"] == kind]

    @property
    def tiles(self) -> list[dict[str, Any]]:
        """Of all galleries."""
        groups = (group for block in self.of("gallery") for group in block["groups"])
        return [tile for group in groups for row in group["rows"] for tile in row]


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
