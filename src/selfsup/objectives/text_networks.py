"""Networks of texts that are trained: selfsup's own, fresh or started from, and one from Python; what `transformers`
opens stands in `hub_networks.py`.

A recipe asks each of them the same (`TextNetwork`), so that an objective is written once for all of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from selfsup.config import Settings, nearest
from selfsup.data.shards import Tokens
from selfsup.data.tokenizers import Family, TextTokenizer
from selfsup.errors import UserError
from selfsup.files import save_tensors, separate, whole_directory, write_atomically
from selfsup.models.counting import parameter_count, sketched
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.directories import find_model, read_config
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel, TextEncoder
from selfsup.models.encoder_layouts import STEMS, SavedEncoder, read_encoder, save_encoder
from selfsup.models.features import FEATURES, Features
from selfsup.models.huggingface import CARD
from selfsup.models.kinds import DECODERS, ENCODERS, TEXT, TEXT_TOWERS, in_one, reads, static, two_towers, writes
from selfsup.models.kinds import described as kind_of
from selfsup.models.layouts import Unfit
from selfsup.models.parity import network_difference
from selfsup.models.presets import PRESETS, feed_forward_width
from selfsup.objectives.recipe import Effort
from selfsup.objectives.sizes import TOKENS_PER_PARAMETER, settle_rates
from selfsup.objectives.starting import make_absolute, take_shape

if TYPE_CHECKING:
    from selfsup.inference.parity import Parity

HUB = "hf:"
STATIC = "static"  # a table of token vectors in place of a network
LONGEST = 524288  # tokens of a window, where the network sets no bound
MIDDLE = 512  # width of the middle of the presets
PARITY_TOKENS = 64
ENCODER_ADAMW_LR = 0.005  # of all but the hidden matrices of an encoder from scratch

Config = TypeVar("Config", DecoderConfig, EncoderConfig)
Card = Callable[[str], str]  # the model card, for a statement of how exact the layout is


class TextNetwork(ABC):
    """What a recipe of texts asks of the network that it trains."""

    shape: ClassVar[tuple[str, ...]] = ()  # settings of the model that say how it is built
    library: ClassVar[str] = "transformers"  # another one that opens what is saved
    own: ClassVar[bool] = False  # whether its arithmetic is selfsup's, which its card says how to use
    tokenizer: TextTokenizer

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def get(self, name: str) -> Any:
        return self.settings[f"model.{name}"]

    def reads(self) -> set[str]:
        """The settings that mean something to it."""
        return {f"model.{name}" for name in ("preset", *self.shape)}

    def tokenizer_directory(self) -> Path | None:
        """Where its weights come from, whose tokenizer comes with them; None where it starts from nothing."""
        return None

    @property
    def named(self) -> str:
        """Where it comes from, as the settings say."""
        return str(self.get("preset"))

    def take_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """Keep the tokenizer; raises a UserError where it has more tokens than the network has embeddings."""
        self.tokenizer = tokenizer

    @abstractmethod
    def settle(self, effort: Effort, tokens: int) -> None:
        """Fill the gaps of its shape, for a corpus of so many tokens."""

    @property
    def started(self) -> bool:
        """Whether it starts from weights."""
        return False

    @property
    def longest(self) -> int:
        """Tokens that a window may hold."""
        return LONGEST

    @property
    def activations(self) -> float:
        """Bytes that are kept of a token for the gradient, about: of a transformer whose maps have 12 · width² numbers
        in a layer, some 20 · width numbers in fp32."""
        return 4 * 20 / 12 * self.blocks / self.width

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a hidden state."""

    @property
    @abstractmethod
    def blocks(self) -> float:
        """Its parameters without embeddings, about."""

    @abstractmethod
    def settle_rates(self, adamw_lr: float) -> None:
        """Learning rates; given is that of what AdamW trains from scratch."""

    @abstractmethod
    def build(self, draws: torch.Generator) -> nn.Module:
        """It as it starts: drawn, or the weights to start from."""

    def flops(self, window: float, predicted: float = 1.0) -> float:
        """Floating-point operations for a token, there and back, in windows of so many; `predicted` is the share of
        the tokens that go through the head."""
        return 6 * self.blocks

    @abstractmethod
    def describe(self) -> str:
        """Its parameters and shape, for the plan."""

    def facts(self) -> dict[str, str]:
        """Where it starts from, for the plan."""
        return {}

    @property
    def features(self) -> Features:
        """What the vector of a text is to an encoder of others that is started from, and so to what comes of it; of one
        of selfsup's the prompts alone go on."""
        return Features()

    def card_facts(self) -> dict[str, str]:
        """What a model card says of it: its `title` before what it was trained on, what it `is`, its `layout`."""
        return {}

    @abstractmethod
    def save(self, directory: Path, model: Any, card: Card, stream: Tokens) -> Parity | None:
        """Write a model in use as a user keeps it, and compare it with another library where it can be: on texts, and
        on the beginning of a stream of tokens."""


# -- selfsup's own -------------------------------------------------------------------------------------------


class OwnNetwork(TextNetwork, Generic[Config]):
    """Of a size that suits data and effort, or with the shape and weights of a model that is started from."""

    own = True
    family: ClassVar[Family]
    tied: ClassVar[bool]  # by default, the output matrix and the embeddings
    title: ClassVar[str]  # of its card
    layout: ClassVar[str]

    def reads(self) -> set[str]:
        return super().reads() | {"model.init", "model.lora", "model.lora_alpha", "model.lora_targets"}

    @cached_property
    def directory(self) -> Path | None:
        """That of the model to start from, where one is named.

        Raises:
            UserError: there is none, or it is of another architecture.
        """
        place = self.get("init")
        if place is None:
            return None
        directory = find_model(place)
        require_text_model(directory, self.settings["objective"], self.family)
        return directory

    @cached_property
    def origin(self) -> Any:
        """The model of that directory, with its `config`."""
        return None if self.directory is None else self.read(self.directory)

    @abstractmethod
    def read(self, directory: Path) -> Any:
        """The model of a directory."""

    @property
    def named(self) -> str:
        return str(self.get("init"))

    def tokenizer_directory(self) -> Path | None:
        make_absolute(self.settings, "model.init")
        return None if self.origin is None else self.directory

    def take_tokenizer(self, tokenizer: TextTokenizer) -> None:
        super().take_tokenizer(tokenizer)
        if self.origin is not None and tokenizer.vocabulary > self.origin.config.vocabulary:
            raise UserError(
                f"The tokenizer of {self.get('init')} has {tokenizer.vocabulary} tokens and its model "
                f"{self.origin.config.vocabulary}: get a whole copy of the model."
            )

    def settle(self, effort: Effort, tokens: int) -> None:
        if self.origin is not None:
            take_shape(self.settings, "model", self.shape, self.origin.config, self.get("init"))
            return
        if self.get("preset") == "auto":
            preset = fitting_preset(effort, tokens)
            self.settings.change("model.preset", preset, effort.origin)
        take_preset(self.settings, "model")
        self.settings.settle("model.tied", self.tied, "recipe")

    def card_facts(self) -> dict[str, str]:
        start = "from scratch" if self.origin is None else f"from {Path(self.get('init')).name}"
        return {"title": self.title, "is": f"{self.describe()}, trained {start}", "layout": self.layout}

    @property
    def blocks(self) -> float:
        return float(12 * self.get("layers") * self.get("width") ** 2)

    @property
    def started(self) -> bool:
        return self.origin is not None

    @property
    def width(self) -> int:
        return int(self.get("width"))

    @property
    def longest(self) -> int:
        return LONGEST if self.origin is None else int(self.origin.config.window)

    def settle_rates(self, adamw_lr: float) -> None:
        settle_rates(self.settings, self.width, adamw_lr, self.started)

    def shaped(self, kind: type[Config], **more: Any) -> Config:
        """Its shape; raises a UserError where there is no such."""
        window, origin = self.settings["data.window"], self.origin
        if origin is not None:
            own: Config = replace(origin.config, window=max(window, origin.config.window), **more)
            return own
        shape = {name: self.get(name) for name in self.shape}
        try:
            return kind(vocabulary=self.tokenizer.vocabulary, window=window, **shape | more)
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None


class OwnDecoder(OwnNetwork[DecoderConfig]):
    """A decoder: a new one in the layout of Qwen3, one that is started from in its own."""

    shape = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp", "tied")
    family = "decoder"
    tied = False
    title = "A decoder"
    layout = "Qwen3 dense"

    def read(self, directory: Path) -> Decoder:
        from selfsup.models.decoder_layouts import load_decoder

        try:
            return load_decoder(directory)
        except Unfit as unfit:
            raise UserError(f"{unfit}; leave --init out and give model=hf:{directory}.") from None

    def settle(self, effort: Effort, tokens: int) -> None:
        super().settle(effort, tokens)
        width, heads = self.get("width"), self.get("heads")
        self.settings.settle("model.kv_heads", heads, "heads")
        self.settings.settle("model.head_dim", max(2, width // heads // 2 * 2), "width and heads")

    @property
    def config(self) -> DecoderConfig:
        return self.shaped(DecoderConfig)

    def build(self, draws: torch.Generator) -> Decoder:
        if self.origin is None:
            return Decoder(self.config).initialise(draws)
        still = self.get("lora") is not None  # weights that nothing changes need no memory of their own
        with torch.device("meta" if still else "cpu"):
            decoder = Decoder(self.config)
        decoder.load_state_dict(self.origin.state_dict(), assign=still)
        return decoder

    def flops(self, window: float, predicted: float = 1.0) -> float:
        return sketched(Decoder, self.config).flops(round(window))

    def describe(self) -> str:
        config = self.config
        return f"{parameter_count(Decoder, config):,} parameters: {described(config)}"

    def card_facts(self) -> dict[str, str]:
        own = {} if self.origin is None else {"layout": f"that of transformers' `{self.config.layout}`"}
        return super().card_facts() | own

    def facts(self) -> dict[str, str]:
        return {} if self.origin is None else {"start": f"decoder and tokenizer of {self.get('init')}"}

    def save(self, directory: Path, model: Any, card: Card, stream: Tokens) -> Parity | None:
        from selfsup.inference.parity import compare, fact
        from selfsup.models.decoder_layouts import save_model

        save_model(directory, model.decoder, self.tokenizer, card(fact(None)), self.directory)
        tokens = torch.from_numpy(stream[: self.settings["data.window"]].astype("int64"))[None]
        found = compare(directory, model, network_difference(directory, model.decoder, tokens))
        write_atomically(directory / CARD, card(fact(found)))
        return found


class OwnEncoder(OwnNetwork[EncoderConfig]):
    """An encoder in the layout of ModernBERT, or in that of the one it starts from.

    Args:
        dropout: by default.
        keeps_head: whether a head of masked LM is trained on.
    """

    shape = ("layers", "width", "heads", "mlp", "tied")
    family = "encoder"
    tied = True
    title = "A text encoder"
    origin: SavedEncoder | None

    def __init__(self, settings: Settings, dropout: float, keeps_head: bool = False) -> None:
        super().__init__(settings)
        self.dropout, self.keeps_head = dropout, keeps_head

    def reads(self) -> set[str]:
        return super().reads() | {"model.dropout", "model.whiten"}

    def read(self, directory: Path) -> SavedEncoder:
        try:
            return read_encoder(directory)
        except Unfit as unfit:
            raise UserError(f"{unfit}; leave --init out and give model=hf:{directory}.") from None

    @property
    def layout(self) -> str:  # type: ignore[override]
        """What a card calls the layout of its files."""
        return STEMS[EncoderConfig.layout if self.origin is None else self.origin.config.layout]

    @property
    def of_others(self) -> bool:
        """Whether it starts from an encoder that others made, whatever was done with it since."""
        if self.directory is None or self.origin is None:
            return False
        return self.origin.config.layout != EncoderConfig.layout or not (self.directory / FEATURES).exists()

    @property
    def features(self) -> Features:
        if self.origin is None:
            return super().features
        return self.origin.features if self.of_others else super().features.prompted_as(self.origin.features)

    def settle(self, effort: Effort, tokens: int) -> None:
        """Raises a UserError where windows are longer than it has positions for."""
        super().settle(effort, tokens)
        most, window = None if self.origin is None else self.origin.config.longest, self.settings["data.window"]
        if most is not None and (window or 0) > most:
            raise UserError(
                f"{self.get('init')} reads at most {most} tokens, so data.window cannot be {window}; "
                f"give {most} or less."
            )
        self.settings.settle("model.dropout", self.dropout, "recipe")
        self.settings.settle("model.whiten", not self.of_others, "init" if self.of_others else "recipe")

    @property
    def config(self) -> EncoderConfig:
        return self.shaped(EncoderConfig, dropout=self.get("dropout"))

    def build(self, draws: torch.Generator) -> TextEncoder:
        encoder = TextEncoder(self.config).initialise(draws)
        if self.origin is not None:
            encoder.load_state_dict(self.origin.encoder().state_dict())
        return encoder

    def build_masked(self, draws: torch.Generator) -> MaskedLanguageModel:
        """With a head of masked LM."""
        model = MaskedLanguageModel(self.config).initialise(draws)
        if self.origin is not None:
            model.model.load_state_dict(self.origin.encoder().state_dict())
            if self.origin.head:
                model.load_state_dict(self.origin.masked().state_dict())
        return model

    def flops(self, window: float, predicted: float = 1.0) -> float:
        return sketched(MaskedLanguageModel, self.config).flops(round(window), predicted)

    def describe(self) -> str:
        config = self.config
        return (
            f"{parameter_count(TextEncoder, config):,} parameters in the encoder: {described(config)}, "
            f"dropout {config.dropout:g}"
        )

    def facts(self) -> dict[str, str]:
        """What becomes of the origin's head, too."""
        if self.origin is None:
            return {}
        trained = "encoder, head and tokenizer" if self.origin.head and self.keeps_head else "encoder and tokenizer"
        still = "; its head stays as it is" if self.origin.head and not self.keeps_head else ""
        return {"start": f"{trained} of {self.get('init')}{still}"}

    def save(self, directory: Path, model: Any, card: Card, stream: Tokens) -> Parity | None:
        from selfsup.inference.parity import compare, fact

        network = model.masked or model.encoder
        if model.masked is None and self.origin is not None:
            network = self.origin.around(model.encoder)
        save_encoder(directory, network, self.tokenizer, model.features, card(fact(None)), self.directory)
        beginning = stream[: min(PARITY_TOKENS, self.tokenizer.room(self.longest))]
        tokens = torch.from_numpy(self.tokenizer.frame(beginning).astype("int64"))[None]
        found = compare(directory, model, network_difference(directory, network, tokens))
        write_atomically(directory / CARD, card(fact(found)))
        return found


# -- from Python ---------------------------------------------------------------------------------------------


class GivenDecoder(TextNetwork):
    """A network of the user's own: see `CausalModel` for what it must offer."""

    def __init__(self, settings: Settings, network: nn.Module) -> None:
        super().__init__(settings)
        self.network = network
        self.start = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def settle(self, effort: Effort, tokens: int) -> None:
        """It brings its own shape."""

    @property
    def blocks(self) -> float:
        return float(sum(parameter.numel() for parameter in self.network.parameters()))

    @property
    def width(self) -> int:
        """That of the middle of the presets: what that of another network means is not known here."""
        return MIDDLE

    def settle_rates(self, adamw_lr: float) -> None:
        settle_rates(self.settings, self.width, adamw_lr, started=False)

    def build(self, draws: torch.Generator) -> nn.Module:
        self.network.load_state_dict(self.start)  # as it was given, whatever the calibration did to it
        return self.network

    def describe(self) -> str:
        return f"{self.blocks:,.0f} parameters in {type(self.network).__name__}"

    def save(self, directory: Path, model: Any, card: Card, stream: Tokens) -> Parity | None:
        """Its weights under their own names, and the tokenizer."""
        with whole_directory(directory) as temporary:
            save_tensors(separate(self.network), temporary / "model.safetensors")
            self.tokenizer.save(temporary, self.settings["data.window"])
        return None


# -- sizes ---------------------------------------------------------------------------------------------------


def described(config: DecoderConfig | EncoderConfig) -> str:
    """A shape, in words."""
    return f"{config.layers} layers, width {config.width}, {config.heads} heads, feed-forward {config.mlp}"


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


# -- where they start from ---------------------------------------------------------------------------------

# By the kind of an objective of texts: the types of model that --init takes, and where one comes from.
TAKEN: dict[Family, tuple[tuple[str, ...], str]] = {
    "decoder": (DECODERS, f"a run of causal-lm or a dense decoder ({', '.join(DECODERS)})"),
    "encoder": (ENCODERS, f"a run that trained an encoder of texts, or an encoder of type {', '.join(ENCODERS)}"),
}


def require_text_model(directory: Path, objective: str, family: Family) -> None:
    """Raise a UserError where a directory holds none whose weights an objective of texts starts from (--init)."""
    kinds, source = TAKEN[family]
    if read_config(directory).get("model_type") in kinds:
        return
    if not reads(directory) or static(directory):
        advice = f"give {_text_tower(directory, family) or 'one'}"
    elif read_config(directory).get("model_type") in TEXT_TOWERS:
        advice = "clip goes on with that (--text-init)"
    elif writes(directory) == (family == "decoder"):
        advice = f"leave --init out and give model=hf:{directory}"
    else:
        advice = "masked-lm and simcse train encoders" if family == "decoder" else "causal-lm trains decoders"
    raise UserError(f"{directory} holds {kind_of(directory)}, and {objective} starts from {source}; {advice}.")


def require_texts(directory: Path, family: Family = "encoder") -> None:
    """Raise a UserError where a directory holds no model of texts alone, whatever its architecture."""
    if not reads(directory):
        one = _text_tower(directory, family) or "the directory of one"
        raise UserError(f"{directory} holds {kind_of(directory)}, and a model of texts is asked for; give {one}.")


def _text_tower(directory: Path, family: Family) -> str | None:
    """Which is an encoder."""
    there = family == "encoder" and two_towers(directory) and not in_one(directory)
    return f"its text tower, {directory / TEXT}" if there else None
