"""A linear classifier on top of an encoder that stays as it is: fitted to few labelled records, kept, applied.

PROBE/probe.safetensors   mean and deviation (d,) of the features, weight (classes, d), bias (classes,); in its header
                          the checksums of these numbers and of probe.json
PROBE/probe.json          the classes, C, how often it is right on records it has not seen, and what tells the
                          model that it belongs to
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.arguments import checked
from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Score
from selfsup.evaluation.features import open_split
from selfsup.evaluation.linear import LinearClassifier, best_strength, fit, score
from selfsup.files import LOCK, expanded, held, require_free, save_tensors, whole_directory, write_new
from selfsup.inference.items import Answers, Label, silent
from selfsup.inference.opening import load_encoder
from selfsup.report import Progress, json_line

TENSORS = ("mean", "deviation", "weight", "bias")


@dataclass(frozen=True)
class Answer:
    """What a probe says of a record."""

    record: str  # where it stands
    text: str  # what it says, where it is one
    label: Label  # the likeliest class
    probability: float  # how likely, to the probe

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A linear classifier with the model it belongs to."""

    classifier: LinearClassifier  # fitted to all records
    classes: tuple[Label, ...]  # what each row of the classifier stands for
    estimate: Score  # of protocol `linear` on the same data: fitted to four fifths, measured on a fifth
    model: str  # its fingerprint
    records: int  # that the classifier is fitted to

    @classmethod
    def fit(cls, run: str | Path, data: object, **how: Any) -> Probe:
        """Fit to all records of labelled data, C chosen by cross-validation over five folds of them.

        Args:
            run: a run of an encoder, or its model directory.
            how: column, label, failures, device, seed (of the folds and of the estimate's interval) and progress, as
                `Measurement` takes them.

        Raises:
            UserError: no such model or data, no classes, too few records, features that are not finite.
        """
        model = load_encoder(run)
        measurement = Measurement(expanded(run), model, data, **how)
        split = open_split(measurement)
        estimate = measurement.described(score(measurement, split), "linear")
        strength = best_strength(split.vectors, split.labels, measurement.seed)
        classifier = fit(split.vectors, split.labels, strength)
        return cls(classifier, split.classes, estimate, model.fingerprint, len(split.vectors))

    def classify(self, run: str | Path, data: object, **how: Any) -> Answers[Answer]:
        """The class of each readable record of a source, such as a list of strings, in its order; `how` are column,
        failures, device and progress, as `Measurement` takes them. Raises UserError where there is no such data, or the
        model is not the one that the probe was fitted to."""
        model = load_encoder(run)
        if model.fingerprint != self.model:
            raise UserError(
                f"The probe was fitted to another model than {run} (their weights or features differ); give the model "
                f"that it belongs to, or fit a new one with: selfsup probe {run}"
            )
        measurement = Measurement(expanded(run), model, data, **how)
        items = list(measurement.open(data).items())
        read, features = measurement.embed(items)
        probabilities = self.classifier.probabilities(features)
        answers = (
            Answer(item.source, item.text, self.classes[int(row.argmax())], float(row.max()))
            for item, row in zip(itertools.compress(items, read), probabilities, strict=True)
        )
        return Answers(answers, measurement.left_out())

    def save(self, directory: str | Path) -> None:
        """Write a new directory; raises UserError where something is there already."""
        place = expanded(directory)
        refuse_taken(place)
        tensors = {name: torch.from_numpy(getattr(self.classifier, name)).contiguous() for name in TENSORS}
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        try:
            with whole_directory(place) as temporary:
                save_tensors(tensors, temporary / "probe.safetensors", _checksums(text, tensors))
                (temporary / "probe.json").write_text(text, encoding="utf-8")
        except FileExistsError:
            raise _taken(place) from None

    @classmethod
    def load(cls, directory: str | Path) -> Probe:
        """A saved probe; raises UserError where there is none, or a damaged one."""
        from safetensors import SafetensorError

        place = expanded(directory)
        if not (place / "probe.json").is_file():
            raise UserError(f"{place} holds no probe (there is no probe.json in it); make one with: selfsup probe")
        try:
            text = (place / "probe.json").read_text(encoding="utf-8")
            tensors = _read_tensors(place / "probe.safetensors", text)
            facts = json.loads(text)
            classes = tuple(facts["classes"])
            classifier = LinearClassifier(
                **{name: tensors[name].numpy() for name in TENSORS},
                classes=torch.arange(len(classes)).numpy(),
                strength=facts["C"],
            )
            if classifier.weight.shape != (len(classes), len(classifier.mean)):
                raise ValueError("its weights do not belong to its classes")
            return cls(classifier, classes, Score.from_json(facts["estimate"]), facts["model"], facts["records"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{place} is damaged ({reason}); fit the probe anew: selfsup probe") from None

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "C": self.classifier.strength,
            "records": self.records,
            "estimate": self.estimate.to_json(),
            "model": self.model,
        }


@checked
def probe(
    run: str | Path,
    data: object,
    out: str | Path,
    *,
    column: str | None = None,
    label: str | None = None,
    failures: float = 1.0,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Probe:
    """Fit a linear classifier to an encoder's features of labelled data, and keep it in a new directory.

    Args:
        out: the directory. The others are those of `Probe.fit`.

    Raises:
        UserError: as `Probe.fit`; `out` holds something, or another process makes it.
    """
    with claimed(expanded(out)):
        how = {"column": column, "label": label, "failures": failures, "device": device, "seed": seed}
        fitted = Probe.fit(run, data, **how, progress=progress or silent)
        fitted.save(out)
    return fitted


@checked
def classify(
    run: str | Path,
    given: object = None,
    *,
    probe: str | Path,
    data: object = None,
    out: str | Path | None = None,
    column: str | None = None,
    failures: float = 1.0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Answers[Answer]:
    """The class of each readable text or image, by a kept classifier.

    Args:
        run: the model that the probe was fitted to, or its run.
        given: what to classify, such as a list of texts or of paths of images.
        probe: the directory that `probe` wrote.
        data: in place of `given`: a source.
        out: a new file to write the answers to, a JSON line each.
        column, failures, device, progress: as `Probe.classify` takes them.

    Raises:
        UserError: as `Probe.load` and `Probe.classify`; both or none of `given` and `data`; `out` exists.
    """
    if bool(given) == (data is not None):
        raise UserError("Give what is to be classified either by itself or with --data.")
    require_free(out)
    fitted = Probe.load(probe)
    how = {"column": column, "failures": failures, "device": device, "progress": progress or silent}
    answers = fitted.classify(run, given or data, **how)
    if out is not None:
        write_new(expanded(out), "".join(json_line(answer.to_json()) + "\n" for answer in answers))
    return answers


def _checksums(text: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Of the description and of the numbers with their names and shapes, by the names they have in the header."""
    numbers = hashlib.blake2b(digest_size=16)
    for name in TENSORS:
        numbers.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        numbers.update(tensors[name].numpy().tobytes())
    description = hashlib.blake2b(text.encode(), digest_size=16)
    return {"description": description.hexdigest(), "numbers": numbers.hexdigest()}


def _read_tensors(file: Path, text: str) -> dict[str, Tensor]:
    """The numbers of a probe with a description. Raises ValueError where they, or the description, are not those that
    were written, and KeyError where some are missing."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        header = opened.metadata() or {}
    expected = _checksums(text, tensors)
    if header.keys() & expected.keys() and {name: header.get(name) for name in expected} != expected:
        raise ValueError("its checksums are not those of its contents")
    return tensors


@contextmanager
def claimed(place: Path) -> Iterator[None]:
    """Keep other processes from fitting a probe for the same place during the block. Raises UserError where
    something lies there already, or another process is at it."""
    refuse_taken(place)
    beside = place.with_name(f"{place.name}.partial")
    beside.mkdir(parents=True, exist_ok=True)
    with held(beside, f"{place} is being made by another process; wait for it, or give another --out."):
        try:
            yield
        finally:
            (beside / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # what else lies there is not ours
                beside.rmdir()


def refuse_taken(place: Path) -> None:
    """Raise a UserError where something lies already, so that long work is not done for a place that is taken."""
    if os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
        raise _taken(place)


def _taken(place: Path) -> UserError:
    return UserError(f"{place} exists already; give another --out.")
