"""The studio's application: its shell, its modules, and what each group of pages asks for."""

from __future__ import annotations

import secrets
from pathlib import PurePosixPath

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from selfsup import pages
from selfsup.serving.errors import answer_errors
from selfsup.serving.guard import page_policy
from selfsup.serving.studio import inspecting, libraries, runs, starting, trying
from selfsup.serving.studio.shared import Studio

ROUTERS = (runs.router, inspecting.router, starting.router, trying.router, libraries.router)
STYLE = "studio/studio.css"
KINDS = {".js": "text/javascript", ".css": "text/css"}


def make_app(studio: Studio) -> FastAPI:
    """What answers in a studio; it belongs behind a `Guard`."""
    app = FastAPI(title="selfsup studio", docs_url=None, redoc_url=None, openapi_url=None)
    answer_errors(app)
    for router in ROUTERS:
        app.include_router(router(studio))

    known = {*pages.modules(), pages.STYLE, STYLE}

    @app.get("/")
    def shell() -> Response:
        nonce = secrets.token_urlsafe(16)
        page = pages.shell("selfsup studio", "studio/app.js", nonce)
        return HTMLResponse(page, headers={"content-security-policy": page_policy(nonce)})

    @app.get("/assets/{name:path}")
    def asset(name: str) -> Response:
        if name not in known:
            raise HTTPException(404, f"There is no {name:.100} among the files of the pages.")
        return Response(pages.assets().joinpath(name).read_bytes(), media_type=KINDS[PurePosixPath(name).suffix])

    return app
