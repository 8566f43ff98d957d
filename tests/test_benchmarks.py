"""What a quick round of the benchmarks says beside committed results; nothing is measured here."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import common, quick

BEFORE = {
    "date": "2026-11-22",
    "machine": {"processor": "One"},
    "table": [["a: tokens/s", "2,900 (2,762 to 2,910, 3 runs)"], ["a / b", "1.50 (1.40 to 1.60, 3 runs)"]],
}


def result(ratio: float) -> common.Figures:
    return {"table": [["a: tokens/s", "3 (3 to 3, 1 runs)"], ["a / b", common.show(common.spread([ratio]))]]}


def test_a_ratio_within_the_spread_has_not_moved_and_one_beyond_it_has() -> None:
    first, line = quick.table(result(1.6), BEFORE)
    assert "One" in first
    assert line.split() == ["1.60", "1.50", "(1.40", "to", "1.60)", "a", "/", "b"]
    assert quick.table(result(1.71), BEFORE)[1].endswith("a / b  moved +14%")
    assert quick.table(result(1.2), BEFORE)[1].endswith("a / b  moved -20%")


def test_what_was_never_measured_is_shown_by_itself() -> None:
    assert quick.table(result(1.6), None)[0].split() == ["1.60", "nothing", "to", "compare", "with", "a", "/", "b"]


def test_committed_tables_can_be_read() -> None:
    tables = [json.loads(file.read_text(encoding="utf-8")) for file in common.RESULTS.glob("*.json")]
    assert sum(len(quick.ratios_of(table)) for table in tables if "table" in table) > 20


class Given:
    """A benchmark: what it is to write, or to fail with."""

    QUICK = common.Quick(("{data}/some.txt",), ("json",))

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def main(self, arguments: list[str]) -> None:
        if self.fails:
            raise RuntimeError("no figure")
        common.RESULTS.joinpath("one.json").write_text(json.dumps(result(2.0)), encoding="utf-8")
        print(arguments)


@pytest.mark.parametrize("fails", [False, True])
def test_a_quick_round_writes_nothing_and_fails_with_its_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    committed = tmp_path / "results"
    committed.mkdir()
    (committed / "one.json").write_text(json.dumps(BEFORE), encoding="utf-8")
    monkeypatch.setattr(common, "RESULTS", committed)
    monkeypatch.setattr(common, "machine", lambda: {"processor": "Two"})
    modules = {"benchmarks.one": Given(fails), "benchmarks.other": object()}
    monkeypatch.setattr(quick, "import_module", modules.__getitem__)
    quick.main(["one", "other"], [str(tmp_path)])
    assert "one is left out: there is no" in capsys.readouterr().out
    (tmp_path / "some.txt").write_text("text", encoding="utf-8")
    if fails:
        with pytest.raises(SystemExit, match="failed: one"):
            quick.main(["one", "other"], [str(tmp_path)])
    else:
        quick.main(["one", "other"], [str(tmp_path)])
        assert "1.50 (1.40 to 1.60)       a / b  moved +33%" in capsys.readouterr().out
    assert json.loads((committed / "one.json").read_text(encoding="utf-8")) == BEFORE


def test_every_quick_form_says_what_its_benchmark_takes() -> None:
    names = [file.stem for file in Path(common.__file__).parent.glob("*.py") if not file.stem.startswith("__")]
    forms = {name: vars(import_module(f"benchmarks.{name}")).get("QUICK") for name in names}
    assert {"throughput", "generation", "head"} <= {name for name, form in forms.items() if form}
    assert all(isinstance(form, common.Quick) for form in forms.values() if form)
