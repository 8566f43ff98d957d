"""The figures of features, each against a plain implementation or another library, on small random data."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from selfsup.evaluation import spectrum
from selfsup.evaluation.alignment import alignment, unrelated
from selfsup.evaluation.alpha_req import alpha_req, slope
from selfsup.evaluation.base import bootstrap
from selfsup.evaluation.knn import knn
from selfsup.evaluation.linear import STRENGTHS, best_strength, fit, linear
from selfsup.evaluation.rankme import effective_rank, rankme
from selfsup.evaluation.spectrum import Spectrum
from selfsup.evaluation.sts import pearson, spearman, sts
from selfsup.evaluation.uniformity import ideal, kernel_means, resampling, uniformity
from selfsup.inference import geometry

Array = npt.NDArray[np.float64]


def cloud(rows: int, width: int, seed: int = 0, decay: float = 0.0) -> Array:
    """Random features whose k-th column has the standard deviation k^(−decay)."""
    scale = np.arange(1, width + 1) ** -decay
    return np.random.default_rng(seed).normal(size=(rows, width)) * scale


def rotation(width: int, seed: int) -> Array:
    return np.linalg.qr(cloud(width, width, seed))[0]


def classes(rows: int, count: int, width: int, seed: int = 0) -> tuple[Array, npt.NDArray[np.int64]]:
    """Clouds around `count` centres, and which centre each feature belongs to."""
    labels = np.random.default_rng(seed).integers(count, size=rows)
    return cloud(count, width, 99)[labels] + cloud(rows, width, seed + 1), labels


@pytest.fixture(params=[7, 1 << 24], ids=["many blocks", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out does not depend on how much is computed at once."""
    monkeypatch.setattr(geometry, "CELLS", request.param)
    monkeypatch.setattr(spectrum, "ROWS", request.param)


shapes = st.tuples(st.integers(2, 40), st.integers(1, 12), st.integers(0, 1000))


# -- rankme --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("blocks")
def test_rankme_by_its_formula() -> None:
    features = cloud(50, 12, decay=0.7) + 0.3
    singular = torch.linalg.svdvals(torch.from_numpy(features))
    shares = singular / singular.norm(p=1) + 1e-7
    assert rankme(features) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-4)


@given(shapes)
def test_rankme_lies_between_one_and_the_rank(shape: tuple[int, int, int]) -> None:
    features = cloud(*shape)
    value = rankme(features)
    assert 1 - 1e-9 <= value <= min(features.shape) * (1 + 1e-6)


@given(shapes, st.floats(1e-3, 1e3))
def test_rankme_heeds_neither_scale_nor_rotation(shape: tuple[int, int, int], scale: float) -> None:
    features = cloud(*shape)
    turned = scale * features @ rotation(shape[1], 1)
    assert rankme(turned) == pytest.approx(rankme(features), rel=1e-4)


def test_rankme_of_collapse_and_of_an_even_spread() -> None:
    assert rankme(np.ones((30, 1)) * cloud(1, 8)) == pytest.approx(1, abs=1e-5)
    assert rankme(np.eye(8)) == pytest.approx(8)
    assert math.isnan(rankme(np.zeros((5, 3))))


def test_rankme_of_half_precision() -> None:
    features = cloud(300, 16)
    assert rankme(features.astype(np.float16)) == pytest.approx(rankme(features), rel=1e-3)


# -- alpha-req -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("blocks")
def test_alpha_req_by_weighted_regression() -> None:
    features = cloud(400, 70, decay=0.6) + 5.0
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    ranks = np.arange(6, 51)
    line = np.polyfit(np.log(ranks), np.log(eigenvalues[ranks - 1]), 1, w=1 / np.sqrt(ranks))
    assert alpha_req(features) == pytest.approx(-line[0], rel=1e-6)


@given(st.floats(0.1, 4), st.integers(7, 200), st.floats(1e-3, 1e3))
def test_alpha_req_finds_the_exponent_of_a_power_law(alpha: float, width: int, scale: float) -> None:
    assert slope(scale * np.arange(1, width + 1) ** -alpha) == pytest.approx(alpha, rel=1e-6)


def test_alpha_req_heeds_neither_place_nor_scale_nor_rotation() -> None:
    features = cloud(200, 30, decay=0.5)
    moved = 3 * features @ rotation(30, 2) + 7
    assert alpha_req(moved) == pytest.approx(alpha_req(features), rel=1e-6)


@pytest.mark.parametrize("width", [1, 6])
def test_alpha_req_needs_directions(width: int) -> None:
    assert math.isnan(alpha_req(cloud(40, width)))
    assert math.isnan(alpha_req(np.ones((40, 20))))


# -- intervals of the spectrum -------------------------------------------------------------------------------


@pytest.mark.parametrize(("statistic", "centred"), [(effective_rank, False), (slope, True)])
def test_interval_of_the_spectrum_agrees_with_new_samples(statistic: Callable[[Array], float], centred: bool) -> None:
    """It is as wide as the figure varies over independent samples of the same size, and lies around the figure."""
    values = [statistic(Spectrum.of(cloud(2000, 12, s, 0.5), centred).values) for s in range(60)]
    features = cloud(2000, 12, 1000, 0.5)
    whole = Spectrum.of(features, centred)
    low, high = whole.resampling(features, statistic).interval(seed=0)
    assert low < statistic(whole.values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values), rel=0.3)


# -- uniformity and alignment --------------------------------------------------------------------------------


def unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.usefixtures("blocks")
def test_uniformity_by_its_formula() -> None:
    features = cloud(60, 9) + 0.5
    plain = math.log(np.exp(-2 * pdist(unit(features), "sqeuclidean")).mean())
    assert uniformity(features) == pytest.approx(plain, abs=1e-6)


@given(shapes, st.floats(1e-3, 1e3))
def test_uniformity_heeds_neither_scale_nor_rotation(shape: tuple[int, int, int], scale: float) -> None:
    features = cloud(*shape)
    value = uniformity(features)
    assert -8 - 1e-5 <= value <= 1e-5  # no two points of the sphere are further apart than 2
    assert uniformity(scale * features @ rotation(shape[1], 1)) == pytest.approx(value, abs=1e-4)


def test_uniformity_of_collapse_and_of_an_even_spread() -> None:
    assert uniformity(np.ones((30, 1)) * cloud(1, 8)) == pytest.approx(0, abs=1e-5)
    assert uniformity(cloud(3000, 6)) == pytest.approx(ideal(6), abs=0.02)
    angles = np.linspace(0, 2 * math.pi, 100001)
    circle = math.log(np.exp(-2 * (2 - 2 * np.cos(angles))).mean())
    assert ideal(2) == pytest.approx(circle, abs=1e-4)


def test_interval_of_uniformity_agrees_with_new_samples() -> None:
    values = [uniformity(cloud(400, 5, seed) + 0.5) for seed in range(60)]
    means = kernel_means(cloud(400, 5, 1000) + 0.5)
    low, high = resampling(means).interval(seed=0)
    assert low < math.log(means.mean()) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values), rel=0.3)


def test_alignment_by_its_formula() -> None:
    x, y = cloud(40, 7), cloud(40, 7, 1)
    plain = np.mean([np.sum((a - b) ** 2) for a, b in zip(unit(x), unit(y), strict=True)])
    assert alignment(x, y) == pytest.approx(plain, rel=1e-5)
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-10)
    assert alignment(x, -x) == pytest.approx(4)
    assert unrelated(x, y) == pytest.approx(cdist(unit(x), unit(y), "sqeuclidean").mean(), rel=1e-5)


# -- knn -----------------------------------------------------------------------------------------------------


def plain_knn(
    bank: Array, labels: npt.NDArray[np.int64], test: Array, neighbours: int, temperature: float
) -> list[int]:
    answers = []
    for record in unit(test):
        cosines = unit(bank) @ record
        near = np.argsort(-cosines)[:neighbours]
        votes = {
            label: sum(math.exp(cosines[i] / temperature) for i in near if labels[i] == label)
            for label in set(labels.tolist())
        }
        answers.append(max(votes, key=lambda label: votes[label]))
    return answers


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1)])
def test_knn_by_a_plain_loop(neighbours: int, temperature: float) -> None:
    bank, labels = classes(150, 4, 6)
    test, _ = classes(50, 4, 6, seed=5)
    assert knn(bank, labels, test, neighbours, temperature).tolist() == plain_knn(
        bank, labels, test, neighbours, temperature
    )


@given(st.integers(1, 40), st.integers(4, 8), st.integers(0, 100))
def test_one_neighbour_of_a_record_of_the_bank_is_itself(rows: int, width: int, seed: int) -> None:
    bank, labels = classes(rows, 5, width, seed)
    assert knn(bank, labels, 3 * bank, 1, 0.07).tolist() == labels.tolist()


def test_all_of_one_class_is_answered_with_it() -> None:
    assert set(knn(cloud(30, 4), np.full(30, 2), cloud(9, 4, 1), 20, 0.07)) == {2}


# -- linear --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_fit_by_scikit_learn(count: int) -> None:
    features, labels = classes(200, count, 6)
    test, _ = classes(60, count, 6, seed=3)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(features, labels)
    mine = fit(features, labels, 0.01)
    assert mine.probabilities(test) == pytest.approx(reference.predict_proba(test), abs=2e-4)
    assert mine.predict(test).tolist() == reference.predict(test).tolist()


@pytest.mark.parametrize("count", [2, 4])
def test_fit_reaches_the_optimum(count: int) -> None:
    """The gradient of ½ ‖W‖² + C Σ loss, by torch, is zero in the weights' differences between classes."""
    features, labels = classes(120, count, 5)
    mine = fit(features, labels, 0.1)
    standard = torch.from_numpy((features - features.mean(0)) / features.std(0))
    bias = torch.from_numpy(mine.bias).requires_grad_()
    weight = torch.from_numpy(mine.weight).requires_grad_()
    torch.nn.functional.cross_entropy(standard @ weight.T + bias, torch.from_numpy(labels), reduction="sum").mul(
        0.1
    ).backward()
    assert bias.grad is not None
    assert weight.grad is not None
    # With two classes only the difference of the rows is penalised, which is the second row.
    penalty = mine.weight if count > 2 else np.vstack([-mine.weight[1], mine.weight[1]])
    assert weight.grad.numpy() + penalty == pytest.approx(0, abs=5e-3)
    assert bias.grad.numpy() == pytest.approx(0, abs=5e-3)


def test_strength_is_the_best_of_a_cross_validation() -> None:
    features, labels = classes(150, 3, 40)
    features[:, 10:] += cloud(150, 30, 7) * 3
    chosen = best_strength(features, labels, seed=0)

    def accuracy(strength: float) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        return float(cross_val_score(model, features, labels, cv=5).mean())

    assert accuracy(chosen) >= max(map(accuracy, STRENGTHS)) - 0.05
    assert STRENGTHS[0] <= chosen < STRENGTHS[-1]


def test_linear_is_a_function_of_bank_and_seed() -> None:
    features, labels = classes(100, 3, 8)
    test, answers = classes(400, 3, 8, seed=2)
    first, second = linear(features, labels, 3), linear(features, labels, 3)
    assert first.strength == second.strength
    assert (first.weight == second.weight).all()
    assert (first.predict(test) == answers).mean() > 0.7


def test_linear_heeds_neither_place_nor_scale() -> None:
    features, labels = classes(100, 3, 8)
    test, _ = classes(50, 3, 8, seed=2)
    moved = linear(1000 * features + 5, labels).probabilities(1000 * test + 5)
    assert moved == pytest.approx(linear(features, labels).probabilities(test), abs=1e-3)


def test_a_feature_that_is_constant_does_no_harm() -> None:
    features, labels = classes(60, 2, 4)
    features[:, 1] = 3.0
    assert np.isfinite(linear(features, labels).probabilities(features)).all()


def test_a_class_of_one_record_and_a_tiny_bank() -> None:
    features = cloud(7, 3)
    labels = np.array([0, 0, 0, 0, 0, 0, 4])
    assert set(linear(features, labels).classes) == {0, 4}
    assert set(linear(cloud(2, 3), np.array([1, 3])).predict(cloud(5, 3))) <= {1, 3}


# -- sts -----------------------------------------------------------------------------------------------------


def test_sts_by_scipy() -> None:
    first, second = cloud(80, 6), cloud(80, 6, 1)
    scores = np.round(np.random.default_rng(0).uniform(0, 5, 80))  # with many ties
    cosine = np.array([a @ b for a, b in zip(unit(first), unit(second), strict=True)])
    assert sts(first, second, scores) == pytest.approx(100 * spearmanr(cosine, scores).statistic, abs=1e-6)
    assert pearson(cosine, scores) == pytest.approx(pearsonr(cosine, scores).statistic)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_spearman_heeds_the_order_alone(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, np.float64).T
    value = spearman(x, y)
    assert -1 - 1e-9 <= value <= 1 + 1e-9
    assert spearman(np.exp(x), 3 * y - 2) == pytest.approx(value, abs=1e-9)
    assert spearman(y, -x) == pytest.approx(-value, abs=1e-9)


def test_a_model_that_tells_no_pair_from_another_has_no_correlation() -> None:
    same = np.tile([1.0, 0.0], (10, 1))
    assert sts(same, same, np.arange(10.0)) == 0


# -- bootstrap -----------------------------------------------------------------------------------------------


def test_samples_that_say_nothing_are_left_out() -> None:
    low, high = bootstrap(3, lambda drawn: 1.0 if 0 in drawn else math.nan, seed=0)
    assert (low, high) == (1.0, 1.0)
