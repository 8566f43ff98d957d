"""A device that is not there: tensors that count as its own, and what would make the host wait for it.

An `OnDevice` tensor says that it is on `meta` and holds its numbers on the CPU, so that a step runs as it would on an
accelerator, with values, and every read of one from the host is seen.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map

import selfsup

DEVICE = torch.device("meta")
AUTOCAST = ("autocast", "is_autocast_enabled", "get_autocast_dtype")  # which know no such device
ROOT = Path(selfsup.__file__).parent
# Operations that need numbers, or the size of their result depends on them.
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "bincount", "histc", "argwhere",
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        shape: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made: OnDevice = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **shape)
        return made

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of Waits")


class Waits(TorchDispatchMode):
    """Within it work is done as on the device; `found` counts the places in the package where the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._own = {name: getattr(torch, name) for name in (*AUTOCAST, "inference_mode", "tensor")}

    def __enter__(self) -> Waits:
        for name in AUTOCAST:
            setattr(torch, name, partial(_as_on_the_host, self._own[name]))
        torch.tensor = partial(_made, self._own["tensor"])
        torch.inference_mode = _without_gradients  # type: ignore[misc,assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, own in self._own.items():
            setattr(torch, name, own)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [value for value in _flat((args, kwargs)) if isinstance(value, Tensor)]
        here = any(isinstance(value, OnDevice) for value in given)
        asked = kwargs.get("device")
        to_host = asked is not None and torch.device(asked).type == "cpu"
        made_here = (here or (asked is not None and torch.device(asked).type == DEVICE.type)) and not to_host
        if asked is not None and made_here:
            kwargs["device"] = torch.device("cpu")
        if here and (self._waits(func, args, kwargs) or to_host or _is_copied_to_host(func, args)):
            self.found[_place()] += 1
        held = tree_map(lambda value: value.held if isinstance(value, OnDevice) else value, (args, kwargs))
        out = func(*held[0], **held[1])
        if not made_here or _is_copied_to_host(func, args):
            return out
        wrapped = tree_map(lambda value: OnDevice(value) if type(value) is Tensor else value, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped

    @staticmethod
    def _waits(func: Any, args: Any, kwargs: Any) -> bool:
        name = func._schema.name.removeprefix("aten::")
        if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            return True
        places = args[1] if name in ("index", "index_put", "index_put_", "_unsafe_index") else ()
        return any(isinstance(place, Tensor) and place.dtype in (torch.bool, torch.uint8) for place in places)


def _as_on_the_host(own: Callable[..., Any], device: str, *given: Any, **named: Any) -> Any:
    return own("cpu" if device == DEVICE.type else device, *given, **named)


def _made(own: Callable[..., Tensor], *given: Any, device: Any = None, **named: Any) -> Tensor:
    """What `torch.tensor` makes, which asks no mode."""
    here = device is not None and torch.device(device).type == DEVICE.type
    made = own(*given, device=None if here else device, **named)
    return OnDevice(made) if here else made


def _without_gradients(mode: bool = True) -> Any:
    """In place of inference mode, in which a tensor cannot be held by another one."""
    return torch.no_grad()


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [inner for each in value.values() for inner in _flat(each)]
    if isinstance(value, list | tuple):
        return [inner for each in value for inner in _flat(each)]
    return [value]


def _is_copied_to_host(func: Any, args: Any) -> bool:
    return func._schema.name == "aten::copy_" and not isinstance(args[0], OnDevice) and isinstance(args[1], OnDevice)


def _place() -> str:
    """The function of the package that waits, such as `step.py evaluate`."""
    for frame in reversed(traceback.extract_stack()):
        if Path(frame.filename).is_relative_to(ROOT):
            return f"{Path(frame.filename).relative_to(ROOT)} {frame.name}"
    return "outside of the package"


def to_device(module: nn.Module) -> nn.Module:
    """Let all parameters and buffers of a module be of the device; what is shared stays shared."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                own = nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
                part._parameters[name] = made.setdefault(id(parameter), own)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = made.setdefault(id(buffer), OnDevice(buffer))
    return module
