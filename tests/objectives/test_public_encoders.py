"""Encoders of other people's classes, started from with --init: opened, trained, and back in their class."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
import transformers
from conftest import TINY_PAIRS, Train, assert_alike, tree
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

import selfsup
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.models.encoder import TextEncoder
from selfsup.models.encoder_layouts import SavedEncoder, read_encoder
from selfsup.report import Reporter

EXACT = 1e-5  # of the largest number
TEXTS = ["the cat ran by the sea", "on day 3 the fox sat by the hill .", "hen"]
TOKENS = torch.randint(5, 20, (2, 20), generator=torch.Generator().manual_seed(0))
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
STEPS = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
NAMES = list(tiny_encoders.CLASSES)
# Variants of a class that differ in their heads are trained by one objective each.
ONE = {"bert with two heads": "simcse", "classifier": "masked-lm", "camembert": "simcse"}
TRAINED = [(each, name) for name in NAMES for each in ("masked-lm", "simcse") if ONE.get(name, each) == each]
TRAINED += [("tsdae", name) for name in ("modernbert", "bert without a head", "roberta", "distilbert", "sentences")]
Go = Callable[..., selfsup.Run]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("encoders")
    return {name: tiny_encoders.save(name, place / name) for name in NAMES}


@pytest.fixture(scope="module")
def go(train: Train, directories: dict[str, Path]) -> Go:
    """`go(out, objective, name or directory, …)`: ten steps from there."""

    def begin(out: Path, objective: str, place: str | Path, **given: Any) -> selfsup.Run:
        place = directories[place] if isinstance(place, str) else place
        own = {"tokenizer": str(place), "optim.lr": 1e-3, "optim.adamw_lr": 1e-3, "steps": 10}
        return train(out, objective, init=str(place), model="auto", **(own | given))

    return begin


@pytest.fixture(scope="module")
def run(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], selfsup.Run]:
    """The run of an objective from a class, trained once."""
    runs: dict[tuple[str, str], selfsup.Run] = {}

    def find(objective: str, name: str) -> selfsup.Run:
        if (objective, name) not in runs:
            runs[objective, name] = go(tmp_path_factory.mktemp("runs") / "run", objective, name)
        return runs[objective, name]

    return find


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@torch.no_grad()
def theirs(directory: Path, kind: str) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Hidden states and logits of tokens by a class of transformers, and what it says of the weights it found."""
    model, report = getattr(transformers, kind).from_pretrained(directory, output_loading_info=True)
    made = model.eval()(TOKENS, output_hidden_states=True)
    logits = made.get("prediction_logits", made.get("logits")) if kind.endswith(("MaskedLM", "PreTraining")) else None
    return made.hidden_states[-1], logits, report


def normalised(model: EncoderModel) -> np.ndarray:
    """Vectors of texts as a directory with a last step that normalises gives them."""
    found = model.embed(TEXTS, precision="fp32")
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@torch.no_grad()
def assert_parity(saved: SavedEncoder, hidden: Tensor, logits: Tensor | None) -> None:
    assert_close(saved.encoder().eval()(TOKENS), hidden)
    if logits is not None:
        masked = saved.masked().eval()
        everywhere = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
        assert_close(masked(TOKENS, everywhere) @ masked.output_weight.T, logits)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1
    assert float((found - expected).abs().max() / expected.abs().max()) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_opened_with_its_numbers(name: str, directories: dict[str, Path]) -> None:
    saved, kind = read_encoder(directories[name]), tiny_encoders.CLASSES[name][0]
    hidden, logits, _ = theirs(directories[name], kind)
    assert_parity(saved, hidden, logits)
    assert bool(saved.head) == (logits is not None)
    assert saved.config.window == (24 if name == "sentences" else 64)


@pytest.mark.parametrize(("objective", "name"), TRAINED)
def test_what_is_trained_goes_back_into_its_class(
    objective: str, name: str, directories: dict[str, Path], run: Callable[[str, str], selfsup.Run]
) -> None:
    """With its head, or a fresh one; what no encoder here has is as it was."""
    origin, kind = directories[name], tiny_encoders.CLASSES[name][0]
    made = run(objective, name).model_directory
    fills = kind.endswith(("MaskedLM", "PreTraining"))
    if objective == "masked-lm" and not fills:
        kind = "BertForMaskedLM"
    hidden, logits, report = theirs(made, kind)
    assert not report["missing_keys"]
    assert_parity(read_encoder(made), hidden, logits)
    before, after = weights(origin), weights(made)
    spare = {n for n in before if any(part in n for part in ("pooler", "classifier", "seq_relationship"))}
    kept = {n: next(m for m in (n, f"bert.{n}") if m in after) for n in spare}
    assert all(before[n].equal(after[m]) for n, m in kept.items())
    assert set(report["unexpected_keys"]) <= (set(kept.values()) if objective == "masked-lm" else set())
    moved = [
        n for n, m in ((n, f"bert.{n}" if f"bert.{n}" in after else n) for n in before) if not before[n].equal(after[m])
    ]
    assert len(moved) > 10
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == [kind]
    said = json.loads((origin / "config.json").read_text())
    assert config | {"architectures": None} == said | {"architectures": None, "torch_dtype": "float32"}
    for file in TOKENIZER:
        assert (made / file).read_bytes() == (origin / file).read_bytes(), file


# -- what its files say --------------------------------------------------------------------------------------


def test_a_sentence_encoder_stays_one(directories: dict[str, Path], run: Callable[[str, str], selfsup.Run]) -> None:
    """Of the same steps, pooling, longest text and prompts; its vectors go on as they are, without a map."""
    for objective in ("masked-lm", "simcse"):
        one = run(objective, "sentences")
        for file in STEPS:
            assert (one.model_directory / file).read_bytes() == (directories["sentences"] / file).read_bytes(), file
        settings = one.settings()
        assert (settings["model.whiten"], settings.origin("model.whiten")) == (False, "init")
        model, theirs = selfsup.load(one.directory), SentenceTransformer(str(one.model_directory))
        assert isinstance(model, EncoderModel)
        assert (model.pooling, model.window, theirs.prompts["query"]) == ("cls", 24, "find: ")
        assert_alike(normalised(model), theirs.encode(TEXTS, show_progress_bar=False))


def test_a_sentence_encoder_that_is_made_another_one_says_so(go: Go, tmp_path: Path) -> None:
    given = {"simcse.pooling": "mean", "model.whiten": True, "data.window": 32, "steps": 1}
    made = go(tmp_path / "run", "simcse", "sentences", **given).model_directory
    theirs = SentenceTransformer(str(made))
    assert [type(step).__name__ for step in theirs] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert (theirs.max_seq_length, theirs.prompts["query"]) == (32, "find: ")
    assert_alike(normalised(selfsup.load(made)), theirs.encode(TEXTS, show_progress_bar=False))


def test_a_sentence_encoder_that_transformers_opens_stays_one(
    train: Train, directories: dict[str, Path], tmp_path: Path
) -> None:
    origin = directories["sentences"]
    given = {"model": f"hf:{origin}", "tokenizer": str(origin), "data.window": 24, "steps": 1}
    made = train(tmp_path / "run", "masked-lm", **given).model_directory
    for file in STEPS:
        assert (made / file).read_bytes() == (origin / file).read_bytes(), file


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_longer_texts_than_it_has_positions_for_are_refused(name: str, go: Go, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads at most 64 tokens, so data.window cannot be 65; give 64 or less"):
        go(tmp_path / "run", "masked-lm", name, **{"data.window": 65})
    assert selfsup.load(go(tmp_path / "most", "masked-lm", name, **{"data.window": 64, "steps": 1})).window == 64


# -- beside images -------------------------------------------------------------------------------------------

TOWERS = ("bert", "roberta", "sentences")


@pytest.fixture(scope="module")
def pair_up(directories: dict[str, Path], captioned: Path) -> Callable[..., selfsup.Run]:
    """`pair_up(out, name, …)`: ten steps of a text tower from there, beside a fresh one of images."""

    def begin(out: Path, name: str, **given: Any) -> selfsup.Run:
        own = {"data.vocabulary": None, "optim.adamw_lr": 1e-2, "steps": 10, "evaluate.every": 5}
        pairs = {key: value for key, value in TINY_PAIRS.items() if key != "text"}
        start = {"data": str(captioned), "text.init": str(directories[name]), "reporter": Reporter(False)}
        return selfsup.train(out=out, **{**pairs, **start, **own, **given})

    return begin


@pytest.fixture(scope="module")
def paired(pair_up: Callable[..., selfsup.Run], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The run with a class, trained once."""
    return functools.cache(lambda name: pair_up(tmp_path_factory.mktemp("pairs") / "run", name))


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_beside_images_goes_back_into_its_class(
    name: str, directories: dict[str, Path], paired: Callable[[str], selfsup.Run]
) -> None:
    """With what stood beside it, its head too; the map into the shared space stands in files of its own."""
    origin, kind, run = directories[name], tiny_encoders.CLASSES[name][0], paired(name)
    made = run.model_directory / "text"
    hidden, _, report = theirs(made, kind)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_parity(read_encoder(made), hidden, None)
    assert run.summary["max_difference"]["text"] < 1e-4
    before, after = weights(origin), weights(made)
    assert before.keys() == after.keys()
    still = {n for n in before if before[n].equal(after[n])}
    assert {n for n in before if n.startswith(("cls.", "lm_head.", "pooler."))} <= still
    assert len(still) < len(before) / 2
    config, said = (json.loads((place / "config.json").read_text()) for place in (made, origin))
    assert config == said | {"torch_dtype": "float32"}
    for file in TOKENIZER:
        assert (made / file).read_bytes() == (origin / file).read_bytes(), file
    assert f"Layout: {config['model_type']} of transformers; max" in (made / "README.md").read_text()
    alone, both = selfsup.load(made), selfsup.load(run.directory)
    assert_alike(alone.embed(TEXTS, precision="fp32"), both.embed(TEXTS, precision="fp32"))


def test_a_tower_of_a_sentence_encoder_stays_one(paired: Callable[[str], selfsup.Run], tmp_path: Path) -> None:
    """With its map into the shared space, where texts stood without prompts; the whole is exported with it."""
    run = paired("sentences")
    theirs = SentenceTransformer(str(run.model_directory / "text"))
    assert [type(step).__name__ for step in theirs] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert not any(theirs.prompts.values())
    assert_alike(normalised(selfsup.load(run.directory)), theirs.encode(TEXTS, show_progress_bar=False))
    exported = selfsup.export(run.directory, out=tmp_path / "both")
    assert exported.max_share is not None
    assert exported.max_share < EXACT
    both = SentenceTransformer(str(tmp_path / "both"))
    assert_alike(both.encode(TEXTS, show_progress_bar=False), theirs.encode(TEXTS, show_progress_bar=False))


def test_a_run_with_a_tower_of_others_resumes_bit_for_bit(
    pair_up: Callable[..., selfsup.Run], paired: Callable[[str], selfsup.Run], tmp_path: Path
) -> None:
    class Crash(Exception):
        pass

    class CrashAtALook(Reporter):
        def say(self, text: str) -> None:
            if text.startswith("step 5 "):
                raise Crash

    with pytest.raises(Crash):
        pair_up(tmp_path / "run", "bert", reporter=CrashAtALook(False))
    run = selfsup.train(resume=tmp_path / "run", reporter=Reporter(False))
    assert tree(run.model_directory) == tree(paired("bert").model_directory)


def test_a_tower_reads_captions_as_long_as_it_has_positions_for(
    pair_up: Callable[..., selfsup.Run], tmp_path: Path
) -> None:
    """Longer ones than a sentence-transformers directory says, where it is asked for."""
    with pytest.raises(UserError, match=r"reads at most 64 tokens, so data.window cannot be 65; give less"):
        pair_up(tmp_path / "run", "sentences", **{"data.window": 65})
    made = pair_up(tmp_path / "most", "sentences", steps=1, **{"data.window": 64}).model_directory
    assert selfsup.load(made / "text").window == 64


def test_a_tower_of_a_variant_is_opened_by_transformers(
    directories: dict[str, Path], pair_up: Callable[..., selfsup.Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what is said of it names why."""
    copy = Path(shutil.copytree(directories["bert"], tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"hidden_act": "mish"}))
    made = pair_up(tmp_path / "run", "bert", steps=1, **{"text.init": str(copy)}).model_directory
    assert "hidden_act = 'mish'; only models with" in caplog.text
    assert "Layout: as transformers writes it" in (made / "text" / "README.md").read_text()


def _older(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def test_names_of_the_first_berts_are_known(directories: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directories["bert"], tmp_path / "copy"))
    named = {_older(name): tensor for name, tensor in weights(copy).items()}
    table, bias = named["bert.embeddings.word_embeddings.weight"], named.pop("cls.predictions.bias")
    twice = {"cls.predictions.decoder.weight": table.clone(), "cls.predictions.decoder.bias": bias}
    save_file(named | twice | {"bert.embeddings.position_ids": torch.arange(64)[None]}, copy / "model.safetensors")
    found, expected = read_encoder(copy), read_encoder(directories["bert"])
    assert found.weights.keys() == expected.weights.keys()
    assert found.head.keys() == expected.head.keys()
    assert all(found.weights[n].equal(w) for n, w in expected.weights.items())
    assert all(found.head[n].equal(w) for n, w in expected.head.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'; only BERT encoders"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish'; only models with gelu or"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
    ],
)
def test_variants_are_refused_in_a_sentence(
    changes: dict[str, Any], message: str, directories: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(directories["bert"], tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=rf"{message}.*; leave --init out and give model=hf:{copy}\.$"):
        selfsup.plan("masked-lm", data=corpus, init=str(copy), steps=1)


def test_what_transformers_would_leave_out_is_used_by_neither(
    directories: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(directories["bert"], tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text()) | {"position_embedding_type": "relative_key_query"}
    (copy / "config.json").write_text(json.dumps(config))
    more = {f"bert.encoder.layer.{n}.attention.self.distance_embedding.weight": torch.ones(127, 8) for n in range(2)}
    save_file(weights(copy) | more, copy / "model.safetensors")
    with pytest.raises(UserError, match="has positions relative to each other"):
        selfsup.load(copy)
    with pytest.raises(UserError, match="has positions relative to each other"):
        selfsup.plan("masked-lm", data=corpus, model=f"hf:{copy}", steps=1)


@pytest.mark.parametrize(("name", "place"), [("bert", "bert.encoder.layer.0"), ("distilbert", "distilbert.embeddings")])
def test_parts_of_layers_that_are_unknown_are_refused(
    name: str, place: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(directories[name], tmp_path / "copy"))
    save_file(weights(copy) | {f"{place}.adapter.weight": torch.ones(2)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"adapter.weight should be absent"):
        selfsup.load(copy)


# -- its use -------------------------------------------------------------------------------------------------


def test_what_it_is_used_for(run: Callable[[str, str], selfsup.Run], documents: list[str], tmp_path: Path) -> None:
    """Without transformers: vectors, hidden words, a look inside; and export."""
    one = run("masked-lm", "xlm-roberta")
    model = selfsup.load(one.directory)
    assert isinstance(model, EncoderModel)
    assert isinstance(model.network, TextEncoder)
    fill = transformers.pipeline("fill-mask", str(one.model_directory))
    expected = fill("the cat <mask> by the sea", top_k=3)
    found = model.fill("the cat <mask> by the sea", 3)[0]
    assert [candidate.token for candidate in found] == [guess["token_str"].strip() for guess in expected]
    for objective in ("masked-lm", "simcse"):
        assert selfsup.inspect(objective, run=one.directory, data=documents).sections
    exported = selfsup.export(one, out=tmp_path / "exported")
    assert exported.max_difference is not None
    assert exported.max_difference < EXACT
    selfsup.export(one, out=tmp_path / "kept", to="transformers")
    assert tree(tmp_path / "kept") == tree(one.model_directory)
