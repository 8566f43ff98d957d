"""The API as an application: its routes, its errors in OpenAI's form, and a page that tells what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from selfsup import __version__
from selfsup.config import nearest, shown
from selfsup.errors import UserError
from selfsup.serving.api import completions, vectors
from selfsup.serving.api.batching import Busy, Stopped
from selfsup.serving.api.leaving import Left
from selfsup.serving.api.models import Models, Served, Unknown
from selfsup.serving.api.schemas import Model
from selfsup.serving.api.schemas import Models as Listed
from selfsup.serving.guard import failure
from selfsup.serving.page import add_page

RETRY_AFTER = 1  # seconds
ERRORS = {
    "400": "what is asked for is wrong, in one sentence",
    "401": "the key of the server is missing",
    "404": "there is no such model",
    "413": "the request is too large",
    "429": "too much is waiting; ask again after as many seconds as Retry-After says",
}


def make_app(models: Models) -> FastAPI:
    app = FastAPI(title="selfsup serve", version=__version__, docs_url=None, redoc_url=None)
    answer_errors(app)
    app.include_router(completions.router(models))
    app.include_router(vectors.router(models))
    add_page(app, "/docs", "selfsup serve", "api.js")

    @app.get("/v1/models", response_model=Listed)
    async def listed() -> Response:
        """The models that are served."""
        return JSONResponse(Listed(data=[_described(one) for one in models.served]).model_dump())

    @app.get("/v1/models/{name}", response_model=Model)
    async def one(name: str) -> Response:
        """One of them."""
        return JSONResponse(_described(models.any(name)).model_dump())

    @app.get("/health")
    async def health() -> dict[str, str]:
        """That the server answers."""
        return {"status": "ok"}

    made = app.openapi

    def openapi() -> dict[str, Any]:
        """What FastAPI says of the routes, with the errors that they answer."""
        described = made()
        for path in described["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"] |= {code: {"description": said} for code, said in ERRORS.items()}
        described.get("components", {}).get("schemas", {}).pop("HTTPValidationError", None)
        return described

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _described(one: Served[Any]) -> Model:
    return Model(id=one.name, created=one.created, kind=one.model.kind)


# -- errors --------------------------------------------------------------------------------------------------


def problem(
    status: int, sentence: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse(failure(sentence, kind, param, code), status)


def answer_errors(app: FastAPI) -> None:
    """Let an application answer what a client can put right with 4xx, too much at once with 429, and all else with
    5xx, each with one sentence."""

    def wrong(request: Request, error: Exception) -> Response:
        if isinstance(error, Unknown):
            return problem(404, str(error), param="model", code="model_not_found")
        return problem(400, str(error))

    def malformed(request: Request, error: Exception) -> Response:
        hints = get_type_hints(request.scope["endpoint"])
        sentence, param = told(cast(RequestValidationError, error).errors(), hints.get("asked"))
        return problem(400, sentence, param=param)

    def refused(request: Request, error: Exception) -> Response:
        known = cast(HTTPException, error)
        return problem(known.status_code, f"{str(known.detail).rstrip('.')}.")

    def busy(request: Request, error: Exception) -> Response:
        answer = problem(429, "Too much is waiting already; ask again later.", "requests", code="rate_limit_exceeded")
        answer.headers["Retry-After"] = str(RETRY_AFTER)
        return answer

    def ending(request: Request, error: Exception) -> Response:
        return problem(503, "The server ends.", "server_error")

    def failed(request: Request, error: Exception) -> Response:
        return problem(500, "That failed here; the terminal in which the server runs says why.", "server_error")

    def left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # which nobody reads

    app.add_exception_handler(UserError, wrong)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Busy, busy)
    app.add_exception_handler(Stopped, ending)
    app.add_exception_handler(Left, left)
    app.add_exception_handler(Exception, failed)


def told(problems: Sequence[Any], asked: type[BaseModel] | None) -> tuple[str, str | None]:
    """What is wrong with a request, in one sentence, and of which of its fields; of several forms that a field may have
    the one that comes closest: whose types fit, else as deep as they do."""
    deepest = max(problems, key=lambda problem: (not problem["type"].endswith("_type"), len(problem["loc"])))
    place = [part for part in deepest["loc"] if part != "body"]
    names = [str(part) for number, part in enumerate(place) if number == 0 or isinstance(part, int)]
    reason = str(deepest["msg"]).removeprefix("Value error, ")
    if deepest["type"] == "json_invalid":
        return "The body is no JSON; send an object with the content type application/json.", None
    if not place:
        return f"{reason}.", None
    name = ".".join(names)
    if deepest["type"] == "extra_forbidden" and asked is not None:
        return f"Unknown key {shown(name)}{nearest(name, asked.model_fields)}", name[:100]
    if deepest["type"] == "missing":
        return f"{name} is missing; it has to be given.", name
    return f"{name} cannot be {shown(deepest['input'])}: {reason[0].lower()}{reason[1:]}.", names[0]
