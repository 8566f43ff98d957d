"""What an application here answers where something is wrong: one sentence, in one form."""

from __future__ import annotations

from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from selfsup.errors import UserError
from selfsup.serving.guard import failure


def answer_errors(app: FastAPI) -> None:
    """Let an application answer what a user can put right with 4xx, and all else with 500, each with a sentence."""

    def wrong(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(failure(str(error)), 400)

    def malformed(request: Request, error: Exception) -> JSONResponse:
        problem = cast(RequestValidationError, error).errors()[0]
        place = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query", "path"))
        return JSONResponse(failure(f"{place[:100] or 'The request'}: {problem['msg']}."), 422)

    def refused(request: Request, error: Exception) -> JSONResponse:
        known = cast(HTTPException, error)
        return JSONResponse(failure(str(known.detail)), known.status_code)

    def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(failure("That failed here; the terminal in which the server runs says why."), 500)

    app.add_exception_handler(UserError, wrong)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)
