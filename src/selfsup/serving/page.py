"""A page of a server, drawn by the modules of the front end, which it hands out too."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from pathlib import PurePosixPath

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from selfsup import pages
from selfsup.serving.guard import page_policy

KINDS = {".js": "text/javascript", ".css": "text/css"}


def add_page(app: FastAPI, path: str, title: str, module: str, styles: Collection[str] = ()) -> None:
    """Let an application answer with a page at a path, and with the files that pages are made of.

    Args:
        module: that draws it, such as `studio/app.js`.
        styles: files beside the style of all pages.
    """
    known = {*pages.modules(), pages.STYLE, *styles}

    @app.get(path, include_in_schema=False)
    def shell() -> Response:
        nonce = secrets.token_urlsafe(16)
        page = pages.shell(title, module, nonce)
        return HTMLResponse(page, headers={"content-security-policy": page_policy(nonce)})

    @app.get("/assets/{name:path}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name not in known:
            raise HTTPException(404, f"There is no {name:.100} among the files of the pages.")
        return Response(pages.assets().joinpath(name).read_bytes(), media_type=KINDS[PurePosixPath(name).suffix])
