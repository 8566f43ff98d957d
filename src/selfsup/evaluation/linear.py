"""linear: the share of test records whose class a linear classifier tells from the features.

Multinomial logistic regression with an L2 penalty, ½ ‖W‖² + C Σ −ln p(class | features), fitted to the bank by
L-BFGS (scikit-learn), on features standardised by the mean and deviation of what it is fitted to. C is the one of
10⁻⁶, 10⁻⁵ … 10² whose classifier, fitted to four fifths of the bank, is right most often on the last
fifth (the smallest of those that tie); with it, the classifier is fitted to all of the bank. The test part is seen
once, by that one. (Kornblith et al. 2019; Radford et al. 2021, appendix A.3, sweep C in this way.)

In percent. Chance is a model that always answers the commonest class of the bank, which the details name. The
interval resamples test records.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from selfsup.evaluation.base import Labels, Measurement, Score
from selfsup.evaluation.features import Split, accuracy, open_split
from selfsup.inference.geometry import Floats
from selfsup.inference.items import Vectors
from selfsup.seeding import derive

STRENGTHS = tuple(10.0**exponent for exponent in range(-6, 3))  # C
FOLDS = 5
ITERATIONS = 500


@dataclass(frozen=True)
class LinearClassifier:
    """Classes by softmax((x − mean) / deviation · weightᵀ + bias)."""

    mean: Floats  # (d,)
    deviation: Floats  # (d,)
    weight: Floats  # (classes, d)
    bias: Floats  # (classes,)
    classes: Labels  # the number of each row's class, (classes,)
    strength: float  # the C that it was fitted with

    def probabilities(self, features: Vectors) -> Floats:
        """Of each class, (n, classes), for features (n, d)."""
        from scipy.special import softmax

        scores = (features - self.mean) / self.deviation @ self.weight.T + self.bias
        return np.asarray(softmax(scores, axis=1))

    def predict(self, features: Vectors) -> Labels:
        """The likeliest class of each record, (n,)."""
        return np.asarray(self.classes[self.probabilities(features).argmax(1)])


def fit(features: Vectors, labels: Labels, strength: float) -> LinearClassifier:
    """Fit to features (n, d) of two classes or more, labels (n,)."""
    return _path(features, labels, (strength,))[0]


def linear(bank: Vectors, labels: Labels, seed: int = 0) -> LinearClassifier:
    """The classifier of the protocol, from the features (n, d) and classes (n,) of the bank."""
    return fit(bank, labels, best_strength(bank, labels, seed, folds=1))


def best_strength(features: Vectors, labels: Labels, seed: int, folds: int = FOLDS) -> float:
    """The C with the most right answers over the first `folds` of five folds, each told by the other four."""
    fold = np.random.default_rng(derive(seed, "folds")).permutation(len(labels)) % FOLDS
    right = np.zeros(len(STRENGTHS))
    for number in range(folds):
        held = fold == number
        if not held.any() or len(np.unique(labels[~held])) < 2:
            continue
        path = _path(features[~held], labels[~held], STRENGTHS)
        right += [(classifier.predict(features[held]) == labels[held]).sum() for classifier in path]
    return STRENGTHS[int(right.argmax())]


def _path(features: Vectors, labels: Labels, strengths: tuple[float, ...]) -> list[LinearClassifier]:
    """A classifier for each C, each started from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    deviation[deviation == 0] = 1.0
    standard = (features - mean) / deviation
    model = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    path = []
    for strength in strengths:
        with warnings.catch_warnings():
            # Classes that a plane parts have no optimum at a large C, only a direction; any of the fits on
            # the way is a classifier, and is judged by its answers.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(standard, labels)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # of two classes scikit-learn keeps the second one's score against the first's
            weight, bias = np.vstack([np.zeros_like(weight), weight]), np.append([0.0], bias)
        path.append(LinearClassifier(mean, deviation, weight.copy(), bias.copy(), model.classes_.copy(), strength))
    return path


def measure(measurement: Measurement) -> Score:
    return score(measurement, open_split(measurement))


def score(measurement: Measurement, split: Split) -> Score:
    """Accuracy of the classifier of a bank on its test part."""
    classifier = linear(*split.bank, measurement.seed)
    return accuracy(measurement, split, classifier.predict(split.test[0]), C=classifier.strength)
