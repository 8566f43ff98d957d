"""A run directory: what lies in it, that it opens elsewhere, and that it is never overwritten."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, Answer, Train, tree
from pydantic import TypeAdapter
from safetensors.torch import load_file

import selfsup
from selfsup import training
from selfsup.accounting import SHARES
from selfsup.config import Settings, read_yaml
from selfsup.errors import UserError
from selfsup.run import Run, append_line, finite, new_directory
from selfsup.run_files import read_lines

OBJECT = TypeAdapter(dict[str, Any])


def tiny_settings(out: Path, corpus: Path) -> dict[str, Any]:
    return {"objective": "causal-lm", "data": corpus, "out": out, **TINY}


# -- what a run leaves ---------------------------------------------------------------------------------------


def test_a_run_leaves_these_files(finished: Run) -> None:
    names = {path.name for path in finished.directory.iterdir()}
    assert names == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "model",
        "samples",
        "report.html",
        ".lock",
    }
    assert {path.name for path in finished.model_directory.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    hidden = [path for path in finished.directory.rglob("*") if path.name.startswith(".")]
    assert hidden == [finished.directory / ".lock"]


def test_metrics_have_the_promised_keys(finished: Run) -> None:
    trained = {
        *("step", "time", "split", "loss", "bits_per_byte", "lr", "grad_norm", "tokens"),
        *("tokens_per_second", *SHARES),
    }
    looked = {"step", "time", "split", "loss", "bits_per_byte", "records"}
    lines = finished.metrics()
    assert {line["split"] for line in lines} == {"train", "validation"}
    for line in lines:
        assert (trained if line["split"] == "train" else looked) <= line.keys()
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 13))
    assert [line["tokens"] for line in train] == [step * 4 * 16 for step in range(1, 13)]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [4, 8, 12]
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert all(line["tokens_per_second"] > 0 and 0 < line["utilisation"] < 1 for line in train)


def test_the_summary_has_the_promised_figures(finished: Run) -> None:
    summary = finished.summary
    last = finished.metrics()[-1]
    assert last["split"] == "validation"
    assert (summary["loss"], summary["bits_per_byte"]) == (last["loss"], last["bits_per_byte"])
    assert summary["steps"] == 12
    assert summary["tokens"] == 12 * 4 * 16
    assert summary["wall_seconds"] >= last["time"]
    weights = load_file(finished.model_directory / "model.safetensors")
    assert summary["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert summary["best"]["loss"] == min(line["loss"] for line in finished.metrics() if line["split"] == "validation")
    assert summary["skipped_steps"] == 0
    assert summary["accounting"].keys() == set(SHARES)
    assert summary["accounting"]["waiting_collectives"] == 0
    assert summary["chance"] == pytest.approx(math.log(weights["lm_head.weight"].shape[0]))


def test_bits_per_byte_are_the_loss_over_the_bytes(finished: Run, documents: list[str]) -> None:
    """All characters of the corpus are single bytes, so a target of a document is a byte or the end token."""
    line = finished.metrics()[-1]
    mean = sum(len(text) + 1 for text in documents) / sum(len(text) for text in documents)
    assert line["bits_per_byte"] == pytest.approx(line["loss"] / math.log(2) * mean, rel=0.01)


def test_the_configuration_is_resolved_and_reads_back(finished: Run) -> None:
    content = yaml.safe_load(finished.config_file.read_text())
    settings = Settings(("file", read_yaml(finished.config_file)))
    assert settings.config == finished.settings().config
    open_still = {key for key in finished.settings().names() if settings[key] is None}
    never_settled = {"data.split", "data.vocabulary", "train.epochs", "train.budget", "evaluate.data"}
    of_starts = {"model.init", "model.lora", "model.lora_alpha", "optim.l2_sp", "data.replay"}
    assert open_still == never_settled | of_starts
    assert not {"data.size", "model.patch", "model.whiten"} & {*finished.settings().names()}
    assert "size" not in content["data"]
    assert content["out"] == str(finished.directory)
    comments = dict(re.findall(r"^ +(\w+): .*  # (.+)$", finished.config_file.read_text(), re.MULTILINE))
    assert comments["layers"] == "python"
    assert comments["keep"] == "default"
    assert comments["mlp"].startswith("preset")
    assert comments["kv_heads"] == "heads"


def test_the_environment_says_what_a_figure_needs_beside_it(finished: Run) -> None:
    environment = finished.environment()
    for key in ("device", "processor", "cores", "threads", "memory", "precision", "python", "torch", "command"):
        assert environment[key] is not None
    assert environment["selfsup"] == selfsup.__version__
    assert environment["plan"]["steps"] == 12
    assert environment["sources"]["model.layers"] == "python"


def test_samples_are_what_the_model_wrote_on_the_way(finished: Run) -> None:
    names = sorted(path.name for path in finished.samples.iterdir())
    assert names == [f"step-{step:09d}.txt" for step in (4, 8, 12)]


def test_the_card_says_how_exact_the_layout_is(finished: Run) -> None:
    card = (finished.model_directory / "README.md").read_text()
    (figure,) = re.findall(r"max \|Δ\| = (\S+) against stock transformers", card)
    assert float(figure) == pytest.approx(finished.summary["max_difference"], abs=1e-8)
    assert float(figure) < 1e-4
    assert f"{finished.summary['loss']:.4f} nats per token" in card
    front_matter = yaml.safe_load(card.split("---")[1])
    assert front_matter["library_name"] == "transformers"


def test_stock_transformers_open_the_model_with_the_same_logits(finished: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(finished.model_directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(finished.model_directory)
    ours = finished.model
    tokens = tokenizer("The cat sat", return_tensors="pt")["input_ids"]
    assert tokens[0].tolist()[1:] == ours.tokenizer.encode_batch(["The cat sat"])[0].tolist()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, ours.decoder.logits(tokens), atol=1e-4, rtol=1e-4)


def test_the_model_directory_holds_the_weights_of_the_last_checkpoint(finished: Run) -> None:
    checkpoint = finished.checkpoints().load(12)
    weights = load_file(finished.model_directory / "model.safetensors")
    assert {f"model.{name}" for name in weights} == checkpoint.tensors["model"].keys()
    assert all(torch.equal(tensor, checkpoint.tensors["model"][f"model.{name}"]) for name, tensor in weights.items())


def test_the_checkpoints_that_are_kept(finished: Run) -> None:
    """The newest three, of every third step and of the looks that were best so far (at 4 and 8), the one before the
    decay (at 6), and the best look up to there."""
    assert set(finished.checkpoints().steps()) == {4, 6, 8, 9, 12}


def test_a_run_without_a_held_out_part(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **{"data.validation": 0, "evaluate.records": None, "evaluate.final_records": None})
    assert "loss" not in run.summary
    assert run.summary["best"] is None
    assert {line["split"] for line in run.metrics()} == {"train"}
    assert "not measured" in (run.model_directory / "README.md").read_text()


def test_more_validation_records_than_there_are_means_all(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **{"evaluate.records": 10**9, "evaluate.final_records": 10**9})
    looks = [line["records"] for line in run.metrics() if line["split"] == "validation"]
    assert len(set(looks)) == 1
    assert looks[0] < 1000
    assert run.summary["validation_records"] == looks[0]


def test_a_run_from_another_ones_configuration_is_the_same_run(finished: Run, train: Train, tmp_path: Path) -> None:
    from selfsup.report import Reporter

    run = selfsup.train(config=finished.config_file, out=tmp_path / "run", reporter=Reporter(False))
    assert tree(run.model_directory) == tree(finished.model_directory)
    assert run.settings()["out"] == str(tmp_path / "run")


# -- never overwritten ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [(), ("summary.json", "model")])
def test_a_run_is_never_overwritten(
    lost: tuple[str, ...], finished: Run, corpus: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]
) -> None:
    run = Run(shutil.copytree(finished.directory, tmp_path / "run", ignore=shutil.ignore_patterns(*lost)))
    before = tree(run.directory)
    answer = selfsup_command("train", "--data", corpus, "--out", run.directory)
    assert answer.code == 2
    (line,) = answer.error.splitlines()
    assert line.startswith("selfsup: ")
    assert f"--resume {run.directory}" in line
    assert tree(run.directory) == before


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "model", "config.json", ".git", "summary.json", "environment.json", "checkpoints/mine.txt",
     "samples/mine.txt", ".environment.json.0123abcd"],
)  # fmt: skip
def test_a_directory_with_something_else_in_it_is_refused(
    name: str, corpus: Path, tmp_path: Path, selfsup_command: Callable[..., Answer]
) -> None:
    """Whether the data is there or not, on the command line and from Python; every file stays."""
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    before = tree(tmp_path)
    first = name.partition("/")[0]
    for data in (corpus, "missing.txt"):
        with pytest.raises(UserError, match=f"holds {re.escape(first)}"):
            selfsup.train(**tiny_settings(tmp_path / "out", corpus) | {"data": data})
        answer = selfsup_command("train", "causal-lm", "--data", data, "--out", tmp_path / "out")
        assert (answer.code, len(answer.error.splitlines())) == (2, 1)
    assert tree(tmp_path) == before


def test_a_start_that_fails_removes_what_it_made_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "yours").mkdir()
    for out in ("mine", "yours/a/b/c", "new/run"):
        with pytest.raises(UserError, match=r"missing\.txt"):
            train(tmp_path / out, data="missing.txt")
        assert tree(tmp_path) == {"mine": None, "yours": None}

    def interfere(*_: object) -> None:
        (tmp_path / "new" / "run" / "notes.txt").write_text("mine")
        raise UserError("no")

    monkeypatch.setattr(training, "_prepare", interfere)
    with pytest.raises(UserError, match="no"):
        train(tmp_path / "new" / "run")
    assert tree(tmp_path / "new") == {"run": None, "run/notes.txt": b"mine"}


def test_a_start_that_was_cut_short_leaves_a_directory_that_can_be_used(
    train: Train, tmp_path: Path, dead_name: Callable[[Path], Path], finished: Run
) -> None:
    out = tmp_path / "out"
    for left in ({}, finished.environment()):
        Run.create(out)
        Run(out).write_environment(left)
        dead_name(out / "environment.json").write_text("{")
        dead_name(out / "config.yaml").write_text("obj")
        assert train(out, steps=2).summary["steps"] == 2
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".lock"]
        shutil.rmtree(out)


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_start_that_fails_leaves_nothing(
    error: BaseException, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training, "_prepare", fail)
    with pytest.raises(type(error)):
        train(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_name_gets_a_free_one(
    corpus: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [train(None, steps=1).directory for _ in range(3)]
    assert names == [tmp_path / "runs" / f"causal-lm-corpus{suffix}" for suffix in ("", "-2", "-3")]
    assert new_directory("causal-lm-corpus") == Path("runs/causal-lm-corpus-4")


# -- opening -------------------------------------------------------------------------------------------------


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="holds no run"):
            Run.open(path)
        with pytest.raises(UserError, match=r"neither a run nor a model|There is no"):
            selfsup.load(path)


def test_a_run_and_its_model_directory_are_loaded_alike(finished: Run) -> None:
    texts = [
        selfsup.load(path).generate("The", tokens=8, seed=3) for path in (finished.directory, finished.model_directory)
    ]
    assert texts[0] == texts[1] == finished.model.generate("The", tokens=8, seed=3)


def test_an_unfinished_run_has_no_model_yet(train: Train, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write_settings(Settings(("test", {})))
    with pytest.raises(UserError, match=r"no model yet.*--resume"):
        selfsup.load(run.directory)


@pytest.mark.parametrize("name", ["summary.json", "environment.json"])
def test_a_broken_file_is_named(name: str, finished: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(finished.directory, tmp_path / "run"))
    (run.directory / name).write_text("{")
    with pytest.raises(UserError, match=re.escape(name)):
        selfsup.train(resume=run.directory, steps=20)


# -- JSON ----------------------------------------------------------------------------------------------------


def test_lines_that_a_crash_cut_short_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path, OBJECT) == []
    path.write_text('{"a": "x\u2028y"}\n{"a": 2}\n{"a": ')
    assert read_lines(path, OBJECT) == [{"a": "x\u2028y"}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"lines\.jsonl"):
        read_lines(path, OBJECT)


@pytest.mark.parametrize("torn", [b"{", b'{"a": 3}', b'{"a": "\xc3', b"\0" * 5000])
def test_a_line_that_a_crash_cut_short_does_not_spoil_the_next(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for before in (b"", b'{"a": 1}\n', b'{"a": 1}\n{"a": "\xc3\xa9"}\n'):
        path.write_bytes(before + torn)
        assert len(read_lines(path, OBJECT)) == before.count(b"\n")
        append_line(path, {"b": "é"})
        append_line(path, {"b": 2}, durable=True)
        assert path.read_bytes() == before + '{"b": "é"}\n{"b": 2}\n'.encode()


def test_what_is_not_finite_becomes_null() -> None:
    value = {"a": math.nan, "b": {"c": math.inf, "d": 1.5}, "e": [1], "f": "nan", "g": None, "h": True}
    expected = {"a": None, "b": {"c": None, "d": 1.5}, "e": [1], "f": "nan", "g": None, "h": True}
    assert finite(value) == expected
    assert json.loads(json.dumps(finite(value))) == expected


def test_two_processes_do_not_train_one_run(train: Train, resume: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    before = tree(run.directory)
    with run.held(), pytest.raises(UserError, match="being trained by another process"):
        resume(run.directory, steps=20)
    assert tree(run.directory) == before
