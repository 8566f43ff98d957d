"""SimCSE: a sentence finds itself, seen otherwise, among the other sentences (Gao et al. 2021, equation 4).

L = − Σ_i log ( exp(cos(z_i, z'_i) / τ) / Σ_j exp(cos(z_i, z'_j) / τ) )      z, z' the two encodings of each sentence

Each encoding is of some of the sentence's tokens (word deletion; Wu et al. 2020, "CLEAR", arXiv:2012.15466): what is
left must tell what else stood there. Dropout alone is a task for an encoder that was trained on billions of words
(Gao et al. 2021, table 1); small ones that were trained for minutes got worse by it (docs/LOG.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Rate, Section, Share
from selfsup.data.mixture import mean_length, truncated
from selfsup.data.records import Batch, Records
from selfsup.models.adapters import AnyEncoder
from selfsup.models.encoder import initialise
from selfsup.models.packing import Pooling, embed, flattened
from selfsup.models.transformer import Linear
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.checks.contrastive import dropout_off, small_batch
from selfsup.objectives.losses import info_nce
from selfsup.objectives.recipe import Effort
from selfsup.objectives.text_networks import ENCODER_ADAMW_LR, OwnEncoder
from selfsup.objectives.texts import TextRecipe, encoder_network
from selfsup.seeding import generator, uniform

if TYPE_CHECKING:
    from selfsup.data.sources import Table
    from selfsup.data.text import TextCorpus
    from selfsup.inference.encoder import EncoderModel
    from selfsup.objectives.hub_networks import HubEncoder

BATCH = 128
DROPOUT = 0.1
DELETION = 0.5  # measured: docs/LOG.md
KNOWING_DELETION = 0.0  # of encoders that know a language (Gao et al. 2021, table 1)
USAGE = """\
import selfsup

vectors = selfsup.load("path/to/this/directory").embed(["A cat sleeps.", "The dog barks."])
"""
SENTENCE = 64  # tokens, at most
VIEWS = ("first", "second")


class SimCSESettings(Section):
    temperature: Rate = Field(0.05, description="by which cosine similarities are divided")
    pooling: Pooling = Field("mean", description="how a sentence becomes one vector")
    deletion: Share | None = Field(None, description="share of a sentence's tokens that each view is without")


class SentenceHead(nn.Module):
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
        self, encoder: AnyEncoder, projection: nn.Module, pooling: Pooling, temperature: float, deletion: float = 0.0
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
        """What is left of the sentences in each view, padded (B, T), with their lengths (B,), all on the host, where
        they are laid into rows; and their keys (B,)."""
        views: dict[str, Tensor] = {}
        for view in VIEWS:
            views[view], views[f"{view}_lengths"] = damaged(batch, self.deletion, view)
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
    """Which tokens of the sentences of a batch (B, T) are left in a view, a function of (seed, epoch, record, view),
    on the host.

    Start and end always are, and so is all of a sentence that nothing else would be left of.
    """
    tokens, lengths = batch.host["tokens"], batch.host["lengths"][:, None]
    place = torch.arange(tokens.shape[1])
    draws = uniform(batch.seed, f"deletion {view}", batch.epochs, batch.records, tokens.shape[1])
    words = (place > 0) & (place < lengths - 1)
    kept = words & torch.from_numpy(draws >= deletion)
    return (place < lengths) & (kept | ~words | ~kept.any(1, keepdim=True))


def damaged(batch: Batch, deletion: float, view: str) -> tuple[Tensor, Tensor]:
    """What is left of the sentences of a batch in a view, padded (B, T), and how many tokens that is (B,)."""
    kept = kept_tokens(batch, deletion, view)
    order = kept.byte().argsort(dim=1, descending=True, stable=True)
    return batch.host["tokens"].gather(1, order), kept.sum(1)


class SimCSERecipe(TextRecipe):
    """From a source of sentences, or of documents that are split into them, to an encoder of sentences."""

    name = "simcse"
    shards = True
    mixes = True
    bodies = (("model.init", "encoder"),)
    section = SimCSESettings
    family = "encoder"
    unit = "sentences"
    inspector = "sentences"
    idea = "a sentence, read twice in part and under dropout, finds itself among others"
    next_command = "selfsup index {run} --data docs/ --out library.lance"
    method = "unsupervised SimCSE"
    usage = USAGE
    checks = (dropout_off, small_batch)
    network: OwnEncoder | HubEncoder

    def compose(self) -> None:
        self.network = encoder_network(self.settings, "AutoModel", DROPOUT)
        self.options = self.settings.section("simcse", SimCSESettings)

    @classmethod
    def upgraded(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Runs from before tokens were deleted deleted none."""
        return {**config, "simcse": {"deletion": 0.0, **(config.get("simcse") or {})}}

    def open_source(self, source: object, how: dict[str, Any]) -> Table:
        from selfsup.data.sentences import open_sentences

        return open_sentences(source, **how)

    def settle(self, effort: Effort) -> None:
        settings, fresh = self.settings, isinstance(self.network, OwnEncoder) and not self.network.of_others
        self.settle_network(effort)
        settings.settle("data.window", min(SENTENCE, self.network.longest), "recipe")
        if settings.origin("simcse.pooling") == "default" and self.network.features.pooling != self.options.pooling:
            settings.change("simcse.pooling", self.network.features.pooling, "init")
        settings.settle("simcse.deletion", DELETION if fresh else KNOWING_DELETION, "recipe")
        self.cut()
        settings.settle("train.batch", min(BATCH, len(self.train)), "recipe")
        self.settle_evaluation_batch()
        self.network.settle_rates(ENCODER_ADAMW_LR)

    def records_of(self, corpus: TextCorpus) -> tuple[Records, Records | None]:
        from selfsup.data.sentences import Sentences

        window, tokenizer, held_out = self.settings["data.window"], corpus.tokenizer, corpus.validation
        train = Sentences(corpus.train, window, tokenizer)
        return train, None if held_out is None else Sentences(held_out, window, tokenizer)

    def build(self) -> SimCSE:
        draws = generator(self.settings["train.seed"], "weights")
        objective = self.objective_on(self.network.build(draws))
        initialise(objective.projection, draws)
        return objective

    def objective_on(self, network: Any) -> SimCSE:
        options, head = self.options, SentenceHead(network.config.width)
        return SimCSE(network, head, options.pooling, options.temperature, options.deletion or 0.0)

    def flops_per_record(self) -> float:
        """What is left in two views of a sentence of mean length."""
        length = 2 + (1 - (self.options.deletion or 0.0)) * (mean_length(self.train) - 2)
        return float(2 * length * self.network.flops(length, predicted=0.0))

    @property
    def units_per_record(self) -> int:
        return 1

    def facts(self) -> dict[str, str]:
        return super().facts() | {
            "windows": f"{len(self.train):,} sentences of {mean_length(self.train):.1f} tokens in the mean, "
            f"{truncated(self.train):,} longer than {self.settings['data.window']} lose their end",
            "views": f"each of {1 - self.settings['simcse.deletion']:.0%} of a sentence's tokens "
            f"({self.settings.origin('simcse.deletion')})",
        }

    def chance(self, records: int) -> float:
        return math.log(records)

    @property
    def pooling(self) -> Pooling:
        return self.options.pooling

    def encoder(self, objective: Objective) -> nn.Module:
        return cast(SimCSE, objective).encoder

    def pooled(self, encoder: Any, data: dict[str, Tensor]) -> Tensor:
        return embed(encoder, flattened(data["tokens"], data["lengths"]), data["lengths"], self.pooling)

    def model(self, objective: Objective) -> EncoderModel:
        from selfsup.inference.encoder import EncoderModel

        return EncoderModel(cast(SimCSE, objective).encoder, self.corpus.tokenizer, self.definition(objective))
