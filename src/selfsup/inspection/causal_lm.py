"""Causal language modelling, seen: every input, its target, what each position sees, and how hard it was to guess."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from rich.cells import cell_len
from rich.table import Table
from torch import Tensor, nn

from selfsup.data.records import Batch
from selfsup.data.text import Windows
from selfsup.data.tokenizers import Ids, TextTokenizer
from selfsup.inference.generate import LanguageModel
from selfsup.inference.opening import load_as
from selfsup.inspection.base import Part, Request, new_table
from selfsup.inspection.tokens import (
    BAR,
    END,
    START,
    chip,
    colour,
    loss_bar,
    newest,
    open_for,
    open_training_part,
    visible,
)
from selfsup.inspection.window import WindowInspection, fitting_window
from selfsup.models.decoder import document_mask
from selfsup.objectives.base import Task
from selfsup.objectives.causal_lm import CausalLM
from selfsup.objectives.losses import IGNORE
from selfsup.report import Text

CONTEXT = 12  # tokens of what is given that a line of the page shows


@dataclass(frozen=True, kw_only=True)
class CausalLMInspection(WindowInspection):
    """One window of T positions.

    Attributes:
        targets: what each position is to predict.
        losses: nats of each target, where a run was given.
    """

    objective: ClassVar[str] = "causal-lm"
    idea: ClassVar[str] = "every token is predicted from the tokens before it"
    style: ClassVar[str] = (
        WindowInspection.style
        + """\
.position.sees .input, #readout .input { background: var(--seen); color: var(--on-seen); }
"""
    )

    targets: list[str]
    losses: list[float] | None = None

    def summary(self) -> str:
        return ", ".join([*self.facts(), *([self.mean_loss(self.losses)] if self.losses else [])])

    def parts(self) -> list[Part]:
        loss = "; the redder, the more surprising to the model" if self.losses else ""
        return [
            Part("tokens", f"The text, as the tokenizer cuts it{loss}.", self._strip, self._strip_html),
            Part(
                "inputs and targets",
                "Above, what is shown; below, what is to be predicted there. Point at a position, or tap it, to see "
                "what it sees.",
                self._table,
                self._columns,
            ),
            Part(
                "what is predicted from what",
                "Each target with the inputs that it is predicted from.",
                self._predictions,
                self._list,
            ),
            Part(
                "who sees what",
                "Each row is a position; it is filled where that position sees an input.",
                self.who_sees_what,
                self.drawing,
            ),
        ]

    def heat(self, position: int) -> float:
        """How surprising a target was: its loss as a share of chance, from 0 to 1."""
        return self.share_of_chance(self.losses[position]) if self.losses else 0.0

    def given(self, position: int) -> list[str]:
        """The inputs that a position sees."""
        return [token for token, seen in zip(self.inputs, self.mask[position], strict=True) if seen]

    # -- in a terminal --

    def _strip(self, width: int) -> Text:
        tokens = [Text(visible(self.tokens[t]), self._style(t)) for t in range(self.shown(width))]
        return Text(" │ ", "dim").join(tokens)

    def _table(self, width: int) -> Table:
        table = new_table()
        table.add_column("position", justify="right")
        table.add_column("input")
        table.add_column("target")
        if self.losses is not None:
            table.add_column("loss", justify="right")
            table.add_column(f"as a share of chance ({self.chance:.2f})")
        for t in range(self.shown(width)):
            row = [Text(str(t + 1), "dim"), Text(visible(self.inputs[t])), Text(visible(self.targets[t]))]
            if self.losses is not None:
                row += [
                    Text(f"{self.losses[t]:.2f}"),
                    Text("█" * math.ceil(BAR * self.heat(t)), self._style(t)),
                ]
            table.add_row(*row)
        return table

    def _predictions(self, width: int) -> Text:
        lines = []
        for t in range(self.shown(width)):
            target = visible(self.targets[t])
            given = newest(self.given(t), width - len("given  predict ") - cell_len(target))
            lines.append(Text.assemble(("given ", "dim"), given, (" predict ", "dim"), (target, "bold")))
        return Text("\n").join(lines)

    def _style(self, position: int) -> str:
        return colour(self.heat(position)) if self.losses else ""

    # -- on a page --

    def _strip_html(self) -> str:
        chips = (chip("target", self.tokens[t], self.heat(t)) for t in range(self.shown()))
        return f'{self.scale()}<p class="strip">{" ".join(chips)}</p>'

    def _columns(self) -> str:
        columns = (
            self.column(t, chip("target", self.targets[t], self.heat(t)), self._note(t))
            for t in range(self.shown())
        )
        return f'<div class="window">{"".join(columns)}</div>'

    def _note(self, t: int) -> str:
        return f"at a loss of {self.losses[t]:.3f} nats" if self.losses else ""

    def _list(self) -> str:
        return f"<ol>{''.join(self._prediction(t) for t in range(self.shown()))}</ol>"

    def _prediction(self, t: int) -> str:
        given = self.given(t)
        earlier = '<span class="more">…</span>' if len(given) > CONTEXT else ""
        return (
            f'<li data-position="{t}"><span class="given">{earlier}'
            f"{''.join(chip('input', token) for token in given[-CONTEXT:])}</span>"
            f'<span class="predict">predict {chip("target", self.targets[t], self.heat(t))}</span>'
            f"{loss_bar(self.losses[t], self.heat(t)) if self.losses else ''}</li>"
        )


def inspect_causal_lm(request: Request) -> CausalLMInspection:
    """The task comes from the objective itself, so that what is seen here is what is trained."""
    model = None if request.run is None else load_as(request.run, LanguageModel)
    source, stream, cut = _stream(request, model.tokenizer if model else request.tokenizer)
    window = fitting_window(request, model.decoder.config.window if model else None)
    length = len(stream) - 1
    windows = Windows(stream, min(window, length), cut.end)
    first = np.zeros(1, np.int64)
    objective = CausalLM(model.decoder if model else nn.Identity(), cut.start, cut.end).eval()
    task = objective.hide(Batch(windows.read(first), 0, first, first))
    asked = task["targets"][0] != IGNORE  # an end token that a start token follows predicts nothing
    inputs, targets = task["inputs"][0, asked].tolist(), task["targets"][0, asked].tolist()
    return CausalLMInspection(
        tokens=_names(cut, targets),
        inputs=_names(cut, inputs, START),
        targets=_names(cut, targets),
        mask=_mask(task, asked),
        documents=task["documents"][0, asked].tolist(),
        source=source,
        length=length,
        losses=objective.losses(task)[0, asked].tolist() if model else None,
        chance=math.log(cut.vocabulary) if model else None,
    )


def _stream(request: Request, tokenizer: str | Path | TextTokenizer) -> tuple[str, Ids, TextTokenizer]:
    """What is looked at: its name, its tokens, the first of which is only given, and the tokenizer."""
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
    added = document_mask(task["documents"], torch.float32)[0, 0]
    rows: list[list[int]] = (added == 0)[asked][:, asked].int().tolist()
    return rows
