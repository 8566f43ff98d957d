"""What an objective makes of a sentence or of images that are sent: what is hidden, and with a run what it guesses."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from selfsup.errors import UserError
from selfsup.serving.guard import require_image
from selfsup.serving.studio.shared import Studio

MOST_TEXT, MOST_IMAGES = 20_000, 16  # characters, images
MOST_WINDOW = 512  # tokens

Short = Annotated[str, StringConstraints(max_length=200)]


class Asked(BaseModel):
    """What is to be looked at: a text, or images as data URLs, or neither: then the run's data, or the example."""

    model_config = ConfigDict(extra="forbid")
    objective: Short | None = None
    text: Annotated[str, StringConstraints(max_length=MOST_TEXT)] | None = None
    images: Annotated[list[str], Field(max_length=MOST_IMAGES)] = Field(default_factory=list)
    run: Annotated[str, StringConstraints(max_length=1000)] | None = None
    window: Annotated[int, Field(ge=2, le=MOST_WINDOW)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0


def router(studio: Studio) -> APIRouter:
    """What the page Inspect asks for."""
    routes = APIRouter(prefix="/api")

    @routes.get("/objectives")
    async def objectives() -> dict[str, Any]:
        return {"objectives": await studio.heavy(_objectives)}

    @routes.post("/inspect")
    async def inspect(asked: Asked) -> dict[str, Any]:
        run = None if asked.run is None else str(studio.run(asked.run))
        images = [image_of(image) for image in asked.images]
        return await studio.heavy(_inspect, asked, run, images)

    return routes


def image_of(url: str) -> bytes:
    """The image that a data URL holds, within bounds; raises a UserError where it holds none."""
    head, comma, content = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise UserError("An image is sent as a data URL: data:image/png;base64, and its bytes.")
    try:
        return require_image(base64.b64decode(content, validate=True))
    except binascii.Error:
        raise UserError("The image cannot be read: its data URL is no base64.") from None


def _objectives() -> list[dict[str, Any]]:
    """Those that can be looked at as they are: by name, what they are about, and whether they look at images."""
    from selfsup.objectives import RECIPES, find_recipe

    kinds = [find_recipe(name) for name in RECIPES if name != "distill"]  # which needs a teacher
    return [{"name": kind.name, "idea": kind.idea, "images": kind.unit == "images"} for kind in kinds]


def _inspect(asked: Asked, run: str | None, images: list[bytes]) -> dict[str, Any]:
    from selfsup.inspection import inspect
    from selfsup.inspection.page import drawn

    given: dict[str, Any] = {"window": asked.window} if asked.window is not None else {}
    if asked.text:
        given["text"] = asked.text
    elif images:
        given["data"] = images
    return dict(drawn(inspect(asked.objective, run=run, seed=asked.seed, **given)))
