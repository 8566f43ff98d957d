"""DINO: its terms against plain loops over images and crops, its teacher, what is hidden, and its recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_distillation import plain_koleo, plain_sinkhorn_knopp
from torch import Tensor, nn

import selfsup
from selfsup.config import OptimConfig
from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.objectives.base import Outputs, Task
from selfsup.objectives.dino import DINO, DINORecipe
from selfsup.objectives.multi_crop import Crops
from selfsup.objectives.recipe import Effort
from selfsup.objectives.teaching import LONGEST_MEMORY, Head, Network, Teaching
from selfsup.optim import AdamW, Optimizer
from selfsup.seeding import generator
from selfsup.step import evaluate, gradients
from selfsup.views import dino_global, dino_local, dino_second

ALONE = Processes.alone()
SIZE, PATCH, WIDTH, PROTOTYPES = 12, 4, 16, 10
TEACHING = Teaching("sinkhorn", (0.1, 0.2), warmup=0.3, memory=0.2, frozen=0.0)
CROPS = Crops(dino_global(SIZE), dino_second(SIZE), dino_local(8), 3)
PICTURES = np.random.default_rng(0).integers(0, 256, (24, 3, 20, 20), dtype=np.uint8)


class Convolution(nn.Module):
    """A network of somebody else: one vector per image, statistics over the batch, no patches."""

    dimension = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def embed(self, pixels: Tensor, pooling: str) -> Tensor:
        embedded: Tensor = self.layers(pixels).mean((2, 3))
        return embedded


def vit() -> VisionTransformer:
    shape = VisionConfig(size=SIZE, patch=PATCH, layers=2, width=WIDTH, heads=2, mlp=24, registers=1)
    return VisionTransformer(shape).initialise(generator(1, "weights"))


def dino(
    teaching: Teaching = TEACHING,
    crops: Crops = CROPS,
    ibot: float = 0.5,
    koleo: float = 0.1,
    normalised: bool = True,
    backbone: nn.Module | None = None,
) -> DINO:
    """With a teacher that is not its student, so that they cannot be taken for each other."""
    network: Any = vit() if backbone is None else backbone
    head = Head(WIDTH, 12, 6, PROTOTYPES, normalised).initialise(generator(2, "head"))
    made = DINO(Network(network, head), crops, teaching, 0.3, ibot, koleo)
    with torch.no_grad():
        for number, parameter in enumerate(made.student.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator(3, "noise", number))
    return made.double().train()


def batch_of(indices: Sequence[int], seed: int = 3) -> Batch:
    places = np.array(indices)
    data = {"pixels": torch.from_numpy(PICTURES[places]), "sizes": torch.full((len(places), 2), 20)}
    return Batch(data, seed, np.zeros_like(places), places)


def hidden(made: DINO, indices: Sequence[int] = range(8)) -> Task:
    """The task in fp64."""
    task = made.hide(batch_of(indices))
    wide = {name: x.double() if x.is_floating_point() else x for name, x in task.tensors.items()}
    return Task(wide, task.counts)


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# -- the score, one crop after the other ---------------------------------------------------------------------


def logits(network: Network, state: Tensor, normalised: bool) -> Tensor:
    """What one class token or patch (width,) has in common with each prototype."""
    for layer in network.head.layers:
        state = layer(state)
    state = state / state.norm()
    rows = [p / p.norm() if normalised else p for p in network.head.prototypes]
    return torch.stack([state @ row for row in rows])


def targets(made: DINO, states: Sequence[Tensor], temperature: float, normalised: bool) -> list[Tensor]:
    """Of the teacher, from the class tokens or patches of all records."""
    said = torch.stack([logits(made.teacher, state, normalised) for state in states]).detach()
    if made.teaching.targets == "sinkhorn":
        return [torch.tensor(row, dtype=torch.double) for row in plain_sinkhorn_knopp(said, temperature, 3)]
    return list((said / temperature).exp() / (said / temperature).exp().sum(1, keepdim=True))


def cross_entropy(target: Tensor, said: Tensor) -> Tensor:
    said = said / 0.3
    return -(target * (said - said.exp().sum().log())).sum()


def plain_score(made: DINO, task: Task, normalised: bool = True) -> dict[str, Tensor]:
    """Every crop through its network by itself; the first temperature, and centres of zero."""
    records, place = len(task["globals"]), made.student.backbone.config.prefix
    temperature = made.teaching.temperatures[0]
    whole = [made.teacher.backbone(task["globals"][i, v][None])[0] for i in range(records) for v in (0, 1)]
    told = targets(made, [states[0] for states in whole], temperature, normalised)
    masked = [
        made.student.backbone(task["globals"][i, v][None], task["hidden"][i, v][None])[0]
        for i in range(records)
        for v in (0, 1)
    ]
    sums = {"dino": torch.zeros(()).double()}
    for i in range(records):
        small = [made.student.backbone(crop[None])[0] for crop in task["locals"][i]]
        for teacher in (0, 1):
            for student in [masked[2 * i + 1 - teacher], *small]:
                said = logits(made.student, student[0], normalised)
                sums["dino"] = sums["dino"] + cross_entropy(told[2 * i + teacher], said)
    sums["koleo"] = sum(plain_koleo(torch.stack([s[0] for s in masked[v::2]])) for v in (0, 1))
    chosen = [(n, p) for n in range(2 * records) for p in task["hidden"].flatten(0, 1)[n].nonzero().flatten()]
    told_patches = targets(made, [whole[n][place + p] for n, p in chosen], temperature, normalised)
    said_patches = [logits(made.student, masked[n][place + p], normalised) for n, p in chosen]
    sums["ibot"] = sum(cross_entropy(*pair) for pair in zip(told_patches, said_patches, strict=True))
    sums["teacher_entropy"] = -sum((target * target.log()).sum() for target in told)
    likeliest = {int(target.argmax()) for target in told}
    sums["prototypes_used"] = torch.tensor(len(likeliest) / min(PROTOTYPES, len(told)) * len(told)).double()
    return sums


@pytest.mark.parametrize("kind", ["sinkhorn", "centring"])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_score_is_that_of_plain_loops(kind: Any, normalised: bool) -> None:
    made = dino(replace(TEACHING, targets=kind), normalised=normalised)
    task = hidden(made, [4, 0, 17, 9, 3])
    found = made.score(made.predict(task), task, ALONE)
    expected = plain_score(made, task, normalised)
    assert found.keys() == expected.keys() == task.counts.keys()
    for name, value in found.items():
        near(value, expected[name])
    for name in ("dino", "ibot", "koleo"):
        parameters = [p for p in made.student.parameters() if p.requires_grad]
        slopes = [
            torch.autograd.grad(value[name], parameters, retain_graph=True, materialize_grads=True)
            for value in (found, expected)
        ]
        assert any(slope.abs().max() > 1e-3 for slope in slopes[0])
        for one, other in zip(*slopes, strict=True):
            near(one, other)


def test_counts() -> None:
    task = hidden(dino(), range(6))
    assert int(task.counts["dino"]) == 6 * (2 + 2 * 3)
    assert int(task.counts["ibot"]) == int(task["hidden"].sum()) > 0
    assert {int(task.counts[name]) for name in ("koleo", "teacher_entropy", "prototypes_used")} == {12}


def test_figures_move_nothing() -> None:
    made = dino()
    figures = gradients(made, [batch_of(range(8))], ALONE)
    loss = figures["dino"] + 0.5 * figures["ibot"] + 0.1 * figures["koleo"]
    near(figures["loss"], loss)


@pytest.mark.parametrize("count", [0, 1])
def test_with_few_local_crops(count: int) -> None:
    made = dino(crops=replace(CROPS, count=count))
    task = hidden(made)
    assert int(task.counts["dino"]) == 8 * (2 + 2 * count)
    if count:
        near(made.score(made.predict(task), task, ALONE)["dino"], plain_score(made, task)["dino"])
    else:
        task.tensors["locals"] = torch.zeros(8, 0, 3, 8, 8)  # which the plain loop goes through
        near(made.score(made.predict(task), task, ALONE)["dino"], plain_score(made, task)["dino"])


# -- what is hidden ------------------------------------------------------------------------------------------


def test_the_student_does_not_see_hidden_patches() -> None:
    """Whatever stands there; the teacher does."""
    made = dino()
    task = hidden(made)
    covered = task["hidden"].view(8, 2, 3, 3).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    noise = torch.randn(task["globals"].shape, generator=generator(0, "noise")).double()
    changed = Task(task.tensors | {"globals": torch.where(covered[:, :, None], noise, task["globals"])}, task.counts)
    before, after = made.predict(task), made.predict(changed)
    for name in ("globals", "patches", "features"):
        near(after[name], before[name], 1e-12)
    for name in ("teacher", "teacher_patches"):
        assert (after[name] - before[name]).abs().max() > 1e-3


def test_only_hidden_patches_pass_the_head() -> None:
    made, seen = dino(), []
    made.student.head.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    task = hidden(made)
    outputs = made.predict(task)
    count = int(task["hidden"].sum())
    assert seen == [8 * 5 + count]
    empty = outputs["patches"][~task["hidden"].flatten(1)]
    assert len(empty) == 8 * 2 * 9 - count
    assert not empty.any()
    assert (outputs["patches"][task["hidden"].flatten(1)].norm(dim=1) - 1).abs().max() < 1e-9


def test_half_of_the_global_crops_are_masked() -> None:
    made = dino(crops=replace(CROPS, first=dino_global(40), second=dino_second(40), count=0))
    shares = torch.cat([made.hide(batch_of(range(24), seed))["hidden"].double().mean(2) for seed in range(10)])
    masked = shares[shares > 0]
    assert 0.4 < len(masked) / shares.numel() < 0.6
    assert 0.09 < float(masked.min()) < 0.15
    assert 0.45 < float(masked.max()) <= 0.5


def test_where_nothing_is_hidden_the_term_is_left_out() -> None:
    made = dino(ibot=0.0, koleo=0.0)
    task = hidden(made)
    assert {*task.tensors} == {"globals", "locals"}
    sums = made.score(made.predict(task), task, ALONE)
    assert sums.keys() == task.counts.keys() == {"dino", "teacher_entropy", "prototypes_used"}
    sums["dino"].backward()
    for name, parameter in made.student.named_parameters():
        assert (parameter.grad is None) == ("mask_token" in name), name


def test_any_network_without_patches() -> None:
    """The teacher's batch statistics are an average of the student's, and its own batch plays no part."""
    made = dino(ibot=0.0, backbone=Convolution())
    task = hidden(made)
    figures = made.score(made.predict(task), task, ALONE)
    assert figures["dino"].isfinite()
    together = made.predict(task)["teacher"]
    assert not made.teacher.training
    assert made.student.training
    alone = made.predict(Task({name: x[:1] for name, x in task.tensors.items()}, task.counts))["teacher"]
    near(together[:1], alone)
    before = made.teacher.backbone.layers[1].running_mean.clone()
    made.after_step(0, 10)
    expected = torch.lerp(before, made.student.backbone.layers[1].running_mean, 0.5)
    near(made.teacher.backbone.layers[1].running_mean, expected)


# -- the teacher ---------------------------------------------------------------------------------------------


def test_the_teacher_starts_as_the_student_and_has_no_gradient() -> None:
    network = Network(vit(), Head(WIDTH, 12, 6, PROTOTYPES, True).initialise(generator(2, "head")))
    made = DINO(network, CROPS, TEACHING, 0.1, 1.0, 0.1)
    for one, other in zip(made.teacher.parameters(), made.student.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
        assert not one.requires_grad
    gradients(made, [batch_of(range(8))], ALONE)
    assert all(parameter.grad is None for parameter in made.teacher.parameters())
    assert {name.split(".")[0] for name in made.state_dict()} == {"student", "teacher", "_extra_state"}


def test_the_teacher_follows() -> None:
    """teacher ← m teacher + (1 − m) student, in the precision of the weights."""
    made = dino()
    before = {name: x.clone() for name, x in made.teacher.named_parameters()}
    momentum = 1 - (1 + math.cos(math.pi * 3 / 10)) / 2 / 2  # memory of a fifth of ten steps
    made.after_step(3, 10)
    assert made.teaching.momentum(3, 10) == pytest.approx(momentum)
    for name, parameter in made.student.named_parameters():
        moved = made.teacher.get_parameter(name)
        near(moved, momentum * before[name] + (1 - momentum) * parameter)
    single = dino().float()
    single.after_step(0, 100)
    assert {p.dtype for p in single.teacher.parameters()} == {torch.float32}


@settings(max_examples=100)
@given(steps=st.integers(1, 10**6), memory=st.floats(0.001, 1.0), place=st.floats(0, 1))
def test_the_momentum_rises_to_one(steps: int, memory: float, place: float) -> None:
    teaching = replace(TEACHING, memory=memory)
    step = int(place * (steps - 1))
    first, now, later = (teaching.momentum(n, steps) for n in (0, step, step + 1))
    assert 1 / (1 - first) == pytest.approx(min(max(memory * steps, 1), LONGEST_MEMORY)) if first else True
    assert 0 <= first <= now <= later <= 1
    assert teaching.momentum(steps, steps) == 1


def test_the_momentum_suits_the_length_of_the_run() -> None:
    teaching = replace(TEACHING, memory=0.02)
    assert teaching.momentum(0, 1000) == pytest.approx(0.95)
    assert teaching.momentum(0, 100_000) == pytest.approx(0.996)  # where DINO begins
    assert teaching.momentum(0, 10) == 0


def test_the_temperature_warms_up_in_steps() -> None:
    assert [TEACHING.temperature(done) for done in (0, 0.15, 0.3, 1)] == pytest.approx([0.1, 0.15, 0.2, 0.2])
    assert replace(TEACHING, warmup=0.0).temperature(0) == 0.2
    made, task = dino(), hidden(dino())
    entropies = []
    for step in (0, 1, 2, 8):
        entropies.append(float(made.score(made.predict(task), task, ALONE)["teacher_entropy"].detach()))
        made.done, made.steps = step + 1, 10
    assert entropies[0] < entropies[1] < entropies[2] < entropies[3]


def test_centres_follow_the_means_of_all_rows() -> None:
    made = dino(replace(TEACHING, targets="centring"))
    task = hidden(made)
    outputs = made.predict(task)
    made.score(outputs, task, ALONE)
    assert not made.class_centre.any()
    made.after_step(0, 10)
    classes = outputs["teacher"].flatten(0, 1)
    patches = outputs["teacher_patches"].flatten(0, 1)[task["hidden"].flatten()]
    prototypes = nn.functional.normalize(dino().teacher.head.prototypes, dim=1)  # of before the step
    for centre, rows in ((made.class_centre, classes), (made.patch_centre, patches)):
        near(centre, 0.1 * (rows @ prototypes.T).mean(0))
    assert {"class_centre", "patch_centre"} < {*made.state_dict()}


def test_looking_moves_no_centre() -> None:
    made = dino(replace(TEACHING, targets="centring")).eval()
    evaluate(made, [batch_of(range(8))], ALONE)
    made.after_step(0, 10)
    assert not made.class_centre.any()


def test_a_step_that_was_skipped_leaves_no_trace() -> None:
    """The spine calls `after_step` only where an update was made."""
    made = dino(replace(TEACHING, targets="centring"))
    before = {name: x.clone() for name, x in made.state_dict().items()}
    gradients(made, [batch_of(range(8))], ALONE)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- prototypes ----------------------------------------------------------------------------------------------


def test_prototypes_are_frozen_at_first() -> None:
    """Neither gradient nor weight decay moves them."""
    made = dino(replace(TEACHING, frozen=0.2))
    optimizer = Optimizer(made, OptimConfig(lr=0.02, adamw_lr=0.01, weight_decay=0.1))
    prototypes, layer = made.student.head.prototypes, made.student.head.layers[0].weight
    moved = []
    for step in range(4):
        before, other = prototypes.detach().clone(), layer.detach().clone()
        gradients(made, [batch_of(range(8))], ALONE)
        optimizer.step(1.0)
        made.after_step(step, 10)
        assert not torch.equal(layer, other)
        moved.append(not torch.equal(prototypes, before))
    assert moved == [False, False, True, True]


def test_a_resumed_run_knows_where_it_stands() -> None:
    """In a state dict of tensors, as checkpoints hold it."""
    made = dino(replace(TEACHING, frozen=0.2))
    made.after_step(4, 10)
    state = made.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    fresh = dino(replace(TEACHING, frozen=0.2))
    fresh.load_state_dict(state)
    assert (fresh.done, fresh.steps) == (5, 10)
    task = hidden(fresh)
    near(*(m.score(m.predict(task), task, ALONE)["dino"] for m in (made, fresh)), 0)
    assert fresh.student.head.prototypes.requires_grad


def test_prototypes_are_not_for_muon() -> None:
    made = dino()
    optimizer = Optimizer(made, OptimConfig(lr=0.02, adamw_lr=0.01, weight_decay=0.1))
    owners = {id(p): type(part) for part in optimizer.parts for p in part.parameters}
    assert owners[id(made.student.head.prototypes)] is AdamW
    assert owners[id(made.student.backbone.embeddings.mask_token)] is AdamW
    assert owners[id(made.student.head.layers[0].weight)] is not AdamW
    assert not {id(p) for p in made.teacher.parameters()} & {*owners}


def test_weight_norm_leaves_directions_only() -> None:
    for normalised in (True, False):
        made = dino(normalised=normalised)
        task = hidden(made)
        before = made.score(made.predict(task), task, ALONE)
        with torch.no_grad():
            made.student.head.prototypes.mul_(3)
        after = made.score(made.predict(task), task, ALONE)
        assert torch.allclose(before["dino"], after["dino"]) == normalised


def test_a_fresh_head() -> None:
    head = Head(64, 96, 32, 40, True).initialise(generator(0, "head"))
    assert not any(parameter.isnan().any() for parameter in head.parameters())
    near(head.directions(), head.prototypes.detach(), 1e-6)
    vectors = head(torch.randn(7, 64).bfloat16().float())
    near(vectors.norm(dim=1), torch.ones(7), 1e-6)
    again = Head(64, 96, 32, 40, True).initialise(generator(0, "head"))
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))


def test_in_bf16_statistics_stay_wide() -> None:
    made = dino().float()
    task = made.hide(batch_of(range(8)))
    with torch.autocast("cpu", torch.bfloat16):
        outputs: Outputs = made.predict(task)
    assert outputs["globals"].dtype == torch.bfloat16
    sums = made.score(outputs, task, ALONE)
    exact = made.score(made.predict(task), task, ALONE)
    for name, value in sums.items():
        assert value.dtype == torch.float32
        if name != "prototypes_used":
            assert float(value.detach()) == pytest.approx(float(exact[name].detach()), rel=0.05)


# -- the recipe ----------------------------------------------------------------------------------------------


def pictures(count: int, side: int = 32) -> list[np.ndarray]:
    """No two alike."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def settled(images: Any, module: nn.Module | None = None, **given: Any) -> DINORecipe:
    recipe = DINORecipe(DINORecipe.resolve(("test", {"objective": "dino", **given})), images, module)
    recipe.open(lambda done, total: None)
    recipe.settle(Effort(steps=10))
    return recipe


def test_sizes_follow_the_images() -> None:
    small = settled(pictures(40), **{"model.preset": "vit-atto"})
    options = small.settings.config.dino
    assert (options.local_size, options.local_crops, options.prototypes) == (16, 6, 256)
    assert (options.hidden, options.bottleneck, options.ibot) == (256, 64, 0.2)
    assert small.settings.origin("dino.prototypes") == "number of images"
    assert small.views == pytest.approx(2 * 4 / 3 + 6 / 4)
    large = settled(pictures(20, 224), **{"model.preset": "vit-atto"})
    assert large.settings["dino.local_size"] == 96
    assert large.settings["model.patch"] == 16


@pytest.mark.parametrize(("images", "prototypes"), [(40, 256), (50_000, 2048), (1_281_167, 65536)])
def test_prototypes_follow_the_number_of_images(images: int, prototypes: int) -> None:
    recipe = settled(pictures(40), **{"model.preset": "vit-atto"})
    recipe.settings.change("dino.prototypes", None, "test")
    recipe.images = range(images)  # type: ignore[assignment]
    recipe.settle_head()
    assert recipe.settings["dino.prototypes"] == prototypes


def test_the_plan_says_it_all() -> None:
    facts = settled(pictures(40), **{"model.preset": "vit-atto"}).facts()
    assert facts["crops"].startswith("2 of 32 × 32, 6 (recipe) of 16 × 16 pixels (image size)")
    assert facts["hidden"] == "10% to 50% of the patches of 50% of the global crops, weight 0.2"
    assert "256 prototypes (number of images)" in facts["head"]
    assert f"{math.log(256):.3f} in the terms dino and ibot" in facts["knowing nothing"]
    bare = settled(pictures(40), **{"model.preset": "vit-atto", "dino.ibot": 0, "dino.local_crops": 0})
    assert bare.facts()["hidden"] == "none"


def test_flops_count_the_head() -> None:
    """Twice the prototypes cost 6 operations more for each of the student's vectors, 2 for each of the teacher's."""
    one, two = (settled(pictures(40), **{"model.preset": "vit-atto", "dino.prototypes": k}) for k in (256, 512))
    masked = 2 * 0.5 * 0.3 * 64
    expected = 256 * 64 * (6 * (2 + 6 + masked) + 2 * (2 + masked))
    assert two.flops_per_record() - one.flops_per_record() == pytest.approx(expected)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match=r"dino\.local_size 15 is no multiple of model\.patch 4"):
        settled(pictures(40), **{"dino.local_size": 15})
    with pytest.raises(UserError, match="Sequential cannot hide patches, which only vision transformers"):
        settled(pictures(40), pooled_convolution(), **{"dino.ibot": 1})
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))
    with pytest.raises(UserError, match=r"takes no images of 14 × 14 pixels.*dino\.local_size=32 or dino\.local_c"):
        settled(pictures(40), flat)
    assert settled(pictures(40), flat, **{"dino.local_size": 32}).settings["dino.ibot"] == 0


def pooled_convolution() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())


TINY: dict[str, Any] = {
    "model": {"preset": "vit-atto", "layers": 1, "width": 32, "heads": 1},
    "data.size": 16,
    "data.validation": 0.2,
    "dino": {"prototypes": 64, "local_crops": 2, "frozen": 0.2},
    "batch": 8,
    "steps": 8,
    "precision": "fp32",
    "train.log_every": 1,
    "evaluate.every": 4,
    "evaluate.records": 8,
    "evaluate.final_records": 8,
    "checkpoint.every": 3,
}


def test_a_run_leaves_the_teacher(tmp_path: Path) -> None:
    run = selfsup.train("dino", data=pictures(60), out=tmp_path / "run", **TINY)
    lines = run.metrics()
    terms = {"dino", "ibot", "koleo", "teacher_entropy", "prototypes_used"}
    assert all(terms < line.keys() for line in lines)
    assert {line["split"] for line in lines} == {"train", "validation"}
    assert lines[-1]["feature_std"] > 0
    features = json.loads((run.model_directory / "features.json").read_text())
    assert features["pooling"] == "cls"
    newest = run.checkpoints(3).newest()
    assert newest is not None
    state = newest.tensors["model"]
    saved = selfsup.load(run.model_directory).backbone.state_dict()
    assert saved
    for name, value in saved.items():
        assert torch.equal(value, state[f"teacher.backbone.{name}"])
    assert state["_extra_state"].tolist() == [8, 8]


def test_a_run_of_a_network_from_python(tmp_path: Path) -> None:
    """Without hidden patches; what is left is the teacher's network."""
    module, given = pooled_convolution(), {name: TINY[name] for name in TINY if name != "model"}
    run = selfsup.train("dino", data=pictures(60), model=module, out=tmp_path / "run", **given)
    assert run.settings()["dino.ibot"] == 0
    assert "ibot" not in run.metrics()[0]
    newest = run.checkpoints(3).newest()
    assert newest is not None
    saved = load_file(run.model_directory / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, newest.tensors["model"][f"teacher.backbone.network.{name}"])


def test_a_run_of_a_network_of_timm(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    given = {name: TINY[name] for name in TINY if name != "model"}
    run = selfsup.train(
        "dino", data=pictures(40), model="timm:test_resnet", out=tmp_path / "run", **{**given, "steps": 2}
    )
    assert run.settings()["dino.bottleneck"] > 0
    assert math.isfinite(run.summary["loss"])


@pytest.mark.parametrize("kind", ["sinkhorn", "centring"])
def test_a_run_that_was_cut_goes_on_exactly(kind: str, tmp_path: Path) -> None:
    """Teacher, centres and schedules included."""
    given = TINY | {"dino": {**TINY["dino"], "targets": kind}}
    whole = selfsup.train("dino", data=pictures(60), out=tmp_path / "whole", **given)
    cut = selfsup.train("dino", data=pictures(60), out=tmp_path / "cut", **given)
    for step in (8, 6):  # as if it had been killed before these were written
        (entry,) = (tmp_path / "cut" / "checkpoints").glob(f"*{step}")
        entry.rename(tmp_path / f"gone-{step}")
    (tmp_path / "cut" / "summary.json").unlink()
    cut = selfsup.train(data=pictures(60), resume=tmp_path / "cut")
    one, other = (run.checkpoints(3).newest().tensors for run in (whole, cut))  # type: ignore[union-attr]
    for part in one:
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), name
