"""What a network sees: attention against its own block, colours against scikit-learn, sizes, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train, Trained
from drawings import drawing
from hypothesis import given, settings
from hypothesis import strategies as st
from looking import Told, printed
from PIL import Image
from sklearn.decomposition import PCA
from tiny_clip import save_tiny_clip
from torch import Tensor, nn

import selfsup
from selfsup.errors import UserError
from selfsup.inference.vision import ImageModel
from selfsup.inspection.blocks import Gallery, Tile
from selfsup.inspection.show import attention_of, coloured, look_into
from selfsup.inspection.show import show as look
from selfsup.models.attention import Placement
from selfsup.models.backbones import adapt
from selfsup.models.features import Features
from selfsup.models.packing import Pooling
from selfsup.models.vision import Block, VisionConfig, VisionTransformer
from selfsup.run import Run
from selfsup.seeding import generator
from selfsup.views import Preprocessing, centred

CONFIG = VisionConfig(size=16, patch=4, layers=2, width=32, heads=2, mlp=48, registers=2)


def show(*words: object, **arguments: object) -> Told:
    return Told(look(*words, **arguments))  # type: ignore[arg-type]


def features(shown: Told) -> np.ndarray:
    """The colours of the first image's patches, (rows, columns, 3)."""
    return np.array(shown.images[0]["colours"])


def filled_in(shown: Told) -> list[Tile]:
    """What is shown of the first image where most of it is hidden."""
    (_, _, *gallery) = shown.of(Gallery)
    return gallery[0].groups[0].rows[0] if gallery else []


def network() -> VisionTransformer:
    """With weights that all matter."""
    made = VisionTransformer(CONFIG)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number))
            parameter.copy_(0.3 * noise + (parameter.ndim == 1))
    return made.eval()


@pytest.fixture(scope="module")
def run(trained: Trained) -> Run:
    return trained("mae")


def test_attention_is_that_of_the_block() -> None:
    """Values weighed by it, mapped and added, are what the block itself makes of its input."""
    made = network()
    caught: dict[str, tuple[Tensor, Placement]] = {}
    block = made.layer[-1]
    assert isinstance(block, Block)
    block.register_forward_pre_hook(lambda _, inputs: caught.update(block=inputs))
    with torch.inference_mode():
        made(torch.randn(2, 3, 16, 24, generator=generator(0, "pixels")))
        x, placement = caught["block"]
        tokens, part = x.shape[1], block.attention
        normal = block.norm1(x, placement.dtype)
        v = part.v_proj(normal).view(2, tokens, 2, -1)
        seen = []
        for token in range(tokens):
            shares = attention_of(block, x, placement, slice(token, token + 1))
            torch.testing.assert_close(shares.sum(-1), torch.ones(2, 2))
            seen.append(torch.einsum("bht,bthd->bhd", shares, v).flatten(1))
        between = x + block.layer_scale1.lambda1 * part.o_proj(torch.stack(seen, 1))
        inner = torch.nn.functional.gelu(block.mlp.up_proj(block.norm2(between, placement.dtype)))
        expected = between + block.layer_scale2.lambda1 * block.mlp.down_proj(inner)
        torch.testing.assert_close(expected, block(x, placement), rtol=1e-4, atol=1e-4)
        mean = attention_of(block, x, placement, slice(3, None))
        each = [attention_of(block, x, placement, slice(t, t + 1)) for t in range(3, tokens)]
        torch.testing.assert_close(mean, torch.stack(each).mean(0))


def model(made: VisionTransformer, pooling: Pooling = "cls") -> ImageModel:
    return ImageModel(made, Features(pooling), Preprocessing.plain(CONFIG.size))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_are_those_of_the_network(pooling: Pooling) -> None:
    pixels, made = drawing(3, 16)[:16, :16], network()
    insight = look_into(model(made, pooling), "it", pixels, 4)
    shown = centred(torch.tensor(pixels).permute(2, 0, 1)[None], torch.tensor([[16, 16]]), Preprocessing.plain(16))
    with torch.inference_mode():
        states = made(shown)[0, CONFIG.prefix :]
    np.testing.assert_allclose(insight.features.reshape(16, -1), states, atol=1e-4)
    assert insight.attention.shape == (2, 4, 4)
    assert (insight.attention >= 0).all()
    assert (insight.attention.sum((1, 2)) < 1).all()
    assert not made.layer[-1]._forward_pre_hooks


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_patches_follow_the_shape_of_the_image(height: int, width: int, short: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    rows, columns = (round(short * side / min(height, width)) for side in (height, width))
    insight = look_into(model(network()), "it", pixels, short)
    assert insight.features.shape == (rows, columns, 32)
    assert min(rows, columns) == short


def test_colours_are_principal_components() -> None:
    random = np.random.default_rng(0)
    features = [random.normal(size=shape) @ random.normal(size=(8, 8)) for shape in ((4, 6, 8), (5, 3, 8))]
    pictures, explained = coloured([each.astype(np.float32) for each in features])
    assert [picture.shape for picture in pictures] == [(4, 6, 3), (5, 3, 3)]
    flat = np.concatenate([each.reshape(-1, 8) for each in features])
    fitted = PCA(3).fit(flat)
    assert explained == pytest.approx(fitted.explained_variance_ratio_.sum(), abs=1e-5)
    levels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(float)
    inside = (levels > 0) & (levels < 255)
    for channel, component in enumerate(fitted.transform(flat).T):
        kept = inside[:, channel]
        correlation = np.corrcoef(levels[kept, channel], component[kept])[0, 1]
        assert abs(correlation) > 0.999
        assert levels[:, channel].min() == 0
        assert levels[:, channel].max() == 255


def test_patches_that_are_all_alike_have_one_colour() -> None:
    pictures, explained = coloured([np.ones((3, 3, 5), np.float32)])
    assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) == 1
    assert explained == 0.0


def test_a_masked_autoencoder_fills_in(run: Run, drawings: Path) -> None:
    images = [drawings / "000.png", drawings / "001.png"]
    shown = show(run.directory, images)
    assert [image["name"] for image in shown.images] == ["000.png", "001.png"]
    assert (shown.looks, shown.trained, shown.patch) == ("mean", 16, 4)
    assert min(features(shown).shape[:2]) == 8  # twice the size of training
    image, seen, filled, smooth = filled_in(shown)
    assert (seen.name, seen.facts, filled.name) == ("shown", "75% hidden", "filled in")
    other = filled_in(show(run.directory, images, seed=1))[1]
    assert (seen.pixels != other.pixels).any()
    assert image.pixels.shape == filled.pixels.shape == smooth.pixels.shape == (16, 16, 3)
    assert "filled in" in printed(shown)
    content = json.loads(json.dumps(shown.to_json()))["values"]
    assert len(content["images"]) == 2
    assert np.shape(content["images"][0]["attention"])[0] == 1


def test_a_class_token_is_said_to_look(train_vision: Train, tmp_path: Path) -> None:
    run = train_vision(tmp_path / "run", "dino", steps=2, **{"dino.prototypes": 16, "dino.local_crops": 1})
    shown = show(run.directory, [drawing(0, 20)], size=30)
    assert shown.looks == "cls"
    assert filled_in(shown) == []
    assert min(features(shown).shape[:2]) == 8
    assert "where the class token takes" in " ".join(section.hint for section in shown.sections)


def test_what_cannot_be_shown_is_refused(run: Run, finished: Run, drawings: Path, tmp_path: Path) -> None:
    image = drawings / "000.png"
    with pytest.raises(UserError, match="nowhere"):
        show(run.directory, "nowhere.png")
    with pytest.raises(UserError, match="give the run of an image encoder"):
        show(finished.directory, image)
    with pytest.raises(UserError, match="give a smaller --size"):
        show(run.directory, image, size=400)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png"):
        show(run.directory, broken)


class Small(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))


def test_networks_without_patches_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "r50").mkdir()
    (tmp_path / "r50" / "config.json").write_text('{"model_type": "textnet"}', encoding="utf-8")
    model = ImageModel(adapt(Small(), 16), Features("mean"), Preprocessing.plain(16))
    monkeypatch.setattr("selfsup.inspection.show.load_image_model", lambda run: model)
    with pytest.raises(UserError, match="r50 holds an image encoder of type 'textnet', whose patches cannot be shown"):
        show(tmp_path / "r50", [drawing(0, 20)])


def test_command(run: Run, drawings: Path, tmp_path: Path, selfsup_command: object) -> None:
    picture = tmp_path / "cat.png"
    words = ["show", run.directory, "--image", drawings / "000.png", "--out", picture]
    answer = selfsup_command(*words)  # type: ignore[operator]
    assert answer.code == 0
    assert f"The pictures are in {picture}." in answer.out
    assert Image.open(io.BytesIO(picture.read_bytes())).format == "PNG"
    answer = selfsup_command(*words)  # type: ignore[operator]
    assert answer.code == 2
    assert "exists already" in answer.error
    assert selfsup.show(run.directory, drawings / "000.png").to_png() == picture.read_bytes()


def test_of_two_towers_that_of_images_is_shown(tmp_path: Path) -> None:
    towers, photo = save_tiny_clip(tmp_path / "towers"), tmp_path / "photo.png"
    Image.fromarray(drawing(3, 24)).save(photo)
    found, alone = show(towers, photo), show(towers / "image", photo)
    np.testing.assert_array_equal(features(found), features(alone))
