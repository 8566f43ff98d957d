"""zero-shot: the share of images whose class is the one with the nearest text, of which none was learnt.

The name of each class of the data is set into templates (`{}` stands for it; by default it is taken alone); the texts
are embedded, normalised, averaged over the templates and normalised again. An image's answer is the class with the
highest cosine similarity, the first of those that are equal. (Radford et al. 2021, section 3.1.4.) Names are those that
the data gives its classes: of folders, of labels in words, of numbers those in the hub's metadata; an underscore in a
name stands for a space. What lists several names, as "tench, Tinca tinca" or "Food & Drink" do (`SEPARATORS`), is set
into the templates one by one, and the average is over all of these texts. All classes that the data knows are to choose
from, whether or not an image has them.

In percent. Chance is a class drawn at random. The details have the balanced accuracy, the mean over classes of the
share of right answers (of classes that have images; chance is the same), and the share of the commonest class, which a
model that always names it reaches. The interval resamples images.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import torch

from selfsup.errors import UserError
from selfsup.evaluation.base import Labels, Measurement, Score
from selfsup.inference.geometry import normalised, similarities
from selfsup.inference.pictures import Pictures
from selfsup.inference.zero_shot import TEMPLATES, class_vectors

log = logging.getLogger(__name__)

SEPARATORS = re.compile(r", | [&/|] ")  # between names of one class


def balanced(answers: Labels, labels: Labels) -> float:
    """The mean over classes of the share of right answers, in percent, of answers (n,) beside labels (n,)."""
    right, count = np.bincount(labels, answers == labels), np.bincount(labels)
    return float(100 * (right[count > 0] / count[count > 0]).mean())


def measure(measurement: Measurement) -> Score:
    collection = measurement.open()
    if not isinstance(collection, Pictures):
        raise UserError(f"{collection.name} holds texts; give images with their classes.")
    found = measurement.sampled(list(collection.labelled()))
    if not found:
        raise UserError(f"None of the images of {collection.name} has a class; name the column with --label.")
    names = list(dict.fromkeys(collection.classes))
    numbers = {name: number for number, name in enumerate(names)}
    templates = TEMPLATES if measurement.templates is None else measurement.templates
    read, features = measurement.embed([item for item, _ in found])
    labels = np.array([numbers[str(label)] for _, label in found], np.int64)[read]
    texts = class_vectors(measurement.model, _spoken(names, collection.name), templates)
    answers = torch.cat([block.argmax(1) for block in similarities(normalised(features), texts)]).numpy()
    majority = int(np.bincount(labels).argmax())
    return Score.of_mean(
        100.0 * (answers == labels),
        measurement.seed,
        unit="% right",
        chance=100 / len(names),
        data=collection.name,
        details={
            "classes": len(names),
            "balanced": balanced(answers, labels),
            "majority": names[majority],
            "majority share": 100 * float((labels == majority).mean()),
            "templates": list(templates),
        },
    )


def _spoken(names: Sequence[str], data: str) -> list[list[str]]:
    """The names of each class as words; numbers are let be, for they may be what the images show."""
    if all(name.lstrip("-").isdecimal() for name in names):
        log.warning(
            "The classes of %s go by numbers (%s, …), which are looked for as texts; where they stand for something "
            "else, name a column of words with --label.",
            data,
            names[0],
        )
    words = [name.replace("_", " ") for name in names]
    return [[part for part in SEPARATORS.split(name) if part.strip()] or [name] for name in words]
