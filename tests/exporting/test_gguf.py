"""Decoders as GGUF: read back with the gguf library, opened by transformers and, where it is installed, llama.cpp."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from conftest import Answer, Train
from tiny_decoder import save_tiny_decoder
from tokenizers import pre_tokenizers

import selfsup
from selfsup.errors import UserError
from selfsup.exporting.gguf import interleaved, require_known
from selfsup.inference.generate import LanguageModel
from selfsup.models.decoder import Decoder, DecoderConfig, Rotation
from selfsup.models.directories import find_model

gguf = pytest.importorskip("gguf")

Command = Callable[..., Answer]

TEXTS = [
    "The old whale sleeps in the sea, and the boat's crew waits: 1,234 days.\n\n  Then — naïve — it sang.",
    "Yes",
    " 日本",
]
SETTINGS = {"data.vocabulary": 400, "data.window": 64, "model": {"layers": 2, "width": 64, "heads": 2, "kv_heads": 1}}


@pytest.fixture(scope="module")
def bpe(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a vocabulary of byte pairs, and queries that share keys."""
    return train(tmp_path_factory.mktemp("runs") / "bpe", tokenizer="bpe", steps=30, **SETTINGS).directory


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("models") / "characters")


def opened(source: Path) -> LanguageModel:
    model = selfsup.load(source)
    assert isinstance(model, LanguageModel)
    return model


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file says, and its tensors, dequantised."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return fields, tensors


# -- the file ------------------------------------------------------------------------------------------------


def test_the_weights_are_the_model_s(bpe: Path, tmp_path: Path) -> None:
    exported = selfsup.export(bpe, out=tmp_path / "m.gguf", to="gguf", quantize="f32")
    assert "ollama create" in exported.opens_with
    fields, tensors = read(tmp_path / "m.gguf")
    weights = opened(bpe).decoder.state_dict()
    assert len(tensors) == len(weights)
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"),
        ("model.layers.1.self_attn.q_proj", "blk.1.attn_q"),
        ("model.layers.1.self_attn.k_norm", "blk.1.attn_k_norm"),
        ("model.layers.0.post_attention_layernorm", "blk.0.ffn_norm"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ):
        assert np.array_equal(tensors[f"{theirs}.weight"], weights[f"{ours}.weight"].numpy()), ours
    config = opened(bpe).decoder.config
    assert fields["general.architecture"] == "qwen3"
    assert fields["qwen3.attention.head_count_kv"] == config.kv_heads
    assert fields["qwen3.attention.key_length"] == config.head_dim
    assert fields["qwen3.context_length"] == config.window
    assert fields["qwen3.rope.freq_base"] == pytest.approx(config.rope_theta)


@pytest.mark.parametrize(("kind", "most"), [("f16", 1e-3), ("q8_0", 1e-2)])
def test_narrow_weights_are_near(kind: str, most: float, bpe: Path, tmp_path: Path) -> None:
    """Half a unit in the last place of 11 bits, or half a step of a block's largest number over 127."""
    selfsup.export(bpe, out=tmp_path / "m.gguf", to="gguf", quantize=kind)
    _, tensors = read(tmp_path / "m.gguf")
    expected = opened(bpe).decoder.state_dict()["model.layers.0.mlp.up_proj.weight"].numpy()
    found = tensors["blk.0.ffn_up.weight"]
    assert 0 < np.abs(found - expected).max() <= most * np.abs(expected).max()
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == kind.upper()
    assert kinds["output_norm.weight"] == "F32"


def test_f16_is_what_is_written_unless_another_is_named(characters: Path, tmp_path: Path) -> None:
    selfsup.export(characters, out=tmp_path / "m.gguf", to="gguf")
    assert read(tmp_path / "m.gguf")[0]["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16


def test_rotations_of_neighbours_turn_what_rotations_of_halves_do() -> None:
    """Rows in the other order give the same products of queries and keys at every distance."""
    draws = np.random.default_rng(0)
    dim, heads = 8, 2
    q, k = draws.normal(size=(2, heads * dim)).astype(np.float32)
    speeds = 100.0 ** -(np.arange(0, dim, 2) / dim)

    def turned(pairs: np.ndarray, position: int) -> np.ndarray:
        """Of complex numbers, one for each pair of a head."""
        return pairs * np.exp(1j * position * speeds)

    def halves(x: np.ndarray) -> np.ndarray:
        first, second = x.reshape(heads, 2, dim // 2).swapaxes(0, 1)
        return first + 1j * second

    def neighbours(x: np.ndarray) -> np.ndarray:
        pairs = interleaved(x, heads).reshape(heads, dim // 2, 2)
        return pairs[..., 0] + 1j * pairs[..., 1]

    for positions in ((0, 0), (3, 1), (9, 2)):
        ours, theirs = (
            sum((turned(pairs(q), positions[0]) * turned(pairs(k), positions[1]).conj()).real.sum(-1))
            for pairs in (halves, neighbours)
        )
        assert ours == pytest.approx(theirs)


# -- the tokenizer -------------------------------------------------------------------------------------------


def merged(text: str, fields: dict[str, Any]) -> list[int]:
    """The ids of a text by a file's own tokens and merges, by hand: the earliest merge first. (Of words: the file names
    how a text is split, and whoever reads it knows that way by name.)"""
    ids = {token: id_ for id_, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    ((spelt, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    parts = [*spelt]
    while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
        best = min(pairs, key=lambda pair: ranks[pair])
        at = next(n for n, pair in enumerate(itertools.pairwise(parts)) if pair == best)
        parts[at : at + 2] = ["".join(best)]
    return [ids[part] for part in parts]


@pytest.mark.parametrize("word", [" whale", "sleeps", " naïve", "日本"])
def test_tokens_and_merges_are_the_model_s(word: str, bpe: Path, tmp_path: Path) -> None:
    selfsup.export(bpe, out=tmp_path / "m.gguf", to="gguf")
    fields, _ = read(tmp_path / "m.gguf")
    tokenizer = opened(bpe).tokenizer
    assert merged(word, fields) == tokenizer.encode(word).tolist()
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.end
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.ggml.token_type"][tokenizer.end] == gguf.TokenType.CONTROL


def test_characters_are_bytes_that_merge(train: Train, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"naïve 日本 – {n}"}) + "\n" for n in range(40)))
    run = train(tmp_path / "run", data=tmp_path / "texts.jsonl", tokenizer="characters", steps=1)
    selfsup.export(run, out=tmp_path / "m.gguf", to="gguf")
    fields, _ = read(tmp_path / "m.gguf")
    text = "naïve日本–"
    assert merged(text, fields) == opened(run.directory).tokenizer.encode(text).tolist()


def test_a_file_has_a_merge_even_of_ascii(characters: Path, tmp_path: Path) -> None:
    """llama.cpp opens none without; and this one joins what no text has."""
    selfsup.export(characters, out=tmp_path / "m.gguf", to="gguf")
    fields, _ = read(tmp_path / "m.gguf")
    assert fields["tokenizer.ggml.merges"] == ["þ ÿ"]


def test_other_tokenizers_are_refused(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", tokenizer="words", steps=1)
    with pytest.raises(UserError, match=r"llama\.cpp has no tokenizer like this one"):
        selfsup.export(run, out=tmp_path / "m.gguf", to="gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# -- what is refused, and what lies beside -------------------------------------------------------------------


def test_a_modelfile_lies_beside(characters: Path, tmp_path: Path) -> None:
    selfsup.export(characters, out=tmp_path / "m.gguf", to="gguf")
    assert (tmp_path / "m.Modelfile").read_text().splitlines() == [
        "FROM ./m.gguf",
        "PARAMETER num_ctx 64",
        'TEMPLATE """{{ .Prompt }}"""',
    ]


def test_nothing_is_overwritten(characters: Path, tmp_path: Path) -> None:
    (tmp_path / "m.Modelfile").write_text("mine")
    with pytest.raises(UserError, match=r"m\.Modelfile exists already"):
        selfsup.export(characters, out=tmp_path / "m.gguf", to="gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m.Modelfile"]
    assert (tmp_path / "m.Modelfile").read_text() == "mine"


def test_wrong_arguments(characters: Path, tmp_path: Path, selfsup_command: Command) -> None:
    answer = selfsup_command("export", characters, "--to", "gguf", "--quantize", "q8", "--out", tmp_path / "m.gguf")
    assert (answer.code, answer.error) == (2, "selfsup: --quantize is not 'q8'; did you mean 'q8_0'?\n")
    answer = selfsup_command("export", characters, "--to", "transformers", "--quantize", "f32", "--out", tmp_path / "m")
    assert "--quantize is for --to gguf, not for transformers" in answer.error


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (foreign.mistral, "such layers with a short sight are not written here"),
        (foreign.gpt2, "holds a GPT2LMHeadModel, which is not written as GGUF here"),
    ],
)
def test_other_architectures_are_refused(made: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        selfsup.export(made(tmp_path / "model"), out=tmp_path / "m.gguf", to="gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


PLAIN = DecoderConfig(300, 4, 32, 2, 2, 16, 64, 64, False, layout="llama", qk_norm=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "gemma2"},
        {"activation": "gelu"},
        {"rotation": Rotation(None, 1.5)},
        {"still": (3,)},
        {"layout": "smollm3"},
        {"layout": "qwen3", "qkv_bias": True},
        {"layout": "qwen2", "rotation": Rotation((2.0,) * 8)},
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changes: dict[str, Any]) -> None:
    require_known(PLAIN, Path("model"))
    with pytest.raises(UserError, match="model cannot go to GGUF"):
        require_known(replace(PLAIN, **changes), Path("model"))


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "mistral", "local": (0, 1), "sliding": 64},  # which is all there is to see
        {"rotation": Rotation((2.0,) * 8)},
        {"layout": "smollm3", "still": (3,)},
    ],
)
def test_what_it_computes_alike_is_not(changes: dict[str, Any]) -> None:
    require_known(replace(PLAIN, **changes), Path("model"))


# -- by other libraries --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["bpe", "llama"])
def test_transformers_computes_the_same_logits(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Of a fresh decoder, which is a Qwen3, and of a Llama, whose rows are in another order there."""
    transformers = pytest.importorskip("transformers")
    directory: Path = foreign.llama(tmp_path / "llama") if source == "llama" else request.getfixturevalue(source)
    selfsup.export(directory, out=tmp_path / "m.gguf", to="gguf", quantize="f32")
    config = transformers.AutoConfig.from_pretrained(find_model(directory))  # which reads no head_dim of a GGUF itself
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", config=config, dtype=torch.float32
    )
    assert_same_logits(opened(directory), lambda tokens: theirs(tokens).logits)


def assert_same_logits(model: LanguageModel, theirs: Any) -> None:
    assert isinstance(model.decoder, Decoder)
    tokens = torch.tensor([model.tokenizer.opened(model.tokenizer.encode(TEXTS[0]))])[:, :60]
    with torch.inference_mode():
        ours, found = model.decoder.logits(tokens), theirs(tokens)
    assert float((ours - found).abs().max()) < 1e-4 * float(ours.abs().max())


@pytest.fixture
def llama_cpp() -> Any:
    return pytest.importorskip("llama_cpp")


@pytest.mark.parametrize("source", ["bpe", "characters"])
def test_llama_cpp_writes_the_same_text(
    source: str, llama_cpp: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """50 greedy tokens, the tokens of texts, and the perplexity of one, within a thousandth."""
    directory: Path = request.getfixturevalue(source)
    model = opened(directory)
    selfsup.export(directory, out=tmp_path / "m.gguf", to="gguf", quantize="f32")
    llama = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    texts = TEXTS if source == "bpe" else ["The old whale: 1,234 days.\n\n  Then", "Yes"]
    for text in texts:
        ids = model.tokenizer.opened(model.tokenizer.encode(text))
        assert llama.tokenize(text.encode(), special=False) == ids
    ours = model.generate("The", tokens=50, temperature=0.0, precision="fp32")
    written = llama.create_completion("The", max_tokens=50, temperature=0.0)["choices"][0]["text"]
    assert written == ours
    ids = model.tokenizer.opened(model.tokenizer.encode(texts[0]))[:60]
    llama.reset()
    llama.eval(ids)
    scores = torch.log_softmax(torch.from_numpy(llama.scores[: len(ids)].copy()).double(), -1)
    theirs = -float(scores[range(len(ids) - 1), ids[1:]].mean())
    assert math.exp(theirs) == pytest.approx(math.exp(float(model.token_losses(ids).double().mean())), rel=1e-3)
