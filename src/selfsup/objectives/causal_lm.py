"""Causal language modelling: every token is predicted from the tokens before it (Radford et al. 2018, eq. 1).

L = − Σ_t log p(x_t | x_<t)      inputs are the targets shifted right behind the start token
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from selfsup.config import Settings
from selfsup.data.records import Batch, Records
from selfsup.data.tokenizers import Family
from selfsup.models.counting import Sketch, Stack, matrix_parameters, size_of, sketched
from selfsup.models.decoder import Decoder
from selfsup.models.losses import IGNORE, cap_of, linear_cross_entropy, target_losses
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import unresolved
from selfsup.objectives.text_networks import GivenDecoder, OwnDecoder, TextNetwork
from selfsup.objectives.texts import TextRecipe, decoder_network
from selfsup.seeding import generator

if TYPE_CHECKING:
    from selfsup.data.text import TextCorpus
    from selfsup.inference.generate import LanguageModel

SAMPLE_TOKENS = 150
ADAMW_LR = 0.01  # of embeddings, head and vectors
MANY = 5.0  # passes over a text; up to as many `planning.weight_decay` asks for more decay than what follows
FORGOTTEN_IN_A_PASS = 1.0  # times that the weights' average over past updates is renewed
MOST_WEIGHT_DECAY = 4.0
AVERAGE = 0.1  # of the steps, over which weights are averaged
USAGE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
inputs = tokenizer("It was a", return_tensors="pt")  # the tokenizer puts the start token in front
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
"""


class CausalModel(Protocol):
    """What causal LM asks of a model: hidden states of (B, T) tokens, and the matrix that turns them to logits."""

    output_weight: Tensor

    def __call__(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor: ...


class CausalLM(Objective):
    """Cross-entropy of each next token under a causal mask that also keeps documents apart.

    Args:
        model: tokens (B, T) and document numbers (B, T) to hidden states (B, T, width).
        start, end: the tokens that open and close every document, which may be one.
    """

    def __init__(self, model: nn.Module, start: int, end: int) -> None:
        super().__init__()
        self.model = model
        self.start = start
        self.given = None if start == end else start  # a target that stands there in any case

    def hide(self, batch: Batch) -> Task:
        """Inputs and targets, one step apart, and the document that each position belongs to.

        `tokens` (B, T+1) becomes inputs (B, T) = tokens[:-1] and targets (B, T) = tokens[1:]; targets before
        `first` (B,) count in another window and are ignored here, as is a start token behind another's end: it is
        given. A document's number is how many start tokens the inputs have shown; these stay on the host, see `apart`.
        """
        tokens, first = batch.data["tokens"], batch.data["first"]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        ignored = torch.arange(targets.shape[1], device=tokens.device) < first[:, None]
        if self.given is not None:
            ignored = ignored | (targets == self.given)
        documents = (batch.host["tokens"][:, :-1] == self.start).cumsum(1)
        return Task(
            {"inputs": inputs, "targets": targets.masked_fill(ignored, IGNORE), "documents": documents},
            {"cross_entropy": (~ignored).sum()},
        )

    def predict(self, task: Task) -> Outputs:
        return {"hidden": self.model(task["inputs"], apart(task))}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        hidden = outputs["hidden"].flatten(0, 1)
        weight: Tensor = self.model.output_weight  # type: ignore[assignment]
        return {"cross_entropy": linear_cross_entropy(hidden, weight, task["targets"].flatten(), cap_of(self.model))}

    @torch.inference_mode()
    def losses(self, task: Task) -> Tensor:
        """The loss of each target in nats, (B, T); 0 where a target is ignored."""
        weight: Tensor = self.model.output_weight  # type: ignore[assignment]
        return target_losses(self.predict(task)["hidden"], weight, task["targets"], cap_of(self.model))

    def vectors(self) -> list[nn.Parameter]:
        """Embeddings and the output head."""
        head = self.model.output_weight
        return [*super().vectors(), *([head] if isinstance(head, nn.Parameter) else [])]


def apart(task: Task) -> Tensor | None:
    """The document of each position (B, T), where a window holds positions of several; else None: the plain causal mask
    says the same, and costs less."""
    documents = task["documents"]  # on the host, where to look at them waits for nothing
    if not bool((documents[:, -1] != documents[:, 0]).any()):
        return None
    return documents.to(task["inputs"].device, non_blocking=True)


class Writing:
    """What recipes of decoders share, beside what they share with all recipes of texts: windows of a stream of tokens,
    and a model that writes."""

    bodies: ClassVar[tuple[tuple[str, str], ...]] = (("model.init", "model"),)
    family: ClassVar[Family] = "decoder"
    inspector: ClassVar[str] = "tokens"
    sample_title: ClassVar[str] = "What it writes"
    loss_unit: ClassVar[str | None] = "nats per token"
    usage: ClassVar[str] = USAGE
    takes_modules: ClassVar[bool] = True
    in_streams: ClassVar[bool] = True
    settings: Settings
    module: nn.Module | None
    network: TextNetwork
    corpus: TextCorpus

    def compose(self) -> None:
        self.network = decoder_network(self.settings, self.module)

    def records_of(self, corpus: TextCorpus) -> tuple[Records, Records | None]:
        from selfsup.data.text import Ring, Windows

        window, end, held_out = self.settings["data.window"], corpus.tokenizer.end, corpus.validation
        train = Ring(corpus.train, window, end, self.settings["train.seed"])
        return train, None if held_out is None else Windows(held_out, max(1, min(window, len(held_out) - 1)), end)

    @abstractmethod
    def objective_on(self, network: nn.Module) -> CausalLM:
        """The objective on a decoder."""

    def build(self) -> CausalLM:
        return self.objective_on(self.network.build(generator(self.settings["train.seed"], "weights")))

    def figures(self, means: Mapping[str, float], part: str) -> dict[str, float]:
        """bits_per_byte, where the tokens hold every byte of the text."""
        kind = "training" if part == "train" else "validation"
        size = 0.0  # bytes of a token that is predicted, in the mean
        for share, facts in cast(TextRecipe, self).facts_by_share(part):
            documents, tokens, of_all, lossless = (
                getattr(facts, f"{kind}_{name}") for name in ("documents", "tokens", "bytes", "lossless")
            )
            given = 1 if len(self.corpus.tokenizer.between) == 1 else documents  # tokens that nothing predicts
            if not lossless:
                return {}
            size += share * of_all / (tokens - given)
        return {"bits_per_byte": means["cross_entropy"] / size / math.log(2)}

    def model(self, objective: Objective) -> LanguageModel:
        from selfsup.inference.generate import LanguageModel

        return LanguageModel(cast(Decoder, objective.model), self.corpus.tokenizer)

    @property
    def _writes(self) -> bool:
        """Whether it writes here: of a network from Python nothing is known that would do."""
        return not isinstance(self.network, GivenDecoder)

    @property
    def next_command(self) -> str:
        if self._writes:
            return 'selfsup generate {run} "It was a"'
        return "selfsup evaluate {run} --protocol bits-per-byte"

    def sample(self, objective: Objective) -> str | None:
        """A short text from nothing but the start token, under one fixed seed."""
        if not self._writes:
            return None
        return str(self.model(objective).generate("", tokens=SAMPLE_TOKENS, temperature=0.8, precision="fp32"))


class CausalLMRecipe(Writing, TextRecipe):
    """From a text source to a decoder that writes."""

    name = "causal-lm"
    shards = True
    mixes = True
    idea = "every token is predicted from the tokens before it"
    method = "causal language modelling"
    repeats: Mapping[str, str] = MappingProxyType({})  # what is done against them, for the plan

    def settle(self, effort: Effort) -> None:
        self.settle_network(effort)
        self.settle_window(effort)
        self.cut()
        self.settle_batch(effort)
        self.network.settle_rates(ADAMW_LR)
        if unresolved(self.settings) and not self.network.started:
            self.settle_repeats(self.passes(effort))

    def settle_repeats(self, passes: float) -> None:
        """What keeps a network from learning by heart what it reads again and again (docs/LOG.md): within a pass its
        weights forget what they do not meet again, and an average of them is left."""
        settings = self.settings
        if passes <= MANY:
            return
        origin = f"about {passes:.0f} passes"
        steps = len(self.train) / self.new_share / settings["train.batch"]  # of a pass
        decay = min(FORGOTTEN_IN_A_PASS / (settings["optim.lr"] * steps), MOST_WEIGHT_DECAY)
        settings.settle("optim.weight_decay", float(f"{decay:.2g}"), origin)
        if settings.origin("optim.average") == "default":
            settings.change("optim.average", AVERAGE, origin)
        self.repeats = {
            "repeats": f"{origin} over the text: weight decay {settings['optim.weight_decay']:g}, an average of the "
            f"weights over about {settings['optim.average']:.0%} of the steps"
        }

    def facts(self) -> dict[str, str]:
        return {**super().facts(), **self.repeats}

    def sketch(self) -> Sketch | None:
        if not isinstance(self.network, OwnDecoder):
            return None
        config, window = self.network.config, self.settings["data.window"]
        decoder = sketched(Decoder, config)
        layers = decoder.model.layers
        stack = Stack(config.layers, config.width, size_of(layers[0]), window, decoder.kept)
        return Sketch(size_of(decoder), matrix_parameters(layers), (stack,), config.vocabulary, config.width, window)

    def objective_on(self, network: nn.Module) -> CausalLM:
        tokenizer = self.corpus.tokenizer
        return CausalLM(network, tokenizer.start, tokenizer.end)
