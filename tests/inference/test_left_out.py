"""What cannot be read ends no command: it is left out, counted and named, wherever the result is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Answer
from tiny_clip import save_tiny_clip
from tiny_encoder import WORDS, save_tiny
from tiny_vision import save_photos, save_tiny_vision

import selfsup
from selfsup.data.images import collection
from selfsup.errors import UserError
from selfsup.evaluation import evaluate
from selfsup.evaluation.base import Score
from selfsup.evaluation.probe import Probe
from selfsup.inference.items import LeftOut

Command = Callable[..., Answer]
GOOD, BAD = 40, 6


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, 4)) + f" {number}" for number in range(count)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {
        "texts": save_tiny(place / "texts"),
        "images": save_tiny_vision(place / "images"),
        "pairs": save_tiny_clip(place / "pairs"),
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Labelled texts and images, the first of which cannot be read."""
    place = tmp_path_factory.mktemp("sources")
    lines = ['{"text": broken'] * BAD + [
        json.dumps({"text": text, "label": "ab"[number % 2]}) for number, text in enumerate(sentences(GOOD))
    ]
    (place / "texts.jsonl").write_text("\n".join(lines) + "\n")
    photos = save_photos(place / "photos", 12)
    for number in range(BAD):
        (photos / "blue" / f"{number:02}.png").write_bytes(b"GIF89a and no more")
    return {"texts": place / "texts.jsonl", "images": photos}


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, of which none can be read."""
    place = tmp_path_factory.mktemp("nothing")
    (place / "texts.jsonl").write_text('{"text": broken\n' * 3)
    photos = save_photos(place / "photos", 1)
    for file in photos.rglob("*.png"):
        file.write_bytes(b"")
    return {"texts": place / "texts.jsonl", "images": photos}


@pytest.fixture(scope="module")
def probes(models: dict[str, Path], sources: dict[str, Path], tmp_path_factory: Any) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("probes")
    for kind, source in sources.items():
        Probe.fit(models[kind], source).save(place / kind)
    return {kind: place / kind for kind in sources}


def words(
    command: str, kind: str, models: dict[str, Path], source: Path, probes: dict[str, Path], out: Path
) -> list[object]:
    """A command over a source, which answers in JSON."""
    model = models["pairs" if command == "zero-shot" else kind]
    data = ["--data", source]
    return {
        "embed": ["embed", model, *data, "--out", out / "x.parquet", "--json"],
        "index": ["index", model, *data, "--out", out / "x.lance", "--json"],
        "evaluate": ["evaluate", model, *data, "--protocol", "rankme", "--json"],
        "probe": ["probe", model, *data, "--out", out / "probe", "--json"],
        "classify": ["classify", model, *data, "--probe", probes[kind]],
        "zero-shot": ["zero-shot", model, source, "--labels", "red", "blue", "--json"],
    }[command]


COMMANDS = [
    (command, kind)
    for command in ("embed", "index", "evaluate", "probe", "classify", "zero-shot")
    for kind in ("texts", "images")
    if (command, kind) != ("zero-shot", "texts")
]


@pytest.mark.parametrize(("command", "kind"), COMMANDS)
def test_a_command_goes_on_and_says_what_it_left_out(
    command: str,
    kind: str,
    models: dict[str, Path],
    sources: dict[str, Path],
    probes: dict[str, Path],
    tmp_path: Path,
    selfsup_command: Command,
) -> None:
    given = words(command, kind, models, sources[kind], probes, tmp_path)
    answer = selfsup_command(*given)
    assert answer.code == 0, answer
    if command == "classify":  # its lines are of records alone
        assert len(answer.out.splitlines()) == (GOOD if kind == "texts" else 30)
        assert f"{BAD} records that cannot be read" in " ".join(answer.error.split())
    else:
        told = json.loads(answer.out)
        told = told.get("estimate", told)
        assert told["skipped"] == BAD
        assert len(told["skipped_names"]) == 5
        assert all(name.startswith(str(sources[kind])) for name in told["skipped_names"])
    shutil.rmtree(tmp_path)
    refused = selfsup_command(*given, "--failures", "0.1")
    assert refused.code == 2, refused
    assert f"{BAD} of {GOOD + BAD if kind == 'texts' else 36} records" in refused.error
    assert "--failures" in refused.error
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "kind"), COMMANDS)
def test_where_nothing_can_be_read_a_command_is_refused(
    command: str,
    kind: str,
    models: dict[str, Path],
    nothing: dict[str, Path],
    probes: dict[str, Path],
    tmp_path: Path,
    selfsup_command: Command,
) -> None:
    answer = selfsup_command(*words(command, kind, models, nothing[kind], probes, tmp_path))
    assert (answer.code, answer.out) == (2, ""), answer
    assert "3 of 3 records" in answer.error
    assert answer.error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_it_is_in_the_file(models: dict[str, Path], sources: dict[str, Path], tmp_path: Path) -> None:
    made = selfsup.embed(models["texts"], sources["texts"], tmp_path / "x.parquet")
    description = json.loads(pq.read_schema(tmp_path / "x.parquet").metadata[b"selfsup"])
    assert description["skipped"] == made.left_out.skipped == BAD
    assert description["skipped_names"] == list(made.left_out.skipped_names)


def test_it_stands_beside_the_figure(
    models: dict[str, Path], sources: dict[str, Path], selfsup_command: Command
) -> None:
    answer = selfsup_command("evaluate", models["texts"], "--data", sources["texts"], "--protocol", "knn-20")
    assert f"skipped: {BAD} records that cannot be read: {sources['texts']}, line 1" in answer.out


def test_a_score_is_read_as_it_was_written(models: dict[str, Path], sources: dict[str, Path]) -> None:
    score = evaluate(models["texts"], data=sources["texts"], protocol="knn-20")
    assert score.left_out.skipped == BAD
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    older = {key: value for key, value in score.to_json().items() if key not in LeftOut().to_json()}
    assert Score.from_json(older).left_out == LeftOut()


def test_images_that_turn_out_to_be_unreadable(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = save_photos(tmp_path / "photos", 5)
    for file in sorted(photos.rglob("*.png"))[:BAD]:
        file.write_bytes(file.read_bytes()[:-200])
    monkeypatch.setattr(collection, "SMALL", 0)  # only headers are looked at before
    made = selfsup.embed(models["images"], photos, tmp_path / "x.parquet", batch=4)
    assert (made.records, made.left_out.skipped) == (9, BAD)
    assert made.left_out.skipped_names[0].startswith(str(photos / "blue" / "00.png"))
    assert evaluate(models["images"], data=photos, protocol="rankme").left_out.skipped == BAD
    assert len(selfsup.zero_shot(models["pairs"], photos, ["red", "blue"])) == 9
    for file in sorted(photos.rglob("*.png")):
        file.write_bytes(file.read_bytes()[:200])
    for work in (
        lambda: selfsup.embed(models["images"], photos, tmp_path / "y.parquet", batch=4),
        lambda: selfsup.index(models["images"], photos, tmp_path / "y.lance", batch=4),
        lambda: evaluate(models["images"], data=photos, protocol="rankme"),
        lambda: selfsup.zero_shot(models["pairs"], photos, ["red", "blue"]),
    ):
        with pytest.raises(UserError, match="15 of 15 records"):
            work()


def test_images_without_a_class_are_counted(models: dict[str, Path], tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 8)
    rows = [
        {"path": str(file), "label": "" if number < 3 else file.parent.name}
        for number, file in enumerate(sorted(photos.rglob("*.png")))
    ]
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = evaluate(models["images"], data=listed, protocol="knn-20")
    assert score.n + score.details["bank"] == 21
    assert score.left_out.skipped == 3
    assert "it has no class" in score.left_out.skipped_names[0]


def test_texts_that_are_not_read_wholly_are_counted(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "latin.txt").write_bytes("Der Bär hört schöne Töne, und alle anderen lauschen. ".encode("latin-1") * 3)
    (folder / "long.txt").write_text("the sea " * 40)
    (folder / "picture.txt").write_bytes(bytes(range(256)) * 4)
    made = selfsup.embed(models["texts"], folder, tmp_path / "x.parquet", passages="none")
    assert (made.records, made.left_out.skipped, made.left_out.replaced_bytes) == (2, 1, 12)
    assert made.left_out.truncated == 2
    assert evaluate(models["texts"], data=folder, protocol="rankme").left_out == made.left_out


def test_the_column_of_images_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    files = sorted(save_photos(tmp_path / "photos", 1).rglob("*.png"))
    table = pa.table({"id": list(range(len(files))), "image": [file.read_bytes() for file in files]})
    pq.write_table(table, tmp_path / "a.parquet")
    told = {"column": "'image' (not read: id)"}
    assert selfsup.embed(models["images"], tmp_path / "a.parquet", tmp_path / "x.parquet").left_out.reading == told
    indexed = selfsup.index(models["images"], tmp_path / "a.parquet", tmp_path / "x.lance")
    assert indexed.left_out.reading["column"] == told["column"]


def test_the_columns_are_told(models: dict[str, Path], tmp_path: Path, selfsup_command: Command) -> None:
    """Of what is read, what is stored beside it, and what is neither."""
    rows = [
        {"url": f"https://a.b/{n}", "body": text, "kind": "ab"[n % 2], "by the": "me", "raw": b"\xff", "none": None}
        for n, text in enumerate(sentences(30))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    model, data = models["texts"], ("--data", tmp_path / "a.parquet")

    def reading(command: str, *words: object) -> dict[str, str]:
        answer = selfsup_command(command, model, *data, *words, "--json")
        assert answer.code == 0, answer
        told = json.loads(answer.out)
        found: dict[str, str] = told.get("estimate", told)["reading"]
        return found

    chosen = {"column": "'body' (not read: url, kind, by the, raw, none)"}
    assert reading("embed", "--out", tmp_path / "x.parquet") == chosen
    assert json.loads(pq.read_schema(tmp_path / "x.parquet").metadata[b"selfsup"])["reading"] == chosen
    assert reading("evaluate", "--protocol", "rankme") == chosen
    assert reading("embed", "--out", tmp_path / "y.parquet", "--column", "url", "--id", "body") == {
        "column": "'url' (not read: kind, by the, raw, none)"
    }
    learnt = {"column": "'body' (not read: url, by the, raw, none)"}
    for words in (("evaluate", "--protocol", "knn-20"), ("probe", "--out", tmp_path / "probe")):
        assert reading(*words, "--label", "kind") == learnt
    assert reading("index", "--out", tmp_path / "x.lance") == {
        "column": "'body'",
        "stored": "url, kind, by the as by_the",
        "not stored": "raw, none",
    }
    printed = selfsup_command("evaluate", model, *data, "--protocol", "rankme").out
    assert "column: 'body' (not read: url, kind, by the, raw, none)" in printed
    spoken = selfsup_command("classify", model, *data, "--probe", tmp_path / "probe").error
    assert "column 'body' (not read: url, kind" in " ".join(spoken.split())


def test_the_columns_of_pairs_are_told(models: dict[str, Path]) -> None:
    pairs = [
        {"sentence1": text, "sentence2": text[::-1], "score": n, "genre": "x"} for n, text in enumerate(sentences(10))
    ]
    for protocol, columns in (("sts", "sentence1, sentence2, score"), ("rankme", "sentence1, sentence2")):
        told = evaluate(models["texts"], data=pairs, protocol=protocol).left_out.reading
        assert told == {"columns": columns}


# -- from Python ---------------------------------------------------------------------------------------------


def test_lists_with_gaps(models: dict[str, Path], tmp_path: Path) -> None:
    texts = ["a storm", None, "the sea", float("nan"), "the sea"]
    made = selfsup.embed(models["texts"], texts, tmp_path / "x.parquet")
    assert (made.records, made.left_out.skipped) == (3, 2)
    assert made.left_out.skipped_names[0] == "document 2: the text is null"
    for odd in ([], [None], [1, 2], ["a", 1], ["a", ["b"]], (text for text in texts), np.array(["a"]), {"a"}, 5):
        with pytest.raises(UserError, match="text source"):
            selfsup.embed(models["texts"], odd, tmp_path / "y.parquet")


def test_an_empty_path_is_not_the_working_directory(
    models: dict[str, Path], tmp_path: Path, selfsup_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(save_photos(tmp_path / "photos", 2))
    for source in ([""], ["red", " "]):
        with pytest.raises(UserError, match="path of an image is empty"):
            selfsup.embed(models["images"], source, tmp_path / "x.parquet")
    answer = selfsup_command("zero-shot", models["pairs"], "", "--labels", "red")
    assert (answer.code, answer.out) == (2, "")


def test_arguments_of_other_kinds(models: dict[str, Path], tmp_path: Path) -> None:
    texts, library, out = ["a storm", "the sea"], tmp_path / "x.lance", tmp_path / "x.parquet"
    selfsup.index(models["texts"], texts, library)
    photo = [np.zeros((20, 20, 3), np.uint8)]
    for work in (
        *(lambda n=n: selfsup.embed(models["texts"], texts, out, batch=n) for n in (0, 1.5, "3", None)),
        *(lambda n=n: selfsup.index(models["texts"], texts, library, batch=n) for n in (-1, 2.0, True)),
        *(lambda n=n: selfsup.search(library, "storm", top=n) for n in (0, 1.5, "3", None)),
        *(lambda q=q: selfsup.search(library, q) for q in (5, ["storm"], b"storm", np.array("storm"), "", None)),
        *(lambda n=n: selfsup.zero_shot(models["pairs"], photo, n) for n in ([], [None], [1], ["a", 2], ["a", "a"])),
        *(lambda n=n: selfsup.zero_shot(models["pairs"], photo, ["a"], templates=n) for n in ([], [None], ["x"])),
        lambda: selfsup.embed(models["texts"], texts, ""),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            work()
        assert "\n" not in str(caught.value)
    same = [selfsup.zero_shot(models["pairs"], photo, labels) for labels in (["a", "b"], ("a", "b"), iter("ab"))]
    assert same[0] == same[1] == same[2]
