"""Loss curves that must not move. `python tests/test_golden.py --write NAME` makes one anew, on purpose.

A curve moves when the arithmetic of training changes: the order of the records, the initial weights, the model, the
loss, the optimizers, the schedule. Such a change may be right, and is then written with the new curve.

Tolerance: kernels add fp32 numbers up in another order on another processor. On one machine the curve is the same to
the last bit; with other instruction sets (AVX2, none) a loss moved by 4e-5 of itself and a
gradient norm by 3e-4. The tolerances are ten times that and more. A learning rate that is 2 % off moves a loss by 3e-3,
another seed by 7e-2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_decoder import save_tiny_decoder
from tiny_encoder import save_tiny
from tiny_vision import save_tiny_vision

from selfsup.budget import Clock
from selfsup.distributed import Processes
from selfsup.machine import Machine
from selfsup.objectives.causal_lm import CausalLMRecipe
from selfsup.objectives.clip import CLIPRecipe
from selfsup.objectives.dino import DINORecipe
from selfsup.objectives.distill import DistillRecipe
from selfsup.objectives.distill_images import ImageDistillationRecipe
from selfsup.objectives.distill_tokens import TokenDistillationRecipe
from selfsup.objectives.lejepa import LeJEPARecipe
from selfsup.objectives.mae import MAERecipe
from selfsup.objectives.masked_lm import MaskedLMRecipe
from selfsup.objectives.pairs import PairsRecipe
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.objectives.simclr import SimCLRRecipe
from selfsup.objectives.simcse import SimCSERecipe
from selfsup.objectives.tsdae import TSDAERecipe
from selfsup.objectives.vicreg import VICRegRecipe
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.trainer import Team, Trainer

GOLDEN = Path(__file__).with_name("golden")
TOLERANCE = 5e-4  # of a loss
STEPS = 30
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"source": "sample:shakespeare", "tokenizer": "characters", "window": 64},
    "model": {"layers": 2, "width": 64, "heads": 2, "mlp": 128, "tied": False},
    "optim": {"matrices": "muon", "lr": 0.01, "adamw_lr": 0.003, "weight_decay": 0.1, "warmup": 5, "decay": 0.5},
    "train": {"steps": STEPS, "batch": 8, "micro_batch": 4, "seed": 0, "log_every": 1, "compile": False},
    "checkpoint": {"every": STEPS},
    "evaluate": {"every": STEPS, "records": 16, "final_records": 32, "batch": 4},
}


class Curve(NamedTuple):
    """A training whose figures are kept: its recipe, what it sets beside `SETTINGS`, and where its losses lie.

    Attributes:
        first: the loss of its first step, and how far it may lie from that.
        last: above which no loss of its end lies, in training or in validation.
        gradients: how many times `TOLERANCE` their norms may differ by.
        teacher: writes the model that it learns from into a directory.
    """

    recipe: type[Recipe]
    settings: dict[str, dict[str, Any]]
    first: tuple[float, float]
    last: float
    teacher: Callable[[Path], Path] | None = None
    gradients: int = 10


# Instead of the settings of text.
IMAGES: dict[str, dict[str, Any]] = {
    "data": {"source": "sample:emoji", "tokenizer": "bpe", "window": None, "size": 32},
    "model": {"patch": 4, "registers": 1, "tied": None},
    "train": {"batch": 32, "micro_batch": 16},
    "evaluate": {"batch": 16},
}
CURVES = {
    "causal_lm": Curve(
        CausalLMRecipe,
        {"model": {"kv_heads": 1, "head_dim": 32}},
        (4.17, 0.1),  # ln of the 65 characters, their end and start
        3.0,
    ),
    "masked_lm": Curve(
        MaskedLMRecipe,
        {"model": {"dropout": 0.1, "tied": True}},
        (4.248, 0.05),  # ln of the characters and five special tokens: a fresh tied head says next to nothing
        3.7,
    ),
    "simcse": Curve(
        SimCSERecipe,
        {
            "train": {"batch": 32, "micro_batch": 8},
            "evaluate": {"batch": 16},
            "simcse": {"temperature": 0.5},  # at that of the recipe the loss is soon too small to compare
        },
        (2.99, 0.1),
        2.6,
    ),
    "pairs": Curve(
        PairsRecipe,
        {
            "train": {"batch": 32, "micro_batch": 8},
            "evaluate": {"batch": 16},
            "pairs": {"temperature": 0.2, "from": "crops", "dimensions": [16]},
        },
        (6.7, 0.2),  # a little less than twice ln 32, of whole vectors and of cut ones
        6.4,
    ),
    "distill": Curve(
        DistillRecipe,
        {"train": {"batch": 32, "micro_batch": 8}, "evaluate": {"batch": 16}},
        (1.33, 0.1),  # a fresh student says nearly the mean, and the lines of this batch lie farther from it than most
        1.05,
        partial(save_tiny, kind="characters"),
    ),
    "distill_tokens": Curve(
        TokenDistillationRecipe,
        {"model": {"kv_heads": 1, "head_dim": 32}, "distill": {"temperature": 2.0, "hard": 0.2}},
        (15.72, 0.1),  # (.8 · 2² + .2) ln of the 102 tokens that are printed or end a text
        15.0,
        save_tiny_decoder,
    ),
    "distill_images": Curve(
        ImageDistillationRecipe,
        IMAGES | {"distill": {"patches": 0.5}},
        (1.37, 0.1),  # of whole images and half of that of patches, beside what the mean costs
        0.8,
        save_tiny_vision,
    ),
    "tsdae": Curve(
        TSDAERecipe,
        {"model": {"dropout": 0.1, "tied": True}, "train": {"batch": 16, "micro_batch": 8}, "evaluate": {"batch": 8}},
        (4.248, 0.1),  # as of masked LM
        3.3,
    ),
    "simclr": Curve(
        SimCLRRecipe,
        IMAGES,
        (3.9, 0.1),  # a little less than ln 63, of the other views: even at first both of an image are alike
        3.5,
    ),
    "vicreg": Curve(
        VICRegRecipe,
        IMAGES | {"vicreg": {"expander": 64}},
        (49.0, 1.5),  # a fresh expander says nearly the same of every image
        40.0,
        gradients=30,  # of deviations near zero, whose roots amplify rounding: .9 % from one processor to another
    ),
    "dino": Curve(
        DINORecipe,
        IMAGES
        | {
            "dino": {
                "prototypes": 64,
                "hidden": 64,
                "bottleneck": 32,
                "local_crops": 2,
                "local_size": 16,
                "teacher_temperature": [0.03, 0.04],
                "warmup": 0.5,
                "frozen": 0.1,
                "koleo": 0.1,
                "ibot": 0.5,
            }
        },
        (8.1, 0.3),  # a fresh head is sure of what it says, and wrong: above 1.5 ln 64
        6.1,
    ),
    "lejepa": Curve(
        LeJEPARecipe,
        IMAGES | {"lejepa": {"local_crops": 2, "local_size": 16, "slices": 64, "hidden": 64, "projection": 16}},
        (0.65, 0.05),  # a fresh head puts all crops nearly in one place, 0: a twentieth of .4 · 32
        0.57,
    ),
    "clip": Curve(
        CLIPRecipe,
        IMAGES
        | {
            "data": {**IMAGES["data"], "window": 16, "vocabulary": 384},
            "text": {"layers": 2, "width": 64, "heads": 2, "mlp": 128, "dropout": 0.0},
        },
        (3.9, 0.5),  # ln 32 and what a temperature of .07 makes of chance
        3.6,
    ),
    "mae": Curve(
        MAERecipe,
        IMAGES | {"mae": {"decoder_layers": 2, "decoder_width": 32}},
        (1.0, 0.001),  # as a fresh decoder predicts the mean of each patch
        0.9,
    ),
}


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def curve(name: str, directory: Path) -> dict[str, list[float]]:
    """The losses of a training with everything chosen, by the trainer itself."""
    chosen = CURVES[name]
    sections = {
        section: SETTINGS.get(section, {}) | chosen.settings.get(section, {})
        for section in {*SETTINGS, *chosen.settings}
    }
    if chosen.teacher is not None:
        place = str(chosen.teacher(directory.with_name(f"{name}-teacher")))
        sections["distill"] = {**sections.get("distill", {}), "teacher": place}
    if chosen.recipe is TokenDistillationRecipe:  # whose teacher brings its tokenizer
        del sections["data"]["tokenizer"]
    settings = chosen.recipe.resolve(("golden", sections))
    recipe = chosen.recipe(settings)
    recipe.save = recipe.sample = lambda *_: None  # type: ignore[assignment,method-assign]  # figures only
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=STEPS))
    run = Run.create(directory)
    machine = Machine(torch.device("cpu"), "fp32", 1e9)
    trainer = Trainer(recipe, run, machine, Team(Processes.alone(), Reporter(False), Clock()))
    with one_thread():
        trainer.fit(STEPS)
    lines = run.metrics()
    return {
        name: [line[figure] for line in lines if line["split"] == split]
        for name, figure, split in (
            ("loss", "loss", "train"),
            ("grad_norm", "grad_norm", "train"),
            ("validation_loss", "loss", "validation"),
        )
    }


@pytest.fixture(scope="module", params=CURVES)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """A curve's name and its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield request.param, curve(request.param, tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("figure", ["loss", "validation_loss", "grad_norm"])
def test_the_curve_has_not_moved(found: tuple[str, dict[str, list[float]]], figure: str) -> None:
    name, figures = found
    times = CURVES[name].gradients if figure == "grad_norm" else 1
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))[figure]
    assert figures[figure] == pytest.approx(expected, rel=times * TOLERANCE), (
        f"the {figure} of {name} moved; if that is meant, run `python {Path(__file__).name} --write {name}` and say why"
    )


def test_the_curve_falls(found: tuple[str, dict[str, list[float]]]) -> None:
    """The golden figures themselves are those of a model that learns."""
    name, figures = found
    (start, apart), last = CURVES[name].first, CURVES[name].last
    assert len(figures["loss"]) == STEPS
    assert figures["loss"][0] == pytest.approx(start, abs=apart)
    assert figures["loss"][-1] < last
    assert figures["validation_loss"][-1] < last


if __name__ == "__main__":
    import tempfile

    names = sys.argv[2:] or list(CURVES)
    if sys.argv[1:2] != ["--write"] or not set(names) <= CURVES.keys():
        raise SystemExit(f"python {sys.argv[0]} --write [{'|'.join(CURVES)}]  replaces curves in {GOLDEN}")
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            content = curve(name, Path(place) / "run")
        (GOLDEN / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
