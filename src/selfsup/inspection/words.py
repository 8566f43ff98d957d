"""What inspections say: titles, hints and the four points of a task stand in words.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from selfsup.inspection.blocks import Block, Points, Section


@cache
def _words() -> dict[str, dict[str, dict[str, str]]]:
    return tomllib.loads(files(__package__).joinpath("words.toml").read_text(encoding="utf-8"))


def section(kind: str, name: str, /, *blocks: Block, **figures: object) -> Section:
    """Blocks under the title of a section of a kind of inspection; figures are put into its words."""
    return Section(
        blocks=blocks, **{part: text.format(**figures) for part, text in _words()[kind][name].items()}
    )


def task(kind: str, said: Mapping[str, str], /, **figures: object) -> Section:
    """What is shown, hidden, predicted and learned; `said` in place of the words of the kind."""
    points = {term: text.format(**figures) for term, text in _words()[kind]["task"].items()}
    return Section("the task", [Points({**points, **said})])
