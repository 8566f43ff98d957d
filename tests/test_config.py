"""One schema for YAML, the command line and Python: what it takes, what it refuses, where a value came from."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from pydantic import ValidationError

from selfsup import cli, training
from selfsup.config import (
    LENGTHS,
    SHORT,
    Config,
    Settings,
    flatten,
    known_keys,
    nest,
    parse_overrides,
    read_yaml,
    with_sections,
)
from selfsup.errors import UserError
from selfsup.objectives import OWNERS, RECIPES, find_recipe, resolve

OWN = {name: find_recipe(name).sections() for name in RECIPES}
EVERYTHING = with_sections(*(pair for sections in OWN.values() for pair in sections.items()))
KEYS = sorted(known_keys(EVERYTHING))
SECTIONS = ("data", "model", "optim", "train", "checkpoint", "evaluate", *OWNERS)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
likely = st.sampled_from([1, 8, 0.5, "8", "10m", "1e-3", "auto", "fp32", True, [0.9, 0.95], "muon", -1, 0])
json_like = st.recursive(
    plain | likely,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from([*KEYS, *SHORT, *SECTIONS]) | st.text(max_size=8) | st.sampled_from(["model.", ".", ""])
mappings = st.dictionaries(keys, json_like, max_size=4)


def keys_of(objective: str) -> list[str]:
    """The keys that an objective has a use for."""
    return sorted(known_keys(with_sections(*OWN[objective].items())))


def leaves(config: Config) -> dict[str, Any]:
    return dict(flatten(config.model_dump()))


# -- fuzzing -------------------------------------------------------------------------------------------------


@hypothesis(max_examples=600, deadline=None)
@given(values=mappings)
@example({"model": {"layers": {}}})
@example({"model": 3, "model.layers": 2})
@example({"train.steps": 3, "train.steps.x": 2})
@example({"train.steps.x": 2, "train.steps": 3})
@example({"train.epochs": float("inf")})
@example({"data": {}, "model": None})
@example({"modle": {}})
@example({"objective": "é" * 5000})
@example({"objective": "a\0b"})
def test_a_mapping_gives_a_configuration_or_one_sentence(values: dict[str, Any]) -> None:
    problem = None
    try:
        settings = resolve(("test", values))
    except UserError as error:
        problem = str(error)
    if problem is None:
        assert type(settings.config).model_validate(settings.config.model_dump()) == settings.config
    else:
        assert len(problem.splitlines()) == 1
        assert problem.endswith((".", "?"))


def legal(key: str) -> st.SearchStrategy[Any]:
    """Values that a key takes, by trying."""
    candidates: tuple[Any, ...] = (
        *(1, 2, 7, 64, 0, 0.25, 0.5, 1e-9, 3e4, 12345.678),
        *(
            "muon",
            "adamw",
            "fp32",
            "bf16",
            "word",
            "cls",
            "softmax",
            "sinkhorn",
            "auto",
            "cuda:1",
            "a: b # c",
            "1",
            "null",
            "~",
            "é\t√",
            "two\nlines",
        ),
        *(" spaces " * 20, "- x", "'quoted\"", "\x07", True, False, [0.1, 0.2], ["sts"], ["wandb"], None),
    )

    def takes(value: Any) -> bool:
        try:
            EVERYTHING.model_validate(nest({key: value}))
        except ValidationError:
            return False
        return True

    return st.sampled_from([value for value in candidates if takes(value)])


LEGAL = {key: legal(key) for key in KEYS}


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    objective = draw(st.sampled_from(["causal-lm", "masked-lm", "simcse", "pairs", "clip"]))
    chosen = draw(st.lists(st.sampled_from(keys_of(objective)), unique=True, max_size=12))
    lengths = [key for key in chosen if key in LENGTHS]
    return {key: draw(LEGAL[key]) for key in chosen if key not in lengths[1:]} | {"objective": objective}


@hypothesis(max_examples=200, deadline=None)
@given(values=configurations())
@example({"data.source": "a folder with a long name " * 8, "data.column": "two\nlines"})
@example({"optim.eps": 1e-8, "optim.lr": 1e22})
def test_the_resolved_configuration_reads_back(values: dict[str, Any]) -> None:
    settings = resolve(("file", values))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.yaml"
        file.write_text(settings.to_yaml(), encoding="utf-8")
        assert resolve((str(file), read_yaml(file))).config == settings.config


def test_values_that_no_setting_takes_are_all_refused() -> None:
    refused = [
        {"model.layers": "many"},
        {"model.layers": 1.5},
        {"model.layers": True},
        {"model.layers": [8]},
        {"train.seed": False},
        {"optim.lr": float("inf")},
        {"optim.lr": float("nan")},
        {"optim.lr": 0},
        {"optim.lr": True},
        {"optim.betas": [0.9]},
        {"optim.decay": 1.5},
        {"data.validation": 1},
        {"data.source": ""},
        {"data.source": 5},
        {"data.window": 1},
        {"train.precision": "fp16"},
        {"train.steps": 0},
        {"train.budget": "0s"},
        {"train.compile": "maybe"},
        {"checkpoint.keep": 0},
        {"objective": None},
        {"train": 5},
        {"data.workers": -1},
    ]
    for values in refused:
        (key,) = values
        with pytest.raises(UserError, match=key.replace(".", r"\.")):
            Settings(("test", values))


# -- precedence and origins ----------------------------------------------------------------------------------


def test_the_command_line_overrides_the_file_and_the_file_overrides_the_default() -> None:
    file = {"optim": {"lr": 0.5, "clip": 2.0}, "seed": 3}
    settings = Settings(("file.yaml", file), ("command line", {"optim.lr": 0.25}))
    expected = {
        "optim.lr": (0.25, "command line"),
        "optim.clip": (2.0, "file.yaml"),
        "train.seed": (3, "file.yaml"),
        "optim.momentum": (0.95, "default"),
    }
    for key, (value, origin) in expected.items():
        assert (settings[key], settings.origin(key)) == (value, origin)


def test_settling_fills_gaps_only() -> None:
    settings = Settings(("file", {"train.batch": 8}))
    settings.settle("train.batch", 64, "size and data")
    settings.settle("data.window", 128, "size and data")
    assert (settings["train.batch"], settings.origin("train.batch")) == (8, "file")
    assert (settings["data.window"], settings.origin("data.window")) == (128, "size and data")
    with pytest.raises(UserError, match=r"data\.window"):
        settings.change("data.window", 0, "test")


def comments(text: str) -> Iterator[tuple[str, str]]:
    """(dotted key, comment) of each value in YAML as `to_yaml` writes it."""
    section = ""
    for line in text.splitlines():
        content, _, comment = line.partition("  # ")
        key = content.strip().partition(":")[0]
        if not line.startswith(" "):
            section = key
        if comment:
            yield (f"{section}.{key}" if line.startswith(" ") else key), comment.strip()


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm", "simcse", "pairs"])
def test_the_yaml_says_of_every_value_where_it_came_from(objective: str) -> None:
    """And nothing of what another objective has."""
    given_there = {"model": {"layers": 2}, "objective": objective}
    settings = resolve(("a.yaml", given_there), ("command line", {"budget": "90s"}))
    settings.settle("data.window", 64, "size and data")
    origins = dict(comments(settings.to_yaml()))
    special = {
        "objective": "a.yaml",
        "model.layers": "a.yaml",
        "train.budget": "command line",
        "data.window": "size and data",
    }
    assert origins == {**dict.fromkeys(keys_of(objective), "default"), **special}


# -- lengths and durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [("steps", "epochs"), ("steps", "budget"), ("epochs", "budget")])
def test_one_layer_gives_one_length(pair: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=rf"train\.{pair[0]} and train\.{pair[1]} are both given"):
        Settings(("command line", {pair[0]: 5, f"train.{pair[1]}": 5}))


@pytest.mark.parametrize("weak", ["steps", "epochs", "budget"])
@pytest.mark.parametrize("strong", ["steps", "epochs", "budget"])
def test_the_length_of_a_stronger_layer_replaces_any_other(weak: str, strong: str) -> None:
    settings = Settings(("file", {weak: 5}), ("command line", {strong: 7}))
    lengths = {key: settings[key] for key in LENGTHS if settings[key] is not None}
    assert lengths == {f"train.{strong}": 7}
    assert settings.origin(f"train.{strong}") == "command line"
    if weak != strong:
        assert settings.origin(f"train.{weak}") == "default"


def test_a_null_length_is_none_given() -> None:
    file = {"train": {"steps": 5, "epochs": None, "budget": None}}
    assert Settings(("file", file))["train.steps"] == 5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400), ("45", 45), (45, 45), (0.5, 0.5)],
)
def test_durations(text: object, seconds: float) -> None:
    assert Settings(("test", {"budget": text}))["train.budget"] == seconds


@pytest.mark.parametrize("text", ["", "m", "10 m", "10x", "1h30", "-5m", "1.2.3s", "ten minutes", "9" * 400 + "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"train\.budget"):
        Settings(("test", {"budget": text}))


# -- unknown keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.layrs", "model.layers"),
        ("layers", "model.layers"),
        ("lr", "optim.lr"),
        ("width", "model.width"),
        ("train.bugdet", "train.budget"),
        ("bugdet", "budget"),
        ("tokeniser", "tokenizer"),
        ("data.tokeniser", "data.tokenizer"),
        ("checkpoints.every", "checkpoint.every"),
    ],
)
def test_the_nearest_known_key_is_suggested(key: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"Unknown key '{key}' .*did you mean '{meant}'"):
        Settings(("command line", {key: 3}))


@pytest.mark.parametrize("values", [{"modle": {}}, {"modle": None}, {"model": {"x": {}}}, {"zzz": 1}])
def test_an_unknown_key_is_refused_whatever_it_holds(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Unknown key"):
        Settings(("file", values))


# -- the same through every door -----------------------------------------------------------------------------

DOORS = {
    "data": "books/",
    "tokenizer": "characters",
    "budget": "1h30m",
    "batch": 12,
    "seed": 5,
    "device": "cpu",
    "precision": "fp32",
}


class Opened(Exception):
    """Raised in place of a training: the settings have been read."""


def through_training(monkeypatch: pytest.MonkeyPatch, call: Any) -> Config:
    found: list[Settings] = []

    def stop(settings: Settings, *rest: object) -> None:
        found.append(settings)
        raise Opened

    monkeypatch.setattr(training, "_recipe", stop)
    with pytest.raises(Opened):
        call()
    return found[0].config


def through_command_line(monkeypatch: pytest.MonkeyPatch, *words: str) -> Config:
    monkeypatch.setattr("sys.argv", ["selfsup", "train", *words])
    return through_training(monkeypatch, cli.main)


def test_yaml_words_flags_and_keywords_give_one_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nested = {**nest({SHORT[key]: value for key, value in DOORS.items()}), "model": {"layers": 3, "tied": True}}
    (tmp_path / "dotted.yaml").write_text(yaml.safe_dump({**DOORS, "model.layers": 3, "model.tied": True}))
    (tmp_path / "nested.yaml").write_text(yaml.safe_dump(nested))
    flags = [word for key, value in DOORS.items() for word in (f"--{key}", str(value))]
    more = ["model.layers=3", "model.tied=true"]
    found = [
        through_command_line(monkeypatch, "--config", "nested.yaml"),
        through_command_line(monkeypatch, "--config", "dotted.yaml"),
        through_command_line(monkeypatch, "causal-lm", *flags, *more),
        through_command_line(monkeypatch, *(f"{key}={json.dumps(value)}" for key, value in DOORS.items()), *more),
        through_command_line(monkeypatch, *(f"{SHORT[key]}={value}" for key, value in DOORS.items()), *more),
        through_training(monkeypatch, lambda: training.train(**DOORS, model={"layers": 3, "tied": True})),
        through_training(monkeypatch, lambda: training.train("causal-lm", config="nested.yaml")),
        through_training(
            monkeypatch,
            lambda: training.train(
                data={"source": "books/", "tokenizer": "characters"},
                model={"layers": 3, "tied": True},
                train={"budget": 5400, "batch": 12, "seed": 5, "device": "cpu", "precision": "fp32"},
            ),
        ),
    ]
    assert all(config == found[0] for config in found)
    assert leaves(found[0]) | {"data.source": str(tmp_path / "books"), "train.budget": 5400} == leaves(found[0])


def test_out_is_not_taken_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("out: /somewhere\nseed: 4\n")
    assert through_command_line(monkeypatch, "--config", str(tmp_path / "c.yaml")).out is None


def test_words_are_yaml() -> None:
    words = ["optim.lr=1e-3", "model.tied=true", "optim.betas=[0.9, 0.99]", "data.column=", "data.source=a=b"]
    values = parse_overrides(words)
    assert values == {
        "optim.lr": "1e-3",  # YAML 1.1 wants 1.0e-3; the schema takes both
        "model.tied": True,
        "optim.betas": [0.9, 0.99],
        "data.column": None,
        "data.source": "a=b",
    }
    assert Settings(("command line", values))["optim.lr"] == 1e-3


@pytest.mark.parametrize("word", ["layers", "=3", "model.layers=[[[", "data=*.txt", "a=!!python/name:os"])
def test_words_that_are_no_settings_are_refused(word: str) -> None:
    with pytest.raises(UserError):
        parse_overrides([word])


@pytest.mark.parametrize(
    "content", ["", "just text", "[1, 2]", "a: [", "{{}}: 1", "\tx: 1", "a: !!python/object:os {}"]
)
def test_files_that_are_no_configuration_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=r"c\.yaml"):
        read_yaml(file)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("missing.yaml", "binary.yaml", "."):
        with pytest.raises(UserError):
            read_yaml(tmp_path / name)


# -- documents that are too much, or other than they seem ----------------------------------------------------


def laughs(width: int = 10, depth: int = 12) -> str:
    """Lines of ten aliases of the line before: a few hundred bytes that stand for 10 ** 12 words."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, depth)]
    return "\n".join(lines)


def merges(width: int = 10, depth: int = 12) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [" + ", ".join([f"*a{n - 1}"] * width) + "]}" for n in range(1, depth)]
    return "\n".join(lines)


TOO_MUCH: dict[str, tuple[str | bytes, str]] = {
    "billion laughs": (laughs(), "more than"),
    "billion laughs by merging": (merges(), "more than"),
    "alias of itself": ("a: &a [*a]", "deep"),
    "merge of itself": ("a: &a {<<: *a}", "deep"),
    "deep lists": ("a: " + "[" * 5000 + "]" * 5000, "deep"),
    "deep mappings": ("{a: " * 3000 + "1" + "}" * 3000, "deep"),
    "deep dashes": ("- " * 5000 + "a", "deep"),
    "deep keys": ("? " * 5000 + "a", "deep"),
    "many values": ("a: [" + "1," * 20_000 + "]", "more than"),
    "long file": ("# " + "x" * 70_000, "more than"),
    "number of many digits": ("seed: " + "7" * 5000, "number has 5,000 characters"),
    "hexadecimal number of many digits": ("seed: 0x" + "7" * 50_000, "number has"),
    "number to the base of sixty": ("seed: 1" + ":59" * 15_000, "number has"),
    "timestamp": ("a: !!timestamp 2020-01-01", "timestamp"),
    "binary": ("a: !!binary aGVsbG8=", "binary"),
    "set": ("a: !!set {b, c}", "set"),
    "pairs": ("a: !!pairs [b: 1]", "pairs"),
    "omap": ("a: !!omap [b: 1]", "omap"),
    "Python": ("a: !!python/object/apply:os.getcwd []", "python"),
    "tag of one's own": ("a: !mine 3", "!mine"),
    "tag that does not fit": ("a: !!int many", "no int"),
    "truth value that is none": ("a: !!bool 3", "no bool"),
    "key twice": ("seed: 1\nmodel: {layers: 2}\nseed: 3", "'seed' is given twice (line 3"),
    "key twice below": ("model:\n  layers: 1\n  layers: 2", "'layers' is given twice (line 3"),
    "key in two forms": ("steps: 1\ntrain: {steps: 2}", "train.steps' is given twice"),
    "number as a key": ("1: 2", "no word"),
    "truth value as a key": ("on: 2", "no word"),
    "null as a key": ("~: 2", "no word"),
    "list as a key": ("? [a, b]\n: 2", "no word"),
    "merge of a word": ("<<: word", "takes mappings"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "undefined alias": ("a: *b", "undefined alias"),
    "long undefined alias": ("a: *" + "b" * 50_000, "undefined alias"),
    "long tag": ("a: !" + "b" * 50_000 + " c", "!bbb"),
    "long key twice": ("? " + "b" * 20_000 + "\n: c\n? " + "b" * 20_000 + "\n: c", "bbb"),
    "long truth value": ("a: !!bool " + "b" * 50_000, "bbb"),
    "null character": ("a: \0", "special characters"),
    "no UTF-8": (b"a: \xff\xfe\xfa", "unacceptable"),
    "half of UTF-16": (b"\xff\xfea\0:\0 \0\0\xd8", "unacceptable"),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_documents_that_are_too_much_are_refused_at_once(case: str, tmp_path: Path) -> None:
    content, reason = TOO_MUCH[case]
    file = tmp_path / "c.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        Settings(("c.yaml", read_yaml(file)))
    message = str(caught.value)
    assert reason in message
    assert "c.yaml" in message
    assert len(message) < 600
    if isinstance(content, str) and "\n" not in content:
        with pytest.raises(UserError) as caught:
            Settings(("command line", parse_overrides([f"model.layers={content}"])))
        assert len(str(caught.value)) < 700


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("/dev/zero")
    (tmp_path / "broken.yaml").symlink_to("nowhere")
    (tmp_path / "long.yaml").write_bytes(b"")
    os.truncate(tmp_path / "long.yaml", 1 << 40)
    places = [tmp_path / f"{name}.yaml" for name in ("pipe", "link", "broken", "long")]
    for place in (*places, Path("/dev/zero"), Path("a\0b"), Path("x" * 300)):
        with pytest.raises(UserError, match="Cannot read the configuration"):
            read_yaml(place)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dates_equals_signs_merges_and_encodings(encoding: str, tmp_path: Path) -> None:
    text = """\
base: &base {layers: 2, width: 64}
model: {<<: *base, width: 32}
data: {source: 2020-13-45, column: =, tokenizer: "größe"}
out: 2001-12-14t21:59:43.10-05:00
"""
    (tmp_path / "c.yaml").write_bytes(text.encode(encoding))
    found = read_yaml(tmp_path / "c.yaml")
    assert found.pop("base") == {"layers": 2, "width": 64}
    assert found == {
        "model": {"layers": 2, "width": 32},
        "data": {"source": "2020-13-45", "column": "=", "tokenizer": "größe"},
        "out": "2001-12-14t21:59:43.10-05:00",
    }


def test_a_file_of_json(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{\n\t"model": {"layers": 2},\n\t"optim": {"lr": 1e-3}, "data": "\\ud83d\\ude00"\n}\n')
    assert read_yaml(file) == {"model": {"layers": 2}, "optim": {"lr": 1e-3}, "data": "\U0001f600"}
    broken = ("{", '{"a": 1, "a": 2}', "[" * 60_000, '{"seed": ' + "7" * 5000 + "}", "\xff", "[1]", " " * 70_000)
    for content in broken:
        file.write_text(content, encoding="latin-1")
        with pytest.raises(UserError, match=r"c\.json"):
            read_yaml(file)
    file.write_text('{"model": ' * 50 + "1" + "}" * 50)
    with pytest.raises(UserError, match="deep"):
        Settings(("c.json", read_yaml(file)))


def test_a_message_says_which_line_a_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 3\nmodel:\n  layers: 2\n  width: many\n")
    with pytest.raises(UserError, match=r"'model\.width' cannot be 'many' \(c\.yaml, line 4\)"):
        Settings(("c.yaml", read_yaml(tmp_path / "c.yaml")))
    (tmp_path / "c.yaml").write_text("seed: 3\nbugdet: 2m\n")
    with pytest.raises(UserError, match=r"Unknown key 'bugdet' \(c\.yaml, line 2\); did you mean 'budget'"):
        Settings(("c.yaml", read_yaml(tmp_path / "c.yaml")))
    with pytest.raises(UserError, match=r"cannot be 'many' \(command line\)"):
        Settings(("c.yaml", {"model.width": 3}), ("command line", {"model.width": "many"}))


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {"a": 1}


def endless() -> dict[str, Any]:
    values: dict[str, Any] = {}
    values["model"] = values
    return values


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"layers": 10**5000}},
        {"seed": 2**63},
        {"seed": -(10**400)},
        {"train": {"batch": 1e300}},
        {"model": {1: 2}},
        {"model": {None: 2}},
        {b"model": 2},
        {"model": {"layers": object()}},
        {"model": {"layers": {"x": 3}}},
        {"model": {"layers": [8]}},
        {"model": {"layers": np.array([8, 8])}},
        {"model": {"layers": np.float64("nan")}},
        {"data": {"source": "x\udcff"}},
        {"x" * 100_000: 3},
        {"data.source": 3, "data": {"source": "x"}},
        {"optim": {"betas": [[0.9], [0.9]]}},
        {"optim": {"betas": [0.9] * 100_000}},
        nested(500),
        endless(),
    ],
    ids=lambda values: next(iter(str(key)[:20] for key in values)),
)
def test_odd_values_from_python_are_refused_in_a_sentence(values: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        Settings(("python", values))
    assert len(str(caught.value)) < 2000


def test_numbers_of_numpy_paths_and_tuples_are_taken() -> None:
    values = {
        "model": {"layers": np.int64(3), "tied": np.bool_(True), "init": Path("runs/a")},
        "optim": {"lr": np.float32(0.5), "betas": (np.float32(0.5), torch.tensor(0.25))},
        "train": {"seed": np.uint8(7), "epochs": np.array(2.0)},
        "evaluate.protocols": ("knn-20",),
    }
    plain = {
        "model": {"layers": 3, "tied": True, "init": "runs/a"},
        "optim": {"lr": 0.5, "betas": [0.5, 0.25]},
        "train": {"seed": 7, "epochs": 2.0},
        "evaluate.protocols": "knn-20",
    }
    settings = Settings(("python", values))
    assert settings.config == Settings(("python", plain)).config
    assert yaml.safe_load(settings.to_yaml())["train"]["seed"] == 7
