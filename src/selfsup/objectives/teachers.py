"""Teachers: which recipe learns what one says, how it is opened, and how a run knows it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeVar

from selfsup.config import Settings
from selfsup.errors import UserError
from selfsup.inference.base import Model
from selfsup.inference.opening import model_class
from selfsup.machine import find_device, find_precision
from selfsup.models.directories import find_model
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.objectives.sizes import TOKENS_PER_PARAMETER
from selfsup.objectives.starting import make_absolute

M = TypeVar("M", bound=Model)

# By what the teacher is, in the words of `Model.kind`: the recipe that learns from it.
STUDENTS = {
    "a text encoder": "selfsup.objectives.distill:DistillRecipe",
    "an image encoder": "selfsup.objectives.distill_images:ImageDistillationRecipe",
    "an image-text model": "selfsup.objectives.distill_images:ImageDistillationRecipe",  # from its tower of images
    "a decoder": "selfsup.objectives.distill_tokens:TokenDistillationRecipe",
}


def student_of(values: Mapping[str, Any], default: type[Recipe]) -> type[Recipe]:
    """The recipe that learns from the teacher that settings name by their dotted keys: by what it is as they say, or
    else by what its directory holds; `default` where they name none.

    Raises:
        UserError: there is no teacher there, or one of a kind that nothing here learns from.
    """
    place, kind = values.get("distill.teacher"), values.get("distill.kind")
    if kind is None and isinstance(place, str):
        kind = model_class(find_model(place)).kind
    if not isinstance(kind, str):  # none, or what the schema refuses
        return default
    if kind not in STUDENTS:
        raise UserError(f"{place} holds {kind}, and distill learns from {' or '.join(STUDENTS)}; give one.")
    module, _, attribute = STUDENTS[kind].partition(":")
    recipe: type[Recipe] = getattr(import_module(module), attribute)
    return recipe


def open_teacher(settings: Settings, load: Callable[[str], M]) -> M:
    """The teacher that settings name, where the run computes. Its place, what it is and its fingerprint stand in the
    settings then.

    Args:
        load: opens a model of the kind that is learnt from, as `selfsup.inference.opening` has them.

    Raises:
        UserError: none is named, or there is none of that kind; it is not the one that the settings were made with.
    """
    if settings["distill.teacher"] is None:
        raise UserError("distill learns what a teacher says; name the run or model directory of one by --teacher.")
    make_absolute(settings, "distill.teacher")
    place, known = settings["distill.teacher"], settings["distill.fingerprint"]
    teacher = load(place)
    if known not in (None, teacher.fingerprint):
        raise UserError(
            f"The teacher {place} is not the one whose answers are learnt here (its fingerprint is "
            f"{teacher.fingerprint}, not {known}); restore it, or learn from it anew with distill.fingerprint=null."
        )
    settings.settle("distill.kind", teacher.kind, "teacher")
    settings.settle("distill.fingerprint", teacher.fingerprint, "teacher")
    teacher.to(find_device(settings["train.device"]))
    return teacher


def beside_teacher(effort: Effort, taught: float) -> Effort:
    """What is left of operations for a student whose size suits what it can see, where a teacher takes so many
    (`taught`) for each token or patch.

    Of p parameters it sees r · p tokens, for 6 · p operations each and t of the teacher's: of f operations in all,
    p = (sqrt(t² + 24 f / r) − t) / 12.
    """
    if effort.flops is None:
        return effort
    ratio = TOKENS_PER_PARAMETER
    parameters = (math.sqrt(taught**2 + 24 * effort.flops / ratio) - taught) / 12
    return replace(effort, flops=6 * ratio * parameters**2)


def precision_of(settings: Settings) -> str:
    """In which a teacher computes: that of the run."""
    return find_precision(settings["train.precision"], find_device(settings["train.device"]))
