"""The API on a socket, as `selfsup serve` opens it, asked by OpenAI's own client and by curl."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_decoder import save_tiny_decoder
from tiny_encoder import save_tiny

import selfsup

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

KEY = "a-key-of-ours"


def begin(*words: str) -> tuple[subprocess.Popen[str], str]:
    """A server on a free port, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "selfsup", "serve", *words, "--port", "0", "--device", "cpu", "--precision", "fp32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SELFSUP_API_KEY": KEY},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), process.communicate()
    return process, line.split()[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    save_tiny_decoder(place / "writer")
    save_tiny(place / "encoder")
    return place


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    process, address = begin(f"small={place / 'writer'}", str(place / "encoder"))
    yield address
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert "has ended" in out
    assert error == ""
    assert process.returncode == 0


def expected(place: Path, prompt: str, tokens: int, **how: Any) -> str:
    return selfsup.generate(place / "writer", prompt, tokens=tokens, precision="fp32", **how)[0]


def test_the_client_of_openai(address: str, place: Path) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=address, api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["small", "encoder"]
    how: dict[str, Any] = {"model": "small", "prompt": "It was", "max_tokens": 12, "seed": 5, "logprobs": 2}
    text = client.completions.create(**how)
    assert text.choices[0].text == expected(place, "It was", 12, seed=5)
    assert len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens
    streamed = list(client.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for piece in streamed for choice in piece.choices) == text.choices[0].text
    assert streamed[-1].usage == text.usage
    found = client.embeddings.create(model="encoder", input=["the cat", "the dog"])  # asks for base64 by itself
    assert np.linalg.norm(found.data[1].embedding) == pytest.approx(1, abs=1e-5)
    short = client.embeddings.create(model="encoder", input="the cat", dimensions=4, encoding_format="float")
    assert len(short.data[0].embedding) == 4
    with pytest.raises(openai.BadRequestError, match="makes vectors"):
        client.embeddings.create(model="small", input="a")
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.AuthenticationError, match="key"):
        openai.OpenAI(base_url=address, api_key="wrong", max_retries=0).models.list()


def test_curl(address: str, place: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    body = {"prompt": "It was", "max_tokens": 8, "temperature": 0, "stream": True}
    words = ["curl", "-sS", "-N", f"{address}/completions", "-H", f"Authorization: Bearer {KEY}"]
    words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.split("\n\n")
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == expected(place, "It was", 8, temperature=0)
    assert "data: [DONE]" in lines


def test_many_clients_at_once(address: str, place: Path) -> None:
    """Each gets the text that it gets alone."""
    from concurrent.futures import ThreadPoolExecutor

    prompts = [f"It was {number}" for number in range(24)]

    def ask(prompt: str) -> str:
        body = json.dumps({"prompt": prompt, "max_tokens": 10, "temperature": 0}).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}/completions", body, headers), timeout=60
        ) as answer:
            return str(json.load(answer)["choices"][0]["text"])

    with ThreadPoolExecutor(24) as pool:
        texts = list(pool.map(ask, prompts))
    assert texts == selfsup.generate(place / "writer", prompts, tokens=10, temperature=0, precision="fp32")


def test_without_the_key_nobody_is_let_in(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/models", timeout=60)
    assert refused.value.code == 401
    assert json.load(refused.value)["error"]["message"].startswith("Give the key")
