"""knn-20 and knn-200: the share of test records whose class their nearest neighbours in the bank tell.

Neighbours are the 20 (200) records of the bank with the highest cosine similarity s of features, all of them where the
bank is smaller. Each votes for its class with the weight exp(s / τ); the class with the largest sum is the
answer. knn-20 has τ = .07: Wu et al. 2018, section 3.4, with the number of neighbours that DINO reports (Caron et
al. 2021, section 3.2). knn-200 has τ = .1, as it is commonly used to follow a training (Chen and He 2021).

In percent. Chance is a model that always answers the commonest class of the bank, which the details name. The
interval resamples test records.
"""

from __future__ import annotations

from functools import partial

import torch

from selfsup.evaluation.base import Labels, Measurement, Score
from selfsup.evaluation.features import accuracy, open_split
from selfsup.inference.geometry import normalised, similarities
from selfsup.inference.items import Vectors


def knn(bank: Vectors, labels: Labels, test: Vectors, neighbours: int, temperature: float) -> Labels:
    """The class of each test record (m,), by its neighbours in the bank.

    Args:
        bank: (n, d) features; labels: (n,) their classes, from 0; test: (m, d).
    """
    points = normalised(bank)
    classes = torch.from_numpy(labels)
    count = int(labels.max()) + 1
    answers = []
    for block in similarities(normalised(test), points):
        near, which = block.topk(min(neighbours, len(points)))
        weights = torch.exp((near - near[:, :1]) / temperature)  # relative to the nearest: the same answer
        votes = torch.zeros(len(block), count).scatter_add_(1, classes[which], weights)
        answers.append(votes.argmax(1))
    return torch.cat(answers).numpy()


def _measure(measurement: Measurement, neighbours: int, temperature: float) -> Score:
    split = open_split(measurement)
    return accuracy(measurement, split, knn(*split.bank, split.test[0], neighbours, temperature))


knn_20 = partial(_measure, neighbours=20, temperature=0.07)
knn_200 = partial(_measure, neighbours=200, temperature=0.1)
