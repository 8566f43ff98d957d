"""What kind of model a directory holds, by what its files say."""

from __future__ import annotations

from pathlib import Path

from selfsup.models.directories import read_config, table_place

# What config.json calls the models whose arithmetic stands here.
DECODERS = (
    "qwen3",
    "qwen2",
    "llama",
    "mistral",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3_text",
)  # the first is that of new ones
ENCODERS = ("modernbert", "bert", "roberta", "xlm-roberta", "camembert", "distilbert")  # likewise
VISION, TOWERS = "dinov3_vit", "selfsup-clip"
# And those of vision transformers of others, whose arithmetic stands here too.
SEEING = (
    VISION,
    "dinov2",
    "dinov2_with_registers",
    "vit",
    "deit",
    "vit_mae",
    "siglip_vision_model",
    "clip_vision_model",
)
CONVOLVING = "textnet"  # and of the convolutional network
IMAGE, TEXT = "image", "text"  # directories of the towers
PAIRS = ("clip", "siglip", "siglip2")  # of others, two towers in one directory
TEXT_TOWERS = ("clip_text_model", "siglip_text_model")  # text encoders that read texts as their tokenizer frames them
PREPROCESSOR = "preprocessor_config.json"  # how images are prepared
HEADS_THAT_WRITE = ("ForCausalLM", "LMHeadModel")


def two_towers(directory: Path) -> bool:
    """Whether a directory holds two, each in a directory of its own or both in one."""
    return read_config(directory).get("model_type") in (TOWERS, *PAIRS)


def in_one(directory: Path) -> bool:
    """Whether it holds two whose files are the same."""
    return read_config(directory).get("model_type") in PAIRS


def sees(directory: Path) -> bool:
    """Whether it holds a model of images: it says how they are prepared."""
    return (directory / PREPROCESSOR).exists() or read_config(directory).get("model_type") in (*SEEING, CONVOLVING)


def reads(directory: Path) -> bool:
    """Whether it holds a model of texts alone."""
    if static(directory):
        return True
    known = read_config(directory).get("model_type")
    return known is not None and known not in (TOWERS, *PAIRS) and not sees(directory)


def static(directory: Path) -> bool:
    """Whether it holds a table of token vectors in place of a network."""
    return table_place(directory) is not None


def writes(directory: Path) -> bool:
    """Whether it holds a decoder with its head."""
    config = read_config(directory)
    names = config.get("architectures") or []
    return config.get("model_type") in DECODERS or any(name.endswith(HEADS_THAT_WRITE) for name in names)


def described(directory: Path) -> str:
    """What it holds, in words."""
    saved = read_config(directory)
    if two_towers(directory):
        return "two towers"
    if static(directory):
        return "a table of token vectors"
    if "architecture" in saved:
        return f"timm's {saved['architecture']}"
    if "class" in saved:
        return f"{saved['class']}, a network from Python"
    of_texts = "a decoder" if writes(directory) else "a text encoder"
    return f"{'an image encoder' if sees(directory) else of_texts} of type {saved.get('model_type')!r}"
