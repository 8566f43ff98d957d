"""How far what stock `transformers` makes of texts, with a model's directory, is from what is made of them here.

The texts are always the same: short, long, empty, in several scripts, and with the tokenizer's special tokens written
out. They go through the directory's own tokenizer in padded batches; here each text is alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.data.tokenizers import TextTokenizer
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.models.encoder import TextEncoder
from selfsup.models.losses import cap_of, capped
from selfsup.models.packing import embed
from selfsup.models.parity import Difference, exactness, open_with_transformers, quiet_transformers

SAMPLES = (
    "The dog barks at the sea, and the sea does not answer.",
    "Yes",
    "",
    "Il pleuvait à verse; 42 % of the umbrellas (日本の傘) were broken.\n",
)
LONG = "whale " * 300
LONGEST = 512  # tokens of a text
SPECIAL = 16  # special tokens that are written out, at most


@dataclass(frozen=True)
class Parity:
    """How far apart in fp32 a decoder's logits behind a text are, or an encoder's mean hidden states of a text."""

    plain: Difference  # where special tokens that are written out in a text are taken for text, as here
    opened: Difference  # as the directory's tokenizer takes them unless it is asked for something else
    token: str  # a special token

    def summary(self) -> dict[str, float]:
        """What was found, for the summary of a run."""
        agrees = self.opened.is_rounding or self.opened.share <= 10 * self.plain.share
        special = {} if agrees else {"max_difference_special": self.opened.most}
        return {"max_difference": self.plain.most} | special

    def fact(self) -> str:
        """The same for a model card."""
        if "max_difference_special" not in self.summary():
            return exactness(self.plain)
        return (
            f"{exactness(self.plain)}\n- A special token written out in a text, such as {self.token}, is that token to "
            "the tokenizer of this directory, for prompts that mean it, and plain text to selfsup: max |Δ| = "
            f"{self.opened.most:.2e} on such texts, and as above with `tokenizer(text, split_special_tokens=True)`"
        )


def fact(parity: Parity | None) -> str:
    """What a comparison found, for a model card."""
    return exactness(None) if parity is None else parity.fact()


def written_out(tokenizer: TextTokenizer) -> list[str]:
    """Texts with special tokens written out, those that play a part first."""
    names = dict.fromkeys([*tokenizer.marks.listed(), *tokenizer.tokens(sorted(tokenizer.special))])
    return [f"The {name} sat{name}" for name in list(names)[:SPECIAL]]


@torch.inference_mode()
def compare(directory: Path, model: LanguageModel | EncoderModel, difference: Difference | None) -> Parity | None:
    """A directory against the model that it was written from, of which `difference` is known from its tokens alone.

    None where transformers is not installed, or where nothing is to be compared.
    """
    kind: _Decoders | _Encoders
    kind = _Decoders(model) if isinstance(model, LanguageModel) else _Encoders(model)
    network = open_with_transformers(kind.opens, directory)
    if network is None:
        return None
    tokenizer, written = _open_tokenizer(directory), written_out(model.tokenizer)

    def differ(texts: Sequence[str], **how: bool) -> Difference:
        return Difference.largest(
            Difference.between(kind.theirs(network, tokenizer, batch, side, how), kind.ours(batch))
            for side, batch in kind.batches(texts)
        )

    with quiet_transformers():
        plain = [differ(SAMPLES), differ([LONG, SAMPLES[0]]), differ(written, split_special_tokens=True)]
        plain += [] if difference is None else [difference]
        return Parity(Difference.largest(plain), differ(written), str(model.tokenizer.marks.end))


def _open_tokenizer(directory: Path) -> Any:
    import transformers

    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # as one does where there is none
    return tokenizer


class _Decoders:
    """Logits of what follows each text, (B, vocabulary)."""

    opens = "AutoModelForCausalLM"

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.length = min(LONGEST, model.decoder.config.window)

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Texts to be padded together, and on which side; one without a token is left out."""
        yield "left", [text for text in texts if text or self.model.tokenizer.prefix]
        yield "right", list(texts[:2])

    def theirs(self, network: Any, tokenizer: Any, texts: list[str], side: str, how: dict[str, bool]) -> Tensor:
        batch = _padded(tokenizer, texts, side, self.length, how)
        if side == "left":  # as one has it write
            made = network.generate(
                **batch, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            behind: Tensor = made.logits[0]
            return behind
        logits: Tensor = network(**batch).logits
        return logits[torch.arange(len(texts)), batch["attention_mask"].sum(1) - 1]

    def ours(self, texts: list[str]) -> Tensor:
        decoder, tokenizer = self.model.decoder.eval(), self.model.tokenizer
        weight = decoder.output_weight
        rows = [tokenizer.opened(ids)[: self.length] for ids in tokenizer.encode_batch(texts)]
        last = [decoder(torch.tensor([row], device=weight.device))[0, -1] for row in rows]
        return capped(F.linear(torch.stack(last), weight), cap_of(decoder)).float().cpu()


class _Encoders:
    """The mean of the last hidden states of each text, (B, width)."""

    opens = "AutoModel"

    def __init__(self, model: EncoderModel) -> None:
        self.model = model
        self.length = min(LONGEST, model.window)

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """All together, padded behind; and before, where positions are relative."""
        yield "right", list(texts)
        encoder = self.model.encoder
        if isinstance(encoder, TextEncoder) and not encoder.config.positions:
            yield "left", list(texts)

    def theirs(self, network: Any, tokenizer: Any, texts: list[str], side: str, how: dict[str, bool]) -> Tensor:
        batch = _padded(tokenizer, texts, side, self.length, how)
        shown = batch["attention_mask"][..., None]
        states: Tensor = network(**batch).last_hidden_state * shown
        return states.sum(1) / shown.sum(1)

    def ours(self, texts: list[str]) -> Tensor:
        model, tokenizer = self.model, self.model.tokenizer
        rows = [tokenizer.frame(ids[: tokenizer.room(self.length)]) for ids in tokenizer.encode_batch(texts)]
        tokens = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(model.device)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        return embed(model.encoder, tokens, lengths, "mean").float().cpu()


def _padded(tokenizer: Any, texts: list[str], side: str, length: int, how: dict[str, bool]) -> dict[str, Tensor]:
    batch = tokenizer(
        texts, padding=True, padding_side=side, truncation=True, max_length=length, return_tensors="pt", **how
    )
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
