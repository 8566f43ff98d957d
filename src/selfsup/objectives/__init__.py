"""Objectives by name; a module is imported when its objective is asked for."""

from __future__ import annotations

from importlib import import_module

from selfsup.config import nearest
from selfsup.errors import UserError
from selfsup.objectives.base import Recipe

RECIPES = {
    "causal-lm": "selfsup.objectives.causal_lm:CausalLMRecipe",
    "masked-lm": "selfsup.objectives.masked_lm:MaskedLMRecipe",
    "simcse": "selfsup.objectives.simcse:SimCSERecipe",
}


def find_recipe(name: str) -> type[Recipe]:
    """The recipe of an objective.

    Raises:
        UserError: there is no objective of that name.
    """
    if name.startswith("python:"):
        raise UserError(
            f"The objective {name} is no part of selfsup; go on from Python and pass it to selfsup.train."
        )
    if name not in RECIPES:
        raise UserError(f"There is no objective '{name}'{nearest(name, list(RECIPES))}")
    module, _, attribute = RECIPES[name].partition(":")
    recipe: type[Recipe] = getattr(import_module(module), attribute)
    return recipe
