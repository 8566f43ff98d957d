"""What is shown of SimCLR: against the batches of the training, plain loops over its outputs; hostile names."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Train, widest
from drawings import drawing, write_drawings
from looking import Page, Told, printed
from PIL import Image

import selfsup
from selfsup.data.loader import Loader
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.inspection.alike import Alike
from selfsup.inspection.blocks import Gallery
from selfsup.objectives.base import Collectives, Outputs, Task
from selfsup.objectives.recipe import Effort
from selfsup.objectives.simclr import SimCLR, SimCLRRecipe
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.views import Preprocessing
from selfsup.views.drawn import levels


@pytest.fixture(scope="module")
def run(train_vision: Train, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_vision(tmp_path_factory.mktemp("simclr") / "run", "simclr", batch=8)


def look(**arguments: object) -> Told:
    return Told(selfsup.inspect("simclr", **arguments))  # type: ignore[arg-type]


def tiles(inspection: Told) -> list[list[np.ndarray]]:
    """Of each image that is drawn, its own pixels and those of its views."""
    (gallery,) = inspection.of(Gallery)
    return [[tile.pixels for tile in group.rows[0]] for group in gallery.groups]


def beginning(run: Run, count: int) -> tuple[SimCLR, Batch, Task]:
    """The objective, and the first records as the trainer's own loader reads them."""
    recipe = SimCLRRecipe(run.settings())
    recipe.open(lambda done, total: None)
    recipe.settle(Effort())
    objective = recipe.build()
    batch = Loader(recipe.train, run.settings()["train.seed"], count, count, 0).read(range(count))
    return objective, batch, objective.hide(batch)


def test_views_are_those_that_are_trained_on(run: Run) -> None:
    inspection = look(run=run.directory)
    assert inspection.run == str(run.directory)
    count = len(inspection.images)
    _, batch, task = beginning(run, count)
    expected = levels(task["views"].flatten(0, 1), Preprocessing.plain(1)).reshape(count, 2, 16, 16, 3)
    assert len(tiles(inspection)) == 6
    for image, (_, *pair) in enumerate(tiles(inspection)):
        for seen, pixels in zip(pair, expected[image], strict=True):
            np.testing.assert_array_equal(seen, pixels)
    for image, told in enumerate(inspection.images):
        height, width = batch.data["sizes"][image].tolist()
        assert (told["height"], told["width"]) == (height, width)
        for drawn in told["views"]:
            top, left, tall, wide = drawn["box"]
            assert 0 <= top <= top + tall <= height
            assert 0 <= left <= left + wide <= width


def test_names_are_those_of_the_images(run: Run, drawings: Path) -> None:
    """The image is drawn with its crops: what lies outside of them is as it is read."""
    inspection = look(run=run.directory)
    names = [image["name"] for image in inspection.images]
    _, batch, _ = beginning(run, len(names))
    for place, name in enumerate(names):
        height, width = batch.data["sizes"][place].tolist()
        pixels = batch.data["pixels"][place, :, :height, :width].permute(1, 2, 0)
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(drawings / name)))
    for group in inspection.of(Gallery)[0].groups:
        read = np.asarray(Image.open(drawings / group.name))
        shown = np.asarray(Image.fromarray(group.rows[0][0].pixels).resize(read.shape[1::-1], 0))
        assert 0.3 < (shown == read).all(2).mean() < 1


def test_losses_and_cosines_against_plain_loops(run: Run) -> None:
    inspection = look(run=run.directory)
    before, after = (Alike(**network) for network in inspection.networks)
    assert (before.name, after.name) == ("before training", str(run.directory))
    objective, _, task = beginning(run, len(inspection.images))
    for network in (before, after):
        if network is after:
            checkpoint = run.checkpoints().newest()
            assert checkpoint is not None
            objective.load_state_dict(checkpoint.tensors["model"])
        with torch.inference_mode():
            outputs = objective.eval().predict(task)
        z = [F.normalize(outputs[name][i], dim=0) for i in range(len(task["views"])) for name in ("first", "second")]
        losses = []
        for here, row in enumerate(network.similarity):
            cosines = [float(z[here] @ other) for other in z]
            assert row == pytest.approx(cosines, abs=1e-5)
            partner = here + 1 if here % 2 == 0 else here - 1
            among = [math.exp(c / objective.temperature) for there, c in enumerate(cosines) if there != here]
            losses.append(math.log(sum(among)) - cosines[partner] / objective.temperature)
            assert network.roles[here][partner] == "+"
            assert network.roles[here].count("-") == len(z) - 2
        assert network.loss == pytest.approx(np.mean(losses), abs=1e-4)
    assert f"{after.loss:.3f}" in printed(inspection, width=120)


def test_without_a_run_the_task_is_shown_alone(drawings: Path) -> None:
    inspection = look(data=str(drawings), seed=3)
    assert len(inspection.images) == 6
    assert inspection.networks == []
    assert inspection.seed == 3
    content = json.loads(json.dumps(inspection.to_json()))["values"]
    assert [len(image["views"]) for image in content["images"]] == [2] * 6
    assert content["view"]["scale"] == [0.2, 1.0]
    shown = printed(inspection, width=60)
    assert "Hidden: which two views come from the same image" in " ".join(shown.split())
    assert widest(shown) <= 60
    assert [image["name"] for image in look(data=str(drawings), seed=4).images] != [
        image["name"] for image in inspection.images
    ]


def test_page_holds_its_pictures(run: Run) -> None:
    inspection = look(run=run.directory)
    page = Page(inspection.to_html())
    sources = [tile["pixels"] for tile in page.tiles]
    assert len(sources) == 3 * 6  # each image and its views
    assert len(page.of("matrix")) == 2  # one for each network
    picture = Image.open(io.BytesIO(base64.b64decode(sources[1].removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(picture), tiles(inspection)[0][1])


def test_sheet(run: Run, drawings: Path) -> None:
    alone, told = (
        Image.open(io.BytesIO(look(**to).to_png())) for to in ({"data": str(drawings)}, {"run": run.directory})
    )
    assert alone.format == "PNG"
    assert alone.width == told.width
    assert alone.height < told.height


def test_names_are_no_markup(tmp_path: Path) -> None:
    folder = write_drawings(tmp_path / "photos", 8, 20)
    Image.fromarray(drawing(9, 20)).save(folder / "[red] <b onload=x>é字&amp;.png")
    inspection = look(data=str(folder), **{"data.validation": 0.0}, seed=1)
    assert any("onload" in image["name"] for image in inspection.images)
    html = inspection.to_html()
    assert "<b onload" not in html
    assert len(Page(html).tiles) == 3 * 6
    assert "[red]" in printed(inspection)
    inspection.to_png()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "A cat."}, "--text and --window say nothing"),
        ({"data": "nowhere"}, "nowhere"),
        ({"data": "sample:emoji", "simclr": {"temperatur": 1}}, "did you mean 'simclr.temperature'"),
        ({"data": "sample:emoji", "model": "vit-huge"}, "no model preset 'vit-huge'"),
        ({"run": "nowhere"}, "holds no run"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        look(**arguments)


def test_runs_of_other_objectives_are_refused(finished: Run) -> None:
    with pytest.raises(UserError, match="is a run of causal-lm, not of simclr"):
        look(run=finished.directory)


def test_a_run_without_a_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(run.config_file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="no checkpoint yet"):
        look(run=tmp_path)


def test_command(run: Run, tmp_path: Path, selfsup_command: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["inspect", "--run", run.directory]
    answer = selfsup_command(*words, "--png", "page.png", "--json")  # type: ignore[operator]
    assert answer.code == 0
    assert json.loads(answer.out)["objective"] == "simclr"
    assert Image.open(tmp_path / "page.png").format == "PNG"
    for name in ("inspect-simclr.html", "inspect-simclr-2.html"):  # nothing is overwritten
        answer = selfsup_command(*words)  # type: ignore[operator]
        assert answer.out.rstrip().endswith(f"The pictures are in {name}.")
        assert (tmp_path / name).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert selfsup_command(*words, "--png", "page.png").code == 2  # type: ignore[operator]


def test_texts_have_no_pictures(selfsup_command: object, tmp_path: Path) -> None:
    answer = selfsup_command("inspect", "causal-lm", "--text", "A cat.", "--png", tmp_path / "page.png")  # type: ignore[operator]
    assert answer.code == 2
    assert "--html" in answer.error


def test_any_network(train_vision: Train, tmp_path: Path) -> None:
    """One from Python was trained, and cannot be built again."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.layer(pixels.mean((2, 3)))

    run = train_vision(tmp_path / "run", "simclr", model=Net(), steps=2)
    with pytest.raises(UserError, match="trained a network from Python"):
        look(run=run.directory)
    with pytest.raises(UserError, match="Python"):
        selfsup.show(run.directory, [drawing(0, 20)])


class Apart(SimCLR):
    """Another objective of two views: those of an image shall be the same, whatever others are."""

    def hide(self, batch: Batch) -> Task:
        task = super().hide(batch)
        return Task(task.tensors, {"distance": torch.tensor(len(batch))})

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, torch.Tensor]:
        return {"distance": (outputs["first"] - outputs["second"]).square().sum()}


class ApartRecipe(SimCLRRecipe):
    """As SimCLR's; its inspector is inherited with the rest, and so would be that of any recipe that names `views`."""

    idea = "two views of an image shall be put in one place"
    words = {"Predicted": "the vector of the other view."}  # noqa: RUF012

    def build(self) -> Apart:
        built = super().build()
        return Apart(built.network, built.head, built.view, built.pooling, built.temperature)

    def chance(self, records: int) -> None:  # type: ignore[override]
        return None


def test_another_objective_of_two_views(drawings: Path, tmp_path: Path) -> None:
    shape = {"model": {"layers": 1, "width": 32, "heads": 1}, "data.size": 16, "model.patch": 4}
    run = selfsup.train(
        ApartRecipe, data=str(drawings), out=tmp_path / "run", steps=2, batch=8, reporter=Reporter(False), **shape
    )
    inspection = Told(selfsup.inspect(ApartRecipe, run=run.directory))
    assert (inspection.objective, inspection.idea) == ("ApartRecipe", ApartRecipe.idea)
    shown = " ".join(printed(inspection, width=100).split())
    assert "Predicted: the vector of the other view." in shown
    assert "Hidden: which two views come from the same image." in shown
    assert "loss (chance" not in shown
    assert len(tiles(inspection)) == 6
    before, after = inspection.networks
    assert before["figures"].keys() == after["figures"].keys() == {"distance"}
    assert f"{after['loss']:.3f}" in shown
