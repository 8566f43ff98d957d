"""The supervision that the data makes: what is shown, what is hidden, who sees what, and how hard it is to guess."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from selfsup.config import nearest
from selfsup.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from selfsup.data.tokenizers import Ids, TextTokenizer
    from selfsup.objectives.base import Task

WINDOW = 256  # tokens, where neither the user nor a run says how many
START, END = "<start>", "<end>"
SAMPLE = "sample:shakespeare"

SCREEN = 32  # positions that a terminal shows at most
LABEL = 14  # columns of a token in the margin
BAR = 20  # columns of a loss


@dataclass(frozen=True)
class Inspection:
    """One window as an objective makes it; T positions.

    Attributes:
        objective: name of the objective.
        idea: what it hides and what it shows, in a sentence.
        tokens: the text, as the tokenizer cuts it.
        inputs: what is shown at each position.
        targets: what each position is to predict.
        mask: row t says with 0 and 1 which of the T positions position t sees.
        documents: number of the document that each position belongs to.
        source: name of what the window was taken from.
        length: positions of all of the source's tokens; the window shows the first T.
        losses: nats of each target, where a run was given.
        chance: nats of a model that knows nothing, where a run was given.
    """

    objective: str
    idea: str
    tokens: list[str]
    inputs: list[str]
    targets: list[str]
    mask: list[list[int]]
    documents: list[int]
    source: str
    length: int
    losses: list[float] | None = None
    chance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it; `losses` and `chance` only where there are any."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def to_html(self) -> str:
        """One small page that needs nothing beside itself."""
        from selfsup.inspection_page import page

        return page(self)

    def heat(self, position: int) -> float:
        """How surprising a target was: its loss as a share of chance, from 0 to 1."""
        if self.losses is None or not self.chance:
            return 0.0
        return min(1.0, self.losses[position] / self.chance)

    def given(self, position: int) -> list[str]:
        """The inputs that a position sees."""
        return [token for token, seen in zip(self.inputs, self.mask[position], strict=True) if seen]

    def summary(self) -> str:
        """A line of facts on the window."""
        count, documents = len(self.targets), len(set(self.documents))
        of = f" of {self.length:,}" if count < self.length else ""
        facts = [self.source, f"{count:,}{of} positions"]
        if documents > 1:
            facts.append(f"{documents} documents")
        if self.losses is not None:
            facts.append(f"mean loss {sum(self.losses) / count:.3f} nats (chance {self.chance:.3f})")
        return ", ".join(facts)

    def print(self, console: Console) -> None:
        """Tokens, inputs and targets, what is predicted from what, and the mask, for a terminal."""
        shown = min(len(self.targets), SCREEN, (console.width - LABEL - 4) // 2)
        console.print(f"[bold]{self.objective}[/bold]: {self.idea}")
        console.print(self.summary(), style="dim", markup=False)
        if shown < len(self.targets):
            console.print(
                f"Shown are the first {shown}; no more fit here (page and JSON hold all).", style="dim"
            )
        for title, block in (
            ("tokens", self._strip(shown)),
            ("inputs and targets", self._table(shown)),
            ("what is predicted from what", self._predictions(shown, console.width)),
            ("who sees what", self._blocks(shown)),
        ):
            console.print()
            console.print(title, style="bold")
            console.print(block)

    def _strip(self, shown: int) -> Text:
        tokens = [Text(visible(self.tokens[t]), self._style(t)) for t in range(shown)]
        return Text(" │ ", "dim").join(tokens)

    def _table(self, shown: int) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("position", justify="right")
        table.add_column("input")
        table.add_column("target")
        if self.losses is not None:
            table.add_column("loss", justify="right")
            table.add_column(f"as a share of chance ({self.chance:.2f})")
        for t in range(shown):
            row = [Text(str(t + 1), "dim"), Text(visible(self.inputs[t])), Text(visible(self.targets[t]))]
            if self.losses is not None:
                row += [
                    Text(f"{self.losses[t]:.2f}"),
                    Text("█" * math.ceil(BAR * self.heat(t)), self._style(t)),
                ]
            table.add_row(*row)
        return table

    def _predictions(self, shown: int, width: int) -> Text:
        lines = []
        for t in range(shown):
            target = visible(self.targets[t])
            given = newest(self.given(t), width - len("given  predict ") - cell_len(target))
            lines.append(Text.assemble(("given ", "dim"), given, (" predict ", "dim"), (target, "bold")))
        return Text("\n").join(lines)

    def _blocks(self, shown: int) -> Text:
        numbers = (f"{t:<2}" if t < 10 or t % 2 == 0 else "  " for t in range(1, shown + 1))
        lines = [Text(" " * (LABEL + 4) + "".join(numbers), "dim")]
        for t in range(shown):
            line = Text(visible(self.inputs[t]))
            line.truncate(LABEL, overflow="ellipsis")
            line.pad_left(LABEL - line.cell_len)
            line.append(f" {t + 1:>2} ", "dim")
            for seen in self.mask[t][:shown]:
                line.append("██" if seen else "· ", "cyan" if seen else "dim")
            lines.append(line)
        return Text("\n").join(lines)

    def _style(self, position: int) -> str:
        if self.losses is None:
            return ""
        return ("green", "yellow", "red")[min(2, int(3 * self.heat(position)))]


def newest(tokens: list[str], room: int) -> str:
    """The last tokens that fit, and at least one, with a mark where earlier ones were left out."""
    kept = [visible(tokens[-1])]
    for token in map(visible, reversed(tokens[:-1])):
        if cell_len(" ".join(["…", token, *kept])) > room:
            return " ".join(["…", *kept])
        kept.insert(0, token)
    return " ".join(kept)


def visible(token: str) -> str:
    """A token with its spaces as dots."""
    return token.replace(" ", "·")


def inspect(
    objective: str = "causal-lm",
    *,
    text: str | None = None,
    data: object = None,
    tokenizer: str | Path | TextTokenizer = "bpe",
    run: str | Path | None = None,
    window: int | None = None,
) -> Inspection:
    """Show what an objective makes of the first window of a text or of a training part.

    Args:
        objective: its name.
        text: a text to look at: one document, left open behind its last token.
        data: in place of a text, a source, whose training part is looked at; without either, the data of the
            run, or else the bundled text.
        tokenizer: as in a training; one that is trained, is trained on this text or data.
        run: a run or model directory, whose tokenizer is used and whose loss is told for each target.
        window: positions to look at, at most; by default those of the run, or 256.

    Raises:
        UserError: no such objective, data, tokenizer or run; nothing to predict; a window beyond the run's.
    """
    if objective not in INSPECTORS:
        raise UserError(
            f"There is no objective '{objective}' to inspect{nearest(objective, list(INSPECTORS))}"
        )
    if text is not None and data is not None:
        raise UserError("A text and data are both given; give one of them.")
    if window is not None and window < 1:
        raise UserError(f"A window of {window} shows nothing; ask for 1 or more.")
    return INSPECTORS[objective](text, data, tokenizer, run, window)


def inspect_causal_lm(
    text: str | None,
    data: object,
    tokenizer: str | Path | TextTokenizer,
    run: str | Path | None,
    window: int | None,
) -> Inspection:
    """The task comes from the objective itself, so that what is seen here is what is trained."""
    import numpy as np
    from torch import nn

    from selfsup.data.records import Batch
    from selfsup.data.text import Windows
    from selfsup.objectives.causal_lm import CausalLM
    from selfsup.run import load_decoder

    model = None if run is None else load_decoder(run)
    source, stream, cut = _stream(text, data, model.tokenizer if model else tokenizer, run)
    most = model.decoder.config.window if model else WINDOW
    if model and window is not None and window > most:
        raise UserError(
            f"{run} was trained on windows of {most} tokens; ask for a window of at most {most}, not {window}."
        )
    length = len(stream) - 1
    windows = Windows(stream, min(window or most, length), cut.end)
    first = np.zeros(1, np.int64)
    objective = CausalLM(model.decoder if model else nn.Identity(), cut.end).eval()
    task = objective.hide(Batch(windows.read(first), 0, first, first))
    inputs, targets = task["inputs"][0].tolist(), task["targets"][0].tolist()
    return Inspection(
        objective="causal-lm",
        idea="every token is predicted from the tokens before it",
        tokens=_names(cut, targets, END),
        inputs=_names(cut, inputs, START),
        targets=_names(cut, targets, END),
        mask=_mask(task),
        documents=task["documents"][0].tolist(),
        source=source,
        length=length,
        losses=objective.losses(task)[0].tolist() if model else None,
        chance=math.log(cut.vocabulary) if model else None,
    )


def _stream(
    text: str | None, data: object, tokenizer: str | Path | TextTokenizer, run: str | Path | None
) -> tuple[str, Ids, TextTokenizer]:
    """What is looked at: its name, its tokens, the first of which is only given, and the tokenizer."""
    from selfsup.data.sources import open_text
    from selfsup.data.text import prepare_text

    if text is not None:
        return _open_window(text, tokenizer)
    if data is None and run is not None:
        from selfsup.evaluation.language import open_corpus
        from selfsup.run import Run

        corpus = open_corpus(Run(run))
        return f"the training part of {run}", corpus.train, corpus.tokenizer
    collection = open_text(SAMPLE if data is None else data)
    corpus = prepare_text(collection, tokenizer)
    return f"the training part of {collection.name}", corpus.train, corpus.tokenizer


def _open_window(text: str, tokenizer: str | Path | TextTokenizer) -> tuple[str, Ids, TextTokenizer]:
    """A text behind its start token; it is not closed, since it may go on."""
    import numpy as np

    from selfsup.data.tokenizers import open_tokenizer, train_tokenizer

    if not text.strip():
        raise UserError("The text is empty; give at least one word.")
    cut = open_tokenizer(tokenizer) or train_tokenizer(tokenizer, [text])  # type: ignore[arg-type]  # a kind
    ids = cut.encode(text)
    if not len(ids):
        raise UserError(f"The tokenizer makes no token of the text {text!r}; give another text or tokenizer.")
    return "the text", np.concatenate([np.array([cut.end], cut.dtype), ids]), cut


def _names(tokenizer: TextTokenizer, ids: list[int], end: str) -> list[str]:
    """Tokens to look at, the end-of-text token by the part it plays here."""
    return [
        end if id_ == tokenizer.end else name for id_, name in zip(ids, tokenizer.tokens(ids), strict=True)
    ]


def _mask(task: Task) -> list[list[int]]:
    """The mask that attention adds to its scores, as 1 where it lets through."""
    import torch

    from selfsup.models.decoder import document_mask

    added = document_mask(task["documents"], torch.float32)[0, 0]
    rows: list[list[int]] = (added == 0).int().tolist()
    return rows


# The place where an objective's inspection is chosen.
INSPECTORS: dict[str, Callable[..., Inspection]] = {"causal-lm": inspect_causal_lm}
