"""Self-supervised learning: hide part of the data, show the rest, train a model to predict what is hidden.

Importing this package starts nothing and imports nothing heavy.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` would take longer than all else that runs before a command can be stopped in order
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# The commands, and what else programs use, by where it is.
_PUBLIC = {
    "train": "selfsup.training",
    "plan": "selfsup.training",
    "prepare": "selfsup.preparing",
    "measure_machine": "selfsup.rates",  # the command `machine`; selfsup.machine is a module
    "adapt": "selfsup.adapting",
    "inspect": "selfsup.inspection",
    "compare": "selfsup.comparison",
    "write_report": "selfsup.reporting",  # the command `report`; selfsup.report is a module
    "checkpoint": "selfsup.keeping",
    "studio": "selfsup.serving.studio",
    "doctor": "selfsup.diagnosis",
    "generate": "selfsup.inference.writing",
    "fill": "selfsup.inference.writing",
    "show": "selfsup.inspection.show",
    "evaluate": "selfsup.evaluation",
    "zero_shot": "selfsup.inference.zero_shot",
    "probe": "selfsup.evaluation.probe",
    "classify": "selfsup.evaluation.probe",
    "export": "selfsup.exporting",
    "push": "selfsup.pushing",
    "embed": "selfsup.inference.embed",
    "index": "selfsup.inference.indexing",
    "delete": "selfsup.inference.search",
    "search": "selfsup.inference.search",
    "serve": "selfsup.serving.api",
    "diagnose": "selfsup.diagnosis",
    "load": "selfsup.inference.opening",
    "Searcher": "selfsup.inference.search",
    "Run": "selfsup.run",
    "Batch": "selfsup.data.records",
    "Objective": "selfsup.objectives.base",
    "Recipe": "selfsup.objectives.recipe",
    "Task": "selfsup.objectives.base",
    "Outputs": "selfsup.objectives.base",
    "Collectives": "selfsup.objectives.base",
    "generator": "selfsup.seeding",
    "UserError": "selfsup.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'selfsup' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
