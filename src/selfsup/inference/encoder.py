"""An encoder with its tokenizer: vectors of texts, and what stands in the place of a hidden token."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.data.tokenizer_loading import load_tokenizer
from selfsup.data.tokenizers import Ids, TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.base import EmbeddingModel, OneNetwork, Reading, require_room
from selfsup.inference.items import Vectors, silent
from selfsup.inference.texts import Text, Texts
from selfsup.machine import Machine, find_precision
from selfsup.models import kinds
from selfsup.models.directories import read_config
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.encoder_layouts import SavedEncoder, read_encoder, write_encoder
from selfsup.models.features import Features
from selfsup.models.layouts import Unfit
from selfsup.models.packing import MULTIPLE, embed, pack, rounded
from selfsup.models.sentence_transformers import normalizes, read_features
from selfsup.models.static import StaticEncoder
from selfsup.report import Progress

if TYPE_CHECKING:
    from selfsup.data.words import WordIds
    from selfsup.models.adapters import AdaptedConfig, AdaptedEncoder, AnyEncoder, AnyMaskedLM

PLACES = 4096  # of tokens that are encoded at once
ROOM = 96  # of them in a row of short texts, about

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A token that may stand in a hidden place."""

    token: str
    probability: float


class EncoderModel(OneNetwork["AnyEncoder"], EmbeddingModel):
    """A text encoder, the tokenizer it was trained with, and what a vector of it is.

    Attributes:
        masked: the encoder with its head of masked LM, where it has one.
        directory: the model directory that it was opened from, where it was.
    """

    kind = "a text encoder"
    embeds = (Text,)
    directory: Path | None = None

    def __init__(
        self, encoder: AnyEncoder, tokenizer: TextTokenizer, features: Features, masked: AnyMaskedLM | None = None
    ) -> None:
        super().__init__(encoder, features)
        self.tokenizer = tokenizer
        self.masked = None if masked is None else masked.eval()

    @classmethod
    def _open(cls, directory: Path) -> Self:
        """In a layout that is known, or, by transformers, in that of another encoder."""
        encoder, tokenizer, masked = _opened(directory)
        require_room(tokenizer, encoder.config.vocabulary, directory, "encoder")
        features = read_features(directory)
        features.require_width(encoder.config.width, directory)
        model = cls(encoder, tokenizer, features, masked)
        model.directory = directory
        return model

    @property
    def encoder(self) -> AnyEncoder:
        return self.network

    @property
    def native(self) -> TextEncoder:
        """The encoder, where its arithmetic stands here; raises UserError where it is another one."""
        if isinstance(self.network, TextEncoder):
            return self.network
        why = "into which one cannot look here; give one such as a ModernBERT or a BERT"
        if isinstance(self.network, StaticEncoder):
            raise UserError(f"{self.path} holds a table of token vectors, {why}.")
        raise self.network.opened.refused(why)

    @property
    def width(self) -> int:
        return self.network.config.width

    @property
    def window(self) -> int:
        """Tokens of the longest text that it reads to its end, start and end token included."""
        return self.network.config.window

    @property
    def reading(self) -> tuple[object, ...]:
        return self.tokenizer.fingerprint, self.window

    def to(self, device: torch.device) -> None:
        super().to(device)
        if self.masked is not None:
            self.masked.to(device)

    def read(self, source: object, column: str | None = None, **how: Unpack[Reading]) -> Texts:
        return Texts(source, column, how.get("label"), how.get("failures", 0.01))

    def write(self, directory: Path) -> None:
        """Write the encoder, without heads, and its tokenizer in Hugging Face's layout into a directory that exists."""
        if isinstance(self.network, StaticEncoder):
            from selfsup.models.static_files import write_static

            normalized = self.directory is not None and normalizes(self.directory)
            write_static(directory, self.network.embedding.weight, self.tokenizer, self.features, normalized)
        elif isinstance(self.network, TextEncoder):
            write_encoder(directory, self.network, self.tokenizer, self.directory)
        else:
            self.network.opened.save(directory, self.tokenizer, heads=False)

    def embed(
        self, texts: Sequence[str], precision: str = "auto", progress: Progress = silent, prompt: str | None = None
    ) -> Vectors:
        """The vector of each text, (n, dimension), not normalised.

        Before each text stands the prompt that is named: `query` for what is looked for, `document` for what is looked
        through; without a name the model's default one, if it has any. Texts are taken in the order of their lengths,
        several to a row, so that nothing is computed on padding. A text that is longer than the window loses its end
        (`truncated` counts them). `progress` receives the number of texts done and in all.
        """
        before = self.features.prompt(prompt)
        texts = [before + text for text in texts] if before else list(texts)
        if isinstance(self.network, StaticEncoder):
            return self._looked_up(self.network, texts, progress)
        room, ids = self.tokenizer.room(self.window), self.tokenizer.encode_batch(texts)
        self.truncated = sum(len(row) > room for row in ids)
        return self.embed_framed([self.tokenizer.frame(row[:room]) for row in ids], precision, progress)

    @torch.inference_mode()
    def _looked_up(self, table: StaticEncoder, texts: list[str], progress: Progress) -> Vectors:
        """The same of a table of token vectors: in fp32, and nothing stands around a text."""
        from selfsup.inference.static import AT_ONCE, look_up

        self.precision, self.truncated = "fp32", 0
        vectors = np.empty((len(texts), self.dimension), np.float32)
        progress(0, len(texts))
        for start in range(0, len(texts), AT_ONCE):
            found, cut = look_up(table, self._words, texts[start : start + AT_ONCE])
            vectors[start : start + len(found)] = self.features.map(found).cpu().numpy()
            self.truncated += cut
            progress(start + len(found), len(texts))
        return vectors

    @cached_property
    def _words(self) -> WordIds:
        from selfsup.data.words import WordIds

        return WordIds(self.tokenizer)

    @torch.inference_mode()
    def embed_framed(self, framed: Sequence[Ids], precision: str = "auto", progress: Progress = silent) -> Vectors:
        """The same of texts that are tokens already, within the window, with what stands around them."""
        self.precision = find_precision(precision, self.device)
        autocast = Machine(self.device, self.precision, 0.0).autocast
        vectors = np.empty((len(framed), self.dimension), np.float32)
        done = 0
        progress(0, len(framed))  # from where the time that is left is reckoned
        for numbers, room in by_length(framed):
            rows = [framed[number] for number in numbers]
            tokens = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(self.device)
            lengths = torch.tensor([len(row) for row in rows], device=self.device)
            with autocast():
                found = embed(self.network, tokens, lengths, self.features.pooling, room)
            vectors[numbers] = self.features.map(found).cpu().numpy()
            done += len(numbers)
            progress(done, len(framed))
        return vectors

    @property
    def head(self) -> AnyMaskedLM:
        """The encoder with its head of masked LM; raises a UserError where it has none."""
        if self.masked is None:
            raise UserError("The model has no head that predicts hidden tokens; give a run of masked-lm.")
        return self.masked

    def fill(self, text: str, top: int = 5) -> list[list[Candidate]]:
        """The likeliest tokens in each place of the text that says [MASK], likeliest first. Raises UserError where
        the model has no head for it, the text hides nothing, or is longer than the window."""
        _ = self.head  # without which nothing can be hidden, whatever the text says
        ids = self.tokenizer.frame(self.tokenizer.encode_marked(text))
        places = np.flatnonzero(ids == self.tokenizer.mask)
        if not len(places):
            raise UserError(f"Nothing is hidden in {text!r}; write {self.tokenizer.marks.mask} where a word is.")
        if len(ids) > self.window:
            raise UserError(
                f"the text has {len(ids)} tokens and the model a window of {self.window}; give a shorter one."
            )
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        logits = self._logits(tokens, torch.from_numpy(places)[None])[0]
        best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
        return [
            [Candidate(self._shown(token), p) for token, p in zip(row, ps, strict=True)]
            for row, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _shown(self, token: int) -> str:
        """Its text; a special token and white space as something to look at."""
        return self.tokenizer.decode([token]).strip() or self.tokenizer.tokens([token])[0]

    def pseudo_losses(self, text: str) -> npt.NDArray[np.float32]:
        """The loss in nats of each token of a text, hidden alone while all others are shown, (tokens,).

        (Salazar et al. 2020, "Masked Language Model Scoring", equation 1.) A text that is longer than the window is
        cut into pieces that fit, each by itself.
        """
        room = self.tokenizer.room(self.window)
        ids = self.tokenizer.encode(text)
        pieces = [ids[start : start + room] for start in range(0, len(ids), room)]
        return np.concatenate([self._losses(piece) for piece in pieces] or [np.empty(0, np.float32)])

    def _losses(self, ids: Ids) -> npt.NDArray[np.float32]:
        framed = torch.from_numpy(self.tokenizer.frame(ids).astype(np.int64))
        places = torch.arange(1, len(ids) + 1)[:, None]
        parts = []
        for chosen in torch.split(places, max(1, PLACES // len(framed))):
            rows = framed.expand(len(chosen), -1).scatter(1, chosen, int(self.tokenizer.mask or 0))
            logits = self._logits(rows, chosen)[:, 0].float().cpu()
            parts.append(F.cross_entropy(logits, framed[chosen[:, 0]], reduction="none"))
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def _logits(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Logits (B, K, vocabulary) at places (B, K) of tokens (B, T)."""
        hidden: Tensor = self.head(tokens.to(self.device), places.to(self.device))
        return hidden @ self.head.output_weight.T


def _opened(directory: Path) -> tuple[AnyEncoder, TextTokenizer, AnyMaskedLM | None]:
    """The encoder of a directory with its tokenizer, and the same with its head of masked LM, where it has one."""
    if kinds.static(directory):
        from selfsup.inference.static import open_table

        return *open_table(directory), None
    encoder, masked = _opened_network(directory)
    return encoder, encoder_tokenizer(directory, encoder.config), masked


def _opened_network(directory: Path) -> tuple[TextEncoder | AdaptedEncoder, AnyMaskedLM | None]:
    if (saved := native_encoder(directory)) is not None:
        masked = saved.masked() if saved.head else None
        return masked.model if masked else saved.encoder(), masked
    from selfsup.models.adapters import open_encoder

    return open_encoder(directory)


def native_encoder(directory: Path) -> SavedEncoder | None:
    """What a directory holds, where its arithmetic stands here; None, which is said of a variant of a class that does,
    where it takes transformers."""
    if read_config(directory).get("model_type") not in (*kinds.ENCODERS, *kinds.TEXT_TOWERS):
        return None
    try:
        return read_encoder(directory)
    except Unfit as error:
        log.warning("%s. It is opened by transformers.", error)
        return None


def encoder_tokenizer(directory: Path, config: EncoderConfig | AdaptedConfig) -> TextTokenizer:
    """The tokenizer of an encoder's directory, which puts around texts what the encoder was trained with."""
    if not (isinstance(config, EncoderConfig) and config.layout in kinds.TEXT_TOWERS):
        return load_tokenizer(directory, "encoder")
    tokenizer = load_tokenizer(directory, "tower")
    tokenizer.fixed = config.window if config.padded else 0
    return tokenizer


def by_length(framed: Sequence[Ids]) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """The numbers of the texts, the longest first, as many at once as fill `PLACES` in rows, and the room of a row.

    Short ones lie several in a row, of which they leave little empty.
    """
    lengths = np.array([len(row) for row in framed], np.int64)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        room = rounded(longest * max(1, ROOM // longest))
        count = max(1, PLACES // room)
        count -= count % MULTIPLE if count > MULTIPLE else 0
        ends = np.cumsum(lengths[order[start : start + PLACES]])
        many = int(np.searchsorted(ends, count * room, side="right"))
        rows, _, _ = pack(lengths[order[start : start + many]].tolist(), room)
        stop = start + next((place for place, row in enumerate(rows) if row == count), many)
        yield order[start:stop], room
        start = stop
