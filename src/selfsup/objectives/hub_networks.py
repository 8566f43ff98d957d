"""Networks of texts in a directory that `transformers` opens, or on the hub, trained on from their weights:
`model=hf:DIR`."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from selfsup.config import Settings
from selfsup.data.shards import Tokens
from selfsup.data.tokenizers import Family, TextTokenizer
from selfsup.errors import UserError
from selfsup.files import expanded, whole_directory, write_atomically
from selfsup.models.adapters import (
    AdaptedDecoder,
    AdaptedEncoder,
    AdaptedMaskedLM,
    AdaptedTextNetwork,
    TransformersNetwork,
    fetch,
    open_network,
    set_dropout,
)
from selfsup.models.directories import find_model
from selfsup.models.features import Features
from selfsup.models.huggingface import CARD, write_card
from selfsup.models.sentence_transformers import keep_modules, read_features, text_window
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import settle_rates
from selfsup.objectives.text_networks import HUB, Card, TextNetwork, require_texts
from selfsup.seeding import seeded

if TYPE_CHECKING:
    from selfsup.inference.parity import Parity


class HubNetwork(TextNetwork):
    """Shape, tokenizer and special tokens are those of the directory. What is left is in the layout of `transformers`
    again, written by it. A resumed run takes its weights from its checkpoint; the directory must still be there for
    the rest.
    """

    kind: str  # the auto class of transformers
    # Of what is trained, the network without what is put upon it here.
    part: ClassVar[type[AdaptedTextNetwork]]
    family: ClassVar[Family]

    @property
    def name(self) -> str:
        """The directory, or the model on the hub, as it was named."""
        return str(self.get("preset")).removeprefix(HUB)

    @cached_property
    def directory(self) -> Path:
        directory = find_model(fetch(self.name))
        require_texts(directory, self.family)
        return directory

    @cached_property
    def look(self) -> AdaptedTextNetwork:
        """The network without its weights: its shape, and what is known of it."""
        return self.part(self.opened()).to("meta")

    def opened(self) -> TransformersNetwork:
        """The network with its weights; those that the directory lacks are a function of the seed."""
        with seeded(self.settings["train.seed"], "weights"):
            return open_network(self.kind, self.directory)

    def tokenizer_directory(self) -> Path:
        if expanded(self.name).is_dir():  # so that a run can be resumed from anywhere
            place, origin = f"{HUB}{fetch(self.name)}", self.settings.origin("model.preset")
            self.settings.change("model.preset", place, origin)
        return self.directory

    def take_tokenizer(self, tokenizer: TextTokenizer) -> None:
        super().take_tokenizer(tokenizer)
        room = self.look.config.vocabulary
        if tokenizer.vocabulary > room:
            raise UserError(
                f"The tokenizer of {self.directory} lacks special tokens ({', '.join(tokenizer.marks.listed())} are "
                f"needed, which makes {tokenizer.vocabulary} tokens) and the network has room for {room}; give "
                "another model."
            )

    def settle(self, effort: Effort, tokens: int) -> None:
        """It is the size; raises a UserError where windows are longer than it reads."""
        if (self.settings["data.window"] or 0) > self.longest:
            raise UserError(
                f"{self.get('preset')} reads at most {self.longest} tokens, so data.window cannot be "
                f"{self.settings['data.window']}; give {self.longest} or less."
            )

    @property
    def started(self) -> bool:
        return True

    @property
    def width(self) -> int:
        return self.look.config.width

    @property
    def longest(self) -> int:
        return self.look.config.window

    @cached_property
    def blocks(self) -> float:
        """With embeddings; weights that serve twice are counted once, which is no longer known of the `look`."""
        return float(sum(parameter.numel() for parameter in self.part(self.opened()).parameters()))

    def settle_rates(self, adamw_lr: float) -> None:
        settle_rates(self.settings, self.width, adamw_lr, started=True)

    def describe(self) -> str:
        return f"{self.blocks:,.0f} parameters in {self.look.opened.name}"

    def facts(self) -> dict[str, str]:
        opened, start = self.look.opened, f"weights and tokenizer of {self.directory}"
        start += f"; new: {', '.join(opened.fresh)}" if opened.fresh else ""
        start += f"; not kept: {', '.join(opened.unused)}" if opened.unused else ""
        padded = "one document in each, padded, for its attention knows no other"
        return {"start": start, "rows": "as they are" if self.look.packs else padded}

    def card_facts(self) -> dict[str, str]:
        origin = Path(self.name).name if Path(self.name).is_dir() else self.name
        return {
            "title": f"{origin},",
            "is": f"A {self.look.opened.name}, trained on from the weights of {origin}",
            "layout": f"as it was, tokenizer too; opens with `transformers.{self.kind}`",
        }

    def save(self, directory: Path, model: Any, card: Card, stream: Tokens) -> Parity | None:
        from selfsup.inference.parity import compare, fact

        with whole_directory(directory) as temporary:
            self.write(temporary, model)
            write_card(temporary, card(fact(None)))
        found = compare(directory, model, None)
        write_atomically(directory / CARD, card(fact(found)))
        return found

    @abstractmethod
    def write(self, directory: Path, model: Any) -> None:
        """A model in use as transformers saves it, with its tokenizer, into a directory that exists."""


class HubEncoder(HubNetwork):
    """An encoder, whose dropout is the objective's.

    Args:
        kind: the auto class that opens it, with the head that an objective trains or without heads.
        dropout: by default.
    """

    part = AdaptedEncoder
    family = "encoder"

    def __init__(self, settings: Settings, kind: str, dropout: float) -> None:
        super().__init__(settings)
        self.kind, self.dropout = kind, dropout

    def reads(self) -> set[str]:
        return super().reads() | {"model.dropout", "model.whiten"}

    def settle(self, effort: Effort, tokens: int) -> None:
        super().settle(effort, tokens)
        self.settings.settle("model.dropout", self.dropout, "recipe")
        self.settings.settle("model.whiten", False, "recipe")

    def opened(self) -> TransformersNetwork:
        opened, share = super().opened(), self.get("dropout")
        if share is not None and not set_dropout(opened.network, share) and share > 0:
            raise UserError(
                f"{opened.name} of {self.directory} has no dropout layer, so model.dropout cannot be {share:g} "
                f"({self.settings.origin('model.dropout')}); give another model."
            )
        return opened

    def build(self, draws: torch.Generator) -> AdaptedEncoder:
        encoder = AdaptedEncoder(self.opened())
        for name, parameter in encoder.named_parameters():
            if "pooler" in name:  # which makes no part of the vectors, and stays as it is
                parameter.requires_grad_(False)
        return encoder

    def build_masked(self, draws: torch.Generator) -> AdaptedMaskedLM:
        """With the head of masked LM that its directory has, or a fresh one."""
        return AdaptedMaskedLM(self.opened())

    @property
    def features(self) -> Features:
        return read_features(self.directory)

    def write(self, directory: Path, model: Any) -> None:
        model.encoder.opened.save(directory, self.tokenizer, fills=model.masked is not None)
        window = text_window(self.directory, model.encoder.config.window)
        keep_modules(self.directory, directory, model.features, self.width, window)
        model.features.write(directory)


class HubDecoder(HubNetwork):
    """A decoder; its dropout is that of its directory."""

    kind = "AutoModelForCausalLM"
    part = AdaptedDecoder
    family = "decoder"

    def build(self, draws: torch.Generator) -> AdaptedDecoder:
        return AdaptedDecoder(self.opened())

    def write(self, directory: Path, model: Any) -> None:
        model.decoder.opened.save(directory, self.tokenizer)
