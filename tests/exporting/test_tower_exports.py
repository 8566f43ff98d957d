"""Two towers in one directory, in the layouts of other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_towers import TEXTS, pictures, save_towers, share

import selfsup
from selfsup.errors import UserError
from selfsup.exporting import open_image_model
from selfsup.exporting.onnx.images import ImageGraph


@pytest.fixture(scope="module", params=["clip", "siglip2"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_towers(tmp_path_factory.mktemp("towers") / request.param, request.param)


def test_sentence_transformers_opens_it_as_it_is(directory: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    found = selfsup.export(directory, out=tmp_path / "out", to="sentence-transformers")
    assert found.max_share is not None
    assert found.max_share < 1e-5
    theirs, ours = library.SentenceTransformer(str(tmp_path / "out"), device="cpu"), selfsup.load(directory)
    for contents in (TEXTS, pictures()):
        expected = torch.from_numpy(theirs.encode(list(contents)))
        assert share(ours.embed(contents, precision="fp32"), expected) < 1e-5
    for file in directory.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    again = selfsup.load(tmp_path / "out").embed(TEXTS, precision="fp32")
    np.testing.assert_array_equal(again, ours.embed(TEXTS, precision="fp32"))


def test_transformers_is_given_a_copy(directory: Path, tmp_path: Path) -> None:
    found = selfsup.export(directory, out=tmp_path / "out", to="transformers")
    assert "Model.from_pretrained" in found.opens_with
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in directory.iterdir()}


def test_targets_of_images_are_given_the_tower_of_images(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened, model = open_image_model(directory, "onnx"), selfsup.load(directory)
    assert "holds two towers; that of images is exported" in caplog.text
    graph = ImageGraph(opened).eval()
    shown = model.image._shown([np.asarray(image) for image in pictures()])
    with torch.no_grad():
        made = graph(shown)[0]
    assert share(made, torch.from_numpy(model.embed(pictures(), precision="fp32"))) < 1e-5


def test_timm_has_no_such_network(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timm"):
        selfsup.export(directory, out=tmp_path / "image.safetensors", to="timm")
    assert not (tmp_path / "image.safetensors").exists()
