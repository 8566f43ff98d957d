"""What the protocols of language models share: the data as one stream, and the loss of each of its tokens.

All data is measured on, each target once, in windows as long as the model reads, but of `LONGEST_WINDOW` tokens at most
where no length is asked for: the time of a window grows with its square. A document is opened by the start token, which
is given, and closed by the end-of-text token, which is predicted and counts. A window that begins inside a document
begins with the token before it; documents do not see each other: the task is the one of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from selfsup.data.mixing import is_mixture
from selfsup.data.records import Batch
from selfsup.data.sources import open_text
from selfsup.data.text import TextCorpus, Windows, encode_documents
from selfsup.data.tokenizers import Ids, TextTokenizer
from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement, Numbers, Places
from selfsup.inference.generate import LanguageModel
from selfsup.machine import find_device
from selfsup.models.losses import IGNORE
from selfsup.objectives import recipe_of
from selfsup.objectives.causal_lm import CausalLM
from selfsup.objectives.texts import TextRecipe
from selfsup.run import Run

TOKENS = 8192  # predicted at once
LONGEST_WINDOW = 8192  # where none is asked for
BEGINNINGS = (32, 256)  # tokens of the first window that are measured ahead: what takes less than a second
BLOCK_TOKENS, BLOCK_BYTES = 2048, 8192  # in a unit that is resampled, at most
FEWEST_BLOCKS = 32  # that an interval is taken from


@dataclass(frozen=True)
class Predicted:
    """What is measured on: a stream of tokens, those of them that are predicted (n,), and its `bytes`.

    `lossless` says that the targets stand for exactly these bytes.
    """

    name: str
    tokens: Ids
    targets: Ids
    bytes: int
    lossless: bool
    tokenizer: TextTokenizer


def open_subject(measurement: Measurement) -> tuple[LanguageModel, Predicted]:
    """The model, and the data as its tokenizer encodes it. Raises UserError where there is no such data, or none is
    given and the model has none of its own, or it has changed."""
    model: LanguageModel = measurement.model
    if measurement.data is None:
        return model, _held_out(measurement.directory)
    source = open_text(measurement.data, measurement.column, measurement.failures)
    measurement.sources.append(source)
    encoded = encode_documents(source, model.tokenizer)
    targets = _targets(encoded.tokens, model.tokenizer)
    return model, Predicted(source.name, encoded.tokens, targets, encoded.bytes, encoded.lossless, model.tokenizer)


def _targets(tokens: Ids, tokenizer: TextTokenizer) -> Ids:
    """What is predicted of a stream: all but its first token, and but start tokens that follow an end."""
    targets = tokens[1:]
    return targets if tokenizer.start == tokenizer.end else targets[targets != tokenizer.start]


def _held_out(directory: Path) -> Predicted:
    corpus = open_corpus(Run(directory))
    if corpus.validation is None:
        raise UserError(f"{directory} held no data out (data.validation is 0); name some with --data.")
    tokens, facts = np.asarray(corpus.validation), corpus.facts
    name = f"the held-out part of {directory}"
    size, lossless = facts.validation_bytes, facts.validation_lossless
    return Predicted(name, tokens, _targets(tokens, corpus.tokenizer), size, lossless, corpus.tokenizer)


def held_out_documents(directory: Path) -> list[str]:
    """The documents that a run held out, for any model. Raises UserError as `open_subject` does."""
    held_out = _held_out(directory)
    tokenizer, tokens = held_out.tokenizer, np.asarray(held_out.tokens)
    bounds = np.flatnonzero((tokens == tokenizer.start) | (tokens == tokenizer.end))
    return [text for part in np.split(tokens, bounds) if (text := tokenizer.decode(part))]


def open_corpus(run: Run) -> TextCorpus:
    """The text that a run was trained on, as it was trained on. Raises UserError where it is no run, its data came
    from Python, is no text, or has changed since."""
    if not run.exists:
        raise UserError(
            f"{run.directory} is a model without a run, so it has no data of its own; name some with --data."
        )
    settings = run.settings()
    if settings["data.source"].startswith("python:"):
        raise UserError(
            f"{run.directory} was trained on data given from Python, which it does not hold; name data with --data."
        )
    if is_mixture(settings["data.source"]):
        raise UserError(f"{run.directory} was trained on a mixture of sources; name one of them with --data.")
    recipe = recipe_of(settings)(settings)
    if not isinstance(recipe, TextRecipe):
        raise UserError(
            f"{run.directory} was trained by {settings['objective']}, which is no language model's objective; "
            "give the run of a language model."
        )
    open_own(recipe, run)
    return recipe.corpus


def open_own(recipe: TextRecipe, run: Run) -> None:
    """Open the data of a run as it was trained on. Raises UserError where they have changed since."""
    recipe.open(lambda done, total: None)
    if recipe.fingerprint() != run.environment().get("data"):
        raise UserError(
            f"The data of {run.directory} ({recipe.settings['data.source']}) has changed since it was trained, so "
            "what was held out is not known any more; restore it, or name other data with --data."
        )


class Losses(NamedTuple):
    """The targets that were measured, (n,), and the loss of each in nats, float64."""

    targets: Ids
    nats: npt.NDArray[np.float64]


def window_of(measurement: Measurement) -> int:
    """The tokens of a window; raises a UserError where more are asked for than the model reads."""
    most, asked = measurement.model.decoder.config.window, measurement.window
    if asked is not None and asked > most:
        raise UserError(f"{measurement.directory} reads at most {most} tokens, so --window cannot be {asked}.")
    return int(asked or min(most, LONGEST_WINDOW))


def token_losses(model: LanguageModel, text: Predicted, measurement: Measurement, sizes: Numbers, told: str) -> Losses:
    """The loss of each target of a text, or of those in the windows that are drawn, given what came before it in its
    window and document.

    Args:
        sizes: of each token of the vocabulary, what a loss is divided by in the figure that is told on the way.
        told: what that figure is, a format of the nats by size.
    """
    tokenizer, decoder = model.tokenizer, model.decoder.to(find_device(measurement.device))
    objective = CausalLM(decoder, tokenizer.start, tokenizer.end).eval()
    windows = Windows(text.tokens, min(window_of(measurement), len(text.tokens) - 1), tokenizer.end)
    chosen = measurement.chosen(len(windows))
    total = len(chosen) * windows.window - int(windows.read(chosen[-1:])["first"])
    measurement.progress(0, total)
    parts: list[Losses] = []
    done, nats, size = 0, 0.0, 0.0
    for places, length in _batches(chosen, windows.window):
        found = _losses(objective, windows.read(places), length, measurement)
        nats, size = nats + float(found.nats.sum()), size + float(sizes[found.targets].sum())
        measurement.running(told.format(nats / max(1.0, size)))
        if length == windows.window:
            parts.append(found)
            done = min(total, done + len(places) * length)
        measurement.progress(done or length, total)
        if not done:
            nats, size = 0.0, 0.0
    return Losses(*(np.concatenate(of_all) for of_all in zip(*parts, strict=True)))


def _batches(chosen: Places, window: int) -> Iterator[tuple[Places, int]]:
    """Numbers of windows, and how much of them is measured. The beginning of the first one comes before it, so that a
    figure and the time that is left are known soon; it is measured again with the rest."""
    yield from ((chosen[:1], length) for length in BEGINNINGS if length < window)
    batch = max(1, TOKENS // window)
    yield from ((chosen[start : start + batch], window) for start in range(0, len(chosen), batch))


def _losses(objective: CausalLM, data: dict[str, Tensor], length: int, measurement: Measurement) -> Losses:
    """Of the beginnings of windows, so long each."""
    data = data | {"tokens": data["tokens"][:, : length + 1]}
    places = np.zeros(len(data["first"]), np.int64)
    task = objective.hide(Batch(data, 0, places, places).to(find_device(measurement.device)))
    with measurement.autocast():
        nats = objective.losses(task).double()
    counted = task["targets"] != IGNORE
    return Losses(task["targets"][counted].cpu().numpy(), nats[counted].cpu().numpy())


def token_blocks(count: int) -> Places:
    """Which unit of the bootstrap each of so many targets belongs to, (count,): runs of consecutive ones, because
    neighbours are not independent (Carlstein 1986: non-overlapping blocks). There are `FEWEST_BLOCKS` where the text
    has as many tokens. They do not depend on the model, so that two models can be resampled together."""
    return np.arange(count) // min(BLOCK_TOKENS, max(1, count // FEWEST_BLOCKS))


def byte_blocks(sizes: npt.NDArray[np.integer]) -> Places:
    """The same of targets of so many bytes, (n,): runs of bytes that are the same whatever the tokens. A token that
    reaches into two belongs to the second."""
    last: Places = np.maximum(np.cumsum(sizes) - 1, 0)
    return last // min(BLOCK_BYTES, max(1, int(last[-1] + 1) // FEWEST_BLOCKS))


def lost_bytes(tokenizer: TextTokenizer, text: Predicted) -> str:
    """Why the tokens of a text that is not lossless do not stand for all of its bytes."""
    unknown = 0 if tokenizer.unknown is None else int((text.targets == tokenizer.unknown).sum())
    if unknown:
        return f"{unknown:,} of its {len(text.targets):,} tokens are unknown to the model"
    return "its tokens do not say which white space stood between them"
