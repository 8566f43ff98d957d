"""SimCSE: a sentence finds itself, seen otherwise, among the other sentences (Gao et al. 2021, equation 4).

L = − Σ_i log ( exp(cos(z_i, z'_i) / τ) / Σ_j exp(cos(z_i, z'_j) / τ) )      z, z' the two encodings of each sentence

Each encoding is of some of the sentence's tokens (word deletion; Wu et al. 2020, "CLEAR", arXiv:2012.15466): what is
left must tell what else stood there. Dropout alone is a task for an encoder that was trained on billions of words
(Gao et al. 2021, table 1); small ones that were trained for minutes got worse by it (docs/LOG.md).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.data.sources import TextCollection
from selfsup.models.adapters import AnyEncoder
from selfsup.models.counting import sketched
from selfsup.models.encoder import TextEncoder, initialise
from selfsup.models.packing import Pooling, embed, flattened
from selfsup.models.transformer import Linear
from selfsup.objectives.base import Collectives, Effort, Objective, Outputs, Task
from selfsup.objectives.checks.contrastive import dropout_off, small_batch
from selfsup.objectives.encoding import EncoderRecipe
from selfsup.objectives.language import how_texts_are_read
from selfsup.objectives.losses import info_nce
from selfsup.seeding import generator, uniform

BATCH = 128
SENTENCE = 64  # tokens, at most
VIEWS = ("first", "second")


class Projection(nn.Module):
    """tanh(dense(x)), which serves training only (section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class SimCSE(Objective):
    """InfoNCE between two encodings of each sentence; sentences that equal it are no negatives of a sentence.

    Args:
        encoder: of tokens; its dropout, too, tells the encodings apart.
        projection: of the vectors, in training only.
        pooling: how a sentence becomes one vector.
        temperature: by which cosines are divided.
        deletion: the share of a sentence's tokens that each encoding is made without.
    """

    separable: ClassVar[bool] = False

    def __init__(
        self,
        encoder: AnyEncoder,
        projection: nn.Module,
        pooling: Pooling,
        temperature: float,
        deletion: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.pooling = pooling
        self.temperature = temperature
        self.deletion = deletion

    def train(self, mode: bool = True) -> SimCSE:
        """Dropout is a part of the views, so it runs in evaluation too."""
        return super().train(True)

    def hide(self, batch: Batch) -> Task:
        """What is left of the sentences in each view, padded (B, T), with their lengths (B,), and their keys (B,)."""
        tokens = batch.data["tokens"]
        views: dict[str, Tensor] = {}
        for view in VIEWS:
            kept = kept_tokens(batch, self.deletion, view)
            order = kept.byte().argsort(dim=1, descending=True, stable=True)
            views |= {view: tokens.gather(1, order), f"{view}_lengths": kept.sum(1)}
        return Task({**views, "keys": batch.data["keys"]}, {"info_nce": torch.tensor(len(batch))})

    def predict(self, task: Task) -> Outputs:
        """Two encodings of each sentence, (B, width) each, under different draws of the dropout."""
        lengths = [task[f"{view}_lengths"] for view in VIEWS]
        flat = [flattened(task[view], own) for view, own in zip(VIEWS, lengths, strict=True)]
        both = embed(self.encoder, torch.cat(flat), torch.cat(lengths), self.pooling)
        first, second = self.projection(both).to(both.dtype).chunk(2)
        return {"first": first, "second": second}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        first = F.normalize(outputs["first"], dim=-1)
        second = F.normalize(outputs["second"], dim=-1)
        return {"info_nce": info_nce(first, second, task["keys"], 1 / self.temperature, collectives)}


def kept_tokens(batch: Batch, deletion: float, view: str) -> Tensor:
    """Which tokens of the sentences of a batch (B, T) are left in a view, a function of (seed, epoch, record, view).

    Start and end always are, and so is all of a sentence that nothing else would be left of.
    """
    tokens, lengths = batch.data["tokens"], batch.data["lengths"][:, None]
    place = torch.arange(tokens.shape[1], device=tokens.device)
    draws = uniform(batch.seed, f"deletion {view}", batch.epochs, batch.records, tokens.shape[1])
    words = (place > 0) & (place < lengths - 1)
    kept = words & torch.from_numpy(draws >= deletion).to(tokens.device)
    return (place < lengths) & (kept | ~words | ~kept.any(1, keepdim=True))


class SimCSERecipe(EncoderRecipe):
    """From a source of sentences, or of documents that are split into them, to an encoder of sentences."""

    inspector: ClassVar[str] = "sentences"
    idea: ClassVar[str] = "a sentence, read twice in part and under dropout, finds itself among others"
    useful: ClassVar[str | None] = "selfsup index {run} --data docs/ --out library.lance"
    dropout: ClassVar[float] = 0.1
    deletion: ClassVar[float] = 0.5  # measured: docs/LOG.md
    unit: ClassVar[str] = "sentences"
    checks = (dropout_off, small_batch)

    def _documents(self) -> TextCollection:
        from selfsup.data.sentences import open_sentences

        source = self.source if self.source is not None else self.settings["data.source"]
        return open_sentences(source, **how_texts_are_read(self.settings))

    def settle(self, effort: Effort) -> None:
        """Size, batch and learning rates, from the sentences at hand and what can be spent on them."""
        settings = self.settings
        self._choose_preset(effort, self.corpus.facts.training_tokens)
        self._settle_shape()
        settings.settle("data.window", min(SENTENCE, self._longest_window()), "recipe")
        settings.settle("simcse.deletion", self.deletion, "recipe")
        self._records()
        settings.settle("train.batch", min(BATCH, len(self.train)), "recipe")
        if self.validation is not None:
            # Records meet in the score, so a loss is comparable only among as many of them.
            settings.settle("evaluate.batch", min(settings["train.batch"], len(self.validation)), "batch")
        self._settle_rates()

    def _records(self) -> None:
        from selfsup.data.sentences import Sentences

        window, tokenizer = self.settings["data.window"], self.corpus.tokenizer
        self.train: Sentences = Sentences(self.corpus.train, window, tokenizer)
        if self.corpus.validation is not None:
            self.validation = Sentences(self.corpus.validation, window, tokenizer)

    def build(self) -> SimCSE:
        options, config = self.settings.config.simcse, self.encoder_config()
        draws = generator(self.settings["train.seed"], "weights")
        encoder, projection = TextEncoder(config).initialise(draws), Projection(config.width)
        initialise(projection, draws)
        self.start(encoder)
        deletion = self.settings["simcse.deletion"]
        return SimCSE(encoder, projection, options.pooling, options.temperature, deletion)

    def texts(self, records: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return flattened(records["tokens"], records["lengths"]), records["lengths"]

    def encoder(self, objective: Objective) -> AnyEncoder:
        return cast(SimCSE, objective).encoder

    @property
    def pooling(self) -> Pooling:
        pooling: Pooling = self.settings["simcse.pooling"]
        return pooling

    def flops_per_record(self) -> float:
        """What is left in two views of a sentence of mean length."""
        length = self.mean_seen
        return float(2 * length * sketched(TextEncoder, self.encoder_config()).flops(round(length)))

    @property
    def mean_seen(self) -> float:
        """Tokens of a view, start and end among them, in the mean."""
        share: float = self.settings["simcse.deletion"]
        return 2 + (1 - share) * (self.train.mean_length - 2)

    @property
    def units_per_record(self) -> int:
        return 1

    def facts(self) -> dict[str, str]:
        return super().facts() | {
            "windows": f"{len(self.train):,} sentences of {self.train.mean_length:.1f} tokens in the mean, "
            f"{self.train.truncated:,} longer than {self.settings['data.window']} lose their end",
            "views": f"each of {1 - self.settings['simcse.deletion']:.0%} of a sentence's tokens "
            f"({self.settings.origin('simcse.deletion')})",
        }

    @property
    def chance(self) -> float:
        return self.chance_of(self.settings["train.batch"])

    def chance_of(self, records: int) -> float:
        return math.log(records)

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """The encoder and its tokenizer as a Hugging Face directory, with a card that says how exact it is."""
        encoder = cast(TextEncoder, self.encoder(objective))
        self.save_encoder(encoder, self.definition(objective), directory, summary, HOW)


HOW = """\
unsupervised SimCSE

import selfsup

vectors = selfsup.load("path/to/this/directory").embed(["A cat sleeps.", "The dog barks."])
"""
