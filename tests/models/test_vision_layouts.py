"""Vision directories: stock transformers opens ours with the same numbers, we open theirs, others are refused."""

from __future__ import annotations

import builtins
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from seeing_peers import PEERS, save_peer, states_of
from torch import Tensor

from selfsup.errors import UserError
from selfsup.models.features import Features
from selfsup.models.parity import exactness
from selfsup.models.parity import network_difference as parity
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import read_vision, save_vision

CONFIG = VisionConfig(
    size=32, patch=8, layers=2, width=32, heads=2, mlp=48, registers=3, rope_theta=50.0, norm_eps=1e-4
)
PIXELS = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(5))


def lively() -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(CONFIG).initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def card(exact: str) -> str:
    return f"# A card\n{exact}\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dinov3") / "model"
    save_vision(directory, lively(), Features("mean"), card)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# -- ours, opened there --------------------------------------------------------------------------------------


def test_transformers_opens_it_with_the_same_numbers(saved: Path) -> None:
    theirs, report = transformers.AutoModel.from_pretrained(saved, output_loading_info=True)
    assert type(theirs).__name__ == "DINOv3ViTModel"
    assert not any(report.values())
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(theirs(PIXELS).last_hidden_state, lively()(PIXELS), atol=2e-5, rtol=1e-4)


def test_the_card_says_how_exact_it_is(tmp_path: Path) -> None:
    difference = save_vision(tmp_path / "model", lively(), Features("cls"), card)
    assert difference is not None
    assert 0 < difference < 1e-4
    again = parity(tmp_path / "model", lively())
    assert again is not None
    assert difference == pytest.approx(again.most, abs=1e-6)
    assert (tmp_path / "model" / "README.md").read_text() == card(
        f"max |Δ| = {difference:.2e} against stock transformers, in fp32"
    )


def test_a_difference_is_found(saved: Path) -> None:
    other = lively()
    with torch.no_grad():
        other.norm.bias[3] += 0.25
    difference = parity(saved, other)
    assert difference is not None
    assert difference.most == pytest.approx(0.25, abs=1e-3)


def test_without_transformers_it_is_unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert save_vision(tmp_path / "model", lively(), Features("cls"), card) is None
    assert (tmp_path / "model" / "README.md").read_text() == card(exactness(None))
    assert "unchecked" in exactness(None)


def test_it_is_trained_on_in_transformers_as_it_was_here(saved: Path) -> None:
    """Nothing is drawn while training."""
    theirs = transformers.AutoModel.from_pretrained(saved).train()
    with torch.no_grad():
        torch.testing.assert_close(theirs(PIXELS).last_hidden_state, lively()(PIXELS), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (48, 100), (97, 40), (16, 21), (640, 33)])
def test_its_image_processor_resizes_crops_and_normalises(saved: Path, shape: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = transformers.AutoImageProcessor.from_pretrained(saved)(Image.fromarray(array), return_tensors="pt")
    height, width = (int(32 * side / min(shape)) for side in shape)
    resized = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 32) // 2, (width - 32) // 2
    cropped = resized[top : top + 32, left : left + 32].astype(np.float64) / 255
    expected = (cropped - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(found["pixel_values"][0].numpy().transpose(1, 2, 0), expected, atol=1e-5)


# -- opened here ---------------------------------------------------------------------------------------------


def test_it_opens_here_with_the_same_bits(saved: Path) -> None:
    opened = read_vision(saved)
    assert opened.config == CONFIG
    assert opened.features == Features("mean")
    with torch.no_grad():
        assert torch.equal(opened.model()(PIXELS), lively()(PIXELS))


@pytest.mark.parametrize("named", ["plain", "with the prefix of the module"])
def test_others_models_open_here(tmp_path: Path, named: str) -> None:
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8, image_size=64
    )
    torch.manual_seed(0)
    theirs = transformers.DINOv3ViTModel(config).eval()
    theirs.save_pretrained(tmp_path)
    if named != "plain":
        save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    opened = read_vision(tmp_path)
    assert opened.features == Features("cls")
    with torch.no_grad():
        torch.testing.assert_close(opened.model()(PIXELS), theirs(PIXELS).last_hidden_state, atol=1e-5, rtol=1e-4)


# -- refused -------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(saved: Path) -> None:
    with pytest.raises(UserError, match="exists already; move it away"):
        save_vision(saved, lively(), Features("cls"), card)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "swin"}, "holds a model of type 'swin'; of vision models only dinov3_vit, dinov2"),
        ({"hidden_act": "mish"}, "the activation 'mish' is none of gelu"),
        ({"num_channels": 1}, "num_channels = 1; only DINOv3 ViTs with 3"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_size": None}, "lacks 'hidden_size'; get a whole copy"),
        ({"image_size": 33}, "cannot be cut into patches of 8 × 8\\); get a whole copy"),
        ({"patch_size": [8, 8]}, "is broken"),
    ],
)
def test_other_arithmetic_is_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "config.json", **change)
    with pytest.raises(UserError, match=message):
        read_vision(copy)


def test_weights_that_do_not_fit_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["layer.1.mlp.up_proj.bias"]
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"layer.1.mlp.up_proj.bias should be 48 and is absent"):
        read_vision(copy).model()


# -- layouts of others ---------------------------------------------------------------------------------------

LAYOUTS_OF_OTHERS = pytest.mark.parametrize("name", list(PEERS))
SHAPES = [(32, 32), (48, 24), (16, 16)]  # the size of the model, a wide one, a small one


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`peer("vit")`: the directory of a tiny model, as transformers saves it."""

    @functools.cache
    def saved(name: str) -> Path:
        return save_peer(name, tmp_path_factory.mktemp("peers") / name)

    return saved


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def parities(directory: Path) -> list[float]:
    """How far hidden states here are from those of the class that a directory names, and the vectors of images."""
    model = read_vision(directory).model().eval()
    apart = []
    for shape in SHAPES:
        pixels = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(5))
        states, pooled = states_of(directory, pixels)
        with torch.no_grad():
            ours = model(pixels)
            apart.append(relative(ours, states))
            if pooled is not None and (model.config.pooled_norm or model.config.attention_pooling):
                apart.append(relative(model.pool(ours, model.config.summary), pooled))
    return apart


@LAYOUTS_OF_OTHERS
def test_others_layouts_open_and_are_saved_back(name: str, peer: Callable[[str], Path], tmp_path: Path) -> None:
    directory = peer(name)
    assert max(parities(directory)) < 1e-5
    opened = read_vision(directory)
    model = opened.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    difference = save_vision(tmp_path / "model", model, opened.features, card, opened.preprocessing, directory)
    assert difference is not None
    assert difference < 1e-4
    assert max(parities(tmp_path / "model")) < 1e-5
    said = [(place / "preprocessor_config.json").read_bytes() for place in (directory, tmp_path / "model")]
    assert said[0] == said[1]
    before, after = (json.loads((place / "config.json").read_text()) for place in (directory, tmp_path / "model"))
    assert before.items() <= after.items()
    assert after.keys() - before.keys() <= {"torch_dtype"}
    there, here = (load_file(place / "model.safetensors") for place in (directory, tmp_path / "model"))
    assert {key: value.shape for key, value in here.items()} == {key: value.shape for key, value in there.items()}
    changed = {key for key in here if not torch.equal(here[key], there[key])}
    beside = ("classifier.", "pooler.", "decoder.", "cls_classifier.", "distillation_classifier.", "visual_projection.")
    assert {key for key in there.keys() - changed if there[key].numel()} == {
        key for key in there if key.startswith(beside)
    }


def test_what_is_left_names_no_code(peer: Callable[[str], Path], tmp_path: Path) -> None:
    origin = Path(shutil.copytree(peer("vit"), tmp_path / "origin"))
    edit(origin / "config.json", auto_map={"AutoModel": "mine.Model"})
    edit(origin / "preprocessor_config.json", auto_map={"AutoImageProcessor": "mine.Processor"})
    opened = read_vision(origin)
    save_vision(tmp_path / "model", opened.model(), opened.features, card, opened.preprocessing, origin)
    for name in ("config.json", "preprocessor_config.json"):
        assert "mine" not in (tmp_path / "model" / name).read_text()


def test_a_tensor_that_the_network_has_not_is_refused(peer: Callable[[str], Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(peer("clip-projection"), tmp_path / "model"))
    weights = load_file(place / "model.safetensors")
    save_file(weights | {"vision_model.encoder.layers.0.adapter.weight": torch.ones(2)}, place / "model.safetensors")
    with pytest.raises(UserError, match=r"adapter\.weight should be absent and is 2"):
        read_vision(place).model()
