"""Views as a whole: against one image after the other in plain operations, and as functions of their place alone."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from selfsup.seeding import uniform
from selfsup.views import (
    MEAN,
    STD,
    Preprocessing,
    View,
    centred,
    crops,
    dino_local,
    dino_second,
    mae_view,
    render,
    render_several,
    rendering,
    simclr_view,
)
from selfsup.views.blurring import reach
from selfsup.views.crops import CROP_DRAWS, LARGE, random_boxes
from selfsup.views.rendering import AMOUNTS, BLUR, CROP, FLIP, GREY, JITTER, KEYS, SIGMA, SOLARIZE

plain = Preprocessing.plain
EVERYTHING = View(
    9, (0.2, 1.0), jitter=0.7, brightness=0.5, contrast=0.6, saturation=0.7, hue=0.2, grey=0.3, blur=0.5, solarize=0.4
)
PLAIN = View(8, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)  # the image as it is, where it is 8 px wide and high


def images(count: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=draws)
    return pixels, torch.tensor([[height, width]]).expand(count, 2)


def normalised(images: np.ndarray) -> np.ndarray:
    """(…, 3, S, S) from 0 to 1."""
    return (images - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]


def grey(image: np.ndarray) -> np.ndarray:
    return np.array(0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])


def turned(image: np.ndarray, amount: float) -> np.ndarray:
    pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(3, -1).T]
    return np.array([colorsys.hsv_to_rgb((h + amount) % 1, s, v) for h, s, v in pixels]).T.reshape(image.shape)


def plain_view(pixels: np.ndarray, view: View, draws: np.ndarray) -> np.ndarray:
    """One image (3, H, W), operation by operation, in the order in which they stand in View."""
    sizes = torch.tensor([pixels.shape[1:]])
    box = random_boxes(torch.from_numpy(draws[None, CROP]), sizes, view.scale, view.ratio)[0].tolist()
    top, left, height, width = box
    part = pixels[:, top : top + height, left : left + width].astype(np.float32)
    image = np.stack([np.array(Image.fromarray(c).resize((view.size,) * 2, Image.Resampling.BILINEAR)) for c in part])
    image = image.astype(np.float64) / 255
    if draws[FLIP] < view.flip:
        image = image[:, :, ::-1]
    if draws[JITTER] < view.jitter:
        strengths = (view.brightness, view.contrast, view.saturation, view.hue)
        for kind in np.argsort(draws[KEYS]):
            amount = (2 * draws[AMOUNTS][kind] - 1) * strengths[kind]
            if kind == 3:
                image = turned(image, amount)
            else:
                anchor = (0.0, grey(image).mean(), grey(image))[kind]
                image = np.clip((1 + amount) * image - amount * anchor, 0, 1)
    if draws[GREY] < view.grey:
        image = np.stack([grey(image)] * 3)
    if draws[BLUR] < view.blur:
        sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * draws[SIGMA]
        image = np.stack([ndimage.gaussian_filter(c, sigma, mode="mirror", radius=reach(view.size)) for c in image])
    if draws[SOLARIZE] < view.solarize:
        image = np.where(image < 0.5, image, 1 - image)
    return normalised(image)


@settings(deadline=None, max_examples=20)
@given(height=st.integers(3, 30), width=st.integers(3, 30), size=st.integers(2, 20), seed=st.integers(0, 99))
def test_a_view_is_its_operations_one_after_the_other(height: int, width: int, size: int, seed: int) -> None:
    view = replace(EVERYTHING, size=size)
    pixels, sizes = images(7, height, width, seed)
    epochs, records = np.full(7, 3), np.arange(40, 47)
    found = render(pixels, sizes, view, seed, epochs, records, 2)
    assert found.shape == (7, 3, size, size)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    draws = uniform(seed, "view 2", epochs, records, CROP.stop)
    for image, row, one in zip(pixels.numpy(), draws, found.numpy(), strict=True):
        np.testing.assert_allclose(one, plain_view(image, view, row), atol=1e-3)


def test_a_large_view_is_its_operations_but_for_the_rounding_of_its_crop() -> None:
    view = replace(EVERYTHING, size=LARGE)
    pixels, sizes = images(8, 90, 70)
    places = np.zeros(8, np.int64), np.arange(8)
    found = render(pixels, sizes, view, 0, *places, 0)
    draws = uniform(0, "view 0", *places, CROP.stop)
    for image, row, one in zip(pixels.numpy(), draws, found.numpy(), strict=True):
        errors = np.abs(one - plain_view(image, view, row))
        assert errors.max() < 0.1
        assert errors.mean() < 1 / 255 / min(STD)


def test_threads_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer of them work on large images."""
    pixels, sizes = images(2, 90, 70)
    places = np.zeros(2, np.int64), np.arange(2)
    seen = []

    def broken(images: torch.Tensor, view: View) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        raise RuntimeError

    monkeypatch.setattr(rendering, "CACHE", 1)
    monkeypatch.setattr(rendering, "_normalised", broken)
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError):
            render(pixels, sizes, PLAIN, 0, *places, 0)
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(usual)


def test_an_image_that_draws_nothing_is_only_normalised() -> None:
    pixels, sizes = images(3, 8, 8)
    found = render(pixels, sizes, PLAIN, 0, np.zeros(3), np.arange(3), 0)
    np.testing.assert_allclose(found.numpy(), normalised(pixels.numpy() / 255), atol=1e-5)


def padded(pixels: torch.Tensor, height: int, width: int, seed: int) -> torch.Tensor:
    """The images at the top left of larger ones that are full of noise."""
    full = images(len(pixels), height, width, seed)[0]
    full[:, :, : pixels.shape[2], : pixels.shape[3]] = pixels
    return full


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    count=st.integers(1, 9),
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    order=st.randoms(use_true_random=False),
)
def test_a_view_depends_on_nothing_beside_its_image(
    seed: int, count: int, more: tuple[int, int], order: object
) -> None:
    """Neither on other records and their order, nor on the padding."""
    pixels, sizes = images(count, 14, 17, seed)
    epochs, records = np.arange(count) % 3, np.arange(count) * 7
    together = render(pixels, sizes, EVERYTHING, seed, epochs, records, 1)
    shuffled = list(range(count))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    wide = padded(pixels, 14 + more[0], 17 + more[1], seed + 1)[shuffled]
    apart = render(wide, sizes, EVERYTHING, seed, epochs[shuffled], records[shuffled], 1)
    torch.testing.assert_close(apart, together[shuffled], atol=1e-5, rtol=0)
    alone = render(pixels[:1], sizes[:1], EVERYTHING, seed, epochs[:1], records[:1], 1)
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=0)


def test_images_of_different_sizes_stand_in_one_batch() -> None:
    small, large = images(1, 11, 20, seed=1)[0], images(1, 32, 13, seed=2)[0]
    both = torch.cat((padded(small, 32, 20, 3), padded(large, 32, 20, 4)))
    sizes = torch.tensor([[11, 20], [32, 13]])
    zeros, records = np.zeros(2), np.array([5, 6])
    found = render(both, sizes, EVERYTHING, 0, zeros, records, 0), centred(both, sizes, plain(9))
    for i, image in enumerate((small, large)):
        view = render(image, sizes[i : i + 1], EVERYTHING, 0, zeros[:1], records[i : i + 1], 0)
        torch.testing.assert_close(found[0][i], view[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1][i], centred(image, sizes[i : i + 1], plain(9))[0], atol=1e-5, rtol=0)


def test_the_same_place_gives_the_same_bits_and_another_one_another_view() -> None:
    pixels, sizes = images(5, 16, 16)
    zeros, records = np.zeros(5, np.int64), np.arange(5)
    first = render(pixels, sizes, EVERYTHING, 0, zeros, records, 0)
    state = torch.get_rng_state()
    assert torch.equal(first, render(pixels, sizes, EVERYTHING, 0, zeros, records, 0))
    assert torch.equal(state, torch.get_rng_state())
    for seed, epoch, shift, number in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 9, 0), (0, 0, 0, 1)):
        other = render(pixels, sizes, EVERYTHING, seed, zeros + epoch, records + shift, number)
        assert (first != other).flatten(1).any(1).all()


def test_several_views_are_those_that_are_made_one_by_one() -> None:
    pixels, sizes = images(5, 16, 20)
    epochs, records = np.arange(5), np.arange(5) * 3
    several = render_several(pixels, sizes, EVERYTHING, 4, epochs, records, (3, 0, 7))
    assert several.shape == (5, 3, 3, 9, 9)
    for number, found in zip((3, 0, 7), several.unbind(1), strict=True):
        one = render(pixels, sizes, EVERYTHING, 4, epochs, records, number)
        torch.testing.assert_close(found, one, atol=1e-5, rtol=0)


def test_how_many_are_worked_on_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, sizes = images(9, 16, 16)
    places = np.zeros(9, np.int64), np.arange(9)
    view, middle = render(pixels, sizes, EVERYTHING, 0, *places, 0), centred(pixels, sizes, plain(10))
    monkeypatch.setattr(rendering, "CACHE", 1)
    torch.testing.assert_close(render(pixels, sizes, EVERYTHING, 0, *places, 0), view, atol=1e-5, rtol=0)
    torch.testing.assert_close(centred(pixels, sizes, plain(10)), middle, atol=1e-5, rtol=0)


def test_mixed_precision_does_not_reach_the_views() -> None:
    pixels, sizes = images(4, 16, 16)
    places = np.zeros(4, np.int64), np.arange(4)
    view, middle = render(pixels, sizes, EVERYTHING, 0, *places, 0), centred(pixels, sizes, plain(10))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(render(pixels, sizes, EVERYTHING, 0, *places, 0), view)
        assert torch.equal(centred(pixels, sizes, plain(10)), middle)


def share(view: View, other: View, count: int = 2000) -> float:
    """Of images whose two views differ."""
    pixels, sizes = images(count, 8, 8)
    places = np.zeros(count, np.int64), np.arange(count)
    one, two = (render(pixels, sizes, v, 0, *places, 0) for v in (view, other))
    return float(((one - two).abs() > 1e-4).flatten(1).any(1).float().mean())


@pytest.mark.parametrize(
    "change", [{"flip": 0.5}, {"grey": 0.2}, {"blur": 0.7}, {"solarize": 0.2}, {"jitter": 0.8, "brightness": 0.4}]
)
def test_operations_are_as_frequent_as_asked(change: dict[str, float]) -> None:
    probability = next(iter(change.values()))
    found = share(PLAIN, replace(PLAIN, **change))  # type: ignore[arg-type]
    assert abs(found - probability) < 5 * (probability * (1 - probability) / 2000) ** 0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "LARGE", 1000)  # those that are rounded on a CPU
    pixels, sizes = images(33, 40, 50)
    places = np.zeros(33, np.int64), np.arange(33)
    for view in (simclr_view(32), simclr_view(64), dino_second(64), dino_local(16), mae_view(32)):
        found = render(pixels.cuda(), sizes.cuda(), view, 0, *places, 1)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), render(pixels, sizes, view, 0, *places, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        centred(pixels.cuda(), sizes.cuda(), plain(32)).cpu(), centred(pixels, sizes, plain(32)), atol=1e-4, rtol=0
    )


# -- evaluation ----------------------------------------------------------------------------------------------


def plain_centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """By Pillow: the short side resized to `size`, the middle of the long one kept."""
    height, width = pixels.shape[1:]
    short = min(height, width)
    wide, high = size * width // short, size * height // short
    channels = [Image.fromarray(c.astype(np.float32)).resize((wide, high), Image.Resampling.BILINEAR) for c in pixels]
    top, left = (high - size) // 2, (wide - size) // 2
    return np.stack([np.asarray(c)[top : top + size, left : left + size] for c in channels])


@settings(deadline=None)
@given(height=st.integers(1, 60), width=st.integers(1, 60), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_evaluation_sees_the_middle_as_pillow_resizes_it(height: int, width: int, size: int, seed: int) -> None:
    pixels, sizes = images(2, height, width, seed)
    found = centred(pixels, sizes, plain(size))
    assert found.shape == (2, 3, size, size)
    for image, one in zip(pixels.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(one, normalised(plain_centre(image, size) / 255), atol=1e-3)


def test_evaluation_sees_what_torchvision_sees() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels, sizes = images(1, 45, 70)
    theirs = transforms.Compose(
        [transforms.Resize(24), transforms.CenterCrop(24), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    expected = theirs(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()))
    torch.testing.assert_close(centred(pixels, sizes, plain(24))[0], expected, atol=1.01 / 255 / min(STD), rtol=0)


def test_draws_do_not_overlap() -> None:
    assert sorted([FLIP, JITTER, GREY, BLUR, SIGMA, SOLARIZE]) == list(range(KEYS.start))
    assert (KEYS.stop, AMOUNTS.stop) == (AMOUNTS.start, CROP.start)
    assert CROP.stop - CROP.start == CROP_DRAWS
