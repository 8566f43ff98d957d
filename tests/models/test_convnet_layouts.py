"""Directories of convolutional networks: stock transformers opens them with the same numbers, others are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfsup.errors import UserError
from selfsup.models.backbones import open_backbone, save_backbone
from selfsup.models.convnet import ConvNet, ConvNetConfig
from selfsup.models.convnet_layouts import read_convnet
from selfsup.models.features import Features

CONFIG = ConvNetConfig(size=32, layers=2, width=4, stride=1, norm_eps=1e-4)
PIXELS = torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(5))


def lively() -> ConvNet:
    generator = torch.Generator().manual_seed(0)
    model = ConvNet(CONFIG).initialise(generator)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.3 if tensor.ndim == 1 else 0.0)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("convnet") / "model"
    difference = save_backbone(directory, lively(), Features("mean"), lambda exact: f"# A card\n{exact}\n")
    assert difference is not None
    assert difference < 1e-4
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def test_stock_transformers_opens_it_with_the_same_numbers(saved: Path) -> None:
    theirs = transformers.AutoModel.from_pretrained(saved, trust_remote_code=False)
    assert type(theirs).__name__ == "TextNetModel"
    with torch.inference_mode():
        maps = theirs.eval()(PIXELS).last_hidden_state
        torch.testing.assert_close(lively()(PIXELS), maps.flatten(2).mT, rtol=1e-5, atol=1e-5)
    assert "against stock transformers" in (saved / "README.md").read_text()
    processor = transformers.AutoImageProcessor.from_pretrained(saved)
    assert type(processor).__name__.startswith("ViTImageProcessor")


def test_all_of_its_weights_are_known_there(saved: Path) -> None:
    _, report = transformers.AutoModel.from_pretrained(saved, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_it_opens_here_as_it_was(saved: Path) -> None:
    opened = open_backbone(saved)
    assert isinstance(opened.backbone, ConvNet)
    assert opened.backbone.config == CONFIG
    assert (opened.features, opened.size) == (Features("mean"), 32)
    for (name, one), other in zip(lively().state_dict().items(), opened.backbone.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_head_for_classes_is_left_aside(saved: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForImageClassification.from_pretrained(saved, num_labels=3)
    theirs.save_pretrained(tmp_path / "classes")
    assert torch.equal(read_convnet(tmp_path / "classes").model().eval()(PIXELS), lively()(PIXELS))


def change_config(directory: Path, **values: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | values))


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    change(weights)
    save_file(weights, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stem_kernel_size": 7}, "stem_kernel_size = 7"),
        ({"hidden_sizes": [4, 4, 8, 16, 64]}, "hidden_sizes"),
        ({"conv_layer_kernel_sizes": [[[3, 3], [1, 3]]] * 4}, "conv_layer_kernel_sizes"),
        ({"conv_layer_strides": [[1, 1], [2, 1], [2, 1], [1, 1]]}, "conv_layer_strides"),
        ({"conv_layer_strides": []}, r"is broken \(conv_layer_strides"),
        ({"stem_out_channels": 1 << 23}, "are more than any network has"),
        ({"stem_out_channels": "4"}, r"is broken \(stem_out_channels"),
        ({"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 32, 64]}, "does not fit its config.json"),
    ],
)
def test_other_shapes_are_refused(copy: Path, values: dict[str, Any], message: str) -> None:
    change_config(copy, **values)
    with pytest.raises(UserError, match=message):
        read_convnet(copy).model()


SIDE = "encoder.stages.0.stage.1.vertical_conv.weight"
CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a side branch": (lambda weights: weights[SIDE].add_(0.1), f"{SIDE} that is more than nothing"),
    "an identity": (
        lambda weights: weights["encoder.stages.1.stage.1.rbr_identity.weight"].mul_(2),
        "rbr_identity.weight that is more than nothing",
    ),
    "no side branch": (lambda weights: weights.pop(SIDE), f"{SIDE} should be 4×4×3×1"),
    "no convolution": (lambda weights: weights.pop("stem.conv.weight"), "stem.conv.weight should be 4×3×3×3"),
    "something more": (lambda weights: weights.update(more=torch.zeros(2)), "more should be absent"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_are_refused(copy: Path, change: str) -> None:
    made, message = CHANGES[change]
    change_weights(copy, made)
    with pytest.raises(UserError, match=message):
        read_convnet(copy).model()
