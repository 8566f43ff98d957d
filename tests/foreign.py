"""Tiny random models of other people's architectures, as directories that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = tuple("the cat dog fox hen ran sat slept sang by hill sea on day 0 1 2 3 4 5 .".split())  # noqa: SIM905
SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


def bert(directory: Path, kind: str = "BertForMaskedLM", **settings: Any) -> Path:
    return _save(directory, kind, "BertConfig", wordpiece_tokenizer(), **SHAPE, max_position_embeddings=64, **settings)


def roberta(directory: Path, kind: str = "RobertaForMaskedLM", **settings: Any) -> Path:
    return _save(directory, kind, "RobertaConfig", roberta_tokenizer(), **SHAPE, max_position_embeddings=66, **settings)


def electra(directory: Path, kind: str = "ElectraForMaskedLM", **settings: Any) -> Path:
    """Whose embeddings are of another width than its hidden states may be."""
    return _save(directory, kind, "ElectraConfig", wordpiece_tokenizer(), **SHAPE, embedding_size=16, **settings)


def modernbert(directory: Path, kind: str = "ModernBertForMaskedLM") -> Path:
    """With layers that see two positions to either side."""
    return _save(directory, kind, "ModernBertConfig", wordpiece_tokenizer(), **SHAPE, local_attention=4)


def gpt2(directory: Path, kind: str = "GPT2LMHeadModel", **settings: Any) -> Path:
    return _save(directory, kind, "GPT2Config", _bytewise(), **GPT2, **settings)


def llama(directory: Path) -> Path:
    return _save(directory, "LlamaForCausalLM", "LlamaConfig", _bytewise(), **SHAPE, max_position_embeddings=64)


def mistral(directory: Path) -> Path:
    """Whose positions see the last three only."""
    local = {"num_key_value_heads": 2, "sliding_window": 3}
    return _save(directory, "MistralForCausalLM", "MistralConfig", _bytewise(), **SHAPE, **local)


def bloom(directory: Path) -> Path:
    """Whose attention has a bias for distances in place of positions."""
    return _save(directory, "BloomForCausalLM", "BloomConfig", _bytewise(), hidden_size=32, n_layer=2, n_head=2)


def _save(directory: Path, kind: str, config: str, tokenizer: Any, **settings: Any) -> Path:
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    torch.manual_seed(0)
    made = getattr(transformers, config)(vocab_size=len(tokenizer), **(ids | settings))
    network = getattr(transformers, kind)(made)
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # fresh weights are so small that all texts look alike
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def wordpiece_tokenizer() -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.BertTokenizerFast(tokenizer_object=tokenizer)


def _trained(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return tokenizer


def roberta_tokenizer() -> Any:
    tokenizer = _trained(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _bytewise() -> Any:
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=_trained([end]), bos_token=end, eos_token=end, unk_token=end
    )
