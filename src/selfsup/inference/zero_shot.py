"""What an image shows, by the texts that it could be: nothing is learnt from labelled images.

(Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.) A class is
the direction of its texts: its name, or each of several, set into each template, embedded, normalised, averaged and
normalised again (section 3.1.4).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.arguments import checked
from selfsup.errors import UserError
from selfsup.inference.clip import PairModel
from selfsup.inference.geometry import normalised
from selfsup.inference.hits import ending, plain_table, short
from selfsup.inference.items import Answers, Item, LeftOut, silent
from selfsup.inference.opening import load_as
from selfsup.inference.texts import Text
from selfsup.machine import find_device
from selfsup.report import Progress

if TYPE_CHECKING:
    from rich.console import Console

PLACE = "{}"  # where the name of a class stands in a template
# By default the name alone, for only who knows the captions of a training knows a better one.
TEMPLATES = (PLACE,)
SHOWN = 5  # likeliest labels of an image that are printed


@dataclass(frozen=True)
class Described:
    """What an image shows.

    After a training with the softmax loss the probabilities add up to 1: one of the labels is taken to be right. After
    one with the sigmoid loss each label is judged by itself.
    """

    image: str  # where it stands
    probabilities: dict[str, float]  # of each label, the likeliest first

    @property
    def label(self) -> str:
        """The likeliest one."""
        return next(iter(self.probabilities))

    def to_json(self) -> dict[str, Any]:
        return {"label": self.label, **asdict(self)}


@checked
def zero_shot(
    run: str | Path,
    images: object,
    labels: Sequence[str],
    *,
    column: str | None = None,
    templates: Sequence[str] = TEMPLATES,
    failures: float = 1.0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Answers[Described]:
    """Say of each readable image which of some labels describes it.

    Args:
        run: a run of clip, or its model directory.
        images: any source of images, such as a list of paths, of PIL images or of uint8 arrays.
        labels: what the images may show.
        column: of the images, where they stand in a table; found by itself where it is None.
        templates: texts in which `{}` stands for a label; a label's vector is the mean over all of them.
        failures: the share of images, from 0 to 1, above which they are refused where they cannot be read.
        progress: called with the images done, and all of them.

    Raises:
        UserError: no such model, image or device; no labels, or one twice; a template without `{}`.
    """
    labels, templates = _labels(labels), _words("template", templates)
    model = load_as(run, PairModel)
    model.to(find_device(device))
    collection = model.image.read(images, column, failures=failures)
    answers = describe(model, list(collection.items()), labels, templates, progress or silent)
    return Answers(answers, LeftOut.of([collection]))


def describe(
    model: PairModel,
    items: Sequence[Item],
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    progress: Progress = silent,
) -> list[Described]:
    """The same of images as items and a model that is open already."""
    labels, templates = _labels(labels), _words("template", templates)
    read, vectors = model.embed_items(items, "fp32", progress)
    directions = class_vectors(model, [[label] for label in labels], templates)
    cosines = normalised(vectors) @ directions.T
    rows = model.similarity.probabilities(cosines).tolist()
    return [
        Described(item.source, dict(sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])))
        for item, row in zip(itertools.compress(items, read), rows, strict=True)
    ]


def _labels(given: Iterable[str]) -> list[str]:
    labels = _words("label", given)
    if not labels or len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        raise UserError("Give labels that differ and are not blank, such as --labels 'a cat' 'a dog'.")
    return labels


def _words(what: str, given: Iterable[str]) -> list[str]:
    """Texts in a list; one alone is one of them."""
    words = [given] if isinstance(given, str) else list(given)
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"A {what} is a text, and {word!r:.100} is of type {type(word).__name__}.")
    return words


def class_vectors(model: PairModel, classes: Sequence[Sequence[str]], templates: Sequence[str]) -> Tensor:
    """The direction of each class, (classes, dimension) of length 1, by the texts that its names make with templates.
    Raises UserError where there is no template, or one in which no name stands, or for vectors that are not finite."""
    if not templates or not all(PLACE in template for template in templates):
        raise UserError(
            "Each template needs {} where the name of a class stands, such as --templates 'a photo of a {}'."
        )
    texts = [template.replace(PLACE, name) for names in classes for name in names for template in templates]
    _, vectors = model.embed_items([Text("", text, "", {}) for text in texts], "fp32")
    parts = torch.split(normalised(vectors), [len(names) * len(templates) for names in classes])
    return F.normalize(torch.stack([part.mean(0) for part in parts]))


def show(answers: Sequence[Described], console: Console) -> None:
    """The likeliest labels of each image with their probabilities, a line each."""
    from selfsup.report import Text as Line
    from selfsup.report import printable

    table = plain_table()
    table.add_column("image", no_wrap=True)
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    for answer in answers:
        for number, (label, probability) in enumerate(list(answer.probabilities.items())[:SHOWN]):
            image = "" if number else ending(printable(short(answer.image)), console.width // 2)
            table.add_row(Line(image), Line(label, "" if number else "bold"), f"{probability:.1%}")
    console.print(table)
