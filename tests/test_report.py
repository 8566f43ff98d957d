"""What reaches a terminal: any text, of which a terminal obeys nothing; in any encoding, to any reader."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import rich.console
from conftest import Answer
from hypothesis import given
from hypothesis import strategies as st

import selfsup
from selfsup import cli, report
from selfsup.comparison import compare
from selfsup.diagnosis import doctor
from selfsup.errors import UserError
from selfsup.evaluation.base import Score
from selfsup.inference.hits import Hit
from selfsup.inference.hits import show as show_hits
from selfsup.inference.zero_shot import Described
from selfsup.inference.zero_shot import show as show_answers
from selfsup.report import CONTROLS, Reporter, Screen, Text, json_line, print_json, printable, say
from selfsup.run import Run

Command = Callable[..., Answer]
EVIL = "a\x1b[2Jb\rc\x08d\x9be\x7ff\u202eg\u2066h\ufeff[red]i[/]j[/bold]:smile:\x07k\u2028l\ud800m\U000e0041n"
SEEN = r"a\x1b[2Jb\rc\x08d\x9be\x7ff\u202eg\u2066h\ufeff[red]i[/]j[/bold]:smile:\x07k\u2028l\ud800m\U000e0041n"
SOURCES = sorted(Path(selfsup.__file__).parent.rglob("*.py"))


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_no_control_is_left_and_nothing_else_is_touched(text: str) -> None:
    shown = printable(text)
    assert not CONTROLS.search(shown)
    assert printable(shown) == shown
    if shown != text:
        assert CONTROLS.search(text)
    assert all(c in "\n\t" or not (c < " " or "\x7f" <= c <= "\x9f") for c in shown)


def test_letters_of_all_scripts_stay() -> None:
    for text in (
        "Grüße\n\tnaïve",
        "a\xa0b",
        "全角\u3000空白",
        "می\u200cخواهم",
        "👩\u200d👧 ❤\ufe0f",
        "e\u0301",
        "ក\u200bខ",
    ):
        assert printable(text) == text


def on_screen(show: Callable[[Screen], Any], width: int = 400) -> str:
    file = io.StringIO()
    screen = Screen(file)
    screen.width = width
    show(screen)
    return file.getvalue()


FIGURES = {"value": 0.5, "interval": (0.4, 0.6), "unit": "", "n": 3, "chance": None, "seed": 0}
WAYS: dict[str, Callable[[Screen], Any]] = {
    "a string": lambda screen: screen.print(EVIL),
    "a text": lambda screen: screen.print(Text(EVIL)),
    "parts of a text": lambda screen: screen.print(Text.assemble((EVIL, "bold"), EVIL).append(EVIL)),
    "labels": lambda screen: show_answers([Described("image", {EVIL: 1.0})], screen),
    "images": lambda screen: show_answers([Described(EVIL, {"label": 1.0})], screen),
    "a score": lambda screen: Score(protocol="p", data=EVIL, details={EVIL: EVIL}, **FIGURES).print(screen),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_comes_from_data_is_shown_as_it_is(way: str) -> None:
    text = on_screen(WAYS[way])
    assert SEEN in text.replace("\n", "")
    assert not CONTROLS.search(text)


def test_hits() -> None:
    hits = [Hit(0.5, "id", EVIL, "source", {}), Hit(0.5, "id", "", EVIL, {})]
    text = on_screen(lambda screen: show_hits(hits, EVIL, screen))
    assert text.count(SEEN) == 2
    assert not CONTROLS.search(text)


def test_bars_tables_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    reporter = Reporter(to=file)
    reporter.say(EVIL)
    reporter.console.width = 400
    reporter.table({EVIL: EVIL})
    monkeypatch.setattr(report, "SECONDS_BETWEEN_LINES", 0.0)
    reporter.advance(0.5, EVIL)
    assert file.getvalue().count(SEEN) == 4
    assert not CONTROLS.search(file.getvalue())


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    reporter = Reporter(to=file)
    reporter.console.width = 400
    with reporter.bar("Reading"):
        reporter.advance(0.5, EVIL)
    assert SEEN in file.getvalue()
    assert "\u202e" not in file.getvalue()


def test_results_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    print_json({EVIL: EVIL})
    first, second = capsys.readouterr().out.splitlines()
    assert first == SEEN
    assert not CONTROLS.search(second)
    assert json.loads(second) == {EVIL: EVIL}


@given(st.text(st.characters(codec=None, exclude_categories=())), st.booleans())
def test_json_is_exact(text: str, narrow: bool) -> None:
    line = json_line({text: [text]}, narrow)
    assert json.loads(line) == {text: [text]}
    assert not CONTROLS.search(line)
    assert "\n" not in line
    assert line.isascii() or not narrow


def test_messages_and_what_is_logged() -> None:
    assert str(UserError(f"{EVIL}\nmore")) == SEEN.replace(r"\r", " ").replace(r"\u2028", " ") + " more"
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (EVIL,), None)
    assert report.Lines("%(message)s").format(record) == SEEN


def test_text_reaches_a_terminal_in_one_place_alone() -> None:
    allowed = re.compile(r"^(print\(model|print\(tokenizer|\s*def print\()", re.MULTILINE)  # in model cards
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path.name == "report.py":
            continue
        assert "rich.text" not in text, path
        assert not re.search(r"\bConsole\(", text), path
        assert not re.search(r"\[/(bold|dim)?\]|markup=", text), path
        printed = re.findall(r"^.*(?<![.\w])print\(.*$", text, re.MULTILINE)
        assert [line for line in printed if not allowed.match(line) and "file=sys.stderr" not in line] == [], path


# -- whole commands ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil_run(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run in a directory whose name, and whose data's name, a terminal would obey."""
    name = EVIL.replace("/", "").replace("\ud800", "")
    directory = tmp_path_factory.mktemp("evil") / f"_{name}$x^$"
    shutil.copytree(finished.directory, directory)
    config = (directory / "config.yaml").read_text(encoding="utf-8")
    source = json.dumps(EVIL.replace("\ud800", "").replace("\U000e0041", ""))
    named = re.sub(r"source: \S+", lambda _: f"source: {source}", config)
    assert named != config
    (directory / "config.yaml").write_text(named, encoding="utf-8")
    (directory / "samples" / "9999.txt").write_text("x\x1b[2J\u202e", encoding="utf-8")
    return Run(directory)


def test_runs_with_such_names(evil_run: Run, finished: Run, tmp_path: Path, selfsup_command: Command) -> None:
    picture = tmp_path / "curves.svg"
    for words in (
        ["compare", evil_run.directory, finished.directory, "--plot", picture],
        ["doctor", evil_run.directory],
        ["generate", evil_run.directory, "The [red]cat[/]\x1b[2J\u202e\r", "--tokens", "3"],
        ["evaluate", evil_run.directory],
        ["train", "--resume", evil_run.directory],
    ):
        answer = selfsup_command(*words)
        assert not CONTROLS.search(answer.out + answer.error), words
        assert answer.code == 0 or answer.error.startswith("selfsup: "), answer
        assert r"\x1b[2J" in answer.out + answer.error, words
    assert "$x^$" in re.sub(r"<!--|-->", "", picture.read_text(encoding="utf-8"))


def test_any_console_of_rich_shows_them(evil_run: Run, finished: Run) -> None:
    """From Python a program may bring its own console."""
    file = io.StringIO()
    console = rich.console.Console(file=file, width=400)
    doctor(evil_run.directory).print(console)
    compare([evil_run.directory, finished.directory]).print(console)
    assert "[red]i[/]" in file.getvalue()
    assert not CONTROLS.search(file.getvalue())


class Tags(HTMLParser):
    """Which elements and attributes a page holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def tags(page: str) -> Tags:
    parser = Tags()
    parser.feed(page)
    return parser


HOSTILE = "<script>x</script> \"onload=x <img src=x onerror=x> 'y' <!-- ]]> & \x1b[2J\u202e"
BENIGN = "words of no harm: one two three four five six seven eight"


@pytest.mark.parametrize("objective", ["causal-lm", "masked-lm", "simcse"])
@pytest.mark.parametrize("tokenizer", ["characters", "words"])
def test_a_page_holds_text_as_text(objective: str, tokenizer: str) -> None:
    pages = [
        selfsup.inspect(objective, text=f"{text} here. Another one.", tokenizer=tokenizer).to_html()
        for text in (HOSTILE, BENIGN)
    ]
    hostile, benign = map(tags, pages)
    assert hostile.tags == benign.tags  # of which the scripts are an import map, the data as JSON, and what draws them
    assert hostile.tags.count("script") == 3
    assert hostile.attributes <= benign.attributes
    assert not CONTROLS.search(pages[0])


# -- encodings and readers -----------------------------------------------------------------------------------


def through(encoding: str, monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[object, str]:
    """The exit code and the output of a command whose standard output has an encoding."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr("sys.argv", ["selfsup", *map(str, words)])
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    return code or 0, raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16"])
def test_every_encoding(encoding: str, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Il gatto dorme — 猫 é \U0001f600"
    looked = ["inspect", "causal-lm", "--text", text, "--tokenizer", "words"]
    for words in (
        ["--help"],
        ["train", "--help"],
        [*looked, "--run", finished.directory],
        ["compare", finished.directory, finished.directory.parent / "run" / ".." / "run"],
        ["doctor", finished.directory],
        ["checkpoint", finished.directory],
        ["generate", finished.directory, "The cat —", "--tokens", "5"],
    ):
        code, out = through(encoding, monkeypatch, *words)
        assert code == 0 or words[0] == "compare", words
        assert out or words[0] == "compare", words
    code, out = through(encoding, monkeypatch, *looked, "--json")
    assert code == 0
    blocks = [block for section in json.loads(out)["sections"] for block in section["blocks"]]
    assert [block["targets"] for block in blocks if block["kind"] == "window"] == [text.split()]


def command(words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line of the shell in which `selfsup` is this one."""
    everything = {**os.environ, **environment}
    line = f'set -o pipefail; selfsup() {{ {sys.executable} -m selfsup "$@"; }}; {words}'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, errors="surrogateescape", timeout=120, env=everything
    )


@pytest.mark.parametrize("words", ["--help", "train --help"])
def test_a_reader_that_goes_away(words: str) -> None:
    done = command(f"selfsup {words} | true")
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_a_result_whose_reader_goes_away(finished: Run) -> None:
    done = command(f"selfsup doctor {finished.directory} --json | true")
    assert (done.stderr, done.returncode) == ("", 1)


def test_closed_streams() -> None:
    assert command("selfsup train --help >&-").stderr == ""
    assert command("selfsup train --help <&- 2>&-").returncode == 0
    done = command("selfsup trian 2>&-")
    assert (done.stdout, done.returncode) == ("", 2)


def test_a_full_device() -> None:
    done = command("selfsup train --help > /dev/full")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("selfsup: There is no space left")


def test_an_error_in_a_narrow_encoding() -> None:
    for words, told in (("'trían\u202e'", "No such command"), ("generate $'x\\xffy'", "A word of the command holds")):
        done = command(f"selfsup {words}", PYTHONIOENCODING="ascii", LC_ALL="C")
        assert done.returncode == 2
        assert done.stderr.isascii()
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"selfsup: {told}")


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "run", "a\udcffb"],
        ["fill", "run", "\udcff [MASK]"],
        ["search", "x.lance", "\udcff"],
        ["inspect", "causal-lm", "--text", "\udcff"],
        ["train", "causal-lm", "data.column=\udcff"],
        ["train", "--data", "x\udcff.txt"],
        ["zero-shot", "run", "x.png", "--labels", "a\udcff"],
        ["classify", "run", "--probe", "p", "\udcff"],
        ["\udcff"],
    ],
)
def test_words_that_are_no_text(words: list[str], selfsup_command: Command) -> None:
    answer = selfsup_command(*words)
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.error.splitlines()
    assert line.startswith("selfsup: A word of the command holds bytes that are no UTF-8")
    assert r"\udcff" in line


def test_texts_from_python_that_are_no_text() -> None:
    for call in (
        lambda text: selfsup.inspect("causal-lm", text=text),
        lambda text: selfsup.inspect("simcse", text=text, tokenizer="words"),
        lambda text: selfsup.plan("causal-lm", data="x", tokenizer=text),
    ):
        with pytest.raises(UserError, match="no UTF-8"):
            call("half \ud83d of it")


def test_a_page_on_a_full_disk(
    small_disk: Callable[[int], Path], tmp_path: Path, finished: Run, selfsup_command: Command
) -> None:
    disk = small_disk(8 * 1024)
    for words in (
        ["inspect", "causal-lm", "--text", "a b c d", "--tokenizer", "words", "--html", disk / "page.html"],
        ["compare", finished.directory, shutil.copytree(finished.directory, tmp_path / "b"), "--plot", disk / "x.svg"],
    ):
        answer = selfsup_command(*words)
        assert (answer.code, answer.out) == (2, "")
        assert "no space left" in answer.error.lower()
        assert list(disk.iterdir()) == []


def test_pages_and_pictures_replace_nothing(tmp_path: Path, finished: Run, selfsup_command: Command) -> None:
    mine = tmp_path / "mine.svg"
    mine.write_text("mine")
    (tmp_path / "link.svg").symlink_to("nowhere")
    for place in (mine, tmp_path / "link.svg"):
        for words in (
            ["inspect", "causal-lm", "--text", "a b c d", "--tokenizer", "words", "--html", place],
            ["compare", finished.directory, finished.directory, "--plot", place],
        ):
            answer = selfsup_command(*words)
            assert (answer.code, answer.out) == (2, "")
            assert "exists already" in answer.error
    assert mine.read_text() == "mine"
    assert (tmp_path / "link.svg").is_symlink()
