"""Texts that join and leave a running batch against each of them alone, and the thread that writes them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.errors import UserError
from selfsup.inference import rows
from selfsup.inference.generate import LanguageModel
from selfsup.inference.sampling import Sampling
from selfsup.models.decoder import Decoder, DecoderConfig
from selfsup.serving.api.batching import Ask, Batch, Busy, Job, Jobs, Piece, Stopped, Worker, Writing

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen."
TOKENIZER = train_tokenizer("characters", [TEXT])
GREEDY = Sampling(temperature=0)
PLENTY = 1 << 30
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped queries": {"kv_heads": 1},
    "sliding layers": {"sliding": 3, "local": (0,), "local_theta": 100.0},
    "bounded scores": {"score_cap": 5.0, "logit_cap": 9.0, "post_norms": True, "embedding_scale": 2.0},
    "still layers": {"still": (1,), "qkv_bias": True, "qk_norm": False},
}


def model(window: int = 16, **shape: Any) -> LanguageModel:
    """Random and in fp64, so that rounding does not decide between tokens."""
    sizes = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 24, "tied": False}
    config = DecoderConfig(TOKENIZER.vocabulary, window=window, **(sizes | shape))
    draws = torch.Generator().manual_seed(3)
    decoder = Decoder(config).initialise(draws).double().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64), alpha=0.4)
    return LanguageModel(decoder, TOKENIZER)


MODELS = {name: model(**shape) for name, shape in SHAPES.items()}


class Waiting:
    """Somebody who waits for a text, and keeps what they are told."""

    def __init__(self, ask: Ask, of: LanguageModel) -> None:
        self.pieces: list[Piece] = []
        self.error: BaseException | None = None
        self.done = threading.Event()
        self.writing = Writing(ask, of, self.hear)

    def hear(self, piece: Piece | BaseException) -> None:
        if isinstance(piece, BaseException):
            self.error = piece
        else:
            assert self.ending is None, "something was said behind the end"
            self.pieces.append(piece)
        if self.error or self.ending:
            self.done.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def ending(self) -> str | None:
        return self.pieces[-1].ending if self.pieces else None


def ask(of: LanguageModel, prompt: str, tokens: int, how: Sampling = GREEDY, **more: Any) -> Ask:
    return Ask(of.tokenizer.opened(of.tokenizer.encode(prompt)), tokens, how, **more)


def alone(of: LanguageModel, prompt: str, asked: Ask) -> str:
    how = asked.how
    return str(
        of.generate(
            prompt, asked.tokens, how.temperature, how.top_k, how.top_p, how.min_p, how.repetition_penalty, asked.seed,
            asked.stops, precision="fp32",
        )
    )  # fmt: skip


def run(batch: Batch, arrivals: Sequence[tuple[int, Waiting]], leaving: dict[int, int] | None = None) -> int:
    """Turns until all is written; texts arrive before the turn of their number, and `leaving` says of some of them
    before which turn they are left."""
    turn, coming = 0, sorted(arrivals, key=lambda arrival: arrival[0])
    while coming or batch.busy:
        while coming and coming[0][0] <= turn:
            batch.waiting.append(coming.pop(0)[1].writing)
        for number, when in (leaving or {}).items():
            arrivals[number][1].writing.left |= when <= turn
        batch.turn()
        turn += 1
    return turn


SOMEONE = st.tuples(
    st.text("It wasbrigh", max_size=24),  # beyond the window too
    st.integers(1, 24),
    st.sampled_from([GREEDY, Sampling(0.8), Sampling(1.5, top_k=5), Sampling(1.0, top_p=0.9, repetition_penalty=1.3)]),
    st.integers(0, 3),  # the seed
    st.sampled_from([(), ("s",), ("th", "a "), ("wa", "was", "g")]),
    st.booleans(),
    st.integers(0, 12),  # when they come
    st.none() | st.integers(0, 20),  # when they leave
)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25)
@given(people=st.lists(SOMEONE, min_size=1, max_size=7), most=st.integers(1, 5))
def test_a_text_is_what_it_is_alone(name: str, people: list[Any], most: int) -> None:
    """Whoever joins and leaves the batch at whatever step, in any order; greedy and drawn, with stops and without."""
    own = MODELS[name]
    waiting, leaving = [], {}
    for number, (prompt, tokens, how, seed, stops, piecewise, when, left) in enumerate(people):
        asked = ask(own, prompt, tokens, how, seed=seed, stops=stops, piecewise=piecewise)
        waiting.append((when, Waiting(asked, own)))
        if left is not None:
            leaving[number] = left
    batch = Batch(own, "fp32", PLENTY, most)
    run(batch, waiting, leaving)
    assert batch.texts == []
    for number, ((prompt, *_), (_, one)) in enumerate(zip(people, waiting, strict=True)):
        expected = alone(own, prompt, one.writing.ask)
        if one.ending is None:
            assert number in leaving
            assert expected.startswith(one.text)
        else:
            assert one.text == expected


def test_a_text_that_is_left_frees_its_place_at_the_next_step() -> None:
    own = MODELS["plain"]
    own = LanguageModel(own.decoder, own.tokenizer)
    own.ends = set()
    batch = Batch(own, "fp32", PLENTY, most=2)
    people = [Waiting(ask(own, prompt, 40), own) for prompt in ("It", "was", "bright")]
    batch.waiting.extend(one.writing for one in people)
    batch.turn()
    assert [text.ask.prompt for text in batch.texts] == [one.writing.ask.prompt for one in people[:2]]
    people[0].writing.left = True
    batch.turn()
    assert {id(text) for text in batch.texts} == {id(one.writing) for one in people[1:]}
    run(batch, [])
    assert people[0].pieces == []
    assert [len(one.writing.drawn) for one in people[1:]] == [40, 40]


def test_texts_wait_for_memory_and_none_starves() -> None:
    own = LanguageModel(MODELS["plain"].decoder, TOKENIZER)
    own.ends = set()
    one_row = rows.Packed(own._packed(own.decoder, "fp32"), 0).rings.memory(1, 30)  # type: ignore[arg-type]
    batch = Batch(own, "fp32", 2 * one_row)
    people = [Waiting(ask(own, "It", 28), own) for _ in range(5)]
    batch.waiting.extend(one.writing for one in people)
    most = 0
    while batch.busy:
        batch.turn()
        most = max(most, len(batch.texts))
    assert most == 2
    assert {one.text for one in people} == {alone(own, "It", people[0].writing.ask)}
    none = Batch(own, "fp32", one_row - 1)
    with pytest.raises(UserError, match="more memory"):
        none.refuse(people[0].writing)


@pytest.mark.parametrize("piecewise", [False, True])
def test_log_probabilities_are_those_of_the_network(piecewise: bool) -> None:
    """Of what is written and of the prompt, against one pass over all of it."""
    own = MODELS["plain"]
    prompt = "It was"
    asked = ask(own, prompt, 6, likely=3, echo=prompt, prefix=1, piecewise=piecewise)
    one = Waiting(asked, own)
    run(Batch(own, "fp32", PLENTY), [(0, Waiting(ask(own, "bright", 9), own)), (0, one)])
    ids = [*asked.prompt, *one.writing.drawn]
    with torch.no_grad():
        expected = own.decoder.logits(torch.tensor([ids[:-1]]))[0].log_softmax(-1)  # type: ignore[operator]
    told = [entry for piece in one.pieces for entry in piece.told]
    assert [entry.token for entry in told] == list(one.text)
    assert [entry.place for entry in told] == list(range(len(told)))
    for entry, id_, row in zip(told, ids[1:], expected, strict=True):
        assert entry.logprob == pytest.approx(row[id_].item(), abs=1e-5)
        assert len(entry.others) == 3
        assert max(entry.others.values()) == pytest.approx(row.max().item(), abs=1e-5)


def test_half_characters_are_told_when_they_are_whole() -> None:
    tokenizer = train_tokenizer("bpe", ["日本語 déjà vu 😀 " * 3], size=270)
    config = DecoderConfig(tokenizer.vocabulary, 1, 16, 1, 1, 16, 24, 32, False)
    decoder = Decoder(config).initialise(torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        decoder.lm_head.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(2))
    own = LanguageModel(decoder, tokenizer)
    for seed in range(6):
        people = [Waiting(ask(own, "日", 30, Sampling(), seed=seed, piecewise=p), own) for p in (True, False)]
        run(Batch(own, "fp32", PLENTY), [(0, one) for one in people])
        assert people[0].text == people[1].text == own.generate("日", 30, seed=seed, precision="fp32")


def test_tokens_behind_a_stop_are_not_told() -> None:
    own = MODELS["plain"]
    whole = alone(own, "It", ask(own, "It", 20))
    stop = whole[5:7]
    one = Waiting(ask(own, "It", 20, stops=(stop,), likely=0, piecewise=True), own)
    run(Batch(own, "fp32", PLENTY), [(0, one)])
    assert one.text == whole[: whole.index(stop)]
    assert "".join(entry.token for piece in one.pieces for entry in piece.told) == one.text
    assert one.ending == "stop"


def test_networks_of_others_are_written_with_side_by_side(tmp_path: Path) -> None:
    theirs = LanguageModel.load(foreign.gpt2(tmp_path / "gpt2"))
    prompts = ["the cat", "", "the dog sat by the hill on", "a", "the sea " * 40]
    people = [Waiting(ask(theirs, prompt, 12), theirs) for prompt in prompts]
    batch = Batch(theirs, "fp32", PLENTY, most=3)
    run(batch, [(number % 3, one) for number, one in enumerate(people)])
    for prompt, one in zip(prompts, people, strict=True):
        assert one.text == alone(theirs, prompt, one.writing.ask)


# -- the thread ----------------------------------------------------------------------------------------------


def test_a_worker_writes_for_many_and_ends_in_order() -> None:
    own = MODELS["plain"]
    worker = Worker(Batch(own, "fp32", PLENTY))
    people = [Waiting(ask(own, prompt, 10), own) for prompt in ("It", "was", "bright") * 4]
    for one in people:
        worker.put([one.writing])
    for one in people:
        assert one.done.wait(60)
    assert [one.text for one in people[:3]] == [alone(own, p, people[0].writing.ask) for p in ("It", "was", "bright")]
    worker.close()
    with pytest.raises(Stopped):
        worker.put([people[0].writing])


class Held(Jobs):
    """Jobs that begin when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def turn(self) -> None:
        self.gate.wait(60)
        super().turn()


def test_too_much_is_refused_whole() -> None:
    held = Held()
    worker = Worker(held, most=3)
    first = Job("a", [0], list)
    worker.put([first])
    with pytest.raises(Busy):
        worker.put([Job("a", [n], list) for n in range(4)])
    held.gate.set()
    assert first.done.result(60) == [0]
    worker.close()


def test_what_is_left_when_the_server_ends_is_told_so() -> None:
    held = Held()
    worker = Worker(held)
    jobs = [Job(object(), [n], list) for n in range(3)]
    worker.put(jobs)
    threading.Timer(0.05, held.gate.set).start()
    worker.close()
    assert any(isinstance(job.done.exception(60), Stopped) for job in jobs)


def test_jobs_of_a_kind_are_done_together_and_each_hears_of_its_own_error() -> None:
    seen: list[list[int]] = []

    def halve(items: list[int]) -> list[int]:
        seen.append(items)
        if any(item % 2 for item in items):
            raise UserError("an odd one")
        return [item // 2 for item in items]

    jobs, work = [Job("half", items, halve) for items in ([2, 4], [6], [3], [8])], Jobs()
    other, gone = Job("none", [1], list), Job("half", [10], halve)
    assert gone.done.cancel()
    work.waiting.extend([jobs[0], gone, *jobs[1:3], other, jobs[3]])
    while work.busy:
        work.turn()
    assert seen == [[2, 4, 6, 3], [2, 4], [6], [3], [8]]
    assert [jobs[n].done.result() for n in (0, 1, 3)] == [[1, 2], [3], [4]]
    assert isinstance(jobs[2].done.exception(), UserError)
    assert other.done.result() == [1]
    assert isinstance(gone.done, Future)


def test_a_model_that_fails_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    own = MODELS["plain"]
    batch = Batch(own, "fp32", PLENTY)
    worker = Worker(batch)
    broken = Waiting(ask(own, "It", 10), own)
    step, fails = rows.Packed.step, [True]

    def stumble(packed: rows.Packed, tokens: Sequence[int]) -> torch.Tensor:
        if fails:
            fails.pop()
            raise RuntimeError("out of memory")
        return step(packed, tokens)

    monkeypatch.setattr(rows.Packed, "step", stumble)
    worker.put([broken.writing])
    assert broken.done.wait(60)
    assert isinstance(broken.error, RuntimeError)
    well = Waiting(ask(own, "It", 10), own)
    worker.put([well.writing])
    assert well.done.wait(60)
    assert well.text == alone(own, "It", well.writing.ask)
    worker.close()


def test_weights_that_are_no_numbers_are_told() -> None:
    own = model()
    with torch.no_grad():
        own.decoder.output_weight.fill_(torch.nan)
    batch = Batch(own, "fp32", PLENTY)
    one = Waiting(ask(own, "It", 3), own)
    batch.waiting.append(one.writing)
    with pytest.raises(UserError, match="no number"):
        batch.turn()
    batch.fail(UserError("damaged"))
    assert isinstance(one.error, UserError)
    assert not batch.busy
