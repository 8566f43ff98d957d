"""The smallest directories of two towers as transformers writes them: CLIP, SigLIP and SigLIP 2 of one size of images.

Every weight is drawn, gains and biases of norms too, so that a wrong wiring shows.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

WINDOW, SIZE, DIMENSION = 12, 24, 10
KINDS = ("clip", "clip-legacy", "siglip", "siglip2")
WORDS = ("red", "green", "blue", "drawing", "thing", "photo", "the", "of", "in", "noise", "cat", "dog")
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": WINDOW,
}
VISION = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SHORT, LONG, EMPTY = "A red Drawing, of a thing!", "the cat in the photo of noise " * 4, ""
TEXTS = [SHORT, LONG, EMPTY, "Cat", "42 % of the ☂ umbrellas\n"]


def save_towers(directory: Path, kind: str, seed: int = 0) -> Path:
    """A directory of one of `KINDS`: model, tokenizer, and how images are prepared."""
    tokenizer = {"siglip": siglip_tokenizer, "siglip2": gemma_tokenizer}.get(kind, clip_tokenizer)()
    model = _clip(len(tokenizer), kind) if kind.startswith("clip") else _siglip(len(tokenizer))
    draw(model, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _image_processor(kind).save_pretrained(directory)
    return directory


def open_towers(directory: Path) -> Any:
    """The same as transformers opens it."""
    import transformers

    return transformers.AutoModel.from_pretrained(directory).eval()


@torch.no_grad()
def draw(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter numbers: gains near one, maps that keep the size of what they are given."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        gain = parameter.ndim == 1 and name.endswith("weight")
        deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "embedding" not in name else 0.4
        parameter.copy_(torch.randn(parameter.shape, generator=random) * deviation + float(gain))
    model.logit_scale.fill_(math.log(12.0))
    if hasattr(model, "logit_bias"):
        model.logit_bias.fill_(-3.0)


def _clip(vocabulary: int, kind: str) -> Any:
    from transformers import CLIPConfig, CLIPModel

    marks = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 1}
    if kind == "clip-legacy":
        marks = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text = TEXT | {"vocab_size": vocabulary} | marks
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIMENSION))


def _siglip(vocabulary: int) -> Any:
    from transformers import SiglipConfig, SiglipModel

    text = TEXT | {"vocab_size": vocabulary, "projection_size": VISION["hidden_size"]}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))


def _image_processor(kind: str) -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    square = {"height": SIZE, "width": SIZE}
    if kind.startswith("clip"):
        return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=square)
    return SiglipImageProcessorPil(size=square, resample=2 if kind == "siglip2" else 3)


def prepared(directory: Path, images: list[Any]) -> torch.Tensor:
    """Pixels as the directory's own image processor makes them."""
    import transformers

    return transformers.AutoImageProcessor.from_pretrained(directory)(images, return_tensors="pt")["pixel_values"]


def tokenised(directory: Path, texts: list[str]) -> dict[str, torch.Tensor]:
    """Tokens as one shows them to the model: of SigLIP padded to the longest, without a mask."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    padding = True if transformers.AutoConfig.from_pretrained(directory).model_type == "clip" else "max_length"
    how = {"padding": padding, "truncation": True, "max_length": WINDOW, "return_tensors": "pt"}
    tokens = tokenizer(texts, **how)
    return dict(tokens) if padding is True else {"input_ids": tokens["input_ids"]}


def pictures(*shapes: tuple[int, int]) -> list[Image.Image]:
    """Smooth ones, by default of the size that is seen, so that none is resized."""
    random, shapes = np.random.default_rng(0), shapes or ((SIZE, SIZE),) * 3
    dots = [Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in shapes]
    return [one.resize(shape, Image.Resampling.BICUBIC) for one, shape in zip(dots, shapes, strict=True)]


def share(found: Any, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((torch.as_tensor(found) - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def asked(directory: Path) -> Any:
    """What transformers makes of the pictures and texts, by the directory's own tokenizer and image processor."""
    return open_towers(directory)(pixel_values=prepared(directory, pictures()), **tokenised(directory, TEXTS))


# -- tokenizers ----------------------------------------------------------------------------------------------


def clip_tokenizer() -> Any:
    """Lower case, bytes, `</w>` at the ends of words."""
    from transformers import CLIPTokenizer

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: id_ for id_, symbol in enumerate([*symbols, *(f"{symbol}</w>" for symbol in symbols)])}
    merges = _merges(WORDS, "</w>")
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[mark] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW)


def siglip_tokenizer() -> Any:
    """Pieces with their probabilities, lower case, no punctuation; `</s>` ends and pads."""
    from transformers import PreTrainedTokenizerFast

    letters = [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "▁")]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(piece, -5.0) for piece in letters] + [(f"▁{word}", -3.0) for word in WORDS if len(word) > 1]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    marks = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    how = {"model_input_names": ["input_ids"], "model_max_length": WINDOW, "padding_side": "right"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks, **how)


def gemma_tokenizer(lowering: bool = False, side: str | None = "right") -> Any:
    """Gemma's: merges across spaces that are written `▁`, unknown characters as bytes; `<eos>` ends, `<pad>` pads. Or
    the same in lower case, as SigLIP 2 has it in newer files."""
    from transformers import GemmaTokenizer, Siglip2Tokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    names += [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = {name: id_ for id_, name in enumerate(names)}
    merges = _merges(WORDS)
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    how: dict[str, Any] = {"add_bos_token": False, "add_eos_token": True, "model_max_length": WINDOW}
    how |= {"model_input_names": ["input_ids"], **({} if side is None else {"padding_side": side})}
    return (Siglip2Tokenizer if lowering else GemmaTokenizer)(vocab=vocabulary, merges=merges, **how)


def _merges(words: tuple[str, ...], ending: str = "") -> list[tuple[str, str]]:
    """What joins the letters of words, first to last."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        symbols = [*word[:-1], word[-1] + ending]
        while len(symbols) > 1:
            merges[(symbols[0], symbols[1])] = None
            symbols[:2] = ["".join(symbols[:2])]
    return list(merges)
