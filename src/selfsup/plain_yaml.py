"""YAML (and JSON) of plain values, as configurations are written: words, numbers, lists and mappings, all bounded.

A document can stand for far more than it holds (an alias of an alias of …), hold tags that make objects, or be nested
until the stack ends; so values are made from the parsed nodes here, counted, and nothing but plain ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

MOST_BYTES = 64 * 1024  # of a document
MOST_VALUES = 4096  # in a document, what aliases repeat included
DEEPEST = 8  # mappings and lists within each other
LONGEST_NUMBER = 100  # characters
TAG = "tag:yaml.org,2002:"
NUMBERS = ("int", "float")


class YAMLProblem(ValueError):
    """What is wrong with a document, as the end of a sentence; it may quote the document, so it is kept short."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= 300 else f"{reason[:300]}…")


def require_bounds(count: int, depth: int) -> None:
    """Raise a YAMLProblem where a document is too much."""
    if count > MOST_VALUES:
        raise YAMLProblem(f"it stands for more than {MOST_VALUES:,} values")
    if depth > DEEPEST:
        raise YAMLProblem(f"it is nested more than {DEEPEST} deep")


class Written(dict[str, Any]):
    """A mapping as a document gives it, with the line of each of its values, nested likewise."""

    lines: dict[str, Any]


class Loader(yaml.SafeLoader):
    """PyYAML's, for which dates and `=` are words. It counts nodes, and then values, and stops where a document is too
    deep or has too much."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in known if tag not in (f"{TAG}timestamp", f"{TAG}value")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    nodes = values = depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        require_bounds(self.nodes, self.depth - 1)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def plain(self, node: Node, depth: int = 0) -> tuple[Any, Any]:
        """The value of a node, and the same with lines in place of values."""
        self.values += 1
        require_bounds(self.values, depth)
        kind, line = node.tag.removeprefix(TAG), int(node.start_mark.line) + 1
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.plain(item, depth + 1)[0] for item in node.value], line
        if isinstance(node, ScalarNode) and kind in ("str", "int", "float", "bool", "null"):
            return self._scalar(node, kind), line
        raise YAMLProblem(f"the tag !{kind} makes no plain value{_place(node.start_mark)}")

    def _scalar(self, node: ScalarNode, kind: str) -> Any:
        if kind in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise YAMLProblem(f"a number has {len(node.value):,} characters{_place(node.start_mark)}")
        try:
            return self.construct_object(node)
        except (ValueError, KeyError):  # `!!int many`, `!!bool 3`
            raise YAMLProblem(f"{node.value!r} is no {kind}{_place(node.start_mark)}") from None

    def _mapping(self, node: MappingNode, depth: int) -> tuple[dict[str, Any], dict[str, Any]]:
        values, lines, merged = {}, {}, []
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                merged.append(value)
                continue
            if not isinstance(key, ScalarNode) or key.tag != f"{TAG}str":
                raise YAMLProblem(f"a key is no word{_place(key.start_mark)}; put it in quotes")
            if key.value in values:
                raise YAMLProblem(f"the key {key.value!r} is given twice{_place(value.start_mark)}")
            values[key.value], lines[key.value] = self.plain(value, depth + 1)
        for source in merged:
            for some, places in self._merged(source, depth):
                values, lines = {**some, **values}, {**places, **lines}
        return values, lines

    def _merged(self, source: Node, depth: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """The mappings that `<<` names, the strongest first."""
        for node in source.value if isinstance(source, SequenceNode) else [source]:
            value, lines = self.plain(node, depth + 1)
            if not isinstance(value, dict):
                raise YAMLProblem(f"<< takes mappings{_place(node.start_mark)}")
            yield value, lines


def parse_yaml(text: str | bytes) -> tuple[Any, Any]:
    """The value that a document holds, and the same with the line of each value in its place.

    Raises a YAMLProblem where it is no YAML, holds other than plain values, a key twice or one that is no word, or too
    much.
    """
    _require_short(text)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        return (None, None) if node is None else loader.plain(node)
    except yaml.MarkedYAMLError as error:
        told = ", ".join(part for part in (error.context, error.problem) if part)
        raise YAMLProblem(f"{told}{_place(error.problem_mark)}") from None
    except yaml.YAMLError as error:
        raise YAMLProblem(" ".join(str(error).split())) from None


def _require_short(text: str | bytes) -> None:
    if len(text) > MOST_BYTES:
        raise YAMLProblem(f"it has more than {MOST_BYTES:,} bytes")


def _place(mark: Any) -> str:
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"


def parse_json(data: bytes) -> Any:
    """The value of a JSON document; raises a YAMLProblem where it is none, holds a key twice, or passes a bound."""
    _require_short(data)
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once, parse_int=_whole)
    except RecursionError:
        raise YAMLProblem(f"it is nested more than {DEEPEST} deep") from None
    except json.JSONDecodeError as error:
        raise YAMLProblem(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise YAMLProblem(str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise YAMLProblem("a key is given twice")
    return values


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise YAMLProblem(f"a number has {len(digits):,} characters")
    return int(digits)
