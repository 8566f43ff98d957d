"""Every route of the API as an application, without a socket: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_clip import save_tiny_clip
from tiny_decoder import save_tiny_decoder
from tiny_encoder import WIDTH, save_tiny
from tiny_vision import picture, save_tiny_vision

import selfsup
from selfsup.errors import UserError
from selfsup.inference.zero_shot import zero_shot

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from selfsup.serving.api.app import make_app
from selfsup.serving.api.models import Models, named
from selfsup.serving.guard import Guard, Key

TEXTS = ["the storm at sea", "a cat sat by the fire", "the old man smoked his pipe", "the dog ran on the hill"]


def data_url(pixels: np.ndarray, kind: str = "png") -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, trained: Callable[[str], selfsup.Run]) -> Path:
    """One model of each kind, and a library."""
    place = tmp_path_factory.mktemp("served")
    save_tiny_decoder(place / "writer")
    save_tiny(place / "encoder")
    save_tiny_vision(place / "seer")
    save_tiny_clip(place / "pairs")
    (place / "filler").symlink_to(trained("masked-lm").directory)
    texts = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
    (place / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    selfsup.index(place / "encoder", place / "texts.jsonl", place / "library.lance")
    return place


NAMES = ("writer", "encoder", "seer", "pairs", "filler")


@pytest.fixture(scope="module")
def models(place: Path) -> Iterator[Models]:
    opened = Models([str(place / name) for name in NAMES], place / "library.lance", "cpu", "fp32")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def client(models: Models) -> Iterator[TestClient]:
    guarded = Guard(make_app(models), "127.0.0.1", Key())
    with TestClient(guarded, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as asking:
        yield asking


def asked(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(text: str) -> list[Any]:
    """What server-sent events say, up to the last one."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# -- what there is -------------------------------------------------------------------------------------------


def test_models_are_listed_by_their_names(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert {one["id"]: one["kind"] for one in listed["data"]} == {
        "writer": "a decoder",
        "encoder": "a text encoder",
        "seer": "an image encoder",
        "pairs": "an image-text model",
        "filler": "a text encoder",
    }
    assert client.get("/v1/models/seer").json() == listed["data"][2]
    assert client.get("/health").json()["status"] == "ok"


def test_the_description_names_every_route_and_the_errors(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    posts = {path for path, operations in described["paths"].items() if "post" in operations}
    assert posts == {"/v1/completions", "/v1/embeddings", "/v1/fill", "/v1/zero-shot", "/v1/search"}
    for path in posts:
        assert {"200", "400", "404", "429"} <= described["paths"][path]["post"]["responses"].keys()
        assert "422" not in described["paths"][path]["post"]["responses"]


@pytest.mark.parametrize(
    ("word", "name", "where"),
    [("runs/x", "x", "runs/x"), ("small=runs/x/", "small", "runs/x/"), ("a:b=c=d", "a:b", "c=d")],
)
def test_names(word: str, name: str, where: str) -> None:
    assert named(word) == (name, where)


def test_two_models_of_one_name_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match="called writer"):
        Models([str(place / "writer"), f"writer={place / 'encoder'}"], None, "cpu", "fp32")


def test_the_page_of_the_routes_needs_nothing_of_other_hosts(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "https://" not in page.text
    assert "export async function draw" in client.get("/assets/api.js").text
    assert client.get("/assets/../app.py").status_code == 404


# -- texts ---------------------------------------------------------------------------------------------------


def test_completions_are_what_generate_writes(client: TestClient, place: Path) -> None:
    prompts = ["It was", "", "the cat"]
    answer = asked(client, "/v1/completions", model="writer", prompt=prompts, max_tokens=20, temperature=0)
    expected = selfsup.load(place / "writer").generate(prompts, 20, 0, precision="fp32")  # type: ignore[union-attr]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["object"] == "text_completion"
    assert answer["model"] == "writer"
    drawn = asked(client, "/v1/completions", prompt="It was", max_tokens=20, seed=4)["choices"][0]["text"]
    assert drawn == selfsup.load(place / "writer").generate("It was", 20, seed=4, precision="fp32")  # type: ignore[union-attr]


def test_tokens_in_place_of_a_prompt(client: TestClient, place: Path) -> None:
    tokenizer = selfsup.load(place / "writer").tokenizer  # type: ignore[union-attr]
    ids = tokenizer.opened(tokenizer.encode("It was"))
    how = {"max_tokens": 10, "temperature": 0}
    one, same = (asked(client, "/v1/completions", prompt=prompt, **how) for prompt in ("It was", ids))
    assert one["choices"] == same["choices"]
    assert one["usage"] == same["usage"]
    assert len(asked(client, "/v1/completions", prompt=[ids, ids[:3]], **how)["choices"]) == 2


def test_several_texts_of_a_prompt_are_drawn_apart_and_the_same_by_their_seed(client: TestClient) -> None:
    how = {"prompt": ["a", "b"], "n": 3, "max_tokens": 12}
    first, same, other = (asked(client, "/v1/completions", seed=seed, **how) for seed in (1, 1, 2))
    texts = [choice["text"] for choice in first["choices"]]
    assert len(set(texts)) == len(texts) == 6
    assert [choice["text"] for choice in same["choices"]] == texts
    assert [choice["text"] for choice in other["choices"]] != texts


def test_usage_counts_a_prompt_once(client: TestClient) -> None:
    usage = asked(client, "/v1/completions", prompt="abc", n=2, max_tokens=5, temperature=0)["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == 4  # with the token that opens a text
    assert usage["completion_tokens"] <= 10


@pytest.mark.parametrize("stops", ["q", ["zz", "e"], []])
def test_streams_join_to_the_whole(client: TestClient, stops: Any) -> None:
    how = {"prompt": "It was", "max_tokens": 30, "seed": 3, "n": 2, "stop": stops, "logprobs": 1, "echo": True}
    whole = asked(client, "/v1/completions", **how)
    answer = client.post("/v1/completions", json={**how, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events(answer.text)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    for number, choice in enumerate(whole["choices"]):
        own = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == number]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [token for piece in own for token in piece["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
        assert [piece["finish_reason"] for piece in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
    assert len({piece["id"] for piece in pieces}) == 1


def test_log_probabilities_of_a_prompt_alone(client: TestClient) -> None:
    """As evaluations ask for them: nothing is written."""
    choice = asked(client, "/v1/completions", prompt="It was", max_tokens=0, echo=True, logprobs=2)["choices"][0]
    assert choice["text"] == "It was"
    assert choice["logprobs"]["tokens"] == list("It was")
    assert choice["logprobs"]["text_offset"] == list(range(6))
    assert all(value < 0 for value in choice["logprobs"]["token_logprobs"])
    assert [len(top) in (2, 3) for top in choice["logprobs"]["top_logprobs"]] == [True] * 6


# -- vectors, words, labels, search --------------------------------------------------------------------------


def test_embeddings_are_unit_vectors_in_either_encoding(client: TestClient, place: Path) -> None:
    plain = asked(client, "/v1/embeddings", model="encoder", input=TEXTS)
    packed = asked(client, "/v1/embeddings", model="encoder", input=TEXTS, encoding_format="base64")
    vectors = np.array([one["embedding"] for one in plain["data"]], np.float32)
    expected = selfsup.load(place / "encoder").embed(TEXTS)  # type: ignore[union-attr]
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-2)
    read = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed["data"]]
    np.testing.assert_array_equal(np.stack(read), vectors)
    assert plain["usage"]["prompt_tokens"] == sum(len(text.split()) for text in TEXTS)
    short = asked(client, "/v1/embeddings", model="encoder", input=TEXTS[0], dimensions=8)["data"][0]["embedding"]
    assert len(short) == 8 < WIDTH
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)


def test_embeddings_of_images_and_of_both(client: TestClient) -> None:
    images = [data_url(picture(colour, 1)) for colour in ("red", "blue")]
    alone = asked(client, "/v1/embeddings", model="seer", input=images)
    assert [one["index"] for one in alone["data"]] == [0, 1]
    assert alone["usage"]["prompt_tokens"] == 0
    both = asked(client, "/v1/embeddings", model="pairs", input=[images[0], "a red photo"])
    assert len({len(one["embedding"]) for one in both["data"]}) == 1


def test_hidden_words(client: TestClient, place: Path) -> None:
    answer = asked(client, "/v1/fill", text="The [MASK] sat [MASK]", top=3)
    expected = selfsup.fill(place / "filler", "The [MASK] sat [MASK]", 3)
    assert answer["places"] == [[vars(candidate) for candidate in one] for one in expected]
    assert answer["model"] == "filler"


def test_labels_of_images(client: TestClient, place: Path) -> None:
    pixels, labels = [picture("red", 1), picture("blue", 2)], ["red", "blue", "a cat"]
    answer = asked(client, "/v1/zero-shot", images=[data_url(one) for one in pixels], labels=labels)
    for found, expected in zip(answer["data"], zero_shot(place / "pairs", pixels, labels), strict=True):
        assert found["label"] == expected.label
        assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_library_is_searched(client: TestClient, place: Path) -> None:
    answer = asked(client, "/v1/search", query="a storm", top=2, where="number < 3")
    expected = selfsup.search(place / "library.lance", "a storm", top=2, where="number < 3")
    assert answer["hits"] == json.loads(json.dumps([hit.to_json() for hit in expected]))


# -- what is refused -----------------------------------------------------------------------------------------

PHOTO = data_url(picture("red", 1))
HUGE = data_url(np.zeros((6000, 6000, 3), np.uint8))  # a small file of more pixels than are decoded
WRONG: list[tuple[str, dict[str, Any], int, str]] = [
    ("completions", {"model": "nobody"}, 404, "no model 'nobody'"),
    ("completions", {"model": "encoder"}, 400, "a text encoder"),
    ("completions", {"model": 3}, 400, "model cannot be 3"),
    ("completions", {"prompt": 3}, 400, "prompt"),
    ("completions", {"prompt": []}, 400, "prompt"),
    ("completions", {"prompt": [[]]}, 400, "prompt"),
    ("completions", {"prompt": [1, -1]}, 400, "prompt.1 cannot be -1"),
    ("completions", {"prompt": [10**9]}, 400, "has ids up to"),
    ("completions", {"prompt": "a" * (1 << 16)}, 400, "tokens"),
    ("completions", {"prompt": ["a"] * 65}, 400, "prompt"),
    ("completions", {"prompt": ["a"] * 33, "n": 2}, 400, "too many at once"),
    ("completions", {"max_tokens": -1}, 400, "max_tokens cannot be -1"),
    ("completions", {"max_tokens": 0}, 400, "max_tokens is 0"),
    ("completions", {"max_tokens": 10**6}, 400, "max_tokens"),
    ("completions", {"max_tokens": "5"}, 400, "max_tokens"),
    ("completions", {"max_tokens": True}, 400, "max_tokens"),
    ("completions", {"temperature": -1}, 400, "temperature"),
    ("completions", {"top_p": 0}, 400, "top_p"),
    ("completions", {"top_k": 0}, 400, "top_k"),
    ("completions", {"n": 0}, 400, "n cannot be 0"),
    ("completions", {"n": 10**9}, 400, "n cannot be"),
    ("completions", {"stop": ""}, 400, "stop"),
    ("completions", {"stop": ["a"] * 17}, 400, "stop"),
    ("completions", {"logprobs": 21}, 400, "logprobs"),
    ("completions", {"best_of": 4}, 400, "best_of is not served"),
    ("completions", {"logit_bias": {"1": 5}}, 400, "logit_bias is not served"),
    ("completions", {"suffix": "end"}, 400, "suffix is not served"),
    ("completions", {"temprature": 1}, 400, "did you mean 'temperature'"),
    ("embeddings", {}, 400, "input is missing"),
    ("embeddings", {"model": "writer", "input": "a"}, 400, "a decoder and none that makes vectors"),
    ("embeddings", {"model": "encoder", "input": []}, 400, "input"),
    ("embeddings", {"model": "encoder", "input": [1, 2]}, 400, "input"),
    ("embeddings", {"model": "encoder", "input": "the " * 50}, 400, "cut it into passages"),
    ("embeddings", {"model": "encoder", "input": PHOTO}, 400, "reads no image"),
    ("embeddings", {"model": "encoder", "input": "a", "dimensions": WIDTH + 1}, 400, "cannot be"),
    ("embeddings", {"model": "encoder", "input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
    ("embeddings", {"model": "encoder", "input": "a", "prompt": "poem"}, 400, "no prompt 'poem'"),
    ("embeddings", {"model": "seer", "input": "a"}, 400, "reads no text"),
    ("embeddings", {"model": "seer", "input": "data:image/png;base64,!!!"}, 400, "base64"),
    ("embeddings", {"model": "seer", "input": "data:image/png;base64,AAAA"}, 400, "cannot be read"),
    ("embeddings", {"model": "seer", "input": PHOTO[:-60]}, 400, "read"),
    ("embeddings", {"model": "seer", "input": "data:image/png,AAAA"}, 400, "no image as a URL"),
    ("embeddings", {"model": "seer", "input": [PHOTO, HUGE]}, 400, "pixels"),
    ("fill", {"text": "nothing hidden"}, 400, "Nothing is hidden"),
    ("fill", {"text": "The [MASK]", "top": 0}, 400, "top cannot be 0"),
    ("fill", {"model": "encoder", "text": "The [MASK]"}, 400, "none that fills in words"),
    ("zero-shot", {"images": [PHOTO], "labels": ["a", "a"]}, 400, "labels that differ"),
    ("zero-shot", {"images": [PHOTO], "labels": []}, 400, "labels"),
    ("zero-shot", {"images": ["cat.png"], "labels": ["a"]}, 400, "images.0"),
    ("zero-shot", {"images": [PHOTO], "labels": ["a"], "templates": ["no place"]}, 400, "{}"),
    ("search", {}, 400, "what to look for"),
    ("search", {"query": "a", "image": PHOTO}, 400, "what to look for"),
    ("search", {"query": "a", "where": "nothing = 1"}, 400, "condition"),
    ("search", {"query": "a", "top": 10**6}, 400, "top"),
    ("search", {"image": PHOTO}, 400, "reads no image"),
]


@pytest.mark.parametrize(("route", "body", "status", "said"), WRONG)
def test_wrong_input_is_refused_in_a_sentence(
    client: TestClient, route: str, body: dict[str, Any], status: int, said: str
) -> None:
    answer = client.post(f"/v1/{route}", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert {"message", "type", "param", "code"} == error.keys()
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"3", 400),
        (b"null", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"temperature": NaN}', 400),
        (b'{"seed": ' + b"9" * 10_000 + b"}", 400),
    ],
)
def test_bodies_that_are_no_request(client: TestClient, content: bytes, status: int) -> None:
    answer = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_other_refusals_have_the_same_form(client: TestClient) -> None:
    for answer, status in (
        (client.get("/nowhere"), 404),
        (client.get("/v1/models/nobody"), 404),
        (client.get("/v1/completions"), 405),
        (client.post("/v1/completions", content=b"prompt=a"), 400),
        (client.post("/v1/completions", json={}, headers={"origin": "http://evil.example"}), 403),
        (client.post("/v1/completions", json={}, headers={"host": "evil.example"}), 403),
        (client.post("/v1/completions", content=b"0" * ((1 << 25) + 1)), 413),
    ):
        assert answer.status_code == status, answer.text
        assert {"message", "type", "param", "code"} == answer.json()["error"].keys()


def test_a_key_is_asked_for(models: Models) -> None:
    with TestClient(Guard(make_app(models), "127.0.0.1", Key("secret")), base_url="http://127.0.0.1:8000") as asking:
        assert asking.get("/v1/models").status_code == 401
        assert asking.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert asking.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_nothing_to_search_in(models: Models, monkeypatch: pytest.MonkeyPatch, client: TestClient) -> None:
    monkeypatch.setattr(models, "searcher", None)
    answer = client.post("/v1/search", json={"query": "a"})
    assert answer.status_code == 404
    assert "--library" in answer.json()["error"]["message"]


def test_too_much_at_once_is_told_to_come_again(
    models: Models, monkeypatch: pytest.MonkeyPatch, client: TestClient
) -> None:
    for one in models.served:
        monkeypatch.setattr(one.worker, "most", 0)
    for route, body in (
        ("completions", {"prompt": "a"}),
        ("completions", {"prompt": "a", "stream": True}),
        ("embeddings", {"input": "a"}),
        ("fill", {"text": "[MASK]"}),
    ):
        answer = client.post(f"/v1/{route}", json=body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(models: Models, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """In the midst of a text that would be long."""
    served = models.writing("writer")
    monkeypatch.setattr(served.model, "ends", set())
    batch, begun = served.worker.work, []
    put = served.worker.put
    monkeypatch.setattr(served.worker, "put", lambda jobs: (begun.extend(jobs), put(jobs)))
    body = json.dumps({"model": "writer", "prompt": "It", "max_tokens": 1 << 14, "stream": stream}).encode()

    async def leave() -> None:
        gone, received = asyncio.Event(), iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            message = next(received, None)
            if message is None:
                await gone.wait()
                return {"type": "http.disconnect"}
            return message

        async def send(message: Any) -> None:
            if message.get("body", b"").startswith(b"data:"):
                gone.set()

        if not stream:
            asyncio.get_running_loop().call_later(0.05, gone.set)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
        }  # fmt: skip
        await make_app(models)(scope, receive, send)

    asyncio.run(leave())
    (writing,) = begun
    assert writing.left
    other = selfsup_text(models)
    assert other  # behind whose first step the place was free
    assert len(writing.drawn) < 1 << 14
    assert writing not in batch.texts


def selfsup_text(models: Models) -> str:
    with TestClient(make_app(models), base_url="http://127.0.0.1:8000") as asking:
        return str(
            asked(asking, "/v1/completions", prompt="a", max_tokens=2, temperature=0, echo=True)["choices"][0]["text"]
        )
