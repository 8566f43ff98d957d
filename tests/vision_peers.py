"""timm, whose import asks for torchvision, on machines where that has no build that fits torch."""

from __future__ import annotations

import enum
import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = (
    "",
    ".datasets",
    ".models",
    ".models.feature_extraction",
    ".ops",
    ".ops.misc",
    ".transforms",
    ".transforms.functional",
    ".utils",
)
Modes = enum.Enum("Modes", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")


class Hollow(types.ModuleType):
    """A module that has every class, empty: what timm's networks need of torchvision is to be imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Modes if name == "InterpolationMode" else type(name, (), {})


@contextmanager
def hollow_torchvision() -> Iterator[None]:
    """Stand-ins for torchvision during the block, where it cannot be imported."""
    try:
        importlib.import_module("torchvision.ops.misc")
    except (ImportError, RuntimeError):
        pass
    else:
        yield
        return
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    modules = {f"torchvision{name}": Hollow(f"torchvision{name}") for name in NAMES}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def timm_in_transformers(patch: pytest.MonkeyPatch) -> Any:
    """The module transformers, which asks for torchvision before it opens a network of timm."""
    import transformers

    def there() -> bool:
        return True

    backends = transformers.utils.import_utils.BACKENDS_MAPPING
    patch.setitem(backends, "timm", (there, backends["timm"][1]))
    patch.setattr(transformers.utils, "is_timm_available", there)
    wrapper = importlib.import_module("transformers.models.timm_wrapper.configuration_timm_wrapper")
    for name in ("ImageNetInfo", "infer_imagenet_subset"):  # where it was imported before timm was there
        patch.setattr(wrapper, name, getattr(sys.modules["timm.data"], name), raising=False)
    return transformers


def timm() -> Any:
    """The module timm; the test is skipped where it is not installed."""
    with hollow_torchvision():
        return pytest.importorskip("timm")
