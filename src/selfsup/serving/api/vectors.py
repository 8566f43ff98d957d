"""What is asked of encoders: vectors, hidden words, labels of images, and what of a library is near."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from selfsup.data.images.decoding import BadImage, decode
from selfsup.errors import UserError
from selfsup.inference.base import EmbeddingModel
from selfsup.inference.clip import PairModel
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.geometry import normalised
from selfsup.inference.items import Vectors
from selfsup.inference.pictures import Picture
from selfsup.inference.texts import Text
from selfsup.inference.zero_shot import describe
from selfsup.models.static import StaticEncoder
from selfsup.serving.api.batching import Job, Worker
from selfsup.serving.api.leaving import unless_left
from selfsup.serving.api.models import Models, Unknown
from selfsup.serving.api.schemas import (
    MOST_IMAGE,
    Candidate,
    Described,
    Embedding,
    Embeddings,
    EmbeddingsAsked,
    EmbeddingsUsage,
    FillAsked,
    Filled,
    Hit,
    Hits,
    SearchAsked,
    ZeroShot,
    ZeroShotAsked,
)
from selfsup.serving.guard import require_image

DATA_URL = "data:image/"
SENT = {"text": "texts", "image": "images as data:image/…;base64,… URLs"}
Do = Callable[[list[Any]], Sequence[Any]]


def router(models: Models) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/embeddings", response_model=Embeddings)
    async def embeddings(asked: EmbeddingsAsked, request: Request) -> Response:
        """Vectors of length 1 of texts or images."""
        served = models.embedding(asked.model)
        model = served.model
        require_dimension(model, asked.dimensions)
        items = contents(model, asked.inputs)
        found = await done(request, served.worker, ("embed", asked.prompt), items, partial(embed, model, asked.prompt))
        vectors = unit(np.stack([vector for vector, _ in found])[:, : asked.dimensions])
        data = [Embedding(index=n, embedding=encoded(v, asked.encoding_format)) for n, v in enumerate(vectors)]
        read = sum(tokens for _, tokens in found)
        usage = EmbeddingsUsage(prompt_tokens=read, total_tokens=read)
        return JSONResponse(Embeddings(model=served.name, data=data, usage=usage).model_dump())

    @routes.post("/v1/fill", response_model=Filled)
    async def fill(asked: FillAsked, request: Request) -> Response:
        """The likeliest words in each place of a text that says [MASK]."""
        served = models.filling(asked.model)
        (places,) = await done(
            request, served.worker, object(), [asked.text], each(partial(served.model.fill, top=asked.top))
        )
        shown = [[Candidate(**vars(candidate)) for candidate in place] for place in places]
        return JSONResponse(Filled(model=served.name, places=shown).model_dump())

    @routes.post("/v1/zero-shot", response_model=ZeroShot)
    async def zero_shot(asked: ZeroShotAsked, request: Request) -> Response:
        """Which of some labels describes each image."""
        served = models.describing(asked.model)
        items = [Picture("", image_of(url, place), place, {}) for place, url in numbered("image", asked.images)]
        work = partial(describe, served.model, labels=asked.labels, templates=asked.templates)
        found = await done(request, served.worker, object(), items, work)
        data = [Described(index=n, label=one.label, probabilities=one.probabilities) for n, one in enumerate(found)]
        return JSONResponse(ZeroShot(model=served.name, data=data).model_dump())

    @routes.post("/v1/search", response_model=Hits)
    async def search(asked: SearchAsked, request: Request) -> Response:
        """The records of the library that are nearest to words or to an image."""
        if models.searcher is None or models.searching is None:
            raise Unknown("No library is served here; start the server with --library NAME.lance.")
        image = None if asked.image is None else pixels_of(image_of(asked.image, "The image"))
        how = asked.model_dump(exclude={"query", "image"})
        work = partial(models.searcher, asked.query, image=image, **how)
        (hits,) = await done(request, models.searching, object(), [None], each(lambda _: work()))
        found = [Hit(**hit.to_json()) for hit in hits]
        return Response(Hits(library=str(models.library), hits=found).model_dump_json(), media_type="application/json")

    return routes


async def done(request: Request, worker: Worker[Job], kind: Hashable, items: Sequence[Any], do: Do) -> list[Any]:
    """What a worker makes of some items, one result of each, unless the client leaves before."""
    job = Job(kind, items, do)
    worker.put([job])
    waiting = asyncio.wrap_future(job.done)

    async def result() -> list[Any]:
        return await waiting

    return await unless_left(request, result(), waiting.cancel)


def each(make: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda items: [make(item) for item in items]


# -- vectors -------------------------------------------------------------------------------------------------


def embed(model: EmbeddingModel, prompt: str | None, items: Sequence[str | bytes]) -> list[tuple[Vectors, int]]:
    """The vector of each text or image, and the tokens of it. Raises UserError where a text is longer than the model
    reads, or vectors are no numbers."""
    tokens = counted(model, items)
    made = [Text("", item, "", {}) if isinstance(item, str) else Picture("", item, "", {}) for item in items]
    _, vectors = model.embed_items(made, prompt=prompt)
    return list(zip(vectors, tokens, strict=True))


def counted(model: EmbeddingModel, items: Sequence[str | bytes]) -> list[int]:
    """The tokens of each text, of an image none. Raises UserError for a text that is longer than the model reads."""
    reader = model.text if isinstance(model, PairModel) else model
    if not isinstance(reader, EncoderModel):
        return [0] * len(items)
    texts = [item for item in items if isinstance(item, str)]
    counts = [len(ids) for ids in reader.tokenizer.encode_batch(texts)]
    room = reader.tokenizer.room(reader.window)
    if not isinstance(reader.network, StaticEncoder) and max(counts, default=0) > room:
        raise UserError(f"A text has {max(counts):,} tokens and the model reads {room:,}; cut it into passages.")
    numbers = iter(counts)
    return [next(numbers) if isinstance(item, str) else 0 for item in items]


def contents(model: EmbeddingModel, inputs: Sequence[str]) -> list[str | bytes]:
    """What a model is to embed: texts, and images as their files. Raises UserError for what it does not read."""
    items = [image_of(one, place) if one.startswith(DATA_URL) else one for place, one in numbered("input", inputs)]
    for item in items:
        kind = Text if isinstance(item, str) else Picture
        if kind not in model.embeds:
            wanted = " or ".join(SENT[one.noun] for one in model.embeds)
            raise UserError(f"The model is {model.kind}, which reads no {kind.noun}; send {wanted}.")
    return items


def require_dimension(model: EmbeddingModel, dimension: int | None) -> None:
    """Raise a UserError where vectors cannot be cut to so many numbers."""
    if dimension is None or dimension == model.dimension:
        return
    if dimension > model.dimension:
        raise UserError(f"The vectors have {model.dimension} numbers, so dimensions cannot be {dimension}.")
    if model.dimensions and dimension not in model.dimensions:
        trained = ", ".join(map(str, model.dimensions))
        raise UserError(f"The model was trained to be cut to {trained} numbers; give one of these as dimensions.")


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(normalised(vectors).numpy())


def encoded(vector: Vectors, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]


# -- images --------------------------------------------------------------------------------------------------


def numbered(what: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """Each with what it is called in a message."""
    return [(f"{what} {number}", one) for number, one in enumerate(given)]


def image_of(url: str, place: str) -> bytes:
    """The file of an image in a data URL. Raises UserError where it is none, or too large."""
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UserError(f"{place} is no image as a URL: write data:image/png;base64,…")
    if len(body) * 3 // 4 > MOST_IMAGE:
        raise UserError(f"{place} has more than {MOST_IMAGE:,} bytes; send a smaller one.")
    try:
        return require_image(base64.b64decode(body, validate=True))
    except binascii.Error:
        raise UserError(f"{place} is not in base64; encode the bytes of its file.") from None


def pixels_of(image: bytes) -> Any:
    try:
        return decode(image)
    except BadImage as error:
        raise UserError(f"The image cannot be read: {error}.") from None
