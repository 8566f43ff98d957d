"""Texts with their translations: rows of columns and of files, what is missing in them, and where they are split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfsup.data.answers import Answered, Answers, ask
from selfsup.data.sentences import Sentences, open_sentences
from selfsup.data.sources import Table
from selfsup.data.text import prepare_text
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.translations import TranslatedTable, open_translated
from selfsup.errors import UserError

TOKENIZER = train_tokenizer("characters", ["abcdefghijklmnopqrstuvwxyzAINOW 0123456789.?"], family="encoder")
ROWS = [{"en": f"the cat {n}", "it": f"il gatto {n}", "fr": f"le chat {n}"} for n in range(40)]


def file_of(place: Path, name: str, rows: Sequence[object]) -> Path:
    path = place / name
    lines = [json.dumps(row) for row in rows] if path.suffix == ".jsonl" else rows
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_columns(tmp_path: Path) -> None:
    data = file_of(tmp_path, "rows.jsonl", ROWS)
    table = open_translated(data, ["it", "fr"], column="en")
    assert list(table.groups()) == [[row["en"], row["it"], row["fr"]] for row in ROWS]
    assert list(table.documents()) == [text for row in ROWS for text in row.values()]
    assert table.notes == {"column": "'en'", "translations": "it, fr"}
    assert table.fingerprint() != open_translated(data, ["fr", "it"], column="en").fingerprint()
    assert table.fingerprint() == open_translated(data, ["it", "fr"], column="en").fingerprint()


def test_files_of_lines(tmp_path: Path) -> None:
    """Blank lines are rows too; what has no source is left out, and of the rest what has no translation."""
    english = file_of(tmp_path, "en.txt", ["one", "", "three", "four"])
    italian = file_of(tmp_path, "it.txt", ["uno", "due", "  ", "quattro"])
    french = file_of(tmp_path, "fr.txt", ["un", "deux", "trois", "quatre"])
    table = open_translated(english, files=[italian, french])
    assert list(table.groups()) == [["one", "uno", "un"], ["three", "trois"], ["four", "quattro", "quatre"]]
    assert table.empty == 1
    before = table.fingerprint()
    italian.write_text("uno\ndue\ntre\nquattro")  # without a last end of line
    assert len(list(table.documents())) == 9
    assert open_translated(english, files=[italian, french]).fingerprint() != before


def test_rows_that_cannot_be_read_keep_their_places(tmp_path: Path) -> None:
    english = file_of(tmp_path, "en.jsonl", [{"text": f"number {n}"} for n in range(30)])
    italian = file_of(tmp_path, "it.jsonl", [{"text": f"numero {n}"} for n in range(30)])
    lines = italian.read_text().splitlines()
    italian.write_text("\n".join([*lines[:3], "{broken", *lines[4:]]) + "\n")
    table = open_translated(english, files=[str(italian)], failures=0.1)
    groups = list(table.groups())
    assert groups[3] == ["number 3"]
    assert groups[4] == ["number 4", "numero 4"]
    assert "it.jsonl, line 4" in table.notes["unreadable there"]
    with pytest.raises(UserError, match=r"1 of 30 records of .*it\.jsonl cannot be read"):
        list(open_translated(english, files=[str(italian)]).groups())


@pytest.mark.parametrize(("longer", "named"), [("en.txt", "it.txt"), ("it.txt", "en.txt")])
def test_files_of_other_lengths_are_refused(tmp_path: Path, longer: str, named: str) -> None:
    for name in ("en.txt", "it.txt"):
        file_of(tmp_path, name, ["a", "b", "c"] if name == longer else ["a", "b"])
    with pytest.raises(UserError, match=rf"{named} has 2 rows and what it is to be lined up with has more"):
        list(open_translated(tmp_path / "en.txt", files=[str(tmp_path / "it.txt")]).documents())


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    data = file_of(tmp_path, "rows.jsonl", ROWS)
    with pytest.raises(UserError, match="has no column 'pt'"):
        list(open_translated(data, ["pt"], column="en").documents())


def test_nothing_but_blanks_is_refused(tmp_path: Path) -> None:
    blank, text = file_of(tmp_path, "a.txt", ["", " "]), file_of(tmp_path, "b.txt", ["x", "y"])
    with pytest.raises(UserError, match=r"holds no text \(2 rows\)"):
        list(open_translated(blank, files=[str(text)]).documents())


# -- what a teacher says of them -------------------------------------------------------------------------------


def vector(text: str) -> np.ndarray:
    return np.random.default_rng(len(text) + 1000 * sum(map(ord, text))).normal(size=3).astype(np.float32)


class Teacher:
    """Gives every text a vector of its own, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.stack([vector(text) for text in texts])


def answers_of(
    table: Table, teacher: Callable[[list[str]], np.ndarray], identity: str = "t", share: float = 0.2
) -> Answers:
    return ask(table, teacher, identity, 3, share, lambda done, total: None)


def records_of(table: Table, answers: Answers, share: float = 0.2) -> dict[str, list[tuple[str, np.ndarray]]]:
    """The texts of both parts as a training reads them, each with its answer."""
    corpus = prepare_text(table, TOKENIZER, validation=share, family="encoder")
    parts = {"train": (corpus.train, answers.train), "validation": (corpus.validation, answers.validation)}
    found = {}
    for name, (stream, places) in parts.items():
        assert stream is not None
        records = Answered(Sentences(stream, 64, corpus.tokenizer), answers.vectors, places)
        data = records.read(np.arange(len(records)))
        rows = zip(data["tokens"].tolist(), data["lengths"].tolist(), strict=True)
        texts = [corpus.tokenizer.decode(row[1 : length - 1]) for row, length in rows]
        found[name] = list(zip(texts, data["answers"].numpy(), strict=True))
    return found


def test_translations_have_the_answer_to_their_source_and_lie_on_its_side(tmp_path: Path) -> None:
    data, teacher = file_of(tmp_path, "rows.jsonl", [*ROWS, *ROWS[:5]]), Teacher()
    found = records_of(
        open_translated(data, ["it"], column="en"), answers_of(open_translated(data, ["it"], column="en"), teacher)
    )
    sources = {row["it"]: row["en"] for row in ROWS} | {row["en"]: row["en"] for row in ROWS}
    sides: dict[str, set[str]] = {}
    for name, records in found.items():
        for text, answer in records:
            assert answer.tolist() == vector(sources[text]).tolist()
            sides.setdefault(sources[text], set()).add(name)
    assert all(len(names) == 1 for names in sides.values())
    assert {name for names in sides.values() for name in names} == {"train", "validation"}
    assert sum(map(len, found.values())) == 90
    assert teacher.asked == [row["en"] for row in ROWS]  # each once, in order


@given(st.lists(st.sampled_from(["Ah.", "Oh no.", "It rained.", "Who came?", "Nobody."]), min_size=2, max_size=30))
def test_sentences_have_their_own_answers(texts: list[str]) -> None:
    if len(set(texts)) == 1:
        with pytest.raises(UserError, match="one text alone"):
            answers_of(open_sentences(texts), Teacher())
        return
    found = records_of(open_sentences(texts), answers_of(open_sentences(texts), Teacher()))
    records = [record for part in found.values() for record in part]
    assert sorted(text for text, _ in records) == sorted(texts)
    assert all(answer.tolist() == vector(text).tolist() for text, answer in records)


def test_answers_are_kept_for_a_teacher_and_its_texts(tmp_path: Path, cache: Path) -> None:
    data, teacher = file_of(tmp_path, "lines.txt", [f"kept {n}" for n in range(9)]), Teacher()
    first = answers_of(open_sentences(data), teacher, "one")
    again = answers_of(open_sentences(data), teacher, "one")
    assert len(teacher.asked) == 9
    assert np.array_equal(first.vectors, again.vectors)
    answers_of(open_sentences(data), teacher, "another")
    assert len(teacher.asked) == 18
    for file in (cache / "answers").rglob("vectors.npy"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    mended = answers_of(open_sentences(data), teacher, "one")
    assert len(teacher.asked) == 27
    assert np.array_equal(first.train, mended.train)
    assert mended.vectors[-1].tolist() == vector("kept 8").tolist()


def test_more_texts_than_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfsup.data.answers.ASKED", 4)
    texts, done = [f"text {n % 11}" for n in range(25)], []
    found = ask(open_sentences(texts), Teacher(), "blocks", 3, 0.0, lambda *told: done.append(told))
    assert found.vectors.shape == (11, 3)
    assert [found.vectors[place].tolist() for place in found.train] == [vector(text).tolist() for text in texts]
    assert [now for now, _ in done] == [24, 48, 67]
    assert {total for _, total in done} == {67}


def test_how_far_answers_lie_apart() -> None:
    texts = [f"apart {n % 41}" for n in range(50)]
    found = answers_of(open_sentences(texts), Teacher(), share=0.0)
    vectors = np.stack([vector(text) for text in texts]).astype(np.float64)
    center = vectors.mean(0)
    assert found.spread.center == pytest.approx(center.tolist())
    assert found.spread.variance == pytest.approx(float(np.square(vectors - center).mean()))
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    best = directions.mean(0) / np.linalg.norm(directions.mean(0))
    assert found.spread.cosine == pytest.approx(1 - float((directions @ best).mean()))


def test_a_teacher_that_says_nothing_of_use_is_refused() -> None:
    texts = ["some text", "other text"]
    with pytest.raises(UserError, match="says the same of all texts"):
        answers_of(open_sentences(texts), lambda asked: np.ones((len(asked), 3), np.float32), "same")
    with pytest.raises(UserError, match="not finite"):
        answers_of(open_sentences(texts), lambda asked: np.full((len(asked), 3), np.nan, np.float32), "nan")


def test_it_is_a_table() -> None:
    table = open_translated([{"a": "x y", "b": "z w"}], ["b"], column="a")
    assert isinstance(table, TranslatedTable)
    assert open_sentences(["x y"]).documents is not None
    assert list(table.grouped()) == [("x y", "x y"), ("z w", "x y")]
