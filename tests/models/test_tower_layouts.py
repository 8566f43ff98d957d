"""CLIP's, SigLIP's and SigLIP 2's directories of two towers: opened, asked, written back into their class."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_towers import KINDS, SIZE, TEXTS, WINDOW, asked, pictures, prepared, save_towers, share, tokenised

import selfsup
from selfsup.errors import UserError
from selfsup.inference.clip import PairModel
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.tower_layouts import CLIP_TEXT, read_towers
from selfsup.models.tower_layouts import save_towers as save_back


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("towers")
    return {kind: save_towers(place / kind, kind) for kind in KINDS}


@pytest.fixture
def copy(directories: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(directories[kind], tmp_path / kind))


# -- as transformers has them --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_and_logits_are_those_of_transformers(kind: str, directories: dict[str, Path]) -> None:
    model, expected = selfsup.load(directories[kind]), asked(directories[kind])
    assert isinstance(model, PairModel)
    texts = torch.from_numpy(model.embed(TEXTS, precision="fp32"))
    assert share(texts, expected.text_model_output.pooler_output) < 1e-5
    assert model.truncated == (3 if kind == "siglip2" else 2)
    images = torch.from_numpy(model.embed(pictures(), precision="fp32"))
    assert share(images, expected.vision_model_output.pooler_output) < 1e-5
    normal = torch.nn.functional.normalize
    cosines = normal(images) @ normal(texts).T
    logits = model.similarity.scale * cosines + model.similarity.bias
    assert share(logits, expected.logits_per_image) < 1e-5
    probabilities = expected.logits_per_image.softmax(-1) if "clip" in kind else expected.logits_per_image.sigmoid()
    torch.testing.assert_close(model.similarity.probabilities(cosines), probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_images_are_resized_as_the_directory_says(kind: str, directories: dict[str, Path]) -> None:
    """To a level of 255, as which transformers keeps what it resized."""
    shapes = (60, 41), (31, 77), (20, 12), (SIZE, 2 * SIZE)
    images = pictures(*shapes)
    found = selfsup.load(directories[kind]).image._shown([np.asarray(image) for image in images])
    level = 1.01 / 255 / (0.26 if kind == "clip" else 0.5)
    torch.testing.assert_close(found, prepared(directories[kind], images), rtol=0, atol=level)


def test_what_a_file_does_not_say_is_what_its_class_means_by_it(directories: dict[str, Path], tmp_path: Path) -> None:
    """The files of the first SigLIPs say next to nothing of their sizes."""
    import transformers

    for kind, classes in (("clip", transformers.CLIPConfig), ("siglip", transformers.SiglipConfig)):
        layout = read_towers(directories[kind]).layout
        said = {"model_type": kind, "text_config": {}, "vision_config": {}}
        meant, path = classes(), tmp_path / "config.json"
        text, image = layout.text.read(said, path), layout.image.read(said, path)
        for config, theirs in ((text, meant.text_config), (image, meant.vision_config)):
            found = config.layers, config.width, config.heads, config.mlp, config.activation, config.norm_eps
            expected = (
                theirs.num_hidden_layers, theirs.hidden_size, theirs.num_attention_heads, theirs.intermediate_size,
                theirs.hidden_act, theirs.layer_norm_eps,
            )  # fmt: skip
            assert found == expected
        assert (text.vocabulary, text.positions) == (
            meant.text_config.vocab_size,
            meant.text_config.max_position_embeddings,
        )
        assert (image.size, image.patch) == (meant.vision_config.image_size, meant.vision_config.patch_size)


def test_a_tower_that_is_said_twice_is_as_the_second_says(copy: Callable[[str], Path]) -> None:
    directory = copy("clip")
    content = json.loads((directory / "config.json").read_text())
    content["text_config_dict"] = content["text_config"]
    content["text_config"] = {"hidden_size": 4, "hidden_act": "gelu"}
    (directory / "config.json").write_text(json.dumps(content))
    found = selfsup.load(directory).embed(TEXTS, precision="fp32")
    assert share(found, asked(directory).text_model_output.pooler_output) < 1e-5


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_text_tower_alone_gives_what_its_class_pools(kind: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    """Of CLIP; SigLIP's goes through the map of the whole model, which is none of the tower's here."""
    import transformers

    directory, alone = copy(kind), tmp_path / "alone"
    name = "CLIPTextModel" if kind == "clip" else "SiglipTextModel"
    network = getattr(transformers, name).from_pretrained(directory).eval()
    network.save_pretrained(alone)
    for file in directory.glob("tokenizer*"):
        shutil.copy(file, alone)
    with torch.no_grad():
        states = network(**tokenised(directory, TEXTS)).last_hidden_state
    found = selfsup.load(alone).embed(TEXTS, precision="fp32")
    ends = [-1] * len(TEXTS) if kind == "siglip" else [row.argmax() for row in tokenised(directory, TEXTS)["input_ids"]]
    assert share(found, torch.stack([row[end] for row, end in zip(states, ends, strict=True)])) < 1e-5
    with pytest.raises(UserError, match="no head that predicts hidden tokens"):
        selfsup.load(alone).fill("a [MASK]")


# -- written back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_back_into_its_class(kind: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    """With other weights; what the class has beside, and every file that need not change, stays as it was."""
    directory = copy(kind)
    weights = load_file(directory / "model.safetensors")
    spare = {"text_model.embeddings.position_ids": torch.arange(WINDOW)[None]}
    save_file(weights | spare, directory / "model.safetensors", {"format": "pt"})
    saved, model = read_towers(directory), PairModel.load(directory)
    networks = saved.image.model(), saved.text.encoder()
    with torch.no_grad():
        for parameter in (p for network in networks for p in network.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    features = [replace(one.features, bias=None if one.features.bias is None else one.features.bias + 1)
                for one in (saved.image, saved.text)]  # fmt: skip
    similarity = replace(model.similarity, scale=model.similarity.scale * 1.5)
    back = tmp_path / "back"
    found = save_back(
        back, networks[0], features[0], networks[1], model.text.tokenizer, features[1], similarity, str, origin=saved
    )
    assert max(found.values()) < 1e-5  # against transformers
    for file in sorted(directory.iterdir()):
        if file.name not in ("model.safetensors", "config.json"):
            assert (back / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = (json.loads((place / "config.json").read_text()) for place in (directory, back))
    assert {key: value for key, value in after.items() if before.get(key) != value} == {"torch_dtype": "float32"}
    written = load_file(back / "model.safetensors")
    assert {name: (w.shape, w.dtype) for name, w in written.items()} == {
        name: (w.shape, w.dtype) for name, w in (weights | spare).items()
    }
    assert torch.equal(written["text_model.embeddings.position_ids"], torch.arange(WINDOW)[None])
    assert not torch.equal(written["logit_scale"], weights["logit_scale"])
    again, expected = PairModel.load(back), asked(back)
    assert share(again.embed(TEXTS, precision="fp32"), expected.text_model_output.pooler_output) < 1e-5
    assert share(again.embed(pictures(), precision="fp32"), expected.vision_model_output.pooler_output) < 1e-5


# -- the text tower of CLIP ----------------------------------------------------------------------------------

SIZES = {"vocabulary": 30, "layers": 2, "width": 16, "heads": 2, "mlp": 24, "positions": 10, "norm_eps": 1e-5}


def causal() -> TextEncoder:
    config = EncoderConfig(**SIZES, activation="quick_gelu", layout="clip_text_model", **CLIP_TEXT.given)  # type: ignore[arg-type]
    encoder = TextEncoder(config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) / 2)
    return encoder.double()


CAUSAL = causal()
TOKENS = st.lists(st.integers(0, 29), min_size=1, max_size=5)


@given(past=TOKENS, future=TOKENS, other=TOKENS)
def test_it_never_sees_the_future(past: list[int], future: list[int], other: list[int]) -> None:
    """Alone in a row, and beside another text."""
    with torch.no_grad():
        states = [CAUSAL(torch.tensor([past + behind]))[0, : len(past)] for behind in (future, other)]
        row = torch.tensor([past + other])
        documents = torch.tensor([[0] * len(past) + [1] * len(other)])
        beside = CAUSAL(row, documents)[0]
        alone = CAUSAL(torch.tensor([other]))[0]
    torch.testing.assert_close(states[0], states[1])
    torch.testing.assert_close(beside[: len(past)], states[0])
    torch.testing.assert_close(beside[len(past) :], alone)


# -- what is refused -----------------------------------------------------------------------------------------


def changed(directory: Path, **config: Any) -> Path:
    content = json.loads((directory / "config.json").read_text())
    for key, value in config.items():
        part, _, name = key.partition("__")
        (content if not name else content[part])[name or part] = value
    (directory / "config.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("siglip", {"model_type": "siglip2"}, "holds two towers of type 'siglip2'.* of SigLIP 2 give one of a fixed"),
        ("clip", {"text_config__eos_token_id": 3}, "says that texts end with token 3, and its tokenizer puts 547"),
        ("clip", {"text_config__hidden_act": "tanh"}, "text_config.hidden_act"),
        ("clip", {"text_config__hidden_size": 20}, "holds no text_projection.weight from the 20 numbers"),
        ("clip", {"text_config__num_attention_heads": 3}, "width .16. must be a multiple of heads"),
        ("clip", {"vision_config__num_channels": 1}, "vision_config.num_channels = 1"),
        ("siglip", {"vision_config__vision_use_head": False}, "vision_config.vision_use_head = False"),
        ("siglip", {"text_config__max_position_embeddings": "x"}, "text_config.max_position_embeddings"),
    ],
)
def test_what_is_no_such_model_is_refused_in_a_sentence(
    kind: str, config: dict[str, Any], message: str, copy: Callable[[str], Path]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        selfsup.load(changed(copy(kind), **config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("logit_scale"), "holds no logit_scale that is one number"),
        (lambda w: w.update(logit_scale=torch.ones(2)), "holds no logit_scale that is one number"),
        (lambda w: w.update(logit_scale=torch.tensor(900.0)), "absurd logit_scale"),
        (lambda w: w.pop("text_projection.weight"), "holds no text_projection.weight"),
        (lambda w: w.update({"text_projection.weight": torch.ones(3, 16)}), "vectors have different dimensions"),
        (
            lambda w: w.update({"text_projection.weight": torch.ones(10, 9)}),
            "holds no text_projection.weight from the 16 numbers",
        ),
        (lambda w: w.pop("text_model.final_layer_norm.bias"), "does not fit its config.json: final_norm.bias"),
        (lambda w: w.update({"text_model.more": torch.ones(1)}), "does not fit its config.json: more"),
    ],
)
def test_damage_is_named(change: Callable[[dict[str, torch.Tensor]], None], message: str, copy: Any) -> None:
    directory = copy("clip")
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(UserError, match=message):
        selfsup.load(directory)


def test_old_files_end_a_text_with_its_largest_number(copy: Callable[[str], Path]) -> None:
    """Which is another one where tokens were added behind the end."""
    directory = copy("clip-legacy")
    content = json.loads((directory / "tokenizer.json").read_text())
    added = {"id": 548, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append({**added, "normalized": False, "special": True})
    (directory / "tokenizer.json").write_text(json.dumps(content))
    weights = load_file(directory / "model.safetensors")
    table = "text_model.embeddings.token_embedding.weight"
    save_file(weights | {table: torch.cat((weights[table], weights[table][:1]))}, directory / "model.safetensors")
    with pytest.raises(UserError, match="says that texts end with token 548, and its tokenizer puts 547"):
        selfsup.load(changed(directory, text_config__vocab_size=549))
