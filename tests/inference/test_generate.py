from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import generation

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inference import generate, sampling
from selfsup.inference.generate import Ending, LanguageModel
from selfsup.inference.sampling import Place, Sampling, distribution, penalise_repetition, sample
from selfsup.models.adapters import AdaptedDecoder
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.models.decoder_layouts import save_model

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. Déjà vu — 日本語 😀"
PROMPTS = ["It was", "", "a", "the clocks were striking"]


def model(tokenizer: TextTokenizer, window: int = 32, kv_heads: int = 2) -> LanguageModel:
    """Random, but peaked enough that rounding does not decide between tokens."""
    config = DecoderConfig(
        vocabulary=tokenizer.vocabulary,
        layers=2,
        width=32,
        heads=4,
        kv_heads=kv_heads,
        head_dim=8,
        mlp=48,
        window=window,
        tied=False,
    )
    generator = torch.Generator().manual_seed(3)
    decoder = Decoder(config).initialise(generator)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return LanguageModel(decoder, tokenizer)


BPE = train_tokenizer("bpe", [TEXT * 3], size=300)
CHARACTERS = train_tokenizer("characters", [TEXT])
WORDS = train_tokenizer("words", [TEXT])
MODEL = model(CHARACTERS)


# -- sampling: the distributions of transformers --

LOGITS = st.lists(
    st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6, unique=True), min_size=1, max_size=3
).map(torch.tensor)


def theirs(logits: Tensor, how: Sampling, met: Tensor | None = None) -> Tensor:
    """The distribution that generate() draws from, by transformers' own processors in its own order."""
    chain = generation.LogitsProcessorList()
    if met is not None:
        chain.append(generation.RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    chain.append(generation.TemperatureLogitsWarper(how.temperature))
    if how.top_k is not None:
        chain.append(generation.TopKLogitsWarper(how.top_k))
    if how.top_p is not None:
        chain.append(generation.TopPLogitsWarper(how.top_p))
    if how.min_p is not None:
        chain.append(generation.MinPLogitsWarper(how.min_p))
    return chain(met, logits.clone()).softmax(-1)


@settings(deadline=None, max_examples=200)
@given(
    logits=LOGITS,
    temperature=st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
    penalty=st.floats(0.2, 5),
    met=st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_distributions_equal_those_of_transformers(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float,
    met: list[int],
) -> None:
    how = Sampling(temperature, top_k, top_p, min_p, penalty)
    history = torch.tensor([met] * len(logits))
    seen = torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, history, True)
    ours = distribution(penalise_repetition(logits, seen, penalty), how)
    torch.testing.assert_close(ours, theirs(logits, how, history))


def test_transformers_applies_the_filters_in_our_order() -> None:
    config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=3, top_p=0.8, min_p=0.1, repetition_penalty=1.2
    )
    stock = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=9,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    chain = stock._get_logits_processor(config, input_ids_seq_length=1)
    assert [type(step).__name__.split("Logits")[0] for step in chain] == [
        "RepetitionPenalty",
        "Temperature",
        "TopK",
        "TopP",
        "MinP",
    ]


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.0, 0.2, 0.3, 0.0]])
    draws = Counter(int(sample(probabilities, [Place(0, 0, position)])) for position in range(4000))
    assert set(draws) == {0, 2, 3}
    for token, share in ((0, 0.5), (2, 0.2), (3, 0.3)):
        assert draws[token] / 4000 == pytest.approx(share, abs=0.03)


@given(seed=st.integers(0, 2**40), position=st.integers(0, 10**6), weights=st.lists(st.floats(0, 1), min_size=2))
def test_a_draw_depends_on_its_place_only(seed: int, position: int, weights: list[float]) -> None:
    row = torch.tensor(weights) + 1e-3
    rows = torch.stack([torch.ones(len(weights)), row, row]).div(len(weights))
    places = [Place(seed, number, position) for number in (4, 5, 6)]
    assert sample(rows, places)[1:2].equal(sample(rows[1:2], places[1:2]))


def test_a_draw_never_leaves_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities = torch.tensor([[0.0, 0.1, 0.7, 0.2, 0.0, 0.0]])
    for bits, token in ((2**63 - 1, 3), (0, 1)):
        monkeypatch.setattr(sampling, "derive", lambda *place, bits=bits: bits)
        assert sample(probabilities, [Place(0, 0, 0)]).tolist() == [token]


# -- generation --


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_greedy_equals_transformers(kv_heads: int, tmp_path: Path) -> None:
    ours = model(BPE, window=64, kv_heads=kv_heads)
    save_model(tmp_path / "model", ours.decoder, BPE, "")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = stock.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs.input_ids.shape[1] :]
        rows = [BPE.opened(BPE.encode(prompt))]
        drawn = [token for step in ours._draw(rows, 40, Sampling(temperature=0), 0) for _, token in step]
        assert drawn == [token for token in output.tolist() if token != BPE.end]
        assert LanguageModel.load(tmp_path / "model").generate(prompt, tokens=40, temperature=0, precision="fp32") == (
            tokenizer.decode(output, skip_special_tokens=True)
        )


def test_greedy_with_a_repetition_penalty_equals_transformers(tmp_path: Path) -> None:
    ours = model(CHARACTERS)
    save_model(tmp_path / "model", ours.decoder, CHARACTERS, "")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    row = CHARACTERS.opened(CHARACTERS.encode("It was"))
    inputs = torch.tensor([row])
    output = stock.generate(inputs, max_new_tokens=20, do_sample=False, repetition_penalty=1.3)[0, 7:]
    how = Sampling(temperature=0, repetition_penalty=1.3)
    drawn = [token for step in ours._draw([row], 20, how, 0) for _, token in step]
    assert drawn == [token for token in output.tolist() if token != CHARACTERS.end]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_prompts_together_equal_prompts_alone(temperature: float) -> None:
    how: dict[str, Any] = {"tokens": 50, "temperature": temperature, "seed": 5, "precision": "fp32"}
    together = MODEL.generate(PROMPTS, **how)
    assert together[0] == MODEL.generate(PROMPTS[0], **how)
    blanks = [""] * len(PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        alone = [*blanks[:number], prompt, *blanks[number + 1 :]]
        assert MODEL.generate(alone, **how)[number] == together[number]


def test_the_seed_decides() -> None:
    first, same, other = (MODEL.generate("It was", tokens=30, seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    one, two = MODEL.generate(["It was", "It was"], tokens=30)
    assert one != two


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS, WORDS], ids=["bpe", "characters", "words"])
def test_streamed_pieces_join_to_the_text(tokenizer: TextTokenizer) -> None:
    pieces: dict[int, list[str]] = {number: [] for number in range(len(PROMPTS))}
    language_model = model(tokenizer)
    texts = language_model.generate(
        PROMPTS, tokens=40, seed=2, stream=lambda number, piece: pieces[number].append(piece)
    )
    assert ["".join(parts) for parts in pieces.values()] == texts
    assert texts == language_model.generate(PROMPTS, tokens=40, seed=2)
    assert all(piece for parts in pieces.values() for piece in parts)


def scripted(script: list[int]) -> LanguageModel:
    """A model that, greedy, writes the script after the end token: each token names its follower."""
    language_model = model(CHARACTERS)
    decoder = language_model.decoder
    vocabulary = CHARACTERS.vocabulary
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        vectors = F.normalize(torch.randn(vocabulary, 32, generator=torch.Generator().manual_seed(0)))
        decoder.model.norm.weight.fill_(1)
        decoder.model.embed_tokens.weight.copy_(vectors)
        decoder.lm_head.weight.zero_()
        for token, follower in zip([CHARACTERS.end, *script], script, strict=False):
            decoder.lm_head.weight[follower] += vectors[token]
    return language_model


def test_a_text_stops_at_its_end() -> None:
    script = [*CHARACTERS.encode("It").tolist(), CHARACTERS.end]
    assert scripted(script).generate("", tokens=10, temperature=0) == "It"
    assert scripted(script).generate(["", "I"], tokens=10, temperature=0) == ["It", "t"]


def written(language_model: LanguageModel, stops: list[str], **how: Any) -> tuple[list[str], list[str]]:
    """The texts that follow the prompts without and with stops, and the second as it was streamed."""
    pieces: dict[int, list[str]] = {number: [] for number in range(len(PROMPTS))}
    whole = language_model.generate(PROMPTS, **how)
    cut = language_model.generate(PROMPTS, stop=stops, stream=lambda number, piece: pieces[number].append(piece), **how)
    assert ["".join(parts) for parts in pieces.values()] == cut
    return list(whole), list(cut)


def before_a_stop(text: str, stops: list[str]) -> str:
    """Letter by letter, until a stop stands at the end."""
    for end in range(1, len(text) + 1):
        if met := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, met))]
    return text


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS, WORDS], ids=["bpe", "characters", "words"])
@pytest.mark.parametrize("stops", [["e"], ["th", "a"], [" ", "\n"], ["xyz"], ["aa", "aab", "b"], []])
def test_a_text_ends_before_the_first_stop(tokenizer: TextTokenizer, stops: list[str]) -> None:
    whole, cut = written(model(tokenizer), stops, tokens=60, seed=3)
    for text, short in zip(whole, cut, strict=True):
        assert short == text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)]


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_pieces_before_a_stop(pieces: list[str], stops: list[str]) -> None:
    """However a text is cut into pieces, what is said is what stands before the first stop."""
    ending, text = Ending(tuple(stops)), "".join(pieces)
    said = "".join([ending.push(piece) for piece in pieces] + [ending.flush()])
    assert said == before_a_stop(text, stops)
    assert ending.met == any(stop in text for stop in stops)


def test_a_stopped_text_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = MODEL.generate("It", tokens=40, seed=1)
    steps: list[int] = []
    draw = MODEL._draw

    def counted(*given: Any) -> Any:
        for drawn in draw(*given):
            steps.append(len(drawn))
            yield drawn

    monkeypatch.setattr(MODEL, "_draw", counted)
    assert len(whole) > 1
    assert MODEL.generate("It", tokens=40, seed=1, stop=whole[0]) == ""
    assert sum(steps) == 1


def test_many_prompts_are_gone_on_from_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    together = MODEL.generate(PROMPTS, tokens=20, seed=5, precision="fp32")
    monkeypatch.setattr(generate, "TOGETHER", 2)
    assert MODEL.generate(PROMPTS, tokens=20, seed=5, precision="fp32") == together


def test_prompts_that_are_no_text_are_refused() -> None:
    for prompt in ("a\ud800", "\udcff"):
        with pytest.raises(UserError, match="no UTF-8"):
            MODEL.generate(["fine", prompt])


def test_texts_go_on_beyond_the_window() -> None:
    endless = model(CHARACTERS)
    with torch.no_grad():
        endless.decoder.lm_head.weight[CHARACTERS.end] = 0  # a logit of 0, which is never the largest
    prompt = CHARACTERS.encode(TEXT[:70]).tolist()
    drawn = [token for step in endless._draw([prompt], 150, Sampling(temperature=0), 0) for _, token in step]
    assert len(drawn) == 150
    losses = endless.token_losses([CHARACTERS.end, *prompt, *drawn])
    # a greedy token is the likeliest, so its probability is at least 1 / vocabulary
    assert losses[len(prompt) :].max() <= math.log(CHARACTERS.vocabulary)


def test_token_losses_are_cross_entropy() -> None:
    tokens = [CHARACTERS.end, *CHARACTERS.encode(TEXT[:31]).tolist()]
    row = torch.tensor(tokens)
    with torch.no_grad():
        expected = F.cross_entropy(MODEL.decoder.logits(row[None, :-1])[0], row[1:], reduction="none")
    torch.testing.assert_close(MODEL.token_losses(tokens), expected)
    with pytest.raises(UserError, match="two tokens"):
        MODEL.token_losses([0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"tokens": 10**12},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"precision": "fp64"},
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        MODEL.generate("It", **wrong)  # type: ignore[arg-type]


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", MODEL.decoder, BPE, "")
    with pytest.raises(UserError, match="another model"):
        LanguageModel.load(tmp_path / "model")


def test_no_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="no prompt"):
        MODEL.generate([])


# -- precision, weights that change, networks of others --


def test_weights_are_prepared_once_and_anew_where_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []
    decoding = generate.Decoding

    def counted(decoder: Decoder, dtype: torch.dtype) -> Any:
        made.append(dtype)
        return decoding(decoder, dtype)

    monkeypatch.setattr(generate, "Decoding", counted)
    ours = model(CHARACTERS)
    first, again = (ours.generate("It", tokens=30, seed=1, precision="fp32") for _ in range(2))
    assert first == again
    assert made == [torch.float32]
    with torch.no_grad():
        ours.decoder.output_weight.mul_(-1.0)
    assert ours.generate("It", tokens=30, seed=1, precision="fp32") != first
    assert made == [torch.float32] * 2


def test_bf16_is_near_fp32_and_the_same_each_time() -> None:
    """And what is chosen by itself is one of the two."""
    row = torch.tensor([CHARACTERS.encode(TEXT[:30]).tolist()])
    exact, rough = (generate.Decoding(MODEL.decoder, dtype) for dtype in (torch.float32, torch.bfloat16))
    expected, found = (decode(row, decode.cache(1, row.shape[1])) for decode in (exact, rough))
    assert found.dtype == torch.float32
    assert not found.equal(expected)
    assert F.cosine_similarity(found, expected).item() > 0.999
    texts = {name: MODEL.generate("It", tokens=30, precision=name) for name in ("auto", "fp32", "bf16")}
    assert texts["auto"] in (texts["fp32"], texts["bf16"])
    assert texts["bf16"] == MODEL.generate("It", tokens=30, precision="bf16")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Decoders that are opened by transformers: with learnt positions, and with a bias for distances."""
    place = tmp_path_factory.mktemp("others")
    return {"gpt2": foreign.gpt2(place / "gpt2"), "bloom": foreign.bloom(place / "bloom")}


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_networks_of_others_write_too(
    name: str, remembers: bool, others: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their cache, which is what they have, and without."""
    theirs = LanguageModel.load(others[name])
    assert isinstance(theirs.decoder, AdaptedDecoder)
    assert theirs.decoder.remembers
    monkeypatch.setitem(theirs.decoder.__dict__, "remembers", remembers)
    network = transformers.AutoModelForCausalLM.from_pretrained(others[name])
    prompts = ["the cat", "", "the dog sat by the hill on"]
    for prompt, text in zip(prompts, theirs.generate(prompts, tokens=20, temperature=0), strict=True):
        ids = torch.tensor([theirs.tokenizer.opened(theirs.tokenizer.encode(prompt))])
        out = network.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
        assert text == theirs.tokenizer.decode([token for token in out if token not in theirs.ends])
    assert all(theirs.generate(prompts, tokens=5, precision="bf16"))
    together = theirs.generate(prompts, tokens=20, seed=3)
    assert together[1] == theirs.generate(["", "", "a"], tokens=20, seed=3)[1]


def test_a_network_of_others_goes_on_beyond_its_window(others: dict[str, Path]) -> None:
    theirs = LanguageModel.load(others["gpt2"])
    theirs.ends = set()
    pieces: list[str] = []
    prompt = "the cat sat by the sea " * 20
    assert len(theirs.tokenizer.encode(prompt)) > theirs.decoder.config.window
    text = theirs.generate(prompt, tokens=150, stream=lambda number, piece: pieces.append(piece))
    assert "".join(pieces) == text
    assert len(theirs.tokenizer.encode(str(text))) > 64
