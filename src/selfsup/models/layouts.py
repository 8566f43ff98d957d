"""Layouts of other libraries as tables: where their JSON says what a configuration here says, and what else it says.

A layout is data. One way serves all to write a configuration and weights as the other library reads them, to read what
it wrote, to write that back with what was in it beside, and to refuse in one sentence what the network here cannot be.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.models.directories import CONFIG, MOST, broken, damaged, number, read_config, read_weights, shown, whole
from selfsup.models.huggingface import write_network

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ABSENT: Any = object()
OR_NONE = " | None"
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
        words: what the file calls each value here, where it has names of its own; the first for a value is written.
    """

    keys: tuple[str, ...]
    default: Any = ABSENT
    elsewhere: tuple[str, ...] = ()
    least: float | None = None
    most: float = MOST
    words: Mapping[Any, Any] = field(default_factory=dict)

    def word(self, value: Any) -> Any:
        """What the file calls a value."""
        return next((word for word, meant in self.words.items() if meant == value), value)


def at(*keys: str, default: Any = ABSENT, elsewhere: tuple[str, ...] = (), **bounds: Any) -> Place:
    """A `Place`."""
    return Place(keys, default, elsewhere, **bounds)


class Unfit(UserError):
    """A model of a layout that is known, whose arithmetic is not the one here."""


@dataclass(frozen=True)
class Said:
    """The content of a file, or an object in it, read with care: null is as if nothing were there.

    All raise UserError for a value that no network has; `word` and `words` raise `Unfit` for one that none here has.
    """

    content: Mapping[str, Any]
    path: Path

    def get(self, key: str, default: Any = None) -> Any:
        return default if self.content.get(key) is None else self.content[key]

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        return self._checked(key, default, lambda value: whole(value, least))  # type: ignore[no-any-return]

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._checked(key, default, lambda value: number(value, 1e-30)))

    def flag(self, key: str, default: bool) -> bool:
        return self._checked(key, default, lambda value: isinstance(value, bool))  # type: ignore[no-any-return]

    def word(self, key: str, known: Iterable[str], default: str) -> str:
        return self._known(key, self.get(key, default), known)

    def words(self, key: str, known: Iterable[str]) -> list[str]:
        return [self._known(key, word, known) for word in self._checked(key, [], lambda value: isinstance(value, list))]

    def part(self, key: str) -> Said:
        return Said(self._checked(key, {}, lambda value: isinstance(value, dict)), self.path)

    def broken(self, key: str) -> UserError:
        return broken(self.path, key, self.content.get(key))

    def _checked(self, key: str, default: Any, holds: Callable[[Any], bool]) -> Any:
        value = self.get(key, default)
        if value is None:
            raise damaged(f"{self.path} lacks '{key}'")
        if not holds(value):
            raise self.broken(key)
        return value

    def _known(self, key: str, value: Any, known: Iterable[str]) -> str:
        if value not in (known := list(known)):
            raise unfit(self.path, key, value, f"models with {' or '.join(known)}")
        return str(value)


def unfit(path: Path, key: str, found: Any, known: str) -> Unfit:
    """What is said of a value that a network has, and none here."""
    return Unfit(f"{path} has {key} = {shown(found)}; only {known} can be loaded")


@dataclass(frozen=True)
class Layout(Generic[C]):
    """How a configuration here stands in a JSON file of another library.

    Attributes:
        kind: the configuration, a dataclass. Its field `layout`, where it has one, is the `model_type`.
        places: of its fields.
        given: the fields that are the same in all networks of this layout, and of which its files say nothing.
        facts: of the fields that follow from several keys, what a file says of them; they are only read.
        name: what messages call networks of this layout.
        model_type: what `model_type` must say; None where the file is of no network.
        fixed: keys that are written, and that say nothing else where they are read, for the network here has only that.
        refused: keys of other versions, which are only read, with the one value that they may have beside null.
        derived: the same as `fixed`, of what follows from the configuration.
        written: keys that are written, and not looked at.
        names: how parameters are called there, by what they are called here where that differs: see `renamed`.
        parts: of matrices and biases here that stand there as several of one size, the names of these, first to last.
        flat: tensors here that have so many dimensions of one more, before the others, than they have there.
        inner, prefix: what stands here, and there, before the names of a network beside which a head stands.
        spare: how names there begin, with the prefix or without it, of weights that no network here has. They are kept
            where a model is written back; any other one that is unknown is refused.
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
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flat: Mapping[str, int] = field(default_factory=dict)
    inner: str = ""
    prefix: str = ""
    spare: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Callable[[Said], Any]] = field(default_factory=dict)

    def save(
        self,
        directory: Path,
        config: C,
        network: nn.Module,
        architecture: str | None,
        more: Mapping[str, Any] | None = None,
        origin: Path | None = None,
    ) -> None:
        """Write config.json and the weights, in fp32, into a directory that exists.

        Args:
            architecture: the class of the other library that opens it; None for that of the origin.
            more: what else config.json is to say.
            origin: a model directory of this layout, of which everything is kept that does not stand in `network` and
                its configuration: other keys of config.json, other weights.
        """
        own = ({"architectures": [architecture]} if architecture else {}) | dict(more or {})
        if origin is None:
            write_network(directory, self.write(config) | own, self._theirs(network.state_dict(), False))
            return
        content, weights = self.merged(read_config(origin), read_weights(origin), config, network, origin)
        write_network(directory, content | own, weights)

    def merged(
        self, saved: Mapping[str, Any], there: Mapping[str, Tensor], config: C, network: nn.Module, directory: Path
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What config.json of a model directory says, and its weights, with a network in place of its own."""
        weights = self._theirs(network.state_dict(), self._prefixed(there))
        before = self.prefix if self._prefixed(weights) and not self._prefixed(there) else ""
        spare = {before + name: tensor for name, tensor in there.items() if self._spare(name)}
        return self._updated(saved, config, directory / CONFIG), spare | weights

    def open(self, directory: Path) -> C:
        """As `read`, of the config.json of a model directory."""
        return self.read(read_config(directory), directory / CONFIG)

    def opened(self, directory: Path) -> Opened[C]:
        """The configuration and the weights of a model directory. Raises UserError as `read`, and where files are
        missing or damaged; whether the weights fit is for `huggingface.built` to say."""
        self.open(directory)  # before weights are read, which may take long
        return self.found(read_config(directory), read_weights(directory), directory)

    def found(self, saved: Mapping[str, Any], there: Mapping[str, Tensor], directory: Path) -> Opened[C]:
        """The same, of what was read from a directory."""
        config = self.read(saved, directory / CONFIG)
        prefix = self.prefix if self._prefixed(there) else ""
        known = {name: tensor for name, tensor in there.items() if not self._spare(name)}
        inner = {name.removeprefix(prefix): w for name, w in known.items() if name.startswith(prefix)}
        head = {name: w for name, w in known.items() if not name.startswith(prefix)}
        return Opened(directory, config, self._inward(inner), self._inward(head), self.inner)

    def _prefixed(self, weights: Mapping[str, Tensor]) -> bool:
        return bool(self.prefix) and any(name.startswith(self.prefix) for name in weights)

    def _spare(self, name: str) -> bool:
        return name.startswith(self.spare) or name.removeprefix(self.prefix).startswith(self.spare)

    def theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a network by the names that they have in the class which opens it alone, or with its head."""
        return self._theirs(weights, False)

    def _theirs(self, weights: Mapping[str, Tensor], prefixed: bool) -> dict[str, Tensor]:
        """Weights of a network by the names there; with the prefix where a head stands beside it, or where asked."""
        headed = bool(self.inner) and any(name.startswith(self.inner) for name in weights)
        inner = self.inner if headed else ""
        own = {name.removeprefix(inner): w for name, w in weights.items() if name.startswith(inner)}
        head = {name: w for name, w in weights.items() if not name.startswith(inner)}
        prefix = self.prefix if headed or prefixed else ""
        return {prefix + name: w for name, w in self._outward(own).items()} | self._outward(head)

    def _outward(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parted = {place for name in self.parts for place, _ in _found(name, weights)}
        others = {name: w.flatten(0, self.flat.get(name, 0)) for name, w in weights.items() if name not in parted}
        return renamed(others, self.names) | _cut(weights, self.parts)

    def _inward(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        joined = _joined(weights, self.parts)
        parted = _cut(joined, self.parts)
        others = {name: w for name, w in weights.items() if name not in parted}
        own = renamed(others, {theirs: ours for ours, theirs in self.names.items()})
        return {name: w[(None,) * self.flat.get(name, 0)] for name, w in own.items()} | joined

    def _updated(self, saved: Mapping[str, Any], config: C, path: Path) -> dict[str, Any]:
        """What a file says, and of each field that is another one now what it is."""
        content, before = copy.deepcopy(dict(saved)), self.read(saved, path)
        for name, place in self.places.items():
            if (value := getattr(config, name)) != getattr(before, name):
                for key in place.keys:
                    _put(content, key, place.word(value))
        return content | FP32

    def write(self, config: C) -> dict[str, Any]:
        """What the file says of a configuration."""
        content: dict[str, Any] = {} if self.model_type is None else {"model_type": self.model_type}
        for name, place in self.places.items():
            for key in place.keys:
                _put(content, key, place.word(getattr(config, name)))
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
        values |= {name: fact(Said(saved, path)) for name, fact in self.facts.items()}
        of_layout = {"layout": self.model_type} if "layout" in types else {}
        try:
            config = self.kind(**of_layout | {**self.given} | values)
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
        if found not in (ABSENT, value) and not (found is None and key in self.refused):
            raise unfit(path, key, found, f"{self.name} with {shown(value)}")


@dataclass(frozen=True)
class Opened(Generic[C]):
    """What a model directory holds.

    Attributes:
        weights: those of the network, by the names here.
        head: those of the head beside it, likewise.
        inner: what stands before the names of the network where the two are one module.
    """

    directory: Path
    config: C
    weights: dict[str, Tensor]
    head: dict[str, Tensor]
    inner: str

    @property
    def whole(self) -> dict[str, Tensor]:
        """The weights of the network with its head."""
        return {self.inner + name: tensor for name, tensor in self.weights.items()} | self.head


def find_layout(layouts: Mapping[str, Layout[C]], directory: Path) -> Layout[C]:
    """The one of a model directory; raises UserError where it is none of these."""
    found = read_config(directory).get("model_type")
    if isinstance(found, str) and found in layouts:
        return layouts[found]
    known = ", ".join(sorted(layouts))
    raise UserError(
        f"{directory} holds a model of type {found!r}, and what is opened by itself here is {known}; "
        f"other ones of texts open with model=hf:{directory}."
    )


def _value(place: Place, kind: str, saved: Mapping[str, Any], path: Path) -> Any:
    """What a file says of a field of a type."""
    found = ((key, _find(saved, key, path)) for key in (*place.keys, *place.elsewhere))
    nowhere = (place.keys[0], place.default)
    key, value = next(((key, value) for key, value in found if value is not ABSENT), nowhere)
    if value is ABSENT:
        raise damaged(f"{path} lacks '{key}'")
    value = place.words.get(value, value) if isinstance(value, str) else value
    if place.words and value not in place.words.values():
        raise unfit(path, key, value, f"models with {' or '.join(map(str, place.words))}")
    if not _fits(value, kind, place):
        raise broken(path, key, value)
    return float(value) if kind.startswith("float") and value is not None else value


def _fits(value: Any, kind: str, place: Place) -> bool:
    if place.words:
        return value in place.words.values()
    if kind.endswith(OR_NONE):
        return value is None or _fits(value, kind.removesuffix(OR_NONE), place)
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


def _cut(weights: Mapping[str, Tensor], parts: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The parts of the weights that have some, by the names of these."""
    cut: dict[str, Tensor] = {}
    for name, others in parts.items():
        for place, layer in _found(name, weights):
            pieces = weights[place].chunk(len(others))
            cut |= zip((_numbered(other, layer) for other in others), pieces, strict=True)
    return cut


def _joined(weights: Mapping[str, Tensor], parts: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The weights that parts make, where all are there and of one size."""
    joined: dict[str, Tensor] = {}
    for name, others in parts.items():
        for _, layer in _found(others[0], weights):
            pieces = [weights.get(_numbered(other, layer), torch.empty(0)) for other in others]
            if len({piece.shape for piece in pieces}) == 1:
                joined[_numbered(name, layer)] = torch.cat(pieces)
    return joined


def _found(name: str, weights: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The weights that a name with a `*` stands for, and the number of the layer of each."""
    found = [(place, match) for place in weights if (match := _pattern(name).fullmatch(place))]
    return [(place, "".join(match.groups())) for place, match in found]


def _numbered(name: str, layer: str) -> str:
    return name.replace("*", layer)


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
