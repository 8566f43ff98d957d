"""How training goes on from weights that are there without losing what they know: what of them is trained at all, and
how far it may go."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from selfsup.config import Settings
from selfsup.errors import UserError
from selfsup.objectives.base import Objective


class Adaptation:
    """What the settings say of it.

    Args:
        bodies: see `Recipe`.

    Raises:
        UserError: something is asked for that needs weights to start from, and there are none.
    """

    def __init__(self, settings: Settings, bodies: Sequence[tuple[str, str]]) -> None:
        self.settings = settings
        self.bodies = [name for key, name in bodies if settings[key] is not None]
        if settings["optim.l2_sp"] is not None and not self.bodies:
            raise UserError(
                "optim.l2_sp pulls to the weights that a run starts from, and there are none; name them by --init, or "
                "leave it out."
            )

    def started(self, objective: Objective) -> list[nn.Parameter]:
        """The parameters that were started from weights."""
        return [parameter for name in self.bodies for parameter in objective.get_submodule(name).parameters()]

    def apply(self, objective: Objective) -> None:
        """Freeze what is to stay as it is; raises a UserError where a name is of nothing, or nothing is left."""
        patterns = self.settings["model.freeze"]
        named = dict(objective.named_parameters())
        for pattern in patterns:
            found = [parameter for name, parameter in named.items() if _fits(name, pattern)]
            if not found:
                raise UserError(
                    f"model.freeze names {pattern!r}, and no parameter is called so{_nearest(pattern, named)}"
                )
            for parameter in found:
                parameter.requires_grad = False
        if patterns and not any(parameter.requires_grad for parameter in named.values()):
            raise UserError(f"model.freeze={','.join(patterns)} leaves nothing to train; name fewer parameters.")

    def facts(self, objective: Objective) -> dict[str, str]:
        """How much of the network is trained, for the plan."""
        if not self.settings["model.freeze"]:
            return {}
        sizes = dict.fromkeys((True, False), 0)
        for parameter in objective.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        return {"trained": f"{sizes[True]:,} parameters; {sizes[False]:,} stay as they are"}


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern is a name, or some of the words between its dots."""
    return fnmatchcase(f".{name}.", f"*.{pattern}.*")


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """The names that come closest to a pattern, by as many of their words as that has."""
    words = pattern.count(".") + 1
    split = [name.split(".") for name in names]
    pieces = {".".join(name[start : start + words]) for name in split for start in range(len(name) - words + 1)}
    close = difflib.get_close_matches(pattern, sorted(pieces), 3, 0.3) or sorted(pieces)[:3]
    return f"; nearest are {', '.join(close)}." if close else "; names have fewer words."
