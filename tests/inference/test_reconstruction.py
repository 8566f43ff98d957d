"""What a masked autoencoder fills in: from visible patches only, brightness and contrast too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from drawings import drawing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.errors import UserError
from selfsup.inference.reconstruction import fill_in, reconstruct, spread
from selfsup.models.features import Features
from selfsup.models.pixel_decoder import PixelDecoder, PixelDecoderConfig, patches, save_decoder, select
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import save_vision
from selfsup.seeding import generator
from selfsup.views import random_patches

SIZE, PATCH = 16, 4
SIDE = SIZE // PATCH


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as a run of mae leaves it, with random weights."""
    directory = tmp_path_factory.mktemp("mae") / "model"
    config = VisionConfig(size=SIZE, patch=PATCH, layers=1, width=16, heads=2, mlp=24, registers=1)
    encoder = VisionTransformer(config).initialise(generator(0, "weights"))
    decoder = PixelDecoder(PixelDecoderConfig(16, 32, 1, PATCH, 0.75)).initialise(generator(0, "decoder"))
    with torch.no_grad():
        decoder.head.weight.normal_(generator=generator(0, "head"))
    save_vision(directory, encoder, Features("mean"), lambda exactness: exactness)
    save_decoder(decoder, directory)
    return directory


def as_pixels(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask of patches as one of pixels, (S, S)."""
    return mask.repeat(PATCH, 0).repeat(PATCH, 1)


def test_what_is_visible_stays_and_what_is_hidden_is_filled(saved: Path) -> None:
    pixels = drawing(0, SIZE)[:SIZE, :SIZE]
    found = reconstruct(saved, pixels)
    assert found.hidden.shape == (SIDE, SIDE)
    assert found.hidden.sum() == 12
    hidden = as_pixels(found.hidden)
    for filled in (found.filled, found.smooth):
        assert filled.shape == (SIZE, SIZE, 3)
        assert filled.dtype == np.uint8
        assert np.array_equal(filled[~hidden], pixels[~hidden])
        assert not np.array_equal(filled[hidden], pixels[hidden])
    assert np.array_equal(found.image, pixels)
    assert not np.array_equal(found.filled, found.smooth)


def test_any_image_is_brought_to_the_size_of_the_model(saved: Path) -> None:
    found = reconstruct(saved, drawing(1, 50))
    assert found.image.shape == found.filled.shape == (SIZE, SIZE, 3)


def test_a_seed_says_what_is_hidden(saved: Path) -> None:
    pixels = drawing(2, SIZE)
    first, again, other = (reconstruct(saved, pixels, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.filled, again.filled)
    assert not np.array_equal(first.hidden, other.hidden)


@settings(max_examples=10, deadline=None)
@given(number=st.integers(0, 99), seed=st.integers(0, 99))
def test_no_hidden_pixel_plays_a_part(saved: Path, number: int, seed: int) -> None:
    pixels = drawing(number, SIZE)[:SIZE, :SIZE]
    found = reconstruct(saved, pixels, seed)
    others = np.random.default_rng(number).integers(0, 256, pixels.shape, dtype=np.uint8)
    changed = np.where(as_pixels(found.hidden)[..., None], others, pixels)
    after = reconstruct(saved, changed, seed)
    assert np.array_equal(after.filled, found.filled)
    assert np.array_equal(after.smooth, found.smooth)


# -- brightness and contrast ---------------------------------------------------------------------------------


def plain_spread(values: Tensor, visible: list[int], hidden: list[int], columns: int) -> list[float]:
    """Shepard's interpolation of one number, one hidden patch and one visible one after the other."""
    found = []
    for place in hidden:
        weights = []
        for other in visible:
            rows, across = place // columns - other // columns, place % columns - other % columns
            weights.append((rows**2 + across**2) ** -2)
        total = sum(weight * float(value) for weight, value in zip(weights, values, strict=True))
        found.append(total / sum(weights))
    return found


def test_spread_against_plain_loops() -> None:
    values = torch.randn(2, 5, 1, generator=generator(0, "values"))
    place = np.zeros(2, np.int64)
    visible, hidden = random_patches(0, place, np.arange(2), 20, 0.75)
    found = spread(values, visible, hidden, 4)
    for image in range(2):
        expected = plain_spread(values[image, :, 0], visible[image].tolist(), hidden[image].tolist(), 4)
        assert found[image, :, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_values_are_put_in_their_places_with_the_brightness_around() -> None:
    """Where all visible patches are as bright and as varied, the truth is filled in from its normalised values."""
    draws = torch.randn(1, 16, 48, generator=generator(0, "pixels"))
    whole = torch.nn.functional.layer_norm(draws, (48,)) * 0.5 + 0.2  # one mean and deviation for all patches
    image = whole.view(1, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(1, 3, SIZE, SIZE)
    place = np.zeros(1, np.int64)
    visible, hidden = random_patches(0, place, place, 16, 0.75)
    values = (select(patches(image, PATCH), hidden) - 0.2) / 0.5
    torch.testing.assert_close(fill_in(image, visible, hidden, values, PATCH), image)


def test_a_model_without_its_decoder_is_said_to_be_none(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name a run of mae"):
        reconstruct(tmp_path, drawing(0, SIZE))
