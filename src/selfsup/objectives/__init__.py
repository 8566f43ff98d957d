"""Objectives by name; a module is imported when its objective is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from selfsup.config import SECTIONS, Section, Settings, flatten, nearest, shown
from selfsup.errors import UserError
from selfsup.objectives.base import Objective
from selfsup.objectives.recipe import Recipe

RECIPES = {
    "causal-lm": "selfsup.objectives.causal_lm:CausalLMRecipe",
    "masked-lm": "selfsup.objectives.masked_lm:MaskedLMRecipe",
    "simcse": "selfsup.objectives.simcse:SimCSERecipe",
    "pairs": "selfsup.objectives.pairs:PairsRecipe",
    "tsdae": "selfsup.objectives.tsdae:TSDAERecipe",
    "simclr": "selfsup.objectives.simclr:SimCLRRecipe",
    "vicreg": "selfsup.objectives.vicreg:VICRegRecipe",
    "dino": "selfsup.objectives.dino:DINORecipe",
    "lejepa": "selfsup.objectives.lejepa:LeJEPARecipe",
    "mae": "selfsup.objectives.mae:MAERecipe",
    "clip": "selfsup.objectives.clip:CLIPRecipe",
    "distill": "selfsup.objectives.distill:DistillRecipe",
}
DEFAULT = "causal-lm"
# Sections of the settings that one objective alone reads.
OWNERS = {**{name.replace("-", "_"): name for name in RECIPES}, "text": "clip"}
NOTHING: Mapping[str, Any] = MappingProxyType({})


def find_recipe(name: str, values: Mapping[str, Any] = NOTHING) -> type[Recipe]:
    """The recipe of an objective, of several the one that its settings ask for: `values`, nested or by dotted keys.

    Raises:
        UserError: there is no objective of that name; what its settings name to choose by is none.
    """
    if name.startswith("python:"):
        raise UserError(f"The objective {name} is no part of selfsup; go on from Python and pass it to selfsup.train.")
    if name not in RECIPES:
        if os.path.exists(name):
            raise UserError(f"There is no objective {shown(name)}; data is given by --data, behind the objective.")
        raise UserError(f"There is no objective {shown(name)}{nearest(name, list(RECIPES))}")
    module, _, attribute = RECIPES[name].partition(":")
    recipe: type[Recipe] = getattr(import_module(module), attribute)
    return recipe.fitting(dict(flatten(values)))


def recipe_of(settings: Settings) -> type[Recipe]:
    """The recipe of the objective that settings name, as they ask for it; raises what `find_recipe` does."""
    return find_recipe(settings["objective"], settings.values())


def resolve(*layers: tuple[str, Mapping[str, Any]]) -> Settings:
    """Layers of values as the settings of the objective that they name, see `selfsup.config.Settings`.

    Raises:
        UserError: there is no such objective, or a setting of another one is given.
    """
    named = [layer["objective"] for _, layer in layers if layer.get("objective") is not None]
    objective = str(named[-1] if named else DEFAULT)
    if objective.startswith("python:"):  # whose sections are known to its class alone
        return Settings(*layers)
    given = {key: value for _, layer in layers for key, value in flatten(layer)}
    sections = find_recipe(objective, given).sections()
    names: set[str] = {*OWNERS, *sections}
    for _, layer in layers:
        for key, _ in flatten(layer, sections=names | set(SECTIONS)):
            require_own(key, objective, sections)
    return Settings(*layers, sections=sections)


def require_own(key: str, objective: str, sections: Mapping[str, type[Section]]) -> None:
    """Raise a UserError where a dotted key is a setting of another objective."""
    section = key.partition(".")[0]
    if section in OWNERS and section not in sections:
        raise UserError(f"{key} is a setting of {OWNERS[section]}, not of {objective}; leave it out.")


def python_name(kind: type) -> str:
    """The name of a class from Python in a configuration."""
    return f"python:{kind.__module__}.{kind.__qualname__}"


def find_declared(name: str, values: Mapping[str, Any] = NOTHING) -> type[Recipe] | type[Objective] | None:
    """The class that says what an objective is, with such settings; None where there is none, or it comes from Python
    and is not loaded."""
    loaded: dict[str, type[Recipe] | type[Objective]] = {python_name(kind): kind for kind in _below(Recipe, Objective)}
    if name in loaded:
        return loaded[name]
    try:
        return find_recipe(name, values)
    except UserError:
        return None


def declared(name: str, values: Mapping[str, Any] = NOTHING) -> type[Recipe] | type[Objective]:
    """The same, with the defaults of one that is not known."""
    return find_declared(name, values) or Recipe


def _below(*kinds: Any) -> Iterator[Any]:
    for kind in kinds:
        yield from kind.__subclasses__()
        yield from _below(*kind.__subclasses__())
