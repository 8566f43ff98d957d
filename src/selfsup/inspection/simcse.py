"""SimCSE, seen: sentences of a batch, their two views, who is whose positive and negative, and how similar they are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Group
from torch import nn

from selfsup.config import nearest
from selfsup.data.records import Batch
from selfsup.data.sampler import draw
from selfsup.data.sentences import Sentences, open_sentences, split_sentences
from selfsup.data.tokenizers import TextTokenizer
from selfsup.errors import UserError
from selfsup.inference.encoder import EncoderModel
from selfsup.inference.opening import load_as
from selfsup.inspection.base import Inspection, Part, Request, table_part
from selfsup.inspection.tokens import TOKEN_STYLE, chip, colour, loss_bar, open_for, prepare, visible
from selfsup.models.encoder import EncoderConfig, TextEncoder
from selfsup.models.presets import PRESETS
from selfsup.objectives.language import how_texts_are_read
from selfsup.objectives.simcse import SENTENCE, VIEWS, SimCSE, SimCSERecipe, kept_tokens
from selfsup.report import Text
from selfsup.seeding import generator
from selfsup.step import predict

POSITIVE, NEGATIVE, EXCLUDED = "+", "-", "="
# Views that a token is left in, and how it then looks in a terminal.
SEEN_IN = {"both": "", "first": "blue", "second": "dark_orange", "neither": "dim strike"}
BATCH = 24  # sentences that are looked at
NUMBERS = 32  # of a vector that are shown
PRESET = "0.8m"  # an encoder to look at where neither a run nor a setting says which
SPARKS = "▁▂▃▄▅▆▇█"
CELL = 22  # of the drawing of similarities
PAIRS = 4  # sentences whose two views are drawn

STYLE = """\
.sentences li { gap: .25rem; }
.sentences .first { box-shadow: inset 0 -.18rem var(--seen); }
.sentences .second { box-shadow: inset 0 -.18rem var(--hot); }
.sentences .neither { opacity: .4; text-decoration: line-through; }
.hardest li { display: grid; grid-template-columns: 1.6rem 1fr auto; }
.hardest .same { text-align: right; }
.number { color: var(--faint); font-size: .8rem; min-width: 1.6rem; font-variant-numeric: tabular-nums; }
.same { color: var(--faint); font-size: .8rem; }
.alike { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.alike figure { margin: .7rem 0 0; flex: 1 1 20rem; max-width: 30rem; min-width: 0; }
.alike figcaption { font-size: .875rem; }
.alike svg { margin-top: .3rem; }
.alike .ground { fill: var(--ground); }
.alike .cell { fill: var(--seen); }
.alike .self { fill: none; stroke: var(--hot); stroke-width: 2; }
.alike .out { stroke: var(--faint); stroke-width: 1.2; }
.alike text { text-anchor: end; }
.alike .above text { text-anchor: middle; }
.readout { min-height: 4.8em; font-size: .875rem; }
.views { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .7rem; align-items: center;
  font-size: .875rem; margin-top: .7rem; }
.views p { grid-column: 1 / -1; margin-top: .6rem; }
.views svg { margin: 0; max-width: 32rem; }
.up { fill: var(--hot); }
.down { fill: var(--seen); }
"""

SCRIPT = """\
const readout = document.querySelector(".readout");
const sentences = [...document.querySelectorAll(".sentences li")].map(item => item.dataset.text);
document.querySelectorAll(".alike svg").forEach(svg => {
  const rows = JSON.parse(svg.dataset.similarity), what = JSON.parse(svg.dataset.roles);
  const names = {"+": "its own other view", "-": "a negative", "=": "the same sentence, so no negative"};
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), size = svg.viewBox.baseVal;
    const place = (at, start, span, whole) => Math.floor(((at - start) / span * whole - MARGIN) / CELL);
    const row = place(event.clientY, box.top, box.height, size.height);
    const column = place(event.clientX, box.left, box.width, size.width);
    if (rows[row]?.[column] === undefined) return;
    readout.textContent = (row + 1) + " “" + sentences[row] + "” and " + (column + 1) + " “" + sentences[column]
      + "”: cosine " + rows[row][column].toFixed(3) + ", " + names[what[row][column]];
  });
});
"""


@dataclass(frozen=True)
class Views:
    """What an encoder makes of the two views of the sentences.

    Attributes:
        name: of the encoder.
        similarity: row i, column j: cosine of the first view of sentence i and the second view of sentence j.
        losses: nats of finding its own second view, for each sentence, before the projection head.
        first, second: the first numbers of both views of each sentence.
    """

    name: str
    similarity: list[list[float]]
    losses: list[float]
    first: list[list[float]]
    second: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class SimCSEInspection(Inspection):
    """The first B sentences of the first batch.

    Attributes:
        source: name of what they were taken from.
        length: sentences of all of the source.
        texts: the sentences, as the tokens say them.
        tokens: of each sentence.
        seen_in: of each token of each sentence, the views that it is left in: `both`, `first`, `second` or `neither`.
        roles: row i says of each sentence j what its second view is to sentence i: `+` the positive, `-` a negative,
            `=` neither, since it equals sentence i.
        temperature, dropout, deletion, pooling: of the training.
        views: before the training, and after it where a run was given.
    """

    objective: ClassVar[str] = "simcse"
    idea: ClassVar[str] = "a sentence, read twice in part and under dropout, finds itself among others"
    style: ClassVar[str] = TOKEN_STYLE + STYLE
    script: ClassVar[str] = SCRIPT.replace("MARGIN", str(CELL)).replace("CELL", str(CELL))

    source: str
    length: int
    texts: list[str]
    tokens: list[list[str]]
    seen_in: list[list[str]]
    roles: list[str]
    temperature: float
    dropout: float
    deletion: float
    pooling: str
    views: list[Views]

    def to_json(self) -> dict[str, Any]:
        return {"objective": self.objective, "idea": self.idea, **asdict(self)}

    def count(self, role: str) -> int:
        return sum(row.count(role) for row in self.roles)

    def summary(self) -> str:
        excluded = self.count(EXCLUDED)
        facts = [
            self.source,
            f"{len(self.texts)} of {self.length:,} sentences",
            f"{self.count(NEGATIVE):,} negatives",
            *([f"{excluded} pairs of equal sentences left out"] if excluded else []),
            f"temperature {self.temperature:g}, dropout {self.dropout:g}, deletion {self.deletion:g}, "
            f"{self.pooling} pooling",
        ]
        return ", ".join(facts)

    def parts(self) -> list[Part]:
        trained = self.views[-1]
        return [
            Part(
                "sentences of a batch",
                "Each is read twice, each time without some of its tokens. Plain ones are in both views, blue ones in "
                "the first alone, orange ones in the second alone; what is crossed out is in neither.",
                self._sentences,
                self._sentences_html,
            ),
            Part(
                "the two views of a sentence",
                f"The first {NUMBERS} numbers of its vectors ({trained.name}): not the same, and yet to be recognised.",
                self._sparks,
                self._bars,
            ),
            Part(
                "how similar: first views in rows, second views in columns",
                "The stronger a cell, the nearer the cosine is to 1. On the diagonal, framed, is the positive: a "
                "sentence and its own other view; all else in its row are negatives, but for equal sentences, crossed "
                "out. Point at a cell to read it.",
                self._matrices,
                self._matrices_html,
            ),
            table_part(
                "how well a sentence is found",
                "Before the projection head, which serves training only, and before whitening.",
                ["", *(views.name for views in self.views)],
                self._figures(),
            ),
            Part(
                "the hardest negatives",
                f"For each sentence the one most similar to it ({trained.name}), the hardest first.",
                self._hardest,
                self._hardest_html,
            ),
        ]

    # -- figures --

    def _figures(self) -> list[list[str]]:
        rows: dict[str, Callable[[Views], float]] = {
            "cosine with its own other view": lambda views: _mean(self._cosines(views, POSITIVE)),
            "with a negative": lambda views: _mean(self._cosines(views, NEGATIVE)),
            "with the hardest negative": lambda views: _mean(
                [cosine for _, cosine in self.hardest(views).values()]
            ),
        }
        table = [[name, *(f"{figure(views):.3f}" for views in self.views)] for name, figure in rows.items()]
        found = (f"{_mean(self._found(views)):.0%}" for views in self.views)
        chance = _mean([math.log(1 + row.count(NEGATIVE)) for row in self.roles])
        losses = (f"{_mean(views.losses):.3f}" for views in self.views)
        return [
            *table,
            ["nearer to it than to any negative", *found],
            [f"loss (chance {chance:.3f})", *losses],
        ]

    def _cosines(self, views: Views, role: str) -> list[float]:
        """Of all pairs of a role, row by row."""
        rows = zip(self.roles, views.similarity, strict=True)
        return [cosine for roles, row in rows for is_, cosine in zip(roles, row, strict=True) if is_ == role]

    def hardest(self, views: Views) -> dict[int, tuple[int, float]]:
        """For each sentence that has negatives, the one that is most similar to it, and the cosine."""
        found = {}
        for t, (roles, row) in enumerate(zip(self.roles, views.similarity, strict=True)):
            negatives = [other for other, role in enumerate(roles) if role == NEGATIVE]
            if negatives:
                worst = max(negatives, key=row.__getitem__)
                found[t] = worst, row[worst]
        return found

    def _found(self, views: Views) -> list[bool]:
        return [views.similarity[t][t] > cosine for t, (_, cosine) in self.hardest(views).items()]

    def _ranking(self) -> list[tuple[int, int, float, float]]:
        """(sentence, its hardest negative, their cosine, that of its own two views), the hardest first."""
        views = self.views[-1]
        rows = [
            (t, other, cosine, views.similarity[t][t]) for t, (other, cosine) in self.hardest(views).items()
        ]
        return sorted(rows, key=lambda row: row[3] - row[2])

    # -- in a terminal --

    def _sentences(self, width: int) -> Text:
        lines = []
        for number, (tokens, seen_in) in enumerate(zip(self.tokens, self.seen_in, strict=True), 1):
            words = [Text(visible(t), SEEN_IN[views]) for t, views in zip(tokens, seen_in, strict=True)]
            line = Text.assemble((f"{number:>3} ", "dim"), Text(" │ ", "dim").join(words))
            line.append(self._twin(number - 1), "yellow")
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
        return Text("\n").join(lines)

    def _twin(self, t: int) -> str:
        same = [str(other + 1) for other, role in enumerate(self.roles[t]) if role == EXCLUDED]
        return f" (equal to {', '.join(same)})" if same else ""

    def _sparks(self, width: int) -> Text:
        lines = []
        for t in range(min(PAIRS, len(self.texts))):
            first, second = self.views[-1].first[t], self.views[-1].second[t]
            most = max(map(abs, first + second))
            for name, numbers in (("view 1 ", first), ("view 2 ", second)):
                lines.append(Text.assemble((f"{t + 1:>3} {name}", "dim"), (_spark(numbers, most), "cyan")))
            lines.append(Text(f"    cosine {self.views[-1].similarity[t][t]:.3f}\n", "dim"))
        return Text("\n").join(lines)

    def limits(self, width: int | None = None) -> str:
        if width is None or self._fitting(width) == len(self.texts):
            return ""
        return f"Similarities are shown of {self._fitting(width)} sentences; no more fit here (page and JSON hold all)."

    def _fitting(self, width: int) -> int:
        return min(len(self.texts), (width - 4) // 4)

    def _matrices(self, width: int) -> Group:
        shown = self._fitting(width)
        parts: list[Text] = [
            Text("cosine in hundredths; on the diagonal the positive, = an equal sentence", "dim")
        ]
        for views in self.views:
            lines = [Text(views.name, "italic")]
            lines.append(Text("    " + "".join(f"{number:>4}" for number in range(1, shown + 1)), "dim"))
            for t in range(shown):
                lines.append(Text.assemble((f"{t + 1:>3} ", "dim"), *self._cells(views, t, shown)))
            parts.append(Text("\n").join(lines))
        return Group(*parts)

    def _cells(self, views: Views, t: int, shown: int) -> list[tuple[str, str]]:
        cells = []
        for role, cosine in zip(self.roles[t][:shown], views.similarity[t], strict=False):
            number = f"{round(100 * cosine):>4}"
            style = "bold green" if role == POSITIVE else colour(cosine / max(1e-9, views.similarity[t][t]))
            cells.append(("   =", "dim") if role == EXCLUDED else (number, style))
        return cells

    def _hardest(self, width: int) -> Text:
        lines = []
        for t, other, cosine, own in self._ranking()[:8]:
            line = Text.assemble(
                (f"{cosine:.2f} ", "red" if cosine > own else "yellow"), (f"(own {own:.2f}) ", "dim")
            )
            room = max(8, (width - line.cell_len - 3) // 2)
            for place, text in enumerate((self.texts[t], self.texts[other])):
                piece = Text(text)
                piece.truncate(room, overflow="ellipsis")
                line.append(" ~ " if place else "", "dim").append_text(piece)
            lines.append(line)
        return Text("\n").join(lines)

    # -- on a page --

    def _sentences_html(self) -> str:
        items = "".join(
            f'<li data-text="{escape(text)}"><span class="number">{t + 1}</span>'
            f"{''.join(map(chip, self.seen_in[t], tokens))}"
            f'<span class="same">{self._twin(t)}</span></li>'
            for t, (text, tokens) in enumerate(zip(self.texts, self.tokens, strict=True))
        )
        return f'<ol class="sentences">{items}</ol>'

    def _bars(self) -> str:
        parts = []
        for t in range(min(PAIRS, len(self.texts))):
            first, second = self.views[-1].first[t], self.views[-1].second[t]
            most = max(map(abs, first + second)) or 1.0
            parts.append(
                f"<p>{t + 1} “{escape(self.texts[t])}”: cosine {self.views[-1].similarity[t][t]:.3f}</p>"
            )
            parts += [f"<span>view {n}</span>{_drawing(row, most)}" for n, row in ((1, first), (2, second))]
        return f'<div class="views">{"".join(parts)}</div>'

    def _matrices_html(self) -> str:
        figures = "".join(
            f"<figure><figcaption>{escape(views.name)}</figcaption>{self._matrix(views)}</figure>"
            for views in self.views
        )
        return f'<div class="alike">{figures}</div><p class="readout" aria-live="polite"></p>'

    def _matrix(self, views: Views) -> str:
        """A cell for each pair, as strong as its cosine; what is below 0 is empty."""
        count = len(self.texts)
        side = CELL * (count + 1)
        parts = [f'<rect class="ground" x="{CELL}" y="{CELL}" width="{side - CELL}" height="{side - CELL}"/>']
        for t in range(count):
            at = CELL * (t + 1)
            parts.append(f'<text x="{CELL - 4}" y="{at + CELL * 0.65:.1f}">{t + 1}</text>')
            parts.append(f'<g class="above"><text x="{at + CELL / 2}" y="{CELL - 6}">{t + 1}</text></g>')
            parts += [self._cell(views, t, other) for other in range(count)]
        parts += [_box("self", CELL * (t + 1), CELL * (t + 1)) for t in range(count)]
        similarity = [[round(cosine, 3) for cosine in row] for row in views.similarity]
        return (
            f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="cosines, {escape(views.name)}" '
            f'data-similarity="{similarity}" data-roles="{escape(json.dumps(self.roles))}">{"".join(parts)}</svg>'
        )

    def _cell(self, views: Views, t: int, other: int) -> str:
        x, y = CELL * (other + 1), CELL * (t + 1)
        if self.roles[t][other] == EXCLUDED:
            low, high = CELL * 0.3, CELL * 0.7
            return (
                f'<path class="out" d="M{x + low:.1f} {y + low:.1f}L{x + high:.1f} {y + high:.1f}'
                f'M{x + high:.1f} {y + low:.1f}L{x + low:.1f} {y + high:.1f}"/>'
            )
        return _box("cell", x, y, f' opacity="{max(0.0, views.similarity[t][other]):.3f}"')

    def _hardest_html(self) -> str:
        items = "".join(
            f'<li><span class="number">{t + 1}</span><span>{escape(self.texts[t])}</span>'
            f'<span class="same">its own other view {own:.2f}</span>'
            f'<span class="number">{other + 1}</span><span>{escape(self.texts[other])}</span>'
            f"{loss_bar(cosine, max(0.0, cosine))}</li>"
            for t, other, cosine, own in self._ranking()
        )
        return f'<ol class="hardest">{items}</ol>'


def _mean(values: list[float] | list[bool]) -> float:
    return sum(values) / max(1, len(values))


def _spark(numbers: list[float], most: float) -> str:
    """Bars whose middle is 0 and whose ends are ± the largest."""
    places = (round((number / (most or 1.0) + 1) / 2 * (len(SPARKS) - 1)) for number in numbers)
    return "".join(SPARKS[place] for place in places)


def _drawing(numbers: list[float], most: float) -> str:
    """The same on a page: what is above 0 upwards, what is below it downwards."""
    bars = "".join(
        f'<rect class="{"up" if number > 0 else "down"}" x="{10 * place}" width="8" '
        f'y="{14 - max(0.0, 13 * number / most):.1f}" height="{abs(13 * number / most):.1f}"/>'
        for place, number in enumerate(numbers)
    )
    return (
        f'<svg viewBox="0 0 {10 * len(numbers)} 28" role="img" aria-label="numbers of a vector">{bars}</svg>'
    )


def _box(role: str, x: int, y: int, more: str = "") -> str:
    return f'<rect class="{role}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}"{more}/>'


def inspect_simcse(request: Request) -> SimCSEInspection:
    """The sentences, their order and the objective are those of the training."""
    settings = request.settings
    model = None if request.run is None else load_as(request.run, EncoderModel)
    origin = None if settings["model.init"] is None else load_as(settings["model.init"], EncoderModel)
    begun = model or origin
    source, records = _open_sentences(request, begun)
    tokenizer, options = records.tokenizer, settings.config.simcse
    batch = _first_batch(records, min(BATCH, settings["train.batch"] or BATCH), settings["train.seed"])
    dropout = SimCSERecipe.dropout if settings["model.dropout"] is None else settings["model.dropout"]
    config = replace(begun.native.config if begun else _shape(request, tokenizer), dropout=dropout)
    deletion = SimCSERecipe.deletion if options.deletion is None else options.deletion
    fresh = TextEncoder(config).initialise(generator(settings["train.seed"], "weights"))
    before = origin.native if origin else fresh
    begins = f"before training ({settings['model.init']})" if origin else "before training"
    encoders = {begins: before} | ({str(request.run): model.native} if model else {})
    rows = [
        row[:length].tolist() for row, length in zip(batch.data["tokens"], batch.data["lengths"], strict=True)
    ]
    return SimCSEInspection(
        source=source,
        length=len(records),
        texts=[tokenizer.decode(row) for row in rows],
        tokens=[tokenizer.tokens(row) for row in rows],
        seen_in=[views[: len(row)] for views, row in zip(_seen_in(batch, deletion), rows, strict=True)],
        roles=_roles(batch.data["keys"].tolist()),
        temperature=options.temperature,
        dropout=dropout,
        deletion=deletion,
        pooling=options.pooling,
        views=[
            _views(
                name,
                SimCSE(
                    _with_dropout(encoder, config),
                    nn.Identity(),
                    options.pooling,
                    options.temperature,
                    deletion,
                ),
                batch,
            )
            for name, encoder in encoders.items()
        ],
    )


def _open_sentences(request: Request, model: EncoderModel | None) -> tuple[str, Sentences]:
    """The name of what is looked at, and its sentences, cut to the length that they are trained with."""
    settings = request.settings
    window = request.window or settings["data.window"] or SENTENCE
    given = model.tokenizer if model else request.tokenizer
    if request.text is not None:
        tokenizer = open_for(request.text, given, "encoder")
        framed = [tokenizer.frame(ids) for ids in tokenizer.encode_batch(list(split_sentences(request.text)))]
        source, stream = "the text", np.concatenate(framed)
    else:
        data = settings.config.data
        named = data.source if request.data is None else request.data
        if isinstance(named, str) and named.startswith("python:"):
            raise UserError(f"{request.run} was trained on data given from Python; name data with --data.")
        sentences = open_sentences(named, **how_texts_are_read(settings))
        corpus = prepare(sentences, given, settings, "encoder")
        source, stream, tokenizer = f"the training part of {sentences.name}", corpus.train, corpus.tokenizer
    records = Sentences(stream, window, tokenizer)
    if len(records) < 2:
        raise UserError("There is one sentence alone, so it has no negatives; give two or more.")
    return source, records


def _first_batch(records: Sentences, size: int, seed: int) -> Batch:
    """The sentences that a training takes first."""
    count = min(size, len(records))
    epochs, places = draw(seed, 0, count, len(records))
    return Batch(records.read(places), seed, epochs, places)


def _shape(request: Request, tokenizer: TextTokenizer) -> EncoderConfig:
    """Of the encoder that the settings name, else of a small one."""
    model = request.settings.config.model
    preset = PRESET if model.preset == "auto" else model.preset
    if preset not in PRESETS:
        raise UserError(f"There is no model preset '{preset}'{nearest(preset, ['auto', *PRESETS])}")
    shape = PRESETS[preset]
    try:
        return EncoderConfig(
            vocabulary=tokenizer.vocabulary,
            layers=model.layers or shape.layers,
            width=model.width or shape.width,
            heads=model.heads or shape.heads,
            mlp=model.mlp or shape.mlp,
            window=request.settings["data.window"] or SENTENCE,
            tied=True,
        )
    except ValueError as error:
        raise UserError(f"There is no such model: {error}.") from None


def _with_dropout(encoder: TextEncoder, config: EncoderConfig) -> TextEncoder:
    """The same weights, with the dropout of the training."""
    copy = TextEncoder(config)
    copy.load_state_dict(encoder.state_dict())
    return copy


def _roles(keys: list[int]) -> list[str]:
    """What the other view of each sentence is to a sentence: see `SimCSEInspection`."""
    return [
        "".join(
            POSITIVE if t == other else EXCLUDED if key == keys[t] else NEGATIVE
            for other, key in enumerate(keys)
        )
        for t in range(len(keys))
    ]


def _seen_in(batch: Batch, deletion: float) -> list[list[str]]:
    """Of each token of padded sentences, the views that it is left in: see `SimCSEInspection`."""
    first, second = (kept_tokens(batch, deletion, view) for view in VIEWS)
    names = np.array(["neither", "first", "second", "both"])
    return [row.tolist() for row in names[(first + 2 * second).numpy()]]


@torch.inference_mode()
def _views(name: str, objective: SimCSE, batch: Batch) -> Views:
    """Both views of each sentence, with the deletion and dropout of the first step."""
    objective.train()
    outputs = predict(objective, batch, objective.hide(batch), nullcontext)
    first, second = (F.normalize(outputs[name], dim=-1) for name in ("first", "second"))
    similarity, keys = first @ second.T, batch.data["keys"]
    same = (keys[:, None] == keys).fill_diagonal_(False)
    logits = (similarity / objective.temperature).masked_fill(same, -torch.inf)
    losses = F.cross_entropy(logits, torch.arange(len(keys)), reduction="none")
    return Views(
        name,
        similarity.tolist(),
        losses.tolist(),
        outputs["first"][:, :NUMBERS].tolist(),
        outputs["second"][:, :NUMBERS].tolist(),
    )
