"""Texts that go on from prompts, as they are asked for over HTTP: from a request to texts of a batch, and back."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from selfsup.errors import UserError
from selfsup.inference.generate import LanguageModel
from selfsup.inference.sampling import Sampling
from selfsup.serving.api.batching import Ask, Piece, Stopped, Told, Writing
from selfsup.serving.api.leaving import unless_left
from selfsup.serving.api.models import Models, Served
from selfsup.serving.api.schemas import MOST_PROMPT, Choice, Completion, CompletionAsked, Logprobs, Usage
from selfsup.serving.guard import failure

Arrival = tuple[int, Piece | BaseException]  # of the text of a number


def router(models: Models) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=Completion)
    async def completions(asked: CompletionAsked, request: Request) -> Response:
        """Texts that go on from prompts."""
        served = models.writing(asked.model)
        texts = Texts.begun(served, await asyncio.to_thread(asks_of, served.model, asked))
        if asked.stream:
            return Events(texts, asked)
        answer = await unless_left(request, texts.whole(asked), texts.leave)
        return JSONResponse(answer.model_dump(exclude_none=False))

    return routes


@dataclass
class Texts:
    """The texts of one request, in the making."""

    served: Served[LanguageModel]
    writings: list[Writing]
    arrivals: asyncio.Queue[Arrival]
    tokens: list[int]  # that were written of each
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def begun(cls, served: Served[LanguageModel], asks: Sequence[Ask]) -> Texts:
        """Put all of them behind what waits. Raises UserError for what cannot be written, and Busy where too much
        waits."""
        loop, arrivals = asyncio.get_running_loop(), asyncio.Queue[Arrival]()

        def tell(number: int, piece: Piece | BaseException) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(arrivals.put_nowait, (number, piece))

        writings = [Writing(ask, served.model, partial(tell, ask.number)) for ask in asks]
        served.worker.put(writings)
        return cls(served, writings, arrivals, [0] * len(writings))

    def leave(self) -> None:
        """Nobody waits for them any more."""
        for writing in self.writings:
            writing.left = True

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Each with the number of its text, until all have ended; what failed is raised."""
        running = len(self.writings)
        while running:
            number, piece = await self.arrivals.get()
            if isinstance(piece, BaseException):
                raise piece
            self.tokens[number] = piece.tokens
            running -= piece.ending is not None
            yield number, piece

    async def whole(self, asked: CompletionAsked) -> Completion:
        pieces: list[list[Piece]] = [[] for _ in self.writings]
        async for number, piece in self.pieces():
            pieces[number].append(piece)
        choices = [_choice(number, some, asked) for number, some in enumerate(pieces)]
        return self._answer(choices, self._usage())

    async def events(self, asked: CompletionAsked) -> AsyncIterator[str]:
        """Server-sent events, as OpenAI's: a piece each, and how many tokens there were where that is asked for."""
        try:
            async for number, piece in self.pieces():
                yield _event(self._answer([_choice(number, [piece], asked)]).model_dump_json())
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield _event(self._answer([], self._usage()).model_dump_json())
        except (UserError, Stopped) as error:  # the answer has begun with 200
            yield _event(json.dumps(failure(str(error) or "The server ends.")))
        yield _event("[DONE]")

    def _answer(self, choices: list[Choice], usage: Usage | None = None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.served.name, choices=choices, usage=usage)

    def _usage(self) -> Usage:
        """A prompt counts once, whatever is written behind it."""
        read = sum(len(ids) for ids in {tuple(w.ask.prompt) for w in self.writings})
        written = sum(self.tokens)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


class Events(StreamingResponse):
    """Texts as they are written, which are left with their client, or when one of them fails."""

    def __init__(self, texts: Texts, asked: CompletionAsked) -> None:
        super().__init__(texts.events(asked), media_type="text/event-stream")
        self.texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.texts.leave()


def asks_of(model: LanguageModel, asked: CompletionAsked) -> list[Ask]:
    """Each text of a request, those of a prompt side by side. Raises UserError for a prompt that is too long or has ids
    that the model lacks, and for settings out of range."""
    how = Sampling(
        asked.temperature, asked.top_k, None if asked.top_p == 1 else asked.top_p, asked.min_p, asked.repetition_penalty
    )
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    asks: list[Ask] = []
    for prompt in asked.prompts:
        ids, prefix = _ids(model, prompt)
        text = prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
        asks += [
            Ask(
                prompt=ids,
                tokens=asked.max_tokens,
                how=how,
                seed=seed,
                number=len(asks) + number,
                stops=asked.stops,
                likely=asked.logprobs,
                piecewise=asked.stream,
                echo=text if asked.echo else None,
                prefix=prefix,
            )
            for number in range(asked.n)
        ]
    return asks


def _ids(model: LanguageModel, prompt: str | list[int]) -> tuple[list[int], int]:
    """A prompt as the model reads it, and how many ids before it are none of its text."""
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        own = tokenizer.encode(prompt)
        ids, prefix = tokenizer.opened(own), len(tokenizer.opened(own)) - len(own)
    else:
        ids, prefix = prompt, 0
        if max(ids) >= tokenizer.vocabulary:
            raise UserError(
                f"The prompt holds the id {max(ids)}, and the model has ids up to {tokenizer.vocabulary - 1}."
            )
    if len(ids) > MOST_PROMPT:
        raise UserError(f"The prompt has {len(ids):,} tokens; give one of at most {MOST_PROMPT:,}.")
    return ids, prefix


def _choice(number: int, pieces: Sequence[Piece], asked: CompletionAsked) -> Choice:
    told = None if asked.logprobs is None else _logprobs([one for piece in pieces for one in piece.told])
    text = "".join(piece.text for piece in pieces)
    return Choice(index=number, text=text, logprobs=told, finish_reason=pieces[-1].ending)


def _logprobs(told: Sequence[Told]) -> Logprobs:
    """A token is among the likeliest ones as its own log probability says."""
    return Logprobs(
        tokens=[one.token for one in told],
        token_logprobs=[one.logprob for one in told],
        top_logprobs=[None if one.logprob is None else one.others | {one.token: one.logprob} for one in told],
        text_offset=[one.place for one in told],
    )


def _event(data: str) -> str:
    return f"data: {data}\n\n"
