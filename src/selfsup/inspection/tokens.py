"""Objectives that predict tokens: what is shown, what is hidden and how, who sees whom, what a model makes of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from selfsup.data.passages import Passages
from selfsup.data.records import Batch, Records
from selfsup.data.text import Windows
from selfsup.data.tokenizers import TextTokenizer
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
from selfsup.inspection.texts import fitting_window, open_for, open_training_part
from selfsup.models.encoder import EncoderConfig
from selfsup.models.losses import IGNORE
from selfsup.models.transformer import document_mask
from selfsup.objectives.base import Task
from selfsup.objectives.causal_lm import CausalLM, CausalLMRecipe
from selfsup.objectives.masked_lm import SHOWN_AS_MASK, SHOWN_AS_RANDOM, MaskedLM, Masking
from selfsup.objectives.recipe import Recipe

START, END = "<start>", "<end>"
MASK, RANDOM, KEPT = "mask", "random", "kept"
DONE = {MASK: "[MASK] is shown instead", RANDOM: "a random token is shown instead", KEPT: "left as it is"}
MARKS = {"M": MASK, "R": RANDOM, "K": KEPT}  # of a position, in an epoch's row; any other is shown
SHOWN = "·"
EPOCHS = 3  # whose masks are set side by side
GUESSES = 5
WINDOWS = 64  # over which the shares are counted
CONTEXT = 12  # tokens before a target that are shown
AROUND = 6  # tokens to either side of a hidden one, likewise

Parts: TypeAlias = tuple[
    list[str], list[Section], dict[str, Any]
]  # facts, sections and values of an inspection


def inspect_tokens(request: Request) -> Inspection:
    """Of an objective whose task holds `inputs` (B, T), `targets` at all or some `positions`, and `documents` (B, T);
    the task comes from the objective itself, so that what is seen here is what is trained."""
    assert issubclass(request.kind, Recipe)
    parts = (_next if issubclass(request.kind, CausalLMRecipe) else _hidden)(request)
    return Inspection.of(request.objective, request.kind.idea, *parts)


def _facts(
    source: str, documents: list[int], length: int, losses: list[float], chance: float | None
) -> list[str]:
    """What is known of a window, and how surprising it is to the model."""
    count, several = len(documents), len({number for number in documents if number >= 0})
    of = f" of {length:,}" if count < length else ""
    facts = [source, f"{count:,}{of} positions", *([f"{several} documents"] if several > 1 else [])]
    if chance is None:
        return facts
    return [*facts, f"mean loss {mean(losses):.3f} nats (chance {chance:.3f})"]


# -- the next token --


def _next(request: Request) -> Parts:
    """Every token is predicted from those before it."""
    model = None if request.run is None else load_as(request.run, LanguageModel)
    source, stream, cut = _stream(request, model)
    window, length = fitting_window(request, model.decoder.config.window if model else None), len(stream) - 1
    first = np.zeros(1, np.int64)
    batch = Batch(Windows(stream, min(window, length), cut.end).read(first), 0, first, first)
    objective = CausalLM(model.decoder if model else nn.Identity(), cut.start, cut.end).eval()
    task = objective.hide(batch)
    asked = task["targets"][0] != IGNORE  # an end token that a start token follows predicts nothing
    targets = _names(cut, task["targets"][0, asked].tolist())
    chance = math.log(cut.vocabulary) if model else None
    losses: list[float] = objective.losses(task)[0, asked].tolist() if model else []
    shown = Window(
        inputs=_names(cut, task["inputs"][0, asked].tolist(), START),
        targets=list(targets),
        roles=[""] * len(targets),
        notes=[f"at a loss of {loss:.3f} nats" for loss in losses] or [""] * len(targets),
        documents=task["documents"][0, asked].tolist(),
        losses=list(losses) or None,
        chance=chance,
    )
    facts = _facts(source, shown.documents, length, losses, chance)
    values = {"source": source, "length": length, "chance": chance}
    return facts, _next_sections(shown, targets, _mask(task, asked)), values


def _stream(
    request: Request, model: LanguageModel | None
) -> tuple[str, npt.NDArray[np.integer[Any]], TextTokenizer]:
    """What is looked at: its name, its tokens, the first of which is only given, and the tokenizer."""
    tokenizer = model.tokenizer if model else request.tokenizer
    if request.text is None:
        source, corpus = open_training_part(request, tokenizer, "decoder")
        return source, corpus.train, corpus.tokenizer
    cut = open_for(request.text, tokenizer, "decoder")
    ids = cut.encode(request.text)  # it is not closed, since it may go on
    return "the text", np.concatenate([np.array([cut.start], cut.dtype), ids]), cut


def _names(tokenizer: TextTokenizer, ids: list[int], start: str = END) -> list[str]:
    """Tokens to look at, those around documents by the part they play here."""
    parts = {tokenizer.end: END, tokenizer.start: start}
    return [parts.get(id_, name) for id_, name in zip(ids, tokenizer.tokens(ids), strict=True)]


def _mask(task: Task, asked: Tensor) -> list[list[int]]:
    """The mask that attention adds to its scores, as 1 where it lets through, of the positions that predict."""
    added = document_mask(task["documents"], torch.float32, causal=True)[0, 0]
    rows: list[list[int]] = (added == 0)[asked][:, asked].int().tolist()
    return rows


def _next_sections(window: Window, targets: list[str], mask: list[list[int]]) -> list[Section]:
    loss = "; the redder, the more surprising to the model" if window.losses else ""
    text = [Token(target, heat=window.heat(t)) for t, target in enumerate(targets)]
    predictions = [_prediction(window, t, target, mask[t]) for t, target in enumerate(targets)]
    return [
        section("next", "tokens", Tokens([Line(text)], window.chance), loss=loss),
        section("next", "window", window),
        section("next", "predictions", Predictions(predictions, window.chance)),
        section("next", "sight", Sight(window.inputs, mask)),
    ]


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


@dataclass(frozen=True)
class Look:
    """Some windows as they are hidden in an epoch: their tokens (B, T), what the objective makes of them, a letter for
    each position of each of them (see `MARKS`), and counts of all of them."""

    tokens: Tensor
    task: Task
    marks: list[str]
    counts: Counts


def _hidden(request: Request) -> Parts:
    """Some tokens are hidden, and predicted from all others."""
    settings = request.settings
    model = None if request.run is None else load_as(request.run, EncoderModel)
    if model and model.masked is None:
        raise UserError(f"{request.run} has no head that predicts hidden tokens; give a run of masked-lm.")
    source, length, records, tokenizer = _open_records(request, model)
    rate, masking = settings["masked_lm.rate"], Masking(tokenizer, settings["masked_lm.unit"])
    network: Any = model and model.masked
    objective = MaskedLM(network, masking, rate, settings["masked_lm.evaluation_rate"])
    seed = settings["train.seed"]
    looks = [_look(objective, records, 1, epoch, seed) for epoch in range(EPOCHS)]
    counts = [looks[0].counts]
    if not counts[0].hidden:
        raise UserError(
            f"Of {counts[0].tokens} tokens {rate:.0%}, hidden by the {masking.unit}, is none; give a longer text."
        )
    if len(records) > 1:
        counts.append(_look(objective, records, min(WINDOWS, len(records)), 0, seed).counts)
    shown = _window(looks[0], objective, math.log(tokenizer.vocabulary) if model else None)
    losses = [loss for loss in shown.losses or () if loss is not None]
    facts = _facts(source, shown.documents, length, losses, shown.chance)
    facts.insert(len(facts) - bool(losses), f"{counts[0].hidden} hidden by the {masking.unit}")
    aims = {"hidden": rate, MASK: SHOWN_AS_MASK, RANDOM: SHOWN_AS_RANDOM}
    aims[KEPT] = round(1 - SHOWN_AS_MASK - SHOWN_AS_RANDOM, 9)
    told = ", the model's loss and its likeliest guesses; the truth is underlined" if losses else ""
    sections = [
        section("hidden", "window", shown),
        section("hidden", "predictions", _predictions(shown, looks[0], objective), told=told),
        section("hidden", "counts", _counted(counts, aims, shown)),
        _by_epoch([look.marks[0] for look in looks], counts[0].tokens, rate),
        _sight(shown, (model.native.config if model else EncoderConfig).local_window // 2),
    ]
    values = {"source": source, "length": length, "chance": shown.chance, "unit": masking.unit, "aims": aims}
    return facts, sections, values | {"counts": list(map(asdict, counts))}


class _OneText:
    """A text between start and end token, as the only record."""

    def __init__(self, tokens: npt.NDArray[Any]) -> None:
        self.tokens = torch.from_numpy(tokens.astype(np.int64))

    def __len__(self) -> int:
        return 1

    def read(self, indices: npt.NDArray[np.integer[Any]]) -> dict[str, Tensor]:
        return {"tokens": self.tokens.repeat(len(indices), 1)}


def _open_records(request: Request, model: EncoderModel | None) -> tuple[str, int, Records, TextTokenizer]:
    """What is looked at: its name, its tokens in all, its windows, and the tokenizer."""
    window = fitting_window(request, model.encoder.config.window if model else None)
    if window < 3:
        raise UserError(f"A window of {window} has no room between start and end token; ask for 3 or more.")
    given = model.tokenizer if model else request.tokenizer
    if request.text is not None:
        tokenizer = open_for(request.text, given, "encoder")
        ids = tokenizer.encode(request.text)
        return "the text", len(ids) + 2, _OneText(tokenizer.frame(ids[: window - 2])), tokenizer
    source, corpus = open_training_part(request, given, "encoder")
    length = len(corpus.train)
    records = Passages(corpus.train, min(window, length + 2), corpus.tokenizer)
    return source, length, records, corpus.tokenizer


def _look(objective: MaskedLM, records: Records, count: int, epoch: int, seed: int) -> Look:
    """The first windows, as they are trained on in an epoch."""
    places = np.arange(count)
    data = records.read(places)
    task = objective.train().hide(Batch(data, seed, np.full(count, epoch), places))
    tokens, tokenizer = data["tokens"], objective.masking.tokenizer
    marks = _marks(tokens, task, int(tokenizer.mask or 0))
    met = Counter("".join(marks))
    ordinary = tokens.numel() - int(torch.isin(tokens, torch.tensor(sorted(tokenizer.special))).sum())
    done = {name: met[mark] for mark, name in MARKS.items()}
    return Look(tokens, task, marks, Counts(count, ordinary, sum(done.values()), **done))


def _marks(tokens: Tensor, task: Task, mask: int) -> list[str]:
    """What was done to each position, told from what is shown there; a random token may be the true one."""
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    hidden.scatter_(1, task["positions"], task["targets"] != IGNORE)
    inputs = task["inputs"]
    marks = np.full(tokens.shape, SHOWN)
    marks[hidden & (inputs == mask)] = "M"
    marks[hidden & (inputs != mask) & (inputs != tokens)] = "R"
    marks[hidden & (inputs == tokens)] = "K"
    return ["".join(row) for row in marks]


def _window(look: Look, objective: MaskedLM, chance: float | None) -> Window:
    """The first window, with the losses of the model, where there is one."""
    names = objective.masking.tokenizer.tokens
    tokens, inputs = names(look.tokens[0].tolist()), names(look.task["inputs"][0].tolist())
    marks = look.marks[0]
    losses = (
        None if chance is None else _at_positions(look.task, objective.eval().losses(look.task)[0].tolist())
    )
    return Window(
        inputs=inputs,
        targets=[token if mark in MARKS else None for token, mark in zip(tokens, marks, strict=True)],
        roles=[MARKS.get(mark, "") for mark in marks],
        notes=[_note(mark, None if losses is None else losses.get(t)) for t, mark in enumerate(marks)],
        documents=look.task["documents"][0].tolist(),
        losses=None if losses is None else [losses.get(t) for t in range(len(tokens))],
        chance=chance,
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


def _predictions(window: Window, look: Look, objective: MaskedLM) -> Predictions:
    guesses = {} if window.losses is None else _guesses(look.task, objective)
    made = []
    for t, target in enumerate(window.targets):
        if target is not None:
            around = range(max(0, t - AROUND), min(len(window.inputs), t + 1 + AROUND))
            given = [Token(window.inputs[place], window.roles[t] * (place == t)) for place in around]
            loss = window.losses[t] if window.losses else None
            made.append(Prediction(t, given, target, False, DONE[window.roles[t]], loss, guesses.get(t)))
    return Predictions(made, window.chance)


@torch.inference_mode()
def _guesses(task: Task, objective: MaskedLM) -> dict[int, list[Guess]]:
    """What the model holds for likeliest, by the position of each hidden token of the first window."""
    hidden = objective.eval().predict(task)["hidden"][0]
    logits = (hidden @ objective.model.output_weight.T).float()
    best = logits.softmax(-1).topk(min(GUESSES, logits.shape[-1]))
    named = map(objective.masking.tokenizer.tokens, best.indices.tolist())
    made = [list(map(Guess, *each)) for each in zip(named, best.values.tolist(), strict=True)]
    return _at_positions(task, made)


def _counted(counts: list[Counts], aims: dict[str, float], window: Window) -> Table:
    """The shares of what was hidden and how, and how hard each kind is for the model."""
    labels = {"hidden": "hidden, of all tokens", MASK: "of these: [MASK]", RANDOM: "a random token"}
    rows, pairs = [], list(zip(window.losses or (), window.roles, strict=False))
    for name, label in (labels | {KEPT: "left as they are"}).items():
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
