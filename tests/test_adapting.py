"""adapt: what is set aside, which candidates there are, a decoder and an encoder from start to report, and stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder
from conftest import Answer, Trained, steps_take
from hypothesis import given
from hypothesis import strategies as st
from tiny_vision import save_tiny_vision

import selfsup
from selfsup import adapting
from selfsup.adapting.candidates import CANDIDATES, Subject
from selfsup.adapting.photos import open_photos
from selfsup.adapting.report import Adapted, Tried
from selfsup.adapting.texts import FILES, HELD_OUT, PIECE, Texts, pieces, set_aside
from selfsup.errors import Interrupted, UserError
from selfsup.evaluation import DECODER, TEXTS
from selfsup.evaluation.base import Score
from selfsup.evaluation.gains import Gain
from selfsup.objectives import RECIPES, find_recipe
from selfsup.report import Reporter
from selfsup.run import Run

QUIET = Reporter(False)
DOCUMENTS = [
    f"The old {thing} by the {place} was {state} on day {day}. Nobody had seen it {state} since the storm. "
    f"Then an old man came by the {place} and sat there, by a fire, and smoked his pipe, and the {thing} was {state} "
    f"no more on day {day + 1}."
    for thing in ("ship", "house", "dog")
    for place in ("sea", "hill", "road")
    for state in ("cold", "lost", "wet", "gone")
    for day in range(5)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS), encoding="utf-8")
    return path


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only steps take time, half a second each, whatever they take here."""
    steps_take(0.5, monkeypatch.setattr)


# -- what is set aside ---------------------------------------------------------------------------------------


def rows(place: Path, part: str) -> list[str]:
    return [json.loads(line)["text"] for line in (place / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_document_is_in_one_part_and_equal_ones_in_the_same(tmp_path: Path) -> None:
    twice = tmp_path / "twice.jsonl"
    twice.write_text("".join(json.dumps({"body": text, "id": 1}) + "\n" for text in DOCUMENTS * 2), encoding="utf-8")
    found = set_aside(str(twice), None, 0.01, 0, tmp_path / "data")
    parts = {part: rows(tmp_path / "data", part) for part in FILES}
    assert sorted(text for part in parts.values() for text in part) == sorted(DOCUMENTS * 2)
    sets = [set(part) for part in parts.values()]
    assert not sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2]
    assert all(0.03 < len(part) / 360 < 0.15 for part in (parts["choose"], parts["judge"]))
    assert (found.documents, found.cut, found.notes["column"]) == (360, False, "'body' (not read: id)")
    assert found.passages >= len(parts["choose"]) + len(parts["judge"])
    assert set_aside("is not read again", None, 0.01, 0, tmp_path / "data") == found


def test_lines_that_are_sentences_are_documents_and_few_long_ones_are_cut(tmp_path: Path) -> None:
    lines, book = tmp_path / "lines.txt", tmp_path / "book.txt"
    lines.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    assert set_aside(str(lines), None, 0.01, 0, tmp_path / "a").documents == len(DOCUMENTS)
    book.write_text("\n".join(f"a line of a long book that goes on and on, {n}" for n in range(3000)), encoding="utf-8")
    cut = set_aside(str(book), None, 0.01, 0, tmp_path / "b")
    assert cut.cut
    assert cut.documents == pytest.approx(book.stat().st_size / PIECE, rel=0.1)
    with pytest.raises(UserError, match=r"has 1 pieces of text, too few"):
        short = tmp_path / "short.txt"
        short.write_text("too little", encoding="utf-8")
        set_aside(str(short), None, 0.01, 0, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_columns_that_belong_together_are_kept_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "faq.jsonl"
    rows_ = [{"question": f"Where is the {n}th ship?", "answer": text, "id": n} for n, text in enumerate(DOCUMENTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_), encoding="utf-8")
    found = set_aside(str(path), None, 0.01, 0, tmp_path / "data")
    assert found.pairs.startswith("'question' with 'answer'")
    lines = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {row["answer"]: row["question"] for row in rows_}
    for row in map(json.loads, lines):
        assert row == {"text": row["passage"], "query": asked[row["passage"]], "passage": row["passage"]}
    assert set_aside(str(path), "answer", 0.01, 0, tmp_path / "named").pairs == ""


@given(st.text(st.sampled_from("ab \n"), max_size=4000))
def test_pieces_are_the_whole_document(document: str) -> None:
    found = list(pieces(document))
    assert "".join(found) == (document if document.strip() else "") or document.startswith("".join(found))
    assert not document.removeprefix("".join(found)).strip()
    assert all(len(piece) <= 2 * PIECE for piece in found)


# -- candidates ----------------------------------------------------------------------------------------------


def test_candidates_are_objectives_and_say_why_they_do_not_fit(tmp_path: Path) -> None:
    assert {each.objective for each in CANDIDATES} <= set(RECIPES)
    assert len({each.name for each in CANDIDATES}) == len(CANDIDATES)
    place = tiny_encoder.save_tiny(tmp_path / "own")
    short, long = (Texts("x", 100, 100, length, 10, False, "", {}, tmp_path) for length in (50, 500))
    fits = {
        (each.name, texts.length): each.unfit(Subject(place, TEXTS, texts))
        for each in CANDIDATES
        if each.kind == TEXTS
        for texts in (short, long)
    }
    for name in ("masked-lm", "neighbours"):
        assert "little stands side by side" in str(fits.pop((name, 50)))
    assert all("no two columns" in str(fits.pop(("columns", length))) for length in (50, 500))
    assert set(fits.values()) == {None}
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"model_type": "electra"}))
    other = Subject(place, TEXTS, long)
    assert other.start == {"model": {"preset": f"hf:{place}"}}
    reasons = {each.name: each.unfit(other) for each in CANDIDATES if each.kind == TEXTS}
    assert "those of electra" in str(reasons["tsdae"])
    assert reasons["simcse"] is None


# -- from start to report ------------------------------------------------------------------------------------


def gain(values: list[float], by: str = "structure") -> Gain:
    def score(numbers: list[float]) -> Score:
        return Score.of_mean(np.array(numbers), 0, protocol=by, unit="%", chance=None, data="x")

    return Gain.of("x", True, score([0.0] * len(values)), score(values))


class Stopping(Reporter):
    """Presses Ctrl-C when something is said that begins so."""

    def __init__(self, words: str) -> None:
        super().__init__(False)
        self.words = words

    def say(self, text: str) -> None:
        if text.strip().startswith(self.words):
            raise KeyboardInterrupt


def test_a_decoder_gets_better_and_the_report_says_so(
    trained: Trained, data: Path, hasty: None, tmp_path: Path
) -> None:
    """Though it is stopped within a trial, and before it is gone on with the chosen one."""
    start = trained("causal-lm").directory
    for words in ("step 0 ", "Going on with"):
        with pytest.raises(Interrupted, match="Give the same command again"):
            selfsup.adapt(start, data=data, budget=90, out=tmp_path / "out", reporter=Stopping(words))
    made = selfsup.adapt(start, data=data, budget=90, out=tmp_path / "out", reporter=QUIET)
    assert made.protocol in ("bits-per-byte", "perplexity")
    assert [each.name for each in made.tried] == [each.name for each in CANDIDATES if each.kind == DECODER]
    assert made.better
    assert made.gain is not None
    assert made.gain.difference < 0
    best = Run(made.best)
    assert best.directory == tmp_path / "out" / "trials" / str(made.chosen)
    assert best.summary
    text = (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert f"Use: {made.best}" in text
    saved = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert Adapted.from_json(made.directory, saved).to_json() == made.to_json()
    assert (tmp_path / "out" / "report.png").stat().st_size > 1000
    trained_on = {each.settings()["data.source"] for each in map(Run, (tmp_path / "out" / "trials").iterdir())}
    assert trained_on == {str(tmp_path / "out" / "data" / "train.jsonl")}
    with pytest.raises(UserError, match="holds a finished adaptation"):
        selfsup.adapt(start, data=data, budget=90, out=tmp_path / "out", reporter=QUIET)


def test_a_stop_anywhere_goes_on_and_finished_trials_are_not_made_again(
    data: Path, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tiny_encoder.save_tiny(tmp_path / "start")
    how: dict[str, Any] = {"data": data, "budget": 90, "out": tmp_path / "out"}
    begun: list[str] = []
    train = adapting.train

    def counted(objective: Any = None, **given: Any) -> Run:
        begun.append(str(objective or given["resume"]))
        return train(objective, **given)

    monkeypatch.setattr(adapting, "train", counted)
    fewer = [each for each in CANDIDATES if each.name in ("tsdae", "simcse", "masked-lm")]
    monkeypatch.setattr(adapting, "CANDIDATES", fewer)
    for words in ("The start", "simcse, for", "masked-lm, for"):
        with pytest.raises(Interrupted, match="Give the same command again"):
            selfsup.adapt(place, **how, reporter=Stopping(words))
        state = json.loads((tmp_path / "out" / "adapt.json").read_text(encoding="utf-8"))
        assert state["elapsed"] > 0
    with pytest.raises(UserError, match="holds another adaptation"):
        selfsup.adapt(place, **{**how, "budget": 91}, reporter=QUIET)
    made = selfsup.adapt(place, **how, reporter=QUIET)
    assert begun[:2] == ["tsdae", "simcse"]
    assert len(set(begun)) == len(begun)
    assert made.seconds >= state["elapsed"]
    assert {each.name for each in made.tried} == {"tsdae", "simcse", "masked-lm"}


def test_what_lost_is_not_gone_on_with_and_the_start_is_pointed_at(
    data: Path, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tiny_encoder.save_tiny(tmp_path / "start")
    lost = gain([-1.0, -2.0, -1.5, -1.0])
    monkeypatch.setattr(
        adapting._Session, "_tried", lambda self, each, unfit, *_: Tried(each.name, each.why, unfit, lost, 3, 1.0)
    )
    made = selfsup.adapt(place, data=data, budget=90, out=tmp_path / "out", reporter=QUIET)
    assert (made.better, made.chosen, made.best) == (False, None, str(place))
    assert "It did not get better" in (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")


def test_an_image_encoder_is_measured_by_its_views(
    drawings: Path, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images that are held out are those that every trial holds out."""
    place = save_tiny_vision(tmp_path / "start")
    monkeypatch.setattr(adapting, "CANDIDATES", [each for each in CANDIDATES if each.name in ("simclr", "clip")])
    made = selfsup.adapt(place, data=drawings, budget=90, out=tmp_path / "out", reporter=QUIET)
    assert made.protocol == "instances"
    (tried,) = made.tried
    assert tried.gain is not None
    run = Run(tmp_path / "out" / "trials" / "simclr")
    assert run.settings()["data.validation"] == HELD_OUT
    photos = open_photos(str(drawings), {"column": None, "failures": 0.01}, False, lambda done, total: None)
    model = selfsup.load(place)
    halves = [{item.identity for item in photos.part(part, model).items()} for part in ("choose", "judge")]
    recipe = find_recipe("simclr")(run.settings())
    recipe.open(lambda done, total: None)
    _, held_out = recipe.parts()
    hashes = {int(recipe.images.hashes[place]).to_bytes(8, "little") for place in held_out}
    assert halves[0] | halves[1] == hashes
    assert not halves[0] & halves[1]
    assert tried.gain.after.n == len(halves[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": "1s"}, "leaves no time for trials; give 1 min 00 s or more"),
        ({"budget": "soon"}, "The budget 'soon' is none"),
        ({"data": "nowhere"}, "nowhere"),
        ({"model": "nowhere"}, "There is no nowhere"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    given: dict[str, Any], said: str, data: Path, tmp_path: Path
) -> None:
    place = tiny_encoder.save_tiny(tmp_path / "start")
    asked = {"model": place, "data": data, "out": tmp_path / "out", **given}
    with pytest.raises(UserError, match=said):
        selfsup.adapt(asked.pop("model"), **asked, reporter=QUIET)
    assert not (tmp_path / "out").exists()


def test_too_little_text_leaves_nothing(tmp_path: Path) -> None:
    place, short = tiny_encoder.save_tiny(tmp_path / "start"), tmp_path / "short.txt"
    short.write_text("too little to learn from", encoding="utf-8")
    with pytest.raises(UserError, match="too few to set some aside"):
        selfsup.adapt(place, data=short, budget=90, out=tmp_path / "out", reporter=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_place_that_holds_something_else_stays(data: Path, tmp_path: Path) -> None:
    place = tiny_encoder.save_tiny(tmp_path / "start")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        selfsup.adapt(place, data=data, budget=90, out=tmp_path / "out", reporter=QUIET)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_command(
    selfsup_command: Callable[..., Answer], data: Path, hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tiny_encoder.save_tiny(tmp_path / "start")
    monkeypatch.setattr(adapting, "CANDIDATES", [each for each in CANDIDATES if each.name == "tsdae"])
    answer = selfsup_command("adapt", place, "--data", data, "--budget", "90s", "--out", tmp_path / "out", "--json")
    assert answer.code == 0, answer
    told = json.loads(answer.out)
    assert told["tried"][0]["name"] == "tsdae"
    assert told["best"] in (str(place), str(tmp_path / "out" / "trials" / "tsdae"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where runs/ would come to lie."""
    monkeypatch.chdir(tmp_path)
