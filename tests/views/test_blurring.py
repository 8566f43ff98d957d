"""Gaussian blur against a plain convolution, scipy and torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from selfsup.views.blurring import blur, gaussian, reach


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(sigmas=st.lists(st.floats(0.1, 3), min_size=1, max_size=3), size=st.integers(2, 130), seed=st.integers(0, 99))
def test_a_blur_is_a_convolution_with_reflected_borders(sigmas: list[float], size: int, seed: int) -> None:
    found = images(len(sigmas), size, seed)
    kernels = gaussian(torch.tensor(sigmas), size)
    blurred = blur(found, kernels[:, : reach(size, max(sigmas)) + 1]).numpy()
    for i, sigma in enumerate(sigmas):
        for channel in range(3):
            expected = ndimage.gaussian_filter(
                found[i, channel].double().numpy(), sigma, mode="mirror", radius=reach(size)
            )
            np.testing.assert_allclose(blurred[i, channel], expected, atol=1e-5)


def test_torchvision_agrees() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    found = images(2, 40)
    theirs = [functional.gaussian_blur(found[i], 2 * reach(40) + 1, s) for i, s in enumerate((0.3, 1.9))]
    torch.testing.assert_close(blur(found, gaussian(torch.tensor([0.3, 1.9]), 40)), torch.stack(theirs))


def test_a_kernel_is_a_normalised_gaussian() -> None:
    (kernel,) = gaussian(torch.tensor([1.5]), 80).tolist()
    plain = [np.exp(-(d**2) / (2 * 1.5**2)) for d in range(-4, 5)]
    np.testing.assert_allclose(kernel, np.array(plain[4:]) / sum(plain), rtol=1e-6)


def test_the_kernel_of_simclr_is_23_pixels_wide_at_224() -> None:
    assert 2 * reach(224) + 1 == 23
    assert reach(8) == 1


@given(sigma=st.floats(0.05, 5), size=st.integers(2, 300))
def test_nothing_lies_beyond_the_reach(sigma: float, size: int) -> None:
    near, (kernel,) = reach(size, sigma), gaussian(torch.tensor([sigma]), size)
    assert 1 <= near <= reach(size)
    assert (kernel[near + 1 :] == 0).all()
    whole = [math.exp(-((d / sigma) ** 2) / 2) for d in range(-reach(size), reach(size) + 1)]
    assert abs(2 * kernel.sum() - kernel[0] - 1) < 1e-6
    assert abs(kernel[0] - 1 / sum(whole)) < 1e-6


def test_no_number_is_below_the_normal_ones() -> None:
    """They would make the products ten times slower."""
    kernel = gaussian(torch.tensor([0.1, 0.5]), 224)
    assert ((kernel == 0) | (kernel > 1e-13)).all()
    assert torch.equal(kernel[0, :1], torch.ones(1))
