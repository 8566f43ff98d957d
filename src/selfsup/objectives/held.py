"""A network that an objective uses and does not train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn

from selfsup.objectives.base import Objective


class HoldsTeacher(Objective):
    """An objective with a teacher that stands still: it goes where the objective goes, and is no part of its state, its
    parameters or its mode, for it is what it was wherever it was opened."""

    teacher: Any

    def hold(self, teacher: nn.Module) -> None:
        vars(self)["teacher"] = teacher.requires_grad_(False).eval()  # past what registers modules

    def _apply(self, function: Callable[..., Any], recurse: bool = True) -> Self:
        self.teacher._apply(function, recurse)
        return super()._apply(function, recurse)  # type: ignore[no-any-return, no-untyped-call]
