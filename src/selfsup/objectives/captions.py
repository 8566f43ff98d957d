"""The text side of image-text training: captions as they are drawn and hidden, their tokenizer, the encoder that reads
them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from selfsup.config import Count, Section, Settings, Share
from selfsup.data.records import Batch
from selfsup.data.tokenizer_loading import open_tokenizer
from selfsup.data.tokenizer_training import train_tokenizer, vocabulary_size
from selfsup.data.tokenizers import Kind, TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.encoder import encoder_tokenizer, native_encoder
from selfsup.models.adapters import AdaptedEncoder, AnyEncoder, open_encoder
from selfsup.models.counting import parameter_count, sketched
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.encoder_layouts import SavedEncoder
from selfsup.models.features import Features
from selfsup.models.kinds import TEXT, TEXT_TOWERS, in_one
from selfsup.models.sentence_transformers import read_features
from selfsup.models.tower_layouts import read_towers
from selfsup.objectives.recipe import Effort
from selfsup.objectives.starting import make_absolute, tower_directory
from selfsup.objectives.text_networks import fitting_preset, require_texts, take_preset
from selfsup.objectives.texts import take_tokenizer
from selfsup.seeding import generator, uniform

LONGEST = 64  # tokens of a caption that are read, unless it is said
BYTES_PER_TOKEN = 3  # of captions, about
DROPOUT = 0.1  # in the encoder: captions are few and short (docs/LOG.md)
WORDS = 4  # times as many tokens as other text of that size has: captions are short, and their words count
SHAPE = ("layers", "width", "heads", "mlp")


class TextSettings(Section):
    preset: str = Field("auto", description="size of the text tower by name, or auto (from data and budget)")
    layers: Count | None = None
    width: Count | None = None
    heads: Count | None = None
    mlp: Count | None = Field(None, description="hidden width of the feed-forward blocks")
    dropout: Share | None = Field(None, description="share of activations it drops in training")
    init: str | None = Field(None, description="a run or Hugging Face directory whose weights to start from")


@dataclass(frozen=True)
class HiddenTokens:
    """A share of a caption's tokens, none of them special, in whose place a special one is shown (Li et al. 2023,
    "Scaling Language-Image Pre-training via Masking", section 3): a pure function of (seed, epoch, record)."""

    share: float
    shown: int
    special: tuple[int, ...]

    def __call__(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Of captions (B, T)."""
        draws = uniform(batch.seed, "hidden tokens", batch.epochs, batch.records, tokens.shape[1])
        chosen = torch.from_numpy(draws < self.share).to(tokens.device)
        special = torch.isin(tokens, torch.tensor(self.special, device=tokens.device))
        return tokens.masked_fill(chosen & ~special, self.shown)


def drawn_captions(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """One caption of each image, drawn anew in each epoch: tokens (B, T), lengths (B,) and keys (B,)."""
    data = batch.host
    draws = uniform(batch.seed, "caption", batch.epochs, batch.records, 1)[:, 0]
    counts = data["captions"]
    chosen = (torch.from_numpy(draws).to(counts.device) * counts).long()
    rows = torch.arange(len(batch), device=counts.device)
    return data["tokens"][rows, chosen], data["lengths"][rows, chosen], data["text_keys"][rows, chosen]


class TextSide:
    """What the settings `text` and `data.tokenizer` say, together with the captions that are trained on.

    Attributes:
        tokenizer: brought by the encoder to start from, named, or trained on the captions.
    """

    tokenizer: TextTokenizer

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # -- where it starts from ------------------------------------------------------------------------------

    @cached_property
    def directory(self) -> Path | None:
        """The model to start from, where one is named."""
        place = self.settings["text.init"]
        if place is None:
            return None
        directory = tower_directory(place, TEXT)
        if not in_one(directory):
            require_texts(directory)
        return directory

    @cached_property
    def origin(self) -> SavedEncoder | AdaptedEncoder | None:
        """What that directory holds: an encoder whose arithmetic stands here, the text tower of a model beside images,
        or one that transformers opens.

        Raises:
            UserError: there is none.
        """
        if self.directory is None:
            return None
        if in_one(self.directory):
            return read_towers(self.directory).text
        return native_encoder(self.directory) or open_encoder(self.directory)[0]

    @property
    def kept(self) -> SavedEncoder | None:
        """That encoder, where the tower goes back into the class of its directory."""
        alone = self.directory is not None and not in_one(self.directory)
        return self.origin if alone and isinstance(self.origin, SavedEncoder) else None

    @property
    def features(self) -> Features:
        """What the vector of a text was to the encoder that is started from."""
        if isinstance(self.origin, SavedEncoder):
            return self.origin.features
        return Features() if self.directory is None else read_features(self.directory)

    def open(self, captions: Sequence[str]) -> None:
        """Find the tokenizer, or train it on captions."""
        settings = self.settings
        make_absolute(settings, "text.init")
        if self.directory is not None:
            take_tokenizer(settings, self.directory, settings["text.init"])
        self._bytes = sum(len(caption.encode(errors="replace")) for caption in captions)
        if settings.origin("data.tokenizer") == "default":
            settings.change("data.tokenizer", "wordpiece", "recipe")
        spec = settings["data.tokenizer"]
        given = self._brought or open_tokenizer(spec, "encoder")
        if given is not None and settings["data.vocabulary"] is not None:
            raise UserError(f"The tokenizer of {spec} has a size of its own, so leave data.vocabulary out.")
        if given is not None and self.directory is None:
            given = given.anew()
        self.tokenizer = given or self._train_tokenizer(spec, captions)
        if self.origin is not None and self.tokenizer.vocabulary > self.origin.config.vocabulary:
            raise UserError(
                f"The model of {self.directory} knows {self.origin.config.vocabulary} tokens, and "
                f"{self.tokenizer.vocabulary} are needed with those of an encoder "
                f"({', '.join(self.tokenizer.marks.listed())}); give "
                "an encoder such as a run of masked-lm."
            )

    @property
    def _brought(self) -> TextTokenizer | None:
        """That of the encoder to start from, as it reads texts."""
        if not isinstance(self.origin, SavedEncoder) or self.directory is None:
            return None
        return encoder_tokenizer(self.directory, self.origin.config)

    @property
    def hides(self) -> bool:
        """Whether tokens are hidden in training unless it is said: an encoder that never saw any hidden is spared."""
        return self.origin is None or self.tokenizer.mask is not None

    def _train_tokenizer(self, kind: Kind, captions: Sequence[str]) -> TextTokenizer:
        size = self.settings["data.vocabulary"]
        if size is None and kind in ("bpe", "wordpiece"):
            size = WORDS * vocabulary_size(self._bytes)
        return train_tokenizer(kind, captions, size, family="encoder")

    def hiding(self, share: float) -> HiddenTokens:
        """Tokens are hidden as an encoder that is started from knows it, by the mask; to a fresh one they are shown as
        unknown, where the tokenizer has a token for that, so that it learns what to make of words it never saw."""
        tokenizer = self.tokenizer
        marks = [mark for mark in (tokenizer.unknown, tokenizer.mask) if mark not in (None, tokenizer.end)]
        shown = next(iter(marks[::-1] if self.origin else marks), None)
        if shown is None and share:
            raise UserError(
                f"The tokenizer of {self.directory} has no token for what is hidden; leave captions as they are: "
                "clip.hidden_tokens=0."
            )
        return HiddenTokens(share, int(shown or 0), tuple(tokenizer.special))

    # -- its shape -----------------------------------------------------------------------------------------

    def settle(self, effort: Effort) -> None:
        """Shape of the encoder and the longest caption; raises UserError where they do not fit together."""
        settings, origin = self.settings, self.origin
        self._settle_window()
        if origin is not None:
            self._keep_shape(origin)
            return
        settings.settle("text.dropout", DROPOUT, "recipe")
        if settings["text.preset"] == "auto":
            tokens = max(1, self._bytes // BYTES_PER_TOKEN)
            settings.change("text.preset", fitting_preset(effort, tokens), effort.origin)
        take_preset(settings, "text")

    def _settle_window(self) -> None:
        """The longest caption, in tokens; raises a UserError where the encoder does not read captions so long, or none
        but those that are padded to another length."""
        settings, origin = self.settings, self.origin
        own = None if origin is None else origin.config.window
        padded = isinstance(origin, SavedEncoder) and origin.config.padded
        longest = own if padded else min(LONGEST, own or LONGEST)
        settings.settle("data.window", longest, "recipe" if origin is None else "init")
        asked = settings["data.window"]
        if padded and asked != own:
            raise UserError(
                f"{settings['text.init']} reads texts that are padded to {own} tokens, so data.window is not {asked}; "
                "leave it out."
            )
        most = origin.config.longest if isinstance(origin, SavedEncoder) else own
        if most is not None and asked > most:
            raise UserError(
                f"{settings['text.init']} reads at most {most} tokens, so data.window cannot be {asked}; give less."
            )

    def _keep_shape(self, origin: SavedEncoder | AdaptedEncoder) -> None:
        settings, place = self.settings, self.settings["text.init"]
        if settings["text.preset"] != "auto":
            raise UserError(f"{place} brings its own shape, so leave text.preset out.")
        for name in SHAPE:
            asked = settings[f"text.{name}"]
            found = getattr(origin.config, name, None)
            if asked not in (None, found):
                raise UserError(f"{place} brings its own {name}, so text.{name} is not {asked}; leave it out.")
            if found is not None:
                settings.settle(f"text.{name}", found, "init")
        if isinstance(origin, AdaptedEncoder) and settings["text.dropout"] is not None:
            raise UserError(f"{place} brings its own dropout, so leave text.dropout out.")
        if isinstance(origin, SavedEncoder):
            beside_images = origin.config.layout in TEXT_TOWERS  # whose training had none
            settings.settle("text.dropout", 0.0 if beside_images else DROPOUT, "recipe")

    @property
    def width(self) -> int:
        """Of the encoder's hidden states."""
        return int(self.settings["text.width"] if self.origin is None else self.origin.config.width)

    def config(self) -> EncoderConfig:
        """The shape of an encoder of selfsup's own; raises UserError where there is no such."""
        settings = self.settings
        shape = {name: settings[f"text.{name}"] for name in (*SHAPE, "dropout")}
        try:
            return EncoderConfig(
                vocabulary=self.tokenizer.vocabulary, window=settings["data.window"], tied=False, **shape
            )
        except ValueError as error:
            raise UserError(f"There is no such text tower: {error}.") from None

    # -- what is made of it --------------------------------------------------------------------------------

    def build(self) -> AnyEncoder:
        """The encoder as it starts: a function of the seed alone, or of the weights to start from."""
        origin, settings = self.origin, self.settings
        if origin is None:
            return TextEncoder(self.config()).initialise(generator(settings["train.seed"], "text weights"))
        if isinstance(origin, AdaptedEncoder):
            assert self.directory is not None
            return open_encoder(self.directory)[0]  # as it was given, whatever the calibration did to it
        window = max(origin.config.window, settings["data.window"])
        own = {"window": window, "dropout": settings["text.dropout"]}
        encoder = TextEncoder(EncoderConfig(**{**vars(origin.config), **own}))
        encoder.load_state_dict(origin.encoder().state_dict())
        return encoder

    @cached_property
    def parameters(self) -> int:
        """Of the encoder."""
        if isinstance(self.origin, AdaptedEncoder):
            return sum(parameter.numel() for parameter in self.origin.parameters())
        return parameter_count(TextEncoder, self.config() if self.origin is None else self.origin.config)

    def flops(self, length: float) -> float:
        """Floating-point operations of forward and backward for a caption of so many tokens."""
        if isinstance(self.origin, AdaptedEncoder):
            return 6 * self.parameters * length
        config = self.config() if self.origin is None else self.origin.config
        return length * sketched(TextEncoder, config).flops(round(length))

    def describe(self) -> str:
        """For the plan."""
        tokens = f"{self.tokenizer.vocabulary:,} tokens"
        if isinstance(self.origin, AdaptedEncoder):
            return f"{self.parameters:,} parameters in {self.origin.opened.name}, {tokens}"
        config = self.config() if self.origin is None else self.origin.config
        return (
            f"{self.parameters:,} parameters in the text encoder: {config.layers} layers, width {config.width}, "
            f"{config.heads} heads, {tokens}"
        )
