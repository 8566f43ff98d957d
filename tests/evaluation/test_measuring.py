"""What all protocols share: samples drawn by the seed, the precision, and what is told while they go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bits_per_byte import OTHER
from test_protocols import FITTING
from tiny_vision import save_photos, save_tiny_vision
from word_vectors import WordVectors, save_tiny_encoder

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.evaluation import IMAGE_ENCODERS, LANGUAGE_MODELS, TEXT_ENCODERS, evaluate
from selfsup.evaluation.base import Score
from selfsup.evaluation.language import BEGINNINGS
from selfsup.machine import find_precision
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model
from selfsup.report import Reporter, to_stdout

WINDOW = 64
LONG = [f"{text} {number}" for number in range(30) for text in OTHER]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("decoder")
    tokenizer = train_tokenizer("characters", LONG)
    config = DecoderConfig(tokenizer.vocabulary, 2, 32, 2, 1, 16, 64, window=WINDOW, tied=True)
    model = Decoder(config).initialise(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():  # its blocks begin as the identity
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    save_model(directory / "model", model, tokenizer, "")
    return directory / "model"


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("vision")
    return save_tiny_vision(place / "model"), save_photos(place / "photos", 20)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("selfsup.evaluation"), "load", lambda directory: WordVectors())


def require_sample(measured: Callable[..., Score], records: int) -> None:
    """A sample is a function of the seed, says of how many it is, and is no sample where it is not smaller."""
    whole, drawn = measured(), measured(records=records)
    assert (drawn.records, whole.records, whole.records_in_all) == (records, None, None)
    assert drawn.records_in_all is not None
    assert records < drawn.records_in_all
    assert drawn == measured(records=records)
    assert drawn.n < whole.n
    assert measured(records=records, seed=1).value != drawn.value
    assert measured(records=drawn.records_in_all) == whole


@pytest.mark.parametrize("protocol", LANGUAGE_MODELS)
def test_windows_are_sampled(protocol: str, decoder: Path) -> None:
    require_sample(lambda **given: evaluate(decoder, data=LONG, protocol=protocol, **given), 5)


@pytest.mark.parametrize("protocol", LANGUAGE_MODELS)
def test_windows_are_as_long_as_is_asked_for(protocol: str, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, short = (evaluate(decoder, data=LONG, protocol=protocol, window=window) for window in (None, 16))
    assert (whole.details["window"], short.details["window"]) == (WINDOW, 16)
    assert short.n == whole.n
    assert short.value != whole.value
    with pytest.raises(UserError, match=f"reads at most {WINDOW} tokens, so --window cannot be 65"):
        evaluate(decoder, data=LONG, protocol=protocol, window=WINDOW + 1)
    monkeypatch.setattr("selfsup.evaluation.language.LONGEST_WINDOW", 16)
    assert evaluate(decoder, data=LONG, protocol=protocol) == short


@pytest.mark.parametrize("protocol", TEXT_ENCODERS)
def test_records_of_texts_are_sampled(protocol: str, words: None) -> None:
    if protocol == "pseudo-perplexity":  # whose records there are all alike
        return
    require_sample(lambda **given: evaluate("run", data=FITTING[protocol], protocol=protocol, **given), 80)


@pytest.mark.parametrize("protocol", IMAGE_ENCODERS)
def test_images_are_sampled(protocol: str, vision: tuple[Path, Path]) -> None:
    model, photos = vision
    score = evaluate(model, data=str(photos), protocol=protocol, records=50)
    assert (score.records, score.records_in_all) == (50, 60)


def test_a_sample_is_told(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = evaluate(decoder, data=LONG, records=3)
    score.print(to_stdout())
    assert f"a sample of 3 of {score.records_in_all:,} records; {score.precision};" in capsys.readouterr().out


# -- precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", LANGUAGE_MODELS)
def test_precision_of_decoders(protocol: str, decoder: Path) -> None:
    exact, rough = (evaluate(decoder, data=LONG, protocol=protocol, precision=p) for p in ("fp32", "bf16"))
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    assert exact.value != rough.value == pytest.approx(exact.value, rel=2e-3)
    assert evaluate(decoder, data=LONG).precision == find_precision("auto", torch.device("cpu"))


@pytest.mark.parametrize("protocol", ["rankme", "uniformity", "pseudo-perplexity"])
def test_precision_of_encoders(protocol: str, tmp_path: Path) -> None:
    model = save_tiny_encoder(tmp_path / "model", OTHER)
    exact, rough = (evaluate(model, data=OTHER, protocol=protocol, precision=p) for p in ("fp32", "bf16"))
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    assert exact.value != rough.value == pytest.approx(exact.value, rel=0.05)


def test_precision_of_images(vision: tuple[Path, Path]) -> None:
    model, photos = vision
    exact, rough = (evaluate(model, data=str(photos), protocol="uniformity", precision=p) for p in ("fp32", "bf16"))
    assert (exact.precision, rough.precision) == ("fp32", "bf16")
    assert exact.value != rough.value


@pytest.mark.parametrize("given", [{"precision": "fp16"}, {"precision": 16}, {"records": 0}, {"records": 1.5}])
def test_options_are_refused(given: dict[str, Any], decoder: Path) -> None:
    with pytest.raises(UserError, match=f"{next(iter(given))} is"):
        evaluate(decoder, data=LONG, **given)


def test_scores_of_older_versions_are_read(decoder: Path) -> None:
    score = evaluate(decoder, data=LONG, precision="fp32")
    old = json.loads(json.dumps(score.to_json()))
    for name in ("precision", "records", "records_in_all"):
        del old[name]
    assert Score.from_json(old) == replace(score, resampling=None)


# -- what is told on the way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", LANGUAGE_MODELS)
def test_a_figure_is_told_soon_and_becomes_the_figure(protocol: str, decoder: Path) -> None:
    told: list[str] = []
    counted: list[int] = []

    def follow(done: int, total: int | None) -> None:
        counted.append(done)

    score = evaluate(decoder, data=LONG, protocol=protocol, running=told.append, progress=follow)
    assert counted[:2] == [0, BEGINNINGS[0]]
    assert counted == sorted(counted)
    assert len(told) == len(counted) - 1
    last = float(told[-1].split()[0])
    assert last == pytest.approx(math.log(score.value) if protocol == "perplexity" else score.value, abs=1e-3)


def test_the_beginning_counts_once(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = evaluate(decoder, data=LONG)
    monkeypatch.setattr("selfsup.evaluation.language.BEGINNINGS", ())
    assert evaluate(decoder, data=LONG) == before


def test_what_takes_long_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((0.0, 0.0, 0.2, 0.2, 0.4, 0.4))
    monkeypatch.setattr("selfsup.report.time.monotonic", lambda: next(moments))
    lines = StringIO()
    reporter = Reporter(to=lines)
    with reporter.bar("Measuring"):
        reporter.counting(0, 1000)
        reporter.running("1.5 bits per byte")
        reporter.counting(10, 1000)
    assert lines.getvalue().strip() == "1%  1.5 bits per byte, 10 of 1,000, 50/s, 20 s left"
