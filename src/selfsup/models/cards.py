"""Model cards: README.md of a model directory, from what is known of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def card(
    title: str,
    text: str,
    facts: Mapping[str, str],
    code: str = "",
    *,
    library: str | None = None,
    task: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """A card as the hub reads it: a title, unless the text has one, what the model is and how it was made, facts by
    what they are about, Python that uses it; before them what the hub's pages sort it by, in their terms, with the tag
    `selfsup`."""
    named = {"library_name": library, "pipeline_tag": task, "tags": f"[{', '.join(['selfsup', *tags])}]"}
    head = "".join(f"{key}: {value}\n" for key, value in named.items() if value is not None)
    lines = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    example = f"```python\n{code.strip()}\n```" if code else ""
    heading = f"# {title}" if title else ""
    body = [part for part in (heading, text.strip(), lines, example) if part]
    return f"---\n{head}---\n" + "\n\n".join(body) + "\n"


def data_name(source: str) -> str:
    """What a card calls the data that a model was trained on: no path of this machine."""
    return Path(source).stem if "/" in source else source


def measured(summary: Mapping[str, Any], unit: str = "") -> str:
    """The validation loss in a summary, for a card, that of what the run started from, and of which step the weights
    are that are not those of its end."""
    if "loss" not in summary:
        return "not measured"
    start = f"; {summary['start_loss']:.4f} before the first step" if "start_loss" in summary else ""
    kept = summary.get("kept")
    told = f"; the weights are those of step {kept['step']:,}, where it was lowest" if kept else ""
    return f"{summary['loss']:.4f}{unit} on the held-out part{start}{told}"
