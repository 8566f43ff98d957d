"""Networks of `transformers` behind the interface of the ones here, so that objectives train them as their own.

The documents of a row do not see each other. Where a network takes a mask between all positions, and the positions
within each document, rows stay as they are; whether it does is tried once, on two short documents, against each of them
alone. Any other one (with local attention, ALiBi, recurrence) gets each document in a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.errors import Interrupted, UserError
from selfsup.files import expanded
from selfsup.models.attention import begun, document_mask, places_within
from selfsup.models.directories import (
    CONFIG,
    OPENED,
    damaged,
    forget_code,
    own_code,
    read_config,
    read_weights,
    refuse_absurd,
)
from selfsup.models.encoder import MaskedLanguageModel, TextEncoder
from selfsup.models.huggingface import Tokenizer
from selfsup.models.layouts import Layout, at
from selfsup.models.parity import quiet_transformers
from selfsup.models.sentence_transformers import text_window
from selfsup.models.static import StaticEncoder
from selfsup.models.transformer import compute_dtype

UNLIMITED = 1 << 20  # tokens
INSTALL = "pip install transformers"
# Which configs each auto class of transformers takes.
MAPPINGS = {
    "AutoModel": "MODEL_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
}
SLACK = 1 << 26  # numbers that a network may have beyond twice those of its weights: tables that are computed
SAFE = [f"*{ending}" for ending in OPENED]  # what is fetched from the hub: nothing that runs
RELATIVE = "distance_embedding"  # of a BERT or its kin; transformers 5 computes without it, and says nothing
PROBE = (5, 4)  # tokens of the two documents
CLOSE = 1e-4  # of the largest number, between a document in a row and the same one alone
# Settings of attention that does not see all.
LOCAL = ("sliding_window", "local_attention", "attention_window")


@dataclass(frozen=True)
class AdaptedConfig:
    """What is asked of a network's shape; `window` is the longest text it can read."""

    vocabulary: int
    width: int
    window: int


SHAPE = Layout(
    AdaptedConfig, {"vocabulary": at("vocab_size"), "width": at("hidden_size"), "window": at("max_position_embeddings")}
)


@dataclass(frozen=True)
class TransformersNetwork:
    """A network as `transformers` opens it, in fp32.

    Attributes:
        fresh: weights that its directory lacks, which are random.
        unused: weights that its directory holds and the network has not.
    """

    directory: Path
    network: Any
    fresh: list[str]
    unused: list[str]

    @property
    def name(self) -> str:
        return type(self.network).__name__

    def refused(self, why: str) -> UserError:
        """What is said where it is no network that can be used here."""
        return UserError(f"{self.directory} holds a {self.name}, {why}.")

    def save(self, directory: Path, tokenizer: Tokenizer, heads: bool = True, fills: bool = False) -> None:
        """Write the network under its own names, and its tokenizer, into a directory that exists."""
        with transformers_at_work(str(self.directory)):
            (self.network if heads else self.network.base_model).save_pretrained(directory)
        tokenizer.save(directory, fills=fills)
        forget_code(directory)


def fetch(name: str) -> Path:
    """A local directory as it is, anything else from the hub. Raises UserError where there is no such model, or
    transformers is not installed."""
    local = expanded(name)
    if local.is_dir():
        return local.absolute()
    if local.exists() or name.count("/") > 1 or name.startswith((".", "~")):  # no name of the hub
        raise UserError(f"There is no directory {name}; give that of a model, or its name on the hub: OWNER/NAME.")
    with transformers_at_work(f"{name} (no directory here)"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=SAFE))


def open_network(kind: str, directory: Path) -> TransformersNetwork:
    """What an auto class of `transformers` (`AutoModel`, …) makes of a directory; only safetensors are read. Weights
    that it lacks are drawn from torch's global generator. Raises UserError where it cannot be opened so, or
    transformers is not installed."""
    saved, weights = read_config(directory), read_weights(directory)
    refuse_absurd(saved, weights, directory / CONFIG)
    with transformers_at_work(str(directory)):
        import transformers

        auto, code = getattr(transformers, kind), own_code(directory)
        if code and saved.get("model_type") not in transformers.CONFIG_MAPPING:
            raise UserError(
                f"{directory} opens only by Python code of its own ({code}), which is not run; give a model that "
                "transformers opens without it."
            )
        given = {"local_files_only": True, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(directory, **given)
        config._attn_implementation = None  # whichever this machine has
        if type(config) not in getattr(transformers, MAPPINGS[kind]):
            raise UserError(
                f"{directory} holds a model of type {config.model_type!r}, of which transformers has no {kind}; "
                "causal-lm trains decoders, masked-lm encoders, and simcse either."
            )
        _refuse_larger(auto, config, weights, directory)
        given |= {"use_safetensors": True, "output_loading_info": True}
        network, report = auto.from_pretrained(directory, config=config, dtype=torch.float32, **given)
    if network.config.is_encoder_decoder:
        raise UserError(f"{directory} holds an encoder with a decoder; give a model that is one of them.")
    if any(RELATIVE in key for key in report["unexpected_keys"]):
        raise UserError(
            f"{directory} has positions relative to each other ({RELATIVE}), which this transformers leaves out; give "
            "a model with absolute or rotary ones."
        )
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return TransformersNetwork(directory, network, sorted(fresh), sorted(report["unexpected_keys"]))


def _refuse_larger(auto: Any, config: Any, weights: dict[str, Tensor], directory: Path) -> None:
    """Raise a UserError where a network has far more numbers than its weights; heads may be missing among these."""
    with torch.device("meta"):
        network = auto.from_config(config, trust_remote_code=False)
    size = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    there = sum(tensor.numel() for tensor in weights.values())
    if size > 2 * there + SLACK:
        numbers = f"whose network has {size:,} numbers, and there are {there:,}"
        raise damaged(f"{directory} does not fit its config.json, {numbers}")


def open_encoder(directory: Path) -> tuple[AdaptedEncoder, AdaptedMaskedLM | None]:
    """The encoder of a directory, and the same with its head of masked LM, where there is one. Raises UserError
    where it cannot be opened, or lacks weights."""
    names = read_config(directory).get("architectures") or []
    has_head = any(name.endswith("ForMaskedLM") for name in names)
    opened = _open_whole("AutoModelForMaskedLM" if has_head else "AutoModel", directory)
    masked = AdaptedMaskedLM(opened) if has_head else None
    encoder = masked.model if masked else AdaptedEncoder(opened)
    encoder.config = replace(encoder.config, window=text_window(directory, encoder.config.window))
    return encoder, masked


def open_decoder(directory: Path) -> AdaptedDecoder:
    """The decoder of a directory. Raises UserError where it cannot be opened, or lacks weights."""
    return AdaptedDecoder(_open_whole("AutoModelForCausalLM", directory))


def open_cross_encoder(directory: Path) -> AdaptedCrossEncoder:
    """The cross-encoder of a directory. Raises UserError where it cannot be opened, or lacks weights."""
    return AdaptedCrossEncoder(_open_whole("AutoModelForSequenceClassification", directory))


def _open_whole(kind: str, directory: Path) -> TransformersNetwork:
    opened = open_network(kind, directory)
    if lost := [name for name in opened.fresh if "pooler" not in name]:  # which serves classifiers only
        raise damaged(f"{directory} lacks {lost[0]}")
    return opened


@contextmanager
def transformers_at_work(place: str) -> Iterator[None]:
    """What transformers refuses in the block becomes a UserError."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError(f"Opening {place} takes transformers; install it with {INSTALL}.") from None
    try:
        with quiet_transformers():
            yield
    except (UserError, Interrupted):
        raise
    except Exception as error:  # of a stranger's values, in code that states no errors
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"transformers cannot open {place}: {reason}.") from None


def set_dropout(network: nn.Module, share: float) -> bool:
    """Give every dropout layer of a network this share; False where it has none."""
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    for layer in layers:
        layer.p = share
    return bool(layers)


class AdaptedTextNetwork(nn.Module):
    """What the adapted encoder and decoder have in common: how a network is run on rows of several documents."""

    causal: ClassVar[bool]
    packs: bool  # rows of several documents stay as they are

    def __init__(self, opened: TransformersNetwork) -> None:
        super().__init__()
        self.opened = opened
        self.network = opened.network
        found, table = self.network.config, _position_table(self.network)
        if not (hasattr(found, "vocab_size") and hasattr(found, "hidden_size")):
            raise opened.refused("which is no model of texts alone; give one that is")
        self.first = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
        said = {key: getattr(found, key, None) for place in SHAPE.places.values() for key in place.keys}
        said["max_position_embeddings"] = said["max_position_embeddings"] or UNLIMITED
        shape = SHAPE.read(said, opened.directory / CONFIG)
        self.config = replace(shape, window=shape.window - self.first)
        self.pad = found.pad_token_id or 0
        with transformers_at_work(str(opened.directory)):
            self.packs = not _is_local(found) and self._documents_stay_apart()

    @property
    def output_weight(self) -> Tensor:
        """Of a head, (vocabulary, width), or one column more for a bias."""
        output = self.network.get_output_embeddings()
        return output.weight if output.bias is None else torch.cat((output.weight, output.bias[:, None]), 1)

    def before_head(self, hidden: Tensor) -> Tensor:
        """What that is multiplied with: hidden states, or one column of ones more for a bias."""
        biased = self.network.get_output_embeddings().bias is not None
        return F.pad(hidden, (0, 1), value=1.0) if biased else hidden

    def run(self, module: Any, tokens: Tensor, documents: Tensor | None) -> Tensor:
        """What a module of the network makes of tokens (B, T): (B, T, …)."""
        if documents is None:
            return self._call(module, tokens)
        return (self._masked if self.packs else self._apart)(module, tokens, documents)

    def _masked(self, module: Any, tokens: Tensor, documents: Tensor) -> Tensor:
        """Under a mask between all positions."""
        mask = document_mask(documents, compute_dtype(next(self.network.parameters())), self.causal)
        positions = self.first + places_within(tokens, documents)
        return self._call(module, tokens, attention_mask=mask, position_ids=positions)

    def _apart(self, module: Any, tokens: Tensor, documents: Tensor) -> Tensor:
        """Each document in a row of its own, padded; zeros on the padding between them."""
        starts = begun(documents).flatten().nonzero().squeeze(1)
        lengths = starts.diff(append=starts.new_tensor([tokens.numel()]))
        real = documents.flatten()[starts] >= 0
        starts, lengths = starts[real], lengths[real]
        steps = torch.arange(int(lengths.max()), device=tokens.device)
        within = steps < lengths[:, None]
        places = (starts[:, None] + steps).clamp(max=tokens.numel() - 1)
        rows = tokens.flatten()[places].masked_fill(~within, self.pad)
        out = self._call(module, rows, attention_mask=within.long())
        everywhere = out.new_zeros(tokens.numel(), out.shape[-1])
        return everywhere.index_copy(0, places[within], out[within]).view(*tokens.shape, -1)

    def _call(self, module: Any, tokens: Tensor, **given: Tensor) -> Tensor:
        """Logits where the module has a head, else its last hidden states."""
        made = module(input_ids=tokens, **given, **({"use_cache": False} if self.causal else {}))
        tensor: Tensor = made.logits if "logits" in made else made.last_hidden_state
        return tensor

    @torch.no_grad()
    def _documents_stay_apart(self) -> bool:
        """Whether `_masked` gives what `_apart` gives."""
        base, tokens = self.network.base_model, self._ordinary(sum(PROBE))
        documents = torch.arange(len(PROBE)).repeat_interleave(torch.tensor(PROBE))[None]
        expected = self._apart(base, tokens, documents)
        try:
            return _close(expected, self._masked(base, tokens, documents))
        except (TypeError, ValueError, RuntimeError, IndexError):  # it does not take such masks or positions
            return False

    def _ordinary(self, count: int) -> Tensor:
        """A row (1, count) of different tokens, without the one that stands for nothing."""
        tokens = [token for token in range(min(count + 1, self.config.vocabulary)) if token != self.pad]
        return torch.tensor([(tokens * count)[:count]])


class AdaptedEncoder(AdaptedTextNetwork):
    """Tokens to hidden states, as `TextEncoder`; heads of the network are left aside."""

    causal = False

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, width) of tokens (B, T); positions see their own document (B, T) only."""
        return self.run(self.network.base_model, tokens, documents)


class AdaptedMaskedLM(nn.Module):
    """An encoder with its head of masked LM, as `MaskedLanguageModel`."""

    def __init__(self, opened: TransformersNetwork) -> None:
        super().__init__()
        self.model = AdaptedEncoder(opened)
        with transformers_at_work(str(opened.directory)):
            _open_end(self.model)

    @property
    def output_weight(self) -> Tensor:
        return self.model.output_weight

    def forward(self, tokens: Tensor, positions: Tensor, documents: Tensor | None = None) -> Tensor:
        """What the output matrix is multiplied with, at `positions` (B, K) of tokens (B, T): (B, K, width), or one
        column of ones more for a bias."""
        hidden = self.model.run(self.model.network, tokens, documents)
        chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.model.before_head(chosen)


class AdaptedDecoder(AdaptedTextNetwork):
    """Tokens to hidden states, as `Decoder`. Raises UserError where it sees the tokens that it is to predict."""

    causal = True

    def __init__(self, opened: TransformersNetwork) -> None:
        super().__init__(opened)
        with transformers_at_work(str(opened.directory)):
            self._refuse_foresight()
            _open_end(self)

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, width) of tokens (B, T), or one column of ones more for a bias."""
        return self.before_head(self.run(self.network, tokens, documents))

    def going_on(self, tokens: Tensor, past: Any) -> tuple[Tensor, Any]:
        """As `forward`, of tokens (1, T) behind those that a cache of transformers holds, None for none; and the cache
        that holds them too."""
        made = self.network(input_ids=tokens, past_key_values=past, use_cache=True)
        return self.before_head(made.logits), made.past_key_values

    @cached_property
    @torch.no_grad()
    def remembers(self) -> bool:
        """Whether `going_on` gives what `forward` gives."""
        tokens = self._ordinary(4)
        try:
            first, past = self.going_on(tokens[:, :2], None)
            found = torch.cat(
                (first, *(self.going_on(token, past)[0] for token in torch.split(tokens[:, 2:], 1, 1))), 1
            )
            return past is not None and _close(self(tokens), found)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # it has no such cache
            return False

    @torch.no_grad()
    def _refuse_foresight(self) -> None:
        tokens = self._ordinary(3)
        changed = tokens.clone()
        changed[0, -1] = tokens[0, 0]
        before, after = (self._call(self.network, row)[:, :-1] for row in (tokens, changed))
        if not _close(before, after):
            raise self.opened.refused("which sees what comes after a token; train it by masked-lm")


class AdaptedCrossEncoder(nn.Module):
    """Pairs of texts to scores, as `CrossEncoder`."""

    def __init__(self, opened: TransformersNetwork) -> None:
        super().__init__()
        self.opened, self.network = opened, opened.network
        found, table = self.network.config, _position_table(self.network)
        first = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
        self.window = (getattr(found, "max_position_embeddings", None) or UNLIMITED) - first
        self.typed = (getattr(found, "type_vocab_size", None) or 0) > 1

    def forward(self, tokens: Tensor, lengths: Tensor, types: Tensor) -> Tensor:
        """Scores (B,), fp32, of pairs: tokens (B, T), padded behind `lengths` (B,), and of which text each token is,
        (B, T)."""
        held = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        more = {"token_type_ids": types} if self.typed else {}
        with transformers_at_work(str(self.opened.directory)):
            scores: Tensor = self.network(input_ids=tokens, attention_mask=held.long(), **more).logits
        return scores[:, 0].float()


AnyEncoder = TextEncoder | AdaptedEncoder | StaticEncoder
AnyMaskedLM = MaskedLanguageModel | AdaptedMaskedLM


@torch.no_grad()
def _open_end(adapted: AdaptedTextNetwork) -> None:
    """Make a network return what its output matrix would be multiplied with, in place of logits. Raises UserError
    where its logits are not just that product."""
    network, tokens = adapted.network, adapted._ordinary(4)
    output = network.get_output_embeddings()
    fits = isinstance(output, nn.Linear)
    if fits:
        expected = adapted._call(network, tokens)
        output.forward = _unchanged
        fits = _close(expected, F.linear(adapted._call(network, tokens), output.weight, output.bias))
    if not fits:
        why = "whose logits are not just hidden states times a matrix; it cannot be trained here"
        raise adapted.opened.refused(why)


def _close(expected: Tensor, found: Tensor) -> bool:
    return bool((expected - found).abs().max() <= CLOSE * expected.abs().max())


def _unchanged(x: Tensor) -> Tensor:
    return x


def _position_table(network: nn.Module) -> nn.Embedding | None:
    """The table of learnt positions; one with a padding index (RoBERTa) counts from behind it."""
    named = (m for name, m in network.named_modules() if name.endswith("position_embeddings"))
    return next((module for module in named if isinstance(module, nn.Embedding)), None)


def _is_local(config: Any) -> bool:
    kinds = set(getattr(config, "layer_types", None) or [])
    return any(getattr(config, name, None) for name in LOCAL) or not kinds <= {"full_attention"}
