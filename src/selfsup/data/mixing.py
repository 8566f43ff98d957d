"""A mixture of sources as a user writes it: a YAML file of plain values, or the same as a mapping from Python.

    sources:
      plays: {data: plays.txt, weight: 3}
      books: {data: "s3://bucket/books/", weight: 1}

docs/mixtures.md says what stands there. Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from selfsup.config import Rate, explain, shown
from selfsup.data.discovery import is_remote
from selfsup.errors import UserError
from selfsup.files import expanded, read_bytes
from selfsup.plain_yaml import MOST_BYTES, YAMLProblem, parse_yaml

FILES = (".yaml", ".yml")
NAMED = ("sample:", "hub:")  # what lies in no folder
HOW = "write `sources:` and below it a name for each, such as `plays: {data: plays.txt, weight: 3}`"

Name = Annotated[str, Field(pattern=r"^[\w.-]{1,40}$")]


class Ingredient(BaseModel):
    """One of the sources: a weight, or how many passes over it a pass over the mixture makes; and how it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Any
    weight: Rate | None = None
    epochs: Rate | None = None
    column: str | None = None
    split: Literal["train", "validation", "test", "all"] | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """How it is read otherwise than the other sources."""
        return {name: value for name in ("column", "split") if (value := getattr(self, name)) is not None}


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sources: dict[Name, Ingredient] = Field(min_length=1)


@dataclass(frozen=True)
class Mixing:
    """The sources of a mixture by their names, and what messages call it."""

    name: str
    sources: Mapping[str, Ingredient]

    def shares(self, sizes: Sequence[float]) -> list[float]:
        """What each has of the mixture, by the sizes of all in one unit; together 1."""
        parts = [one.weight or (one.epochs or 0.0) * size for one, size in zip(self._all, sizes, strict=True)]
        return [part / sum(parts) for part in parts]

    def once(self, sizes: Sequence[int]) -> float:
        """The records of one pass over the mixture: all, or each as often as it says."""
        return sum((one.epochs or 1.0) * size for one, size in zip(self._all, sizes, strict=True))

    def told(self) -> list[tuple[str, float | None, float | None]]:
        """All that the order of the records depends on beside their content."""
        return [(name, one.weight, one.epochs) for name, one in self.sources.items()]

    @property
    def _all(self) -> list[Ingredient]:
        return list(self.sources.values())

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """What is wrong with one of the sources is said with its name."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{name} in {self.name}: {error}") from None


def is_mixture(source: object) -> bool:
    """Whether a source names a mixture."""
    if isinstance(source, Mapping):
        return "sources" in source
    return isinstance(source, str | Path) and Path(source).suffix in FILES and not is_remote(source)


def read_mixture(source: Any) -> Mixing:
    """A mixture as it is written. Raises a UserError where it is none, or one of its sources cannot be meant."""
    if isinstance(source, Mapping):
        return _checked(source, "the mixture given from Python")
    path = expanded(source)
    try:
        values, _ = parse_yaml(read_bytes(path, MOST_BYTES))
    except (OSError, YAMLProblem) as error:
        raise UserError(f"Cannot read the mixture {path}: {getattr(error, 'strerror', None) or error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no mixture; {HOW}.")
    mixing = _checked(values, str(path))
    for name, one in mixing.sources.items():
        if not isinstance(one.data, str) or not one.data:
            raise UserError(f"{name} in {path} has the data {shown(one.data)}, which is no path; {HOW}.")
    placed = {name: one.model_copy(update={"data": _from(path, one.data)}) for name, one in mixing.sources.items()}
    return Mixing(mixing.name, placed)


def _checked(values: Mapping[str, Any], name: str) -> Mixing:
    try:
        sources = _Written.model_validate(values).sources
    except ValidationError as error:
        known = [f"sources.NAME.{field}" for field in Ingredient.model_fields]
        raise UserError(_in_words(error, name, known)) from None
    for each, one in sources.items():
        if (one.weight is None) == (one.epochs is None):
            raise UserError(f"{each} in {name} needs a weight or its epochs, and one of the two only; {HOW}.")
        if is_mixture(one.data):
            raise UserError(f"{each} in {name} is a mixture itself; name its sources there instead.")
    if len({one.weight is None for one in sources.values()}) > 1:
        raise UserError(f"Some sources in {name} have weights and some epochs; give all of them the same.")
    return Mixing(name, sources)


def _in_words(error: ValidationError, name: str, known: list[str]) -> str:
    problem = error.errors()[0]
    if problem["type"] in ("missing", "too_short") or problem["loc"] == ("sources",):
        where = ".".join(map(str, problem["loc"]))
        return f"{name} lacks {where}; {HOW}."
    if problem["loc"][-1] == "[key]":
        return f"{shown(problem['loc'][-2])} in {name} is no name of a source: up to 40 letters, digits, '_', '-', '.'."
    key = ".".join(map(str, problem["loc"]))
    return explain(error, {key: name}, known=known)


def _from(file: Path, source: str) -> str:
    """A source that a file names, as it is found from anywhere."""
    if source.startswith(NAMED) or is_remote(source):
        return source
    return str(file.absolute().parent / expanded(source))
