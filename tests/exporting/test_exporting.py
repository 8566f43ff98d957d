from __future__ import annotations

import builtins
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import tiny_encoders
import transformers
from closeness import SHARE, assert_same_vectors
from conftest import Answer, Train, Trained, assert_alike, tree
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from tiny_clip import DIMENSION, save_tiny_clip

import selfsup
from selfsup.errors import UserError
from selfsup.exporting import sentence_transformers as target
from selfsup.inference.encoder import EncoderModel
from selfsup.models.features import Features
from selfsup.models.sentence_transformers import LENGTH

TEXTS = ["The cat ran.", "Day 3 by the sea, and by the hill, and by the sea.", "hen", ""]


@pytest.fixture(scope="module")
def bert(trained: Trained) -> Path:
    return trained("masked-lm").directory


@pytest.fixture(scope="module")
def emb(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of simcse whose features are those of the first token. (Of whole sentences: after so few steps on half of
    them that token hardly varies, and the whitening magnifies what rounding there is a hundred times.)"""
    out = tmp_path_factory.mktemp("runs") / "emb"
    return train(out, "simcse", simcse={"pooling": "cls", "deletion": 0.0}).directory


@pytest.fixture(scope="module")
def exported(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return selfsup.export(bert, out=tmp_path_factory.mktemp("exported") / "st").directory


def vectors(directory: Path) -> np.ndarray:
    model = selfsup.load(directory)
    assert isinstance(model, EncoderModel)
    return model.embed(TEXTS, precision="fp32")


def their_vectors(directory: Path) -> np.ndarray:
    opened = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
    return np.asarray(opened.encode(TEXTS, show_progress_bar=False))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- to sentence-transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["bert", "emb"])
def test_stock_sentence_transformers_gives_the_same_vectors(
    run: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source: Path = request.getfixturevalue(run)
    exported = selfsup.export(source, out=tmp_path / "st")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    assert f"{exported.max_difference:.2e}" in (tmp_path / "st" / "README.md").read_text()
    assert_same_vectors(their_vectors(tmp_path / "st"), vectors(source))
    assert not np.allclose(np.linalg.norm(vectors(source), axis=1), 1)


def test_the_pooling_is_that_of_the_features(bert: Path, emb: Path, tmp_path: Path) -> None:
    """Each run's vectors are those of its own definition, so the wrong one would be seen."""
    for run, mode in ((bert, "mean"), (emb, "cls")):
        directory = selfsup.export(run, out=tmp_path / mode).directory
        assert SentenceTransformer(str(directory))[1].pooling_mode == mode
        edit(directory / "features.json", pooling={"mean": "cls", "cls": "mean"}[mode])
        assert np.abs(vectors(directory) - their_vectors(directory)).max() > 1e-2


def test_it_is_an_encoder_with_nothing_left_over(exported: Path) -> None:
    _, report = transformers.AutoModel.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values())


def test_similarity_is_the_cosine(exported: Path) -> None:
    model = SentenceTransformer(str(exported))
    first, second = model.encode(TEXTS[:2], show_progress_bar=False)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert math.isclose(float(model.similarity(first, second)), cosine, abs_tol=1e-5)


def test_the_card_keeps_what_the_model_said_of_itself(bert: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert (bert / "model" / "README.md").read_text().split("---\n")[2].strip() in card


def test_a_text_tower_goes_with_its_projection(tmp_path: Path) -> None:
    exported = selfsup.export(save_tiny_clip(tmp_path / "clip") / "text", out=tmp_path / "st")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    opened = selfsup.load(exported.directory)
    assert isinstance(opened, EncoderModel)
    assert opened.dimension == DIMENSION
    theirs = SentenceTransformer(str(exported.directory), device="cpu")
    assert_same_vectors(theirs.encode(["a red cat"]), opened.embed(["a red cat"], "fp32"))


def test_a_sentence_encoder_of_others_stays_what_it_is(tmp_path: Path) -> None:
    """Of the same steps and prompts; the card says what selfsup leaves out, and what stands before a query."""
    origin = tiny_encoders.save("sentences", tmp_path / "origin")
    exported = selfsup.export(origin, out=tmp_path / "st")
    assert exported.max_share is not None
    assert exported.max_share < SHARE
    for file in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        assert (exported.directory / file).read_bytes() == (origin / file).read_bytes(), file
    before, after = (json.loads((place / LENGTH).read_text()) for place in (origin, exported.directory))
    assert before == after
    assert_same_vectors(their_vectors(exported.directory), their_vectors(origin))
    assert_same_vectors(vectors(exported.directory), vectors(origin))
    card = (exported.directory / "README.md").read_text()
    assert "normalised by a last step, which selfsup leaves out" in card
    assert '- Before a query: "find: "' in card
    assert "Before a document" not in card


def test_of_what_is_said_of_its_texts_only_length_and_case_are_taken(tmp_path: Path) -> None:
    """Other arguments are those of a class, and might make it open what nobody asked for."""
    origin = tiny_encoders.save("sentences", tmp_path / "origin")
    edit(origin / LENGTH, do_lower_case=True, model_args={"trust_remote_code": True})
    exported = selfsup.export(origin, out=tmp_path / "st").directory
    assert json.loads((exported / LENGTH).read_text()) == {"max_seq_length": 24, "do_lower_case": True}


def test_prompts_that_cannot_be_are_told_in_a_sentence(tmp_path: Path) -> None:
    origin = tiny_encoders.save("sentences", tmp_path / "origin")
    edit(origin / "config_sentence_transformers.json", default_prompt_name="none")
    with pytest.raises(UserError, match="names the default prompt 'none', which is not among its prompts") as caught:
        selfsup.export(origin, out=tmp_path / "st")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "st").exists()


def test_steps_that_are_not_those_of_the_vectors_are_made_anew(tmp_path: Path) -> None:
    """Where features.json says what a vector is; so are those with a step of a class of its own."""
    origin = tiny_encoders.save("sentences", tmp_path / "origin")
    steps = json.loads((origin / "modules.json").read_text())
    for pooling, more in (("mean", []), ("cls", [{"path": "3_Own", "type": "own.Step"}])):
        Features(pooling).write(origin)
        (origin / "modules.json").write_text(json.dumps(steps + more))
        exported = selfsup.export(origin, out=tmp_path / pooling)
        kinds = [type(step).__name__ for step in SentenceTransformer(str(exported.directory))]
        assert kinds == ["Transformer", "Pooling", "Normalize"]
        assert exported.max_share is not None
        assert exported.max_share < SHARE


def test_without_sentence_transformers_the_card_says_unchecked(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "sentence_transformers":
            raise ImportError(name)
        return whole_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    exported = selfsup.export(bert, out=tmp_path / "st")
    assert exported.max_difference is None
    assert "unchecked" in (tmp_path / "st" / "README.md").read_text()


def test_other_vectors_are_noticed(
    bert: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = selfsup.load(exported)
    assert isinstance(model, EncoderModel)
    model.encoder.final_norm.weight.data.mul_(1.01)
    found = target.compare(exported, [model])
    assert found is not None
    assert found.difference.most > 1e-3
    monkeypatch.setattr(target, "compare", lambda *_: found)
    selfsup.export(bert, out=tmp_path / "st")
    assert f"{found.difference.most:.1e}" in caplog.text


def test_half_a_directory_is_never_left(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(target, "compare", broken)
    with pytest.raises(OSError, match="no space"):
        selfsup.export(bert, out=tmp_path / "st")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(bert: Path, finished: selfsup.Run, exported: Path, tmp_path: Path) -> None:
    before = tree(exported)
    with pytest.raises(UserError, match="exists already; give another name"):
        selfsup.export(bert, out=exported)
    assert tree(exported) == before
    with pytest.raises(UserError, match="did you mean 'transformers'"):
        selfsup.export(bert, out=tmp_path / "new", to="transformer")
    with pytest.raises(UserError, match="holds a decoder"):
        selfsup.export(finished, out=tmp_path / "new")
    with pytest.raises(UserError, match="neither a run nor a model directory"):
        selfsup.export(tmp_path, out=tmp_path / "new", to="transformers")
    assert list(tmp_path.iterdir()) == []


# -- to transformers -----------------------------------------------------------------------------------------


def test_to_transformers_is_a_copy(finished: selfsup.Run, tmp_path: Path) -> None:
    exported = selfsup.export(finished, out=tmp_path / "hf", to="transformers")
    assert tree(tmp_path / "hf") == tree(finished.model_directory)
    assert "Qwen3ForCausalLM" in exported.opens_with


# -- opening what others saved -------------------------------------------------------------------------------


def test_a_target_of_images_says_so(bert: Path, finished: selfsup.Run, tmp_path: Path) -> None:
    for source, kind in ((bert, "a text encoder of type"), (finished.directory, "a decoder of type 'qwen3'")):
        with pytest.raises(UserError, match=f"{kind}.*export to timm is for image models; texts go --to sentence"):
            selfsup.export(source, out=tmp_path / "out", to="timm")


@pytest.mark.parametrize("target", ["onnx", "timm"])
def test_targets_without_towers_say_so(target: str, tmp_path: Path) -> None:
    towers, out = save_tiny_clip(tmp_path / "towers"), tmp_path / "out"
    with pytest.raises(UserError, match=r"holds two towers.*; export its image tower, .*towers/image"):
        selfsup.export(towers, out=out, to=target)
    assert selfsup.export(towers / "image", out=out, to=target).directory == out


@pytest.mark.parametrize("target", ["onnx", "timm", "transformers", "sentence-transformers"])
def test_whatever_is_there_is_in_the_way(target: str, bert: Path, tmp_path: Path) -> None:
    """A link that leads nowhere, too."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("link", "file", "empty"):
        with pytest.raises(UserError, match="exists already; give another name"):
            selfsup.export(bert, out=tmp_path / name, to=target)
    assert (tmp_path / "link").is_symlink()


def test_a_copy_is_of_the_directory_alone(finished: selfsup.Run, tmp_path: Path) -> None:
    model = shutil.copytree(finished.model_directory, tmp_path / "model")
    with pytest.raises(UserError, match="which is to be copied; give another --out"):
        selfsup.export(model, out=model / "deep" / "copy", to="transformers")
    (tmp_path / "secret").write_text("mine")
    (model / "deep").mkdir()
    (model / "deep" / "notes").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="deep/notes leads out of the model's directory"):
        selfsup.export(model, out=tmp_path / "copy", to="transformers")
    (model / "deep" / "notes").unlink()
    os.mkfifo(model / "deep" / "notes")
    with pytest.raises(UserError, match="deep/notes is no regular file"):
        selfsup.export(model, out=tmp_path / "copy", to="transformers")
    assert not (tmp_path / "copy").exists()


def test_an_exported_directory_opens_here(bert: Path, exported: Path) -> None:
    np.testing.assert_array_equal(vectors(exported), vectors(bert))


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_a_directory_that_sentence_transformers_saved_opens_here(exported: Path, mode: Any, tmp_path: Path) -> None:
    model = SentenceTransformer(str(exported))
    model[1] = Pooling(model[1].embedding_dimension, mode)
    model.save(str(tmp_path / "st"))
    assert not (tmp_path / "st" / "features.json").exists()
    assert_same_vectors(vectors(tmp_path / "st"), their_vectors(tmp_path / "st"))


def test_a_normalising_step_changes_lengths_only(exported: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(modules=[*SentenceTransformer(str(exported)), Normalize()])
    model.save(str(tmp_path / "st"))
    ours = vectors(tmp_path / "st")
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    assert_same_vectors(unit, their_vectors(tmp_path / "st"))


def test_their_longest_text_is_ours(exported: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(exported))
    model.max_seq_length = 6
    model.save(str(tmp_path / "st"))
    opened = selfsup.load(tmp_path / "st")
    assert isinstance(opened, EncoderModel)
    assert opened.window == 6
    assert_same_vectors(vectors(tmp_path / "st"), their_vectors(tmp_path / "st"))


def test_vectors_that_are_not_known_here_are_refused(exported: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(exported))
    width = model[1].embedding_dimension
    others: dict[str, list[Any]] = {
        "'max'": [model[0], Pooling(width, "max")],
        r"\['cls', 'mean'\]": [model[0], Pooling(width, ("cls", "mean"))],
        "a step 'Dense'": [*model, Dense(width, 3)],
    }
    for number, (message, modules) in enumerate(others.items()):
        SentenceTransformer(modules=modules).save(str(tmp_path / str(number)))
        with pytest.raises(UserError, match=message):
            selfsup.load(tmp_path / str(number))


def test_older_files_are_read(exported: Path, tmp_path: Path) -> None:
    SentenceTransformer(str(exported)).save(str(tmp_path / "st"))
    pooling = tmp_path / "st" / "1_Pooling" / "config.json"
    width = json.loads(pooling.read_text())["embedding_dimension"]
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    pooling.write_text(json.dumps({"word_embedding_dimension": width, **flags}))
    assert_same_vectors(vectors(tmp_path / "st"), their_vectors(tmp_path / "st"))
    edit(pooling, pooling_mode_max_tokens=True)
    with pytest.raises(UserError, match="pooling_mode_max_tokens"):
        selfsup.load(tmp_path / "st")
    (tmp_path / "st" / "modules.json").write_text("{}")
    with pytest.raises(UserError, match="not a list"):
        selfsup.load(tmp_path / "st")


def test_training_starts_from_such_a_directory(exported: Path, train: Train, tmp_path: Path) -> None:
    still = {"steps": 1, "optim.lr": 1e-9, "optim.adamw_lr": 1e-9}
    directory = str(exported)
    run = train(tmp_path / "run", "simcse", init=directory, tokenizer=directory, model={"whiten": False}, **still)
    started = selfsup.load(exported)
    started.features = Features(started.features.pooling)
    expected = started.embed(TEXTS, precision="fp32")
    assert_alike(vectors(run.directory), expected)


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command(bert: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]) -> None:
    answer = selfsup_command("export", bert, "--to", "sentence-transformers", "--out", tmp_path / "st")
    assert answer.code == 0, answer
    assert "max |Δ| = " in answer.out
    line = answer.out.splitlines()[-1].partition("opens with: ")[2]
    assert isinstance(eval(line, {"sentence_transformers": sentence_transformers}), SentenceTransformer)
    again = selfsup_command("export", bert, "--out", tmp_path / "st")
    assert again.code == 2
    found = json.loads(selfsup_command("export", bert, "--out", tmp_path / "two", "--json").out)
    assert found["to"] == "sentence-transformers"
    assert found["max_share"] < SHARE
