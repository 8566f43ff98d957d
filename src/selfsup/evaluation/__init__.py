"""Evaluation by named protocols, one file each; a module is imported when its protocol is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from selfsup.arguments import checked
from selfsup.config import nearest
from selfsup.errors import UserError
from selfsup.evaluation.base import Request, Score
from selfsup.files import expanded
from selfsup.inference.opening import load
from selfsup.report import Progress
from selfsup.run import Run

LANGUAGE_MODELS = {
    "bits-per-byte": "selfsup.evaluation.bits_per_byte:bits_per_byte",
    "perplexity": "selfsup.evaluation.perplexity:perplexity",
}
FEATURES = {
    "linear": "selfsup.evaluation.linear:measure",
    "knn-20": "selfsup.evaluation.knn:knn_20",
    "knn-200": "selfsup.evaluation.knn:knn_200",
    "rankme": "selfsup.evaluation.rankme:measure",
    "alpha-req": "selfsup.evaluation.alpha_req:measure",
    "uniformity": "selfsup.evaluation.uniformity:measure",
    "alignment": "selfsup.evaluation.alignment:measure",
}  # of whatever is embedded
SENTENCES = {"sts": "selfsup.evaluation.sts:measure"}
TEXT_ENCODERS = {
    **SENTENCES,
    **FEATURES,
    "pseudo-perplexity": "selfsup.evaluation.perplexity:pseudo_perplexity",
}
PAIR_MODELS = {
    "retrieval": "selfsup.evaluation.retrieval:measure",
    "zero-shot": "selfsup.evaluation.zero_shot:measure",
    **FEATURES,
    **SENTENCES,
}
PROTOCOLS = LANGUAGE_MODELS | TEXT_ENCODERS | PAIR_MODELS
SUPERVISED = ("linear", "knn-20", "knn-200")  # what learns from a part of the data, by its classes
LABELLED = (*SUPERVISED, "zero-shot")  # what needs classes
USES = {"test": SUPERVISED, "label": LABELLED, "templates": ("zero-shot",), "captions": ("retrieval",)}


@checked
def evaluate(
    run: str | Path | Run,
    *,
    data: object = None,
    protocol: str = "bits-per-byte",
    test: object = None,
    column: str | None = None,
    label: str | None = None,
    templates: Sequence[str] | None = None,
    captions: Sequence[str] = (),
    failures: float = 1.0,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Score:
    """Measure a model by a named protocol (see the module of each for its definition).

    Args:
        run: a run, its directory, or a model directory in Hugging Face's layout.
        data: whatever a training takes; all of it is measured on, but where a protocol learns from a part of it.
            None is the run's own held-out part, for a language model.
        test: for `linear`, `knn-20` and `knn-200`, what is measured on; then all of `data` is learnt from.
        column: the column of the data that holds the content.
        label: for the same and for `zero-shot`, the column that holds the class.
        templates: for `zero-shot`, texts in which `{}` stands for the name of a class; by default the name alone.
        captions: for `retrieval`, the columns that hold the captions; found by themselves by default.
        failures: the share of bad records, from 0 to 1, above which the data is refused; by default they are left out
            and counted, however many there are, as long as one can be read.
        seed: of the bootstrap behind the interval, and of what a protocol draws.
        progress: called with the predictions or records done so far, and all of them.

    Raises:
        UserError: no such protocol, model or data, or the protocol is not defined for them.
    """
    require_known(protocol)
    if column is not None and data is None:
        raise UserError("--column names a column of --data; give both, or none.")
    given = {"test": test, "label": label, "templates": templates, "captions": captions or None}
    for name, protocols in USES.items():
        if given[name] is not None and protocol not in protocols:
            raise UserError(
                f"{protocol} has no use for --{name}; leave it out, or take {', '.join(protocols)}."
            )
    directory = run.directory if isinstance(run, Run) else expanded(run)
    model = load(directory)
    request = Request(
        directory, model, data, column, device, seed, progress, test, label, templates, captions, failures
    )
    return measure(request, protocol)


def measure(request: Request, protocol: str) -> Score:
    """Measure an opened model by a named protocol.

    Raises:
        UserError: as `evaluate`.
    """
    require_known(protocol)
    require_kind(request.directory, request.model, protocol)
    module, _, name = PROTOCOLS[protocol].partition(":")
    follow: Callable[[Request], Score] = getattr(import_module(module), name)
    left_out = request.seen.left_out
    return replace(follow(request), protocol=protocol, seed=request.seed, left_out=left_out())


def require_known(protocol: str) -> None:
    """Raise a UserError where there is no such protocol."""
    if protocol not in PROTOCOLS:
        raise UserError(f"There is no protocol '{protocol}'{nearest(protocol, list(PROTOCOLS))}")


def require_kind(directory: Path, model: Any, protocol: str) -> None:
    """Raise a UserError where a protocol is not defined for the kind of model that a directory holds."""
    fitting = protocols_for(model)
    if protocol not in fitting:
        raise UserError(
            f"{directory} holds {model.kind}, for which {protocol} is not defined; "
            f"choose another --protocol: {', '.join(fitting)}."
        )


def protocols_for(model: Any) -> dict[str, str]:
    """The protocols that are defined for the kind of a model."""
    from selfsup.inference.clip import PairModel
    from selfsup.inference.generate import LanguageModel
    from selfsup.inference.vision import ImageModel

    if isinstance(model, LanguageModel):
        return LANGUAGE_MODELS
    if isinstance(model, PairModel):
        return PAIR_MODELS
    return FEATURES if isinstance(model, ImageModel) else TEXT_ENCODERS
