"""Tokens to look at, and where they come from: what the inspections of all objectives of text share."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich.cells import cell_len

from selfsup.config import Settings
from selfsup.data.sources import TextCollection, open_text
from selfsup.data.text import TextCorpus, prepare_text
from selfsup.data.tokenizers import KINDS, Family, TextTokenizer, open_tokenizer, train_tokenizer
from selfsup.errors import UserError, require_text
from selfsup.evaluation.language import open_corpus
from selfsup.inspection.base import Request
from selfsup.objectives.language import how_texts_are_read
from selfsup.run import Run

SAMPLE = "sample:shakespeare"
START, END = "<start>", "<end>"
MARKERS = (START, END, "[CLS]", "[SEP]", "[MASK]", "[PAD]")  # which stand for no text
BAR = 20  # columns of a loss

TOKEN_STYLE = """\
.chip { display: inline-block; padding: .12rem .45rem; border-radius: .35rem; background: var(--chip);
  white-space: pre; font: .9rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; text-align: center; }
.chip s { text-decoration: none; opacity: .45; }
.chip.marker { font-style: italic; color: var(--faint); }
ol { list-style: none; margin: .7rem 0 0; padding: 0; max-height: 32rem; overflow: auto;
  border: 1px solid var(--line); border-radius: .6rem; }
li { display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: center; padding: .3rem .6rem; }
li + li { border-top: 1px solid var(--line); }
.loss { margin-left: auto; display: inline-grid; grid-template-columns: 5rem 2.6rem; gap: .4rem; align-items: center;
  text-align: right; font-variant-numeric: tabular-nums; }
.loss i { height: .55rem; border-radius: .3rem;
  background: linear-gradient(90deg, var(--hot) calc(var(--heat) * 100%), var(--chip) 0); }
"""


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
    collection = open_text(source, **how_texts_are_read(request.settings))
    return f"the training part of {collection.name}", prepare(collection, tokenizer, request.settings, family)


def prepare(
    collection: TextCollection, tokenizer: str | Path | TextTokenizer, settings: Settings, family: Family
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


def visible(token: str) -> str:
    """A token with its spaces as dots."""
    return token.replace(" ", "·")


def colour(share: float) -> str:
    """Of a loss in a terminal, by its share of chance."""
    return ("green", "yellow", "red")[max(0, min(2, int(3 * share)))]


def newest(tokens: list[str], room: int) -> str:
    """The last tokens that fit, and at least one, with a mark where earlier ones were left out."""
    kept = [visible(tokens[-1])]
    for token in map(visible, reversed(tokens[:-1])):
        if cell_len(" ".join(["…", token, *kept])) > room:
            return " ".join(["…", *kept])
        kept.insert(0, token)
    return " ".join(kept)


def chip(role: str, token: str, heat: float = 0.0) -> str:
    """A token on a page; spaces are faint dots, markers in italics."""
    marker = " marker" if token in MARKERS else ""
    style = f' style="--heat:{heat:.3f}"' if heat else ""
    text = escape(token).replace(" ", '<s aria-label="space">·</s>') or "&nbsp;"
    return f'<span class="chip {role}{marker}"{style}>{text}</span>'


def loss_bar(loss: float, share: float) -> str:
    """A loss on a page, as a bar and in nats."""
    return f'<span class="loss"><i style="--heat:{share:.3f}"></i>{loss:.2f}</span>'
