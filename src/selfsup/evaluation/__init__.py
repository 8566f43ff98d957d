"""Evaluation by named protocols, one file each; a module is imported when its protocol is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

from selfsup.arguments import checked
from selfsup.config import nearest
from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Score, unsaid
from selfsup.files import expanded
from selfsup.inference.base import EmbeddingModel
from selfsup.inference.items import silent
from selfsup.inference.opening import cut, load
from selfsup.report import Progress
from selfsup.run import Run

DECODER, TEXTS, IMAGES, PAIRS = "a decoder", "a text encoder", "an image encoder", "an image-text model"
EMBEDDERS = (TEXTS, IMAGES, PAIRS)
CUT = ("dimension",)  # of protocols that measure vectors, and have no other options


class Protocol(NamedTuple):
    """Where a protocol is defined, for which kinds of models, and which options are for it beside those of all."""

    function: str  # in `selfsup.evaluation`
    models: tuple[str, ...]  # their `kind`
    options: tuple[str, ...] = ()
    better: str | None = "higher"  # or lower; None where neither is
    otherwise: Protocol | None = None  # what goes by the same name for other kinds of models

    def of(self, kind: str) -> Protocol | None:
        """Its definition for a kind of model, where there is one."""
        if kind in self.models or self.otherwise is None:
            return self if kind in self.models else None
        return self.otherwise.of(kind)


PROTOCOLS = {
    "bits-per-byte": Protocol("bits_per_byte:bits_per_byte", (DECODER,), ("window",), better="lower"),
    "perplexity": Protocol("perplexity:perplexity", (DECODER,), ("window",), better="lower"),
    "retrieval": Protocol(
        "retrieval:measure",
        (PAIRS,),
        ("captions", "dimension"),
        otherwise=Protocol("judged_retrieval:measure", (TEXTS,), ("split", "rerank", "dimension")),
    ),
    "zero-shot": Protocol("zero_shot:measure", (PAIRS,), ("label", "templates", "dimension")),
    "sts": Protocol("sts:measure", (TEXTS, PAIRS), CUT),
    "structure": Protocol("structure:measure", (TEXTS,), CUT),
    "instances": Protocol("instances:measure", (IMAGES,), CUT),
    "linear": Protocol("linear:measure", EMBEDDERS, ("label", "test", "dimension")),
    "knn-20": Protocol("knn:knn_20", EMBEDDERS, ("label", "test", "dimension")),
    "knn-200": Protocol("knn:knn_200", EMBEDDERS, ("label", "test", "dimension")),
    "rankme": Protocol("rankme:measure", EMBEDDERS, CUT),
    "alpha-req": Protocol("alpha_req:measure", EMBEDDERS, CUT, better=None),
    "uniformity": Protocol("uniformity:measure", EMBEDDERS, CUT, better="lower"),
    "alignment": Protocol("alignment:measure", EMBEDDERS, CUT, better="lower"),
    "pseudo-perplexity": Protocol("perplexity:pseudo_perplexity", (TEXTS,), better="lower"),
}


def _of(kind: str) -> tuple[str, ...]:
    return tuple(name for name, protocol in PROTOCOLS.items() if protocol.of(kind))


def _taking(option: str) -> tuple[str, ...]:
    defined = {name: [protocol.of(kind) for kind in (DECODER, *EMBEDDERS)] for name, protocol in PROTOCOLS.items()}
    return tuple(name for name, of in defined.items() if any(one and option in one.options for one in of))


LANGUAGE_MODELS, TEXT_ENCODERS, IMAGE_ENCODERS, PAIR_MODELS = map(_of, (DECODER, TEXTS, IMAGES, PAIRS))
SUPERVISED = _taking("test")  # what learns from a part of the data, by its classes
LABELLED = _taking("label")  # what needs classes


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
    split: str | None = None,
    rerank: str | Path | None = None,
    failures: float = 1.0,
    device: str = "auto",
    precision: str = "auto",
    records: int | None = None,
    window: int | None = None,
    seed: int = 0,
    dimension: int | None = None,
    progress: Progress | None = None,
    running: Callable[[str], None] | None = None,
) -> Score:
    """Measure a model by a named protocol (see the module of each for its definition).

    Args:
        run: a run, its directory, or a model directory in Hugging Face's layout.
        data: whatever a training takes; all of it is measured on, but where a protocol learns from a part of it. For
            `retrieval` of texts a folder of documents, queries and judgements, see `selfsup.data.judged`. None is the
            run's own held-out part, for a language model.
        test: for `linear`, `knn-20` and `knn-200`, what is measured on; then all of `data` is learnt from.
        column: the column of the data that holds the content.
        label: for the same and for `zero-shot`, the column that holds the class.
        templates: for `zero-shot`, texts in which `{}` stands for the name of a class; by default the name alone.
        captions: for `retrieval`, the columns that hold the captions; found by themselves by default.
        split: for `retrieval` of texts, whose judgements are read, such as dev; by default test, or the only one.
        rerank: for the same, the directory of a cross-encoder that orders what is nearest to a query anew.
        failures: the share of bad records, from 0 to 1, above which the data is refused; by default they are left out
            and counted, however many there are, as long as one can be read.
        precision: fp32, bf16 (matrix products in bf16, all sums and losses in fp32), or auto: bf16 where the hardware
            multiplies it natively. The score says which it was; fp32 depends on the hardware by rounding alone.
        records: how many are measured on, drawn by the seed alone (of decoders, windows of text); None is all.
        window: for `bits-per-byte` and `perplexity`, the tokens of a window; by default as many as the model reads, at
            most 8,192.
        seed: of the bootstrap behind the interval, and of what a protocol draws.
        dimension: of models that embed, measure the first so many numbers of each vector.
        progress: called with the predictions or records done so far, and all of them.
        running: called with what the figure is so far, by protocols whose figure is a mean.

    Raises:
        UserError: no such protocol, model or data, or the protocol is not defined for them.
    """
    require_known(protocol)
    if column is not None and data is None:
        raise UserError("--column names a column of --data; give both, or none.")
    given = {
        "test": test,
        "label": label,
        "templates": templates,
        "captions": captions or None,
        "window": window,
        "dimension": dimension,
        "split": split,
        "rerank": rerank,
    }
    directory = run.directory if isinstance(run, Run) else expanded(run)
    model = load(directory)
    defined = require_fitting(directory, model, protocol)
    for name, value in given.items():
        if value is not None and name not in defined.options:
            others = ", ".join(other for other in _taking(name) if other != protocol)
            advice = f"leave it out, or take {others}" if others else "leave it out"
            raise UserError(f"{protocol} has no use for --{name}; {advice}.")
    if dimension is not None:
        cut(cast(EmbeddingModel, model), dimension)
    measurement = Measurement(
        directory, model, data, column, device, seed, progress or silent, test, label, templates, captions, failures,
        precision, records, window, running or unsaid, split, rerank,
    )  # fmt: skip
    score = measure(measurement, protocol)
    return score if dimension is None else replace(score, details=score.details | {"dimension": dimension})


def measure(measurement: Measurement, protocol: str) -> Score:
    """Measure an opened model by a named protocol; raises UserError as `evaluate` does."""
    require_known(protocol)
    defined = require_fitting(measurement.directory, measurement.model, protocol)
    module, _, name = defined.function.partition(":")
    follow: Callable[[Measurement], Score] = getattr(import_module(f"{__name__}.{module}"), name)
    score = follow(measurement)
    return measurement.described(score, protocol)


def require_known(protocol: str) -> None:
    """Raise a UserError where there is no such protocol."""
    if protocol not in PROTOCOLS:
        raise UserError(f"There is no protocol '{protocol}'{nearest(protocol, list(PROTOCOLS))}")


def require_fitting(directory: Path, model: Any, protocol: str) -> Protocol:
    """The definition of a protocol for the model of a directory; raises UserError where it has none."""
    defined = PROTOCOLS[protocol].of(model.kind)
    if defined is None:
        raise UserError(
            f"{directory} holds {model.kind}, for which {protocol} is not defined; "
            f"choose another --protocol: {', '.join(protocols_for(model))}."
        )
    return defined


def protocols_for(model: Any) -> tuple[str, ...]:
    """The protocols that are defined for the kind of a model."""
    return _of(model.kind)
