"""What the inspections of all objectives of text share: where tokens come from, and how many are looked at."""

from __future__ import annotations

from pathlib import Path

from selfsup.config import Settings
from selfsup.data.sources import Table, open_text
from selfsup.data.text import TextCorpus, prepare_text
from selfsup.data.tokenizer_loading import open_tokenizer
from selfsup.data.tokenizer_training import train_tokenizer
from selfsup.data.tokenizers import KINDS, Family, TextTokenizer
from selfsup.errors import UserError, require_text
from selfsup.evaluation.language import open_corpus
from selfsup.inspection.base import Request
from selfsup.objectives.texts import reading_of
from selfsup.run import Run

SAMPLE = "sample:shakespeare"
WINDOW = 256  # tokens, where neither the user nor a run says how many


def open_for(text: str, tokenizer: str | Path | TextTokenizer, family: Family) -> TextTokenizer:
    """The tokenizer that a text is cut by; one that is trained, is trained on it.

    Raises:
        UserError: there is no such tokenizer, or nothing in the text to look at.
    """
    require_text(text, "The text")
    if not text.strip():
        raise UserError("The text is empty; give at least one word.")
    cut = open_tokenizer(tokenizer, family) or train_tokenizer(tokenizer, [text], family=family)  # type: ignore[arg-type]  # a kind
    if not len(cut.encode(text)):
        raise UserError(f"The tokenizer makes no token of the text {text!r}; give another text or tokenizer.")
    return cut


def open_training_part(
    request: Request, tokenizer: str | Path | TextTokenizer, family: Family
) -> tuple[str, TextCorpus]:
    """The data of a request, else that of its run, else the bundled text; and its name."""
    if request.data is None and request.run is not None:
        return f"the training part of {request.run}", open_corpus(Run(request.run))
    source = SAMPLE if request.data is None else request.data
    collection = open_text(source, **reading_of(request.settings))
    return f"the training part of {collection.name}", prepare(collection, tokenizer, request.settings, family)


def prepare(
    collection: Table, tokenizer: str | Path | TextTokenizer, settings: Settings, family: Family
) -> TextCorpus:
    """A source as it is trained on; what is said of data in the settings holds here too."""
    data = settings.config.data
    vocabulary = data.vocabulary if isinstance(tokenizer, str) and tokenizer in KINDS else None
    return prepare_text(
        collection,
        tokenizer,
        vocabulary=vocabulary,
        validation=data.validation,
        failures=data.failures,
        family=family,
    )


def fitting_window(request: Request, trained: int | None) -> int:
    """Positions to look at, at most; `trained` is the window of the run, where there is one.

    Raises:
        UserError: more are asked for than the run was trained on.
    """
    window, most = request.window, trained or WINDOW
    if window is None:
        return most
    if trained is not None and window > trained:
        raise UserError(
            f"{request.run} was trained on windows of {most} tokens; ask for a window of at most {most}, not {window}."
        )
    return window
