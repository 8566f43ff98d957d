"""Exports of vision models: what they hold, and the same numbers by the library they are for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import vision_peers
from closeness import SHARE
from conftest import assert_alike
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from seeing_peers import save_peer
from torch import Tensor, nn

import selfsup
from selfsup.errors import UserError
from selfsup.exporting.timm import timm_arguments
from selfsup.models.backbones import adapt, open_timm, save_backbone
from selfsup.models.features import Features
from selfsup.models.packing import Pooling
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.models.vision_layouts import read_vision

CONFIG = VisionConfig(size=32, patch=8, layers=2, width=48, heads=3, mlp=80, rope_theta=60.0)
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def lively(config: VisionConfig = CONFIG) -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(config).initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def whitened(width: int = 48) -> Features:
    generator = torch.Generator().manual_seed(1)
    return Features("mean", torch.randn(width, width, generator=generator) / 7, torch.randn(width, generator=generator))


def save(directory: Path, backbone: Any, features: Features) -> Path:
    save_backbone(directory, backbone, features, str)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model") / "model", lively(), Features("cls"))


# -- to timm -------------------------------------------------------------------------------------------------


def header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_tensor(name).shape) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_its_layout_is_that_of_timm(model: Path, tmp_path: Path) -> None:
    """As timm 1.0 names them, written down."""
    exported = selfsup.export(model, out=tmp_path / "deep" / "vit.safetensors", to="timm")
    assert exported.directory == tmp_path / "deep" / "vit.safetensors"
    shapes, metadata = header(exported.directory)
    block = {
        "norm1.weight": (48,),
        "norm1.bias": (48,),
        "attn.qkv.weight": (144, 48),
        "attn.q_bias": (48,),
        "attn.v_bias": (48,),
        "attn.proj.weight": (48, 48),
        "attn.proj.bias": (48,),
        "gamma_1": (48,),
        "norm2.weight": (48,),
        "norm2.bias": (48,),
        "mlp.fc1.weight": (80, 48),
        "mlp.fc1.bias": (80,),
        "mlp.fc2.weight": (48, 80),
        "mlp.fc2.bias": (48,),
        "gamma_2": (48,),
    }
    blocks = {f"blocks.{layer}.{name}": shape for layer in range(2) for name, shape in block.items()}
    assert shapes == blocks | {
        "cls_token": (1, 1, 48),
        "reg_token": (1, 4, 48),
        "patch_embed.proj.weight": (48, 3, 8, 8),
        "patch_embed.proj.bias": (48,),
        "norm.weight": (48,),
        "norm.bias": (48,),
    }
    assert metadata["architecture"] == "vit_small_patch16_dinov3_qkvb"
    preparation = json.loads(metadata["pretrained_cfg"])
    assert preparation["input_size"] == [3, 32, 32]
    assert preparation["mean"] == [0.485, 0.456, 0.406]
    assert (preparation["crop_pct"], preparation["interpolation"]) == (1.0, "bilinear")
    with safe_open(exported.directory, "pt") as file:
        layer = lively().layer[1].attention
        q, k, v = file.get_tensor("blocks.1.attn.qkv.weight").chunk(3)
    for found, part in ((q, layer.q_proj), (k, layer.k_proj), (v, layer.v_proj)):
        assert torch.equal(found, part.weight)


def projected() -> Features:
    """Into another dimension, without a bias."""
    return Features("mean", torch.randn(20, 48, generator=torch.Generator().manual_seed(2)) / 7)


@pytest.mark.parametrize(
    "features",
    [Features("cls"), Features("mean"), whitened(), projected()],
    ids=["cls", "mean", "whitened", "projected"],
)
@pytest.mark.parametrize("registers", [4, 0])
def test_timm_gives_the_same_vectors(features: Features, registers: int, tmp_path: Path) -> None:
    timm = vision_peers.timm()
    config = VisionConfig(32, 8, 2, 48, 3, 80, registers=registers, rope_theta=60.0)
    ours = lively(config)
    exported = selfsup.export(save(tmp_path / "model", ours, features), out=tmp_path / "vit.safetensors", to="timm")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    assert exported.opens_with.startswith("timm.create_model('vit_small_patch16_dinov3_qkvb', checkpoint_path=")
    theirs = eval(exported.opens_with, {"timm": timm}).eval()
    with torch.no_grad():
        expected = features.map(ours.embed(PIXELS, features.pooling))
        torch.testing.assert_close(theirs(PIXELS), expected, atol=1e-4, rtol=1e-4)
        wide = torch.randn(1, 3, 16, 40)
        torch.testing.assert_close(theirs.forward_features(wide), ours(wide), atol=1e-4, rtol=1e-4)


def test_a_network_of_timms_own_goes_back_with_its_whitening(tmp_path: Path) -> None:
    timm = vision_peers.timm()
    torch.manual_seed(0)
    backbone, features = open_timm("timm:resnet10t", 32), whitened(512)
    directory = save(tmp_path / "model", backbone, features)
    exported = selfsup.export(directory, out=tmp_path / "resnet.safetensors", to="timm")
    theirs = eval(exported.opens_with, {"timm": timm}).eval()
    with torch.no_grad():
        expected = features.map(backbone.eval()(PIXELS))
        torch.testing.assert_close(theirs(PIXELS), expected, atol=1e-4, rtol=1e-4)


def test_without_timm_it_is_unchecked(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert selfsup.export(model, out=tmp_path / "vit.safetensors", to="timm").max_difference is None


@given(st.integers(1, 500), st.integers(1, 5000))
def test_the_feed_forward_has_the_width_that_timm_computes(quarter: int, mlp: int) -> None:
    config = VisionConfig(32, 8, 1, 4 * quarter, 1, mlp)
    assert int(config.width * timm_arguments(config, Features())["mlp_ratio"]) == mlp


def test_what_timm_has_no_place_for_is_refused(tmp_path: Path) -> None:
    other = lively(VisionConfig(32, 8, 1, 48, 3, 80, norm_eps=1e-3))
    with pytest.raises(UserError, match=r"norms with eps 1e-05, and this one 0.001"):
        selfsup.export(save(tmp_path / "model", other, Features()), out=tmp_path / "x.safetensors", to="timm")
    assert not (tmp_path / "x.safetensors").exists()


def test_nothing_is_overwritten(model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "vit.safetensors"
    taken.write_text("mine")
    for target in ("timm", "onnx"):
        with pytest.raises(UserError, match="exists already"):
            selfsup.export(model, out=taken, to=target)
    assert taken.read_text() == "mine"


# -- to ONNX -------------------------------------------------------------------------------------------------


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, 4)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(pixels)))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a vision transformer with whitened features."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    directory = tmp_path_factory.mktemp("onnx")
    save(directory / "model", lively(), whitened())
    exported = selfsup.export(directory / "model", out=directory / "vit.onnx", to="onnx")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    assert {path.name for path in directory.iterdir()} == {"model", "vit.onnx"}
    return onnxruntime.InferenceSession(directory / "vit.onnx")


@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 32, 32), (2, 8, 8), (1, 16, 72), (3, 64, 24)])
def test_onnxruntime_gives_the_same_numbers_for_any_batch_and_size(session: Any, shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    pixels, ours = torch.randn(batch, 3, height, width), lively()
    found, states = session.run(["features", "hidden_states"], {"pixels": pixels.numpy()})
    with torch.no_grad():
        assert_alike(states, ours(pixels).numpy())
        assert_alike(found, whitened().map(ours.embed(pixels, "mean")).numpy())


def test_preprocessing_travels_with_it(session: Any) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    preparation = json.loads(metadata["preprocessing"])
    assert preparation["crop_size"] == {"height": 32, "width": 32}
    assert preparation["image_std"] == [0.229, 0.224, 0.225]
    assert json.loads(metadata["features"]) == {"pooling": "mean", "mapped": True}


def test_other_networks_go_to_onnx_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    vision_peers.timm()
    backbone = open_timm("timm:test_convnext", 64)
    directory = save(tmp_path / "model", backbone, Features())
    selfsup.export(directory, out=tmp_path / "net.onnx", to="onnx")
    opened = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for shape in ((1, 3, 64, 64), (3, 3, 96, 64)):
        pixels = torch.randn(shape)
        with torch.no_grad():
            expected = backbone.eval()(pixels).numpy()
        assert_alike(opened.run(None, {"pixels": pixels.numpy()})[0], expected)


def test_without_onnx_it_says_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnx and onnxscript \(.*\); pip install"):
        selfsup.export(model, out=tmp_path / "vit.onnx", to="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["timm", "onnx"])
def test_a_module_from_python_is_named(target: str, tmp_path: Path) -> None:
    directory = save(tmp_path / "model", adapt(Maps(), 32), Features())
    with pytest.raises(UserError, match=r"holds the weights of test_vision_exports.Maps, a network from Python"):
        selfsup.export(directory, out=tmp_path / "x", to=target)


# -- vision transformers of other layouts --------------------------------------------------------------------


def test_onnx_interpolates_positions_as_the_model_does(tmp_path: Path) -> None:
    """Smoothed where they are made fewer."""
    onnxruntime = pytest.importorskip("onnxruntime")
    directory = save_peer("dinov2-registers", tmp_path / "model")
    exported = selfsup.export(directory, out=tmp_path / "model.onnx", to="onnx")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    opened = read_vision(directory)
    model, session = opened.model().eval(), onnxruntime.InferenceSession(exported.directory)
    for shape in ((2, 3, 16, 24), (1, 3, 32, 32), (1, 3, 72, 40)):
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        features, states = session.run(None, {"pixels": pixels.numpy()})
        with torch.no_grad():
            assert_alike(states, model(pixels))
            assert_alike(features, model.embed(pixels, opened.features.pooling))
    said = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert (said["image_mean"], said["resample"]) == (list(opened.preprocessing.mean), 3)


@pytest.mark.parametrize(("name", "pooling"), [("dinov2", "mean"), ("deit", "cls"), ("siglip-headless", "mean")])
def test_sentence_transformers_makes_the_same_vectors(name: str, pooling: Pooling, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    directory = save_peer(name, tmp_path / "model")
    Features(pooling).write(directory)
    exported = selfsup.export(directory, out=tmp_path / "exported", to="sentence-transformers")
    assert exported.max_share is not None
    assert exported.max_share < SHARE


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("clip", "sentence-transformers", r"clip_vision_model do not give its vectors \(cls\); export it --to transf"),
        ("siglip", "sentence-transformers", r"siglip_vision_model do not give its vectors \(attention\)"),
        ("vit-mae", "sentence-transformers", "those of vit_mae do not give"),
        ("vit", "timm", "plain DINOv3 ViTs, and this is a vit of other parts"),
        ("dinov3-bare", "timm", "plain DINOv3 ViTs, and this is a dinov3_vit of other parts"),
    ],
)
def test_what_other_layouts_have_no_place_in_is_refused(name: str, to: str, message: str, tmp_path: Path) -> None:
    directory = save_peer(name, tmp_path / "model")
    with pytest.raises(UserError, match=message):
        selfsup.export(directory, out=tmp_path / "exported", to=to)
    assert not (tmp_path / "exported").exists()
