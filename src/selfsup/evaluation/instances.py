"""instances: how well a view of an image finds the other view of the same one, which no label is needed for.

Of every image two views are drawn by the seed, as SimCLR draws them (`selfsup.views.simclr_view`): crops with changed
colours. Each first view looks for its second among those of all images, by cosine similarity; ranks are those of
`selfsup.evaluation.retrieval`. The value is the mean of 1 / rank in percent (MRR), with R@1, R@10 and the median rank
beside it. At most `MOST` images are measured on, drawn by the seed; the interval resamples images.

It says whether a network tells images apart through what changes in their views (Wu et al. 2018, "Unsupervised Feature
Learning via Non-Parametric Instance Discrimination"). Objectives that train on such views have this to gain first.
"""

from __future__ import annotations

import numpy as np

from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Resampling, Score
from selfsup.evaluation.features import open_pairs
from selfsup.evaluation.retrieval import Relation, ranks
from selfsup.evaluation.structure import MOST, figures
from selfsup.machine import find_device


def measure(measurement: Measurement) -> Score:
    m = measurement
    m.records = min(m.records or MOST, MOST)
    first, second, _, name = open_pairs(m)
    if len(first) < 2:
        raise UserError(f"{name} holds {len(first)} images, and nothing can be mistaken for the only one; give more.")
    places = np.arange(len(first))
    rank, _ = ranks(first, second, Relation(places, places), find_device(m.device))
    return Score.of(Resampling.of_mean(100.0 / rank), m.seed, data=name, **figures(rank, len(second)))
