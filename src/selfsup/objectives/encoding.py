"""What recipes of text encoders share: the encoder, weights to start from, and the directory that is left of it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from selfsup.data.tokenizers import Family
from selfsup.errors import UserError
from selfsup.files import write_atomically
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel, TextEncoder, parameter_count
from selfsup.models.modernbert import Features, SavedEncoder, parity, read_encoder, save_encoder
from selfsup.objectives.base import Progress
from selfsup.objectives.language import LanguageRecipe

SHAPE = ("layers", "width", "heads", "mlp", "tied")
PARITY_TOKENS = 64


class EncoderRecipe(LanguageRecipe):
    """From a text source to a text encoder in ModernBERT's layout."""

    family: ClassVar[Family] = "encoder"
    dropout: ClassVar[float]

    @cached_property
    def origin(self) -> SavedEncoder | None:
        """The encoder to start from, where one is named.

        Raises:
            UserError: there is none, or it is of another architecture.
        """
        place = self.settings["model.init"]
        return None if place is None else read_encoder(model_directory(place))

    def open(self, progress: Progress) -> None:
        """With weights to start from come their tokenizer and shape."""
        place, settings = self.settings["model.init"], self.settings
        if place is not None:
            directory = str(model_directory(place))
            if settings.origin("data.tokenizer") != "default" and settings["data.tokenizer"] != directory:
                raise UserError(
                    f"{place} brings its own tokenizer, so data.tokenizer cannot be {settings['data.tokenizer']!r}; "
                    "leave it out."
                )
            settings.change("data.tokenizer", directory, "init")
        super().open(progress)

    def _choose_preset(self, effort: Any, tokens: int) -> None:
        if self.origin is None:
            super()._choose_preset(effort, tokens)

    def _settle_shape(self) -> None:
        settings = self.settings
        if self.origin is None:
            super()._settle_shape()
        else:
            self._take_shape(self.origin.config)
        settings.settle("model.dropout", self.dropout, "recipe")

    def _take_shape(self, config: EncoderConfig) -> None:
        for name in SHAPE:
            found, given = getattr(config, name), self.settings[f"model.{name}"]
            if given not in (None, found):
                raise UserError(
                    f"{self.settings['model.init']} has {name} {found}, so model.{name} is not {given}; leave it out."
                )
            self.settings.settle(f"model.{name}", found, "init")

    def encoder_config(self) -> EncoderConfig:
        settings = self.settings
        if self.origin is not None:
            shape = {**vars(self.origin.config), "dropout": settings["model.dropout"]}
        else:
            shape = {name: settings[f"model.{name}"] for name in (*SHAPE, "dropout")}
            shape |= {"window": settings["data.window"]}
        try:
            return EncoderConfig(**{**shape, "vocabulary": self.corpus.tokenizer.vocabulary})
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None

    def start(self, model: MaskedLanguageModel) -> None:
        """Replace fresh weights by those to start from, where some are named; a head only where it matches."""
        if self.origin is None:
            return
        model.model.load_state_dict(self.origin.encoder().state_dict())
        kept, _ = self._heads(model)
        model.load_state_dict(kept, strict=False)

    def _heads(self, model: MaskedLanguageModel) -> tuple[dict[str, torch.Tensor], list[str]]:
        """What of the saved head fits, and the names of what does not and starts afresh."""
        found = {} if self.origin is None else self.origin.head
        wanted = {n: t.shape for n, t in model.state_dict().items() if not n.startswith("model.")}
        kept = {
            name: found[name]
            for name, shape in wanted.items()
            if name in found and found[name].shape == shape
        }
        return kept, sorted(wanted.keys() - kept.keys())

    def _describe_model(self) -> str:
        config = self.encoder_config()
        return (
            f"{parameter_count(config):,} parameters in the encoder: {config.layers} layers, width {config.width}, "
            f"{config.heads} heads, feed-forward {config.mlp}, dropout {config.dropout:g}"
        )

    def save_encoder(
        self,
        model: TextEncoder | MaskedLanguageModel,
        features: Features,
        directory: Path,
        summary: dict[str, Any],
        how: str,
    ) -> None:
        """Model, tokenizer and feature definition as a Hugging Face directory, checked against transformers."""
        tokenizer = self.corpus.tokenizer
        save_encoder(directory, model, tokenizer, features, self._card(summary, None, how))
        tokens = torch.from_numpy(tokenizer.frame(self.corpus.train[:PARITY_TOKENS]).astype("int64"))[None]
        difference = parity(directory, model, tokens.to(next(model.parameters()).device))
        write_atomically(directory / "README.md", self._card(summary, difference, how))
        summary["max_difference"] = difference

    def _card(self, summary: dict[str, Any], difference: float | None, how: str) -> str:
        """The model card: what it is, how it was trained, how well it does, how exact the layout is."""
        source, start = self.settings["data.source"], self.settings["model.init"]
        parity = (
            "unchecked (transformers was not installed when it was written)"
            if difference is None
            else f"max |Δ| = {difference:.2e} against stock transformers, in fp32"
        )
        objective, _, use = how.partition("\n")
        return CARD.format(
            name=Path(source).stem if "/" in source else source,
            objective=objective,
            start="from scratch" if start is None else f"from {Path(start).name}",
            parameters=parameter_count(self.encoder_config()),
            config=self.encoder_config(),
            loss=f"{summary['loss']:.4f} nats on the held-out part" if "loss" in summary else "not measured",
            parity=parity,
            use=use.strip(),
            steps=summary["steps"],
        )


def model_directory(place: str) -> Path:
    """The model of a run, or the directory itself."""
    inside = Path(place) / "model"
    return inside if (inside / "config.json").is_file() else Path(place)


CARD = """\
---
library_name: transformers
tags: [selfsup]
---
# A text encoder trained on {name}

{parameters:,} parameters ({config.layers} layers, width {config.width}, {config.heads} heads), trained {start} by
{objective} with selfsup: {steps:,} steps; texts of up to {config.window} tokens.

- Validation loss: {loss}
- Layout: ModernBERT; {parity}
- Features: see features.json

{use}
"""
