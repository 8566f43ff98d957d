"""Bits per byte and perplexity, against a plain loop over tokens, and the intervals around them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import selfsup
from selfsup.data.text import encode_documents
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.evaluation import LANGUAGE_MODELS, Score, evaluate
from selfsup.evaluation.base import Resampling
from selfsup.evaluation.language import BLOCK_BYTES, BLOCK_TOKENS, FEWEST_BLOCKS, byte_blocks, token_blocks
from selfsup.inference.generate import LanguageModel
from selfsup.inference.items import LeftOut
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model
from selfsup.report import Reporter
from selfsup.run import Run

DOCUMENTS = [
    f"The {colour} {animal} sleeps on the {place}; it is {colour}."
    for colour in ("grey", "black", "white", "red")
    for animal in ("cat", "dog", "mouse", "hen")
    for place in ("sofa", "mat", "bed")
]
OTHER = ["The red dog is on the mat.", "The mouse.", "The hen on the sofa is white; the cat is black and sleeps."]
WINDOW = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a few steps on a file of short documents, with all of its held-out windows validated."""
    place = tmp_path_factory.mktemp("evaluate")
    data = place / "documents.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(place / "cache"))
        patch.setattr(import_module("selfsup.planning"), "CALIBRATION_SECONDS", 0.05)
        yield selfsup.train(
            "causal-lm",
            data={"source": str(data), "tokenizer": "characters", "window": WINDOW},
            model={"layers": 1, "width": 32, "heads": 1},
            out=place / "run",
            steps=20,
            batch=16,
            reporter=Reporter(False),
        )


def plain_losses(model: LanguageModel, tokens: list[int], window: int) -> list[float]:
    """Each target by itself, from a context cut out by hand: what is left of its document in its window."""
    losses = []
    for place in range(1, len(tokens)):
        window_start = (place - 1) // window * window
        last = len(tokens) - 1 - window
        if last > 0 and place > (len(tokens) - 1) // window * window:
            window_start = last  # the last window is as long as the others and begins earlier
        context = tokens[window_start:place]
        opened = [i for i, token in enumerate(context) if token == model.tokenizer.end]
        context = context[opened[-1] :] if opened else context
        logits = model.decoder.logits(torch.tensor([context]))[0, -1].double()
        losses.append(float(torch.logsumexp(logits, 0) - logits[tokens[place]]))
    return losses


@torch.inference_mode()
def test_equals_a_plain_loop_over_tokens(run: Run) -> None:
    model = run.model
    encoded = encode_documents(OTHER, model.tokenizer)
    nats = sum(losses := plain_losses(model, encoded.tokens.tolist(), WINDOW))
    size = sum(len(text.encode()) for text in OTHER)
    score = evaluate(run, data=OTHER, precision="fp32")
    assert score.n == len(losses) == sum(len(text) + 1 for text in OTHER)
    assert score.value == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert score.chance == pytest.approx(score.n * math.log2(model.tokenizer.vocabulary) / size)
    perplexity = evaluate(run, data=OTHER, precision="fp32", protocol="perplexity")
    assert perplexity.value == pytest.approx(math.exp(nats / len(losses)), rel=1e-5)
    assert (perplexity.chance, perplexity.n) == (model.tokenizer.vocabulary, score.n)


def test_held_out_part_equals_the_summary(run: Run) -> None:
    """The summary is measured under the run's precision, here in fp32; otherwise they are the same figure."""
    score = evaluate(run)
    assert score.value == pytest.approx(run.summary["bits_per_byte"], rel=0.01)
    assert math.log(evaluate(run, protocol="perplexity").value) == pytest.approx(run.summary["loss"], rel=0.01)
    assert str(run.directory) in score.data


def test_run_directory_and_model_directory_alike(run: Run) -> None:
    scores = [evaluate(place, data=OTHER) for place in (run, run.directory, str(run.model_directory))]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("protocol", LANGUAGE_MODELS)
def test_json(run: Run, protocol: str) -> None:
    score = evaluate(run, data=OTHER, protocol=protocol, seed=3)
    content = json.loads(json.dumps(score.to_json()))
    assert list(content) == [
        "protocol",
        "value",
        "unit",
        "n",
        "interval",
        "chance",
        "seed",
        "data",
        "details",
        "precision",
        "records",
        "records_in_all",
        *LeftOut().to_json(),
    ]
    low, high = content["interval"]
    assert low < content["value"] < high
    assert (content["protocol"], content["seed"]) == (protocol, 3)


def test_interval_is_a_function_of_the_seed(run: Run) -> None:
    def interval(seed: int) -> tuple[float, float]:
        return evaluate(run, data=OTHER, seed=seed).interval

    assert interval(1) == interval(1) != interval(2)


def test_progress_reaches_the_end(run: Run) -> None:
    seen: list[tuple[int, int | None]] = []
    score = evaluate(run, data=OTHER, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (score.n, score.n)


@pytest.mark.parametrize("text", ["c", "cat", "The cat"])
def test_text_shorter_than_a_window(run: Run, text: str) -> None:
    score = evaluate(run, data=[text])
    assert score.n == len(text) + 1
    assert math.isfinite(score.value)
    assert score.interval[0] <= score.value <= score.interval[1]


def random_model(directory: Path, kind: str) -> Path:
    """An untrained model with a tokenizer of a kind."""
    tokenizer = train_tokenizer(kind, DOCUMENTS)  # type: ignore[arg-type]
    config = DecoderConfig(tokenizer.vocabulary, 1, 16, 1, 1, 16, 16, window=WINDOW, tied=False)
    save_model(directory, Decoder(config).initialise(torch.Generator().manual_seed(0)), tokenizer, "")
    return directory


def test_untrained_model_is_at_chance(tmp_path: Path) -> None:
    model = random_model(tmp_path / "model", "bpe")
    for protocol in LANGUAGE_MODELS:
        score = evaluate(model, data=OTHER, protocol=protocol)
        assert score.value == pytest.approx(score.chance, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "reason"), [("words", "white space"), ("characters", "1 of its 21 tokens are unknown")]
)
def test_bits_per_byte_is_refused_where_bytes_are_lost(tmp_path: Path, kind: str, reason: str) -> None:
    model, data = random_model(tmp_path / "model", kind), ["The cat is on the ü."]
    if kind == "words":
        data = ["The cat sleeps"]
    with pytest.raises(UserError, match=reason) as caught:
        evaluate(model, data=data)
    assert "--protocol perplexity" in str(caught.value)
    assert evaluate(model, data=data, protocol="perplexity").value > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: evaluate(run, protocol="bits-per-bite"), "did you mean 'bits-per-byte'"),
        (lambda run: evaluate(run, data=OTHER, protocol="sts"), "holds a decoder.*: bits-per-byte, perplexity"),
        (lambda run: evaluate(run, test=OTHER), "no use for --test"),
        (lambda run: evaluate(run, label="class"), "no use for --label"),
        (lambda run: evaluate(run.model_directory), "no data of its own"),
        (lambda run: evaluate(run.directory / "samples"), "neither a run nor a model"),
        (lambda run: evaluate(run, data="nowhere.txt"), "nowhere.txt"),
        (lambda run: evaluate(run, data=OTHER, device="abacus"), "abacus"),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Run, call: Callable[[Run], Score], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(run)


def test_held_out_part_of_other_data_is_refused(run: Run) -> None:
    source = Path(run.settings()["data.source"])
    before = source.read_text()
    try:
        source.write_text(before + json.dumps({"text": "One more."}) + "\n")
        with pytest.raises(UserError, match="has changed since"):
            evaluate(run)
    finally:
        source.write_text(before)


@given(st.integers(1, 200_000))
def test_blocks_of_tokens_are_runs_of_one_length(count: int) -> None:
    sizes = np.bincount(token_blocks(count))
    assert len(sizes) >= min(count, FEWEST_BLOCKS)
    assert set(sizes[:-1]) <= {sizes[0]}
    assert 0 < sizes[-1] <= sizes[0] <= BLOCK_TOKENS


@given(st.lists(st.integers(0, 5), min_size=1, max_size=300), st.randoms())
def test_blocks_of_bytes_are_the_same_whatever_the_tokens(sizes: list[int], random: Random) -> None:
    """The same bytes in other tokens: as many units, and each byte in its own or, at an edge, in its neighbour."""
    fine, coarse = np.array([*sizes, 1]), []
    rest = list(fine)
    while rest:
        taken = random.randint(1, 3)
        coarse.append(sum(rest[:taken]))
        rest = rest[taken:]
    units = [np.bincount(byte_blocks(s), s) for s in (fine, np.array(coarse))]
    assert len(units[0]) == len(units[1]) >= min(FEWEST_BLOCKS, sum(fine)) - 1
    assert abs(np.cumsum(units[0]) - np.cumsum(units[1])).max() <= 15
    assert units[0].max() <= BLOCK_BYTES + 5


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = Resampling.of_mean(values).interval(0)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
