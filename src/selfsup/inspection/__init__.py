"""The supervision that the data makes, made visible: one file per kind of task, imported when it is asked for.

A recipe names the kind of its task (`Recipe.inspector`); one that names none is shown without knowing it. Beside it
`show`: what a trained network sees in an image.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from selfsup.arguments import checked
from selfsup.config import Config, Settings, flatten
from selfsup.errors import UserError
from selfsup.files import require_free
from selfsup.inspection.base import Inspection, Request
from selfsup.objectives import DEFAULT, find_recipe, python_name
from selfsup.objectives.recipe import Recipe
from selfsup.run import Run

if TYPE_CHECKING:
    from selfsup.data.tokenizers import TextTokenizer
    from selfsup.objectives.base import Objective

__all__ = ["INSPECTORS", "Inspection", "inspect"]

# By the kind that a recipe names as its `inspector`.
INSPECTORS = {
    "tokens": "selfsup.inspection.tokens:inspect_tokens",
    "sentences": "selfsup.inspection.sentences:inspect_sentences",
    "text_pairs": "selfsup.inspection.text_pairs:inspect_text_pairs",
    "answers": "selfsup.inspection.answers:inspect_answers",
    "rebuilding": "selfsup.inspection.rebuilding:inspect_rebuilding",
    "views": "selfsup.inspection.views:inspect_views",
    "crops": "selfsup.inspection.crops:inspect_crops",
    "parts": "selfsup.inspection.parts:inspect_parts",
    "patches": "selfsup.inspection.patches:inspect_patches",
    "taught": "selfsup.inspection.taught:inspect_taught",
    "pairs": "selfsup.inspection.pairs:inspect_pairs",
    "task": "selfsup.inspection.task:inspect_task",
}


@checked
def inspect(
    objective: str | type[Objective] | type[Recipe] | None = None,
    *,
    text: str | None = None,
    data: object = None,
    model: object = None,
    tokenizer: str | Path | TextTokenizer | None = None,
    run: str | Path | None = None,
    window: int | None = None,
    html: str | Path | None = None,
    png: str | Path | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    **settings: Any,
) -> Inspection:
    """Show what an objective makes of a text, or of what a training on some data begins with.

    Args:
        objective: its name; by default the run's, or causal-lm. Or a class of an objective or recipe from Python.
        text: a text to look at: one document, left open behind its last token.
        data: in place of a text, a source, whose training part is looked at; without either, the data of the
            run, or else the bundled text or images.
        model: as in a training: settings, or the network of an objective from Python.
        tokenizer: as in a training, and by default the one there; one that is trained, is trained on this text or
            data.
        run: a run (of texts also a model directory), whose tokenizer is used, and what it makes of the task is told.
        window: tokens of a text to look at, at most; by default those of the run, or 256.
        html, png: where to write it as a page and, of images, as one picture: files that are not there yet.
        progress: called with the images read and all, while a source of images is opened.
        settings: of a training, by their keys, such as `masked_lm={"unit": "word"}`; by default the run's.

    Raises:
        UserError: no such objective, data, tokenizer or run; nothing to predict; a window beyond the run's.
    """
    require_free(html, png)
    if text is not None and data is not None:
        raise UserError("A text and data are both given; give one of them.")
    if isinstance(tokenizer, str | Path) and Run(tokenizer).exists:
        tokenizer = Run(tokenizer).model_directory
    module = model if isinstance(model, nn.Module) else None
    given = settings if module is model else settings | {"model": model}
    config = {} if run is None or not Run(run).exists else Run(run).config()
    objective = objective or settings.get("objective") or config.get("objective") or DEFAULT
    asked = dict(flatten(config)) | dict(flatten(given))
    kind = find_recipe(objective, asked) if isinstance(objective, str) else objective
    resolved = _resolved(kind, (str(run), config), ("given", given))
    if run is None and isinstance(tokenizer, str | Path):
        resolved.change("data.tokenizer", str(tokenizer), "given")
    name = objective if isinstance(objective, str) else python_name(kind)
    opened = None if isinstance(tokenizer, str | Path) else tokenizer
    source = _source(text, data, resolved)
    request = Request(name, text, source, opened, run, window, resolved, progress, kind, module)
    inspection = _inspector(getattr(kind, "inspector", "task"))(request)
    inspection.write(html, png)
    return inspection


def _source(text: str | None, data: object, settings: Settings) -> object:
    """The data that are looked at, where they are named in either way; raises a UserError where a text has a column."""
    if text is not None and settings.origin("data.column") == "given":
        raise UserError("--column names a column of --data; a text has none.")
    if text is None and data is None and settings.origin("data.source") == "given":
        return settings["data.source"]
    return data


def _resolved(
    kind: type[Objective] | type[Recipe], run: tuple[str, dict[str, Any]], given: tuple[str, dict[str, Any]]
) -> Settings:
    """What is given over what stands in a run's configuration, of that only what the objective reads."""
    if not issubclass(kind, Recipe):
        return Settings(run, given)
    known = {*Config.model_fields, *kind.sections()}
    name, config = run
    if config.get("objective") in (kind.name, python_name(kind)):
        config = kind.upgraded(config)
    own = {key: value for key, value in config.items() if key in known}
    return kind.resolve((name, own), given)


def _inspector(kind: str) -> Callable[[Request], Inspection]:
    module, _, name = INSPECTORS[kind].partition(":")
    inspector: Callable[[Request], Inspection] = getattr(import_module(module), name)
    return inspector
