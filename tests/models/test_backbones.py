"""Networks of others as backbones: what they are asked for, what they leave, how that opens again."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import vision_peers
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.models.backbones import AdaptedBackbone, adapt, import_timm, open_backbone, open_timm, save_backbone
from selfsup.models.features import Features
from selfsup.models.vision import VisionConfig, VisionTransformer

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Maps(nn.Module):
    """Pixels to 5 maps of a quarter of the side, with statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, 4)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(pixels)))

    def both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self(pixels)
        return maps, self.head(maps.mean((2, 3)))


class Wrong(nn.Module):
    def __init__(self, found: object) -> None:
        super().__init__()
        self.found = found

    def forward(self, pixels: Tensor) -> object:
        return self.found


def card(exact: str) -> str:
    return f"# A card\n{exact}\n"


def maps() -> Maps:
    torch.manual_seed(0)
    return Maps()


# -- modules from Python -------------------------------------------------------------------------------------


def test_maps_are_averaged_over_their_places() -> None:
    network = maps()
    backbone = adapt(network, 32)
    assert isinstance(backbone, AdaptedBackbone)
    assert backbone.dimension == 5
    backbone.eval()
    torch.testing.assert_close(backbone(PIXELS), network(PIXELS).flatten(2).mean(-1))
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone.embed(PIXELS, "mean").dtype == torch.float32


def test_a_function_says_what_the_features_are() -> None:
    backbone = adapt(maps(), 32, lambda module, pixels: module.both(pixels)[1])
    assert backbone.dimension == 2
    torch.testing.assert_close(copy.deepcopy(backbone).eval()(PIXELS), maps().eval().both(PIXELS)[1])


def test_looking_at_a_network_leaves_it_as_it_was() -> None:
    network = maps()
    network.norm.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapt(network, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    assert not network.norm.training


def test_convolutions_lie_in_memory_as_matrices_do() -> None:
    network = maps().to(memory_format=torch.channels_last)
    adapt(network, 32)
    assert network.conv.weight.flatten(1).data_ptr() == network.conv.weight.data_ptr()


def test_what_is_a_backbone_stays_as_it_is() -> None:
    transformer = VisionTransformer(VisionConfig(32, 8, 1, 16, 2, 32))
    assert adapt(transformer, 32) is transformer
    backbone = adapt(maps(), 32)
    assert adapt(backbone, 64) is backbone


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.zeros(2, 4, 4), "makes 2×4×4 of 2 images"),
        (torch.zeros(5, 4), "makes 5×4 of 2 images"),
        (torch.zeros(2, 4, dtype=torch.int64), "makes 2×4 of 2 images"),
        ((torch.zeros(2, 4),), r"makes tuple of 2 images.*wrap it in adapt\(module, size, extract\)"),
    ],
)
def test_what_is_no_features_is_refused(found: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapt(Wrong(found), 32)


def test_a_network_that_fails_on_the_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"^Maps fails on images of 2 × 2 pixels \(.*\); give a size"):
        adapt(maps(), 2)


def test_a_module_leaves_weights_that_open_with_a_module_of_its_class(tmp_path: Path) -> None:
    backbone = adapt(maps(), 32)
    backbone(PIXELS)  # moves the statistics
    definition = Features("mean", torch.eye(5) * 2, torch.ones(5))
    assert save_backbone(tmp_path / "model", backbone, definition, card) is None
    opened = open_backbone(tmp_path / "model", Maps())
    assert opened.size == 32
    assert opened.features == definition
    torch.testing.assert_close(opened.backbone.eval()(PIXELS), backbone.eval()(PIXELS))
    preparation = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert preparation["crop_size"] == {"height": 32, "width": 32}
    with pytest.raises(UserError, match=r"holds the weights of test_backbones.Maps, a network from Python; build one"):
        open_backbone(tmp_path / "model")
    with pytest.raises(UserError, match=r"of test_backbones.Maps, not of torch.nn.modules.flatten.Flatten"):
        open_backbone(tmp_path / "model", nn.Flatten())
    with pytest.raises(UserError, match="exists already"):
        save_backbone(tmp_path / "model", backbone, definition, card)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_backbone(tmp_path / "model", adapt(maps(), 32), Features(), card)
    other = maps()
    other.conv = nn.Conv2d(3, 6, 4, 4)
    other.norm = nn.BatchNorm2d(6)
    with pytest.raises(UserError, match=r"does not fit its network \(.*conv.weight"):
        open_backbone(tmp_path / "model", other)


def test_the_vision_transformer_opens_by_the_same_function(tmp_path: Path) -> None:
    model = VisionTransformer(VisionConfig(32, 8, 1, 16, 2, 32)).initialise(torch.Generator().manual_seed(0))
    save_backbone(tmp_path / "model", model, Features("cls"), card)
    opened = open_backbone(tmp_path / "model")
    assert (opened.size, opened.features) == (32, Features("cls"))
    with torch.no_grad():
        assert torch.equal(opened.backbone(PIXELS), model(PIXELS))


def test_other_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"holds a model of type 'bert'; of vision models only .*networks of timm"):
        open_backbone(tmp_path)


# -- networks of timm ----------------------------------------------------------------------------------------


def test_without_timm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^timm:resnet18 needs timm, which cannot be imported \(.*\); pip install"):
        open_timm("timm:resnet18", 32)


@pytest.mark.parametrize(
    ("name", "size", "dimension"), [("resnet10t", 48, 512), ("test_vit", 32, 64), ("test_convnext", 48, 64)]
)
def test_a_network_of_timm_opens_again_here_and_there(
    name: str, size: int, dimension: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm, transformers = vision_peers.timm(), vision_peers.timm_in_transformers(monkeypatch)
    torch.manual_seed(0)
    backbone = open_timm(f"timm:{name}", size)
    pixels = torch.randn(2, 3, size, size)
    assert backbone.dimension == dimension
    assert backbone(pixels).shape == (2, dimension)
    difference = save_backbone(tmp_path / "model", backbone, Features("mean"), card)
    assert difference is not None
    assert difference < 1e-5
    assert "against stock timm" in (tmp_path / "model" / "README.md").read_text()
    opened = open_backbone(tmp_path / "model")
    assert opened.size == size
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    with torch.no_grad():
        expected = backbone.eval()(pixels)
        torch.testing.assert_close(opened.backbone.eval()(pixels), expected)
        torch.testing.assert_close(theirs.eval()(pixels), expected, atol=1e-5, rtol=1e-4)
        wrapped = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
        torch.testing.assert_close(wrapped(pixels).pooler_output, expected, atol=1e-5, rtol=1e-4)
    preparation = timm.data.resolve_model_data_config(theirs)
    assert tuple(preparation["input_size"]) == (3, size, size)
    assert tuple(preparation["mean"]) == (0.485, 0.456, 0.406)
    assert (preparation["crop_pct"], preparation["interpolation"]) == (1.0, "bilinear")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "hf-hub:someone/resnet18"}, "that is built otherwise than here"),
        ({"architecture": "local-dir:/elsewhere"}, "that is built otherwise than here"),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, "that is built otherwise than here"),
        ({"model_args": {"pretrained": True}}, "that is built otherwise than here"),
        ({"model_args": {"img_size": 10**9}}, "that is built otherwise than here"),
        ({"architecture": "vit_giant_patch14_224"}, "does not fit its config.json"),
    ],
)
def test_networks_of_timm_that_others_name(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    """Nothing is fetched, no file of another kind is read, no memory taken for what is not there."""
    vision_peers.timm()
    save_backbone(tmp_path / "model", open_timm("timm:test_vit", 32), Features(), card)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(UserError, match=message):
        open_backbone(tmp_path / "model")


def test_a_vision_transformer_of_timm_takes_crops_of_other_sizes() -> None:
    vision_peers.timm()
    assert open_timm("timm:test_vit", 32)(torch.randn(2, 3, 16, 16)).shape == (2, 64)


def test_fresh_weights_are_a_function_of_the_global_seed() -> None:
    vision_peers.timm()
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(open_timm("timm:test_vit", 32).eval()(PIXELS))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_unknown_networks_of_timm_are_refused() -> None:
    vision_peers.timm()
    with pytest.raises(UserError, match="timm has no network 'resnet51'; did you mean timm:resnet5"):
        open_timm("timm:resnet51", 32)
    with pytest.raises(UserError, match=r"timm has no network 'qqqqqqqq'; timm.list_models\(\) lists"):
        open_timm("timm:qqqqqqqq", 32)


def test_a_network_of_timm_that_cannot_take_the_size_is_refused() -> None:
    vision_peers.timm()
    with pytest.raises(UserError, match="timm:test_vit fails on images of 30 × 30 pixels"):
        open_timm("timm:test_vit", 30)


def test_importing_timm_gives_timm() -> None:
    timm = vision_peers.timm()
    assert import_timm("timm:resnet18") is timm
