"""Causal language modelling: every token is predicted from the tokens before it (Radford et al. 2018, eq. 1).

L = − Σ_t log p(x_t | x_<t)      inputs are the targets shifted right behind the start token
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from selfsup.config import Settings, nearest
from selfsup.data.records import Batch
from selfsup.errors import UserError
from selfsup.files import save_tensors, separate, whole_directory, write_atomically
from selfsup.models.decoder import (
    PRESETS,
    Decoder,
    DecoderConfig,
    feed_forward_width,
    flops_per_token,
    parameter_count,
)
from selfsup.objectives.base import Collectives, Effort, Objective, Outputs, Progress, Recipe, Task
from selfsup.objectives.losses import CHUNK_ELEMENTS, IGNORE, linear_cross_entropy, token_losses
from selfsup.seeding import generator

if TYPE_CHECKING:
    from selfsup.data.text import TextCorpus


SPECTRAL_LR = 0.0225  # singular values of Muon's update, times its learning rate: 0.01 at width 128
ADAMW_LR = 0.01
SAMPLE_TOKENS = 150
# Below the first a step's overhead outweighs its work; it grows to the second once 500 updates fit, beyond it only
# once 1,500 do.
TOKENS_PER_STEP = (1024, 4096)
STEPS = (500, 1500)
MOST_TOKENS_PER_STEP = 524288
WINDOWS_PER_STEP = 16  # at least
TOKENS_PER_PARAMETER = 8


class CausalModel(Protocol):
    """What causal LM asks of a model: hidden states of (B, T) tokens, and the matrix that turns them to logits."""

    output_weight: Tensor

    def __call__(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor: ...


class CausalLM(Objective):
    """Cross-entropy of each next token under a causal mask that also keeps documents apart.

    Args:
        model: tokens (B, T) and document numbers (B, T) to hidden states (B, T, width).
        end: the token that opens and closes every document.
    """

    def __init__(self, model: nn.Module, end: int) -> None:
        super().__init__()
        self.model = model
        self.end = end

    def hide(self, batch: Batch) -> Task:
        """Inputs and targets, one step apart, and the document that each position belongs to.

        `tokens` (B, T+1) becomes inputs (B, T) = tokens[:-1] and targets (B, T) = tokens[1:]; targets before
        `first` (B,) count in another window and are ignored here. An end token among the inputs is the start
        token of the document that follows, so a document's number is how many of them have come.
        """
        tokens, first = batch.data["tokens"], batch.data["first"]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        earlier = torch.arange(targets.shape[1], device=tokens.device) < first[:, None]
        documents = (inputs == self.end).cumsum(1)
        return Task(
            {"inputs": inputs, "targets": targets.masked_fill(earlier, IGNORE), "documents": documents},
            {"cross_entropy": (~earlier).sum()},
        )

    def predict(self, task: Task) -> Outputs:
        documents: Tensor | None = task["documents"]
        if not _several(task["documents"]):
            documents = None  # the plain causal mask says the same, and costs less
        return {"hidden": self.model(task["inputs"], documents)}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        hidden = outputs["hidden"].flatten(0, 1)
        weight: Tensor = self.model.output_weight  # type: ignore[assignment]
        return {"cross_entropy": linear_cross_entropy(hidden, weight, task["targets"].flatten())}

    @torch.inference_mode()
    def losses(self, task: Task) -> Tensor:
        """The loss of each target in nats, (B, T); 0 where a target is ignored. Full logits never stand in memory."""
        weight: Tensor = self.model.output_weight  # type: ignore[assignment]
        rows = max(1, CHUNK_ELEMENTS // len(weight))  # of logits at once
        hidden = torch.split(self.predict(task)["hidden"].flatten(0, 1), rows)
        targets = torch.split(task["targets"].flatten(), rows)
        parts = [token_losses(h @ weight.T, t) for h, t in zip(hidden, targets, strict=True)]
        return torch.cat(parts).view_as(task["targets"])

    def vectors(self) -> list[nn.Parameter]:
        """Embeddings and the output head."""
        head = self.model.output_weight
        return [*super().vectors(), *([head] if isinstance(head, nn.Parameter) else [])]


def _several(documents: Tensor) -> bool:
    """Whether any window holds positions of more than one document."""
    return bool((documents[:, -1] != documents[:, 0]).any())


class CausalLMRecipe(Recipe):
    """From a text source to a decoder that writes."""

    corpus: TextCorpus

    def open(self, progress: Progress) -> None:
        from selfsup.data.text import prepare_text

        data = self.settings.config.data
        self.corpus = prepare_text(
            self.source if self.source is not None else data.source,
            tokenizer=data.tokenizer,
            vocabulary=data.vocabulary,
            column=data.column,
            validation=data.validation,
            failures=data.failures,
            progress=progress,
        )

    def settle(self, effort: Effort) -> None:
        """Size, window, batch and learning rates, from the tokens at hand and what can be spent on them."""
        settings, tokens = self.settings, self.corpus.facts.training_tokens
        if self.module is None and settings["model.preset"] == "auto":
            settings.change("model.preset", _fitting_preset(effort, tokens), effort.origin)
        self._settle_shape()
        blocks = self._block_parameters()
        window = 256 if blocks < 20e6 else 512 if blocks < 150e6 else 1024
        per_step = _tokens_per_step(effort.tokens(blocks, tokens))
        window = min(window, tokens // 16, int(per_step / WINDOWS_PER_STEP))
        settings.settle("data.window", power_of_two(window), "size and data")
        self._records()
        most = min(per_step / settings["data.window"], len(self.train))
        settings.settle("train.batch", power_of_two(most), "size and data")
        settings.settle("optim.lr", self._lr(), "size")
        settings.settle("optim.adamw_lr", ADAMW_LR, "recipe")

    def _lr(self) -> float:
        """Muon's update has singular values of 0.2·√width times its learning rate: wider needs a smaller one."""
        return float(f"{SPECTRAL_LR / (0.2 * self.settings['model.width'] ** 0.5):.3g}")

    def _settle_shape(self) -> None:
        settings, preset = self.settings, self.settings["model.preset"]
        if preset not in PRESETS:
            raise UserError(f"There is no model preset '{preset}'{nearest(preset, ['auto', *PRESETS])}")
        shape, origin = PRESETS[preset], f"preset {preset}"
        settings.settle("model.layers", shape.layers, origin)
        settings.settle("model.width", shape.width, origin)
        settings.settle("model.heads", max(1, settings["model.width"] // shape.head_dim), origin)
        settings.settle("model.kv_heads", settings["model.heads"], origin)
        settings.settle(
            "model.head_dim", max(2, settings["model.width"] // settings["model.heads"] // 2 * 2), origin
        )
        settings.settle("model.mlp", feed_forward_width(settings["model.width"]), origin)
        settings.settle("model.tied", False, "recipe")

    def _block_parameters(self) -> float:
        return float(12 * self.settings["model.layers"] * self.settings["model.width"] ** 2)

    def _records(self) -> None:
        from selfsup.data.text import Windows

        window, end = self.settings["data.window"], self.corpus.tokenizer.end
        self.train = Windows(self.corpus.train, window, end)
        held_out = self.corpus.validation
        if held_out is not None:
            self.validation = Windows(held_out, max(1, min(window, len(held_out) - 1)), end)

    def decoder_config(self) -> DecoderConfig:
        model = self.settings.config.model.model_dump(exclude={"preset"})
        vocabulary, window = self.corpus.tokenizer.vocabulary, self.settings["data.window"]
        try:
            return DecoderConfig(vocabulary=vocabulary, window=window, **model)
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None

    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    def build(self) -> CausalLM:
        decoder = Decoder(self.decoder_config())
        decoder.initialise(generator(self.settings["train.seed"], "weights"))
        return CausalLM(decoder, self.corpus.tokenizer.end)

    def flops_per_record(self) -> float:
        config = self.decoder_config()
        return float(flops_per_token(config, config.window) * config.window)

    @property
    def units_per_record(self) -> int:
        return int(self.settings["data.window"])

    def facts(self) -> dict[str, str]:
        facts, window = self.corpus.facts, self.settings["data.window"]
        left_out = {
            "duplicate documents": facts.duplicates,
            "empty ones left out": facts.empty,
            "unreadable ones left out": facts.skipped.count,
        }
        counted = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        return {
            "data": f"{facts.documents:,} documents, {facts.characters:,} characters, {facts.bytes:,} bytes"
            + (f" ({counted})" if counted else ""),
            "tokens": f"{facts.training_tokens:,} for training, {facts.validation_tokens:,} held out, "
            f"{facts.bytes_per_token:.2f} bytes each, {facts.truncated} truncated, vocabulary {facts.vocabulary:,}",
            "windows": f"{len(self.train):,} of {window} tokens",
            "model": self._describe_model(),
        }

    def _describe_model(self) -> str:
        config = self.decoder_config()
        return (
            f"{parameter_count(config):,} parameters: {config.layers} layers, width {config.width}, "
            f"{config.heads} heads, feed-forward {config.mlp}"
        )

    @property
    def chance(self) -> float:
        return math.log(self.corpus.tokenizer.vocabulary)

    def figures(self, loss: float, part: str) -> dict[str, float]:
        """bits_per_byte, where the tokens hold every byte of the text."""
        facts = self.corpus.facts
        tokens, size, lossless = {
            "train": (facts.training_tokens, facts.training_bytes, facts.training_lossless),
            "validation": (facts.validation_tokens, facts.validation_bytes, facts.validation_lossless),
        }[part]
        return {"bits_per_byte": loss * (tokens - 1) / size / math.log(2)} if lossless else {}

    def sample(self, objective: Objective) -> str | None:
        """A short text from nothing but the start token, under one fixed seed."""
        from selfsup.inference.generate import LanguageModel

        model = LanguageModel(cast(Decoder, objective.model), self.corpus.tokenizer)
        return cast(str, model.generate("", tokens=SAMPLE_TOKENS, temperature=0.8))

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """The decoder and its tokenizer as a Hugging Face directory, with a card that says how exact it is."""
        from selfsup.models.huggingface import parity, save_model

        decoder = cast(Decoder, objective.model)
        save_model(directory, decoder, self.corpus.tokenizer, self._card(summary, None))
        tokens = torch.from_numpy(self.corpus.train[: self.settings["data.window"]].astype("int64"))[None]
        difference = parity(directory, decoder, tokens)
        write_atomically(directory / "README.md", self._card(summary, difference))
        summary["max_difference"] = difference

    def _card(self, summary: dict[str, Any], difference: float | None) -> str:
        """The model card: what it is, how it was trained, how well it does, how exact the layout is."""
        config, source = self.decoder_config(), self.settings["data.source"]
        parity = (
            "unchecked (transformers was not installed when it was written)"
            if difference is None
            else f"max |Δ logits| = {difference:.2e} against stock transformers, in fp32"
        )
        bits = f", {summary['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in summary else ""
        loss = (
            f"{summary['loss']:.4f} nats per token{bits} on the held-out part"
            if "loss" in summary
            else "not measured"
        )
        return CARD.format(
            name=Path(source).stem if "/" in source else source,
            parameters=parameter_count(config),
            config=config,
            loss=loss,
            parity=parity,
            **{name: summary[name] for name in ("steps", "tokens")},
        )


class AdaptedCausalLMRecipe(CausalLMRecipe):
    """Causal LM on a network of the user's own: see `CausalModel` for what it must offer."""

    def __init__(
        self, settings: Settings, source: object | None = None, module: nn.Module | None = None
    ) -> None:
        super().__init__(settings, source, module)
        self.network = cast(nn.Module, module)
        self.start = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def _settle_shape(self) -> None:
        """The network brings its own."""

    def _lr(self) -> float:
        """Of the middle of the presets: what the width of another network means is not known here."""
        return 0.005

    def _block_parameters(self) -> float:
        return float(sum(parameter.numel() for parameter in self.network.parameters()))

    def build(self) -> CausalLM:
        self.network.load_state_dict(self.start)  # as it was given, whatever the calibration did to it
        return CausalLM(self.network, self.corpus.tokenizer.end)

    def flops_per_record(self) -> float:
        return float(6 * self._block_parameters() * self.settings["data.window"])

    def _describe_model(self) -> str:
        return f"{self._block_parameters():,.0f} parameters in {type(self.network).__name__}"

    def sample(self, objective: Objective) -> str | None:
        """Nothing: how a network of the user's own writes is not known here."""
        return None

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """Its weights under their own names, and the tokenizer."""
        with whole_directory(directory) as temporary:
            save_tensors(separate(self.network), temporary / "model.safetensors")
            self.corpus.tokenizer.save(temporary, self.settings["data.window"])


CausalLMRecipe.adapted = AdaptedCausalLMRecipe

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [selfsup, causal-lm]
---
# A decoder trained on {name}

{parameters:,} parameters ({config.layers} layers, width {config.width}, {config.heads} heads), trained from scratch by
causal language modelling with selfsup: {steps:,} steps, {tokens:,} tokens, windows of {config.window} tokens.

- Validation loss: {loss}
- Layout: Qwen3 dense; {parity}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
inputs = tokenizer("It was a", return_tensors="pt")  # the tokenizer puts the start token in front
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```
"""


def _fitting_preset(effort: Effort, tokens: int) -> str:
    """The preset whose parameters suit what is spent: about a tenth of the tokens seen (Hoffmann et al. 2022)."""
    wanted = effort.parameters(TOKENS_PER_PARAMETER, tokens)
    return min(PRESETS, key=lambda name: abs(math.log(_blocks(name) / wanted)))


def _tokens_per_step(seen: float) -> float:
    """Of a run that will see so many tokens: more where there are many, after enough updates have been made."""
    (smallest, usual), (few, many) = TOKENS_PER_STEP, STEPS
    return min(max(seen / many, min(max(seen / few, smallest), usual)), MOST_TOKENS_PER_STEP)


def _blocks(preset: str) -> float:
    shape = PRESETS[preset]
    return 12.0 * shape.layers * shape.width**2


def power_of_two(value: float) -> int:
    """The largest power of two up to `value`, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)
