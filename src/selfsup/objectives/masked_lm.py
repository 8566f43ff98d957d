"""Masked language modelling: some tokens are hidden and predicted from all others (Devlin et al. 2019, section 3.1).

L = − Σ_{t hidden} log p(x_t | the tokens that are shown)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Real, Section
from selfsup.data.loader import in_order
from selfsup.data.records import Batch, Records
from selfsup.data.tokenizers import TextTokenizer
from selfsup.models.adapters import AnyMaskedLM
from selfsup.models.counting import Sketch, Stack, matrix_parameters, size_of, sketched
from selfsup.models.encoder import MaskedLanguageModel
from selfsup.models.losses import IGNORE, linear_cross_entropy, target_losses
from selfsup.models.packing import Pooling, embed
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.recipe import Effort
from selfsup.objectives.text_networks import ENCODER_ADAMW_LR, OwnEncoder
from selfsup.objectives.texts import TextRecipe, encoder_network
from selfsup.seeding import generator, uniform

if TYPE_CHECKING:
    from selfsup.data.text import TextCorpus
    from selfsup.inference.encoder import EncoderModel
    from selfsup.objectives.hub_networks import HubEncoder

SHOWN_AS_MASK, SHOWN_AS_RANDOM = 0.8, 0.1  # of the hidden tokens; the others are shown as they are
SAMPLE_TOKENS = 80
PIECE = 30  # tokens of a text that features are looked at with
USAGE = """\
from transformers import pipeline

fill = pipeline("fill-mask", "path/to/this/directory")
fill("The old man sat by the [MASK] and smoked his pipe.")
"""
WORDS_PER_SPAN = 3.8  # in the mean (Joshi et al. 2020, SpanBERT, section 3.1)


class MaskedLMSettings(Section):
    rate: Annotated[Real, Field(gt=0, lt=1)] = Field(0.3, description="share of tokens hidden in training")
    evaluation_rate: Annotated[Real, Field(gt=0, lt=1)] = Field(0.15, description="and in evaluation")
    unit: Literal["token", "word", "span"] = Field("token", description="what is hidden as a whole")


class Masking:
    """Which tokens are hidden, and what is shown in their places: a pure function of (seed, epoch, record).

    Of the n tokens of a record that are not special, round(rate · n) are hidden. `unit` says what is hidden as a
    whole: single tokens, words, or spans of words, whose number is geometric (SpanBERT); then as many whole words as
    fit are hidden, so that the last span may be shorter. Each hidden token is shown as the mask with probability .8,
    as a random token with .1, as it is with .1 (Devlin et al. 2019).
    """

    def __init__(self, tokenizer: TextTokenizer, unit: str) -> None:
        self.tokenizer = tokenizer
        self.unit = unit
        ordinary = np.ones(tokenizer.vocabulary, np.bool_)
        ordinary[list(tokenizer.special)] = False
        self.ordinary = np.flatnonzero(ordinary)
        self._maskable = ordinary
        self._goes_on, self._open_ended = tokenizer.word_parts()

    def __call__(
        self, tokens: npt.NDArray[np.int64], rate: float, seed: int, epochs: np.ndarray, records: np.ndarray
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Hide some of the tokens (B, T).

        Returns:
            shown (B, T); hidden positions (B, K), K = round(rate · T); targets (B, K), `IGNORE` where a record hides
            fewer than K.
        """
        count = tokens.shape[1]
        draws = uniform(seed, "masking", epochs, records, 4 * count).reshape(len(tokens), 4, count)
        maskable = self._maskable[tokens]
        order, chosen = self._choose(tokens, maskable, rate, draws[:, 0], draws[:, 3])
        targets = np.where(chosen, np.take_along_axis(tokens, order, 1), IGNORE)
        shown = tokens.copy()
        hidden = np.zeros_like(maskable)
        np.put_along_axis(hidden, order, chosen, 1)
        how = draws[:, 1]
        random = self.ordinary[(draws[:, 2] * len(self.ordinary)).astype(np.int64)]
        shown[hidden & (how < SHOWN_AS_MASK)] = int(self.tokenizer.mask or 0)
        swapped = hidden & (how >= SHOWN_AS_MASK) & (how < SHOWN_AS_MASK + SHOWN_AS_RANDOM)
        shown[swapped] = random[swapped]
        return shown, order, targets

    def _choose(
        self,
        tokens: npt.NDArray[np.int64],
        maskable: npt.NDArray[np.bool_],
        rate: float,
        scores: npt.NDArray[np.float64],
        starts: npt.NDArray[np.float64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Candidates (B, K), the units in the order of their scores, and whether each is hidden (B, K)."""
        words = self._words(tokens)
        units = self._spans(words, maskable, starts) if self.unit == "span" else words
        group = np.cumsum(units, 1) - 1
        scores = np.where(maskable, np.take_along_axis(scores, group, 1), np.inf)  # each unit has one score
        order = np.argsort(scores, 1, kind="stable")
        wanted = np.rint(rate * maskable.sum(1)).astype(np.int64)
        most = max(1, round(rate * tokens.shape[1]))  # the same for every batch of such records
        ordered = np.take_along_axis(np.cumsum(words, 1), order, 1)
        last = np.ones(tokens.shape, np.bool_)  # whether a word ends here
        last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
        ends = np.where(last, np.arange(tokens.shape[1]), tokens.shape[1])
        ends = np.minimum.accumulate(ends[:, ::-1], 1)[:, ::-1]  # of the word at each place
        return order[:, :most], ends[:, :most] < wanted[:, None]

    def _words(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each token begins what is never hidden in part, (B, T): every token, or a word's first."""
        begins = np.ones(tokens.shape, np.bool_)
        if self.unit != "token":
            begins[:, 1:] = ~(self._goes_on[tokens[:, 1:]] & self._open_ended[tokens[:, :-1]])
        return begins

    def _spans(
        self, words: npt.NDArray[np.bool_], maskable: npt.NDArray[np.bool_], draws: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Whether each token begins a span of words, (B, T); special tokens stand between spans."""
        border = ~maskable
        border[:, 1:] |= ~maskable[:, :-1]
        border[:, 0] = True
        return (words & (draws < 1 / WORDS_PER_SPAN)) | border


class MaskedLM(Objective):
    """Cross-entropy of hidden tokens; only they go through the head.

    Args:
        model: tokens (B, T), positions (B, K) and document numbers (B, T) to what the output matrix is multiplied
            with, (B, K, width).
        masking: what is hidden.
        rate: share of the tokens that is hidden in training.
        evaluation_rate: and in evaluation.
    """

    def __init__(self, model: AnyMaskedLM, masking: Masking, rate: float, evaluation_rate: float) -> None:
        super().__init__()
        self.model = model
        self.masking = masking
        self.rate = rate
        self.evaluation_rate = evaluation_rate

    @property
    def aims(self) -> dict[str, float]:
        """The share of the tokens that is `hidden` in training; the shares of these that are shown as the `mask`, as
        a `random` token, and `kept` as they are."""
        kept = round(1 - SHOWN_AS_MASK - SHOWN_AS_RANDOM, 9)
        return {"hidden": self.rate, "mask": SHOWN_AS_MASK, "random": SHOWN_AS_RANDOM, "kept": kept}

    def hide(self, batch: Batch) -> Task:
        """The tokens as they are shown (B, T), the hidden ones' positions (B, K) and targets (B, K), and documents,
        which stay on the host, where to look at them waits for nothing."""
        tokens, device = batch.host["tokens"], batch.data["tokens"].device
        rate = self.rate if self.training else self.evaluation_rate
        made = self.masking(tokens.numpy(), rate, batch.seed, batch.epochs, batch.records)
        shown, positions, targets = (torch.from_numpy(part).to(device, non_blocking=True) for part in made)
        tensors = {
            "inputs": shown,
            "positions": positions,
            "targets": targets,
            "documents": document_numbers(tokens, self.masking.tokenizer),
        }
        return Task(tensors, {"cross_entropy": (targets != IGNORE).sum()})

    def predict(self, task: Task) -> Outputs:
        documents = task["documents"]
        several = bool((documents != documents[:, :1]).any())  # without a mask it is else the same, and costs less
        apart = documents.to(task["inputs"].device, non_blocking=True) if several else None
        return {"hidden": self.model(task["inputs"], task["positions"], apart)}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        hidden, targets = outputs["hidden"].flatten(0, 1), task["targets"].flatten()
        return {"cross_entropy": linear_cross_entropy(hidden, self.model.output_weight, targets)}

    @torch.inference_mode()
    def losses(self, task: Task) -> Tensor:
        """The loss of each hidden token in nats, (B, K); 0 where a record hides fewer."""
        return target_losses(self.predict(task)["hidden"], self.model.output_weight, task["targets"])


def document_numbers(tokens: Tensor, tokenizer: TextTokenizer) -> Tensor:
    """Which document each position of tokens (B, T) belongs to: how many start tokens have come; −1 on padding."""
    padding: Tensor = tokens == int(tokenizer.pad or 0)
    return (tokens == tokenizer.start).cumsum(1).masked_fill(padding, -1)


class MaskedLMRecipe(TextRecipe):
    """From a text source to an encoder that understands."""

    name = "masked-lm"
    shards = True
    mixes = True
    bodies = (("model.init", "model"),)
    section = MaskedLMSettings
    family = "encoder"
    shortest = 4
    inspector = "tokens"
    in_streams = True
    idea = "hidden tokens are predicted from those around them, on both sides"
    sample_title = "What it reads in the places of hidden tokens, [truth → guess]"
    next_command = 'selfsup fill {run} "The [MASK] was cold."'
    loss_unit = "nats per hidden token"
    method = "masked language modelling"
    usage = USAGE
    network: OwnEncoder | HubEncoder

    def compose(self) -> None:
        self.network = encoder_network(self.settings, "AutoModelForMaskedLM", dropout=0.0, keeps_head=True)
        self.options = self.settings.section("masked_lm", MaskedLMSettings)

    def settle(self, effort: Effort) -> None:
        self.settle_network(effort)
        self.settle_window(effort)
        self.cut()
        self.settle_batch(effort)
        self.network.settle_rates(ENCODER_ADAMW_LR)

    def sketch(self) -> Sketch | None:
        if not isinstance(self.network, OwnEncoder):
            return None
        config, window = self.network.config, self.settings["data.window"]
        model = sketched(MaskedLanguageModel, config)
        encoder = model.model
        stack = Stack(config.layers, config.width, size_of(encoder.layers[-1]), window, encoder.kept)
        hidden, predicted = matrix_parameters(encoder.layers), self.options.rate * window
        return Sketch(size_of(model), hidden, (stack,), config.vocabulary, config.width, predicted)

    def records_of(self, corpus: TextCorpus) -> tuple[Records, Records | None]:
        from selfsup.data.passages import Passages

        window, tokenizer, held_out = self.settings["data.window"], corpus.tokenizer, corpus.validation
        train = Passages(corpus.train, window, tokenizer)
        return train, None if held_out is None else Passages(held_out, min(window, len(held_out) + 2), tokenizer)

    def build(self) -> MaskedLM:
        return self.objective_on(self.network.build_masked(generator(self.settings["train.seed"], "weights")))

    def begin(self) -> Objective:
        origin = self.network.origin if isinstance(self.network, OwnEncoder) else None
        if origin is not None and not origin.head:  # the one on it is new
            self.adaptation.candidates = (("model.init", "model.model"),)
        return super().begin()

    def objective_on(self, network: Any) -> MaskedLM:
        masking = Masking(self.corpus.tokenizer, self.options.unit)
        return MaskedLM(network, masking, self.options.rate, self.options.evaluation_rate)

    def flops_per_record(self) -> float:
        window = self.settings["data.window"]
        return float(self.network.flops(window, self.options.rate) * window)

    def figures(self, means: Mapping[str, float], part: str) -> dict[str, float]:
        return {"bits_per_hidden_token": means["loss"] / math.log(2)}

    def encoder(self, objective: Objective) -> nn.Module:
        return cast(MaskedLM, objective).model.model

    @property
    def pooling(self) -> Pooling:
        return self.network.features.pooling

    def pooled(self, encoder: Any, data: dict[str, Tensor]) -> Tensor:
        """Of pieces of the length of a sentence, each between start and end token."""
        tokens, marks = data["tokens"], self.corpus.tokenizer
        content = min(PIECE, tokens.shape[1] - 2)
        pieces = tokens[:, 1:-1].unfold(1, content, content).flatten(0, 1)
        framed = F.pad(F.pad(pieces, (1, 0), value=marks.start), (0, 1), value=marks.end)
        lengths = torch.full((len(framed),), content + 2, device=tokens.device)
        return embed(encoder, framed.flatten(), lengths, self.pooling)

    @property
    def items_per_record(self) -> int:
        content = int(self.settings["data.window"]) - 2
        return content // min(PIECE, content)

    def model(self, objective: Objective) -> EncoderModel:
        """With its head, which some protocols ask for."""
        from selfsup.inference.encoder import EncoderModel

        masked, features = cast(MaskedLM, objective).model, self.definition(objective)
        return EncoderModel(masked.model, self.corpus.tokenizer, features, masked)

    def sample(self, objective: Objective) -> str | None:
        """The beginning of the held-out part with each hidden token as [truth → best guess]."""
        if self.validation is None:
            return None
        task = objective.hide(next(in_order(self.validation, 1, 0, 1)))
        model, tokenizer = cast(MaskedLM, objective).model, self.corpus.tokenizer
        device = model.output_weight.device
        hidden = objective.predict(Task({n: t.to(device) for n, t in task.tensors.items()}, {}))["hidden"][0]
        guesses = (hidden.float() @ model.output_weight.float().T).argmax(-1).tolist()
        places, targets = task["positions"][0].tolist(), task["targets"][0].tolist()
        told = {
            place: (target, guess)
            for place, target, guess in zip(places, targets, guesses, strict=True)
            if target != IGNORE
        }
        return marked(tokenizer, task["inputs"][0].tolist()[:SAMPLE_TOKENS], told)


def marked(tokenizer: TextTokenizer, shown: list[int], told: dict[int, tuple[int, int]]) -> str:
    """A text in which `told` of some places the hidden token and the guess stands in brackets."""
    text: list[str] = []
    left: list[int] = []
    for place, token in enumerate(shown):
        truth, guess = told.get(place, (token, None))
        alone = tokenizer.decode([truth])
        joined = tokenizer.decode([*left, truth]).removeprefix(tokenizer.decode(left))
        space = " " if joined == f" {alone}" else ""  # which tokenizers of words put between them
        text.append(joined if guess is None else f"{space}[{alone} → {tokenizer.decode([guess])}]")
        left = [truth] if alone else left  # start and end tokens say nothing
    return "".join(text)
