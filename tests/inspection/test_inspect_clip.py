"""What is shown of CLIP: against the batches of the training, plain loops over its vectors; hidden tokens, doubles."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_PAIRS, Answer, assert_alike, widest
from drawings import drawing
from looking import Page, Told, printed
from PIL import Image

import selfsup
from selfsup.data.loader import Loader
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inspection.alike import Alike
from selfsup.inspection.blocks import Gallery, Matrix
from selfsup.inspection.pairs import limits, of_tower
from selfsup.inspection.sheet import matrix_picture
from selfsup.objectives.clip import CLIP, CLIPRecipe
from selfsup.objectives.recipe import Effort
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.views import Preprocessing
from selfsup.views.drawn import levels

COUNT = 24  # pairs of a batch: more than are drawn


def train_pairs(out: Path, data: object, **given: Any) -> Run:
    settings = {**TINY_PAIRS, "data": data, "reporter": Reporter(False), "batch": COUNT, **given}
    return selfsup.train(settings.pop("objective"), out=out, **settings)


@pytest.fixture(scope="module")
def run(captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_pairs(tmp_path_factory.mktemp("clip") / "run", captioned, **{"clip.hidden_tokens": 0.3})


def look(**arguments: Any) -> Told:
    return Told(selfsup.inspect("clip", **arguments))


def networks(inspection: Told) -> list[Alike]:
    """What the towers make of the pairs, before the training and after it."""
    fields = ("name", "similarity", "roles", "figures", "loss")
    return [Alike(**{name: network[name] for name in fields}) for network in inspection.networks]


def beginning(run: Run) -> tuple[CLIPRecipe, CLIP, Batch]:
    """The objective as it starts, and the first batch as the trainer's own loader reads it."""
    recipe = CLIPRecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort())
    batch = Loader(recipe.train, run.settings()["train.seed"], COUNT, COUNT, 0).read(range(COUNT))
    return recipe, recipe.build(), batch


def vectors(objective: CLIP, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Of images and captions as the training hides them, normalised, one pair after the other."""
    task = objective.train().hide(batch)
    objective.eval()
    images, texts = [], []
    with torch.inference_mode():
        for pair in range(COUNT):
            length = int(task["lengths"][pair])
            images.append(objective.image(task["views"][pair : pair + 1])[0].float())
            tokens = task["tokens"][pair : pair + 1, :length]
            texts.append(objective.text(tokens, torch.tensor([length]))[0].float())
    return tuple(torch.stack([x / x.norm() for x in each]) for each in (images, texts))  # type: ignore[return-value]


def test_pairs_are_those_that_are_trained_on(run: Run) -> None:
    inspection = look(run=run.directory)
    assert (inspection.batch, len(inspection.images), inspection.values["loss"]) == (COUNT, COUNT, "softmax")
    recipe, objective, batch = beginning(run)
    task = objective.hide(batch)
    expected = levels(task["views"], Preprocessing.plain(1))
    (group,) = inspection.of(Gallery)[0].groups
    for tile, pixels in zip(group.rows[0], expected, strict=False):
        np.testing.assert_array_equal(tile.pixels, pixels)
    for pair, caption in enumerate(inspection.images):
        length = int(task["lengths"][pair])
        ids = task["tokens"][pair, 1 : length - 1].tolist()  # padding, start and end are not shown
        assert caption["tokens"] == recipe.text.tokenizer.tokens(ids)
        assert caption["hidden"] == [id_ == recipe.text.tokenizer.unknown for id_ in ids]
    hidden = [mark for caption in inspection.images for mark in caption["hidden"]]
    assert 0.15 < np.mean(hidden) < 0.45


def test_captions_stand_beside_their_own_images(run: Run, captioned: Path) -> None:
    for caption in look(run=run.directory).images:
        texts = (captioned / caption["name"]).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
        assert caption["text"] in texts


@pytest.mark.parametrize("network", [0, 1])
def test_similarities_and_loss_are_those_of_the_towers(run: Run, network: int) -> None:
    """Against one image and one caption at a time, and a plain loop over the pairs."""
    inspection = look(run=run.directory)
    assert [each.name for each in networks(inspection)] == ["before training", str(run.directory)]
    towers = networks(inspection)[network]
    temperature = towers.figures["temperature"]
    _, objective, batch = beginning(run)
    if network:
        checkpoint = run.checkpoints().newest()
        assert checkpoint is not None
        objective.load_state_dict(checkpoint.tensors["model"])
    images, texts = vectors(objective, batch)
    assert_alike(towers.similarity, images @ texts.T)
    losses = [
        math.log(
            sum(
                math.exp((rows[pair][other] - rows[pair][pair]) / temperature)
                for other in range(COUNT)
                if towers.roles[pair][other] != "="
            )
        )
        for rows in (np.array(towers.similarity), np.array(towers.similarity).T)
        for pair in range(COUNT)
    ]
    assert towers.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert towers.figures["modality_gap"] == pytest.approx(float((images.mean(0) - texts.mean(0)).norm()), rel=1e-4)
    assert inspection.chance == pytest.approx(math.log(COUNT))
    assert networks(inspection)[0].figures["temperature"] == pytest.approx(0.07)


def test_what_is_no_negative_is_marked(captioned: Path) -> None:
    """Captions that are alike, of a batch that holds all images."""
    inspection = look(data=str(captioned), batch=80, **{"data.window": 16, "data.vocabulary": 280})
    assert len(inspection.images) == 80
    for pair, row in enumerate(networks(inspection)[0].roles):
        for other, role in enumerate(row):
            same = inspection.images[pair]["text"] == inspection.images[other]["text"]
            assert role == ("+" if pair == other else "=" if same else "-")
    assert any("=" in row for row in networks(inspection)[0].roles)
    assert "are no negatives" in inspection.to_html()
    assert [towers.name for towers in networks(inspection)] == ["before training"]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_confusions_against_plain_loops(run: Run, tower: str) -> None:
    inspection = look(run=run.directory)
    towers = networks(inspection)[-1]
    cosines = np.array(towers.similarity) if tower == "image" else np.array(towers.similarity).T
    expected = {}
    for pair in range(COUNT):
        wrong = [other for other in range(COUNT) if towers.roles[pair][other] == "-"]
        other = max(wrong, key=lambda place, pair=pair: cosines[pair, place])  # type: ignore[misc]
        if cosines[pair, other] >= cosines[pair, pair]:
            expected[pair] = other, cosines[pair, pair], cosines[pair, other]
    looked = of_tower(towers, tower)
    wrongly = looked.confusions()
    assert {pair: (other, looked.own(pair), looked.similarity[pair][other]) for pair, other in wrongly} == expected
    excess = [looked.similarity[pair][other] - looked.own(pair) for pair, other in wrongly]
    assert excess == sorted(excess, reverse=True)
    assert looked.found() == pytest.approx(1 - len(expected) / COUNT)
    assert expected  # a run this short confuses something


def test_sigmoid_loss(captioned: Path, tmp_path: Path) -> None:
    run = train_pairs(tmp_path / "run", captioned, steps=2, **{"clip.loss": "sigmoid"})
    inspection = look(run=run.directory)
    towers = networks(inspection)[0]
    temperature = towers.figures["temperature"]
    bias = -math.log(COUNT - 1)
    total = 0.0
    for pair in range(COUNT):
        for other in range(COUNT):
            if towers.roles[pair][other] != "=":
                logit = towers.similarity[pair][other] / temperature + bias
                total += math.log1p(math.exp(-logit if pair == other else logit))
    assert towers.loss == pytest.approx(total / COUNT, rel=1e-4)
    assert inspection.chance == pytest.approx(math.log(COUNT) + (COUNT - 1) * math.log(COUNT / (COUNT - 1)))


def test_a_run_reads_other_data_by_its_own_tokenizer(run: Run, tmp_path: Path) -> None:
    for number in range(6):
        Image.fromarray(drawing(number, 20)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a red drawing {number}", encoding="utf-8")
    inspection = look(run=run.directory, data=str(tmp_path), **{"data.validation": 0.0})
    tokenizer = selfsup.load(run.directory).text.tokenizer  # type: ignore[union-attr]
    for caption in inspection.images:
        ids = tokenizer.encode(caption["text"])
        assert len(caption["tokens"]) == len(ids)
        shown = zip(caption["tokens"], tokenizer.tokens(ids), caption["hidden"], strict=True)
        assert all(hidden or token == expected for token, expected, hidden in shown)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text(run.config_file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="has no model yet"):
        look(run=bare, data=str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint yet"):
        look(run=bare)


def test_terminal_json_page_and_sheet(run: Run) -> None:
    inspection = look(run=run.directory)
    shown = printed(inspection, width=80)
    assert widest(shown) <= 80
    assert f"loss (chance {math.log(COUNT):.3f})" in shown
    assert "[UNK]" in shown
    assert "[PAD]" not in shown
    content = json.loads(json.dumps(inspection.to_json()))["values"]
    assert [len(content[name]) for name in ("images", "networks")] == [COUNT, 2]
    assert all(len(network["roles"]) == COUNT for network in content["networks"])
    assert content["networks"][1]["confusions"].keys() == {"image", "text"}
    tiles = Page(inspection.to_html()).tiles
    drawn = inspection.images[:16]
    gone = sum(token["role"] == "gone" for tile in tiles for token in tile["tokens"])
    assert gone == sum(sum(each["hidden"]) for each in drawn)
    assert Image.open(io.BytesIO(inspection.to_png())).format == "PNG"


def test_the_whole_batch_is_drawn_as_its_cosines(run: Run) -> None:
    """The stronger of two cells has the larger cosine, on the diagonal and beside it."""
    inspection = look(run=run.directory)
    whole = np.asarray(matrix_picture(inspection.of(Matrix)[3], 940))  # of the run
    side = len(whole) // COUNT
    assert whole.shape == (COUNT * side, COUNT * side, 3)
    cells = whole[side // 2 :: side, side // 2 :: side].astype(int).sum(-1)[:COUNT, :COUNT]
    towers = networks(inspection)[-1]
    assert inspection.of(Matrix)[3].values == towers.similarity
    drawn = Page(inspection.to_html()).of("matrix")[3]
    np.testing.assert_allclose(drawn["values"], towers.similarity, atol=5e-5)
    assert (drawn["rows"], drawn["roles"]) == ([], towers.roles)
    cosines, roles = np.array(towers.similarity), np.array([list(row) for row in towers.roles])
    for role in "+-":
        here = cosines[roles == role].clip(*limits(towers))
        paler = cells[roles == role]
        order = np.argsort(here)
        assert (np.diff(paler[order]) <= 3).all()  # but for rounding of three channels
        assert paler[order][0] > paler[order][-1]


@pytest.mark.parametrize(("given", "batch", "looked"), [({}, 64, 64), ({"batch": 12}, 12, 12)])
def test_how_many_pairs_are_looked_at(captioned: Path, given: dict[str, Any], batch: int, looked: int) -> None:
    inspection = look(data=str(captioned), **given, **{"data.window": 16, "data.vocabulary": 280})
    assert (inspection.batch, len(inspection.images)) == (batch, looked)
    assert inspection.chance == pytest.approx(math.log(looked))
    assert ("the first 16 are drawn" in inspection.limits) == (looked > 16)


def test_the_tokenizer_is_that_of_a_training_unless_one_is_given(captioned: Path) -> None:
    given = {"data": str(captioned), "data.window": 16, "data.vocabulary": 280}
    usual, other, named = look(**given), look(**given, tokenizer="bpe"), look(**given, tokenizer="wordpiece")
    assert usual.images == named.images
    assert usual.images != other.images


def test_captions_are_no_markup(tmp_path: Path) -> None:
    for number in range(8):
        Image.fromarray(drawing(number, 20)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"[red] <b onload=x>&amp; é字 {number}", encoding="utf-8")
    inspection = look(data=str(tmp_path), tokenizer="characters", **{"data.validation": 0.0})
    html = inspection.to_html()
    assert "<b onload" not in html
    assert "[red] <b onload=x>&amp; é字 3" in Page(html).text
    assert "[red]" in printed(inspection)
    inspection.to_png()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "A cat."}, "--text and --window say nothing"),
        ({"data": "nowhere"}, "nowhere"),
        ({"run": "nowhere"}, "holds no run"),
        ({"data": "sample:emoji", "clip": {"los": 1}}, "did you mean 'clip.loss'"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(**arguments)


def test_images_without_captions_are_refused(drawings: Path) -> None:
    with pytest.raises(UserError, match="caption"):
        look(data=str(drawings))


def test_command(run: Run, tmp_path: Path, selfsup_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer: Answer = selfsup_command("inspect", "--run", run.directory, "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["objective"] == "clip"
    answer = selfsup_command("inspect", "clip", "--run", run.directory)
    assert answer.out.rstrip().endswith("The pictures are in inspect-clip.html.")
    assert (tmp_path / "inspect-clip.html").read_text(encoding="utf-8").startswith("<!doctype html>")
