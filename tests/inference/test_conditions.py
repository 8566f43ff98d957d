"""Conditions of a search: one expression, all of which is heeded; and ids of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_encoder import save_tiny

import selfsup
from selfsup.errors import UserError
from selfsup.inference.conditions import enclosed

ROWS: list[dict[str, Any]] = [
    {"id": str(i), "text": "a storm", "year": 1980 + i, "name": f"n{i}", "order": i, "größe": i / 2, "good": i < 5}
    for i in range(10)
]


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> selfsup.Searcher:
    place = tmp_path_factory.mktemp("library")
    selfsup.index(save_tiny(place / "model"), ROWS, place / "x.lance", id_column="id")
    return selfsup.Searcher(place / "x.lance")


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("year > 1985", 4),
        ("YEAR > 1985 or name = 'n0'", 5),
        ("(year > 1985) and (year < 1988)", 2),
        ("name like '%;--)(' or good", 5),
        ("name = 'it''s' or name in ('n1', 'n2')", 2),
        ('"order" > 5', 4),
        ("`order` > 5", 4),
        ("größe >= 4", 2),
        ("year::string = '1980'", 1),
        ("good\nand\tyear > 1983", 1),
    ],
)
def test_what_is_a_condition(condition: str, found: int, searcher: selfsup.Searcher) -> None:
    assert len(searcher("a storm", 20, condition)) == found


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("1=1; drop table x", "goes on behind a ;"),
        ("1=1;", "goes on behind a ;"),
        ("1=1 -- and year > 1985", "comment"),
        ("1=1 /* and year > 1985 */", "comment"),
        ("1=1) or (1=1", "parentheses"),
        ("1=1) limit (1", "parentheses"),
        ("((1=1)", "parentheses"),
        ("1=1 limit 1", "limit"),
        ("1=1 order by year", "order"),
        ("1=1 group by year", "group"),
        ("1=1 union select 1", "union"),
        ("1=1 year > 1985", "year"),
        ("year in (select year from x)", "not supported"),
        ("exists (select 1)", "not supported"),
        ("name = 'n3", "a ' is not closed"),
        ('"name = 1', 'a " is not closed'),
        ("name = 'n1''", "a ' is not closed"),
        ("", "empty"),
        (" \n", "empty"),
        ("nothing > 1", "nothing"),
        ('name = "n3"', "n3"),
        ("year > 'soon'", "Int64"),
        ("name > 5", "Utf8"),
        ("year", "boolean"),
        ("'x'", "boolean"),
        ("year > ?", "no value"),
        ("year > $1", "no value"),
        ("name = $$n1$$", "no value"),
        ("year > :x", "no value"),
        ("unknown(name)", "unknown"),
        ("count(*) > 1", "not"),
        ("year / 0 > 1", "zero"),
        ("(" * 3000 + "good" + ")" * 3000, "(((("),
    ],
)
def test_what_is_none(condition: str, reason: str, searcher: selfsup.Searcher) -> None:
    with pytest.raises(UserError) as caught:
        searcher("a storm", 20, condition)
    message = str(caught.value)
    assert reason in message
    assert "one expression in SQL over the columns id, text, source, document, start, end, year" in message
    assert "source LIKE '%.txt'" in message
    assert "\n" not in message
    assert len(message) < 1200


@pytest.mark.parametrize("condition", [7, ["good"]])
def test_what_is_no_text(condition: Any, searcher: selfsup.Searcher) -> None:
    with pytest.raises(UserError, match=r"^where is .*; give a text"):
        searcher("a storm", 20, condition)


def test_nothing_of_a_condition_stands_outside_its_parentheses() -> None:
    """What the parser could take for the end of the expression is refused, or stands in quotes."""
    for condition in ("a) limit 1 --", "a) -- (", "')' = b) or (c", '"x)" ) ( "("', "a /* ) */ ( b", "`)`)(`"):
        with pytest.raises(ValueError, match=r"comment|parentheses|closed"):
            enclosed(condition)
    for condition in ("')' = b", '")" > 1', "`)` > 1", "a = '--' or b = ';' or c = '/*'"):
        assert enclosed(condition) == f"({condition})"


ODD = ["it's", "''", '"', "\\", "\\'", "a;b--c", "/*", ")", "\n", "%", "ä日本", "\x00", " ", "x" * 3000, "NULL", "`"]


def test_ids_of_any_kind(tmp_path: Path) -> None:
    model, path = save_tiny(tmp_path / "model"), tmp_path / "x.lance"
    rows = [{"key": key, "text": f"the sea {number}"} for number, key in enumerate(ODD)]
    assert selfsup.index(model, rows, path, id_column="key").added == len(ODD)
    changed = [{**row, "year": number} for number, row in enumerate(rows)]
    made = selfsup.index(model, changed, path, id_column="key")
    assert (made.updated, made.embedded) == (len(ODD), 0)
    for left, key in zip(range(len(ODD) - 1, -1, -1), ODD, strict=True):
        assert selfsup.delete(path, [key]) == left
    with pytest.raises(UserError, match="no record with the id"):
        selfsup.delete(path, ["\udcff"])
    numbered = [{"key": number, "text": f"the sea {number}"} for number in range(12)]
    selfsup.index(model, numbered, path, id_column="key")
    assert selfsup.delete(path, []) == 12
    assert selfsup.delete(path, "11") == 11
    assert selfsup.delete(path, (number for number in (1, 2))) == 9
