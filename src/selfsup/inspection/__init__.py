"""The supervision that the data makes, made visible: one file per objective, imported when it is asked for.

Beside it `show`: what a trained network sees in an image.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.config import Settings, nearest
from selfsup.errors import UserError
from selfsup.inspection.base import Inspection, Request
from selfsup.run import Run

if TYPE_CHECKING:
    from selfsup.data.tokenizers import TextTokenizer

__all__ = ["INSPECTORS", "Inspection", "inspect"]

INSPECTORS = {
    "causal-lm": "selfsup.inspection.causal_lm:inspect_causal_lm",
    "masked-lm": "selfsup.inspection.masked_lm:inspect_masked_lm",
    "simcse": "selfsup.inspection.simcse:inspect_simcse",
    "simclr": "selfsup.inspection.simclr:inspect_simclr",
    "dino": "selfsup.inspection.dino:inspect_dino",
    "mae": "selfsup.inspection.mae:inspect_mae",
    "clip": "selfsup.inspection.clip:inspect_clip",
}


def inspect(
    objective: str | None = None,
    *,
    text: str | None = None,
    data: object = None,
    tokenizer: str | Path | TextTokenizer | None = None,
    run: str | Path | None = None,
    window: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    **settings: Any,
) -> Inspection:
    """Show what an objective makes of a text, or of what a training on some data begins with.

    Args:
        objective: its name; by default the run's, or causal-lm.
        text: a text to look at: one document, left open behind its last token.
        data: in place of a text, a source, whose training part is looked at; without either, the data of the
            run, or else the bundled text or images.
        tokenizer: as in a training, and by default the one there; one that is trained, is trained on this text or
            data.
        run: a run (of texts also a model directory), whose tokenizer is used, and what it makes of the task is told.
        window: tokens of a text to look at, at most; by default those of the run, or 256.
        progress: called with the images read and all, while a source of images is opened.
        settings: of a training, by their keys, such as `masked_lm={"unit": "word"}`; by default the run's.

    Raises:
        UserError: no such objective, data, tokenizer or run; nothing to predict; a window beyond the run's.
    """
    if text is not None and data is not None:
        raise UserError("A text and data are both given; give one of them.")
    if window is not None and window < 1:
        raise UserError(f"A window of {window} shows nothing; ask for 1 or more.")
    if isinstance(tokenizer, str | Path) and Run(tokenizer).exists:
        tokenizer = Run(tokenizer).model_directory
    layers: list[tuple[str, dict[str, Any]]] = [("given", settings)]
    if run is not None and Run(run).exists:
        layers.insert(0, (str(Run(run).config_file), Run(run).config()))
    resolved = Settings(*layers)
    if text is not None and resolved.origin("data.column") == "given":
        raise UserError("--column names a column of --data; a text has none.")
    if text is None and data is None and resolved.origin("data.source") == "given":
        data = resolved["data.source"]
    if tokenizer is None:
        tokenizer = str(resolved["data.tokenizer"])
    elif run is None and isinstance(tokenizer, str | Path):
        resolved.change("data.tokenizer", str(tokenizer), "given")
    request = Request(text, data, tokenizer, run, window, resolved, progress)
    return _inspector(objective or resolved["objective"])(request)


def _inspector(objective: str) -> Callable[[Request], Inspection]:
    if objective not in INSPECTORS:
        raise UserError(
            f"There is no objective '{objective}' to inspect{nearest(objective, list(INSPECTORS))}"
        )
    module, _, name = INSPECTORS[objective].partition(":")
    inspector: Callable[[Request], Inspection] = getattr(import_module(module), name)
    return inspector
