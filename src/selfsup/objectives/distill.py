"""Distillation of vectors: a student gives each text the vector that a teacher gives it, and its translations too.

L = Σ_i ( m · |s_i − t_i|² / (d · v) + c · (1 − cos(s_i, t_i)) )      s of the student, t of the teacher, d numbers each

The first term is the mean squared error of Reimers and Gurevych 2020 ("Making Monolingual Sentence Embeddings
Multilingual using Knowledge Distillation", arXiv:2004.09813, section 2) over v, the variance of the teacher's numbers,
so that saying the same of everything costs m, whatever the teacher's scale. What a teacher says of unlabelled data as
the target goes back to Hinton et al. 2015 ("Distilling the Knowledge in a Neural Network", arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import DistillConfig, Names, Real, said
from selfsup.data.answers import Answered, Answers, Vectors, ask
from selfsup.data.loader import in_order
from selfsup.data.records import Batch, Records
from selfsup.data.sentences import Sentences
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.models.adapters import AnyEncoder
from selfsup.models.features import DOCUMENT, Features
from selfsup.models.packing import Pooling, embed, flattened
from selfsup.models.sentence_transformers import read_features
from selfsup.models.transformer import TensorModule, unset
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.checks.teachers import cut_texts
from selfsup.objectives.recipe import Effort, Recipe
from selfsup.objectives.static import STATIC_BATCH, StaticNetwork
from selfsup.objectives.teachers import open_teacher, precision_of, student_of
from selfsup.objectives.text_networks import ENCODER_ADAMW_LR, STATIC, OwnEncoder
from selfsup.objectives.texts import TextRecipe, encoder_network
from selfsup.report import Progress
from selfsup.seeding import generator

if TYPE_CHECKING:
    from selfsup.data.sources import Table
    from selfsup.data.text import TextCorpus
    from selfsup.objectives.hub_networks import HubEncoder

BATCH = 128
DROPOUT = 0.0  # a teacher's vectors say much more of a text than a label does
WINDOW = 256  # tokens, at most, where the network reads as many
TOLD = 64  # held-out texts that a sample is of, and of these so many one by one
SHOWN = 5
USAGE = """\
import selfsup

vectors = selfsup.load("path/to/this/directory").embed(["A cat sleeps.", "The dog barks."])
"""

Weight = Annotated[Real, Field(ge=0)]


class DistillSettings(DistillConfig):
    columns: Names = said((), "columns with translations of the text, which get its vector")
    files: Names = said((), "files whose rows translate those of the data in turn, which get their vectors")
    pooling: Pooling = said("mean", "how a text becomes one vector, before it is mapped to the teacher's")
    mse: Weight = said(1.0, "weight of the mean squared error, over the variance of the teacher's vectors")
    cosine: Weight = said(0.0, "weight of 1 − cosine")


class Map(TensorModule):
    """center + scale · (weight · x + bias): from pooled states (n, width) to vectors (n, dimension).

    Center and scale are those of the teacher's vectors, so that what is learnt does not depend on them; they stay.
    """

    center: Tensor

    def __init__(self, width: int, center: Sequence[float], scale: float) -> None:
        super().__init__()
        self.weight, self.bias = unset(len(center), width), unset(len(center))
        self.register_buffer("center", torch.tensor(center, dtype=torch.float32), persistent=False)
        self.scale = scale

    @torch.no_grad()
    def initialise(self, draws: torch.Generator) -> Map:
        """Small, so that all vectors begin near the center; returns self."""
        self.weight.normal_(0.0, 0.1 * self.weight.shape[1] ** -0.5, generator=draws)
        self.bias.zero_()
        return self

    @torch.no_grad()
    def take(self, weight: Tensor, bias: Tensor | None) -> Map:
        """The map weight · x + bias; returns self."""
        self.weight.copy_(weight / self.scale)
        self.bias.copy_(((0.0 if bias is None else bias) - self.center) / self.scale)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.center.to(x) + self.scale * F.linear(x, self.weight.to(x), self.bias.to(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (dimension, width) and bias (dimension,) of the same map, as `Features` have them."""
        weight, bias = (tensor.detach().cpu() for tensor in (self.weight, self.bias))
        return self.scale * weight, self.center.cpu() + self.scale * bias


class Distill(Objective):
    """The distance of each text's vector from the one that its teacher gives it.

    Args:
        encoder: of tokens.
        map: of its pooled states, into the teacher's space; an `nn.Identity` where they lie there.
        pooling: how hidden states become one vector.
        weights: the factors of the terms, `mse` and `cosine`.
    """

    def __init__(self, encoder: AnyEncoder, map: nn.Module, pooling: Pooling, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.encoder, self.map, self.pooling, self.weights = encoder, map, pooling, weights

    def hide(self, batch: Batch) -> Task:
        """Tokens (B, T), padded, and their lengths (B,), both on the host, where they are laid into rows; and what is
        to be answered, (B, dimension)."""
        shown = {name: batch.host[name] for name in ("tokens", "lengths")} | {"answers": batch.data["answers"]}
        count = torch.tensor(len(batch))
        return Task(shown, {"mse": count, "cosine": count})

    def predict(self, task: Task) -> Outputs:
        """The student's vectors, (B, dimension)."""
        return {"vectors": self.say(task["tokens"], task["lengths"])}

    def say(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The vectors of texts (n, T) of so many tokens, (n, dimension)."""
        pooled = embed(self.encoder, flattened(tokens, lengths), lengths, self.pooling)
        with torch.autocast(pooled.device.type, enabled=False):
            vectors: Tensor = self.map(pooled)
        return vectors

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        vectors, answers = outputs["vectors"], task["answers"].to(outputs["vectors"])
        return {
            "mse": (vectors - answers).square().mean(1).sum(),
            "cosine": (1 - F.cosine_similarity(vectors, answers, dim=1)).sum(),
        }


class DistillRecipe(TextRecipe):
    """From a source of sentences, or of texts with their translations, and an encoder that is asked about them, to
    another one that gives them the same vectors."""

    name = "distill"
    bodies = (("model.init", "encoder"),)
    section = DistillSettings
    family = "encoder"
    unit = "sentences"
    inspector = "answers"
    sample_title = "What it says beside its teacher"
    idea = "a student gives each text, and its translations, the vector that a teacher gives it"
    next_command = "selfsup index {run} --data docs/ --out library.lance"
    usage = USAGE
    checks = (cut_texts,)
    network: OwnEncoder | HubEncoder | StaticNetwork
    train: Answered
    validation: Answered | None
    answers: Answers | None = None
    taught_by: Mapping[str, str] = {}  # who answered, for the plan

    @classmethod
    def fitting(cls, values: Mapping[str, Any]) -> type[Recipe]:
        return student_of(values, cls)

    def compose(self) -> None:
        self.static = self.settings["model.preset"] == STATIC
        network = StaticNetwork(self.settings) if self.static else encoder_network(self.settings, "AutoModel", DROPOUT)
        self.network = network
        self.options = self.settings.section("distill", DistillSettings)
        if not (self.options.mse or self.options.cosine):
            raise UserError(
                "distill.mse and distill.cosine are both 0, so nothing is learnt; give one of them a weight."
            )

    def reads(self) -> set[str]:
        return super().reads() - {"data.replay", "model.whiten", *(("distill.pooling",) if self.static else ())}

    # -- the data, and what is said of them ----------------------------------------------------------------

    def open(self, progress: Progress) -> None:
        """Open the texts, and ask the teacher about those that it was not asked about before; then it may go."""
        teacher = open_teacher(self.settings, partial(load_as, kind=EncoderModel))
        super().open(progress)
        self.answers = self._ask(teacher, progress)
        if isinstance(self.network, StaticNetwork):
            self.network.ask(teacher, precision_of(self.settings), self.answers)
        size = sum(parameter.numel() for parameter in teacher.network.parameters())
        self.taught_by = {
            "teacher": f"{teacher.path}, {teacher.kind} of {size:,} parameters ({teacher.fingerprint})",
            "answers": f"{len(self.answers.vectors):,} vectors of {teacher.dimension} numbers, "
            f"{precision_of(self.settings)}, of texts of up to {teacher.window} tokens",
        }

    def open_source(self, source: object, how: dict[str, Any]) -> Table:
        from selfsup.data.sentences import open_sentences
        from selfsup.data.translations import open_translated

        files = tuple(str(expanded(file).absolute()) for file in self.options.files)
        if not (self.options.columns or files):
            return open_sentences(source, **how)
        self.settings.change("distill.files", files, self.settings.origin("distill.files"))
        return open_translated(source, self.options.columns, files, **how)

    def _ask(self, teacher: EncoderModel, progress: Progress) -> Answers:
        """What the teacher says of the texts, or of those that they translate."""
        precision, share = precision_of(self.settings), self.settings["data.validation"]

        def say(texts: list[str]) -> Vectors:
            return teacher.embed(texts, precision, prompt=DOCUMENT)

        return ask(self.text, say, f"{teacher.fingerprint} {precision}", teacher.dimension, share, progress)

    def counts(self) -> dict[str, int]:
        return super().counts() | {"texts": len(self.train), "cut": self.train.sentences.truncated}

    # -- decisions -----------------------------------------------------------------------------------------

    def settle(self, effort: Effort) -> None:
        settings = self.settings
        self.settle_network(effort)
        settings.settle("data.window", min(WINDOW, self.network.longest), "recipe")
        if settings.origin("distill.pooling") == "default" and self.start.pooling != self.options.pooling:
            settings.change("distill.pooling", self.start.pooling, "init")
        self.cut()
        settings.settle("train.batch", min(STATIC_BATCH if self.static else BATCH, len(self.train)), "recipe")
        self.network.settle_rates(ENCODER_ADAMW_LR)

    def records_of(self, corpus: TextCorpus) -> tuple[Records, Records | None]:
        answers = self.answered
        window, tokenizer, held_out = self.settings["data.window"], corpus.tokenizer, corpus.validation
        train = Answered(Sentences(corpus.train, window, tokenizer), answers.vectors, answers.train)
        if held_out is None:
            return train, None
        return train, Answered(Sentences(held_out, window, tokenizer), answers.vectors, answers.validation)

    @property
    def answered(self) -> Answers:
        """What the teacher says, of what was opened."""
        if self.answers is None:
            raise UserError("distill looks at data, of which the teacher is asked; name some with --data.")
        return self.answers

    # -- the objective -------------------------------------------------------------------------------------

    @cached_property
    def start(self) -> Features:
        """What the vector of a text is to the weights that are started from."""
        directory = self.network.tokenizer_directory() if self.network.started else None
        return Features() if directory is None else read_features(directory)

    def build(self) -> Distill:
        network = self.network.build(generator(self.settings["train.seed"], "weights"))
        if isinstance(self.network, StaticNetwork):
            self.network.fill(network, self.train, self.corpus.train)
        return self.objective_on(network)

    def objective_on(self, network: Any) -> Distill:
        return self.mapped(network, self._first_map(network.config.width))

    def _first_map(self, width: int) -> nn.Module:
        """A fresh one, or that of the start, where it leads to as many numbers as the teacher's vectors have."""
        if isinstance(self.network, StaticNetwork):
            return self.network.map()
        if not self.network.started or self.start.bare.dimension(width) != self.answered.dimension:
            return self.map_of(width).initialise(generator(self.settings["train.seed"], "map"))
        if self.start.weight is None:
            return nn.Identity()
        return self.map_of(width).take(self.start.weight, self.start.bias)

    def map_of(self, width: int) -> Map:
        spread = self.answered.spread
        return Map(width, spread.center, spread.variance**0.5)

    def mapped(self, network: Any, map: nn.Module) -> Distill:
        """The objective on a network and what maps its states."""
        options = self.options
        weights = {"mse": options.mse / self.answered.spread.variance, "cosine": options.cosine}
        return Distill(network, map, options.pooling, weights)

    def flops_per_record(self) -> float:
        length = self.train.sentences.mean_length
        return float(length * self.network.flops(length, predicted=0.0))

    @property
    def units_per_record(self) -> int:
        return 1

    def chance(self, records: int) -> float:
        """What the one vector costs that is nearest to all answers."""
        return self.options.mse + self.options.cosine * self.answered.spread.cosine

    # -- what is told --------------------------------------------------------------------------------------

    def facts(self) -> dict[str, str]:
        sentences = self.train.sentences
        return super().facts() | {
            "windows": f"{len(sentences):,} texts of {sentences.mean_length:.1f} tokens in the mean, "
            f"{sentences.truncated:,} longer than {self.settings['data.window']} lose their end",
            **self.taught_by,
        }

    def sample(self, objective: Objective) -> str | None:
        """How near held-out texts are to their answers, and what each is next to, by student and by teacher."""
        if self.validation is None:
            return None
        records = min(TOLD, len(self.validation))
        vectors = F.normalize(torch.from_numpy(self.embed(objective, self.validation, records)), dim=1)
        data = [batch.data for batch in in_order(self.validation, records, 0, self.feature_batch)]
        answers = F.normalize(torch.cat([each["answers"] for each in data]), dim=1)
        decode = self.corpus.tokenizer.decode
        texts = [
            decode(row[:length]).strip()
            for each in data
            for row, length in zip(each["tokens"].tolist(), each["lengths"].tolist(), strict=True)
        ]
        cosines = (vectors * answers).sum(1).tolist()
        lines = [f"mean cosine with the teacher's vectors of {records} held-out texts: {np.mean(cosines):.3f}"]
        if records > 1:
            found, wanted = (_nearest(each) for each in (vectors, answers))
            lines += [
                f"{cosines[t]:.3f}  {texts[t]}\n       next to it: {texts[found[t]]}\n       to its teacher: "
                f"{texts[wanted[t]]}"
                for t in range(min(SHOWN, records))
            ]
        return "\n".join(lines)

    # -- what is left --------------------------------------------------------------------------------------

    @property
    def method(self) -> str:  # type: ignore[override]
        """For the card, with the name of the teacher."""
        return f"distillation of the vectors of {Path(str(self.settings['distill.teacher'])).name}"

    @property
    def whitening_records(self) -> int:
        """None: the vectors are to lie where the teacher's do."""
        return 0

    @property
    def pooling(self) -> Pooling:
        return self.options.pooling

    def encoder(self, objective: Objective) -> nn.Module:
        return objective

    def pooled(self, encoder: Any, data: dict[str, Tensor]) -> Tensor:
        vectors: Tensor = encoder.say(data["tokens"], data["lengths"])
        return vectors

    def definition(self, objective: Objective) -> Features:
        """Pooled, then mapped into the teacher's space; behind the prompts of the start."""
        map = cast(Distill, objective).map
        weight, bias = map.folded() if isinstance(map, Map) else (None, None)
        return Features(self.pooling, weight, bias).prompted_as(self.start)

    def model(self, objective: Objective) -> EncoderModel:
        return EncoderModel(cast(Distill, objective).encoder, self.corpus.tokenizer, self.definition(objective))


def _nearest(vectors: Tensor) -> list[int]:
    """The number of the other vector that is most similar to each of (n, d), of length 1."""
    similar = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    found: list[int] = similar.argmax(1).tolist()
    return found
