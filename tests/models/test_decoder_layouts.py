"""Decoders of other libraries: opened with the numbers of the class that they come from, and written back for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Train
from safetensors.torch import load_file
from styles import STYLES
from torch import Tensor

import selfsup
from selfsup.errors import UserError
from selfsup.inference.decoding import Decoding
from selfsup.inference.generate import LanguageModel
from selfsup.models.adapters import AdaptedDecoder
from selfsup.models.decoder import Decoder
from selfsup.models.decoder_layouts import LAYOUTS, load_decoder
from selfsup.models.kinds import DECODERS
from selfsup.models.layouts import renamed
from selfsup.models.losses import cap_of, linear_cross_entropy, token_losses
from selfsup.run import Run

LENGTH = 40
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
BIASED = {"attention_bias": True, "mlp_bias": True}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 12}
MSCALE = YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "mscale": 0.8, "mscale_all_dim": 0.4, "truncate": False}
FAR = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
}
# By a name: a configuration of transformers, and what it has of its own.
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, biases": ("Llama", {"tie_word_embeddings": True, "head_dim": 16, **BIASED}),
    "llama, every head its own keys": ("Llama", {"num_key_value_heads": 4, "hidden_act": "gelu_pytorch_tanh"}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "mistral": ("Mistral", {"head_dim": 16, "sliding_window": None}),
    "mistral, sliding": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, sliding, yarn": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2, "rope_parameters": YARN},
    ),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3, biases, yarn": ("Qwen3", {"head_dim": 16, "attention_bias": True, "rope_parameters": MSCALE}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
    "smollm3, sliding, biases": (
        "SmolLM3",
        {"no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True, "sliding_window": 6, **BIASED},
    ),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma 2": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 40, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0},
    ),
    "gemma 2, no caps": ("Gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 8}),
    "gemma 3": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 40, **FAR},
    ),
}
EACH = pytest.mark.parametrize("name", MADE)


def class_of(name: str) -> str:
    return f"{MADE[name][0].removesuffix('Text')}ForCausalLM"


@torch.no_grad()
def make(name: str, directory: Path, **more: Any) -> Path:
    """A directory of transformers, whose every parameter matters."""
    family, own = MADE[name]
    config = getattr(transformers, f"{family}Config")(**(SHAPE | {"pad_token_id": 0} | own | more))
    torch.manual_seed(0)
    network = getattr(transformers, class_of(name))(config)
    for parameter in network.parameters():
        parameter.add_(
            torch.randn(parameter.shape), alpha=0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
        )
    network.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("decoders")
    return {name: make(name, place / str(number)) for number, name in enumerate(MADE)}


@pytest.fixture(scope="module")
def decoders(directories: dict[str, Path]) -> dict[str, Decoder]:
    return {name: load_decoder(directory).eval() for name, directory in directories.items()}


def tokens(rows: int = 2) -> Tensor:
    """Without that of padding, which transformers trains no embedding of."""
    return torch.randint(1, 60, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def theirs(directory: Path) -> Tensor:
    network = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    logits: Tensor = network(tokens()).logits
    return logits


@torch.no_grad()
def ours(decoder: Decoder) -> Tensor:
    return decoder.logits(tokens())


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_every_layout_has_its_name() -> None:
    assert set(DECODERS) == LAYOUTS.keys()
    assert {name: layout.model_type for name, layout in LAYOUTS.items()} == {name: name for name in LAYOUTS}


@EACH
def test_it_is_opened_with_the_same_numbers(
    name: str, directories: dict[str, Path], decoders: dict[str, Decoder]
) -> None:
    expected = theirs(directories[name])
    assert apart(ours(decoders[name]), expected) < 1e-5
    # A decoder that pays no heed to what this one has of its own would be far off.
    assert apart(ours(decoders["llama"]), expected) > 0.1 or name == "llama"


@EACH
def test_its_gradient_is_that_of_transformers(
    name: str, directories: dict[str, Path], decoders: dict[str, Decoder]
) -> None:
    """Of the loss that is trained on."""
    row, decoder = tokens(), decoders[name]
    network = transformers.AutoModelForCausalLM.from_pretrained(directories[name], dtype=torch.float32)
    logits = network(row[:, :-1]).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, row[:, 1:].flatten(), reduction="sum").backward()
    hidden = decoder(row[:, :-1]).flatten(0, 1)
    linear_cross_entropy(hidden, decoder.output_weight, row[:, 1:].flatten(), cap_of(decoder)).backward()
    expected = {key: p.grad for key, p in network.named_parameters()}
    names = LAYOUTS[decoder.config.layout].names
    for key, gradient in renamed({key: p.grad for key, p in decoder.named_parameters()}, names).items():
        # Where nothing is turned, the softmax takes back what a bias of keys adds: its gradient is rounding.
        assert (gradient - expected[key]).norm() < 1e-4 * expected[key].norm() + 1e-4, key
    decoder.zero_grad()


@EACH
@torch.inference_mode()
def test_token_by_token_it_has_the_same_numbers(name: str, decoders: dict[str, Decoder]) -> None:
    """With the weights that are packed, from a prompt on, beside padding, and beyond the window."""
    decoder, row = decoders[name], torch.cat((tokens(), tokens().flip(1)), 1)
    decode, padding = Decoding(decoder, torch.float32), [0, 3]
    packed, plain = (decode.cache(2, row.shape[1], padding) for _ in range(2))
    for part in (row[:, :9], row[:, 9:23], *row[:, 23:].split(1, 1)):
        found, expected = decode(part, packed), decoder.logits(part, cache=plain)[:, -1]
        assert apart(found, expected) < 1e-5
    whole = decoder.logits(row[:1, :LENGTH])[:, -1]
    alone = decode.cache(1, LENGTH)
    for part in row[:1, :LENGTH].split(13, 1):
        found = decode(part, alone)
    assert apart(found, whole) < 1e-5


# -- trained on --------------------------------------------------------------------------------------------

# A network of each layout, with a tokenizer in the style of its family.
TRAINED = {
    "llama 3": "llama3",
    "mistral, sliding": "mistral",
    "qwen2, sliding, yarn": "qwen3",
    "qwen3, biases, yarn": "qwen3",
    "smollm3, sliding, biases": "qwen3",
    "gemma": "gemma",
    "gemma 2": "gemma",
    "gemma 3": "gemma",
}
MOVING = {"optim.matrices": "adamw", "optim.lr": 1e-2, "optim.adamw_lr": 1e-2, "steps": 10}


@pytest.fixture(scope="module")
def runs(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Run]]:
    """A directory with a tokenizer, and a run that was started from it."""
    place, made = tmp_path_factory.mktemp("trained"), dict[str, tuple[Path, Run]]()

    def run(name: str) -> tuple[Path, Run]:
        if name not in made:
            directory = with_tokenizer(name, place / f"{len(made)} before")
            made[name] = (
                directory,
                train(place / f"{len(made)} after", init=str(directory), tokenizer=str(directory), model={}, **MOVING),
            )
        return made[name]

    return run


def with_tokenizer(name: str, directory: Path) -> Path:
    STYLES[TRAINED[name]](directory, "Qwen3")
    if TRAINED[name] == "qwen3":
        split_digits(directory / "tokenizer.json")
    kept = (directory / "generation_config.json").read_bytes()
    said = json.loads((directory / "config.json").read_text())
    ids = {key: said[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    make(name, directory, **ids)
    (directory / "generation_config.json").write_bytes(kept)
    return directory


def split_digits(path: Path) -> None:
    """As transformers has it for all tokenizers of a Qwen2, whatever their file says."""
    content = json.loads(path.read_text())
    digits = {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, content["pre_tokenizer"]]}
    path.write_text(json.dumps(content))


EACH_TRAINED = pytest.mark.parametrize("name", TRAINED)


@EACH_TRAINED
def test_what_is_trained_on_opens_as_what_it_was(name: str, runs: Callable[[str], tuple[Path, Run]]) -> None:
    before, run = runs(name)
    after = run.model_directory
    assert apart(ours(load_decoder(after)), theirs(after)) < 1e-5
    assert run.summary["max_difference"] < 1e-3
    assert apart(theirs(after), theirs(before)) > 1e-3
    assert type(transformers.AutoModelForCausalLM.from_pretrained(after)).__name__ == class_of(name)


@EACH_TRAINED
def test_what_need_not_change_stays(name: str, runs: Callable[[str], tuple[Path, Run]]) -> None:
    before, run = runs(name)
    configs = [json.loads((place / "config.json").read_text()) for place in (before, run.model_directory)]
    assert configs[1] == configs[0] | {"dtype": "float32", "torch_dtype": "float32"}
    for file in ("tokenizer.json", "generation_config.json"):
        assert (run.model_directory / file).read_bytes() == (before / file).read_bytes()
    weights = [load_file(place / "model.safetensors") for place in (before, run.model_directory)]
    assert weights[0].keys() == weights[1].keys()


@EACH_TRAINED
def test_it_writes_what_transformers_writes(name: str, runs: Callable[[str], tuple[Path, Run]]) -> None:
    directory = runs(name)[1].model_directory
    network = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = LanguageModel.load(directory)
    prompts = ["The cat", "", "The dog sat by the hill on"]
    for prompt, written in zip(
        prompts, model.generate(prompts, tokens=20, temperature=0, precision="fp32"), strict=True
    ):
        ids = torch.tensor([model.tokenizer.opened(model.tokenizer.encode(prompt))])
        out = network.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        assert written.strip() == tokenizer.decode(out, skip_special_tokens=True).strip()


@EACH_TRAINED
def test_one_can_look_at_what_it_was_trained_on(name: str, runs: Callable[[str], tuple[Path, Run]]) -> None:
    """Which was read with the tokenizer that came with its weights."""
    found = selfsup.inspect(run=runs(name)[1].directory)
    assert found.sections


@EACH_TRAINED
def test_it_is_measured_and_handed_on(name: str, runs: Callable[[str], tuple[Path, Run]], tmp_path: Path) -> None:
    """Documents of one row do not see each other: the figure is that of a plain loop over them."""
    run, texts = runs(name)[1], ["the cat sat by the sea", "dog", "the hen ran"]
    network = transformers.AutoModelForCausalLM.from_pretrained(run.model_directory)
    tokenizer = LanguageModel.load(run.directory / "model").tokenizer
    rows = [torch.tensor([[tokenizer.start, *ids.tolist(), tokenizer.end]]) for ids in tokenizer.encode_batch(texts)]
    with torch.no_grad():
        losses = [token_losses(network(row).logits[0, :-1], row[0, 1:]) for row in rows]
    score = selfsup.evaluate(run, data=[{"text": text} for text in texts], precision="fp32", protocol="perplexity")
    assert math.log(score.value) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    exported = selfsup.export(run, out=tmp_path / "copy", to="transformers")
    assert class_of(name) in exported.opens_with


def test_what_is_none_here_is_left_to_transformers(tmp_path: Path) -> None:
    """Positions whose speeds depend on the length of the text: only to start from it is refused."""
    directory = with_tokenizer("llama 3", tmp_path / "long")
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"rope_parameters": longrope | factors}))
    model = LanguageModel.load(directory)
    assert isinstance(model.decoder, AdaptedDecoder)
    assert model.generate("the cat", tokens=5, temperature=0) == model.generate("the cat", tokens=5, temperature=0)
    assert selfsup.evaluate(directory, data=[{"text": "the cat sat"}], precision="fp32", protocol="perplexity").n == 4
    with pytest.raises(UserError, match=r"rope_type = 'longrope'; only models with default or .* model=hf:"):
        selfsup.plan("causal-lm", init=str(directory), data=[{"text": "the cat sat"}])
