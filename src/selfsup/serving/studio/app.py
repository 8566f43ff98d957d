"""The studio's application: its shell, its modules, and what each group of pages asks for."""

from __future__ import annotations

from fastapi import FastAPI

from selfsup.serving.errors import answer_errors
from selfsup.serving.page import add_page
from selfsup.serving.studio import inspecting, libraries, runs, starting, trying
from selfsup.serving.studio.shared import Studio

ROUTERS = (runs.router, inspecting.router, starting.router, trying.router, libraries.router)
STYLE = "studio/studio.css"


def make_app(studio: Studio) -> FastAPI:
    """What answers in a studio; it belongs behind a `Guard`."""
    app = FastAPI(title="selfsup studio", docs_url=None, redoc_url=None, openapi_url=None)
    answer_errors(app)
    for router in ROUTERS:
        app.include_router(router(studio))
    add_page(app, "/", "selfsup studio", "studio/app.js", [STYLE])
    return app
