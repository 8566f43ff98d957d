"""Who is let in, how much they may send, and which files they may name: each attack, and what comes of it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfsup.errors import UserError

pytest.importorskip("fastapi", reason="needs fastapi")
pytest.importorskip("httpx", reason="needs httpx")

from fastapi import FastAPI, Request
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from selfsup.serving.errors import answer_errors
from selfsup.serving.guard import Folders, Guard, Key, Token, require_image

PORT = 8712
HERE = f"http://127.0.0.1:{PORT}"


def application() -> FastAPI:
    """Something to guard."""
    app = FastAPI()
    answer_errors(app)

    @app.get("/secret")
    def secret() -> dict[str, str]:
        return {"secret": "found"}

    @app.post("/count")
    async def count(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/fails")
    def fails() -> None:
        raise UserError("This is wrong; do that.")

    return app


@pytest.fixture
def door() -> Token:
    return Token(PORT)


@pytest.fixture
def stranger(door: Token) -> Iterator[TestClient]:
    """A client without a cookie."""
    with TestClient(Guard(application(), "127.0.0.1", door, most_bytes=1000), base_url=HERE) as client:
        yield client


@pytest.fixture
def known(stranger: TestClient, door: Token) -> TestClient:
    """One that came by the address that was printed."""
    assert stranger.get("/secret", params={"token": door.word}).status_code == 200
    return stranger


def test_a_token_is_exchanged_for_a_cookie_that_other_sites_cannot_send(stranger: TestClient, door: Token) -> None:
    answer = stranger.get("/secret", params={"token": door.word})
    said = answer.headers["set-cookie"]
    assert answer.json() == {"secret": "found"}
    assert "HttpOnly" in said
    assert "SameSite=Strict" in said
    assert door.word not in said  # whoever sees the cookie cannot make an address of it
    assert stranger.get("/secret").json() == {"secret": "found"}


@pytest.mark.parametrize("token", ["", "x", "é", "null"])
def test_no_token_no_answer(stranger: TestClient, token: str) -> None:
    for cookie in ("", f"selfsup-{PORT}={token}", f"selfsup-{PORT}", "\x01;=;", "a" * 4000):
        answer = stranger.get("/secret", params={"token": token}, headers={"cookie": cookie.encode("latin-1")})
        assert answer.status_code == 401
        assert "token" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "8.8.8.8"],
)
def test_a_name_of_a_stranger_that_points_here_is_refused(known: TestClient, host: str) -> None:
    assert known.get("/secret", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8712", "localhost:8712", "[::1]:8712", "localhost:9000", "localhost"])
def test_this_machine_by_its_own_names(known: TestClient, host: str) -> None:
    """Another port, too: that of a tunnel."""
    cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in known.cookies.items())}
    assert known.get("/secret", headers={"host": host, **cookie}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},  # a frame in a sandbox, a file
        {"origin": f"http://localhost:{PORT}"},  # not the name that was asked for
        {"origin": "http://127.0.0.1:9999"},  # another server of this machine
        {"origin": f"http://127.0.0.1:{PORT}.evil.example"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_pages_of_other_sites_are_refused_with_the_cookie_too(known: TestClient, headers: dict[str, str]) -> None:
    for answer in (known.get("/secret", headers=headers), known.post("/count", content=b"x", headers=headers)):
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_ours_is_let_in(known: TestClient) -> None:
    headers = {"origin": HERE, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert known.post("/count", content=b"12345", headers=headers).json() == {"bytes": 5}


def test_a_body_is_bounded_whatever_its_length_is_said_to_be(known: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    assert known.post("/count", content=b"x" * 1000).json() == {"bytes": 1000}
    for answer in (known.post("/count", content=b"x" * 1001), known.post("/count", content=pieces())):
        assert answer.status_code == 413
        assert "1,000 bytes" in answer.json()["error"]["message"]


def test_every_answer_says_what_a_browser_may_do_with_it(known: TestClient) -> None:
    for answer in (known.get("/secret"), known.get("/missing"), known.get("/secret", headers={"host": "evil.example"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"


def test_what_is_wrong_is_one_sentence(known: TestClient) -> None:
    answer = known.get("/fails")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "This is wrong; do that.")


def test_there_are_no_web_sockets(known: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, known.websocket_connect("/secret"):
        raise AssertionError("it was accepted")
    assert closed.value.code == 1008


def test_of_a_key() -> None:
    """Programs on this machine need none; with one, all do."""

    def asked(key: str | None, **headers: str) -> int:
        with TestClient(Guard(application(), "127.0.0.1", Key(key)), base_url=HERE) as client:
            return client.get("/secret", headers=headers).status_code

    assert asked(None) == 200
    assert asked(None, authorization="Bearer anything") == 200
    assert asked(None, host="evil.example") == 403
    assert asked(None, origin="http://evil.example") == 403
    assert asked("word", authorization="Bearer word") == 200
    assert [asked("word", authorization=given) for given in ("", "word", "Bearer", "Bearer wor", "Basic word")] == [
        401
    ] * 5


@pytest.mark.parametrize(
    ("asked", "works"), [("192.168.1.5:8712", True), ("[fe80::1]:8712", True), ("evil.example", False)]
)
def test_from_elsewhere_a_server_goes_by_addresses(asked: str, works: bool) -> None:
    with TestClient(Guard(application(), "0.0.0.0", Key()), base_url=HERE) as client:
        assert client.get("/secret", headers={"host": asked}).status_code == (200 if works else 403)


# -- files and images ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    place = tmp_path_factory.mktemp("folders")
    for name in ("runs", "data", "outside", "data-of-others"):
        (place / name).mkdir()
        (place / name / "file").touch()
    (place / "runs" / "out").symlink_to(place / "outside")
    (place / "runs" / "in").symlink_to(place / "data")
    (place / "runs" / "loop").symlink_to(place / "runs" / "loop")
    return Folders.of([place / "runs", place / "data"])


@pytest.mark.parametrize(
    "name",
    [
        "../outside/file",
        "/etc/passwd",
        "out/file",
        "out",
        "..",
        "in/../outside",
        "../data-of-others/file",
        "a\0b",
        "~/../..",
    ],
)
def test_no_path_leads_out_of_the_folders(folders: Folders, name: str) -> None:
    with pytest.raises(UserError):
        Folders(folders.places[:1]).inside(name)


def test_a_path_is_found_in_the_folder_that_has_it(folders: Folders) -> None:
    runs, data = folders.places
    assert folders.inside("file") == runs / "file"
    assert folders.inside(str(data / "file")) == data / "file"
    assert folders.inside("in/file") == data / "file"
    assert folders.inside("new") == runs / "new"


PARTS = st.sampled_from(["..", ".", "", "file", "out", "in", "loop", "runs", "outside", "/", "~", "*", "\0", "é"])


@given(st.lists(PARTS, max_size=8).map("/".join))
def test_whatever_a_path_is_made_of_it_stays_inside(folders: Folders, name: str) -> None:
    try:
        found = folders.inside(name)
    except UserError:
        return
    assert any(Path(os.path.realpath(found)).is_relative_to(place) for place in folders.places)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_images_are_bounded_in_pixels_before_they_are_decoded() -> None:
    small = encoded(Image.new("RGB", (8, 8)))
    assert require_image(small) == small
    bomb = encoded(Image.new("1", (9000, 9000)))
    assert len(bomb) < 50_000
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
    wrong: list[Any] = [bomb, b"", b"no image", svg, small[:20], b"\x89PNG\r\n\x1a\n" + b"\xff" * 100]
    for content in wrong:
        with pytest.raises(UserError, match="image"):
            require_image(content)


def test_folders_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        Folders.of([tmp_path / "missing"])
