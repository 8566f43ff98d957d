"""Collections for retrieval: the layouts that are read, splits, and what is left out or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from beir_layout import DOCUMENTS, QRELS, QUERIES, write_beir, write_hub, write_qrels

from selfsup.data.judged import open_judged
from selfsup.errors import UserError


def read(source: object, **given: Any) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    found = open_judged(source, **given)
    texts = ({entry.id: entry.text for entry in entries} for entries in (found.documents(), found.asked()))
    return *texts, found.judgements()  # type: ignore[return-value]


EXPECTED = (
    {"d1": "Storm a ship sank", "d2": "by the fire"},
    {"q1": "ship", "q2": "fire"},
    {"q1": {"d1": 2.0}, "q2": {"d2": 1.0, "d1": 0.0}},
)


def test_the_layout_of_beir(tmp_path: Path) -> None:
    assert read(write_beir(tmp_path)) == EXPECTED
    assert read(str(tmp_path)) == EXPECTED


@pytest.mark.parametrize("judgements", ["qrels", "data", "default"])
def test_the_layout_of_a_hub(judgements: str, tmp_path: Path) -> None:
    assert read(write_hub(tmp_path, judgements)) == EXPECTED


def test_numbers_are_ids_too(tmp_path: Path) -> None:
    write_beir(tmp_path, [{"_id": 7, "text": "seven"}], [{"_id": "1", "text": "which?"}], [(1, 7, 1)])
    assert read(tmp_path) == ({"7": "seven"}, {"1": "which?"}, {"1": {"7": 1.0}})


def test_from_python() -> None:
    rows = [dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in QRELS]
    given = {"corpus": DOCUMENTS, "queries": QUERIES, "qrels": rows}
    assert read(given) == EXPECTED
    with pytest.raises(UserError, match="has corpus, queries, qrels, and what is given has corpus, queries"):
        open_judged({"corpus": DOCUMENTS, "queries": QUERIES})
    with pytest.raises(UserError, match="leave out --split"):
        open_judged(given, split="dev")


def test_splits(tmp_path: Path) -> None:
    place = write_beir(tmp_path)
    write_qrels(place / "qrels" / "dev.tsv", [("q1", "d2", 1)])
    assert open_judged(place).split == "test"
    assert open_judged(place).judgements() == EXPECTED[2]
    assert open_judged(place, split="dev").judgements() == {"q1": {"d2": 1.0}}
    with pytest.raises(UserError, match=r"has no train split \(found by their names: test, validation\)"):
        open_judged(place, split="train")
    (place / "qrels" / "test.tsv").rename(place / "qrels" / "train.tsv")
    with pytest.raises(UserError, match="judgements of train, validation; name one with --split"):
        open_judged(place)
    (place / "qrels" / "train.tsv").unlink()
    assert open_judged(place).split == "validation"


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    bad = [{"_id": "d1", "text": "again"}, {"_id": "d3", "text": None}, {"text": "no id"}, {"_id": "d4", "text": " "}]
    place = write_beir(tmp_path, DOCUMENTS + bad, [*QUERIES, {"_id": "q3", "text": 3}], [*QRELS, ("q1", "d2", "much")])
    (place / "README.md").write_text("About it.")
    found = open_judged(place)
    assert {entry.id for entry in found.documents()} == {"d1", "d2"}
    assert {entry.id for entry in found.asked()} == {"q1", "q2"}
    assert found.judgements() == EXPECTED[2]
    assert (found.skipped.count, found.skipped.seen, found.empty) == (5, 13, 1)
    named = " ".join(found.skipped.names)
    for told in ("the _id 'd1' occurs twice", "the text is null", "corpus.jsonl, line 3", "qrels/test.tsv"):
        assert told in named
    assert found.notes == {"split": "test", "left out": f"files of no part: 1 ({place / 'README.md'})"}
    with pytest.raises(UserError, match="3 of 6 records"):
        list(open_judged(place, failures=0.1).documents())


def test_what_is_no_collection_is_refused(tmp_path: Path) -> None:
    place = write_beir(tmp_path / "there")
    for part, names in {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}.items():
        (place / names).rename(tmp_path / "aside")
        with pytest.raises(UserError, match=f"holds no {part}; BEIR's layout is a folder with corpus.jsonl"):
            open_judged(place)
        (tmp_path / "aside").rename(place / names)
    for source in ("nowhere", place / "corpus.jsonl", ["a text"], ""):
        with pytest.raises(UserError, match="is no folder"):
            open_judged(source)
    write_qrels(place / "qrels" / "test.tsv", [])
    with pytest.raises(UserError, match="holds no records"):
        open_judged(place).judgements()
