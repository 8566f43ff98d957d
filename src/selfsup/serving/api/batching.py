"""One worker thread for each model, which owns it: what many ask for at once is computed together.

Of a decoder, texts join and leave the running batch between two steps (continuous batching; Yu et al. 2022, "Orca: A
Distributed Serving System for Transformer-Based Generative Models", section 3.2). Of other models, what is asked for in
the same way while they compute is done in one go when they are free again. Nothing here knows of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from selfsup.data.tokenizers import TextStream
from selfsup.errors import UserError
from selfsup.inference.generate import Ending, LanguageModel
from selfsup.inference.rows import Rows
from selfsup.inference.sampling import Place, Sampling, choose

TEXTS = 64  # that are written at once
WAITING = 256  # texts, or pieces of other work, that may wait for one model
ITEMS = 512  # of other work that are done in one go
PAUSE, GATHERING = 0.003, 0.05  # seconds: what comes to a model at rest with no such pause between, for so long at most

log = logging.getLogger(__name__)


class Busy(Exception):
    """More is waiting for a model than it takes."""


class Stopped(Exception):
    """The server ends."""


# -- what is written ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A text to write.

    Attributes:
        prompt: ids, at least one.
        tokens: that are written at most.
        number: of the text among those of a seed.
        stops: the text ends before the first of these.
        likely: how many of the likeliest tokens are told beside each; None for no probabilities.
        piecewise: whether it is told as it is written, or at its end.
        echo: the prompt as a text, where that is told first, with the probabilities of its tokens where these are asked
            for; the first `prefix` ids are no part of it.
    """

    prompt: Sequence[int]
    tokens: int
    how: Sampling = field(default_factory=Sampling)
    seed: int = 0
    number: int = 0
    stops: tuple[str, ...] = ()
    likely: int | None = None
    piecewise: bool = False
    echo: str | None = None
    prefix: int = 0

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + self.tokens


@dataclass(frozen=True)
class Told:
    """A token: what it adds to the text, where it begins there, and log probabilities, of others too; none where
    nothing stands before it."""

    token: str
    place: int
    logprob: float | None
    others: dict[str, float]


@dataclass(frozen=True)
class Piece:
    """What there is more of a text.

    Attributes:
        tokens: so many were written so far.
        ending: why the text ends with it: at a token that ends texts or a stop, or because it is long enough.
    """

    text: str
    told: list[Told]
    tokens: int
    ending: Literal["stop", "length"] | None = None


class Writing:
    """A text while it is written. `left` may be set at any time: nobody waits for it any more."""

    def __init__(self, ask: Ask, model: LanguageModel, tell: Callable[[Piece | BaseException], None]) -> None:
        self.ask, self.tell = ask, tell
        self.left = False
        self.drawn: list[int] = []
        self.seen: Tensor | None = None
        if ask.how.repetition_penalty != 1:
            self.seen = torch.zeros(model.decoder.config.vocabulary, dtype=torch.bool)
            self.seen[list(ask.prompt)] = True
        self._stream = TextStream(model.tokenizer, ask.prompt)
        self._ending = Ending(ask.stops)
        self._ends = model.ends
        self._written = 0  # characters that tokens came to, what waits for a stop included
        self._text = ""  # that is to be told
        self._said = 0  # characters that were told
        self._untold: list[Told] = []

    @property
    def place(self) -> Place:
        """Where the next token is drawn."""
        return Place(self.ask.seed, self.ask.number, len(self.drawn))

    def begin(self, model: LanguageModel) -> bool:
        """Tell the prompt, where that is asked for; whether that is all."""
        whole = self.ask.tokens == 0
        if self.ask.echo is not None:
            told = [] if self.ask.likely is None else self._scored(model, self.ask.likely)
            self._written = self._said = len(self.ask.echo)
            self.tell(Piece(self.ask.echo, told, 0, "length" if whole else None))
        return whole

    def _scored(self, model: LanguageModel, count: int) -> list[Told]:
        """The tokens of the prompt."""
        prompt, stream, told, place = self.ask.prompt, TextStream(model.tokenizer), [], 0
        logits = model.next_logits(prompt[:-1]) if len(prompt) > 1 else iter(())
        rows = chain([None], chain.from_iterable(part.log_softmax(-1) for part in logits))
        for number, (token, row) in enumerate(zip(prompt, rows, strict=True)):
            if number < self.ask.prefix:
                continue
            name = stream.would(token)
            likely = [] if row is None else likeliest(row, token, count)
            others = {stream.would(id_): value for id_, value in likely[1:]}
            told.append(Told(name, place, likely[0][1] if likely else None, others))
            place += len(stream.push([token]))
        return told

    def take(self, token: int, likely: Sequence[tuple[int, float]]) -> bool:
        """Go on by a token; whether the text has come to its end. `likely` are tokens with their log probabilities,
        this one first, where they are asked for."""
        if token in self._ends:
            return self._end("stop")
        if self.seen is not None:
            self.seen[token] = True
        if likely:
            self._untold.append(self._named(likely))
        self.drawn.append(token)
        if not self._at_once:
            self._push([token])
        if self._ending.met:
            return self._end("stop")
        if len(self.drawn) == self.ask.tokens:
            return self._end("length")
        if self.ask.piecewise:
            self._tell(None)
        return False

    @property
    def _at_once(self) -> bool:
        """Whether nobody needs the text before it is whole."""
        return not (self.ask.piecewise or self.ask.stops or self.ask.likely is not None)

    def _push(self, tokens: list[int]) -> None:
        more = self._stream.push(tokens)
        self._written += len(more)
        self._text += self._ending.push(more)

    def _named(self, likely: Sequence[tuple[int, float]]) -> Told:
        names = {id_: self._stream.would(id_) for id_, _ in likely}
        token, logprob = likely[0]
        others = {names[id_]: value for id_, value in likely[1:]}
        return Told(names[token], self._written, logprob, others)

    def _end(self, why: Literal["stop", "length"]) -> bool:
        if self._at_once:
            self._push(self.drawn)
        if not self._ending.met:
            self._text += self._ending.push(self._stream.flush()) + self._ending.flush()
            why = "stop" if self._ending.met else why
        self._tell(why)
        return True

    def _tell(self, why: Literal["stop", "length"] | None) -> None:
        """The text that was not told yet, with those tokens that begin in it or before; at a stop none of those behind
        it."""
        text, self._text = self._text, ""
        self._said += len(text)
        count = len(self._untold)
        if why is None or self._ending.met:
            count = sum(told.place < self._said for told in self._untold)
        told, self._untold = self._untold[:count], self._untold[count:]
        if text or told or why:
            self.tell(Piece(text, told, len(self.drawn), why))


class Batch:
    """The texts of a decoder that are written together, step by step.

    Args:
        memory: most bytes of keys and values.
    """

    def __init__(self, model: LanguageModel, precision: str, memory: int, most: int = TEXTS) -> None:
        self.model, self.most = model, most
        self._begin: Callable[[], Rows] = partial(model.rows, precision, memory)
        self.rows, self._alone = self._begin(), self._begin()
        self.texts: list[Writing] = []  # in the order of the rows
        self.waiting: deque[Writing] = deque()
        self._joining: list[Writing] = []

    @property
    def busy(self) -> bool:
        return bool(self.texts or self.waiting)

    def refuse(self, text: Writing) -> None:
        if not self._alone.holds([text.ask.length]):
            raise UserError(
                f"A text of {text.ask.length:,} tokens takes more memory than there is here; ask for fewer."
            )

    def turn(self) -> None:
        """Let go of what nobody waits for, let in what waits, and go on with every text by one token."""
        for row in reversed([row for row, text in enumerate(self.texts) if text.left]):
            self._leave(row)
        self._let_in()
        if self.texts:
            self._take(self.rows.step([text.drawn[-1] for text in self.texts]), self.texts)

    def fail(self, error: BaseException) -> None:
        """Tell it to all texts, and begin anew."""
        texts = dict.fromkeys([*self.texts, *self._joining])
        while self.waiting:
            texts[self.waiting.popleft()] = None
        self.texts, self._joining, self.rows = [], [], self._begin()
        for text in texts:
            text.tell(error)

    def _let_in(self) -> None:
        """What waits, the first first, as far as there is room."""
        while self.waiting and len(self.texts) + len(self._joining) < self.most:
            lengths = [text.ask.length for text in (*self._joining, self.waiting[0])]
            if not (self.waiting[0].left or self.rows.holds(lengths)):
                break
            text = self.waiting.popleft()
            self._joining += [] if text.left else [text]
        fresh = [text for text in self._joining if not text.begin(self.model)]
        for numbers in self.rows.groups([text.ask.prompt for text in fresh]):
            group = [fresh[number] for number in numbers]
            logits = self.rows.join([text.ask.prompt for text in group], [text.ask.length for text in group])
            self.texts += group
            self._take(logits, group)
        self._joining = []

    def _take(self, logits: Tensor, texts: Sequence[Writing]) -> None:
        """Go on with the last of the texts by what the logits (n, vocabulary) say of each."""
        texts, logits = list(texts), logits.float()
        first = len(self.texts) - len(texts)
        tokens = _chosen(logits, texts)
        ended = [
            row
            for row, (text, token, likely) in enumerate(zip(texts, tokens, _likely(logits, texts, tokens), strict=True))
            if text.take(token, likely)
        ]
        for row in reversed(ended):
            self._leave(first + row)

    def _leave(self, row: int) -> None:
        self.rows.leave(row)
        last = self.texts.pop()
        if row < len(self.texts):
            self.texts[row] = last


def _chosen(logits: Tensor, texts: Sequence[Writing]) -> list[int]:
    """The next token of each text; those that are drawn in the same way together."""
    tokens = [0] * len(texts)
    alike: dict[Sampling, list[int]] = {}
    for number, text in enumerate(texts):
        alike.setdefault(text.ask.how, []).append(number)
    for how, numbers in alike.items():
        part = logits if len(numbers) == len(texts) else logits[numbers]
        met = [seen for number in numbers if (seen := texts[number].seen) is not None]
        seen = torch.stack(met).to(logits.device) if met else None
        drawn = choose(part, how, [texts[number].place for number in numbers], seen)
        for number, token in zip(numbers, drawn.tolist(), strict=True):
            tokens[number] = token
    return tokens


def _likely(logits: Tensor, texts: Sequence[Writing], tokens: Sequence[int]) -> list[list[tuple[int, float]]]:
    """Of each text for which that is asked, its next token and the likeliest ones, with their log probabilities."""
    found: list[list[tuple[int, float]]] = [[] for _ in texts]
    for number, text in enumerate(texts):
        if text.ask.likely is not None:
            found[number] = likeliest(logits[number].log_softmax(-1), tokens[number], text.ask.likely)
    return found


def likeliest(logprobs: Tensor, token: int, count: int) -> list[tuple[int, float]]:
    """A token and, behind it, the likeliest ones, by log probabilities (vocabulary,)."""
    best = logprobs.topk(min(count, len(logprobs)))
    return [(token, logprobs[token].item()), *zip(best.indices.tolist(), best.values.tolist(), strict=True)]


# -- other work ----------------------------------------------------------------------------------------------


@dataclass
class Job:
    """Some items of which something is made; jobs of the same `kind` may be done in one go.

    Attributes:
        do: makes one result of each item of a list.
    """

    kind: Hashable
    items: Sequence[Any]
    do: Callable[[list[Any]], Sequence[Any]]
    done: Future[list[Any]] = field(default_factory=Future)


class Jobs:
    """What is asked of a model that does not write: one job after the other, and those of a kind together."""

    def __init__(self) -> None:
        self.waiting: deque[Job] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def refuse(self, job: Job) -> None:
        """There is room for any."""

    def turn(self) -> None:
        """Do the first job, with those behind it that are like it."""
        jobs: list[Job] = []
        count = 0
        while self.waiting and not (jobs and self._parts(jobs[0], count)):
            job = self.waiting.popleft()
            if job.done.set_running_or_notify_cancel():
                jobs.append(job)
                count += len(job.items)
        if jobs:
            _do(jobs)

    def _parts(self, first: Job, count: int) -> bool:
        """Whether the next job is not done together with a first one, and with what came behind that."""
        following = self.waiting[0]
        return following.kind != first.kind or count + len(following.items) > ITEMS

    def fail(self, error: BaseException) -> None:
        while self.waiting:
            job = self.waiting.popleft()
            if job.done.set_running_or_notify_cancel():
                job.done.set_exception(error)


def _do(jobs: Sequence[Job]) -> None:
    """What is wrong with one of several jobs is told to that one."""
    try:
        results = jobs[0].do([item for job in jobs for item in job.items])
    except BaseException as error:
        if len(jobs) == 1:
            jobs[0].done.set_exception(error)
            return
        for job in jobs:
            _do([job])
        return
    start = 0
    for job in jobs:
        job.done.set_result(list(results[start : start + len(job.items)]))
        start += len(job.items)


# -- the thread ----------------------------------------------------------------------------------------------


W = TypeVar("W")


class Work(Protocol[W]):
    """What a worker does, a turn at a time. Others may put something behind what waits."""

    waiting: deque[W]

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""

    def refuse(self, job: W) -> None:
        """Raise a UserError for what could never be done."""

    def turn(self) -> None:
        """Do some of it."""

    def fail(self, error: BaseException) -> None:
        """Give up all of it, and say so to whoever waits for it."""


class Worker(Generic[W]):
    """The thread of one model, which alone touches it.

    Args:
        most: what may wait.
    """

    def __init__(self, work: Work[W], most: int = WAITING) -> None:
        self.work, self.most = work, most
        self._awake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, jobs: Sequence[W]) -> None:
        """All of them, or none. Raises Busy where too much waits, Stopped where the server ends, and UserError for what
        could never be done."""
        for job in jobs:
            self.work.refuse(job)
        with self._awake:
            if self._closed:
                raise Stopped
            if len(self.work.waiting) + len(jobs) > self.most:
                raise Busy
            self.work.waiting.extend(jobs)
            self._awake.notify()

    def close(self) -> None:
        """End the thread behind the turn that it is in; what is not done by then is told so."""
        with self._awake:
            self._closed = True
            self._awake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._awake:
                if not (self._closed or self.work.busy):
                    self._awake.wait_for(lambda: self._closed or self.work.busy)
                    self._gather()
                if self._closed:
                    break
            try:
                self.work.turn()
            except BaseException as error:  # the server goes on
                if not isinstance(error, UserError):
                    log.exception("A model failed.")
                self.work.fail(error)
        self.work.fail(Stopped())

    def _gather(self) -> None:
        """Wait for what comes right behind the first one: to read prompts together costs little more than to read one,
        and what comes during a step is together anyway."""
        count, end = 0, time.monotonic() + GATHERING
        while count != (count := len(self.work.waiting)) and time.monotonic() < end:
            self._awake.wait(PAUSE)
