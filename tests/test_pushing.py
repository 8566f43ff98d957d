"""A model on its way to the hub, which is a server of this file's own: as much of its interface as huggingface_hub
uses for a commit, with files kept by their names."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import Answer, Trained, tree
from tiny_decoder import save_tiny_decoder

import selfsup
from selfsup.errors import UserError

Command = Callable[..., Answer]
TOKEN = "hf_secret"
TO = "me/model"


class Hub(ThreadingHTTPServer):
    """Branches of one model as {name: content}, and what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.branches: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # by checksum
        self.commits: list[dict[str, Any]] = []
        self.created: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.refuses: int | None = None

    def sha(self) -> str:
        return f"{len(self.commits):040x}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: Any, code: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        hub = self.server
        hub.asked.append(self.path)
        branch = self.path.partition("?")[0].rpartition("/")[2]
        if branch not in hub.branches:
            self.answer({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            return
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": git_name(content), **large(name, content)}
            for name, content in hub.branches[branch].items()
        ]
        self.answer({"id": TO, "sha": hub.sha(), "siblings": siblings})

    def do_PUT(self) -> None:
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({}, ETag='"x"')

    def do_POST(self) -> None:
        hub, body = self.server, self.body()
        hub.asked.append(self.path)
        if hub.refuses is not None:
            self.answer({"error": "no"}, hub.refuses)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "who?"}, 401)
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            hub.branches.setdefault("main", {})
            self.answer({"url": f"{hub.url}/{TO}", "id": TO})
        elif "/branch/" in self.path:
            hub.branches.setdefault(self.path.rpartition("/")[2], dict(hub.branches["main"]))
            self.answer({})
        elif self.path.startswith(f"/api/models/{TO}/preupload/"):
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "shouldIgnore": False, "uploadMode": mode(file["path"])} for file in files]
            self.answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            upload = {"upload": {"href": f"{hub.url}/large"}}
            self.answer({"objects": [{**one, "actions": upload} for one in json.loads(body)["objects"]]})
        elif self.path.startswith(f"/api/models/{TO}/commit/"):
            self.commit(self.path.rpartition("/")[2], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer({})  # of a card: that its head is in order

    def commit(self, branch: str, lines: list[dict[str, Any]]) -> None:
        hub = self.server
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, hub.sha()):
            self.answer({"error": "another commit"}, 412)
            return
        hub.commits.append(header)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.branches[branch][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.branches[branch][value["path"]] = hub.large[value["oid"]]
        self.answer({"commitUrl": f"{hub.url}/{TO}/commit/1", "commitOid": hub.sha()})


def mode(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def large(name: str, content: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {"lfs": {"sha256": sha256, "size": len(content), "pointerSize": 1}} if mode(name) == "lfs" else {}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose storage is another server
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    thread = Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("models") / "model")


def contents(directory: Path) -> dict[str, bytes]:
    """What goes up of a model directory: its card with its name there."""
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*")}
    return {name: content.replace(b"path/to/this/directory", TO.encode()) for name, content in files.items()}


def test_a_run_goes_up_with_its_card_and_nothing_else(hub: Hub, trained: Trained) -> None:
    run = trained("causal-lm")
    before = tree(run.directory)
    pushed = selfsup.push(run, to=TO)
    assert hub.branches["main"] == contents(run.model_directory)
    assert hub.created[0]["name"] == "model"
    assert hub.created[0].get("visibility") is None
    assert len(hub.commits) == 1
    assert f'from_pretrained("{TO}")' in hub.branches["main"]["README.md"].decode()
    assert {one.name for one in pushed.left_out} >= {"checkpoints", "samples", "metrics.jsonl", "config.yaml"}
    assert pushed.url == f"{hub.url}/{TO}"
    assert tree(run.directory) == before


def test_a_dry_run_sends_nothing(hub: Hub, model: Path, selfsup_command: Command) -> None:
    answer = selfsup_command("push", model, "--to", TO, "--dry-run")
    assert answer.code == 0, answer
    assert "model.safetensors" in answer.out
    assert f"would go to {hub.url}/{TO} (main)" in answer.out
    assert TOKEN not in answer.out + answer.error
    assert not any("create" in path or "commit" in path for path in hub.asked)
    assert hub.branches == {}


def test_a_dry_run_needs_no_hub(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, selfsup_command: Command
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    answer = selfsup_command("push", model, "--to", TO, "--dry-run", "--json")
    assert answer.code == 0
    assert {file["state"] for file in json.loads(answer.out)["files"]} == {None}
    assert "what is there already is not known" in caplog.text
    answer = selfsup_command("push", model, "--to", TO)
    assert answer.code == 2
    assert answer.error.startswith("selfsup: The hub cannot be reached (")


def test_what_is_replaced_is_said(
    hub: Hub, model: Path, caplog: pytest.LogCaptureFixture, selfsup_command: Command
) -> None:
    mine = {"config.json": b"{}", "thesis.tex": b"mine"}
    hub.branches["main"] = {**contents(model), **mine}
    told = json.loads(selfsup_command("push", model, "--to", TO, "--dry-run", "--json").out)
    states = {file["name"]: file["state"] for file in told["files"]}
    assert states.pop("config.json") == "replaces another one"
    assert set(states.values()) == {"is there already"}
    answer = selfsup_command("push", model, "--to", TO)
    assert answer.code == 0, answer
    assert f"{TO} has config.json already, which is replaced" in caplog.text
    assert hub.branches["main"] == {**contents(model), "thesis.tex": b"mine"}
    again = selfsup_command("push", model, "--to", TO)
    assert f"are at {hub.url}/{TO} already" in again.out
    assert len(hub.commits) == 1


def test_a_branch_and_a_model_that_others_do_not_see(hub: Hub, model: Path) -> None:
    selfsup.push(model, to=TO, private=True, revision="v2")
    assert hub.created[0]["visibility"] == "private"
    assert hub.branches["v2"] == contents(model)
    assert hub.branches["main"] == {}


def test_what_is_no_part_of_a_model_stays(hub: Hub, model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    save_tiny_decoder(directory)
    for name in ("pytorch_model.bin", ".secret.json", "train.parquet", "run.py"):
        (directory / name).write_text("mine")
    pushed = selfsup.push(directory, to=TO)
    assert {one.name for one in pushed.left_out} == {"pytorch_model.bin", ".secret.json", "train.parquet", "run.py"}
    assert hub.branches["main"] == contents(model)


def test_what_somebody_else_changed_meanwhile_stays(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.branches["main"] = {"config.json": b"theirs"}
    shas = iter(["1" * 40, "2" * 40])
    monkeypatch.setattr(Hub, "sha", lambda self: next(shas))
    with pytest.raises(UserError, match="Somebody else has changed me/model"):
        selfsup.push(model, to=TO)
    assert hub.branches["main"] == {"config.json": b"theirs"}


@pytest.mark.parametrize(
    ("status", "message"), [(401, "lets you not write"), (403, "lets you not write"), (400, "refused me/model")]
)
def test_a_refusal_is_one_sentence(status: int, message: str, hub: Hub, model: Path, selfsup_command: Command) -> None:
    hub.refuses = status
    answer = selfsup_command("push", model, "--to", TO)
    assert answer.code == 2
    assert message in answer.error
    assert answer.error.count("\n") == 1
    assert TOKEN not in answer.error
    assert hub.branches == {}


@pytest.mark.parametrize("name", ["model", "me/", "me/model/more", "me model", "../me", "-me/model"])
def test_names_of_no_model_are_refused(name: str, model: Path) -> None:
    with pytest.raises(UserError, match="is no name of a model on the hub"):
        selfsup.push(model, to=name)


def test_links_out_of_the_model_are_refused(model: Path, hub: Hub, tmp_path: Path) -> None:
    directory = save_tiny_decoder(tmp_path / "model")
    (tmp_path / "secret.json").write_text("{}")
    (directory / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="leads out of the model's directory"):
        selfsup.push(directory, to=TO)
    assert hub.branches == {}
