"""An image encoder in use: its vectors against Pillow and transformers, batches, precision, and its directory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_alike
from PIL import Image
from tiny_encoder import save_tiny
from tiny_vision import COLOURS, SIZE, WIDTH, picture, save_photos, save_tiny_vision, tiny_vision

import selfsup
from selfsup.data.images import collection
from selfsup.errors import UserError
from selfsup.inference import vision
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load_as, load_encoder
from selfsup.inference.vision import ImageModel
from selfsup.models.backbones import adapt
from selfsup.models.features import Features
from selfsup.models.packing import Pooling
from selfsup.views import MEAN, STD, Preprocessing

PICTURES = [picture(colour, number) for number in range(4) for colour in COLOURS]


def model(pooling: Pooling = "mean", seed: int = 0) -> ImageModel:
    return ImageModel(tiny_vision(seed), Features(pooling), Preprocessing.plain(SIZE))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "IMAGES", 5)


def resized(pixels: np.ndarray) -> np.ndarray:
    """As Pillow does it: the short side to `SIZE`, the middle of the long one."""
    image = Image.fromarray(pixels)
    short = min(image.size)
    image = image.resize(tuple(SIZE * side // short for side in image.size), Image.Resampling.BILINEAR)
    left, top = ((side - SIZE) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


# -- vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_vector_is_that_of_the_middle_of_the_image(pooling: Pooling) -> None:
    network = tiny_vision().eval()
    for pixels, vector in zip(PICTURES, model(pooling).embed(PICTURES), strict=True):
        normal = (resized(pixels) / 255 - np.array(MEAN)) / np.array(STD)
        with torch.no_grad():
            states = network(torch.from_numpy(normal).float().permute(2, 0, 1)[None])[0]
        expected = states[0] if pooling == "cls" else states[2:].mean(0)
        assert_alike(vector, expected.numpy(), 2e-2)


def test_transformers_gives_the_same_vectors(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = save_tiny_vision(tmp_path / "model")
    processor = transformers.ViTImageProcessor.from_pretrained(directory)
    network = transformers.AutoModel.from_pretrained(directory)
    shown = processor([Image.fromarray(pixels) for pixels in PICTURES], return_tensors="pt")
    with torch.no_grad():
        expected = network(**shown).last_hidden_state[:, 2:].mean(1).numpy()
    assert_alike(ImageModel.load(directory).embed(PICTURES), expected, 2e-2)


@pytest.mark.usefixtures("small_batches")
def test_neither_batches_nor_order_change_a_vector() -> None:
    seen: list[tuple[int, int]] = []
    together = model().embed(PICTURES, "fp32", lambda done, total: seen.append((done, total)))
    assert (together.shape, together.dtype) == ((12, WIDTH), np.float32)
    assert seen == [(0, 12), (5, 12), (10, 12), (12, 12)]
    alone = np.concatenate([model().embed([pixels]) for pixels in PICTURES])
    assert_alike(together, alone)
    assert_alike(model().embed(PICTURES[::-1], "fp32"), together[::-1])
    assert model().embed([]).shape == (0, WIDTH)


def test_a_network_from_python() -> None:
    """One that gives the pixels back, whose mean is its vector."""
    same = torch.nn.Conv2d(3, 3, 1, bias=False)
    same.weight.data = torch.eye(3)[:, :, None, None]
    seeing = ImageModel(adapt(same, SIZE), Features(), Preprocessing.plain(SIZE))
    expected = np.stack([(resized(pixels) / 255 - MEAN) / np.array(STD) for pixels in PICTURES]).mean((1, 2))
    assert seeing.dimension == 3
    assert_alike(seeing.embed(PICTURES), expected, 1e-2)


def test_whatever_pixels_may_be() -> None:
    grey = PICTURES[0][..., 0]
    same = [grey, grey[..., None], np.stack([grey] * 3, 2), Image.fromarray(grey)]
    vectors = model().embed(same)
    assert_alike(vectors, vectors[[0] * 4])
    encoded = io.BytesIO()
    Image.fromarray(PICTURES[1]).save(encoded, "PNG")
    assert_alike(model().embed([encoded.getvalue()]), model().embed([PICTURES[1]]))


@pytest.mark.usefixtures("small_batches")
def test_an_image_that_cannot_be_read_has_no_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "SMALL", 0)  # as a large collection, of which only headers are looked at
    folder = save_photos(tmp_path / "photos", each=4)
    damaged = [folder / "green" / "01.png", folder / "red" / "02.png"]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:-200])
    seeing = model()
    contents = [item.content for item in seeing.read(folder, failures=0.5).items()]
    vectors = seeing.embed(contents)
    assert seeing.unread == [5, 10]
    assert np.flatnonzero(np.isnan(vectors).all(1)).tolist() == [5, 10]
    assert np.isfinite(np.delete(vectors, [5, 10], 0)).all()
    with pytest.raises(UserError, match=r"2 of 12.*01\.png"):
        seeing.embed([item.content for item in seeing.read(folder, failures=0.1).items()])


# -- precision -----------------------------------------------------------------------------------------------


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that multiplies bf16 natively."""
    monkeypatch.setattr(vision, "find_precision", lambda name, device: "bf16")


@pytest.mark.usefixtures("small_batches", "native")
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_bf16_only_where_vectors_stay_close(tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "TOLERANCE", tolerance)
    exact, rough = (model().embed(PICTURES, precision) for precision in ("fp32", "bf16"))
    found = model().embed(PICTURES)
    assert not np.array_equal(rough, exact)
    np.testing.assert_array_equal(found, rough if tolerance else exact)
    spread = np.linalg.norm(exact[:5] - exact[:5].mean(0), axis=1).mean()
    assert np.linalg.norm(rough[:5] - exact[:5], axis=1).mean() < 0.1 * spread


@pytest.mark.usefixtures("native")
def test_few_images_are_embedded_in_fp32() -> None:
    np.testing.assert_array_equal(model().embed(PICTURES), model().embed(PICTURES, "fp32"))


# -- directories and kinds -----------------------------------------------------------------------------------


def test_a_directory_gives_the_same_model(tmp_path: Path) -> None:
    directory = save_tiny_vision(tmp_path / "model", pooling="cls")
    opened = selfsup.load(directory)
    assert isinstance(opened, ImageModel)
    assert (opened.size, opened.dimension, opened.features) == (SIZE, WIDTH, Features("cls"))
    np.testing.assert_array_equal(opened.embed(PICTURES), model("cls").embed(PICTURES))
    assert opened.fingerprint == model("cls").fingerprint


def test_the_fingerprint_heeds_all_that_makes_a_vector() -> None:
    others = [
        model(),
        model("cls"),
        model(seed=1),
        ImageModel(tiny_vision(), Features(), Preprocessing.plain(2 * SIZE)),
    ]
    changed = model()
    changed.backbone.norm.weight.data[-1] += 1e-6
    assert len({other.fingerprint for other in [*others, changed]}) == 5


def test_each_command_says_which_kind_it_needs(tmp_path: Path, finished: selfsup.Run) -> None:
    images, texts = save_tiny_vision(tmp_path / "images"), save_tiny(tmp_path / "texts")
    assert isinstance(load_encoder(images), ImageModel)
    assert isinstance(load_as(images, ImageModel), ImageModel)
    for kind, directory, message in (
        (LanguageModel, images, "holds an image encoder; give the run of a decoder"),
        (EncoderModel, images, "holds an image encoder; give the run of a text encoder"),
        (ImageModel, texts, "holds a text encoder; give the run of an image encoder"),
        (ImageModel, finished.directory, "holds a decoder; give the run of an image encoder"),
    ):
        with pytest.raises(UserError, match=message):
            load_as(directory, kind)
    with pytest.raises(UserError, match="holds a decoder, which makes no vectors"):
        load_encoder(finished.directory)


def test_commands_refuse_the_wrong_kind(tmp_path: Path, selfsup_command) -> None:  # type: ignore[no-untyped-def]
    directory = save_tiny_vision(tmp_path / "model")
    for words in (("generate", directory), ("fill", directory, "a [MASK]")):
        answer = selfsup_command(*words)
        assert (answer.code, answer.out) == (2, ""), answer
        assert "holds an image encoder" in answer.error
        assert answer.error.count("\n") == 1
