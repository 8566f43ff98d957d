"""What is shown of the supervision: against the example, plain loops, the model's own losses, and hostile texts."""

from __future__ import annotations

import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from conftest import widest
from hypothesis import given, settings
from hypothesis import strategies as st
from looking import Page, Told, found, printed
from torch import nn

import selfsup
from selfsup.data.records import Batch
from selfsup.data.text import TextCorpus, Windows
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import END
from selfsup.errors import UserError
from selfsup.inspection import INSPECTORS
from selfsup.objectives.base import Task
from selfsup.objectives.causal_lm import CausalLM
from selfsup.objectives.recipe import Effort
from selfsup.objectives.text_networks import OwnDecoder
from selfsup.objectives.texts import TextRecipe
from selfsup.report import Reporter
from selfsup.run import Run

SENTENCE = "Il gatto dorme sul divano"
TEXTS = [f"The {animal} is on the {place}." for animal in ("cat", "dog", "hen") for place in ("mat", "bed", "sofa")] * 4
WINDOW = 24


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSUP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("inspection")
    data = place / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(place / "cache"))
        patch.setattr(import_module("selfsup.planning"), "CALIBRATION_SECONDS", 0.05)
        return selfsup.train(
            "causal-lm",
            data={"source": str(data), "tokenizer": "characters", "window": WINDOW},
            model={"layers": 1, "width": 16, "heads": 1},
            out=place / "run",
            steps=12,
            batch=8,
            reporter=Reporter(False),
        )


def inspect(*words: str | type[TextRecipe], **arguments: object) -> Told:
    return Told(selfsup.inspect(*words, **arguments))  # type: ignore[arg-type]


def lower_triangle(size: int) -> list[list[int]]:
    return [[int(column <= row) for column in range(size)] for row in range(size)]


def test_the_example() -> None:
    inspection = inspect(text=SENTENCE, tokenizer="words")
    content = json.loads(json.dumps(inspection.to_json()))
    (line,) = found(content, "tokens")["lines"]
    assert [token["text"] for token in line["tokens"]] == ["Il", "gatto", "dorme", "sul", "divano"]
    window = found(content, "window")
    assert window["inputs"] == ["<start>", "Il", "gatto", "dorme", "sul"]
    assert window["targets"] == ["Il", "gatto", "dorme", "sul", "divano"]
    assert found(content, "sight")["mask"] == lower_triangle(5)
    assert "losses" not in window
    assert "loss" not in found(content, "predictions")["predictions"][0]
    text = printed(inspection)
    assert "given <start> Il gatto predict dorme" in text
    assert text.count("██") == sum(range(6))


@pytest.mark.parametrize("kind", ["words", "characters", "bpe"])
def test_kinds_of_tokenizer(kind: str) -> None:
    inspection = inspect(text=SENTENCE, tokenizer=kind)
    joined = " ".join(inspection.targets) if kind == "words" else "".join(inspection.targets)
    assert joined == SENTENCE
    assert inspection.inputs == ["<start>", *inspection.targets[:-1]]
    assert inspection.mask == lower_triangle(len(inspection.targets))


def test_documents_do_not_see_each_other() -> None:
    """Against a plain loop over whole documents: which one a position stands in, and who came before it there."""
    texts = ["the cat sat", "a dog", "on it lies a very old hat"] * 8
    inspection = inspect(data=texts, tokenizer="words", window=40)
    assert len(inspection.targets) == 40 < inspection.length
    document = 0
    for position, token in enumerate(inspection.inputs):
        document += token == "<start>"
        assert inspection.documents[position] == document
    for position, row in enumerate(inspection.mask):
        opened = max(i for i in range(position + 1) if inspection.inputs[i] == "<start>")
        assert row == [int(opened <= column <= position) for column in range(40)]
        closes = position + 1 < 40 and inspection.inputs[position + 1] == "<start>"
        assert (inspection.targets[position] == "<end>") == closes or position == 39


def test_end_of_text_written_in_a_text_is_text() -> None:
    inspection = inspect(text=f"a {END} b", tokenizer="characters")
    assert "".join(inspection.targets) == f"a {END} b"
    assert set(inspection.documents) == {1}


def test_losses_are_those_of_the_model(run: Run) -> None:
    text = "The hen is on a mat."
    inspection = inspect(text=text, run=run.directory)
    model = run.model
    expected = model.token_losses([model.tokenizer.end, *model.tokenizer.encode(text).tolist()])
    assert inspection.losses == pytest.approx(expected.tolist(), abs=1e-4)
    assert inspection.chance == pytest.approx(run.summary["chance"])
    assert found(inspection.to_json(), "window")["losses"] == inspection.losses
    assert "mean loss" in printed(inspection)
    assert inspect(text=text, run=run.model_directory) == inspection


def test_losses_do_not_cross_documents(run: Run) -> None:
    inspection = inspect(run=run.directory)
    assert inspection.losses is not None
    assert len(inspection.targets) == WINDOW
    starts = [t for t, token in enumerate(inspection.inputs) if token == "<start>"]
    model = run.model
    for start, stop in zip(starts, [*starts[1:], WINDOW], strict=True):
        ids = model.tokenizer.encode("".join(token for token in inspection.targets[start:stop] if token != "<end>"))
        losses = model.token_losses([model.tokenizer.end, *ids.tolist()]).tolist()
        assert inspection.losses[start : start + len(losses)] == pytest.approx(losses, abs=1e-4)


def test_long_window_is_cut_to_the_screen_and_says_so() -> None:
    inspection = inspect(text=" ".join(["word another"] * 300), tokenizer="words")
    assert len(inspection.targets) == 256 < inspection.length == 600
    text = printed(inspection, width=60)
    assert "256 of 600 positions" in text
    assert "Shown are the first 21" in text
    assert widest(text) <= 60
    assert len(found(inspection.to_json(), "sight")["mask"]) == 256


def test_window_of_a_run_is_not_exceeded(run: Run) -> None:
    assert len(inspect(text="The cat is on the mat. " * 9, run=run.directory).targets) == WINDOW
    assert len(inspect(text="The cat is on the mat.", run=run.directory, window=5).targets) == 5
    with pytest.raises(UserError, match=f"at most {WINDOW}"):
        inspect(text="The cat", run=run.directory, window=WINDOW + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "causal-ml", "text": "a"}, "did you mean 'causal-lm'"),
        ({"text": "a", "data": ["b"]}, "give one of them"),
        ({"text": " \n"}, "empty"),
        ({"text": "a", "window": 0}, "1 or more"),
        ({"text": "a", "tokenizer": "wordz"}, "did you mean words"),
        ({"text": "a", "run": "nowhere"}, "There is no nowhere"),
        ({"data": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect(**arguments)  # type: ignore[arg-type]


def test_every_trainable_objective_can_be_inspected() -> None:
    from selfsup.objectives import RECIPES, find_recipe
    from selfsup.objectives.teachers import STUDENTS

    taught = (find_recipe("distill", {"distill.kind": kind}) for kind in STUDENTS)
    recipes = [*(find_recipe(name) for name in RECIPES), *taught]
    assert {recipe.inspector for recipe in recipes} == INSPECTORS.keys() - {"task"}


def test_page_needs_nothing_beside_itself(run: Run) -> None:
    inspection = inspect(text="The hen is on the mat.", run=run.directory)
    html = inspection.to_html()
    page = Page(html)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|https?://""", html)
    (window,), (predictions,), (sight,) = (page.of(kind) for kind in ("window", "predictions", "sight"))
    count = len(inspection.targets)
    assert count == len(window["targets"]) == len(predictions["predictions"]) == len(sight["mask"])
    assert window["losses"] == inspection.losses
    assert page.json["values"] == {}


@given(st.text(min_size=1, max_size=40).filter(str.strip))
@settings(max_examples=40, deadline=None)
def test_page_and_terminal_take_any_text(text: str) -> None:
    inspection = inspect(text="</script><b onload=x>&amp;[red]" + text, tokenizer="characters")
    html = inspection.to_html()
    assert html.count("</script>") == 3  # of the page itself
    assert Page(html).of("window")[0]["targets"] == inspection.targets
    assert "[ │ r │ e │ d │ ]" in printed(inspection, width=200)


def test_page_says_what_it_leaves_out() -> None:
    words = train_tokenizer("words", ["a b"])
    inspection = inspect(text="a b " * 400, tokenizer=words, window=700)
    html = inspection.to_html()
    page = Page(html)
    assert "700 of 800 positions" in page.text
    (window,), (sight,) = page.of("window"), page.of("sight")
    assert (len(window["inputs"]), len(sight["mask"]), len(sight["mask"][0])) == (700, 512, 512)
    assert len(html) < 1_500_000


class Backwards(CausalLM):
    """Each token is predicted from those behind it."""

    def hide(self, batch: Batch) -> Task:
        task = super().hide(batch)
        shown, asked, documents = (task[name] for name in ("inputs", "targets", "documents"))
        tensors = {"inputs": asked.flip(1), "targets": shown.flip(1), "documents": documents}
        return Task(tensors, task.counts)


class BackwardsRecipe(TextRecipe):
    """An objective of tokens that no file of selfsup names."""

    name = "backwards"
    family = "decoder"
    inspector = "tokens"

    def compose(self) -> None:
        self.network = OwnDecoder(self.settings)

    def settle(self, effort: Effort) -> None:
        raise AssertionError("nothing is trained here")

    def records_of(self, corpus: TextCorpus) -> tuple[Windows, None]:
        return Windows(corpus.train, self.settings["data.window"], corpus.tokenizer.end), None

    def objective_on(self, network: nn.Module) -> Backwards:
        tokenizer = self.corpus.tokenizer
        return Backwards(network, tokenizer.start, tokenizer.end)

    def build(self) -> Backwards:
        raise AssertionError("nothing is trained here")


def test_an_objective_of_tokens_from_python(run: Run) -> None:
    shown = inspect(BackwardsRecipe, text=SENTENCE, tokenizer="words")
    assert shown.inputs == ["divano", "sul", "dorme", "gatto", "Il"]
    assert shown.targets == ["sul", "dorme", "gatto", "Il", "<end>"]
    assert shown.losses is None
    assert len(inspect(BackwardsRecipe, text="The hen.", run=run.directory).losses) == len("The hen.")


def test_a_text_is_kept_nowhere(tmp_path: Path) -> None:
    inspect(text=SENTENCE, tokenizer="words")
    assert not (tmp_path / "cache").exists()


def test_the_column_that_a_run_found_is_found_anew_in_other_data(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    shown = inspect(run=run.directory, data=str(other))
    assert shown.source == f"the training part of {other}"
    assert shown.losses is not None


def test_data_of_a_run_that_has_changed_is_refused(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(run.directory, place)
    data = tmp_path / "texts.jsonl"
    data.write_text(json.dumps({"text": "It is another one now."}) + "\n")
    config = place / "config.yaml"
    config.write_text(config.read_text().replace(run.settings()["data.source"], str(data)))
    with pytest.raises(UserError, match="has changed since it was trained"):
        inspect(run=place)
