"""Image and image-text models as sentence-transformers directories: the same vectors, each input to its own tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from closeness import SHARE, assert_same_vectors
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor

import selfsup
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.exporting import sentence_transformers as target
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.vision import ImageModel
from selfsup.models.backbones import adapt, save_backbone
from selfsup.models.clip import Similarity, save_clip
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.features import Features
from selfsup.models.packing import Pooling
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.views import Preprocessing

SIZE, WIDTH, DIMENSION = 24, 32, 12
TEXTS = ["a red car in the snow", "a cat", "", "a car and " * 30]
TOKENIZER = train_tokenizer("bpe", ["a red car and a cat in the snow " * 3], 280, family="encoder")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def projection(pooling: Pooling) -> Features:
    return Features(pooling, drawn(DIMENSION, WIDTH) / 6, drawn(DIMENSION))


def lively(model: Any) -> Any:
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(drawn(*parameter.shape), alpha=0.2)
    return model.eval()


def seeing(registers: int = 4) -> VisionTransformer:
    config = VisionConfig(SIZE, patch=8, layers=2, width=WIDTH, heads=2, mlp=48, registers=registers)
    return lively(VisionTransformer(config))


def reading() -> TextEncoder:
    config = EncoderConfig(TOKENIZER.vocabulary, 2, WIDTH, 2, 48, 20, tied=True, bias=False, local_window=6)
    return lively(TextEncoder(config))


def image_model(directory: Path, features: Features, registers: int = 4) -> Path:
    save_backbone(directory, seeing(registers), features, lambda _: "# A network that sees\n")
    return directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two towers, pooled differently, one mapped without a bias."""
    directory = tmp_path_factory.mktemp("pair") / "model"
    cls = Features("cls", drawn(DIMENSION, WIDTH) / 6)
    save_clip(
        directory,
        seeing(),
        projection("mean"),
        reading(),
        TOKENIZER,
        cls,
        Similarity("softmax", 9.0, 0.0),
        lambda _: "---\ntags: [selfsup]\n---\n# Two towers\n",
    )
    return directory


@pytest.fixture(scope="module")
def exported(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return selfsup.export(pair, out=tmp_path_factory.mktemp("exported") / "st").directory


def stock(directory: Path) -> SentenceTransformer:
    return SentenceTransformer(str(directory), device="cpu", local_files_only=True)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pictures() -> list[Image.Image]:
    """With a short side as the model sees it."""
    return [picture(SIZE, SIZE), picture(41, SIZE), picture(SIZE, 31), picture(SIZE, SIZE, "L")]


def plain_vectors(directory: Path, features: Features, registers: int) -> np.ndarray:
    """By transformers alone."""
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        states = model(**processor(pictures(), return_tensors="pt")).last_hidden_state
    pooled = states[:, 0] if features.pooling == "cls" else states[:, 1 + registers :].mean(1)
    found = pooled if features.weight is None else pooled @ features.weight.T + features.bias
    return np.asarray(found)


# -- image models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [4, 0])
@pytest.mark.parametrize(
    "features", [Features("mean"), Features("cls"), projection("mean"), projection("cls")], ids=lambda f: f.pooling
)
def test_an_image_model_gives_the_same_vectors(features: Features, registers: int, tmp_path: Path) -> None:
    source = image_model(tmp_path / "model", features, registers)
    exported = selfsup.export(source, out=tmp_path / "st")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    theirs = stock(exported.directory).encode(pictures(), show_progress_bar=False)
    assert_same_vectors(theirs, plain_vectors(source, features, registers))
    assert_same_vectors(theirs, ImageModel.load(source).embed(pictures(), "fp32"))
    np.testing.assert_array_equal(
        ImageModel.load(exported.directory).embed(pictures(), "fp32"), ImageModel.load(source).embed(pictures(), "fp32")
    )


def test_it_survives_being_saved_by_the_other_library(tmp_path: Path) -> None:
    for pooling in ("mean", "cls"):
        source = image_model(tmp_path / pooling / "model", projection(pooling))
        first = stock(selfsup.export(source, out=tmp_path / pooling / "st").directory)
        first.save(str(tmp_path / pooling / "again"))
        np.testing.assert_array_equal(stock(tmp_path / pooling / "again").encode(pictures()), first.encode(pictures()))


def test_an_image_run_is_exported(train_vision: Callable[..., selfsup.Run], tmp_path: Path) -> None:
    run = train_vision(tmp_path / "run", "mae")
    exported = selfsup.export(run, out=tmp_path / "st")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    card = (tmp_path / "st" / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card
    assert f"max |Δ| = {exported.max_difference:.2e} in fp32" in card


def test_resized_images_are_near(tmp_path: Path) -> None:
    """Their vectors are those of pixels rounded to 8 bits, and the card says how far these are."""
    source = image_model(tmp_path / "model", Features("mean"))
    directory = selfsup.export(source, out=tmp_path / "st").directory
    share = float((directory / "README.md").read_text().partition("differ by up to ")[2].partition("%")[0]) / 100
    large = [picture(9, 7).resize((160, 120), Image.Resampling.BICUBIC)]
    ours = ImageModel.load(source).embed(large, "fp32")
    moved = np.linalg.norm(stock(directory).encode(large) - ours) / np.linalg.norm(ours)
    assert 1e-6 < moved <= share < 0.3


def test_a_network_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapt(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), 16)
    model = ImageModel(network, Features("mean"), Preprocessing.plain(16))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(target, "load_encoder", lambda _: model)
    with pytest.raises(UserError, match="opens networks of transformers that make tokens, and Sequential is none"):
        selfsup.export(tmp_path, out=tmp_path / "st")
    assert not (tmp_path / "st").exists()


# -- image-text models ---------------------------------------------------------------------------------------


def test_each_input_goes_to_its_tower(pair: Path, exported: Path) -> None:
    model = stock(exported)
    images = model.encode(pictures(), show_progress_bar=False)
    texts = model.encode(TEXTS, show_progress_bar=False)
    assert images.shape == (len(pictures()), DIMENSION)
    assert_same_vectors(images, plain_vectors(pair / "image", projection("mean"), 4))
    assert_same_vectors(images, ImageModel.load(pair / "image").embed(pictures(), "fp32"))
    assert_same_vectors(texts, EncoderModel.load(pair / "text").embed(TEXTS, "fp32"))
    np.testing.assert_array_equal(model.encode_query(TEXTS), texts)
    assert model.similarity_fn_name == "cosine"
    assert model.get_embedding_dimension() == DIMENSION
    assert model.max_seq_length == 20


def test_images_and_texts_together_are_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="Encode each modality separately"):
        stock(exported).encode([pictures()[0], "a cat"])


def test_nothing_but_modules_of_the_two_libraries(exported: Path) -> None:
    written = [path for path in exported.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".json", ".safetensors", ".md"}
    assert not any("auto_map" in path.read_text() for path in written if path.suffix == ".json")
    for tower in ("image", "text"):
        _, report = transformers.AutoModel.from_pretrained(exported / tower, output_loading_info=True)
        assert not any(report.values())


def test_each_tower_opens_by_itself(exported: Path) -> None:
    model = stock(exported)
    np.testing.assert_array_equal(stock(exported / "image").encode(pictures()), model.encode(pictures()))
    np.testing.assert_array_equal(stock(exported / "text").encode(TEXTS), model.encode(TEXTS))


def test_it_opens_here_too(pair: Path, exported: Path) -> None:
    expected, found = (selfsup.load(where) for where in (pair, exported))
    assert isinstance(found, PairModel)
    assert isinstance(expected, PairModel)
    assert found.similarity == expected.similarity
    assert found.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(found.image.embed(pictures(), "fp32"), expected.image.embed(pictures(), "fp32"))
    np.testing.assert_array_equal(found.text.embed(TEXTS, "fp32"), expected.text.embed(TEXTS, "fp32"))


def test_the_card_says_how_exact_it_is(pair: Path, tmp_path: Path) -> None:
    exported = selfsup.export(pair, out=tmp_path / "st")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    card = (tmp_path / "st" / "README.md").read_text()
    assert f"max |Δ| = {exported.max_difference:.2e} in fp32" in card
    assert "# Two towers" in card
    assert "the last hidden state of its first token, mapped linearly" in card
    assert "the mean of the last hidden states of its patches, mapped linearly" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    pictures()[0].save(tmp_path / "cat.jpg")
    code = code.replace("path/to/this/directory", str(tmp_path / "st")).replace("cat.jpg", str(tmp_path / "cat.jpg"))
    exec(code)


def test_a_tower_that_differs_is_noticed(pair: Path, exported: Path) -> None:
    for changed in ("image", "text"):
        towers = [ImageModel.load(pair / "image"), EncoderModel.load(pair / "text")]
        network = towers[0].backbone if changed == "image" else towers[1].encoder
        norm = network.norm if changed == "image" else network.final_norm
        norm.weight.data.mul_(1.01)
        found = target.compare(exported, towers)
        assert found is not None
        assert found.difference.most > 1e-3


def test_to_transformers_goes_one_tower(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two towers, .* export .*image or .*text\.$"):
        selfsup.export(pair, out=tmp_path / "hf", to="transformers")
    assert selfsup.export(pair / "image", out=tmp_path / "hf", to="transformers").directory.is_dir()
