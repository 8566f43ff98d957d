"""What is shown of masked LM: against the training's own tasks, plain loops, the model's own losses, hostile texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import widest
from hypothesis import given, settings
from hypothesis import strategies as st
from looking import Page, Told, found, printed

import selfsup
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inspection.blocks import Marks, Sight, Window
from selfsup.inspection.tokens import Counts
from selfsup.objectives.masked_lm import MaskedLMRecipe
from selfsup.report import Reporter
from selfsup.run import Run

SENTENCE = "The old man sat by the sea and smoked his pipe until the storm came up from the south."
TEXTS = [f"The {animal} is on the {place}." for animal in ("cat", "dog", "hen") for place in ("mat", "bed", "sofa")] * 8
WINDOW = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("masked")
    data = place / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return selfsup.train(
        "masked-lm",
        data={"source": str(data), "tokenizer": "characters", "window": WINDOW},
        model={"layers": 2, "width": 16, "heads": 1},
        masked_lm={"unit": "word"},
        out=place / "run",
        steps=12,
        batch=8,
        reporter=Reporter(False),
    )


def look(**arguments: object) -> Told:
    return Told(selfsup.inspect("masked-lm", **arguments))  # type: ignore[arg-type]


def marks(inspection: Told) -> list[str]:
    """Of each epoch."""
    (block,) = inspection.of(Marks)
    return list(block.rows.values())


def check(inspection: Told) -> None:
    """Whatever is said of a position agrees with whatever else is said of it."""
    (window,), (sight,) = inspection.of(Window), inspection.of(Sight)
    hidden = {each.position: each for each in inspection.predictions}
    assert sorted(hidden) == [each.position for each in inspection.predictions]
    names = {"mask": "M", "random": "R", "kept": "K"}
    for t, (target, shown) in enumerate(zip(window.targets, window.inputs, strict=True)):
        mark = marks(inspection)[0][t]
        if t not in hidden:
            assert target is None
            assert window.roles[t] == ""
            assert mark == "·"
            continue
        assert target not in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
        assert hidden[t].target == target
        assert hidden[t].given[min(t, 6)].text == shown
        assert hidden[t].given[min(t, 6)].role == window.roles[t]
        assert names[window.roles[t]] == mark
        assert (shown == "[MASK]") == (mark == "M")
        if mark == "K":
            assert shown == target
    counts = inspection.counts[0]
    assert counts["hidden"] == len(hidden) == counts["mask"] + counts["random"] + counts["kept"]
    assert counts["windows"] == 1
    assert sight.names == window.inputs


def tokens_of(inspection: Told) -> list[str]:
    """The text before anything was hidden."""
    return [
        shown if target is None else target for shown, target in zip(inspection.inputs, inspection.targets, strict=True)
    ]


def test_a_sentence() -> None:
    inspection = look(text=SENTENCE, tokenizer="words", masked_lm={"rate": 0.5})
    check(inspection)
    content = json.loads(json.dumps(inspection.to_json()))
    assert tokens_of(inspection) == ["[CLS]", *SENTENCE.replace(".", " .").split(), "[SEP]"]
    window, (first, *others) = found(content, "window"), found(content, "predictions")["predictions"]
    assert len(others) == 9
    assert content["values"]["counts"][0]["tokens"] == 20
    assert content["values"]["aims"] == {"hidden": 0.5, "mask": 0.8, "random": 0.1, "kept": 0.1}
    assert not {"losses", "loss", "guesses", "chance"} & (window.keys() | first.keys())
    text = printed(inspection)
    assert "10 hidden by the token" in text
    for shown, target in zip(inspection.inputs, inspection.targets, strict=True):
        assert (shown if target is None else f"{shown}?" if shown == target else f"{shown}→{target}") in text
    assert text.count("██") == 22 * 22


@given(text=st.text(min_size=8, max_size=60), unit=st.sampled_from(["token", "word", "span"]))
@settings(max_examples=40, deadline=None)
def test_any_text(text: str, unit: str) -> None:
    text = "</script><b onload=x>&amp;[red]" + text
    inspection = look(text=text, tokenizer="characters", masked_lm={"unit": unit, "rate": 0.9})
    check(inspection)
    html = inspection.to_html()
    assert html.count("</script>") == 3  # of the page itself
    assert Page(html).of("window")[0]["inputs"] == inspection.inputs
    assert widest(printed(inspection, width=100)) <= 100


def test_masks_are_those_of_the_training(run: Run) -> None:
    inspection = look(run=run.directory)
    check(inspection)
    assert inspection == selfsup.inspect(run=run.directory)  # the run names its objective
    assert inspection.unit == "word"
    recipe = MaskedLMRecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.cut()
    objective, first = recipe.build(), np.zeros(1, np.int64)
    seed = run.settings()["train.seed"]
    for epoch, row in enumerate(marks(inspection)):
        batch = Batch(recipe.train.read(first), seed, first + epoch, first)
        task = objective.hide(batch)
        places, targets = task["positions"][0], task["targets"][0]
        assert {t for t, mark in enumerate(row) if mark != "·"} == set(places[targets >= 0].tolist())
        if epoch == 0:
            assert inspection.inputs == recipe.corpus.tokenizer.tokens(task["inputs"][0].tolist())


def test_whole_words_are_hidden() -> None:
    inspection = look(text=SENTENCE, tokenizer="characters", window=128, masked_lm={"unit": "word", "rate": 0.5})
    row = marks(inspection)[0][1:-1]
    start = 0
    for word in SENTENCE.split(" "):
        letters = row[start : start + len(word.rstrip("."))]
        assert len({mark == "·" for mark in letters}) == 1, word
        start += len(word) + 1


def test_documents_do_not_see_each_other() -> None:
    inspection = look(data=["the cat sat", "a dog", "on it lies a very old hat"] * 8, tokenizer="words", window=40)
    check(inspection)
    document, numbers = 0, []
    for token in tokens_of(inspection):
        document += token == "[CLS]"
        numbers.append(-1 if token == "[PAD]" else document)
    assert len(set(numbers) - {-1}) > 3
    for row, own in zip(inspection.mask, numbers, strict=True):
        assert row == [int(own == other >= 0) for other in numbers]
    assert "do not see each other" in printed(inspection)


def test_local_layers_are_told_apart() -> None:
    inspection = look(text="word " * 100, tokenizer="words")
    (sight,) = inspection.of(Sight)
    assert sight.reach == 64
    far = sum(sight.far(t, u) for t in range(102) for u in range(102))
    near = 102 + 2 * sum(102 - distance for distance in range(1, 65))
    assert far == 102 * 102 - near
    assert sum(map(sum, sight.mask)) == 102 * 102
    assert "▒▒: only the layers that see farther than 64 positions do." in printed(inspection)
    (drawn,) = Page(inspection.to_html()).of("sight")
    assert (drawn["mask"], drawn["reach"]) == (sight.mask, 64)


def test_shares_are_those_stated() -> None:
    inspection = look(data=[SENTENCE + f" {number}" for number in range(400)], tokenizer="words", window=100)
    here, many = (Counts(**counts) for counts in inspection.counts)
    assert (here.windows, many.windows) == (1, 64)
    assert many.tokens > 64 * 80
    assert many.share("hidden") == pytest.approx(0.3, abs=0.01)
    for name, share in (("mask", 0.8), ("random", 0.1), ("kept", 0.1)):
        spread = (share * (1 - share) / many.hidden) ** 0.5
        assert many.share(name) == pytest.approx(share, abs=5 * spread)
    rows = [line.split() for line in printed(inspection, 100).splitlines() if line.startswith("of these")]
    assert rows == [
        [
            "of",
            "these:",
            "[MASK]",
            "80%",
            str(here.mask),
            f"({here.share('mask'):.1%})",
            f"{many.mask:,}",
            f"({many.share('mask'):.1%})",
        ]
    ]


def plain_losses(run: Run, inspection: Told, ids: Sequence[int]) -> torch.Tensor:
    """log p of every token of the vocabulary at each hidden position, from the whole window's hidden states."""
    masked = run.model.masked  # type: ignore[union-attr]
    with torch.inference_mode():
        every = masked(torch.tensor([ids]), torch.arange(len(ids))[None])
        logits = every[0] @ masked.output_weight.T
    return logits[[h.position for h in inspection.predictions]].log_softmax(-1)


def test_losses_and_guesses_are_those_of_the_model(run: Run) -> None:
    inspection = look(text="The hen is on a mat.", run=run.directory)
    check(inspection)
    tokenizer = run.model.tokenizer
    numbers = {name: id_ for id_, name in enumerate(tokenizer.tokens(range(tokenizer.vocabulary)))}
    log_p = plain_losses(run, inspection, [numbers[name] for name in inspection.inputs])
    assert inspection.chance == pytest.approx(run.summary["chance"])
    for h, row in zip(inspection.predictions, log_p, strict=True):
        assert h.loss == pytest.approx(-row[numbers[h.target]].item(), abs=1e-4)
        assert h.guesses is not None
        assert [guess.probability for guess in h.guesses] == pytest.approx(
            sorted(row.exp().tolist(), reverse=True)[:5], abs=1e-5
        )
        for guess in h.guesses:
            assert guess.probability == pytest.approx(row[numbers[guess.token]].exp().item(), abs=1e-5)
    mean = sum(h.loss or 0.0 for h in inspection.predictions) / len(inspection.predictions)
    assert f"mean loss {mean:.3f} nats" in printed(inspection, width=200)
    (first, *_) = found(inspection.to_json(), "predictions")["predictions"]
    assert first["guesses"][0].keys() == {"token", "probability"}
    (window,) = inspection.of(Window)
    assert [loss for loss in window.losses or () if loss is not None] == [h.loss for h in inspection.predictions]


def test_page_shows_every_position(run: Run) -> None:
    inspection = look(run=run.directory)
    page = Page(inspection.to_html())
    (window,), (predictions,), (sight,) = (page.of(kind) for kind in ("window", "predictions", "sight"))
    assert len(window["inputs"]) == len(sight["mask"]) == WINDOW
    assert [each["loss"] for each in predictions["predictions"]] == [each.loss for each in inspection.predictions]
    assert [*page.of("marks")[0]["rows"].values()] == marks(inspection)


def test_tokenizer_of_the_settings() -> None:
    inspection = look(text="The hen.", **{"data.tokenizer": "characters"})
    assert tokens_of(inspection) == ["[CLS]", *"The hen.", "[SEP]"]


def test_tokenizer_of_a_run(run: Run) -> None:
    inspection = look(text="The hen.", tokenizer=run.directory, masked_lm={"rate": 0.5})
    assert tokens_of(inspection) == ["[CLS]", *"The hen.", "[SEP]"]
    assert inspection.chance is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "one"}, "give a longer text"),
        ({"text": "one two three", "window": 2}, "ask for 3 or more"),
        ({"text": "a b c", "masked_lm": {"unit": "wrod"}}, "masked_lm.unit"),
        ({"text": "a b c", "run": "nowhere"}, "There is no nowhere"),
        ({"data": ["a b"], "text": "a"}, "give one of them"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(**arguments)


def test_models_of_other_kinds_are_refused(run: Run, finished: Run) -> None:
    with pytest.raises(UserError, match="holds a decoder"):
        look(run=finished.directory)
    with pytest.raises(UserError, match="at most 24"):
        look(run=run.directory, window=25)


def test_command(run: Run, tmp_path: Path, selfsup_command: object) -> None:
    words = ["inspect", "masked-lm", "--text", SENTENCE, "--tokenizer", run.directory, "--json"]
    page = tmp_path / "page.html"
    answer = selfsup_command(*words, "--html", page, "masked_lm.unit=span")  # type: ignore[operator]
    assert answer.code == 0
    content = json.loads(answer.out)
    assert content["objective"] == "masked-lm"
    assert content["values"]["unit"] == "span"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
