"""The text encoder against transformers' ModernBERT and a plain implementation; what each position may see."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfsup.models.counting import parameter_count, sketched
from selfsup.models.encoder import GLOBAL, LOCAL, EncoderConfig, MaskedLanguageModel, TextEncoder

SMALL = EncoderConfig(vocabulary=50, layers=4, width=32, heads=4, mlp=48, window=160, tied=False, local_window=8)
TIED = dataclasses.replace(SMALL, tied=True, bias=True, heads=2, global_every=2, rope_theta=500.0)
BIASED = dataclasses.replace(SMALL, bias=True, local_rope_theta=50.0, norm_eps=1e-3, layers=5)
WIDE_SIGHT = dataclasses.replace(SMALL, local_window=128, tied=True)  # as ModernBERT itself
NARROW_SIGHT = dataclasses.replace(SMALL, layers=3, heads=1, local_window=2, global_every=4)
CONFIGS = {"untied": SMALL, "tied": TIED, "biased": BIASED, "wide sight": WIDE_SIGHT, "narrow sight": NARROW_SIGHT}
EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
TOKENS = st.integers(0, 49)


def lively(config: EncoderConfig, seed: int = 0) -> MaskedLanguageModel:
    """A model whose every parameter matters: a fresh one has matrices of zeros."""
    generator = torch.Generator().manual_seed(seed)
    model = MaskedLanguageModel(config).initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def logits(model: MaskedLanguageModel, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
    """Of every position."""
    everywhere = torch.arange(tokens.shape[1]).expand_as(tokens)
    return model(tokens, everywhere, documents) @ model.output_weight.T


def some_tokens(*shape: int) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(sum(shape)))


# -- transformers --------------------------------------------------------------------------------------------


def theirs(model: MaskedLanguageModel, kind: str = "eager") -> transformers.ModernBertForMaskedLM:
    """The same model in transformers, by its own configuration and the names of its own weights."""
    config = model.config
    shape = transformers.ModernBertConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.window,
        norm_eps=config.norm_eps,
        local_attention=config.local_window,
        global_attn_every_n_layers=config.global_every,
        global_rope_theta=config.rope_theta,
        local_rope_theta=config.local_rope_theta,
        decoder_bias=config.bias,
        tie_word_embeddings=config.tied,
        pad_token_id=0,
        attn_implementation=kind,
    )
    other = transformers.ModernBertForMaskedLM(shape).eval()
    named = {("decoder.bias" if name == "bias" else name): w for name, w in model.state_dict().items()}
    missing, unexpected = other.load_state_dict(named, strict=False)
    assert missing == (["decoder.weight"] if config.tied else [])
    assert not unexpected
    other.tie_weights()
    return other


@EACH_CONFIG
@pytest.mark.parametrize("length", [1, 4, 5, 6, 63, 64, 65, 66, 150])
def test_numbers_are_those_of_transformers(config: EncoderConfig, length: int) -> None:
    """Windows below, at and above what local layers see: local_window / 2 to each side."""
    model, tokens = lively(config), some_tokens(2, length)
    with torch.no_grad():
        expected = theirs(model)(tokens, output_hidden_states=True)
        torch.testing.assert_close(model.model(tokens), expected.hidden_states[-1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(logits(model, tokens), expected.logits, atol=1e-4, rtol=1e-4)


@EACH_CONFIG
@pytest.mark.parametrize("length", [4, 70])
def test_gradients_are_those_of_transformers(config: EncoderConfig, length: int) -> None:
    model, tokens = (
        lively(config),
        some_tokens(2, length).clamp(min=1),
    )  # theirs learns nothing of token 0, its padding
    other, targets = theirs(model), tokens.flip(1)
    F.cross_entropy(logits(model, tokens).flatten(0, 1), targets.flatten()).backward()
    other(tokens, labels=targets).loss.backward()
    expected = {name.replace("decoder.bias", "bias"): p.grad for name, p in other.named_parameters()}
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], atol=1e-4 * scale, rtol=1e-3, msg=name)


@EACH_CONFIG
def test_padding_is_that_of_transformers(config: EncoderConfig) -> None:
    """Their attention mask is our document −1."""
    model, tokens, lengths = lively(config), some_tokens(3, 90), torch.tensor([90, 41, 3])
    real = torch.arange(90) < lengths[:, None]
    with torch.no_grad():
        expected = theirs(model)(tokens, attention_mask=real.long()).logits
        found = logits(model, tokens, torch.where(real, 0, -1))
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


# -- a plain implementation ----------------------------------------------------------------------------------


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def plain_turn(x: Tensor, theta: float) -> Tensor:
    """RoFormer, equation 34, position by position and pair by pair: dimension i goes with i + dim/2."""
    half = x.shape[-1] // 2
    turned = torch.empty_like(x)
    for position in range(x.shape[0]):
        for pair in range(half):
            angle = position * theta ** (-pair / half)
            a, b = x[position, pair], x[position, pair + half]
            turned[position, pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[position, pair + half] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def plain_logits(weights: dict[str, Tensor], config: EncoderConfig, tokens: list[int]) -> Tensor:
    """One document alone, one head and one position after the other: (T, vocabulary)."""
    x = weights["model.embeddings.tok_embeddings.weight"][tokens]
    x = plain_norm(x, weights["model.embeddings.norm.weight"], config.norm_eps)
    for layer in range(config.layers):
        w = {n: p for n, p in weights.items() if n.startswith(f"model.layers.{layer}.")}
        w = {n.removeprefix(f"model.layers.{layer}."): p for n, p in w.items()}
        local = layer % config.global_every != 0
        theta = config.local_rope_theta if local else config.rope_theta
        seen = plain_norm(x, w["attn_norm.weight"], config.norm_eps) if layer else x
        q, k, v = ((seen @ part.T).unflatten(1, (config.heads, -1)) for part in w["attn.Wqkv.weight"].chunk(3))
        found = torch.zeros_like(q)
        for head in range(config.heads):
            queries, keys = plain_turn(q[:, head], theta), plain_turn(k[:, head], theta)
            for t in range(len(tokens)):
                near = [s for s in range(len(tokens)) if not local or abs(s - t) <= config.local_window // 2]
                share = (keys[near] @ queries[t] / math.sqrt(config.head_dim)).softmax(0)
                found[t, head] = share @ v[near, head]
        x = x + found.flatten(1) @ w["attn.Wo.weight"].T
        a, b = (plain_norm(x, w["mlp_norm.weight"], config.norm_eps) @ w["mlp.Wi.weight"].T).chunk(2, -1)
        gelu = a * (1 + torch.erf(a / math.sqrt(2))) / 2
        x = x + (gelu * b) @ w["mlp.Wo.weight"].T
    x = plain_norm(x, weights["model.final_norm.weight"], config.norm_eps) @ weights["head.dense.weight"].T
    x = plain_norm(x * (1 + torch.erf(x / math.sqrt(2))) / 2, weights["head.norm.weight"], config.norm_eps)
    table = "model.embeddings.tok_embeddings.weight" if config.tied else "decoder.weight"
    return x @ weights[table].T + (weights["bias"] if config.bias else 0.0)


TINY = EncoderConfig(
    vocabulary=50, layers=3, width=8, heads=2, mlp=12, window=32, tied=False, local_window=4, global_every=2
)


@pytest.mark.parametrize(
    "config", [TINY, dataclasses.replace(TINY, tied=True, bias=True)], ids=["untied", "tied with bias"]
)
def test_logits_and_gradients_equal_the_plain_ones_in_fp64(config: EncoderConfig) -> None:
    """Three documents in two rows, with padding between and behind them; only some positions are asked for."""
    model, other = lively(config).double(), lively(config).double()
    texts = [[5, 1, 2, 7, 7, 3, 9], [4, 11], [8, 8, 30, 2, 41, 6]]
    tokens = torch.tensor([[*texts[0], 17, *texts[1]], [*texts[2], 3, 3, 3, 3]])
    documents = torch.tensor([[0] * 7 + [-1] + [1] * 2, [2] * 6 + [-1] * 4])
    places = [(0, 0), (0, 3), (1, 1), (2, 0), (2, 5), (2, 4)]  # text, position in it
    asked = torch.tensor([[0, 3, 9], [0, 5, 4]])
    targets = torch.tensor([1, 20, 3, 4, 5, 6])

    found = (model(tokens, asked, documents) @ model.output_weight.T).flatten(0, 1)
    F.cross_entropy(found, targets).backward()
    weights = dict(other.named_parameters())
    alone = [plain_logits(weights, config, text) for text in texts]
    expected = torch.stack([alone[text][position] for text, position in places])
    F.cross_entropy(expected, targets).backward()

    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-9, rtol=1e-7, msg=name)


def test_gradcheck_of_the_whole_model() -> None:
    """Finite differences know nothing of how a gradient is written."""
    config = dataclasses.replace(TINY, layers=2, width=4, heads=1, mlp=6, vocabulary=6, bias=True)
    model = lively(config).double()
    tokens, documents = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[0, 0, 0, 1, 1]])
    names = [name for name, _ in model.named_parameters()]

    def output(*weights: Tensor) -> Tensor:
        called = torch.func.functional_call(
            model, dict(zip(names, weights, strict=True)), (tokens, torch.tensor([[1, 4]]), documents)
        )
        return called.sin()

    assert torch.autograd.gradcheck(output, tuple(model.parameters()))


# -- who sees whom -------------------------------------------------------------------------------------------

MODELS = [lively(SMALL).model, lively(TIED).model, lively(NARROW_SIGHT).model]


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=2, max_size=4),
    padding=st.integers(0, 4),
    data=st.data(),
    encoder=st.sampled_from(MODELS),
)
def test_documents_do_not_see_each_other_nor_padding(
    texts: list[list[int]], padding: int, data: st.DataObject, encoder: TextEncoder
) -> None:
    tokens = torch.tensor([[token for text in texts for token in text] + [0] * padding])
    numbers = torch.tensor([[n for n, text in enumerate(texts) for _ in text] + [-1] * padding])
    chosen = data.draw(st.integers(0, len(texts) - 1))
    inside = numbers == chosen
    place = data.draw(st.sampled_from((~inside[0]).nonzero().flatten().tolist()))
    one_changed = tokens.clone()
    one_changed[0, place] = (one_changed[0, place] + data.draw(st.integers(1, 49))) % 50
    with torch.no_grad():
        hidden = encoder(tokens, numbers)
        assert hidden[inside].equal(encoder(one_changed, numbers)[inside])
        assert hidden[inside].equal(encoder(torch.where(inside, tokens, (tokens + 1) % 50), numbers)[inside])
        torch.testing.assert_close(hidden[inside], encoder(torch.tensor([texts[chosen]]))[0], atol=2e-5, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(tokens=st.lists(TOKENS, min_size=2, max_size=20), data=st.data(), encoder=st.sampled_from(MODELS))
def test_in_a_document_every_token_moves_every_position(
    tokens: list[int], data: st.DataObject, encoder: TextEncoder
) -> None:
    """In both directions; the first layer, and so every position, sees all."""
    place = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens[:place], (tokens[place] + 1) % 50, *tokens[place + 1 :]]
    with torch.no_grad():
        moved = encoder(torch.tensor([tokens])) != encoder(torch.tensor([changed]))
    assert moved.any(-1).all()


def test_one_document_needs_no_mask() -> None:
    tokens = some_tokens(2, 70)
    for encoder in MODELS:
        with torch.no_grad():
            torch.testing.assert_close(encoder(tokens), encoder(tokens, torch.ones_like(tokens)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("local_window", [2, 8, 128])
@pytest.mark.parametrize("documents", [False, True])
def test_local_layers_see_half_a_local_window_to_each_side(local_window: int, documents: bool) -> None:
    """128 is 64 tokens to either side, and the token itself."""
    config = dataclasses.replace(SMALL, layers=2, local_window=local_window)
    encoder, tokens = lively(config).model.double(), some_tokens(1, 150)
    numbers = torch.zeros_like(tokens) if documents else None
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 150, 32, generator=random, dtype=torch.double)
    for block, kind in zip(encoder.layers, (GLOBAL, LOCAL), strict=True):
        sight = encoder._placement(kind, tokens, numbers, False, torch.double)
        with torch.no_grad():
            before = block(x, sight)
        for place in (0, 75, 149):
            changed = x.clone()
            changed[0, place] = torch.randn(32, generator=random, dtype=torch.double)
            with torch.no_grad():
                moved = (block(changed, sight) != before).any(-1)[0]
            reach = local_window // 2 if kind == LOCAL else 150
            assert moved.equal((torch.arange(150) - place).abs() <= reach)


def test_which_layers_see_everything() -> None:
    assert [SMALL.kind(layer) for layer in range(7)] == [GLOBAL, LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL]
    assert [TIED.kind(layer) for layer in range(4)] == [GLOBAL, LOCAL, GLOBAL, LOCAL]
    modernbert = transformers.ModernBertConfig()
    ours = EncoderConfig(vocabulary=9, layers=22, width=768, heads=12, mlp=1152, window=8192, tied=True)
    assert [ours.kind(layer) for layer in range(22)] == modernbert.layer_types
    assert ours.local_window == modernbert.local_attention
    assert ours.norm_eps == modernbert.norm_eps
    assert ours.rope_theta == modernbert.rope_parameters["full_attention"]["rope_theta"]
    assert ours.local_rope_theta == modernbert.rope_parameters["sliding_attention"]["rope_theta"]


# -- dropout -------------------------------------------------------------------------------------------------


def dropping(rate: float) -> TextEncoder:
    encoder = TextEncoder(dataclasses.replace(SMALL, dropout=rate))
    encoder.load_state_dict(MODELS[0].state_dict())
    return encoder


def test_dropout_runs_in_training_and_not_in_evaluation() -> None:
    encoder, tokens = dropping(0.1), some_tokens(2, 20)
    with torch.no_grad():
        assert encoder.eval()(tokens).equal(MODELS[0](tokens))
        encoder.train()
        torch.manual_seed(1)
        first, second = encoder(tokens), encoder(tokens)
        torch.manual_seed(1)
        again = encoder(tokens)
        assert not first.equal(second)
        assert first.equal(again)
        assert dropping(0.0).train()(tokens).equal(MODELS[0](tokens))


def test_dropout_drops_its_share_in_each_of_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the embeddings, and in each layer behind the attention and within the feed-forward."""
    encoder, tokens = dropping(0.25).train(), some_tokens(4, 100)
    drop, seen = F.dropout, []

    def counted(x: Tensor, p: float, training: bool) -> Tensor:
        dropped = drop(x, p, training)
        seen.append((x.shape[-1], float((dropped[x != 0] == 0).double().mean())))
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], x[kept] / 0.75)
        return dropped

    monkeypatch.setattr(F, "dropout", counted)
    with torch.no_grad():
        encoder(tokens)
    assert [width for width, _ in seen] == [32, *[32, 48] * 4]
    deviations = 5 * math.sqrt(0.25 * 0.75 / (4 * 100 * 32))
    assert all(abs(share - 0.25) < deviations for _, share in seen)


# -- weights, sizes, precision -------------------------------------------------------------------------------


@EACH_CONFIG
def test_parameters_are_nan_until_initialised(config: EncoderConfig) -> None:
    model = MaskedLanguageModel(config)
    assert all(parameter.isnan().all() for parameter in model.parameters())
    model.initialise(torch.Generator().manual_seed(0))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not list(model.buffers())


def test_initialisation_is_a_function_of_the_seed() -> None:
    first, same, other = (
        torch.cat([p.flatten() for p in TextEncoder(SMALL).initialise(torch.Generator().manual_seed(s)).parameters()])
        for s in (1, 1, 2)
    )
    assert first.equal(same)
    assert not first.equal(other)


def test_a_fresh_model_guesses_and_its_blocks_add_nothing() -> None:
    model = MaskedLanguageModel(SMALL).initialise(torch.Generator().manual_seed(0))
    tokens = some_tokens(2, 9)
    assert logits(model, tokens).abs().max() == 0
    table = model.model.embeddings.tok_embeddings.weight
    plain = F.layer_norm(F.layer_norm(table[tokens], (32,)), (32,))
    torch.testing.assert_close(model.model(tokens), plain, atol=1e-3, rtol=1e-3)  # eps beside a deviation of .02


@EACH_CONFIG
def test_gradients_reach_every_parameter(config: EncoderConfig) -> None:
    model, tokens = lively(config), some_tokens(3, 16)
    F.cross_entropy(logits(model, tokens).flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@EACH_CONFIG
def test_parameters_are_counted(config: EncoderConfig) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in TextEncoder(config).parameters()) == parameter_count(TextEncoder, config)


def test_operations_are_counted() -> None:
    """Six per entry of a matrix and token, and attention's products of queries, keys and values."""
    config, window = SMALL, 100
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    blocks = sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.ndim == 2)
    head = model.head.dense.weight.numel() + model.decoder.weight.numel()
    attention = 4 * window * config.width * config.layers  # q·k and share·v, a product and a sum each
    expected = 6 * (blocks + 0.3 * head) + 3 * attention
    assert sketched(MaskedLanguageModel, config).flops(window, 0.3) == pytest.approx(expected)
    assert sketched(TextEncoder, config).flops(window) == pytest.approx(6 * blocks + 3 * attention)
    tied = dataclasses.replace(config, tied=True)
    assert sketched(MaskedLanguageModel, tied).flops(window, 0.3) == pytest.approx(expected)


@pytest.mark.parametrize("length", [20, 90])
def test_autocast_stays_near_fp32(length: int) -> None:
    tokens = some_tokens(2, length)
    documents = torch.arange(length).floor_divide(7).expand(2, -1)
    exact = MODELS[0](tokens, documents)
    with torch.autocast("cpu", torch.bfloat16):
        rough = MODELS[0](tokens, documents)
    assert rough.dtype == torch.bfloat16
    assert not rough.equal(exact)
    assert F.cosine_similarity(exact.flatten(), rough.float().flatten(), 0) > 0.999


@pytest.mark.parametrize(("width", "heads"), [(32, 5), (6, 2), (30, 4)])
def test_a_config_that_cannot_be_built_is_refused(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match="rotary positions turn pairs"):
        dataclasses.replace(SMALL, width=width, heads=heads)
