"""What recipes of text encoders share: the encoder, weights to start from, and the directory that is left of it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from selfsup.data.loader import in_order
from selfsup.data.records import Records
from selfsup.data.tokenizers import Family
from selfsup.errors import UserError
from selfsup.files import write_atomically
from selfsup.models.adapters import AnyEncoder
from selfsup.models.cards import card, data_name, measured
from selfsup.models.counting import parameter_count
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel, TextEncoder
from selfsup.models.features import Features, whitening
from selfsup.models.modernbert import SavedEncoder, parity, read_encoder, save_encoder
from selfsup.models.packing import Pooling, embed
from selfsup.objectives.base import Objective
from selfsup.objectives.language import LanguageRecipe
from selfsup.objectives.sizes import whitened_over

if TYPE_CHECKING:
    from selfsup.inference.parity import Parity

PARITY_TOKENS = 64
FEATURE_BATCH = 64  # records


class EncoderRecipe(LanguageRecipe):
    """From a text source to a text encoder in ModernBERT's layout."""

    family: ClassVar[Family] = "encoder"
    unused: ClassVar[tuple[str, ...]] = ("kv_heads", "head_dim")
    shape: ClassVar[tuple[str, ...]] = ("layers", "width", "heads", "mlp", "tied")
    tied: ClassVar[bool] = True
    shortest: ClassVar[int] = 4
    adamw_lr: ClassVar[float] = 0.005
    dropout: ClassVar[float]  # by default
    keeps_head: ClassVar[bool] = False  # whether a head of masked LM is trained on

    origin: SavedEncoder | None

    def _read_origin(self, directory: Path) -> SavedEncoder:
        return read_encoder(directory)

    def _settle_shape(self) -> None:
        super()._settle_shape()
        self.settings.settle("model.dropout", self.dropout, "recipe")
        self.settings.settle("model.whiten", True, "recipe")

    def encoder_config(self) -> EncoderConfig:
        settings = self.settings
        if self.origin is not None:
            window = max(self.origin.config.window, settings["data.window"])
            return replace(self.origin.config, window=window, dropout=settings["model.dropout"])
        shape = {name: settings[f"model.{name}"] for name in (*self.shape, "dropout")}
        try:
            return EncoderConfig(
                vocabulary=self.corpus.tokenizer.vocabulary, window=settings["data.window"], **shape
            )
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None

    def start(self, encoder: TextEncoder) -> None:
        """Replace fresh weights by those to start from, where some are named."""
        if self.origin is not None:
            encoder.load_state_dict(self.origin.encoder().state_dict())

    def facts(self) -> dict[str, str]:
        """Where weights are started from, it says which of them have no place here."""
        if self.origin is None:
            return super().facts()
        head = sorted(self.origin.head)
        kept = "encoder, head and tokenizer" if head and self.keeps_head else "encoder and tokenizer"
        left = "" if self.keeps_head or not head else f"; not kept: {', '.join(head)}"
        return super().facts() | {"start": f"{kept} of {self.settings['model.init']}{left}"}

    def _describe_model(self) -> str:
        config = self.encoder_config()
        return (
            f"{parameter_count(TextEncoder, config):,} parameters in the encoder: {config.layers} layers, "
            f"width {config.width}, {config.heads} heads, feed-forward {config.mlp}, dropout {config.dropout:g}"
        )

    @abstractmethod
    def texts(self, records: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Records as texts: the tokens of all, one after the other, and the number of tokens of each."""

    @abstractmethod
    def encoder(self, objective: Objective) -> AnyEncoder:
        """What of an objective is kept."""

    @property
    def texts_per_record(self) -> int:
        """How many texts `texts` makes of a record."""
        return 1

    @property
    def pooling(self) -> Pooling:
        """How a text becomes one vector."""
        return "mean"

    def model(self, objective: Objective) -> Any:
        from selfsup.inference.encoder import EncoderModel

        return EncoderModel(self.encoder(objective), self.corpus.tokenizer, self.definition(objective))

    def definition(self, objective: Objective) -> Features:
        """What the vector of a text is: pooled, and whitened over texts of the training part."""
        if not self.whitened:
            return Features(self.pooling)
        return self.whiten(objective, self.whitened)

    def whiten(self, objective: Objective, records: int) -> Features:
        """The vector of an item, whitened over records of the training part."""
        return Features(self.pooling, *whitening(self._embed(objective, self.train, records)))

    @property
    def whitened(self) -> int:
        if not self.settings["model.whiten"]:
            return 0
        return min(len(self.train), -(-whitened_over(self.settings) // self.texts_per_record))

    def features(self, objective: Objective, records: int) -> npt.NDArray[np.float32] | None:
        return None if self.validation is None else self._embed(objective, self.validation, records)

    @torch.inference_mode()
    def _embed(self, objective: Objective, source: Records, records: int) -> npt.NDArray[np.float32]:
        """The pooled vectors of texts of records spread evenly over a source."""
        encoder = self.encoder(objective).eval()
        device = next(encoder.parameters()).device
        parts = []
        for batch in in_order(source, records, 0, FEATURE_BATCH):
            tokens, lengths = self.texts(batch.to(device).data)
            parts.append(embed(encoder, tokens, lengths, self.pooling))
        return torch.cat(parts).cpu().numpy()

    def save_encoder(
        self,
        model: TextEncoder | MaskedLanguageModel,
        features: Features,
        directory: Path,
        summary: dict[str, Any],
        how: str,
    ) -> None:
        """Model, tokenizer and feature definition as a Hugging Face directory, checked against transformers."""
        from selfsup.inference.encoder import EncoderModel
        from selfsup.inference.parity import compare

        tokenizer = self.corpus.tokenizer
        save_encoder(directory, model, tokenizer, features, self._card(summary, None, how))
        tokens = torch.from_numpy(tokenizer.frame(self.corpus.train[:PARITY_TOKENS]).astype("int64"))[None]
        difference = parity(directory, model, tokens.to(next(model.parameters()).device))
        encoder = model.model if isinstance(model, MaskedLanguageModel) else model
        found = compare(directory, EncoderModel(encoder, tokenizer, features), difference)
        write_atomically(directory / "README.md", self._card(summary, found, how))
        summary.update({"max_difference": None} if found is None else found.summary())

    def _card(self, summary: dict[str, Any], found: Parity | None, how: str) -> str:
        """The model card: what it is, how it was trained, how well it does, how exact the layout is."""
        from selfsup.inference.parity import fact

        config, start = self.encoder_config(), self.settings["model.init"]
        objective, _, code = how.partition("\n")
        return card(
            f"A text encoder trained on {data_name(self.settings['data.source'])}",
            f"{parameter_count(TextEncoder, config):,} parameters ({config.layers} layers, width {config.width}, "
            f"{config.heads} heads), trained {'from scratch' if start is None else f'from {Path(start).name}'} by "
            f"{objective} with selfsup: {summary['steps']:,} steps; texts of up to {config.window} tokens.",
            {
                "Validation loss": measured(summary, " nats"),
                "Layout": f"ModernBERT; {fact(found)}",
                "Features": "see features.json",
            },
            code,
            library="transformers",
        )
