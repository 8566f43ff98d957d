"""Evaluation by named protocols, one file each; a module is imported when its protocol is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from selfsup.config import nearest
from selfsup.errors import UserError
from selfsup.evaluation.base import Progress, Request, Score
from selfsup.run import Run

PROTOCOLS = {
    "bits-per-byte": "selfsup.evaluation.bits_per_byte:bits_per_byte",
    "perplexity": "selfsup.evaluation.perplexity:perplexity",
}


def evaluate(
    run: str | Path | Run,
    *,
    data: object = None,
    protocol: str = "bits-per-byte",
    column: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Score:
    """Measure a model by a named protocol (see the module of each for its definition).

    Args:
        run: a run, its directory, or a model directory in Hugging Face's layout.
        data: whatever a training takes; all of it is measured on. None is the run's own held-out part.
        column: the column of the data that holds the text.
        seed: of the bootstrap behind the interval.
        progress: called with the predictions scored so far, and all of them.

    Raises:
        UserError: no such protocol, model or data, or the protocol is not defined for them.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"There is no protocol '{protocol}'{nearest(protocol, list(PROTOCOLS))}")
    directory = run.directory if isinstance(run, Run) else Path(run)
    module, _, name = PROTOCOLS[protocol].partition(":")
    measure: Callable[[Request], Score] = getattr(import_module(module), name)
    return measure(Request(directory, data, column, device, seed, progress))
