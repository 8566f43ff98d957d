"""Loss curves that must not move. `python tests/test_golden.py --write` makes them anew, on purpose.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from selfsup.config import Settings
from selfsup.distributed import Processes
from selfsup.machine import Machine
from selfsup.objectives.base import Effort, Objective
from selfsup.objectives.causal_lm import CausalLMRecipe
from selfsup.planning import Clock
from selfsup.report import Reporter
from selfsup.run import Run
from selfsup.trainer import Trainer

GOLDEN = Path(__file__).with_name("golden") / "causal_lm.json"
TOLERANCE = 5e-4  # of a loss
STEPS = 30
SETTINGS = {
    "data": {"source": "sample:shakespeare", "tokenizer": "characters", "window": 64},
    "model": {"layers": 2, "width": 64, "heads": 2, "kv_heads": 1, "head_dim": 32, "mlp": 128, "tied": False},
    "optim": {
        "matrices": "muon",
        "lr": 0.01,
        "adamw_lr": 0.003,
        "weight_decay": 0.1,
        "warmup": 5,
        "decay": 0.5,
    },
    "train": {"steps": STEPS, "batch": 8, "micro_batch": 4, "seed": 0, "log_every": 1, "compile": False},
    "checkpoint": {"every": STEPS},
    "evaluate": {"every": STEPS, "records": 16, "final_records": 32, "batch": 4},
}


class Figures(CausalLMRecipe):
    """Causal LM that keeps no model and writes no text: only its figures are wanted."""

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        pass

    def sample(self, objective: Objective) -> None:
        pass


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def curve(directory: Path) -> dict[str, list[float]]:
    """The losses of a training with everything chosen, by the trainer itself."""
    settings = Settings(("golden", SETTINGS))
    recipe = Figures(settings)
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=STEPS))
    run = Run.create(directory)
    machine = Machine(torch.device("cpu"), "fp32", 1e9)
    trainer = Trainer(recipe, settings, run, machine, Processes.alone(), Clock(), Reporter(False))
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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[float]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSUP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield curve(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize(("figure", "times"), [("loss", 1), ("validation_loss", 1), ("grad_norm", 10)])
def test_the_curve_has_not_moved(found: dict[str, list[float]], figure: str, times: int) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[figure]
    assert found[figure] == pytest.approx(expected, rel=times * TOLERANCE), (
        f"the {figure} moved; if that is meant, run `python {Path(__file__).name} --write` and say why"
    )


def test_the_curve_falls(found: dict[str, list[float]]) -> None:
    """The golden figures themselves are those of a model that learns."""
    assert len(found["loss"]) == STEPS
    assert found["loss"][0] == pytest.approx(4.17, abs=0.1)  # ln of the 65 characters, their end and start
    assert found["loss"][-1] < 3.0
    assert found["validation_loss"][-1] < 3.0


if __name__ == "__main__":
    import tempfile

    if sys.argv[1:] != ["--write"]:
        raise SystemExit(f"python {sys.argv[0]} --write  replaces {GOLDEN}")
    with tempfile.TemporaryDirectory() as place:
        content = curve(Path(place) / "run")
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
