"""Trying a model: what can be asked of it depends on what it is."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import StreamingResponse

from selfsup.errors import UserError
from selfsup.inference.base import EmbeddingModel, Model
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.geometry import normalised
from selfsup.inference.opening import load_as
from selfsup.inference.pictures import open_picture
from selfsup.inference.sampling import Sampling
from selfsup.inference.vision import ImageModel
from selfsup.inference.zero_shot import TEMPLATES, describe
from selfsup.inspection.alike import roles
from selfsup.inspection.blocks import Matrix, as_json
from selfsup.inspection.show import show
from selfsup.models.directories import find_model
from selfsup.models.vision import VisionTransformer
from selfsup.serving.api.batching import Ask, Batch, Piece, Told, Writing
from selfsup.serving.models import Kept, open_model
from selfsup.serving.studio.inspecting import image_of
from selfsup.serving.studio.shared import Studio, events

MOST_PROMPT, MOST_TEXT = 4000, 20_000  # characters, of what stands in an address and in a body
MOST_TOKENS = 2000  # that are written
MOST_TEXTS, MOST_LABELS = 40, 100
MEMORY = 1 << 30  # bytes of keys and values of a text that is written
LIKELY = 5  # tokens that are told beside each

Name = Annotated[str, StringConstraints(max_length=1000)]
Short = Annotated[str, StringConstraints(max_length=1000)]
Long = Annotated[str, StringConstraints(max_length=MOST_TEXT)]
Image = Annotated[str, StringConstraints(max_length=1 << 25)]  # a data URL


class Asked(BaseModel):
    """Something asked of a model."""

    model_config = ConfigDict(extra="forbid")
    model: Name


class Hidden(Asked):
    """A text with [MASK] in it."""

    text: Long
    top: Annotated[int, Field(ge=1, le=50)] = 8


class Sentences(Asked):
    """Texts to compare."""

    texts: Annotated[list[Long], Field(min_length=2, max_length=MOST_TEXTS)]


class Labelled(Asked):
    """A text or an image, and what it may be."""

    labels: Annotated[list[Short], Field(min_length=1, max_length=MOST_LABELS)]
    text: Long | None = None
    image: Image | None = None
    template: Short = TEMPLATES[0]


class Seen(Asked):
    """An image to look at."""

    image: Image
    size: Annotated[int, Field(ge=16, le=1024)] | None = None


def router(studio: Studio) -> APIRouter:
    """What the page Try asks for."""
    routes, models = APIRouter(prefix="/api/try"), Kept(open_model)

    def place(name: str) -> Path:
        """The directory of a model by the name of its run, or by its path; links may not lead it out of the folders."""
        return studio.folders.inside(str(find_model(studio.folders.inside(name))))

    @routes.get("")
    async def ways(model: Annotated[str, Query(max_length=1000)]) -> dict[str, Any]:
        return await models.ask(place(model), lambda opened: {"name": model, **_ways(opened)})

    @routes.get("/write")
    async def write(
        model: Annotated[str, Query(max_length=1000)],
        prompt: Annotated[str, Query(max_length=MOST_PROMPT)] = "",
        tokens: Annotated[int, Query(ge=1, le=MOST_TOKENS)] = 200,
        temperature: Annotated[float, Query(ge=0, le=100)] = 1.0,
        top_k: Annotated[int | None, Query(ge=1)] = None,
        top_p: Annotated[float | None, Query(gt=0, le=1)] = None,
        seed: Annotated[int, Query(ge=0, le=2**53)] = 0,
    ) -> StreamingResponse:
        how = Sampling(temperature, top_k, top_p)

        def pieces(opened: Model) -> Iterator[dict[str, Any]]:
            return map(_told, _written(load_as(opened, LanguageModel), prompt, tokens, how, seed))

        return events(_ending(models.stream(place(model), pieces)))

    @routes.post("/fill")
    async def fill(asked: Hidden) -> dict[str, Any]:
        found = await models.ask(
            place(asked.model), lambda opened: load_as(opened, EncoderModel).fill(asked.text, asked.top)
        )
        return {"places": as_json(found)}

    @routes.post("/similarity")
    async def similarity(asked: Sentences) -> Any:
        return await models.ask(place(asked.model), lambda opened: _similarity(opened, asked.texts))

    @routes.post("/labels")
    async def labels(asked: Labelled) -> dict[str, Any]:
        return await models.ask(place(asked.model), lambda opened: _labels(opened, asked))

    @routes.post("/see")
    async def see(asked: Seen) -> Any:
        sent = [image_of(asked.image)]
        seen = await models.ask(place(asked.model), lambda opened: show(opened, sent, size=asked.size))
        return seen.to_json()

    return routes


# -- what each kind of model does --------------------------------------------------------------------------------


def _ways(model: Model) -> dict[str, Any]:
    """What a model is, and the ways in which it can be tried."""
    if isinstance(model, LanguageModel):
        return {"kind": model.kind, "ways": ["write"]}
    ways, mask = [], None
    if isinstance(model, EncoderModel):
        mask = model.tokenizer.marks.mask if model.masked is not None else None
        ways = ["similarity", "labels", *(["fill"] if mask else [])]
    if isinstance(model, PairModel):
        ways = ["labels", "similarity"]
    image = model.image if isinstance(model, PairModel) else model
    if isinstance(image, ImageModel):
        ways += ["see"] if isinstance(image.backbone, VisionTransformer) else []
    return {
        "kind": model.kind,
        "ways": [*ways, "nearest"],
        "mask": mask,
        "images": isinstance(image, ImageModel),
        "fingerprint": model.fingerprint,  # by which its libraries are known
    }


def _written(model: LanguageModel, prompt: str, tokens: int, how: Sampling, seed: int) -> Iterator[Piece]:
    """What a decoder writes behind a prompt, piece by piece, with the tokens and what else was likely."""
    start = model.tokenizer.opened(model.tokenizer.encode(prompt))
    ask = Ask(start, tokens, how, seed, likely=LIKELY, piecewise=True)
    batch, said = Batch(model, "auto", MEMORY), list[Piece | BaseException]()
    writing = Writing(ask, model, said.append)
    batch.refuse(writing)
    batch.waiting.append(writing)
    while batch.busy:
        batch.turn()
        yield from (piece for piece in said if isinstance(piece, Piece))
        said.clear()


def _told(piece: Piece) -> dict[str, Any]:
    tokens = [_token(told, told.logprob) for told in piece.told if told.logprob is not None]
    return {"text": piece.text, "tokens": tokens, "ending": piece.ending}


def _token(told: Told, logprob: float) -> dict[str, Any]:
    """A token: where it begins in the text, its probability, and the likeliest ones."""
    others = [[token, math.exp(other)] for token, other in told.others.items()]
    return {"token": told.token, "place": told.place, "probability": math.exp(logprob), "others": others}


async def _ending(messages: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Messages, and what went wrong as the last one: the answer has begun by then."""
    try:
        async for message in messages:
            yield message
    except UserError as error:
        yield {"error": str(error), "ending": "error"}


def _similarity(model: Model, texts: list[str]) -> Any:
    """How alike texts are to a model, as a block."""
    reader = model.text if isinstance(model, PairModel) else load_as(model, EncoderModel)
    unit = normalised(reader.embed(texts))
    numbers, itself = [str(number) for number in range(1, len(texts) + 1)], np.eye(len(texts), dtype=bool)
    cells = roles(np.zeros_like(itself), itself)
    alike = Matrix("cosine similarity", numbers, numbers, (unit @ unit.T).tolist(), cells, said=(texts, texts))
    return as_json(alike)


def _labels(model: Model, asked: Labelled) -> dict[str, Any]:
    """How well each label describes what was sent, best first: by probability, or by cosine where nothing was trained
    to give probabilities."""
    if (asked.text is None) == (asked.image is None):
        raise UserError("Send either a text or an image to be described by the labels.")
    if asked.image is not None:
        pairs, item = load_as(model, PairModel), open_picture(image_of(asked.image))
        answer = describe(pairs, [item], asked.labels, [asked.template])[0]
        return {"measure": "probability", "scores": list(answer.probabilities.items())}
    return {"measure": "cosine similarity", "scores": _nearest_labels(model, asked)}


def _nearest_labels(model: Model, asked: Labelled) -> list[tuple[str, float]]:
    if not isinstance(model, EmbeddingModel):
        raise UserError(f"{model.path} holds {model.kind}, which compares nothing; choose an encoder.")
    texts = [asked.template.replace("{}", label) for label in asked.labels]
    unit = normalised(model.embed([asked.text, *texts]))
    cosines = (unit[1:] @ unit[0]).tolist()
    return sorted(zip(asked.labels, cosines, strict=True), key=lambda pair: -pair[1])
