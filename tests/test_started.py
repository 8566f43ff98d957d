"""Runs that start from weights: optimizer and rates, windows, rates by layer, and the start beside all later looks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, TINY_VISION, Trained
from tiny_vision import save_photos, save_tiny_vision

import selfsup
from selfsup.accounting import SHARES
from selfsup.config import Settings
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model
from selfsup.objectives import find_recipe
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import GOING_ON_LR, LAYER_DECAY, settle_going_on
from selfsup.optim import Optimizer
from selfsup.report import Reporter
from selfsup.run import Run

OWN = ("model", "tokenizer", "optim.warmup", "optim.weight_decay")
TEXT = [f"{'the cat sat on the mat, and the dog on the bed. ' * 40}{'na' * n}" for n in range(60)]
GoOn = Callable[..., Run]


def given(**more: Any) -> dict[str, Any]:
    """`TINY` for a model that brings its shape, whose optimizer is settled by itself."""
    return {**{key: value for key, value in TINY.items() if key not in OWN}, "reporter": Reporter(False), **more}


@pytest.fixture
def stranger(trained: Trained, tmp_path: Path) -> Path:
    """A decoder that does not say what it was trained by."""
    return Path(shutil.copytree(trained("causal-lm").model_directory, tmp_path / "stranger"))


# -- optimizer and rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm", "simcse"])
def test_texts_of_strangers_are_trained_on_by_adamw(objective: str, trained: Trained, tmp_path: Path) -> None:
    place = shutil.copytree(trained(objective).model_directory, tmp_path / "stranger")
    _, settings = selfsup.plan(objective, data=TEXT, **given(init=str(place)))
    assert settings["optim.matrices"] == "adamw"
    assert settings["optim.lr"] == settings["optim.adamw_lr"] == GOING_ON_LR * 2  # a narrow one
    assert settings["optim.weight_decay"] == 0.01
    assert settings.origin("optim.matrices") == settings.origin("optim.lr") == "init"


def test_what_muon_made_goes_on_by_muon(trained: Trained) -> None:
    run = trained("causal-lm")
    for place in (run.directory, run.model_directory):
        _, settings = selfsup.plan("causal-lm", data=TEXT, **given(init=str(place)))
        assert settings["optim.matrices"] == "muon"
        assert settings["optim.lr"] == pytest.approx(0.1 * run.settings()["optim.lr"], rel=0.01)


def test_what_is_given_stays(stranger: Path) -> None:
    chosen = {"optim.matrices": "muon", "optim.lr": 0.003}
    _, settings = selfsup.plan("causal-lm", data=TEXT, **given(init=str(stranger), **chosen))
    assert (settings["optim.matrices"], settings["optim.lr"]) == ("muon", 0.003)
    _, settings = selfsup.plan("causal-lm", data=TEXT, **given(init=str(stranger), **{"optim.lr": 0.003}))
    assert (settings["optim.matrices"], settings["optim.lr"]) == ("adamw", 0.003)


def test_a_resolved_configuration_of_an_older_run_stays_as_it_is() -> None:
    values = {"optim.lr": 0.001, "optim.adamw_lr": 0.01, "optim.warmup": 2, "optim.weight_decay": 0.1}
    settings = Settings(("config.yaml", values))
    before = settings.values()
    settle_going_on(settings, 64)
    assert settings.values() == before


# -- windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "window"), [(1 << 36, 512), (1 << 18, 128)])
def test_windows_suit_the_checkpoint_and_the_memory(
    memory: int, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planning = import_module("selfsup.planning")
    monkeypatch.setattr(planning, "all_memory", lambda device: memory)
    monkeypatch.setattr(planning, "CALIBRATION_SECONDS", 0.01)
    tokenizer = train_tokenizer("characters", TEXT[:1])
    config = DecoderConfig(tokenizer.vocabulary, 1, 16, 1, 1, 16, 32, window=8192, tied=True)
    save_model(tmp_path / "model", Decoder(config).initialise(torch.Generator().manual_seed(0)), tokenizer, "")
    _, settings = selfsup.plan("causal-lm", data=TEXT, init=str(tmp_path / "model"), steps=10)
    assert settings["data.window"] == window
    assert settings["data.window"] * settings["train.batch"] == 1024


def test_a_window_is_no_longer_than_the_checkpoint_reads(stranger: Path, trained: Trained) -> None:
    how = {key: value for key, value in given().items() if key not in ("data.window", "batch")}
    _, settings = selfsup.plan("causal-lm", data=TEXT, init=str(stranger), **how)
    assert settings["data.window"] == trained("causal-lm").settings()["data.window"]


# -- rates by layer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["simclr", "mae", "dino"])
def test_lower_layers_of_vision_are_trained_more_slowly(objective: str, tmp_path: Path) -> None:
    start, photos = save_tiny_vision(tmp_path / "start"), save_photos(tmp_path / "photos", 20)
    how = {key: value for key, value in TINY_VISION.items() if key not in (*OWN, "data.size")}
    kind = find_recipe(objective)
    recipe = kind(kind.resolve(("test", {"data": str(photos), "init": str(start), **how})))
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=12))
    assert recipe.settings["optim.layer_decay"] == LAYER_DECAY
    objective_ = recipe.begin()
    factors = recipe.adaptation.factors(objective_)
    (_, body), *_ = kind.bodies
    backbone = objective_.get_submodule(body)
    layers = max(int(name.split(".")[at + 1]) for name, at in _layers(backbone)) + 1
    for name, parameter in backbone.named_parameters():
        if name.startswith("norm"):
            assert factors[parameter] == 1
        elif "embed" in name:
            assert factors[parameter] == pytest.approx(LAYER_DECAY ** (layers + 1))
    for name, at in _layers(backbone):
        number = int(name.split(".")[at + 1])
        found = factors[dict(backbone.named_parameters())[name]]
        assert found == pytest.approx(LAYER_DECAY ** (layers - number))
    config = recipe.settings.config.optim.model_copy(update={"weight_decay": 0.0})
    optimizer = Optimizer(objective_, config, factors=factors)
    heads = {p for p in objective_.parameters() if p.requires_grad} - set(factors)
    for part in optimizer.parts:
        for parameter in part.parameters:
            expected = 1.0 if parameter in heads else factors[parameter]
            assert part.lr == pytest.approx(expected * recipe.settings["optim.lr"])


def _layers(module: torch.nn.Module) -> list[tuple[str, int]]:
    """Names of parameters of layers, and where the word before the number stands."""
    names = [(name, name.split(".")) for name, _ in module.named_parameters()]
    return [(name, words.index("layer")) for name, words in names if "layer" in words]


def test_texts_have_one_rate_unless_asked(stranger: Path) -> None:
    _, settings = selfsup.plan("causal-lm", data=TEXT, **given(init=str(stranger)))
    assert settings["optim.layer_decay"] == 1
    _, settings = selfsup.plan("causal-lm", data=TEXT, **given(init=str(stranger), **{"optim.layer_decay": 0.9}))
    assert settings["optim.layer_decay"] == 0.9


# -- the start -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def go_on(trained: Trained, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> GoOn:
    start = trained("causal-lm").directory
    place = tmp_path_factory.mktemp("going-on")

    def go(name: str, **more: Any) -> Run:
        how = given(init=str(start), **{"optim.warmup": 2, "optim.weight_decay": 0.1, **more})
        return selfsup.train("causal-lm", data=corpus, out=place / name, **how)

    return go


@pytest.fixture(scope="module")
def whole(go_on: GoOn) -> Run:
    return go_on("whole")


def looks(run: Run) -> list[dict[str, Any]]:
    return [line for line in run.metrics() if line["split"] == "validation"]


def test_the_start_stands_beside_every_look(whole: Run, trained: Trained) -> None:
    start, *later = looks(whole)
    assert start["step"] == 0
    assert start["loss"] == pytest.approx(looks(trained("causal-lm"))[-1]["loss"], rel=1e-4)  # the same held-out part
    assert [line["start_loss"] for line in later] == [start["loss"]] * len(later)
    summary = whole.summary
    assert (summary["start_loss"], summary["start_bits_per_byte"]) == (start["loss"], start["bits_per_byte"])
    assert f"{start['loss']:.4f} before the first step" in (whole.model_directory / "README.md").read_text()
    assert whole.summary["best"]["step"] > 0


def test_a_run_from_scratch_has_no_such_look(trained: Trained) -> None:
    run = trained("causal-lm")
    assert looks(run)[0]["step"] > 0
    assert not any(name.startswith("start_") for name in run.summary)


def test_each_number_of_records_has_its_start(go_on: GoOn) -> None:
    run = go_on("more", **{"evaluate.final_records": 12})
    starts = {line["records"]: line["loss"] for line in looks(run) if line["step"] == 0}
    assert starts.keys() == {8, 12}
    assert run.summary["start_loss"] == starts[12]
    assert {line["start_loss"] for line in looks(run) if line["step"] and line["records"] == 8} == {starts[8]}


@pytest.mark.parametrize("kept", [1, 3, None])
def test_the_start_is_measured_once(kept: int | None, whole: Run, tmp_path: Path) -> None:
    """Whether a run was cut short before its first checkpoint, or later."""
    cut = Run(shutil.copytree(whole.directory, tmp_path / "cut"))
    for step in cut.checkpoints().steps():
        if kept is not None and step > 3 * (kept - 1):
            shutil.rmtree(cut.checkpoints_directory / f"step-{step:09d}")
    (cut.directory / "summary.json").unlink()
    run = selfsup.train(resume=cut.directory, reporter=Reporter(False))
    clocked = ("time", "tokens_per_second", *SHARES)
    lines = [[{k: v for k, v in line.items() if k not in clocked} for line in r.metrics()] for r in (whole, run)]
    assert lines[0] == lines[1]
    assert run.metrics()[0] == whole.metrics()[0]  # its time too
    assert run.summary["start_loss"] == whole.summary["start_loss"]


def test_it_is_said_on_the_terminal(go_on: GoOn, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line: the one that the last look is compared with; metrics hold that of the other looks too."""
    run = go_on("told", reporter=Reporter(), **{"evaluate.final_records": 12})
    lines = capsys.readouterr().err.splitlines()
    loss = f"{run.summary['start_loss']:.4f}"
    (start,) = (line for line in lines if line.startswith("step 0 "))
    assert start.startswith(f"step 0  loss {loss} ")
    assert [line for line in lines if line.startswith("step ")][-1].find(f"(start {loss})") > 0


# -- what there is, counted once -----------------------------------------------------------------------------


def test_tied_weights_of_other_libraries_are_counted_once(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer("characters", TEXT[:1])
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    network.save_pretrained(tmp_path / "llama")
    save_model(
        tmp_path / "own", Decoder(DecoderConfig(tokenizer.vocabulary, 1, 16, 1, 1, 16, 32, 64, True)), tokenizer, ""
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "own" / name, tmp_path / "llama" / name)
    planned, _ = selfsup.plan("causal-lm", data=TEXT, model=f"hf:{tmp_path / 'llama'}", steps=4, batch=2)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert planned.parameters == count
    assert planned.facts["model"].startswith(f"{count:,} parameters")


# -- heads first ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads_first(tmp_path_factory: pytest.TempPathFactory) -> GoOn:
    place = tmp_path_factory.mktemp("heads")
    start, photos = save_tiny_vision(place / "start"), save_photos(place / "photos", 20)
    how = {key: value for key, value in TINY_VISION.items() if key not in (*OWN, "data.size", "steps")}

    def go(name: str, **more: Any) -> Run:
        given = {"data": str(photos), "init": str(start), "reporter": Reporter(False), "optim.warmup": 2, **how, **more}
        return selfsup.train("simclr", out=place / name, **{"optim.heads_first": 6, "steps": 8, **given})

    return go


def body(run: Run, step: int) -> dict[str, torch.Tensor]:
    found = run.checkpoints().newest(step)
    assert found is not None
    assert found.step == step
    return found.tensors["model"]


def test_fresh_heads_are_trained_alone_at_first_and_resumed_so(heads_first: GoOn, tmp_path: Path) -> None:
    run = heads_first("run", **{"checkpoint.keep": 9})
    third, sixth, end = (body(run, step) for step in (3, 6, 8))
    bodies = {name for name in end if name.startswith("network.")}
    assert all(third[name].equal(sixth[name]) for name in bodies)
    assert any(not sixth[name].equal(end[name]) for name in bodies)
    assert any(not third[name].equal(sixth[name]) for name in end.keys() - bodies)
    for kept in (3, 6):
        cut = Run(shutil.copytree(run.directory, tmp_path / f"cut-{kept}"))
        for step in cut.checkpoints().steps():
            if step > kept:
                shutil.rmtree(cut.checkpoints_directory / f"step-{step:09d}")
        (cut.directory / "summary.json").unlink()
        again = body(selfsup.train(resume=cut.directory, reporter=Reporter(False)), 8)
        assert all(tensor.equal(end[name]) for name, tensor in again.items())


def test_heads_first_needs_heads_and_a_start(stranger: Path) -> None:
    with pytest.raises(UserError, match="there are no fresh heads"):
        selfsup.plan("causal-lm", data=TEXT, **given(init=str(stranger), **{"optim.heads_first": 2}))
    with pytest.raises(UserError, match="rests the weights that a run starts from, and there are none"):
        selfsup.plan("causal-lm", data=TEXT, steps=4, **{"optim.heads_first": 2})
