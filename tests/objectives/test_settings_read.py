"""Each recipe reads only some settings: others are refused, and stand in no configuration that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import selfsup
from selfsup.errors import UserError
from selfsup.objectives import RECIPES, find_recipe
from selfsup.objectives.teachers import STUDENTS
from selfsup.objectives.vicreg import VICRegRecipe

FOREIGN: list[tuple[str, dict[str, Any], str]] = [
    ("simcse", {"model": "hf:somewhere", "data.size": 32}, "data.size"),
    ("simcse", {"model": "hf:somewhere", "model.registers": 2}, "model.registers"),
    ("pairs", {"model": "hf:somewhere", "model.layers": 2}, "model.layers"),
    ("pairs", {"data.size": 32}, "data.size"),
    ("masked-lm", {"model": "hf:somewhere", "model.layers": 2}, "model.layers"),
    ("tsdae", {"model.kv_heads": 1}, "model.kv_heads"),
    ("causal-lm", {"model": "hf:somewhere", "model.init": "there"}, "model.init"),
    ("causal-lm", {"model.dropout": 0.1}, "model.dropout"),
    ("causal-lm", {"model.whiten": True}, "model.whiten"),
    ("masked-lm", {"model.kv_heads": 1}, "model.kv_heads"),
    ("dino", {"data.tokenizer": "words"}, "data.tokenizer"),
    ("mae", {"data.window": 64}, "data.window"),
    ("simclr", {"model": "timm:resnet18", "model.patch": 4}, "model.patch"),
    ("vicreg", {"model.tied": True}, "model.tied"),
    ("distill", {"model.whiten": True}, "model.whiten"),
    ("distill", {"data.replay": "old/:0.1"}, "data.replay"),
    ("distill", {"distill.kind": "an image encoder", "model.whiten": True}, "model.whiten"),
    ("distill", {"distill.kind": "an image encoder", "data.window": 64}, "data.window"),
    ("distill", {"distill.kind": "a decoder", "data.size": 64}, "data.size"),
    ("clip", {"model.whiten": True}, "model.whiten"),
    ("clip", {"simclr.projection": 64}, "simclr.projection"),
]


@pytest.mark.parametrize(("objective", "given", "key"), FOREIGN)
def test_what_means_nothing_is_refused(objective: str, given: dict[str, Any], key: str) -> None:
    kind = find_recipe(objective, given)
    with pytest.raises(UserError, match=rf"^{objective} has no use for {key} here; leave it out\.$"):
        kind(kind.resolve(("test", {"objective": objective, **given})))


def test_what_means_something_beside_another_is_read() -> None:
    kind = find_recipe("clip")
    recipe = kind(kind.resolve(("test", {"objective": "clip", "clip.simclr": 0.5, "simclr.projection": 64})))
    assert recipe.settings["simclr.projection"] == 64
    assert "projection: 64" in recipe.settings.to_yaml()


@pytest.mark.parametrize(
    ("objective", "given"),
    [*((name, {}) for name in RECIPES), *(("distill", {"distill.kind": kind}) for kind in STUDENTS)],
)
def test_a_configuration_holds_what_is_read(objective: str, given: dict[str, Any]) -> None:
    kind = find_recipe(objective, given)
    settings = kind.resolve(("test", {"objective": objective, **given}))
    recipe = kind(settings)
    chosen = [key for key in settings.names() if key.partition(".")[0] in {"data", "model", *kind.sections()}]
    assert set(chosen) == recipe.reads() & set(settings.names())
    assert kind.resolve(("again", settings.values())).values().keys() >= settings.values().keys()
    assert kind(kind.resolve(("again", settings.values()))).settings.values() == settings.values()


class Unregistered(VICRegRecipe):
    """The same, as somebody's own: no name leads to this class."""


def test_a_recipe_from_python_has_settings(tmp_path: Path) -> None:
    """By its own section, refused where they are none of it, kept with the run and read from it again."""
    given: dict[str, Any] = {"data": "sample:emoji", "steps": 2, "data.size": 16, "model": "vit-atto", "batch": 8}
    own = {"variance": 12.0, "expander": 16}
    run = selfsup.train(Unregistered, out=tmp_path / "run", vicreg=own, **given)
    assert run.settings(Unregistered)["vicreg.variance"] == 12.0
    assert "vicreg:" in run.config_file.read_text()
    again = selfsup.train(Unregistered, resume=run.directory, steps=3)
    assert again.settings(Unregistered)["vicreg.expander"] == 16
    with pytest.raises(UserError, match=r"Unknown key 'vicreg\.varance' .*did you mean 'vicreg\.variance'"):
        selfsup.train(Unregistered, out=tmp_path / "other", vicreg={"varance": 1.0}, **given)
