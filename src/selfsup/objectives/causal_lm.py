"""Causal language modelling: every token is predicted from the tokens before it (Radford et al. 2018, eq. 1).

L = − Σ_t log p(x_t | x_<t)      inputs are the targets shifted right behind the start token
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from selfsup.config import Settings
from selfsup.data.records import Batch
from selfsup.data.tokenizers import Family
from selfsup.errors import UserError
from selfsup.files import save_tensors, separate, whole_directory, write_atomically
from selfsup.models.cards import card, data_name, measured
from selfsup.models.counting import parameter_count, sketched
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.losses import IGNORE, linear_cross_entropy, target_losses
from selfsup.objectives.base import Collectives, Objective, Outputs, Task
from selfsup.objectives.language import LanguageRecipe
from selfsup.objectives.sizes import settle_rates
from selfsup.seeding import generator

if TYPE_CHECKING:
    from selfsup.inference.parity import Parity

SAMPLE_TOKENS = 150
MIDDLE = 512  # width of the middle of the presets


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
        given. A document's number is how many start tokens the inputs have shown.
        """
        tokens, first = batch.data["tokens"], batch.data["first"]
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        ignored = torch.arange(targets.shape[1], device=tokens.device) < first[:, None]
        if self.given is not None:
            ignored = ignored | (targets == self.given)
        documents = (inputs == self.start).cumsum(1)
        return Task(
            {"inputs": inputs, "targets": targets.masked_fill(ignored, IGNORE), "documents": documents},
            {"cross_entropy": (~ignored).sum()},
        )

    def predict(self, task: Task) -> Outputs:
        documents: Tensor | None = task["documents"]
        if not _several(task["documents"]):
            documents = None  # the plain causal mask says the same, and costs less
        return {"hidden": self.model(task["inputs"], documents)}

    def score(self, outputs: Outputs, task: Task, collectives: Collectives) -> dict[str, Tensor]:
        hidden = outputs["hidden"].flatten(0, 1)
        weight: Tensor = self.model.output_weight  # type: ignore[assignment]
        return {"cross_entropy": linear_cross_entropy(hidden, weight, task["targets"].flatten())}

    @torch.inference_mode()
    def losses(self, task: Task) -> Tensor:
        """The loss of each target in nats, (B, T); 0 where a target is ignored."""
        weight: Tensor = self.model.output_weight  # type: ignore[assignment]
        return target_losses(self.predict(task)["hidden"], weight, task["targets"])

    def vectors(self) -> list[nn.Parameter]:
        """Embeddings and the output head."""
        head = self.model.output_weight
        return [*super().vectors(), *([head] if isinstance(head, nn.Parameter) else [])]


def _several(documents: Tensor) -> bool:
    """Whether any window holds positions of more than one document."""
    return bool((documents[:, -1] != documents[:, 0]).any())


class CausalLMRecipe(LanguageRecipe):
    """From a text source to a decoder that writes."""

    family: ClassVar[Family] = "decoder"
    unused: ClassVar[tuple[str, ...]] = ("dropout", "whiten")
    shape: ClassVar[tuple[str, ...]] = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp", "tied")
    inspector: ClassVar[str] = "tokens"
    idea: ClassVar[str] = "every token is predicted from the tokens before it"
    shows: ClassVar[str] = "What it writes"
    useful: ClassVar[str | None] = 'selfsup generate {run} "It was a"'
    loss_unit: ClassVar[str | None] = "nats per token"

    origin: Decoder | None
    generation: bytes | None = None  # how the model that is trained on writes

    def _read_origin(self, directory: Path) -> Decoder:
        from selfsup.models.qwen3 import GENERATION, load_decoder

        decoder, file = load_decoder(directory), directory / GENERATION
        self.generation = file.read_bytes() if file.is_file() else None
        return decoder

    def _settle_shape(self) -> None:
        super()._settle_shape()
        settings = self.settings
        width, heads = settings["model.width"], settings["model.heads"]
        settings.settle("model.kv_heads", heads, "heads")
        settings.settle("model.head_dim", max(2, width // heads // 2 * 2), "width and heads")

    def _records(self) -> None:
        from selfsup.data.text import Windows

        window, end = self.settings["data.window"], self.corpus.tokenizer.end
        self.train = Windows(self.corpus.train, window, end)
        held_out = self.corpus.validation
        if held_out is not None:
            self.validation = Windows(held_out, max(1, min(window, len(held_out) - 1)), end)

    def decoder_config(self) -> DecoderConfig:
        vocabulary, window = self.corpus.tokenizer.vocabulary, self.settings["data.window"]
        if self.origin is not None:
            return replace(self.origin.config, window=max(window, self.origin.config.window))
        shape = {name: self.settings[f"model.{name}"] for name in self.shape}
        try:
            return DecoderConfig(vocabulary=vocabulary, window=window, **shape)
        except ValueError as error:
            raise UserError(f"There is no such model: {error}.") from None

    def build(self) -> CausalLM:
        decoder = Decoder(self.decoder_config())
        decoder.initialise(generator(self.settings["train.seed"], "weights"))
        if self.origin is not None:
            decoder.load_state_dict(self.origin.state_dict())
        return self._objective(decoder)

    def _objective(self, model: nn.Module) -> CausalLM:
        tokenizer = self.corpus.tokenizer
        return CausalLM(model, tokenizer.start, tokenizer.end)

    def flops_per_record(self) -> float:
        window = self.settings["data.window"]
        return float(sketched(Decoder, self.decoder_config()).flops(window) * window)

    def facts(self) -> dict[str, str]:
        start = (
            {}
            if self.origin is None
            else {"start": f"decoder and tokenizer of {self.settings['model.init']}"}
        )
        return super().facts() | start

    def _describe_model(self) -> str:
        config = self.decoder_config()
        return (
            f"{parameter_count(Decoder, config):,} parameters: {config.layers} layers, width {config.width}, "
            f"{config.heads} heads, feed-forward {config.mlp}"
        )

    def figures(self, loss: float, part: str) -> dict[str, float]:
        """bits_per_byte, where the tokens hold every byte of the text."""
        facts = self.corpus.facts
        documents, tokens, size, lossless = {
            "train": (
                facts.training_documents,
                facts.training_tokens,
                facts.training_bytes,
                facts.training_lossless,
            ),
            "validation": (
                facts.validation_documents,
                facts.validation_tokens,
                facts.validation_bytes,
                facts.validation_lossless,
            ),
        }[part]
        given = 1 if len(self.corpus.tokenizer.between) == 1 else documents  # tokens that nothing predicts
        return {"bits_per_byte": loss * (tokens - given) / size / math.log(2)} if lossless else {}

    def model(self, objective: Objective) -> Any:
        from selfsup.inference.generate import LanguageModel

        return LanguageModel(cast(Decoder, objective.model), self.corpus.tokenizer)

    def sample(self, objective: Objective) -> str | None:
        """A short text from nothing but the start token, under one fixed seed."""
        return cast(str, self.model(objective).generate("", tokens=SAMPLE_TOKENS, temperature=0.8))

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """The decoder and its tokenizer as a Hugging Face directory, with a card that says how exact it is."""
        from selfsup.inference.parity import compare
        from selfsup.models.qwen3 import parity, save_model

        decoder = cast(Decoder, objective.model)
        save_model(directory, decoder, self.corpus.tokenizer, self._card(summary, None), self.generation)
        tokens = torch.from_numpy(self.corpus.train[: self.settings["data.window"]].astype("int64"))[None]
        found = compare(directory, self.model(objective), parity(directory, decoder, tokens))
        write_atomically(directory / "README.md", self._card(summary, found))
        summary.update({"max_difference": None} if found is None else found.summary())

    def _card(self, summary: dict[str, Any], found: Parity | None) -> str:
        """The model card: what it is, how it was trained, how well it does, how exact the layout is."""
        from selfsup.inference.parity import fact

        config = self.decoder_config()
        bits = f", {summary['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in summary else ""
        start = "from scratch" if self.origin is None else f"from {Path(self.settings['model.init']).name}"
        return card(
            f"A decoder trained on {data_name(self.settings['data.source'])}",
            f"{parameter_count(Decoder, config):,} parameters ({config.layers} layers, width {config.width}, "
            f"{config.heads} heads), trained {start} by causal language modelling with selfsup: "
            f"{summary['steps']:,} steps, {summary['tokens']:,} tokens, windows of {config.window} tokens.",
            {
                "Validation loss": measured(summary, f" nats per token{bits}"),
                "Layout": f"Qwen3 dense; {fact(found)}",
            },
            USE,
            library="transformers",
            task="text-generation",
            tags=["causal-lm"],
        )


class AdaptedCausalLMRecipe(CausalLMRecipe):
    """Causal LM on a network of the user's own: see `CausalModel` for what it must offer."""

    def __init__(
        self, settings: Settings, source: object | None = None, module: nn.Module | None = None
    ) -> None:
        super().__init__(settings, source, module)
        self.network = cast(nn.Module, module)
        self.start = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def _settle_shape(self) -> None:
        """The network brings its own."""

    def _settle_rates(self) -> None:
        """Of the middle of the presets: what the width of another network means is not known here."""
        settle_rates(self.settings, MIDDLE, self.adamw_lr, self.settings["model.init"] is not None)

    def _block_parameters(self) -> float:
        return float(sum(parameter.numel() for parameter in self.network.parameters()))

    def build(self) -> CausalLM:
        self.network.load_state_dict(self.start)  # as it was given, whatever the calibration did to it
        return self._objective(self.network)

    def flops_per_record(self) -> float:
        return float(6 * self._block_parameters() * self.settings["data.window"])

    def _describe_model(self) -> str:
        return f"{self._block_parameters():,.0f} parameters in {type(self.network).__name__}"

    def sample(self, objective: Objective) -> str | None:
        """Nothing: how a network of the user's own writes is not known here."""
        return None

    def save(self, objective: Objective, directory: Path, summary: dict[str, Any]) -> None:
        """Its weights under their own names, and the tokenizer."""
        with whole_directory(directory) as temporary:
            save_tensors(separate(self.network), temporary / "model.safetensors")
            self.corpus.tokenizer.save(temporary, self.settings["data.window"])


CausalLMRecipe.adapted = AdaptedCausalLMRecipe

USE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
inputs = tokenizer("It was a", return_tensors="pt")  # the tokenizer puts the start token in front
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
"""
