"""A training as it begins: its recipe on what a request looks at, and its first records."""

from __future__ import annotations

from selfsup.data.mixing import is_mixture
from selfsup.data.mixture import drawn
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inspection.base import Request
from selfsup.objectives.custom import CustomRecipe
from selfsup.objectives.recipe import Recipe
from selfsup.run import Run


def looks_at_own(request: Request) -> bool:
    """Whether the data of a run itself are looked at."""
    given = request.text is not None or request.data is not None
    return request.run is not None and not given and Run(request.run).exists


def composed(request: Request) -> Recipe:
    """The recipe on the data of a request, else on those of its run, else on the example.

    Raises:
        UserError: the data of the run came from Python, or are a mixture.
    """
    settings, kind, data, own = request.settings, request.kind, request.data, looks_at_own(request)
    if own and settings["data.source"].startswith("python:"):
        raise UserError(f"{request.run} was trained on data given from Python; name data with --data.")
    if is_mixture(settings["data.source"] if own else data):
        raise UserError("One source is looked at, not a mixture of several; name one of them by --data.")
    if isinstance(data, str):
        settings.change("data.source", data, "given")
    elif data is None and not own and issubclass(kind, Recipe):
        settings.change("data.source", kind.example, "given")
    source = None if isinstance(data, str) else data
    if issubclass(kind, Recipe):
        return kind(settings, source, request.module)
    return CustomRecipe(settings, source, request.module, kind)


def first_batch(recipe: Recipe, most: int) -> Batch:
    """The records that a training takes first."""
    seed, size = recipe.settings["train.seed"], len(recipe.train)
    epochs, places = drawn(recipe.train, seed, 0, min(most, size))
    return Batch(recipe.train.read(places), seed, epochs, places)
