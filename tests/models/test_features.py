"""What the vector of a text is: pooling, whitening, and its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsup.errors import UserError
from selfsup.files import save_tensors
from selfsup.models.features import Features, whitening
from selfsup.models.sentence_transformers import read_features

PROMPTED = Features(prompts={"query": "find: ", "other": "so: "}, default_prompt="other")


def correlated(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors with a mean and a covariance far from plain."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((width, width)) * np.linspace(1, 2, width)
    return (random.standard_normal((count, width)) @ mixing + 5).astype(np.float32)


def test_whitened_vectors_have_no_mean_and_a_plain_covariance() -> None:
    vectors = correlated(20_000, 8)
    weight, bias = whitening(vectors)
    white = Features("mean", weight, bias).map(torch.from_numpy(vectors)).double().numpy()
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T) * 8, np.eye(8), atol=0.05)
    assert np.square(white).sum(1).mean() == pytest.approx(1, rel=0.01)


def test_it_is_the_plain_formula_where_data_abounds() -> None:
    vectors = correlated(50_000, 6)
    weight, bias = whitening(vectors)
    values, directions = np.linalg.eigh(np.cov(vectors.T))
    plain = directions @ np.diag(values**-0.5) @ directions.T / np.sqrt(6)
    np.testing.assert_allclose(weight.numpy(), plain, rtol=0.02, atol=0.002)
    np.testing.assert_allclose(bias.numpy(), -plain @ vectors.mean(0), rtol=0.02, atol=0.02)


def test_few_texts_are_whitened_less() -> None:
    """With fewer texts than dimensions the covariance is shrunk, so that nothing is blown up."""
    vectors = correlated(12, 32)
    weight, bias = whitening(vectors)
    white = Features("mean", weight, bias).map(torch.from_numpy(vectors))
    fresh = Features("mean", weight, bias).map(torch.from_numpy(correlated(12, 32, seed=0)[::-1].copy()))
    assert torch.isfinite(white).all()
    assert float(fresh.norm(dim=1).max()) < 3


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20])
def test_collapsed_features_stay_finite(value: float) -> None:
    vectors = np.full((50, 4), value, np.float32)
    weight, bias = whitening(vectors)
    assert torch.isfinite(Features("mean", weight, bias).map(torch.from_numpy(vectors))).all()


def test_files(tmp_path: Path) -> None:
    weight, bias = whitening(correlated(100, 4))
    for features in (Features(), Features("cls"), Features("mean", weight, bias)):
        features.write(tmp_path)
        assert read_features(tmp_path) == features
    for features in (PROMPTED, Features(dimensions=(2, 4)), Features("mean", weight, bias, kept=2)):
        features.write(tmp_path)
        assert read_features(tmp_path) == features
        assert features != features.bare
    assert Features() != Features("cls")
    assert Features("mean", weight, bias) != Features("mean", weight, bias + 1e-3)


def test_of_a_vector_the_first_numbers_are_kept() -> None:
    pooled, (weight, bias) = torch.from_numpy(correlated(100, 4)), whitening(correlated(100, 4))
    for whole in (Features(), Features("mean", weight, bias), Features("mean", weight)):
        assert replace(whole, kept=3).map(pooled).equal(whole.map(pooled)[:, :3])
        assert replace(whole, kept=9).map(pooled).equal(whole.map(pooled))
        assert [replace(whole, kept=kept).dimension(4) for kept in (None, 3, 9)] == [4, 3, 4]


def test_a_fingerprint_is_of_what_changes_a_vector() -> None:
    """That of a definition without prompts is what it was before there were any."""
    assert Features().fingerprint == hashlib.blake2b(b"mean--", digest_size=16).hexdigest()
    others = [
        PROMPTED,
        replace(PROMPTED, default_prompt=None),
        replace(PROMPTED, prompts={"query": "find: "}, default_prompt=None),
        Features(kept=2),
        Features(kept=3),
    ]
    assert len({features.fingerprint for features in (Features(), *others)}) == 6
    assert Features(dimensions=(2,)).fingerprint == Features().fingerprint


def test_the_prompt_of_a_text() -> None:
    """By its name; without one, or where there is none for queries or documents, the default one."""
    names = (None, "query", "document", "other")
    assert [PROMPTED.prompt(name) for name in names] == ["so: ", "find: ", "so: ", "so: "]
    plain = replace(PROMPTED, default_prompt=None)
    assert [plain.prompt(name) for name in names] == ["", "find: ", "", "so: "]
    passages = Features(prompts={"passage": "p: ", "corpus": "c: "})
    assert [passages.prompt(name) for name in names[:3]] == ["", "", "p: "]
    with pytest.raises(UserError, match="The model has no prompt 'qeury'; it knows query, other, document"):
        PROMPTED.prompt("qeury")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"prompts": ["find: "]}, "prompts is"),
        ({"prompts": {"query": 3}}, "prompts is"),
        ({"prompts": {"query": "q"}, "default_prompt": "no"}, "names the default prompt 'no'"),
        ({"default_prompt": "no"}, "names the default prompt 'no'"),
        ({"dimensions": 3}, "dimensions is 3"),
        ({"dimensions": [0]}, r"dimensions is \[0\]"),
        ({"kept": -1}, "kept is -1"),
        ({"kept": True}, "kept is True"),
    ],
)
def test_what_is_no_prompt_or_dimension_is_refused(said: dict[str, object], told: str, tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text(json.dumps({"pooling": "mean", **said}))
    with pytest.raises(UserError, match=told):
        read_features(tmp_path)


def test_a_map_into_another_dimension(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    for bias in (None, torch.tensor([1.0, -1.0])):
        features = Features("mean", weight, bias)
        features.write(tmp_path)
        assert read_features(tmp_path) == features
        expected = np.array([[8.0, 26.0]]) + (0 if bias is None else bias.numpy())
        np.testing.assert_array_equal(features.map(torch.tensor([[1.0, 2.0, 3.0]])).numpy(), expected)
    assert (Features("mean", weight).dimension(3), Features().dimension(3)) == (2, 3)
    assert Features("mean", weight) != Features("mean", weight, torch.zeros(2))


@pytest.mark.parametrize(
    "tensors",
    [
        {"bias": torch.zeros(2)},
        {"weight": torch.zeros(4)},
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
        {"weight": torch.zeros(2, 3), "scale": torch.zeros(2)},
    ],
)
def test_a_damaged_map_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    Features("mean", torch.zeros(2, 3)).write(tmp_path)
    save_tensors(tensors, tmp_path / "features.safetensors")
    with pytest.raises(UserError, match=r"features\.safetensors holds no weight"):
        read_features(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    Features("mean", *whitening(correlated(100, 4))).write(tmp_path)
    (tmp_path / "features.safetensors").unlink()
    with pytest.raises(UserError, match=r"features\.safetensors is missing"):
        read_features(tmp_path)
    (tmp_path / "features.json").write_text('{"pooling": "median"}')
    with pytest.raises(UserError, match="median"):
        read_features(tmp_path)
