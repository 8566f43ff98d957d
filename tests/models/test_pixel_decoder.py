"""The decoder of a masked autoencoder: its positions, its patches, its arithmetic in plain loops, its files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.errors import UserError
from selfsup.models.counting import matrix_parameters, sketched
from selfsup.models.pixel_decoder import (
    HEAD_DIM,
    Block,
    PixelDecoder,
    PixelDecoderConfig,
    assembled,
    patches,
    read_decoder,
    save_decoder,
    select,
    sin_cos,
)
from selfsup.seeding import generator

CPU = torch.device("cpu")
CONFIG = PixelDecoderConfig(encoder=12, width=64, layers=2, patch=2, hidden=0.75)
GRID = (3, 4)


def decoder(seed: int = 0, config: PixelDecoderConfig = CONFIG) -> PixelDecoder:
    """In fp64, with weights that all matter: a fresh decoder says nothing."""
    made = PixelDecoder(config)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(seed, "noise", number))
            parameter.copy_(0.2 * noise + (parameter.ndim == 1))
    return made.double()


def encoded(visible: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, visible, CONFIG.encoder, dtype=torch.double, generator=generator(0, "encoded", visible))


def places(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


# -- positions and patches -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "width"), [((3, 4), 64), ((1, 1), 32), ((5, 2), 8)])
def test_positions_are_sines_and_cosines_of_column_and_row(grid: tuple[int, int], width: int) -> None:
    found = sin_cos(grid, width, torch.double, CPU)
    assert found.shape == (grid[0] * grid[1], width)
    quarter = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = [
                wave(place / 10000 ** (4 * i / width))
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for i in range(quarter)
            ]
            assert found[row * grid[1] + column].tolist() == pytest.approx(expected, abs=1e-12)


def test_patches_hold_the_pixels_of_their_square() -> None:
    pixels = torch.randn(2, 3, 6, 8)
    found = patches(pixels, 2)
    assert found.shape == (2, 12, 12)
    for place in range(12):
        row, column = 2 * (place // 4), 2 * (place % 4)
        assert torch.equal(found[:, place], pixels[:, :, row : row + 2, column : column + 2].flatten(1))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.integers(1, 4), batch=st.integers(1, 3))
def test_patches_are_put_together_again(rows: int, columns: int, patch: int, batch: int) -> None:
    pixels = torch.randn(batch, 3, rows * patch, columns * patch)
    assert torch.equal(assembled(patches(pixels, patch), patch, (rows, columns)), pixels)


def test_select_takes_each_images_own_patches() -> None:
    values = torch.arange(2 * 5 * 3).view(2, 5, 3)
    found = select(values, places([4, 0], [1, 2]))
    assert torch.equal(found, torch.stack((values[0, [4, 0]], values[1, [1, 2]])))


# -- what it computes ----------------------------------------------------------------------------------------


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * weight


def plain_block(block: Block, x: Tensor, eps: float) -> Tensor:
    """One patch, one head after the other, of (N, width)."""
    q, k, v = block.qkv.weight.chunk(3)
    normal = torch.stack([plain_norm(row, block.attention_norm.weight, eps) for row in x])
    seen = torch.zeros_like(x)
    for head in range(x.shape[1] // HEAD_DIM):
        own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        for patch in range(len(x)):
            query = q[own] @ normal[patch]
            scores = torch.stack([query @ (k[own] @ other) for other in normal]) / HEAD_DIM**0.5
            weights = scores.exp() / scores.exp().sum()
            seen[patch, own] = sum(w * (v[own] @ other) for w, other in zip(weights, normal, strict=True))
    x = x + torch.stack([block.out.weight @ row for row in seen])
    rows = []
    for row in x:
        inner = block.up.weight @ plain_norm(row, block.mlp_norm.weight, eps)
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        rows.append(row + block.down.weight @ inner)
    return torch.stack(rows)


def plain_decoder(made: PixelDecoder, states: Tensor, visible: list[int], hidden: list[int]) -> Tensor:
    """Every patch at its own place in the grid, as in figure 1 of the paper; (M, values) of one image."""
    table = sin_cos(GRID, made.config.width, torch.double, CPU)
    whole = [made.mask_token + table[place] for place in range(GRID[0] * GRID[1])]
    for place, state in zip(visible, states, strict=True):
        whole[place] = made.embed.weight @ state + table[place]
    x = torch.stack(whole)
    for block in made.blocks:
        x = plain_block(block, x, made.config.norm_eps)
    x = torch.stack([plain_norm(row, made.norm.weight, made.config.norm_eps) for row in x])
    return torch.stack([made.head.weight @ x[place] for place in hidden])


def test_against_plain_loops() -> None:
    made = decoder()
    visible = places([0, 5, 7], [1, 2, 11])
    hidden = places(*[[place for place in range(12) if place not in row] for row in visible.tolist()])
    states = encoded(3)
    found = made(states, visible, hidden, GRID)
    assert found.shape == (2, 9, 12)
    for image in range(2):
        expected = plain_decoder(made, states[image], visible[image].tolist(), hidden[image].tolist())
        torch.testing.assert_close(found[image], expected, rtol=0, atol=1e-10)


def test_patches_may_come_in_any_order() -> None:
    """What is known of a patch is where it lies, not when it comes."""
    made, states = decoder(), encoded(3, batch=1)
    visible, hidden = places([0, 5, 7]), places([2, 3, 9, 11])
    found = made(states, visible, hidden, GRID)
    turned = made(states.flip(1), visible.flip(1), hidden.flip(1), GRID)
    torch.testing.assert_close(turned.flip(1), found, rtol=0, atol=1e-12)


def test_the_precision_is_that_of_autocast() -> None:
    made = decoder().float()
    states, visible, hidden = encoded(3).float(), places([0, 5, 7], [1, 2, 11]), places([1, 2], [3, 4])
    wide = made(states, visible, hidden, GRID)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = made(states.bfloat16(), visible, hidden, GRID)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - wide).abs().max() < 0.05 * wide.abs().max()


# -- weights -------------------------------------------------------------------------------------------------


def test_a_fresh_decoder_predicts_the_mean_and_is_a_function_of_the_seed() -> None:
    first, same, other = (
        PixelDecoder(CONFIG).initialise(generator(seed, "weights")).state_dict() for seed in (0, 0, 1)
    )
    assert all(value.isfinite().all() for value in first.values())
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["blocks.0.qkv.weight"], other["blocks.0.qkv.weight"])
    fresh = PixelDecoder(CONFIG).initialise(generator(0, "weights")).double()
    assert not fresh(encoded(3), places([0, 5, 7], [1, 2, 11]), places([1], [0]), GRID).any()


def test_matrix_parameters_and_operations_are_counted() -> None:
    """A visible patch meets the map at the entry, a hidden one that at the end, both the blocks."""
    made = decoder()
    matrices = sum(parameter.numel() for parameter in made.parameters() if parameter.ndim == 2)
    assert matrix_parameters(sketched(PixelDecoder, CONFIG)) == matrices
    blocks = 5 * 12 * CONFIG.layers * CONFIG.width**2
    ends = 2 * CONFIG.encoder * CONFIG.width + 3 * CONFIG.width * CONFIG.values
    assert made.flops(2, 3) == 6 * (blocks + ends) + 12 * CONFIG.layers * CONFIG.width * 5**2


def test_a_width_that_heads_do_not_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        replace(CONFIG, width=40)


# -- files ---------------------------------------------------------------------------------------------------


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    made = decoder().float()
    save_decoder(made, tmp_path)
    again = read_decoder(tmp_path)
    assert again.config == made.config
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("decoder.json", None, "holds no decoder"),
        ("decoder.json", "{", "cannot be read"),
        ("decoder.json", json.dumps({"width": 64}), "lacks 'encoder'"),
        (
            "decoder.json",
            json.dumps({"width": 65, "hidden": 0.5} | dict.fromkeys(["encoder", "layers", "patch", "norm_eps"], 1)),
            "broken",
        ),
        ("decoder.safetensors", None, "is missing"),
        ("decoder.safetensors", "half", "cannot be read"),
    ],
)
def test_what_is_damaged_is_said(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    save_decoder(decoder().float(), tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        read_decoder(tmp_path)
    assert name.partition(".")[0] in str(error.value)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_decoder(decoder().float(), tmp_path)
    config = json.loads((tmp_path / "decoder.json").read_text(encoding="utf-8"))
    (tmp_path / "decoder.json").write_text(json.dumps(config | {"layers": 1}), encoding="utf-8")
    with pytest.raises(UserError, match="should be absent"):
        read_decoder(tmp_path)
