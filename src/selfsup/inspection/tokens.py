"""Objectives that predict tokens: what is shown, what is hidden and how, who sees whom, what a model makes of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from selfsup.config import Settings
from selfsup.data.records import Batch, read_in
from selfsup.data.tokenizer_loading import open_tokenizer
from selfsup.data.tokenizers import Family, TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load_as
from selfsup.inspection.base import Inspection, Request
from selfsup.inspection.blocks import (
    Guess,
    Line,
    Marks,
    Prediction,
    Predictions,
    Section,
    Sight,
    Table,
    Token,
    Tokens,
    Window,
    mean,
    section,
)
from selfsup.inspection.texts import fitting_window, opened
from selfsup.models.attention import document_mask
from selfsup.models.encoder import EncoderConfig
from selfsup.models.losses import IGNORE, cap_of, capped
from selfsup.objectives.adaptation import forget_start
from selfsup.objectives.base import Task
from selfsup.objectives.text_networks import HUB
from selfsup.objectives.texts import TextRecipe

START, END = "<start>", "<end>"
DONE = {"mask": "[MASK] is shown instead", "random": "a random token is shown instead", "kept": "left as it is"}
COUNTED = {
    "hidden": "hidden, of all tokens",
    "mask": "of these: [MASK]",
    "random": "a random token",
    "kept": "left as they are",
}
MARKS = {"M": "mask", "R": "random", "K": "kept"}  # of a position, in an epoch's row; any other is shown
SHOWN = "·"
EPOCHS = 3  # whose masks are set side by side
GUESSES = 5
WINDOWS = 64  # over which the shares are counted
CONTEXT = 12  # tokens before a target that are shown
AROUND = 6  # tokens to either side of a hidden one, likewise
# What is looked at of the stream of a text: it may go on, so nothing closes it, and windows have their own ends.
PARTS: dict[Family, slice] = {"decoder": slice(-1), "encoder": slice(1, -1)}

Parts: TypeAlias = tuple[list[str], list[Section], dict[str, Any]]  # facts, sections and values


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        source: the name of its text.
        objective: on the network of the run, where there is one. Its `losses(task)` are in nats. One that hides tokens
            has `aims`, a `masking` by a `unit`, and a `model` with an `output_weight`.
        chance: nats of a model that knows nothing, where there is a run.
        reach: positions to either side that local layers see.
    """

    source: str
    recipe: TextRecipe
    objective: Any
    chance: float | None
    reach: int

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.recipe.corpus.tokenizer

    def make(self, count: int = 1, epoch: int = 0) -> tuple[Tensor, Task]:
        """The tokens of the first windows, and what the training makes of them in an epoch."""
        places, seed, epochs = np.arange(count), self.recipe.settings["train.seed"], np.full(count, epoch)
        batch = Batch(read_in(self.recipe.train, epochs, places), seed, epochs, places)
        return batch.data["tokens"], self.objective.train().hide(batch)

    def losses(self, task: Task) -> Tensor | None:
        """Of the targets of the first window, where there is a run."""
        return None if self.chance is None else self.objective.eval().losses(task)[0]

    def parts(self, window: Window, more: list[str], sections: list[Section], **values: Any) -> Parts:
        """What is known of a window, and how surprising it is to the model."""
        count, length = len(window.documents), most_positions(self.recipe)
        documents = len({number for number in window.documents if number >= 0})
        of = f" of {length:,}" if count < length else ""
        losses = [loss for loss in window.losses or () if loss is not None]
        facts = [
            self.source,
            f"{count:,}{of} positions",
            *([f"{documents} documents"] if documents > 1 else []),
            *more,
            *([f"mean loss {mean(losses):.3f} nats (chance {self.chance:.3f})"] if losses else []),
        ]
        return facts, sections, {"source": self.source, "length": length, "chance": self.chance, **values}


def inspect_tokens(request: Request) -> Inspection:
    """Of an objective whose task holds `inputs` (B, T), `targets` at all or some `positions`, and `documents` (B, T);
    the task comes from the objective itself, so that what is seen here is what is trained."""
    subject = _open(request)
    tokens, task = subject.make()
    parts = _hidden(subject, tokens, task) if "positions" in task.tensors else _next(subject, task)
    return Inspection.of(request.objective, subject.recipe.idea, *parts)


def _open(request: Request) -> Subject:
    family = cast("type[TextRecipe]", request.kind).family
    network: Any = None
    tokenizer, trained, reach = None, None, EncoderConfig.local_window
    if request.run is not None and family == "decoder":
        decoder = load_as(request.run, LanguageModel)
        network, tokenizer, trained = decoder.decoder, decoder.tokenizer, decoder.decoder.config.window
    elif request.run is not None:
        encoder = load_as(request.run, EncoderModel)
        network, tokenizer, trained = encoder.masked, encoder.tokenizer, encoder.window
        reach = encoder.native.config.local_window
        if network is None:
            raise UserError(f"{request.run} has no head that predicts hidden tokens; give a run of masked-lm.")
    brought = None
    if network is not None:  # whatever its training began with
        brought = _brought(request.settings, family)
        request.settings.change("model.preset", "auto", "run")
        forget_start(request.settings)
    recipe, source = opened(request, tokenizer, brought)
    _cut(recipe, fitting_window(request, trained), request.text is not None)
    chance = None if network is None else math.log(recipe.corpus.tokenizer.vocabulary)
    return Subject(source, recipe, recipe.objective_on(network), chance, reach // 2)


def _brought(settings: Settings, family: Family) -> TextTokenizer | None:
    """The tokenizer with which the weights of a run came."""
    if settings["model.init"] is None and not str(settings["model.preset"]).startswith(HUB):
        return None
    return open_tokenizer(settings["data.tokenizer"], family)


def _cut(recipe: TextRecipe, window: int, text: bool) -> None:
    """Cut the corpus into windows, or into one where it is shorter."""
    if recipe.family == "encoder" and window < 3:
        raise UserError(f"A window of {window} has no room between start and end token; ask for 3 or more.")
    if text:
        recipe.corpus = replace(recipe.corpus, train=recipe.corpus.train[PARTS[recipe.family]])
    recipe.settings.change("data.window", min(window, most_positions(recipe)), "inspection")
    recipe.cut()


def most_positions(recipe: TextRecipe) -> int:
    """Those of a window that holds the whole corpus: a decoder's last token is a target alone; an encoder's window has
    a start and an end token of its own."""
    return len(recipe.corpus.train) + {"decoder": -1, "encoder": 2}[recipe.family]


# -- the next token --


def _next(subject: Subject, task: Task) -> Parts:
    """Every token is predicted from those before it."""
    asked = task["targets"][0] != IGNORE  # an end token that a start token follows predicts nothing
    losses = subject.losses(task)
    found: list[float] | None = None if losses is None else losses[asked].tolist()
    targets = _names(subject.tokenizer, task["targets"][0, asked].tolist())
    window = Window(
        inputs=_names(subject.tokenizer, task["inputs"][0, asked].tolist(), START),
        targets=list(targets),
        roles=[""] * len(targets),
        notes=[""] * len(targets) if found is None else [f"at a loss of {loss:.3f} nats" for loss in found],
        documents=task["documents"][0, asked].tolist(),
        losses=None if found is None else list(found),
        chance=subject.chance,
    )
    sees = document_mask(task["documents"], torch.float32, causal=True)[0, 0] == 0  # it is added to the scores
    mask = sees[asked][:, asked].int().tolist()
    text = [Token(target, heat=window.heat(t)) for t, target in enumerate(targets)]
    predictions = [_prediction(window, t, target, mask[t]) for t, target in enumerate(targets)]
    told = "; the redder, the more surprising to the model" if found else ""
    sections = [
        section("next", "tokens", Tokens([Line(text)], window.chance), loss=told),
        section("next", "window", window),
        section("next", "predictions", Predictions(predictions, window.chance)),
        section("next", "sight", Sight(window.inputs, mask)),
    ]
    return subject.parts(window, [], sections)


def _names(tokenizer: TextTokenizer, ids: list[int], start: str = END) -> list[str]:
    """Tokens to look at, those around documents by the part they play here."""
    parts = {tokenizer.end: END, tokenizer.start: start}
    return [parts.get(id_, name) for id_, name in zip(ids, tokenizer.tokens(ids), strict=True)]


def _prediction(window: Window, t: int, target: str, row: list[int]) -> Prediction:
    given = [Token(token) for token, seen in zip(window.inputs, row, strict=True) if seen]
    loss = window.losses[t] if window.losses else None
    return Prediction(t, given[-CONTEXT:], target, len(given) > CONTEXT, loss=loss)


# -- hidden tokens --


@dataclass(frozen=True)
class Counts:
    """How many tokens of how many windows could be hidden, were, and what was done to those."""

    windows: int
    tokens: int
    hidden: int
    mask: int
    random: int
    kept: int

    def number(self, name: str) -> int:
        """Of those that are `hidden`, or `mask`, `random` or `kept` of these."""
        found: int = asdict(self)[name]
        return found

    def share(self, name: str) -> float:
        """Of what may be hidden (`hidden`), or of what is hidden (`mask`, `random`, `kept`)."""
        return self.number(name) / max(1, self.tokens if name == "hidden" else self.hidden)


def _hidden(subject: Subject, tokens: Tensor, task: Task) -> Parts:
    """Some tokens are hidden, and predicted from all others."""
    aims, unit = subject.objective.aims, subject.objective.masking.unit
    epochs = [_marks(subject, *subject.make(epoch=epoch))[0] for epoch in range(EPOCHS)]
    counts = [_count(subject, tokens, task)]
    if not counts[0].hidden:
        raise UserError(
            f"Of {counts[0].tokens} tokens {aims['hidden']:.0%}, hidden by the {unit}, is none; give a longer text."
        )
    if len(subject.recipe.train) > 1:
        counts.append(_count(subject, *subject.make(min(WINDOWS, len(subject.recipe.train)))))
    window = _window(subject, tokens, task, epochs[0])
    told = ", the model's loss and its likeliest guesses; the truth is underlined" if window.losses else ""
    sections = [
        section("hidden", "window", window),
        section("hidden", "predictions", _predictions(window, subject, task), told=told),
        section("hidden", "counts", _counted(counts, aims, window)),
        _by_epoch(epochs, counts[0].tokens, aims["hidden"]),
        _sight(window, subject.reach),
    ]
    more = [f"{counts[0].hidden} hidden by the {unit}"]
    return subject.parts(window, more, sections, unit=unit, aims=aims, counts=list(map(asdict, counts)))


def _count(subject: Subject, tokens: Tensor, task: Task) -> Counts:
    met = Counter("".join(_marks(subject, tokens, task)))
    special = torch.isin(tokens, torch.tensor(sorted(subject.tokenizer.special)))
    done = {name: met[mark] for mark, name in MARKS.items()}
    return Counts(len(tokens), tokens.numel() - int(special.sum()), sum(done.values()), **done)


def _marks(subject: Subject, tokens: Tensor, task: Task) -> list[str]:
    """A letter for each position of each window: what was done to it, told from what is shown there; a random token
    may be the true one."""
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    hidden.scatter_(1, task["positions"], task["targets"] != IGNORE)
    inputs, mask = task["inputs"], int(subject.tokenizer.mask or 0)
    marks = np.full(tokens.shape, SHOWN)
    marks[hidden & (inputs == mask)] = "M"
    marks[hidden & (inputs != mask) & (inputs != tokens)] = "R"
    marks[hidden & (inputs == tokens)] = "K"
    return ["".join(row) for row in marks]


def _window(subject: Subject, tokens: Tensor, task: Task, marks: str) -> Window:
    """The first window, with the losses of the model, where there is one."""
    found = subject.losses(task)
    losses = {} if found is None else _at_positions(task, found.tolist())
    names = subject.tokenizer.tokens(tokens[0].tolist())
    return Window(
        inputs=subject.tokenizer.tokens(task["inputs"][0].tolist()),
        targets=[token if mark in MARKS else None for token, mark in zip(names, marks, strict=True)],
        roles=[MARKS.get(mark, "") for mark in marks],
        notes=[_note(mark, losses.get(t)) for t, mark in enumerate(marks)],
        documents=task["documents"][0].tolist(),
        losses=None if found is None else [losses.get(t) for t in range(len(names))],
        chance=subject.chance,
        legend=DONE,
    )


def _at_positions(task: Task, values: list[Any]) -> dict[int, Any]:
    """What stands at each hidden token of the first window, by its position."""
    places, targets = task["positions"][0].tolist(), task["targets"][0].tolist()
    found = zip(places, targets, values, strict=True)
    return {place: value for place, target, value in found if target != IGNORE}


def _note(mark: str, loss: float | None) -> str:
    if mark not in MARKS:
        return "(shown, and not predicted)"
    return f"({DONE[MARKS[mark]]}{'' if loss is None else f', loss {loss:.2f}'})"


def _predictions(window: Window, subject: Subject, task: Task) -> Predictions:
    guesses = {} if window.losses is None else _guesses(subject, task)
    made = []
    for t, target in enumerate(window.targets):
        if target is not None:
            around = range(max(0, t - AROUND), min(len(window.inputs), t + 1 + AROUND))
            given = [Token(window.inputs[place], window.roles[t] * (place == t)) for place in around]
            loss = window.losses[t] if window.losses else None
            made.append(Prediction(t, given, target, False, DONE[window.roles[t]], loss, guesses.get(t)))
    return Predictions(made, window.chance)


@torch.inference_mode()
def _guesses(subject: Subject, task: Task) -> dict[int, list[Guess]]:
    """What the model holds for likeliest, by the position of each hidden token of the first window."""
    objective = subject.objective.eval()
    logits = objective.predict(task)["hidden"][0] @ objective.model.output_weight.T
    logits = capped(logits, cap_of(objective.model)).float()
    best = logits.softmax(-1).topk(min(GUESSES, logits.shape[-1]))
    named = map(subject.tokenizer.tokens, best.indices.tolist())
    made = [list(map(Guess, *each)) for each in zip(named, best.values.tolist(), strict=True)]
    return _at_positions(task, made)


def _counted(counts: list[Counts], aims: dict[str, float], window: Window) -> Table:
    """The shares of what was hidden and how, and how hard each kind is for the model."""
    rows, pairs = [], list(zip(window.losses or (), window.roles, strict=False))
    for name, label in COUNTED.items():
        counted = [f"{each.number(name):,} ({each.share(name):.1%})" for each in counts]
        losses = [loss for loss, role in pairs if loss is not None and name in ("hidden", role)]
        told = [f"{mean(losses):.3f}" if losses else "–"] if pairs else []
        rows.append([label, f"{aims[name]:.0%}", *counted, *told])
    heads = ["this window" if each.windows == 1 else f"{each.windows:,} windows" for each in counts]
    return Table(["", "aim", *heads, *(["loss here"] if pairs else [])], rows)


def _by_epoch(epochs: list[str], tokens: int, rate: float) -> Section:
    met = sum(any(mark in MARKS for mark in marks) for marks in zip(*epochs, strict=True))
    rows = {f"epoch {number}": marks for number, marks in enumerate(epochs)}
    figures = {"epochs": len(epochs), "share": met / tokens, "aim": 1 - (1 - rate) ** len(epochs)}
    return section("hidden", "epochs", Marks(rows, MARKS), **figures)


def _sight(window: Window, reach: int) -> Section:
    numbers = window.documents
    sight = Sight(window.inputs, [[int(one == other >= 0) for other in numbers] for one in numbers], reach)
    several = len(set(numbers) - {-1}) > 1
    apart = "Several documents share this window; they do not see each other."
    whole = "One document fills this window: every position sees all of it."
    far = any(sight.far(t, other) for t in range(len(numbers)) for other in range(t))
    said = f"\n▒▒: only the layers that see farther than {reach} positions do." * far
    return section("hidden", "sight", sight, documents=apart if several else whole, far=said)
