"""The directory of two towers: each opens by itself, what it says comes back, damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_clip import DIMENSION, SIGMOID, SOFTMAX, projection, save_tiny_clip, tiny_text
from tiny_vision import WIDTH, picture, tiny_vision

import selfsup
from selfsup.errors import UserError
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.vision import ImageModel
from selfsup.models import clip
from selfsup.models.clip import SharedSpace, Similarity, read_clip, save_clip
from selfsup.models.features import Features


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "model", SIGMOID)


def test_what_was_saved_comes_back(directory: Path) -> None:
    saved = read_clip(directory)
    assert saved == SharedSpace("sigmoid", 10.0, -2.0, DIMENSION)
    assert (saved.loss, saved.scale, saved.bias) == (SIGMOID.loss, SIGMOID.scale, SIGMOID.bias)
    assert json.loads((directory / "config.json").read_text()) == {
        "model_type": "selfsup-clip", "loss": "sigmoid", "scale": 10.0, "bias": -2.0, "dimension": DIMENSION,
    }  # fmt: skip


def test_each_tower_opens_by_itself(directory: Path) -> None:
    image, text = selfsup.load(directory / "image"), selfsup.load(directory / "text")
    assert isinstance(image, ImageModel)
    assert isinstance(text, EncoderModel)
    assert image.dimension == text.dimension == DIMENSION
    plain = ImageModel(tiny_vision(), Features("mean"), image.preprocessing).embed([picture("red", 0)])
    weight = projection(WIDTH, 1).weight
    assert weight is not None
    np.testing.assert_allclose(image.embed([picture("red", 0)]), plain @ weight.numpy().T, atol=1e-5)


def test_transformers_opens_each_tower(directory: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = transformers.AutoModel.from_pretrained(directory / "text")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "text")
    features = projection(text.config.hidden_size, 2, bias=True)
    with torch.no_grad():
        states = text(**tokenizer("a photo of a cat", return_tensors="pt")).last_hidden_state
    ours = selfsup.load(directory / "text").embed(["a photo of a cat"], precision="fp32")
    np.testing.assert_allclose(ours, features.map(states.mean(1)).numpy(), atol=1e-4)
    assert transformers.AutoModel.from_pretrained(directory / "image").config.hidden_size == WIDTH


def test_the_card_says_how_exact_the_towers_are(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    text, tokenizer = tiny_text()
    told: list[dict[str, float | None]] = []

    def card(found: dict[str, float | None]) -> str:
        told.append(found)
        return "A card."

    features = projection(WIDTH, 1), projection(text.config.width, 2)
    found = save_clip(tmp_path / "model", tiny_vision(), features[0], text, tokenizer, features[1], SOFTMAX, card)
    assert told == [found]
    assert found.keys() == {"image", "text"}
    assert all(difference is not None and difference < 1e-4 for difference in found.values())
    assert (tmp_path / "model" / "README.md").read_text() == "A card."


def test_it_is_written_wholly_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(clip, "save_encoder", full)
        with pytest.raises(OSError, match="No space"):
            save_tiny_clip(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    save_tiny_clip(tmp_path / "model")
    with pytest.raises(UserError, match="exists already"):
        save_tiny_clip(tmp_path / "model", seed=1)


def test_towers_of_different_spaces_are_refused(tmp_path: Path) -> None:
    text, tokenizer = tiny_text()
    with pytest.raises(ValueError, match="one space"):
        save_clip(tmp_path / "model", tiny_vision(), Features(), text, tokenizer, projection(32, 0), SOFTMAX, str)
    assert not (tmp_path / "model").exists()


def changed(**values: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: shutil.rmtree(directory / "text"), "lacks its text tower"),
        (lambda directory: (directory / "image" / "config.json").unlink(), "lacks its image tower"),
        (lambda directory: (directory / "image" / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda directory: (directory / "text" / "features.safetensors").unlink(), r"features\.safetensors is miss"),
        (lambda directory: projection(9, 0).write(directory / "image"), "maps 9 numbers and the network gives 16"),
        (changed(loss="hinge"), r"config\.json is broken \(the loss is 'hinge'"),
        (changed(scale=float("inf")), r"config\.json is broken \(scale is inf\)"),
        (changed(bias=float("nan")), r"config\.json is broken \(bias is nan\)"),
        (changed(dimension=0), r"config\.json is broken \(dimension is 0\)"),
        (changed(scale=None), r"config\.json lacks 'scale'"),
        (changed(bias=[]), r"config\.json is broken"),
        (changed(dimension=7), "shares a space of 7 dimensions, and an image encoder in it gives 12"),
        (lambda directory: (directory / "config.json").write_text("{"), r"config\.json cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_directory_is_refused_in_one_sentence(
    damage: Callable[[Path], None], message: str, directory: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "model"))
    damage(copy)
    with pytest.raises(UserError, match=message) as error:
        selfsup.load(copy)
    assert "\n" not in str(error.value)


def test_another_model_is_no_such_directory(directory: Path) -> None:
    with pytest.raises(UserError, match="holds a model of type 'dinov3_vit'"):
        read_clip(directory / "image")
    assert isinstance(selfsup.load(directory), PairModel)


def test_probabilities() -> None:
    cosines = torch.tensor([[0.5, -0.25, 0.0]])
    logits = 10 * cosines.double().numpy()
    soft = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(Similarity("softmax", 10.0, 3.0).probabilities(cosines), soft, rtol=1e-5)
    each = 1 / (1 + np.exp(-(logits - 2)))
    np.testing.assert_allclose(Similarity("sigmoid", 10.0, -2.0).probabilities(cosines), each, rtol=1e-5)
