"""What the pages ask for: figures as the runs' files have them, nothing written, nothing from outside the folders."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Answer, tree
from PIL import Image

import selfsup
from selfsup.errors import UserError
from selfsup.files import held
from selfsup.inspection.page import drawn
from selfsup.objectives import RECIPES

pytest.importorskip("fastapi", reason="needs fastapi")
pytest.importorskip("httpx", reason="needs httpx")

from starlette.testclient import TestClient

from selfsup.serving.guard import Folders
from selfsup.serving.studio.app import make_app
from selfsup.serving.studio.inspecting import MOST_TEXT
from selfsup.serving.studio.runs import LOCKS
from selfsup.serving.studio.shared import Studio
from selfsup.serving.studio.starting import confined


@pytest.fixture(scope="module")
def place(finished: selfsup.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: one that is finished, one below a folder that is not, one that a link leads to, one that is damaged."""
    place = tmp_path_factory.mktemp("studio")
    shutil.copytree(finished.directory, place / "runs" / "done")
    stopped = shutil.copytree(finished.directory, place / "runs" / "group" / "stopped")
    (stopped / "summary.json").unlink()
    os.utime(stopped / "metrics.jsonl", (1e9, 1e9))
    shutil.copytree(finished.directory, place / "elsewhere")
    (place / "runs" / "linked").symlink_to(place / "elsewhere")
    damaged = shutil.copytree(finished.directory, place / "runs" / "<b>damaged")
    (damaged / "summary.json").write_text("[1]")
    (damaged / "metrics.jsonl").write_text('{"step": [], "loss": "x", "split": "train"}\nrubbish\n')
    (place / "data").mkdir()
    return place


@pytest.fixture
def studio(place: Path) -> Iterator[Studio]:
    shared = Studio(Folders.of([place / "runs", place / "data"]))
    yield shared
    for name in shared.trainings.running():
        shared.trainings.stop(name)


@pytest.fixture
def client(studio: Studio) -> TestClient:
    return TestClient(make_app(studio))


def refused(answer: Any, *words: str) -> None:
    """One sentence, and no more of what lies outside."""
    assert answer.status_code in (400, 404, 422), answer.text
    message = answer.json()["error"]["message"]
    assert all(word in message for word in words), message


# -- runs ------------------------------------------------------------------------------------------------------


def test_all_runs_with_the_figures_of_their_files(client: TestClient, finished: selfsup.Run, place: Path) -> None:
    before = tree(place)
    rows = {row["name"]: row for row in client.get("/api/runs").json()["runs"]}
    assert rows.keys() == {"done", "group/stopped", "<b>damaged"}
    done, stopped = rows["done"], rows["group/stopped"]
    summary, train = finished.summary, [line for line in finished.metrics() if line["split"] == "train"]
    assert (done["state"], stopped["state"]) == ("finished", "stopped")
    assert done["loss"] == summary["loss"]
    assert done["steps"] == done["step"] == stopped["step"] == summary["steps"]
    assert done["objective"] == "causal-lm"
    assert done["points"] == [[line["step"], line["loss"]] for line in train]
    assert stopped["training_loss"] == train[-1]["loss"]
    assert "summary.json is damaged" in rows["<b>damaged"]["problem"]
    assert tree(place) == before


def test_a_run_is_seen_as_running_without_taking_its_lock(client: TestClient, place: Path) -> None:
    directory = place / "runs" / "group" / "stopped"
    if not LOCKS.is_file():
        pytest.skip("needs a system that lists its locks")
    with held(directory, "it is held"):
        seen = client.get("/api/run", params={"name": "group/stopped"}).json()["state"]
    if seen == "stopped" and str((directory / ".lock").stat().st_ino) not in LOCKS.read_text():
        pytest.skip("the locks of this file system are not listed")
    assert seen == "running"
    assert client.get("/api/run", params={"name": "group/stopped"}).json()["state"] == "stopped"


def test_one_run(client: TestClient, finished: selfsup.Run) -> None:
    seen = client.get("/api/run", params={"name": "done"}).json()
    lines = finished.metrics()
    for split in ("train", "validation"):
        assert seen["curves"][split] == [[line["step"], line["loss"]] for line in lines if line["split"] == split]
    assert seen["position"] == (finished.directory / "metrics.jsonl").stat().st_size


def streamed(client: TestClient, studio: Studio, path: str, looks: int, **asked: Any) -> list[Any]:
    """The messages of a stream that ends after so many looks."""
    left = iter(range(looks))
    studio.ending = lambda: next(left, None) is None
    text = client.get(path, **asked).text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_lines_are_streamed_from_where_the_page_has_come_to(
    client: TestClient, studio: Studio, finished: selfsup.Run
) -> None:
    whole = streamed(client, studio, "/api/run/events", 1, params={"name": "done"})
    assert [line for message in whole for line in message["lines"]] == finished.metrics()
    end = whole[-1]["position"]
    assert streamed(client, studio, "/api/run/events", 1, params={"name": "done", "position": end}) == []
    again = {"params": {"name": "done"}, "headers": {"last-event-id": str(end)}}  # as a browser connects anew
    assert streamed(client, studio, "/api/run/events", 1, **again) == []


def test_changes_of_the_list_are_streamed(client: TestClient, studio: Studio) -> None:
    first, *others = streamed(client, studio, "/api/runs/events", 2)
    assert {row["name"] for row in first["rows"]} == {"done", "group/stopped", "<b>damaged"}
    assert others == []


@pytest.mark.parametrize(
    "name", ["linked", "../elsewhere", "group", "", ".", "/etc", "done/../../elsewhere", "a\0b", "missing", "x" * 900]
)
def test_no_name_leads_to_a_run_that_is_not_listed(client: TestClient, place: Path, name: str) -> None:
    for path in ("/api/run", "/api/run/events"):
        refused(client.get(path, params={"name": name}))
    refused(client.get("/api/run/report", params={"run": name}))
    refused(client.post("/api/inspect", json={"run": name, "text": "a b"}))


def test_a_pipe_in_place_of_a_file_holds_up_nothing(client: TestClient, place: Path) -> None:
    run = shutil.copytree(place / "elsewhere", place / "runs" / "piped")
    for name in ("environment.json", "metrics.jsonl"):
        (run / name).unlink()
        os.mkfifo(run / name)
    rows = {row["name"]: row for row in client.get("/api/runs").json()["runs"]}
    assert "no regular file" in rows["piped"]["problem"]
    for path, key in (("/api/run", "name"), ("/api/run/events", "name"), ("/api/run/report", "run")):
        refused(client.get(path, params={key: "piped"}), "no regular file")
    shutil.rmtree(run)


def test_the_report_of_runs(client: TestClient) -> None:
    from selfsup.reporting import report_of

    one = client.get("/api/run/report", params={"run": "done"})
    assert one.status_code == 200, one.text
    two = client.get("/api/run/report", params={"run": ["done", "group/stopped"]})
    assert two.json().keys() >= one.json().keys()
    assert callable(report_of)


# -- the shell and its files ---------------------------------------------------------------------------------


def test_the_shell_lets_its_own_scripts_run_and_no_others(client: TestClient) -> None:
    first, second = client.get("/"), client.get("/")
    policy = first.headers["content-security-policy"]
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert f'nonce="{nonce}"' in first.text
    assert nonce not in second.text
    assert "unsafe" not in policy
    assert "script-src 'self' 'nonce-" in policy
    assert "http:" not in policy + first.text.replace("http://www.w3.org", "")


def test_only_the_files_of_the_pages_are_served(client: TestClient) -> None:
    assert client.get("/assets/studio/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/assets/style.css").headers["content-type"].startswith("text/css")
    for name in (
        "../__init__.py",
        "%2e%2e/__init__.py",
        "..%2f..%2frun.py",
        "studio",
        "",
        "/etc/passwd",
        "studio/../../x",
    ):
        assert client.get(f"/assets/{name}").status_code == 404, name


# -- inspection ------------------------------------------------------------------------------------------------


def data_url(side: int = 24, colour: int = 90, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", (side, side + 4), (colour, 40, 200)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_sentence_is_inspected_as_the_command_does(client: TestClient) -> None:
    asked = {"objective": "masked-lm", "text": "The cat sat on the mat, and the dog lay under it.", "window": 16}
    answer = client.post("/api/inspect", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json() == drawn(selfsup.inspect("masked-lm", text=asked["text"], window=16))


def test_a_run_says_how_surprising_each_token_is(client: TestClient) -> None:
    answer = client.post("/api/inspect", json={"run": "done", "text": "The cat sat", "objective": "causal-lm"})
    predictions = next(b for s in answer.json()["sections"] for b in s["blocks"] if b["kind"] == "predictions")
    assert all("loss" in each for each in predictions["predictions"])


def test_images_that_are_sent_are_inspected(client: TestClient) -> None:
    """From a single one on."""
    for images in ([data_url()], [data_url(colour=c) for c in range(0, 200, 40)]):
        answer = client.post("/api/inspect", json={"objective": "mae", "images": images})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "asked",
    [
        {"text": "x" * (MOST_TEXT + 1)},
        {"text": "a b", "window": 10**9},
        {"images": ["x"], "objective": "mae"},
        {"images": ["file:///etc/passwd"], "objective": "mae"},
        {"images": ["data:image/png;base64,!!"], "objective": "mae"},
        {"images": ["data:image/svg+xml;base64,PHN2Zy8+"], "objective": "mae"},
        {"images": [data_url()] * 17, "objective": "mae"},
        {"objective": "nothing"},
        {"objective": "python:os.system"},
        {"objective": "mae", "text": "a sentence"},
        {"text": "a", "html": "/tmp/page.html"},
        {"text": "a", "data": "/etc/passwd"},
        [],
        None,
    ],
)
def test_what_cannot_be_inspected_is_refused_in_a_sentence(client: TestClient, asked: Any) -> None:
    refused(client.post("/api/inspect", json=asked))


# -- starting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [*RECIPES, "nothing"])
def test_a_form_for_every_objective(client: TestClient, objective: str) -> None:
    answer = client.get("/api/start/form", params={"objective": objective})
    if objective == "nothing":
        refused(answer)
        return
    form = answer.json()
    assert "data.source" in form["names"]
    for key in form["names"]:
        section, _, name = key.rpartition(".")
        described = form["schema"]["properties"][section]["$ref"].rpartition("/")[2]
        assert name in form["schema"]["$defs"][described]["properties"]


@pytest.fixture
def corpus_inside(corpus: Path, place: Path) -> str:
    shutil.copyfile(corpus, place / "data" / "corpus.txt")
    return "corpus.txt"


def tiny(data: str, **more: str) -> dict[str, Any]:
    values = {f"model.{key}": str(value) for key, value in TINY["model"].items()}
    named = {
        "batch": "train.batch",
        "steps": "train.steps",
        "precision": "train.precision",
        "tokenizer": "data.tokenizer",
    }
    values |= {named.get(key, key): str(value) for key, value in TINY.items() if key != "model"}
    return {"objective": "causal-lm", "values": {**values, "data.source": data, **more}}


@pytest.mark.long
def test_a_training_is_planned_started_and_stopped(
    client: TestClient, studio: Studio, place: Path, corpus_inside: str
) -> None:
    wanted = tiny(corpus_inside, **{"train.steps": "200000", "train.log_every": "1"})
    plan = client.post("/api/start/plan", json=wanted)
    assert plan.status_code == 200, plan.text
    assert "memory" in plan.json()["rows"]
    assert client.post("/api/start/train", json={**wanted, "name": "new"}).json() == {"name": "new"}
    refused(client.post("/api/start/train", json={**wanted, "name": "new"}), "another name")
    metrics = place / "runs" / "new" / "metrics.jsonl"
    while not metrics.is_file():
        assert studio.trainings.running() == ["new"], client.get("/api/start/trainings").text
        time.sleep(0.1)
    assert client.post("/api/start/stop", json={"name": "new"}).status_code == 200
    while studio.trainings.running():
        time.sleep(0.1)
    training = client.get("/api/start/trainings").json()["trainings"][0]
    assert (training["name"], training["code"]) == ("new", 130)
    assert "--resume" in training["said"]
    refused(client.post("/api/start/stop", json={"name": "new"}), "is not being trained")
    run = selfsup.Run.open(place / "runs" / "new")
    assert run.settings()["data.source"] == str(place / "data" / corpus_inside)
    shutil.rmtree(run.directory)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "/etc/passwd"),
        ("data.source", "../elsewhere"),
        ("data.source", "linked/config.yaml"),
        ("data.source", "~/secrets.txt/../../../etc/passwd"),
        ("data.source", "hub:anything"),
        ("data.source", "s3://bucket/x"),
        ("data.source", "https://evil.example/x.txt"),
        ("data.replay", "/etc:0.1"),
        ("evaluate.data", "/etc"),
        ("model.init", "/etc"),
        ("model.preset", "hf:/etc"),
        ("model.preset", "hf:../../etc"),
        ("data.tokenizer", "/etc/tokenizer.json"),
        ("data.tokenizer", "../elsewhere"),
        ("distill.teacher", "../elsewhere"),
        ("distill.files", "a.txt,/etc/passwd"),
        ("distill.files", ["a.txt", "/etc/passwd"]),
        ("out", "/tmp/x"),
        ("objective", "mae"),
    ],
)
def test_no_setting_leads_out_of_the_folders(client: TestClient, studio: Studio, key: str, value: Any) -> None:
    with pytest.raises(UserError):
        confined({key: value}, studio.folders)
    wanted = {"objective": "causal-lm", "values": {key: value}}
    refused(client.post("/api/start/plan", json=wanted))
    refused(client.post("/api/start/train", json={**wanted, "name": "never"}))
    assert not (studio.root / "never").exists()
    assert studio.trainings.to_json() == []


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "/tmp/x", "a b", "-x", "a\n", "<b>", "x" * 81, "done"])
def test_a_run_is_named_plainly_and_replaces_nothing(client: TestClient, studio: Studio, name: str) -> None:
    refused(client.post("/api/start/train", json={"objective": "causal-lm", "values": {}, "name": name}))
    assert studio.trainings.to_json() == []


def test_a_value_stays_a_value(client: TestClient, studio: Studio, place: Path) -> None:
    """Whatever it holds, it is no other word of the command."""
    values = {"data.column": '" --resume x\n- [', "train.steps": "--help"}
    answer = client.post("/api/start/train", json={"objective": "causal-lm", "values": values, "name": "odd"})
    assert answer.status_code == 200
    while studio.trainings.running():
        time.sleep(0.1)
    training = studio.trainings.to_json()[0]
    assert training["code"] == 2
    assert "'train.steps' cannot be '--help'" in training["said"]
    assert not (place / "runs" / "odd").exists()


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_without_its_packages(
    selfsup_command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("selfsup.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    answer = selfsup_command("studio", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "pip install 'selfsup[studio]'" in answer.error
