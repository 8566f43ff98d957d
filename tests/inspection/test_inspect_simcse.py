"""What is shown of SimCSE: against the training's own batch and loss, the saved encoder, plain loops; hostile texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_alike, widest
from hypothesis import given, settings
from hypothesis import strategies as st
from looking import Page, Told, printed

import selfsup
from selfsup.data.records import Batch
from selfsup.data.sampler import draw
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inspection.alike import Alike
from selfsup.inspection.blocks import Bars, Matrix, Tokens
from selfsup.models.features import Features
from selfsup.objectives.simcse import SimCSERecipe
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.seeding import seeded

TEXT = "A cat sleeps. The dog barks at the door. Nobody came. A cat sleeps. It rained all night. A cat sleeps."
SENTENCES = [
    f"The {animal} {verb} on the {place}."
    for animal in ("cat", "dog", "hen")
    for verb in ("sits", "sleeps", "sings")
    for place in ("mat", "bed", "sofa")
]
SIZE = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("simcse")
    data = place / "sentences.txt"
    data.write_text("\n".join(SENTENCES + SENTENCES[:9]) + "\n")
    return selfsup.train(
        "simcse",
        data={"source": str(data), "tokenizer": "words"},
        model={"layers": 2, "width": 16, "heads": 1},
        out=place / "run",
        steps=8,
        batch=SIZE,
        precision="fp32",
        reporter=Reporter(False),
    )


def look(**arguments: object) -> Told:
    return Told(selfsup.inspect("simcse", **arguments))  # type: ignore[arg-type]


def networks(inspection: Told) -> list[Alike]:
    """What each encoder makes of the sentences."""
    return [Alike(**views["alike"]) for views in inspection.views]


def lines(inspection: Told) -> list[list[tuple[str, str]]]:
    """The tokens of each sentence, and the view that each is left in alone."""
    (block,) = inspection.of(Tokens)
    return [[(token.text, token.role) for token in line.tokens] for line in block.lines]


def test_a_text() -> None:
    inspection = look(text=TEXT, tokenizer="words", batch=5)
    content = json.loads(json.dumps(inspection.to_json()))
    assert content["objective"] == "simcse"
    content = content["values"]
    assert (content["length"], len(content["texts"])) == (6, 5)
    tokens = [[token for token, _ in line] for line in lines(inspection)]
    assert all(each[0] == "[CLS]" and each[-1] == "[SEP]" for each in tokens)
    assert [" ".join(each[1:-1]) for each in tokens] == content["texts"]
    (views,) = content["views"]
    for t, text in enumerate(content["texts"]):
        for other, twin in enumerate(content["texts"]):
            expected = "+" if t == other else "=" if text == twin else "-"
            assert views["alike"]["roles"][t][other] == expected
    assert views["alike"]["name"] == "before training"
    assert (content["deletion"], content["dropout"]) == (0.5, 0.1)  # those of a training without settings
    shown = printed(inspection, width=120)
    assert "(equal to" in shown
    assert f"{''.join(networks(inspection)[0].roles).count('=')} pairs of equal sentences left out" in shown
    assert widest(printed(inspection, width=60)) <= 60


def test_sentences_are_those_of_the_first_step(run: Run) -> None:
    inspection = look(run=run.directory)
    assert inspection == selfsup.inspect(run=run.directory)  # the run names its objective
    recipe = SimCSERecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.cut()
    _, places = draw(run.settings()["train.seed"], 0, SIZE, len(recipe.train))
    data = recipe.train.read(places)
    tokenizer = recipe.corpus.tokenizer
    assert [[token for token, _ in line] for line in lines(inspection)] == [
        tokenizer.tokens(row[:length].tolist()) for row, length in zip(data["tokens"], data["lengths"], strict=True)
    ]
    assert (inspection.temperature, inspection.dropout, inspection.pooling) == (0.05, 0.1, "mean")
    assert inspection.deletion == 0.5
    assert [each.name for each in networks(inspection)] == ["before training", str(run.directory)]


def test_which_tokens_each_view_sees(run: Run) -> None:
    """Those of the task that the objective makes of the batch."""
    inspection = look(run=run.directory)
    recipe = SimCSERecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.cut()
    seed = run.settings()["train.seed"]
    epochs, places = draw(seed, 0, SIZE, len(recipe.train))
    task = recipe.build().hide(Batch(recipe.train.read(places), seed, epochs, places))
    for view, other in (("first", "second"), ("second", "first")):
        for t, line in enumerate(lines(inspection)):
            shown = task[view][t, : task[f"{view}_lengths"][t]].tolist()
            kept = [token for token, role in line if role not in (other, "neither")]
            assert kept == recipe.corpus.tokenizer.tokens(shown)
    assert {role for line in lines(inspection) for _, role in line} == {"", "first", "second", "neither"}


def pooled(run: Run, texts: list[str]) -> np.ndarray:
    """The vectors of a run before they are whitened."""
    model = run.model
    assert isinstance(model, EncoderModel)
    model.features = Features(model.features.pooling)
    return model.embed(texts, precision="fp32")


def test_without_dropout_the_vectors_are_those_of_the_saved_encoder(run: Run) -> None:
    inspection = look(run=run.directory, model={"dropout": 0.0}, simcse={"deletion": 0.0})
    vectors = pooled(run, inspection.texts)
    normal = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    trained = inspection.views[-1]
    assert_alike(trained["alike"]["similarity"], normal @ normal.T)
    assert_alike(trained["first"], vectors[:, :32])
    assert_alike(trained["second"], vectors[:, :32])
    for t, bars in enumerate(inspection.of(Bars)):
        assert bars.rows == {"view 1": trained["first"][t], "view 2": trained["second"][t]}


def test_dropout_tells_the_views_apart(run: Run) -> None:
    for views in look(run=run.directory, simcse={"deletion": 0.0}).views:
        similarity = views["alike"]["similarity"]
        for t, (first, second) in enumerate(zip(views["first"], views["second"], strict=True)):
            assert similarity[t][t] < 0.9999
            cosine = np.dot(first, second) / (np.linalg.norm(first) * np.linalg.norm(second))
            assert similarity[t][t] == pytest.approx(cosine, abs=1e-5)  # all 16 numbers are among them


def test_what_it_begins_with_is_what_the_training_began_with(run: Run) -> None:
    """Encoder and dropout of the recipe; the loss is the objective's own, without the projection."""
    inspection = look(run=run.directory)
    recipe = SimCSERecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.cut()
    objective = recipe.build()
    objective.projection = torch.nn.Identity()
    seed = run.settings()["train.seed"]
    epochs, places = draw(seed, 0, SIZE, len(recipe.train))
    task = objective.hide(Batch(recipe.train.read(places), seed, epochs, places))
    with torch.inference_mode(), seeded(seed, "dropout", 0, int(places[0])):
        outputs = objective.predict(task)
        loss = objective.score(outputs, task, Processes())["info_nce"].item()
    assert_alike(inspection.views[0]["first"], outputs["first"][:, :32])
    assert networks(inspection)[0].loss * SIZE == pytest.approx(loss, abs=1e-3)


def test_losses_against_plain_loops(run: Run) -> None:
    inspection = look(run=run.directory)
    for views in networks(inspection):
        assert "=" in "".join(views.roles)
        losses = []
        for t, row in enumerate(views.similarity):
            among = [
                math.exp(cosine / inspection.temperature)
                for role, cosine in zip(views.roles[t], row, strict=True)
                if role != "="
            ]
            losses.append(math.log(sum(among)) - row[t] / inspection.temperature)
            worst, cosine = views.hardest()[t]
            assert views.roles[t][worst] == "-"
            assert cosine == max(c for role, c in zip(views.roles[t], row, strict=True) if role == "-")
        assert views.loss == pytest.approx(sum(losses) / SIZE, abs=1e-3)
    assert f"{networks(inspection)[-1].loss:.3f}" in printed(inspection, width=200)


def test_a_training_that_goes_on_begins_with_what_it_is_given(run: Run) -> None:
    inspection = look(data=SENTENCES, init=str(run.directory), model={"dropout": 0.0}, simcse={"deletion": 0.0})
    assert [each.name for each in networks(inspection)] == [f"before training ({run.directory})"]
    vectors = pooled(run, inspection.texts)
    assert_alike(inspection.views[0]["first"], vectors[:, :32])


@given(st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_text(parts: list[str]) -> None:
    text = "\n\n".join(["</script><b onload=x>&amp;[red] \"'", *parts])
    inspection = look(text=text, tokenizer="characters", model={"layers": 1, "width": 16, "heads": 1})
    html = inspection.to_html()
    assert html.count("</script>") == 3  # of the page itself
    Page(html)
    assert "[red]" in "".join(inspection.texts)
    printed(inspection)


def test_equal_sentences_alone_have_no_negatives() -> None:
    inspection = look(text="It rains.\n\n" * 3, tokenizer="words")
    (views,) = networks(inspection)
    assert views.roles == ["+==", "=+=", "==+"]
    assert views.loss == pytest.approx(0.0, abs=1e-6)
    printed(inspection)
    assert Page(inspection.to_html()).of("matrix")[0]["roles"] == views.roles


def test_page(run: Run) -> None:
    inspection = look(run=run.directory)
    page = Page(inspection.to_html())
    told = page.of("matrix")
    for matrix, each in zip(inspection.of(Matrix), told, strict=True):
        assert each["roles"] == matrix.roles
        np.testing.assert_allclose(each["values"], matrix.values, atol=5e-4)
        assert [len(names) for names in each["said"]] == [SIZE, SIZE]
    assert len(told) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "One sentence alone."}, "give two or more"),
        ({"text": " "}, "empty"),
        ({"text": "One is here. Two are here.", "model": {"width": 30, "heads": 4}}, "no such model"),
        ({"text": "One is here. Two are here.", "model": "3n"}, "did you mean '3m'"),
        ({"text": "One is here. Two are here.", "simcse": {"pooling": "max"}}, "simcse.pooling"),
        ({"data": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(**arguments)


def test_models_of_other_kinds_are_refused(finished: Run) -> None:
    with pytest.raises(UserError, match="holds a decoder"):
        look(run=finished.directory)


def test_command(run: Run, tmp_path: Path, selfsup_command: object) -> None:
    page = tmp_path / "page.html"
    answer = selfsup_command("inspect", "--run", run.directory, "--html", page, "--json")  # type: ignore[operator]
    assert answer.code == 0
    assert json.loads(answer.out)["objective"] == "simcse"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
