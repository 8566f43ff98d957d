"""What recipes of texts share: the corpus, the sizes that follow from it and from what may be spent, and the model
directory that is left."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn

from selfsup.config import DataConfig, Settings, split_replay
from selfsup.data.discovery import is_prepared
from selfsup.data.mixing import Mixing, is_mixture, read_mixture
from selfsup.data.mixture import Mixture
from selfsup.data.records import Records
from selfsup.data.sampler import WINDOW
from selfsup.data.shards import BLOCK, TokenShards
from selfsup.data.tokenizers import Family, Kind, TextTokenizer
from selfsup.errors import UserError
from selfsup.models.cards import card, data_name, measured
from selfsup.models.features import Features
from selfsup.objectives.base import Objective
from selfsup.objectives.recipe import Effort, Recipe, Replay
from selfsup.objectives.sizes import power_of_two
from selfsup.objectives.text_networks import (
    HUB,
    LONGEST,
    STATIC,
    Card,
    GivenDecoder,
    OwnDecoder,
    OwnEncoder,
    TextNetwork,
)
from selfsup.report import Progress

if TYPE_CHECKING:
    from selfsup.data.corpora import Prepared
    from selfsup.data.sources import Table
    from selfsup.data.tally import Skipped
    from selfsup.data.text import TextCorpus, TextFacts
    from selfsup.data.tokenizer_training import Training
    from selfsup.objectives.hub_networks import HubEncoder

# Below the first a step's overhead outweighs its work; it grows to the second once 500 updates fit, beyond it only
# once 1,500 do.
TOKENS_PER_STEP = (1024, 4096)
STEPS = (500, 1500)
WINDOWS_PER_STEP = 16  # at least
WINDOWS = 16  # in the training part, at least
# With weights to start from: so many windows in a step, at least, of so many tokens; a quarter of the memory that there
# is, of which most is free, is for a window.
WINDOWS_STARTED, SHORTEST_STARTED, LONGEST_STARTED = 2, 128, 1024
ACTIVATIONS_SHARE = 0.25
TOKENIZER = "tokenizer"  # of a prepared corpus, below it
FOUND = "data"  # where a setting comes from that the data themselves say


class TextRecipe(Recipe):
    """From a text source to a language model: decoders and encoders alike."""

    family: ClassVar[Family]
    shortest: ClassVar[int] = 2  # tokens of a window, in powers of two
    method: ClassVar[str]  # what the model is trained by, for its card
    usage: ClassVar[str]  # how the model is used, for the card of a network of selfsup's own
    in_streams: ClassVar[bool] = False  # whether its records are cut from a stream, as a prepared corpus holds it
    network: TextNetwork
    tokenizer: TextTokenizer | None = None  # opened already, in place of the one that the settings name
    text: Table
    corpus: TextCorpus
    replayed: TextCorpus | None = None
    mixing: Mixing | None = None  # the sources of a mixture,
    corpora: Mapping[str, TextCorpus] = MappingProxyType({})  # and their corpora, by their names

    def reads(self) -> set[str]:
        text = {"data.tokenizer", "data.vocabulary", "data.window", "data.replay"}
        return super().reads() | text | self.network.reads()

    # -- data ----------------------------------------------------------------------------------------------

    def open(self, progress: Progress) -> None:
        """Open the text; with weights to start from comes their tokenizer."""
        data = self.settings.config.data
        if is_mixture(self.given_source):
            self._open_mixture(read_mixture(self.given_source), progress)
        elif self.source is None and is_prepared(data.source):
            self._open_prepared(data.source)
        else:
            self._open_text(progress)
        self.text.skipped = self.corpus.facts.skipped  # the text may have been prepared earlier
        self.network.take_tokenizer(self.corpus.tokenizer)
        if data.replay is not None:
            self.replayed = self._open_replay(split_replay(data.replay)[0], progress)

    def _open_text(self, progress: Progress) -> None:
        given, data = self.open_tokenizer(), self.settings.config.data
        self.text = self.open_source(self.given_source, reading_of(self.settings))
        vocabulary = None if self.tokenizer else data.vocabulary
        self.corpus = self.prepare(self.text, given or data.tokenizer, vocabulary, progress)
        if (column := self.text.text_columns.name) is not None:
            self.settings.settle("data.column", column, FOUND)
        if self.text.split is not None:
            self.settings.settle("data.split", self.text.split, FOUND)

    def _open_prepared(self, source: str) -> None:
        """Open a prepared corpus, with what was decided when it was prepared."""
        from selfsup.data.sources import Table

        settings, prepared = self.settings, self._prepared(source)
        choices, corpus = prepared.manifest.choices, prepared.corpus
        for key in ("data.column", "data.split", "data.vocabulary", "data.validation"):
            given = None if settings.origin(key) == "default" else settings[key]
            if given not in (None, getattr(choices, key.removeprefix("data."))):
                raise UserError(f"{key} was decided when {source} was prepared; leave it out.")
        tokenizer = self._tokenizer_beside(source, corpus)
        settings.change("data.validation", choices.validation, FOUND)
        self.corpus = corpus = replace(corpus, tokenizer=tokenizer)
        self.text = Table(source, (), None, choices.failures, lambda _: corpus.fingerprint)

    def _tokenizer_beside(self, source: str, corpus: TextCorpus) -> TextTokenizer:
        """The tokenizer of a prepared corpus, or one that is given and has the same tokens."""
        settings, own = self.settings, f"{source.rstrip('/')}/{TOKENIZER}"
        if settings["data.tokenizer"] == own:  # as a run says that was trained on it
            settings.change("data.tokenizer", DataConfig().tokenizer, "default")
        tokenizer = self.open_tokenizer()
        if tokenizer is None and settings.origin("data.tokenizer") != "default":
            raise UserError(f"{source} has a tokenizer of its own; leave data.tokenizer out.")
        if tokenizer is None:
            settings.change("data.tokenizer", own, FOUND)
            return corpus.tokenizer
        _require_agreement(source, corpus, tokenizer)
        return tokenizer

    def _open_mixture(self, mixing: Mixing, progress: Progress) -> None:
        """Open all sources of a mixture, with one tokenizer: the one that is given, that of prepared corpora, or one
        that is trained on a sample of all."""
        prepared: dict[str, TextCorpus] = {}
        texts: dict[str, Table] = {}
        settings = self.settings
        for name, one in mixing.sources.items():
            with mixing.reading(name):
                if is_prepared(one.data):
                    prepared[name] = self._prepared(str(one.data)).corpus
                else:
                    texts[name] = self.open_source(one.data, reading_of(settings) | one.reading)
        vocabulary = settings["data.vocabulary"] if self.tokenizer is None else None
        if prepared:
            if vocabulary is not None:
                raise UserError(f"Prepared corpora in {mixing.name} bring their tokenizer; leave data.vocabulary out.")
            first = next(iter(prepared))
            tokenizer = self._tokenizer_beside(str(mixing.sources[first].data), prepared[first])
        elif (given := self.open_tokenizer()) is not None:
            tokenizer = given
        else:
            tokenizer, vocabulary = self._shared_tokenizer(mixing, texts, progress), None
        corpora: dict[str, TextCorpus] = {}
        for name, one in mixing.sources.items():
            with mixing.reading(name):
                if name in texts:
                    corpora[name] = self.prepare(texts[name], tokenizer, vocabulary, progress)
                else:
                    _require_agreement(str(one.data), prepared[name], tokenizer)
                    corpora[name] = prepared[name]
        self.mixing, self.corpora = mixing, corpora
        self.corpus = joined(mixing, corpora, tokenizer)
        self.text = self.joint(mixing.name, list(texts.values()))

    def _shared_tokenizer(self, mixing: Mixing, texts: Mapping[str, Table], progress: Progress) -> TextTokenizer:
        """One that is trained on the sources of a mixture, each of which has its share of the sample."""
        from selfsup.data.text import shared_tokenizer

        def of_each(call: Callable[[Table], Any]) -> list[Any]:
            found = []
            for name, text in texts.items():
                with mixing.reading(name):
                    found.append(call(text))
            return found

        data = self.settings.config.data
        choices = of_each(lambda text: text.fingerprint()), mixing.told(), data.validation, data.failures
        return shared_tokenizer(
            cast(Kind, data.tokenizer),
            data.vocabulary,
            self.family,
            mixing.shares,
            choices,
            lambda: of_each(lambda text: self.training_texts(text, progress)),
        )

    def training_texts(self, text: Any, progress: Progress) -> Training:
        """What of a source a tokenizer is trained on."""
        from selfsup.data.text import training_texts

        return training_texts(text, self.settings["data.validation"], progress)

    def joint(self, name: str, texts: list[Any]) -> Any:
        """What stands for the sources of a mixture where one of them would stand alone."""
        from selfsup.data.sources import Table

        return Table(name, (), None, self.settings["data.failures"], lambda _: self.corpus.fingerprint)

    def _prepared(self, source: str) -> Prepared:
        """A prepared corpus; raises a UserError where this recipe has no use for it."""
        from selfsup.data.corpora import open_prepared

        prepared = open_prepared(source, self.settings["data.failures"])
        choices = prepared.manifest.choices
        if not (self.in_streams and choices.family == self.family):
            raise UserError(
                f"{source} is a corpus prepared for {choices.objective}, which {self.name} cannot train on; give the "
                "texts that it was made of."
            )
        return prepared

    def _open_replay(self, source: str, progress: Progress) -> TextCorpus:
        """What is replayed, with the tokenizer of what is trained on."""
        if is_prepared(source):
            corpus = self._prepared(source).corpus
            _require_agreement(source, corpus, self.corpus.tokenizer)
            return corpus
        how = {"failures": self.settings["data.failures"], "split": "training"}
        return self.prepare(self.open_source(source, how), self.corpus.tokenizer, None, progress)

    def open_tokenizer(self) -> TextTokenizer | None:
        """The tokenizer that is given or comes with the weights; None for one that is trained on the corpus."""
        from selfsup.data.tokenizer_loading import open_tokenizer

        if self.tokenizer is not None:
            return self.tokenizer
        brought = self.network.tokenizer_directory()
        if brought is not None:
            take_tokenizer(self.settings, brought, self.network.named)
        given = open_tokenizer(self.settings["data.tokenizer"], self.family)
        return given if given is None or brought is not None else given.anew()

    def prepare(
        self, text: Table, tokenizer: str | TextTokenizer, vocabulary: int | None, progress: Progress
    ) -> TextCorpus:
        """A text, split and encoded."""
        from selfsup.data.text import prepare_text

        data = self.settings.config.data
        return prepare_text(
            text,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            validation=data.validation,
            failures=data.failures,
            progress=progress,
            family=self.family,
        )

    def open_source(self, source: object, how: dict[str, Any]) -> Table:
        """The documents of a source."""
        from selfsup.data.sources import open_text

        return open_text(source, **how)

    def fingerprint(self) -> str:
        replayed = "" if self.replayed is None else f"+{self.replayed.fingerprint}"
        return self.corpus.fingerprint + replayed

    def counts(self) -> dict[str, int]:
        facts = self.corpus.facts
        return {"documents": facts.documents, "duplicates": facts.duplicates}

    # -- sizes, from the tokens at hand and what can be spent on them --------------------------------------

    def settle_network(self, effort: Effort) -> None:
        """The size of the network."""
        self.network.settle(effort, self.corpus.facts.training_tokens)

    def settle_window(self, effort: Effort) -> None:
        """Tokens of a window; raises a UserError where there are too few for any."""
        tokens = self.corpus.facts.training_tokens
        if self.settings["data.window"] is None and tokens < WINDOWS * self.shortest:
            raise UserError(
                f"The training part of {self.text.name} has {tokens} tokens, too few to train on (fewer than "
                f"{WINDOWS * self.shortest}): give more text."
            )
        most = self._going_on(effort) if self.network.started else self._fresh(effort)
        window = min(int(most), tokens // WINDOWS, self.network.longest)
        self.settings.settle("data.window", power_of_two(window), "size and data")

    def _fresh(self, effort: Effort) -> float:
        """Tokens of a window for a network that is to learn how texts begin."""
        blocks = self.network.blocks
        window = 256 if blocks < 20e6 else 512 if blocks < 150e6 else 1024
        return min(window, self._tokens_per_step(effort) / WINDOWS_PER_STEP)

    def _going_on(self, effort: Effort) -> float:
        """Of one that knows long texts: in short windows it would forget them, and a step needs no variety to tell it
        what words there are. As long as memory allows, where that is known."""
        window = min(LONGEST_STARTED, self._tokens_per_step(effort) / WINDOWS_STARTED)
        room = math.inf if effort.memory is None else effort.memory * ACTIVATIONS_SHARE
        return max(min(window, room / self.network.activations), SHORTEST_STARTED)

    @abstractmethod
    def objective_on(self, network: nn.Module) -> Objective:
        """The objective on a network of its kind."""

    def cut(self) -> None:
        """Cut the parts of the corpus into records of `data.window` tokens."""
        self.train, self.validation = self._mixed() if self.mixing else self.records_of(self.corpus)
        if self.replayed is None:
            return
        source, share = split_replay(self.settings["data.replay"])
        try:
            self.replay = Replay(*self.records_of(self.replayed), share)
        except UserError as error:
            raise UserError(f"{source} of data.replay cannot be trained on: {error}") from None

    def _mixed(self) -> tuple[Records, Records | None]:
        """The parts of all corpora of a mixture as records. Of those that are held out, each has its share too."""
        mixing = self.mixing
        made: dict[str, tuple[Records, Records | None]] = {}
        assert mixing is not None
        for name, corpus in self.corpora.items():
            with mixing.reading(name):
                made[name] = self.records_of(corpus)
        sizes = [len(train) for train, _ in made.values()]
        shares = mixing.shares(sizes)
        train = Mixture([train for train, _ in made.values()], shares, list(made), once=mixing.once(sizes))
        held_out = {
            name: (share, validation)
            for (name, (_, validation)), share in zip(made.items(), shares, strict=True)
            if validation is not None
        }
        if not held_out:
            return train, None
        parts, of_each = [part for _, part in held_out.values()], [share for share, _ in held_out.values()]
        return train, Mixture(parts, of_each, list(held_out))

    def facts_by_share(self, part: str) -> list[tuple[float, TextFacts]]:
        """What is known of the corpora of a mixture, each behind its share of the part `train` or `validation`; of one
        corpus alone, what is known of it."""
        records = self.train if part == "train" else self.validation
        if not isinstance(records, Mixture):
            return [(1.0, self.corpus.facts)]
        shares = dict(zip(records.names, records.shares, strict=True))
        return [(shares[name], corpus.facts) for name, corpus in self.corpora.items() if name in shares]

    @abstractmethod
    def records_of(self, corpus: TextCorpus) -> tuple[Records, Records | None]:
        """The parts of a corpus as records of `data.window` tokens: to train on, and held out."""

    def settle_batch(self, effort: Effort) -> None:
        """Records of a step."""
        most = min(self._tokens_per_step(effort) / self.settings["data.window"], len(self.train))
        self.settings.settle("train.batch", power_of_two(most), "size and data")

    def _tokens_per_step(self, effort: Effort) -> float:
        """More where many will be seen, after enough updates have been made."""
        seen = effort.tokens(self.network.blocks, self.corpus.facts.training_tokens)
        (smallest, usual), (few, many) = TOKENS_PER_STEP, STEPS
        return min(max(seen / many, min(max(seen / few, smallest), usual)), LONGEST)

    def passes(self, effort: Effort) -> float:
        """How often the training part will be read, about."""
        tokens = self.corpus.facts.training_tokens
        seen = effort.tokens(self.network.blocks, tokens)
        if effort.steps is not None:
            seen = effort.steps * self.settings["train.batch"] * self.settings["data.window"]
        return self.new_share * seen / tokens

    @property
    def started(self) -> bool:
        return self.network.started

    @property
    def units_per_record(self) -> int:
        return int(self.settings["data.window"])

    def flops_per_record(self) -> float:
        window = self.settings["data.window"]
        return float(self.network.flops(window) * window)

    # -- what is told --------------------------------------------------------------------------------------

    def facts(self) -> dict[str, str]:
        facts = self.corpus.facts
        counted = _left_out(facts)
        return {
            "data": f"{facts.documents:,} documents, {facts.characters:,} characters, {facts.bytes:,} bytes"
            + (f" ({counted})" if counted else ""),
            **self.text.notes,
            **_order_told(self.corpus),
            **_told(facts.skipped),
            "tokens": f"{facts.training_tokens:,} for training, {facts.validation_tokens:,} held out, "
            f"{facts.bytes_per_token:.2f} bytes each, {facts.truncated} truncated, vocabulary {facts.vocabulary:,}",
            "windows": f"{len(self.train):,} of {self.settings['data.window']} tokens",
            **self._sources_told(),
            **self._replay_told(),
            "model": self.network.describe(),
            **self.network.facts(),
        }

    def _sources_told(self) -> dict[str, str]:
        """What each source of a mixture holds, for the plan."""
        told = {}
        for name, corpus in self.corpora.items():
            facts, counted = corpus.facts, _left_out(corpus.facts)
            told[f"source {name}"] = (
                f"{facts.documents:,} documents, {facts.training_tokens:,} tokens for training, "
                f"{facts.validation_tokens:,} held out" + (f" ({counted})" if counted else "")
            )
        return told

    def _replay_told(self) -> dict[str, str]:
        """What is replayed, for the plan."""
        if self.replay is None or self.replayed is None:
            return {}
        source, facts = split_replay(self.settings["data.replay"])[0], self.replayed.facts
        held_out = 0 if self.replay.validation is None else len(self.replay.validation)
        counted = _left_out(facts)
        told = (
            f"{self.replay.share:.0%} of each batch from {source}: {facts.documents:,} documents, "
            f"{len(self.replay.train):,} records for training, {held_out:,} held out"
        )
        left_out = {f"replay, {what}": names for what, names in _told(facts.skipped).items()}
        return {"replay": told + (f" ({counted})" if counted else ""), **left_out}

    def chance(self, records: int) -> float:
        return math.log(self.corpus.tokenizer.vocabulary)

    # -- what is left --------------------------------------------------------------------------------------

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """Network, tokenizer and what a vector is as a Hugging Face directory, with a card."""
        model, described = self.model(objective), self.model_card(summary)
        found = self.network.save(directory, model, described, self.corpus.train)
        summary.update({"max_difference": None} if found is None else found.summary())

    def definition(self, objective: Objective) -> Features:
        """That of an encoder of others goes on with its map, where it is pooled so and not whitened, and with its
        prompts."""
        found, before = super().definition(objective), self.network.features
        goes_on = found == Features(before.pooling)
        return replace(before, dimensions=()) if goes_on else found.prompted_as(before)

    def model_card(self, summary: dict[str, Any]) -> Card:
        """The model card: what it is, how it was trained, how well it does, how exact the layout is."""
        told, settings = self.network.card_facts(), self.settings
        bits = f", {summary['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in summary else ""
        tokens = f", {summary['tokens']:,} tokens" if "tokens" in summary else ""
        features = {"Features": "see features.json"} if self.family == "encoder" else {}
        return lambda exactness: card(
            f"{told['title']} trained on {data_name(settings['data.source'])}",
            f"{told['is']} by {self.method} with selfsup: {summary['steps']:,} steps{tokens}; texts of up to "
            f"{settings['data.window']} tokens.",
            {
                "Validation loss": measured(summary, f" {self.loss_unit or 'nats'}{bits}"),
                "Layout": f"{told['layout']}; {exactness}",
                **features,
            },
            self.usage if self.network.own else "",
            library=self.network.library,
        )


def joined(mixing: Mixing, corpora: Mapping[str, TextCorpus], tokenizer: TextTokenizer) -> TextCorpus:
    """Several corpora as one, for all but its records: what is known of all, and the stream of the first."""
    from selfsup.data.text import joint_facts

    every = list(corpora.values())
    content = repr((mixing.told(), [corpus.fingerprint for corpus in every]))
    fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    facts = joint_facts([corpus.facts for corpus in every])
    return replace(every[0], tokenizer=tokenizer, facts=facts, fingerprint=fingerprint)


def _left_out(facts: TextFacts) -> str:
    """What of a corpus is not trained on, or twice, in words."""
    counts = {
        "duplicate documents": facts.duplicates,
        "empty ones left out": facts.empty,
        "unreadable ones left out": facts.skipped.count,
    }
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _order_told(corpus: TextCorpus) -> dict[str, str]:
    """Of a prepared corpus how it is read, for the plan."""
    if not isinstance(corpus.train, TokenShards):
        return {}
    return {"order": f"in blocks of {BLOCK >> 20} MiB, shuffled; records within {WINDOW} blocks of their own"}


def _told(skipped: Skipped) -> dict[str, str]:
    """Which records cannot be read, and what was read otherwise, for the plan."""
    more = "; …" if skipped.count > len(skipped.names) else ""
    told = {"unreadable": "; ".join(skipped.names) + more} if skipped.count else {}
    if skipped.replaced_bytes:
        told["replaced"] = f"{skipped.replaced_bytes:,} bytes of text that are not UTF-8, read as U+FFFD"
    return told


def _require_agreement(source: str, corpus: TextCorpus, tokenizer: TextTokenizer) -> None:
    """Raise a UserError where a prepared corpus has other tokens than a tokenizer."""
    if not corpus.tokenizer.agrees(tokenizer):
        raise UserError(
            f"The tokens of {source} are not those of the tokenizer that comes with what else is given; prepare the "
            "texts with that tokenizer (--tokenizer)."
        )


def reading_of(settings: Settings) -> dict[str, Any]:
    """Arguments of `open_text`. What was found by itself is found anew: it is no part of what data is known by."""
    data = settings.config.data
    column = None if settings.origin("data.column") == FOUND else data.column
    split = data.split if settings.origin("data.split") != FOUND else None
    return {"column": column, "failures": data.failures, "split": split or "training"}


def take_tokenizer(settings: Settings, directory: Path, named: str) -> None:
    """Name the tokenizer of a directory whose weights are started from; raises a UserError where another is given."""
    if settings.origin("data.tokenizer") != "default" and settings["data.tokenizer"] != str(directory):
        raise UserError(
            f"{named} brings its own tokenizer, so data.tokenizer cannot be {settings['data.tokenizer']!r}; "
            "leave it out."
        )
    settings.change("data.tokenizer", str(directory), "init")


# -- which one -----------------------------------------------------------------------------------------------


def decoder_network(settings: Settings, module: nn.Module | None) -> TextNetwork:
    """The decoder that the settings name, or the network that is given."""
    if module is not None:
        return GivenDecoder(settings, module)
    if not settings["model.preset"].startswith(HUB):
        return OwnDecoder(settings)
    from selfsup.objectives.hub_networks import HubDecoder

    return HubDecoder(settings)


def encoder_network(settings: Settings, kind: str, dropout: float, keeps_head: bool = False) -> OwnEncoder | HubEncoder:
    """The encoder that the settings name.

    Args:
        kind: the auto class of transformers, for one that it opens.
        dropout: by default.
        keeps_head: whether a head of masked LM is trained on.
    """
    if settings["model.preset"] == STATIC:
        raise UserError("model=static is a table of token vectors; train it by pairs, or by distill with --teacher.")
    if not settings["model.preset"].startswith(HUB):
        return OwnEncoder(settings, dropout, keeps_head)
    from selfsup.objectives.hub_networks import HubEncoder

    return HubEncoder(settings, kind, dropout)
