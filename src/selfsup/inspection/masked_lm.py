"""Masked language modelling, seen: what is hidden and how, how that changes, who sees whom, what a model guesses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from torch import Tensor

from selfsup.data.passages import Passages
from selfsup.data.records import Batch, Records
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.inspection.base import Part, Request, new_table, table_part
from selfsup.inspection.tokens import chip, colour, loss_bar, open_for, open_training_part, visible
from selfsup.inspection.window import CELL, LABEL, WindowInspection, fitting_window, runs
from selfsup.models.encoder import EncoderConfig, MaskedLanguageModel
from selfsup.objectives.base import Task
from selfsup.objectives.losses import IGNORE, token_losses
from selfsup.objectives.masked_lm import SHOWN_AS_MASK, SHOWN_AS_RANDOM, MaskedLM, Masking
from selfsup.report import Text

MASK, RANDOM, KEPT, SHOWN = "mask", "random", "kept", "shown"
DONE = {MASK: "[MASK] is shown instead", RANDOM: "a random token is shown instead", KEPT: "left as it is"}
MARKS = {MASK: "M", RANDOM: "R", KEPT: "K", SHOWN: "·"}  # of a position, in an epoch's strip
STYLES = {MASK: "bold magenta", RANDOM: "bold red", KEPT: "bold green", SHOWN: ""}

EPOCHS = 3  # whose masks are set side by side
GUESSES = 5
WINDOWS = 64  # over which the shares are counted
AROUND = 6  # tokens to either side of a hidden one, in the page's list
PAGE_WIDTH = 900  # pixels for a strip
TOKENS = 64  # of the text that a terminal shows
FAR = "▒▒"  # a block where only the layers that see the whole document see
STRIP_LABEL = len("epoch 0  ")


STYLE = """\
:root { --mask: #7048c8; --random: #c2185b; --kept: #1d7f4e; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --mask: #b195f5; --random: #ff7fb0; --kept: #5fcf96; --on: #14161a; } }
.chip.mask { background: var(--mask); color: var(--on); }
.chip.random { background: var(--random); color: var(--on); }
.chip.kept { background: var(--kept); color: var(--on); }
.legend i:not(.scale) { width: .9rem; height: .9rem; border-radius: .25rem; margin-left: .6rem; }
.legend i:not(.scale):first-child { margin-left: 0; }
.legend .mask { background: var(--mask); }
.legend .random { background: var(--random); }
.legend .kept { background: var(--kept); }
.strips .shown { fill: var(--ground); }
.strips .mask { fill: var(--mask); }
.strips .random { fill: var(--random); }
.strips .kept { fill: var(--kept); }
.strips { max-width: none; }
.sight g .far, .looking .sight g.now .far { opacity: .35; }
.guesses .loss { color: var(--ink); }
.guesses { flex-basis: 100%; display: flex; flex-wrap: wrap; gap: .2rem .3rem; align-items: baseline;
  color: var(--faint); }
.guesses small { margin-right: .5rem; font-variant-numeric: tabular-nums; }
.guess.right { color: var(--ink); text-decoration: underline; text-decoration-thickness: 2px;
  text-underline-offset: 3px; font-weight: 600; }
"""


@dataclass(frozen=True)
class Guess:
    """A token that the model holds for likely."""

    token: str
    probability: float


@dataclass(frozen=True)
class Hidden:
    """A token to be predicted.

    Attributes:
        done: what was done to it: `mask`, `random` or `kept`.
        loss, guesses: nats, and the likeliest tokens, where a run was given.
    """

    position: int
    target: str
    shown: str
    done: str
    loss: float | None = None
    guesses: list[Guess] | None = None


@dataclass(frozen=True)
class Counts:
    """How many tokens of how many windows could be hidden, were, and what was done to those."""

    windows: int
    tokens: int
    hidden: int
    mask: int
    random: int
    kept: int

    def share(self, name: str) -> float:
        """Of what may be hidden (`hidden`), or of what is hidden (`mask`, `random`, `kept`)."""
        return getattr(self, name) / max(1, self.tokens if name == "hidden" else self.hidden)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class MaskedLMInspection(WindowInspection):
    """One window of T positions.

    Attributes:
        unit: what is hidden as a whole: `token`, `word` or `span`.
        hidden: what is to be predicted in the first epoch.
        epochs: the masks of the first epochs, a letter for each position: `M`, `R`, `K`, or `·` where it is shown.
        stated: the shares that the objective aims at.
        counts: of this window, and of many.
        reach: positions to either side that the local layers see; the others see the whole document.
    """

    objective: ClassVar[str] = "masked-lm"
    style: ClassVar[str] = WindowInspection.style + STYLE
    idea: ClassVar[str] = "hidden tokens are predicted from those around them, on both sides"

    unit: str
    hidden: list[Hidden]
    epochs: list[str]
    stated: dict[str, float]
    counts: list[Counts]
    reach: int

    def to_json(self) -> dict[str, Any]:
        told = {"loss", "guesses"} if self.chance is None else set()
        hidden = [{name: value for name, value in asdict(h).items() if name not in told} for h in self.hidden]
        return {**super().to_json(), "hidden": hidden, "counts": [asdict(counts) for counts in self.counts]}

    def summary(self) -> str:
        facts = [*self.facts(), f"{len(self.hidden)} hidden by the {self.unit}"]
        return ", ".join([*facts, *([self.mean_loss(self._losses())] if self.chance else [])])

    def _losses(self, done: str | None = None) -> list[float]:
        hidden = (h for h in self.hidden if done in (None, h.done))
        return [h.loss for h in hidden if h.loss is not None]

    def limits(self, width: int | None = None) -> str:
        if width is None:
            return super().limits()
        if len(self.tokens) <= min(TOKENS, width - STRIP_LABEL):
            return ""
        return f"Shown are the first {TOKENS} tokens, or as many as fit; page and JSON hold all."

    def parts(self) -> list[Part]:
        return [
            Part(
                "what is shown, what is to be predicted",
                "Above, what the model is shown; below, what it is to predict there, and nowhere else. Point at a "
                "position, or tap it, to see what it sees.",
                self._text,
                self._columns,
            ),
            Part(
                "the hidden tokens",
                "Each with what is shown around it"
                + (
                    ", the model's loss and its likeliest guesses; the truth is underlined."
                    if self.chance
                    else "."
                ),
                self._table,
                self._list,
            ),
            table_part(
                "how many, and how",
                "Counted, beside the shares that are aimed at. [CLS] and [SEP] are never hidden.",
                self._count_names(),
                self._count_rows(),
            ),
            Part(
                "another mask in every epoch",
                self._union() + " The mask depends on nothing but the seed, the epoch and the window.",
                self._strips,
                self._strips_html,
            ),
            Part(
                "who sees what",
                self._sight(),
                self._blocks,
                lambda: f'<p class="quiet">{self._apart()}</p>{self.drawing()}',
            ),
        ]

    def _union(self) -> str:
        """How much has been hidden at least once."""
        met = sum(any(mark != MARKS[SHOWN] for mark in marks) for marks in zip(*self.epochs, strict=True))
        share, aim = met / self.counts[0].tokens, 1 - (1 - self.stated["hidden"]) ** len(self.epochs)
        return f"In {len(self.epochs)} epochs {share:.0%} of the tokens are hidden at least once (of many, {aim:.0%})."

    def _sight(self) -> str:
        near = "; faintly where only the layers that see far do" if self._has_far() else ""
        return f"Each row is a position; it is filled where that position sees another one{near}."

    def _has_far(self) -> bool:
        """Whether any position sees another one beyond the reach of the local layers."""
        return any(self.sight(t, other) == FAR for t in range(len(self.mask)) for other in range(t))

    def _apart(self) -> str:
        if len(set(self.documents) - {-1}) > 1:
            return "Several documents share this window; they do not see each other."
        return "One document fills this window: every position sees all of it."

    def _done(self, t: int) -> str:
        mark = self.epochs[0][t]
        return next(done for done in MARKS if MARKS[done] == mark)

    # -- in a terminal --

    def _text(self, width: int) -> Text:
        targets = {h.position: h.target for h in self.hidden}
        pieces = []
        for t in range(min(len(self.tokens), TOKENS)):
            done, shown = self._done(t), visible(self.inputs[t])
            arrow = f"→{visible(targets[t])}" if done in (MASK, RANDOM) else "?" if done == KEPT else ""
            pieces.append(Text(f"{shown}{arrow}", STYLES[done]))
        legend = [Text("what is shown → what is to be predicted; ", "dim")]
        legend += [Text("[MASK]", STYLES[MASK]), Text(", ", "dim"), Text("random", STYLES[RANDOM])]
        legend += [Text(", ", "dim"), Text("kept?", STYLES[KEPT]), Text("\n", "dim")]
        return Text.assemble(*legend, Text(" │ ", "dim").join(pieces))

    def _table(self, width: int) -> Table:
        table = new_table()
        table.add_column("position", justify="right")
        table.add_column("shown")
        table.add_column("target")
        if self.chance is None:
            table.add_column("what was done")
        else:
            table.add_column("loss", justify="right")
            table.add_column("guesses")
        for h in self.hidden:
            if h.position >= TOKENS:
                break
            row = [Text(str(h.position + 1), "dim"), Text(visible(h.shown), STYLES[h.done])]
            row.append(Text(visible(h.target)))
            if h.loss is None or h.guesses is None:
                row.append(Text(DONE[h.done]))
            else:
                row.append(Text(f"{h.loss:.2f}", colour(self.share_of_chance(h.loss))))
                row.append(Text(", ").join(_guess(guess, h.target) for guess in h.guesses))
            table.add_row(*row)
        return table

    def _count_names(self) -> list[str]:
        windows = ["this window" if c.windows == 1 else f"{c.windows:,} windows" for c in self.counts]
        return ["", "aim", *windows, *(["loss here"] if self.chance else [])]

    def _count_rows(self) -> list[list[str]]:
        names = {"hidden": "hidden, of all tokens", MASK: "of these: [MASK]", RANDOM: "a random token"}
        names[KEPT] = "left as they are"
        rows = []
        for name, label in names.items():
            counted = [f"{getattr(c, name):,} ({c.share(name):.1%})" for c in self.counts]
            rows.append([label, f"{self.stated[name]:.0%}", *counted, *self._mean(name)])
        return rows

    def _mean(self, name: str) -> list[str]:
        losses = self._losses(None if name == "hidden" else name)
        return [f"{sum(losses) / len(losses):.3f}" if losses else "–"] if self.chance else []

    def _strips(self, width: int) -> Text:
        shown = min(len(self.tokens), TOKENS, width - STRIP_LABEL)
        styles = {MARKS[done]: style or "dim" for done, style in STYLES.items()}
        lines = []
        for number, epoch in enumerate(self.epochs):
            line = Text(f"epoch {number}".ljust(STRIP_LABEL), "dim")
            for mark in epoch[:shown]:
                line.append(mark, styles[mark])
            lines.append(line)
        lines.append(Text(self._union(), "dim"))
        return Text("\n").join(lines)

    def looked_at(self, width: int) -> list[int]:
        """Positions all over the window, evenly spaced: there is little to see in its beginning."""
        count = len(self.inputs)
        most = min(self.shown(width), (width - LABEL - 2 - len(str(count))) // 2)
        return [t * count // most for t in range(most)]

    def sight(self, t: int, other: int) -> str:
        far = self.mask[t][other] and abs(t - other) > self.reach
        return FAR if far else super().sight(t, other)

    def strokes(self, t: int, shown: int) -> Iterator[tuple[int, int, str]]:
        row = self.mask[t][:shown]
        near = [seen * (abs(t - other) <= self.reach) for other, seen in enumerate(row)]
        far = [seen - close for seen, close in zip(row, near, strict=True)]
        yield from ((start, stop, "") for start, stop in runs(near))
        yield from ((start, stop, ' class="far"') for start, stop in runs(far))

    def _blocks(self, width: int) -> Text:
        far = f"{FAR}: only the layers that see farther than {self.reach} positions do.\n"
        hint = f"{self._apart()}\n{far if self._has_far() else ''}"
        return Text.assemble(Text(hint, "dim"), self.who_sees_what(width))

    # -- on a page --

    def _columns(self) -> str:
        hidden = {h.position: h for h in self.hidden}
        columns = (self._column(t, hidden.get(t)) for t in range(self.shown()))
        legend = "".join(f'<i class="{done}"></i><span>{escape(what)}</span>' for done, what in DONE.items())
        return f'<p class="legend">{legend}</p>{self.scale()}<div class="window">{"".join(columns)}</div>'

    def _column(self, t: int, hidden: Hidden | None) -> str:
        if hidden is None:
            return self.column(t, note="(shown, and not predicted)")
        loss = "" if hidden.loss is None else f", loss {hidden.loss:.2f}"
        heat = 0.0 if hidden.loss is None else self.share_of_chance(hidden.loss)
        note = f"({DONE[hidden.done]}{loss})"
        return self.column(t, chip("target", hidden.target, heat), note, hidden.done)

    def _list(self) -> str:
        shown = self.shown()
        return f"<ol>{''.join(self._item(h) for h in self.hidden if h.position < shown)}</ol>"

    def _item(self, h: Hidden) -> str:
        t = h.position
        before = "".join(chip("input", token) for token in self.inputs[max(0, t - AROUND) : t])
        behind = "".join(chip("input", token) for token in self.inputs[t + 1 : t + 1 + AROUND])
        line = (
            f'<li data-position="{t}"><span class="given">{before}{chip(f"input {h.done}", h.shown)}{behind}</span>'
            f'<span class="predict">predict {chip("target", h.target)}</span>'
        )
        if h.loss is None or h.guesses is None:
            return f"{line}</li>"
        guesses = "".join(_guess_html(guess, h.target) for guess in h.guesses)
        bar = loss_bar(h.loss, self.share_of_chance(h.loss))
        return f'{line}<span class="guesses">{guesses}{bar}</span></li>'

    def _strips_html(self) -> str:
        """A row of cells for each epoch, as wide as the page where the window is long."""
        shown, margin = self.shown(), 52
        cell = max(2, min(CELL, PAGE_WIDTH // shown))
        names = {mark: done for done, mark in MARKS.items()}
        parts = []
        for number, epoch in enumerate(self.epochs):
            place = f'y="{number * (CELL + 4)}" height="{CELL}"'
            parts.append(f'<text x="0" y="{number * (CELL + 4) + CELL * 0.72:.1f}">epoch {number}</text>')
            parts.append(f'<rect class="shown" x="{margin}" {place} width="{shown * cell}"/>')
            parts += [
                f'<rect class="{names[mark]}" x="{margin + t * cell}" {place} width="{cell - cell // 8}"/>'
                for t, mark in enumerate(epoch[:shown])
                if mark != MARKS[SHOWN]
            ]
        width, height = margin + shown * cell, len(self.epochs) * (CELL + 4)
        return (
            f'<div class="wide"><svg class="strips" viewBox="0 0 {width} {height}" style="width:{width}px" role="img" '
            f'aria-label="rows: epochs, columns: positions">{"".join(parts)}</svg></div>'
        )


def _guess(guess: Guess, target: str) -> Text:
    style = "bold underline" if guess.token == target else ""
    return Text.assemble((visible(guess.token), style), (f" {guess.probability:.0%}", "dim"))


def _guess_html(guess: Guess, target: str) -> str:
    right = " right" if guess.token == target else ""
    return f"{chip(f'guess{right}', guess.token)}<small>{guess.probability:.0%}</small>"


def inspect_masked_lm(request: Request) -> MaskedLMInspection:
    """The tasks come from the objective itself, so that what is seen here is what is trained."""
    settings = request.settings
    seed, rate = settings["train.seed"], settings["masked_lm.rate"]
    model = None if request.run is None else load_as(request.run, EncoderModel)
    if model and model.masked is None:
        raise UserError(f"{request.run} has no head that predicts hidden tokens; give a run of masked-lm.")
    source, length, records, tokenizer = _open_records(request, model)
    masking = Masking(tokenizer, settings["masked_lm.unit"])
    network = cast(MaskedLanguageModel, model and model.masked)
    objective = MaskedLM(network, masking, rate, settings["masked_lm.evaluation_rate"])
    looks = [_look(objective, records, 1, epoch, seed) for epoch in range(EPOCHS)]
    many = _look(objective, records, min(WINDOWS, len(records)), 0, seed)
    first = looks[0]
    if not first.counts.hidden:
        raise UserError(
            f"Of {first.counts.tokens} tokens {rate:.0%}, hidden by the {masking.unit}, is none; give a longer text."
        )
    documents = first.task["documents"][0].tolist()
    return MaskedLMInspection(
        tokens=tokenizer.tokens(first.tokens[0].tolist()),
        inputs=tokenizer.tokens(first.task["inputs"][0].tolist()),
        mask=[[int(number == other >= 0) for other in documents] for number in documents],
        documents=documents,
        source=source,
        length=length,
        chance=math.log(tokenizer.vocabulary) if model else None,
        unit=masking.unit,
        hidden=_hidden(first, objective, weigh=model is not None),
        epochs=[look.marks[0] for look in looks],
        stated={
            "hidden": rate,
            MASK: SHOWN_AS_MASK,
            RANDOM: SHOWN_AS_RANDOM,
            KEPT: round(1 - SHOWN_AS_MASK - SHOWN_AS_RANDOM, 9),
        },
        counts=[first.counts] if len(records) == 1 else [first.counts, many.counts],
        reach=(model.native.config if model else EncoderConfig).local_window // 2,
    )


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


@dataclass(frozen=True)
class Look:
    """Some windows as they are hidden in an epoch.

    Attributes:
        tokens: what they hold, (B, T).
        task: what the objective makes of them.
        marks: a letter for each position of each of them, see `MARKS`.
        counts: of all of them.
    """

    tokens: Tensor
    task: Task
    marks: list[str]
    counts: Counts


def _look(objective: MaskedLM, records: Records, count: int, epoch: int, seed: int) -> Look:
    """The first windows, as they are trained on in an epoch."""
    places = np.arange(count)
    data = records.read(places)
    task = objective.train().hide(Batch(data, seed, np.full(count, epoch), places))
    tokens, tokenizer = data["tokens"], objective.masking.tokenizer
    marks = _marks(tokens, task, cast(int, tokenizer.mask))
    met = Counter("".join(marks))
    ordinary = tokens.numel() - int(torch.isin(tokens, torch.tensor(sorted(tokenizer.special))).sum())
    done = {name: met[MARKS[name]] for name in DONE}
    return Look(tokens, task, marks, Counts(count, ordinary, sum(done.values()), **done))


def _marks(tokens: Tensor, task: Task, mask: int) -> list[str]:
    """What was done to each position, told from what is shown there; a random token may be the true one."""
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    hidden.scatter_(1, task["positions"], task["targets"] != IGNORE)
    inputs = task["inputs"]
    marks = np.full(tokens.shape, MARKS[SHOWN])
    marks[hidden & (inputs == mask)] = MARKS[MASK]
    marks[hidden & (inputs != mask) & (inputs != tokens)] = MARKS[RANDOM]
    marks[hidden & (inputs == tokens)] = MARKS[KEPT]
    return ["".join(row) for row in marks]


def _hidden(look: Look, objective: MaskedLM, weigh: bool) -> list[Hidden]:
    """The hidden tokens of the first window, in the order of the text; if asked for, what the model makes of them."""
    task, tokenizer = look.task, objective.masking.tokenizer
    names = {mark: done for done, mark in MARKS.items()}
    weighed = _weigh(objective, task, tokenizer) if weigh else {}
    hidden = []
    for place, target in sorted(zip(task["positions"][0].tolist(), task["targets"][0].tolist(), strict=True)):
        if target != IGNORE:
            name, shown = tokenizer.tokens([target, int(task["inputs"][0, place])])
            done = names[look.marks[0][place]]
            hidden.append(Hidden(place, name, shown, done, *weighed.get(place, ())))
    return hidden


@torch.inference_mode()
def _weigh(objective: MaskedLM, task: Task, tokenizer: TextTokenizer) -> dict[int, tuple[float, list[Guess]]]:
    """By the position of each hidden token of the first window: its loss, and what the model holds for likeliest."""
    hidden = objective.eval().predict(task)["hidden"][0]
    logits = (hidden @ objective.model.output_weight.T).float()
    losses = token_losses(logits, task["targets"][0]).tolist()
    best = logits.softmax(-1).topk(min(GUESSES, logits.shape[-1]))
    guesses = [
        [Guess(*guess) for guess in zip(tokenizer.tokens(ids), shares, strict=True)]
        for ids, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    places = task["positions"][0].tolist()
    return dict(zip(places, zip(losses, guesses, strict=True), strict=True))
