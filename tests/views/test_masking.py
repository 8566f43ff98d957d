"""Masks of patches: exact counts, pure functions of the place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from selfsup.seeding import uniform
from selfsup.views import block_patches, random_patches

grids = st.tuples(st.integers(1, 16), st.integers(1, 16))
shares = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda two: (min(two), max(two)))
places = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10**6)), min_size=1, max_size=6)


def columns(place: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    epochs, records = zip(*place, strict=True)
    return np.array(epochs), np.array(records)


@given(seed=st.integers(0, 99), place=places, patches=st.integers(2, 200), hidden=st.floats(0, 1))
def test_random_patches_have_exact_counts(seed: int, place: list[tuple[int, int]], patches: int, hidden: float) -> None:
    epochs, records = columns(place)
    visible, concealed = random_patches(seed, epochs, records, patches, hidden)
    count = min(max(round(hidden * patches), 1), patches - 1)
    assert visible.dtype == concealed.dtype == torch.int64
    assert visible.shape == (len(place), patches - count)
    assert concealed.shape == (len(place), count)
    for shown, not_shown in zip(visible.tolist(), concealed.tolist(), strict=True):
        assert shown == sorted(shown)
        assert not_shown == sorted(not_shown)
        assert sorted(shown + not_shown) == list(range(patches))
    for i in range(len(place)):
        alone = random_patches(seed, epochs[i : i + 1], records[i : i + 1], patches, hidden)
        assert torch.equal(alone[1][0], concealed[i])


def test_random_patches_are_those_of_the_smallest_draws() -> None:
    epochs, records = np.zeros(5, np.int64), np.arange(5)
    _, hidden = random_patches(3, epochs, records, 20, 0.75)
    expected = np.sort(np.argsort(uniform(3, "patches", epochs, records, 20), 1)[:, :15], 1)
    assert hidden.tolist() == expected.tolist()


def test_every_patch_is_hidden_as_often() -> None:
    _, hidden = random_patches(0, np.zeros(4000, np.int64), np.arange(4000), 16, 0.75)
    counts = np.bincount(hidden.flatten().numpy(), minlength=16)
    assert abs(counts / 4000 - 0.75).max() < 5 * (0.75 * 0.25 / 4000) ** 0.5


@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    place=places,
    number=st.integers(0, 1),
    grid=grids,
    share=shares,
    chosen=st.sampled_from((0, 0.5, 1)),
)
def test_block_patches_have_exact_counts(
    seed: int,
    place: list[tuple[int, int]],
    number: int,
    grid: tuple[int, int],
    share: tuple[float, float],
    chosen: float,
) -> None:
    epochs, records = columns(place)
    patches = grid[0] * grid[1]
    mask = block_patches(seed, epochs, records, number, grid, share, chosen)
    assert mask.shape == (len(place), patches)
    assert mask.dtype == torch.bool
    draws = uniform(seed, f"blocks {number}", epochs, records, 2)
    for i, (first, second) in enumerate(draws):
        target = min(max(round((share[0] + (share[1] - share[0]) * second) * patches), 1), patches)
        assert mask[i].sum() == (target if first < chosen else 0)
        alone = block_patches(seed, epochs[i : i + 1], records[i : i + 1], number, grid, share, chosen)
        assert torch.equal(alone[0], mask[i])


def test_views_epochs_and_seeds_have_blocks_of_their_own() -> None:
    zeros, records = np.zeros(20, np.int64), np.arange(20)
    masks = [
        block_patches(seed, zeros + epoch, records, number, (8, 8), (0.2, 0.5), 1.0)
        for seed, epoch, number in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one != other).any(1).all()


def test_a_share_of_the_images_is_chosen() -> None:
    zeros, records = np.zeros(4000, np.int64), np.arange(4000)
    mask = block_patches(0, zeros, records, 0, (4, 4), (0.1, 0.5), 0.5)
    assert abs(mask.any(1).float().mean() - 0.5) < 5 * (0.25 / 4000) ** 0.5


def pieces(mask: np.ndarray) -> float:
    """Connected pieces in the mean."""
    return float(np.mean([ndimage.label(one)[1] for one in mask]))


def test_hidden_patches_hang_together() -> None:
    """Blocks, not scattered patches: far fewer pieces than as many patches drawn one by one."""
    zeros, records = np.zeros(200, np.int64), np.arange(200)
    blocks = block_patches(0, zeros, records, 0, (14, 14), (0.3, 0.3), 1.0).view(-1, 14, 14).numpy()
    _, hidden = random_patches(0, zeros, records, 196, 0.3)
    scattered = torch.zeros(200, 196, dtype=torch.bool).scatter_(1, hidden, True).view(-1, 14, 14).numpy()
    assert blocks.sum() == scattered.sum()
    assert pieces(blocks) < 4 < 15 < pieces(scattered)


def test_the_first_block_is_a_rectangle_of_allowed_size() -> None:
    """Where a single block suffices, it has 4 patches to the target and an aspect between .3 and its inverse."""
    zeros, records = np.zeros(500, np.int64), np.arange(500)
    masks = block_patches(0, zeros, records, 0, (20, 20), (0.01, 0.01), 1.0).view(-1, 20, 20)
    for mask in masks:
        rows, columns_ = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == 4
        assert (rows, columns_) in ((1, 4), (2, 2), (4, 1), (1, 3), (3, 1), (2, 3), (3, 2)) or rows * columns_ > 4


@pytest.mark.parametrize("share", [(1.0, 1.0), (0.0, 0.0)])
def test_all_or_nearly_nothing(share: tuple[float, float]) -> None:
    mask = block_patches(0, np.zeros(3, np.int64), np.arange(3), 0, (3, 5), share, 1.0)
    assert mask.sum(1).tolist() == [15 if share[0] else 1] * 3
