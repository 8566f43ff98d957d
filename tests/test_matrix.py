"""Every command on a run of every registered objective: it works, or it is refused in one sentence that fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from beir_layout import write_beir
from conftest import TINY, TINY_PAIRS, TINY_VISION, Answer
from drawings import write_drawings
from tiny_decoder import save_tiny_decoder
from tiny_encoder import save_tiny
from tiny_vision import save_tiny_vision

import selfsup
from selfsup import cli
from selfsup.evaluation import PROTOCOLS, protocols_for
from selfsup.exporting import TARGETS
from selfsup.objectives import RECIPES, find_recipe
from selfsup.report import Reporter
from selfsup.run import Run

Command = Callable[..., Answer]
FEW: dict[str, Any] = {"steps": 4, "checkpoint.every": 2, "evaluate.every": 2, "train.log_every": 1}
CLASSES = ("red", "blue")
COMMANDS = {*typer.main.get_command(cli.app).commands} - {"machine"}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Case:
    """A run of an objective, what its model is, what it was trained on, and a directory for what commands make."""

    objective: str
    run: Path
    kind: str
    unit: str
    data: Path
    query: list[str]
    place: Path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Texts with classes; pairs of sentences with scores; documents with judged queries; images with classes and
    captions."""
    place = tmp_path_factory.mktemp("sources")
    texts = [
        {"text": f"The {colour} thing {n} is on the hill.", "label": colour} for n in range(48) for colour in CLASSES
    ]
    pairs = [{"sentence1": f"a {n}", "sentence2": f"a {n % 5}", "score": n % 5} for n in range(20)]
    for name, rows in (("texts", texts), ("pairs", pairs)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for colour in CLASSES:
        directory = write_drawings(place / "images" / colour, 32, 20)
        for number, image in enumerate(sorted(directory.glob("*.png"))):
            image.with_suffix(".txt").write_text(f"a {colour} thing number {number}", encoding="utf-8")
    named = {"texts": "texts.jsonl", "pairs": "pairs.jsonl", "images": "images"}
    return {"judged": write_beir(place / "judged")} | {name: place / file for name, file in named.items()}


# Of an objective whose recipe depends on its teacher: the teachers, by a name for each case.
TAUGHT: dict[str, Callable[[Path], Path]] = {
    "distill": save_tiny,
    "distill-images": save_tiny_vision,
    "distill-tokens": save_tiny_decoder,
}


@pytest.fixture(scope="module", params=[*(name for name in RECIPES if name not in TAUGHT), *TAUGHT])
def case(request: pytest.FixtureRequest, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Case:
    place = tmp_path_factory.mktemp(request.param)
    taught = TAUGHT.get(request.param)
    teacher = {} if taught is None else {"distill.teacher": str(taught(place / "teacher"))}
    objective: str = request.param if taught is None else "distill"
    recipe = find_recipe(objective, teacher)
    tiny = TINY_PAIRS if "text" in recipe.sections() else TINY_VISION if recipe.unit == "images" else TINY
    own = {"pairs.from": "crops"} if objective == "pairs" else teacher  # which the shortest texts have too
    settings = {**tiny, **FEW, **own, "objective": objective}
    if recipe.unit == "tokens" and teacher:  # which brings its tokenizer
        del settings["tokenizer"]
    unit = recipe.unit
    data = sources["images" if unit == "images" else "texts"]
    run = selfsup.train(settings.pop("objective"), data=data, out=place / "run", reporter=Reporter(False), **settings)
    query = ["--image", str(next(data.rglob("*.png")))] if unit == "images" else ["a red thing"]
    return Case(objective, run.directory, run.model.kind, unit, data, query, place)


DECODER, TEXTS, IMAGES, PAIRS = "a decoder", "a text encoder", "an image encoder", "an image-text model"
ALL = {DECODER, TEXTS, IMAGES, PAIRS}
ENCODERS = ALL - {DECODER}
TAKEN_BY = {
    "transformers": ALL - {PAIRS},
    "sentence-transformers": ENCODERS,
    "timm": {IMAGES},
    "onnx": ALL - {PAIRS},
    "gguf": {DECODER},
}  # targets of export: which kinds they take
EITHER = None  # as the figures of so little training allow


def uses(t: Case, sources: dict[str, Path]) -> Iterator[tuple[list[object], bool | None]]:
    """(words, whether they work), in an order in which each finds what those before it made."""
    here, kind = t.place, t.kind
    photo, extended = next(sources["images"].rglob("*.png")), shutil.copytree(t.run, here / "extended")
    yield ["plan", "--config", t.run / "config.yaml"], True
    streams = t.objective in ("causal-lm", "masked-lm")
    yield ["prepare", t.objective, "--data", t.data, "--out", here / "tokens", "--workers", 1], streams
    yield ["inspect", "--run", t.run, "--json"], True
    yield ["inspect", t.objective, "--data", t.data, "--run", t.run, "--html", here / "page.html"], True
    yield ["inspect", "--run", t.run, "--png", here / "page.png"], t.unit == "images"
    yield ["train", "--resume", t.run], False  # it is finished
    yield ["train", "--resume", extended, "--steps", 6], True
    yield ["adapt", t.run, "--data", t.data, "--budget", "1s"], False  # which is no time
    yield ["doctor", t.run], True
    yield ["studio", here / "nowhere"], False  # it would not end
    yield ["checkpoint", t.run], True
    last = Run(t.run).checkpoints().steps()[-1]
    yield ["checkpoint", t.run, "--export", last, "--out", here / "last"], True
    yield ["compare", t.run, extended, "--plot", here / "curves.png"], True
    yield ["compare", t.run, t.run], False
    yield ["report", t.run, "--out", here / "report.html"], True
    yield ["report", t.run, extended, "--json"], True
    yield from evaluations(t, sources)
    yield ["embed", t.run, "--data", t.data, "--out", here / "vectors.parquet"], kind in ENCODERS
    yield ["index", t.run, "--data", t.data, "--out", here / "x.lance"], kind in ENCODERS
    yield ["search", here / "x.lance", *t.query], kind in ENCODERS
    yield ["delete", here / "x.lance", "nothing"], False
    yield ["probe", t.run, "--data", t.data, "--out", here / "probe"], kind in ENCODERS
    yield ["classify", t.run, "--probe", here / "probe", "--data", t.data], kind in ENCODERS
    yield ["generate", t.run, "The", "--tokens", 3], kind == DECODER
    yield ["serve", t.run, here / "nowhere"], False  # it would not end
    yield ["fill", t.run, "The [MASK] thing"], (kind, t.unit) == (TEXTS, "tokens")
    yield ["show", t.run, "--image", photo, "--out", here / "seen.png"], kind in (IMAGES, PAIRS)
    yield ["zero-shot", t.run, photo, "--labels", *CLASSES], kind == PAIRS
    for target in TARGETS:
        yield ["export", t.run, "--to", target, "--out", here / target], kind in TAKEN_BY[target]
    yield ["push", t.run, "--to", "me/model", "--dry-run"], True


def evaluations(t: Case, sources: dict[str, Path]) -> Iterator[tuple[list[object], bool | None]]:
    """Every protocol: those of the kind of the model work, but pseudo-perplexity without a head, and where alpha-req
    finds too few directions."""
    fitting = protocols_for(selfsup.load(t.run))
    for protocol in PROTOCOLS:
        sentences = protocol == "sts" or (protocol == "alignment" and t.unit != "images")
        judged = protocol == "retrieval" and t.kind == TEXTS
        data = sources["pairs" if sentences else "judged"] if sentences or judged else t.data
        works: bool | None = protocol in fitting
        if protocol == "alpha-req" and works:
            works = EITHER
        if protocol == "pseudo-perplexity":
            works = (t.kind, t.unit) == (TEXTS, "tokens")
        yield (["evaluate", t.run, "--protocol", protocol, "--data", data], works)


def test_every_command(
    case: Case, sources: dict[str, Path], selfsup_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    tried = set()
    for words, works in uses(case, sources):
        answer = selfsup_command(*words)
        said = f"{words}: {answer}"
        assert answer.code in (0, 2), said
        assert works is EITHER or (answer.code == 0) == works, said
        assert "Traceback" not in answer.error, said
        if answer.code:
            assert answer.out == "", said
            assert answer.error.count("selfsup: ") == 1, said
        tried.add(words[0])
    assert tried == COMMANDS
