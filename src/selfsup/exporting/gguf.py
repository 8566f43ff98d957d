"""To GGUF: one file with a decoder and its tokenizer, as llama.cpp and what is built on it open them, and beside it a
Modelfile, by which Ollama takes it in.

The file is written by the `gguf` library, which knows the names of tensors and keys. What is computed there is computed
here but for rounding; what would be another network or other tokens there is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selfsup.config import nearest
from selfsup.data.tokenizers import BOUNDED_PATTERN, QWEN2_PATTERN, RUN, TextTokenizer, json_object, spelt
from selfsup.errors import UserError
from selfsup.exporting import Written
from selfsup.files import new_file, separate
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load_as
from selfsup.models.decoder import Decoder, DecoderConfig

QUANTIZED = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}  # what the weights of matrices may be kept as
BLOCK = 32  # numbers of 8 bits that have one scale in Q8_0
# By the layout of the model directory: the architecture there, by the library's name.
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3", "smollm3": "SMOLLM3"}
INTERLEAVED = ("LLAMA", "SMOLLM3")  # those in which a rotation turns neighbours, not halves
STILL_EVERY = 4  # layers of SmolLM3, of which llama.cpp leaves the last one without positions, whatever a file says

# How llama.cpp is to split texts before it merges bytes, by the steps that the tokenizer's own file names.
LLAMA3_PATTERN = (  # huggingface.co/meta-llama/Meta-Llama-3-8B, tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES, WORDS_AND_BYTES = {"type": "ByteLevel", "use_regex": False}, {"type": "ByteLevel", "use_regex": True}
SPLITTINGS: Mapping[str, list[list[dict[str, Any]]]] = {
    "gpt-2": [[WORDS_AND_BYTES]],
    "smollm": [[{"type": "Digits", "individual_digits": True}, WORDS_AND_BYTES]],
    "qwen2": [
        [{"type": "Split", "pattern": {"Regex": pattern}}, BYTES] for pattern in (QWEN2_PATTERN, BOUNDED_PATTERN)
    ],
    "llama-bpe": [[{"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}}, BYTES]],
}
USUAL = {"add_prefix_space": False, "behavior": "Isolated", "invert": False}  # of all of these steps
UNMET = "þ ÿ"  # bytes FE and FF, which no text in UTF-8 has; llama.cpp opens no file without merges
WITHOUT_MERGES = ("llama-bpe",)  # which take a word that is a token as it is

log = logging.getLogger(__name__)


def write(source: Path, path: Path, quantize: str = "f16") -> Written:
    """Write the decoder of `source` to the file `path`, and a Modelfile beside it.

    Args:
        quantize: a name of `QUANTIZED`: what matrices are kept as; norms and biases are always F32.

    Raises:
        UserError: no such kind; `source` holds no decoder, one of an architecture or a tokenizer that llama.cpp lacks;
            something lies there already; the library is not installed.
    """
    if quantize not in QUANTIZED:
        raise UserError(f"--quantize is not '{quantize}'{nearest(quantize, QUANTIZED)}")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("Export to GGUF needs the gguf library: pip install 'selfsup[gguf]'.") from None
    model = load_as(source, LanguageModel)
    if not isinstance(model.decoder, Decoder):
        raise model.decoder.opened.refused("which is not written as GGUF here; llama.cpp's own converter may do it")
    require_known(model.decoder.config, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = path.with_suffix(".Modelfile")
    with new_file(path) as temporary, new_file(recipe) as beside:
        _write(temporary, path.stem, model.decoder, model, QUANTIZED[quantize])
        beside.write_text(modelfile(path.name, model), encoding="utf-8")
    return f"llama_cpp.Llama({str(path)!r}), and Ollama takes it in by: ollama create NAME -f {recipe}", None


def require_known(config: DecoderConfig, source: Path) -> None:
    """Raise a UserError where llama.cpp would compute something else than a decoder of this config."""
    architecture = ARCHITECTURES.get(config.layout)
    still = range(STILL_EVERY - 1, config.layers, STILL_EVERY) if architecture == "SMOLLM3" else ()
    seen = config.sliding if config.local else None
    problems = {
        f"{config.layout} models": architecture is None,
        "such layers with a short sight": seen is not None and seen < config.window,
        f"gates of {config.activation}": config.activation != "silu",
        "such a scaling of rotary positions": config.rotation.amplitude != 1
        or (config.rotation.divisors is not None and architecture != "LLAMA"),
        "such layers without positions": tuple(still) != config.still,
        "biases in qwen3 models": architecture == "QWEN3" and (config.qkv_bias or config.output_bias),
    }
    problem = next((what for what, found in problems.items() if found), None)
    if problem is not None:
        raise UserError(
            f"{source} cannot go to GGUF: {problem} are not written here as llama.cpp computes them; llama.cpp's own "
            "converter may do it, from a model directory."
        )


def _write(path: Path, name: str, decoder: Decoder, model: LanguageModel, kind: str) -> None:
    """All of a file: what it is, its tokenizer, its weights."""
    import gguf

    config, tokenizer = decoder.config, model.tokenizer
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.layout]]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    writer.add_context_length(config.window)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocabulary)
    known = gguf.LlamaFileType
    writer.add_file_type({"F32": known.ALL_F32, "F16": known.MOSTLY_F16, "Q8_0": known.MOSTLY_Q8_0}[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, tokenizer, config.vocabulary, sorted(model.ends - {tokenizer.end}))
    for tensor, values in tensors(decoder):
        fits = values.ndim > 1 and (kind != "Q8_0" or values.shape[-1] % BLOCK == 0)
        kept = gguf.GGMLQuantizationType[kind if fits else "F16" if values.ndim > 1 else "F32"]
        writer.add_tensor(tensor, gguf.quants.quantize(values, kept), raw_dtype=kept)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


# -- weights -------------------------------------------------------------------------------------------------


def tensors(decoder: Decoder) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The weights of a decoder by their names there, in the order of its rotation."""
    import gguf

    config, architecture = decoder.config, ARCHITECTURES[decoder.config.layout]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], config.layers)
    turned = {"q_proj": config.heads, "k_proj": config.kv_heads} if architecture in INTERLEAVED else {}
    for name, tensor in separate(decoder).items():
        if config.tied and name.startswith("lm_head."):
            continue
        values = tensor.float().numpy()
        heads = turned.get(name.split(".")[-2])
        yield names.get_name(name, (".weight", ".bias")), values if heads is None else interleaved(values, heads)
    if config.rotation.divisors is not None:
        yield "rope_freqs.weight", np.array(config.rotation.divisors, np.float32)


def interleaved(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """The rows of a map to queries or keys, (heads · dim, …), in the order in which a rotation that turns neighbours
    turns what one of halves does: row i of a head's first half comes to stand before row i of the second."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


# -- the tokenizer -------------------------------------------------------------------------------------------


def _add_tokenizer(writer: Any, tokenizer: TextTokenizer, rows: int, ends: list[int]) -> None:
    """Add a tokenizer to a file whose table of vectors has so many rows; `ends` are more tokens that end a text."""
    splitting, vocabulary, merges = byte_pairs(tokenizer)
    tokens, types = _listed(vocabulary, tokenizer, rows)
    if tokenizer.prefix not in ([], [tokenizer.start]):
        raise UserError(
            f"llama.cpp puts one token before a text or none, and this tokenizer {len(tokenizer.prefix)}; start a "
            "model from another one."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.start)
    writer.add_eos_token_id(tokenizer.end)
    if ends:
        writer.add_eot_token_id(ends[0])
    if tokenizer.pad is not None:
        writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(bool(tokenizer.prefix))
    writer.add_add_eos_token(False)
    if template := chat_template(tokenizer):
        writer.add_chat_template(template)


def byte_pairs(tokenizer: TextTokenizer) -> tuple[str, dict[str, int], list[str]]:
    """A tokenizer as one of byte pairs: how texts are split (llama.cpp's name), tokens spelt in bytes, merges.

    What llama.cpp does otherwise with some texts is said. Raises a UserError where it has no such tokenizer.
    """
    structure = tokenizer.structure
    model, normalizer = structure["model"], structure["normalizer"] or {"type": None}
    if tokenizer.by_characters:
        log.warning(
            "llama.cpp leaves out characters that the vocabulary lacks, which are %s here.", tokenizer.marks.unknown
        )
        return "qwen2", *_characters(model["vocab"], structure["added_tokens"])  # no token goes over a split
    steps = _steps(structure["pre_tokenizer"])
    splitting = next((name for name, known in SPLITTINGS.items() if any(_same(steps, one) for one in known)), None)
    if (
        model["type"] != "BPE"
        or splitting is None
        or normalizer["type"] not in (None, "NFC")
        or bool(model.get("ignore_merges")) != (splitting in WITHOUT_MERGES)
    ):
        raise UserError(
            "llama.cpp has no tokenizer like this one, as far as is known here; train with data.tokenizer=bpe or "
            "characters, or have llama.cpp's own converter write the file."
        )
    if normalizer["type"] is not None:
        log.warning("Texts are brought to Unicode's form NFC here, and not by llama.cpp.")
    if any(step.get("pattern") == {"Regex": BOUNDED_PATTERN} for step in steps):
        log.warning("Runs of more than %s letters or signs are cut here, and not by llama.cpp.", f"{RUN:,}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return splitting, model["vocab"], merges


def _steps(given: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, one behind the other."""
    return (given or {}).get("pretokenizers") or [given or {}]


def _same(steps: list[dict[str, Any]], known: list[dict[str, Any]]) -> bool:
    """Whether these steps are known ones, which say nothing unusual beside what is known."""
    return len(steps) == len(known) and all(
        step | one == step and all(step.get(key, value) == value for key, value in USUAL.items())
        for step, one in zip(steps, known, strict=True)
    )


def _characters(vocabulary: Mapping[str, int], added: list[dict[str, Any]]) -> tuple[dict[str, int], list[str]]:
    """Tokens of one character each, spelt in bytes, and merges that make characters of several bytes of these."""
    special = {token["content"] for token in added}
    characters = {token: spelt(token) for token in vocabulary if token not in special}
    merges = {f"{text[:end]} {text[end]}" for text in characters.values() for end in range(1, len(text))}
    tokens = {characters.get(token, token): id_ for token, id_ in vocabulary.items()}
    return tokens, sorted(merges, key=lambda merge: (len(merge), merge)) or [UNMET]


def _listed(vocabulary: Mapping[str, int], tokenizer: TextTokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Each token by its id, and its type there; rows of the table without a token get one that no text has."""
    from gguf import TokenType

    tokens = [f"[PAD{id_}]" for id_ in range(rows)]
    types = [TokenType.UNUSED] * rows
    for token, id_ in vocabulary.items():
        tokens[id_], types[id_] = token, TokenType.NORMAL
    for added in tokenizer.structure["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    return tokens, [int(kind) for kind in types]


def chat_template(tokenizer: TextTokenizer) -> str | None:
    """The template of conversations that came with a tokenizer, where one did."""
    if (given := tokenizer.files.get("chat_template.jinja")) is not None:
        return given.decode()
    said = json_object(tokenizer.files, "tokenizer_config.json").get("chat_template")
    return said if isinstance(said, str) else None


# -- Ollama --------------------------------------------------------------------------------------------------


def modelfile(name: str, model: LanguageModel) -> str:
    """By what Ollama takes in the file of this name: a model that goes on with texts, unless it came with a template of
    conversations, which Ollama finds in the file."""
    lines = [f"FROM ./{name}", f"PARAMETER num_ctx {model.decoder.config.window}"]
    if chat_template(model.tokenizer) is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    return "\n".join(lines) + "\n"
