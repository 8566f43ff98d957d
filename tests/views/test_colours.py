"""Operations on colours, against their definitions written down pixel by pixel and against torchvision."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.views.colours import blend, jitter, jitter_parameters, luminance, shift_hue, solarize

STRENGTHS = (0.8, 0.7, 0.6, 0.3)
NAMES = ("brightness", "contrast", "saturation", "hue")
levels = st.integers(0, 255)
seeds = st.integers(0, 999)


def images(count: int, pixels: int = 12, seed: int = 0) -> torch.Tensor:
    """(count, 3, pixels), some of them grey, black or white."""
    found = torch.rand(count, 3, pixels, generator=torch.Generator().manual_seed(seed))
    found[:, :, 0], found[:, :, 1], found[:, :, 2] = 0, 1, 0.4
    return found


def plain(name: str, image: np.ndarray, amount: float) -> np.ndarray:
    """One operation on one image (3, P), as the textbooks have it."""
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    if name == "brightness":
        return np.clip(amount * image, 0, 1)
    if name == "contrast":
        return np.clip(amount * image + (1 - amount) * grey.mean(), 0, 1)
    if name == "saturation":
        return np.clip(amount * image + (1 - amount) * grey, 0, 1)
    turned = []
    for pixel in image.T:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        turned.append(colorsys.hsv_to_rgb((hue + amount) % 1, saturation, value))
    return np.array(turned).T


def plainly(images: torch.Tensor, name: str, amounts: list[float]) -> np.ndarray:
    changed = [plain(name, image, amount) for image, amount in zip(images.double().numpy(), amounts, strict=True)]
    return np.stack(changed)


@pytest.mark.parametrize("name", NAMES[:3])
@given(amounts=st.lists(st.floats(0, 2), min_size=1, max_size=4), seed=seeds)
def test_factors_are_applied_as_written(name: str, amounts: list[float], seed: int) -> None:
    found = images(len(amounts), seed=seed)
    expected = plainly(found, name, amounts)
    parameters = [(f, (1 - f) * (name == "saturation"), (1 - f) * (name == "contrast")) for f in amounts]
    blend(found, torch.tensor(parameters))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@given(amounts=st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=4), seed=seeds)
def test_hue_turns_as_written(amounts: list[float], seed: int) -> None:
    found = images(len(amounts), seed=seed)
    expected = plainly(found, "hue", amounts)
    shift_hue(found, torch.tensor(amounts))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@given(colour=st.tuples(levels, levels, levels), amount=st.floats(-0.5, 0.5))
def test_hue_turns_for_every_colour_of_bytes(colour: tuple[int, int, int], amount: float) -> None:
    """Two channels that are equal, one step apart, none or all of a channel."""
    found = torch.tensor(colour)[None, :, None] / 255
    expected = plainly(found, "hue", [amount])
    shift_hue(found, torch.tensor([amount]))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_grey_and_solarized() -> None:
    found = images(3)
    grey = (found * torch.tensor([0.299, 0.587, 0.114])[:, None]).sum(1)
    torch.testing.assert_close(luminance(found), grey)
    inverted = [x if x < 0.5 else 1 - x for x in found.flatten().tolist()]
    torch.testing.assert_close(solarize(found).flatten(), torch.tensor(inverted))


def test_torchvision_agrees() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    found = images(1, 64, seed=3)
    theirs = found.view(1, 3, 8, 8)
    for name, amount in (("brightness", 1.6), ("contrast", 0.3), ("saturation", 1.7), ("hue", -0.13)):
        theirs = getattr(functional, f"adjust_{name}")(theirs, amount)
        parameters = (amount, (1 - amount) * (name == "saturation"), (1 - amount) * (name == "contrast"))
        if name == "hue":
            shift_hue(found, torch.tensor([amount]))
        else:
            blend(found, torch.tensor([parameters]))
        torch.testing.assert_close(found.view(1, 3, 8, 8), theirs, atol=4e-4, rtol=0)
    torch.testing.assert_close(
        luminance(found).view(1, 1, 8, 8), functional.rgb_to_grayscale(theirs), atol=4e-4, rtol=0
    )
    torch.testing.assert_close(solarize(found).view(1, 3, 8, 8), functional.solarize(theirs, 0.5), atol=4e-4, rtol=0)


@settings(deadline=None)
@given(count=st.integers(1, 8), seed=seeds, jittered=st.integers(0, 8), times=st.sampled_from((1, 2)))
def test_each_image_has_an_order_of_its_own(count: int, seed: int, jittered: int, times: int) -> None:
    """The operations one after the other, in the order of their keys, on each image by itself; factors below 0 too."""
    strengths = tuple(times * strength for strength in STRENGTHS)
    draws = np.random.default_rng(seed).random((count, 8))
    early = (draws[:, :3] < draws[:, 3:4]).sum(1)
    early[jittered:] = -1
    order = np.argsort(-early, kind="stable")
    draws, early = draws[order], early[order]
    expected = images(count, seed=seed).double().numpy()
    for i in np.flatnonzero(early >= 0):
        for kind in np.argsort(draws[i, :4]):
            signed = (2 * draws[i, 4 + kind] - 1) * strengths[kind]
            expected[i] = plain(NAMES[kind], expected[i], signed if kind == 3 else 1 + signed)
    found = images(count, seed=seed)
    numbers = torch.from_numpy(draws)
    blends, shifts = jitter_parameters(numbers[:, :4], numbers[:, 4:], strengths)
    jitter(found, blends, shifts, early, np.argsort(draws[:, :3]))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
