"""What functions are given from Python: wrong types and values are refused before anything is done with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import numpy as np

from selfsup.config import shown
from selfsup.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")


def _text(value: object) -> bool:
    return isinstance(value, str)


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _natural(value: object) -> bool:
    return (value == 0 and _whole(value)) or _count(value)


def _share(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and 0 <= float(value) <= 1


def _size(value: object) -> bool:
    return value in ("auto", "none") or _count(int(value) if isinstance(value, str) and value.isdecimal() else value)


PRECISIONS = ("auto", "fp32", "bf16")
KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(
        (
            "column",
            "id_column",
            "label",
            "protocol",
            "to",
            "device",
            "where",
            "text",
            "query",
            "split",
            "quantize",
            "revision",
        ),
        (_text, "a text"),
    ),
    **dict.fromkeys(
        ("batch", "top", "candidates", "size", "window", "records", "per_document", "workers"),
        (_count, "a whole number of 1 or more"),
    ),
    "passages": (_size, "auto, none or a whole number of 1 or more"),
    "overlap": (_natural, "a whole number of 0 or more"),
    "seed": (_whole, "a whole number"),
    "precision": (PRECISIONS.__contains__, "auto, fp32 or bf16"),
    "failures": (_share, "a share from 0 to 1"),
}  # of arguments, by name, whatever the function


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which raises a UserError for an argument of `KINDS` that is none. None may stand for a default of
    None."""
    called = signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in called.bind(*args, **kwargs).arguments.items():
            fits, what = KINDS.get(name, (None, ""))
            left_open = value is None and called.parameters[name].default is None
            if fits is not None and not left_open and not fits(value):
                raise UserError(f"{name} is {shown(value)}; give {what}.")
        return function(*args, **kwargs)

    return call
