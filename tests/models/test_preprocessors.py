"""How images are prepared: as the image processors of transformers do it, written back as it was, else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from seeing_peers import PEERS, preparation

from selfsup.errors import UserError
from selfsup.models.kinds import PREPROCESSOR
from selfsup.models.preprocessors import read_preprocessing, write_preprocessing
from selfsup.views import Preprocessing, centred

SHAPES = [(32, 32), (40, 90), (97, 33), (61, 300), (25, 20)]
KINDS = {peer.processor: name for name, peer in PEERS.items()}  # one of each kind
WAYS = pytest.mark.parametrize("name", list(KINDS.values()))


def say(directory: Path, **said: Any) -> Path:
    (directory / PREPROCESSOR).write_text(json.dumps(said))
    return directory


def blob(height: int, width: int) -> np.ndarray:
    """A picture with noise and hard edges, (H, W, 3), no part of which is nearly black or white: where a bicubic filter
    overshoots these, Pillow cuts that off between its two passes, in an order of its own."""
    random = np.random.default_rng(height + width)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 5), np.cos(columns / 7), np.sin((rows + columns) / 9)], -1) * 40 + 128
    edges = np.where((rows // 8 + columns // 8)[..., None] % 2, 20, -20)
    return np.clip(waves + edges + random.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)


def seen(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    given = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return centred(given, torch.tensor([pixels.shape[:2]]), preprocessing)[0].numpy()


@WAYS
def test_pixels_are_those_of_transformers_within_a_level(name: str, tmp_path: Path) -> None:
    """Pillow rounds to levels after each of its two passes, we do not round."""
    say(tmp_path, **preparation(name))
    preprocessing = read_preprocessing(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    for shape in SHAPES:
        pixels = blob(*shape)
        expected = np.array(theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0])
        apart = np.abs(seen(pixels, preprocessing) - expected) * np.array(preprocessing.std)[:, None, None] * 255
        assert apart.max() < 1.2
        assert apart.mean() < 0.4


OLD = {"do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({**OLD, "feature_extractor_type": "ViTFeatureExtractor", "size": 48}, (48, 48, True, False)),
        ({**OLD, "image_processor_type": "ViTImageProcessor", "size": 48}, (48, 48, True, False)),
        (
            {**OLD, "feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "resample": 3, "crop_size": 224},
            (224, 256, True, True),
        ),
        ({**OLD, "feature_extractor_type": "CLIPFeatureExtractor", "size": 96, "crop_size": 96}, (96, 96, False, True)),
        (
            {**OLD, "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": None},
            (224, 256, False, True),
        ),
        (
            {**OLD, "image_processor_type": "DINOv3ViTImageProcessorFast", "do_center_crop": None, "crop_size": None},
            (224, 224, True, False),
        ),
        (
            {**OLD, "image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}},
            (64, 64, True, True),
        ),
    ],
)
def test_what_files_leave_unsaid_is_what_their_class_does(
    said: dict[str, Any], expected: tuple[int, int, bool, bool], tmp_path: Path
) -> None:
    found = read_preprocessing(say(tmp_path, **said))
    assert (found.size, found.resized, found.square, found.bicubic) == expected
    assert found.mean == found.std == (0.5, 0.5, 0.5)


def test_values_that_are_not_normalised_stay_as_they_are(tmp_path: Path) -> None:
    found = read_preprocessing(say(tmp_path, size=32, do_normalize=False))
    assert (found.mean, found.std) == ((0, 0, 0), (1, 1, 1))


def test_the_part_of_a_processor_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**OLD, "size": 32}, "more": 1}))
    found = read_preprocessing(tmp_path)
    assert (found.size, found.square, found.mean) == (32, True, (0.5, 0.5, 0.5))
    (tmp_path / "same").mkdir()
    write_preprocessing(tmp_path / "same", found, tmp_path)
    name = "processor_config.json"
    assert (tmp_path / "same" / name).read_bytes() == (tmp_path / name).read_bytes()
    (tmp_path / "other").mkdir()
    write_preprocessing(tmp_path / "other", found.at(64), tmp_path)
    assert read_preprocessing(tmp_path / "other") == found.at(64)
    assert json.loads((tmp_path / "other" / name).read_text())["more"] == 1


@WAYS
def test_it_is_written_back_as_it_was_and_other_sizes_in_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "origin").mkdir()
    say(tmp_path / "origin", **preparation(name), something="else")
    found = read_preprocessing(tmp_path / "origin")
    for at, place in ((found, "same"), (found.at(64), "other")):
        (tmp_path / place).mkdir()
        write_preprocessing(tmp_path / place, at, tmp_path / "origin")
        assert read_preprocessing(tmp_path / place) == at
    before, same = ((tmp_path / place / PREPROCESSOR).read_bytes() for place in ("origin", "same"))
    assert same == before
    other, was = json.loads((tmp_path / "other" / PREPROCESSOR).read_text()), json.loads(before)
    assert {key for key in was if other[key] != was[key]} <= {"size", "crop_size"}
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "other")
    assert theirs(Image.fromarray(blob(70, 80)), return_tensors="np")["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"image_processor_type": "Siglip2ImageProcessor"},
            "prepares images as a 'Siglip2ImageProcessor'; only ViTImage",
        ),
        ({"resample": 1}, r"has resample = 1; only 2 \(bilinear\) and 3 \(bicubic\)"),
        ({"resample": [2]}, r"has resample = \[2\]; only"),
        ({"do_resize": False}, "has do_resize = False; only models of images with True"),
        ({"do_rescale": False}, "has do_rescale = False"),
        ({"do_pad": True}, "has do_pad = True; only models of images with False"),
        ({"rescale_factor": 1.0}, "has rescale_factor = 1.0; only models of images with 1/255"),
        ({"size": {"shortest_edge": 32}}, "does not make images of 32 × 32 pixels"),
        ({"do_center_crop": True, "crop_size": 48}, "does not make images of 48 × 48 pixels"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, r"is broken \(size is"),
        ({"size": {"height": 32, "width": 48}}, r"is broken \(size is"),
        ({"size": 10**9}, r"is broken \(size is"),
        ({"size": {"height": [32], "width": [32]}}, r"is broken \(size is"),
        ({"size": "large"}, r"is broken \(size is"),
        ({"image_mean": 0.5}, r"is broken \(image_mean is 0.5\)"),
        ({"image_mean": [0.5, 0.5]}, r"is broken \(image_mean is"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"is broken \(image_std is"),
    ],
)
def test_other_ways_are_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    say(tmp_path, **{"size": 32, "crop_size": 32, **said})
    with pytest.raises(UserError, match=message):
        read_preprocessing(tmp_path)


def test_where_nothing_is_said_it_is_as_usual_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_preprocessing(tmp_path, "siglip_vision_model", 64)
    assert found == Preprocessing(64, 64, True, True, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert "does not say how images are prepared for it; as is usual for its kind, both sides are" in caplog.text
    assert read_preprocessing(tmp_path, "dinov3_vit", 64) == Preprocessing.plain(64)
