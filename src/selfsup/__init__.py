"""Self-supervised learning: hide part of the data, show the rest, train a model to predict what is hidden.

Importing this package starts nothing and imports nothing heavy.
"""

from __future__ import annotations

TYPE_CHECKING = (
    False  # `typing` would take longer than all else that runs before a command can be stopped in order
)
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "train": "selfsup.training",
    "plan": "selfsup.training",
    "load": "selfsup.inference.opening",
    "inspect": "selfsup.inspection",
    "show": "selfsup.inspection.show",
    "evaluate": "selfsup.evaluation",
    "compare": "selfsup.comparison",
    "embed": "selfsup.inference.embed",
    "index": "selfsup.inference.indexing",
    "delete": "selfsup.inference.search",
    "search": "selfsup.inference.search",
    "Searcher": "selfsup.inference.search",
    "zero_shot": "selfsup.inference.zero_shot",
    "export": "selfsup.exporting",
    "doctor": "selfsup.diagnosis",
    "diagnose": "selfsup.diagnosis",
    "Run": "selfsup.run",
    "Objective": "selfsup.objectives.base",
    "Recipe": "selfsup.objectives.recipe",
    "UserError": "selfsup.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'selfsup' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
