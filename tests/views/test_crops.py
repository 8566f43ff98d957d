"""Crops lie as torchvision draws them, and are resampled as Pillow does it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from selfsup.seeding import uniform
from selfsup.views.crops import CROP_DRAWS, LARGE, TRIES, Line, cropping, random_boxes, resample

RATIO = (3 / 4, 4 / 3)
sides = st.integers(1, 40)


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(uniform(seed, "crops", np.zeros(count), np.arange(count), CROP_DRAWS))


def plain_box(
    draws: list[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """One try after the other."""
    for area, shape in zip(draws[:TRIES], draws[TRIES : 2 * TRIES], strict=True):
        target = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=6),
    scale=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    seed=st.integers(0, 99),
)
def test_boxes_are_those_of_a_plain_implementation(sizes: list[tuple[int, int]], scale: list[float], seed: int) -> None:
    numbers, scale_ = draws(len(sizes), seed), (scale[0], scale[1])
    found = random_boxes(numbers, torch.tensor(sizes), scale_, RATIO)
    plain = [plain_box(row, *size, scale_, RATIO) for row, size in zip(numbers.tolist(), sizes, strict=True)]
    assert found.tolist() == [list(box) for box in plain]
    assert (found[:, 2:] > 0).all()
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= torch.tensor(sizes)).all()


def test_an_image_that_no_try_fits_is_cropped_in_its_middle() -> None:
    sizes = torch.tensor([[10, 100], [100, 10]])
    found = random_boxes(draws(2), sizes, (1.0, 1.0), RATIO)
    assert found.tolist() == [[0, 43, 10, 13], [43, 0, 13, 10]]


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    count, scale = 4000, (0.2, 0.9)
    image = Image.new("RGB", (90, 70))
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, scale, RATIO) for _ in range(count)], float)
    ours = random_boxes(draws(count), torch.tensor([[70, 90]]).expand(count, 2), scale, RATIO).double().numpy()
    for name, figure in {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
    }.items():
        assert stats.ks_2samp(figure(ours), figure(theirs)).pvalue > 1e-4, name


def resized(pixels: np.ndarray, box: list[int], size: int) -> np.ndarray:
    """By Pillow in 32-bit floats, (3, size, size)."""
    top, left, height, width = box
    part = pixels[:, top : top + height, left : left + width].astype(np.float32)
    return np.stack(
        [
            np.asarray(Image.fromarray(np.ascontiguousarray(c)).resize((size, size), Image.Resampling.BILINEAR))
            for c in part
        ]
    )


def ours(pixels: np.ndarray, boxes: torch.Tensor, size: int, mirror: bool = False) -> np.ndarray:
    """Images of one size (n, 3, H, W), (n, 3, size, size) from 0 to 255."""
    top, left, height, width = boxes.unbind(1)
    flags = torch.full((len(boxes),), mirror)
    rows = Line.of(top, height, top, top + height, pixels.shape[2], size)
    columns = Line.of(left, width, left, left + width, pixels.shape[3], size, mirror=flags)
    return (resample(torch.from_numpy(pixels), torch.arange(len(pixels)), rows, columns) * 255).numpy()


def images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), np.uint8)


@settings(deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 150), seed=st.integers(0, 99))
def test_crops_are_resampled_as_pillow_does_it(height: int, width: int, size: int, seed: int) -> None:
    """Antialiased where they shrink; nothing outside the crop is looked at."""
    pixels = images(3, height, width, seed)
    boxes = random_boxes(draws(3, seed), torch.tensor([[height, width]]).expand(3, 2), (0.05, 1.0), RATIO)
    found = ours(pixels, boxes, size)
    for image, box, one in zip(pixels, boxes.tolist(), found, strict=True):
        np.testing.assert_allclose(one, resized(image, box, size), atol=2e-3)
    np.testing.assert_allclose(ours(pixels, boxes, size, mirror=True), found[..., ::-1], atol=2e-3)


def test_crops_of_bytes_are_those_of_pillow_to_a_level() -> None:
    pixels = images(1, 60, 50)
    box = [7, 3, 41, 30]
    part = Image.fromarray(pixels[0].transpose(1, 2, 0)).crop((3, 7, 33, 48))
    theirs = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1)
    assert np.abs(ours(pixels, torch.tensor([box]), 24)[0] - theirs).max() < 1.01


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 150), width=st.integers(1, 150), size=st.integers(LARGE, 130), seed=st.integers(0, 99))
def test_large_crops_are_those_of_pillow_to_a_level(height: int, width: int, size: int, seed: int) -> None:
    """On a CPU they come from PyTorch's own resize, of any layout of the pixels."""
    pixels = torch.from_numpy(images(2, height, width, seed)).to(memory_format=torch.channels_last)
    chosen, mirror = torch.tensor([1, 0, 1]), torch.tensor([False, True, True])
    boxes = random_boxes(draws(3, seed), torch.tensor([[height, width]]).expand(3, 2), (0.05, 1.0), RATIO)
    made = cropping(pixels, chosen, boxes, mirror, size)
    found = made(slice(0, 3))
    assert torch.equal(found[1:], made(slice(1, 3)))
    for number, (source, (top, left, high, wide)) in enumerate(zip(chosen.tolist(), boxes.tolist(), strict=True)):
        whole = Image.fromarray(pixels[source].permute(1, 2, 0).numpy())
        part = whole.crop((left, top, left + wide, top + high))
        theirs = np.array(part.resize((size, size), Image.Resampling.BILINEAR), float).transpose(2, 0, 1)
        ours = found[number].double().numpy() * 255
        np.testing.assert_allclose(ours, ours.round(), atol=1e-4)
        errors = np.abs((ours[..., ::-1] if mirror[number] else ours) - theirs)
        assert errors.max() < 2.01  # its weights have 15 bits, those of Pillow more
        assert (errors > 1.01).mean() < 1e-3


def test_crops_are_those_of_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    pixels = images(4, 37, 52)
    boxes = torch.tensor([[0, 0, 37, 52], [5, 9, 8, 8], [20, 1, 17, 40], [30, 50, 1, 2]])
    for image, box, one in zip(pixels, boxes.tolist(), ours(pixels, boxes, 16), strict=True):
        theirs = functional.resized_crop(torch.from_numpy(image).float(), *box, [16, 16], antialias=True)
        np.testing.assert_allclose(one, theirs.numpy(), atol=2e-3)


def test_large_images_keep_their_precision() -> None:
    """Positions thousands of pixels from the corner are float32, too."""
    pixels = images(1, 4, 5000)
    box = [0, 4900, 4, 90]
    np.testing.assert_allclose(ours(pixels, torch.tensor([box]), 32)[0], resized(pixels[0], box, 32), atol=0.15)
