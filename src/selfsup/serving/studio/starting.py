"""A training from the page: a form made of the configuration's schema, its plan, its start and its end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from selfsup.errors import UserError
from selfsup.serving.guard import Folders
from selfsup.serving.studio.inspecting import Short
from selfsup.serving.studio.shared import Studio

PLACES = ("data.source", "evaluate.data", "model.init", "text.init", "distill.teacher")  # settings that name one
OF_MANY = ("distill.files",)
SAMPLE, OF_HUB = "sample:", ("hub:", "hf://", "http://", "https://", "s3://", "gs://", "gcs://")
MOST_PLACES = 500  # that are suggested
MOST_RUNNING = 4  # trainings at once

Value = Annotated[str, StringConstraints(max_length=2000)]
Objective = Annotated[str, Query(max_length=200)]


class Wanted(BaseModel):
    """A training: its objective, and settings by their dotted keys, as one would type them."""

    model_config = ConfigDict(extra="forbid")
    objective: Short
    values: Annotated[dict[Short, Value | list[Value]], Field(max_length=200)]


class Named(Wanted):
    """The same, and the name of its run."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


class Started(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Short


def router(studio: Studio) -> APIRouter:
    """What the page Start asks for."""
    routes = APIRouter(prefix="/api/start")

    @routes.get("/form")
    async def form(objective: Objective) -> dict[str, Any]:
        return {**await studio.heavy(form_of, objective), "places": list(_suggested(studio.folders))}

    @routes.post("/plan")
    async def plan(wanted: Wanted) -> dict[str, Any]:
        return {"rows": await studio.heavy(_plan, wanted.objective, confined(wanted.values, studio.folders))}

    @routes.post("/train")
    def train(wanted: Named) -> dict[str, Any]:
        if len(studio.trainings.running()) >= MOST_RUNNING:
            raise UserError(f"{MOST_RUNNING} trainings are running; stop one of them first.")
        directory = studio.root / wanted.name
        if os.path.lexists(directory):
            raise UserError(f"{directory} is there already; give the run another name.")
        values = confined(wanted.values, studio.folders)
        words = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        studio.trainings.start(wanted.name, directory, [f"objective={json.dumps(wanted.objective)}", *words])
        return {"name": wanted.name}

    @routes.post("/stop")
    def stop(started: Started) -> dict[str, Any]:
        studio.trainings.stop(started.name)
        return {"name": started.name}

    @routes.get("/trainings")
    def trainings() -> dict[str, Any]:
        return {"trainings": studio.trainings.to_json()}

    return routes


def form_of(objective: str) -> dict[str, Any]:
    """The JSON schema of the configuration, and the dotted keys of it that mean something to an objective."""
    from selfsup.objectives import recipe_of, resolve

    settings = resolve(("the page", {"objective": objective}))
    recipe = recipe_of(settings)
    recipe(settings)  # which leaves those that mean something
    names = [name for name in settings.names() if name not in ("objective", "out")]
    return {"schema": type(settings.config).model_json_schema(), "names": names, "idea": recipe.idea}


def _plan(objective: str, values: Mapping[str, Any]) -> dict[str, str]:
    from selfsup.training import plan

    made, settings = plan(objective, origin="the page", **values)
    return made.rows(settings)


def confined(values: Mapping[str, Value | list[Value]], folders: Folders) -> dict[str, Value | list[Value]]:
    """Settings whose paths are absolute, and lie inside of the folders; raises a UserError where one does not."""
    found = {}
    for key, value in values.items():
        if key in ("objective", "out"):
            raise UserError(f"{key} is said by the page itself; leave it out.")
        many = [_confined(key, one, folders) for one in (value if isinstance(value, list) else [value])]
        found[key] = many if isinstance(value, list) else many[0]
    return found


def _confined(key: str, value: str, folders: Folders) -> str:
    from selfsup.data.tokenizers import KINDS

    if value.startswith(SAMPLE):
        return value
    if value.startswith(OF_HUB):
        raise UserError(f"{key}: from the page only what lies in the folders given at the start is read.")
    if key == "data.replay":
        place, colon, share = value.rpartition(":")
        return f"{_confined('data.source', place, folders)}{colon}{share}"
    if key in OF_MANY:
        return ",".join(str(folders.inside(part.strip())) for part in value.split(","))
    if value.startswith("hf:"):
        return f"hf:{folders.inside(value.removeprefix('hf:'))}"
    tokenizer = key == "data.tokenizer" and value not in KINDS
    return str(folders.inside(value)) if key in PLACES or tokenizer or os.sep in value or value[:1] == "~" else value


def _suggested(folders: Folders) -> Iterator[str]:
    """What lies in the folders: themselves and what is in them, the first ones."""
    number = 0
    for folder in folders.places:
        yield str(folder)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if number < MOST_PLACES and not entry.name.startswith("."):
                    number += 1
                    yield entry.path
