"""Pictures of figures, which need matplotlib."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.files import write_new


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches; raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("Plots need matplotlib; install it with: pip install 'selfsup[plots]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: str | Path) -> None:
    """Write a figure under a name that is free; the ending chooses the format, such as .png or .svg. Raises UserError
    where matplotlib does not know it, or the file cannot be written."""
    kind, known = Path(path).suffix[1:].lower(), sorted(figure.canvas.get_supported_filetypes())
    if kind not in known:
        endings = ", ".join(f".{each}" for each in known)
        raise UserError(f"{path} names no format of pictures; let it end with one of {endings}.")
    picture = BytesIO()
    figure.savefig(picture, format=kind, dpi=150)
    write_new(Path(path), picture.getvalue())
