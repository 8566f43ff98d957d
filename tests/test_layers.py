"""The order of the layers: nothing imports what lies above it, at any time, and no modules import each other in a ring.

Imports within functions and for types count: what needs another module to be understood needs it.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import selfsup

ROOT = Path(selfsup.__file__).parent
# From the ground up. Names of one row may import each other (but in no ring); each may import what lies below.
LAYERS = (
    ("accounting",),
    ("errors", "files", "plots", "seeding", "plain_yaml", "run_files", "report", "machine", "stopping", "distributed"),
    ("config", "arguments", "checks", "pages", "saving", "sharding", "views", "accelerators"),
    ("data", "models"),
    ("inference",),
    ("objectives",),
    ("run", "step", "optim", "budget", "loggers", "rates"),
    ("diagnosis", "evaluation", "planning", "paper"),
    ("inspection", "exporting", "comparison", "preparing", "pushing", "reporting", "trainer"),
    ("training",),
    ("adapting", "keeping"),
    ("serving",),
    ("cli",),
    ("launch", "__main__"),
)
HEIGHT = {name: height for height, row in enumerate(LAYERS) for name in row}
# A file of one layer that looks like one of a higher one, and why: none.


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in its text."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("selfsup"):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in MODULES else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {module, "selfsup"}


GRAPH = {module: imports(module) for module in MODULES}


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "selfsup"


def test_every_file_belongs_to_a_layer() -> None:
    assert {layer(module) for module in MODULES} - {"selfsup"} == set(HEIGHT)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"selfsup"}))
def test_no_arrow_points_upwards(module: str) -> None:
    above = {other for other in GRAPH[module] if HEIGHT[layer(other)] > HEIGHT[layer(module)]}
    assert not above, f"{module} imports what lies above it"


def test_models_and_data_know_nothing_of_each_other() -> None:
    for module, others in GRAPH.items():
        names = {layer(other) for other in others}
        assert not (layer(module) == "models" and "data" in names), module
        assert not (layer(module) == "data" and "models" in names), module


def test_no_ring_of_modules() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in GRAPH[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_no_class_inherits_through_more_than_two_levels() -> None:
    """Two of our own classes above it, at most; `Exception` and what libraries bring do not count."""
    program = (
        "import importlib, json, pkgutil, selfsup\n"
        "modules = [m.name for m in pkgutil.walk_packages(selfsup.__path__, 'selfsup.') if '__main__' not in m.name]\n"
        "classes = {c for m in modules for c in vars(importlib.import_module(m)).values() if isinstance(c, type)}\n"
        "def depth(c):\n"
        "    own = [b for b in c.__bases__ if b.__module__.startswith('selfsup')]\n"
        "    return 1 + max(map(depth, own), default=-1)\n"
        "own = [c for c in classes if c.__module__.startswith('selfsup')]\n"
        "print(json.dumps(sorted(f'{c.__module__}.{c.__qualname__}' for c in own if depth(c) > 2)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
