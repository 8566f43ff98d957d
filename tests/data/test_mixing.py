"""Mixtures as they are written: what is read, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfsup.data.mixing import is_mixture, read_mixture
from selfsup.errors import UserError


def written(folder: Path, text: str) -> Path:
    path = folder / "mix.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "deeper").mkdir()
    written(
        folder,
        """
        sources:
          plays: {data: texts/*.txt, weight: 3}
          far: {data: "s3://bucket/tokens/", weight: 0.5, column: body, split: train}
          hub: {data: "hub:user/name", weight: 1}
          own: {data: /abs/olute, weight: 1}
        """,
    )
    mixing = read_mixture("deeper/mix.yaml")
    places = {name: one.data for name, one in mixing.sources.items()}
    assert places == {
        "plays": str(folder / "texts/*.txt"),
        "far": "s3://bucket/tokens/",
        "hub": "hub:user/name",
        "own": "/abs/olute",
    }
    assert mixing.sources["far"].reading == {"column": "body", "split": "train"}
    assert mixing.shares([1, 1, 1, 1]) == [3 / 5.5, 0.5 / 5.5, 1 / 5.5, 1 / 5.5]


def test_epochs_make_shares_of_sizes() -> None:
    mixing = read_mixture({"sources": {"a": {"data": ["x"], "epochs": 4}, "b": {"data": ["y"], "epochs": 0.5}}})
    assert mixing.shares([100, 200]) == [0.8, 0.2]
    assert mixing.once([100, 200]) == 500
    assert read_mixture({"sources": {"a": {"data": ["x"], "weight": 9}}}).once([100]) == 100


def test_what_is_a_mixture() -> None:
    assert is_mixture("mix.yaml")
    assert is_mixture(Path("mix.yml"))
    assert is_mixture({"sources": {}})
    assert not any(map(is_mixture, ("text.txt", "s3://bucket/mix.yaml", {"source": "x"}, ["mix.yaml"], None)))


ONE = "sources: {a: {data: x.txt, %s}}"
REFUSED = {
    ONE % "weight: 0": "'sources.a.weight' cannot be 0 (FILE): input should be greater than 0.",
    ONE % "weight: -2": "'sources.a.weight' cannot be -2 (FILE): input should be greater than 0.",
    ONE % "weight: .nan": "'sources.a.weight' cannot be nan (FILE): input should be a finite number.",
    ONE % "weight: .inf": "'sources.a.weight' cannot be inf (FILE): input should be a finite number.",
    ONE % "weight: true": "'sources.a.weight' cannot be True (FILE): true and false are no numbers.",
    ONE % "weight: much": "'sources.a.weight' cannot be 'much' (FILE): input should be a valid number",
    ONE % "wieght: 1": "Unknown key 'sources.a.wieght' (FILE); did you mean",
    ONE % "weight: 1, epochs: 1": "a in FILE needs a weight or its epochs, and one of the two only; write",
    "sources: {a: {data: x.txt}}": "a in FILE needs a weight or its epochs, and one of the two only; write",
    "sources: {a: {weight: 1}}": "FILE lacks sources.a.data; write",
    "sources: {}": "FILE lacks sources; write",
    "sources:": "FILE lacks sources; write",
    "sources: [x.txt]": "FILE lacks sources; write",
    "sources: {a: x.txt}": "'sources.a' cannot be 'x.txt' (FILE): ",
    "sources: {a: {data: [x], weight: 1}}": "a in FILE has the data ['x'], which is no path; write",
    "sources: {'': {data: x, weight: 1}}": "'' in FILE is no name of a source: up to 40 letters",
    "sources: {a b: {data: x, weight: 1}}": "'a b' in FILE is no name of a source: up to 40 letters",
    "sources: {a: {data: x, weight: 1}, a: {data: y, weight: 1}}": "the key 'a' is given twice (line 1, column 39).",
    "sources: {a: {data: x, weight: 1}, b: {data: y, epochs: 1}}": "Some sources in FILE have weights and some epochs",
    "sources: {a: {data: other.yaml, weight: 1}}": "a in FILE is a mixture itself; name its sources there instead.",
    "sources: {a: {data: x, weight: 1}}\nseed: 3": "Unknown key 'seed' (FILE); did you mean",
    "[1, 2]": "FILE holds no mixture; write",
    "": "FILE holds no mixture; write",
    "sources: {a: &x [*x]}": "Cannot read the mixture FILE: ",
    "a: !!python/object:os.system {}": "Cannot read the mixture FILE: the tag",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_meant_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_mixture(str(path))
    said = str(refused.value)
    assert REFUSED[text].replace("FILE", str(path)) in said
    assert said.count("\n") == 0


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the mixture .*none.yaml: No such file or directory\."):
        read_mixture(tmp_path / "none.yaml")


@pytest.mark.parametrize("values", [{"sources": 3}, {"sources": {1: {"data": ["x"], "weight": 1}}}, {"sources": {}}])
def test_mappings_from_python_are_checked_likewise(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the mixture given from Python"):
        read_mixture(values)
