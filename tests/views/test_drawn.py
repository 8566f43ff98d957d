"""What is said of a view is what was drawn: against the rendering itself, by Pillow and with one operation left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsup.views import View, render
from selfsup.views.drawn import Drawn, draw_views, levels

COUNT = 12
RECORDS, EPOCHS = np.arange(COUNT) * 7 + 3, np.arange(COUNT) % 3
CROPS = View(8, (0.1, 1.0))
CHANGES = replace(
    CROPS,
    jitter=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.2,
    grey=0.4,
    blur=0.5,
    sigma=(0.5, 2.0),
    solarize=0.5,
)


def images(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of different sizes, padded."""
    draws = np.random.default_rng(seed)
    sizes = draws.integers(5, 30, (COUNT, 2))
    pixels = torch.from_numpy(draws.integers(0, 256, (COUNT, 3, 30, 30), np.uint8))
    return pixels, torch.from_numpy(sizes)


def both(view: View, seed: int = 5, number: int = 2) -> tuple[torch.Tensor, list[Drawn]]:
    pixels, sizes = images()
    place = (view, seed, EPOCHS, RECORDS, number)
    return render(pixels, sizes, *place), draw_views(sizes, *place)


@given(seed=st.integers(0, 2**40), number=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_box_and_mirror_give_the_view_by_pillow(seed: int, number: int) -> None:
    rendered, drawn = both(CROPS, seed, number)
    pixels, _ = images()
    for image, view, what in zip(pixels, levels(rendered, CROPS), drawn, strict=True):
        top, left, height, width = what.box
        crop = image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        expected = Image.fromarray(crop).resize((8, 8), Image.Resampling.BILINEAR)
        if what.mirrored:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert np.abs(np.asarray(expected, float) - view).max() <= 2


@pytest.mark.parametrize(
    ("operation", "field"), [("jitter", "jittered"), ("grey", "grey"), ("blur", "sigma"), ("solarize", "solarized")]
)
def test_an_operation_changes_those_it_is_said_of(operation: str, field: str) -> None:
    none = replace(CHANGES, jitter=0.0, grey=0.0, blur=0.0, solarize=0.0)
    rendered, drawn = both(replace(none, **{operation: 0.5}))
    plain, _ = both(none)
    said = [bool(getattr(what, field)) for what in drawn]
    assert said == (rendered != plain).flatten(1).any(1).tolist()
    assert any(said)
    assert not all(said)


def test_sigma_is_that_of_the_blur() -> None:
    rendered, drawn = both(CHANGES)
    for place, what in enumerate(drawn):
        if what.sigma:
            again, _ = both(replace(CHANGES, sigma=(what.sigma, what.sigma)))
            torch.testing.assert_close(again[place], rendered[place], rtol=0, atol=1e-4)


def test_levels_are_those_of_the_image() -> None:
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 3, 8, 8), np.uint8))
    whole = View(8, (1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    records = np.arange(3)
    rendered = render(pixels, torch.tensor([[8, 8]] * 3), whole, 0, records * 0, records, 0)
    np.testing.assert_array_equal(levels(rendered, whole), pixels.permute(0, 2, 3, 1).numpy())
