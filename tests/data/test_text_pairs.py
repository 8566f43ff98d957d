"""Pairs of texts: which columns and passages belong together, what is held out, what a record holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfsup.data.pair_records import (
    SHARES,
    Framing,
    Segments,
    TextPairs,
    TwoCrops,
    lead_of,
    neighbours,
    paired,
    passages,
)
from selfsup.data.records import Batch
from selfsup.data.text_pairs import PairCorpus, TextGroups, hold_out_pairs, open_text_pairs, prepare_pairs, titled
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError

ROWS = [{"question": f"who is {n}?", "answer": f"number {n} of all"} for n in range(40)]
LETTERS = train_tokenizer("characters", ["abcdefghijklmnopqrstuvwxyz .:?!"], family="encoder")


def groups(*texts: list[str]) -> TextGroups:
    """Texts in groups, in characters."""
    ids = [LETTERS.encode(text) for group in texts for text in group]
    lengths = np.array([len(each) for each in ids], np.int64)
    return TextGroups(np.concatenate(ids), lengths, np.array([len(group) for group in texts], np.int64))


def framings(window: int, *prompts: str) -> tuple[Framing, Framing]:
    query, passage = prompts or ("", "")
    return Framing(LETTERS, query, window), Framing(LETTERS, passage, window)


def words(tokens: torch.Tensor, length: torch.Tensor) -> str:
    return LETTERS.decode(tokens[:length].numpy())


# -- where pairs come from -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 1, "Title": "T", "body": "B"}, ("Title", "body")),
        ({"question": "Q", "answer": "A", "url": "u"}, ("question", "answer")),
        ({"sentence1": "a", "sentence2": "b"}, ("sentence1", "sentence2")),
        ({"anchor": "a", "positive": "b"}, ("anchor", "positive")),
        ({"translation": {"en": "a house", "it": "una casa"}}, ("translation.en", "translation.it")),
        ({"text": "One. Two.", "url": "u"}, ()),
    ],
)
def test_columns_are_found_by_their_names(row: dict[str, Any], expected: tuple[str, ...]) -> None:
    table = open_text_pairs([row] * 3)
    assert table.names == expected
    assert table.origin == ("columns" if expected else "neighbours")
    flat = row | {f"translation.{language}": text for language, text in row.get("translation", {}).items()}
    if expected:
        assert list(table.groups()) == [[flat[name] for name in expected]] * 3


def test_what_is_read_is_told() -> None:
    assert open_text_pairs([{"title": "T", "body": "B", "url": "u"}]).notes["pairs"] == (
        "'title' with 'body' (not read: url)"
    )
    assert open_text_pairs(["One. Two."]).notes["pairs"] == "adjacent passages of whole sentences of a document"


@pytest.mark.parametrize(
    ("rows", "given", "said"),
    [
        ([{"title": "T", "text": "a", "body": "b"}], {}, "several columns that may be pairs (title with body"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1.0}], {}, "so not all of its rows need belong together"),
        ([{"one": "a", "other": "b"}], {"origin": "columns"}, "has no two columns of usual names (there are one"),
        ([{"one": "a", "other": "b"}], {"query": "one"}, "A pair has two columns and 'one' is one"),
        ([{"one": "a", "b": "b"}], {"query": "one", "passage": "b", "origin": "crops"}, "leave pairs.from=crops out"),
        ([{"one": "a", "b": "b"}], {"query": "one", "passage": "b", "column": "b"}, "leave data.column out"),
    ],
)
def test_what_is_not_clear_is_refused(rows: list[dict[str, Any]], given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        open_text_pairs(rows, **given)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(UserError, match="has no column 'answers'"):
        list(open_text_pairs(ROWS, query="question", passage="answers").groups())


def test_rows_that_lack_a_text_are_counted_and_named(tmp_path: Path) -> None:
    lacking = [{"question": "a?"}, {"question": "b?", "answer": None}, {"question": " ", "answer": "c"}]
    lacking += [{"question": "d?", "answer": 7}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*lacking, *ROWS]))
    table = open_text_pairs(file, failures=0.2)
    assert list(table.groups()) == [[row["question"], row["answer"]] for row in ROWS]
    assert (table.skipped.count, table.skipped.seen) == (4, 44)
    said = " ".join(table.skipped.names)
    for line, reason in enumerate(("no 'answer'", "answer is null", "question is empty", "answer is no text"), 1):
        assert f"line {line}" in said
        assert reason in said
    with pytest.raises(UserError, match=r"4 of 44 records of .* cannot be read, more than the share of 0\.01"):
        list(open_text_pairs(file).groups())


@pytest.mark.parametrize(
    ("text", "title", "expected"),
    [
        ("# A storm\n\nIt blew.\nIt rained.", None, ["A storm", "It blew.\nIt rained."]),
        (" = Rome = \r\nA city.", None, ["Rome", "A city."]),
        ("***\nStars.", None, ["***", "Stars."]),
        ("Only one line.\n  \n", None, None),
        ("It blew.", "A storm", ["A storm", "It blew."]),
        ("Storm\nIt blew.", " ", ["Storm", "It blew."]),
    ],
)
def test_titles(text: str, title: str | None, expected: list[str] | None) -> None:
    assert titled(text, title) == expected


def test_documents_with_their_titles(tmp_path: Path) -> None:
    for name, text in (("a", "# One\nFirst. Second."), ("b", "Two\n\nThird."), ("c", "Nothing below.")):
        (tmp_path / f"{name}.md").write_text(text)
    table = open_text_pairs(tmp_path, origin="title", failures=0.5)
    assert list(table.groups()) == [["One", "First. Second."], ["Two", "Third."]]
    assert table.skipped.count == 1
    assert "c.md: there is nothing below its first line" in table.skipped.names[0]
    titles = open_text_pairs([{"headline": "H", "article": "One is here. Two is there."}] * 2, origin="title")
    assert list(titles.groups()) == [["H", "One is here. Two is there."]] * 2
    assert titles.notes["pairs"] == "'headline' with its text"


# -- what is held out ----------------------------------------------------------------------------------------


@given(
    pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(13, 25)), min_size=2, max_size=40),
    share=st.sampled_from([0.0, 0.1, 0.4, 0.9]),
)
def test_no_text_of_a_held_out_pair_trains(pairs: list[tuple[int, int]], share: float) -> None:
    """Whatever hangs together, and however long the way is; each side has something, unless all does."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 26, np.uint64)[np.array(pairs)]
    try:
        chosen = hold_out_pairs(hashes, share)
    except UserError:
        reached = set(pairs[0])
        for _ in pairs:
            reached |= {text for pair in pairs if reached & set(pair) for text in pair}
        assert reached == {text for pair in pairs for text in pair}
        return
    assert not set(hashes[chosen].flatten().tolist()) & set(hashes[~chosen].flatten().tolist())
    assert (~chosen).any()
    assert chosen.any() == (share > 0)


def test_pairs_that_are_added_move_none() -> None:
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, (600, 2), np.uint64)
    few, many = hold_out_pairs(hashes[:300], 0.2), hold_out_pairs(hashes, 0.2)
    assert few.tolist() == many[:300].tolist()
    assert 0.1 < many.mean() < 0.3


def test_most_of_all_are_never_held_out() -> None:
    """However the hash of what hangs together falls."""
    random = np.random.default_rng(2)
    for _ in range(20):
        hashes = random.integers(0, 2**64, (30, 2), np.uint64)
        hashes[:20, 0] = hashes[0, 0]
        assert not hold_out_pairs(hashes, 0.6)[:20].any()


def prepared(source: object, tmp_path: Path, validation: float = 0.2, **how: Any) -> PairCorpus:
    return prepare_pairs(open_text_pairs(source, **how), "characters", validation=validation, cache=tmp_path / "cache")


def texts(corpus: PairCorpus, part: TextGroups | None) -> list[list[str]]:
    assert part is not None
    flat = [
        corpus.tokenizer.decode(part.ids[start : start + length])
        for start, length in zip(part.starts, part.lengths, strict=True)
    ]
    ends = part.counts.cumsum()
    return [flat[end - count : end] for end, count in zip(ends, part.counts, strict=True)]


def test_a_prepared_source_holds_its_pairs(tmp_path: Path) -> None:
    corpus = prepared([*ROWS, *ROWS[:3]], tmp_path)
    both = [texts(corpus, part) for part in (corpus.training, corpus.held_out)]
    assert sorted(both[0] + both[1]) == sorted([row["question"], row["answer"]] for row in [*ROWS, *ROWS[:3]])
    assert not {tuple(pair) for pair in both[0]} & {tuple(pair) for pair in both[1]}
    facts = corpus.facts
    assert (facts.documents, facts.duplicates) == (43, 3)
    assert facts.training_documents == len(both[0])
    assert facts.training_tokens == len(corpus.training.ids)
    assert facts.training_bytes + facts.validation_bytes == facts.bytes


def test_it_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the content or a choice is another one."""
    import selfsup.data.text_pairs as module

    first, built = prepared(ROWS, tmp_path), []
    monkeypatch.setattr(module, "_build", lambda *_: built.append(1))
    again = prepared(ROWS, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert not built
    monkeypatch.undo()
    swapped = [{"question": row["answer"], "answer": row["question"]} for row in ROWS]
    others = [prepared(ROWS, tmp_path, 0.5), prepared(swapped, tmp_path), prepared(ROWS, tmp_path, origin="crops")]
    leads = prepare_pairs(
        open_text_pairs(ROWS), "characters", leads=(" ", ""), validation=0.2, cache=tmp_path / "cache"
    )
    assert len({corpus.fingerprint for corpus in (first, leads, *others)}) == 5


def test_documents_are_held_out_whole(tmp_path: Path) -> None:
    documents = [f"Here is number {n}. It is like {n}. Then there is {n} more." for n in range(30)]
    corpus = prepared(documents, tmp_path)
    train, held_out = ({"".join(group) for group in texts(corpus, part)} for part in (corpus.training, corpus.held_out))
    assert train | held_out == set(documents)
    assert not train & held_out


def test_of_one_document_the_last_sentences_are_held_out(tmp_path: Path) -> None:
    document = " ".join(f"Here is number {n}." for n in range(20))
    corpus = prepared([document], tmp_path)
    assert [len(group) for group in texts(corpus, corpus.training)] == [16]
    assert [group[-1] for group in texts(corpus, corpus.held_out)] == [" Here is number 19."]


def test_what_hangs_together_cannot_be_held_out(tmp_path: Path) -> None:
    rows = [{"question": f"who is {n}?", "answer": "nobody"} for n in range(9)]
    with pytest.raises(UserError, match="holds a single sentence"):
        prepared(["Here is one sentence."], tmp_path)
    with pytest.raises(UserError, match="All pairs hang together by texts that they share"):
        prepared(rows, tmp_path)
    assert prepared(rows, tmp_path, 0.0).held_out is None


# -- records -------------------------------------------------------------------------------------------------

TEXT = st.text("abcdefg .", min_size=1, max_size=30)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), window=st.integers(12, 20))
def test_a_record_of_a_row(rows: list[tuple[str, str]], window: int) -> None:
    """Both texts behind their prompts, each cut to the window; equal texts have equal keys on either side."""
    prompts = ("ask: ", "doc:")
    led = [[lead_of(prompt) + text for prompt, text in zip(prompts, row, strict=True)] for row in rows]
    records = paired(groups(*led), framings(window, *prompts))
    data = records.read(np.arange(len(rows)))
    for side, (name, prompt) in enumerate(zip(("query", "passage"), prompts, strict=True)):
        for number, row in enumerate(rows):
            whole = LETTERS.frame(LETTERS.encode(prompt + row[side])[: window - 2])
            assert data[f"{name}_lengths"][number] == len(whole)
            assert data[f"{name}_tokens"][number, : len(whole)].tolist() == whole.tolist()
            assert (data[f"{name}_tokens"][number, len(whole) :] == LETTERS.pad).all()
    assert records.truncated == sum(
        len(prompt + text) > window - 2 for row in rows for prompt, text in zip(prompts, row, strict=True)
    )
    keys = [data[f"{name}_keys"].tolist() for name in ("query", "passage")]
    room = window - 2 - max(len(prompt.rstrip()) for prompt in prompts)
    cut = [[led[n][side][:room] for n in range(len(rows))] for side in (0, 1)]
    for side, other in ((0, 0), (0, 1), (1, 1)):
        for i, one in enumerate(cut[side]):
            for j, another in enumerate(cut[other]):
                assert (keys[side][i] == keys[other][j]) == (one == another)


def test_a_prompt_that_leaves_no_room() -> None:
    with pytest.raises(UserError, match=r"make data\.window 9 or more"):
        Framing(LETTERS, "query: ", 8)


@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), min_size=1, max_size=5),
    room=st.integers(4, 16),
)
def test_passages_are_runs_of_whole_sentences(lengths: list[list[int]], room: int) -> None:
    """As many as have room, one after the other, of one document; against a plain loop."""
    flat = np.array([length for document in lengths for length in document], np.int64)
    part = TextGroups(np.zeros(flat.sum(), np.uint16), flat, np.array(list(map(len, lengths)), np.int64))
    spans, document = passages(part, room)
    expected, place = [], 0
    for number, sentences in enumerate(lengths):
        start = place
        for count, length in enumerate(sentences):
            if place > start and place + length - start > room:
                expected.append((start, place, number))
                start = place
            place += length
            if count == len(sentences) - 1:
                expected.append((start, place, number))
    assert [(*span, number) for span, number in zip(spans.tolist(), document.tolist(), strict=True)] == expected


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_neighbours_share_a_place_with_what_is_near(counts: list[int]) -> None:
    """Each passage of a document is paired with the next. Pairs whose passages are two apart or less share a place;
    those five apart or more, and those of other documents, do not."""
    sentence = "abcdefgh."
    part = groups(*[[sentence] * count for count in counts])
    if max(counts) < 2:
        with pytest.raises(UserError, match="No document has two passages of up to 12 tokens"):
            neighbours(part, framings(12))
        return
    records = neighbours(part, framings(12))
    assert len(records) == sum(count - 1 for count in counts)
    where = [(number, place) for number, count in enumerate(counts) for place in range(count - 1)]
    places = records.read(np.arange(len(records)))["places"]
    for (one, i), mine in zip(where, places, strict=True):
        for (other, j), theirs in zip(where, places, strict=True):
            shares = bool((mine == theirs).any())
            if one == other and abs(i - j) <= 2:
                assert shares
            if one != other or abs(i - j) >= 4:
                assert not shares


def test_neighbours_of_a_text() -> None:
    part = groups(["the cat sat.", " the dog ran!", " who came?", " nobody did.", " it was late."])
    records = neighbours(part, framings(30))
    data = records.read(np.arange(len(records)))
    told = [
        tuple(words(data[f"{side}_tokens"][n], data[f"{side}_lengths"][n]) for side in ("query", "passage"))
        for n in range(len(records))
    ]
    assert told == [
        ("the cat sat. the dog ran!", " who came? nobody did."),
        (" who came? nobody did.", " it was late."),
    ]
    assert data["passage_keys"][0] == data["query_keys"][1]


def batch_of(records: Segments, indices: np.ndarray, seed: int = 3, epoch: int = 0) -> Batch:
    return Batch(records.read(indices), seed, np.full(len(indices), epoch), indices)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 2**30))
def test_crops_are_runs_of_their_segment(counts: list[int], seed: int) -> None:
    """Of a twentieth to half of it, at least one token; segments tile each document."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    part = groups(*[["".join(alphabet[n % 26] for n in range(count))] for count in counts])
    if max(counts) < 2:
        with pytest.raises(UserError, match="No document has two tokens to crop"):
            Segments(part, 16)
        return
    views, records = framings(10), Segments(part, 16)
    assert records.short == counts.count(1)
    everyone = np.arange(len(records))
    data = records.read(everyone)
    assert int(data["lengths"].sum()) == sum(count for count in counts if count > 1)
    assert int(data["lengths"].max()) <= 16
    made = TwoCrops(views)(batch_of(records, everyone, seed))
    for number in everyone:
        length = int(data["lengths"][number])
        segment = words(data["tokens"][number], data["lengths"][number])
        for side in ("query", "passage"):
            crop = words(made[f"{side}_tokens"][number], made[f"{side}_lengths"][number])
            assert crop in segment
            assert 1 <= len(crop) <= max(1, SHARES[1] * length)


def test_crops_are_a_function_of_the_place() -> None:
    """The same wherever a record stands in a batch; other ones in each view, epoch and seed."""
    part = groups(*[["the cat sat on the mat and nobody came by, so it slept all day."] for _ in range(12)])
    records, crops = Segments(part, 40), TwoCrops(framings(22))
    whole, some = np.arange(len(records)), np.array([7, 2])
    made, alone = crops(batch_of(records, whole)), crops(batch_of(records, some))
    for name in ("query_tokens", "passage_tokens"):
        assert made[name][some].equal(alone[name])
        assert not made[name].equal(crops(batch_of(records, whole, epoch=1))[name])
        assert not made[name].equal(crops(batch_of(records, whole, seed=4))[name])
    assert not made["query_tokens"].equal(made["passage_tokens"])
    assert len(set(made["query_keys"].tolist())) == 2  # of two halves of one text, twelve times
    assert len(set(map(tuple, made["places"].tolist()))) == len(records)


def test_the_records_of_a_book(tmp_path: Path) -> None:
    """All of it together: a text file, prepared, as neighbours."""
    file = tmp_path / "book.txt"
    file.write_text("\n\n".join(f"Chapter {n}\n\nHere is the story of {n}. It is long. It ends." for n in range(30)))
    corpus = prepared(file, tmp_path)
    assert isinstance(neighbours(corpus.training, framings_of(corpus, 16)), TextPairs)


def framings_of(corpus: PairCorpus, window: int) -> tuple[Framing, Framing]:
    return Framing(corpus.tokenizer, "", window), Framing(corpus.tokenizer, "", window)
