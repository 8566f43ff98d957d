"""Commands that serve until they are stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from selfsup.cli.options import Device, Precision, command
from selfsup.report import say


@command("selfsup.serving.api", to_json=None, always=lambda: {"say": say})
def serve(
    ended: Any,
    models: Annotated[list[str], typer.Argument(help="runs or model directories; NAME=PATH gives one another name")],
    library: Annotated[Path | None, typer.Option(help="what /v1/search looks through")] = None,
    host: Annotated[str, typer.Option(help="the address; only by another one than this do other machines reach it")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="what clients have to send", envvar="SELFSUP_API_KEY", show_envvar=True)
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Put models behind an API that clients of OpenAI's speak: texts, vectors, hidden words, labels, search."""


@command("selfsup.serving.studio", to_json=None, always=lambda: {"say": say})
def studio(
    ended: Any,
    runs: Annotated[Path, typer.Argument(help="the folder below which runs lie, and new ones are made")] = Path("runs"),
    data: Annotated[
        list[Path] | None,
        typer.Option(help="a further folder that pages may read data and models from; may be repeated"),
    ] = None,
    host: Annotated[str, typer.Option(help="the address; only by another one than this do other machines reach it")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8712,
    browser: Annotated[bool, typer.Option(help="open a browser, where there is a screen")] = True,
) -> None:
    """Look at runs and models in a browser: live curves, comparisons, what data teaches, trying, searching, starting a
    training. On this machine alone, unless another --host is given."""
