"""Layouts as tables: what is written is read again, and what the network here cannot be is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.models.directories import read_weights
from selfsup.models.huggingface import write_network
from selfsup.models.layouts import Layout, at, find_layout, renamed
from selfsup.models.parity import ROUNDING, Difference


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    scale: float
    tied: bool

    def __post_init__(self) -> None:
        if self.width % self.layers:
            raise ValueError("layers do not divide the width")


LAYOUT = Layout(
    Shape,
    name="Others",
    model_type="other",
    places={
        "width": at("inner.sizes.width", "hidden", most=64),
        "layers": at("depth", elsewhere=("old.depth",)),
        "scale": at("scale", default=2, least=0),
        "tied": at("tied", default=False),
    },
    fixed={"act": "gelu", "inner.kind": [1, 2]},
    refused={"inner.old_kind": None},
    derived={"kinds": lambda shape: ["x"] * shape.layers},
    written={"dtype": "float32"},
)
SHAPE = Shape(8, 2, 0.5, tied=True)
PATH = Path("model") / "config.json"


def test_what_is_written_is_read_again() -> None:
    content = LAYOUT.write(SHAPE)
    assert content == {
        "model_type": "other",
        "inner": {"sizes": {"width": 8}, "kind": [1, 2]},
        "hidden": 8,
        "depth": 2,
        "scale": 0.5,
        "tied": True,
        "kinds": ["x", "x"],
        "act": "gelu",
        "dtype": "float32",
    }
    assert LAYOUT.read(json.loads(json.dumps(content)), PATH) == SHAPE


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"hidden": 6, "depth": 3}, Shape(6, 3, 2.0, tied=False)),
        ({"hidden": 6, "old": {"depth": 3}, "scale": 0}, Shape(6, 3, 0.0, tied=False)),
        ({"hidden": 6, "inner": {"sizes": {"width": 4}}, "depth": 2}, Shape(4, 2, 2.0, tied=False)),
        ({"hidden": 6, "inner": {"sizes": None}, "old": None, "depth": 2}, Shape(6, 2, 2.0, tied=False)),
    ],
)
def test_the_first_place_that_is_there_is_read(saved: dict[str, Any], expected: Shape) -> None:
    found = LAYOUT.read({"model_type": "other", **saved}, PATH)
    assert found == expected
    assert type(found.scale) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "another"}, "model holds a model of type 'another'; only Others can be loaded"),
        ({"model_type": None}, "holds a model of type None"),
        ({"act": "relu"}, "has act = 'relu'; only Others with 'gelu' can be loaded"),
        ({"inner": {"kind": [1]}}, r"has inner.kind = \[1\]; only Others with \[1, 2\]"),
        ({"inner": {"old_kind": "x"}}, "has inner.old_kind = 'x'; only Others with None"),
        ({"kinds": ["y", "y"]}, r"has kinds = \['y', 'y'\]; only Others with \['x', 'x'\]"),
        ({"inner": [1]}, r"is broken \(inner is \[1\]\)"),
        ({"inner": {"sizes": 3}}, r"is broken \(sizes is 3\)"),
        ({"hidden": None}, r"is broken \(hidden is None\)"),
        ({"hidden": 65}, r"is broken \(hidden is 65\)"),
        ({"hidden": True}, r"is broken \(hidden is True\)"),
        ({"depth": 0}, r"is broken \(depth is 0\)"),
        ({"depth": 3}, "is broken .layers do not divide"),
        ({"scale": float("nan")}, r"is broken \(scale is nan\)"),
        ({"scale": "1"}, r"is broken \(scale is '1'\)"),
        ({"tied": 1}, r"is broken \(tied is 1\)"),
        ({"tied": "x" * 100}, "is broken .tied is 'xxx.*…"),
    ],
)
def test_what_is_none_here_is_refused(changes: dict[str, Any], message: str) -> None:
    saved = {"model_type": "other", "hidden": 8, "depth": 2} | changes
    with pytest.raises(UserError, match=message) as caught:
        LAYOUT.read(saved, PATH)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_lacking_is_named() -> None:
    with pytest.raises(UserError, match="lacks 'depth'; get a whole copy"):
        LAYOUT.read({"model_type": "other", "hidden": 8}, PATH)


def test_a_layout_of_no_model_says_no_type() -> None:
    plain = replace(LAYOUT, model_type=None)
    assert "model_type" not in plain.write(SHAPE)
    assert plain.read({"model_type": "whatever", "hidden": 8, "depth": 2}, PATH).width == 8


def test_parameters_are_renamed_by_a_table_and_back() -> None:
    names = {"layer.*.attn.out": "blocks.*.proj", "layer.*": "blocks.*", "bias": "decoder.bias", "a.b": "c"}
    given = ["layer.0.attn.out.weight", "layer.12.norm.bias", "bias", "biased", "a.b", "a.bc", "x.layer.1"]
    theirs = ["blocks.0.proj.weight", "blocks.12.norm.bias", "decoder.bias", "biased", "c", "a.bc", "x.layer.1"]
    there = renamed(dict(zip(given, range(7), strict=True)), names)
    assert there == dict(zip(theirs, range(7), strict=True))
    assert list(renamed(there, {other: name for name, other in names.items()})) == given


def test_differences_are_judged_by_the_length_of_vectors() -> None:
    """What is rounding of a long vector is none of a short one."""
    moved = torch.zeros(1, 100)
    moved[0, 0] = 1e-4
    for length, rounding in ((10.0, True), (0.1, False)):
        expected = torch.nn.functional.normalize(torch.ones(1, 100)) * length
        found = Difference.between(expected, expected + moved)
        assert found.most == pytest.approx(1e-4, rel=0.01)
        assert found.share == pytest.approx(1e-4 / length, rel=0.01)
        assert found.is_rounding is rounding is (found.share <= ROUNDING)
    both = torch.cat((expected, torch.ones(1, 100)))
    assert Difference.between(both, both + moved).share < 1e-4 / 7  # one may be what long ones left of each other
    zeros = torch.zeros(2, 3)
    assert Difference.between(zeros, zeros) == Difference()
    assert not Difference.between(zeros, zeros + 1e-6).is_rounding


def test_the_largest_of_several_differences() -> None:
    several = [Difference(1.0, 0.1), Difference(0.5, 0.2)]
    assert Difference.largest(several) == Difference(1.0, 0.2)
    assert Difference.largest([]) == Difference()


# -- weights -------------------------------------------------------------------------------------------------


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.table = nn.Embedding(3, shape.width)
        self.layers = nn.ModuleList(nn.Linear(shape.width, 3 * shape.width) for _ in range(shape.layers))


class Headed(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.body = Body(shape)
        self.score = nn.Linear(shape.width, 2)


def weighted(**changes: Any) -> Layout[Shape]:
    named = {
        "names": {"table": "words.table", "score": "cls.out"},
        "parts": {
            f"layers.*.{kind}": tuple(f"encoder.*.{part}.{kind}" for part in "qkv") for kind in ("weight", "bias")
        },
        "inner": "body.",
        "prefix": "net.",
        "spare": ("pooler.", "cls.next."),
    }
    return replace(LAYOUT, **named | changes)


def theirs(layout: Layout[Shape], network: nn.Module, directory: Path, **more: Any) -> dict[str, Tensor]:
    directory.mkdir()
    layout.save(directory, SHAPE, network, "OtherModel", **more)
    return read_weights(directory)


@pytest.mark.parametrize("kind", [Body, Headed])
def test_weights_have_their_names_and_parts_there_and_come_back(tmp_path: Path, kind: type[nn.Module]) -> None:
    network = kind(SHAPE)
    found = theirs(weighted(), network, tmp_path / "saved")
    layers = {f"encoder.{n}.{part}.{kind}" for n in range(2) for part in "qkv" for kind in ("weight", "bias")}
    body = {"words.table.weight", *layers}
    expected = body if kind is Body else {f"net.{name}" for name in body} | {"cls.out.weight", "cls.out.bias"}
    assert found.keys() == expected
    key = next(name for name in found if name.endswith("encoder.1.k.weight"))
    inner = network if isinstance(network, Body) else network.body
    assert torch.equal(found[key], inner.layers[1].weight[8:16])
    opened = weighted().opened(tmp_path / "saved")
    again = opened.weights if kind is Body else opened.whole
    assert again.keys() == network.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "net."])
def test_what_an_origin_has_beside_is_kept(tmp_path: Path, prefix: str) -> None:
    layout, first, headed = weighted(), Body(SHAPE), Headed(SHAPE)
    origin = tmp_path / "origin"
    weights = theirs(layout, first, origin)
    content = json.loads((origin / "config.json").read_text()) | {
        "dtype": "bfloat16",
        "task": {"more": [1]},
        "hidden": 8,
    }
    pooler = torch.arange(3.0)
    write_network(origin, content, {prefix + name: w for name, w in weights.items()} | {f"{prefix}pooler.w": pooler})
    assert layout.opened(origin).weights.keys() == first.state_dict().keys()
    for network, before in ((Body(SHAPE), prefix), (headed, "net.")):
        directory = tmp_path / type(network).__name__
        directory.mkdir()
        layout.save(directory, replace(SHAPE, width=16), network, None, origin=origin)
        assert torch.equal(read_weights(directory)[f"{before}pooler.w"], pooler)
        saved = json.loads((directory / "config.json").read_text())
        expected = content | {"dtype": "float32", "torch_dtype": "float32", "hidden": 16}
        expected["inner"] = {"sizes": {"width": 16}, "kind": [1, 2]}
        assert saved == expected


def test_weights_that_no_layout_knows_stay_to_be_refused(tmp_path: Path) -> None:
    weights = theirs(weighted(), Body(SHAPE), tmp_path / "saved")
    del weights["encoder.0.k.weight"]
    write_network(tmp_path / "saved", LAYOUT.write(SHAPE), weights | {"strange": torch.ones(1)})
    found = weighted().opened(tmp_path / "saved").weights
    assert {"strange", "encoder.0.q.weight"} <= found.keys()


def test_words_of_a_file_and_what_a_layout_gives(tmp_path: Path) -> None:
    places = {**LAYOUT.places, "tied": at("knot", words={"yes": True, "aye": True, "no": False})}
    layout = replace(LAYOUT, places=places)
    assert layout.write(SHAPE)["knot"] == "yes"
    saved = {"model_type": "other", "hidden": 6, "depth": 3}
    assert layout.read(saved | {"knot": "aye"}, PATH).tied
    with pytest.raises(UserError, match="knot = 'perhaps'"):
        layout.read(saved | {"knot": "perhaps"}, PATH)
    without = {name: place for name, place in LAYOUT.places.items() if name != "tied"}
    assert replace(LAYOUT, places=without, given={"tied": True}).read(saved, PATH).tied


def test_a_type_without_a_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mystery"}))
    with pytest.raises(UserError, match=r"'mystery', and what is opened by itself here is other; .*model=hf:"):
        find_layout({"other": LAYOUT}, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other"}))
    assert find_layout({"other": LAYOUT}, tmp_path) is LAYOUT
