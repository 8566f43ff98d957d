"""Before and after: what is gained on new data and lost on old, with intervals, for models of any tokenizers."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from test_protocols import FITTING
from tiny_clip import save_tiny_clip
from tiny_vision import save_photos, save_tiny_vision
from word_vectors import WordVectors

import selfsup
from selfsup.comparison import compare
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.evaluation import PROTOCOLS, TEXT_ENCODERS, evaluate
from selfsup.evaluation.base import Resampling
from selfsup.evaluation.gains import Gain, Gains, verdict
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model
from selfsup.report import Reporter

NEW = [f"the {animal} sat on the {place}." for animal in ("cat", "dog", "hen") for place in ("mat", "bed", "sofa")] * 12
OLD = [f"{number} times {number} are {number * number}" for number in range(60)]


def save_decoder(directory: Path, tokenizer: Any, window: int = 32) -> Path:
    config = DecoderConfig(tokenizer.vocabulary, 1, 16, 1, 1, 16, 32, window=window, tied=True)
    save_model(directory, Decoder(config).initialise(torch.Generator().manual_seed(0)), tokenizer, "")
    return directory


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, one of another tokenizer, and a run that went on from the first."""
    place = tmp_path_factory.mktemp("gains")
    (place / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in NEW))
    (place / "old.txt").write_text("\n".join(OLD))
    save_decoder(place / "before", train_tokenizer("bpe", [*NEW, *OLD], 300))
    save_decoder(place / "coarse", train_tokenizer("bpe", [*NEW, *OLD], 270), window=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(place / "cache"))
        patch.setattr(import_module("selfsup.planning"), "CALIBRATION_SECONDS", 0.05)
        how = {"steps": 30, "batch": 8, "window": 32, "optim": {"lr": 0.02, "adamw_lr": 0.02}}
        given = {"data": str(place / "new.jsonl"), "init": str(place / "before"), "out": place / "after"}
        selfsup.train("causal-lm", **given, **{"data.window": how.pop("window")}, **how, reporter=Reporter(False))
    return place


def both(place: Path, **given: Any) -> Gains:
    how = {"protocol": "bits-per-byte", "data": str(place / "new.jsonl"), "precision": "fp32"} | given
    found = compare([place / "before", place / "after"], **how)
    assert isinstance(found, Gains)
    return found


def test_gained_on_the_new_and_told_of_the_old(place: Path) -> None:
    found = both(place, also=[str(place / "old.txt")])
    new, old = found.gains
    assert (new.verdict, new.new, old.new) == ("gained", True, False)
    for gain, source in ((new, place / "new.jsonl"), (old, place / "old.txt")):
        scores = [evaluate(place / name, data=str(source), precision="fp32") for name in ("before", "after")]
        assert [gain.before.value, gain.after.value] == [score.value for score in scores]
        assert gain.difference == scores[1].value - scores[0].value
        assert gain.interval[0] < gain.difference < gain.interval[1]
        assert gain.paired


def test_pairs_are_narrower_than_models_by_themselves() -> None:
    """What is hard for both is drawn for both."""
    hard = np.random.default_rng(0).normal(3, 1, 200)
    first, second = Resampling.of_mean(hard), Resampling.of_mean(hard + 0.1)
    together, paired = second.difference(first, 0)
    assert paired
    assert together == (pytest.approx(0.1), pytest.approx(0.1))
    apart, paired = second.difference(Resampling(200, first.statistic, "others"), 0)
    assert not paired
    width = 2 * 1.96 * 2**0.5 * hard.std() / 200**0.5
    assert apart[1] - apart[0] == pytest.approx(width, rel=0.15)


def test_other_tokenizers_are_paired_by_bytes(place: Path) -> None:
    found = compare([place / "before", place / "coarse"], protocol="bits-per-byte", data=str(place / "old.txt"))
    assert isinstance(found, Gains)
    assert found.gains[0].paired
    assert found.gains[0].before.n != found.gains[0].after.n


def test_samples_of_other_tokenizers_are_not_paired_and_it_is_said(place: Path) -> None:
    given = {"protocol": "bits-per-byte", "data": str(place / "old.txt"), "records": 5}
    found = compare([place / "before", place / "coarse"], **given)
    assert isinstance(found, Gains)
    assert not found.gains[0].paired
    assert any("each model was resampled by itself" in note for note in found.notes)
    assert both(place, records=5).gains[0].paired


def test_perplexities_of_other_tokenizers_are_refused(place: Path) -> None:
    with pytest.raises(UserError, match="different tokenizers, and perplexity is a figure per token"):
        compare([place / "before", place / "coarse"], protocol="perplexity", data=str(place / "old.txt"))
    assert both(place, protocol="perplexity").gains[0].verdict == "gained"


def test_what_a_run_held_out_is_the_default(place: Path) -> None:
    found = both(place, data=None)
    assert found.gains[0].source == f"the held-out part of {place / 'after'}"
    assert found.gains[0].after.value == pytest.approx(evaluate(place / "after", precision="fp32").value, rel=1e-6)
    assert not found.notes
    assert any("was trained on" in note for note in both(place).notes)
    with pytest.raises(UserError, match="Neither is a run"):
        compare([place / "before", place / "coarse"], protocol="bits-per-byte")


@pytest.mark.parametrize("protocol", TEXT_ENCODERS)
def test_protocols_of_texts(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"a": WordVectors(seed=0), "b": WordVectors(seed=1)}
    monkeypatch.setattr("selfsup.evaluation.gains.load", lambda directory: models[directory.name])
    found = compare(["a", "b"], protocol=protocol, data=FITTING[protocol])
    assert isinstance(found, Gains)
    gain = found.gains[0]
    assert gain.paired
    assert gain.interval[0] <= gain.difference <= gain.interval[1]
    same = compare(["a", "a"], protocol=protocol, data=FITTING[protocol])
    assert isinstance(same, Gains)
    assert (same.gains[0].interval, same.gains[0].verdict) == ((0.0, 0.0), "unclear")


@pytest.mark.parametrize("protocol", ["knn-20", "retrieval"])
def test_protocols_of_images(protocol: str, tmp_path: Path) -> None:
    kind = save_tiny_clip if protocol == "retrieval" else save_tiny_vision
    model, photos = kind(tmp_path / "model"), save_photos(tmp_path / "photos", 8)
    if protocol == "retrieval":
        (tmp_path / "pairs.jsonl").write_text(
            "".join(
                json.dumps({"image": str(file), "caption": f"{file.parent.name} {file.stem}"}) + "\n"
                for file in sorted(photos.rglob("*.png"))
            )
        )
    data = tmp_path / "pairs.jsonl" if protocol == "retrieval" else photos
    found = compare([model, model], protocol=protocol, data=str(data))
    assert isinstance(found, Gains)
    assert found.gains[0].paired
    assert found.gains[0].difference == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_which_way_is_better(protocol: str) -> None:
    lower = {"bits-per-byte", "perplexity", "pseudo-perplexity", "uniformity", "alignment"}
    fallen = "changed" if protocol == "alpha-req" else "gained" if protocol in lower else "lost"
    assert verdict(protocol, -0.2, (-0.3, -0.1)) == fallen
    assert verdict(protocol, -0.2, (-0.3, 0.1)) == "unclear"
    assert verdict(protocol, 0.2, (0.1, 0.3)) == {"gained": "lost", "lost": "gained"}.get(fallen, fallen)


def test_how_it_looks(place: Path, tmp_path: Path) -> None:
    found = both(place, also=[str(place / "old.txt")], plot=tmp_path / "gains.png", records=9)
    file = io.StringIO()
    found.print(Console(file=file, width=200))
    text = file.getvalue()
    for told in (
        "bits-per-byte",
        "before",
        "after",
        "difference",
        "gained",
        "new.jsonl",
        "old.txt",
        "a sample of 9 of",
    ):
        assert told in text
    assert (tmp_path / "gains.png").read_bytes()[1:4] == b"PNG"
    content = json.loads(json.dumps(found.to_json()))
    assert [source["verdict"] for source in content["sources"]] == [gain.verdict for gain in found.gains]
    assert content["sources"][0]["before"]["value"] == found.gains[0].before.value
    assert content["models"] == ["before", "after"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"protocol": None}, "--data is for models that are measured"),
        ({"protocol": "bits-per-bite"}, "There is no protocol"),
        ({"protocol": "sts"}, "for which sts is not defined"),
        ({"also": ["nowhere.txt"]}, "nowhere.txt"),
    ],
)
def test_refusals(given: dict[str, Any], told: str, place: Path) -> None:
    with pytest.raises(UserError, match=told):
        both(place, **given)


def test_two_models_are_compared(place: Path) -> None:
    with pytest.raises(UserError, match="not 3"):
        compare([place / "before"] * 3, protocol="bits-per-byte", data=NEW)


def test_a_kept_score_cannot_be_resampled(place: Path) -> None:
    score = evaluate(place / "before", data=NEW)
    kept = type(score).from_json(score.to_json())
    with pytest.raises(ValueError, match="cannot be resampled"):
        Gain.of("new", True, kept, score)
