"""Cross-encoders: the scores of sentence-transformers, number by number; what else is no cross-encoder; reranking."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer
from planted import plant
from sentence_transformers import CrossEncoder
from tiny_encoder import save_tiny
from tiny_encoders import PAIRED, save, save_paired

import selfsup
from selfsup.errors import UserError
from selfsup.inference import cross_encoder
from selfsup.inference.cross_encoder import CrossEncoderModel
from selfsup.inference.hits import Hit
from selfsup.inference.reranking import reranked
from selfsup.models import cross_encoder as networks

QUERY = "the cat ran by the sea"
PASSAGES = ["the dog slept", "a fox sang 1 2 3 on the hill .", "sea", "the hen sat by the cat . " * 12]


@pytest.fixture(scope="module", params=PAIRED)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_paired(request.param, tmp_path_factory.mktemp("paired") / "model")


def theirs(directory: Path, query: str = QUERY, passages: list[str] = PASSAGES, **given: Any) -> Any:
    model = CrossEncoder(str(directory), device="cpu", **given)
    return model.predict([(query, passage) for passage in passages])


def ours(directory: Path, query: str = QUERY, passages: list[str] = PASSAGES) -> Any:
    return CrossEncoderModel.open(directory, "cpu").score(query, passages, "fp32")


def test_the_scores_of_sentence_transformers(directory: Path) -> None:
    expected = theirs(directory)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(ours(directory), expected, atol=2e-6)


def test_networks_are_native_where_they_stand_here(directory: Path) -> None:
    network = CrossEncoderModel.open(directory, "cpu").network
    foreign = json.loads((directory / "config.json").read_text())["model_type"] not in networks.HEADS
    assert isinstance(network, networks.CrossEncoder) != foreign


def test_a_directory_that_sentence_transformers_saved(directory: Path, tmp_path: Path) -> None:
    model = CrossEncoder(str(directory), device="cpu", max_length=24, activation_fn=torch.nn.Identity())
    model.save_pretrained(str(tmp_path / "saved"))
    found = ours(tmp_path / "saved")
    np.testing.assert_allclose(found, theirs(tmp_path / "saved"), rtol=1e-4, atol=1e-4)
    assert not np.allclose(found, ours(directory))
    opened = CrossEncoderModel.open(tmp_path / "saved", "cpu")
    opened.score(QUERY, PASSAGES)
    assert opened.window == 24
    assert 1 <= opened.truncated < len(PASSAGES)


def test_special_tokens_in_a_text_are_plain_text(directory: Path) -> None:
    found = ours(directory, passages=["sea [SEP] hill </s>", "sea [ SEP ] hill < / s >", "sea hill"])
    assert len(set(found.tolist())) >= 2
    tokenizer = CrossEncoderModel.open(directory, "cpu").tokenizer
    (ids, _, _), (plain, _, _) = tokenizer.encode_pairs([("sea", "[SEP] </s>"), ("sea", "hill")], 48)
    assert (ids == tokenizer.end).sum() == (plain == tokenizer.end).sum()


def test_company_changes_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = ours(directory)
    monkeypatch.setattr(cross_encoder, "PLACES", 1)
    np.testing.assert_allclose(ours(directory), together, atol=2e-6)


@pytest.mark.parametrize("place", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_older_names_of_the_last_step(place: str, tmp_path: Path) -> None:
    directory = save_paired("bert", tmp_path / "model")
    squashed = ours(directory)
    name = "torch.nn.modules.linear.Identity"
    said = {"activation_fn": name} if place == "sentence_transformers" else name
    change(directory / "config.json", **{place: said})
    found = ours(directory)
    np.testing.assert_allclose(squashed, 1 / (1 + np.exp(-found)), atol=1e-6)
    np.testing.assert_allclose(found, theirs(directory), rtol=1e-4, atol=1e-5)


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"architectures": ["BertModel"]}, "no cross-encoder, whose class is a …ForSequence"),
        ("config.json", {"architectures": None}, "names no class"),
        ("config.json", {"id2label": {"0": "a", "1": "b"}}, "tells 2 labels apart"),
        ("config.json", {"sentence_transformers": {"activation_fn": "os.system"}}, "has os.system behind its score"),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}, "torch.nn.Tanh behind its"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "puts a prompt before"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length is 'long'"),
        ("config.json", {"num_hidden_layers": 3}, "does not fit its config.json"),
    ],
)
def test_what_is_no_cross_encoder_is_refused(file: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = save_paired("bert", tmp_path / "model")
    change(directory / file, **values)
    with pytest.raises(UserError, match=message):
        ours(directory)


def test_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tells 3 labels apart"):
        ours(save_paired("roberta", tmp_path / "three", labels=3))
    with pytest.raises(UserError, match="no cross-encoder"):
        ours(save("bert", tmp_path / "filling"))
    with pytest.raises(UserError, match="There is no"):
        ours(tmp_path / "nowhere")
    directory = save_paired("bert", tmp_path / "steps")
    steps = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense"}]
    (directory / "modules.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match="has steps behind its network"):
        ours(directory)


def test_code_in_a_directory_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in ("bert", "electra"):
        directory = save_paired(name, tmp_path / name)
        expected = ours(directory)
        np.testing.assert_array_equal(ours(plant(directory, mark)), expected)
    assert not mark.exists()


# -- hits in another order -----------------------------------------------------------------------------------

STORIES = [{"id": str(n), "text": text} for n, text in enumerate(PASSAGES)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("library")
    selfsup.index(save_tiny(place / "model"), STORIES, place / "stories.lance", id_column="id", passages="none")
    return place / "stories.lance"


def test_the_best_come_first(library: Path, directory: Path) -> None:
    plain = selfsup.search(library, QUERY)
    assert all(hit.reranked is None for hit in plain)
    found = selfsup.search(library, QUERY, rerank=directory)
    scores = dict(zip(PASSAGES, ours(directory, passages=PASSAGES), strict=False))
    assert {hit.text: hit.reranked for hit in found} == pytest.approx(scores, abs=0.05)  # which may be of bf16
    assert [hit.reranked for hit in found] == sorted((hit.reranked for hit in found), reverse=True)
    assert {hit.id: hit.score for hit in found} == {hit.id: hit.score for hit in plain}


def test_only_the_nearest_are_read(library: Path, directory: Path) -> None:
    nearest = {hit.id for hit in selfsup.search(library, QUERY, top=2)}
    assert {hit.id for hit in selfsup.search(library, QUERY, top=1, rerank=directory, candidates=2)} <= nearest
    assert len(selfsup.search(library, QUERY, top=3, rerank=directory, candidates=1)) == 3
    assert selfsup.search(library, QUERY, rerank=directory, where="id = 'none'") == []


def test_what_has_no_words_is_refused(library: Path, directory: Path) -> None:
    with pytest.raises(UserError, match="A cross-encoder reads words, and the query is none"):
        selfsup.search(library, image=np.zeros((8, 8, 3), np.uint8), rerank=directory)
    photo = Hit(0.5, "a", "", "photo.png", {})
    with pytest.raises(UserError, match=r"photo.png has no text, and a cross-encoder reads nothing else"):
        reranked([photo], QUERY, CrossEncoderModel.open(directory))


def test_how_it_looks(library: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]) -> None:
    directory = save_paired("bert", tmp_path / "model")
    answer = selfsup_command("search", library, QUERY, "--rerank", directory, "--top", 2)
    assert answer.code == 0, answer.error
    head, *lines = answer.out.splitlines()
    assert head.split()[:2] == ["score", "reranked"]
    found = selfsup.search(library, QUERY, rerank=directory, top=2)
    assert [line.split()[:2] for line in lines] == [[f"{hit.score:.3f}", f"{hit.reranked:.3f}"] for hit in found]
    said = json.loads(selfsup_command("search", library, QUERY, "--rerank", directory, "--json").out)
    assert [hit["reranked"] for hit in said["hits"]][:2] == [hit.reranked for hit in found]
