"""A decoder from elsewhere is trained and measured with its own start token, end token and template."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import Train
from styles import STYLES

import selfsup
from selfsup.data.tokenizer_loading import load_tokenizer, open_tokenizer
from selfsup.inference.generate import LanguageModel
from selfsup.inspection.blocks import Sight, Window

DOCUMENTS = ["the cat sat by the sea", "dog", "the fox ran on day 3. the hen sang", "the <s> sat </s> <|im_end|>"]
OPENING = {
    "llama3": "<|begin_of_text|>",
    "mistral": "<s>",
    "gemma": "<bos>",
    "qwen3": "<|endoftext|>",
    "gpt2": "<|endoftext|>",
}
CLOSING = {"llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<eos>", "qwen3": "<|im_end|>", "gpt2": "<|endoftext|>"}
PUT_BEFORE = ("llama3", "mistral", "gemma")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("styles")
    return {name: make(place / name) for name, make in STYLES.items()}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tokenizers with a network that writes here."""
    place = tmp_path_factory.mktemp("native")
    return {name: make(place / name, "Qwen3") for name, make in STYLES.items()}


@pytest.fixture(scope="module")
def documents_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


def open_stock(directory: Path) -> tuple[Any, Any]:
    network = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return network, transformers.AutoTokenizer.from_pretrained(directory)


@torch.inference_mode()
def perplexity(directory: Path, style: str) -> float:
    """By a plain loop over documents: each between its start and its end token, special tokens in it plain text."""
    network, tokenizer = open_stock(directory)
    start, end = (tokenizer.convert_tokens_to_ids(names[style]) for names in (OPENING, CLOSING))
    losses = []
    for text in DOCUMENTS:
        ids = tokenizer(text, split_special_tokens=True).input_ids
        opened = ids if style in PUT_BEFORE else [start, *ids]
        assert opened[0] == start
        row = torch.tensor([[*opened, end]])
        logits = network(row).logits[0, :-1]
        losses += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none").tolist()
    return math.exp(float(np.mean(losses)))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("network", ["own", "native"])
def test_perplexity_is_that_of_a_plain_loop(
    style: str, network: str, directories: dict[str, Path], native: dict[str, Path], documents_file: Path
) -> None:
    directory = (directories if network == "own" else native)[style]
    score = selfsup.evaluate(directory, data=documents_file, precision="fp32", protocol="perplexity")
    assert score.value == pytest.approx(perplexity(directory, style), rel=1e-4)
    _, tokenizer = open_stock(directory)
    ids = [tokenizer(t, split_special_tokens=True, add_special_tokens=False).input_ids for t in DOCUMENTS]
    assert score.n == sum(len(row) + 1 for row in ids)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("prompt", ["the cat", "", "the dog sat by the hill on"])
@torch.inference_mode()
def test_greedy_generation_is_that_of_transformers(style: str, prompt: str, native: dict[str, Path]) -> None:
    network, tokenizer = open_stock(native[style])
    ids = tokenizer(prompt).input_ids or [tokenizer.convert_tokens_to_ids(OPENING[style])]
    out = network.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0, len(ids) :]
    model = LanguageModel.load(native[style])
    drawn = model.tokenizer.opened(model.tokenizer.encode(prompt))
    assert drawn == ids
    expected = tokenizer.decode(out, skip_special_tokens=True)
    alone, *together = (
        model.generate(prompts, tokens=60, temperature=0, precision="fp32") for prompts in ([prompt], [prompt, "dog"])
    )
    assert alone[0].strip() == expected.strip()
    assert together[0][0] == alone[0]


def test_prepared_text_is_that_of_the_start_token(native: dict[str, Path], tmp_path: Path) -> None:
    """Directories that differ in nothing but the start token that config.json names do not share it."""
    place = Path(shutil.copytree(native["qwen3"], tmp_path / "other"))
    before = load_tokenizer(native["qwen3"])
    for name in ("config.json", "generation_config.json"):
        content = json.loads((place / name).read_text())
        (place / name).write_text(json.dumps(content | {"bos_token_id": 1}))
    after = load_tokenizer(place)
    assert (before.start, after.start) == (0, 1)
    assert before.fingerprint != after.fingerprint


def test_a_text_ends_at_every_token_that_the_directory_names(native: dict[str, Path]) -> None:
    assert LanguageModel.load(native["llama3"]).ends == {1, 2}
    assert LanguageModel.load(native["qwen3"]).ends == {0, 2}
    assert LanguageModel.load(native["gpt2"]).ends == {0}


@pytest.fixture(scope="module")
def continued(
    directories: dict[str, Path], native: dict[str, Path], train: Train, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, Path]]:
    """`continued(style, network)`: a directory, and what one step that changes nothing leaves of it."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}
    still = {"optim.lr": 1e-12, "optim.adamw_lr": 1e-12, "optim.weight_decay": 0.0, "steps": 1}

    def make(style: str, network: str) -> tuple[Path, Path]:
        directory = (directories if network == "own" else native)[style]
        chosen: dict[str, Any] = {"model": f"hf:{directory}"}
        if network == "native":
            chosen = {"init": str(directory), "model": {}}
        if (style, network) not in made:
            out = tmp_path_factory.mktemp("continued") / "run"
            run = train(out, tokenizer=str(directory), **chosen, **still)
            made[style, network] = directory, run.model_directory
        return made[style, network]

    return make


NETWORKS = [(style, "native") for style in STYLES] + [(style, "own") for style in ("llama3", "gpt2")]


@pytest.mark.parametrize(("style", "network"), NETWORKS)
def test_a_trained_directory_is_measured_as_it_was(
    style: str, network: str, continued: Callable[[str, str], tuple[Path, Path]], documents_file: Path
) -> None:
    before, after = continued(style, network)
    score = selfsup.evaluate(after, data=documents_file, precision="fp32", protocol="perplexity")
    assert score.value == pytest.approx(perplexity(before, style), rel=1e-4)
    assert perplexity(after, style) == pytest.approx(perplexity(before, style), rel=1e-4)
    texts = [*DOCUMENTS, ""]
    stock, given = (transformers.AutoTokenizer.from_pretrained(place) for place in (after, before))
    for text in texts:
        assert stock(text, split_special_tokens=True).input_ids == given(text, split_special_tokens=True).input_ids
        assert style == "qwen3" or stock(text).input_ids == given(text, split_special_tokens=True).input_ids


@pytest.mark.parametrize(("style", "network"), NETWORKS)
def test_what_need_not_change_stays_byte_for_byte(
    style: str, network: str, continued: Callable[[str, str], tuple[Path, Path]]
) -> None:
    before, after = continued(style, network)
    same = ["tokenizer.json", *(["generation_config.json"] if network == "native" else [])]
    if style == "qwen3":
        same += ["tokenizer_config.json", "chat_template.jinja"]
    for name in same:
        assert (after / name).read_bytes() == (before / name).read_bytes(), name
    found, given = (json.loads((place / "tokenizer_config.json").read_text()) for place in (after, before))
    assert found == given | ({} if style == "qwen3" else {"split_special_tokens": True})
    configs = [transformers.AutoConfig.from_pretrained(place) for place in (before, after)]
    for role in ("bos_token_id", "eos_token_id"):
        assert getattr(configs[0], role) == getattr(configs[1], role)


def test_a_chat_goes_on_as_before(continued: Callable[[str, str], tuple[Path, Path]]) -> None:
    before, after = (transformers.AutoTokenizer.from_pretrained(place) for place in continued("qwen3", "native"))
    chat = [{"role": "user", "content": "the cat"}]
    ids = [t.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for t in (before, after)]
    assert ids[0] == ids[1]
    assert ids[0][0] == before.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize("style", STYLES)
def test_a_new_model_with_a_tokenizer_from_elsewhere(
    style: str, directories: dict[str, Path], documents_file: Path, train: Train, tmp_path: Path
) -> None:
    """It has never seen a text without its start token, so that is put before every text."""
    run = train(tmp_path / "run", tokenizer=str(directories[style]), steps=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model_directory)
    start, end = OPENING[style], CLOSING[style]
    assert (tokenizer.bos_token, tokenizer.eos_token) == (start, end)
    assert tokenizer.pad_token is not None
    plain = load_tokenizer(directories[style])
    for text in DOCUMENTS:
        assert tokenizer(text).input_ids == [plain.start, *plain.encode(text)]
    batch = tokenizer(DOCUMENTS, padding=True, padding_side="left", return_tensors="pt")
    assert batch["attention_mask"][1].sum() < batch["attention_mask"].shape[1]
    config = json.loads((run.model_directory / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (plain.start, plain.end)
    score = selfsup.evaluate(run, data=documents_file, precision="fp32", protocol="perplexity")
    assert score.value > 1
    assert isinstance(run.model.generate("the cat", tokens=5), str)


@pytest.mark.parametrize("style", STYLES)
def test_inspection_shows_its_tokens(style: str, directories: dict[str, Path], native: dict[str, Path]) -> None:
    seen = selfsup.inspect("causal-lm", data=DOCUMENTS, tokenizer=str(directories[style]), **{"data.validation": 0})
    (window,), (sight,) = seen.blocks(Window), seen.blocks(Sight)
    tokenizer = open_tokenizer(str(directories[style]))
    assert tokenizer is not None
    assert window.inputs.count("<start>") == len(DOCUMENTS)
    assert "<start>" not in window.targets
    assert window.targets.count("<end>") == len(DOCUMENTS)
    assert len(sight.mask) == len(window.inputs) == len(window.targets) == len(window.documents)
    (window,) = selfsup.inspect("causal-lm", run=str(native[style]), text="the cat sat").blocks(Window)
    model = LanguageModel.load(native[style])
    ids = [model.tokenizer.start, *model.tokenizer.encode("the cat sat").tolist()]
    np.testing.assert_allclose(window.losses, model.token_losses(ids), atol=1e-4)
