"""What the protocols of language models share: the data as one stream, and the loss of each of its tokens.

All data is measured on, each target once, in windows of the length that the model was trained on. A document is
opened by the start token, which is given, and closed by the end-of-text token, which is predicted and counts. A
window that begins inside a document begins with the token before it; documents do not see each other: the task
is the one of training. Weights and arithmetic are fp32, so that the figure does not depend on the hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from selfsup.data.loader import in_order
from selfsup.data.sources import open_text
from selfsup.data.text import TextCorpus, Windows, encode_documents
from selfsup.data.tokenizers import Ids, TextTokenizer
from selfsup.errors import UserError
from selfsup.evaluation.base import Measurement
from selfsup.inference.generate import LanguageModel
from selfsup.machine import find_device
from selfsup.models.losses import IGNORE
from selfsup.objectives import find_recipe
from selfsup.objectives.causal_lm import CausalLM
from selfsup.objectives.texts import TextRecipe
from selfsup.run import Run

TOKENS = 8192  # predicted at once
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
    return model, Predicted(source.name, encoded.tokens, targets, encoded.bytes, encoded.lossless)


def _targets(tokens: Ids, tokenizer: TextTokenizer) -> Ids:
    """What is predicted of a stream: all but its first token, and but start tokens that follow an end."""
    targets = tokens[1:]
    return targets if tokenizer.start == tokenizer.end else targets[targets != tokenizer.start]


def _held_out(directory: Path) -> Predicted:
    corpus = open_corpus(Run(directory))
    if corpus.validation is None:
        raise UserError(f"{directory} held no data out (data.validation is 0); name some with --data.")
    targets, facts = _targets(corpus.validation, corpus.tokenizer), corpus.facts
    name = f"the held-out part of {directory}"
    return Predicted(name, corpus.validation, targets, facts.validation_bytes, facts.validation_lossless)


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
    recipe = find_recipe(settings["objective"])(settings)
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


def token_losses(model: LanguageModel, text: Predicted, measurement: Measurement) -> npt.NDArray[np.float32]:
    """Loss in nats of each target of a text, (n,), given what came before it in its window and document."""
    device, tokenizer = find_device(measurement.device), model.tokenizer
    objective = CausalLM(model.decoder.to(device), tokenizer.start, tokenizer.end).eval()
    length = min(model.decoder.config.window, len(text.tokens) - 1)
    windows = Windows(text.tokens, length, tokenizer.end)
    losses = np.empty(len(text.targets), np.float32)
    done = 0
    for batch in in_order(windows, len(windows), seed=0, batch=max(1, TOKENS // length)):
        task = objective.hide(batch.to(device))
        counted = objective.losses(task)[task["targets"] != IGNORE]
        losses[done : done + len(counted)] = counted.cpu().numpy()
        done += len(counted)
        measurement.progress(done, len(losses))
    return losses


def block_sums(values: npt.NDArray[np.generic], window: int) -> npt.NDArray[np.float64]:
    """Sums over the units of the bootstrap: runs of consecutive targets, because neighbours are not independent.

    They are as long as a window; shorter where the text has less than `FEWEST_BLOCKS` windows (Carlstein 1986:
    non-overlapping blocks).
    """
    length = min(window, max(1, len(values) // FEWEST_BLOCKS))
    return np.add.reduceat(values.astype(np.float64), np.arange(0, len(values), length))


def lost_bytes(tokenizer: TextTokenizer, text: Predicted) -> str:
    """Why the tokens of a text that is not lossless do not stand for all of its bytes."""
    unknown = 0 if tokenizer.unknown is None else int((text.targets == tokenizer.unknown).sum())
    if unknown:
        return f"{unknown:,} of its {len(text.targets):,} tokens are unknown to the model"
    return "its tokens do not say which white space stood between them"
