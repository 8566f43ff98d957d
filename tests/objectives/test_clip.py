"""CLIP: its losses against plain loops, what is hidden of captions, towers that stay as they are, gradient caching."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import assert_alike
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup import step
from selfsup.config import OptimConfig
from selfsup.data.records import Batch
from selfsup.distributed import Processes
from selfsup.models.clip import Loss
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.features import Features
from selfsup.models.vision import VisionConfig, VisionTransformer
from selfsup.objectives import losses
from selfsup.objectives.captions import HiddenTokens
from selfsup.objectives.clip import CLIP, LARGEST_SCALE, modality_gap
from selfsup.objectives.losses import info_nce, nt_xent, sigmoid_pairs
from selfsup.objectives.simclr import ProjectionHead, SimCLR
from selfsup.objectives.towers import ImageTower, SharedProjection, TextTower
from selfsup.optim import Optimizer
from selfsup.seeding import generator, seeded
from selfsup.step import gradients
from selfsup.views import View, render, simclr_view

ALONE = Processes.alone()
RECORDS, CAPTIONS, LONGEST, VOCABULARY, SIZE = 24, 3, 9, 20, 8
START, END, PAD, MASK = 0, 1, 2, 3
random = np.random.default_rng(0)
PIXELS = torch.from_numpy(random.integers(0, 256, (RECORDS, 3, 12, 12), dtype=np.uint8))
COUNTS = torch.from_numpy(random.integers(1, CAPTIONS + 1, RECORDS))
LENGTHS = torch.from_numpy(random.integers(3, LONGEST + 1, (RECORDS, CAPTIONS)))
TOKENS = torch.from_numpy(random.integers(4, VOCABULARY, (RECORDS, CAPTIONS, LONGEST)))
TOKENS[:, :, 0] = START
KEYS = torch.arange(RECORDS * CAPTIONS).view(RECORDS, CAPTIONS)


def objective(loss: Loss = "softmax", hidden: float = 0.0, simclr: float = 0.0) -> CLIP:
    """With weights that all matter."""
    network = VisionTransformer(VisionConfig(SIZE, 4, 1, 16, 2, 24, registers=1))
    encoder = TextEncoder(EncoderConfig(VOCABULARY, 1, 12, 2, 16, LONGEST, tied=False))
    also = None
    if simclr:
        also = SimCLR(network, ProjectionHead(16, 6), simclr_view(SIZE), "mean", 0.5), simclr
    made = CLIP(
        ImageTower(network, SharedProjection(16, 6), "mean"),
        TextTower(encoder, SharedProjection(12, 6), "mean"),
        View(SIZE, (0.5, 1.0)),
        loss,
        0.2,
        -1.5,
        {"image": 1.0, "text": 0.1},
        HiddenTokens(hidden, MASK, (START, END, PAD, MASK)) if hidden else None,
        also,
    )
    with torch.no_grad():
        for number, (name, parameter) in enumerate(made.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number))
            if name not in ("log_scale", "bias"):
                parameter.copy_(0.2 * noise + (parameter.ndim == 1 and "bias" not in name))
    return made


def batch_of(indices: Sequence[int], epoch: int = 0, seed: int = 3) -> Batch:
    places = np.asarray(indices)
    data = {
        "pixels": PIXELS[places],
        "sizes": torch.full((len(places), 2), 12),
        "tokens": TOKENS[places],
        "lengths": LENGTHS[places],
        "captions": COUNTS[places],
        "text_keys": KEYS[places],
        "image_keys": torch.from_numpy(places),
    }
    return Batch(data, seed, np.full(len(places), epoch), places)


def normalised(count: int, seed: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    raw = [torch.randn(count, 5, generator=draws, dtype=torch.double) for _ in "ab"]
    return [torch.nn.functional.normalize(x, dim=-1).requires_grad_() for x in raw]


# -- the losses ----------------------------------------------------------------------------------------------


def plain_info_nce(queries: Tensor, keys: Tensor, kinds: Sequence[Sequence[int]], scale: float) -> Tensor:
    """One query and one key after the other; keys that share any identity with the query are left out."""
    total = torch.zeros((), dtype=queries.dtype)
    for i in range(len(queries)):
        kept = [j for j in range(len(keys)) if j == i or not set(enumerate(kinds[i])) & set(enumerate(kinds[j]))]
        terms = torch.stack([scale * (queries[i] @ keys[j]) for j in kept])
        total = total - terms[kept.index(i)] + terms.logsumexp(0)
    return total


def plain_sigmoid(queries: Tensor, keys: Tensor, kinds: Sequence[Sequence[int]], scale: float, bias: float) -> Tensor:
    """One pair after the other."""
    total = torch.zeros((), dtype=queries.dtype)
    for i in range(len(queries)):
        for j in range(len(keys)):
            logit = scale * (queries[i] @ keys[j]) + bias
            if i == j:
                total = total + torch.log(1 + torch.exp(-logit))
            elif not set(enumerate(kinds[i])) & set(enumerate(kinds[j])):
                total = total + torch.log(1 + torch.exp(logit))
    return total


KINDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=7)


@settings(deadline=None, max_examples=50)
@given(kinds=KINDS, seed=st.integers(0, 2**30), scale=st.floats(0.5, 20.0), bias=st.floats(-10.0, 1.0))
def test_losses_against_plain_loops(kinds: list[tuple[int, int]], seed: int, scale: float, bias: float) -> None:
    queries, keys = normalised(len(kinds), seed)
    identities = torch.tensor(kinds)
    both = (
        (info_nce(queries, keys, identities, scale, ALONE), plain_info_nce(queries, keys, kinds, scale)),
        (
            sigmoid_pairs(queries, keys, identities, scale, bias, ALONE),
            plain_sigmoid(queries, keys, kinds, scale, bias),
        ),
    )
    for found, expected in both:
        torch.testing.assert_close(found, expected)
        wanted = torch.autograd.grad(expected, (queries, keys), allow_unused=True, retain_graph=True)
        for one, other in zip(torch.autograd.grad(found, (queries, keys)), wanted, strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other)


def test_a_large_batch_is_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which changes neither the loss nor any gradient, that of the learnt scale and bias included."""
    queries, keys = normalised(20, 3)
    scale, bias = (torch.tensor(value, dtype=torch.double, requires_grad=True) for value in (5.0, -1.0))
    kinds = torch.arange(20) % 17
    found = []
    for rows in (1024, 6):
        monkeypatch.setattr(losses, "ROWS", rows)
        made = (
            info_nce(queries, keys, kinds, scale, ALONE),
            sigmoid_pairs(queries, keys, kinds, scale, bias, ALONE),
            nt_xent(queries, keys, kinds, 2.0, ALONE),
        )
        total = made[0] + 2 * made[1] + 3 * made[2]
        found.append((*made, *torch.autograd.grad(total, (queries, keys, scale, bias))))
    for whole, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_score_is_the_plain_loss_of_towers_alone(loss: Loss) -> None:
    """Each image and each caption by itself through its tower; a picture that is there twice is no negative."""
    made, batch = objective(loss).double(), batch_of([0, 7, 3, 7])
    task = made.hide(batch)
    found = made.score(made.predict(task), task, ALONE)[loss]
    images, texts = [], []
    for view, tokens, length in zip(task["views"], task["tokens"], task["lengths"], strict=True):
        seen = made.image.network(view[None].double())[0, 2:].mean(0)
        images.append(made.image.projection.weight @ seen + made.image.projection.bias)
        read = made.text.network(tokens[None, :length])[0].mean(0)
        texts.append(made.text.projection.weight @ read + made.text.projection.bias)
    image, text = (torch.nn.functional.normalize(torch.stack(x), dim=-1) for x in (images, texts))
    kinds, scale = task["keys"].tolist(), float(made.log_scale.detach().exp())
    if loss == "softmax":
        forth, back = plain_info_nce(image, text, kinds, scale), plain_info_nce(text, image, kinds, scale)
        expected = (forth + back) / 2
    else:
        expected = plain_sigmoid(image, text, kinds, scale, -1.5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert int(task.counts[loss]) == 4


def test_towers_that_know_nothing_pay_the_logarithm_of_the_batch() -> None:
    same = torch.ones(8, 4, dtype=torch.double) / 2
    keys = torch.arange(16).view(8, 2)
    assert float(info_nce(same, same, keys, 14.0, ALONE)) == pytest.approx(8 * math.log(8))


def test_the_gap_between_modalities() -> None:
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert float(modality_gap(image, text, ALONE)) == pytest.approx(math.dist((0.5, 0.5), (0.0, 1.0)))
    assert float(modality_gap(image, image, ALONE)) == 0.0


# -- what is hidden ------------------------------------------------------------------------------------------


def test_each_epoch_draws_one_of_an_images_own_captions() -> None:
    made, drawn = objective(), []
    for epoch in range(40):
        task = made.hide(batch_of(range(RECORDS), epoch))
        for record, (tokens, length) in enumerate(zip(task["tokens"], task["lengths"], strict=True)):
            own = [
                caption
                for caption in range(int(COUNTS[record]))
                if torch.equal(TOKENS[record, caption], tokens) and LENGTHS[record, caption] == length
            ]
            assert own, (epoch, record)
            drawn.append((record, own[0]))
    assert set(drawn) == {(r, c) for r in range(RECORDS) for c in range(int(COUNTS[r]))}


def test_a_drawn_caption_depends_on_nothing_but_its_place() -> None:
    made = objective(hidden=0.4).train()
    whole, alone = made.hide(batch_of(range(RECORDS))), made.hide(batch_of([5]))
    for name in ("tokens", "lengths", "keys", "views"):
        assert torch.equal(whole[name][5], alone[name][0]), name


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0.05, 0.9), seed=st.integers(0, 2**30))
def test_hidden_tokens_are_masks_and_special_ones_are_never_hidden(share: float, seed: int) -> None:
    tokens = torch.randint(0, VOCABULARY, (200, LONGEST), generator=torch.Generator().manual_seed(seed))
    places = np.arange(200)
    hide = HiddenTokens(share, MASK, (START, END, PAD, MASK))
    shown = hide(tokens, Batch({}, seed, np.zeros(200), places))
    changed = shown != tokens
    assert (shown[changed] == MASK).all()
    ordinary = tokens > MASK
    assert not changed[~ordinary].any()
    assert float(changed[ordinary].float().mean()) == pytest.approx(share, abs=0.06)


def test_nothing_is_hidden_in_evaluation() -> None:
    made = objective(hidden=0.5)
    shown = [made.train(mode).hide(batch_of(range(RECORDS)))["tokens"] for mode in (True, False)]
    assert (shown[0] == MASK).any()
    assert not (shown[1] == MASK).any()


# -- towers --------------------------------------------------------------------------------------------------


def test_a_frozen_tower_stays_as_it_is_and_its_projection_does_not() -> None:
    made = objective()
    made.image.freeze()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    gradients(made.train(), [batch_of(range(RECORDS))], ALONE)
    Optimizer(made, OptimConfig(lr=0.02, adamw_lr=0.01, weight_decay=0.1)).step(1.0)
    moved = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in moved if name.startswith("image.network.")]
    assert {"image.projection.weight", "text.projection.weight", "log_scale"} <= moved
    assert not made.image.network.training
    assert made.text.network.training


def test_a_tower_has_its_own_learning_rate() -> None:
    """A tenth of it moves a tenth as far, in the first update of AdamW, which is as large as its rate."""
    made = objective()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    gradients(made, [batch_of(range(RECORDS))], ALONE)
    config = OptimConfig(matrices="adamw", lr=0.01, adamw_lr=0.01, weight_decay=0.0)
    Optimizer(made, config).step(1.0)
    moved = {name: float((t - before[name]).abs().max()) for name, t in made.state_dict().items()}
    assert moved["image.network.norm.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["text.network.final_norm.weight"] == pytest.approx(0.001, rel=1e-3)
    assert moved["text.projection.weight"] == pytest.approx(0.01, rel=1e-3)


def test_a_projection_starts_in_the_space_of_the_features_that_it_is_given() -> None:
    draws = generator(0, "draws")
    weight, bias, x = (torch.randn(*shape, generator=draws) for shape in ((5, 7), (5,), (3, 7)))
    known = Features("mean", weight, bias)
    same = SharedProjection(7, 5).initialise(generator(1, "projection"), known)
    torch.testing.assert_close(same(x), known.map(x))
    turned = SharedProjection(7, 4).initialise(generator(1, "projection"), known)
    directions = torch.linalg.lstsq(known.map(torch.eye(7)) - bias, turned.weight.T).solution
    torch.testing.assert_close(turned(x), known.map(x) @ directions, atol=1e-4, rtol=1e-3)


def test_the_temperature_is_kept_within_its_bounds() -> None:
    made = objective()
    for raw, expected in ((9.0, LARGEST_SCALE), (-1.0, 1.0), (2.0, math.exp(2.0))):
        with torch.no_grad():
            made.log_scale.fill_(raw)
        made.after_step(0, 10)
        assert float(made.log_scale.detach().exp()) == pytest.approx(expected)


# -- gradient caching, and SimCLR on top ---------------------------------------------------------------------


def cut(size: int) -> list[Batch]:
    return [batch_of(range(start, min(start + size, RECORDS))) for start in range(0, RECORDS, size)]


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [4, 7, 24])
def test_caching_gives_the_gradient_of_the_large_batch(size: int, loss: Loss) -> None:
    """To 1e-5 in fp32, of one graph over all pairs; the temperature's and the bias's too."""
    plain = objective(loss)
    task = plain.hide(batch_of(range(RECORDS)))
    (plain.score(plain.predict(task), task, ALONE)[loss] / RECORDS).backward()
    made = objective(loss)
    gradients(made, cut(size), ALONE)
    for (name, one), other in zip(made.named_parameters(), plain.parameters(), strict=True):
        if not one.requires_grad:
            assert name == "image.network.embeddings.mask_token"  # no patch is hidden
            continue
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert float((one.grad - other.grad).norm()) < 1e-5 * max(float(other.grad.norm()), 1e-2), name


def test_views_of_other_micro_batches_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is made when it is predicted: twice, and not while another one is there."""
    made: list[weakref.ref[Tensor]] = []

    def counted(*place: Any) -> Tensor:
        assert sum(view() is not None for view in made) <= 1  # of the micro-batch before, at most
        views = render(*place)
        made.append(weakref.ref(views))
        return views

    monkeypatch.setattr("selfsup.objectives.clip.render", counted)
    gradients(objective(), cut(4), ALONE)
    assert len(made) == 2 * len(cut(4))


def test_what_is_deferred_is_the_same_each_time() -> None:
    task = objective(simclr=0.5).hide(batch_of(range(6)))
    assert {"views", "tokens", "simclr_views", "simclr_records"} <= set(task.tensors)
    assert len(task.tensors) == len(list(task.tensors))
    for name in task.tensors:
        assert torch.equal(task[name], task[name]), name


def test_gradients_of_micro_batches_lie_where_the_step_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory that was taken before the first of them, and only where there are any."""
    made = objective()
    made.text.freeze()
    rooms: dict[torch.nn.Parameter, Tensor] = {}

    def taken(objective: CLIP) -> dict[torch.nn.Parameter, Tensor]:
        rooms.update(real(objective))
        return rooms

    real = step._rooms
    monkeypatch.setattr(step, "_rooms", taken)
    gradients(made, cut(8), ALONE)
    found = {name: parameter for name, parameter in made.named_parameters() if parameter.grad is not None}
    assert all(parameter.grad is rooms[parameter] for parameter in found.values())
    assert found
    assert not [name for name in found if name.startswith("text.network")]


def test_simclr_on_top_is_simclr_alone() -> None:
    """Its term is what SimCLR says of the same images, and the network gets the gradients of both."""
    both, batch = objective(simclr=0.5), batch_of(range(RECORDS))
    assert both.simclr is not None
    figures = gradients(both, [batch], ALONE)
    together = {name: p.grad.clone() for name, p in both.image.network.named_parameters() if p.grad is not None}
    both.zero_grad()
    alone = gradients(both.simclr, [batch], ALONE)
    assert float(figures["nt_xent"]) == pytest.approx(float(alone["nt_xent"]))
    of_simclr = {name: p.grad for name, p in both.image.network.named_parameters() if p.grad is not None}
    plain = objective()
    gradients(plain, [batch], ALONE)
    named = dict(plain.image.network.named_parameters())
    for name, gradient in together.items():
        assert_alike(gradient.flatten(), (named[name].grad + 0.5 * of_simclr[name]).flatten())
    assert float(figures["loss"]) == pytest.approx(float(figures["softmax"]) + 0.5 * float(figures["nt_xent"]))


def test_its_weights_are_a_function_of_the_seed() -> None:
    with seeded(1, "anything"):
        one = SharedProjection(7, 5).initialise(generator(4, "projection"), Features())
    other = SharedProjection(7, 5).initialise(generator(4, "projection"), Features())
    assert torch.equal(one.weight, other.weight)
