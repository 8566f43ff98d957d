"""What recipes of language models share: the text, the sizes that follow from it and from what may be spent."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from selfsup.config import Settings, nearest
from selfsup.data.tokenizers import Family
from selfsup.errors import UserError
from selfsup.files import expanded
from selfsup.models.directories import find_model
from selfsup.models.presets import PRESETS, feed_forward_width
from selfsup.objectives.base import Effort, Progress, Recipe
from selfsup.objectives.sizes import TOKENS_PER_PARAMETER, power_of_two, settle_rates
from selfsup.objectives.starting import require_text_model

if TYPE_CHECKING:
    from selfsup.data.sources import TextCollection
    from selfsup.data.tally import Skipped
    from selfsup.data.text import TextCorpus

# Below the first a step's overhead outweighs its work; it grows to the second once 500 updates fit, beyond it only
# once 1,500 do.
TOKENS_PER_STEP = (1024, 4096)
STEPS = (500, 1500)
MOST_TOKENS_PER_STEP = 524288
WINDOWS_PER_STEP = 16  # at least
WINDOWS = 16  # in the training part, at least
FOUND = "data"  # where a setting comes from that the data themselves say
IMAGE_ONLY = ("data.size", "model.patch", "model.registers")


class LanguageRecipe(Recipe):
    """From a text source to a language model; what depends on its kind is left to the recipes of each."""

    family: ClassVar[Family]
    tied: ClassVar[bool] = False  # by default, the output matrix and the embeddings
    shortest: ClassVar[int] = 2  # tokens of a window, in powers of two
    adamw_lr: ClassVar[float] = 0.01
    shape: ClassVar[tuple[str, ...]]  # settings of the model that its weights decide
    unused: ClassVar[tuple[str, ...]]  # and those that mean nothing here
    text: TextCollection
    corpus: TextCorpus

    @property
    def continued(self) -> bool:
        """Whether a model is trained on, with whose weights comes a tokenizer."""
        preset: str = self.settings["model.preset"]
        return self.settings["model.init"] is not None or preset.startswith("hf:")

    @cached_property
    def origin(self) -> Any:
        """The model to start from, with its `config`, where one is named.

        Raises:
            UserError: there is none, or it is of another architecture.
        """
        place = self.settings["model.init"]
        if place is None:
            return None
        directory = find_model(place)
        require_text_model(directory, self.settings["objective"], self.family)
        return self._read_origin(directory)

    @abstractmethod
    def _read_origin(self, directory: Path) -> Any:
        """The model of a directory."""

    def open(self, progress: Progress) -> None:
        """Open the text; with weights to start from comes their tokenizer."""
        if self.settings["model.init"] is not None:
            self._take_tokenizer()
        origin = self.origin  # read before its tokenizer, which says less of what is wrong with it
        self._open_text(progress)
        if origin is not None and self.corpus.tokenizer.vocabulary > origin.config.vocabulary:
            raise UserError(
                f"The tokenizer of {self.settings['model.init']} has {self.corpus.tokenizer.vocabulary} tokens and its "
                f"model {origin.config.vocabulary}: get a whole copy of the model."
            )

    def _take_tokenizer(self) -> None:
        settings = self.settings
        place = expanded(settings["model.init"]).absolute()  # for a resume from anywhere
        settings.change("model.init", str(place), settings.origin("model.init"))
        directory = str(find_model(place))
        if settings.origin("data.tokenizer") != "default" and settings["data.tokenizer"] != directory:
            raise UserError(
                f"{place} brings its own tokenizer, so data.tokenizer cannot be {settings['data.tokenizer']!r}; "
                "leave it out."
            )
        settings.change("data.tokenizer", directory, "init")

    def _open_text(self, progress: Progress) -> None:
        from selfsup.data.text import prepare_text
        from selfsup.data.tokenizers import open_tokenizer

        data = self.settings.config.data
        given = open_tokenizer(data.tokenizer, self.family)
        if given is not None and not self.continued:
            given = given.anew()
        self.text = self._documents()
        self.corpus = prepare_text(
            self.text,
            tokenizer=given or data.tokenizer,
            vocabulary=data.vocabulary,
            validation=data.validation,
            failures=data.failures,
            progress=progress,
            family=self.family,
        )
        self.text.skipped = self.corpus.facts.skipped  # the text may have been prepared earlier
        self._settle_reading()

    def _documents(self) -> TextCollection:
        """The source of the documents."""
        from selfsup.data.sources import open_text

        source = self.source if self.source is not None else self.settings["data.source"]
        return open_text(source, **how_texts_are_read(self.settings))

    def _settle_reading(self) -> None:
        """The column and the part of the data set that were found."""
        if (column := self.text.columns().name) is not None:
            self.settings.settle("data.column", column, FOUND)
        if self.text.split is not None:
            self.settings.settle("data.split", self.text.split, FOUND)

    def settle(self, effort: Effort) -> None:
        """Size, window, batch and learning rates, from the tokens at hand and what can be spent on them."""
        settings, tokens = self.settings, self.corpus.facts.training_tokens
        if settings["data.window"] is None and tokens < WINDOWS * self.shortest:
            raise UserError(
                f"The training part of {self.text.name} has {tokens} tokens, too few to train on (fewer than "
                f"{WINDOWS * self.shortest}): give more text."
            )
        self._choose_preset(effort, tokens)
        self._settle_shape()
        blocks = self._block_parameters()
        window = 256 if blocks < 20e6 else 512 if blocks < 150e6 else 1024
        per_step = _tokens_per_step(effort.tokens(blocks, tokens))
        window = min(window, tokens // WINDOWS, int(per_step / WINDOWS_PER_STEP), self._longest_window())
        settings.settle("data.window", power_of_two(window), "size and data")
        self._records()
        most = min(per_step / settings["data.window"], len(self.train))
        settings.settle("train.batch", power_of_two(most), "size and data")
        self._settle_rates()

    def _settle_rates(self) -> None:
        started = self.settings["model.init"] is not None
        settle_rates(self.settings, self.settings["model.width"], self.adamw_lr, started)

    def _choose_preset(self, effort: Effort, tokens: int) -> None:
        """A size that suits what can be spent."""
        if self.module is None and self.origin is None and self.settings["model.preset"] == "auto":
            self.settings.change("model.preset", fitting_preset(effort, tokens), effort.origin)

    def _settle_shape(self) -> None:
        for key in (*(f"model.{name}" for name in self.unused), *IMAGE_ONLY):
            if self.settings[key] is not None:
                raise UserError(f"{self.settings['objective']} has no use for {key}; leave it out.")
        if self.origin is None:
            self._take_preset()
        else:
            self._take_shape()

    def _take_shape(self) -> None:
        settings, place = self.settings, self.settings["model.init"]
        if settings["model.preset"] != "auto" and settings["model.layers"] is None:
            raise UserError(f"{place} brings its own shape, so leave model.preset out.")
        for name in self.shape:
            found, given = getattr(self.origin.config, name), settings[f"model.{name}"]
            if given not in (None, found):
                raise UserError(f"{place} has {name} {found}, so model.{name} is not {given}; leave it out.")
            settings.settle(f"model.{name}", found, "init")

    def _take_preset(self) -> None:
        take_preset(self.settings, "model")
        self.settings.settle("model.tied", self.tied, "recipe")

    def _longest_window(self) -> int:
        """Tokens that a window may hold."""
        return MOST_TOKENS_PER_STEP

    def _block_parameters(self) -> float:
        return float(12 * self.settings["model.layers"] * self.settings["model.width"] ** 2)

    @abstractmethod
    def _records(self) -> None:
        """Cut the parts of the corpus into records of `data.window` tokens."""

    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    def counts(self) -> dict[str, int]:
        facts = self.corpus.facts
        return {"documents": facts.documents, "duplicates": facts.duplicates}

    @property
    def units_per_record(self) -> int:
        return int(self.settings["data.window"])

    def facts(self) -> dict[str, str]:
        facts, window = self.corpus.facts, self.settings["data.window"]
        left_out = {
            "duplicate documents": facts.duplicates,
            "empty ones left out": facts.empty,
            "unreadable ones left out": facts.skipped.count,
        }
        counted = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        return {
            "data": f"{facts.documents:,} documents, {facts.characters:,} characters, {facts.bytes:,} bytes"
            + (f" ({counted})" if counted else ""),
            **self.text.notes,
            **_told(facts.skipped),
            "tokens": f"{facts.training_tokens:,} for training, {facts.validation_tokens:,} held out, "
            f"{facts.bytes_per_token:.2f} bytes each, {facts.truncated} truncated, vocabulary {facts.vocabulary:,}",
            "windows": f"{len(self.train):,} of {window} tokens",
            "model": self._describe_model(),
        }

    @abstractmethod
    def _describe_model(self) -> str:
        """Its parameters and shape."""

    @property
    def chance(self) -> float:
        return math.log(self.corpus.tokenizer.vocabulary)


def _told(skipped: Skipped) -> dict[str, str]:
    """Which records cannot be read, and what was read otherwise, for the plan."""
    more = "; …" if skipped.count > len(skipped.names) else ""
    told = {"unreadable": "; ".join(skipped.names) + more} if skipped.count else {}
    if skipped.replaced_bytes:
        told["replaced"] = f"{skipped.replaced_bytes:,} bytes of text that are not UTF-8, read as U+FFFD"
    return told


def how_texts_are_read(settings: Settings) -> dict[str, Any]:
    """Arguments of `open_text`. What was found by itself is found anew: it is no part of what data is known by."""
    data = settings.config.data
    column = None if settings.origin("data.column") == FOUND else data.column
    split = data.split if settings.origin("data.split") != FOUND else None
    return {"column": column, "failures": data.failures, "split": split or "training"}


def take_preset(settings: Settings, section: str) -> None:
    """Fill the gaps in the shape of a network of texts, from the preset that its section of the settings names.

    Raises:
        UserError: there is no such preset.
    """
    preset = settings[f"{section}.preset"]
    if preset not in PRESETS:
        raise UserError(f"There is no model preset '{preset}'{nearest(preset, ['auto', *PRESETS])}")
    shape, origin = PRESETS[preset], f"preset {preset}"
    settings.settle(f"{section}.layers", shape.layers, origin)
    settings.settle(f"{section}.width", shape.width, origin)
    width = settings[f"{section}.width"]
    settings.settle(f"{section}.heads", max(1, width // shape.head_dim), origin)
    settings.settle(f"{section}.mlp", feed_forward_width(width), origin)


def fitting_preset(effort: Effort, tokens: int) -> str:
    """The preset whose parameters suit what is spent: about a tenth of the tokens seen (Hoffmann et al. 2022)."""
    wanted = effort.parameters(TOKENS_PER_PARAMETER, tokens)
    return min(PRESETS, key=lambda name: abs(math.log(PRESETS[name].blocks / wanted)))


def _tokens_per_step(seen: float) -> float:
    """Of a run that will see so many tokens: more where there are many, after enough updates have been made."""
    (smallest, usual), (few, many) = TOKENS_PER_STEP, STEPS
    return min(max(seen / many, min(max(seen / few, smallest), usual)), MOST_TOKENS_PER_STEP)
