"""The objectives of text on a network that `transformers` opens, trained on from its weights: `model=hf:DIR`.

Shape, tokenizer and special tokens are those of the directory (or of the model of that name on the hub). What is left
is in the layout of `transformers` again, written by it. A resumed run takes its weights from its checkpoint; the
directory must still be there for the rest.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from selfsup.errors import UserError
from selfsup.files import expanded, whole_directory, write_atomically
from selfsup.models.adapters import (
    Adapted,
    AdaptedDecoder,
    AdaptedEncoder,
    AdaptedMaskedLM,
    Opened,
    fetch,
    open_network,
    set_dropout,
)
from selfsup.models.cards import card, data_name, measured
from selfsup.models.directories import find_model
from selfsup.models.encoder import initialise
from selfsup.models.features import Features
from selfsup.models.huggingface import CARD, write_card
from selfsup.objectives.base import Effort, Objective, Progress
from selfsup.objectives.causal_lm import CausalLM, CausalLMRecipe
from selfsup.objectives.encoding import EncoderRecipe
from selfsup.objectives.language import LanguageRecipe
from selfsup.objectives.masked_lm import MaskedLM, MaskedLMRecipe, Masking
from selfsup.objectives.simcse import Projection, SimCSE, SimCSERecipe
from selfsup.objectives.starting import require_texts
from selfsup.seeding import generator, seeded

if TYPE_CHECKING:
    from selfsup.inference.parity import Parity

PREFIX = "hf:"
SHAPE = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp", "tied", "init")
# What continued pretraining is done with: weights that AdamW made are trained on by AdamW (Liu et al. 2025, "Muon is
# Scalable for LLM Training", section 3.5), at a rate that does not undo them (Gururangan et al. 2020, table 13: 1e-4
# at batch 2,048; Gao et al. 2021: 3e-5 at 64).
LR = 5e-5
WEIGHT_DECAY = 0.01


class PretrainedRecipe(LanguageRecipe):
    """What the recipes of this file share: the directory, what it decides, and what is left in the end."""

    kind: ClassVar[str]  # the auto class of transformers
    part: ClassVar[type[Adapted]]  # of what is trained, the network without what is put upon it here
    fills: ClassVar[bool] = False  # whether what is left is asked what stands in hidden places of texts

    @property
    def name(self) -> str:
        """The directory, or the model on the hub, as it was named."""
        return str(self.settings["model.preset"]).removeprefix(PREFIX)

    @cached_property
    def directory(self) -> Path:
        directory = find_model(fetch(self.name))
        require_texts(directory, self.family)
        return directory

    @cached_property
    def look(self) -> Adapted:
        """The network without its weights: its shape, and what is known of it."""
        return self.part(self._open()).to("meta")

    def _open(self) -> Opened:
        with seeded(self.settings["train.seed"], "weights"):
            return open_network(self.kind, self.directory)

    def open(self, progress: Progress) -> None:
        """With the network come its shape and tokenizer."""
        settings, directory = self.settings, str(self.directory)
        if given := [name for name in SHAPE if settings[f"model.{name}"] is not None]:
            raise UserError(
                f"{settings['model.preset']} brings its own shape and weights, so model.{given[0]} cannot be given; "
                "leave it out."
            )
        if expanded(self.name).is_dir():  # so that a run can be resumed from anywhere
            settings.change("model.preset", f"{PREFIX}{fetch(self.name)}", settings.origin("model.preset"))
        if settings.origin("data.tokenizer") != "default" and settings["data.tokenizer"] != directory:
            raise UserError(
                f"{settings['model.preset']} brings its own tokenizer, so data.tokenizer cannot be "
                f"{settings['data.tokenizer']!r}; leave it out."
            )
        settings.change("data.tokenizer", directory, "model")
        super().open(progress)
        tokenizer, room = self.corpus.tokenizer, self.look.config.vocabulary
        if tokenizer.vocabulary > room:
            raise UserError(
                f"The tokenizer of {directory} lacks special tokens ({', '.join(tokenizer.marks.listed())} are needed, "
                f"which makes {tokenizer.vocabulary} tokens) and the network has room for {room}; give another model."
            )

    def _choose_preset(self, effort: Effort, tokens: int) -> None:
        """The network is the size."""

    def _settle_shape(self) -> None:
        settings, longest = self.settings, self._longest_window()
        if (settings["data.window"] or 0) > longest:
            raise UserError(
                f"{settings['model.preset']} reads at most {longest} tokens, so data.window cannot be "
                f"{settings['data.window']}; give {longest} or less."
            )

    def _longest_window(self) -> int:
        return self.look.config.window

    def _settle_rates(self) -> None:
        settings = self.settings
        if settings.origin("optim.matrices") == "default":
            settings.change("optim.matrices", "adamw", "recipe")
        settings.settle("optim.lr", LR, "recipe")
        settings.settle("optim.adamw_lr", LR, "recipe")
        settings.settle("optim.weight_decay", WEIGHT_DECAY, "recipe")

    def _block_parameters(self) -> float:
        return float(sum(parameter.numel() for parameter in self.look.parameters()))

    def flops_per_record(self) -> float:
        """Six for each parameter and token."""
        return float(6 * self._block_parameters() * self.settings["data.window"])

    def _describe_model(self) -> str:
        return f"{self._block_parameters():,.0f} parameters in {self.look.opened.name}"

    def facts(self) -> dict[str, str]:
        opened = self.look.opened
        start = f"weights and tokenizer of {self.directory}"
        if opened.fresh:
            start += f"; new: {', '.join(opened.fresh)}"
        if opened.unused:
            start += f"; not kept: {', '.join(opened.unused)}"
        rows = (
            "as they are"
            if self.look.packs
            else "one document in each, padded, for its attention knows no other"
        )
        return super().facts() | {"start": start, "rows": rows}

    def save_network(
        self, adapted: Adapted, directory: Path, summary: dict[str, Any], features: Features | None = None
    ) -> None:
        """The network as transformers saves it, the tokenizer of its directory, and a card."""
        from selfsup.inference.encoder import EncoderModel
        from selfsup.inference.generate import LanguageModel
        from selfsup.inference.parity import compare, fact

        origin = Path(self.name).name if Path(self.name).is_dir() else self.name

        def described(found: Parity | None) -> str:
            opens = f"as they were; opens with `transformers.{self.kind}`"
            return card(
                f"{origin}, trained on {data_name(self.settings['data.source'])}",
                f"A {self.look.opened.name}, trained on from the weights of {origin} by {self.settings['objective']} "
                f"with selfsup: {summary['steps']:,} steps.",
                {
                    "Validation loss": measured(summary, " nats"),
                    "Layout and tokenizer": f"{opens}; {fact(found)}",
                },
                library="transformers",
            )

        tokenizer = self.corpus.tokenizer
        with whole_directory(directory) as temporary:
            adapted.opened.save(temporary, tokenizer, fills=self.fills)
            if features is not None:
                features.write(temporary)
            write_card(temporary, described(None))
        model = (
            LanguageModel(cast(AdaptedDecoder, adapted), tokenizer)
            if features is None
            else EncoderModel(cast(AdaptedEncoder, adapted), tokenizer, features)
        )
        found = compare(directory, model, None)
        write_atomically(directory / CARD, described(found))
        summary.update({"max_difference": None} if found is None else found.summary())


class PretrainedEncoderRecipe(PretrainedRecipe, EncoderRecipe):
    """Encoders, whose dropout is the objective's."""

    part: ClassVar[type[Adapted]] = AdaptedEncoder

    def _settle_shape(self) -> None:
        super()._settle_shape()
        self.settings.settle("model.dropout", self.dropout, "recipe")

    def _open(self) -> Opened:
        opened, share = super()._open(), self.settings["model.dropout"]
        if share is not None and not set_dropout(opened.network, share) and share > 0:
            raise UserError(
                f"{opened.name} of {self.directory} has no dropout layer, so model.dropout cannot be {share:g} "
                f"({self.settings.origin('model.dropout')}); give another model."
            )
        return opened

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        encoder = cast(Adapted, self.encoder(objective))
        self.save_network(encoder, directory, summary, self.definition(objective))


class PretrainedMaskedLMRecipe(PretrainedEncoderRecipe, MaskedLMRecipe):
    """An encoder, and the head that its directory has or a fresh one."""

    kind: ClassVar[str] = "AutoModelForMaskedLM"
    fills: ClassVar[bool] = True

    def build(self) -> MaskedLM:
        options = self.settings.config.masked_lm
        masking = Masking(self.corpus.tokenizer, options.unit)
        return MaskedLM(AdaptedMaskedLM(self._open()), masking, options.rate, options.evaluation_rate)


class PretrainedSimCSERecipe(PretrainedEncoderRecipe, SimCSERecipe):
    """An encoder without its heads."""

    kind: ClassVar[str] = "AutoModel"
    deletion: ClassVar[float] = 0.0  # Gao et al. 2021, table 1

    def build(self) -> SimCSE:
        encoder = AdaptedEncoder(self._open())
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(
                "pooler" not in name
            )  # which makes no part of the vectors, and stays as it is
        projection = Projection(encoder.config.width)
        initialise(projection, generator(self.settings["train.seed"], "weights"))
        options, deletion = self.settings.config.simcse, self.settings["simcse.deletion"]
        return SimCSE(encoder, projection, options.pooling, options.temperature, deletion)

    def flops_per_record(self) -> float:
        return 12 * self._block_parameters() * self.mean_seen


class PretrainedCausalLMRecipe(PretrainedRecipe, CausalLMRecipe):
    """A decoder; its dropout is that of its directory."""

    kind: ClassVar[str] = "AutoModelForCausalLM"
    part: ClassVar[type[Adapted]] = AdaptedDecoder
    useful: ClassVar[str | None] = "selfsup evaluate {run} --protocol bits-per-byte"

    def build(self) -> CausalLM:
        return self._objective(AdaptedDecoder(self._open()))

    def sample(self, objective: Objective) -> str | None:
        """Nothing: writing with other people's networks is left to transformers."""
        return None

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        self.save_network(cast(Adapted, objective.model), directory, summary)
