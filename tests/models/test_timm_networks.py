"""Networks of timm that start from weights: those that timm itself would have, prepared for as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import vision_peers
from conftest import Train
from safetensors.torch import save_file

from selfsup.errors import UserError
from selfsup.models.backbones import open_backbone, open_timm
from selfsup.models.timm_networks import TimmStart
from selfsup.views import Preprocessing

NAME = "test_vit"  # of images of 160 pixels


@pytest.fixture(scope="module")
def theirs() -> Any:
    """With its classifier, every weight drawn."""
    network = vision_peers.timm().create_model(NAME)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def file(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(theirs.state_dict(), path)
    return path


@pytest.fixture
def hub(theirs: Any, tmp_path: Path) -> Path:
    """A directory as timm writes it for the hub."""
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    published = {"input_size": [3, 160, 160], "crop_pct": 0.9, "interpolation": "bilinear", "num_classes": 1000}
    colours = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_mode": "squash", "classifier": "head"}
    say(tmp_path, architecture=NAME, num_classes=1000, pretrained_cfg={**published, **colours})
    return tmp_path


def say(directory: Path, **changed: Any) -> None:
    path = directory / "config.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(saved | changed))


def test_it_has_the_weights_of_the_file_without_its_classifier(theirs: Any, file: Path) -> None:
    start = TimmStart.named(f"timm:{NAME}@{file}")
    assert start is not None
    assert set(start.left_out) == {"head.bias", "head.weight"}
    published = vision_peers.timm().get_pretrained_cfg(NAME)
    assert start.preprocessing == Preprocessing(
        160, int(160 / published.crop_pct), False, True, tuple(published.mean), tuple(published.std)
    )
    backbone, pixels = open_timm(start.preset, 160, start).eval(), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(backbone(pixels), expected)
    assert "state_dict" not in backbone.network.pretrained_cfg


def test_learnt_positions_are_brought_to_another_size_by_timm(theirs: Any, file: Path) -> None:
    start = TimmStart.named(f"timm:{NAME}@{file}")
    backbone = open_timm(f"timm:{NAME}", 64, start).eval()
    whole = vision_peers.timm().create_model(NAME, num_classes=0, dynamic_img_size=True).eval()
    whole.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")})
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels), whole(pixels), rtol=1e-4, atol=1e-5)


def test_a_directory_says_how_images_are_prepared(hub: Path) -> None:
    start = TimmStart.named(f"timm:{NAME}@{hub}")
    assert start is not None
    assert start.preprocessing == Preprocessing(160, 177, True, False, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_training_starts_from_it_and_leaves_a_directory_of_timm(
    hub: Path, train_vision: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hub.parent)
    given = {"model": f"timm:{NAME}@{hub.name}", "data.size": 32, "steps": 2, "batch": 4}
    run = train_vision(tmp_path / "run", "simclr", **given)
    assert f"timm:{NAME}@{hub}" in (run.directory / "config.yaml").read_text()
    opened = open_backbone(run.directory / "model")
    assert opened.preprocessing == Preprocessing(32, 35, True, False, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    saved = json.loads((run.directory / "model" / "config.json").read_text())["pretrained_cfg"]
    assert saved["mean"] == [0.1, 0.2, 0.3]
    assert (saved["crop_mode"], saved["interpolation"]) == ("squash", "bilinear")
    again = TimmStart.named(f"timm:{NAME}@{run.directory / 'model'}")  # and from what is left, again
    assert again is not None
    assert again.preprocessing == opened.preprocessing
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(open_timm(again.preset, 32, again).eval()(pixels), opened.backbone.eval()(pixels))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "resnet18"}, "holds timm's resnet18, not test_vit; name that one"),
        ({"model_args": {"checkpoint_path": "x"}}, "is built otherwise than here"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "has crop_mode = 'border'; only center and squash"),
        ({"pretrained_cfg": {"interpolation": "lanczos"}}, "has interpolation = 'lanczos'; only bilinear and bicubic"),
        ({"pretrained_cfg": {"interpolation": ["bicubic"]}}, r"has interpolation = \['bicubic'\]"),
        ({"pretrained_cfg": {"crop_pct": 0}}, r"is broken \(crop_pct is 0\)"),
        ({"pretrained_cfg": {"input_size": [3, 160, 96]}}, "of images of 160 × 96 pixels"),
        ({"pretrained_cfg": {"input_size": 160}}, r"is broken \(input_size is 160\)"),
        ({"pretrained_cfg": {"mean": "grey"}}, r"is broken \(mean is 'grey'\)"),
    ],
)
def test_other_ways_are_refused(changed: dict[str, Any], message: str, hub: Path) -> None:
    say(hub, **changed)
    with pytest.raises(UserError, match=message):
        TimmStart.named(f"timm:{NAME}@{hub}")


def test_what_is_not_there_or_of_another_network_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no .*nowhere; give the file of weights, or a directory of timm"):
        TimmStart.named(f"timm:{NAME}@{tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="timm has no network 'test_vitt'; did you mean timm:test_vit"):
        TimmStart.named(f"timm:test_vitt@{file}")
    other = TimmStart.named(f"timm:test_vit2@{file}")
    assert other is not None
    with pytest.raises(UserError, match=r"does not fit its config\.json"):
        open_timm(other.preset, 160, other)
    assert TimmStart.named(f"timm:{NAME}") is None
