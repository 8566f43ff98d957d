"""How texts were read, as it stands in plans and configurations, and that runs are resumed by it."""

import json
from pathlib import Path

import pytest
from conftest import TINY, TINY_WORDS

import selfsup
from selfsup.errors import UserError


@pytest.fixture(scope="module")
def parted(documents, tmp_path_factory) -> Path:
    """A data set in two parts, with a longer column of addresses, and a file that is not read."""
    folder = tmp_path_factory.mktemp("parted")
    for part in ("train", "test"):
        records = [{"url": f"https://example.org/{'x' * 99}/{n}", "said": said} for n, said in enumerate(documents)]
        lines = [*map(json.dumps, records), *(["{broken"] if part == "train" else [])]
        (folder / f"{part}-0.jsonl").write_text("\n".join(lines))
    (folder / "notes.pdf").write_text("x")
    return folder


def test_the_plan_says_reading_of(parted):
    made, settings = selfsup.plan("causal-lm", data=parted, **TINY)
    rows = made.rows(settings)
    assert rows["column"] == "'said' (not read: url)"
    assert rows["split"] == "train"
    assert f".pdf files: 1 ({parted}/notes.pdf)" in rows["left out"]
    assert f"files of the test split: 1 ({parted}/test-0.jsonl)" in rows["left out"]
    assert "train-0.jsonl, line 193: the line is not JSON" in rows["unreadable"]
    assert "192 documents" in rows["data"]
    assert (settings["data.column"], settings.origin("data.column")) == ("said", "data")
    assert (settings["data.split"], settings.origin("data.split")) == ("train", "data")


def test_a_column_and_a_split_are_chosen(parted, selfsup_command):
    answer = selfsup_command("plan", "--data", parted, "--column", "url", "data.split=test", "--json", *TINY_WORDS)
    made = json.loads(answer.out)
    assert made["facts"]["column"] == "'url' (not read: said)"
    assert made["facts"]["split"] == "test"
    assert made["sources"]["data.column"] == "command line"
    assert "unreadable" not in made["facts"]
    answer = selfsup_command("plan", "--data", parted, "--column", "no", "data.split=all", *TINY_WORDS)
    assert answer.code == 2
    assert "has no column 'no': choose one of url, said" in answer.error
    answer = selfsup_command("inspect", "--data", parted, "--column", "no", "--json")
    assert "has no column 'no'" in answer.error


def test_a_run_is_resumed_by_what_was_found(parted, train, resume, tmp_path):
    run = train(tmp_path / "run", data=parted, steps=6)
    assert run.settings()["data.column"] == "said"
    assert run.settings()["data.split"] == "train"
    assert resume(run.directory, steps=12).summary["steps"] == 12
    (parted / "train-0.jsonl").write_bytes((parted / "test-0.jsonl").read_bytes())
    with pytest.raises(UserError, match="has changed since the run began"):
        resume(run.directory, steps=16)


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm"])
def test_a_text_that_is_too_short_is_called_so(objective):
    with pytest.raises(UserError, match=r"has \d+ tokens, too few to train on .* give more text") as caught:
        selfsup.plan(objective, data=["two words"], steps=2)
    assert "window" not in str(caught.value)
