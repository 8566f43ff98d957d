"""TSDAE: its decoder against plain cross-attention and against sentence-transformers', its loss against a plain loop,
its records, and what a run leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
import torch.nn.functional as F
from conftest import Train
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.data.sentences import Sentences
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.distributed import Processes
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel
from selfsup.models.encoder_layouts import POST_NORM, read_encoder
from selfsup.models.packing import POOLINGS, Pooling
from selfsup.models.sentence_decoder import SentenceDecoder
from selfsup.objectives.base import Task
from selfsup.objectives.tsdae import TSDAE, Swapped, rebuilt_text
from selfsup.seeding import generator
from selfsup.step import evaluate

ALONE = Processes.alone()
WINDOW, WIDTH = 24, 16
TOKENIZER = train_tokenizer("characters", ["abcdefghijklmnopqrstuvwxyz"], family="encoder")
KINDS = {"modernbert": {}, "bert": {**POST_NORM, "window": WINDOW, "positions": WINDOW + 2, "first_position": 2}}


def sentences(count: int = 40) -> Sentences:
    """Of 0 to 22 tokens, between start and end."""
    random = np.random.default_rng(0)
    texts = [random.integers(5, TOKENIZER.vocabulary, random.integers(0, 23)) for _ in range(count)]
    return Sentences(np.concatenate([TOKENIZER.frame(text) for text in texts]), WINDOW, TOKENIZER)


RECORDS = Swapped(sentences())


def objective(kind: str = "modernbert", pooling: Pooling = "cls", deletion: float = 0.4, layers: int = 3) -> TSDAE:
    """In fp64, with weights that all matter."""
    shape = {"window": WINDOW, "tied": True, "local_window": 8, **KINDS[kind]}
    config = EncoderConfig(TOKENIZER.vocabulary, layers, WIDTH, 2, 24, **shape)
    made = TSDAE(MaskedLanguageModel(config), SentenceDecoder(config), pooling, deletion).double()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(0, "noise", number), dtype=torch.double)
            parameter.copy_(0.3 * noise + (parameter.ndim == 1))
    return made.eval()


def batch_of(indices: Sequence[int]) -> Batch:
    places = np.asarray(indices)
    return Batch(RECORDS.read(places), 3, np.zeros_like(places), places)


# -- the decoder ---------------------------------------------------------------------------------------------


class CrossAttention(nn.Module):
    """Attention of every position to a memory (n, keys, width), head by head, as decoders have it."""

    def __init__(self, heads: int, biases: bool, seed: int) -> None:
        super().__init__()
        self.heads = heads
        for name in ("query", "key", "value", "out"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, biases, dtype=torch.double))
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.normal_(0, 0.4, generator=generator(seed, "cross", number))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(memory), self.value(memory)
        seen = []
        for head in torch.arange(WIDTH).chunk(self.heads):
            scores = q[..., head] @ k[..., head].mT / len(head) ** 0.5
            seen.append(scores.softmax(-1) @ v[..., head])
        return self.out(torch.cat(seen, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_map_of_the_vector_is_cross_attention_to_it(kind: str) -> None:
    """With the product of value and output matrix for the map, every layer says the same as plain cross-attention to a
    memory of one vector, whatever its queries and keys."""
    made = objective(kind)
    encoder, decoder = made.model.model, made.decoder
    post, biases = encoder.config.post_norm, encoder.config.biases
    crossed = [CrossAttention(2, biases, seed) for seed in range(3)]
    with torch.no_grad():
        for layer, plain in zip(decoder.layers, crossed, strict=True):
            layer.told.weight.copy_(plain.out.weight @ plain.value.weight)
            if biases:
                layer.told.bias.copy_(plain.out.weight @ plain.value.bias + plain.out.bias)
    tokens = torch.randint(5, TOKENIZER.vocabulary, (1, 11), generator=generator(0, "tokens"))
    vector = torch.randn(1, WIDTH, generator=generator(0, "vector"), dtype=torch.double)

    def told(layer: Any, plain: CrossAttention) -> Any:
        def tell(x: Tensor) -> Tensor:
            x = x + plain(x, vector[:, None])
            return F.layer_norm(x, (WIDTH,), layer.norm.weight, layer.norm.bias, layer.norm.eps) if post else x

        return tell

    pairs = zip(decoder.layers, crossed, strict=True)
    expected = encoder.decode(tokens, None, [told(*pair) for pair in pairs])[0]
    found = decoder(encoder, vector, tokens[0], torch.tensor([11]))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, decoder(encoder, -vector, tokens[0], torch.tensor([11])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_sees_its_vector_and_what_comes_before_it(kind: str) -> None:
    """Several sentences in a row say what each says alone; nothing that comes later matters, all before does."""
    made = objective(kind)
    lengths = torch.tensor([9, 4, 12, 1, 7])
    tokens = torch.randint(5, TOKENIZER.vocabulary, (int(lengths.sum()),), generator=generator(1, "tokens"))
    vectors = torch.randn(5, WIDTH, generator=generator(1, "vectors"), dtype=torch.double)
    together = made.decoder(made.model.model, vectors, tokens, lengths).split(lengths.tolist())
    for sentence, (found, text) in enumerate(zip(together, tokens.split(lengths.tolist()), strict=True)):
        alone = made.decoder(made.model.model, vectors[sentence : sentence + 1], text, lengths[sentence : sentence + 1])
        torch.testing.assert_close(found, alone)
        for changed in range(len(text)):
            other = text.clone()
            other[changed] = 5 + (other[changed] - 4) % 20
            moved = made.decoder(
                made.model.model, vectors[sentence : sentence + 1], other, lengths[sentence : sentence + 1]
            )
            differs = (moved - alone).abs().amax(1) > 1e-9
            assert not differs[:changed].any()
            assert differs[changed]


def test_one_layer_that_is_made_causal_says_of_each_token_what_the_encoder_says_of_the_last() -> None:
    made = objective(layers=1)
    tokens = torch.randint(5, TOKENIZER.vocabulary, (1, 14), generator=generator(2, "tokens"))
    states = made.model.model.decode(tokens, None, [lambda x: x])[0]
    for end in range(1, 15):
        torch.testing.assert_close(states[end - 1], made.model.model(tokens[:, :end])[0, -1])


# -- beside sentence-transformers ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cross"), [("bert", "bert.encoder.layer"), ("roberta", "roberta.encoder.layer")])
def test_loss_and_gradients_are_those_of_sentence_transformers(name: str, cross: str, tmp_path: Path) -> None:
    """`DenoisingAutoEncoderLoss` with the decoder tied to the encoder, whose cross-attention has queries and keys."""
    directory = tiny_encoders.save(name, tmp_path / name)
    theirs = DenoisingAutoEncoderLoss(
        SentenceTransformer(modules=[Transformer(str(directory)), TheirPooling(32, "cls")]), str(directory)
    ).eval()
    saved = read_encoder(directory)
    ours = TSDAE(saved.masked(), SentenceDecoder(saved.config), "cls", 0.0).eval()
    with torch.no_grad():
        for name_, parameter in theirs.decoder.named_parameters():
            if "crossattention" in name_:
                parameter.add_(torch.randn(parameter.shape, generator=generator(0, name_)), alpha=0.3)
        for number, layer in enumerate(ours.decoder.layers):
            plain = theirs.decoder.get_submodule(f"{cross}.{number}.crossattention")
            value, out = plain.self.value, plain.output.dense
            layer.told.weight.copy_(out.weight @ value.weight)
            layer.told.bias.copy_(out.weight @ value.bias + out.bias)
            layer.norm.load_state_dict(plain.output.LayerNorm.state_dict())
    pad = theirs.decoder.config.pad_token_id
    lengths, left = torch.tensor([9, 6, 12]), torch.tensor([5, 3, 7])
    tokens = torch.randint(5, 20, (3, 12), generator=generator(0, "tokens"))
    within, seen = torch.arange(12) < lengths[:, None], torch.arange(7) < left[:, None]
    whole, damaged = torch.where(within, tokens, pad), torch.where(seen, tokens[:, :7], pad)
    features = [{"input_ids": ids, "attention_mask": (ids != pad).long()} for ids in (damaged, whole)]
    expected = theirs(features, None)
    expected.backward()
    task = Task({"tokens": whole, "lengths": lengths, "damaged": damaged, "damaged_lengths": left}, {})
    found = ours.score(ours.predict(task), task, ALONE)["cross_entropy"] / (lengths - 1).sum()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    base = theirs.decoder.get_submodule(name)
    layer, plain = ours.model.model.layers[0], base.encoder.layer[0]
    pairs = [
        (ours.model.model.embeddings.tok_embeddings.weight.grad, base.embeddings.word_embeddings.weight.grad),
        (layer.mlp.Wi.weight.grad, plain.intermediate.dense.weight.grad),
        (layer.attn.Wqkv.weight.grad[64:], plain.attention.self.value.weight.grad),
    ]
    for one, other in pairs:
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


# -- the objective -------------------------------------------------------------------------------------------


def plain_losses(made: TSDAE, task: Task, which: str) -> Tensor:
    """The sum over the sentences, each by itself: its vector, then token by token what comes next."""
    total = torch.zeros((), dtype=torch.double)
    weight = made.model.output_weight
    for row in range(len(task["tokens"])):
        text = task["tokens"][row, : int(task["lengths"][row])]
        left = task[which][row, : int(task[f"{which}_lengths"][row])]
        hidden = made.model.model(left[None])[0]
        vector = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[made.pooling]
        for place in range(1, len(text)):
            states = made.decoder(made.model.model, vector[None], text[:place], torch.tensor([place]))
            logits = weight @ made.model.head(states[-1])
            total = total + logits.logsumexp(0) - logits[text[place]]
    return total


@settings(max_examples=8)
@given(indices=st.lists(st.integers(0, 39), min_size=1, max_size=5), pooling=st.sampled_from(POOLINGS))
def test_score_is_the_plain_loss_of_sentences_alone(indices: list[int], pooling: Pooling) -> None:
    made = objective(pooling=pooling)
    task = made.hide(batch_of(indices))
    found = made.score(made.predict(task), task, ALONE)
    torch.testing.assert_close(found["cross_entropy"], plain_losses(made, task, "damaged"))
    torch.testing.assert_close(found["swapped"], plain_losses(made, task, "other"))
    assert not found["swapped"].requires_grad
    assert set(task.counts.values()) == {task.counts["swapped"]}
    assert int(task.counts["cross_entropy"]) == int((task["lengths"] - 1).sum())


def test_the_vector_knows_nothing_of_what_was_deleted() -> None:
    """Tokens that the damaged sentence is without change its vector in nothing; without deletion nothing is lost."""
    made, batch = objective(deletion=0.6), batch_of(range(40))
    task = made.hide(batch)
    share = float((task["damaged_lengths"] - 2).sum() / (task["lengths"] - 2).sum())
    assert share == pytest.approx(0.4, abs=0.1)
    for text, left, length in zip(task["tokens"], task["damaged"], task["damaged_lengths"].tolist(), strict=True):
        rest = iter(text.tolist())
        assert all(token in rest for token in left[:length].tolist())  # some of them, in their order
    whole = objective(deletion=0.0).hide(batch)
    assert whole["damaged"].equal(whole["tokens"])
    again = made.hide(Batch(batch.data, batch.seed, batch.epochs + 1, batch.records))
    assert not again["damaged_lengths"].equal(task["damaged_lengths"])


def test_another_sentence_is_one_that_stands_far_away() -> None:
    read = RECORDS.read(np.array([3, 30]))
    others = sentences().read(np.array([23, 10]))
    assert read["other"].equal(others["tokens"])
    assert read["other_lengths"].equal(others["lengths"])


def test_what_is_scored_in_training_has_no_other_sentence() -> None:
    made = objective()
    batch = Batch(sentences().read(np.arange(4)), 3, np.zeros(4, int), np.arange(4))
    task = made.hide(batch)
    assert made.score(made.predict(task), task, ALONE).keys() == task.counts.keys() == {"cross_entropy"}


def test_the_loss_is_that_of_the_own_vector_alone() -> None:
    figures = evaluate(objective(), [batch_of(range(8))], ALONE)
    assert figures["loss"] == figures["cross_entropy"] != figures["swapped"]


def test_what_is_written_is_likeliest_at_every_step() -> None:
    made = objective()
    task = made.hide(batch_of([7]))
    told = rebuilt_text(made, task, int(TOKENIZER.start), int(TOKENIZER.end))
    assert told["sentence"] == task["tokens"][0, : int(task["lengths"])].tolist()
    assert told["left"] == task["damaged"][0, : int(task["damaged_lengths"])].tolist()
    written = told["written"]
    assert written[0] == TOKENIZER.start
    assert len(written) == WINDOW or written[-1] == TOKENIZER.end
    tokens = torch.tensor(written + [0] * (WINDOW - len(written)))[None]
    hidden = made.rebuilt(made.encode(task, "damaged"), tokens, torch.tensor([len(written)]))[0]
    likeliest = (hidden @ made.model.output_weight.T).argmax(-1)
    assert likeliest[: len(written) - 1].tolist() == written[1:]


# -- the recipe ----------------------------------------------------------------------------------------------

TSDAE_RUN: dict[str, Any] = {"objective": "tsdae", "data.window": 40, "train.batch": 16}


def test_a_run_leaves_an_encoder_and_no_decoder(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", **TSDAE_RUN, **{"train.micro_batch": 4})
    made = load(tmp_path / "run")
    assert isinstance(made, EncoderModel)
    assert made.masked is None
    assert made.features.pooling == "cls"
    assert made.embed(["The cat ran.", "The dog sat by the sea."]).shape == (2, 32)
    settings_, summary = run.settings(), run.summary
    assert (settings_["tsdae.deletion"], settings_["model.dropout"]) == (0.6, 0.1)
    assert summary["max_difference"] < 1e-5
    assert summary["loss"] == summary["cross_entropy"]
    assert summary["chance"] == pytest.approx(np.log(len(made.tokenizer.marks.listed()) + 25), abs=0.3)
    looks = [line for line in run.metrics() if line["split"] == "validation"]
    assert all(line["swapped"] > 0 for line in looks)
    lines = sorted(run.samples.glob("*.txt"))[-1].read_text(encoding="utf-8").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["sentence", "left", "written"]
    assert "by TSDAE with selfsup" in (run.model_directory / "README.md").read_text()


def test_an_encoder_of_sentences_goes_on_with_its_vectors(train: Train, tmp_path: Path) -> None:
    """Another one gets the paper's."""
    for name, pooling in (("sentences", "cls"), ("bert", "cls")):
        place = tiny_encoders.save(name, tmp_path / name)
        run = train(tmp_path / f"run-{name}", "tsdae", init=str(place), tokenizer=str(place), model="auto", steps=1)
        origin = "init" if name == "sentences" else "default"
        assert (run.settings()["tsdae.pooling"], run.settings().origin("tsdae.pooling")) == (pooling, origin)


def test_networks_without_layers_of_their_own_here_are_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give --init some/bert, or train simcse on it\."):
        train(tmp_path / "run", "tsdae", model="hf:some/bert")
    assert not (tmp_path / "run").exists()
