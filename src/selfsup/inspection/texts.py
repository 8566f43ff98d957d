"""What the inspections of all objectives of text share: the recipe with what is looked at as its corpus."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from selfsup.config import Settings
from selfsup.data.text import corpus_in_memory
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError, require_text
from selfsup.evaluation.language import open_own
from selfsup.inspection.base import Request
from selfsup.inspection.opening import composed, looks_at_own
from selfsup.objectives.texts import FOUND, TextRecipe
from selfsup.run import Run

PRESET = "0.8m"
WINDOW = 256  # tokens, where neither the user nor a run says how many


def opened(
    request: Request, tokenizer: TextTokenizer | None, brought: TextTokenizer | None = None
) -> tuple[TextRecipe, str]:
    """A recipe and the name of its corpus: the text or the data of a request, else those of its run, else the example.

    Args:
        tokenizer: that of the model of a run.
        brought: that with which the weights of a run came, whose own data were read with it.

    Raises:
        UserError: there is nothing to look at.
    """
    settings, own = request.settings, looks_at_own(request)
    if request.run is not None:
        _forget_found(settings, request.run)
    recipe = cast(TextRecipe, composed(request))
    if (given := brought if own else tokenizer or request.tokenizer) is not None:
        recipe.tokenizer = given
    if request.text is not None:
        _open_text(recipe, request.text)
        return recipe, "the text"
    if own and settings["objective"] == request.objective:
        open_own(recipe, Run(str(request.run)))
    else:
        recipe.open(request.progress)
    return recipe, f"the training part of {request.run if own else recipe.text.name}"


def _open_text(recipe: TextRecipe, text: str) -> None:
    """Take a text as the only document; nothing of it is kept."""
    require_text(text, "The text")
    if not text.strip():
        raise UserError("The text is empty; give at least one word.")
    settings, given = recipe.settings, recipe.open_tokenizer()
    recipe.text = recipe.open_source([text], {})
    vocabulary = settings["data.vocabulary"] if given is None else None
    tokenizer = given or settings["data.tokenizer"]
    recipe.corpus = corpus_in_memory(recipe.text, tokenizer, vocabulary, recipe.family)
    recipe.network.take_tokenizer(recipe.corpus.tokenizer)
    facts = recipe.corpus.facts
    if facts.training_tokens <= 2 * facts.training_documents:  # those around them
        raise UserError(f"The tokenizer makes no token of the text {text!r}; give another text or tokenizer.")


def _forget_found(settings: Settings, run: str | Path) -> None:
    """Leave out what a run has found in its data by itself: it is found anew, in other data too."""
    for key, origin in Run(run).environment().get("sources", {}).items():
        if origin == FOUND and settings.origin(key) == str(run):
            settings.change(key, None, "default")


def take_small(settings: Settings) -> None:
    """A small encoder to look at, where neither a run nor a setting says which."""
    if settings["model.preset"] == "auto" and settings["model.init"] is None:
        settings.change("model.preset", PRESET, "inspection")


def fitting_window(request: Request, trained: int | None) -> int:
    """Positions to look at, at most; `trained` is the window of the run, where there is one.

    Raises:
        UserError: more are asked for than the run was trained on.
    """
    most = trained or request.settings["data.window"] or WINDOW
    if trained is not None and (request.window or 0) > trained:
        raise UserError(
            f"{request.run} was trained on windows of {most} tokens; ask for a window of at most {most}, not "
            f"{request.window}."
        )
    return request.window or most
