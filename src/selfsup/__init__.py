"""Self-supervised learning: hide part of the data, show the rest, train a model to predict what is hidden.

Importing this package starts nothing and imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "train": "selfsup.training",
    "plan": "selfsup.training",
    "load": "selfsup.run",
    "inspect": "selfsup.inspection",
    "show": "selfsup.inspection.show",
    "evaluate": "selfsup.evaluation",
    "compare": "selfsup.comparison",
    "embed": "selfsup.inference.embed",
    "index": "selfsup.inference.search",
    "delete": "selfsup.inference.search",
    "search": "selfsup.inference.search",
    "Searcher": "selfsup.inference.search",
    "zero_shot": "selfsup.inference.zero_shot",
    "export": "selfsup.exporting",
    "diagnose": "selfsup.doctor",
    "Run": "selfsup.run",
    "Objective": "selfsup.objectives.base",
    "Recipe": "selfsup.objectives.base",
    "UserError": "selfsup.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'selfsup' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)
