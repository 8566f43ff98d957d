"""Pairs of texts: a text finds the one that belongs to it among those of all others, and is found by it.

L = ½ Σ_i ( − log softmax_j(q_i · p_j / τ)[i] − log softmax_j(p_i · q_j / τ)[i] )     q, p: normalised vectors of both

(van den Oord et al. 2018, equation 4; Henderson et al. 2017, "Efficient Natural Language Response Suggestion for Smart
Reply", section 4.4.) What belongs together is said by the structure of the data: a title and its text, a question and
its answer, adjacent passages, two crops of one document (Izacard et al. 2022, "Contriever"). With `pairs.dimensions`
the loss is the sum of those of vectors that are cut to each of them and normalised anew (Kusupati et al. 2022,
"Matryoshka Representation Learning", equation 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from selfsup.config import Count, Natural, Rate, Real, Section, Settings, Share, names, said, with_setting
from selfsup.data.loader import in_order
from selfsup.data.mixture import mean_length, parts_of, truncated
from selfsup.data.pair_records import SIDES, AsRead, Framing, Segments, TextPairs, TwoCrops, lead_of, neighbours, paired
from selfsup.data.records import Batch, Records
from selfsup.data.text_pairs import Origin, PairCorpus, PairTable, TextGroups, open_text_pairs, prepare_pairs
from selfsup.errors import UserError
from selfsup.models.adapters import AnyEncoder
from selfsup.models.features import DOCUMENT, NAMES, QUERY, Features
from selfsup.models.packing import Pooling, embed, flattened
from selfsup.models.static import StaticEncoder
from selfsup.objectives.base import Autocast, Collectives, Objective, Outputs, Task
from selfsup.objectives.checks.contrastive import alike_pairs, small_batch
from selfsup.objectives.losses import found, info_nce
from selfsup.objectives.mining import Miner, Numbers
from selfsup.objectives.recipe import Effort, Renewal
from selfsup.objectives.static import FreshTable
from selfsup.objectives.text_networks import ENCODER_ADAMW_LR, STATIC, OwnEncoder
from selfsup.objectives.texts import FOUND, TextRecipe, encoder_network
from selfsup.report import Progress
from selfsup.seeding import generator

if TYPE_CHECKING:
    from selfsup.data.text import TextCorpus
    from selfsup.data.tokenizer_training import Training
    from selfsup.data.tokenizers import TextTokenizer
    from selfsup.inference.encoder import EncoderModel
    from selfsup.objectives.hub_networks import HubEncoder

PROMPTS = {"pairs.query_prompt": QUERY, "pairs.passage_prompt": DOCUMENT}
BATCH = 128
STATIC_BATCH = 1024  # of a table of token vectors, where more of them cost little
DROPOUT = 0.1
WINDOW = {"columns": 128, "title": 128, "neighbours": 64, "crops": 128}  # tokens of a text, at most
NEGATIVE = "negative"
FRESH, STARTED = (0.2, 0.6), (0.0, 0.5)  # when negatives are looked for: not before the model knows what is near
FIGURES = ("passed_over", "negative_similarity", "own_similarity")  # of a query in the mean, by the last look for them
SHOWN, NEAREST = 64, 3  # held-out passages among which a sample looks, and that it shows
LETTERS = 160  # of a text in a sample
USAGE = """\
import selfsup

vectors = selfsup.load("path/to/this/directory").embed(["A cat sleeps.", "The dog barks."])
"""


def numbers(value: object) -> object:
    """One number, or `64,128`, as several."""
    return (value,) if isinstance(value, int | float) else names(value)


@with_setting("from", Origin | None, said(None, "columns, title, neighbours or crops: what belongs together"))
class PairsSettings(Section):
    query: str | None = Field(None, description="column of one text of a pair; found by its name where it is usual")
    passage: str | None = Field(None, description="and of the other one")
    query_prompt: str = Field("", description="what is put before each query")
    passage_prompt: str = Field("", description="and before each passage")
    temperature: Rate = Field(0.05, description="by which cosine similarities are divided")
    pooling: Pooling = Field("mean", description="how a text becomes one vector")
    dimensions: Annotated[tuple[Count, ...], BeforeValidator(numbers)] = Field(
        (), description="numbers that vectors can be cut to, such as 64,128; the whole is one of them"
    )
    negatives: Natural = Field(0, description="near passages that are not its own, found for each query by the model")
    mining: Annotated[tuple[Share, ...], BeforeValidator(numbers)] | None = Field(
        None, description="shares of the run at which they are looked for anew, such as 0,0.5"
    )
    hardest: Annotated[Real, Field(gt=0, le=1)] = Field(
        0.95, description="share of the similarity of a query's own passage from which on a passage is no negative"
    )


class Pairs(Objective):
    """Symmetric InfoNCE between queries and passages.

    Equal texts are no negatives of each other, whichever side they are on, and neither are texts of one place.

    Args:
        encoder: of tokens.
        pooling: how a text becomes one vector.
        temperature: by which cosines are divided.
        texts: what of a batch are the texts of its pairs.
        dimensions: numbers that vectors are cut to; () for whole ones alone.
    """

    separable: ClassVar[bool] = False

    def __init__(
        self,
        encoder: AnyEncoder,
        pooling: Pooling,
        temperature: float,
        texts: Callable[[Batch], Mapping[str, Tensor]] | None = None,
        dimensions: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.temperature = temperature
        self.texts = texts or AsRead()
        cuts: dict[str, int | None] = {f"info_nce_{number}": number for number in dimensions}
        self.terms = cuts or {"info_nce": None}
        self.weights = {"found": 0.0}

    def hide(self, batch: Batch) -> Task:
        """Queries and passages, padded (B, T), with their lengths (B,) and keys (B,), and their places (B, 2); where
        negatives were chosen for a query, these too: (B, K, T), (B, K), (B, K). Tokens and lengths are on the host,
        where they are laid into rows."""
        count, device = torch.tensor(len(batch)), batch.data["places"].device
        texts = {
            name: tensor if name.endswith(("tokens", "lengths")) else tensor.to(device, non_blocking=True)
            for name, tensor in self.texts(batch).items()
        }
        return Task(texts, dict.fromkeys([*self.terms, "found"], count))

    def predict(self, task: Task) -> Outputs:
        """The vector of each text, (B, width), of negatives (B, K, width)."""
        sides = [side for side in (*SIDES, NEGATIVE) if f"{side}_tokens" in task.tensors]
        lengths = [task[f"{side}_lengths"] for side in sides]
        flat = [
            flattened(task[f"{side}_tokens"].flatten(0, -2), each.flatten())
            for side, each in zip(sides, lengths, strict=True)
        ]
        vectors = embed(self.encoder, torch.cat(flat), torch.cat([each.flatten() for each in lengths]), self.pooling)
        parts = torch.split(vectors, [each.numel() for each in lengths])
        return {side: part.view(*each.shape, -1) for side, part, each in zip(sides, parts, lengths, strict=True)}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        query, passage = (task[f"{side}_keys"] for side in SIDES)
        # What is alike in one of the columns is no negative: row by row those of queries beside those of passages.
        of_queries = torch.cat((torch.stack((query, passage, query), 1), task["places"]), 1)
        of_passages = torch.cat((torch.stack((query, passage, passage), 1), task["places"]), 1)
        sums: dict[str, Tensor] = {}
        for term, dimension in self.terms.items():
            q, p = (F.normalize(outputs[side][:, :dimension], dim=-1) for side in SIDES)
            negatives = self._negatives(outputs, task, dimension, of_queries.shape[1])
            scale = 1 / self.temperature
            forth = info_nce(q, p, of_queries, scale, collectives, of_passages, negatives)
            back = info_nce(p, q, of_passages, scale, collectives, of_queries)
            sums[term] = (forth + back) / 2
        return {**sums, "found": found(q.detach(), p, of_queries, of_passages, collectives)}

    @staticmethod
    def _negatives(outputs: Outputs, task: Task, dimension: int | None, kinds: int) -> tuple[Tensor, Tensor] | None:
        """Chosen negatives as further keys, (B · K, dimension), and what a query or passage that they equal would have
        in one of its columns, (B · K, kinds)."""
        if NEGATIVE not in outputs:
            return None
        vectors = F.normalize(outputs[NEGATIVE].flatten(0, 1)[:, :dimension], dim=-1)
        keys = task[f"{NEGATIVE}_keys"].flatten()
        return vectors, torch.stack(
            [torch.zeros_like(keys), keys, keys, *[torch.zeros_like(keys) - 1] * (kinds - 3)], 1
        )


class PairsRecipe(TextRecipe):
    """From a source of pairs, or of documents that pairs are made of, to an encoder of texts."""

    name = "pairs"
    mixes = True
    bodies = (("model.init", "encoder"),)
    section = PairsSettings
    family = "encoder"
    unit = "pairs"
    inspector = "text_pairs"
    idea = "a text finds the one that belongs to it among those of others, and is found by it"
    next_command = "selfsup index {run} --data docs/ --out library.lance"
    sample_title = "What a held-out query finds"
    method = "contrasting pairs of texts"
    usage = USAGE
    checks = (small_batch, alike_pairs)
    network: OwnEncoder | HubEncoder | FreshTable
    corpus: PairCorpus
    text: PairTable

    def compose(self) -> None:
        static = self.settings["model.preset"] == STATIC
        self.network = FreshTable(self.settings) if static else encoder_network(self.settings, "AutoModel", DROPOUT)
        self.options = self.settings.section("pairs", PairsSettings)

    def reads(self) -> set[str]:
        """The vector of a text is a mean, where tokens see nothing of each other."""
        return super().reads() - ({"pairs.pooling"} if isinstance(self.network, FreshTable) else set())

    # -- data ----------------------------------------------------------------------------------------------

    def open(self, progress: Progress) -> None:
        """What stands before texts is known first: that of the encoder which is started from, unless it is given."""
        for key, name in PROMPTS.items():
            if self.settings.origin(key) == "default" and (known := self.network.features.prompt(name)):
                self.settings.change(key, known, "init")
        super().open(progress)
        for key, value in (("from", self.text.origin), ("query", self.text.query), ("passage", self.text.passage)):
            of_one = self.mixing is not None and key != "from"  # each source of a mixture has columns of its own
            if value is not None and not of_one:
                self.settings.settle(f"pairs.{key}", value, FOUND)

    def open_source(self, source: object, how: dict[str, Any]) -> PairTable:
        query, passage = (named(self.settings, f"pairs.{side}") for side in SIDES)
        return open_text_pairs(source, **how, origin=self.origin, query=query, passage=passage)

    @property
    def origin(self) -> Origin | None:
        """Where pairs come from, once that is known."""
        return cast("Origin | None", self.settings["pairs.from"])

    def prepare(
        self, text: Any, tokenizer: str | TextTokenizer, vocabulary: int | None, progress: Progress
    ) -> PairCorpus:
        query, passage = self.prompts
        leads = lead_of(query), lead_of(passage)
        share = self.settings["data.validation"]
        return prepare_pairs(text, tokenizer, vocabulary, share, leads, progress=progress, family=self.family)

    def training_texts(self, text: Any, progress: Progress) -> Training:
        from selfsup.data.text_pairs import training_pairs

        return training_pairs(text, self.settings["data.validation"], progress)

    def joint(self, name: str, texts: list[Any]) -> PairTable:
        """The first, whose pairs are made as those of all; raises a UserError where they are not."""
        first, *others = texts
        for other in others:
            if other.origin != first.origin:
                raise UserError(
                    f"Pairs of {name} would be {first.origin} in {first.name} and {other.origin} in {other.name}; "
                    "say which by pairs.from."
                )
        return replace(cast(PairTable, first), name=name, parts=(), left_out=(), split=None)

    @property
    def prompts(self) -> tuple[str, str]:
        return self.options.query_prompt, self.options.passage_prompt

    @property
    def framings(self) -> tuple[Framing, Framing]:
        tokenizer, window = self.corpus.tokenizer, self.settings["data.window"]
        query, passage = (Framing(tokenizer, prompt, window) for prompt in self.prompts)
        return query, passage

    def records_of(self, corpus: TextCorpus) -> tuple[Records, Records | None]:
        assert isinstance(corpus, PairCorpus)
        train = self._records(corpus.training)
        if corpus.held_out is None:
            return train, None
        try:
            return train, self._records(corpus.held_out)
        except UserError as error:
            raise UserError(f"Of what is held out nothing can be made: {error} Or change data.validation.") from None

    def _records(self, groups: TextGroups) -> TextPairs | Segments:
        framings = self.framings
        if self.origin == "neighbours":
            return neighbours(groups, framings)
        if self.origin == "crops":
            return Segments(groups, 2 * min(framing.room for framing in framings))
        return paired(groups, framings)

    @property
    def texts(self) -> AsRead | TwoCrops:
        """What of a batch are the texts of its pairs."""
        return TwoCrops(self.framings) if self.origin == "crops" else AsRead()

    def counts(self) -> dict[str, int]:
        facts = self.corpus.facts
        if self.text.of_documents:
            return super().counts()
        return {"pairs": facts.documents, "alike_pairs": facts.duplicates}

    # -- sizes ---------------------------------------------------------------------------------------------

    def settle(self, effort: Effort) -> None:
        settings = self.settings
        if self.options.dimensions:
            self._refuse_whitening()
            settings.settle("model.whiten", False, "pairs.dimensions")
        self.settle_network(effort)
        settings.settle("data.window", min(WINDOW[str(self.origin)], self.network.longest), "recipe")
        if settings.origin("pairs.pooling") == "default" and self.network.features.pooling != self.options.pooling:
            settings.change("pairs.pooling", self.network.features.pooling, "init")
        self._settle_dimensions()
        self.cut()
        self._settle_negatives()
        batch = STATIC_BATCH if isinstance(self.network, FreshTable) else BATCH
        settings.settle("train.batch", min(batch, len(self.train)), "recipe")
        self.settle_evaluation_batch()
        self.network.settle_rates(ENCODER_ADAMW_LR)

    def _refuse_whitening(self) -> None:
        """Raise a UserError where a map would mix the numbers of a vector, the first of which are to stand alone."""
        if self.settings["model.whiten"]:
            raise UserError(
                "model.whiten mixes the numbers of a vector, so that the first ones would not stand alone any more as "
                "pairs.dimensions trains them to; leave one of the two out."
            )
        if self.network.features.weight is not None:
            raise UserError(
                f"{self.network.named} maps what it pools, which mixes the numbers that pairs.dimensions would cut; "
                "leave pairs.dimensions out."
            )

    def _settle_negatives(self) -> None:
        """Who looks for negatives, and when; raises a UserError where there is nothing to look through."""
        settings, count = self.settings, self.options.negatives
        if not count and self.options.mining is not None:
            raise UserError("pairs.mining says when negatives are looked for, and pairs.negatives is 0; give that too.")
        if not count:
            return
        if self.mixing is not None:
            raise UserError("Negatives are looked for in one source, not in a mixture; leave pairs.negatives out.")
        if not isinstance(self.train, TextPairs):
            raise UserError("Crops are drawn anew in each epoch, so there are no pairs.negatives; leave it out.")
        if settings["data.replay"] is not None:
            raise UserError("What is replayed has no negatives of its own; leave pairs.negatives or data.replay out.")
        settings.settle("pairs.mining", STARTED if self.started else FRESH, "recipe")
        self.miner = Miner(self.train)
        if len(self.miner.firsts) <= count:
            raise UserError(
                f"There are {len(self.miner.firsts):,} distinct passages, too few for {count} negatives of each query; "
                "give more pairs or fewer pairs.negatives."
            )
        self.renewed["negatives"] = self.miner.drawn(count, settings["train.seed"])
        self.renewed["figures"] = torch.zeros(len(FIGURES), dtype=torch.float64)
        self.train.chosen = self.renewed

    def _settle_dimensions(self) -> None:
        """The whole vector is trained beside its cuts; raises a UserError where it is smaller than one of them."""
        given, width = self.options.dimensions, self.network.width
        if not given:
            return
        if max(given) > width:
            raise UserError(
                f"Vectors have {width} numbers, so pairs.dimensions cannot ask for {max(given)}; give {width} or less."
            )
        origin = self.settings.origin("pairs.dimensions")
        self.settings.change("pairs.dimensions", tuple(sorted({*given, width})), origin)

    # -- the objective -------------------------------------------------------------------------------------

    def build(self) -> Pairs:
        draws = generator(self.settings["train.seed"], "weights")
        network = self.network.build(draws)
        if isinstance(self.network, FreshTable):
            self.network.fill(cast(StaticEncoder, network), self.corpus.train, draws)
        return self.objective_on(network)

    def objective_on(self, network: Any) -> Pairs:
        options = self.options
        return Pairs(network, options.pooling, options.temperature, self.texts, options.dimensions)

    # -- negatives -----------------------------------------------------------------------------------------

    def renewal(self, steps: int) -> Renewal:
        """All texts are embedded, and all queries compared with all passages, at shares of the run."""
        if not self.options.negatives:
            return Renewal()
        due = sorted({int(share * steps) for share in self.options.mining or ()})
        queries, passages, width = len(self.train), len(self.miner.firsts), self.network.width
        embedded = (queries + passages) * self._flops_per_text / 3  # without the way back, which takes twice as much
        flops = embedded + 2.0 * queries * passages * width
        return Renewal(tuple(due), flops / self.flops_per_record(), 4 * width * (queries + passages))

    @torch.no_grad()
    def renew(self, objective: Objective, collectives: Collectives, autocast: Autocast, progress: Progress) -> str:
        """Look for the negatives of all pairs anew."""
        encoder, pairs = self.encoder(objective).eval(), cast(TextPairs, self.train)
        device = next(encoder.parameters()).device

        def vectors(side: int, numbers: Numbers) -> Tensor:
            texts = pairs.texts(side, numbers)
            tokens, lengths = texts["tokens"].to(device), texts["lengths"].to(device)
            with autocast():
                found = embed(encoder, flattened(tokens, lengths), lengths, self.pooling)
            return F.normalize(found, dim=-1)

        found = self.miner.look(vectors, self.options.negatives, self.options.hardest, collectives, progress)
        self.renewed["negatives"] = self.miner.pairs_of(found, self.renewed["negatives"])
        self.renewed["figures"] = torch.tensor([found.passed_over / len(pairs), found.found, found.own]).double()
        return (
            f"{self.options.negatives} negatives for each of {len(pairs):,} queries, among {len(self.miner.firsts):,} "
            f"passages: cosine {found.found:.3f} beside {found.own:.3f} of their own; {found.passed_over:,} that are "
            f"nearer than {self.options.hardest:.0%} of that were passed over"
        )

    def figures(self, means: Mapping[str, float], part: str) -> dict[str, float]:
        """In training, what the last look for negatives found."""
        known = part == "train" and bool(self.renewed) and bool(self.renewed["figures"].any())
        return dict(zip(FIGURES, self.renewed["figures"].tolist(), strict=True)) if known else {}

    # -- the objective, counted ------------------------------------------------------------------------------

    def flops_per_record(self) -> float:
        """Of both texts and of negatives, of mean length."""
        return (len(SIDES) + self.options.negatives) * self._flops_per_text

    @property
    def _flops_per_text(self) -> float:
        return float(self.mean_length * self.network.flops(self.mean_length, predicted=0.0))

    @property
    def mean_length(self) -> float:
        """Tokens of a text."""
        if self.origin != "crops":
            return mean_length(self.train)
        around = sum(framing.around for framing in self.framings) / len(SIDES)
        return float(sum(share * part.mean_crop for share, part in parts_of(self.train))) + around

    @property
    def units_per_record(self) -> int:
        return 1

    def chance(self, records: int) -> float:
        return max(1, len(self.options.dimensions)) * math.log(records)

    def chance_in_training(self, records: int) -> float:
        """With the negatives of all queries of the batch, among which only queries look."""
        among = records * (1 + self.options.negatives)
        return max(1, len(self.options.dimensions)) * (math.log(among) + math.log(records)) / 2

    @property
    def pooling(self) -> Pooling:
        return self.options.pooling

    def encoder(self, objective: Objective) -> nn.Module:
        return cast(Pairs, objective).encoder

    @property
    def items_per_record(self) -> int:
        return 1 if self.origin == "crops" else len(SIDES)

    def pooled(self, encoder: Any, data: dict[str, Tensor]) -> Tensor:
        tokens, lengths = self.texts.whole(data)
        return embed(encoder, flattened(tokens, lengths), lengths, self.pooling)

    # -- what is told, and left ----------------------------------------------------------------------------

    def definition(self, objective: Objective) -> Features:
        """With the prompts and the lengths of vectors that were trained on."""
        features = super().definition(objective)
        others = {name: text for name, text in features.prompts.items() if name not in chain(*NAMES.values())}
        own = dict(zip(PROMPTS.values(), self.prompts, strict=True))
        default = features.default_prompt if features.default_prompt in others else None
        told = {name: text for name, text in own.items() if text or default is not None}
        cuts = self.options.dimensions
        features = replace(features, prompts=others | told, default_prompt=default, dimensions=cuts)
        return replace(features, kept=None) if cuts else features

    def facts(self) -> dict[str, str]:
        facts, what = self.corpus.facts, "documents" if self.text.of_documents else "pairs"
        alike = f", {facts.duplicates:,} with a text of an earlier one" if facts.duplicates else ""
        bad = f", {facts.skipped.count:,} unreadable ones left out" if facts.skipped.count else ""
        prompts = {"prompts": "query {!r}, passage {!r}".format(*self.prompts)} if any(self.prompts) else {}
        cuts = ", ".join(map(str, self.options.dimensions))
        return (
            super().facts()
            | {
                "data": f"{facts.documents:,} {what}, {facts.characters:,} characters{alike}{bad}",
                "tokens": f"{facts.training_tokens:,} for training, {facts.validation_tokens:,} held out, "
                f"{facts.bytes_per_token:.2f} bytes each, vocabulary {facts.vocabulary:,}",
                "windows": f"{len(self.train):,} pairs of texts of {self.mean_length:.1f} tokens, {self._cut}",
            }
            | prompts
            | ({"dimensions": f"vectors of {cuts} numbers, each trained by itself"} if cuts else {})
            | self._negatives_told()
        )

    def _negatives_told(self) -> dict[str, str]:
        if not self.options.negatives:
            return {}
        when = ", ".join(f"{share:.0%}" for share in self.options.mining or ())
        return {
            "negatives": f"{self.options.negatives} for each query among {len(self.miner.firsts):,} distinct passages, "
            f"looked for by the model at {when} of the run ({self.settings.origin('pairs.mining')})"
        }

    @property
    def _cut(self) -> str:
        """What is left out of the texts, in words."""
        if self.origin == "crops":
            return f"{sum(part.short for _, part in parts_of(self.train)):,} documents too short for two"
        return f"{truncated(self.train):,} longer than {self.settings['data.window']} lose their end"

    @torch.inference_mode()
    def sample(self, objective: Objective) -> str | None:
        """A held-out query with the passages nearest to it, its own marked."""
        if self.validation is None:
            return None
        batch = next(in_order(self.validation, min(SHOWN, len(self.validation)), 0, SHOWN))
        device = next(objective.parameters()).device
        task = objective.hide(batch.to(device))
        vectors = [F.normalize(each, dim=-1) for each in objective.predict(task).values()]
        chosen = len(batch) // 2
        cosines = vectors[1] @ vectors[0][chosen]
        lines = [f"“{self._told(task, 'query', chosen)}”"]
        for cosine, number in zip(*(each.tolist() for each in cosines.topk(min(NEAREST, len(batch)))), strict=True):
            own = "  (its own)" if number == chosen else ""
            lines.append(f"  {cosine:.3f}{own}  “{self._told(task, 'passage', number)}”")
        return "\n".join(lines)

    def _told(self, task: Task, side: str, number: int) -> str:
        """A text, shortened."""
        tokens = task[f"{side}_tokens"][number, : task[f"{side}_lengths"][number]]
        text = " ".join(self.corpus.tokenizer.decode(tokens.cpu().numpy()).split())
        return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"

    def model(self, objective: Objective) -> EncoderModel:
        from selfsup.inference.encoder import EncoderModel

        return EncoderModel(cast(Pairs, objective).encoder, self.corpus.tokenizer, self.definition(objective))


def named(settings: Settings, key: str) -> str | None:
    """A column that was named, not found."""
    return None if settings.origin(key) == FOUND else settings[key]
