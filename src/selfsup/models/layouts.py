"""Layouts of other libraries as tables: where their JSON says what a configuration here says, and what else it says.

A layout is data. One way serves all to write a configuration as the other library reads it, to read one that it wrote,
and to refuse in one sentence what the network here cannot be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import nn

from selfsup.errors import UserError
from selfsup.models.directories import CONFIG, MOST, broken, damaged, number, read_config, shown, whole
from selfsup.models.huggingface import write_network

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ABSENT: Any = object()
FP32 = {"dtype": "float32", "torch_dtype": "float32"}  # the latter is what transformers 4 calls it

C = TypeVar("C", bound="DataclassInstance")
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a file says what one field of a configuration is.

    Attributes:
        keys: with dots where objects are nested; all of them are written, and the first that is there is read.
        default: what it means where none is there; without one, a file must say it.
        elsewhere: keys of other versions, which are only read, after the others.
        least, most: bounds of a number; by default a whole one is at least 1, another one above 0.
    """

    keys: tuple[str, ...]
    default: Any = ABSENT
    elsewhere: tuple[str, ...] = ()
    least: float | None = None
    most: float = MOST


def at(*keys: str, default: Any = ABSENT, elsewhere: tuple[str, ...] = (), **bounds: Any) -> Place:
    """A `Place`."""
    return Place(keys, default, elsewhere, **bounds)


@dataclass(frozen=True)
class Layout(Generic[C]):
    """How a configuration here stands in a JSON file of another library.

    Attributes:
        kind: the configuration, a dataclass.
        places: of each of its fields.
        name: what messages call networks of this layout.
        model_type: what `model_type` must say; None where the file is of no network.
        fixed: keys that are written, and that say nothing else where they are read, for the network here has only that.
        refused: keys of other versions, which are only read, with the one value that they may have.
        derived: the same as `fixed`, of what follows from the configuration.
        written: keys that are written, and not looked at.
        names: how parameters are called there, by what they are called here where that differs: see `renamed`.
    """

    kind: Callable[..., C]
    places: Mapping[str, Place]
    name: str = "models"
    model_type: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, Callable[[C], Any]] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def save(self, directory: Path, config: C, network: nn.Module, architecture: str, **more: Any) -> None:
        """Write config.json, with what else it is to say, and the weights in fp32 into a directory that exists."""
        content = {"architectures": [architecture], **self.write(config), **more}
        write_network(directory, content, renamed(network.state_dict(), self.names))

    def open(self, directory: Path) -> C:
        """As `read`, of the config.json of a model directory."""
        return self.read(read_config(directory), directory / CONFIG)

    def write(self, config: C) -> dict[str, Any]:
        """What the file says of a configuration."""
        content: dict[str, Any] = {} if self.model_type is None else {"model_type": self.model_type}
        for name, place in self.places.items():
            for key in place.keys:
                _put(content, key, getattr(config, name))
        follows = {key: value(config) for key, value in self.derived.items()}
        for key, value in {**follows, **self.fixed, **self.written}.items():
            _put(content, key, value)
        return content

    def read(self, saved: Mapping[str, Any], path: Path) -> C:
        """The configuration that the content of a file says. Raises UserError where it is of another layout or of a
        network that is none here, lacks something, has a value of another type or out of bounds, or has sizes that do
        not fit together."""
        self.require(saved, path)
        types = {field.name: str(field.type) for field in fields(self.kind)}  # type: ignore[arg-type]
        values = {name: _value(place, types[name], saved, path) for name, place in self.places.items()}
        try:
            config = self.kind(**values)
        except (ValueError, ZeroDivisionError) as error:
            raise damaged(f"{path} is broken ({error})") from None
        for key, follows in self.derived.items():
            self._require(key, follows(config), saved, path)
        return config

    def require(self, saved: Mapping[str, Any], path: Path) -> None:
        """Raise a UserError where a file is of another layout, or of a network that is none here."""
        if self.model_type not in (None, found := saved.get("model_type")):
            raise UserError(f"{path.parent} holds a model of type {found!r}; only {self.name} can be loaded")
        for key, value in {**self.refused, **self.fixed}.items():
            self._require(key, value, saved, path)

    def _require(self, key: str, value: Any, saved: Mapping[str, Any], path: Path) -> None:
        found = _find(saved, key, path)
        if found is not ABSENT and found != value:
            raise UserError(f"{path} has {key} = {shown(found)}; only {self.name} with {shown(value)} can be loaded")


def _value(place: Place, kind: str, saved: Mapping[str, Any], path: Path) -> Any:
    """What a file says of a field of a type."""
    found = ((key, _find(saved, key, path)) for key in (*place.keys, *place.elsewhere))
    nowhere = (place.keys[0], place.default)
    key, value = next(((key, value) for key, value in found if value is not ABSENT), nowhere)
    if value is ABSENT:
        raise damaged(f"{path} lacks '{key}'")
    if not _fits(value, kind, place):
        raise broken(path, key, value)
    return float(value) if kind == "float" else value


def _fits(value: Any, kind: str, place: Place) -> bool:
    if kind == "int":
        return whole(value, 1 if place.least is None else place.least, place.most)
    if kind == "float":
        return number(value, 1e-30 if place.least is None else place.least)
    return type(value).__name__ == kind


def _find(saved: Mapping[str, Any], key: str, path: Path) -> Any:
    """The value of a key with dots; `ABSENT` where it, or an object on the way to it, is not there."""
    first, _, rest = key.partition(".")
    value = saved.get(first, ABSENT)
    if not rest or value is ABSENT:
        return value
    if not value:  # such as null
        return ABSENT
    if not isinstance(value, dict):
        raise broken(path, first, value)
    return _find(value, rest, path)


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *objects, last = key.split(".")
    for name in objects:
        content = content.setdefault(name, {})
    content[last] = value


def renamed(weights: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Weights by other names: what a name begins with, up to a dot or its end, becomes what `names` has for it.

    The first key that fits counts. A `*` is the number of a layer, and stands for the same one in both.
    """
    known = {_pattern(name): other.replace("*", r"\1") for name, other in names.items()}
    return {_renamed(name, known): weight for name, weight in weights.items()}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"(\d+)") + r"(?=\.|$)")


def _renamed(name: str, known: Mapping[re.Pattern[str], str]) -> str:
    pattern = next((pattern for pattern in known if pattern.match(name)), None)
    return name if pattern is None else pattern.sub(known[pattern], name, count=1)
