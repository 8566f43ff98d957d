"""TSDAE: a sentence is rebuilt from the one vector of its damaged self (Wang, Reimers and Gurevych 2021, "TSDAE: Using
Transformer-based Sequential Denoising Auto-Encoder for Unsupervised Sentence Embedding Learning", arXiv:2104.06979,
equation 1).

L = − Σ_t log p(x_t | x_<t, v),   v = the vector of x without the tokens that were deleted

All that the decoder knows of a sentence beside its beginning is the vector, so that has to say what the sentence says.
Records do not meet: no sentence is pushed away from another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Section, Share
from selfsup.data.loader import in_order
from selfsup.data.mixture import mean_length, truncated
from selfsup.data.records import Batch, Records
from selfsup.errors import UserError
from selfsup.models.directories import MODULES
from selfsup.models.encoder import MaskedLanguageModel
from selfsup.models.losses import linear_cross_entropy
from selfsup.models.packing import Pooling, embed, flattened
from selfsup.models.sentence_decoder import SentenceDecoder
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.checks.rebuilding import unused_vector
from selfsup.objectives.recipe import Effort
from selfsup.objectives.simcse import BATCH, DROPOUT, SENTENCE, USAGE, damaged
from selfsup.objectives.text_networks import ENCODER_ADAMW_LR, HUB, OwnEncoder
from selfsup.objectives.texts import TextRecipe
from selfsup.seeding import generator

if TYPE_CHECKING:
    from selfsup.data.sentences import Sentences
    from selfsup.data.sources import Table
    from selfsup.data.text import TextCorpus
    from selfsup.inference.encoder import EncoderModel

DELETION = 0.6  # section 5.3


class TSDAESettings(Section):
    pooling: Pooling = Field("cls", description="how what is left of a sentence becomes one vector")
    deletion: Share = Field(DELETION, description="share of a sentence's tokens that its vector is made without")


class TSDAE(Objective):
    """Cross-entropy of the tokens of each sentence, given those before them and the vector of its damaged self.

    Args:
        model: the encoder, whose embeddings and layers are the decoder's too, with the head that predicts tokens.
        decoder: what tells these layers the vector.
        pooling: how a sentence becomes one vector.
        deletion: the share of a sentence's tokens that its vector is made without.
    """

    def __init__(self, model: MaskedLanguageModel, decoder: SentenceDecoder, pooling: Pooling, deletion: float) -> None:
        super().__init__()
        self.model = model
        self.decoder = decoder
        self.pooling = pooling
        self.deletion = deletion
        self.weights = {"swapped": 0.0}  # which is looked at alone

    def hide(self, batch: Batch) -> Task:
        """The sentences (B, T), what is left of each (B, T), both padded, and their lengths (B,); where records come
        with another sentence each (see `Swapped`), that too. All are on the host, where they are laid into rows."""
        data = batch.host
        left, lengths = damaged(batch, self.deletion, "damaged")
        tensors = {"tokens": data["tokens"], "lengths": data["lengths"], "damaged": left, "damaged_lengths": lengths}
        count = (data["lengths"] - 1).sum()
        if "other" not in data:
            return Task(tensors, {"cross_entropy": count})
        tensors |= {name: data[name] for name in ("other", "other_lengths")}
        return Task(tensors, {"cross_entropy": count, "swapped": count})

    def predict(self, task: Task) -> Outputs:
        """What the output matrix is multiplied with at each token but the last (B, T − 1, width), 0 on padding, from
        the vector of the sentence's damaged self; and, where there is another sentence, from the vector of that."""
        outputs = {"hidden": self.rebuilt(self.encode(task, "damaged"), task["tokens"], task["lengths"])}
        if "other" in task.tensors:
            with torch.no_grad():
                outputs["swapped"] = self.rebuilt(self.encode(task, "other"), task["tokens"], task["lengths"])
        return outputs

    def encode(self, task: Task, which: str) -> Tensor:
        """The vectors (B, width) of some of a task's sentences, by their name there."""
        lengths = task[f"{which}_lengths"]
        return embed(self.model.model, flattened(task[which], lengths), lengths, self.pooling)

    def rebuilt(self, vectors: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """What the decoder makes of vectors (B, width) and all but the last token of sentences (B, T)."""
        shown = lengths - 1
        states = self.decoder(self.model.model, vectors, flattened(tokens, shown), shown)
        made = self.model.headed(states)
        padded = made.new_zeros(len(tokens) * (tokens.shape[1] - 1), made.shape[1])
        places = _asked(tokens, lengths).to(made.device, non_blocking=True)
        return padded.index_copy(0, places, made).view(len(tokens), -1, made.shape[1])

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        sums = {"cross_entropy": self._cross_entropy(outputs["hidden"], task)}
        if "swapped" in outputs:
            with torch.no_grad():
                sums["swapped"] = self._cross_entropy(outputs["swapped"], task)
        return sums

    def _cross_entropy(self, hidden: Tensor, task: Task) -> Tensor:
        asked = _asked(task["tokens"], task["lengths"])
        targets = task["tokens"][:, 1:].flatten()[asked]
        asked, targets = (each.to(hidden.device, non_blocking=True) for each in (asked, targets))
        return linear_cross_entropy(hidden.flatten(0, 1).index_select(0, asked), self.model.output_weight, targets)

    @torch.inference_mode()
    def write(self, vector: Tensor, start: int, end: int, most: int) -> list[int]:
        """The sentence that the decoder makes of a vector (width,): at every step the likeliest token, up to the end
        token or so many tokens."""
        written = [start]
        while len(written) < most and (len(written) == 1 or written[-1] != end):
            tokens = torch.tensor(written, device=vector.device)
            states = self.decoder(self.model.model, vector[None], tokens, torch.tensor([len(written)]).to(tokens))
            logits = self.model.headed(states[-1:]) @ self.model.output_weight.to(states.dtype).T
            written.append(int(logits.argmax()))
        return written


def _asked(tokens: Tensor, lengths: Tensor) -> Tensor:
    """At which of all B · (T − 1) tokens of sentences (B, T), but the last of each, the next one is to be predicted."""
    asked = torch.arange(tokens.shape[1] - 1, device=tokens.device) < lengths[:, None] - 1
    return asked.flatten().nonzero().squeeze(1)


class Swapped:
    """Sentences, each with another one, `other` (B, T) of `other_lengths` (B,): half of all away, so that it seldom
    stands near."""

    def __init__(self, sentences: Sentences) -> None:
        self.sentences = sentences

    def __len__(self) -> int:
        return len(self.sentences)

    def read(self, indices: np.ndarray) -> dict[str, Tensor]:
        others = self.sentences.read((indices + len(self) // 2) % len(self))
        beside = {"other": others["tokens"], "other_lengths": others["lengths"]}
        return self.sentences.read(indices) | beside


class TSDAERecipe(TextRecipe):
    """From a source of sentences, or of documents that are split into them, to an encoder of sentences."""

    name = "tsdae"
    shards = True
    mixes = True
    bodies = (("model.init", "model.model"),)
    section = TSDAESettings
    family = "encoder"
    unit = "sentences"
    inspector = "rebuilding"
    idea = "a sentence is rebuilt from the one vector of what is left of it"
    sample_title = "A held-out sentence, what is left of it, and what is written from the vector of that"
    next_command = "selfsup index {run} --data docs/ --out library.lance"
    loss_unit = "nats per token"
    method = "TSDAE"
    usage = USAGE
    checks = (unused_vector,)
    network: OwnEncoder

    def compose(self) -> None:
        preset = self.settings["model.preset"]
        if preset.startswith(HUB):
            raise UserError(
                f"tsdae makes a decoder of the encoder's own layers, which those of model={preset} do not lend "
                f"themselves to; give --init {preset.removeprefix(HUB)}, or train simcse on it."
            )
        self.network = OwnEncoder(self.settings, DROPOUT)
        self.options = self.settings.section("tsdae", TSDAESettings)

    def open_source(self, source: object, how: dict[str, Any]) -> Table:
        from selfsup.data.sentences import open_sentences

        return open_sentences(source, **how)

    def settle(self, effort: Effort) -> None:
        settings = self.settings
        self.settle_network(effort)
        settings.settle("data.window", min(SENTENCE, self.network.longest), "recipe")
        if self._says_its_vectors and settings.origin("tsdae.pooling") == "default":
            settings.change("tsdae.pooling", self.network.features.pooling, "init")
        self.cut()
        settings.settle("train.batch", min(BATCH, len(self.train)), "recipe")
        self.network.settle_rates(ENCODER_ADAMW_LR)

    @property
    def _says_its_vectors(self) -> bool:
        """Whether the encoder that is started from is one of sentences already, and says how they are made."""
        directory = self.network.directory
        return self.network.of_others and directory is not None and (directory / MODULES).exists()

    def records_of(self, corpus: TextCorpus) -> tuple[Records, Records | None]:
        """Those that are held out come with another sentence each: whether its vector does as well is looked at."""
        from selfsup.data.sentences import Sentences

        window, tokenizer, held_out = self.settings["data.window"], corpus.tokenizer, corpus.validation
        train = Sentences(corpus.train, window, tokenizer)
        return train, None if held_out is None else Swapped(Sentences(held_out, window, tokenizer))

    def build(self) -> TSDAE:
        draws = generator(self.settings["train.seed"], "weights")
        objective = self.objective_on(self.network.build_masked(draws))
        objective.decoder.initialise(draws)
        return objective

    def objective_on(self, network: Any) -> TSDAE:
        decoder = SentenceDecoder(network.config)
        return TSDAE(network, decoder, self.options.pooling, self.options.deletion)

    def flops_per_record(self) -> float:
        """Of a sentence of mean length: the encoder's on what is left of it, the decoder's on all of it, and telling
        the layers."""
        whole, told = mean_length(self.train) - 1, 6 * self.network.get("layers") * self.network.width**2
        left = 2 + (1 - self.options.deletion) * (mean_length(self.train) - 2)
        return float(left * self.network.flops(left, predicted=0.0) + whole * self.network.flops(whole) + told)

    @property
    def units_per_record(self) -> int:
        return 1

    def facts(self) -> dict[str, str]:
        return super().facts() | {
            "windows": f"{len(self.train):,} sentences of {mean_length(self.train):.1f} tokens in the mean, "
            f"{truncated(self.train):,} longer than {self.settings['data.window']} lose their end",
            "vector": f"of {1 - self.options.deletion:.0%} of a sentence's tokens, {self.settings['tsdae.pooling']} "
            f"({self.settings.origin('tsdae.pooling')})",
            "decoder": "the encoder's own layers, made causal; what tells them the vector serves training only",
        }

    @property
    def pooling(self) -> Pooling:
        return self.options.pooling

    def encoder(self, objective: Objective) -> nn.Module:
        return cast(TSDAE, objective).model.model

    def pooled(self, encoder: Any, data: dict[str, Tensor]) -> Tensor:
        return embed(encoder, flattened(data["tokens"], data["lengths"]), data["lengths"], self.pooling)

    def model(self, objective: Objective) -> EncoderModel:
        from selfsup.inference.encoder import EncoderModel

        return EncoderModel(cast(TSDAE, objective).model.model, self.corpus.tokenizer, self.definition(objective))

    def sample(self, objective: Objective) -> str | None:
        """The first held-out sentence, what is left of it, and what the decoder makes of the vector of that."""
        if self.validation is None:
            return None
        made, tokenizer = cast(TSDAE, objective), self.corpus.tokenizer
        batch = next(in_order(self.validation, 1, 0, 1)).to(made.model.output_weight.device)
        texts = rebuilt_text(made, made.hide(batch), int(tokenizer.start), int(tokenizer.end))
        return "\n".join(f"{name}: {tokenizer.decode(text)}" for name, text in texts.items())


@torch.inference_mode()
def rebuilt_text(objective: TSDAE, task: Task, start: int, end: int) -> dict[str, list[int]]:
    """Of the first sentence of a task its tokens, what is `left` of them, and what is `written` from the vector of
    that."""
    whole, left = (
        task[name][0, : int(task[lengths][0])].tolist()
        for name, lengths in (("tokens", "lengths"), ("damaged", "damaged_lengths"))
    )
    vector = objective.encode(task, "damaged")[0]
    return {"sentence": whole, "left": left, "written": objective.write(vector, start, end, task["tokens"].shape[1])}
