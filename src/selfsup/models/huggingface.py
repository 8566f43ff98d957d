"""Model directories in Hugging Face's layout, which stock `transformers` opens: written and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.files import save_tensors, whole_directory
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.directories import broken, read_config, read_json, read_weights, shaped, write_json

GENERATION = "generation_config.json"
# Where a config.json says what.
KEYS = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "window": "max_position_embeddings",
    "tied": "tie_word_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}


class Tokenizer(Protocol):
    """What saving asks of a tokenizer."""

    start: int
    end: int
    pad: int | None

    def save(self, directory: Path, max_length: int | None = None, fills: bool = False) -> None:
        """Write tokenizer.json and what goes with it, for a model with windows of max_length tokens; one that `fills`
        reads special tokens in texts."""


def save_model(
    directory: Path, decoder: Decoder, tokenizer: Tokenizer, card: str, generation: bytes | None = None
) -> None:
    """Write a directory that `AutoModelForCausalLM` and `AutoTokenizer` open; `card` becomes its README.md.

    Weights are fp32. `generation` is the generation_config.json of the model that the decoder was trained on from. The
    directory appears wholly or not at all. Raises UserError where it exists already.
    """
    documents = {"config.json": _to_qwen3(decoder.config, tokenizer)}
    refuse_taken(directory)
    with whole_directory(directory) as temporary:
        write_files(temporary, decoder.state_dict(), documents, tokenizer, decoder.config.window)
        (temporary / GENERATION).write_bytes(_generation_config(tokenizer, generation))
        (temporary / "README.md").write_text(card, encoding="utf-8")


def refuse_taken(directory: Path) -> None:
    """Raise a UserError where a directory exists already."""
    if directory.exists():
        raise UserError(f"{directory} exists already; move it away or save the model elsewhere")


def write_files(
    directory: Path,
    weights: dict[str, Tensor],
    documents: dict[str, dict[str, Any]],
    tokenizer: Tokenizer,
    window: int,
    fills: bool = False,
) -> None:
    """Weights in fp32, JSON documents by file name, and the tokenizer, into a directory that exists."""
    for name, content in documents.items():
        write_json(directory / name, content)
    wide = {name: tensor.float().cpu().contiguous() for name, tensor in weights.items()}
    save_tensors(wide, directory / "model.safetensors")
    tokenizer.save(directory, window, fills)


def load_decoder(directory: Path) -> Decoder:
    """A decoder in fp32 from a directory of `save_model`, or any dense Qwen3 in Hugging Face's layout.

    Only JSON and safetensors are read. Raises UserError where the directory holds another architecture or a
    variant of this one with different arithmetic, or is incomplete or broken.
    """
    config = _from_qwen3(read_config(directory), directory)
    weights = read_weights(directory)
    if config.tied:
        weights.pop("lm_head.weight", None)  # some writers store the shared matrix twice
    return built(Decoder, config, weights, directory)


class Layered(Protocol):
    """What determines a module but its weights."""

    @property
    def layers(self) -> int:
        """Of which each has weights of its own."""


C = TypeVar("C", bound=Layered)
M = TypeVar("M", bound=nn.Module)


def built(kind: Callable[[C], M], config: C, weights: dict[str, Tensor], directory: Path) -> M:
    """A module of a config with the weights of a directory, in fp32.

    Raises:
        UserError: they do not fit together; no memory is taken before that is known.
    """
    if config.layers > len(weights):
        raise UserError(
            f"{directory} does not fit its config.json: {config.layers:,} layers are asked for, and there are "
            f"{len(weights):,} tensors; get a whole copy of the model"
        )
    try:
        with torch.device("meta"):
            module = kind(config)
    except RuntimeError as error:  # sizes whose product no memory can hold
        raise UserError(
            f"{directory} has absurd sizes in its config.json ({error}); get a whole copy of it"
        ) from None
    fill(module, weights, directory)
    return module


def fill(module: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    """Give a module on the meta device its weights; raises UserError where they are not exactly what it has."""
    require_fit(module, weights, directory)
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)


def require_fit(module: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    """Raise a UserError where weights are not exactly what a module has, by name and shape."""
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if found != expected.get(name):
            raise UserError(
                f"{directory} does not fit its config.json: {name} should be {_shape(expected.get(name))} "
                f"and is {_shape(found)}; get a whole copy of the model"
            )


PARITY_POSITIONS = 64
_compares = ContextVar("compares", default=True)


@contextmanager
def uncompared() -> Iterator[None]:
    """What is saved in the block is not compared with transformers, whose import takes seconds."""
    token = _compares.set(False)
    try:
        yield
    finally:
        _compares.reset(token)


def import_transformers() -> None:
    """Do what takes seconds of the first comparison, where transformers is installed."""
    with suppress(ImportError):
        import transformers.modeling_utils  # noqa: F401


def exactness(difference: float | None, library: str = "transformers") -> str:
    """What a comparison with another library found, for a model card."""
    if difference is None:
        return f"unchecked when it was written (`selfsup export` to {library} checks it)"
    return f"max |Δ| = {difference:.2e} against stock {library}, in fp32"


def spread_tokens(vocabulary: int, window: int) -> Tensor:
    """Tokens from all over a vocabulary, (1, 64) or as many as a window holds, to compare models on."""
    count = min(PARITY_POSITIONS, window)
    return torch.arange(count)[None] * vocabulary // count


@torch.inference_mode()
def parity(directory: Path, decoder: Decoder, tokens: Tensor) -> float | None:
    """max |Δ logits| in fp32 between stock `transformers` on a directory and `decoder`, for tokens (B, T).

    Of the last 64 positions, which depend on all, so that a large vocabulary takes no memory to speak of. None where
    transformers is not installed.
    """
    theirs = open_with_transformers("AutoModelForCausalLM", directory)
    if theirs is None:
        return None
    logits = theirs(tokens.cpu(), logits_to_keep=PARITY_POSITIONS).logits
    ours = F.linear(decoder(tokens)[:, -PARITY_POSITIONS:], decoder.output_weight)
    return float((logits - ours.float().cpu()).abs().max())


def open_with_transformers(kind: str, directory: Path) -> Any:
    """The model of a directory as stock `transformers` opens it in fp32; None where that is not installed, or where
    nothing is to be compared."""
    if not _compares.get():
        return None
    try:
        import transformers
    except ImportError:
        return None
    with quiet_transformers():
        opened = getattr(transformers, kind).from_pretrained
        return opened(directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers loads weights without bars and reports during the block."""
    import transformers

    logging: Any = transformers.utils.logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _to_qwen3(config: DecoderConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.window,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # where transformers 4 looks
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "use_cache": True,
        **_special_ids(tokenizer),
        "dtype": "float32",
        "torch_dtype": "float32",  # what transformers 4 calls it
    }


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {
        "bos_token_id": tokenizer.start,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.pad,
    }


def _generation_config(tokenizer: Tokenizer, given: bytes | None) -> bytes:
    """The one that is given, as it is where it ends texts as the tokenizer does."""
    found = {"do_sample": True} if given is None else json.loads(given)
    stops = _ids(found.get("eos_token_id"))
    if given is not None and tokenizer.end in stops:
        return given
    ids = _special_ids(tokenizer) | ({"eos_token_id": [*stops, tokenizer.end]} if stops else {})
    return (json.dumps({**ids, **found, "eos_token_id": ids["eos_token_id"]}, indent=2) + "\n").encode()


def read_ends(directory: Path) -> list[int]:
    """The tokens that end a text, as the directory of a decoder names them."""
    for name in (GENERATION, "config.json"):
        if (directory / name).is_file() and (found := _ids(read_json(directory / name).get("eos_token_id"))):
            return found
    return []


def _ids(said: object) -> list[int]:
    """One id or several, as a list."""
    return [id_ for id_ in (said if isinstance(said, list) else [said]) if isinstance(id_, int)]


def _from_qwen3(saved: dict[str, Any], directory: Path) -> DecoderConfig:
    _refuse_other_arithmetic(saved, directory)
    said = {"tie_word_embeddings": False} | saved | read_rope(saved, directory)  # Qwen3's default
    return shaped(DecoderConfig, directory / "config.json", said, KEYS)


def _refuse_other_arithmetic(saved: dict[str, Any], directory: Path) -> None:
    found = saved.get("model_type")
    if found != "qwen3":
        raise UserError(f"{directory} holds a model of type {found!r}; only dense Qwen3 models can be loaded")
    plain = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
    for key, value in plain.items():
        if saved.get(key, value) != value:
            raise UserError(
                f"{directory} has {key} = {saved[key]!r}; only Qwen3 with {value!r} can be loaded"
            )
    kind = read_rope(saved, directory).get("rope_type", "default")
    if kind != "default":
        raise UserError(
            f"{directory} scales its rotary positions ({kind}); only Qwen3 without it can be loaded"
        )
    if "quantization_config" in saved:
        raise UserError(f"{directory} holds quantised weights; load the model's unquantised release")


def read_rope(saved: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The rotary settings, wherever this version of transformers put them."""
    settings = saved.get("rope_parameters") or saved.get("rope_scaling") or {}
    if not isinstance(settings, dict):
        raise broken(directory / "config.json", "rope_parameters", settings)
    flat = {"rope_theta": saved["rope_theta"]} if "rope_theta" in saved else {}
    renamed = {"rope_type": settings["type"]} if "type" in settings else {}
    return flat | renamed | settings


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape))
