"""What networks keep for the gradient, and how many parameters they have, beside what is measured and published."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsup.models.counting import Kept, kept_per_token, matrix_parameters, parameter_count
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.pixel_decoder import PixelDecoder, PixelDecoderConfig
from selfsup.models.vision import VisionConfig, VisionTransformer

SIDE = 23  # patches: more tokens than a CPU computes attention of by plain products, whose scores are kept
TOKENS = 2 * SIDE**2
DECODER = DecoderConfig(
    vocabulary=32, layers=1, width=128, heads=4, kv_heads=2, head_dim=64, mlp=320, window=600, tied=False
)
ENCODER = EncoderConfig(vocabulary=32, layers=1, width=128, heads=2, mlp=320, window=600, tied=True, global_every=1)
VISION = VisionConfig(size=4 * SIDE, patch=4, layers=1, width=128, heads=2, mlp=512, registers=None, scaled=False)
PIXELS = PixelDecoderConfig(encoder=64, width=128, layers=1, patch=4, hidden=0.5)


def tokens() -> Tensor:
    return torch.arange(TOKENS).view(2, -1) % 32


def of_texts(network: Any) -> Tensor:
    return network(tokens())


def of_images(network: Any) -> Tensor:
    return network(torch.rand(2, 3, 4 * SIDE, 4 * SIDE))


def of_patches(network: Any) -> Tensor:
    places = torch.arange(SIDE**2).expand(2, -1)
    return network(torch.rand(2, 100, 64), places[:, :100], places[:, 100:], (SIDE, SIDE))


CASES: dict[str, tuple[Callable[[Any], nn.Module], Any, Callable[[Any], Tensor], str]] = {
    "decoder": (Decoder, DECODER, of_texts, "model.layers"),
    "encoder": (TextEncoder, ENCODER, of_texts, "layers"),
    "encoder with dropout": (TextEncoder, replace(ENCODER, dropout=0.1), of_texts, "layers"),
    "encoder as BERT": (TextEncoder, replace(ENCODER, positions=600, gated=False, biases=True), of_texts, "layers"),
    "vision": (VisionTransformer, VISION, of_images, "layer"),
    "vision with positions": (VisionTransformer, replace(VISION, learnt_positions=True), of_images, "layer"),
    "pixels": (PixelDecoder, PIXELS, of_patches, "blocks"),
}


def held(network: nn.Module, run: Callable[[Any], Tensor], bf16: bool) -> int:
    """Bytes that are kept for the gradient, without the parameters themselves."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    found: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    precision = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    with precision, torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        result = run(network)
    del result
    return sum(found.values())


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_what_a_layer_keeps_is_counted(name: str, bf16: bool) -> None:
    """By what three layers keep more than one does; copies of weights in the type of products are no activations."""
    kind, config, run, layers = CASES[name]
    few, more = (kind(replace(config, layers=number)).train() for number in (1, 3))
    kept: Kept = few.kept
    if kind is Decoder:  # whose norms keep other numbers on a CPU
        kept = Kept(kept.narrow + 2 * config.width, 0)
    copies = 2 * matrix_parameters(more.get_submodule(f"{layers}.2")) if bf16 else 0
    measured = (held(more, run, bf16) - held(few, run, bf16)) / 2 - copies
    seen = TOKENS + 2 * (kind is VisionTransformer)  # with the class token
    assert measured / seen == pytest.approx(kept.size(2 if bf16 else 4), rel=0.03)


def test_a_layer_of_gpt_keeps_what_is_published() -> None:
    """Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 1 without the
    scores of attention: 34 bytes for a number of a hidden state, 2 of them masks of dropout; with sums in 16 bits."""
    kept = kept_per_token(1.0, 1.0, 1.0, 4.0, turned=False, gated=False)
    assert 2 * kept.narrow + 2 * kept.wide == 34 - 2


# -- published sizes -----------------------------------------------------------------------------------------

QWEN3 = DecoderConfig(
    vocabulary=151936, layers=28, width=1024, heads=16, kv_heads=8, head_dim=128, mlp=3072, window=512, tied=True
)
LLAMA = replace(QWEN3, layout="llama", qk_norm=False, tied=False)
MODERNBERT = EncoderConfig(vocabulary=50368, layers=22, width=768, heads=12, mlp=1152, window=512, tied=True)
BERT = EncoderConfig(
    vocabulary=30522,
    layers=24,
    width=1024,
    heads=16,
    mlp=4096,
    window=512,
    tied=True,
    layout="bert",
    positions=512,
    token_types=2,
    post_norm=True,
    biases=True,
    gated=False,
)
VIT = VisionConfig(
    size=224,
    patch=14,
    layers=32,
    width=1280,
    heads=16,
    mlp=5120,
    registers=None,
    layout="vit",
    learnt_positions=True,
    mask_token=False,
    scaled=False,
    key_bias=True,
)
PUBLISHED: dict[str, tuple[Callable[[Any], nn.Module], Any, int]] = {
    # The numbers of parameters that the files of these models hold (safetensors, Hugging Face Hub).
    "Qwen3-0.6B": (Decoder, QWEN3, 596_049_920),
    "Qwen3-1.7B": (Decoder, replace(QWEN3, width=2048, mlp=6144), 1_720_574_976),
    "Qwen3-8B": (Decoder, replace(QWEN3, layers=36, width=4096, heads=32, mlp=12288, tied=False), 8_190_735_360),
    "Llama-2-7b": (
        Decoder,
        replace(LLAMA, vocabulary=32000, layers=32, width=4096, heads=32, kv_heads=32, mlp=11008),
        6_738_415_616,
    ),
    "Llama-3.1-8B": (
        Decoder,
        replace(LLAMA, vocabulary=128256, layers=32, width=4096, heads=32, mlp=14336),
        8_030_261_248,
    ),
    "ModernBERT-base": (TextEncoder, MODERNBERT, 149_014_272),
    "ModernBERT-large": (TextEncoder, replace(MODERNBERT, layers=28, width=1024, heads=16, mlp=2624), 394_781_696),
    "bert-large-uncased, without its pooler": (TextEncoder, BERT, 335_141_888 - 1024**2 - 1024),
    # Dosovitskiy et al. 2021, table 1: 632 million, a classifier of 1,000 classes among them.
    "ViT-H/14": (VisionTransformer, VIT, 632_045_800 - 1000 * 1281),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    kind, config, expected = PUBLISHED[name]
    assert parameter_count(kind, config) == expected
