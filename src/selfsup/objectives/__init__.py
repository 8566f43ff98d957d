"""Objectives by name; a module is imported when its objective is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module

from selfsup.config import nearest
from selfsup.errors import UserError
from selfsup.objectives.base import Declared, Objective, Recipe

RECIPES = {
    "causal-lm": "selfsup.objectives.causal_lm:CausalLMRecipe",
    "masked-lm": "selfsup.objectives.masked_lm:MaskedLMRecipe",
    "simcse": "selfsup.objectives.simcse:SimCSERecipe",
    "simclr": "selfsup.objectives.simclr:SimCLRRecipe",
    "dino": "selfsup.objectives.dino:DINORecipe",
    "mae": "selfsup.objectives.mae:MAERecipe",
    "clip": "selfsup.objectives.clip:CLIPRecipe",
}

# The same on a network that transformers opens.
PRETRAINED = {
    "causal-lm": "selfsup.objectives.pretrained:PretrainedCausalLMRecipe",
    "masked-lm": "selfsup.objectives.pretrained:PretrainedMaskedLMRecipe",
    "simcse": "selfsup.objectives.pretrained:PretrainedSimCSERecipe",
}


def find_recipe(name: str, model: str = "auto") -> type[Recipe]:
    """The recipe of an objective, for the model that a configuration names (`model.preset`).

    Raises:
        UserError: there is no objective of that name, or none for such a model.
    """
    if name.startswith("python:"):
        raise UserError(
            f"The objective {name} is no part of selfsup; go on from Python and pass it to selfsup.train."
        )
    if name not in RECIPES:
        if os.path.exists(name):
            raise UserError(f"There is no objective '{name}'; data is given by --data, behind the objective.")
        raise UserError(f"There is no objective '{name}'{nearest(name, list(RECIPES))}")
    recipes = PRETRAINED if model.startswith("hf:") else RECIPES
    if name not in recipes:
        raise UserError(f"{name} does not train {model}; {', '.join(recipes)} do.")
    module, _, attribute = recipes[name].partition(":")
    recipe: type[Recipe] = getattr(import_module(module), attribute)
    return recipe


def python_name(kind: type) -> str:
    """The name of a class from Python in a configuration."""
    return f"python:{kind.__module__}.{kind.__qualname__}"


def find_declared(name: str) -> type[Declared] | None:
    """The class that says what an objective is; None where there is none, or it comes from Python and is not loaded."""
    loaded = [kind for kind in (*_below(Recipe), *_below(Objective)) if python_name(kind) == name]
    if loaded:
        return loaded[-1]
    try:
        return find_recipe(name)
    except UserError:
        return None


def declared(name: str) -> type[Declared]:
    """The same, with the defaults of one that is not known."""
    return find_declared(name) or Declared


def _below(kind: type[Declared]) -> Iterator[type[Declared]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
