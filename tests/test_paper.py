"""Plans on paper: for machines that are not here, of networks without numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer
from hypothesis import given
from hypothesis import strategies as st

import selfsup
from selfsup.accelerators import ACCELERATORS, Fleet
from selfsup.errors import UserError
from selfsup.models.counting import Kept, Sketch, Stack
from selfsup.paper import ROOM, UTILISATION, Setup, exchanged, memory_of

Command = Callable[..., Answer]
SEVEN = {"model": "7b", "gpus": "256:h100", "tokens": "140B"}


def on_paper(objective: str = "causal-lm", **settings: Any) -> Any:
    plan, _ = selfsup.plan(objective, **{**SEVEN, **settings})
    return plan


def a_sketch(parameters: int = 7_500_000_000, tokens: float = 1024) -> Sketch:
    stack = Stack(layers=72, width=3072, block=100_000_000, tokens=tokens, kept=Kept(20 * 3072, 2 * 3072))
    return Sketch(parameters, parameters * 9 // 10, (stack,), 50_000, 3072, tokens)


# -- memory --------------------------------------------------------------------------------------------------


def test_states_take_what_the_paper_of_zero_says() -> None:
    """Rajbhandari et al. 2020, "ZeRO", figure 1: 7.5 billion parameters with Adam take 120 GB, on 64 GPUs 1.9 GB."""
    for sharded, expected in ((False, 120e9), (True, 120e9 / 64)):
        memory = memory_of(a_sketch(), Setup(64, 1, sharded=sharded, muon=False))
        assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(expected)


def test_muon_remembers_half_of_what_adamw_does() -> None:
    sketch = a_sketch()
    assert memory_of(sketch, Setup(1, 1)).optimizer == 4 * sketch.hidden + 8 * (sketch.parameters - sketch.hidden)


def test_activations_are_those_of_all_layers_or_their_inputs() -> None:
    sketch = a_sketch()
    (stack,) = sketch.stacks
    plain, again = (memory_of(sketch, Setup(1, 2, recomputed=recomputed)) for recomputed in (False, True))
    ends = 2 * 1024 * 10 * stack.width
    layer = 2 * 1024 * stack.kept.size(2)
    assert plain.activations == pytest.approx(72 * layer + ends)
    assert again.activations == pytest.approx(72 * 2 * 1024 * 4 * stack.width + ends + layer)


@given(st.integers(2, 4096), st.integers(1, 64), st.booleans(), st.booleans())
def test_whatever_saves_memory_saves_some(gpus: int, records: int, accumulates: bool, muon: bool) -> None:
    sketch, common = a_sketch(), {"accumulates": accumulates, "muon": muon}
    plain = memory_of(sketch, Setup(gpus, records, **common))
    sharded = memory_of(sketch, Setup(gpus, records, sharded=True, **common))
    again = memory_of(sketch, Setup(gpus, records, sharded=True, recomputed=True, **common))
    assert again.peak <= sharded.peak <= plain.peak
    assert memory_of(sketch, Setup(gpus, 2 * records, **common)).peak >= plain.peak
    assert memory_of(sketch, Setup(2 * gpus, records, sharded=True, **common)).peak <= sharded.peak
    assert exchanged(sketch, Setup(1, records)) == 0 < exchanged(sketch, Setup(gpus, records))


# -- plans ---------------------------------------------------------------------------------------------------


def test_a_plan_is_its_own_arithmetic() -> None:
    plan = on_paper(price=2.5)
    assert (plan.gpus, plan.gpu) == (256, "h100")
    assert 6e9 < plan.parameters < 7.5e9
    assert plan.units == plan.steps * plan.batch * 2048 >= 140e9
    assert plan.batch % 256 == 0
    assert plan.memory["peak"] <= ROOM * ACCELERATORS["h100"].memory
    assert plan.seconds == pytest.approx(plan.flops / (256 * 989.5e12 * UTILISATION))
    assert plan.gpu_hours == pytest.approx(256 * plan.seconds / 3600)
    assert plan.cost == pytest.approx(2.5 * plan.gpu_hours)
    assert on_paper(utilisation=0.2).seconds == pytest.approx(2 * plan.seconds)


def test_operations_and_time_are_nanochats() -> None:
    """karpathy/nanochat's d20: 560,988,160 parameters, 3.491758e9 FLOPs a token, 11,219,763,200 tokens; on 8 H100
    172.57 minutes at 48.04 % (a report.md of 2025-11-11, 8 × H100 80GB HBM3)."""
    shape = {"layers": 20, "width": 1280, "heads": 10, "mlp": 3413, "tied": False}
    plan = on_paper(
        model=shape, gpus="8:h100", tokens=11_219_763_200, utilisation=0.4804, batch=256, **{"data.vocabulary": 65536}
    )
    assert plan.parameters == pytest.approx(560_988_160, rel=1e-3)
    assert plan.flops / plan.units == pytest.approx(3.491758e9, rel=1e-3)
    assert plan.seconds / 60 == pytest.approx(172.57, rel=0.05)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("masked-lm", {"model": "200m", "gpus": "8:a100-80", "tokens": "100b"}),
        ("mae", {"model": "vit-h", "gpus": "128:a100-80", "tokens": 800 * 1_281_167, "model.patch": 14}),
        ("mae", {"model": "vit-b", "gpus": "rtx4090", "tokens": 1e6, "batch": 256}),
    ],
)
def test_encoders_and_images_too(objective: str, settings: dict[str, Any]) -> None:
    size = {"model.preset": settings.pop("model")}
    plan, _ = selfsup.plan(objective, **settings, **size)
    assert plan.units >= float(str(settings["tokens"]).replace("b", "e9"))
    assert 0 < plan.memory["peak"] <= ROOM * ACCELERATORS[plan.gpu].memory


def test_a_large_model_is_laid_out_as_it_fits() -> None:
    assert on_paper(model="85m", gpus="8:h100", tokens="1B").mode == "replicated"
    assert on_paper(gpus="8:h100", batch=8).mode == "sharded"
    many, one = on_paper(gpus="8:h200", batch=64), on_paper(model="400m", gpus="h200")
    assert many.mode == "sharded"
    assert many.memory["peak"] > many.alternatives["sharded, activations recomputed"]
    assert many.alternatives["replicated"] > many.memory["peak"]
    assert one.alternatives.keys() == {"replicated, activations recomputed"}


def test_without_a_length_it_is_as_long_as_suits_the_size() -> None:
    plan = on_paper(tokens=None)
    assert plan.units == pytest.approx(20 * plan.parameters, rel=0.01)
    assert on_paper(tokens=None, steps=100).steps == 100
    hour = on_paper(tokens=None, budget="1h")
    assert 0.9 * 3600 < hour.seconds <= 3600


def test_data_say_how_much_there_is(corpus: Path) -> None:
    common = {"data": corpus, "model": "0.4m", "tokenizer": "characters", "epochs": 3, "batch": 4, "data.window": 16}
    plan, _ = selfsup.plan("causal-lm", gpus="4:l4", **common)
    here, _ = selfsup.plan("causal-lm", **common)
    tokens = int(here.facts["tokens"].split(" ")[0].replace(",", ""))
    assert plan.steps == math.ceil(3 * tokens / (4 * 16))
    assert plan.parameters == here.parameters
    assert plan.flops / plan.steps == here.flops / here.steps


def test_on_the_command_line(selfsup_command: Command) -> None:
    words = ["plan", "causal-lm", "model.preset=7b", "--gpus", "256:h100", "--tokens", "140B"]
    answer = selfsup_command(*words, "--price", "2.5")
    assert answer.code == 0, answer
    for word in ("256 × h100", "preset 7b", "GPU hours", "assumed", "weights", "activations", "at 2.5 for a GPU hour"):
        assert word in answer.out.replace("\n", " "), word
    plan = json.loads(selfsup_command(*words, "--json").out)
    assert plan["steps"] > 0
    assert plan["cost"] is None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown GPU": ({"gpus": "8:h10"}, "no GPU 'h10'"),
    "no number of GPUs": ({"gpus": "many:h100"}, "no number of GPUs"),
    "no number of tokens": ({"tokens": "lots"}, "tokens cannot be 'lots'"),
    "a price below 0": ({"price": -1}, "price cannot be '-1'"),
    "more than all of it": ({"utilisation": 1.5}, "utilisation cannot be '1.5'"),
    "a truth": ({"tokens": True}, "tokens cannot be 'True'"),
    "no machines": ({"gpus": None}, "name its machines"),
    "two lengths": ({"steps": 5}, "give one"),
    "another objective": ({"objective": "dino", "model": "vit-s"}, "not for dino"),
    "another precision": ({"precision": "fp32"}, "bf16"),
    "a network of others": ({"model": "hf:there"}, "selfsup's own"),
    "no such size": ({"model": "8b"}, "no model preset '8b'"),
    "no size": ({"model": None, "tokens": None}, "needs a size"),
    "no images": ({"objective": "mae", "model": "vit-h", "tokens": None}, "Nothing says how long"),
    "too few records": ({"batch": 100}, "cannot be shared by 256"),
    "too little memory": ({"gpus": "1:rtx4090"}, "at the least"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_planned_is_refused(case: str) -> None:
    changed, said = WRONG[case]
    settings = {name: value for name, value in {**SEVEN, **changed}.items() if value is not None}
    with pytest.raises(UserError, match=said):
        selfsup.plan(settings.pop("objective", "causal-lm"), **settings)


def test_a_fleet_by_name() -> None:
    assert Fleet.named("h200") == Fleet(1, ACCELERATORS["h200"])
    assert Fleet.named("16:a100-80").link < Fleet.named("8:a100-80").link
