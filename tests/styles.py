"""Tiny random decoders with tokenizers in the style of well-known families, as directories that transformers wrote."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from foreign import SHAPE, WORDS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def trained(special: list[str], sentencepiece: bool = False) -> Tokenizer:
    """Bytes in GPT-2's alphabet, or characters with ▁ for the space before a word."""
    tokenizer = Tokenizer(models.BPE(unk_token=special[0] if sentencepiece else None, fuse_unk=sentencepiece))
    if sentencepiece:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if sentencepiece else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return tokenizer


def put_before(tokenizer: Tokenizer, start: str) -> Tokenizer:
    """With a start token before each text."""
    ids = [(start, tokenizer.token_to_id(start))]
    template = processors.TemplateProcessing(single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=ids)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def llama3(directory: Path, network: str = "Llama") -> Path:
    """The start token is put before a text, a turn's end ends a document, another token may end a text."""
    tokenizer = put_before(trained(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]), "<|begin_of_text|>")
    return save(directory, network, tokenizer, {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}, eos=[2, 1])


def mistral(directory: Path, network: str = "Mistral") -> Path:
    tokenizer = put_before(trained(["<unk>", "<s>", "</s>"], sentencepiece=True), "<s>")
    return save(directory, network, tokenizer, {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})


def gemma(directory: Path, network: str = "Gemma") -> Path:
    tokenizer = put_before(trained(["<pad>", "<eos>", "<bos>", "<unk>"]), "<bos>")
    return save(directory, network, tokenizer, {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>"})


def qwen3(directory: Path, network: str = "Qwen3") -> Path:
    """Nothing is put before a text; only config.json names a start token; there is a chat template."""
    tokenizer = trained(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    roles = {"eos": "<|im_end|>", "pad": "<|endoftext|>"}
    return save(directory, network, tokenizer, roles, eos=[2, 0], bos=0, chat_template=TEMPLATE)


def gpt2(directory: Path, network: str = "GPT2") -> Path:
    """One token starts and ends, and is not put before a text."""
    return save(directory, network, trained(["<|endoftext|>"]), {"bos": "<|endoftext|>", "eos": "<|endoftext|>"})


STYLES = {"llama3": llama3, "mistral": mistral, "gemma": gemma, "qwen3": qwen3, "gpt2": gpt2}


def save(
    directory: Path,
    network: str,
    tokenizer: Tokenizer,
    roles: dict[str, str],
    eos: list[int] | None = None,
    bos: int | None = None,
    chat_template: str | None = None,
) -> Path:
    named = {f"{role}_token": token for role, token in roles.items()}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=chat_template, model_max_length=256, **named
    )
    ids = {f"{role}_token_id": getattr(fast, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    ids = ids | ({} if bos is None else {"bos_token_id": bos})
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256} if network == "GPT2" else dict(SHAPE)
    if network != "GPT2":
        shape |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
    config = getattr(transformers, f"{network}Config")(vocab_size=len(fast), **shape, **ids)
    torch.manual_seed(0)
    kind = "GPT2LMHeadModel" if network == "GPT2" else f"{network}ForCausalLM"
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that every token depends on all before it
            if parameter.ndim > 1:
                parameter.normal_(0, 2 * parameter.shape[-1] ** -0.5)
    model.generation_config = transformers.GenerationConfig(
        **{**ids, "eos_token_id": eos or ids["eos_token_id"]}, do_sample=True, temperature=0.6
    )
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory
